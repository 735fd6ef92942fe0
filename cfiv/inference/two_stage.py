"""Two-stage least squares and LIML in a given basis over blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.errors import DataError
from cfiv.estimators.linear_columns import IRRELEVANT
from cfiv.inference.row_blocks import RowBlocks
from cfiv.inference.scaling import Scaling
from cfiv.numerics.dependence import Dependence, dependences
from cfiv.numerics.scaled_columns import plain_numbers
from cfiv.numerics.triangle import triangle_of


@dataclass(frozen=True, eq=False)
class Outcome:
    """``y = (2^-e Y - m) / s``, weighted.

    Parameters
    ----------
    values : array (n,)
    units : array (3,)
        ``m, s, e``.
    """

    values: Array
    units: Array

    @classmethod
    def of(cls, outcome: Array, *, root: Array, centred: bool) -> Self:
        """About its weighted mean where ``centred``, in units of its largest value."""
        plain, exponents = plain_numbers(outcome[:, None])
        centre = float(root**2 @ plain[:, 0] / len(plain)) if centred else 0.0
        values = plain[:, 0] - centre
        scale = float(max(values.max(), -values.min())) or 1.0
        values *= root
        values /= scale
        return cls(values, np.array([centre, scale, exponents[0]], dtype=np.float64))


@dataclass(frozen=True, eq=False)
class TwoStage:
    """``b = (F' P F)^-1 F' P y`` in scaled columns, and what its scores are made of.

    With ``F = Q_F R_F`` and ``Q_Phi = Phi B`` orthonormal the canonical correlations are the singular values of ``W = Q_Phi'
    Q_F``, and with ``W = U V`` (QR) ``b = H P' y``, ``P = Q_Phi U`` orthonormal and ``H = R_F^-1 V^-1``. Of a k-class
    estimator, as in :func:`cfiv.numerics.linear_iv.k_class`, ``H = R_F^-1 V^-1 G^-1``, and ``G = kappa I - (kappa - 1) (V
    V')^-1`` is the covariance of the scores ``P' e`` of errors of variance one. Triangles have positive diagonals.

    Parameters
    ----------
    structural : Scaling
        In which columns have length one.
    triangle : array (p, p)
        ``R_F``.
    coordinates : array (p,)
        ``V^-1 U' Q_Phi' y`` (of two-stage least squares): fitted values are ``Q_F`` times it.
    spread : array (p, p)
        ``H``.
    homoskedastic : array (p, p) or None
        ``G``; None where it is the identity.
    predictor : array (q, p)
        ``B U``: ``P`` is the instrument columns, as ``blocks`` scales them, times it; ``R_F^-1`` for the structural
        columns where there are no instruments.
    spare : array (q, r - p)
        ``B U_2``, with ``U_2`` orthogonal to ``U``: of the r independent instrument columns what no coefficient is
        needed for. It is orthogonal to ``F``, so that its products with residuals are those with the errors. None of a k-class
        estimator, whose residuals may be too large for a covariance of these.
    correlations : array (p,)
        Descending; ones without instruments.
    instruments : int
        Rank of the instrument columns.
    """

    structural: Scaling
    triangle: Array
    coordinates: Array
    spread: Array
    homoskedastic: Array | None
    predictor: Array
    spare: Array
    correlations: Array
    instruments: int

    @classmethod
    def of(cls, blocks: RowBlocks, outcome: Outcome, *, excess: float = 0.0, resolved: float = 0.0) -> Self:
        """From the QR factorisation of ``[Phi, F, y]``.

        Parameters
        ----------
        blocks : RowBlocks
        outcome : Outcome
        excess : float
            ``kappa - 1``, as estimated with the model.
        resolved : float
            Variance, of the largest, of a direction of instrument columns from which on it is used: as the model has it.

        Raises
        ------
        DataError
            If there are fewer rows than columns, structural columns depend on one another, or the instruments do not move all
            of them.

        Notes
        -----
        O(n (p + q)^2), block after block: what is held is one block and the triangle.
        """
        stacked = _triangle(blocks, outcome)
        p = len(blocks.structural.scales)
        q = stacked.shape[1] - p - 1
        if len(outcome.values) <= p:
            raise DataError(f"a basis of {p} functions needs more rows than that, got {len(outcome.values)}: use a smaller one")
        lengths = np.linalg.norm(stacked, axis=0)
        lengths = np.where(lengths > 0, lengths, 1.0)
        structural = blocks.structural.times(lengths[q : q + p])
        directions, own = _positive_qr(stacked[:, q : q + p] / lengths[q : q + p])
        basis = directions[:, :p]
        dependent = _dependent(own, structural, rows=len(outcome.values))
        if dependent:
            raise DataError(
                f"{len(dependent)} of the {p} functions of the basis are combinations of the others in these rows, so their "
                "coefficients, and intervals, are not determined: use a smaller basis"
            )
        back = linalg.solve_triangular(own, np.eye(p))
        if not q:
            predictor = back / lengths[:p, None]
            return cls(structural, own, basis.T @ stacked[:, -1], back, None, predictor, predictor[:, :0], np.ones(p), p)
        first = stacked[:, :q] / lengths[:q]
        found = _dependent(
            np.asarray(np.linalg.qr(first, mode="r")), blocks.instruments.times(lengths[:q]), rows=len(outcome.values)
        )
        kept = np.delete(np.arange(q), [one.column for one in found])
        left, singular, right = np.linalg.svd(first[:, kept], full_matrices=False)
        told = np.square(singular) > resolved * np.square(singular).max(initial=0.0)
        left, orthonormal = left[:, told], right[told].T / singular[told]
        shared = left.T @ basis
        correlations = np.minimum(np.linalg.svd(shared, compute_uv=False), 1.0)
        moved = int((correlations > IRRELEVANT).sum())
        if moved < p:
            raise DataError(
                f"the instruments move {moved} of the {p} functions of the basis, as where they take few values: the curve is "
                "not identified, and a band would mean nothing; use a smaller basis, or instruments with more values"
            )
        all_directions, mixed = _positive_qr(shared)
        directions = all_directions[:, :p]
        scores, weight, inverse = directions.T @ (left.T @ stacked[:, -1]), None, linalg.solve_triangular(mixed, np.eye(p))
        spread = back @ inverse
        if excess:
            weight = (1 + excess) * np.eye(p) - excess * (inverse.T @ inverse)
            scores = (1 + excess) * scores - excess * (inverse.T @ (basis.T @ stacked[:, -1]))
            scores = np.asarray(np.linalg.solve(weight, scores), dtype=np.float64)
            spread = np.asarray(np.linalg.solve(weight, spread.T).T, dtype=np.float64)
        coordinates = linalg.solve_triangular(mixed, scores)
        predictor = np.zeros((q, left.shape[1]))
        predictor[kept] = orthonormal @ all_directions / lengths[kept, None]
        used, spare = predictor[:, :p], predictor[:, left.shape[1] if excess else p :]
        return cls(structural, own, coordinates, spread, weight, used, spare, correlations, left.shape[1])

    def orthonormal(self, block: RowBlocks, structural: Array) -> Array:
        """``Q_F`` at rows, from columns that the block has scaled."""
        unit = structural * (block.structural.scales / self.structural.scales)
        return np.asarray(linalg.solve_triangular(self.triangle, unit.T, trans="T").T)

    @property
    def coefficients(self) -> Array:
        """``b``, of columns of length one."""
        return np.asarray(linalg.solve_triangular(self.triangle, self.coordinates))


def _triangle(blocks: RowBlocks, outcome: Outcome) -> Array:
    """``R`` of the weighted, scaled ``[Phi, F, y]``."""

    def columns(rows: slice) -> Array:
        parts = [blocks.scaled("instruments", rows)] if blocks.instrumented else []
        return np.column_stack([*parts, blocks.scaled("structural", rows), outcome.values[rows]])

    return triangle_of(map(columns, blocks.slices()))


def _positive_qr(columns: Array) -> tuple[Array, Array]:
    """The complete ``Q`` of columns (m, p), and ``R`` (p, p) with a positive diagonal, so that rounding chooses no sign."""
    all_directions, triangle = np.linalg.qr(columns, mode="complete")
    signs = np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
    all_directions[:, : len(signs)] *= signs
    return np.asarray(all_directions), np.asarray(triangle[: len(signs)] * signs[:, None])


def _dependent(triangle: Array, scaling: Scaling, *, rows: int) -> tuple[Dependence, ...]:
    """Columns of length one that depend on those before them."""
    return dependences(triangle, np.sqrt(1 + rows * (scaling.centres / scaling.scales) ** 2))
