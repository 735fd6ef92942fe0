"""One step of supervised training: a batch and a state in, a state and its loss out, whatever the last layer.

``step(batch, state) -> (state, loss)``. The last layer's memory is a value of the state; the module and the optimiser are
mutable objects of torch that the state carries along, and a step changes them in place.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cfiv.checks import check_choice, check_flag, refusal
from cfiv.errors import DivergenceError, ParameterError
from cfiv.learning.last_layer import ClosedForm, Gradient, Memory
from cfiv.learning.optimisers import ADAM, Optimiser, OptimizerFactory, made_optimiser
from cfiv.learning.solving import update_layer
from cfiv.learning.training import Order
from cfiv.numerics.last_layer import last_layer_loss, mean_square
from cfiv.runtime.arrays import is_finite
from cfiv.runtime.draws import running_again, watched
from cfiv.runtime.processes import Processes
from cfiv.supervised.examples import Examples
from cfiv.supervised.last_linear_map import Captured, LastLinearMap
from cfiv.supervised.tasks import Classification, Task

Loss = Literal["squared", "cross-entropy"]


@dataclass(frozen=True)
class Recipe:
    """What stays the same from step to step."""

    last_layer: ClosedForm | Gradient
    order: Order
    task: Task
    loss: Loss
    mixed_precision: bool

    def check(self) -> None:
        """Raise a ParameterError where a part is none, or does not go with the others."""
        layer = self.last_layer
        solved = callable(getattr(layer, "update", None)) and not isinstance(layer, type | dict | set)
        if not isinstance(layer, Gradient) and not solved:
            raise refusal("last_layer", "Adaptive, Ridge, Proximal, Kalman, MovingAverage or Gradient", layer, kind=True)
        check_choice("order", self.order, ("solve-first", "backbone-first"))
        check_choice("loss", self.loss, ("squared", "cross-entropy"))
        check_flag("mixed_precision", self.mixed_precision)
        if self.loss == "cross-entropy" and not (isinstance(layer, Gradient) and isinstance(self.task, Classification)):
            raise ParameterError(
                "loss='cross-entropy' has no closed form: use last_layer=Gradient() and task='classification', or another loss"
            )


@dataclass(frozen=True)
class TrainerState:
    """What a step hands to the next: module and optimiser (changed in place; None where nothing learns), and the memory."""

    head: LastLinearMap
    optimiser: Optimiser | None
    memory: Memory

    @classmethod
    def begin(
        cls, head: LastLinearMap, *, last_layer: ClosedForm | Gradient, optimizer: OptimizerFactory | None
    ) -> TrainerState:
        """With an optimiser of the backbone, or of everything (ADAM by default), the module's own last layer as the first W."""
        optimizer = ADAM if optimizer is None else optimizer
        parameters = head.backbone()
        if isinstance(last_layer, Gradient):
            parameters = [p for p in head.module.parameters() if p.requires_grad]
            optimizer = optimizer if last_layer.optimizer is None else last_layer.optimizer
        return cls(head, made_optimiser(optimizer, parameters) if parameters else None, Memory(head.weights))


