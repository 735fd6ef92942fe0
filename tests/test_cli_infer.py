"""``cfiv infer``: it prints, writes and draws what the library computes, and refuses on one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from tests.command_line import Run, runner
from tests.inference.problems import CURVE, LINE, table


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys, "infer")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The table that ``train.csv`` holds."""
    monkeypatch.chdir(tmp_path)
    table().to_csv("train.csv", index=False)
    return pd.read_csv("train.csv")


@pytest.mark.contract
def test_it_prints_writes_and_draws_what_the_library_computes(train: pd.DataFrame, run: Run) -> None:
    asked = ["--effect", "-1", "1", "--effect", "0", "0.5", "--dose-response", "-2:2:9", "--derivative"]
    options = ["--weights", "w", "--clusters", "group", "--level", "0.9", "--draws", "500", "--seed", "3"]
    answer = run("train.csv", CURVE, *asked, *options, "--out", "effects.csv", "--plot", "band.png")
    assert (answer.code, answer.err) == (0, "")
    model = cfiv.TwoStageLeastSquares(CURVE, weights="w").fit(train)
    inference = cfiv.infer(train, model, clusters="group", level=0.9, draws=500, random_state=3)
    expected = [
        inference.effect(treatment_from=-1.0, treatment_to=1.0),
        inference.effect(treatment_from=0.0, treatment_to=0.5),
        inference.dose_response(np.linspace(-2, 2, 9)),
        inference.average_derivative(),
    ]
    parts = [str(inference), *map(str, expected)]
    assert answer.out == "\n\n".join(parts) + "\n\nWritten: effects.csv\n\nWritten: band.png\n"
    written = pd.read_csv("effects.csv")
    assert written["question"].tolist() == ["effect"] * 2 + ["dose response"] * 9 + ["average derivative"]
    for name in ("estimate", "std_error", "lower", "upper", "supported"):
        assert written[name].tolist() == [value for part in expected for value in part.table[name]]
    assert written["band_lower"].notna().sum() == 9
    assert Path("band.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.contract
def test_clusters_of_two_kinds_and_other_estimators_and_pictures(train: pd.DataFrame, run: Run) -> None:
    train.assign(code=[f"{i % 50:02}" for i in range(300)]).to_csv("coded.csv", index=False)
    both = run("coded.csv", LINE, "--derivative", "--clusters", "group,code")
    assert "clustered by group (40) and code (50)" in both.out
    drawn = run("train.csv", LINE, "--estimator", "least-squares", "--dose-response", "0:1:5", "--plot", "band.svg")
    assert (drawn.code, drawn.err) == (0, "")
    assert "not of the structural function" in drawn.out
    assert "<svg" in Path("band.svg").read_text()
    answer = run("train.csv", LINE, "--estimator", "liml", "--fuller", "1", "--derivative", "--out", "fuller.csv")
    assert (answer.code, answer.err) == (0, "")
    model = cfiv.LIML(LINE, fuller=1).fit(train).coefficients_.loc["t"]
    written = pd.read_csv("fuller.csv").iloc[0]
    np.testing.assert_allclose(written[["estimate", "std_error"]].astype(float), model[["coefficient", "std_error"]], rtol=1e-9)


@pytest.mark.contract
@pytest.mark.parametrize("convention", ["fixest", "stata"])
def test_small_samples_are_counted_as_the_program_that_is_named_does(convention: Any, train: pd.DataFrame, run: Run) -> None:
    answer = run("train.csv", LINE, "--derivative", "--clusters", "group", "--debiased", convention)
    model = cfiv.TwoStageLeastSquares(LINE, debiased=convention).fit(train)
    inference = cfiv.infer(train, model, clusters="group")
    assert answer.out == f"{inference}\n\n{inference.average_derivative()}\n"
    assert f"debiased as {convention}" in answer.out


@pytest.mark.contract
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing is asked", "--effect FROM TO"]),
        (["--derivative", "--level", "95"], ["level must be > 0 and < 1, such as 0.95 for 95 %", "got 95"]),
        (["--derivative", "--draws", "9"], ["draws must be a whole number >= 100, got 9"]),
        (["--derivative", "--estimator", "network"], ["NetworkRegression has no intervals", "SieveIV"]),
        (["--derivative", "--covariance", "clustered"], ["needs groups of rows"]),
        (["--derivative", "--clusters", "groups"], ["'groups'", "did you mean 'group'"]),
        (["--effect", "low", "high"], ["column 't' holds text"]),
        (["--dose-response", "1:5"], ["must be FROM:TO:POINTS", "got 1:5"]),
        (["--dose-response", "5:1:9"], ["must go upward", "5:1:9"]),
        (["--dose-response", "1:5:1"], ["in 2 to 10,000 points"]),
        (["--derivative", "--plot", "band.png"], ["none is asked"]),
        (["--dose-response", "1:2:3", "--plot", "band.gif"], [".png, .pdf, .svg", "band.gif"]),
        (["--dose-response", "1:2:3", "--plot", "a.csv", "--out", "a.csv"], ["named twice"]),
        (["--derivative", "--out", "train.csv"], ["named twice"]),
        (["--save", "train.csv"], ["named twice"]),
        (["--save", "no/where.st"], ["cannot be written"]),
        (["--save", "saved.st", "--out", "table.csv"], ["--out has the answers, and nothing is asked"]),
        (["--derivative", "--out", "table.txt"], [".csv, .parquet, .tex, .md, .html"]),
        (
            ["--derivative", "--debiased", "--estimator", "sieve-iv"],
            ["--debiased is not for --estimator sieve-iv", "got --debiased:"],
        ),
        (["--derivative", "--covariance", "kernel"], ["'kernel' is not one of"]),
        (["--derivative", "--clusters", "group,"], ["columns between commas"]),
    ],
)
def test_what_is_refused_is_said_on_one_line(arguments: list[str], words: list[str], train: pd.DataFrame, run: Run) -> None:
    answer = run("train.csv", LINE, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("cfiv: error: ")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err


@pytest.mark.contract
def test_intervals_of_a_sieve_are_of_the_size_that_is_asked(train: pd.DataFrame, run: Run) -> None:
    asked = ("train.csv", "y ~ x + [t ~ z]", "--estimator", "sieve-iv", "--effect", "0", "1")
    assert "for small bias; the curve of" in run(*asked).out
    assert "functions that the data chose" in run(*asked, "--no-undersmooth").out


@pytest.mark.contract
@pytest.mark.parametrize("estimator", ["2sls", "kernel-iv"])
def test_rows_without_a_cluster_are_left_out_of_the_fit_too(estimator: str, train: pd.DataFrame, run: Run) -> None:
    holed = train.assign(group=train["group"].where(train.index >= 5))
    holed.to_csv("holed.csv", index=False)
    answer = run("holed.csv", LINE, "--estimator", estimator, "--clusters", "group", "--effect", 0, 1)
    assert answer.code == 0
    assert "dropped 5 of 300 rows with gaps (group: 5)" in answer.err
    assert re.search(r"^Rows +295$", answer.out, re.MULTILINE)
