"""Two-stage least squares and LIML in given bases over blocks of rows, and the joint covariance of all coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.errors import DataError
from cfiv.estimators.linear_columns import IRRELEVANT
from cfiv.estimators.small_sample import SmallSample
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.row_blocks import RowBlocks
from cfiv.inference.scaling import Scaling
from cfiv.numerics.dependence import Dependence, dependences
from cfiv.numerics.linear_iv import covariance_root
from cfiv.numerics.scaled_columns import plain_numbers
from cfiv.numerics.score_covariance import clustered_ways
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

    With ``F = Q_F R_F`` and ``Phi = Q_Phi R_Phi`` the canonical correlations are the singular values of ``W = Q_Phi' Q_F``, and
    with ``W = U V`` (QR) ``b = H P' y``, ``P = Q_Phi U`` orthonormal and ``H = R_F^-1 V^-1``. Of a k-class estimator, as in
    :func:`cfiv.numerics.linear_iv.k_class`, ``H = R_F^-1 V^-1 G^-1``, and ``G = kappa I - (kappa - 1) (V V')^-1`` is the
    covariance of the scores ``P' e`` of errors of variance one.

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
        ``R_Phi^-1 U``: ``P`` is the instrument columns, as ``blocks`` scales them, times it; ``R_F^-1`` for the structural
        columns where there are no instruments.
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
    correlations: Array
    instruments: int

    @classmethod
    def of(cls, blocks: RowBlocks, outcome: Outcome, *, excess: float = 0.0) -> Self:
        """From the QR factorisation of ``[Phi, F, y]``.

        Parameters
        ----------
        blocks : RowBlocks
        outcome : Outcome
        excess : float
            ``kappa - 1``, as estimated with the model.

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
        basis, own = np.linalg.qr(stacked[:, q : q + p] / lengths[q : q + p])
        dependent = _dependent(own, structural, rows=len(outcome.values))
        if dependent:
            raise DataError(
                f"{len(dependent)} of the {p} functions of the basis are combinations of the others in these rows, so their "
                "coefficients, and intervals, are not determined: use a smaller basis"
            )
        back = linalg.solve_triangular(own, np.eye(p))
        if not q:
            return cls(structural, own, basis.T @ stacked[:, -1], back, None, back / lengths[:p, None], np.ones(p), p)
        first = stacked[:, :q] / lengths[:q]
        found = _dependent(
            np.asarray(np.linalg.qr(first, mode="r")), blocks.instruments.times(lengths[:q]), rows=len(outcome.values)
        )
        kept = np.delete(np.arange(q), [one.column for one in found])
        left, right = np.linalg.qr(first[:, kept])
        shared = left.T @ basis
        correlations = np.minimum(np.linalg.svd(shared, compute_uv=False), 1.0)
        moved = int((correlations > IRRELEVANT).sum())
        if moved < p:
            raise DataError(
                f"the instruments move {moved} of the {p} functions of the basis, as where they take few values: the curve is "
                "not identified, and a band would mean nothing; use a smaller basis, or instruments with more values"
            )
        directions, mixed = np.linalg.qr(shared)
        scores, weight, inverse = directions.T @ (left.T @ stacked[:, -1]), None, linalg.solve_triangular(mixed, np.eye(p))
        spread = back @ inverse
        if excess:
            weight = (1 + excess) * np.eye(p) - excess * (inverse.T @ inverse)
            scores = (1 + excess) * scores - excess * (inverse.T @ (basis.T @ stacked[:, -1]))
            scores, spread = np.linalg.solve(weight, scores), np.linalg.solve(weight, spread.T).T
        coordinates = linalg.solve_triangular(mixed, scores)
        predictor = np.zeros((q, p))
        predictor[kept] = linalg.solve_triangular(right, directions) / lengths[kept, None]
        return cls(structural, own, coordinates, spread, weight, predictor, correlations, len(kept))

    @property
    def coefficients(self) -> Array:
        """``b``, of columns of length one."""
        return np.asarray(linalg.solve_triangular(self.triangle, self.coordinates))


@dataclass(frozen=True, eq=False)
class JointFit:
    """Fits of one outcome in several bases.

    Parameters
    ----------
    fits : tuple of BasisFit
    leverage : float
        The largest of a row in the first.
    """

    fits: tuple[BasisFit, ...]
    leverage: float


