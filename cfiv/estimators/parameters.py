"""Checks of hyper-parameters that several estimators share. Each raises a ParameterError: what, what was got, what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np

from cfiv.errors import ParameterError
from cfiv.learning.two_stage import PerNetwork

#: Peak learning rates that "auto" stands for, on flat inputs and for the treatment network on images.
RATE, IMAGE_RATE = 0.04, 3e-3


def check_whole(name: str, value: object, *, least: int) -> None:
    """A whole number >= ``least``."""
    if not is_whole(value) or value < least:  # type: ignore[operator]
        raise ParameterError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_number(name: str, value: object) -> None:
    """A finite number >= 0."""
    if not is_number(value) or not 0.0 <= float(value) < math.inf:  # type: ignore[arg-type]
        raise ParameterError(f"{name} must be finite and >= 0, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ParameterError(f"{name} must be one of {choices}, got {value!r}")


def check_random_state(value: object) -> None:
    """A whole number >= 0, a numpy Generator or None."""
    if not (value is None or isinstance(value, np.random.Generator) or (is_whole(value) and value >= 0)):  # type: ignore[operator]
        raise ParameterError(f"random_state must be a whole number >= 0, a numpy Generator or None, got {value!r}")


def learning_rates(given: float | PerNetwork | Literal["auto"], *, images: bool) -> PerNetwork:
    """Peak rates of treatment, instrument and covariate network; "auto" depends on whether treatments are images."""
    if isinstance(given, str) and given == "auto":
        return (IMAGE_RATE if images else RATE, RATE, RATE)
    rates = per_network("learning_rate", given)
    if min(rates) <= 0:
        raise ParameterError(f"learning_rate must be 'auto' or finite and > 0, got {given!r}")
    return rates


def per_network(name: str, given: Any) -> PerNetwork:
    """One number >= 0 for all networks, or three."""
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,) * 3
    if len(values) != 3 or any(not (is_number(v) and 0.0 <= float(v) < math.inf) for v in values):
        raise ParameterError(
            f"{name} must be one number or three (treatment, instrument, covariate), each finite and >= 0, got {given!r}"
        )
    return float(values[0]), float(values[1]), float(values[2])


def several(given: Any) -> tuple[Any, ...]:
    """The items of a list, tuple or array; anything else, text and an array without a dimension included, is one item."""
    if isinstance(given, np.ndarray):
        return tuple(given) if given.ndim else (given.item(),)
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def is_whole(value: object) -> bool:
    """Whether it is an int, Python's or numpy's, and not a truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a real number, Python's or numpy's, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)
