"""Curves as a straight line and departures from it, which a penalty on the second derivative tells apart.

The cubic splines of one variable are written as

    c(x) = a (x - mean) / sd + sum_k b_k r_k(x),    integral c''^2 = sum_k b_k^2,

with x as a share of its range in the integral: ``r_k`` are the eigenvectors of the penalty, each divided by the root of its
eigenvalue. Whoever shrinks all ``b`` alike penalises roughness and leaves lines alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import BSpline

from cfiv.numerics.splines import Array, Spline

#: Variables of fewer distinct values are lines.
FEW_VALUES = 4
#: Knots closer than this share of the range are one.
TOUCHING = 1e-6
#: Eigenvalues below this share of the largest belong to lines.
STRAIGHT = 1e-10


@dataclass(frozen=True, eq=False)
class Curve:
    """The columns of one variable: its line, then its departures.

    Parameters
    ----------
    spline : Spline
    rotation : array (width, columns)
        From the spline's columns to these.
    centre : array (columns,)
        Means over the sample, which the columns are without.
    """

    spline: Spline
    rotation: Array
    centre: Array

    @classmethod
    def of(cls, values: Array, *, weights: Array, segments: int) -> Curve:
        """Of a sample (n,) with row weights: cubic with knots at quantiles; a line where segments are 0 or values few."""
        distinct = len(np.unique(values))
        if distinct == 1:
            return cls(
                Spline(low=float(values[0]), high=float(values[0]) + 1.0, inner=np.empty(0), degree=1),
                np.ones((1, 1)),
                np.zeros(1),
            )
        distinct = distinct if segments else 0
        spline = Spline.straight(values)
        if distinct >= FEW_VALUES:
            spline = _apart(Spline.of(values, degree=3, segments=min(segments, distinct - 1), knots="quantiles"))
        columns = spline.columns(values)
        straight = _straight(spline)
        along = columns @ straight
        spread = np.sqrt(np.average((along - np.average(along, weights=weights)) ** 2, weights=weights))
        rotation = np.concatenate([(straight / (spread or 1.0))[:, None], _departures(spline)], axis=1)
        return cls(spline, rotation, np.asarray(np.average(columns, axis=0, weights=weights) @ rotation))

    @property
    def width(self) -> int:
        """How many columns there are, the line among them."""
        return int(self.rotation.shape[1])

    def columns(self, values: Array) -> Array:
        """At values (n,), shape (n, width)."""
        return np.asarray(self.spline.columns(values) @ self.rotation - self.centre)


def lines(curves: Sequence[Curve], values: Array) -> Array:
    """The line of each variable at values (n, variables), shape (n, variables)."""
    parts = [curve.columns(values[:, j])[:, :1] for j, curve in enumerate(curves)]
    return np.concatenate([np.zeros((len(values), 0)), *parts], axis=1)


def _apart(spline: Spline) -> Spline:
    """Without knots next to another: where one value is far from all others, shares of the range leave float64."""
    kept, last = [], 0.0
    for knot in spline.inner:
        if knot - last > TOUCHING and 1.0 - knot > TOUCHING:
            kept.append(knot)
            last = knot
    return replace(spline, inner=np.array(kept))


def _straight(spline: Spline) -> Array:
    """Coefficients (width,) of the line ``x - low`` in shares of the range: averages of neighbouring knots."""
    if spline.is_straight:
        return np.ones(1)
    knots = np.concatenate([np.zeros(spline.degree + 1), spline.inner, np.ones(spline.degree + 1)])
    averages = np.array([knots[i + 1 : i + 1 + spline.degree].mean() for i in range(spline.width + 1)])
    return np.asarray(averages[1:] - averages[0])


def _departures(spline: Spline) -> Array:
    """Coefficients (width, width - 1) of the departures: none of a line."""
    if spline.is_straight:
        return np.zeros((1, 0))
    knots = np.concatenate([np.zeros(spline.degree + 1), spline.inner, np.ones(spline.degree + 1)])
    every = BSpline(knots, np.eye(spline.width + 1), spline.degree)
    ends = np.concatenate([[0.0], spline.inner, [1.0]])
    # The second derivative of a cubic is straight between knots: two points of Gauss integrate its square exactly.
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    points = np.concatenate([middle - half / np.sqrt(3.0), middle + half / np.sqrt(3.0)])
    second = every.derivative(2)(points) * np.sqrt(np.concatenate([half, half]))[:, None]
    values, vectors = np.linalg.eigh(second.T @ second)
    rough = values > STRAIGHT * values[-1]
    rough[:2] = False  # constant and line, whatever rounding says of them
    departures = vectors[:, rough] / np.sqrt(values[rough])
    return np.asarray(departures[1:] - departures[0])
