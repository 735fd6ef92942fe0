"""What a target is: numbers to come close to, or a class to name. Either becomes rows (m, k) of one least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cfiv.checks import check_choice, check_number
from cfiv.errors import DataError
from cfiv.supervised.last_linear_map import Captured, LastLinearMap


class Task(Protocol):
    """How targets are read, and what a module predicts."""

    def rows(self, targets: Tensor, captured: Captured, head: LastLinearMap) -> Tensor:
        """Targets (m, k) of the solve."""
        ...

    def predict(self, captured: Captured, head: LastLinearMap) -> Tensor:
        """The prediction that the module's output stands for."""
        ...


@dataclass(frozen=True)
class Regression:
    """Targets in the shape of the module's output; for operators every point of the grid is a row."""

    def rows(self, targets: Tensor, captured: Captured, head: LastLinearMap) -> Tensor:
        """The targets themselves; axes of length one may be missing.

        Raises
        ------
        DataError
            If their shape is another.
        """
        output = captured.output.shape
        if [size for size in targets.shape if size != 1] != [size for size in output if size != 1]:
            raise DataError(
                f"targets must have the shape of the module's output, {tuple(output)}, got {tuple(targets.shape)}: give "
                f"targets of that shape, or a last layer ({head.name!r}) of another width"
            )
        return head.rows(targets, captured.shape).to(captured.features.dtype)

    def predict(self, captured: Captured, head: LastLinearMap) -> Tensor:
        """The output."""
        return captured.output


@dataclass(frozen=True)
class Classification:
    """Labels 0 ... k - 1; as least-squares targets one-hot rows times ``scale``.

    References
    ----------
    Hui and Belkin, ICLR 2021, arXiv 2006.07322: their M is ``scale``, and their k, which weighs the true class, is 1 here, so
    that one Gram matrix serves every class.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_number("one_hot_scale", self.scale, above=0.0))

    def labels(self, targets: Tensor, captured: Captured, head: LastLinearMap) -> Tensor:
        """Checked labels (m,).

        Raises
        ------
        DataError
            If they are not whole numbers, not one a row, or outside the classes.
        """
        rows = len(captured.features)
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool or targets.numel() != rows:
            raise DataError(
                f"labels must be whole numbers, one for each of {rows} rows, got shape {tuple(targets.shape)} of "
                f"{targets.dtype}: give the indices of the classes"
            )
        grid = _grid(captured, head)
        given = [size for size in targets.shape if size != 1]
        if given not in ([size for size in grid if size != 1], [size for size in (grid[0], prod(grid[1:])) if size != 1]):
            raise DataError(
                f"labels must have shape {grid}, one for each row, got {tuple(targets.shape)}: bring axes in that order"
            )
        labels = head.rows(targets, _one_channel(captured.shape, head)).flatten().long()
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= head.targets:
            raise DataError(
                f"labels must be between 0 and {head.targets - 1}, the classes of the last layer {head.name!r}, got "
                f"{low if low < 0 else high}: number the classes from 0, or give a wider last layer"
            )
        return labels

    def rows(self, targets: Tensor, captured: Captured, head: LastLinearMap) -> Tensor:
        """Scaled one-hot rows."""
        labels = self.labels(targets, captured, head)
        return self.scale * F.one_hot(labels, head.targets).to(captured.features.dtype)

    def predict(self, captured: Captured, head: LastLinearMap) -> Tensor:
        """The class with the largest output."""
        labels = head.rows(captured.output, captured.shape).argmax(dim=1).reshape(_one_channel(captured.shape, head))
        return labels.permute(head.order).reshape(_grid(captured, head))


def _grid(captured: Captured, head: LastLinearMap) -> tuple[int, ...]:
    """The shape of the labels: that of the layer's output without channels, its axes in the order of the module's."""
    channels = head.channel_axis % len(captured.shape)
    return tuple(captured.shape[axis] for axis in head.order if axis != channels)


def _one_channel(shape: tuple[int, ...], head: LastLinearMap) -> tuple[int, ...]:
    """The shape of one number a row."""
    axis = head.channel_axis % len(shape)
    return *shape[:axis], 1, *shape[axis + 1 :]


def make_task(name: Literal["regression", "classification"], *, one_hot_scale: float) -> Task:
    """By its name; the scale is checked whether it is used or not."""
    check_choice("task", name, ("regression", "classification"))
    classes = Classification(one_hot_scale)
    return classes if name == "classification" else Regression()
