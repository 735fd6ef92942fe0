"""B-splines of one variable, straight beyond the ends of the sample.

``columns(x)`` are the B-splines of one set of knots without the first: all of them add up to one, so that the first lies in the
span of the others and a constant, which a basis of several variables holds once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline

Array = npt.NDArray[Any]
Knots = Literal["uniform", "quantiles"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Spline:
    """All functions that are a polynomial of a degree between knots, with one derivative less, and zero at the lower end.

    Parameters
    ----------
    low, high : float
        Ends, in the user's units.
    inner : array (segments - 1,)
        Knots between them, increasing, as shares of the way from ``low`` to ``high``.
    degree : int
        1 for straight pieces; with one segment it is the straight line ``(x - low) / (high - low)``.

    Notes
    -----
    Beyond the ends every function goes on along its tangent, and so does whatever is made of them: a function that is
    estimated is not bent where nothing was seen, and its variance grows with the distance.
    """

    low: float
    high: float
    inner: Array
    degree: int

    @classmethod
    def of(cls, values: Array, *, degree: int, segments: int, knots: Knots) -> Spline:
        """With knots for a sample (n,): equally spaced, or at its quantiles (equal ones are one knot)."""
        values = values.astype(np.float64, copy=False)
        low, high = float(values.min()), float(values.max())
        shares = np.arange(1, segments) / segments
        if knots == "quantiles" and segments > 1:
            shares = np.unique((np.quantile(values, shares) - low) / (high - low))
            shares = shares[(shares > 0) & (shares < 1)]
        return cls(low=low, high=high, inner=shares, degree=degree)

    @classmethod
    def straight(cls, values: Array) -> Spline:
        """The line of a sample (n,)."""
        return cls.of(values, degree=1, segments=1, knots="uniform")

    @property
    def width(self) -> int:
        """How many columns: degree + segments - 1."""
        return self.degree + len(self.inner)

    @property
    def is_straight(self) -> bool:
        """Whether it is the one column of a line."""
        return self.width == 1

    def columns(self, values: Array) -> Array:
        """At values (n,), shape (n, width)."""
        shares = self._shares(values)
        if self.is_straight:
            return shares[:, None]
        inside = np.clip(shares, 0.0, 1.0)
        basis = self._basis()
        columns: Array = basis(inside)
        beyond = shares - inside
        if beyond.any():
            below, above = basis.derivative()(np.array([0.0, 1.0]))
            columns += np.where(beyond < 0, beyond, 0.0)[:, None] * below + np.where(beyond > 0, beyond, 0.0)[:, None] * above
        return columns

    def derivatives(self, values: Array) -> Array:
        """Of the columns with respect to a value in the user's units, shape (n, width)."""
        if self.is_straight:
            return np.full((len(values), 1), 1 / (self.high - self.low))
        inside = np.clip(self._shares(values), 0.0, 1.0)
        return np.asarray(self._basis().derivative()(inside) / (self.high - self.low))

    def _shares(self, values: Array) -> Array:
        return np.asarray((values.astype(np.float64, copy=False) - self.low) / (self.high - self.low))

    def _basis(self) -> BSpline:
        """All but the first, of a share in [0, 1]."""
        knots = np.concatenate([np.zeros(self.degree + 1), self.inner, np.ones(self.degree + 1)])
        return BSpline(knots, np.eye(self.width + 1)[:, 1:], self.degree)


def side_by_side(splines: tuple[Spline, ...], values: Array) -> Array:
    """The columns of each variable's spline at values (n, variables), shape (n, sum of widths)."""
    parts = [spline.columns(values[:, j]) for j, spline in enumerate(splines)]
    return np.concatenate([np.zeros((len(values), 0)), *parts], axis=1)


def with_constant(columns: Array) -> Array:
    """``[1, columns]``."""
    return np.concatenate([np.ones((len(columns), 1)), columns], axis=1)


def row_products(left: Array, right: Array) -> Array:
    """Each column of one (n, a) times each of the other (n, b), row by row, shape (n, a b)."""
    return np.asarray((left[:, :, None] * right[:, None, :]).reshape(len(left), -1))
