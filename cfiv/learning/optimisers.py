"""Optimisers of what is trained: our own, and those that a user's callable makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from cfiv.checks import check_callable, check_instance
from cfiv.errors import ParameterError
from cfiv.learning.adam import Adam

Optimiser = torch.optim.Optimizer | Adam
#: What makes an optimiser for given parameters, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimiser]
#: Of the trainer, where a user gives none.
ADAM: OptimizerFactory = partial(Adam, lr=1e-3)


def check_optimizer(factory: object) -> None:
    """Raise a ParameterError unless it is what makes an optimiser, and not an optimiser."""
    what = "a callable from parameters to an optimizer, such as partial(torch.optim.Adam, lr=1e-3)"
    why = "the parameters are known only to fit, so give what makes it" if isinstance(factory, torch.optim.Optimizer) else ""
    check_callable("optimizer", factory, what, why=why)


def made_optimiser(factory: OptimizerFactory, parameters: list[nn.Parameter]) -> Optimiser:
    """The optimiser that a factory makes for parameters, of all of them and of no others.

    Raises
    ------
    ParameterError
        If it makes none, one of other parameters, or one that evaluates the loss by itself.
    """
    try:
        made = factory(list(parameters))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ParameterError(f"optimizer could not be called with the parameters to learn: {error}") from error
    check_instance("what optimizer makes", made, (torch.optim.Optimizer, Adam), "a torch optimizer")
    name = type(made).__name__
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ParameterError(
            f"optimizer must take a step from one gradient, got {name}, which evaluates the loss by itself: use "
            "partial(torch.optim.Adam, lr=1e-3), say"
        )
    theirs, ours = ({id(p) for p in some} for some in ((p for g in made.param_groups for p in g["params"]), parameters))
    if theirs != ours:
        raise ParameterError(
            f"optimizer must be of the parameters that it is given, got {name} of {len(theirs & ours)} of the {len(ours)} and "
            f"of {len(theirs - ours)} others: use what the callable is given, and requires_grad_(False) for what is to rest"
        )
    return made
