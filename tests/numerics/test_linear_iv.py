"""Columns in units of their own, their rank, and covariances of scores."""

from __future__ import annotations

import numpy as np
import pytest
from linearmodels.iv.covariance import (
    kernel_optimal_bandwidth,
    kernel_weight_bartlett,
    kernel_weight_parzen,
    kernel_weight_quadratic_spectral,
)

from cfiv.errors import DataError
from cfiv.numerics import score_covariance
from cfiv.numerics.dependence import dependences
from cfiv.numerics.linear_iv import correlations
from cfiv.numerics.scaled_columns import ScaledColumns, constant_in_span

#: Rounding of sums of a hundred terms.
ROUNDING = 1e-13


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def dependent(columns: np.ndarray, *, centred: bool) -> list[int]:
    """Which columns depend on those before them, with a constant for the first where ``centred``."""
    mask = np.ones(columns.shape[1], dtype=bool)
    if centred:
        columns, mask = np.column_stack([np.ones(len(columns)), columns]), np.append(False, mask)
    scaled = ScaledColumns.of(columns, root=np.ones(len(columns)), centred=mask if centred else False)
    return [found.column - int(centred) for found in dependences(np.linalg.qr(scaled.values)[1], scaled.lengths)]


@pytest.mark.law
@pytest.mark.parametrize("power", [-1000, -700, 700, 1000])
def test_powers_of_two_change_no_bit_of_a_scaled_column(power: int) -> None:
    columns, root = normal(50, 3), np.sqrt(np.arange(1.0, 51.0))
    plain = ScaledColumns.of(columns * [1.0, 1.0, 2.0**-3], root=root, centred=True)
    huge = ScaledColumns.of(np.ldexp(columns, [0, power, -3]), root=root, centred=True)
    np.testing.assert_array_equal(plain.values, huge.values)


@pytest.mark.law
def test_scaled_columns_have_length_one_and_mean_zero_under_the_weights() -> None:
    columns, weights = 1e9 + normal(80, 3), np.random.default_rng(1).uniform(0.1, 3.0, 80)
    scaled = ScaledColumns.of(columns, root=np.sqrt(weights), centred=True)
    np.testing.assert_allclose(np.linalg.norm(scaled.values, axis=0), 1.0, rtol=ROUNDING)
    np.testing.assert_allclose(np.sqrt(weights) @ scaled.values, 0.0, atol=1e-4)  # a mean of 1e9 is rounded to 1e-6
    np.testing.assert_allclose(np.sqrt(weights)[:, None] * scaled.at(columns), scaled.values, rtol=ROUNDING)


@pytest.mark.law
def test_a_constant_is_found_where_indicators_of_all_categories_add_up_to_it_and_nowhere_else() -> None:
    codes = np.random.default_rng(0).integers(0, 3, 100)
    indicators = (codes[:, None] == np.arange(3)).astype(float)
    offset = 1e8 + normal(100, 1)
    found = constant_in_span(np.column_stack([offset, indicators, normal(100, 1)]))
    assert found is not None
    np.testing.assert_allclose(found, [0, 1, 1, 1, 0], rtol=ROUNDING)
    assert (found[[0, 4]] == 0).all()
    np.testing.assert_array_equal(constant_in_span(np.column_stack([normal(100, 1), np.full(100, 4.0)])), [0, 0.25])
    shares = np.random.default_rng(2).dirichlet([1, 1, 1], 100)
    np.testing.assert_allclose(constant_in_span(7 * shares), 1 / 7, rtol=ROUNDING)
    for without in (indicators[:, :2], offset, normal(100, 2), np.zeros((100, 1)), np.zeros((100, 0)), np.eye(100)):
        assert constant_in_span(without) is None


@pytest.mark.law
@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e9, 1e300])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_neither_units_nor_offsets_deny_rank_or_hide_dependence(scale: float, offset: float) -> None:
    x, z, w = normal(100, 3).T
    independent = np.column_stack([x, scale * (z + offset), w])
    assert dependent(independent, centred=True) == []
    assert dependent(independent, centred=False) == []
    shifted = np.column_stack([x, w, scale * (offset + 2 * x + 3)])
    assert dependent(shifted, centred=True) == [2]
    assert dependent(shifted, centred=False) == []
    assert dependent(np.column_stack([x + offset, w, scale * (x + offset) + scale * w]), centred=False) == [2]


