"""What inference asks of a fitted estimator: a fixed basis, in which its structural function is linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cfiv.arrays import Array
from cfiv.estimators.components import Component, LinearComponent
from cfiv.estimators.linear_columns import exogenous_columns
from cfiv.estimators.structural import StructuralFunction


@runtime_checkable
class StructuralBasis(Protocol):
    """The basis ``f`` of ``h(t, x) = f(t, x)' u``, p functions of the encoder's treatments and covariates.

    The one component of an estimator's structural function is one, so that files keep it. Columns are in units of their own
    and linearly independent over the training rows; ``f' u`` is in the outcome's.
    """

    def structural_columns(self, treatments: Array, covariates: Array | None) -> Array:
        """``f`` at each row, (n, p), of treatments (n, k) and covariates (n, c)."""
        ...

    def structural_derivative(self, treatments: Array, covariates: Array | None, column: int) -> Array:
        """``df / dt_column`` at each row, (n, p); of the encoder's treatment columns, which a formula may have made."""
        ...


@runtime_checkable
class InstrumentBasis(Protocol):
    """The basis ``phi`` of ``E[phi (Y - f' u)] = 0``: what a fitted estimator has besides."""

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """``phi`` at each row, (n, q): with the constant and the covariates' columns; they may depend on one another."""
        ...


class LinearInBasis(StructuralBasis, InstrumentBasis, Protocol):
    """Two-stage least squares in fixed bases: a fitted estimator of ``h(t, x) = f(t, x)' u``."""

    @property
    def coefficients(self) -> Array:
        """``u``, (p,)."""
        ...


class Rival(LinearInBasis, Component, Protocol):
    """A fit of another size, which files keep as they keep components."""


@runtime_checkable
class SizeChosenByData(Protocol):
    """What an estimator has besides where the data chose the size of its basis: what a band owes to that choice.

    The critical value of its bands is the quantile of the supremum over the points asked and over all ``rivals``, plus the
    ``allowance``; see Chen, Christensen and Kankanala, "Adaptive estimation and uniform confidence bands for nonparametric
    structural functions and elasticities", *Review of Economic Studies* 92, 2025.
    """

    @property
    def rivals(self) -> tuple[Rival, ...]:
        """Fits of the other sizes that the supremum is over."""
        ...

    @property
    def allowance(self) -> float:
        """For the bias that the choice leaves, in standard errors: ``A theta*``."""
        ...


@dataclass(frozen=True)
class FormulaBasis:
    """``f = [1, x, t]`` and ``phi = [1, x, z]``, of the columns that a formula makes.

    Parameters
    ----------
    intercept : bool
        Whether there is the constant.
    """

    intercept: bool

    def structural_columns(self, treatments: Array, covariates: Array | None) -> Array:
        """``[1, x, t]``."""
        return self.instrument_columns(treatments, covariates)

    def structural_derivative(self, treatments: Array, covariates: Array | None, column: int) -> Array:
        """One for the treatment column, zeros elsewhere."""
        first = exogenous_columns(covariates, rows=len(treatments), intercept=self.intercept).shape[1]
        found = np.zeros((len(treatments), first + treatments.shape[1]))
        found[:, first + column] = 1.0
        return found

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """``[1, x, z]``."""
        exogenous = exogenous_columns(covariates, rows=len(instruments), intercept=self.intercept)
        return np.concatenate([exogenous, instruments.astype(np.float64)], axis=1)


def basis_of(function: StructuralFunction) -> StructuralBasis:
    """That in which a structural function is linear: its one component, or the formula's columns."""
    (component,) = function.components
    if isinstance(component, LinearComponent):
        return FormulaBasis(function.encoder.intercept)
    assert isinstance(component, StructuralBasis)
    return component
