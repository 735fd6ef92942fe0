"""Strength of the instruments: against linearmodels, ivmodels and published tables, and the size of the effective F."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ivmodels.tests import rank_test

from cfiv.diagnostics.anderson_rubin import anderson_rubin_sets
from cfiv.diagnostics.first_stage import conditional_f, effective_f, effective_f_critical, partial_f
from cfiv.diagnostics.rank import STOCK_YOGO_SIZE_10, cragg_donald, kleibergen_paap
from cfiv.diagnostics.results import ConfidenceSet, TestResult, Unavailable
from cfiv.errors import FewClustersWarning
from tests.diagnostics.problems import COVARIANCES, FORMULAS, SAME, SIGNIFICANCE, problem, reference, table


def result(found: Any) -> TestResult:
    assert isinstance(found, TestResult), found
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_partial_f_is_the_wald_statistic_of_linearmodels_over_the_number_of_instruments(
    formula: str, weights: str | None, covariance: str
) -> None:
    frame = table()
    ours = partial_f(problem(formula, frame, covariance=covariance, weights=weights), significance=SIGNIFICANCE)
    theirs = reference(formula, frame, covariance=covariance, weights=weights, debiased=True).first_stage.diagnostics
    instruments = formula.count("+ q") + formula.count("+ r") + 1
    scale = 1 if covariance == "unadjusted" else instruments
    np.testing.assert_allclose([result(test).statistic for test in ours], theirs["f.stat"] / scale, rtol=SAME)
    if covariance == "unadjusted":
        np.testing.assert_allclose([result(test).p_value for test in ours], theirs["f.pval"], rtol=SAME, atol=1e-15)


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_cragg_donald_and_kleibergen_paap_are_those_of_linearmodels(formula: str, weights: str | None, covariance: str) -> None:
    frame = table()
    ours = problem(formula, frame, covariance=covariance, weights=weights)
    theirs = reference(formula, frame, covariance=covariance, weights=weights).first_stage
    assert cragg_donald(ours).statistic == pytest.approx(theirs.cragg_donald_f, rel=SAME)
    lm, wald_f = (result(test) for test in kleibergen_paap(ours, significance=SIGNIFICANCE))
    assert lm.statistic == pytest.approx(theirs.kleibergen_paap.stat, rel=SAME)
    assert lm.p_value == pytest.approx(theirs.kleibergen_paap.pval, rel=SAME, abs=1e-15)
    assert lm.distribution == f"chi2({theirs.kleibergen_paap.df})"
    assert wald_f.statistic == pytest.approx(theirs.kleibergen_paap_f, rel=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize("instruments", [["z", "q"], ["z", "q", "r"]])
def test_cragg_donald_is_the_rank_test_of_ivmodels_over_the_number_of_instruments(instruments: list[str]) -> None:
    frame = table()
    ours = cragg_donald(problem(f"y ~ x + [t + s ~ {' + '.join(instruments)}]", frame))
    theirs, _ = rank_test(frame[instruments].to_numpy(), frame[["t", "s"]].to_numpy(), C=frame[["x"]].to_numpy())
    assert ours.statistic == pytest.approx(theirs / len(instruments), rel=SAME)


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_with_one_instrument_partial_effective_and_kleibergen_paap_f_are_the_same_number(covariance: str) -> None:
    one = problem("y ~ x + [t ~ z]", table(), covariance=covariance)
    expected = result(partial_f(one, significance=SIGNIFICANCE)[0]).statistic
    assert result(effective_f(one)).statistic == pytest.approx(expected, rel=SAME)
    assert result(kleibergen_paap(one, significance=SIGNIFICANCE)[1]).statistic == pytest.approx(expected, rel=SAME)


@pytest.mark.law
def test_without_heteroskedasticity_in_the_covariance_the_effective_f_is_the_partial_f() -> None:
    many = problem("y ~ x + [t ~ z + q + r]", table(), weights="w")
    expected = result(partial_f(many, significance=SIGNIFICANCE)[0]).statistic
    assert result(effective_f(many)).statistic == pytest.approx(expected, rel=SAME)


@pytest.mark.law
def test_statistics_do_not_change_with_units_or_with_the_choice_of_instruments_of_one_span() -> None:
    frame = table()
    mixed = frame.assign(t=1e6 * frame["t"] - 1e7, y=1e-3 * frame["y"], z=frame["z"] + frame["q"], q=1e4 * frame["q"] + 3e4)
    for covariance in COVARIANCES:
        one, other = (problem("y ~ x + [t ~ z + q]", f, covariance=covariance) for f in (frame, mixed))
        # 1e-6: the transformed treatment has lost six digits to its mean before anything is computed.
        for test in (lambda p: partial_f(p, significance=0.05)[0], effective_f, cragg_donald):
            assert result(test(other)).statistic == pytest.approx(result(test(one)).statistic, rel=1e-6)


@pytest.mark.law
@pytest.mark.parametrize("covariance", ["unadjusted", "robust"])
def test_statistics_of_integer_weights_are_those_of_repeated_rows_up_to_degrees_of_freedom(covariance: str) -> None:
    frame = table().assign(count=1 + np.arange(300) % 3)
    weighted = problem("y ~ x + [t ~ z + q]", frame, weights="count")
    repeated = problem("y ~ x + [t ~ z + q]", frame.loc[frame.index.repeat(frame["count"])])
    assert weighted.strength == pytest.approx(repeated.strength, rel=SAME)


@pytest.mark.law
def test_conditional_f_is_at_least_the_smallest_eigenvalue_and_unchanged_by_adding_the_other_treatment() -> None:
    frame = table()
    both = problem("y ~ x + [t + s ~ z + q + r]", frame)
    tests = conditional_f(both, significance=SIGNIFICANCE)
    least = cragg_donald(both).statistic * 3 / 2  # q / (q - k + 1): the minimum over all combinations, not those of 2SLS
    assert all(test.statistic >= least for test in tests)
    assert [test.distribution for test in tests] == ["F(2, 295)", "F(2, 295)"]
    moved = problem("y ~ x + [t + s ~ z + q + r]", frame.assign(t=frame["t"] + 3 * frame["s"]))
    assert conditional_f(moved, significance=SIGNIFICANCE)[0].statistic == pytest.approx(tests[0].statistic, rel=SAME)


@pytest.mark.law
def test_conditional_f_is_small_where_two_treatments_share_one_source_although_each_partial_f_is_large() -> None:
    frame = table(2000)
    frame = frame.assign(s=frame["t"] + np.random.default_rng(1).normal(size=2000))
    shared = problem("y ~ x + [t + s ~ z + q]", frame)
    assert all(result(test).statistic > 100 for test in partial_f(shared, significance=SIGNIFICANCE))
    assert all(test.statistic < 10 for test in conditional_f(shared, significance=SIGNIFICANCE))
    assert conditional_f(problem("y ~ [t ~ z]", frame), significance=SIGNIFICANCE) == ()


@pytest.mark.oracle
def test_simplified_critical_values_of_the_effective_f_are_the_published_ones() -> None:
    # Montiel Olea and Pflueger (2013), K_eff = 1: 37.42, 23.11 and 15.06 for worst-case biases of 5, 10 and 20 %.
    found = [effective_f_critical(np.eye(1), bias=bias) for bias in (0.05, 0.10, 0.20)]
    assert found == pytest.approx([37.42, 23.11, 15.06], abs=0.005)  # as printed


@pytest.mark.law
def test_critical_values_of_the_effective_f_fall_with_bias_and_instruments_and_do_not_change_with_scale() -> None:
    by_bias = [effective_f_critical(np.eye(3), bias=bias) for bias in (0.05, 0.1, 0.2, 0.3)]
    by_count = [effective_f_critical(np.eye(count), bias=0.1) for count in range(1, 30)]
    assert by_bias == sorted(by_bias, reverse=True)
    assert by_count == sorted(by_count, reverse=True)
    uneven = np.diag([1.0, 2.0, 5.0])
    assert effective_f_critical(7 * uneven, bias=0.1) == pytest.approx(effective_f_critical(uneven, bias=0.1), rel=SAME)
    # Uneven instruments count as fewer than there are.
    assert by_count[2] < effective_f_critical(uneven, bias=0.1) < by_count[0]


@pytest.mark.law
def test_the_p_value_of_the_effective_f_crosses_five_percent_at_its_critical_value() -> None:
    frame = table(2000)
    for strength in (0.05, 0.1, 0.2, 0.4):
        weak = frame.assign(t=strength * frame["z"] + np.random.default_rng(2).normal(size=2000))
        test = result(effective_f(problem("y ~ [t ~ z + q]", weak, covariance="robust")))
        assert test.p_value is not None
        assert test.critical_value is not None
        assert (test.p_value < 0.05) == (test.statistic > test.critical_value) == test.rejects()
        assert [value.value for value in test.critical_values][1] == test.critical_value


def test_the_effective_f_of_several_treatments_and_values_outside_the_table_are_left_out_and_say_so() -> None:
    several = problem("y ~ [t + s ~ z + q]", table())
    found = effective_f(several)
    assert isinstance(found, Unavailable)
    assert "one treatment" in found.reading
    assert cragg_donald(several).critical_value is None
    assert cragg_donald(problem("y ~ [t ~ z + q]", table())).critical_value == STOCK_YOGO_SIZE_10[1] == 19.93


def test_too_few_clusters_are_said_instead_of_a_singular_statistic() -> None:
    frame = table().assign(group=lambda f: f["group"] % 3)
    with pytest.warns(FewClustersWarning, match="there are 3 clusters"):
        few = problem("y ~ x + [t ~ z + q + r]", frame, covariance="clustered")
    found = [*partial_f(few, significance=SIGNIFICANCE), *kleibergen_paap(few, significance=SIGNIFICANCE)]
    assert all(isinstance(test, Unavailable) and "more clusters than the 3 instruments, got 3" in test.reason for test in found)


def effective_f_statistics(spread: np.ndarray, *, tables: int, per_group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Effective F and its critical value in simulated tables whose instruments have exactly the worst-case bias of 10 %.

    The instruments are indicators of groups of equal size without a constant, so that first-stage coefficients are group means
    and their covariance is known: the group variances ``spread``. The means point along the largest, where the bias is worst,
    with ``|C|^2 = tr(W) / 0.1``.
    """
    generator = np.random.default_rng(seed)
    groups = len(spread)
    group = np.repeat(np.arange(groups), per_group)
    direction = (spread == spread.max()) / np.sqrt((spread == spread.max()).sum())
    means = direction * np.sqrt(spread.sum() / 0.1 / per_group)
    frame = pd.DataFrame({f"z{i}": (group == i).astype(float) for i in range(groups)})
    formula = f"y ~ 0 + [t ~ {' + '.join(frame.columns)}]"
    statistics, critical = np.empty(tables), np.empty(tables)
    noise = generator.normal(size=(2, len(group)))
    first = problem(formula, frame.assign(y=noise[0], t=noise[1]), covariance="robust")
    for i in range(tables):
        t = means[group] + np.sqrt(spread[group]) * generator.normal(size=len(group))
        test = result(effective_f(replace(first, treatment=t[:, None])))
        assert test.critical_value is not None
        statistics[i], critical[i] = test.statistic, test.critical_value
    return statistics, critical


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("spread", [[1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 6.0]], ids=["one", "even", "uneven"])
def test_the_effective_f_exceeds_its_critical_value_in_five_percent_of_tables_at_the_edge_of_weakness(
    spread: list[float],
) -> None:
    statistics, critical = effective_f_statistics(np.array(spread), tables=1000, per_group=300, seed=0)
    size = (statistics > critical).mean()
    # 1000 tables: 5 % within 2.576 binomial standard errors (99 %) is 3.2 to 6.8 %.
    assert abs(size - 0.05) < 2.576 * np.sqrt(0.05 * 0.95 / 1000), size


@pytest.mark.law
def test_instruments_are_called_what_their_effective_f_says() -> None:
    """Irrelevant exactly where the Anderson-Rubin set has no bounds; the values are those of Montiel Olea and Pflueger."""
    z, u, v = np.random.default_rng(1).normal(size=(3, 400))
    words = {
        0.0: "they are irrelevant, or as good as, so that a two-stage estimate says nothing",
        0.1: "so the instruments are weak: prefer",
        0.17: "so the instruments may be weak: prefer",
        1.0: "so the instruments are not weak.",
    }
    for strength, expected in words.items():
        found = problem("y ~ [t ~ z]", pd.DataFrame({"y": v, "t": strength * z + u, "z": z}), covariance="robust")
        result = effective_f(found, significance=SIGNIFICANCE)
        assert isinstance(result, TestResult)
        assert expected in result.reading, result
        (interval,) = anderson_rubin_sets(found, level=1 - SIGNIFICANCE)
        assert isinstance(interval, ConfidenceSet)
        assert interval.is_bounded == ("irrelevant" not in result.reading)
        thirty, ten = (value.value for value in (result.critical_values[3], result.critical_values[1]))
        assert ("may be weak" in result.reading) == (thirty < result.statistic <= ten)
