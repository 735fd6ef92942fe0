"""Which part is not linear: readings of data whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import IVData
from cfiv.diagnostics import adequacy, linearity
from cfiv.diagnostics.report import Diagnostics
from cfiv.diagnostics.results import TestResult, Unavailable

FORMULA = "y ~ x + w + [t ~ z]"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three divisions instead of ten: the truths are far from one another."""
    monkeypatch.setattr(adequacy, "DIVISIONS", 3)
    monkeypatch.setattr(linearity, "DIVISIONS_ALONE", 3)


def table(outcome: Callable[[pd.DataFrame], pd.Series], n: int = 500, seed: int = 0) -> pd.DataFrame:
    """A valid, strong instrument; ``u`` confounds."""
    generator = np.random.default_rng(seed)
    z, x, w, u, noise = generator.normal(size=(5, n))
    frame = pd.DataFrame({"z": z, "x": x, "w": w, "u": u, "t": z + 0.5 * x + u, "g": generator.choice(list("abc"), n)})
    frame = frame.assign(k=generator.integers(0, 4, n), b=(z + u > 0).astype(float))
    return frame.assign(y=outcome(frame) + u + 0.3 * noise)


def gate(frame: pd.DataFrame, formula: str = FORMULA) -> tuple[str, Diagnostics]:
    found = cfiv.diagnose(frame, formula)
    return found.residual_prediction.reading, found


@pytest.mark.statistical
def test_a_curved_covariate_is_named_and_no_nonlinear_estimator_is_advised() -> None:
    frame = table(lambda f: f["t"] + f["x"] ** 2, seed=1)
    reading, found = gate(frame)
    assert (
        "no longer with curves of the covariates: 'x' enters nonlinearly (write bs(x, df=6) for the terms of 'x' in the "
        "formula), and nothing speaks against a linear effect of 't'" in reading
    )
    assert "DFIV" not in str(found)
    assert isinstance(found.residual_prediction, TestResult)
    assert isinstance(found.residual_prediction_curves, TestResult)
    assert found.residual_prediction.rejects(1e-6)
    assert not found.residual_prediction_curves.rejects(0.05)
    assert found.table["test"].tolist()[-1] == "Residual prediction, curves"
    advised, _ = gate(frame, "y ~ bs(x, df=6) + w + [t ~ z]")
    assert "nothing speaks against the linear model" in advised


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("outcome", "formula", "words"),
    [
        (
            lambda f: f["t"] + f["x"] * f["w"],
            FORMULA,
            "'x:w' enters nonlinearly (add bs(x, df=3):bs(w, df=3) in the formula), and nothing",
        ),
        (lambda f: f["t"] + (f["k"] - 1) ** 2, "y ~ k + [t ~ z]", "(write C(k) for the terms of 'k' in the formula)"),
        (lambda f: f["t"] + 4 * f["x"] * (f["g"] == "b"), "y ~ x + C(g) + [t ~ z]", "(add bs(x, df=6):C(g) in the formula)"),
    ],
)
def test_what_covariates_need_is_written_as_terms(
    outcome: Callable[[pd.DataFrame], pd.Series], formula: str, words: str
) -> None:
    assert words in gate(table(outcome), formula)[0]


@pytest.mark.statistical
@pytest.mark.parametrize("curve", [False, True])
def test_a_curved_effect_asks_for_a_nonlinear_estimator_and_says_whether_covariates_bend_too(curve: bool) -> None:
    reading, found = gate(table(lambda f: f["t"] + f["t"] ** 2 + curve * 2 * f["x"] ** 2), "y ~ x + [t ~ z]")
    assert "rejected, with curves of the covariates too: the effect of 't' is not linear or differs with the cov" in reading
    assert "a nonlinear estimator such as DFIV is needed, unless an instrument is invalid, which would look the same" in reading
    assert reading.endswith(
        "'x' enters nonlinearly as well." if curve else "nothing says that covariates enter nonlinearly as well."
    )
    assert (
        "the model is rejected where the covariates enter as curves and in pairs too"
        in found.residual_prediction_curves.reading
    )