def joint_fit(
    stages: Sequence[TwoStage],
    blocks: Sequence[RowBlocks],
    outcome: Outcome,
    *,
    covariance: str,
    clusters: Sequence[Array],
    small: SmallSample,
    known_constant: bool = False,
) -> JointFit:
    """Numbers of fits with their joint covariance ``H S H'``, ``S`` that of all scores ``P_i e_i``.

    Parameters
    ----------
    stages : sequence of TwoStage
        The one that is asked first.
    blocks : sequence of RowBlocks
        Of their bases.
    outcome : Outcome
    covariance : {"robust", "unadjusted", "clustered"}
    clusters : sequence of arrays (n,)
        Codes of one or two kinds of groups, for "clustered".
    small : SmallSample
        Of the first.
    known_constant : bool
        Whether the constant of the only basis counts as known: where fixed effects were taken out, sums of residuals within
        groups are zero, and with two kinds of clusters its variance would be less.

    Notes
    -----
    Of two kinds of groups: the sum of both covariances less that of their intersections, of which directions with a negative
    variance, as few groups may have, get none.

    References
    ----------
    Cameron, Gelbach and Miller, "Robust inference with multiway clustering", *Journal of Business & Economic Statistics* 29,
    2011.
    """
    sizes = [len(stage.coordinates) for stage in stages]
    n, width = len(outcome.values), sum(sizes)
    smallest, cells = _intersections(clusters)
    sums = np.zeros((len(cells[0]) if clusters else 0, width))
    total, gram, squares = np.zeros((width, width)), np.zeros((width, width)), np.zeros((len(sizes),) * 2)
    constant, leverage = np.zeros(width), 0.0
    for rows in blocks[0].slices():
        basis, residuals = [], []
        for stage, block in zip(stages, blocks, strict=True):
            structural = block.scaled("structural", rows)
            own = _orthonormal(stage, block, structural)
            values = own @ stage.coordinates
            if stage is stages[0]:
                leverage = max(leverage, float((np.square(own).sum(axis=1) / block.root[rows] ** 2).max()))
            residuals.append(outcome.values[rows] - values)
            basis.append((block.scaled("instruments", rows) if block.instrumented else structural) @ stage.predictor)
        joined, errors = np.concatenate(basis, axis=1), np.stack(residuals, axis=1)
        constant += joined.T @ blocks[0].root[rows]
        scores = joined * np.repeat(errors, sizes, axis=1)
        if covariance == "clustered":
            np.add.at(sums, smallest[rows], scores)
        elif covariance == "robust":
            total += scores.T @ scores
        else:
            gram += joined.T @ joined
            squares += errors.T @ errors
    if covariance == "clustered":
        total = clustered_ways(sums, cells, small.of_groups)
    elif covariance == "unadjusted":
        if stages[0].homoskedastic is not None:  # of LIML, which has but one basis
            gram = stages[0].homoskedastic
        total = gram * np.repeat(np.repeat(squares / n, sizes, axis=0), sizes, axis=1)
    total = small.factor * total
    if known_constant:
        others = np.eye(width) - np.outer(constant, constant) / n  # the roots' squares sum to n
        total = others @ total @ others
    root = covariance_root(linalg.block_diag(*(stage.spread for stage in stages)), total)
    parts = np.split(root, np.cumsum(sizes)[:-1])
    fits = tuple(
        BasisFit(stage.structural, stage.coefficients, part, stage.triangle, outcome.units)
        for stage, part in zip(stages, parts, strict=True)
    )
    return JointFit(fits, n * leverage)


def _triangle(blocks: RowBlocks, outcome: Outcome) -> Array:
    """``R`` of the weighted, scaled ``[Phi, F, y]``."""

    def columns(rows: slice) -> Array:
        parts = [blocks.scaled("instruments", rows)] if blocks.instrumented else []
        return np.column_stack([*parts, blocks.scaled("structural", rows), outcome.values[rows]])

    return triangle_of(map(columns, blocks.slices()))


def _orthonormal(stage: TwoStage, block: RowBlocks, structural: Array) -> Array:
    """``Q_F`` at rows, from columns that the block has scaled."""
    unit = structural * (block.structural.scales / stage.structural.scales)
    return np.asarray(linalg.solve_triangular(stage.triangle, unit.T, trans="T").T)


def _dependent(triangle: Array, scaling: Scaling, *, rows: int) -> tuple[Dependence, ...]:
    """Columns of length one that depend on those before them."""
    return dependences(triangle, np.sqrt(1 + rows * (scaling.centres / scaling.scales) ** 2))


def _intersections(clusters: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Codes (n,) of the groups that all kinds make together, and of each kind those of these groups."""
    if not clusters:
        return np.zeros(0, dtype=np.int64), []
    _, first, codes = np.unique(np.stack(clusters, axis=1), axis=0, return_index=True, return_inverse=True)
    return np.asarray(codes).ravel(), [kind[first] for kind in clusters]
