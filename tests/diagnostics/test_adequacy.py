"""The residual prediction test: against ivmodels, its level, its power, and that it touches nothing global."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ivmodels.tests import residual_prediction_test
from sklearn.neighbors import KNeighborsRegressor

from cfiv.diagnostics import adequacy
from cfiv.diagnostics.adequacy import Sample, divide, residual_prediction, statistic
from cfiv.diagnostics.results import TestResult, Unavailable
from tests.diagnostics.problems import COVARIANCES, FORMULAS, SAME, SIGNIFICANCE, problem, table


def result(found: Any) -> TestResult:
    assert isinstance(found, TestResult), found
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_statistic_of_one_division_is_that_of_ivmodels(formula: str, robust: bool) -> None:
    """With a learner that does not mind a constant column or the order of columns: ivmodels hands it both."""
    found = problem(formula, table())
    data, learner = found.data, KNeighborsRegressor(n_neighbors=7)
    theirs, _ = residual_prediction_test(
        data.instruments,
        data.treatment,
        data.outcome,
        C=data.covariates,
        robust=robust,
        nonlinear_model=learner,
        fit_intercept="0 +" not in formula,
        train_fraction=0.4,
        seed=3,
    )
    learning = np.zeros(300, dtype=bool)
    learning[:120] = True
    np.random.default_rng(3).shuffle(learning)
    ours = statistic(Sample.of(found), learning, learner, robust=robust)
    assert ours == pytest.approx(theirs, rel=SAME)


@pytest.mark.law
def test_one_row_clusters_are_the_robust_statistic_and_equal_weights_are_none() -> None:
    frame = table().assign(group=range(300), w=3.0)
    learning = np.arange(300) < 150
    learner = KNeighborsRegressor()
    plain = problem("y ~ x + [t ~ z]", frame, covariance="robust")
    for other in (
        problem("y ~ x + [t ~ z]", frame, covariance="clustered"),
        problem("y ~ x + [t ~ z]", frame, covariance="robust", weights="w"),
    ):
        ours, theirs = (statistic(Sample.of(found), learning, learner, robust=True) for found in (other, plain))
        assert ours == pytest.approx(theirs, rel=SAME)


@pytest.mark.law
def test_clusters_are_never_divided() -> None:
    clusters = np.random.default_rng(0).integers(0, 50, 1000)
    learning = divide(1000, clusters, np.random.default_rng(1))
    for cluster in range(50):
        assert learning[clusters == cluster].all() or not learning[clusters == cluster].any()
    assert 0 < learning.mean() < 1


@pytest.mark.law
def test_the_same_random_state_gives_the_same_result_and_no_global_generator_is_touched() -> None:
    found = problem("y ~ x + [t ~ z]", table(), covariance="robust")
    before = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    one, same, other = (residual_prediction(found, significance=0.05, random_state=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


@pytest.mark.law
@pytest.mark.parametrize("robust", [False, True])
def test_units_of_outcome_and_treatment_do_not_matter(robust: bool) -> None:
    frame, learning = table(), np.arange(300) < 150
    scaled = frame.assign(y=1e4 * frame["y"] + 7, t=1e-3 * frame["t"])
    one, other = (
        statistic(Sample.of(problem("y ~ x + [t ~ z]", f)), learning, KNeighborsRegressor(), robust=robust)
        for f in (frame, scaled)
    )
    assert other == pytest.approx(one, rel=SAME)


@pytest.mark.law
def test_small_units_and_far_origins_do_not_blunt_the_forest() -> None:
    """scikit-learn's trees round to float32 and do not split what differs by less than 1e-7."""
    frame = table(600).assign(y=lambda f: f["y"] + 2 * f["t"] ** 2)
    small = frame.assign(**{name: 1e-9 * frame[name] for name in ("y", "t", "z", "x")})
    for formula in ("y ~ x + [t ~ z]", "y ~ 0 + x + [t ~ z]"):
        one, other = (
            result(residual_prediction(problem(formula, f), significance=0.05, random_state=0)) for f in (frame, small)
        )
        assert other.statistic == pytest.approx(one.statistic, rel=SAME)
    near, far = (
        result(residual_prediction(problem("y ~ x + [t ~ z]", f), significance=0.05, random_state=0))
        for f in (frame, frame.assign(z=frame["z"] + 1e9, x=frame["x"] + 1e9))
    )
    assert far.statistic == pytest.approx(near.statistic, rel=1e-6)  # a column beside 1e9 has seven digits left


