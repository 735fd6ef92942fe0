"""Do the instruments agree? Those beyond what a basis needs have to be unrelated to what it leaves of the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import stats

from cfiv.data import Array
from cfiv.file_values import fields, number, whole

#: Level of the test from which on instruments are said to contradict one another.
CONTRADICTED = 0.01
#: Eigenvalue of a correlation matrix of moments below which it counts as singular, as of fewer groups than moments.
SINGULAR = 1e-10


@dataclass(frozen=True, eq=False)
class SpareMoments:
    """``r' e`` of instrument columns ``r`` that two-stage least squares leaves unused, with ``r' F = 0``.

    Parameters
    ----------
    values : array (d,)
        At the residuals, of which it is what it is of the errors, whatever the coefficients.
    covariance : array (d, d)
    groups : int
        Rows, or groups of the fewer kind, whose products add up to it.
    """

    values: Array
    covariance: Array
    groups: int


@dataclass(frozen=True, kw_only=True)
class Overidentification:
    """A test of ``E[e | Z] = 0`` in the instrument columns beyond those that the basis needs.

    With these columns ``r``, orthogonal to the basis, and ``S`` the covariance of ``r' e``,

        J = (r' e)' S^-1 (r' e),    chi2(d) if all instruments are valid and the basis has the shape of ``h``.

    Parameters
    ----------
    statistic : float
    df : int
        ``d``.

    References
    ----------
    Wooldridge, "Score diagnostics for linear models estimated by two stage least squares", in *Advances in Econometrics and
    Quantitative Economics*, 1995; in growing bases Horowitz, "Specification testing in nonparametric instrumental variable
    estimation", *Journal of Econometrics* 167, 2012, has another statistic for the same null.
    """

    statistic: float
    df: int

    @classmethod
    def of(cls, spare: SpareMoments) -> Self | None:
        """None without spare columns, of few groups, and where their covariance is not positive definite.

        ``J`` is at most the number of groups: where that is no more than the critical value, nothing would be contradicted.

        Parameters
        ----------
        spare : SpareMoments
        """
        variances = spare.covariance.diagonal()
        if not len(variances) or not bool((variances > 0).all()):
            return None
        if spare.groups <= stats.chi2.isf(CONTRADICTED, len(variances)):
            return None
        scales = np.sqrt(variances)
        values, vectors = np.linalg.eigh(spare.covariance / scales / scales[:, None])
        if values[0] < SINGULAR:
            return None
        return cls(statistic=float(np.square(vectors.T @ (spare.values / scales)) @ (1 / values)), df=len(scales))

    @property
    def p_value(self) -> float:
        """How often it is as large where instruments agree."""
        return float(stats.chi2.sf(self.statistic, self.df))

    @property
    def is_contradicted(self) -> bool:
        """Whether the instruments contradict one another, at the level of 1 %."""
        return self.p_value < CONTRADICTED

    def __str__(self) -> str:
        return f"chi2({self.df}) = {self.statistic:.4g}, p = {self.p_value:.2g}"

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return dict(vars(self))

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """From the values of a file."""
        fields(values, "statistic", "df")
        statistic = number(values["statistic"])
        if statistic < 0:
            raise ValueError(f"a statistic of {statistic}")
        return cls(statistic=statistic, df=whole(values["df"], 1, 2**62))
