"""The estimators by the names that the command line and studies use. Importing this imports none of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cfiv.errors import ParameterError, nearest

if TYPE_CHECKING:
    from cfiv.estimators.estimator import StructuralEstimator


@dataclass(frozen=True)
class Registered:
    """An estimator and what to call it.

    Parameters
    ----------
    name : str
        On the command line: "2sls".
    label : str
        In tables and figures: "2SLS".
    class_name : str
        In ``cfiv``: "TwoStageLeastSquares".
    module : str
        Where it is defined.
    summary : str
        A few words for lists.
    demonstrated : bool
        Whether ``cfiv demo`` fits it where it is not asked for.
    """

    name: str
    label: str
    class_name: str
    module: str
    summary: str
    demonstrated: bool = True

    @property
    def kind(self) -> type[StructuralEstimator]:
        """The class; imports what it needs."""
        kind: type[StructuralEstimator] = getattr(import_module(self.module), self.class_name)
        return kind

    def takes(self, argument: str) -> bool:
        """Whether its constructor has an argument of that name."""
        return argument in inspect.signature(self.kind).parameters

    def make(self, formula: str | None = None, **arguments: Any) -> StructuralEstimator:
        """An unfitted estimator.

        Raises
        ------
        ParameterError
            If it does not take one of the arguments.
        """
        foreign = [argument for argument in arguments if not self.takes(argument)]
        if foreign:
            raise ParameterError(f"{self.name} takes no {foreign[0]}, got {foreign[0]}={arguments[foreign[0]]!r}: leave it out")
        return self.kind(formula, **arguments)


_ESTIMATORS = (
    Registered("dfiv", "DFIV", "DFIV", "cfiv.estimators.dfiv", "deep feature instrumental variables"),
    Registered("kernel-iv", "Kernel IV", "KernelIV", "cfiv.estimators.kernel_iv", "kernel instrumental variables"),
    Registered("sieve-iv", "Sieve IV", "SieveIV", "cfiv.estimators.sieve_iv", "splines, as many as the data bear"),
    Registered("2sls", "2SLS", "TwoStageLeastSquares", "cfiv.estimators.two_sls", "two-stage least squares"),
    # Of as many instruments as treatments, as in the demonstration, it is 2SLS.
    Registered("liml", "LIML", "LIML", "cfiv.estimators.liml", "linear, for many weak instruments", demonstrated=False),
    # Of the literature, to be compared with.
    Registered(
        "deep-iv",
        "DeepIV",
        "DeepIV",
        "cfiv.estimators.deep_iv",
        "a density of the treatment, and draws from it",
        demonstrated=False,
    ),
    Registered(
        "agmm", "AGMM", "AGMM", "cfiv.estimators.agmm", "networks against a critic of their moments", demonstrated=False
    ),
    Registered("least-squares", "Least squares", "LeastSquares", "cfiv.estimators.least_squares", "ignores the confounder"),
    Registered("network", "Network", "NetworkRegression", "cfiv.estimators.network_regression", "ignores the confounder"),
)


def names() -> list[str]:
    """All registered names, in the order of tables."""
    return [registered.name for registered in _ESTIMATORS]


def estimators() -> Iterator[Registered]:
    """All registered estimators."""
    return iter(_ESTIMATORS)


def estimator(name: str) -> Registered:
    """The estimator of a name.

    Raises
    ------
    ParameterError
        If there is none, with the nearest name.
    """
    for registered in _ESTIMATORS:
        if registered.name == name:
            return registered
    raise ParameterError(f"there is no estimator {name!r}: {nearest(name, names())}")
