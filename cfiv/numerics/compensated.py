"""Doubled precision from float64 by error-free transforms: operations that return their rounding error as well.

A value in doubled precision is a pair ``(high, low)`` of float64 tensors of the same shape, ``high`` the value rounded to
float64 and ``low`` the rest; 106 bits in all. A product is exact while it and its factors stay between about 1e-290 and 1e290.

References
----------
Ogita, Rump, Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26 (2005), algorithms 3.1 (Knuth), 3.2 and 3.3 (Dekker,
Veltkamp) and 5.3 (their dot product, here with a pairwise sum).
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]

#: Veltkamp's factor: cuts the 53 bits of a float64 into two halves whose products are exact.
SPLITTER = 2.0**27 + 1


def two_sum(a: Tensor, b: Tensor) -> Pair:
    """``a + b = high + low`` exactly, elementwise with broadcasting. 6 operations."""
    high = a + b
    seen = high - a
    return high, (a - (high - seen)) + (b - seen)


def two_product(a: Tensor, b: Tensor) -> Pair:
    """``a b = high + low`` exactly, elementwise with broadcasting. 17 operations, for want of a fused multiply-add in torch."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    high = a * b
    low = torch.addcmul(-high, a_high, b_high)  # fused by the backend or not: each of these steps is exact
    return high, low.addcmul_(a_low, b_high).addcmul_(a_high, b_low).addcmul_(a_low, b_low)


def matmul(a: Tensor, b: Tensor) -> Pair:
    """``a @ b`` in doubled precision, rounded once: (m, n), (n, k) -> a pair of (m, k).

    The error of ``high + low`` is at most about ``eps^2 log2(n)^2 (|a| @ |b|)`` for a rounding unit ``eps = 1.1e-16``.

    Notes
    -----
    About 30 operations for each of the m n k products, all of which are held at once: give a long product in pieces.
    """
    high, low = two_product(a[:, :, None], b[None])
    left = high.shape[1]
    while left > 1:  # the last half of the terms onto the first; a term in the middle waits
        half = left // 2
        high[:, :half], error = two_sum(high[:, :half], high[:, left - half : left])
        low[:, :half] += low[:, left - half : left] + error
        left -= half
    return two_sum(high[:, 0], low[:, 0])


def _halves(a: Tensor) -> Pair:
    """Veltkamp: ``a = high + low`` exactly, each of at most 26 bits."""
    scaled = SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high
