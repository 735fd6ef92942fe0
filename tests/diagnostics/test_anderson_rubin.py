"""Anderson-Rubin: against ivmodels, first-stage regressions and a published interval; every shape; coverage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ivmodels.tests import anderson_rubin_test, inverse_anderson_rubin_test
from linearmodels.iv import IV2SLS

import cfiv
from cfiv.datasets import card1995
from cfiv.diagnostics.anderson_rubin import anderson_rubin, anderson_rubin_sets
from cfiv.diagnostics.first_stage import partial_f
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.overidentification import two_stage_least_squares
from cfiv.diagnostics.results import ConfidenceSet, TestResult, Unavailable
from tests.diagnostics.problems import COVARIANCES, FORMULAS, SAME, SIGNIFICANCE, problem, table


def test_of(found: Any) -> TestResult:
    assert isinstance(found, TestResult), found
    return found


test_of.__test__ = False  # type: ignore[attr-defined]


def confidence_set(found: LinearProblem, level: float = 0.95, j: int = 0) -> ConfidenceSet:
    chosen = anderson_rubin_sets(found, level=level)[j]
    assert isinstance(chosen, ConfidenceSet), chosen
    return chosen


def arrays(formula: str, frame: pd.DataFrame) -> dict[str, np.ndarray | None]:
    data = problem(formula, frame).data
    return {"Z": data.instruments, "X": data.treatment, "y": data.outcome, "C": data.covariates}


@pytest.mark.oracle
@pytest.mark.parametrize("coefficient", [0.0, 2.0, -30.0])
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_test_is_that_of_ivmodels(formula: str, coefficient: float) -> None:
    frame = table()
    found = problem(formula, frame)
    beta = np.full(found.shape[1], coefficient)
    ours = test_of(anderson_rubin(found, beta, significance=SIGNIFICANCE))
    theirs = anderson_rubin_test(**arrays(formula, frame), beta=beta, critical_values="f", fit_intercept="0 +" not in formula)
    assert ours.statistic == pytest.approx(theirs[0], rel=SAME)
    assert ours.p_value == pytest.approx(theirs[1], rel=SAME, abs=1e-14)


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("weights", [None, "w"])
def test_the_test_is_the_partial_f_of_the_instruments_on_what_the_hypothesis_leaves(
    covariance: str, weights: str | None
) -> None:
    """Which in its turn is linearmodels' (test_first_stage.py), under every covariance and with weights."""
    frame = table()
    ours = anderson_rubin(
        problem("y ~ x + [t ~ z + q]", frame, covariance=covariance, weights=weights),
        np.array([1.7]),
        significance=SIGNIFICANCE,
    )
    left = frame.assign(t=frame["y"] - 1.7 * frame["t"])
    theirs = partial_f(problem("y ~ x + [t ~ z + q]", left, covariance=covariance, weights=weights), significance=SIGNIFICANCE)
    assert test_of(ours).statistic == pytest.approx(test_of(theirs[0]).statistic, rel=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("strength", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("formula", [formula for formula in FORMULAS if "+ s" not in formula])
def test_the_set_is_that_of_ivmodels(formula: str, strength: float, level: float) -> None:
    frame = table()
    noise = np.random.default_rng(1).normal(size=len(frame))
    frame = frame.assign(t=strength * frame["t"] + (1 - strength) * noise)
    intercept = "0 +" not in formula
    ours = confidence_set(problem(formula, frame), level)
    theirs = inverse_anderson_rubin_test(
        **arrays(formula, frame), alpha=1 - level, critical_values="f", fit_intercept=intercept
    )
    expected = np.sort(theirs._boundary().flatten())
    ends = [end for interval in ours.intervals for end in interval if math.isfinite(end)]
    np.testing.assert_allclose(ends, expected, rtol=SAME)
    assert ours.is_bounded == (theirs.is_bounded() or theirs.is_empty())


@pytest.mark.oracle
@pytest.mark.parametrize("strength", [1.0, 0.05])
@pytest.mark.parametrize("formula", ["y ~ x + [t + s ~ z + q]", "y ~ x + [t + s ~ z + q + r]"])
def test_the_sets_of_several_treatments_hold_what_the_subset_test_of_ivmodels_does_not_reject(
    formula: str, strength: float
) -> None:
    """Not against its sets: where the others are unidentified, ivmodels 0.10 takes the whole line for two rays."""
    frame = table()
    frame = frame.assign(s=strength * frame["s"] + (1 - strength) * np.random.default_rng(1).normal(size=len(frame)))
    data = arrays(formula, frame)
    treatments = data.pop("X")
    assert treatments is not None

    def p_value(j: int, value: float) -> float:
        parts = {"X": treatments[:, [j]], "W": treatments[:, [1 - j]], "beta": np.array([value])}
        return float(anderson_rubin_test(**data, **parts, critical_values="f")[1])

    for j in (0, 1):
        ours = confidence_set(problem(formula, frame), j=j)
        for angle in np.linspace(-1.57, 1.57, 101):
            assert ours.contains(math.tan(angle)) == (p_value(j, math.tan(angle)) > 0.05)
        for end in (end for interval in ours.intervals for end in interval if math.isfinite(end)):
            assert p_value(j, end) == pytest.approx(0.05, rel=SAME)


@pytest.mark.oracle
def test_the_set_of_card_is_the_published_one() -> None:
    # Kang, Jiang, Zhao and Small, "ivmodel: an R package ...", 2021, and ivpack's manual: [0.02480484, 0.28482359].
    result = confidence_set(problem(card1995.FORMULA, card1995.load()))
    # 5e-7: linearmodels ships the outcome with six decimals, they had more.
    np.testing.assert_allclose(result.intervals, [[0.02480484, 0.28482359]], rtol=0, atol=5e-7)


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("strength", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("formula", ["y ~ x + [t ~ z]", "y ~ x + [t ~ z + q + r]", "y ~ 0 + [t ~ z + q]"])
def test_the_set_holds_the_coefficients_that_the_test_does_not_reject(formula: str, strength: float, covariance: str) -> None:
    frame = table()
    noise = np.random.default_rng(1).normal(size=len(frame))
    found = problem(formula, frame.assign(t=strength * frame["t"] + (1 - strength) * noise), covariance=covariance, weights="w")
    held = confidence_set(found)
    for angle in np.linspace(-1.5707, 1.5707, 401):
        value = math.tan(angle)
        p_value = test_of(anderson_rubin(found, np.array([value]), significance=0.05)).p_value
        assert p_value is not None
        if abs(p_value - 0.05) > 1e-9:
            assert held.contains(value) == (p_value > 0.05), value
    for end in (end for interval in held.intervals for end in interval if math.isfinite(end)):
        assert test_of(anderson_rubin(found, np.array([end]), significance=0.05)).p_value == pytest.approx(0.05, rel=1e-6)


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_set_of_one_instrument_holds_the_estimate_and_follows_shifts_and_units(covariance: str) -> None:
    frame = table()
    found = problem("y ~ x + [t ~ z]", frame, covariance=covariance)
    held = confidence_set(found)
    assert held.contains(float(two_stage_least_squares(found)[0]))
    other = problem("y ~ x + [t ~ z]", frame.assign(y=1e5 * (frame["y"] + 3 * frame["t"])), covariance=covariance)
    np.testing.assert_allclose(confidence_set(other).intervals, 1e5 * (np.array(held.intervals) + 3), rtol=1e-7)


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_an_instrument_without_any_relation_to_treatment_and_outcome_gives_the_whole_line(covariance: str) -> None:
    z, t = np.tile([-1.0, 1.0, -1.0, 1.0], 50), np.tile([0.0, 0.0, 1.0, 1.0], 50)
    noise = np.random.default_rng(0).normal(size=50)
    frame = pd.DataFrame({"z": z, "t": t, "y": np.repeat(noise, 4) + t, "group": np.repeat(np.arange(50), 4)})
    result = cfiv.diagnose(
        frame,
        "y ~ [t ~ z]",
        covariance=covariance,
        clusters="group" if covariance == "clustered" else None,  # type: ignore[arg-type]
    )
    assert isinstance(result.anderson_rubin_set, ConfidenceSet)
    assert result.anderson_rubin_set.is_whole_line
    assert "tell nothing" in result.anderson_rubin_set.reading
    for found in (result.sargan, result.wu_hausman, result.residual_prediction):
        assert isinstance(found, Unavailable)
    assert "do not move every treatment" in result.wu_hausman.reading


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_instruments_that_contradict_one_another_give_an_empty_set_and_say_so(covariance: str) -> None:
    frame = table(1000)
    frame = frame.assign(y=frame["y"] + 3 * frame["r"] - 3 * frame["q"])
    held = confidence_set(problem("y ~ x + [t ~ z + q + r]", frame, covariance=covariance))
    assert held.is_empty
    assert str(held) == "empty"
    assert "no value of the coefficient fits" in held.reading


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_weak_instrument_gives_two_rays_on_some_table(covariance: str) -> None:
    rays = 0
    for seed in range(20):
        frame = table(seed=seed)
        noise = np.random.default_rng(100 + seed).normal(size=len(frame))
        held = confidence_set(
            problem("y ~ x + [t ~ z]", frame.assign(t=0.05 * frame["z"] + noise, y=frame["y"] + noise), covariance=covariance)
        )
        assert held.intervals  # with one instrument never empty
        rays += len(held.intervals) == 2
        if len(held.intervals) == 2:
            assert held.intervals[0][0] == -math.inf
            assert held.intervals[1][1] == math.inf
            assert "too weak to bound" in held.reading
    assert rays > 0


def test_several_treatments_under_a_robust_covariance_say_what_to_do() -> None:
    found = anderson_rubin_sets(problem("y ~ [t + s ~ z + q]", table(), covariance="robust"), level=0.95)
    assert [type(one) for one in found] == [Unavailable, Unavailable]
    assert "covariance='unadjusted'" in found[0].reading


def weak_tables(tables: int, n: int, *, covariance: str) -> tuple[float, float]:
    """Shares of simulated tables in which the 95 % Anderson-Rubin set and the 2SLS interval hold the true effect, 0.

    Three instruments with an expected first-stage F of about 1.3; errors of outcome and treatment correlate at 0.95, and are
    heteroskedastic in the instruments unless the covariance is unadjusted.
    """
    generator = np.random.default_rng(0)
    z = generator.normal(size=(n, 3))
    frame = pd.DataFrame(z, columns=["z", "q", "r"]).assign(y=generator.normal(size=n), t=generator.normal(size=n))
    base = problem("y ~ 0 + [t ~ z + q + r]", frame, covariance=covariance)
    scale = np.ones(n) if covariance == "unadjusted" else np.sqrt(0.25 + 0.75 * z[:, 0] ** 2)
    by_set = by_interval = 0
    for _ in range(tables):
        u, v = generator.normal(size=(2, n))
        t = z @ np.full(3, 0.03) + scale * u
        y = scale * (0.95 * u + math.sqrt(1 - 0.95**2) * v)
        held = confidence_set(replace(base, outcome=y, treatment=t[:, None]))
        by_set += held.contains(0.0)
        fit = IV2SLS(y, None, t, z).fit(cov_type=covariance)
        lower, upper = fit.conf_int().to_numpy()[0]
        by_interval += bool(lower <= 0 <= upper)
    return by_set / tables, by_interval / tables


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["unadjusted", "robust"])
def test_with_very_weak_instruments_the_set_covers_the_truth_and_the_interval_of_2sls_does_not(covariance: str) -> None:
    by_set, by_interval = weak_tables(1000, 300, covariance=covariance)
    assert 0.93 < by_set < 0.97, by_set
    assert by_interval < 0.80, by_interval


@pytest.mark.statistical
@pytest.mark.slow
def test_the_set_of_one_of_two_weakly_identified_coefficients_covers_at_least_its_level() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(300, 4))
    frame = pd.DataFrame(z, columns=["z", "q", "r", "v"]).assign(
        **dict(zip("yts", generator.normal(size=(3, 300)), strict=True))
    )
    base = problem("y ~ 0 + [t + s ~ z + q + r + v]", frame)
    covered = 0
    for _ in range(1000):
        u, noise, own = generator.normal(size=(3, 300))
        treatment = np.column_stack([z @ [0.05, 0.05, 0, 0] + u, z @ [0, 0.05, 0.05, 0] + 0.7 * u + 0.7 * own])
        covered += confidence_set(replace(base, outcome=0.9 * u + 0.4 * noise, treatment=treatment)).contains(0.0)
    # At least 95 %, within 2.326 binomial standard errors (99 %, one-sided).
    assert covered / 1000 > 0.95 - 2.326 * math.sqrt(0.05 * 0.95 / 1000), covered


@pytest.mark.parametrize(
    ("coefficients", "says"),
    [
        (["2"], "coefficients holds text"),
        ([np.nan], "coefficients must be finite"),
        (np.ma.array([2.0], mask=[True]), "coefficients must have no masked values, got 1"),
        ([1.0, 2.0], r"one number a treatment, shape \(1,\), got shape \(2,\)"),
        (2.0, r"shape \(1,\), got shape \(\)"),
    ],
)
def test_coefficients_that_are_none_are_refused(coefficients: Any, says: str) -> None:
    with pytest.raises(cfiv.DataError, match=says):
        anderson_rubin(problem("y ~ x + [t ~ z]", table()), coefficients, significance=SIGNIFICANCE)
