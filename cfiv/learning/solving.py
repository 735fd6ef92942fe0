"""Last layers in a run: what they are checked for, members side by side, and how far a solve may go.

The layers themselves are in :mod:`cfiv.learning.last_layer`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cfiv.checks import check_instance, refusal
from cfiv.errors import ParameterError, SingularError
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.run_file import without_addresses
from cfiv.runtime.draws import watched


def check_last_layer(layer: object) -> None:
    """Raise a ParameterError unless it is solved in closed form: an object, and not a class, with a method ``update``."""
    if isinstance(layer, type | dict | set) or not callable(getattr(layer, "update", None)):
        raise refusal(
            "last_layer", "Adaptive, Ridge, Proximal, Kalman, MovingAverage or an object with their update", layer, kind=True
        )


def describe_layer(layer: object) -> str:
    """In words that tell it from another: its repr, or, of a class that has none, what it holds."""
    text = without_addresses(layer)
    return f"{text} {without_addresses(vars(layer))}" if type(layer).__repr__ is object.__repr__ else text


def check_memory(memory: object, *, shape: tuple[int, int]) -> Memory:
    """What a layer's update gives, if it is a Memory with weights of this shape."""
    check_instance("what last_layer.update gives", memory, Memory, "a Memory")
    assert isinstance(memory, Memory)
    if memory.weights.shape != shape:
        raise ParameterError(f"last_layer must give weights of shape {shape}, a bias last, got {tuple(memory.weights.shape)}")
    return memory


def update_layer(
    layer: ClosedForm, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None
) -> Memory:
    """A layer's update, which may be a user's: it draws from the run, and what it gives is looked at."""
    with watched(layer):
        after = layer.update(memory, features=features, targets=targets, weights=weights)
    return check_memory(after, shape=(features.shape[1], targets.shape[1]))


def update_members(
    layer: ClosedForm, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None
) -> Memory:
    """A layer's update of members side by side: of features (members, n, d), targets (members, n, k), weights (members, n).

    A member whose system is singular has weights of nan, unless all are: that is a SingularError.
    """
    if getattr(layer, "side_by_side", False):
        return layer.update(memory, features=features, targets=targets, weights=weights)
    solved: dict[int, Memory] = {}
    singular: SingularError | None = None
    for place in range(len(features)):
        before = None
        if memory is not None:
            before = Memory(memory.weights[place], tuple(part[place] for part in memory.more), memory.pull)
        w = None if weights is None else weights[place]
        try:
            solved[place] = update_layer(layer, before, features=features[place], targets=targets[place], weights=w)
        except SingularError as error:
            singular = error
    if singular is not None and not solved:
        raise singular
    like = next(iter(solved.values()))
    nothing = Memory(torch.full_like(like.weights, torch.nan), tuple(torch.full_like(part, torch.nan) for part in like.more))
    new = [solved.get(place, nothing) for place in range(len(features))]
    return Memory(
        torch.stack([each.weights for each in new]),
        tuple(torch.stack(parts) for parts in zip(*(each.more for each in new), strict=True)),
    )


class Solving:
    """The layer of members with what it remembers, as a :class:`cfiv.numerics.last_layer.Solve`.

    Parameters
    ----------
    layer : ClosedForm
    memory : Memory or None
        Of the batch before.
    held : bool
        Whether the weights of the memory are taken as they are, where there are any.
    pull : float
        See :class:`~cfiv.learning.last_layer.Memory`.
    gain : float, optional
        The share of the way from the weights remembered to those solved that is gone, in (0, 1]; all of it by default. Gains
        that fall like 1/t let the weights settle at the mean of what all batches say. Ours.
    """

    def __init__(
        self, layer: ClosedForm, memory: Memory | None, *, held: bool = False, pull: float = 1.0, gain: float | None = None
    ) -> None:
        self._layer, self._gain = layer, gain
        self._before = None if memory is None else replace(memory, pull=pull)
        self._after = memory if held else None

    def __call__(self, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The weights (members, d, k)."""
        if self._after is None:
            before = self._before
            new = update_members(self._layer, before, features=features, targets=targets, weights=weights)
            if before is not None and self._gain is not None:
                new = replace(new, weights=before.weights + self._gain * (new.weights - before.weights))
            self._after = new
        return self._after.weights

    @property
    def memory(self) -> Memory:
        """What the layer remembers then, without a graph."""
        assert self._after is not None, "after the solve"
        return self._after.detached()
