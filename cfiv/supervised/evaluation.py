"""Predictions of a trained module, and how good they are: in evaluation mode, without gradients, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cfiv.errors import DataError
from cfiv.networks.module_modes import in_mode
from cfiv.numerics.moments import accumulate, moments, solve_moments
from cfiv.runtime.arrays import is_finite
from cfiv.supervised.examples import Examples
from cfiv.supervised.last_linear_map import Captured, LastLinearMap
from cfiv.supervised.step import row_weights_of
from cfiv.supervised.tasks import Classification, Task

#: Examples that run at once.
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good predictions are. Row weights weigh every mean.

    Parameters
    ----------
    loss : float
        Mean over rows of the squared error, summed over the outputs of a row; for classes of the scaled one-hot targets.
    relative_l2 : float
        Mean over examples of ``|prediction - target| / |target|``, Euclidean norms over all of an example; nan for
        classes, and infinite where a target is zero everywhere.
    accuracy : float
        Share of the labels that are right; nan where targets are not labels.
    """

    loss: float
    relative_l2: float
    accuracy: float


def predict(head: LastLinearMap, task: Task, inputs: Tensor) -> Tensor:
    """What the task makes of the module's outputs, on the module's device."""
    # The inputs are their own targets: nobody looks.
    batch = Examples(inputs=inputs, targets=inputs)
    return torch.cat([task.predict(captured, head) for captured, _ in _capture(head, [batch])])


def evaluate(head: LastLinearMap, task: Task, batches: Iterable[Examples]) -> Evaluation:
    """Over all examples of the batches.

    Raises
    ------
    DataError
        If there are none, or their targets do not fit.
    """
    loss = mass = relative = examples = right = 0.0
    for captured, batch in _capture(head, batches):
        targets, residual, w = _compare(captured, batch, head, task)
        loss, mass = loss + float(w @ residual.square().sum(dim=1)), mass + float(w.sum())
        if isinstance(task, Classification):
            labels = head.rows(captured.output, captured.shape).argmax(dim=1)
            right += float(w @ (labels == targets.argmax(dim=1)).double())
            continue
        one = residual.new_ones(len(batch)) if batch.weights is None else batch.weights.double()
        truth = batch.targets.reshape(len(batch), -1).double()
        error = (captured.output.double().reshape(len(batch), -1) - truth).norm(dim=1)
        relative, examples = relative + float(one @ (error / truth.norm(dim=1))), examples + float(one.sum())
    if not mass:
        raise DataError("there is nothing to evaluate on: the data yield no batch")
    missing = float("nan")
    classes = isinstance(task, Classification)
    return Evaluation(
        loss=loss / mass,
        relative_l2=missing if classes else relative / examples,
        accuracy=right / mass if classes else missing,
    )


def squared_errors(head: LastLinearMap, task: Task, batches: Iterable[Examples]) -> Tensor:
    """Of each example (n,), float64: the weighted sum over its rows, scaled so that their mean is the loss of `evaluate`."""
    sums, mass = [], 0.0
    for captured, batch in _capture(head, batches):
        _, residual, w = _compare(captured, batch, head, task)
        example = head.repeat(torch.arange(len(batch), device=w.device), captured)
        order = example.argsort(stable=True)  # and no index_add: its sums on cuda are not the same twice
        sums.append((w * residual.square().sum(dim=1))[order].reshape(len(batch), -1).sum(dim=1))
        mass += float(w.sum())
    together = torch.cat(sums)
    return together * (len(together) / mass)


def refit(head: LastLinearMap, task: Task, batches: Iterable[Examples], *, beta: float) -> Tensor:
    """W of ``argmin_W mean |y - W' phi|^2 + beta |W|^2`` over all rows of the batches, from moments; shape (d, k), float64.

    Raises
    ------
    DataError, ParameterError
        If there are no rows, their targets do not fit, or beta is negative.

    Warns
    -----
    IllConditionedWarning
        Where few digits of W can be trusted.
    """
    return solve_moments(
        accumulate(
            moments(
                features=captured.features,
                targets=task.rows(batch.targets, captured, head),
                weights=row_weights_of(batch, captured, head),
            )
            for captured, batch in _capture(head, batches)
        ),
        ridge=beta,
    ).weights


def place(batch: Examples, module: nn.Module) -> Examples:
    """A batch on the device of a module, its floating-point inputs in the module's dtype.

    Raises
    ------
    DataError
        If that dtype is too narrow for a value.
    """
    first = _parameter(module)
    if first is None:
        return batch
    check_width(batch, module)
    inputs = batch.inputs.to(first.device, first.dtype if batch.inputs.is_floating_point() else None)
    weights = None if batch.weights is None else batch.weights.to(first.device)
    return Examples(inputs=inputs, targets=batch.targets.to(first.device), weights=weights)


def check_width(batch: Examples, module: nn.Module) -> None:
    """Raise a DataError where inputs or targets are finite, but beyond what the module computes with, or so small that it has
    zeros for them: in a table's column, or in all of what is no table.
    """
    first = _parameter(module)
    for role, values in (("inputs", batch.inputs), ("targets", batch.targets)):
        if first is not None and values.is_floating_point() and values.dtype.itemsize > first.dtype.itemsize:
            extremes = torch.stack(values.aminmax())
            if is_finite(extremes) and not is_finite(extremes.to(first.dtype)):
                raise DataError(
                    f"{role} must be within {first.dtype}, which the module computes with, got {extremes.abs().max():g}: "
                    "bring them to another scale, or call double() on the module"
                )
            largest = values.abs().amax(dim=0 if values.ndim <= 2 else tuple(range(values.ndim))).double()
            least = torch.finfo(first.dtype).tiny / torch.finfo(first.dtype).eps
            if bool(((largest > 0) & (largest < least)).any()):
                raise DataError(
                    f"{role} must not all be smaller than {least:.0e}, which leaves {first.dtype} no digits, got up to "
                    f"{largest[largest > 0].min():g}: bring them to another scale, or call double() on the module"
                )


def _parameter(module: nn.Module) -> nn.Parameter | None:
    """One that says where and in what a module computes; Fourier layers have complex ones too."""
    return next((p for p in module.parameters() if p.is_floating_point()), None)


def _compare(captured: Captured, batch: Examples, head: LastLinearMap, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (m, k), residuals (m, k) and weights (m,) of all rows, float64."""
    targets = task.rows(batch.targets, captured, head).double()
    residual = head.rows(captured.output, captured.shape).double() - targets
    weights = row_weights_of(batch, captured, head)
    return targets, residual, residual.new_ones(len(residual)) if weights is None else weights.double()


def _capture(head: LastLinearMap, batches: Iterable[Examples]) -> Iterator[tuple[Captured, Examples]]:
    for batch in batches:
        for start in range(0, len(batch), CHUNK):
            chunk = place(batch.rows(slice(start, start + CHUNK)), head.module)
            with torch.no_grad(), in_mode(head.module, training=False):
                captured = head(chunk.inputs)
            if not is_finite(captured.output):
                raise DataError(
                    "the module's outputs must be finite, got some that are infinite or missing: bring inputs to the scale of "
                    "those in training, or train again"
                )
            yield captured, chunk
