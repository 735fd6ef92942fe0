"""``cfiv effect | dose-response | plot``: they print, write and draw what a model file says, and refuse before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.errors import ModelFileError
from tests.command_line import Answer, Run, runner
from tests.inference.problems import CURVE, LINE, table
from tests.latex import assert_compilable


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cfiv.TwoStageLeastSquares:
    """What ``curve.st`` holds; ``line.st`` is another one, and ``rows.csv`` rows to average over."""
    monkeypatch.chdir(tmp_path)
    frame = table()
    model = cfiv.TwoStageLeastSquares(CURVE).fit(frame)
    model.save("curve.st")
    cfiv.TwoStageLeastSquares(LINE).fit(frame).save("line.st")
    frame[:40].to_csv("rows.csv", index=False)
    return model


def assert_refused(answer: Answer, *words: str) -> None:
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("cfiv: error: ")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err


@pytest.mark.contract
def test_effect_prints_and_writes_the_average_and_the_spread_of_the_library(model: cfiv.TwoStageLeastSquares, run: Run) -> None:
    answer = run("effect", "curve.st", "--from", -1, "--to", 1, "--rows", "rows.csv", "--out", "effect.csv")
    assert (answer.code, answer.err) == (0, "")
    command = "cfiv infer TRAIN FORMULA --estimator 2sls --effect -1 1"
    assert answer.out.endswith(f"\n\nWritten: effect.csv\n\nWith standard errors: {command}\n")
    expected = model.effect(pd.read_csv("rows.csv"), treatment_from=-1.0, treatment_to=1.0)
    written = pd.read_csv("effect.csv").iloc[0]
    assert written["rows"] == 40
    assert written["average"] == expected.mean()
    assert [written["lowest"], written["highest"]] == [expected.min(), expected.max()]
    assert [written[f"{share} %"] for share in (10, 50, 90)] == list(np.quantile(expected, [0.1, 0.5, 0.9]))
    assert f"{expected.mean():.4g}" in answer.out


@pytest.fixture
def inference(model: cfiv.TwoStageLeastSquares, run: Run) -> cfiv.Inference:
    """What ``inference.st`` holds, which the shell has written; of the model in ``curve.st``."""
    table().to_csv("train.csv", index=False)
    answer = run("infer", "train.csv", CURVE, "--save", "inference.st")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.endswith("\n\nWritten: inference.st\n")
    return cfiv.infer(table(), model)


@pytest.mark.contract
def test_effects_of_an_inference_file_have_the_errors_of_the_library(inference: cfiv.Inference, run: Run) -> None:
    for rows, averaged in (((), None), (("--rows", "rows.csv"), pd.read_csv("rows.csv"))):
        answer = run("effect", "inference.st", "--from", -1, "--to", 1, *rows, "--out", "effect.csv")
        assert (answer.code, answer.err) == (0, "")
        expected = inference.effect(treatment_from=-1.0, treatment_to=1.0, rows=averaged)
        assert answer.out == f"{expected}\n\nWritten: effect.csv\n"
        pd.testing.assert_frame_equal(pd.read_csv("effect.csv"), expected.table, rtol=1e-9)  # text of the table, and back


@pytest.mark.contract
def test_curves_of_an_inference_file_have_its_band(inference: cfiv.Inference, run: Run) -> None:
    answer = run("dose-response", "inference.st", "0:1:3")
    assert answer == Answer(0, f"{inference.dose_response([0.0, 0.5, 1.0])}\n", "")
    assert run("plot", "inference.st", "0:1:5", "--out", "band.png") == Answer(0, "Written: band.png\n", "")
    assert run("plot", "curve.st", "0:1:5", "--out", "curve.png").code == 0
    assert Path("band.png").read_bytes() != Path("curve.png").read_bytes()
    assert_refused(
        run("plot", "inference.st", "curve.st", "0:1:5", "--out", "both.png"), "drawn by itself", "one inference file"
    )


@pytest.mark.contract
def test_predictions_of_an_inference_file_have_errors(inference: cfiv.Inference, run: Run) -> None:
    answer = run("predict", "inference.st", "rows.csv", "--out", "predictions.csv")
    assert answer == Answer(0, "Written: predictions.csv (40 rows)\n", "")
    expected = inference.predict(pd.read_csv("rows.csv")).table
    names = ["estimate", "std_error", "lower", "upper", "supported"]
    pd.testing.assert_frame_equal(pd.read_csv("predictions.csv")[names], expected[names], rtol=1e-9)
    pd.read_csv("rows.csv").assign(lower=0.0).to_csv("taken.csv", index=False)
    assert_refused(run("predict", "inference.st", "taken.csv", "--out", "p.csv"), "already has a column 'lower'")


@pytest.mark.contract
def test_an_inference_file_is_not_called_a_damaged_model(inference: cfiv.Inference) -> None:
    with pytest.raises(
        ModelFileError,
        match=r"'inference.st' is no model file, but another file of cfiv \('cfiv-inference'\): name the model file, or "
        "read it with cfiv.Inference.load",
    ):
        cfiv.load("inference.st")


@pytest.mark.contract
def test_without_rows_the_effect_is_over_those_that_the_model_kept(model: cfiv.TwoStageLeastSquares, run: Run) -> None:
    run("effect", "curve.st", "--from", "0", "--to", "0.5", "--out", "effect.csv")
    rows = model.structural_function_.encoder.reference_rows
    expected = model.effect(rows, treatment_from=0.0, treatment_to=0.5).mean()
    assert pd.read_csv("effect.csv")["average"].tolist() == [expected]


@pytest.mark.contract
def test_several_treatments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    frame = table().assign(s=lambda f: f["z"] ** 2 + f["t"])
    model = cfiv.TwoStageLeastSquares("y ~ x + [t + s ~ z + I(z**2) + I(z**3)]").fit(frame)
    model.save("two.st")
    assert run("effect", "two.st", "--from", "t=0,s=1", "--to", "t=1,s=1", "--out", "e.csv").code == 0
    assert pd.read_csv("e.csv")["average"].iloc[0] == pytest.approx(model.coefficients_["coefficient"]["t"])


@pytest.mark.contract
@pytest.mark.parametrize(("grid", "points"), [("-1:1:5", np.linspace(-1, 1, 5)), ("0.5", [0.5]), ("1, 0,-1", [1.0, 0.0, -1.0])])
def test_dose_response_is_that_of_the_library(
    model: cfiv.TwoStageLeastSquares, run: Run, grid: str, points: list[float]
) -> None:
    answer = run("dose-response", "--out", "curve.csv", "--", "curve.st", grid)
    assert (answer.code, answer.err) == (0, "")
    pd.testing.assert_frame_equal(pd.read_csv("curve.csv"), model.dose_response(points), check_exact=True)


@pytest.mark.contract
@pytest.mark.parametrize("ending", ["csv", "parquet", "tex", "md", "html"])
def test_the_ending_chooses_the_format(model: cfiv.TwoStageLeastSquares, run: Run, ending: str) -> None:
    assert run("dose-response", "curve.st", "0:1:3", "--out", f"out.{ending}").code == 0
    if ending in ("csv", "parquet"):
        read = pd.read_csv if ending == "csv" else pd.read_parquet
        assert read(f"out.{ending}")["t"].tolist() == [0.0, 0.5, 1.0]
        return
    text = Path(f"out.{ending}").read_text(encoding="utf-8")
    assert "estimate" in text
    if ending == "tex":
        assert_compilable(text.rstrip("\n"))
    assert text.startswith({"tex": "% Dose", "md": "**Dose", "html": "<!doctype html>\n<meta charset='utf-8'>"}[ending])


@pytest.mark.contract
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot_draws_one_model_or_several(model: cfiv.TwoStageLeastSquares, run: Run, ending: str) -> None:
    for models in (["curve.st"], ["curve.st", "line.st"]):
        answer = run("plot", *models, "0:1:5", "--out", f"out.{ending}")
        assert (answer.code, answer.err, answer.out) == (0, "", f"Written: out.{ending}\n")
    content = Path(f"out.{ending}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


@pytest.mark.contract
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["effect", "curve.st", "--from", "0", "--to", "1", "--out", "out.txt"],
            [".csv, .parquet, .tex, .md, .html", "out.txt"],
        ),
        (["effect", "curve.st", "--from", "0", "--to", "1", "--rows", "rows.csv", "--out", "rows.csv"], ["named twice"]),
        (["effect", "curve.st", "--from", "0", "--to", "1", "--out", "no/where.csv"], ["cannot be written"]),
        (["effect", "curve.st", "--from", "0"], ["Missing option '--to'"]),
        (["effect", "curve.st", "--from", "low", "--to", "1"], ["column 't' holds text"]),
        (["dose-response", "curve.st", "0:1:3", "--out", "out"], [".csv, .parquet, .tex, .md, .html"]),
        (["dose-response", "curve.st", "5:1:9"], ["must go upward", "5:1:9"]),
        (["dose-response", "curve.st", "1:5"], ["FROM:TO:POINTS", "1:5"]),
        (["plot", "curve.st", "0:1:5", "--out", "out.csv"], [".png, .pdf, .svg", "out.csv"]),
        (["plot", "curve.st", "a,b", "--out", "out.png"], ["one treatment that is a number"]),
        (["plot", "curve.st", "absent.st", "0:1:5", "--out", "out.png"], ["absent.st"]),
        (["plot", "curve.st", "line.st", "0:1:5", "--out", "line.st"], ["named twice"]),
    ],
)
@pytest.mark.usefixtures("model")
def test_what_is_refused_is_said_on_one_line_before_any_work(
    arguments: list[str], words: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--out" in arguments and "a,b" not in arguments:
        monkeypatch.setattr(cfiv, "load", None)
    assert_refused(run(*arguments), *words)


@pytest.mark.contract
def test_of_estimators_without_intervals_it_is_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    cfiv.NetworkRegression(LINE, steps=2, progress=False).fit(table()).save("network.st")
    answer = run("dose-response", "network.st", "0,1")
    assert answer.code == 0
    assert "NetworkRegression has no standard errors: its features were learned from the same rows" in answer.out


@pytest.mark.contract
def test_an_effect_over_rows_with_gaps_is_over_the_others_and_its_hint_has_the_roles_and_options_of_the_fit(
    model: cfiv.TwoStageLeastSquares, run: Run
) -> None:
    frame = table().assign(x=lambda f: f["x"].where(f.index % 10 > 0))
    frame.drop(columns="t").to_csv("holed.csv", index=False)
    options = {"weights": "w", "clusters": "group", "covariance": "clustered", "debiased": True}
    with pytest.warns(cfiv.errors.MissingRowsWarning):
        fitted = cfiv.TwoStageLeastSquares(LINE, **options).fit(frame)
    fitted.save("holed.st")
    answer = run("effect", "holed.st", "--from", 0, "--to", 1, "--rows", "holed.csv", "--out", "e.csv")
    assert answer.code == 0
    assert "dropped 30 of 300 rows with gaps (x: 30)" in answer.err
    expected = fitted.effect(frame.dropna(), treatment_from=0.0, treatment_to=1.0)
    assert pd.read_csv("e.csv")[["rows", "average"]].to_numpy().tolist() == [[270, expected.mean()]]
    hint = "cfiv infer TRAIN FORMULA --estimator 2sls --weights w --clusters group --effect 0 1\n"
    assert answer.out.endswith(f"{hint}and what else the fit was given: its covariance is clustered, debiased\n")
    cfiv.LIML(LINE, fuller=1.0).fit(table()).save("liml.st")
    said = run("effect", "liml.st", "--from", 0, "--to", 1).out.splitlines()[-1]
    assert said.startswith("and what else the fit was given: its kappa is ")
    assert said.endswith(", --fuller or not")
