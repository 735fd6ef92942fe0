"""Columns in units of their own: about zero where a constant lies in their span, and of length one.

Neither units nor an offset then cost digits. Arrays are float64 and taken as finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Columns whose largest value lies between 2^-200 and 2^200 keep their unit: no square or product of two overflows there.
PLAIN_EXPONENT = 200

#: How far a combination of columns may be from one, in any row, to count as the constant: its rounding, and that of bases.
SPANNED = 32 * np.finfo(np.float64).eps

#: A column whose values spread over less than this share of the largest has an offset, and is not looked at for a constant.
SPREAD = 1 / 8

#: A column whose largest term is below this in the sum of one has no part in it.
NEEDED = 1e-8


@dataclass(frozen=True, eq=False)
class ScaledColumns:
    """``a_j = sqrt(w) (2^-e_j x_j - m_j) / s_j`` of columns ``x_j`` and row weights ``w``.

    Parameters
    ----------
    values : array (n, k)
        ``a``, each column of length one; of zeros where centring leaves nothing.
    exponents : array (k,) of int
        ``e``: zeros, unless a column's numbers are so large or small that their squares would leave the range of float64.
    centres : array (k,)
        ``m``, zeros for columns that are not centred.
    scales : array (k,)
        ``s``, one for a column of zeros.
    lengths : array (k,)
        ``|sqrt(w) 2^-e_j x_j| / s_j``: at least one, and the reciprocal of the share of a column that its offset is not.
    """

    values: Array
    exponents: Array
    centres: Array
    scales: Array
    lengths: Array

    @classmethod
    def of(cls, columns: Array, *, root: Array, centred: Array | bool) -> ScaledColumns:
        """Scale columns (n, k), those that are ``centred`` (k,) about their weighted mean; ``root`` (n,) is ``sqrt(w)``."""
        plain, exponents = plain_numbers(columns)
        rows = np.ascontiguousarray(plain.T)  # along which numpy is several times as fast
        weighted = root * rows
        lengths = np.linalg.norm(weighted, axis=1)
        weights = root**2
        centres = np.where(centred, rows @ weights / weights.sum(), 0.0)
        if centres.any():
            weighted = root * (rows - centres[:, None])
        scales = np.linalg.norm(weighted, axis=1)
        scales = np.where(scales > 0, scales, 1.0)
        return cls((weighted / scales[:, None]).T, exponents, centres, scales, lengths / scales)

    def only(self, kept: Array) -> ScaledColumns:
        """Some of the columns, by their numbers."""
        return ScaledColumns(
            self.values[:, kept], self.exponents[kept], self.centres[kept], self.scales[kept], self.lengths[kept]
        )

    def at(self, columns: Array) -> Array:
        """The same columns at other rows (m, k), without weights: ``(2^-e_j x_j - m_j) / s_j``."""
        plain = columns.astype(np.float64, copy=False)
        plain = np.ldexp(plain, -self.exponents) if self.exponents.any() else plain
        return np.asarray((plain - self.centres) / self.scales)


def plain_numbers(columns: Array) -> tuple[Array, Array]:
    """``2^-e_j x_j`` (n, k), exactly, and ``e`` (k,): zeros where the numbers are neither huge nor tiny."""
    columns = columns.astype(np.float64, copy=False)
    if columns.shape[1] == 0:
        return columns, np.zeros(0, dtype=np.int64)
    lower, upper = ranges(columns)
    largest = np.maximum(upper, -lower)
    exponents = np.frexp(largest)[1].astype(np.int64)
    exponents[np.abs(exponents) <= PLAIN_EXPONENT] = 0
    return (np.ldexp(columns, -exponents) if exponents.any() else columns), exponents


def ranges(columns: Array) -> tuple[Array, Array]:
    """The least and the greatest value of each column (n, k)."""
    each = np.ascontiguousarray(columns.T)  # along which numpy is ten times as fast
    return each.min(axis=1), each.max(axis=1)


def constant_in_span(columns: Array) -> Array | None:
    """Coefficients ``a`` (k,) with ``sum_j a_j 2^-e_j x_j = 1`` in every row; None where no combination of columns is constant.

    One column of a single value if there is one; else least squares on the columns (n, k) without an offset, such as indicators
    of all categories or a full basis of splines. Coefficients of columns that the constant does not need are exactly zero.
    """
    plain, _ = plain_numbers(columns)
    found = np.zeros(plain.shape[1])
    if plain.shape[1] == 0:
        return None
    lower, upper = ranges(plain)
    single = np.flatnonzero((lower == upper) & (lower != 0))
    if len(single):
        found[single[0]] = 1 / lower[single[0]]
        return found
    largest = np.maximum(upper, -lower)
    used: Array = np.flatnonzero((largest > 0) & (upper - lower >= SPREAD * largest))
    solution: Array = np.zeros(0)
    for _ in range(2):  # the second time without those that the first did not need
        if len(used) == 0 or len(used) >= len(plain):
            return None
        solution = np.linalg.lstsq(plain[:, used] / largest[used], np.ones(len(plain)), rcond=None)[0]
        used, solution = (part[np.abs(solution) > NEEDED] for part in (used, solution))
    found[used] = solution / largest[used]
    return found if np.abs(plain @ found - 1).max() <= SPANNED else None
