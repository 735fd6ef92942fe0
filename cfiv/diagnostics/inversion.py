"""Where on the real line a statistic stays below its critical value: unions of intervals, with all their ends."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy import linalg, optimize

from cfiv.data import Array

Intervals = tuple[tuple[float, float], ...]


def quadratic_set(*, a: float, b: float, c: float) -> Intervals:
    """The real ``x`` with ``a x^2 + b x + c <= 0``: none, an interval, two rays, one ray, or all.

    Parameters
    ----------
    a, b, c : float
        Of order one: the roots are computed without cancellation, but not rescaled.

    Examples
    --------
    >>> quadratic_set(a=1.0, b=0.0, c=-4.0), quadratic_set(a=-1.0, b=0.0, c=4.0), quadratic_set(a=1.0, b=0.0, c=1.0)
    (((-2.0, 2.0),), ((-inf, -2.0), (2.0, inf)), ())
    """
    a, b, c = float(a), float(b), float(c)
    if a == 0.0:
        if b == 0.0:
            return ((-math.inf, math.inf),) if c <= 0 else ()
        return ((-math.inf, -c / b),) if b > 0 else ((-c / b, math.inf),)
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return () if a > 0 else ((-math.inf, math.inf),)
    half = -(b + math.copysign(math.sqrt(discriminant), b)) / 2
    roots = sorted((half / a, c / half)) if half != 0.0 else [0.0, 0.0]
    lower, upper = roots
    return ((lower, upper),) if a > 0 else ((-math.inf, lower), (upper, math.inf))


def ratio_set(moments0: Array, moments1: Array, covariances: tuple[Array, Array, Array], critical: float) -> Intervals:
    """The real ``x`` with ``g' S^-1 g <= critical``, for ``g = g0 + x g1`` and ``S = S0 + x S1 + x^2 S2`` positive definite.

    The ends are real eigenvalues of the quadratic matrix polynomial ``S(x) - g(x) g(x)' / critical``, which is singular exactly
    where the statistic is critical. Its linearisation gives all of them at once; those at infinity too, since the line is taken
    as angles, ``x = tan(angle)``.

    Parameters
    ----------
    moments0, moments1 : array (q,)
    covariances : tuple of three arrays (q, q)
        Symmetric.
    critical : float

    Returns
    -------
    tuple of (lower, upper)
        Disjoint and ascending.

    Notes
    -----
    Cost ``O((2q)^3)``. Every candidate only divides the line; whether a piece belongs to the set is decided by the statistic in
    its middle, and each end is then found between two middles, to rounding.

    References
    ----------
    Tisseur and Meerbergen, "The quadratic eigenvalue problem", *SIAM Review* 43, 2001, section 3.4.
    """

    def excess(angle: float) -> float:
        cosine, sine = math.cos(angle), math.sin(angle)
        moments = cosine * moments0 + sine * moments1
        covariance = cosine**2 * covariances[0] + cosine * sine * covariances[1] + sine**2 * covariances[2]
        values, vectors = np.linalg.eigh(covariance)
        floor = np.finfo(np.float64).eps * values[-1]
        return float((((vectors.T @ moments) ** 2) / np.maximum(values, floor)).sum()) - critical

    cuts = _candidates(moments0, moments1, covariances, critical)
    corners = [-math.pi / 2, *cuts, math.pi / 2]
    middles = [(left + right) / 2 for left, right in pairwise(corners)]
    inside = [excess(middle) <= 0 for middle in middles]
    intervals: list[tuple[float, float]] = []
    start = -math.inf if inside[0] else None
    for i in range(1, len(middles)):
        if inside[i] == inside[i - 1]:
            continue
        end = math.tan(float(optimize.brentq(excess, middles[i - 1], middles[i], xtol=1e-15, rtol=1e-15)))
        if inside[i]:
            start = end
        else:
            assert start is not None
            intervals.append((start, end))
            start = None
    if start is not None:
        intervals.append((start, math.inf))
    return tuple(intervals)


def _candidates(moments0: Array, moments1: Array, covariances: tuple[Array, Array, Array], critical: float) -> list[float]:
    """Ascending angles in (-pi/2, pi/2) of the eigenvalues' real parts: the real ones, and harmless others."""
    cross = np.outer(moments0, moments1)
    constant = covariances[0] - np.outer(moments0, moments0) / critical
    linear = covariances[1] - (cross + cross.T) / critical
    square = covariances[2] - np.outer(moments1, moments1) / critical
    identity, zero = np.eye(len(moments0)), np.zeros((len(moments0), len(moments0)))
    numerator, denominator = linalg.eig(
        np.block([[zero, identity], [-constant, -linear]]),
        np.block([[identity, zero], [zero, square]]),
        right=False,
        homogeneous_eigvals=True,
    )
    finite = np.abs(denominator) > 0
    eigenvalues = numerator[finite] / denominator[finite]
    angles = np.unique(np.arctan(eigenvalues.real))
    return [float(angle) for angle in angles if abs(angle) < math.pi / 2]
