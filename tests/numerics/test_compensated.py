"""Error-free transforms against rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cfiv.numerics.compensated import matmul, two_product, two_sum

#: The rounding unit of float64.
UNIT = 2.0**-53
#: Magnitudes whose products and rounding errors neither overflow nor fall out of float64.
NUMBERS = st.floats(min_value=-(2.0**300), max_value=2.0**300, allow_subnormal=False).filter(
    lambda x: x == 0 or abs(x) > 2.0**-300
)


def exact(high: Tensor, low: Tensor) -> Fraction:
    return Fraction(high.item()) + Fraction(low.item())


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.law
@given(a=NUMBERS, b=NUMBERS)
def test_a_sum_and_a_product_with_their_errors_are_exact(a: float, b: float) -> None:
    total, product = two_sum(scalar(a), scalar(b)), two_product(scalar(a), scalar(b))
    assert total[0].item() == a + b
    assert exact(*total) == Fraction(a) + Fraction(b)
    assert product[0].item() == a * b
    assert exact(*product) == Fraction(a) * Fraction(b)


@pytest.mark.law
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 3)),
    seed=st.integers(0, 999),
    spread=st.integers(0, 30),
)
def test_a_matrix_product_has_the_error_of_doubled_precision(shape: tuple[int, int, int], seed: int, spread: int) -> None:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, inner, generator=generator, dtype=torch.float64) * 2.0 ** torch.randint(
        -spread, spread + 1, (inner,), generator=generator
    )
    b = torch.randn(inner, columns, generator=generator, dtype=torch.float64)
    high, low = matmul(a, b)
    for i in range(rows):
        for j in range(columns):
            terms = [Fraction(x) * Fraction(y) for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)]
            bound = (2 * inner.bit_length() + 4) ** 2 * UNIT**2 * float(sum(map(abs, terms)))
            assert abs(float(exact(high[i, j], low[i, j]) - sum(terms))) <= bound
            assert high[i, j] + low[i, j] == high[i, j]


@pytest.mark.law
def test_what_cancels_to_nothing_in_float64_is_summed_to_the_last_digit() -> None:
    row = torch.tensor([[1e16, 1.0, 1e-17, -1e16, 3.0]], dtype=torch.float64)
    ones = torch.ones(5, 1, dtype=torch.float64)
    high, low = matmul(row, ones)
    assert high.item() == 4.0
    assert low.item() == 1e-17
