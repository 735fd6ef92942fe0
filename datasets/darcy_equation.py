"""Darcy flow on the unit square, by finite volumes.

    -div(a grad u) = f  in (0, 1)^2,    u = 0 on the boundary

On ``points x points`` cells of side ``h = 1 / points``, with ``a`` constant in each, the flows through a cell's four faces add
up to ``h^2 f``. Through the face between cells i and j flows ``a_ij (u_i - u_j)`` with the harmonic mean

    a_ij = 2 a_i a_j / (a_i + a_j),

two half cells in series: right however much ``a`` jumps at the face, where the arithmetic mean lets too much through beside a
poor conductor. Through a face on the boundary, half a cell away, flows ``2 a_i u_i``. The matrix is symmetric positive definite
with no positive number off the diagonal, so the discrete solution keeps the maximum principle.

References
----------
Eymard, Gallouët, Herbin, "Finite Volume Methods", Handbook of Numerical Analysis VII (2000), on admissible meshes
for elliptic problems.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu

from cfiv.arrays import numeric_array
from cfiv.errors import DataError

FloatArray = npt.NDArray[np.float64]


def solve(permeability: npt.ArrayLike, *, source: npt.ArrayLike = 1.0) -> FloatArray:
    """Solve the equation for one permeability.

    Parameters
    ----------
    permeability : array_like (points, points)
        ``a`` in the cells, positive; axis 0 is x, axis 1 is y, cell (i, j) has its centre at ``((i + 1/2) h, (j + 1/2) h)``.
    source : float or array_like (points, points)
        ``f`` there.

    Returns
    -------
    array (points, points)
        ``u`` at the centres of the cells.

    Raises
    ------
    DataError
        If the permeability is not square, not finite or not positive, or the source is of another shape or not finite.

    Notes
    -----
    Second order in h where ``a`` is smooth, between first and second where it jumps. One sparse factorisation: 5 ms for 64 x 64
    cells, 0.03 s for 128 x 128, 0.2 s for 256 x 256 on one core.

    Examples
    --------
    >>> u = solve(np.ones((64, 64)))
    >>> round(float(u.max()), 3)  # of the exact solution 0.0737
    0.074
    """
    a = numeric_array("permeability", permeability).astype(np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size:
        raise DataError(f"permeability must be square, (points, points), got shape {a.shape}")
    if not (a > 0.0).all():
        raise DataError(f"permeability must be positive, got values from {a.min():g} to {a.max():g}")
    f = numeric_array("source", source).astype(np.float64)
    if f.shape not in ((), a.shape):
        raise DataError(f"source must be a number or have the permeability's shape {a.shape}, got shape {f.shape}")
    right = np.broadcast_to(f / a.size, a.shape).ravel()
    # Positive definite: pivots on the diagonal are safe, and keep the ordering that is chosen for sparsity.
    factors = splu(_matrix(a), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    u: FloatArray = factors.solve(right).reshape(a.shape)
    return u


def _matrix(a: FloatArray) -> csc_array:
    """Flow out of each cell, by the pressures in all: (points^2, points^2), cells row by row."""
    along_x, along_y = _harmonic(a[:-1], a[1:]), _harmonic(a[:, :-1], a[:, 1:])
    own = np.zeros_like(a)
    own[:-1] += along_x
    own[1:] += along_x
    own[:, :-1] += along_y
    own[:, 1:] += along_y
    for edge in (np.s_[0, :], np.s_[-1, :], np.s_[:, 0], np.s_[:, -1]):
        own[edge] += 2.0 * a[edge]
    cell = np.arange(a.size).reshape(a.shape)
    one = np.concatenate([cell[:-1].ravel(), cell[:, :-1].ravel()])
    other = np.concatenate([cell[1:].ravel(), cell[:, 1:].ravel()])
    between = -np.concatenate([along_x.ravel(), along_y.ravel()])
    values = np.concatenate([own.ravel(), between, between])
    rows, columns = np.concatenate([cell.ravel(), one, other]), np.concatenate([cell.ravel(), other, one])
    return csc_array((values, (rows, columns)), shape=(a.size, a.size))


def _harmonic(a: FloatArray, b: FloatArray) -> FloatArray:
    return 2.0 / (1.0 / a + 1.0 / b)
