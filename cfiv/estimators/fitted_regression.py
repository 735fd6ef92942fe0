"""A fitted linear regression in numbers that no unit makes too large or too small for float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cfiv.data import Array
from cfiv.errors import DataError, quoted
from cfiv.estimators.small_sample import SmallSample

OUT_OF_RANGE = "are too large or too small for float64 in these units: give the columns units nearer to one another"


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Estimates and the root of their covariance, each row times a power of two of its own: no unit is too large or too small.

    Parameters
    ----------
    names : tuple of k str
    values : array (k,)
        Coefficient j is ``2^powers_j values_j``.
    root : array (k, k)
        ``L``, likewise: the covariance is ``D L L' D`` with ``D = diag(2^powers)``.
    powers : array (k,) of int
    """

    names: tuple[str, ...]
    values: Array
    root: Array
    powers: Array

    @property
    def scaled_errors(self) -> Array:
        """Standard errors before the powers of two, (k,)."""
        return np.asarray(np.linalg.norm(self.root, axis=1))

    def in_units(self, what: str, scaled: Array) -> pd.Series:
        """``2^powers scaled`` by name.

        Raises
        ------
        DataError
            Where a number is too large for float64, or so small that it loses digits.
        """
        found = [in_units(number, power) for number, power in zip(scaled, self.powers, strict=True)]
        lost = [name for name, number in zip(self.names, found, strict=True) if number is None]
        if lost:
            raise DataError(f"the {what} of {quoted(lost)} {OUT_OF_RANGE}")
        return pd.Series(np.array(found, dtype=np.float64), index=list(self.names))


def in_units(scaled: Array, powers: Array) -> Array | None:
    """``2^powers scaled``; None where that is out of the range of normal float64 numbers."""
    with np.errstate(over="ignore", under="ignore"):
        numbers = np.ldexp(scaled, powers)
    tiny = (np.abs(numbers) < np.finfo(np.float64).tiny) & (scaled != 0)
    return None if tiny.any() or not np.isfinite(numbers).all() else np.asarray(numbers)


@dataclass(frozen=True, eq=False)
class FittedRegression:
    """A linear regression in numbers that no unit makes too large or too small.

    Parameters
    ----------
    coefficients : Coefficients
        Of ``[1, X, T]``.
    residuals : array (n,)
        ``2^-power (Y - D b)``.
    outcome : array (n,)
        ``2^-power Y - centre``.
    centre : float
        Weighted mean of the outcome where ``has_constant``, else zero.
    effects : array (n,)
        ``2^-power`` times what absorbed fixed effects took from the outcome before, but for its mean; zeros without any.
    power : int
    root_weights : array (n,)
        Roots of the row weights, which have a mean of one.
    has_constant : bool
        Whether a constant lies in the span of the regressors.
    constant_column : int or None
        Where the constant is a column of its own.
    cov_type : {"robust", "unadjusted", "clustered", "kernel"}
    cov_config : mapping
        ``debiased``; of the kernel covariance ``kernel`` and the ``bandwidth`` that was used; ``clusters``.
    small_sample : SmallSample
    absorbed : int
        Parameters of absorbed fixed effects, besides a constant.
    row_labels : Index (n,) or None
        Of the rows that were fitted to.
    """

    coefficients: Coefficients
    residuals: Array = field(repr=False)
    outcome: Array = field(repr=False)
    centre: float = field(repr=False)
    effects: Array = field(repr=False)
    power: int = field(repr=False)
    root_weights: Array = field(repr=False)
    has_constant: bool
    constant_column: int | None
    cov_type: str
    cov_config: Mapping[str, Any] = field(repr=False)
    small_sample: SmallSample
    absorbed: int
    row_labels: pd.Index | None = field(default=None, repr=False)