def test_few_rows_or_clusters_are_said() -> None:
    few = residual_prediction(problem("y ~ x + [t ~ z]", table(35)), significance=SIGNIFICANCE, random_state=0)
    assert isinstance(few, Unavailable)
    assert few.reading == "Not available: it needs at least 40 rows for its two halves, got 35."
    frame = table().assign(group=lambda f: f["group"] % 10)
    found = residual_prediction(problem("y ~ x + [t ~ z]", frame, covariance="clustered"), significance=0.05, random_state=0)
    assert isinstance(found, Unavailable)
    assert found.reading == "Not available: it needs at least 20 clusters, got 10."


def test_a_model_that_fits_the_mean_of_each_value_cannot_be_tested() -> None:
    frame = table().assign(z=lambda f: f["z"] > 0)
    found = residual_prediction(problem("y ~ [t ~ z]", frame), significance=SIGNIFICANCE, random_state=0)
    assert isinstance(found, Unavailable)
    assert "take 2 values together and the model has 2 coefficients" in found.reading
    assert isinstance(
        residual_prediction(problem("y ~ x + [t ~ z]", frame), significance=SIGNIFICANCE, random_state=0), TestResult
    )


@pytest.mark.statistical
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_nonlinear_effect_is_found_with_as_many_instruments_as_treatments_and_a_linear_one_is_not(covariance: str) -> None:
    frame = table(1000)
    nonlinear = frame.assign(y=frame["y"] + 2 * frame["t"] ** 2)
    found = result(
        residual_prediction(problem("y ~ x + [t ~ z]", nonlinear, covariance=covariance), significance=0.05, random_state=0)
    )
    assert found.rejects(0.001)
    assert found.reading == "At 5 %, the linear model is rejected."
    kept = result(
        residual_prediction(problem("y ~ x + [t ~ z]", frame, covariance=covariance), significance=0.05, random_state=0)
    )
    assert not kept.rejects(0.05)
    assert "two-stage least squares may be enough" in kept.reading


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_under_the_null_one_division_rejects_at_its_level(covariance: str) -> None:
    statistics = np.empty(400)
    for seed in range(400):
        found = problem("y ~ x + [t ~ z]", null_table(400, seed, covariance), covariance=covariance)
        learning = divide(400, found.clusters, np.random.default_rng(seed))
        statistics[seed] = statistic(
            Sample.of(found), learning, KNeighborsRegressor(n_neighbors=15), robust=covariance != "unadjusted"
        )
    # One-sided at 5 %: 400 tables, within 2.576 binomial standard errors (99 %).
    assert abs((statistics > 1.6449).mean() - 0.05) < 2.576 * np.sqrt(0.05 * 0.95 / 400), (statistics > 1.6449).mean()


@pytest.mark.statistical
@pytest.mark.slow
def test_the_combined_test_keeps_its_level_under_the_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adequacy, "DIVISIONS", 5)
    rejected = 0
    for seed in range(60):
        found = problem("y ~ x + [t ~ z]", null_table(300, seed, "robust"), covariance="robust")
        rejected += result(residual_prediction(found, significance=0.05, random_state=seed)).rejects(0.05)
    assert rejected <= 8  # 60 at 5 %: more than 8 has probability 0.002


def null_table(n: int, seed: int, covariance: str) -> pd.DataFrame:
    """A linear model with a valid instrument; errors as the covariance allows them."""
    generator = np.random.default_rng(seed)
    z, x, u, v = generator.normal(size=(4, n))
    group = generator.integers(0, 100, n)
    error = u + v
    if covariance != "unadjusted":
        error = error * np.abs(0.5 + z)
    if covariance == "clustered":
        z = 0.6 * z + 0.8 * generator.normal(size=100)[group]
        error = error + generator.normal(size=100)[group]
    t = z + 0.5 * x + u
    return pd.DataFrame({"z": z, "x": x, "t": t, "y": 1 + 2 * t - x + error, "group": group})
