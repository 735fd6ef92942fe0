"""What came of a linear regression: coefficients, their covariance and tests, in the user's units. Names are linearmodels'."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cfiv.checks import is_number
from cfiv.data import Array
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.fitted_regression import OUT_OF_RANGE, FittedRegression, in_units
from cfiv.estimators.small_sample import SmallSample
from cfiv.estimators.wald import WaldTest, by_name, has_labels, read_numbers, read_restrictions


@dataclass(frozen=True, eq=False, repr=False)
class LinearResults(abc.ABC):
    """Abstract: a linear regression, whatever its instruments. Names and meanings are those of linearmodels' results.

    Parameters
    ----------
    fitted : FittedRegression
    """

    fitted: FittedRegression

    def __repr__(self) -> str:
        facts = f"{self.nobs} rows, R-squared {self.rsquared:.4g}, covariance {self.cov_type}{self.small_sample.described}"
        return f"{self.method[0].upper()}{self.method[1:]}: {facts}\n{self.table.to_string(float_format='{:.4g}'.format)}"

    @property
    def table(self) -> pd.DataFrame:
        """``coefficient, std_error, t, p_value, lower, upper`` (95 %), one row a column."""
        interval = self.conf_int()
        return pd.DataFrame(
            {
                "coefficient": self.params,
                "std_error": self.std_errors,
                "t": self.tstats,
                "p_value": self.pvalues,
                "lower": interval["lower"],
                "upper": interval["upper"],
            }
        )

    @property
    @abc.abstractmethod
    def method(self) -> str:
        """How the coefficients were estimated."""

    @cached_property
    def params(self) -> pd.Series:
        """Coefficients, by name."""
        return self.fitted.coefficients.in_units("coefficients", self.fitted.coefficients.values).rename("parameter")

    @cached_property
    def std_errors(self) -> pd.Series:
        """Standard errors of the coefficients."""
        return self.fitted.coefficients.in_units("standard errors", self.fitted.coefficients.scaled_errors).rename("stderr")

    @cached_property
    def tstats(self) -> pd.Series:
        """Coefficients over their standard errors; infinite where a fit is perfect, and 0 for a coefficient of 0 there."""
        values, errors = self.fitted.coefficients.values, self.fitted.coefficients.scaled_errors
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(values == 0, 0.0, values / errors)
        return pd.Series(ratios, index=list(self.fitted.coefficients.names), name="tstat")

    @cached_property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values: where ``debiased`` of t, as ``small_sample`` has it, else of the normal distribution."""
        return pd.Series(self.two_sided(self.tstats), index=self.tstats.index, name="pvalue")

    def two_sided(self, ratios: Any) -> Array:
        """Two-sided p-values of estimates over their standard errors, by the distribution of :attr:`pvalues`."""
        return np.asarray(2 * self._distribution.sf(np.abs(ratios)))

    @cached_property
    def cov(self) -> pd.DataFrame:
        """Covariance of the coefficients, (k, k).

        Raises
        ------
        DataError
            Where variances are out of the range of float64, though standard errors are not.
        """
        # Each row in units of its own once more, so that no product leaves the range of float64 before its power is added.
        powers = self.fitted.coefficients.powers
        product = self.fitted.coefficients.root @ self.fitted.coefficients.root.T
        numbers = in_units(product, powers[:, None] + powers)
        if numbers is None:
            raise DataError(f"the variances of the coefficients {OUT_OF_RANGE}, or use std_errors and combination()")
        names = list(self.fitted.coefficients.names)
        return pd.DataFrame(numbers, index=names, columns=names)

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Confidence intervals ``lower, upper`` of the coefficients.

        Raises
        ------
        ParameterError
            Unless the level is between 0 and 1.
        """
        if not is_number(level) or not 0 < level < 1:
            raise ParameterError(f"level must be between 0 and 1, such as 0.95, got {level!r}")
        half = self._distribution.ppf(1 - (1 - level) / 2) * self.std_errors
        return pd.DataFrame({"lower": self.params - half, "upper": self.params + half})

    def combination(self, weights: Any) -> pd.DataFrame:
        """Estimates ``c' b`` of linear combinations and their standard errors ``sqrt(c' V c)``.

        Parameters
        ----------
        weights : array (k,) or (m, k), mapping, Series or DataFrame
            ``c``, one row a combination, in the order of ``params`` and in the user's units; or by the names of ``params``, 0
            for those that are not named.

        Returns
        -------
        DataFrame
            ``estimate, std_error``, one row a combination.

        Raises
        ------
        ParameterError
            If there is not one finite weight a coefficient, or a name that none has.
        """
        estimates, roots, power = self._combined(weights)
        found = [in_units(part, np.asarray(power)) for part in (estimates, np.linalg.norm(roots, axis=1))]
        if found[0] is None or found[1] is None:
            raise DataError(f"the combinations {OUT_OF_RANGE}")
        return pd.DataFrame({"estimate": found[0], "std_error": found[1]})

    def wald_test(self, restriction: Any = None, value: Any = None, *, formula: Any = None) -> WaldTest:
        """Wald test of ``C b = v``, chi2 of the number of restrictions.

        Parameters
        ----------
        restriction : array (q, k), mapping, Series or DataFrame, optional
            ``C``, in the order of ``params`` or by their names, as in :meth:`combination`.
        value : array (q,), optional
            ``v``, by default zeros.
        formula : str, list of str or mapping, optional
            Instead of the two, such as ``"x = 0, t = 2"``; names that are not Python's in backticks.

        Raises
        ------
        ParameterError
            Unless there is either a formula that can be read or a restriction of fitting shape.
        SingularError
            If restrictions depend on one another.
        """
        if (restriction is None) == (formula is None):
            raise ParameterError("give either restriction=, an array of one row a restriction, or formula=")
        if formula is not None:
            restriction, value = read_restrictions(formula, self.fitted.coefficients.names)
        estimates, roots, power = self._combined(restriction)
        if value is not None:
            if has_labels(value):
                raise ParameterError("value goes by position, one number a restriction: give value.to_numpy() in their order")
            values = read_numbers("value", value).ravel()
            if values.shape != estimates.shape:
                raise ParameterError(f"value must have one number a restriction, {len(estimates)}, got {len(values)}")
            estimates = estimates - np.ldexp(values, -power)
        return WaldTest.of(estimates, roots, name="Wald test", null="the linear restrictions hold")

    @property
    def f_statistic(self) -> WaldTest:
        """Test that all coefficients but the constant are zero: chi2(k), or F where ``debiased``: F(k, n - k - 1) mostly."""
        tested = [j for j in range(len(self.fitted.coefficients.names)) if j != self.fitted.constant_column]
        return WaldTest.of(
            self.fitted.coefficients.values[tested],
            self.fitted.coefficients.root[tested],
            df_denom=self.small_sample.t_dof,
            name="Model F-statistic",
            null="all coefficients but the constant are zero",
        )

    @property
    def nobs(self) -> int:
        """Rows."""
        return len(self.fitted.residuals)

    @property
    def df_model(self) -> int:
        """Coefficients, ``k``."""
        return len(self.fitted.coefficients.names)

    @property
    def df_resid(self) -> int:
        """``n - k``, also less the parameters of absorbed fixed effects."""
        return self.nobs - self.df_model - self.fitted.absorbed

    @property
    def has_constant(self) -> bool:
        """Whether a constant lies in the span of the regressors."""
        return self.fitted.has_constant

    @property
    def cov_type(self) -> str:
        """``robust``, ``unadjusted``, ``clustered`` or ``kernel``."""
        return self.fitted.cov_type

    @property
    def cov_config(self) -> dict[str, Any]:
        """Options of the covariance, with the bandwidth that was chosen."""
        return dict(self.fitted.cov_config)

    @property
    def debiased(self) -> bool:
        """Whether variances have a factor for small samples and intervals are those of t."""
        return bool(self.fitted.cov_config["debiased"])

    @property
    def small_sample(self) -> SmallSample:
        """The factor, and the degrees of freedom of t."""
        return self.fitted.small_sample

    @cached_property
    def resids(self) -> pd.Series:
        """Residuals of the structural equation, ``Y - D b``, with the labels of the rows that were fitted to.

        Assigned to a table they find their rows, whatever was dropped for gaps or for a weight of zero. Of data without labels,
        such as arrays and files, they are numbered.
        """
        return self._by_row("residuals", self.fitted.residuals).rename("residual")

    @property
    def wresids(self) -> pd.Series:
        """Residuals times the roots of the row weights."""
        return (self.resids * self.fitted.root_weights).rename("weighted residual")

    @cached_property
    def fitted_values(self) -> pd.Series:
        """``D b``, at the rows' own treatments, and absorbed fixed effects; labelled as :attr:`resids`."""
        fitted = self.fitted.outcome - self.fitted.residuals + self.fitted.effects + self.fitted.centre
        return self._by_row("fitted values", fitted).rename("fitted_values")

    def _by_row(self, what: str, values: Array) -> pd.Series:
        return pd.Series(self._outcome_units(what, values), index=self.fitted.row_labels)

    @property
    def resid_ss(self) -> float:
        """Weighted sum of squared residuals."""
        return self._squares(self.fitted.residuals)

    @property
    def total_ss(self) -> float:
        """Weighted sum of squares of the outcome, about its mean where there is a constant."""
        return self._squares(self.fitted.outcome + self.fitted.effects)

    @property
    def model_ss(self) -> float:
        """``total_ss - resid_ss``."""
        return self.total_ss - self.resid_ss

    @property
    def s2(self) -> float:
        """Variance of the residuals: ``resid_ss`` over ``n``, or over ``n - k`` where ``debiased``."""
        return self.resid_ss / (self.df_resid if self.debiased else self.nobs)

    @property
    def rsquared(self) -> float:
        """``1 - resid_ss / total_ss``."""
        return 1.0 - float(np.square(np.linalg.norm(self._weighted(self.fitted.residuals)) / self._total))

    @property
    def rsquared_within(self) -> float:
        """The same of what absorbed fixed effects leave of the outcome; ``rsquared`` without any."""
        lengths = [np.linalg.norm(self._weighted(rows)) for rows in (self.fitted.residuals, self.fitted.outcome)]
        return 1.0 - float(np.square(lengths[0] / lengths[1]))

    @property
    def rsquared_adj(self) -> float:
        """``1 - (n - c) / (n - k) resid_ss / total_ss``, with c = 1 where there is a constant; k as in ``df_resid``."""
        return 1.0 - (self.nobs - int(self.fitted.has_constant)) / self.df_resid * (1.0 - self.rsquared)

    @property
    def _total(self) -> float:
        return float(np.linalg.norm(self._weighted(self.fitted.outcome + self.fitted.effects)))

    @property
    def _distribution(self) -> Any:
        dof = self.small_sample.t_dof
        return stats.norm() if dof is None else stats.t(dof)

    def _weighted(self, rows: Array) -> Array:
        return np.asarray(self.fitted.root_weights * rows)

    def _outcome_units(self, what: str, scaled: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            numbers = np.ldexp(scaled, self.fitted.power)
        if not np.isfinite(numbers).all():
            raise DataError(f"the {what} {OUT_OF_RANGE}")
        return np.asarray(numbers)

    def _squares(self, rows: Array) -> float:
        numbers = in_units(np.square(np.linalg.norm(self._weighted(rows))), np.asarray(2 * self.fitted.power))
        if numbers is None:
            raise DataError(
                "the sums of squares are too large or too small for float64 in this unit of the outcome: rescale it"
            )
        return float(numbers)

    def _combined(self, weights: Any) -> tuple[Array, Array, int]:
        """``C b`` and ``C L`` with their power of two: shapes (m,) and (m, k)."""
        matrix = np.atleast_2d(read_numbers("weights", by_name(weights, self.fitted.coefficients.names)))
        size = len(self.fitted.coefficients.names)
        if matrix.ndim != 2 or matrix.shape[1] != size:
            raise ParameterError(f"weights must be {size} numbers a row, one a coefficient, got shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ParameterError(f"weights must be finite numbers, got {weights!r}")
        mantissas, exponents = np.frexp(matrix)
        exponents = exponents + self.fitted.coefficients.powers
        power = int(exponents[matrix != 0].max(initial=-(2**20)))
        power = 0 if power == -(2**20) else power
        scaled = np.ldexp(mantissas, exponents - power)
        return scaled @ self.fitted.coefficients.values, scaled @ self.fitted.coefficients.root, power


@dataclass(frozen=True, eq=False, repr=False)
class LeastSquaresResults(LinearResults):
    """Ordinary least squares."""

    @property
    def method(self) -> str:
        """How the coefficients were estimated."""
        return "least squares"
