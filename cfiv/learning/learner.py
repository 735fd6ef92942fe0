"""Networks that learn together, and their optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfiv.learning.adam import Adam
from cfiv.learning.optimisers import Optimiser
from cfiv.networks.member_networks import MemberNetwork, Pass


@dataclass(frozen=True)
class Learner:
    """Networks that take their gradient steps together, and their optimiser; None where none of them has parameters."""

    networks: tuple[MemberNetwork, ...]
    optimiser: Optimiser | None

    @classmethod
    def of(cls, networks: Iterable[tuple[MemberNetwork | None, float, float]], *, decoupled: bool) -> Learner:
        """Adam, or AdamW with ``decoupled`` weight decay, for networks with their peak rates and decays."""
        there = [(network, rate, decay) for network, rate, decay in networks if network is not None]
        groups = [
            {"params": network.parameters, "lr": rate, "peak": rate, "weight_decay": decay}
            for network, rate, decay in there
            if network.parameters
        ]
        return cls(tuple(network for network, *_ in there), Adam(groups, decoupled=decoupled) if groups else None)

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to a fraction of its peak."""
        for group in () if self.optimiser is None else self.optimiser.param_groups:
            group["lr"] = factor * group["peak"]

    def descend(self, losses: Tensor, *passes: Sequence[Pass]) -> None:
        """One gradient step down the losses (members,), which depend on the features of some passes of every network."""
        leaves = [one.features for some in passes for one in some]
        if self.optimiser is None or not leaves:
            return
        gradients = iter(torch.autograd.grad(losses.sum(), leaves, materialize_grads=True, allow_unused=True))
        self.step(*([one.gradients(next(gradients)) for one in some] for some in passes))

    def step(self, *gradients: Sequence[Sequence[Tensor | None]]) -> None:
        """One step of the optimiser; for every network the gradients of its parameters, those of several passes to be added."""
        if self.optimiser is None:
            return
        for network, found in zip(self.networks, gradients, strict=True):
            for parameter, *parts in zip(network.parameters, *found, strict=True):
                there = [part for part in parts if part is not None]
                parameter.grad = sum(there[1:], start=there[0]) if there else None
        self.optimiser.step()
