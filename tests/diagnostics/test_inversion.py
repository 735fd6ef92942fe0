"""Sets of the real line where a statistic is small: every shape, and all ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfiv.diagnostics.inversion import quadratic_set, ratio_set

INFINITE = math.inf
numbers = st.floats(-100, 100, allow_nan=False)


@pytest.mark.law
@given(numbers, numbers, numbers, st.floats(-1e3, 1e3))
def test_a_quadratic_set_holds_a_point_where_and_only_where_the_quadratic_is_not_positive(
    a: float, b: float, c: float, x: float
) -> None:
    value, size = a * x * x + b * x + c, abs(a * x * x) + abs(b * x) + abs(c)
    inside = any(lower <= x <= upper for lower, upper in quadratic_set(a=a, b=b, c=c))
    if abs(value) > 1e-9 * (size + 1):  # elsewhere rounding decides
        assert inside == (value <= 0)


@pytest.mark.law
@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [
        ((1, 0, -4), ((-2.0, 2.0),)),
        ((-1, 0, 4), ((-INFINITE, -2.0), (2.0, INFINITE))),
        ((1, 0, 1), ()),
        ((-1, 0, -1), ((-INFINITE, INFINITE),)),
        ((0, 2, -4), ((-INFINITE, 2.0),)),
        ((0, -2, 4), ((2.0, INFINITE),)),
        ((0, 0, 0), ((-INFINITE, INFINITE),)),
        ((0, 0, 1), ()),
        ((1, 0, 0), ((0.0, 0.0),)),
        ((1, -1e8, 1), ((1e-8, 1e8),)),
    ],
)
def test_every_shape_of_a_quadratic_set(coefficients: tuple[float, float, float], expected: tuple[tuple[float, float]]) -> None:
    a, b, c = coefficients
    found = quadratic_set(a=a, b=b, c=c)
    np.testing.assert_allclose(np.array(found).reshape(-1, 2), np.array(expected).reshape(-1, 2), rtol=1e-14)


@pytest.mark.law
@pytest.mark.parametrize("seed", range(40))
def test_a_ratio_set_holds_a_point_where_and_only_where_the_ratio_is_small(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size, rows = int(generator.integers(1, 6)), 40
    moments = generator.normal(size=(2, size)) * 10 ** generator.uniform(-2, 1.5, size=(2, 1))
    scores = generator.normal(size=(2, rows, size))
    cross = scores[0].T @ scores[1] / rows
    covariances = (scores[0].T @ scores[0] / rows, cross + cross.T, scores[1].T @ scores[1] / rows)
    critical = float(generator.uniform(0.1, 10))
    intervals = ratio_set(moments[0], moments[1], covariances, critical)

    def ratio(x: float) -> float:
        moment = moments[0] + x * moments[1]
        return float(moment @ np.linalg.solve(covariances[0] + x * covariances[1] + x * x * covariances[2], moment))

    for x in np.tan(np.linspace(-1.5707, 1.5707, 4001)):
        if abs(ratio(x) - critical) > 1e-9 * critical:
            assert any(lower <= x <= upper for lower, upper in intervals) == (ratio(x) <= critical), x
    for end in (end for interval in intervals for end in interval if math.isfinite(end)):
        assert ratio(end) == pytest.approx(critical, rel=1e-7)


@pytest.mark.law
def test_a_ratio_set_may_have_several_pieces_and_all_are_found() -> None:
    # Scalar covariance 1 + x^2 and two moments: |g|^2 / (1 + x^2) has degree two, so at most two ends; with a covariance that
    # shrinks near x = 0 there are four.
    narrow = (np.array([[1e-2, 0.0], [0.0, 1.0]]), np.zeros((2, 2)), np.eye(2))
    found = ratio_set(np.array([0.5, 0.0]), np.array([0.0, 1.2]), narrow, 1.0)
    assert len(found) == 2
    assert all(math.isfinite(end) for interval in found for end in interval)
    assert found[0][0] == pytest.approx(-found[1][1])  # symmetric in x
    assert found[0][1] < 0 < found[1][0]
