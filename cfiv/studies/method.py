"""Methods: what a simulation study compares."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from cfiv.errors import ParameterError
from cfiv.studies.design import axes_of, check_call, grid


class Method:
    """An estimator, over a grid of its hyper-parameters.

    Parameters
    ----------
    estimator : object with ``fit``, or callable
        With scikit-learn's ``get_params`` and ``set_params``, as all of cfiv's estimators: each replication fits a copy, whose
        ``random_state`` (where it has one) is set to the replication's seed. Another object with ``fit(data)`` is copied as it
        is. Else a function ``make(seed=..., **parameters)`` that returns an object with ``fit(data)``. What ``fit`` returns is
        asked to ``predict``; the object itself where it returns nothing.
    **parameters
        Set on the estimator, or passed to the function. A list is an axis of the grid, as in :class:`Design`.

    Raises
    ------
    ParameterError
        If the estimator can neither be fitted nor called, does not take the parameters, or a list is empty.

    Examples
    --------
    >>> from cfiv import KernelIV
    >>> [cell for cell in Method(KernelIV("y ~ [t ~ z]"), landmarks=[200, 500]).cells()]
    [{'landmarks': 200}, {'landmarks': 500}]
    """

    def __init__(self, estimator: Any, /, **parameters: Any) -> None:
        if isinstance(estimator, type) and hasattr(estimator, "fit"):
            raise ParameterError(f"give an estimator, such as {estimator.__name__}(...), got the class {estimator.__name__}")
        if not callable(getattr(estimator, "fit", None)) and not callable(estimator):
            raise ParameterError(f"a method is an estimator with fit(data), or a function of a seed, got {estimator!r}")
        if not hasattr(estimator, "fit"):
            check_call("a method's function", estimator, parameters)
        self.estimator = estimator
        self.axes = axes_of(parameters)
        self.fixed = {name: value for name, value in parameters.items() if name not in self.axes}
        taken = known_parameters(estimator)
        if parameters and hasattr(estimator, "fit") and taken is None:
            raise ParameterError(
                f"parameters can be set where an estimator has set_params, {type(estimator).__name__} has not: "
                "give a function make(seed, **parameters) instead"
            )
        if taken is not None and "random_state" in parameters:
            raise ParameterError("random_state is set by the study, for every replication anew: leave it out")
        for name in parameters:
            if taken is not None and name not in taken:
                raise ParameterError(f"{type(estimator).__name__} takes no {name!r}: it takes {', '.join(sorted(taken))}")

    def cells(self) -> Iterator[dict[str, Any]]:
        """The hyper-parameters of every cell of the grid that vary."""
        return grid(self.axes)


def known_parameters(estimator: Any) -> set[str] | None:
    """What ``set_params`` takes; None where there is none."""
    if not hasattr(estimator, "get_params") or not hasattr(estimator, "set_params"):
        return None
    return set(estimator.get_params())


def make_estimator(estimator: Any, parameters: dict[str, Any], *, seed: int) -> Any:
    """An unfitted copy with its hyper-parameters and seed."""
    if not hasattr(estimator, "fit"):
        return estimator(seed=seed, **parameters)
    model = copy.deepcopy(estimator)
    taken = known_parameters(model)
    if taken is None:
        return model
    return model.set_params(**({"random_state": seed} if "random_state" in taken else {}), **parameters)
