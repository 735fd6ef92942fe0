"""Networks as plain data: what a model file can say of a network without holding code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cfiv.learning.networks import FeatureNetwork

_POOLING = ("kernel_size", "stride", "padding", "ceil_mode")
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
#: Layers that carry nothing but these constructor arguments besides their tensors.
_LAYERS: dict[str, tuple[type[nn.Module], Callable[[Any], dict[str, Any]]]] = {
    "FeatureNetwork": (FeatureNetwork, lambda layer: layer.configuration),
    "Linear": (nn.Linear, lambda layer: _picked(layer, "in_features", "out_features") | {"bias": layer.bias is not None}),
    "BatchNorm1d": (nn.BatchNorm1d, lambda layer: _picked(layer, *_BATCH_NORM)),
    "AvgPool2d": (nn.AvgPool2d, lambda layer: _picked(layer, *_POOLING, "count_include_pad", "divisor_override")),
    "MaxPool2d": (nn.MaxPool2d, lambda layer: _picked(layer, *_POOLING, "dilation", "return_indices")),
    "Conv2d": (nn.Conv2d, lambda layer: _picked(layer, *_CONVOLUTION) | {"bias": layer.bias is not None}),
    "BatchNorm2d": (nn.BatchNorm2d, lambda layer: _picked(layer, *_BATCH_NORM)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, lambda layer: _picked(layer, "output_size")),
    "Unflatten": (nn.Unflatten, lambda layer: _picked(layer, "dim", "unflattened_size")),
    "LayerNorm": (nn.LayerNorm, lambda layer: {"normalized_shape": list(layer.normalized_shape), "eps": layer.eps}),
    "Dropout": (nn.Dropout, lambda layer: _picked(layer, "p")),
    "Flatten": (nn.Flatten, lambda layer: _picked(layer, "start_dim", "end_dim")),
    "GELU": (nn.GELU, lambda layer: _picked(layer, "approximate")),
    "LeakyReLU": (nn.LeakyReLU, lambda layer: _picked(layer, "negative_slope")),
    "ELU": (nn.ELU, lambda layer: _picked(layer, "alpha")),
    "Softplus": (nn.Softplus, lambda layer: _picked(layer, "beta", "threshold")),
    **{kind.__name__: (kind, lambda layer: {}) for kind in (nn.Identity, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Mish)},
}


def describe(network: nn.Module) -> dict[str, Any] | None:
    """The network as JSON-able data, or None where it is made of anything but plain layers and ``nn.Sequential``."""
    if network._forward_hooks or network._forward_pre_hooks or "forward" in vars(network):  # code, which may change its output
        return None
    if type(network) is nn.Sequential:
        children = [describe(child) for child in network]
        return None if any(child is None for child in children) else {"layer": "Sequential", "children": children}
    name = type(network).__name__
    known = _LAYERS.get(name)
    if known is None or type(network) is not known[0] or getattr(network, "parametrizations", None):
        return None
    arguments = known[1](network)
    # A layer built with arguments that the description leaves out (an affine-free norm, say) has other tensors: refuse it.
    with torch.device("meta"):  # shapes only: no memory, and no draw from the global generator
        shapes = {key: value.shape for key, value in known[0](**arguments).state_dict().items()}
    same = shapes == {key: value.shape for key, value in network.state_dict().items()}
    return {"layer": name, "arguments": arguments} if same else None


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The network that :func:`describe` described, with fresh weights.

    Raises
    ------
    KeyError, TypeError
        If the description is not one of describe's.
    """
    if description["layer"] == "Sequential":
        return nn.Sequential(*(rebuild(child) for child in description["children"]))
    return _LAYERS[description["layer"]][0](**description["arguments"])


def _picked(layer: nn.Module, *names: str) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in names}
