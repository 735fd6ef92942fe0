"""The reduced form of a linear regression, for scores on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.estimators.components import LinearComponent
from cfiv.estimators.linear_columns import Columns, exogenous_columns
from cfiv.numerics.scaled_columns import ScaledColumns


@dataclass(frozen=True, eq=False)
class LinearFirstStage:
    """Least squares of the treatments on ``[E, Z]``, in scaled columns."""

    columns: ScaledColumns
    treatments: ScaledColumns
    coefficients: Array

    @classmethod
    def of(cls, scaled: ScaledColumns, instruments: Columns) -> LinearFirstStage:
        """Of scaled treatments. Dependent columns, which least squares allows among instruments, get no weight."""
        kept = np.delete(np.arange(instruments.triangle.shape[1]), [found.column for found in instruments.dependent])
        coefficients = np.zeros((instruments.triangle.shape[1], scaled.values.shape[1]))
        left, right = np.linalg.qr(instruments.triangle[:, kept])
        coefficients[kept] = linalg.solve_triangular(right, left.T @ (instruments.basis.T @ scaled.values))
        return cls(instruments.scaled, scaled, coefficients)

    def predict(self, columns: Array) -> Array:
        """The treatments, in the user's units, at rows (m, columns) of ``[E, Z]``."""
        scaled = self.columns.at(columns) @ self.coefficients
        return np.asarray(np.ldexp(scaled * self.treatments.scales + self.treatments.centres, self.treatments.exponents))


@dataclass(frozen=True, eq=False)
class LinearReducedForm:
    """``E[h | Z, X]``: the structural function at the treatments that a linear first stage predicts."""

    component: LinearComponent
    first_stage: LinearFirstStage
    intercept: bool

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        """At instruments (n, q) and covariates (n, p), shape (n,)."""
        exogenous = exogenous_columns(covariates, rows=len(instruments), intercept=self.intercept)
        predicted = self.first_stage.predict(np.concatenate([exogenous, instruments], axis=1))
        return self.component.evaluate(predicted, covariates)
