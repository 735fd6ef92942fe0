"""The joint covariance of the coefficients of fits in several bases, over blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.estimators.small_sample import SmallSample
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.overidentification import SpareMoments
from cfiv.inference.row_blocks import RowBlocks
from cfiv.inference.two_stage import Outcome, TwoStage
from cfiv.numerics.linear_iv import covariance_root
from cfiv.numerics.score_covariance import clustered_ways


@dataclass(frozen=True, eq=False)
class JointFit:
    """Fits of one outcome in several bases.

    Parameters
    ----------
    fits : tuple of BasisFit
    leverage : float
        The largest of a row in the first.
    spare : SpareMoments
        Of the first.
    """

    fits: tuple[BasisFit, ...]
    leverage: float
    spare: SpareMoments


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
    """Fits with their joint covariance ``H S H'``, ``S`` that of all scores ``P_i e_i``, and ``r' e`` of spare instruments.

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
    first = stages[0]
    sizes = [*(len(stage.coordinates) for stage in stages), first.spare.shape[1]]
    n, width = len(outcome.values), sum(sizes)
    smallest, cells = _intersections(clusters)
    sums = np.zeros((len(cells[0]) if clusters else 0, width))
    total, gram, squares = np.zeros((width, width)), np.zeros((width, width)), np.zeros((len(sizes),) * 2)
    constant, spare, leverage = np.zeros(width), np.zeros(sizes[-1]), 0.0
    for rows in blocks[0].slices():
        structural = [block.scaled("structural", rows) for block in blocks]
        # Of least squares, which has no instruments, the basis itself.
        columns = [blocks[i].scaled("instruments", rows) if blocks[i].instrumented else own for i, own in enumerate(structural)]
        fitted = [stage.orthonormal(block, own) for stage, block, own in zip(stages, blocks, structural, strict=True)]
        residuals = [outcome.values[rows] - own @ stage.coordinates for stage, own in zip(stages, fitted, strict=True)]
        leverage = max(leverage, float((np.square(fitted[0]).sum(axis=1) / blocks[0].root[rows] ** 2).max()))
        unused = columns[0] @ first.spare
        spare += unused.T @ residuals[0]
        joined = np.concatenate([*(own @ stage.predictor for stage, own in zip(stages, columns, strict=True)), unused], axis=1)
        errors = np.stack([*residuals, residuals[0]], axis=1)
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
        if first.homoskedastic is not None:  # of LIML, which has but one basis
            gram[: sizes[0], : sizes[0]] = first.homoskedastic
        total = gram * np.repeat(np.repeat(squares / n, sizes, axis=0), sizes, axis=1)
    total = small.factor * total
    if known_constant:
        others = np.eye(width) - np.outer(constant, constant) / n  # the roots' squares sum to n
        total = others @ total @ others
    own = width - sizes[-1]
    root = covariance_root(linalg.block_diag(*(stage.spread for stage in stages)), total[:own, :own])
    parts = np.split(root, np.cumsum(sizes)[:-2])
    fits = tuple(
        BasisFit(stage.structural, stage.coefficients, part, stage.triangle, outcome.units)
        for stage, part in zip(stages, parts, strict=True)
    )
    groups = min(len(np.unique(kind)) for kind in clusters) if covariance == "clustered" else n
    return JointFit(fits, n * leverage, SpareMoments(spare, total[own:, own:], groups))


def _intersections(clusters: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Codes (n,) of the groups that all kinds make together, and of each kind those of these groups."""
    if not clusters:
        return np.zeros(0, dtype=np.int64), []
    _, first, codes = np.unique(np.stack(clusters, axis=1), axis=0, return_index=True, return_inverse=True)
    return np.asarray(codes).ravel(), [kind[first] for kind in clusters]
