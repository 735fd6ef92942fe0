"""How a user's networks become ours: made for a shape, copied, drawn anew, and refused with the layer that does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from cfiv.errors import ParameterError
from cfiv.networks.feature_maps import evaluate
from cfiv.runtime.module_state import extra_of, real_dtype, tensors_of
from cfiv.tensor_file import UnsavableError, check_savable

#: None (chosen from the shapes), a factory from the input width (or image shape) to a module, or a module.
NetworkSpec = None | nn.Module | Callable[[Any], nn.Module]


def build(spec: NetworkSpec, *, shape: Sequence[int], default: Callable[[Sequence[int]], nn.Module], role: str) -> nn.Module:
    """A freshly initialised network for inputs of this shape; call inside :func:`seeded`.

    A module given by the user is copied and its layers re-initialised, so the original is never touched and no two fits share
    weights. Layers whose parameters cannot be re-initialised (no ``reset_parameters``, or parametrised such as spectral norm)
    keep the values given: give a factory for those. Frozen layers (``requires_grad=False``, a pretrained encoder) keep them
    too.

    Parameters
    ----------
    spec : None, callable or Module
    shape : sequence of int
        Shape of one input; factories get the width for flat inputs and the shape for images.
    default : callable
        Used where ``spec`` is None.
    role : str
        For messages.

    Raises
    ------
    ParameterError
        If the specification is of another type, or the network does not map (rows, *shape) to (rows, features).
    """
    if spec is None:
        network = default(shape)
    elif isinstance(spec, nn.Module):
        check_unscripted(spec, f"{role}_network")
        network = copied(spec, role)
        for module in network.modules():
            if can_be_drawn_anew(module):
                module.reset_parameters()  # type: ignore[operator]
    elif callable(spec):
        given = shape[0] if len(shape) == 1 else tuple(shape)
        try:
            made: object = spec(given)
        except TypeError as error:
            what = "width" if len(shape) == 1 else "shape"
            raise ParameterError(
                f"the {role}_network factory could not be called with {given}, the {what} of its input ({error}): give a "
                "function of that one argument, or a module"
            ) from error
        # A copy, in case the factory hands out one and the same module.
        if not isinstance(made, nn.Module):
            raise ParameterError(f"the {role}_network factory must return a torch module, got {type(made).__name__}")
        check_unscripted(made, f"{role}_network")
        with suppress(RuntimeError, ValueError, TypeError):  # what is wrong with it is said below
            made_ready(made, shape)  # torch cannot copy all lazy layers
        network = copied(made, role)
    else:
        raise ParameterError(f"{role}_network must be None, a factory or a torch module, got {type(spec).__name__}")
    check_network(network, shape=shape, role=role)
    check_kept(network, f"{role}_network")
    return network


def copied(network: nn.Module, role: str) -> nn.Module:
    """A copy that shares nothing with a network of a user's.

    Raises
    ------
    ParameterError
        If it cannot be copied, or has no values.
    """
    if any(tensor.is_meta for tensor in tensors_of(network).values()):
        raise ParameterError(
            f"the {role}_network is on the meta device, where tensors have no values: make it on the cpu, or give a factory"
        )
    try:
        return copy.deepcopy(network)
    except (TypeError, RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ParameterError(
            f"the {role}_network cannot be copied ({str(error).splitlines()[0]}): two fits may not share one; keep what has no "
            "copy (locks, open files, results of computations) out of the module"
        ) from error


def check_unscripted(network: nn.Module, what: str) -> None:
    """Refuse what torch.jit has made, of which torch neither shows the layers nor lets parameters be held still.

    Raises
    ------
    ParameterError
        Which names the part.
    """
    for name, part in network.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"its {name!r} is" if name else "it is"
            raise ParameterError(
                f"the {what} must be made of torch.nn, and {where} of torch.jit: give it as it was before that"
            )


def made_ready(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """The network, with layers that are lazy given the widths that inputs of this shape give them."""
    if any(is_lazy(parameter) for parameter in network.parameters()):
        evaluate(network, torch.zeros(2, *shape, dtype=real_dtype(network)))
    return network


def check_kept(network: nn.Module, what: str) -> None:
    """Refuse networks that keep what no file of cfiv's could hold, before anything is trained.

    Raises
    ------
    ParameterError
        Which names the part.
    """
    for name, kept in extra_of(network).items():
        try:
            check_savable(kept)
        except UnsavableError as error:
            raise ParameterError(
                f"the {what} keeps an extra state in {name or type(network).__name__!r} that cannot be saved "
                f"(it has {error}): let its get_extra_state give tensors, numbers, text, None, and lists and dicts "
                "of them"
            ) from None


def can_be_drawn_anew(layer: nn.Module) -> bool:
    """Whether :func:`build` initialises a layer of a module that it is given: it can, and is not frozen."""
    frozen = any(not parameter.requires_grad for parameter in layer.parameters(recurse=False))
    return callable(getattr(layer, "reset_parameters", None)) and not frozen


def check_network(network: nn.Module, *, shape: Sequence[int], role: str) -> None:
    """Refuse networks that do not map (rows, *shape) to (rows, features).

    Parameters
    ----------
    network : Module
    shape : sequence of int
        Of one input.
    role : str
        For messages.

    Raises
    ------
    ParameterError
        Which names the layer that failed, with the shape it got and the one it takes.
    """
    dtype = real_dtype(network) or torch.float32
    # A convolution takes (rows, height, width) for one picture of so many channels: with the right number of rows it may work.
    # So may a network that swaps rows and features.
    for rows in (5, 2) if len(shape) == 2 else (2, 5):
        probe = torch.zeros(rows, *shape, dtype=dtype)
        try:
            features = evaluate(network, probe)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"{str(error).splitlines()[0]}{_failing_layer(network, probe)}"
            raise ParameterError(f"the {role}_network does not accept inputs of shape {('rows', *shape)}: {reason}") from error
        if features.ndim != 2 or features.shape[0] != rows:
            remedy = "give one row of features for each row of its input"
            if features.ndim != 2:
                remedy = "keep an axis for its features" if features.ndim < 2 else "flatten its output"
            raise ParameterError(
                f"the {role}_network must map (rows, {', '.join(map(str, shape))}) to (rows, features), got output shape "
                f"{tuple(features.shape)} for {rows} rows: {remedy}"
            )
        if not features.is_floating_point():
            remedy = "take .real, .imag or .abs()" if features.is_complex() else "convert it with .float()"
            raise ParameterError(f"the {role}_network must give real features, got {features.dtype}: {remedy} in its forward")


def _failing_layer(network: nn.Module, probe: Tensor) -> str:
    """The layer in which an evaluation fails, what it got and what it takes, for a message; nothing where it says nothing."""
    running: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    def done(*_: object) -> None:
        running.pop()

    def watched(name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(lambda _, given: running.append((name, module, given)))
        yield module.register_forward_hook(done)

    handles = [handle for name, module in network.named_modules() for handle in watched(name, module)]
    with suppress(RuntimeError, ValueError, TypeError):
        evaluate(network, probe)
    for handle in handles:
        handle.remove()
    if not running or not running[-1][2] or not isinstance(running[-1][2][0], Tensor):
        return ""
    name, layer, (given, *_) = running[-1]
    got = ("rows", *given.shape[1:])
    which = f"{f' {name!r}' if name else ''} got inputs of shape {got} and takes"
    width, channels = getattr(layer, "in_features", None), getattr(layer, "in_channels", None)
    if isinstance(width, int):
        flatten = "; put torch.nn.Flatten() before it" if given.ndim > 2 else ""
        return f" (its linear layer{which} ('rows', {width}){flatten})"
    if isinstance(channels, int):
        missing = given.ndim == 3 and type(layer) is nn.Conv2d
        unflatten = f"; put torch.nn.Unflatten(1, (1, {given.shape[1]})) before it" if missing and channels == 1 else ""
        axes = "height, width" if isinstance(layer, nn.Conv2d) else "..."
        return f" (its convolution{which} {channels} channels, ('rows', {channels}, {axes}){unflatten})"
    return ""