@pytest.mark.law
def test_every_dependent_column_is_found_with_what_it_depends_on() -> None:
    x, z, w = normal(100, 3).T
    columns = np.column_stack([x, 3 * x, z, w, x - 2 * z, np.zeros(100), x + w])
    scaled = ScaledColumns.of(columns, root=np.ones(100), centred=False)
    found = dependences(np.linalg.qr(scaled.values)[1], scaled.lengths)
    assert [dependence.column for dependence in found] == [1, 4, 5, 6]
    assert [np.flatnonzero(np.abs(dependence.terms) > ROUNDING).tolist() for dependence in found] == [[0], [0, 2], [], [0, 3]]


@pytest.mark.law
@pytest.mark.parametrize(("gap", "expected"), [(1e-6, []), (1e-9, []), (1e-11, []), (1e-13, [1]), (0.0, [1])])
def test_a_column_that_differs_from_another_by_little_is_its_own_until_its_thirteenth_digit(
    gap: float, expected: list[int]
) -> None:
    x, noise = normal(100, 2).T
    assert dependent(np.column_stack([x, x + gap * noise]), centred=True) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("rows", [7, 50, 1000])
@pytest.mark.parametrize("kernel", ["bartlett", "parzen", "qs"])
def test_the_chosen_bandwidth_is_that_of_linearmodels_in_any_unit(kernel: score_covariance.Kernel, rows: int) -> None:
    series = np.convolve(normal(rows), [1.0, 0.8, 0.5], mode="same")
    for scale in (1.0, 2.0**-600, 2.0**700):
        assert score_covariance.chosen_bandwidth(series * scale, kernel) == kernel_optimal_bandwidth(series, kernel)


def test_a_bandwidth_that_cannot_be_chosen_is_said() -> None:
    with pytest.raises(DataError, match="cannot be chosen from 4 rows: give bandwidth="):
        score_covariance.chosen_bandwidth(normal(4), "qs")
    with pytest.raises(DataError, match="no variance in the long run"):
        score_covariance.chosen_bandwidth(np.zeros(50), "bartlett")


@pytest.mark.oracle
@pytest.mark.parametrize("bandwidth", [0, 1, 5, 12])
def test_weights_of_lags_are_those_of_linearmodels(bandwidth: int) -> None:
    for kernel, theirs in (("bartlett", kernel_weight_bartlett), ("parzen", kernel_weight_parzen)):
        np.testing.assert_allclose(
            score_covariance.lag_weights(kernel, bandwidth=bandwidth, rows=40), theirs(bandwidth)[1:], rtol=ROUNDING
        )
    spectral = score_covariance.lag_weights("qs", bandwidth=bandwidth, rows=40)
    expected = kernel_weight_quadratic_spectral(bandwidth, 39)[1:]
    np.testing.assert_allclose(spectral if bandwidth else np.zeros(39), expected, rtol=1e-11, atol=ROUNDING)


@pytest.mark.law
def test_clusters_of_one_row_are_the_robust_covariance_and_no_lags_are_too() -> None:
    scores = normal(60, 3)
    plain = score_covariance.robust(scores)
    np.testing.assert_allclose(score_covariance.clustered_ways(scores, [np.arange(60)], lambda _: 1.0), plain, rtol=ROUNDING)
    for kernel in score_covariance.BANDWIDTH_RULES:
        np.testing.assert_array_equal(score_covariance.autocorrelated(scores, kernel=kernel, bandwidth=0), plain)


@pytest.mark.law
def test_canonical_correlations_are_those_of_the_least_angle_between_spans() -> None:
    left, right = np.linalg.qr(normal(50, 2))[0], np.linalg.qr(normal(50, 4, seed=1))[0]
    values, directions = correlations(left, right)
    for value, direction in zip(values, directions, strict=True):
        assert np.linalg.norm(right.T @ (left @ direction)) == pytest.approx(value, rel=ROUNDING)
