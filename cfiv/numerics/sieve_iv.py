"""Two-stage least squares in two bases, from sums over rows: the estimate of one size, and the scores of several together.

With structural columns ``F`` (n, p), instrument columns ``Phi`` (n, q) and row weights ``w`` on the diagonal of ``D``,

    c = (F' P F)^-1 F' P Y,    P = D Phi (Phi' D Phi)^- Phi' D,

and ``s``, the smallest canonical correlation of the two bases, says how far the instruments tell functions of the treatment
apart: the smallest singular value of ``(Phi' D Phi)^-1/2 Phi' D F (F' D F)^-1/2``. Instrument columns may depend on one
another, such as splines over an interval without a row; structural ones may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cfiv.numerics.sieve_basis import BLOCK, SieveBasis
from cfiv.numerics.splines import Array

#: Variances of directions of a basis, in columns of length one, that rounding cannot tell from zero.
RESOLVED = 1e-11
#: Canonical correlations that are rounding.
IRRELEVANT = 1e-7


@dataclass(frozen=True, eq=False, kw_only=True)
class SieveRows:
    """The observations.

    Parameters
    ----------
    outcome : array (n,)
    treatments : array (n, d)
    instruments : array (n, k)
    covariates : array (n, c) or None
    weights : array (n,)
        Only their ratios matter.
    clusters : array (n,) of int or None
        Groups of rows, from 0, whose errors may be correlated.
    """

    outcome: Array
    treatments: Array
    instruments: Array
    covariates: Array | None
    weights: Array
    clusters: Array | None = None

    def __len__(self) -> int:
        return len(self.outcome)

    def columns(self, basis: SieveBasis) -> Iterator[tuple[slice, Array, Array]]:
        """Blocks of rows with their structural columns (b, p) and instrument columns (b, q)."""
        many = max(1, BLOCK // (basis.width + basis.instrument_width))
        for start in range(0, len(self), many):
            rows = slice(start, start + many)
            covariates = None if self.covariates is None else self.covariates[rows]
            yield (
                rows,
                basis.structural_columns(self.treatments[rows], covariates),
                basis.instrument_columns(self.instruments[rows], covariates),
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class SieveFit:
    """Two-stage least squares in one pair of bases.

    Parameters
    ----------
    basis : SieveBasis
    coefficients : array (p,)
        ``c``; zeros where the columns do not determine them.
    reduced : array (q,)
        Of the regression of ``F c`` on ``Phi``: ``E[h | Z, X] = Phi reduced``.
    influence : array (q, p)
        ``K``, with ``c = K' Phi' D Y``: the score of row i is ``w_i u_i K' phi_i``, ``u`` the residual with the actual ``F``.
    correlation : float
        ``s``, zero where the columns do not determine ``c``.
    rank, instrument_rank : int
        Of the two bases, at these rows.
    """

    basis: SieveBasis
    coefficients: Array
    reduced: Array
    influence: Array
    correlation: float
    rank: int
    instrument_rank: int

    @property
    def determined(self) -> bool:
        """Whether there is one solution."""
        return self.correlation > 0.0


def fit_basis(basis: SieveBasis, rows: SieveRows) -> SieveFit:
    """Two-stage least squares of one size.

    Notes
    -----
    O(n (p + q)^2), and one block of rows is held at once. Sums of products square the bases' condition numbers; those of
    B-splines are small, and columns are brought to length one first.
    """
    p, q = basis.width, basis.instrument_width
    gram, outcome = np.zeros((p + q, p + q)), np.zeros(q)
    for block, structural, instruments in rows.columns(basis):
        root = np.sqrt(rows.weights[block])
        both = np.concatenate([structural, instruments], axis=1) * root[:, None]
        gram += both.T @ both
        outcome += both[:, p:].T @ (root * rows.outcome[block])
    own, whitener, cross = _whitener(gram[:p, :p]), _whitener(gram[p:, p:]), gram[p:, :p]
    # In orthonormal directions of both bases, so that what is inverted has the condition number 1 / s.
    left, singular, right = np.linalg.svd(whitener.T @ cross @ own, full_matrices=False)
    correlation = float(min(singular[-1], 1.0)) if own.shape[1] == p <= len(singular) else 0.0
    influence = np.zeros((q, p))
    if correlation > IRRELEVANT:
        influence = whitener @ (left / singular) @ right @ own.T
    coefficients = influence.T @ outcome
    return SieveFit(
        basis=basis,
        coefficients=coefficients,
        reduced=whitener @ (whitener.T @ (cross @ coefficients)),
        influence=influence,
        correlation=correlation if correlation > IRRELEVANT else 0.0,
        rank=own.shape[1],
        instrument_rank=whitener.shape[1],
    )


def score_covariance(fits: Sequence[SieveFit], rows: SieveRows) -> Array:
    """``sum_g (sum_{i in g} s_i)(sum_{i in g} s_i)'`` of the scores of several sizes side by side, shape (P, P).

    Without clusters each row is a group. The diagonal blocks are the robust covariances of the coefficients, the others those
    between sizes.
    """
    width = sum(fit.basis.width for fit in fits)
    groups = None if rows.clusters is None else np.zeros((int(rows.clusters.max()) + 1, width))
    total = np.zeros((width, width))
    many = max(1, BLOCK // (width + max(fit.basis.width + fit.basis.instrument_width for fit in fits)))
    for start in range(0, len(rows), many):
        block = slice(start, start + many)
        scores = np.concatenate([_scores(fit, rows, block) for fit in fits], axis=1)
        if groups is None:
            total += scores.T @ scores
        else:
            assert rows.clusters is not None
            labels = rows.clusters[block]
            groups += (
                sparse.csr_array((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(len(groups), len(labels)))
                @ scores
            )
    return total if groups is None else groups.T @ groups


def _scores(fit: SieveFit, rows: SieveRows, block: slice) -> Array:
    """Of some rows, shape (b, p)."""
    covariates = None if rows.covariates is None else rows.covariates[block]
    structural = fit.basis.structural_columns(rows.treatments[block], covariates)
    instruments = fit.basis.instrument_columns(rows.instruments[block], covariates)
    residuals = rows.outcome[block] - structural @ fit.coefficients
    return np.asarray((rows.weights[block] * residuals)[:, None] * (instruments @ fit.influence))


def _whitener(gram: Array) -> Array:
    """``A`` (k, r) with ``A' gram A = I`` and r the rank of ``gram`` (k, k)."""
    lengths = np.sqrt(np.diag(gram))
    scale = np.where(lengths > 0, 1 / np.where(lengths > 0, lengths, 1.0), 0.0)
    values, vectors = np.linalg.eigh(scale[:, None] * gram * scale)
    kept = values > RESOLVED * values[-1]
    return np.asarray(scale[:, None] * vectors[:, kept] / np.sqrt(values[kept]))
