"""Summaries against closed forms and other implementations; a failure is infinitely wrong."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.api as sm

from cfiv.studies import summary

#: Sums of a few hundred numbers in another order.
ROUNDING = 1e-12


def frame(values: np.ndarray, failed: int = 0, **columns: object) -> pd.DataFrame:
    """Results of one cell, the failed ones last."""
    table = pd.DataFrame({"error": [*values, *[np.nan] * failed], "status": ["done"] * len(values) + ["failed"] * failed})
    return table.assign(method="m", **columns)


@pytest.mark.oracle
@pytest.mark.parametrize("n", [1, 2, 5, 8, 101])
def test_quartiles_are_numpys(n: int) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    row = summary.distribution(frame(values), "error", ["method"]).loc["m"]
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(row[["quartile_1", "median", "quartile_3"]].astype(float), expected, rtol=ROUNDING)
    assert (row["replications"], row["failed"]) == (n, 0)


@pytest.mark.law
def test_failed_replications_are_infinitely_wrong() -> None:
    values = np.arange(1.0, 11.0)
    for failed, (low, middle, high) in {
        0: (3.25, 5.5, 7.75),
        2: (3.75, 6.5, 9.25),
        3: (4.0, 7.0, 10.0),
        5: (4.5, 8.0, np.inf),
        10: (5.75, np.inf, np.inf),
        40: (np.inf, np.inf, np.inf),
    }.items():
        row = summary.distribution(frame(values, failed), "error", ["method"]).loc["m"]
        assert row[["quartile_1", "median", "quartile_3"]].tolist() == [low, middle, high]
        assert row["failed"] == failed
    row = summary.distribution(frame(-values, 5), "error", ["method"], failed_as=-np.inf).loc["m"]
    assert row[["quartile_1", "median", "quartile_3"]].tolist() == [-np.inf, -8.0, -4.5]
    assert summary.distribution(frame(values[:0], 3), "error", ["method"]).loc["m", "median"] == np.inf


@pytest.mark.oracle
@pytest.mark.parametrize("n", [5, 20, 57, 200])
def test_the_medians_error_comes_from_the_order_statistics_of_its_sign_test_interval(n: int) -> None:
    values = np.sort(np.random.default_rng(n).normal(size=n))
    found = summary.median_mc_error(values)
    # The interval [X_(k), X_(n-k+1)] has the level of the binomial distribution; k is the normal approximation to its quantile.
    k = max(1, round((n + 1) / 2 - summary.Z * np.sqrt(n / 4)))
    level = 1.0 - 2.0 * scipy.stats.binom.cdf(k - 1, n, 0.5)
    assert 0.9 < level < 0.99
    assert found == pytest.approx((values[n - k] - values[k - 1]) / (2 * scipy.stats.norm.ppf(0.975)), rel=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal"])
def test_the_medians_monte_carlo_error_is_its_standard_deviation(draw: str) -> None:
    generator = np.random.default_rng(7)
    samples = np.sort(getattr(generator, draw)(size=(4000, 50)), axis=1)
    actual = np.median(samples, axis=1).std(ddof=1)
    estimated = np.mean([summary.median_mc_error(sample) for sample in samples])
    # For fifty replications within a tenth; the standard error of `actual` itself is 1.1 %.
    assert estimated == pytest.approx(actual, rel=0.10)


@pytest.mark.law
def test_the_medians_error_is_unknown_for_four_and_infinite_where_failures_reach_its_interval() -> None:
    assert np.isnan(summary.median_mc_error(np.arange(4.0)))
    assert np.isfinite(summary.median_mc_error(np.array([*range(19), np.inf])))
    assert summary.median_mc_error(np.array([*range(12), *[np.inf] * 8])) == np.inf
    assert summary.median_mc_error(np.array([*[-np.inf] * 8, *range(12)])) == np.inf


@pytest.mark.oracle
def test_bias_spread_and_coverage_are_those_of_the_closed_forms() -> None:
    generator = np.random.default_rng(3)
    truth = generator.normal(size=80)
    values = truth + generator.normal(0.3, 2.0, size=80)
    half = np.full(80, 2.0 * 1.96)
    table = frame(values, error_truth=truth, error_lower=values - half, error_upper=values + half)
    row = summary.accuracy(table, "error", ["method"]).loc["m"]
    errors = values - truth
    assert row["bias"] == pytest.approx(errors.mean(), rel=ROUNDING)
    assert row["bias_mc_error"] == pytest.approx(scipy.stats.sem(errors), rel=ROUNDING)
    assert row["sd"] == pytest.approx(scipy.stats.tstd(errors), rel=ROUNDING)
    assert row["sd_mc_error"] == pytest.approx(scipy.stats.tstd(errors) / np.sqrt(2 * 79), rel=ROUNDING)
    assert row["rmse"] ** 2 == pytest.approx(errors.mean() ** 2 + errors.var(), rel=ROUNDING)
    covered = int((np.abs(errors) <= half).sum())
    assert row["coverage"] == covered / 80
    assert row["coverage_mc_error"] == pytest.approx(scipy.stats.binom.std(80, covered / 80) / 80, rel=ROUNDING)


@pytest.mark.statistical
def test_an_interval_of_95_percent_covers_so_often_and_the_errors_of_bias_and_spread_are_right() -> None:
    values = np.random.default_rng(11).normal(2.5, 1.0, size=50_000)
    table = frame(values, error_truth=2.0, error_lower=values - 0.5 - 1.96, error_upper=values - 0.5 + 1.96)
    rows = summary.accuracy(table.assign(study=np.repeat(range(1000), 50)), "error", ["study"])
    # Four standard errors of a mean of a thousand.
    assert abs(rows["bias"].mean() - 0.5) < 4 / np.sqrt(50 * 1000)
    assert abs(rows["coverage"].mean() - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 50_000)
    # The standard error of a standard deviation of a thousand is 2.2 %.
    for name in ("bias", "sd", "coverage"):
        assert rows[f"{name}_mc_error"].mean() == pytest.approx(rows[name].std(), rel=0.09)


@pytest.mark.law
def test_accuracy_is_of_those_that_did_not_fail_whose_number_is_given() -> None:
    whole = frame(np.array([1.0, 2.0]), 3, error_truth=[1.0, 1.0, np.nan, np.nan, np.nan])
    row = summary.accuracy(whole, "error", ["method"]).loc["m"]
    assert (row["bias"], row["replications"], row["failed"]) == (0.5, 5, 3)
    nothing = summary.accuracy(whole[2:], "error", ["method"]).loc["m"]
    assert (nothing["replications"], nothing["failed"]) == (3, 3)
    alone = summary.accuracy(whole[:1], "error", ["method"]).loc["m"]
    assert alone["bias"] == 0.0
    assert np.isnan(alone["sd"])


@pytest.mark.oracle
def test_slopes_are_those_of_ordinary_least_squares() -> None:
    generator = np.random.default_rng(5)
    n = np.repeat([100, 1000, 5000], 20)
    values = 3.0 * n**-0.7 * generator.lognormal(sigma=0.4, size=60)
    row = summary.slopes(frame(values, n=n), "error", ["method"]).loc["m"]
    oracle = sm.OLS(np.log(values), sm.add_constant(np.log(n))).fit()
    assert row["slope"] == pytest.approx(oracle.params[1], rel=1e-9)
    assert row["std_error"] == pytest.approx(oracle.bse[1], rel=1e-9)
    assert row["replications"] == 60


@pytest.mark.law
def test_slopes_are_exact_on_power_laws_and_leave_out_what_has_none() -> None:
    n = np.array([10, 100, 1000])
    table = pd.concat(
        [
            frame(5.0 / n, n=n),
            frame(np.array([0.0]), 1, n=[10, 10]),  # an error of zero, and a failure
            frame(5.0 / n, n=[10, 10, 10]).assign(method="of one n"),
        ]
    )
    found = summary.slopes(table, "error", ["method"])
    assert found.index.tolist() == ["m"]
    assert found.loc["m", "slope"] == pytest.approx(-1.0, rel=ROUNDING)
    assert found.loc["m", "std_error"] < 1e-12
    assert summary.slopes(table[:0], "error", ["method"]).empty


@pytest.mark.law
def test_cells_are_summarised_apart_in_their_order_also_where_a_coordinate_is_missing() -> None:
    table = pd.concat([frame(np.full(5, value), ridge=ridge) for value, ridge in ((3.0, 2.0), (1.0, np.nan), (2.0, 1.0))])
    found = summary.distribution(table, "error", ["method", "ridge"])
    assert found["median"].tolist() == [3.0, 1.0, 2.0]
    assert (found["mc_error"] == 0.0).all()
