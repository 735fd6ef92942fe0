"""The smooth model: a line, and what departs from it as far as the data speak for it; in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cfiv.data import Array, IVData
from cfiv.estimators.components import SmoothComponent
from cfiv.estimators.linear_regression import FEW_CLUSTERS
from cfiv.estimators.units import Standardiser
from cfiv.learning.samples import fold_groups
from cfiv.mapped import release
from cfiv.numerics.penalised_iv import Moments, Penalties, Rows, choose_penalties
from cfiv.numerics.sieve_basis import BLOCK, in_blocks
from cfiv.numerics.smooth_basis import Part, SmoothBasis

#: Rows that penalties are chosen on, and rows that knots, lines and centres are of; coefficients are of all rows.
CHOICE_ROWS, BASIS_ROWS = 20_000, 200_000
FOLDS = 5
#: Observations that columns must leave for an F.
SPARE = 5
#: Standard errors that may be chance.
CLEARLY_LEFT = 3.0
#: Shares of their mean squares from which columns are independent of others.
INDEPENDENT = 1e-8
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
    groups : array (n,) of int or None
        From 0, alike for rows of a cluster.
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
    groups: Array | None
    outcome_scale: Standardiser
    basis: SmoothBasis
    penalties: Penalties
    moments: Moments

    @classmethod
    def fit(cls, data: IVData, generator: np.random.Generator, *, products: bool, curves: bool = True) -> SmoothModel | None:
        """To columns; None where the treatments are images, or the instruments do not identify a line.

        Parameters
        ----------
        data : IVData
        generator : Generator
            Source of the folds.
        products : bool
            Whether effects may vary with covariates.
        curves : bool
            Whether it may be anything but a line.
        """
        if data.treatment.ndim > 2 or data.instruments.shape[1] < data.treatment.shape[1]:
            return None
        rows = len(data)
        weights = np.broadcast_to(1.0, rows) if data.weights is None else data.weights / data.weights.mean()
        treatments, instruments = (part.astype(np.float64, copy=False) for part in (data.treatment, data.instruments))
        covariates = np.zeros((rows, 0)) if data.covariates is None else data.covariates.astype(np.float64, copy=False)
        scale = Standardiser.fit(data.outcome[:, None], data.weights)
        outcome = scale.apply(data.outcome[:, None])[:, 0]
        data.release()
        order = generator.permutation(rows)[: max(CHOICE_ROWS, BASIS_ROWS)].copy()
        some = slice(None) if rows <= BASIS_ROWS else np.sort(order[:BASIS_ROWS])
        columns = []
        for part in (treatments, covariates, instruments):
            columns.append(part[some])
            release(part)
        basis, order = SmoothBasis.of(*columns, weights=weights[some], products=products), order[:CHOICE_ROWS]
        groups = None if data.clusters is None else np.unique(data.clusters, return_inverse=True)[1]
        sample = Rows(
            instruments=basis.instrument_columns(instruments[order], covariates[order]),
            structural=basis.structural_columns(treatments[order], covariates[order]),
            outcome=outcome[order],
            weights=weights[order],
            folds=_folds(None if groups is None else groups[order], len(order), generator),
            groups=None if groups is None else groups[order],
        )
        data.release()
        if not _identified(sample, basis):
            return None
        line = Penalties.of_line(
            instrument_parts=basis.instrument_parts,
            structural_parts=basis.structural_parts,
            shared=basis.shared,
            moved=basis.moved,
        )
        penalties = choose_penalties(sample, line) if curves else line
        empty = Moments.of(sample.instruments[:0], sample.structural[:0], outcome[:0], weights[:0])
        model = cls(
            treatments=treatments,
            covariates=covariates,
            instruments=instruments,
            outcome=outcome,
            weights=weights,
            groups=groups,
            outcome_scale=scale,
            basis=basis,
            penalties=penalties,
            moments=empty,
        )
        return replace(model, moments=model._moments())

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
        return replace(self, penalties=self.penalties.line())

    def strength(self) -> float:
        """Cragg and Donald's F: of the excluded instruments, for the direction of the treatments that they move least.

        By the lines of the instruments or by all of their columns, the larger of the two: many columns hide what one of them
        does, and a curve may do what a line does not. Homoskedastic, with rows by their weights as observations; with clusters
        the effective F of that direction, ``|Q't|^2 / tr Cov(Q't)`` with orthonormal instruments Q. nan where columns leave no
        observations, or there are fewer than ``FEW_CLUSTERS``.

        References
        ----------
        Cragg, Donald, "Testing identifiability and specification in instrumental variable models", Econometric Theory 9, 1993.
        Montiel Olea, Pflueger, "A robust test for weak instruments", Journal of Business & Economic Statistics 31, 2013.
        """
        if self.groups is not None and self.groups.max() + 1 < FEW_CLUSTERS:
            return math.nan
        shared, treatments = self.basis.shared, len(self.basis.treatments)
        columns = np.arange(shared, shared + treatments)
        exogenous = self.basis.instrument_parts == Part.COVARIATE_CURVES
        exogenous[:shared] = True
        linear = exogenous.copy()
        linear[shared : shared + len(self.basis.instruments)] = True
        without, values = self._unpredicted(columns, exogenous), []
        for used in (linear, np.ones_like(linear)):
            left, spare = self._unpredicted(columns, used), self._observations - int(used.sum())
            if spare < SPARE or np.linalg.matrix_rank(without) < treatments:
                continue
            moved, directions = np.linalg.eig(np.linalg.solve(left + 1e-12 * np.diag(np.diag(without)), without - left))
            least = int(moved.real.argmin())
            if self.groups is None:
                values.append(max(float(moved.real[least]), 0.0) * spare / max(1, self._rank(used, exogenous)))
            else:
                values.append(self._effective_f(columns, directions[:, least].real, used=used, exogenous=exogenous))
        return max(values, default=math.nan)

    def _effective_f(self, columns: Array, direction: Array, *, used: Array, exogenous: Array) -> float:
        """Of some instrument columns beside the exogenous ones, for a direction of some structural columns, with clusters."""
        excluded = used & ~exogenous
        without, left, scale = self._beside(used, exogenous)
        values, vectors = np.linalg.eigh(left)
        kept = values > INDEPENDENT
        orthonormal = vectors[:, kept] / scale[:, None] / np.sqrt(values[kept])
        treatment = self.moments.cross[:, columns] @ direction
        products = orthonormal.T @ (treatment[excluded] - without.T @ treatment[exogenous])
        predicted = _solved(self.moments.gram[np.ix_(used, used)], treatment[used])

        def scores(part: Array) -> Array:
            z = self.basis.instrument_columns(self.instruments[part], self.covariates[part])
            t = self.basis.structural_columns(self.treatments[part], self.covariates[part])[:, columns] @ direction
            errors = self.weights[part] * (t - z[:, used] @ predicted)
            return np.asarray((z[:, excluded] - z[:, exogenous] @ without) @ orthonormal * errors[:, None])

        noise = float(np.trace(self._products(scores))) / len(self.outcome)
        return float(products @ products) / noise if noise > 0 else math.inf

    def noise(self) -> float:
        """How much of what the treatment does to ``h`` over the rows is sampling noise: variance of estimate over its own.

        With ``a`` the columns that treatments have a part in, of mean zero, and the robust covariance of their coefficients,
        ``mean_i a_i' Cov(u_a) a_i / mean_i (a_i' u_a)^2``. Penalties count as given.
        """
        variance, signal = self._treatment_part()
        return variance / signal if signal > 0 else math.inf

    def left(self, function: Array) -> float:
        """How large the line in the treatments is that explains ``Y - h``, less three standard errors.

        The root of its mean square over the rows, in standard deviations of the outcome; 0 where it is within three standard
        errors of nothing.

        Parameters
        ----------
        function : array (n,)
            ``h`` at the rows, in the outcome's units.
        """
        rest = replace(self, outcome=self.outcome - self.outcome_scale.apply(function[:, None])[:, 0]).line()
        rest = replace(rest, moments=rest._moments())
        error, size = (math.sqrt(max(part, 0.0)) for part in rest._treatment_part())
        return max(0.0, size - CLEARLY_LEFT * error)

    def _treatment_part(self) -> tuple[float, float]:
        """``mean_i a_i' Cov(u_a) a_i``, infinite where columns leave no observation, and ``mean_i (a_i' u_a)^2``."""
        first_stage, coefficients = self._coefficients()
        scores = self._scores(first_stage, coefficients)
        penalties = self.penalties.diagonal
        kept = np.isfinite(penalties)
        columns, own = self.basis.moved & kept, np.ix_(kept, kept)
        inverse = np.zeros((len(kept), len(kept)))
        inverse[own] = np.linalg.pinv((first_stage.T @ self.moments.cross)[own] + np.diag(penalties[kept]))
        spare, factor = self._observations - int(kept.sum()), 1.0
        if self.groups is not None:
            clusters = int(self.groups.max()) + 1
            factor = clusters / (clusters - 1) if clusters > 1 else math.inf
        covariance = (inverse @ scores @ inverse.T)[np.ix_(columns, columns)] / len(self.outcome)
        means = self.moments.structural[0]  # the first column is the constant
        spread = (self.moments.structural - np.outer(means, means))[np.ix_(columns, columns)]
        variance = float((covariance * spread).sum()) * factor * self._observations / spare if spare >= 1 else math.inf
        return variance, float(coefficients[columns] @ spread @ coefficients[columns])

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
        # Not by V: instruments that are shrunk, or left out, cost stage 2 nothing but precision, and a prediction its size.
        return SmoothReducedForm(self.basis, self.penalties.projected(self.moments, coefficients), self.outcome_scale)

    def _coefficients(self) -> tuple[Array, Array]:
        """V and u."""
        first_stage = self.penalties.first_stage(self.moments)
        return first_stage, self.penalties.second_stage(self.moments, first_stage)

    @property
    def _observations(self) -> float:
        """Rows: as many of equal weight as have the same say."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())

    def _unpredicted(self, columns: Array, instruments: Array) -> Array:
        """Mean products (k, k) of what some instrument columns leave of structural columns."""
        gram, cross = self.moments.gram[np.ix_(instruments, instruments)], self.moments.cross[np.ix_(instruments, columns)]
        return np.asarray(self.moments.structural[np.ix_(columns, columns)] - cross.T @ _solved(gram, cross))

    def _rank(self, used: Array, exogenous: Array) -> int:
        """How many of the excluded instrument columns are independent of one another and of the exogenous ones."""
        return int((np.linalg.eigvalsh(self._beside(used, exogenous)[1]) > INDEPENDENT).sum())

    def _beside(self, used: Array, exogenous: Array) -> tuple[Array, Array, Array]:
        """The excluded instrument columns beside the exogenous ones.

        Their coefficients on those, mean products of what is left in units of their own root mean squares, and these.
        """
        gram, excluded = self.moments.gram, used & ~exogenous
        cross = gram[np.ix_(exogenous, excluded)]
        without = _solved(gram[np.ix_(exogenous, exogenous)], cross)
        scale = np.sqrt(np.maximum(np.diag(gram)[excluded], np.finfo(float).tiny))
        return without, (gram[np.ix_(excluded, excluded)] - cross.T @ without) / np.outer(scale, scale), scale

    def _scores(self, first_stage: Array, coefficients: Array) -> Array:
        """``mean_i v_i e_i^2 v_i'``, of clusters those of the sums over their rows."""

        def scores(part: Array) -> Array:
            covariates = self.covariates[part]
            errors = self.outcome[part] - self.basis.structural_columns(self.treatments[part], covariates) @ coefficients
            predicted = self.basis.instrument_columns(self.instruments[part], covariates) @ first_stage
            return np.asarray(predicted * (self.weights[part] * errors)[:, None])

        return self._products(scores)

    def _products(self, scores: Callable[[Array], Array]) -> Array:
        """``mean_i s_i s_i'`` of scores that are given a block of rows, over up to ``CHOICE_ROWS`` rows, evenly spread.

        With clusters over all rows, of the sums of each: of some of their rows they would agree less.
        """
        count = len(self.outcome) if self.groups is not None else min(CHOICE_ROWS, len(self.outcome))
        rows = np.unique(np.linspace(0, len(self.outcome) - 1, count).astype(int))
        many = max(1, BLOCK // (len(self.basis.structural_parts) + len(self.basis.instrument_parts)))
        blocks = (rows[start : start + many] for start in range(0, len(rows), many))
        if self.groups is None:
            found = np.concatenate([scores(part) for part in blocks])
        else:
            sums: Any = 0.0
            clusters = int(self.groups.max()) + 1
            for part in blocks:
                codes = self.groups[part]
                sums += np.stack([np.bincount(codes, column, minlength=clusters) for column in scores(part).T], axis=1)
            found = sums
        return np.asarray(found.T @ found / len(rows))

    def _moments(self, rows: Array | None = None) -> Moments:
        """Of some rows, or of all."""
        parts = list(self._blocks(rows))
        return sum(parts[1:], start=parts[0])

    def _blocks(self, rows: Array | None) -> Iterator[Moments]:
        many = max(1, BLOCK // (len(self.basis.structural_parts) + len(self.basis.instrument_parts)))
        for start in range(0, max(1, len(self.outcome if rows is None else rows)), many):
            block = slice(start, start + many)
            part = block if rows is None else rows[block]
            covariates = self.covariates[part]
            yield Moments.of(
                self.basis.instrument_columns(self.instruments[part], covariates),
                self.basis.structural_columns(self.treatments[part], covariates),
                self.outcome[part],
                self.weights[part],
            )
            release(self.treatments, self.covariates, self.instruments)


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


def _solved(gram: Array, right: Array) -> Array:
    """Coefficients on columns that may be collinear, of their mean products (k, k) and those with others (k, ...)."""
    small = 1e-10 * np.diag(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
    return np.asarray(np.linalg.solve(gram + small, right))
