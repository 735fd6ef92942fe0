"""Kernels, bandwidths, pivoted Cholesky factors and features of landmarks, against what defines them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cfiv.errors import TooLargeError
from cfiv.numerics import kernels
from cfiv.numerics.bandwidths import median_bandwidth
from cfiv.numerics.kernels import KernelExpansion, kernel_matrix
from cfiv.numerics.landmarks import KernelFeatures
from cfiv.numerics.pivoted_cholesky import TOLERANCE, pivoted_cholesky

#: Rounding of sums of up to a few hundred numbers near one.
ROUNDING = 1e-13


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# The kernel


@pytest.mark.law
@pytest.mark.parametrize("columns", [1, 3, kernels.NARROW + 1], ids=["one column", "narrow", "wide"])
def test_a_kernel_is_the_product_of_one_gaussian_an_input(columns: int) -> None:
    one, other, bandwidths = normal(5, columns), normal(4, columns, seed=1), 2.0 + normal(columns, seed=2).abs()
    product = torch.ones(5, 4, dtype=torch.float64)
    for j in range(columns):
        product *= torch.exp(-((one[:, None, j] - other[None, :, j]) ** 2) / (2 * bandwidths[j] ** 2))
    torch.testing.assert_close(kernel_matrix(one, other, bandwidths=bandwidths), product, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("columns", [2, kernels.NARROW + 1], ids=["narrow", "wide"])
def test_a_kernel_does_not_see_a_shift_of_its_inputs(columns: int) -> None:
    points, bandwidths = normal(6, columns), torch.full((columns,), 3.0, dtype=torch.float64)
    moved = points.mul(2**20).round().div(2**20) + 1024.0  # exact in float64
    at_rest = moved - 1024.0
    torch.testing.assert_close(
        kernel_matrix(moved, moved, bandwidths=bandwidths),
        kernel_matrix(at_rest, at_rest, bandwidths=bandwidths),
        rtol=0,
        atol=ROUNDING,
    )


def test_an_expansion_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    expansion = KernelExpansion(
        points=normal(7, 2), bandwidths=torch.ones(2, dtype=torch.float64), coefficients=normal(7, seed=1)
    )
    at = normal(20, 2, seed=2)
    whole = expansion(at)
    torch.testing.assert_close(
        whole, kernel_matrix(at, expansion.points, bandwidths=expansion.bandwidths) @ expansion.coefficients
    )
    monkeypatch.setattr(kernels, "BLOCK", 21)
    torch.testing.assert_close(expansion(at), whole, rtol=ROUNDING, atol=ROUNDING)


# Bandwidths


@pytest.mark.law
def test_a_bandwidth_is_the_median_distance_between_two_rows_of_an_input() -> None:
    for points in (normal(41, 1), normal(41, 5)):
        distances = [float((points[i] - points[k]).norm()) for i in range(41) for k in range(i)]
        assert median_bandwidth(points, generator=generator()) == pytest.approx(np.median(distances), rel=ROUNDING)


def test_a_bandwidth_scales_with_its_input_and_of_many_rows_is_near_that_of_all() -> None:
    points = normal(20_000, 1)
    found = median_bandwidth(points, generator=generator())
    assert found == median_bandwidth(points, generator=generator())
    assert median_bandwidth(4 * points, generator=generator()) == 4 * found
    # The median of |N(0, 2)|; the bound is five standard errors of a U-statistic of MEDIAN_ROWS rows.
    assert found == pytest.approx(0.954, abs=0.08)


@pytest.mark.parametrize("share", [0.02, 1e-4], ids=["rare", "in no draw"])
def test_a_rare_category_has_the_distance_to_it_for_a_bandwidth(share: float) -> None:
    category = torch.zeros(10_000, 1, dtype=torch.float64)
    category[: round(share * 10_000)] = 3.0
    assert median_bandwidth(category, generator=generator()) == 3.0


def test_equal_points_have_no_bandwidth() -> None:
    assert median_bandwidth(torch.ones(50, 2), generator=generator()) == 0.0
    assert median_bandwidth(torch.ones(5000, 1), generator=generator()) == 0.0
    assert median_bandwidth(torch.ones(1, 1), generator=generator()) == 0.0


# Pivoted Cholesky factors


@pytest.mark.law
@pytest.mark.parametrize(("rows", "columns", "width"), [(700, 1, 1.0), (700, 3, 0.5), (300, 3, 1e-3)], ids=str)
def test_a_factor_reproduces_the_kernel_of_all_points_to_its_tolerance(rows: int, columns: int, width: float) -> None:
    points, bandwidths = normal(rows, columns), torch.full((columns,), width, dtype=torch.float64)
    factor = pivoted_cholesky(points, bandwidths=bandwidths)
    taken = points[factor.pivots]
    torch.testing.assert_close(
        factor.triangle @ factor.triangle.mT,
        kernel_matrix(taken, taken, bandwidths=bandwidths),
        rtol=0,
        atol=10 * TOLERANCE,
    )
    left = torch.linalg.solve_triangular(factor.triangle, kernel_matrix(taken, points, bandwidths=bandwidths), upper=False)
    # E is positive semi-definite, so its entries are bounded by its diagonal; ten times for the rounding of the solve.
    error = kernel_matrix(points, points, bandwidths=bandwidths) - left.mT @ left
    assert float(error.abs().max()) < 10 * TOLERANCE


def test_the_rank_of_a_smooth_kernel_is_far_below_the_number_of_points_and_that_of_a_rough_one_is_not() -> None:
    points = normal(2000, 1)
    assert len(pivoted_cholesky(points, bandwidths=torch.ones(1, dtype=torch.float64)).pivots) < 60
    assert len(pivoted_cholesky(points[:300], bandwidths=torch.full((1,), 1e-9, dtype=torch.float64)).pivots) == 300


def test_a_rank_above_the_bound_is_refused() -> None:
    points, bandwidths = normal(200, 3), torch.full((3,), 0.1, dtype=torch.float64)
    with pytest.raises(TooLargeError, match="the kernel matrix of 200 points has a numerical rank above 50"):
        pivoted_cholesky(points, bandwidths=bandwidths, most=50)


# Landmarks


@pytest.mark.law
def test_features_have_the_kernel_for_an_inner_product_wherever_one_point_is_a_landmark() -> None:
    landmarks, others, bandwidths = normal(40, 2), normal(30, 2, seed=1), torch.full((2,), 0.5, dtype=torch.float64)
    features = KernelFeatures.of_landmarks(landmarks, bandwidths=bandwidths)
    torch.testing.assert_close(
        features(others) @ features(landmarks).mT,
        kernel_matrix(others, landmarks, bandwidths=bandwidths),
        rtol=0,
        atol=1e-10,
    )


def test_landmarks_that_repeat_are_one() -> None:
    landmarks, bandwidths = normal(10, 2), torch.ones(2, dtype=torch.float64)
    twice = KernelFeatures.of_landmarks(torch.cat([landmarks, landmarks]), bandwidths=bandwidths)
    assert len(twice) == 10
    once = KernelFeatures.of_landmarks(landmarks, bandwidths=bandwidths)
    at = normal(6, 2, seed=1)
    torch.testing.assert_close(twice(at) @ twice(at).mT, once(at) @ once(at).mT, rtol=0, atol=1e-10)
