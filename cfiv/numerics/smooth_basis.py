"""The bases of smooth instrumental variables: a line, curves, and products of treatments with covariates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from cfiv.numerics.curves import Curve, lines
from cfiv.numerics.splines import Array, row_products

#: Columns of products in either stage: time grows with their cube, memory with their square.
MOST_PRODUCTS = 500


class Part(IntEnum):
    """What a column belongs to: the line, which nothing shrinks, or what departs from it."""

    LINE = 0
    CURVES = 1
    COVARIATE_CURVES = 2
    PRODUCTS = 3


@dataclass(frozen=True, eq=False)
class SmoothBasis:
    """Columns of ``h`` and of the instruments.

    With the lines ``t, x, z`` and the departures ``r`` of treatments, covariates and instruments, all standardised,

        structural columns  [1, x, t, r(t), r(x), t (x) x]      instrument columns  [1, x, z, r(z), r(x), z (x) x].

    Parameters
    ----------
    treatments, covariates, instruments : tuple of Curve
    products : bool
    """

    treatments: tuple[Curve, ...]
    covariates: tuple[Curve, ...]
    instruments: tuple[Curve, ...]
    products: bool

    @classmethod
    def of(cls, treatments: Array, covariates: Array, instruments: Array, *, weights: Array, products: bool) -> SmoothBasis:
        """For treatments (n, d), covariates (n, c) and instruments (n, k): as many knots as n can bear.

        Curves of covariates are left out where there would be more columns of them than a fifth of the rows, products where
        there would be more than :data:`MOST_PRODUCTS`.
        """
        rows = len(treatments)
        segments = int(np.clip(round(1.2 * np.cbrt(rows)), 3, 20))
        few = max(3, segments // 3)

        def curves(columns: Array, segments: int) -> tuple[Curve, ...]:
            return tuple(Curve.of(column, weights=weights, segments=segments) for column in columns.T)

        return cls(
            curves(treatments, segments),
            curves(covariates, few if covariates.shape[1] * few < rows / 5 else 0),
            curves(instruments, max(3, 2 * segments // 3)),
            products and 0 < covariates.shape[1] * max(treatments.shape[1], instruments.shape[1]) <= MOST_PRODUCTS,
        )

    def structural_columns(self, treatments: Array, covariates: Array | None) -> Array:
        """Shape (n, p)."""
        return self._columns(self.treatments, treatments, covariates)

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """Shape (n, q)."""
        return self._columns(self.instruments, instruments, covariates)

    @property
    def structural_parts(self) -> Array:
        """The :class:`Part` of each structural column (p,)."""
        return self._parts(self.treatments)

    @property
    def instrument_parts(self) -> Array:
        """The :class:`Part` of each instrument column (q,)."""
        return self._parts(self.instruments)

    @property
    def shared(self) -> int:
        """How many columns come first in both: the constant and the lines of covariates."""
        return 1 + len(self.covariates)

    @property
    def moved(self) -> Array:
        """Which structural columns (p,) are functions of treatments, which instruments must predict."""
        parts, shared = self.structural_parts, self.shared
        moved = (parts != Part.LINE) & (parts != Part.COVARIATE_CURVES)
        moved[shared : shared + len(self.treatments)] = True
        return np.asarray(moved)

    def grid(self, coefficients: Array, treatments: Array, covariates: Array | None) -> Array:
        """``u' f`` at each of b treatments with each of n rows of covariates, shape (b, n); (b, 1) without covariates."""
        covariates = np.zeros((1, 0)) if covariates is None else covariates
        parts, shared = self.structural_parts, self.shared
        lines_of_line = coefficients[parts == Part.LINE]
        x, t = lines(self.covariates, covariates), lines(self.treatments, treatments)
        given = lines_of_line[0] + x @ lines_of_line[1:shared]
        given = given + _departures(self.covariates, covariates) @ coefficients[parts == Part.COVARIATE_CURVES]
        own = t @ lines_of_line[shared:] + _departures(self.treatments, treatments) @ coefficients[parts == Part.CURVES]
        together: Array = own[:, None] + given
        if self.products:
            together += t @ coefficients[parts == Part.PRODUCTS].reshape(len(self.treatments), -1) @ x.T
        return together

    def _columns(self, curves: Sequence[Curve], values: Array, covariates: Array | None) -> Array:
        covariates = np.zeros((len(values), 0)) if covariates is None else covariates
        own, shared = lines(curves, values), lines(self.covariates, covariates)
        blocks = [np.ones((len(values), 1)), shared, own, _departures(curves, values), _departures(self.covariates, covariates)]
        if self.products:
            blocks.append(row_products(own, shared))
        return np.concatenate(blocks, axis=1)

    def _parts(self, curves: Sequence[Curve]) -> Array:
        counts = {
            Part.LINE: 1 + len(self.covariates) + len(curves),
            Part.CURVES: sum(curve.width - 1 for curve in curves),
            Part.COVARIATE_CURVES: sum(curve.width - 1 for curve in self.covariates),
            Part.PRODUCTS: len(curves) * len(self.covariates) if self.products else 0,
        }
        return np.repeat(list(counts), list(counts.values()))


def _departures(curves: Sequence[Curve], values: Array) -> Array:
    """What each curve (n, variables) departs from its line by, side by side."""
    parts = [curve.columns(values[:, j])[:, 1:] for j, curve in enumerate(curves)]
    return np.concatenate([np.zeros((len(values), 0)), *parts], axis=1)
