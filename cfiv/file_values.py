"""Values read from a file, compared with what should be there: each check gives the value back, or raises.

What they raise, a TypeError or a ValueError, says what was found; :meth:`cfiv.tensor_file.TensorFile.reading` says in which
file.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfiv.tensor_file import short


def fields(value: Any, *names: Hashable) -> dict[Any, Any]:
    """A dict with these keys and no others."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected {short(list(names))}, got {short(list(value) if isinstance(value, dict) else value)}")
    return value


def text(value: Any) -> str:
    """A text, in characters that Unicode has."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {short(value)}")
    value.encode()
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(text(part) for part in listed(value))


def listed(value: Any, *, count: int | None = None) -> list[Any]:
    """A list, of so many parts."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise TypeError(f"expected a list{'' if count is None else f' of {count}'}, got {short(value)}")
    return value


def flag(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {short(value)}")
    return value


def choice(value: Any, choices: Sequence[str]) -> Any:
    """One of some texts."""
    if value not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}, got {short(value)}")
    return value


def whole(value: Any, least: int, most: int) -> int:
    """A whole number within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, got {short(value)}")
    return value


def number(value: Any, *, finite: bool = True) -> float:
    """A number."""
    if type(value) not in (int, float) or (finite and not math.isfinite(value)):
        raise ValueError(f"expected a number, got {short(value)}")
    return float(value)


def scalar(value: Any) -> Any:
    """A number, a text, True, False or None."""
    if value is not None and not isinstance(value, (bool, int, float)):
        return text(value)
    return value


def numbers(value: Any, *shapes: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """An array of finite float64 of one of these shapes."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float64 or value.shape not in shapes:
        raise ValueError(f"expected an array of float64 of shape {' or '.join(map(str, shapes))}, got {_described(value)}")
    if not np.isfinite(value).all():
        raise ValueError("an array of finite numbers has others")
    return value


def tensor_of(value: Any, shape: Sequence[int], dtype: torch.dtype, *, finite: bool = True) -> Tensor:
    """A tensor of this shape and type."""
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape) or value.dtype != dtype:
        raise ValueError(f"expected a tensor of {dtype} and shape {tuple(shape)}, got {_described(value)}")
    if finite and not bool(torch.isfinite(value).all()):
        raise ValueError("a tensor of finite numbers has others")
    return value


def like(value: Any, example: Any, *, equal: bool = False) -> Any:
    """What is made as an example is: dicts with its keys, lists of its length, tensors of its shapes and types.

    Parameters
    ----------
    value : nested values
    example : nested values
        Its tuples are lists in the file.
    equal : bool
        Whether numbers and texts have to be those of the example.

    Returns
    -------
    nested values
        With tuples where the example has them.
    """
    if isinstance(example, Tensor):
        return tensor_of(value, example.shape, example.dtype, finite=False)
    if isinstance(example, Mapping):
        found = fields(value, *example)
        return {name: like(found[name], part, equal=equal) for name, part in example.items()}
    if isinstance(example, (list, tuple)):
        parts = listed(value, count=len(example))
        alike = [like(part, other, equal=equal) for part, other in zip(parts, example, strict=True)]
        return tuple(alike) if isinstance(example, tuple) else alike
    if isinstance(example, np.generic):
        example = example.item()
    same = type(value) is type(example) and (not equal or value == example or (value != value and example != example))
    if not same:
        raise ValueError(f"expected {short(example) if equal else f'a {type(example).__name__}'}, got {short(value)}")
    return value


def _described(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return short(value)
