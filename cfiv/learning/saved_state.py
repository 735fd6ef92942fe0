"""What a run may find in its file, compared with what this run would have written, before any of it is used.

Torch takes states of generators and optimisers without much of a look, and fails, or ends the process, in a later step. What
these checks raise is one of :data:`cfiv.tensor_file.DAMAGE`.
"""

from __future__ import annotations

import copy
import math
import struct
from typing import Any

import torch
from torch import Tensor, nn

from cfiv.file_values import fields, like, listed, tensor_of
from cfiv.learning.optimisers import Optimiser

#: A generator of the processor: its seed, the words left, whether it is seeded, the next word, and all words.
_MERSENNE, _WORDS = struct.Struct("<QiiQ624Q"), 624


def check_generator(value: Any, device: torch.device) -> Tensor:
    """The state of a generator of this device."""
    own = torch.Generator(device)
    state = tensor_of(value, own.get_state().shape, torch.uint8)
    if device.type == "cpu":
        _, left, seeded, following, *words = _MERSENNE.unpack(state.numpy().tobytes()[: _MERSENNE.size])
        # Torch looks at each alone, and reads beyond the words where they do not go together.
        together = (left, following) == (1, 0) or (1 <= left <= _WORDS and left + following == _WORDS + 1)
        if seeded != 1 or not together or max(words) >= 2**32:
            raise ValueError("a state that no generator has been in")
    own.set_state(state)
    if not torch.equal(own.get_state(), state):
        raise ValueError("a state that no generator has been in")
    return state


def check_draws(states: Any, device: torch.device) -> list[Tensor]:
    """As :func:`cfiv.learning.run_file.draws_of` gives them, on this or on another kind of device."""
    first, *others = listed(states)
    check_generator(first, torch.device("cpu"))
    if device.type == "cuda" and others:
        (other,) = others
        check_generator(other, device)
    return [first, *others]


def check_optimiser(values: Any, optimiser: Optimiser) -> dict[str, Any]:
    """The state of an optimiser of the same making, its options those that it has now, but for the rates.

    What torch's own optimisers and ours keep of a parameter has the shapes and types of what they keep of it after a first
    step. Others may change their options and keep more with time: of theirs the kinds are compared.
    """
    fields(values, "state", "param_groups")
    own = f"{type(optimiser).__module__}.".startswith(("torch.optim.", "cfiv."))
    present = optimiser.state_dict()["param_groups"]
    groups = []
    for group, options in zip(listed(values["param_groups"], count=len(present)), present, strict=True):
        fields(group, *options)
        groups.append({name: like(group[name], option, equal=own and name != "lr") for name, option in options.items()})
        if not float(groups[-1].get("lr", 0.0)) >= 0:
            raise ValueError(f"a rate of {groups[-1]['lr']}")
    first = _kept_after_a_step(optimiser) if own else None
    for parameter, kept in dict.items(values["state"]):
        if not any(parameter in group["params"] for group in groups):
            raise ValueError(f"what was kept of the parameter {parameter!r}, which is none")
        if first is not None:
            like(kept, first[parameter])
            if "step" in kept and not 0 <= float(kept["step"]) < math.inf:
                raise ValueError(f"an optimiser after {float(kept['step'])} steps")
    return {"state": values["state"], "param_groups": groups}


def _kept_after_a_step(optimiser: Optimiser) -> dict[int, Any] | None:
    """What it keeps of every parameter after a step: that of a copy, on parameters and gradients of zero.

    None where it takes no such gradients, as SparseAdam.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    zeros = {id(parameter): nn.Parameter(torch.zeros_like(parameter)) for parameter in parameters}
    copied = copy.deepcopy(optimiser, dict(zeros))
    for zero in zeros.values():
        zero.grad = torch.zeros_like(zero)
    try:
        copied.step()
    except RuntimeError:
        return None
    kept: dict[int, Any] = copied.state_dict()["state"]
    return kept
