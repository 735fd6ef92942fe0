"""The state of a module: its tensors of every kind and what else it keeps, taken out, put back, and cast.

Not a ``state_dict``: that may hold things that are no tensors, and leaves out buffers that are not persistent.
"""

from __future__ import annotations

import copy
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class ModuleState(TypedDict):
    """Copies of parameters and buffers by name, and of what parts give as their ``get_extra_state``, by the parts' names."""

    tensors: dict[str, Tensor]
    extra: dict[str, Any]


def tensors_of(module: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers by name, themselves and not copies; those of several names once, or under ``every_name``.

    Without those of lazy layers that have no shape yet.
    """
    parameters = module.named_parameters(remove_duplicate=not every_name)
    buffers = module.named_buffers(remove_duplicate=not every_name)
    return {name: tensor.detach() for name, tensor in (*parameters, *buffers) if not is_lazy(tensor)}


def extra_of(module: nn.Module) -> dict[str, Any]:
    """What parts keep besides tensors: of those that say how."""
    return {
        name: part.get_extra_state()
        for name, part in module.named_modules()
        if type(part).get_extra_state is not nn.Module.get_extra_state
    }


def state_of(module: nn.Module) -> ModuleState:
    """Its present state, which goes on to be what it is."""
    tensors = {name: tensor.clone() for name, tensor in tensors_of(module).items()}
    return {"tensors": tensors, "extra": copy.deepcopy(extra_of(module))}


def renew(state: ModuleState, module: nn.Module) -> None:
    """Make a state that of the module as it is now, in the memory that it has."""
    kept = state["tensors"]
    for name, tensor in tensors_of(module).items():
        if name in kept and kept[name].shape == tensor.shape:
            kept[name].copy_(tensor)
        else:
            kept[name] = tensor.clone()
    state["extra"] = copy.deepcopy(extra_of(module))


def put(module: nn.Module, state: ModuleState) -> None:
    """Give a module of the same making a state: values go into its own tensors.

    Buffers that it makes on its way, and has not made yet or has made in another shape, are set.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    device = next((tensor.device for tensor in tensors_of(module).values()), torch.device("cpu"))
    with torch.no_grad():
        for name, value in state["tensors"].items():
            place, _, own = name.rpartition(".")
            part = parts[place]
            live = part._parameters.get(own) if own in part._parameters else part._buffers.get(own)
            if live is None or (own in part._buffers and live.shape != value.shape):
                part._buffers[own] = value.to(device, copy=True)
            else:
                live.copy_(value)
    for name, kept in state["extra"].items():
        parts[name].set_extra_state(copy.deepcopy(kept))


def cast(module: nn.Module, dtype: torch.dtype, *, device: torch.device | None = None) -> nn.Module:
    """The module with its numbers in this precision: real ones, and complex ones in that of the same digits."""

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, dtype.to_complex())
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    module._apply(converted)  # type: ignore[no-untyped-call]  # torch has no type for it
    return module


def real_dtype(module: nn.Module) -> torch.dtype | None:
    """Of the numbers that a module computes with, by the first of its parameters; None where it has none."""
    kinds = (p.dtype for p in module.parameters() if p.is_floating_point() or p.is_complex())
    first = next(kinds, None)
    return None if first is None else first.to_real()


def misfit(module: nn.Module, state: ModuleState) -> str | None:
    """What of a state has no place in a module, or the reverse, in words; None where it fits."""
    parts = dict(module.named_modules(remove_duplicate=False))
    live, given = tensors_of(module, every_name=True), state["tensors"]
    for name in (*live, *given):
        place, _, own = name.rpartition(".")
        part = parts.get(place)
        if part is None or not (own in part._parameters or own in part._buffers):
            return f"it has no {name!r}, which was trained"
        if name not in given and own not in part._non_persistent_buffers_set:
            return f"its {name!r} was not trained"
        shapes = [tuple(tensors[name].shape) for tensors in (live, given) if name in tensors]
        if len(set(shapes)) == 2 and own not in part._non_persistent_buffers_set:
            return f"size mismatch: its {name!r} is {shapes[0]}, what was trained {shapes[1]}"
    keeping = set(extra_of(module))
    if keeping != set(state["extra"]):
        return f"parts that keep more than tensors are {sorted(keeping)}, of what was trained {sorted(state['extra'])}"
    return None
