"""What two-stage and ordinary least squares and LIML share: all but how instruments are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pandas as pd

from cfiv.data import IVData
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.fixed_effects import within
from cfiv.estimators.linear_regression import Covariance, CovarianceKind, linear_regression
from cfiv.estimators.linear_results import LinearResults
from cfiv.estimators.small_sample import Convention
from cfiv.numerics.score_covariance import Kernel
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


class LinearEstimator(StructuralEstimator):
    """Abstract: ``h(t, x) = c + a' t + b' x`` with a covariance of its coefficients; see its subclasses."""

    _instrumented: ClassVar[bool]
    fuller: float | None = None  # a parameter of LIML, and of it alone
    _means_of = ()

    def __init__(
        self,
        formula: str | None = None,
        *,
        outcome: str | None = None,
        treatment: Names | None = None,
        instruments: Names | None = None,
        covariates: Names | None = None,
        weights: str | None = None,
        missing: Missing = "drop",
        clusters: str | Sequence[str] | None = None,
        fixed_effects: Names | None = None,
        covariance: CovarianceKind = "robust",
        debiased: Convention | None = None,
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
        self.fixed_effects = fixed_effects
        self.covariance = covariance
        self.debiased = debiased
        self.kernel = kernel
        self.bandwidth = bandwidth

    results_: LinearResults
    coefficients_: pd.DataFrame
    #: The rows of the fit in their roles, for tests of the instruments.
    observed_: IVData

    def _covariance(self) -> Covariance:
        return Covariance(self.covariance, self.debiased, self.kernel, self.bandwidth)

    def _check_parameters(self) -> None:
        self._covariance()

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        self.observed_, labels = data.without_frame(), data.row_labels
        covariance = self._covariance()
        data, absorbed = within(data)
        if labels is not None and absorbed is not None:
            labels = labels[absorbed.kept]
        covariance.check(data)
        regression = linear_regression(
            data,
            instrumented=self._instrumented,
            intercept=intercept,
            covariance=covariance,
            fuller=self.fuller,
            absorbed=absorbed,
        )
        self.results_ = replace(regression.results, fitted=replace(regression.results.fitted, row_labels=labels))
        self.coefficients_ = regression.coefficients
        return regression.estimate
