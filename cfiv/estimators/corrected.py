"""A learned structural function, corrected: what the functions of other rows leave over goes to splines, without a penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cfiv.data import Array
from cfiv.estimators.components import Component, averaged
from cfiv.numerics.sieve_basis import SieveBasis, in_blocks

#: Steps of a derivative of a learned function, as a share of the treatment's range: networks compute in float32.
STEP = 2.0**-8


@dataclass(frozen=True, eq=False)
class MeanComponent:
    """The mean of components, or a mixture of them.

    Parameters
    ----------
    components : tuple of Component
    shares : tuple of float
        None where all count alike.
    """

    components: tuple[Component, ...]
    shares: tuple[float, ...] = ()

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,)."""
        return self._mean(lambda component: component.evaluate(treatment, covariates))

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n)."""
        return self._mean(lambda component: component.cross(treatments, covariates))

    def _mean(self, of: Callable[[Component], Array]) -> Array:
        return averaged(map(of, self.components), self.shares, count=len(self.components))


@dataclass(frozen=True, eq=False)
class CorrectedBasis:
    """Splines ``s(t, x)`` and, as K functions more, learned ``h_k``; instruments are those of the splines.

    Parameters
    ----------
    splines : SieveBasis
    functions : tuple of K MeanComponent
    """

    splines: SieveBasis
    functions: tuple[MeanComponent, ...]

    def structural_columns(self, treatments: Array, covariates: Array | None) -> Array:
        """``[s, h_1, ..., h_K]`` at rows, (n, p + K)."""
        learned = [function.evaluate(treatments, covariates)[:, None] for function in self.functions]
        return np.concatenate([self.splines.structural_columns(treatments, covariates), *learned], axis=1)

    def structural_derivative(self, treatments: Array, covariates: Array | None, column: int) -> Array:
        """With respect to one treatment column; of learned functions by central differences, ``STEP`` of its range apart."""
        spline = self.splines.treatments[column]
        step = STEP * (spline.high - spline.low)
        above, below = (treatments.astype(np.float64) for _ in range(2))
        above[:, column] += step / 2
        below[:, column] -= step / 2
        # What was added is not quite what was asked for.
        width = above[:, column] - below[:, column]
        learned = [
            ((function.evaluate(above, covariates) - function.evaluate(below, covariates)) / width)[:, None]
            for function in self.functions
        ]
        return np.concatenate([self.splines.structural_derivative(treatments, covariates, column), *learned], axis=1)

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """``phi`` at rows, (n, q)."""
        return self.splines.instrument_columns(instruments, covariates)


@dataclass(frozen=True, eq=False)
class CorrectedComponent:
    """``h = sum_k w_k h_k + b' s``, see :mod:`cfiv.inference.corrected`.

    Parameters
    ----------
    basis : CorrectedBasis
    coefficients : array (p + K,)
        ``[b, w]``, in the outcome's units.
    """

    basis: CorrectedBasis
    coefficients: Array
    choice: None = None
    undersmoothed: None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", np.array(self.coefficients))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,)."""
        splines, (own, weights) = self.basis.splines, self._parts()
        return in_blocks(splines.structural_columns, own, treatment, covariates) + self._learned(
            weights, lambda function: function.evaluate(treatment, covariates)
        )

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n)."""
        own, weights = self._parts()
        return self.basis.splines.grid(own, treatments, covariates) + self._learned(
            weights, lambda function: function.cross(treatments, covariates)
        )

    def _parts(self) -> tuple[Array, Array]:
        width = self.basis.splines.width
        return self.coefficients[:width], self.coefficients[width:]

    def _learned(self, weights: Array, of: Callable[[MeanComponent], Array]) -> Array:
        return averaged(map(of, self.basis.functions), tuple(weights), count=len(weights))
