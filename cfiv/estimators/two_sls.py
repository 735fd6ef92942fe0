"""Two-stage least squares, the linear comparator with instruments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cfiv.data import IVData
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.linear_regression import Covariance, CovarianceKind, Kernel, linear_regression
from cfiv.tables.columns import Missing


class TwoStageLeastSquares(StructuralEstimator):
    """Two-stage least squares: ``h(t, x) = c + a' t + b' x`` on the columns that the formula makes.

    With ``D = [1, X, T]`` and ``Q`` the projection on ``[1, X, Z]``, coefficients are ``(D' Q D)^-1 D' Q Y`` (row-weighted
    where weights are named). Nonlinear terms come from the formula, in treatment, instruments and covariates:
    ``sales ~ time + [poly(price, 2) + price:time ~ bs(fuel, df=4) + fuel:time]``. Their knots and scales are those of the
    training table, whatever rows are predicted.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`. A formula with ``0 +`` has no constant.
    clusters : str, optional
        A column that labels groups of rows with correlated errors (``covariance="clustered"``).
    covariance : {"robust", "unadjusted", "clustered", "kernel"}
        Of the coefficients: heteroskedasticity-robust (White); homoskedastic; robust to correlation within clusters; or robust
        to heteroskedasticity and autocorrelation (HAC), for rows that are in the order of time.
    debiased : bool
        Small-sample form: residual variances divided by ``n - k`` and t instead of normal intervals.
    kernel : {"bartlett", "parzen", "qs"}
        Weights of the autocovariances in the kernel covariance; Bartlett's are those of Newey and West.
    bandwidth : int, optional
        Lags of the kernel covariance; by default chosen from the data (Newey and West 1994).

    Attributes
    ----------
    results_ : linearmodels.iv.results.IVResults
        Everything linearmodels reports, in the user's units.
    coefficients_ : DataFrame
        ``coefficient, std_error, t, p_value, lower, upper`` (95 %), one row a column.

    Raises
    ------
    ParameterError
        If an option of the covariance is unknown, or clusters are given that it does not use.
    DataError
        If there are fewer instruments than treatments, or columns are collinear.

    See Also
    --------
    cfiv.diagnose : Tests of what two-stage least squares assumes.

    References
    ----------
    Wooldridge, *Econometric Analysis of Cross Section and Panel Data*, 2nd ed., chapter 5. Computed by linearmodels' IV2SLS.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.5, seed=0)
    >>> model = TwoStageLeastSquares("sales ~ time + emotion + [price ~ fuel]").fit(train.frame)
    >>> model.coefficients_.index.tolist()
    ['Intercept', 'time', 'emotion', 'price']
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
        clusters: str | None = None,
        covariance: CovarianceKind = "robust",
        debiased: bool = False,
        kernel: Kernel = "bartlett",
        bandwidth: int | None = None,
    ) -> None:
        self.formula = formula
        self.outcome = outcome
        self.treatment = treatment
        self.instruments = instruments
        self.covariates = covariates
        self.weights = weights
        self.missing = missing
        self.clusters = clusters
        self.covariance = covariance
        self.debiased = debiased
        self.kernel = kernel
        self.bandwidth = bandwidth

    results_: Any
    coefficients_: pd.DataFrame

    def _covariance(self) -> Covariance:
        return Covariance(self.covariance, self.debiased, self.kernel, self.bandwidth)

    def _check_parameters(self) -> None:
        self._covariance()

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        regression = linear_regression(data, instrumented=True, intercept=intercept, covariance=self._covariance())
        self.results_, self.coefficients_ = regression.results, regression.coefficients
        return regression.estimate
