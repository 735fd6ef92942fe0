"""Linear regression on the columns that the roles make, with or without instruments; linearmodels computes it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from cfiv.checks import check_choice, check_flag, check_whole
from cfiv.data import Array, IVData
from cfiv.errors import DataError, FewClustersWarning, ParameterError
from cfiv.estimators.components import LinearComponent
from cfiv.estimators.estimator import Estimate

CovarianceKind = Literal["robust", "unadjusted", "clustered", "kernel"]
Kernel = Literal["bartlett", "parzen", "qs"]

#: Clusters from which on clustered covariances are of some use (ours; many authors ask for several times as many).
FEW_CLUSTERS = 10


@dataclass(frozen=True)
class Covariance:
    """How the covariance of coefficients is estimated; the estimators' docstrings explain the choices.

    Parameters
    ----------
    kind : {"robust", "unadjusted", "clustered", "kernel"}
    debiased : bool
    kernel : {"bartlett", "parzen", "qs"}
    bandwidth : int or None

    Raises
    ------
    ParameterError
        If an option is unknown or out of range, or a bandwidth is given that nothing would use.
    """

    kind: CovarianceKind = "robust"
    debiased: bool = False
    kernel: Kernel = "bartlett"
    bandwidth: int | None = None

    def __post_init__(self) -> None:
        check_choice("covariance", self.kind, ("robust", "unadjusted", "clustered", "kernel"))
        check_choice("kernel", self.kernel, ("bartlett", "parzen", "qs"))
        check_flag("debiased", self.debiased)
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
            if len(np.unique(data.clusters)) < 2:
                raise DataError("covariance='clustered' needs at least 2 clusters, got 1: use another covariance")
            warn_of_few_clusters(data.clusters)
        elif data.clusters is not None:
            raise ParameterError(
                f"clusters are given, but covariance={self.kind!r} does not use them: set covariance='clustered' or leave "
                "them out"
            )
        if self.bandwidth is not None and self.bandwidth >= len(data):
            raise ParameterError(f"bandwidth must be less than the {len(data)} rows, got {self.bandwidth}")

    def options(self, data: IVData) -> dict[str, Any]:
        """As linearmodels takes it."""
        options: dict[str, Any] = {"cov_type": self.kind, "debiased": bool(self.debiased)}
        if self.kind == "clustered":
            options["clusters"] = data.clusters
        if self.kind == "kernel":
            options |= {"kernel": self.kernel, "bandwidth": None if self.bandwidth is None else int(self.bandwidth)}
        return options


def warn_of_few_clusters(clusters: Array) -> None:
    """Warn below ``FEW_CLUSTERS``: the covariance is an average over clusters, and of few it is far too small.

    Warns
    -----
    FewClustersWarning
    """
    count = len(np.unique(clusters))
    if count < FEW_CLUSTERS:
        warnings.warn(
            f"there are {count} clusters, and clustered standard errors rest on many (some {FEW_CLUSTERS} at least): they are "
            "likely too small, so use finer clusters or do not rely on them",
            FewClustersWarning,
            stacklevel=5,
        )


@dataclass(frozen=True)
class Regression:
    """A linear regression and what came of it.

    Parameters
    ----------
    results : linearmodels.iv.results.IVResults or OLSResults
    coefficients : DataFrame
        One row a column of ``[1, X, T]``.
    estimate : Estimate
    """

    results: Any
    coefficients: pd.DataFrame
    estimate: Estimate


def linear_regression(data: IVData, *, instrumented: bool, intercept: bool, covariance: Covariance) -> Regression:
    """``h(t, x) = c + a' t + b' x`` by two-stage or by ordinary least squares.

    With ``D = [1, X, T]`` and row weights ``w`` the coefficients are ``(D' Q D)^-1 D' Q Y``, ``Q`` the weighted projection on
    ``[1, X, Z]`` where instrumented and on everything, ``Q = diag(w)``, where not.

    Parameters
    ----------
    data : IVData
    instrumented : bool
        Two-stage least squares; ordinary least squares where False.
    intercept : bool
        Whether there is a constant.
    covariance : Covariance
        That fits the data: see :meth:`Covariance.check`.

    Returns
    -------
    Regression

    Raises
    ------
    DataError
        For images, fewer instruments than treatments, or collinear columns.
    """
    from linearmodels.iv import IV2SLS

    assert data.names is not None
    method = "two-stage least squares" if instrumented else "least squares"
    if data.treatment.ndim > 2:
        raise DataError(f"{method} takes treatment columns, got arrays of shape {data.treatment.shape[1:]}: flatten them")
    treatments, instruments = data.treatment.shape[1], data.instruments.shape[1]
    if instrumented and instruments < treatments:
        raise DataError(
            f"two-stage least squares needs at least as many instruments as treatments, got {instruments} "
            f"({', '.join(data.names['instruments'])}) for {treatments} ({', '.join(data.names['treatment'])}): "
            "add instruments or transforms of them, or drop treatment columns"
        )
    columns = treatments + int(intercept) + (0 if data.covariates is None else data.covariates.shape[1])
    if len(data) <= columns:
        raise DataError(f"{method} needs more rows than its {columns} coefficients, got {len(data)} rows")
    exogenous = _exogenous(data.covariates, rows=len(data), intercept=intercept)
    names = ["Intercept"] if intercept else []
    names += _unique(data.names.get("covariates", ()), names)
    treatment_frame = pd.DataFrame(data.treatment, columns=_unique(data.names["treatment"], names))
    exogenous_frame = pd.DataFrame(exogenous, columns=names)
    sides: tuple[pd.DataFrame | None, pd.DataFrame | None, pd.DataFrame | None]
    if instrumented:
        sides = (
            exogenous_frame if names else None,
            treatment_frame,
            pd.DataFrame(data.instruments, columns=_unique(data.names["instruments"], names)),
        )
    else:
        sides = (pd.concat([exogenous_frame, treatment_frame], axis=1), None, None)
    try:
        weights = None if data.weights is None else pd.Series(data.weights, name="weights")
        model = IV2SLS(pd.Series(data.outcome, name=data.names["outcome"][0]), *sides, weights=weights)
        results = model.fit(**covariance.options(data))
    except ValueError as error:
        advice = "drop constant or collinear columns, give columns that differ by many orders of magnitude other units"
        advice += ", or add stronger instruments" if instrumented else ""
        raise DataError(f"{method} cannot be computed: {error}; {advice}") from error
    table = _coefficient_table(results)
    values = results.params.to_numpy(dtype=np.float64)
    constant = float(values[0]) if intercept else 0.0
    component = LinearComponent(constant, values[len(names) :], values[int(intercept) : len(names)])
    facts = {
        "Covariance": _described(covariance, results),
        "R-squared": float(results.rsquared),
        "Coefficients": table.reset_index(names="column").to_dict("records"),
    }
    reduced_form = _ReducedForm(component, _first_stage(exogenous, data), intercept)
    return Regression(results, table, Estimate((component,), reduced_form, facts, pd.DataFrame()))


@dataclass(frozen=True, eq=False)
class _ReducedForm:
    """``E[h | Z, X]``: the structural function at the treatments that a linear first stage predicts."""

    component: LinearComponent
    first_stage: Array
    intercept: bool

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        exogenous = _exogenous(covariates, rows=len(instruments), intercept=self.intercept)
        predicted = np.concatenate([exogenous, instruments], axis=1) @ self.first_stage
        return self.component.evaluate(predicted, covariates)


def _exogenous(covariates: Array | None, *, rows: int, intercept: bool) -> Array:
    """``[1, X]``, shape (rows, columns), possibly with no columns."""
    ones = np.ones((rows, int(intercept)))
    return ones if covariates is None else np.concatenate([ones, covariates], axis=1)


def _first_stage(exogenous: Array, data: IVData) -> Array:
    """Coefficients of the treatment on exogenous columns and instruments, (columns, treatments)."""
    regressors = np.concatenate([exogenous, data.instruments], axis=1)
    root = np.ones(len(data)) if data.weights is None else np.sqrt(data.weights)
    coefficients: Array = np.linalg.lstsq(root[:, None] * regressors, root[:, None] * data.treatment, rcond=None)[0]
    return coefficients


def _coefficient_table(results: Any) -> pd.DataFrame:
    interval = results.conf_int()
    return pd.DataFrame(
        {
            "coefficient": results.params,
            "std_error": results.std_errors,
            "t": results.tstats,
            "p_value": results.pvalues,
            "lower": interval["lower"],
            "upper": interval["upper"],
        }
    )


def _described(covariance: Covariance, results: Any) -> str:
    text: str = covariance.kind
    config: Mapping[str, Any] = results.cov_config
    if covariance.kind == "kernel":
        text += f" ({covariance.kernel}, bandwidth {config['bandwidth']:g})"
    return f"{text}, debiased" if covariance.debiased else text


def _unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names that linearmodels can tell apart: a column of another part may carry the same name."""
    free: list[str] = []
    for name in names:
        while name in (*taken, *free):
            name += "_"
        free.append(name)
    return free
