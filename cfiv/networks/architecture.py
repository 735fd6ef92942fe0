"""Networks as plain data: what a model file can say of a network without holding code."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cfiv.networks.default_networks import FeatureNetwork

_POOLING = ("kernel_size", "stride", "padding", "ceil_mode")
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "bias")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
#: Layers that carry nothing but these constructor arguments besides their tensors.
_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "FeatureNetwork": (FeatureNetwork, ("inputs", "hidden", "outputs", "carry")),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm1d": (nn.BatchNorm1d, _BATCH_NORM),
    "AvgPool2d": (nn.AvgPool2d, (*_POOLING, "count_include_pad", "divisor_override")),
    "MaxPool2d": (nn.MaxPool2d, (*_POOLING, "dilation", "return_indices")),
    "Conv2d": (nn.Conv2d, _CONVOLUTION),
    "BatchNorm2d": (nn.BatchNorm2d, _BATCH_NORM),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "Unflatten": (nn.Unflatten, ("dim", "unflattened_size")),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps")),
    "Dropout": (nn.Dropout, ("p",)),
    "Flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "GELU": (nn.GELU, ("approximate",)),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "ELU": (nn.ELU, ("alpha",)),
    "Softplus": (nn.Softplus, ("beta", "threshold")),
    **{kind.__name__: (kind, ()) for kind in (nn.Identity, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Mish)},
}


def describe(network: nn.Module) -> dict[str, Any] | None:
    """The network as JSON-able data, or None where it is made of anything but plain layers and ``nn.Sequential``."""
    if _is_altered(network):
        return None
    if type(network) is nn.Sequential:
        # Not named_children, which leaves out a layer that is there twice.
        children = {name: describe(child) for name, child in network._modules.items()}
        if network._parameters or network._buffers or None in children.values():
            return None
        return {"layer": "Sequential", "names": list(children), "children": list(children.values())}
    name = type(network).__name__
    known = _LAYERS.get(name)
    if known is None or type(network) is not known[0]:
        return None
    arguments = {argument: _argument(network, argument) for argument in known[1]}
    # A layer built with arguments that the description leaves out (an affine-free norm, say) has other tensors: refuse it.
    with torch.device("meta"):  # shapes only: no memory, and no draw from the global generator
        shapes = {key: value.shape for key, value in known[0](**arguments).state_dict().items()}
    same = shapes == {key: value.shape for key, value in network.state_dict().items()}
    return {"layer": name, "arguments": arguments} if same else None


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The network that :func:`describe` described, with fresh weights.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the description is not one of describe's.
    """
    if description["layer"] == "Sequential":
        children = [rebuild(child) for child in description["children"]]
        names = description.get("names", [str(i) for i in range(len(children))])  # not in files of format 2
        return nn.Sequential(OrderedDict(zip(names, children, strict=True)))
    kind, names = _LAYERS[description["layer"]]
    arguments = description["arguments"]
    if set(arguments) != set(names):  # no device, for one
        raise ValueError(f"a {description['layer']} has the arguments {', '.join(names)}, got {', '.join(arguments)}")
    return kind(**arguments)


@contextmanager
def bounded(module: nn.Module, *, most: int) -> Iterator[None]:
    """Inside, a layer of a rebuilt network that would make more numbers than ``most`` is refused with a ValueError."""

    def check(layer: nn.Module, given: tuple[Tensor]) -> None:
        size = _largest(layer, given[0].shape)
        if size > most:
            raise ValueError(
                f"a layer {type(layer).__name__} that makes {size} numbers of inputs of shape {tuple(given[0].shape)}"
            )

    handles = [layer.register_forward_pre_hook(check) for layer in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _largest(layer: nn.Module, shape: torch.Size) -> int:
    """How many numbers a layer makes of an input at most: by its width, or by what it pads or pools images to."""
    if isinstance(layer, nn.Linear):
        return math.prod(shape[:-1]) * layer.out_features
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        wanted = zip(_each_side(layer.output_size), shape[-2:], strict=True)
        return math.prod(shape[:-2]) * math.prod(own if side is None else side for side, own in wanted)
    if not isinstance(layer, (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)):
        return math.prod(shape)
    padding = _each_side(layer.padding)
    if isinstance(layer.padding, str):  # "same" or "valid": by no more than the reach of the kernel
        reach = zip(_each_side(layer.dilation), _each_side(layer.kernel_size), strict=True)
        padding = tuple(apart * (points - 1) for apart, points in reach)
    channels: int = max(math.prod(shape[:-2]), getattr(layer, "out_channels", 1))
    return channels * math.prod(own + 2 * int(added) for own, added in zip(shape[-2:], padding, strict=True))


def _each_side(value: Any) -> tuple[Any, ...]:
    """An argument of a layer on images, of which one number is for both sides."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _is_altered(network: nn.Module) -> bool:
    """Whether it computes something else than its class says: parametrised, with hooks, or with a ``forward`` of its own."""
    hooks = network._forward_hooks or network._forward_pre_hooks
    return bool(hooks) or "forward" in vars(network) or bool(getattr(network, "parametrizations", None))


def _argument(layer: nn.Module, name: str) -> Any:
    """What a layer was built with, as it keeps it."""
    value = getattr(layer, name)
    if name == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value
