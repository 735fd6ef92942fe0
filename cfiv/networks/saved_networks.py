"""The state of a network as a file has it, compared with the network that it is to be put into."""

from __future__ import annotations

from typing import Any

from torch import nn

from cfiv.file_values import fields, tensor_of
from cfiv.runtime.module_state import ModuleState, extra_of, tensors_of


def check_module(values: Any, module: nn.Module, *, finite: bool = False) -> ModuleState:
    """A state of this module: its tensors, of the shapes and types that it has, and what its parts keep besides.

    Of another shape, or not there yet, may be buffers only that it makes on its way; not finite too, with ``finite``.

    Raises
    ------
    Exception
        One of :data:`cfiv.tensor_file.DAMAGE`, for the state of another module.
    """
    state: Any = fields(values, "tensors", "extra")
    live, given = tensors_of(module), dict.copy(state["tensors"])
    parts = dict(module.named_modules(remove_duplicate=False))
    for name, own in live.items():
        kept = given.pop(name)
        place, _, last = name.rpartition(".")
        buffer = last in parts[place]._buffers
        tensor_of(kept, kept.shape if buffer else own.shape, own.dtype, finite=finite and not buffer)
        if last == "running_var" and bool((kept < 0).any()):
            raise ValueError(f"a negative variance in {name!r}")
    for name, kept in given.items():
        if name.rpartition(".")[0] not in parts:
            raise ValueError(f"the module has no part for {name!r}")
        tensor_of(kept, kept.shape, kept.dtype, finite=False)
    fields(state["extra"], *extra_of(module))
    found: ModuleState = state
    return found
