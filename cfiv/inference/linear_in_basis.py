"""What inference asks of a structural function: that it is linear in a fixed basis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from cfiv.arrays import Array
from cfiv.errors import ParameterError
from cfiv.estimators.components import Component, LinearComponent
from cfiv.estimators.linear_columns import exogenous_columns
from cfiv.estimators.structural import StructuralFunction


class Basis(Protocol):
    """The functions ``f`` of ``h(t, x) = f(t, x)' u``, and the instruments ``phi`` of ``E[phi (Y - f' u)] = 0``.

    Columns are in units of their own; ``f' u`` is in the outcome's.
    """

    def structural_columns(self, treatments: Array, covariates: Array | None) -> Array:
        """``f`` at rows (n, p) of the encoder's treatments (n, k) and covariates (n, c); independent over those of training."""
        ...

    def structural_derivative(self, treatments: Array, covariates: Array | None, column: int) -> Array:
        """``df / dt_column`` at rows, (n, p); of the encoder's treatment columns, which a formula may have made."""
        ...

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """``phi`` at rows, (n, q): with the constant and the covariates' columns; they may depend on one another."""
        ...


class SizeChoice(Protocol):
    """What a band owes to a size of the basis that was chosen from the data.

    Its critical value is the quantile of the supremum over the points asked and over all ``bases``, plus the ``allowance``:
    Chen, Christensen and Kankanala, "Adaptive estimation and uniform confidence bands for nonparametric structural functions
    and elasticities", *Review of Economic Studies* (arXiv 2107.11869).
    """

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Of the sizes that the supremum is over; the size chosen is one of them."""
        ...

    @property
    def allowance(self) -> float:
        """For the bias that the choice leaves, in standard errors."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many functions of the treatment each size compared has."""
        ...

    @property
    def chosen(self) -> int:
        """The position of the size chosen."""
        ...

    @property
    def larger(self) -> int:
        """The position of the undersmoothed one."""
        ...

    @property
    def small_bias(self) -> bool:
        """Whether its bias is small beside its noise; else the rows bear no larger one."""
        ...

    def contradicted(self, size: int) -> bool:
        """Whether larger sizes disagree with the one at a position by more than noise."""
        ...


@runtime_checkable
class LinearInBasis(Protocol):
    """The one component of a structural function ``h(t, x) = f(t, x)' u`` that two-stage least squares has estimated.

    Parameters
    ----------
    basis : Basis
    coefficients : array (p,)
        ``u``.
    choice : SizeChoice or None
        None where the size of the basis was not chosen from the data.
    undersmoothed : Component or None
        The same in a larger basis, whose bias is small beside its noise; None where there is none.
    """

    @property
    def basis(self) -> Basis:
        """``f`` and ``phi``."""
        ...

    @property
    def coefficients(self) -> Array:
        """``u``, (p,)."""
        ...

    @property
    def choice(self) -> SizeChoice | None:
        """How its size was chosen from the data."""
        ...

    @property
    def undersmoothed(self) -> Component | None:
        """The same in a larger basis."""
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
        exogenous = exogenous_columns(covariates, rows=len(treatments), intercept=self.intercept)
        return np.concatenate([exogenous, treatments.astype(np.float64)], axis=1)

    def structural_derivative(self, treatments: Array, covariates: Array | None, column: int) -> Array:
        """One for the treatment column, zeros elsewhere."""
        first = int(self.intercept) + (0 if covariates is None else covariates.shape[1])
        found = np.zeros((len(treatments), first + treatments.shape[1]))
        found[:, first + column] = 1.0
        return found

    def instrument_columns(self, instruments: Array, covariates: Array | None) -> Array:
        """``[1, x, z]``."""
        return self.structural_columns(instruments, covariates)


def bases_of(function: StructuralFunction) -> tuple[Basis, ...]:
    """The basis in which a structural function is linear, then those of the sizes that a band has to take into account.

    Raises
    ------
    ParameterError
        If it is not linear in a fixed basis.
    """
    component = function.components[0]
    if isinstance(component, LinearComponent):
        return (FormulaBasis(function.encoder.intercept),)
    if not isinstance(component, LinearInBasis):
        raise ParameterError(
            f"{function.estimator} is not linear in a fixed basis, so nothing is known of its errors: use SieveIV or "
            "TwoStageLeastSquares"
        )
    return (component.basis, *(() if component.choice is None else component.choice.bases))


def choice_of(function: StructuralFunction) -> SizeChoice | None:
    """How the size of its basis was chosen from the data."""
    component = function.components[0]
    return component.choice if isinstance(component, LinearInBasis) else None


def undersmoothed(function: StructuralFunction) -> StructuralFunction:
    """The same estimate in a larger basis, for intervals; itself where it has none."""
    component = function.components[0]
    if not isinstance(component, LinearInBasis) or component.undersmoothed is None:
        return function
    return replace(function, components=(component.undersmoothed,), facts={})  # which are of the model's own curve
