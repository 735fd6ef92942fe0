"""Columns of a basis in units of their own: about zero where one of them is constant, and of length one over training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cfiv.data import Array
from cfiv.file_values import fields, numbers
from cfiv.numerics.scaled_columns import PLAIN_EXPONENT

#: What a file holds of it.
SAVED = ("exponents", "centres", "scales", "constant")


@dataclass(frozen=True, eq=False)
class Scaling:
    """``a_j = (2^-e_j f_j - m_j) / s_j`` of columns ``f_j``.

    Parameters
    ----------
    exponents : array (p,) of int
        ``e``: zeros, unless a column's numbers are so large or small that squares would leave the range of float64.
    centres, scales : array (p,)
        ``m``: zeros for the column that is constant, and where there is none; and ``s``.
    constant : array (p,)
        The combination of ``2^-e_j f_j`` that is one in every row: of one column; zeros where none is constant.
    """

    exponents: Array
    centres: Array
    scales: Array
    constant: Array

    @classmethod
    def of(cls, blocks: Iterable[tuple[Array, Array]]) -> Self:
        """Of blocks of rows with their weights, which have a mean of one; blocks are asked for twice.

        Columns then are within minus one and one.
        """
        lower, upper = np.array(np.inf), np.array(-np.inf)
        for columns, _ in blocks:
            lower, upper = np.minimum(lower, columns.min(axis=0)), np.maximum(upper, columns.max(axis=0))
        largest = np.maximum(upper, -lower)
        exponents = np.frexp(largest)[1].astype(np.int64)
        exponents[np.abs(exponents) <= PLAIN_EXPONENT] = 0
        lower, upper = np.ldexp(lower, -exponents), np.ldexp(upper, -exponents)
        constant = np.zeros(len(largest))
        single = np.flatnonzero((lower == upper) & (lower != 0))
        centres = np.zeros(len(largest))
        if len(single):
            constant[single[0]] = 1 / lower[single[0]]
            rows = 0.0
            for columns, weights in blocks:
                centres += weights @ (np.ldexp(columns, -exponents) if exponents.any() else columns)
                rows += weights.sum()
            centres = np.where(constant == 0, np.clip(centres / rows, lower, upper), 0.0)
        scales = np.maximum(upper - centres, centres - lower)
        return cls(exponents, centres, np.where(scales > 0, scales, 1.0), constant)

    def times(self, lengths: Array) -> Scaling:
        """With each scale times a number."""
        return Scaling(self.exponents, self.centres, self.scales * lengths, self.constant)

    def apply(self, columns: Array) -> Array:
        """``a`` at rows (n, p) of the columns."""
        return np.asarray((self._plain(columns) - self.centres) / self.scales)

    def _plain(self, columns: Array) -> Array:
        """``2^-e_j f_j``; ldexp is slow."""
        return np.ldexp(columns, -self.exponents) if self.exponents.any() else columns

    def of_functionals(self, values: Array) -> tuple[Array, Array]:
        """What functionals make of ``a`` (m, p), and of the constant (m,), from what they make of the columns."""
        plain = self._plain(values)
        constants = plain @ self.constant
        return (plain - constants[:, None] * self.centres) / self.scales, constants

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {name: np.asarray(getattr(self, name), dtype=np.float64) for name in SAVED}

    @classmethod
    def from_values(cls, values: Any, *, size: int) -> Self:
        """From the values of a file, of so many columns."""
        fields(values, *SAVED)
        found = {name: numbers(values[name], (size,)) for name in SAVED}
        if not (found["scales"] > 0).all():
            raise ValueError("a scale is not positive")
        return cls(**found | {"exponents": found["exponents"].astype(np.int64)})
