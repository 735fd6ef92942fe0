"""Coefficients of a basis in numbers: what answers any linear functional of ``h`` without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.errors import DataError
from cfiv.estimators.fitted_regression import OUT_OF_RANGE, in_units
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
    triangle : array (m, m)
        ``R`` of the first m weighted scaled columns ``Q R`` of training: of all p, but for learned functions, which are last.
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
        return self.in_units(scaled @ self.coefficients * self.outcome[1] + constants * self.outcome[0])

    def roots(self, functionals: Array) -> Array:
        """Rows (m, K) whose products are the covariances of the estimates, before :meth:`in_units`."""
        return np.asarray(self.scaling.of_functionals(functionals)[0] @ self.root * self.outcome[1])

    def std_errors(self, roots: Array) -> Array:
        """Their lengths (m,), in the outcome's units."""
        largest = np.abs(roots).max(axis=1)  # whose square may leave the range of float64
        largest = np.where(largest > 0, largest, 1.0)
        return self.in_units(largest * np.linalg.norm(roots / largest[:, None], axis=1))

    def in_units(self, scaled: Array, *, power: int = 1) -> Array:
        """Numbers in the outcome's units, or in a power of them.

        Raises
        ------
        DataError
            Where float64 does not have them.
        """
        found = in_units(scaled, np.asarray(power * int(self.outcome[2])))
        if found is None:
            raise DataError(f"the estimates or their errors {OUT_OF_RANGE}")
        return found

    def leverage(self, columns: Array, *, rows: int) -> Array:
        """``f' (F' F / n)^-1 f`` at rows (m, p) of the basis, of the functions of the triangle; ``rows`` is n."""
        scaled = self.scaling.apply(columns)[:, : len(self.triangle)]
        inner = linalg.solve_triangular(self.triangle, scaled.T, trans="T")
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
            numbers(values["triangle"], (len(values["triangle"]),) * 2),
            numbers(values["outcome"], (3,)),
        )
