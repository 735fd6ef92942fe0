"""The two bases of sieve instrumental variables: of the structural function, and of the instruments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cfiv.numerics.splines import Array, Spline, row_products, side_by_side, with_constant

#: Numbers of a block of rows that are held at once, 32 MB.
BLOCK = 2**22


@dataclass(frozen=True, eq=False)
class SieveBasis:
    """Splines of every column, as sums or as products.

    With ``s`` the splines of treatments, ``g`` those of covariates and ``b`` those of instruments,

        structural columns  [1, g(X), s(T)]           instrument columns  [1, g(X), b(Z)]              as sums
        structural columns  [1, s(T)] (x) g(X)        instrument columns  [1, b(Z)] (x) g(X)           as products,

    the columns of several treatments, or instruments, being side by side in both. Products have
    ``g = [1, g_1] (x) [1, g_2] (x) ...``, in which the covariates that enter as straight lines, such as indicators of
    categories, are one factor.

    Parameters
    ----------
    treatments, instruments, covariates : tuple of Spline
        One a column.
    products : bool
    """

    treatments: tuple[Spline, ...]
    instruments: tuple[Spline, ...]
    covariates: tuple[Spline, ...]
    products: bool = False

    @property
    def width(self) -> int:
        """Number of structural columns, p."""
        own, shared = _widths(self.treatments), self._shared_width
        return (1 + own) * shared if self.products else own + shared

    @property
    def instrument_width(self) -> int:
        """Number of instrument columns, q."""
        own, shared = _widths(self.instruments), self._shared_width
        return (1 + own) * shared if self.products else own + shared

    @property
    def size(self) -> int:
        """J: the dimension of ``h`` as a function of the treatments, and of the covariates where there are products."""
        return self.width if self.products else 1 + _widths(self.treatments)

    def structural_columns(self, treatments: Array, covariates: Array | None) -> Array:
        """``f`` at treatments (n, d) and covariates (n, c), shape (n, p)."""
        return self._joined(side_by_side(self.treatments, treatments), covariates, constant=True)

    def structural_derivative(self, treatments: Array, covariates: Array | None, column: int) -> Array:
        """Of ``f`` with respect to one treatment column, in the user's units, shape (n, p)."""
        parts = [
            spline.derivatives(treatments[:, j]) if j == column else np.zeros((len(treatments), spline.width))
            for j, spline in enumerate(self.treatments)
        ]
        return self._joined(np.concatenate(parts, axis=1), covariates, constant=False)

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """``phi`` at instruments (n, k) and covariates (n, c), shape (n, q)."""
        return self._joined(side_by_side(self.instruments, instruments), covariates, constant=True)

    def grid(self, coefficients: Array, treatments: Array, covariates: Array | None) -> Array:
        """``c' f`` at each of b treatments with each of n rows of covariates, shape (b, n); (b, 1) without covariates."""
        own = side_by_side(self.treatments, treatments)
        shared = self._shared(np.zeros((1, 0)) if covariates is None else covariates)
        if self.products:
            return np.asarray(with_constant(own) @ coefficients.reshape(-1, shared.shape[1]) @ shared.T)
        width = shared.shape[1]
        return np.asarray((own @ coefficients[width:])[:, None] + shared @ coefficients[:width])

    @property
    def _shared_width(self) -> int:
        """Columns of the constant and the covariates."""
        if not self.products:
            return 1 + _widths(self.covariates)
        straight = [spline for spline in self.covariates if spline.is_straight]
        return math.prod([1 + len(straight), *(1 + spline.width for spline in self.covariates if not spline.is_straight)])

    def _joined(self, own: Array, covariates: Array | None, *, constant: bool) -> Array:
        """Columns of treatments or instruments with those of covariates; without ``constant`` those of a derivative."""
        shared = self._shared(np.zeros((len(own), 0)) if covariates is None else covariates)
        if not self.products:
            return np.concatenate([shared if constant else np.zeros_like(shared), own], axis=1)
        first = np.ones((len(own), 1)) if constant else np.zeros((len(own), 1))
        return row_products(np.concatenate([first, own], axis=1), shared)

    def _shared(self, covariates: Array) -> Array:
        """``[1, g(X)]``, or ``g(X)`` of products."""
        if not self.products:
            return with_constant(side_by_side(self.covariates, covariates))
        lines = [j for j, spline in enumerate(self.covariates) if spline.is_straight]
        columns = with_constant(side_by_side(tuple(self.covariates[j] for j in lines), covariates[:, lines]))
        for j, spline in enumerate(self.covariates):
            if not spline.is_straight:
                columns = row_products(columns, with_constant(spline.columns(covariates[:, j])))
        return columns


def in_blocks(columns: Callable[[Array, Array | None], Array], coefficients: Array, own: Array, shared: Array | None) -> Array:
    """``columns(own, shared) @ coefficients``, shape (n,), whose columns are made for a block of rows at a time."""
    many = max(1, BLOCK // len(coefficients))
    starts = range(0, len(own), many)
    blocks = ((own[start : start + many], None if shared is None else shared[start : start + many]) for start in starts)
    return np.concatenate([columns(*block) @ coefficients for block in blocks])


def _widths(splines: Sequence[Spline]) -> int:
    return sum(spline.width for spline in splines)