@pytest.mark.statistical
def test_covariates_that_enter_in_ways_that_curves_miss_are_not_taken_for_a_curved_effect() -> None:
    reading, _ = gate(table(lambda f: f["t"] + 3 * np.sin(5 * f["x"]) * f["w"], n=500))
    assert "covariates alone predict what those leave: it cannot be told, but by more flexible terms" in reading


@pytest.mark.statistical
def test_a_line_is_kept_by_both_tests() -> None:
    reading, found = gate(table(lambda f: f["t"] + f["x"]))
    assert "two-stage least squares may be enough" in reading
    assert found.residual_prediction_curves.reading.startswith("At 5 %, nothing speaks against a linear effect where")


@pytest.mark.statistical
def test_without_covariates_the_treatment_is_all_there_is() -> None:
    reading, found = gate(table(lambda f: f["t"] ** 2), "y ~ [t ~ z]")
    assert reading == (
        "At 5 %, the linear model is rejected: the effect of 't' is not linear: a nonlinear estimator such as DFIV is needed, "
        "unless an instrument is invalid, which would look the same."
    )
    assert found.residual_prediction_curves == Unavailable("Residual prediction, curves", "there are no covariates")


@pytest.mark.statistical
def test_the_effect_of_two_values_is_not_called_curved() -> None:
    reading, _ = gate(table(lambda f: 3 * f["b"] * f["x"]), "y ~ x + [b ~ z]")
    assert "'b' has two values, through which there is always a line, so its effect differs with the covariates" in reading


@pytest.mark.statistical
def test_where_curves_do_not_fit_the_rows_it_cannot_be_told() -> None:
    names = [f"c{i}" for i in range(9)]
    frame = table(lambda f: f["t"] + 3 * f["x"] ** 2, n=150)
    frame = frame.assign(**dict(zip(names, np.random.default_rng(1).normal(size=(9, 150)), strict=True)))
    reading, found = gate(frame, f"y ~ x + {' + '.join(names)} + [t ~ z]")
    assert "it cannot be told (curves of the covariates need at least 230 rows, got 150) whether covariates enter" in reading
    assert isinstance(found.residual_prediction_curves, Unavailable)


@pytest.mark.law
def test_readings_do_not_depend_on_units_and_arrays_are_read_as_tables_are() -> None:
    frame = table(lambda f: f["t"] + f["x"] ** 2)
    reading, found = gate(frame)
    parts = {"outcome": frame["y"], "treatment": frame["t"], "instruments": frame["z"], "covariates": frame[["x", "w"]]}
    names = {"outcome": ["y"], "treatment": ["t"], "instruments": ["z"], "covariates": ["x", "w"]}
    scaled = {role: 2.0**300 * values for role, values in parts.items()}
    for data in (parts, scaled):
        other = cfiv.diagnose(IVData(**data, names=names))
        assert other.residual_prediction.reading == reading
        assert other.residual_prediction_curves == found.residual_prediction_curves


@pytest.mark.law
def test_clusters_and_weights_are_kept_in_the_model_with_curves() -> None:
    frame = table(lambda f: f["t"] + f["x"], n=200)
    frame = frame.assign(group=np.arange(200) // 5, v=np.random.default_rng(2).uniform(1, 3, 200))
    plain, weighted, clustered = (
        cfiv.diagnose(frame, FORMULA, **options).residual_prediction_curves
        for options in ({}, {"weights": "v"}, {"clusters": "group"})
    )
    assert len({one.statistic for one in (plain, weighted, clustered) if isinstance(one, TestResult)}) == 3


def test_without_a_constant_or_with_irrelevant_instruments_no_curve_is_read_into_a_rejection() -> None:
    generator = np.random.default_rng(0)
    z, u, v = generator.normal(size=(3, 300))
    frame = pd.DataFrame({"z": z, "t": z + u})
    missing = cfiv.diagnose(frame.assign(y=3 + 2 * frame["t"] + u), "y ~ 0 + [t ~ z]").residual_prediction.reading
    assert "a missing constant is enough: put it back" in missing
    assert "DFIV" not in missing
    frame = frame.assign(t=u + v, y=2 * (u + v) + u + 3 * z**2)  # z moves the outcome and not the treatment
    invalid = cfiv.diagnose(frame, "y ~ [t ~ z]").residual_prediction.reading
    assert "cannot tell why: an invalid instrument is enough" in invalid
    assert "DFIV" not in invalid
