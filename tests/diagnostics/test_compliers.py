"""Compliers: how many, and who."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import cfiv
from cfiv import TwoStageLeastSquares
from cfiv.diagnostics.compliers import Compliers, compliers
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.results import Unavailable
from cfiv.estimators.linear_regression import Covariance
from tests.diagnostics.problems import SIGNIFICANCE

#: Newton's last step, and sums in another order.
ROUNDING = 1e-8


def simulate(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A lottery that is likelier to be won at high ``x``, where there are also more compliers; and who they are.

    A fifth of the rows are always-takers; ``b`` says nothing of who complies.
    """
    generator = np.random.default_rng(seed)
    x, b = generator.normal(size=n), generator.integers(0, 2, n)
    won = generator.uniform(size=n) < 1 / (1 + np.exp(0.3 * b - 0.5 * x))
    kind = generator.uniform(size=n)
    complies = kind < 0.5 / (1 + np.exp(-x))
    always = (kind > 0.8) & ~complies
    treated = (complies & won) | always
    outcome = treated * (1 + x) + x + generator.normal(size=n)
    frame = pd.DataFrame({"y": outcome, "d": treated, "z": won, "x": x, "b": b}).astype(float)
    return frame.assign(group=generator.integers(0, 50, n), w=generator.integers(1, 4, n)), complies


def found(frame: pd.DataFrame, formula: str = "y ~ x + b + [d ~ z]", *, clusters: str | None = None, **roles: Any) -> Compliers:
    _, data = TwoStageLeastSquares(formula, clusters=clusters, **roles).encode(frame)
    covariance = Covariance("robust" if clusters is None else "clustered")
    problem = LinearProblem.from_data(data, intercept=True, covariance=covariance)
    result = compliers(problem, significance=SIGNIFICANCE)
    assert isinstance(result, Compliers)
    return result


def same(one: Compliers, other: Compliers) -> None:
    assert one.share.statistic == pytest.approx(other.share.statistic, rel=ROUNDING)
    np.testing.assert_allclose(one.table, other.table, rtol=1e-6, atol=ROUNDING)


@pytest.mark.law
def test_without_covariates_the_share_is_the_difference_of_means_with_its_robust_error() -> None:
    frame, _ = simulate(800, 0)
    result = found(frame, "y ~ [d ~ z]")
    first, zeroth = frame.loc[frame["z"] == 1, "d"], frame.loc[frame["z"] == 0, "d"]
    share = first.mean() - zeroth.mean()
    error = np.sqrt(first.var(ddof=0) / len(first) + zeroth.var(ddof=0) / len(zeroth))
    assert result.share.statistic == pytest.approx(share, rel=ROUNDING)
    assert result.always_takers == pytest.approx(zeroth.mean(), rel=ROUNDING)
    assert result.never_takers == pytest.approx(1 - first.mean(), rel=ROUNDING)
    assert result.share.p_value == pytest.approx(2 * stats.norm.sf(share / error), rel=1e-6)
    assert result.table.empty


@pytest.mark.law
def test_with_one_covariate_of_two_values_compliers_are_counted_within_each() -> None:
    frame, _ = simulate(2000, 1)
    result = found(frame, "y ~ b + [d ~ z]")
    means = frame.groupby(["b", "z"])["d"].mean().unstack()
    shares, sizes = means[1.0] - means[0.0], frame["b"].value_counts(normalize=True).sort_index()
    assert result.share.statistic == pytest.approx(float((shares * sizes).sum()), rel=ROUNDING)
    assert result.table.loc["b", "compliers"] == pytest.approx(shares[1.0] * sizes[1.0] / (shares * sizes).sum(), rel=ROUNDING)
    assert result.table.loc["b", "all"] == pytest.approx(frame["b"].mean())


@pytest.mark.law
def test_nothing_depends_on_how_the_values_are_called() -> None:
    frame, _ = simulate(500, 2)
    result = found(frame)
    same(found(frame.assign(z=1 - frame["z"])), result)
    same(found(frame.assign(z=10 - 3 * frame["z"], d=1 + frame["d"])), result)
    other = found(frame.assign(d=1 - frame["d"]))
    same(other, result)
    assert (other.always_takers, other.never_takers) == pytest.approx((result.never_takers, result.always_takers))
    moved = found(frame.assign(x=1e6 + 1e3 * frame["x"]))
    assert moved.table.loc["x", "compliers"] == pytest.approx(1e6 + 1e3 * result.table.loc["x", "compliers"])
    assert moved.table.loc["x", "p_value"] == pytest.approx(result.table.loc["x", "p_value"], rel=1e-5)


