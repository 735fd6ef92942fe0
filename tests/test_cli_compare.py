"""``cfiv compare``: it prints and writes the regression table of the library, and refuses before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from tests.command_line import Run, runner
from tests.diagnostics.problems import table
from tests.latex import assert_compilable

ONE = "y ~ x + [t ~ z]"
TWO = "y ~ x + [t ~ z + r]"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys, "compare")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The table that ``train.csv`` holds."""
    monkeypatch.chdir(tmp_path)
    table().to_csv("train.csv", index=False)
    return pd.read_csv("train.csv")


@pytest.mark.contract
def test_it_prints_and_writes_a_column_for_every_formula_and_estimator(train: pd.DataFrame, run: Run) -> None:
    options = ["--estimator", "least-squares", "--estimator", "2sls", "--weights", "w", "--clusters", "group", "--debiased"]
    shown = ["--term", "t", "--stars", "--digits", "2", "--held-out", "train.csv"]
    answer = run("train.csv", ONE, TWO, *options, *shown, "--out", "table.csv")
    assert (answer.code, answer.err) == (0, "")
    same = {"weights": "w", "clusters": "group", "covariance": "clustered", "debiased": True}
    kinds = (cfiv.LeastSquares, cfiv.TwoStageLeastSquares)
    models = [kind(formula, **same).fit(train) for formula in (ONE, TWO) for kind in kinds]  # type: ignore[arg-type]
    named = {f"({i + 1})": model for i, model in enumerate(models)}
    expected = cfiv.compare(named, terms=["t"], stars=True, digits=2, data=train)
    assert answer.out == f"{expected}\n\nWritten: table.csv\n"
    written = pd.read_csv("table.csv")
    assert len(written) == len(expected.estimates) == 12
    np.testing.assert_array_equal(written["std_error"], expected.estimates["std_error"])
    assert written.groupby("model")["first_stage_f"].first()["(2)"] == expected.table["first_stage_f"]["(2)"]


@pytest.mark.contract
def test_effects_of_curves_have_the_errors_of_infer_and_those_of_networks_none(train: pd.DataFrame, run: Run) -> None:
    options = [word for name in ("2sls", "sieve-iv", "network") for word in ("--estimator", name)]
    answer = run("train.csv", ONE, *options, "--effect", "-1", "1", "--covariance", "unadjusted", "--out", "table.tex")
    assert (answer.code, answer.err) == (0, "")
    assert "t -1 to 1" in answer.out
    assert "Without standard errors: (3)." in answer.out
    sieve = cfiv.infer(train, cfiv.SieveIV(ONE).fit(train), covariance="unadjusted")
    error = sieve.effect(treatment_from=-1.0, treatment_to=1.0).std_errors[0]
    assert f"({error:.3g})" in answer.out
    assert_compilable(Path("table.tex").read_text().rstrip("\n"))


@pytest.mark.contract
@pytest.mark.parametrize(
    ("options", "same"),
    [
        (["--covariance", "kernel"], {"covariance": "kernel"}),
        (["--debiased", "fixest"], {"debiased": "fixest"}),
        (["--debiased=stata"], {"debiased": "stata"}),
        (["--debiased"], {"debiased": True}),
    ],
    ids=lambda part: " ".join(part),
)
def test_errors_are_of_the_kind_that_is_asked_wherever_the_option_stands(
    options: list[str], same: dict[str, Any], train: pd.DataFrame, run: Run
) -> None:
    expected = str(cfiv.compare({"(1)": cfiv.TwoStageLeastSquares(ONE, **same).fit(train)}))
    assert expected in run("train.csv", ONE, *options).out
    assert expected in run(*options, "train.csv", ONE).out


@pytest.mark.contract
@pytest.mark.parametrize("ending", ["tex", "md", "html"])
def test_the_ending_chooses_the_format(train: pd.DataFrame, run: Run, ending: str) -> None:
    assert run("train.csv", ONE, "--out", f"table.{ending}").code == 0
    comparison = cfiv.compare({"(1)": cfiv.TwoStageLeastSquares(ONE).fit(train)})
    expected = {"tex": comparison.to_latex(), "md": comparison.to_markdown(), "html": comparison.to_html()}[ending]
    assert Path(f"table.{ending}").read_text(encoding="utf-8").endswith(f"{expected}\n")


@pytest.mark.contract
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "table.doc"], [".csv, .parquet, .tex, .md, .html", "table.doc"]),
        (["--out", "train.csv"], ["named twice"]),
        (["--out", "no/table.tex"], ["cannot be written"]),
        (["--debiased", "--estimator", "kernel-iv"], ["--debiased is for none of kernel-iv"]),
        (["--clusters", "group,"], ["columns between commas"]),
        (["--debiased=hc1"], ["'hc1' is not one of 'fixest', 'stata'"]),
        (["--digits", "0"], ["--digits", "1<=x<=8"]),
        (["--held-out", "absent.csv"], ["absent.csv"]),
    ],
)
@pytest.mark.usefixtures("train")
def test_what_is_refused_is_said_before_any_model_is_fitted(
    arguments: list[str], words: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfiv.TwoStageLeastSquares, "fit", None)
    answer = run("train.csv", ONE, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("cfiv: error: ")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err


@pytest.mark.contract
@pytest.mark.usefixtures("train")
def test_terms_that_no_model_has_are_refused(run: Run) -> None:
    answer = run("train.csv", ONE, "--term", "tt")
    assert answer.code == 2
    assert "no model has a coefficient 'tt'" in answer.err
