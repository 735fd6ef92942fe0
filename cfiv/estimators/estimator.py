"""What all estimators share: roles in, a structural function out, and thin calls on it."""

from __future__ import annotations

import abc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, overload

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone

from cfiv.data import Array, IVData
from cfiv.errors import DataError, FormulaWarning, NotFittedError, ParameterError, WorthlessFitWarning, warn
from cfiv.estimators.components import Component
from cfiv.estimators.structural import StructuralFunction
from cfiv.estimators.summary import Summary
from cfiv.estimators.support import Support
from cfiv.estimators.trust import Trust
from cfiv.estimators.units import exponents, in_unit
from cfiv.memory import within_memory
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.tables.columns import Missing
from cfiv.tables.encoder import Encoder
from cfiv.tables.encoding import encode
from cfiv.tables.roles import Names, Roles, read_roles
from cfiv.tables.stored import count_given


@dataclass(frozen=True, eq=False)
class Estimate:
    """What an estimator's own part of ``fit`` returns.

    Parameters
    ----------
    components : tuple of Component
        Functions whose average is the structural function.
    reduced_form : callable
        ``(instruments, covariates) -> array (n,)``: the estimate of ``E[h(T, X) | Z, X]``, for the held-out criterion.
    facts : dict
        For the summary.
    history : DataFrame
        One row a check of training; empty for estimators that do not iterate.
    penalties : mapping from a name to one value a component
        Those that the fit chose by itself, such as by held-out losses; empty where it chose none.
    interrupted : bool
        Whether Ctrl-C cut the fit short; what there was is usable.
    shares : tuple of float
        What each component counts for; none where all count alike.
    trust : Trust or None
        What the fit knows of its worth, where it knows anything.
    """

    components: tuple[Component, ...]
    reduced_form: Callable[[Array, Array | None], Array]
    facts: dict[str, Any]
    history: pd.DataFrame
    penalties: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    interrupted: bool = False
    shares: tuple[float, ...] = ()
    trust: Trust | None = None


