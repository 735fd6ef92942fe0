"""Last layers in a run: what they are checked for, their schedule, and members side by side.

The layers themselves are in :mod:`cfiv.learning.last_layer`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfiv.checks import check_instance, refusal
from cfiv.errors import ParameterError, SingularError
from cfiv.learning.last_layer import ClosedForm, Memory, Proximal
from cfiv.learning.run_file import without_addresses
from cfiv.runtime.draws import watched


@dataclass(frozen=True)
class Settling:
    """Another layer, of whose way from the previous weights to the new ones only a share is gone.

    Gains that fall like 1/t let the weights settle at the mean of what all batches say. Ours.

    Parameters
    ----------
    layer : ClosedForm
    gain : float
        In (0, 1].
    """

    layer: ClosedForm
    gain: float

    @property
    def side_by_side(self) -> bool:
        """As the layer."""
        return getattr(self.layer, "side_by_side", False)

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """Part of the way."""
        new = self.layer.update(memory, features=features, targets=targets, weights=weights)
        if memory is None:
            return new
        return Memory(memory.weights + self.gain * (new.weights - memory.weights), new.more)


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


def scheduled(layer: ClosedForm, factor: float) -> ClosedForm:
    """The layer with its pull to the previous weights, where it has one, at a factor of what it is at the end of training."""
    return replace(layer, lam=layer.lam * factor) if isinstance(layer, Proximal) else layer


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
        before = None if memory is None else Memory(memory.weights[place], tuple(part[place] for part in memory.more))
        w = None if weights is None else weights[place]
        try:
            with watched(layer):
                after = layer.update(before, features=features[place], targets=targets[place], weights=w)
        except SingularError as error:
            singular = error
        else:
            solved[place] = check_memory(after, shape=(features.shape[-1], targets.shape[-1]))
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
    """

    def __init__(self, layer: ClosedForm, memory: Memory | None, *, held: bool = False) -> None:
        self._layer, self._memory = layer, memory
        self._after = memory if held else None

    def __call__(self, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The weights (members, d, k)."""
        if self._after is None:
            self._after = update_members(self._layer, self._memory, features=features, targets=targets, weights=weights)
        return self._after.weights

    @property
    def memory(self) -> Memory:
        """What the layer remembers then, without a graph."""
        assert self._after is not None, "after the solve"
        return self._after.detached()
