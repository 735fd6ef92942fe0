"""Which columns are combinations of those before them: rank, judged alike whatever the columns' units and offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

Array = npt.NDArray[Any]

#: What is left of a column once those before it are taken out, relative to the columns as they were given, below which it
#: counts as their combination. Columns computed from others, or written to a file with 13 digits, are as far off by rounding.
DEPENDENT = 1e-12

#: A column has a part in a combination if its term is at least this share of the largest.
NOTICEABLE = 1e-6


@dataclass(frozen=True, eq=False)
class Dependence:
    """Column ``column`` is ``sum_i c_i a_i`` of earlier columns of length one, to rounding.

    Parameters
    ----------
    column : int
    terms : array (k,)
        ``c``, zeros from ``column`` on.
    """

    column: int
    terms: Array


def dependences(triangle: Array, lengths: Array) -> tuple[Dependence, ...]:
    """Columns that depend on earlier ones, given the triangle of their QR factorisation.

    A column depends on others where rounding might have made it so: ``r <= DEPENDENT (l_j + sum_i |c_i| l_i)``, with ``r`` the
    length of ``a_j - sum_i c_i a_i`` and ``l`` the columns' lengths before they were centred. A change of the given numbers in
    their twelfth digit could then take ``r`` to zero, and neither units nor offsets hide that, or seem to.

    Parameters
    ----------
    triangle : array (m, k)
        ``R`` of ``A = Q R``, whose columns have length one (or zero); m is k, or the number of rows where that is less.
    lengths : array (k,)
        Lengths that the columns had before they were centred, relative to those after.

    Returns
    -------
    tuple of Dependence
        Empty for independent columns.

    Notes
    -----
    O(k^3).
    """
    rows, size = triangle.shape
    left = np.abs(np.diag(triangle))
    if size == 0:
        return ()
    if rows == size and (left > DEPENDENT).all():
        inverse = linalg.solve_triangular(triangle, np.eye(size))
        # Column j of the inverse is (-c, 1, 0) / r.
        if (left > DEPENDENT * (lengths @ np.abs(inverse)) * left).all():
            return ()
    return tuple(_found(triangle, lengths))


def _found(triangle: Array, lengths: Array) -> list[Dependence]:
    """One column after another by Gram and Schmidt, twice each, those that depend on others left out of the basis."""
    rows, size = triangle.shape
    basis, coordinates, kept, found = np.zeros((rows, rows)), np.zeros((rows, rows)), np.zeros(0, dtype=int), []
    for j in range(size):
        count = len(kept)
        before = basis[:, :count]
        first = before.T @ triangle[:, j]
        rest = triangle[:, j] - before @ first
        second = before.T @ rest
        rest -= before @ second
        terms = np.zeros(size)
        terms[kept] = linalg.solve_triangular(coordinates[:count, :count], first + second) if count else 0.0
        length = float(np.linalg.norm(rest))
        if count == rows or length <= DEPENDENT * (lengths[j] + np.abs(terms) @ lengths):
            found.append(Dependence(j, terms))
            continue
        basis[:, count] = rest / length
        coordinates[:count, count], coordinates[count, count] = first + second, length
        kept = np.append(kept, j)
    return found