class StructuralEstimator(BaseEstimator, abc.ABC):  # type: ignore[misc]  # scikit-learn ships no types
    """Abstract: an estimator of ``h`` in ``Y = h(T, X) + e``, ``E[e | Z, X] = 0``. Follows scikit-learn's protocol.

    Subclasses take the role arguments ``formula, outcome, treatment, instruments, covariates, weights, missing, clusters`` and
    their own hyper-parameters in the constructor, and implement ``_check_parameters`` and ``_estimate``.
    """

    #: Roles whose group means are covariates in the place of fixed effects (those that count as exogenous); none of estimators
    #: that absorb them, whose clusters may be of two kinds.
    _means_of: ClassVar[tuple[str, ...]] = ("instruments", "covariates")
    #: What to do where there is not enough memory to fit.
    _SMALLER = "fit fewer rows, or fewer columns"

    formula: str | None
    outcome: str | None
    treatment: Names | None
    instruments: Names | None
    covariates: Names | None
    weights: str | None
    missing: Missing
    clusters: str | Sequence[str] | None

    structural_function_: StructuralFunction
    history_: pd.DataFrame
    chosen_penalties_: dict[str, tuple[float, ...]]
    interrupted_: bool
    fit_seconds_: float
    n_rows_: int
    trust_: Trust

    def fit(self, data: Any, y: None = None) -> Self:
        """Estimate the structural function.

        Parameters
        ----------
        data : table, path or IVData
            A pandas, polars or other narwhals-readable table for estimators with a formula or column names; an IVData of arrays
            for those without. A path names a Parquet file or a folder of them: its columns are set down on disk and read block
            by block, which a table larger than memory needs.
        y : None
            There for scikit-learn, which gives None where it has no targets; the outcome is one of the roles in ``data``.

        Returns
        -------
        self
            With ``structural_function_``, ``history_``, ``chosen_penalties_`` (by name, one value a function averaged),
            ``interrupted_`` (whether Ctrl-C cut the fit short) and ``fit_seconds_``.

        Raises
        ------
        DataError, FormulaError, ParameterError
            For bad data, roles or hyper-parameters, before anything is computed.
        TooLargeError
            If there is not enough memory.
        """
        return self._fit(data, y)

    def _fit(self, data: Any, y: None, prepare: Callable[[], Mapping[str, Any]] = dict) -> Self:
        """What every ``fit`` does; ``prepare``, called on checked hyper-parameters, gives what ``_estimate`` takes besides."""
        started = time.perf_counter()
        refuse_target(y)
        self._check_parameters()
        more = prepare()
        device = resolve_device(getattr(self, "device", "cpu"))
        with within_memory(f"{type(self).__name__}.fit", self._SMALLER), ordinary_torch(device=device):
            encoder, arrays = self.encode(data)
            self._check_panel(arrays)
            arrays = arrays.with_positive_weight()
            arrays.check_fittable()
            arrays.release()
            estimate = self._estimate(arrays, intercept=encoder.intercept, **more)
            support = Support.of(arrays)
            arrays.release()
        given = count_given(data)
        left_out = 0 if given is None else given - len(arrays)
        return self._keep(estimate, encoder, arrays, support, started, left_out=left_out)

    def _keep(
        self,
        estimate: Estimate,
        encoder: Encoder,
        arrays: IVData,
        support: Support | None,
        started: float,
        *,
        left_out: int,
    ) -> Self:
        """Keep what later questions need."""
        assert arrays.names is not None
        worth, rows = {}, {"Rows": len(arrays)}
        if left_out:  # for gaps, or a weight of zero
            rows["Rows left out"] = left_out
        if estimate.trust is not None:
            self.trust_, worth = estimate.trust, {"Trust": str(estimate.trust)}
            if not self.trust_.trusted:
                warn(f"the estimate is {self.trust_}", WorthlessFitWarning)
        function = StructuralFunction(
            estimator=type(self).__name__,
            components=estimate.components,
            encoder=encoder,
            outcome=arrays.names["outcome"][0],
            facts={**rows, **estimate.facts, **worth},
            shares=estimate.shares,
            support=support,
        )
        self.structural_function_ = function.aware_of_bounds(arrays)
        self.history_ = estimate.history
        self.chosen_penalties_ = dict(estimate.penalties)
        self.interrupted_ = estimate.interrupted
        self._reduced_form = estimate.reduced_form
        self._instruments = arrays.instruments.shape[1]
        self.n_rows_ = len(arrays)
        self.fit_seconds_ = time.perf_counter() - started
        return self

    def predict(self, rows: Any = None, *, treatment: Any = None, covariates: Any = None) -> Array:
        """``h`` at given treatments and covariates, shape (n,); see :meth:`StructuralFunction.predict`."""
        return self._fitted().predict(rows, treatment=treatment, covariates=covariates)

    @overload
    def effect(self, rows: Any = None, *, treatment_from: Any, treatment_to: Any, by: None = None) -> Array: ...

    @overload
    def effect(self, rows: Any = None, *, treatment_from: Any, treatment_to: Any, by: Any) -> pd.DataFrame: ...

    def effect(self, rows: Any = None, *, treatment_from: Any, treatment_to: Any, by: Any = None) -> Array | pd.DataFrame:
        """``h(treatment_to, x) - h(treatment_from, x)`` at each row, or by group; see :meth:`StructuralFunction.effect`."""
        asked = {"treatment_from": treatment_from, "treatment_to": treatment_to, "by": by}
        found: Array | pd.DataFrame = self._fitted().effect(rows, **asked)
        return found

    def dose_response(self, grid: Any, rows: Any = None) -> pd.DataFrame:
        """``h`` against treatment, averaged over covariates; see :meth:`StructuralFunction.dose_response`."""
        return self._fitted().dose_response(grid, rows)

    def supported(self, rows: Any = None, *, treatment: Any = None, covariates: Any = None) -> Array:
        """Whether training has seen such treatments, shape (n,), bool; see :meth:`StructuralFunction.supported`."""
        return self._fitted().supported(rows, treatment=treatment, covariates=covariates)

    def score(self, data: Any, y: None = None) -> float:
        """Held-out stage-2 criterion: the share of the outcome's variance that ``E[h(T, X) | Z, X]`` explains.

        ``1 - sum_i w_i (Y_i - Ê[h | Z_i, X_i])^2 / sum_i w_i (Y_i - mean Y)^2``, which needs no truth. It compares estimators
        and hyper-parameters on the same rows (higher is better); its level is bounded by how much the instruments explain, not
        by one.

        Parameters
        ----------
        data : table, path or IVData
            Rows with all roles that the fit did not see.
        y : None
            As for :meth:`fit`.
        """
        refuse_target(y)
        arrays = self._fitted().encoder.observations(data, missing=self.missing)
        if arrays.fixed_effects is not None:
            raise ParameterError(
                "score predicts outcomes, and those of other rows need fixed effects that nothing is known of: compare "
                "estimators without them, or by results_.rsquared_within"
            )
        arrays.check_observed("scoring")
        if arrays.instruments.shape[1] != self._instruments:
            raise DataError(
                f"training had {self._instruments} instrument columns, got {arrays.instruments.shape[1]}: give "
                f"instruments=array of shape (n, {self._instruments})"
            )
        if (arrays.outcome == arrays.outcome[0]).all():
            raise DataError(
                f"the outcome is the same in all {len(arrays)} rows, so no share of its variance can be explained: score "
                "rows in which it varies"
            )
        weights = np.ones(len(arrays)) if arrays.weights is None else in_unit(arrays.weights, exponents(arrays.weights))
        with within_memory(f"{type(self).__name__}.score", "score fewer rows"), ordinary_torch():
            predicted = self._reduced_form(arrays.instruments, arrays.covariates)
        unit = exponents(arrays.outcome)  # in which no square vanishes or overflows
        outcome = in_unit(arrays.outcome, unit)
        centre = np.average(outcome, weights=weights)
        with np.errstate(over="ignore", invalid="ignore"):  # said below
            errors = outcome - in_unit(predicted, unit)
            score = float(1.0 - np.average(errors**2, weights=weights) / np.average((outcome - centre) ** 2, weights=weights))
        if not math.isfinite(score):
            raise DataError(
                f"the score is {score}: at these rows the predictions are not finite, or out of all proportion to the outcome; "
                "score rows that resemble those of training"
            )
        return score

    def summary(self) -> Summary:
        """What was estimated, how, and from what; text in a terminal, a table in a notebook."""
        return self._fitted().summary()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the structural function to a model file; see :meth:`StructuralFunction.save` and :func:`cfiv.load`."""
        self._fitted().save(path)

    @abc.abstractmethod
    def _check_parameters(self) -> None:
        """Raise a ParameterError for hyper-parameters out of range."""

    @abc.abstractmethod
    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        """Estimate from arrays in the user's units; ``intercept`` is False where the formula takes the constant away."""

    def _estimate_parts(
        self, data: IVData, parts: Sequence[Array], seeds: Sequence[int], *, intercept: bool
    ) -> Sequence[Estimate]:
        """Estimates of parts of the rows, by their numbers, each with a seed; for what compares them, not for users."""
        return [
            clone(self).set_params(random_state=seed)._estimate(data.take(rows), intercept=intercept)
            for rows, seed in zip(parts, seeds, strict=True)
        ]

    def encode(self, data: Any) -> tuple[Encoder, IVData]:
        """The data in their roles, as :meth:`fit` takes them: gaps dropped, transforms learned; the estimator is not changed.

        Parameters
        ----------
        data : table, path or IVData

        Returns
        -------
        encoder : Encoder
            Turns later rows into the same arrays.
        arrays : IVData

        Raises
        ------
        DataError, FormulaError
            For bad data or roles.
        """
        return encode(data, self._roles(), reader=type(self).__name__, missing=self.missing, means_of=self._means_of)

    def check(self) -> None:
        """Whether some data could be fitted; :meth:`fit` asks the same first.

        Raises
        ------
        FormulaError, ParameterError
            For roles that cannot be read, or hyper-parameters out of range.
        """
        self._check_parameters()
        self._roles()

    def _roles(self) -> Roles | None:
        """By the formula or the names that were given; None where arrays have their own."""
        return read_roles(
            self.formula,
            outcome=self.outcome,
            treatment=self.treatment,
            instruments=self.instruments,
            covariates=self.covariates,
            weights=self.weights,
            clusters=self.clusters,
            fixed_effects=getattr(self, "fixed_effects", None),
        )

    def _check_panel(self, data: IVData) -> None:
        """Raise for fixed effects of arrays, and for two kinds of clusters, where the estimator does not take them."""
        if not self._means_of:
            return
        if data.fixed_effects is not None:
            raise ParameterError(
                f"{type(self).__name__} has group means in the place of fixed effects, and finds them again by the labels of a "
                "table: fit a table with 'y ~ x + [t ~ z] | firm'"
            )
        if data.clusters is not None and data.clusters.ndim > 1:
            raise ParameterError(
                f"{type(self).__name__} splits rows by one kind of clusters, got two: give the coarser, and both to cfiv.infer"
            )

    def _fitted(self) -> StructuralFunction:
        function: StructuralFunction | None = getattr(self, "structural_function_", None)
        if function is None:
            raise NotFittedError(f"this {type(self).__name__} has not been fitted: call fit(data) first")
        return function


def refuse_target(y: object) -> None:
    """Raise a ParameterError for targets beside the data, as scikit-learn's regressors take them: they would be ignored."""
    if y is not None:
        raise ParameterError(
            f"the outcome is one of the roles of the data, got it as y besides ({type(y).__name__}): fit an IVData(outcome=y, "
            "treatment=..., instruments=...) of arrays, or a table that has it as a column, by a formula or outcome='column'"
        )


def warn_of_learned_constant(estimator: object) -> None:
    """Warn that a formula without a constant does not take it from learned features.

    Warns
    -----
    FormulaWarning
    """
    warn(
        f"the formula takes the constant away, but the features of {type(estimator).__name__} carry one all the same; only "
        "TwoStageLeastSquares, LIML and LeastSquares fit without one",
        FormulaWarning,
    )
