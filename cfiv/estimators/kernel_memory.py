"""Kernel features whose matrices fit in memory: their rank is known once they are factored, so it is bounded there."""

from __future__ import annotations

import math

from torch import Tensor

from cfiv.errors import TooLargeError
from cfiv.memory import available_memory
from cfiv.numerics.landmarks import KernelFeatures

#: Bytes of a float64, and factors of n x k that are held while one grows.
FLOAT, FACTORS = 8, 3


def matrices(folds: int | None) -> int:
    """Matrices of k x k that a fit holds at its peak, k the rank of both kernels, or None for a split (measured)."""
    return 16 if folds is None else 26 + 5 * folds


def features_that_fit(landmarks: Tensor, *, bandwidths: Tensor, role: str, folds: int | None) -> KernelFeatures:
    """Features of landmarks (n, d).

    Raises
    ------
    TooLargeError
        If the matrices of a fit would be larger than the memory that is free.
    """
    free = available_memory()
    if free is None:
        return KernelFeatures.of_landmarks(landmarks, bandwidths=bandwidths)
    most = min(free // (FLOAT * FACTORS * len(landmarks)), math.isqrt(free // (FLOAT * matrices(folds))))
    try:
        return KernelFeatures.of_landmarks(landmarks, bandwidths=bandwidths, most=most)
    except TooLargeError as error:
        raise TooLargeError(
            f"{error} ({role}), the most that fits in the {free / 2**30:.3g} GiB that are free: use the Nyström version with "
            f"fewer landmarks, such as landmarks={min(2000, max(1, most // 2))}, or larger bandwidths"
        ) from None
