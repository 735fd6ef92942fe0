"""Designs: where the data of a simulation study come from, and what is true of them."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfiv.arrays import numeric_array
from cfiv.errors import DataError, ParameterError, StudyError
from cfiv.labels import check_same_rows

#: A design's function: ``simulate(seed=..., **parameters) -> (data, truth)``.
Simulate = Callable[..., tuple[Any, Any]]
#: Cells of a study: each is told apart by a description of all that is in it, which takes a millisecond or so.
MOST_CELLS = 100_000


class Design:
    """A function that draws data and knows the truth, over a grid of its parameters.

    Parameters
    ----------
    simulate : callable
        ``simulate(seed=seed, **parameters) -> (data, truth)``. ``data`` is whatever the methods' ``fit`` takes. ``truth`` is an
        object with ``error(model)``, such as those of ``cfiv.datasets``, or the true structural function: a callable of the
        data's rows, or one number a row; see :class:`PointwiseTruth`.
    **parameters
        Passed to ``simulate``. A list or a range is an axis of the grid, with one cell a value; anything else is passed as it
        is, arrays too (a list that is one value: a list of that list).

    Raises
    ------
    ParameterError
        If ``simulate`` is not callable or does not take the parameters, a list is empty or names a value twice, or ``seed`` is
        among the parameters.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> design = Design(demand.simulate, n=[1000, 5000], rho=[0.1, 0.9], error_scale=50.0)
    >>> len(list(design.cells()))
    4
    """

    def __init__(self, simulate: Simulate, /, **parameters: Any) -> None:
        if not callable(simulate):
            raise ParameterError(
                f"a design is a function simulate(seed=..., **parameters) -> (data, truth), got {type(simulate).__name__}"
            )
        if "seed" in parameters:
            raise ParameterError(
                f"seed is no parameter of a design, got {parameters['seed']!r}: the study gives every replication its own"
            )
        check_call("a design", simulate, parameters)
        self.simulate = simulate
        self.axes = axes_of(parameters)
        self.fixed = {name: value for name, value in parameters.items() if name not in self.axes}

    def cells(self) -> Iterator[dict[str, Any]]:
        """The parameters of every cell of the grid that vary, in the order of the lists."""
        return grid(self.axes)


def check_call(what: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    """Whether ``function(seed=..., **parameters)`` is a call that Python would make.

    Raises
    ------
    ParameterError
        If a parameter is unknown or missing.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # what is compiled need not say
        return
    try:
        signature.bind(seed=0, **parameters)
    except TypeError as error:
        call = ", ".join(f"{name}=..." for name in ["seed", *parameters])
        name = name_of(function)
        raise ParameterError(f"{what} is called as {name}({call}), which fails: {error}. It is {name}{signature}") from None


def name_of(function: Any) -> str:
    """What a message calls a function, or an object that is called like one."""
    return str(getattr(function, "__name__", type(function).__name__))


