"""Feature maps of which each of several processes runs its share of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cfiv.networks.member_networks import MemberNetwork, Pass
from cfiv.networks.stacked_networks import member_network
from cfiv.runtime.processes import Processes, check_shareable, here


def shared_network(networks: Sequence[nn.Module]) -> MemberNetwork:
    """The members' networks as one, its rows shared by the processes of :func:`cfiv.runtime.processes.several_processes`.

    Raises
    ------
    ParameterError
        Where a network looks at other rows than its own.
    """
    processes, network = here(), member_network(networks)
    if processes.count == 1:
        return network
    for each in networks:
        check_shareable(each)
    return Shared(network, processes)


class Shared:
    """A network of every member, as a :class:`~cfiv.networks.member_networks.MemberNetwork`: from all rows to all features.

    Each process runs its own rows, is given the features of the others, and so the gradient of all; it goes back with that of
    its own rows, and the gradients of parameters are added up.
    """

    def __init__(self, network: MemberNetwork, processes: Processes) -> None:
        self._network, self._processes = network, processes
        self.steady, self.parameters = network.steady, network.parameters
        self.state, self.put, self.check = network.state, network.put, network.check
        self.finite, self.module = network.finite, network.module

    def features(self, inputs: Tensor) -> Tensor:
        """Of all rows, in evaluation mode."""
        processes, rows = self._processes.sharing(inputs.shape[1]), inputs.shape[1]
        return processes.gather(self._network.features(processes.own(inputs, axis=1)), rows=rows, axis=1)

    def learn(self, inputs: Tensor) -> Pass:
        """Of all rows, to go back from."""
        processes, rows = self._processes.sharing(inputs.shape[1]), inputs.shape[1]
        with processes.undrawn():
            own = self._network.learn(processes.own(inputs, axis=1))
        features = processes.gather(own.features.detach(), rows=rows, axis=1).requires_grad_()

        def gradients(gradient: Tensor) -> Sequence[Tensor | None]:
            return processes.sum(own.gradients(processes.own(gradient, axis=1)))

        return Pass(features, gradients)

    def evaluate(self, member: int, inputs: Tensor, *, state: Any = None) -> Tensor:
        """Of all rows of one member, now or in a state that it was in."""
        processes = self._processes.sharing(len(inputs))
        own = self._network.evaluate(member, processes.own(inputs), state=state)
        return processes.gather(own, rows=len(inputs))
