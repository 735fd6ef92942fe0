"""Two-stage least squares, the linear comparator; linearmodels computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from cfiv.data import Array, IVData
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.components import LinearComponent
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.tables.columns import Missing

Covariance = Literal["unadjusted", "robust"]


class TwoStageLeastSquares(StructuralEstimator):
    """Two-stage least squares: ``h(t, x) = c + a' t + b' x`` on the columns that the formula makes.

    With ``D = [1, X, T]`` and ``Q`` the projection on ``[1, X, Z]``, coefficients are ``(D' Q D)^-1 D' Q Y`` (row-weighted
    where weights are named). Nonlinear terms come from the formula: ``[poly(price, 2) ~ bs(fuel, df=4)]``.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`. A formula with ``0 +`` has no constant.
    covariance : {"robust", "unadjusted"}
        Heteroskedasticity-robust (White) or homoskedastic covariance of the coefficients.

    Attributes
    ----------
    results_ : linearmodels.iv.results.IVResults
        Everything linearmodels reports, in the user's units.
    coefficients_ : DataFrame
        ``coefficient, std_error, t, p_value, lower, upper`` (95 %), one row a column.

    Raises
    ------
    DataError
        If there are fewer instruments than treatments, or columns are collinear.

    References
    ----------
    Wooldridge, *Econometric Analysis of Cross Section and Panel Data*, 2nd ed., chapter 5. Computed by linearmodels' IV2SLS.
    """

    def __init__(
        self,
        formula: str | None = None,
        *,
        outcome: str | None = None,
        treatment: str | Sequence[str] | None = None,
        instruments: str | Sequence[str] | None = None,
        covariates: str | Sequence[str] | None = None,
        weights: str | None = None,
        missing: Missing = "drop",
        covariance: Covariance = "robust",
    ) -> None:
        self.formula = formula
        self.outcome = outcome
        self.treatment = treatment
        self.instruments = instruments
        self.covariates = covariates
        self.weights = weights
        self.missing = missing
        self.covariance = covariance

    results_: Any
    coefficients_: pd.DataFrame

    def _check_parameters(self) -> None:
        if self.covariance not in ("robust", "unadjusted"):
            raise ParameterError(f"covariance must be 'robust' or 'unadjusted', got {self.covariance!r}")

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        from linearmodels.iv import IV2SLS

        assert data.names is not None
        if data.treatment.ndim > 2:
            raise DataError(
                f"two-stage least squares takes treatment columns, got arrays of shape {data.treatment.shape[1:]}: flatten them"
            )
        treatments, instruments = data.treatment.shape[1], data.instruments.shape[1]
        if instruments < treatments:
            raise DataError(
                f"two-stage least squares needs at least as many instruments as treatments, got {instruments} "
                f"({', '.join(data.names['instruments'])}) for {treatments} ({', '.join(data.names['treatment'])}): "
                "add instruments or transforms of them, or drop treatment columns"
            )
        exogenous = _exogenous(data.covariates, rows=len(data), intercept=intercept)
        names = (["Intercept"] if intercept else []) + list(data.names.get("covariates", ()))
        weights = None if data.weights is None else pd.Series(data.weights, name="weights")
        try:
            model = IV2SLS(
                pd.Series(data.outcome, name=data.names["outcome"][0]),
                pd.DataFrame(exogenous, columns=names) if names else None,
                pd.DataFrame(data.treatment, columns=_unique(data.names["treatment"], names)),
                pd.DataFrame(data.instruments, columns=_unique(data.names["instruments"], names)),
                weights=weights,
            )
            self.results_ = model.fit(cov_type=self.covariance)
        except ValueError as error:
            raise DataError(
                f"two-stage least squares cannot be computed: {error}; drop constant or collinear columns, or add stronger "
                "instruments"
            ) from error
        self.coefficients_ = _coefficient_table(self.results_)
        values = self.results_.params.to_numpy(dtype=np.float64)
        constant = float(values[0]) if intercept else 0.0
        covariates, treatment = values[int(intercept) : len(names)], values[len(names) :]
        reduced_form = _ReducedForm(constant, covariates, treatment, _first_stage(exogenous, data), intercept)
        facts = {
            "Covariance": self.covariance,
            "R-squared": float(self.results_.rsquared),
            "Coefficients": self.coefficients_.reset_index(names="column").to_dict("records"),
        }
        component = LinearComponent(constant, treatment, covariates)
        return Estimate((component,), reduced_form, facts, pd.DataFrame())


@dataclass(frozen=True, eq=False)
class _ReducedForm:
    """``E[h | Z, X]``: the structural function at the treatments that the first stage predicts."""

    constant: float
    covariates: Array
    treatment: Array
    first_stage: Array
    intercept: bool

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        exogenous = _exogenous(covariates, rows=len(instruments), intercept=self.intercept)
        predicted = np.concatenate([exogenous, instruments], axis=1) @ self.first_stage
        fitted: Array = self.constant + predicted @ self.treatment
        return fitted if covariates is None else fitted + covariates @ self.covariates


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


def _unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names that linearmodels can tell apart: a column of another part may carry the same name."""
    return [f"{name}_" if name in taken else name for name in names]
