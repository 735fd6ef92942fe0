"""Coefficients of a basis in numbers: what answers any linear functional of ``h`` without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.errors import DataError
from cfiv.estimators.fitted_regression import OUT_OF_RANGE
from cfiv.file_values import fields, numbers
from cfiv.inference.scaling import Scaling


@dataclass(frozen=True, eq=False)
class BasisFit:
    """Coefficients of one basis and the root of their covariance.

    Parameters
    ----------
    scaling : Scaling
        Of the basis.
    coefficients : array (p,)
        Of the scaled columns, in the outcome's scaled units.
    root : array (p, K)
        ``L``: covariances of coefficients are ``L L'``, and between two bases of one inference ``L_1 L_2'``.
    triangle : array (p, p)
        ``R`` of the weighted scaled columns ``Q R`` of training.
    outcome : array (3,)
        Centre, scale and exponent of the outcome, ``2^exponent (scale y + centre)``.
    """

    scaling: Scaling
    coefficients: Array
    root: Array
    triangle: Array
    outcome: Array

    @property
    def size(self) -> int:
        """Functions in the basis, ``p``."""
        return len(self.coefficients)

    def estimate(self, functionals: Array) -> Array:
        """``l' u`` (m,) of functionals (m, p): what each makes of the functions of the basis."""
        scaled, constants = self.scaling.of_functionals(functionals)
        return self._in_units(scaled @ self.coefficients * self.outcome[1] + constants * self.outcome[0])

    def roots(self, functionals: Array) -> Array:
        """Rows (m, K) whose products are the covariances of the estimates."""
        return self._in_units(self.scaling.of_functionals(functionals)[0] @ self.root * self.outcome[1])

    def leverage(self, columns: Array, *, rows: int) -> Array:
        """``f' (F' F / n)^-1 f`` at rows (m, p) of the basis; ``rows`` is n."""
        inner = linalg.solve_triangular(self.triangle, self.scaling.apply(columns).T, trans="T")
        return np.asarray(rows * np.square(inner).sum(axis=0))

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {**vars(self), "scaling": self.scaling.to_values()}

    @classmethod
    def from_values(cls, values: Any, *, size: int) -> Self:
        """From the values of a file, for a basis of so many functions."""
        fields(values, "scaling", "coefficients", "root", "triangle", "outcome")
        return cls(
            Scaling.from_values(values["scaling"], size=size),
            numbers(values["coefficients"], (size,)),
            numbers(values["root"], (size, len(values["root"].T))),
            numbers(values["triangle"], (size, size)),
            numbers(values["outcome"], (3,)),
        )

    def _in_units(self, scaled: Array) -> Array:
        with np.errstate(over="ignore"):
            found = np.ldexp(scaled, int(self.outcome[2]))
        if not np.isfinite(found).all():
            raise DataError(f"the estimates or their standard errors {OUT_OF_RANGE}")
        return np.asarray(found)
