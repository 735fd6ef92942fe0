"""The first stage of two-stage least squares: regressions of the treatments, and how much the instruments explain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import linalg

from cfiv.data import Array
from cfiv.errors import DataError
from cfiv.estimators.linear_columns import Columns, Exogenous
from cfiv.estimators.linear_inference import least_squares_results
from cfiv.estimators.linear_results import LeastSquaresResults
from cfiv.estimators.wald import WaldTest

#: Why linearmodels' tests are not made of columns that fixed effects were taken out of.
COUNTS_ROWS = "counts rows without what fixed effects absorb: cfiv.diagnose has it with them"

if TYPE_CHECKING:
    from cfiv.estimators.fixed_effects import Absorbed
    from cfiv.estimators.linear_regression import Covariance


@dataclass(frozen=True, eq=False)
class FirstStage:
    """Regressions of treatments on ``[1, X, Z]``.

    Parameters
    ----------
    exogenous : Exogenous
    treatments, instruments : Columns
    treatment_names, exogenous_names, instrument_names : tuple of str
    treatment_columns : array (n, k)
        In the user's units.
    covariance : Covariance
        Of the second stage; the first has the same.
    clusters : array (n,), (n, 2) or None
    absorbed : Absorbed or None
    """

    exogenous: Exogenous = field(repr=False)
    treatments: Columns = field(repr=False)
    instruments: Columns = field(repr=False)
    treatment_names: tuple[str, ...]
    exogenous_names: tuple[str, ...]
    instrument_names: tuple[str, ...]
    treatment_columns: Array = field(repr=False)
    covariance: Covariance = field(repr=False)
    clusters: Array | None = field(repr=False)
    absorbed: Absorbed | None = field(repr=False)

    @cached_property
    def individual(self) -> dict[str, LeastSquaresResults]:
        """The regression of each treatment, by its name."""
        return self._regressions(self.covariance)

    @cached_property
    def diagnostics(self) -> pd.DataFrame:
        """How strong the instruments are, one row a treatment.

        ``rsquared`` of the regression; ``partial.rsquared`` of the instruments once exogenous columns are taken out;
        ``shea.rsquared``, of what the other treatments leave besides; ``f.stat``, the F statistic that the instruments'
        coefficients are zero under the covariance of the fit, in its small-sample form whatever ``debiased`` says, its p-value
        ``f.pval`` and its distribution ``f.dist``: F(q, n - p - q), with clusters F(q, G - 1).

        Notes
        -----
        The F is that of :func:`cfiv.diagnose`, which with clusters does not count indicators of units within them. linearmodels
        gives the Wald statistic under the name, about ``q`` times as large, or with an unadjusted covariance the F without its
        small-sample factor (unless debiased).

        References
        ----------
        Shea, "Instrument relevance in multivariate linear models", *Review of Economics and Statistics* 79, 1997.
        """
        p, q = len(self.exogenous_names), len(self.instrument_names)
        regressions = self._regressions(replace(self.covariance, debiased="stata"))
        left = self.treatments.basis[:, p:] @ self.treatments.triangle[p:, p:]
        explained = self.instruments.basis[:, p:].T @ left
        # Of each treatment given the others: reciprocals of the diagonals of the inverse Gram matrices.
        total, fitted = (_reciprocal_diagonal(columns) for columns in (left, explained))
        rows = {}
        for j, (name, regression) in enumerate(regressions.items()):
            tested = slice(p, p + q)
            f = WaldTest.of(
                regression.fitted.coefficients.values[tested],
                regression.fitted.coefficients.root[tested],
                df_denom=self._denominator(regression),
                name=f"First-stage F ({name})",
                null=f"given the covariates, the instruments do not move {name}",
            )
            rows[name] = {
                "rsquared": regression.rsquared,
                "partial.rsquared": float(explained[:, j] @ explained[:, j] / (left[:, j] @ left[:, j])),
                "shea.rsquared": float(fitted[j] / total[j]),
                "f.stat": f.stat,
                "f.pval": f.pval,
                "f.dist": f.dist_name,
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def cragg_donald(self) -> WaldTest:
        """Cragg and Donald's test that a combination of treatments is not identified, chi2(q - k + 1), homoskedastic."""
        from linearmodels.iv.common import cragg_donald

        return self._rank_test(cragg_donald(*self._weighted), "Cragg-Donald")

    @property
    def cragg_donald_f(self) -> float:
        """The F form of Cragg and Donald's statistic, for Stock and Yogo's tables."""
        from linearmodels.iv.common import cragg_donald_f

        return float(cragg_donald_f(*self._weighted))

    @property
    def kleibergen_paap(self) -> WaldTest:
        """Kleibergen and Paap's rk LM test of the same under the covariance of the fit, chi2(q - k + 1)."""
        from linearmodels.iv.common import kleibergen_paap

        return self._rank_test(kleibergen_paap(*self._weighted, *self._options), "Kleibergen-Paap LM")

    @property
    def kleibergen_paap_f(self) -> float:
        """Kleibergen and Paap's rk Wald F: Cragg and Donald's under the covariance of the fit."""
        from linearmodels.iv.common import kleibergen_paap_f

        return float(kleibergen_paap_f(*self._weighted, *self._options))

    def _denominator(self, regression: LeastSquaresResults) -> int:
        """``n - p - q``, or the least number of clusters less one."""
        groups = regression.small_sample.groups
        return min(groups) - 1 if groups else regression.df_resid

    def _regressions(self, covariance: Covariance) -> dict[str, LeastSquaresResults]:
        names = (*self.exogenous_names, *self.instrument_names)
        nothing = np.zeros(len(self.treatment_columns))  # of these columns, R-squared is within
        absorbed = None if self.absorbed is None else replace(self.absorbed, outcome=nothing)
        return {
            name: least_squares_results(
                self.treatment_columns[:, j],
                columns=self.instruments,
                exogenous=self.exogenous,
                names=names,
                covariance=covariance,
                clusters=self.clusters,
                absorbed=absorbed,
            )
            for j, name in enumerate(self.treatment_names)
        }

    @property
    def _weighted(self) -> tuple[Array, Array, Array]:
        """Treatments, instruments and exogenous columns, weighted, partialled out, orthonormal or of length one."""
        if self.absorbed is not None:
            raise DataError(f"this test {COUNTS_ROWS}")
        p = len(self.exogenous_names)
        left = self.treatments.basis[:, p:] @ self.treatments.triangle[p:, p:]
        return left / np.linalg.norm(left, axis=0), self.instruments.basis[:, p:], self.instruments.basis[:, :p]

    @property
    def _options(self) -> tuple[str, dict[str, Any]]:
        options: dict[str, Any] = {}
        if self.covariance.kind == "clustered":
            options["clusters"] = self.clusters
        if self.covariance.kind == "kernel":
            options |= {"kernel": self.covariance.kernel, "bandwidth": self.covariance.bandwidth}
        return self.covariance.kind, options

    def _rank_test(self, found: Any, name: str) -> WaldTest:
        return WaldTest(
            stat=float(found.stat),
            df=int(found.df),
            df_denom=None,
            null="a combination of treatments is not identified",
            name=name,
        )


def _reciprocal_diagonal(columns: Array) -> Array:
    """``1 / [(A' A)^-1]_jj`` of columns (n, k) of full rank: squared lengths of what the other columns leave of each."""
    triangle = np.linalg.qr(columns, mode="r")
    return np.asarray(1.0 / np.sum(np.square(linalg.solve_triangular(triangle, np.eye(len(triangle)))), axis=1))
