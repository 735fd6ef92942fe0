"""A module made ready for use: its tensors able to learn, its parts in one mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cfiv.errors import ParameterError
from cfiv.runtime.module_state import tensors_of


def make_trainable(module: nn.Module) -> nn.Module:
    """The module; where it was made in inference mode, its tensors are replaced by ones that can learn.

    Raises
    ------
    ParameterError
        If it is on the meta device.
    """
    if any(tensor.is_meta for tensor in tensors_of(module).values()):
        raise ParameterError("the module is on the meta device, where tensors have no values: make it on the cpu")
    new: dict[int, Tensor] = {}
    for part in module.modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if not is_lazy(tensor) and tensor.is_inference():
                learning = new.get(id(tensor), tensor.clone())
                if isinstance(tensor, nn.Parameter) and id(tensor) not in new:
                    learning = nn.Parameter(learning, tensor.requires_grad)
                new[id(tensor)] = learning
                setattr(part, name, learning)
    return module


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside; outside every part has the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
