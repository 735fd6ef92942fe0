"""Arrays, tensors and tables that the trainer is given, as tensors that it computes with: what IVData takes, and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfiv.arrays import Array, numeric_array
from cfiv.errors import DataError


def is_array(value: object) -> bool:
    """Whether it is a tensor, an array, or a table or another thing that numpy makes an array of."""
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def columns_of(inputs: object) -> tuple[str, ...] | None:
    """The names of a table's columns; None of what is no table."""
    names = getattr(inputs, "columns", None)
    return None if names is None or not is_array(inputs) else tuple(map(str, names))


def as_tensor(role: str, values: Any, *, finite: bool = True) -> Tensor:
    """A tensor of an array, a table or nested lists: of what :class:`cfiv.IVData` takes, in a type that torch computes with.

    Memory is shared where it can be. Numbers of more than 64 bits become float64, unsigned ones of more than 8 bits signed,
    and truth values among inputs float64. A tensor is taken off the graph that it hangs on. Inputs may be complex, for modules
    that take them.

    Parameters
    ----------
    role : {"inputs", "targets", "row weights"}
    values : array_like (n, ...)
    finite : bool
        Whether to refuse values that are infinite or missing.

    Raises
    ------
    DataError
        If they are no numbers, or not finite.
    """
    if isinstance(values, Tensor):
        # No gradient could be taken through one that was made in inference mode.
        tensor = _dense(role, values.clone() if values.is_inference() else values)
    elif role == "inputs" and type(values) is np.ndarray and values.dtype in (np.complex64, np.complex128):
        tensor = torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))
    else:
        tensor = _from_array(role, numeric_array(role, values, finite=finite), finite=finite)
    if role == "inputs" and tensor.dtype == torch.bool:
        tensor = tensor.double()
    if finite and not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise DataError(f"{role} must be finite, got {bad} values that are infinite or missing: drop or fill those rows")
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or missing."""
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # The extremes are NaN where anything is, and need no mask as large as the values.
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return all(bool(torch.isfinite(extreme)) for extreme in real.aminmax())


def _dense(role: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise DataError(f"{role} must be a dense tensor of numbers, got {tensor.dtype} in {tensor.layout} on {tensor.device}")
    if tensor.is_complex() and role != "inputs":
        raise DataError(f"{role} must be real numbers, got {tensor.dtype}: give real and imaginary parts as columns")
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return _from_array(role, tensor.cpu().numpy(), finite=True).to(tensor.device)
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize < 2  # which torch stores, but does not compute with
    return tensor.detach().float() if narrow else tensor.detach()


def _from_array(role: str, array: Array, *, finite: bool) -> Tensor:
    kind, width = array.dtype.kind, array.dtype.itemsize
    kept = array.dtype.newbyteorder("=")
    if kind == "f" and width > 8:
        kept = np.dtype(np.float64)
    elif kind == "u" and width > 1:  # torch has them, but hardly computes with them
        fits = array.size == 0 or int(array.max()) <= np.iinfo(np.int64).max
        kept = np.dtype(np.int32 if width == 2 else np.int64 if fits else np.float64)
    with np.errstate(over="ignore"):  # a long double beyond all floats: infinite, and refused as such
        # Torch has no read-only tensors, and none with negative strides.
        return torch.from_numpy(np.require(array, kept, ["C", "W"]))
