"""Plain networks of several members as one: all their layers as batched products.

Members share nothing but the operations. A step is many small operations, so several members cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfiv.file_values import tensor_of
from cfiv.networks.default_networks import FeatureNetwork
from cfiv.networks.member_networks import MemberNetwork, Pass, Single

#: Layers without parameters that see each value alone, and draw nothing: the function, and its gradient from that of what it
#: gives, what it was given and what it gave.
Elementwise = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]
ELEMENTWISE: dict[type[nn.Module], Elementwise] = {
    nn.Identity: (lambda x: x, lambda g, x, y: g),
    nn.ReLU: (torch.relu, lambda g, x, y: g * (y > 0)),
    nn.SiLU: (F.silu, lambda g, x, y: torch.ops.aten.silu_backward(g, x)),
    nn.Tanh: (torch.tanh, lambda g, x, y: g * (1 - y * y)),
    nn.Sigmoid: (torch.sigmoid, lambda g, x, y: g * y * (1 - y)),
}


def member_network(networks: Sequence[nn.Module]) -> MemberNetwork:
    """The members' networks as one: side by side where :func:`can_be_stacked`; a single one of any kind."""
    if can_be_stacked(networks):
        return Stacked(networks)
    (network,) = networks
    return Single(network)


def can_be_stacked(networks: Sequence[nn.Module]) -> bool:
    """Whether the networks are the same plain chain of linear layers and elementwise functions, all of which learns."""
    chains = [_chain(network) for network in networks]
    if any(chain is None for chain in chains):
        return False
    shapes = {
        (getattr(network, "carry", False), *(_shape(layer) for layer in chain or ()))
        for network, chain in zip(networks, chains, strict=True)
    }
    kinds = {(p.dtype, p.device) for network in networks for p in network.parameters()}
    linear = [layer for chain in chains for layer in chain or () if isinstance(layer, nn.Linear)]
    return len(shapes) == 1 and len(kinds) <= 1 and len(set(map(id, linear))) == len(linear)


class Stacked:
    """Plain networks as batched products, all parameters of a member in one row."""

    steady = True

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._modules = list(networks)
        self._layers = _chain(networks[0]) or []
        self._carry = bool(getattr(networks[0], "carry", False))
        self._flat = nn.Parameter(torch.stack([_row(network) for network in networks]))
        self._parts = self._split(self._flat.detach())  # views: they move with the rows
        self.parameters = [self._flat] if self._flat.numel() else []

    def features(self, inputs: Tensor) -> Tensor:
        """By one product a layer."""
        return self._forward(inputs, self._parts)[0]

    def learn(self, inputs: Tensor) -> Pass:
        """The same, written out backwards: a graph of small operations takes longer to make than to compute."""
        features, seen = self._forward(inputs, self._parts)
        return Pass(
            features.detach().requires_grad_(), lambda gradient: [self._backward(gradient, seen)] if self.parameters else []
        )

    def state(self, member: int) -> Tensor:
        """A row."""
        return self._flat.detach()[member].clone()

    def put(self, member: int, state: Tensor) -> None:
        """A row."""
        with torch.no_grad():
            self._flat[member] = state

    def check(self, state: Any) -> Tensor:
        """A row."""
        return tensor_of(state, self._flat.shape[1:], self._flat.dtype)

    def evaluate(self, member: int, inputs: Tensor, *, state: Tensor | None = None) -> Tensor:
        """By the row."""
        row = self._flat.detach()[member] if state is None else state
        return self._forward(inputs[None], self._split(row[None]))[0][0]

    def finite(self, member: int) -> bool:
        """By the row."""
        return bool(self._flat.detach()[member].isfinite().all())

    def module(self, member: int) -> nn.Module:
        """Its own module, with what it has learned."""
        module = self._modules[member]
        linear = [layer for layer in _chain(module) or () if isinstance(layer, nn.Linear)]
        parts = iter(self._split(self._flat.detach()[member][None]))
        with torch.no_grad():
            for layer in linear:
                layer.weight.copy_(next(parts)[0].mT)
                if _has_bias(layer):
                    layer.bias.copy_(next(parts)[0, 0])
        return module.eval()

    def _split(self, flat: Tensor) -> list[Tensor]:
        """Weights (members, in, out) and biases (members, 1, out) of the layers, views of rows (members, parameters)."""
        parts, start = [], 0
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                shapes = [(layer.in_features, layer.out_features)]
                if _has_bias(layer):
                    shapes.append((1, layer.out_features))
                for shape in shapes:
                    size = shape[0] * shape[1]
                    parts.append(flat[:, start : start + size].view(len(flat), *shape))
                    start += size
        return parts

    def _forward(self, inputs: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Features, and what every layer was given, with what the last one gave."""
        x, following = inputs.flatten(start_dim=2), iter(parts)
        seen = [x]
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                weight = next(following)
                x = torch.baddbmm(next(following), x, weight) if _has_bias(layer) else torch.bmm(x, weight)
            else:
                x = ELEMENTWISE[type(layer)][0](x)
            seen.append(x)
        return torch.cat([seen[0], x], dim=2) if self._carry else x, seen

    def _backward(self, gradient: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """The gradient of the rows of parameters, layer by layer, from the last to the first."""
        g = gradient[..., seen[0].shape[2] :] if self._carry else gradient
        parts, pieces = list(self._parts), []
        for place in reversed(range(len(self._layers))):
            layer, x, y = self._layers[place], seen[place], seen[place + 1]
            if not isinstance(layer, nn.Linear):
                g = ELEMENTWISE[type(layer)][1](g, x, y)
                continue
            if _has_bias(layer):
                parts.pop()
                pieces.append(g.sum(dim=1))
            weight = parts.pop()
            pieces.append(torch.bmm(x.mT, g).flatten(start_dim=1))
            if not parts:  # nothing before it learns
                break
            g = torch.bmm(g, weight.mT)
        return torch.cat(pieces[::-1], dim=1)


def _chain(network: nn.Module) -> list[nn.Module] | None:
    """The layers that a plain network applies one after another; None for any other network."""
    hooks = (network._forward_hooks, network._forward_pre_hooks, network._backward_hooks, network._backward_pre_hooks)
    if any(hooks) or "forward" in vars(network):
        return None
    if type(network) is FeatureNetwork:
        return _chain(network.layers)
    if type(network) is nn.Sequential:
        chains = [_chain(part) for part in network if not isinstance(part, FeatureNetwork)]
        plain = [chain for chain in chains if chain is not None]
        return [layer for chain in plain for layer in chain] if len(plain) == len(network) else None
    if type(network) is nn.Linear:
        learns = all(parameter.requires_grad for parameter in network.parameters())
        return [network] if learns and not network._parameters.keys() - {"weight", "bias"} else None
    return [network] if type(network) in ELEMENTWISE else None


def _has_bias(layer: nn.Linear) -> bool:
    return layer._parameters["bias"] is not None


def _shape(layer: nn.Module) -> tuple[object, ...]:
    if isinstance(layer, nn.Linear):
        return (nn.Linear, layer.in_features, layer.out_features, _has_bias(layer))
    return (type(layer),)


def _row(network: nn.Module) -> Tensor:
    """All parameters of a plain network, in the order of ``Stacked._split``."""
    parts = []
    for layer in _chain(network) or ():
        if isinstance(layer, nn.Linear):
            parts.append(layer.weight.detach().mT.flatten())
            if _has_bias(layer):
                parts.append(layer.bias.detach())
    return torch.cat(parts) if parts else torch.zeros(0)
