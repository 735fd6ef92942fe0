"""Feature networks of several members that train side by side: fits on other splits, or with the samples swapped.

A leading axis of every input and of every feature is that of the members. What is here is what any such network can do, and a
network of any kind as that of the only member; plain ones of several members are in :mod:`cfiv.networks.stacked_networks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cfiv.networks.feature_maps import evaluate, features_of
from cfiv.networks.saved_networks import check_module
from cfiv.runtime.draws import running_again
from cfiv.runtime.module_state import put, state_of


@dataclass(frozen=True)
class Pass:
    """Features of a batch, and the way back to the parameters.

    Parameters
    ----------
    features : Tensor (members, n, k)
        A leaf, to take gradients of.
    gradients : callable
        From the gradient of a loss with respect to the features to those with respect to the parameters.
    """

    features: Tensor
    gradients: Callable[[Tensor], Sequence[Tensor | None]]


class MemberNetwork(Protocol):
    """One feature map of every member."""

    @property
    def steady(self) -> bool:
        """Whether its features are the same in training and in evaluation mode."""
        ...

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser moves."""
        ...

    def features(self, inputs: Tensor) -> Tensor:
        """From (members, n, ...) to (members, n, k), in evaluation mode."""
        ...

    def learn(self, inputs: Tensor) -> Pass:
        """The same in training mode, to go back from."""
        ...

    def state(self, member: int) -> Any:
        """A copy of what a member has learned."""
        ...

    def put(self, member: int, state: Any) -> None:
        """Return a member to a state."""
        ...

    def check(self, state: Any) -> Any:
        """A state from a file, if it can be one of these networks'; what it raises is one of ``tensor_file.DAMAGE``."""
        ...

    def evaluate(self, member: int, inputs: Tensor, *, state: Any = None) -> Tensor:
        """Features (n, k) of one member's rows (n, ...), now or in a state that it was in, in evaluation mode."""
        ...

    def finite(self, member: int) -> bool:
        """Whether all of a member's parameters are finite."""
        ...

    def module(self, member: int) -> nn.Module:
        """The member's network by itself, in evaluation mode."""
        ...


@contextmanager
def member_modules(networks: Sequence[MemberNetwork], place: int) -> Iterator[list[nn.Module]]:
    """The networks of one member by themselves, in evaluation mode inside."""
    modules = [network.module(place) for network in networks]
    yield modules
    for module in modules:
        module.train()


class Single:
    """A network of any kind, of the only member."""

    steady = False

    def __init__(self, network: nn.Module) -> None:
        self._network = network.train()
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def features(self, inputs: Tensor) -> Tensor:
        """By the network."""
        return evaluate(self._network, inputs[0])[None]

    def learn(self, inputs: Tensor) -> Pass:
        """By the network and its graph."""
        features = features_of(self._network, inputs[0])[None]

        def gradients(gradient: Tensor) -> Sequence[Tensor | None]:
            if not features.requires_grad:
                return [None] * len(self.parameters)
            with running_again():
                # Of a number: before it goes back from a tensor torch imports a library of symbolic mathematics, for a second.
                return torch.autograd.grad((features * gradient).sum(), self.parameters, allow_unused=True)

        return Pass(features.detach().requires_grad_(), gradients)

    def state(self, member: int) -> Any:
        """Of the module, with buffers."""
        return state_of(self._network)

    def put(self, member: int, state: Any) -> None:
        """Into the module."""
        put(self._network, state)

    def check(self, state: Any) -> Any:
        """Of the module."""
        return check_module(state, self._network)

    def evaluate(self, member: int, inputs: Tensor, *, state: Any = None) -> Tensor:
        """By the network, which is afterwards what it was."""
        if state is None:
            return evaluate(self._network, inputs)
        present = state_of(self._network)
        put(self._network, state)
        try:
            return evaluate(self._network, inputs)
        finally:
            put(self._network, present)

    def finite(self, member: int) -> bool:
        """Parameter by parameter."""
        return all(bool(parameter.isfinite().all()) for parameter in self._network.parameters())

    def module(self, member: int) -> nn.Module:
        """The network."""
        return self._network.eval()
