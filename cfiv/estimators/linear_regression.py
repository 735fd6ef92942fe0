"""Linear regression on the columns that the roles make, with or without instruments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cfiv.checks import check_choice, check_whole
from cfiv.data import Array, IVData
from cfiv.errors import DataError, FewClustersWarning, ParameterError, warn
from cfiv.estimators.components import LinearComponent
from cfiv.estimators.estimator import Estimate
from cfiv.estimators.fixed_effects import Absorbed
from cfiv.estimators.instrumented_fit import instrumented_fit
from cfiv.estimators.linear_blocks import LinearBlocks, lies_on_disk
from cfiv.estimators.linear_columns import (
    ProblemColumns,
    check_independent,
    check_number_of_instruments,
    check_relevance,
    warn_of_condition,
    warn_of_offsets,
)
from cfiv.estimators.linear_inference import fitted_regression
from cfiv.estimators.linear_reduced_form import LinearFirstStage, LinearReducedForm
from cfiv.estimators.linear_results import LeastSquaresResults, LinearResults
from cfiv.estimators.small_sample import NAMES, Convention, SmallSample
from cfiv.estimators.two_stage_results import TwoStageResults
from cfiv.mapped import release
from cfiv.numerics.linear_iv import least_squares
from cfiv.numerics.score_covariance import Kernel

CovarianceKind = Literal["robust", "unadjusted", "clustered", "kernel"]

#: Clusters from which on clustered covariances are of some use (ours; many authors ask for several times as many).
FEW_CLUSTERS = 10


@dataclass(frozen=True)
class Covariance:
    """How the covariance of coefficients is estimated; the estimators' docstrings explain the choices.

    Parameters
    ----------
    kind : {"robust", "unadjusted", "clustered", "kernel"}
    debiased : {False, True, "fixest", "stata"} or None
        None for "fixest" with fixed effects, and False without.
    kernel : {"bartlett", "parzen", "qs"}
    bandwidth : int or None

    Raises
    ------
    ParameterError
        If an option is unknown or out of range, or a bandwidth is given that nothing would use.
    """

    kind: CovarianceKind = "robust"
    debiased: Convention | None = None
    kernel: Kernel = "bartlett"
    bandwidth: int | None = None

    def __post_init__(self) -> None:
        check_choice("covariance", self.kind, ("robust", "unadjusted", "clustered", "kernel"))
        check_choice("kernel", self.kernel, ("bartlett", "parzen", "qs"))
        if self.debiased is not None and not isinstance(self.debiased, (bool, np.bool_)):
            check_choice("debiased", self.debiased, NAMES, alternative="True, False or None")
        if self.kernel != "bartlett" and self.kind != "kernel":
            raise ParameterError(
                f"kernel={self.kernel!r} is for covariance='kernel', got covariance={self.kind!r}: leave it out"
            )
        if self.bandwidth is None:
            return
        check_whole("bandwidth", self.bandwidth, least=0, alternative="in lags, or None")
        if self.kind != "kernel":
            raise ParameterError(
                f"bandwidth={self.bandwidth} is for covariance='kernel', got covariance={self.kind!r}: leave it out"
            )

    def check(self, data: IVData) -> None:
        """Raise unless the data have the clusters that the covariance needs, and none that it would ignore.

        Raises
        ------
        ParameterError, DataError
            With what to give or to leave out.
        """
        if self.kind == "clustered":
            if data.clusters is None:
                raise ParameterError("covariance='clustered' needs groups of rows, got none: give clusters='column'")
            for count in group_counts(data.clusters):
                if count < 2:
                    raise DataError("covariance='clustered' needs at least 2 clusters, got 1: use another covariance")
                warn_of_few_clusters(count)
        elif data.clusters is not None:
            raise ParameterError(
                f"clusters are given, but covariance={self.kind!r} does not use them: set covariance='clustered' or leave "
                "them out"
            )
        if self.bandwidth is not None and self.bandwidth >= len(data):
            raise ParameterError(f"bandwidth must be less than the {len(data)} rows, got {self.bandwidth}")

    def small_sample(self, absorbed: Absorbed | None, *, rows: int, coefficients: int, clusters: Array | None) -> SmallSample:
        """The factors of a regression with so many coefficients, its constant included."""
        convention = self.debiased
        if convention is None:
            convention = "fixest" if absorbed is not None else False
        clustered = self.kind == "clustered"
        counted = absorbed.counted(convention, clustered=clustered) if absorbed is not None and convention else 0
        groups = group_counts(clusters) if clustered and clusters is not None else ()
        return SmallSample(
            convention=convention if isinstance(convention, str) else bool(convention),
            rows=rows,
            parameters=coefficients + counted,
            groups=groups,
        )


def group_counts(clusters: Array) -> tuple[int, ...]:
    """How many clusters there are of each kind, of codes (n,) or (n, kinds) from 0."""
    return tuple(int(np.count_nonzero(np.bincount(codes))) for codes in clusters.reshape(len(clusters), -1).T)


def warn_of_few_clusters(count: int) -> None:
    """Warn below ``FEW_CLUSTERS``: the covariance is an average over clusters, and of few it is far too small.

    Warns
    -----
    FewClustersWarning
    """
    if count < FEW_CLUSTERS:
        warn(
            f"there are {count} clusters, and clustered standard errors rest on many (some {FEW_CLUSTERS} at least): they are "
            "likely too small, so use finer clusters or do not rely on them",
            FewClustersWarning,
        )


@dataclass(frozen=True)
class Regression:
    """A linear regression and what came of it.

    Parameters
    ----------
    results : TwoStageResults or LeastSquaresResults
    coefficients : DataFrame
        One row a column of ``[1, X, T]``.
    estimate : Estimate
    """

    results: LinearResults
    coefficients: pd.DataFrame
    estimate: Estimate


def linear_regression(
    data: IVData,
    *,
    instrumented: bool,
    intercept: bool,
    covariance: Covariance,
    absorbed: Absorbed | None = None,
    fuller: float | None = None,
) -> Regression:
    """``h(t, x) = c + a' t + b' x`` by two-stage or by ordinary least squares, or by LIML.

    With ``D = [1, X, T]`` and row weights ``w`` the coefficients are ``(D' Q D)^-1 D' Q Y``, ``Q`` the weighted projection on
    ``[1, X, Z]`` where instrumented and on everything, ``Q = diag(w)``, where not; of LIML ``kappa`` times the projection less
    ``(kappa - 1) diag(w)``. They are computed from orthonormal bases of columns that are centred, where a constant lies in the
    span of ``[1, X]``, and scaled: :mod:`cfiv.numerics.linear_iv`.

    Parameters
    ----------
    data : IVData
    instrumented : bool
        Two-stage least squares or LIML; ordinary least squares where False.
    intercept : bool
        Whether there is a constant.
    covariance : Covariance
        That fits the data: see :meth:`Covariance.check`.
    absorbed : Absorbed, optional
        What was taken out of the data before.
    fuller : float or None
        Fuller's constant, 0 for LIML itself; None for least squares, in two stages or in one.

    Returns
    -------
    Regression

    Raises
    ------
    DataError
        For images, fewer instruments than treatments, collinear columns, instruments that do not move a treatment, or no LIML.

    Warns
    -----
    IllConditionedWarning
        Where few digits of coefficients can be trusted, with the columns' names.
    """
    _check_shapes(data, instrumented=instrumented, intercept=intercept, absorbed=0 if absorbed is None else absorbed.rank - 1)
    results, instruments = _estimated(
        data, instrumented=instrumented, intercept=intercept, covariance=covariance, absorbed=absorbed, fuller=fuller
    )
    table, values = results.table, results.params.to_numpy(dtype=np.float64)
    first = len(values) - data.treatment.shape[1]
    component = LinearComponent(float(values[0]) if intercept else 0.0, values[first:], values[int(intercept) : first])
    facts = {
        **({"Kappa": f"{results.kappa:.6g}"} if isinstance(results, TwoStageResults) and fuller is not None else {}),
        **({} if absorbed is None else {"Absorbed": absorbed.describe(), "R-squared within": results.rsquared_within}),
        "Covariance": _described(covariance, results),
        "R-squared": results.rsquared,
        "Coefficients": table.reset_index(names="column").to_dict("records"),
    }
    release(results.fitted.residuals, results.fitted.outcome)
    reduced_form = LinearReducedForm(component, instruments, intercept)
    return Regression(results, table, Estimate((component,), reduced_form, facts, pd.DataFrame()))


def _estimated(
    data: IVData,
    *,
    instrumented: bool,
    intercept: bool,
    covariance: Covariance,
    absorbed: Absorbed | None,
    fuller: float | None,
) -> tuple[LinearResults, LinearFirstStage]:
    """The regression, and the treatments on exogenous columns and instruments."""
    assert data.names is not None
    covariates, own = data.names.get("covariates", ()), data.names["treatment"]
    # LIML, and two kinds of clusters, need all rows at once.
    by_blocks = lies_on_disk(data) and fuller is None and (data.clusters is None or data.clusters.ndim == 1)
    blocks = LinearBlocks(data, intercept) if by_blocks else None
    if blocks is not None and covariance.kind == "kernel":
        raise ParameterError(
            "covariance='kernel' needs the scores of all rows at once, and these lie on disk: give another covariance, or a "
            "table in memory"
        )
    columns = ProblemColumns.of(data, intercept=intercept) if blocks is None else blocks.standing_in
    exogenous, treatments, instruments = columns.exogenous, columns.treatments, columns.instruments
    check_independent(treatments, exogenous, own, role="treatment")
    outcome = columns.outcome
    warn_of_offsets(outcome, data.names["outcome"])
    if instrumented:
        check_independent(instruments, exogenous, data.names["instruments"], role="instrument")
        check_relevance(treatments, instruments, exogenous, own)
        lost = 0 if absorbed is None else absorbed.rank - 1
        fit = instrumented_fit(
            outcome, treatments=treatments, instruments=instruments, exogenous=len(exogenous.names), fuller=fuller, lost=lost
        )
    else:
        fit = least_squares(outcome.values[:, 0], basis=treatments.basis, triangle=treatments.triangle)
    warn_of_condition(fit, (*exogenous.names, *own))
    first = [*["Intercept"] * intercept, *_unique(covariates, ["Intercept"] * intercept)]
    names = _unique(own, first)
    if blocks is not None:
        fitted = blocks.fitted_regression(fit, names=(*first, *names), instrumented=instrumented, covariance=covariance)
    else:
        fitted = fitted_regression(
            fit,
            outcome=outcome,
            columns=treatments,
            exogenous=exogenous,
            names=(*first, *names),
            covariance=covariance,
            clusters=data.clusters,
            absorbed=absorbed,
        )
    first_stage = LinearFirstStage.of(columns.endogenous, instruments)
    if not instrumented:
        return LeastSquaresResults(fitted), first_stage
    results = TwoStageResults(
        fitted,
        columns=columns if blocks is None else blocks,
        treatment_names=tuple(names),
        instrument_names=tuple(_unique(data.names["instruments"], first)),
        treatment_columns=data.treatment,
        fuller=fuller,
        covariance=covariance,
        clusters=data.clusters,
        excess=fit.excess,
        absorbed=absorbed,
    )
    return results, first_stage


def _check_shapes(data: IVData, *, instrumented: bool, intercept: bool, absorbed: int) -> None:
    """Raise for images, and where there are too few instruments or rows."""
    assert data.names is not None
    method = "two-stage least squares" if instrumented else "least squares"
    if data.treatment.ndim > 2:
        raise DataError(f"{method} takes treatment columns, got arrays of shape {data.treatment.shape[1:]}: flatten them")
    treatments, instruments = data.treatment.shape[1], data.instruments.shape[1]
    if instrumented:
        check_number_of_instruments(data)
    shared = int(intercept) + absorbed + (0 if data.covariates is None else data.covariates.shape[1])
    if len(data) <= shared + treatments:
        raise DataError(f"{method} needs more rows than its {shared + treatments} coefficients, got {len(data)} rows")
    if instrumented and len(data) < shared + instruments:
        raise DataError(
            f"{method} needs as many rows as its first stage has coefficients, {shared + instruments}, got {len(data)} rows: "
            "use fewer instruments"
        )


def _described(covariance: Covariance, results: LinearResults) -> str:
    text: str = covariance.kind
    if covariance.kind == "kernel":
        text += f" ({covariance.kernel}, bandwidth {results.cov_config['bandwidth']:g})"
    return text + results.small_sample.described


def _unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names that can be told apart: a column of another part may carry the same name."""
    free: list[str] = []
    for name in names:
        while name in (*taken, *free):
            name += "_"
        free.append(name)
    return free
