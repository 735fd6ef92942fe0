"""Linear regressions on rows that lie on disk: two passes for their columns and one for residuals and scores.

The triangle ``R`` of all columns ``[E, T, Z, y]`` stands for the rows: least squares and two-stage least squares see columns by
their lengths and angles only, and those of ``R`` are the same. What does see rows, residuals and the covariance of scores,
comes from another pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from cfiv.data import Array, IVData
from cfiv.estimators.fitted_regression import FittedRegression
from cfiv.estimators.linear_columns import CONSTANT, Columns, Exogenous, ProblemColumns, exogenous_columns, row_roots
from cfiv.estimators.linear_inference import coefficients_of, spans
from cfiv.estimators.small_sample import SmallSample
from cfiv.mapped import BLOCK_ROWS, ColumnFile, is_mapped
from cfiv.numerics import score_covariance
from cfiv.numerics.linear_iv import LinearFit
from cfiv.numerics.scaled_columns import PLAIN_EXPONENT, ScaledColumns, constant_in_span
from cfiv.numerics.triangle import triangle_of

if TYPE_CHECKING:
    from cfiv.estimators.linear_regression import Covariance

ROLES = ("covariates", "treatment", "instruments", "outcome")


def lies_on_disk(data: IVData) -> bool:
    """Whether an array of the data is mapped from a file."""
    return any((array := getattr(data, role)) is not None and is_mapped(array) for role in ROLES)


@dataclass(frozen=True, eq=False)
class LinearBlocks:
    """The rows of a linear regression, block after block, and the columns that stand for them.

    Parameters
    ----------
    data : IVData
    intercept : bool
    """

    data: IVData
    intercept: bool

    @cached_property
    def root(self) -> Array:
        """Roots of the row weights, which have a mean of one, (n,)."""
        return row_roots(self.data.weights, rows=len(self.data))

    @cached_property
    def standing_in(self) -> ProblemColumns:
        """The columns at rows whose lengths and angles are those of all rows."""
        e, t, z, y = self._places
        exogenous, scaled = self._exogenous, self._scaled
        return ProblemColumns(
            exogenous,
            Columns.factorised(scaled.only(np.append(e, t))),
            Columns.factorised(scaled.only(np.append(e, z))),
            scaled.only(t),
            scaled.only(y),
        )

    def in_memory(self) -> ProblemColumns:
        """The columns at all rows."""
        return ProblemColumns.of(self.data, intercept=self.intercept)

    def fitted_regression(
        self, fit: LinearFit, *, names: tuple[str, ...], instrumented: bool, covariance: Covariance
    ) -> FittedRegression:
        """Coefficients in the user's units, their covariance and residuals, for a fit of the columns that stand in."""
        columns, n = self.standing_in, len(self.data)
        small = covariance.small_sample(None, rows=n, coefficients=len(names), clusters=self.data.clusters)
        scores, found, mean = self._rows_pass(fit, instrumented=instrumented, covariance=covariance, small=small)
        coefficients = coefficients_of(
            fit,
            small.factor * scores,
            outcome=columns.outcome,
            columns=columns.treatments.scaled,
            constant=self._exogenous.constant,
            names=names,
        )
        mean = mean if self._spans_constant and not self._exogenous.centred else 0.0
        clusters = {} if covariance.kind != "clustered" else {"clusters": self.data.clusters}
        return FittedRegression(
            coefficients=coefficients,
            residuals=found[:, 0],
            outcome=found[:, 1] - mean if mean else found[:, 1],
            centre=float(columns.outcome.centres[0]) + mean,
            effects=np.broadcast_to(0.0, n),
            power=int(columns.outcome.exponents[0]),
            root_weights=self.root,
            has_constant=self._spans_constant,
            constant_column=self._constant_column,
            cov_type=covariance.kind,
            cov_config={"debiased": bool(small.convention)} | clusters,
            small_sample=small,
            absorbed=0,
        )

    def _rows_pass(
        self, fit: LinearFit, *, instrumented: bool, covariance: Covariance, small: SmallSample
    ) -> tuple[Array, Array, float]:
        """The covariance (k, k) of ``P' e``; residuals and outcome, plain and side by side on disk; the outcome's mean."""
        columns = self.standing_in
        own = columns.instruments if instrumented else columns.treatments
        predictor = linalg.solve_triangular(own.triangle, own.basis.T @ fit.basis)  # P is the columns times it
        e, t, z, y = self._places
        structural, used = np.append(e, t), np.append(e, z if instrumented else t)
        n, k, clusters, unit = len(self.data), fit.basis.shape[1], self.data.clusters, float(columns.outcome.scales[0])
        kept, total, mean = ColumnFile(n, columns=2), np.zeros((k, k)), 0.0
        sums = np.zeros((0 if clusters is None else int(clusters.max()) + 1, k))
        for rows, block in self._blocks(self._scaled):
            outcome, root = block[:, y[0]], self.root[rows]
            residuals = outcome - block[:, structural] @ fit.coefficients
            kept.append(unit * residuals / root, unit * outcome / root)
            mean += unit * float(root @ outcome) / n
            if covariance.kind == "unadjusted":
                continue
            scores = block[:, used] @ predictor * residuals[:, None]
            if clusters is None:
                total += score_covariance.robust(scores)
            else:
                sums += np.stack([np.bincount(clusters[rows], column, len(sums)) for column in scores.T], axis=1)
        if covariance.kind == "unadjusted":
            total = fit.residuals @ fit.residuals / n * np.eye(k)
        elif clusters is not None:
            total = score_covariance.clustered_ways(sums, [np.arange(len(sums))], small.of_groups)
        return total, kept.array(), mean

    @cached_property
    def _places(self) -> tuple[Array, Array, Array, Array]:
        """Numbers of the columns ``E``, ``T``, ``Z`` and ``y``; after them comes a column of ones."""
        data = self.data
        shared = int(self.intercept) + (0 if data.covariates is None else data.covariates.shape[1])
        ends = np.cumsum([shared, data.treatment.shape[1], data.instruments.shape[1], 1])
        e, t, z, y = np.split(np.arange(ends[-1]), ends[:-1])
        return e, t, z, y

    @cached_property
    def _ends(self) -> tuple[Array, Array]:
        """The least and the greatest value of each column."""
        parts = [part for role in ROLES if (part := getattr(self.data, role)) is not None]
        one = [np.ones(int(self.intercept))]
        lower, upper = (
            np.concatenate([*one, *(np.atleast_1d(end(part, axis=0)) for part in parts), [1.0]]).astype(np.float64)
            for end in (np.min, np.max)
        )
        return lower, upper

    @cached_property
    def _exogenous(self) -> Exogenous:
        """``E``, without its rows."""
        assert self.data.names is not None
        names = (*[CONSTANT] * self.intercept, *self.data.names.get("covariates", ()))
        constant: Array | None
        if self.intercept:
            constant = np.eye(1, len(names))[0]
        else:  # sums of indicators and the like, which all rows have to be asked for at once
            constant = constant_in_span(exogenous_columns(self.data.covariates, rows=len(self.data), intercept=False))
        return Exogenous(np.zeros((0, len(names))), names, self.root, constant)

    @cached_property
    def _constant_column(self) -> int | None:
        """The first column of ``E`` that has one value."""
        lower, upper = self._ends
        single = np.flatnonzero((lower == upper)[self._places[0]])
        return int(single[0]) if len(single) else None

    @cached_property
    def _spans_constant(self) -> bool:
        """Whether a constant lies in the span of the regressors."""
        return self._exogenous.centred or spans(self.standing_in.treatments.basis, self._scaled.values[:, -1])

    @cached_property
    def _scaled(self) -> ScaledColumns:
        """All columns, of length one, at the rows that stand in."""
        rough, n = self._rough, len(self.data)
        triangle = triangle_of(block for _, block in self._blocks(rough))
        lengths = np.linalg.norm(triangle, axis=0)
        lengths = np.where(lengths > 0, lengths, 1.0)
        scales = rough.scales * lengths
        # Of the columns as they were given: their centre is at right angles to what is left of them.
        given = np.hypot(np.linalg.norm(triangle / lengths, axis=0), np.sqrt(n) * rough.centres / scales)
        return ScaledColumns(triangle / lengths, rough.exponents, rough.centres, scales, given)

    @cached_property
    def _rough(self) -> ScaledColumns:
        """Between minus one and one, without rows."""
        (lower, upper), (e, *_) = self._ends, self._places
        exponents = np.frexp(np.maximum(upper, -lower))[1].astype(np.int64)
        exponents[np.abs(exponents) <= PLAIN_EXPONENT] = 0
        lower, upper = np.ldexp(lower, -exponents), np.ldexp(upper, -exponents)
        nothing, ones = np.zeros((0, len(lower))), np.ones(len(lower))
        plain = ScaledColumns(nothing, exponents, np.zeros(len(lower)), ones, ones)
        centred = np.full(len(lower), self._exogenous.centred)
        if self._exogenous.constant is not None:  # the columns that make the constant up stay as they are
            centred[e] = self._exogenous.constant == 0
        centred[-1] = False
        centres = np.zeros(len(lower))
        if centred.any():
            for rows, block in self._blocks(plain):
                centres += self.root[rows] @ block
            centres = np.where(centred, np.clip(centres / len(self.data), lower, upper), 0.0)
        scales = np.maximum(upper - centres, centres - lower)
        return ScaledColumns(nothing, exponents, centres, np.where(scales > 0, scales, 1.0), ones)

    def _blocks(self, scaled: ScaledColumns) -> Iterator[tuple[slice, Array]]:
        """Weighted columns of some rows after the other, (b, columns), as others are scaled."""
        data = self.data
        for start in range(0, len(data), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            outcome = data.outcome[rows, None]
            exogenous = exogenous_columns(
                None if data.covariates is None else data.covariates[rows], rows=len(outcome), intercept=self.intercept
            )
            parts = (exogenous, data.treatment[rows], data.instruments[rows], outcome, np.ones_like(outcome))
            yield rows, self.root[rows, None] * scaled.at(np.concatenate(parts, axis=1))
            data.release()
