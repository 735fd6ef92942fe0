"""Covariances of the sum of scores ``u_i = p_i e_i``, for errors that are heteroskedastic, clustered or serially correlated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cfiv.errors import DataError

Array = npt.NDArray[Any]
Kernel = Literal["bartlett", "parzen", "qs"]

#: Newey and West (1994), tables I and II: the exponent q of the kernel, its constant, and the exponent of n / 100 in the lags
#: of the pilot estimates.
BANDWIDTH_RULES: dict[Kernel, tuple[int, float, float]] = {
    "bartlett": (1, 1.1447, 2 / 9),
    "parzen": (2, 2.6614, 4 / 25),
    "qs": (2, 1.3221, 2 / 25),
}


def robust(scores: Array) -> Array:
    """White: ``sum_i u_i u_i'``, (k, k) of scores (n, k)."""
    return np.asarray(scores.T @ scores)


def clustered_ways(
    scores: Array, clusters: Sequence[Array], factor: Callable[[int], float], *, other: Array | None = None
) -> Array:
    """``sum_g s_g s_g'``, ``s_g`` the sum of scores in group g; of two kinds the sum of both less that of their intersections.

    Parameters
    ----------
    scores : array (m, k)
        Of rows, or sums of rows that lie within one group of each kind.
    clusters : sequence of one or two arrays (m,)
        Whole numbers from 0.
    factor : callable
        What each is multiplied by, of its number of groups.
    other : array (m, l), optional
        Scores of which the second factor is made; by default the same.
    """
    other = scores if other is None else other
    total = np.zeros((scores.shape[1], other.shape[1]))
    terms = [(1, codes) for codes in clusters]
    if len(clusters) > 1:
        both = clusters[0] * (int(clusters[1].max()) + 1) + clusters[1]
        terms.append((-1, np.unique(both, return_inverse=True)[1]))
    for sign, codes in terms:
        groups = int(np.count_nonzero(np.bincount(codes)))
        first = sums_within(scores, codes)
        total += sign * factor(groups) * (first.T @ (first if other is scores else sums_within(other, codes)))
    return total


def sums_within(scores: Array, clusters: Array) -> Array:
    """Sums of rows (n, ...) within clusters (n,), whole numbers from 0: shape (G, ...)."""
    sums = np.empty((int(clusters.max()) + 1, math.prod(scores.shape[1:])))
    for place, column in zip(sums.T, scores.reshape(len(scores), -1).T, strict=True):
        place[:] = np.bincount(clusters, column)
    return sums.reshape(-1, *scores.shape[1:])


def autocorrelated(scores: Array, *, kernel: Kernel, bandwidth: int, other: Array | None = None) -> Array:
    """``sum_{|l| < n} k(l) sum_i u_i v_{i-l}'`` for rows in the order of time, (k, k) of scores (n, k); v is u if not given.

    Notes
    -----
    O(n k^2) a lag; the quadratic spectral kernel uses all n of them.

    References
    ----------
    Newey and West, "A simple, positive semi-definite, heteroskedasticity and autocorrelation consistent covariance matrix",
    *Econometrica* 55, 1987. Andrews, *Econometrica* 59, 1991.
    """
    other = scores if other is None else other
    total = scores.T @ other
    for lag, weight in enumerate(lag_weights(kernel, bandwidth=bandwidth, rows=len(scores)), start=1):
        product = scores[lag:].T @ other[:-lag]
        total += weight * (product + (product.T if other is scores else scores[:-lag].T @ other[lag:]))
    return np.asarray(total)


def lag_weights(kernel: Kernel, *, bandwidth: int, rows: int) -> Array:
    """Weights ``k(1), k(2), ...`` of the lags that have one: ``bandwidth`` of them, or ``rows - 1`` (quadratic spectral)."""
    if kernel == "qs":
        if bandwidth == 0:
            return np.zeros(0)
        z = 6 * math.pi * np.arange(1, rows) / bandwidth / 5
        return np.asarray(3 / z**2 * (np.sin(z) / z - np.cos(z)))
    z = np.arange(1, bandwidth + 1) / (bandwidth + 1)
    if kernel == "bartlett":
        return np.asarray(1 - z)
    return np.asarray(np.where(z <= 0.5, 1 - 6 * z**2 + 6 * z**3, 2 * (1 - z) ** 3))


def chosen_bandwidth(series: Array, kernel: Kernel) -> int:
    """Lags chosen from a series (n,), whatever its unit: the rule of Newey and West.

    ``ceil(c (s_q / s_0)^{2 / (2q + 1)} n^{1 / (2q + 1)})``, at most ``n - 1``, with ``s_0`` the sum of the pilot
    autocovariances on both sides of zero and ``s_q`` that of ``|l|^q`` times each.

    Raises
    ------
    DataError
        If there are too few rows, or the series has no long-run variance to divide by.

    References
    ----------
    Newey and West, "Automatic lag selection in covariance matrix estimation", *Review of Economic Studies* 61, 1994.
    """
    exponent, constant, growth = BANDWIDTH_RULES[kernel]
    rows = len(series)
    lags = math.ceil(4 * (rows / 100) ** growth)
    if lags >= rows - 1:
        raise DataError(f"a bandwidth cannot be chosen from {rows} rows: give bandwidth=, or use another covariance")
    scale = float(np.abs(series).max())
    plain = series / scale if scale > 0 else series
    covariances = np.array([plain[lag:] @ plain[: rows - lag] for lag in range(lags + 1)]) / rows
    long_run = float(covariances[0] + 2 * covariances[1:].sum())
    slope = 2 * float(covariances[1:] @ np.arange(1, lags + 1) ** exponent)
    if long_run == 0:
        raise DataError("a bandwidth cannot be chosen: the scores have no variance in the long run; give bandwidth=")
    rate = 1 / (2 * exponent + 1)
    share: float = (slope / long_run) ** 2
    found: int = math.ceil(constant * share**rate * float(rows) ** rate)
    return min(found, rows - 1)