def axes_of(parameters: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The parameters with a list or range of values.

    Raises
    ------
    ParameterError
        If a list is empty or has a value twice, or they have more combinations than a study has cells.
    """
    given = {name: value for name, value in parameters.items() if isinstance(value, (list, range))}
    for name, values in given.items():
        if not values:
            raise ParameterError(
                f"{name} has no values, so that the grid is empty: give a list of at least one, or leave it out"
            )
    if size(given) > MOST_CELLS:
        raise ParameterError(
            f"{', '.join(given)} make a grid of {size(given):,} cells, and a study has at most {MOST_CELLS:,}: vary less"
        )
    axes = {name: list(values) for name, values in given.items()}
    for name, values in axes.items():
        _check_distinct(name, values)
    return axes


def size(axes: Mapping[str, Sequence[Any]]) -> int:
    """How many cells a grid has."""
    return math.prod(map(len, axes.values()))


def _check_distinct(name: str, values: Sequence[Any]) -> None:
    """Raise a ParameterError where two values of an axis would be one in a table, as are 1 and True."""
    before: dict[Any, Any] = {}
    for value in values:
        # Hashes of equal numbers are equal; what is no number, or nan, is what it is shown as.
        key = value if isinstance(value, (bool, int, float)) and value == value else ("shown as", repr(value))
        if key in before:
            one, other = repr(before[key]), repr(value)
            twice = f"{other} twice" if one == other else f"{one} and {other}, which tables take for one"
            raise ParameterError(f"{name} has {twice}: name each value once, and raise replications for more draws")
        before[key] = value


def labels(axes: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The axes with values that a table can have: numbers and text, each another within its axis."""
    return {name: _distinct([_label(value) for value in values]) for name, values in axes.items()}


def _label(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return getattr(value, "__name__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _distinct(values: list[Any]) -> list[Any]:
    count, before = Counter(map(repr, values)), Counter[str]()
    distinct = []
    for value in values:
        before[repr(value)] += 1
        distinct.append(f"{value} ({before[repr(value)]})" if count[repr(value)] > 1 else value)
    return distinct


def grid(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values; one empty one where nothing varies."""
    return (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


@dataclass(frozen=True, eq=False)
class PointwiseTruth:
    """The true structural function at the rows of the data that a method was fitted to.

    Parameters
    ----------
    data : table
        Treatment and covariates are among its columns.
    structural : array (n,)
        The true ``h`` at each row.
    function : callable, optional
        ``h`` of a table; ``truth(rows)`` needs it.
    """

    data: Any
    structural: np.ndarray[Any, Any]
    function: Callable[[Any], Any] | None = None

    def __call__(self, rows: Any) -> np.ndarray[Any, Any]:
        """``h`` at other rows, shape (n,).

        Raises
        ------
        StudyError
            If the design gave values at its own rows only.
        """
        if self.function is None:
            raise StudyError("the design's truth is an array, known at its own rows only: return a function of rows instead")
        return np.asarray(self.function(rows), dtype=np.float64)

    def error(self, model: Any) -> float:
        """Mean squared error of ``model.predict(data)``, in squared units of the outcome.

        Raises
        ------
        StudyError
            If the predictions are not one finite number a row, or have row labels other than the data's.
        """
        predicted = _of_rows("predictions", model.predict(self.data), self.data)
        if predicted.shape != self.structural.shape:
            raise StudyError(
                f"predictions must be one number a row, shape {self.structural.shape}, got shape {predicted.shape}"
            )
        return float(np.mean((predicted - self.structural) ** 2))


def _of_rows(name: str, given: Any, rows: Any) -> np.ndarray[Any, Any]:
    """Finite numbers that stand beside the rows of data, by position, or by row labels that both have."""
    try:
        check_same_rows({"the data": rows, name: given})
        return numeric_array(name, given)
    except DataError as error:
        raise StudyError(str(error)) from error


def draw(simulate: Simulate, parameters: Mapping[str, Any], *, seed: int) -> tuple[Any, Any]:
    """Data and truth of one replication; the truth has ``error(model)``.

    Raises
    ------
    StudyError
        If the design does not return data and truth, or its truth is not one finite number a row of its data. Then every
        replication would fail alike.
    """
    result: object = simulate(seed=seed, **parameters)
    if not isinstance(result, tuple) or len(result) != 2:
        raise StudyError(f"a design must return (data, truth), got {type(result).__name__}: end it with `return data, truth`")
    data, truth = result
    if callable(getattr(truth, "error", None)):
        return data, truth
    rows = getattr(data, "frame", None)
    rows = data if rows is None else rows
    if isinstance(rows, (Mapping, tuple)) or not hasattr(rows, "__len__"):
        raise StudyError(
            f"a truth of one number a row needs data with rows, a table or an array, got {type(data).__name__}: return a truth "
            "with error(model) beside such data"
        )
    structural = truth(rows) if callable(truth) else truth
    wanted = f"the truth of a design must be one number a row of its data, shape ({len(rows)},)"
    remedy = "return an array of that shape, a function of rows, or an object with error(model)"
    values = _of_rows("the truth", structural, rows).astype(np.float64)
    if values.shape != (len(rows),):
        raise StudyError(f"{wanted}, got shape {values.shape}: {remedy}")
    return data, PointwiseTruth(rows, values, truth if callable(truth) else None)
