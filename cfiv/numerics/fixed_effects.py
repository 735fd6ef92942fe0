"""What the means of groups take from columns: fixed effects of one or several kinds, absorbed by weighted least squares.

With an indicator a group, ``D = [D_1, ..., D_m]``, and row weights ``W``, the columns ``Y`` become ``Y - D a`` with
``a = argmin |Y - D a|_W``. The kind with the most groups is taken out exactly, group by group, ``M_1 Y``; what is left are the
normal equations of the others,

    G b = D_2' W M_1 Y,    G = D_2' W M_1 D_2 = D_2' W D_2 - C' (D_1' W D_1)^-1 C,    C = D_1' W D_2,

of full rank but for one direction a connected part. Few of them are solved directly, many by conjugate gradients; either way
once more for what rounding or the tolerance left.

References
----------
Guimarães and Portugal, "A simple feasible procedure to fit models with high-dimensional fixed effects", *Stata Journal* 10,
2010. Gaure, "OLS with multiple high dimensional category variables", *Computational Statistics & Data Analysis* 66, 2013.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import LinearOperator, cg

from cfiv.errors import SingularError

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Solver = Callable[[Array, Array], Array]

#: Groups of all kinds but the largest up to which the normal equations are solved directly: a fraction of a second.
DIRECT = 500
#: Groups of the largest kind whose tables with the others are held at once: 80 MB.
BLOCK = 20_000
#: Eigenvalues of the normal equations, relative to the largest, that are zero: directions that kinds have in common.
SHARED = 1e-11
#: Of conjugate gradients, which run twice: what is left of the right-hand side each time, what of the columns counts as
#: nothing, and steps.
TOLERANCE, NOTHING, STEPS = 1e-8, 1e-14, 20_000


class FixedEffects:
    """Kinds of groups of the same rows.

    Parameters
    ----------
    kinds : sequence of arrays (n,)
        Whole numbers from 0, each of which has a row.
    weights : array (n,)
        Positive.

    Attributes
    ----------
    sizes : tuple of int
        Groups of each kind.
    """

    def __init__(self, kinds: Sequence[Codes], *, weights: Array) -> None:
        self.kinds, self.weights = tuple(kinds), weights
        self.sizes = tuple(int(codes.max()) + 1 for codes in kinds)
        self._order = tuple(int(i) for i in np.argsort([-size for size in self.sizes], kind="stable"))
        self._plain = bool((weights == weights[0]).all())
        self._mass = [np.bincount(codes, weights) for codes in kinds]

    def residual(self, columns: Array) -> Array:
        """``Y - D a`` of columns (n, k).

        Raises
        ------
        SingularError
            If conjugate gradients do not converge: groups hang together by very few rows.
        """
        first, others = self._order[0], self._order[1:]
        left = np.asarray(columns, dtype=np.float64).copy(order="F")
        for _ in range(2):  # an offset costs the first pass its digits
            self._take(left, first, self._sums(left, first) / self._mass[first][:, None])
        nothing = NOTHING * np.linalg.norm(left, axis=0) * np.sqrt(self.weights.max())
        for _ in range(2 if others else 0):
            effects = self._solve(np.concatenate([self._sums(left, kind) for kind in others]), nothing)
            splits = np.cumsum([self.sizes[kind] for kind in others])[:-1]
            for kind, part in zip(others, np.split(effects, splits), strict=True):
                self._take(left, kind, part)
            self._take(left, first, self._sums(left, first) / self._mass[first][:, None])
        return left

    def rank(self, kinds: Sequence[int]) -> int:
        """Dimension of the span of the indicators of some kinds: exact for one and two, for more at most this.

        Two kinds have one direction in common for each connected part; a third has at least as many as with one of the others.
        """
        shared = dict.fromkeys(kinds, 0)
        for one, other in combinations([kind for kind in self._order if kind in shared], 2):
            shared[other] = max(shared[other], self._parts((one, other)))
        return sum(self.sizes[kind] - common for kind, common in shared.items())

    def _parts(self, kinds: tuple[int, int]) -> int:
        """Connected parts of the groups of two kinds, of which a row connects two."""
        one, other = kinds
        size = self.sizes[one] + self.sizes[other]
        ends = (self.kinds[one], self.kinds[other] + self.sizes[one])
        graph = sparse.coo_array((np.ones(len(self.weights)), ends), shape=(size, size))
        parts, _ = csgraph.connected_components(graph, directed=False)
        return int(parts)

    def _sums(self, columns: Array, kind: int) -> Array:
        """``D' W Y``, (groups, k)."""
        codes, size = self.kinds[kind], self.sizes[kind]
        scale = self.weights[0] if self._plain else 1.0
        weighted = columns if self._plain else self.weights[:, None] * columns
        return np.stack([scale * np.bincount(codes, column, size) for column in weighted.T], axis=1)

    def _take(self, columns: Array, kind: int, effects: Array) -> None:
        """Subtract ``D a`` from columns, in place."""
        for column, effect in zip(columns.T, effects.T, strict=True):
            column -= effect.take(self.kinds[kind])

    @cached_property
    def _solve(self) -> Solver:
        """From right-hand sides (q, k) of the normal equations, and what counts as nothing of each (k,), to solutions (q, k).

        Each group counts in units of the root of its weights, so that the diagonal is about one.
        """
        first, others = self._order[0], self._order[1:]
        unit = 1 / np.sqrt(np.concatenate([self._mass[kind] for kind in others]))
        within = sparse.block_array([[self._table(one, other=other) for other in others] for one in others], format="csr")
        crossed = sparse.csr_array(sparse.hstack([self._table(first, other=kind) for kind in others], format="csr"))
        within = _in_units(within, unit, unit)
        crossed = _in_units(crossed, np.ones(self.sizes[first]), unit)
        shrunk = _in_units(crossed, 1 / self._mass[first], np.ones(len(unit)))
        if len(unit) <= DIRECT:
            values, vectors = np.linalg.eigh(within.toarray() - _product(crossed, shrunk))
            kept = values > SHARED * values[-1]
            inverse = unit[:, None] * (vectors[:, kept] / values[kept] @ vectors[:, kept].T) * unit
            return lambda right, _: inverse @ right

        transposed = sparse.csr_array(crossed.T)
        operator = LinearOperator(
            (len(unit),) * 2, matvec=lambda vector: within @ vector - transposed @ (shrunk @ vector), dtype=np.float64
        )

        def solve(right: Array, nothing: Array) -> Array:
            sides = (unit[:, None] * right).T
            found = [_conjugate_gradients(operator, side, least) for side, least in zip(sides, nothing, strict=True)]
            return np.asarray(unit[:, None] * np.stack(found, axis=1))

        return solve

    def _table(self, one: int, *, other: int) -> Any:
        """``D_1' W D_2`` of two kinds, or of one."""
        if one == other:
            return sparse.diags_array(self._mass[one], format="csr")
        shape = (self.sizes[one], self.sizes[other])
        return sparse.csr_array((self.weights, (self.kinds[one], self.kinds[other])), shape=shape)


def _in_units(table: Any, rows: Array, columns: Array) -> Any:
    """A sparse table times one number a row and one a column: many times as fast as products with diagonal ones."""
    values = table.data * np.repeat(rows, np.diff(table.indptr)) * columns[table.indices]
    return sparse.csr_array((values, table.indices, table.indptr), shape=table.shape)


def _product(one: Any, other: Any) -> Array:
    """``A' B`` of sparse tables (n, q), q small: with ``B`` as an array, some rows at a time, in a fifth of the time."""
    starts = range(0, one.shape[0], BLOCK)
    return np.asarray(sum(one[start : start + BLOCK].T @ other[start : start + BLOCK].toarray() for start in starts))


def _conjugate_gradients(operator: LinearOperator, right: Array, nothing: float) -> Array:
    found, unfinished = cg(operator, right, rtol=TOLERANCE, atol=nothing, maxiter=STEPS)
    if unfinished:
        raise SingularError(
            f"the fixed effects have not converged in {STEPS:,} steps, as where groups hang together by very few rows: drop "
            "groups of few rows, or one kind of fixed effects"
        )
    return np.asarray(found)
