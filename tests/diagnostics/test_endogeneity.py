"""Endogeneity: what linearmodels says of the same data, and a published value."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from linearmodels.datasets import mroz
from scipy import stats

import cfiv
from cfiv.diagnostics.endogeneity import endogeneity
from cfiv.diagnostics.results import TestResult
from tests.diagnostics.problems import COVARIANCES, FORMULAS, SAME, SIGNIFICANCE, problem, reference, table


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_tests_are_those_of_linearmodels(formula: str, weights: str | None, covariance: str) -> None:
    frame = table()
    ours = endogeneity(problem(formula, frame, covariance=covariance, weights=weights), significance=SIGNIFICANCE)
    fitted = reference(formula, frame, covariance=covariance, weights=weights)
    theirs = {"wu_hausman": fitted.wu_hausman(), "durbin": fitted.durbin(), "wooldridge": fitted.wooldridge_regression}
    for name, expected in theirs.items():
        found = ours[name]
        assert isinstance(found, TestResult)
        assert found.statistic == pytest.approx(expected.stat, rel=SAME)
        assert found.p_value == pytest.approx(expected.pval, rel=SAME, abs=1e-15)
        assert found.distribution == expected.dist_name.replace(",", ", ").replace("  ", " ")


@pytest.mark.law
@pytest.mark.parametrize("weights", [None, "w"])
def test_wu_hausman_is_the_f_test_of_first_stage_residuals_added_to_least_squares(weights: str | None) -> None:
    found = problem("y ~ x + [t + s ~ z + q + r]", table(), weights=weights)
    residuals = found.noise(found.treatment)

    def squares(columns: np.ndarray) -> float:
        left = found.outcome - columns @ np.linalg.lstsq(columns, found.outcome, rcond=None)[0]
        return float(left @ left)

    restricted, full = squares(found.treatment), squares(np.column_stack([found.treatment, residuals]))
    expected = (restricted - full) / 2 / (full / (300 - 2 - 4))
    ours = endogeneity(found, significance=SIGNIFICANCE)["wu_hausman"]
    assert isinstance(ours, TestResult)
    assert ours.statistic == pytest.approx(expected, rel=SAME)
    assert ours.distribution == "F(2, 294)"


@pytest.mark.oracle
def test_wu_hausman_of_married_womens_wages_is_the_published_one() -> None:
    # Wooldridge, Introductory Econometrics, example 15.7: the first-stage residuals have t = 1.67, so F = t^2.
    found = endogeneity(
        problem("lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]", mroz.load().dropna(subset=["lwage"])),
        significance=SIGNIFICANCE,
    )["wu_hausman"]
    assert isinstance(found, TestResult)
    assert found.statistic**0.5 == pytest.approx(1.67, abs=5e-3)


@pytest.mark.statistical
def test_confounding_is_found_and_its_absence_is_not() -> None:
    frame = table(2000).assign(y=lambda f: f["y"] + f["s"])  # without s, which the instrument moves too
    free = frame.assign(y=2 * frame["t"] + np.random.default_rng(5).normal(size=2000))
    confounded = endogeneity(problem("y ~ x + [t ~ z]", frame, covariance="robust"), significance=SIGNIFICANCE)
    exogenous = endogeneity(problem("y ~ x + [t ~ z]", free, covariance="robust"), significance=SIGNIFICANCE)
    for name in confounded:
        found, absent = confounded[name], exogenous[name]
        assert isinstance(found, TestResult)
        assert isinstance(absent, TestResult)
        assert "the treatment is endogenous, the linear model is wrong, or an instrument is invalid" in found.reading
        assert found.rejects(0.001)
        assert not absent.rejects(0.01)


@pytest.mark.law
def test_durbin_and_wooldridge_are_score_and_wald_tests_of_the_first_stage_residuals() -> None:
    found = problem("y ~ x + [t ~ z + q]", table(), covariance="robust")
    n, residuals = 300, found.noise(found.treatment)
    regressors = np.column_stack([found.treatment, residuals])

    def left(columns: np.ndarray) -> np.ndarray:
        return found.outcome - columns @ np.linalg.lstsq(columns, found.outcome, rcond=None)[0]

    restricted, full = left(found.treatment), left(regressors)
    ours = endogeneity(found, significance=SIGNIFICANCE)
    durbin, wooldridge = ours["durbin"], ours["wooldridge"]
    assert isinstance(durbin, TestResult)
    assert isinstance(wooldridge, TestResult)
    assert durbin.statistic == pytest.approx(n * (1 - full @ full / (restricted @ restricted)), rel=SAME)
    bread = np.linalg.inv(regressors.T @ regressors)
    covariance = bread @ ((regressors * full[:, None] ** 2).T @ regressors) @ bread
    coefficient = (bread @ regressors.T @ found.outcome)[1]
    assert wooldridge.statistic == pytest.approx(coefficient**2 / covariance[1, 1], rel=SAME)
    for test in (durbin, wooldridge):
        assert (test.distribution, test.p_value) == ("chi2(1)", pytest.approx(stats.chi2.sf(test.statistic, 1), rel=SAME))


def test_weak_instruments_are_said_where_least_squares_is_not_rejected() -> None:
    frame = table().assign(y=lambda f: 2 * f["t"] + f["q"])
    for strong, words in ((True, "by more than noise."), (False, "noise, which says little with instruments this weak.")):
        found = endogeneity(problem("y ~ x + [t ~ z]", frame), significance=SIGNIFICANCE, strong=strong)["durbin"]
        assert found.reading.endswith(words)


def test_an_outcome_without_errors_beside_the_first_stage_residuals_cannot_be_tested() -> None:
    z, u = np.random.default_rng(0).normal(size=(2, 100))
    found = endogeneity(problem("y ~ [t ~ z]", pd.DataFrame({"z": z, "t": z + u, "y": 2 * z + u})), significance=SIGNIFICANCE)
    for result in found.values():
        assert "leave nothing of the outcome" in result.reading


def test_treatments_with_one_source_of_noise_cannot_be_tested() -> None:
    """linearmodels refuses the regression, raw: residuals of both first stages are one column."""
    z, q, u, v = np.random.default_rng(0).normal(size=(4, 100))
    frame = pd.DataFrame({"z": z, "q": q, "t": z + u, "s": q - 2 * u, "y": z + q + u + v})
    for result in endogeneity(problem("y ~ [t + s ~ z + q]", frame), significance=SIGNIFICANCE).values():
        assert "what the instruments leave of one treatment" in result.reading


def test_treatments_of_which_a_combination_is_exogenous_are_said_not_to_be_testable() -> None:
    """t + w = z: what the instruments leave of t is minus what they leave of w."""
    z, z2, u = np.random.default_rng(0).normal(size=(3, 200))
    frame = pd.DataFrame({"z": z, "z2": z2, "t": z + z2 + u})
    frame = frame.assign(w=frame["z"] - frame["t"], y=2 * frame["t"] + u)
    result = cfiv.diagnose(frame, "y ~ [t + w ~ z + z2]")
    for test in (result.wu_hausman, result.durbin, result.wooldridge):
        assert "a combination of what they leave of others" in test.reading
    with pytest.raises(cfiv.errors.SingularError, match="name those to test"):
        cfiv.TwoStageLeastSquares("y ~ [t + w ~ z + z2]").fit(frame).results_.wu_hausman()