def step(batch: Examples, state: TrainerState, *, recipe: Recipe, pull: float = 1.0) -> tuple[TrainerState, float]:
    """One gradient step of the backbone and one solve of the last layer, on one batch; ``pull`` is the schedule's.

    With W the weights of the last layer, theta those of the backbone, and the loss a mean over rows,

        solve-first:     W <- closed form at theta;   theta <- theta - rate grad_theta loss(W, theta)
        backbone-first:  theta <- theta - rate grad_theta loss(W, theta);   W <- closed form at the new theta
        Gradient:        (W, theta) <- (W, theta) - rate grad loss(W, theta)

    where a plain step stands for the optimiser's. W is a constant in the gradient. A backbone-first step runs the module twice,
    both times in training mode.

    Returns
    -------
    state : TrainerState
    loss : float
        Of the batch, at the weights that the backbone's gradient was taken at, before it moved.

    Raises
    ------
    DivergenceError
        If the loss is not finite; then the parameters are those that it was found at.
    SingularError, DataError
        From the solve.

    References
    ----------
    Galashov et al., arXiv 2510.04606: equation 9 (solve first), algorithm 1 (backbone first), theorems 1 and 2 (the gradient).
    """
    layer, processes = recipe.last_layer, state.head.processes.sharing(len(batch))
    if not is_finite(batch.inputs):  # a module may hide it: NaN > 0 is as false as any
        raise DivergenceError("inputs are not finite")
    captured = _capture(batch, state, recipe)
    if isinstance(layer, Gradient):
        loss = joint_loss(captured, batch, state.head, recipe)
        descend(loss, state.optimiser, processes)
        return state, float(loss.detach())
    targets, weights = recipe.task.rows(batch.targets, captured, state.head), row_weights_of(batch, captured, state.head)
    memories = [state.memory]

    def update(features: Tensor) -> Memory:
        if not (is_finite(features) and is_finite(targets)):
            raise DivergenceError("features or targets are not finite")
        before = replace(state.memory, pull=pull)
        return update_layer(layer, before, features=features, targets=targets, weights=weights)

    def solve(*, features: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        if recipe.order == "solve-first":
            memories.append(update(features))
        return memories[-1].weights

    loss, _ = last_layer_loss(features=captured.features, targets=targets, solve=solve, weights=weights)
    descend(loss, state.optimiser, processes)
    if recipe.order == "backbone-first":
        with torch.no_grad():
            memories.append(update(_capture(batch, state, recipe).features))
    state.head.write(memories[-1].weights)
    return replace(state, memory=memories[-1]), float(loss.detach())


def joint_loss(captured: Captured, batch: Examples, head: LastLinearMap, recipe: Recipe) -> Tensor:
    """The loss of the module's own output, live in every parameter."""
    output = head.rows(captured.output, captured.shape).to(captured.features.dtype)
    weights = row_weights_of(batch, captured, head)
    if recipe.loss == "squared":
        return mean_square(output - recipe.task.rows(batch.targets, captured, head), weights=weights)
    assert isinstance(recipe.task, Classification)
    losses = F.cross_entropy(output, recipe.task.labels(batch.targets, captured, head), reduction="none")
    return losses.mean() if weights is None else (weights.to(losses) * losses).sum() / weights.sum().to(losses)


def row_weights_of(batch: Examples, captured: Captured, head: LastLinearMap) -> Tensor | None:
    """An example's weight at each of its rows (m,)."""
    return None if batch.weights is None else head.repeat(batch.weights, captured)


def descend(loss: Tensor, optimiser: Optimiser | None, processes: Processes) -> None:
    """One step of the optimiser, unless the loss is not finite, along the gradients of all processes that share the rows."""
    if not bool(torch.isfinite(loss.detach())):
        raise DivergenceError(f"the loss is {float(loss.detach())}")
    if optimiser is None or not loss.requires_grad:
        return
    optimiser.zero_grad(set_to_none=True)
    with running_again():
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
    if processes.count > 1:
        learning = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for parameter, gradient in zip(learning, processes.sum([each.grad for each in learning]), strict=True):
            parameter.grad = gradient
    try:
        with watched(optimiser):
            optimiser.step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ParameterError(
            f"the {type(optimiser).__name__} optimizer cannot take a step here ({error}): use another"
        ) from error
    optimiser.zero_grad(set_to_none=True)


def _capture(batch: Examples, state: TrainerState, recipe: Recipe) -> Captured:
    automatic: AbstractContextManager[None] = nullcontext()
    if recipe.mixed_precision:
        automatic = torch.autocast(batch.inputs.device.type, dtype=torch.bfloat16)
    with automatic:
        return state.head(batch.inputs)
