"""Gaussian kernel matrices factored to rounding without being made: a Cholesky factor of a few columns.

Kernels of smooth functions have a numerical rank far below the number of points (about 1,100 for 5,000 points in three
dimensions at median bandwidths). Columns are taken where the factor is still wrong, until it is wrong nowhere,

    K = L L' + E,    E positive semi-definite with a diagonal below ``TOLERANCE``,

so that n points cost O(n k^2) time and n k numbers for a rank of k, instead of O(n^3) and n^2.

References
----------
Harbrecht, Peters, Schneider, "On the low-rank approximation by the pivoted Cholesky decomposition", Applied Numerical
Mathematics 62, 2012. Taking pivots by blocks is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from cfiv.errors import TooLargeError
from cfiv.numerics.kernels import kernel_matrix

#: Diagonal of what is left at which the factor is complete. The kernel is one at distance zero, so this is a share, a hundredth
#: of the smallest default penalty; two digits further down is rounding.
TOLERANCE = 1e-12

#: Pivots that are looked at together, and the share of the largest remainder below which one of them waits for a later turn.
CANDIDATES, WAITING = 64, 0.05


@dataclass(frozen=True, eq=False, kw_only=True)
class PivotedCholesky:
    """The points that were taken, and the triangle of their kernel matrix.

    Parameters
    ----------
    pivots : Tensor (k,), int64
        Rows in the order in which they were taken.
    triangle : Tensor (k, k)
        Lower triangular, ``triangle triangle' = K[pivots, pivots]``.
    """

    pivots: Tensor
    triangle: Tensor


def pivoted_cholesky(points: Tensor, *, bandwidths: Tensor, most: int | None = None) -> PivotedCholesky:
    """Factor the kernel matrix of points (n, d) with bandwidths (d,).

    Parameters
    ----------
    points : Tensor (n, d)
    bandwidths : Tensor (d,)
    most : int, optional
        The largest rank that is acceptable.

    Raises
    ------
    TooLargeError
        If the numerical rank is larger than ``most``.

    Notes
    -----
    O(n k^2) time; two factors of n x k numbers at the most, when one grows into the next.
    """
    rows = len(points)
    remainder = points.new_ones(rows, dtype=torch.float64)
    columns = torch.empty(rows, min(rows, 4 * CANDIDATES), dtype=torch.float64)
    pivots: list[int] = []
    while len(pivots) < rows and float(remainder.max()) > TOLERANCE:
        done = len(pivots)
        taken, triangle = _next_pivots(points=points, bandwidths=bandwidths, columns=columns[:, :done], remainder=remainder)
        if not len(taken):
            break
        if most is not None and done + len(taken) > most:
            raise TooLargeError(f"the kernel matrix of {rows} points has a numerical rank above {most}")
        if done + len(taken) > columns.shape[1]:
            columns = _widened(columns, used=done, width=min(rows, 2 * columns.shape[1]))
        left = kernel_matrix(points, points[taken], bandwidths=bandwidths)
        left.addmm_(columns[:, :done], columns[taken, :done].mT, alpha=-1.0)
        new = torch.linalg.solve_triangular(triangle, left.mT, upper=False).mT
        new[taken] = triangle  # exact, where the solve would leave rounding above the diagonal
        columns[:, done : done + len(taken)] = new
        remainder.sub_(new.square().sum(dim=1)).clamp_(min=0.0)
        remainder[taken] = 0.0
        pivots += taken.tolist()
    order = torch.tensor(pivots)
    return PivotedCholesky(pivots=order, triangle=columns[order, : len(pivots)])


def _next_pivots(*, points: Tensor, bandwidths: Tensor, columns: Tensor, remainder: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to take next, and the triangle of what is left of their kernel matrix; none where that is rounding."""
    most = torch.topk(remainder, min(CANDIDATES, len(remainder))).indices
    largest = float(remainder[most[0]])
    block = kernel_matrix(points[most], points[most], bandwidths=bandwidths) - columns[most] @ columns[most].mT
    factor, order, rank, _ = dpstrf(block.numpy(), lower=1, tol=max(TOLERANCE, WAITING * largest))
    taken = most[torch.from_numpy(order[:rank].astype(np.int64) - 1)]
    return taken, torch.from_numpy(np.tril(factor[:rank, :rank]))


def _widened(columns: Tensor, *, used: int, width: int) -> Tensor:
    wider = torch.empty(len(columns), width, dtype=torch.float64)
    wider[:, :used] = columns[:, :used]
    return wider
