"""Splines of one variable: what they span, that they go on straight, and their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import BSpline

from cfiv.numerics.splines import Spline, with_constant

#: Rounding of sums of a few terms of size one.
ROUNDING = 1e-12
#: A central difference with steps of 1e-6 of a function whose third derivative is some hundreds.
DIFFERENCE = 1e-7

VALUES = np.random.default_rng(0).exponential(size=400) - 3.0
KINDS = pytest.mark.parametrize(("degree", "segments"), [(1, 1), (1, 4), (2, 3), (3, 1), (3, 4), (4, 8)])


def spline(degree: int, segments: int, knots: str = "uniform") -> Spline:
    return Spline.of(VALUES, degree=degree, segments=segments, knots=knots)  # type: ignore[arg-type]  # of Literals


@pytest.mark.oracle
@KINDS
def test_inside_the_sample_they_are_scipys_b_splines_without_the_first(degree: int, segments: int) -> None:
    low, high = VALUES.min(), VALUES.max()
    knots = np.concatenate([[low] * degree, np.linspace(low, high, segments + 1), [high] * degree])
    expected = BSpline.design_matrix(VALUES, knots, degree).toarray()[:, 1:]
    found = spline(degree, segments)
    assert found.width == expected.shape[1] == degree + segments - 1
    np.testing.assert_allclose(found.columns(VALUES), expected, atol=ROUNDING)


@pytest.mark.law
@KINDS
@pytest.mark.parametrize("knots", ["uniform", "quantiles"])
def test_with_a_constant_they_hold_every_polynomial_of_their_degree(degree: int, segments: int, knots: str) -> None:
    columns = with_constant(spline(degree, segments, knots).columns(VALUES))
    polynomial = np.polynomial.Polynomial(np.arange(1.0, degree + 2))(VALUES)
    coefficients = np.linalg.lstsq(columns, polynomial)[0]
    np.testing.assert_allclose(columns @ coefficients, polynomial, rtol=ROUNDING, atol=1e-10)


@pytest.mark.law
@KINDS
def test_beyond_the_sample_every_function_goes_on_along_its_tangent(degree: int, segments: int) -> None:
    found = spline(degree, segments)
    for end, outwards in ((found.low, -1.0), (found.high, 1.0)):
        at, slope = found.columns(np.array([end])), found.derivatives(np.array([end]))
        for distance in (0.5, 100.0):
            beyond = end + outwards * distance
            expected = at + (beyond - end) * slope
            scale = 1.0 + distance * np.abs(slope).max()
            np.testing.assert_allclose(found.columns(np.array([beyond])), expected, atol=ROUNDING * scale)
            np.testing.assert_array_equal(found.derivatives(np.array([beyond])), slope)


@pytest.mark.law
@KINDS
def test_derivatives_are_limits_of_difference_quotients_inside_and_beyond(degree: int, segments: int) -> None:
    found = spline(degree, segments)
    points = found.low + (found.high - found.low) * np.array([-0.31, 0.117, 0.43, 0.81, 1.23])
    step = 1e-6 * (found.high - found.low)
    quotients = (found.columns(points + step) - found.columns(points - step)) / (2 * step)
    np.testing.assert_allclose(found.derivatives(points), quotients, atol=DIFFERENCE)


@pytest.mark.law
def test_between_quantile_knots_lie_equal_shares_of_rows_and_equal_quantiles_are_one_knot() -> None:
    found = spline(3, 8, "quantiles")
    edges = found.low + (found.high - found.low) * np.concatenate([[0.0], found.inner, [1.0]])
    assert np.abs(np.histogram(VALUES, edges)[0] - 50).max() <= 1  # the ends are rows, and round to either side
    heaped = Spline.of(np.repeat([0.0, 1.0, 2.0, 3.0], [51, 30, 14, 6]), degree=3, segments=8, knots="quantiles")
    assert heaped.inner.tolist() == [1 / 3, 2 / 3]
