"""The smooth model: a line, and what departs from it as far as the data speak for it; in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cfiv.data import Array, IVData
from cfiv.estimators.components import SmoothComponent
from cfiv.estimators.units import Standardiser
from cfiv.learning.samples import fold_groups
from cfiv.numerics.penalised_iv import Moments, Penalties, Rows, choose_penalties
from cfiv.numerics.sieve_basis import BLOCK, in_blocks
from cfiv.numerics.smooth_basis import Part, SmoothBasis

#: Rows that penalties are chosen on; coefficients are of all rows.
CHOICE_ROWS = 20_000
FOLDS = 5
#: Partial correlations of treatments with their predictions whose squares are rounding.
UNMOVED = 1e-12


@dataclass(frozen=True, eq=False, kw_only=True)
class SmoothModel:
    """``h`` by two-stage least squares with penalties, see :mod:`cfiv.numerics.penalised_iv`, and its reduced form.

    Parameters
    ----------
    treatments, covariates, instruments : array (n, ...)
    outcome, weights : array (n,)
        The outcome standardised, the weights with mean one.
    outcome_scale : Standardiser
    basis : SmoothBasis
    penalties : Penalties
    moments : Moments
        Of all rows that the model is fitted to.
    """

    treatments: Array
    covariates: Array
    instruments: Array
    outcome: Array
    weights: Array
    outcome_scale: Standardiser
    basis: SmoothBasis
    penalties: Penalties
    moments: Moments

    @classmethod
    def fit(cls, data: IVData, generator: np.random.Generator, *, products: bool) -> SmoothModel | None:
        """To columns; None where the treatments are images, or the instruments do not identify a line.

        Parameters
        ----------
        data : IVData
        generator : Generator
            Source of the folds.
        products : bool
            Whether effects may vary with covariates.
        """
        if data.treatment.ndim > 2 or data.instruments.shape[1] < data.treatment.shape[1]:
            return None
        rows = len(data)
        weights = np.ones(rows) if data.weights is None else data.weights / data.weights.mean()
        treatments, instruments = (part.astype(np.float64, copy=False) for part in (data.treatment, data.instruments))
        covariates = np.zeros((rows, 0)) if data.covariates is None else data.covariates.astype(np.float64, copy=False)
        scale = Standardiser.fit(data.outcome[:, None], data.weights)
        outcome = scale.apply(data.outcome[:, None])[:, 0]
        basis = SmoothBasis.of(treatments, covariates, instruments, weights=weights, products=products)
        order = generator.permutation(rows)[:CHOICE_ROWS]
        sample = Rows(
            instruments=basis.instrument_columns(instruments[order], covariates[order]),
            structural=basis.structural_columns(treatments[order], covariates[order]),
            outcome=outcome[order],
            weights=weights[order],
            folds=_folds(None if data.clusters is None else data.clusters[order], len(order), generator),
        )
        if not _identified(sample, basis):
            return None
        penalties = choose_penalties(
            sample,
            instrument_parts=basis.instrument_parts,
            structural_parts=basis.structural_parts,
            shared=basis.shared,
            moved=basis.moved,
        )
        empty = Moments.of(sample.instruments[:0], sample.structural[:0], outcome[:0], weights[:0])
        model = cls(
            treatments=treatments,
            covariates=covariates,
            instruments=instruments,
            outcome=outcome,
            weights=weights,
            outcome_scale=scale,
            basis=basis,
            penalties=penalties,
            moments=empty,
        )
        return replace(model, moments=model._moments(np.arange(rows)))

    @property
    def is_line(self) -> bool:
        """Whether the data speak for nothing but a line."""
        return self.penalties.is_line

    def describe(self) -> str:
        """Of which parts it is made, in words."""
        words = {
            Part.CURVES: "curves of the treatment",
            Part.COVARIATE_CURVES: "curves of covariates",
            Part.PRODUCTS: "products",
        }
        present = [words[part] for part, penalty in self.penalties.second.items() if np.isfinite(penalty)]
        return ", ".join(["a line", *present])

    def line(self) -> SmoothModel:
        """The same without anything that departs from the line."""
        none = dict.fromkeys(self.penalties.second, math.inf)
        return replace(self, penalties=replace(self.penalties, second=none))

    def strength(self) -> float:
        """F of the excluded instruments for the treatment that they move least, linearly or in all their columns.

        The larger of the two: many columns hide what one of them does, and a curve may do what a line does not.
        Homoskedastic.
        """
        shared, treatments = self.basis.shared, len(self.basis.treatments)
        columns = np.arange(shared, shared + treatments)
        exogenous = np.isin(self.basis.instrument_parts, (Part.COVARIATE_CURVES,))
        exogenous[:shared] = True
        linear = exogenous.copy()
        linear[shared : shared + len(self.basis.instruments)] = True
        without = self._unpredicted(columns, exogenous)
        values = []
        for used in (linear, np.ones_like(linear)):
            left, count = self._unpredicted(columns, used), int((used & ~exogenous).sum())
            spare = len(self.outcome) - int(used.sum())
            values.append(np.maximum(without - left, 0.0) / count / (np.maximum(left, 1e-300) / max(1, spare)))
        return float(np.max(values, axis=0).min())

    def noise(self) -> float:
        """How much of what the treatment does to ``h`` over the rows is sampling noise: variance of estimate over its own.

        With ``a`` the columns that treatments have a part in, of mean zero, and the robust covariance of their coefficients,
        ``mean_i a_i' Cov(u_a) a_i / mean_i (a_i' u_a)^2``. Penalties count as given.
        """
        first_stage, coefficients = self._coefficients()
        scores = sum(self._scores(rows, first_stage, coefficients) for rows in self._spread())
        penalties = self.penalties.diagonal
        kept = np.isfinite(penalties)
        columns, own = self.basis.moved & kept, np.ix_(kept, kept)
        inverse = np.zeros((len(kept), len(kept)))
        inverse[own] = np.linalg.pinv((first_stage.T @ self.moments.cross)[own] + np.diag(penalties[kept]))
        covariance = (inverse @ scores @ inverse.T)[np.ix_(columns, columns)] / len(self.outcome)
        means = self.moments.structural[0]  # the first column is the constant
        spread = (self.moments.structural - np.outer(means, means))[np.ix_(columns, columns)]
        signal = float(coefficients[columns] @ spread @ coefficients[columns])
        return float((covariance * spread).sum()) / signal if signal > 0 else math.inf

    def without(self, rows: Array) -> SmoothModel:
        """Fitted to all other rows, with the same penalties."""
        return replace(self, moments=self.moments - self._moments(rows))

    def outcome_mean(self) -> float:
        """Of the rows that it is fitted to, in the user's units."""
        return float(self.outcome_scale.undo(self.moments.reduced[:1])[0])  # the first instrument column is the constant

    def component(self) -> SmoothComponent:
        """``h`` in the user's units."""
        return SmoothComponent(self.basis, self._coefficients()[1], self.outcome_scale)

    def reduced_form(self) -> SmoothReducedForm:
        """``E[h(T, X) | Z, X]`` in the user's units."""
        _, coefficients = self._coefficients()
        # Not by V, which is shrunk: that costs stage 2 nothing but precision, and a prediction its size.
        return SmoothReducedForm(self.basis, self.penalties.projected(self.moments, coefficients), self.outcome_scale)

    def _coefficients(self) -> tuple[Array, Array]:
        """V and u."""
        first_stage = self.penalties.first_stage(self.moments)
        return first_stage, self.penalties.second_stage(self.moments, first_stage)

    def _unpredicted(self, columns: Array, instruments: Array) -> Array:
        """Mean squared error of structural columns, given some of the instrument columns."""
        gram, cross = self.moments.gram[np.ix_(instruments, instruments)], self.moments.cross[np.ix_(instruments, columns)]
        small = 1e-10 * np.diag(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
        return np.asarray(
            np.diag(self.moments.structural)[columns] - (cross * np.linalg.solve(gram + small, cross)).sum(axis=0)
        )

    def _spread(self) -> Iterator[Array]:
        """Blocks of up to ``CHOICE_ROWS`` rows, evenly spread."""
        rows = np.unique(np.linspace(0, len(self.outcome) - 1, min(CHOICE_ROWS, len(self.outcome))).astype(int))
        many = max(1, BLOCK // (len(self.basis.structural_parts) + len(self.basis.instrument_parts)))
        return (rows[start : start + many] for start in range(0, len(rows), many))

    def _scores(self, rows: Array, first_stage: Array, coefficients: Array) -> Array:
        """Of some rows their share in ``mean_i v_i e_i^2 v_i'``."""
        covariates = self.covariates[rows]
        errors = self.outcome[rows] - self.basis.structural_columns(self.treatments[rows], covariates) @ coefficients
        scores = self.basis.instrument_columns(self.instruments[rows], covariates) @ first_stage
        scores = scores * (self.weights[rows] * errors)[:, None]
        return np.asarray(scores.T @ scores / min(CHOICE_ROWS, len(self.outcome)))

    def _moments(self, rows: Array) -> Moments:
        parts = list(self._blocks(rows))
        return sum(parts[1:], start=parts[0])

    def _blocks(self, rows: Array) -> Iterator[Moments]:
        many = max(1, BLOCK // (len(self.basis.structural_parts) + len(self.basis.instrument_parts)))
        for start in range(0, max(1, len(rows)), many):
            part = rows[start : start + many]
            covariates = self.covariates[part]
            yield Moments.of(
                self.basis.instrument_columns(self.instruments[part], covariates),
                self.basis.structural_columns(self.treatments[part], covariates),
                self.outcome[part],
                self.weights[part],
            )


@dataclass(frozen=True, eq=False)
class SmoothReducedForm:
    """``E[h | Z, X]`` in the outcome's units. It holds no rows, and can be pickled."""

    basis: SmoothBasis
    coefficients: Array
    outcome_scale: Standardiser

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        """Shape (n,), at instruments (n, k) and covariates (n, c)."""
        return self.outcome_scale.undo(in_blocks(self.basis.instrument_columns, self.coefficients, instruments, covariates))


def _folds(clusters: Array | None, rows: int, generator: np.random.Generator) -> tuple[Array, ...]:
    """Of rows in random order; whole groups where there are some."""
    if clusters is None:
        return tuple(np.array_split(np.arange(rows), min(FOLDS, rows)))
    folds = min(FOLDS, len(np.unique(clusters)))
    return tuple(fold.numpy() for fold in fold_groups(clusters, folds=folds, generator=generator))


def _identified(rows: Rows, basis: SmoothBasis) -> bool:
    """Whether linear instruments move all treatments, beside the covariates, in ways of their own."""
    shared, weights = basis.shared, np.sqrt(rows.weights)[:, None]
    treatments = rows.structural[:, shared : shared + len(basis.treatments)] * weights
    instruments = rows.instruments[:, : shared + len(basis.instruments)] * weights
    exogenous = instruments[:, :shared]

    def projected(columns: Array, onto: Array) -> Array:
        return np.asarray(onto @ np.linalg.lstsq(onto, columns, rcond=None)[0])

    if shared >= len(treatments):
        return False
    own = treatments - projected(treatments, exogenous)
    moved = projected(own, instruments)
    basis_of_own, triangle = np.linalg.qr(own)
    if np.abs(np.diag(triangle)).min(initial=1.0) < 1e-10 * np.sqrt(len(own)):
        return False
    correlations = np.linalg.svd(basis_of_own.T @ moved @ np.linalg.inv(triangle), compute_uv=False)
    return bool(correlations.min() > UNMOVED)