@pytest.mark.law
def test_whole_weights_are_rows_that_many_times() -> None:
    frame, _ = simulate(400, 3)
    weighted, repeated = found(frame, weights="w"), found(frame.loc[frame.index.repeat(frame["w"])])
    assert weighted.share.statistic == pytest.approx(repeated.share.statistic, rel=ROUNDING)
    np.testing.assert_allclose(weighted.table["compliers"], repeated.table["compliers"], rtol=1e-6)


@pytest.mark.law
def test_clusters_of_one_row_are_rows_and_rows_twice_in_a_cluster_are_one() -> None:
    frame, _ = simulate(400, 4)
    result = found(frame)
    same(found(frame.assign(group=range(400)), clusters="group"), result)
    twice = pd.concat([frame.assign(group=range(400))] * 2)
    same(found(twice, clusters="group"), result)


@pytest.mark.oracle
def test_standard_errors_are_those_of_a_jackknife() -> None:
    frame, _ = simulate(150, 5)
    result = found(frame)
    left_out = [found(frame.drop(index=i)) for i in frame.index]
    means = np.array([one.table["compliers"] for one in left_out])
    jackknife = np.sqrt((len(frame) - 1) * means.var(axis=0))
    np.testing.assert_allclose(result.table["std_error"], jackknife, rtol=0.15)  # they differ by terms of order 1/n
    gaps = np.array([one.table["difference"] for one in left_out])
    z = result.table["difference"] / np.sqrt((len(frame) - 1) * gaps.var(axis=0))
    np.testing.assert_allclose(result.table["p_value"], 2 * stats.norm.sf(np.abs(z)), atol=0.03)


@pytest.mark.statistical
def test_many_rows_find_the_compliers() -> None:
    frame, complies = simulate(100_000, 6)
    result = found(frame)
    assert result.share.statistic == pytest.approx(complies.mean(), abs=0.015)  # five standard errors
    for name in ("x", "b"):
        truth, row = frame.loc[complies, name].mean(), result.table.loc[name]
        assert abs(row["compliers"] - truth) < 4 * row["std_error"]
    assert result.table.loc["x", "p_value"] < 1e-6 < 0.01 < result.table.loc["b", "p_value"]


@pytest.mark.slow
@pytest.mark.statistical
def test_intervals_hold_the_means_of_compliers_in_95_of_100_samples() -> None:
    truth, held = 0.4132, []  # E[x | complier]: of 20 million draws
    for seed in range(200):
        row = found(simulate(1000, 1000 + seed)[0]).table.loc["x"]
        held.append(abs(row["compliers"] - truth) < 1.96 * row["std_error"])
    assert 0.91 <= np.mean(held) <= 0.985  # binomial, 99 %


@pytest.mark.contract
def test_diagnose_says_whose_effect_it_is() -> None:
    frame, _ = simulate(500, 7)
    report = cfiv.diagnose(frame, "y ~ x + b + [d ~ z]")
    assert isinstance(report.compliers, Compliers)
    line = report.table.set_index("test").loc["Share of compliers"]
    assert line["question"] == "Whose effect is it?"
    assert "local average: the effect of compliers" in line["reading"]
    assert "(monotonicity)" in line["reading"]
    assert list(report.compliers.table.index) == ["x", "b"]
    assert "rises with z" in str(report)
    assert "d falls where z rises" in " ".join(str(cfiv.diagnose(frame.assign(z=-frame["z"]), "y ~ x + [d ~ z]")).split())


@pytest.mark.contract
@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("y ~ [x ~ z]", "x has more than two values; the effect is an average over rows and over steps"),
        ("y ~ [d ~ x]", "the instruments have more than two values together"),
        ("y ~ [d ~ z + b]", "the instruments have more than two values together"),
        ("y ~ [d + x ~ z + b + group]", "several treatments"),
        ("y ~ told + [d ~ z]", "the covariates tell the instrument of some rows for sure"),
        ("y ~ x + [d ~ z] | group", "fixed effects have been taken out of treatment and instruments, so that neither has two"),
    ],
)
def test_where_there_are_no_compliers_it_says_why(formula: str, reason: str) -> None:
    frame, _ = simulate(300, 8)
    frame["told"] = np.where(frame["x"] > 1.5, frame["z"] + 2, 0.0) * (frame["z"] == 1)
    _, data = TwoStageLeastSquares(formula).encode(frame)
    problem = LinearProblem.from_data(data, intercept=True, covariance=Covariance("robust"))
    result = compliers(problem, significance=SIGNIFICANCE)
    assert isinstance(result, Unavailable)
    assert reason in result.reason


@pytest.mark.contract
def test_an_instrument_that_moves_nobody_is_said_to() -> None:
    frame, _ = simulate(400, 9)
    luck = np.random.default_rng(0).integers(0, 2, 400).astype(float)
    assert "no sign that z moves d" in found(frame.assign(z=luck)).share.reading
