"""Checks of the arguments that simulated data sets share: sizes, seeds, and physical constants in a range."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from cfiv.errors import ParameterError


def is_number(value: object) -> bool:
    """Whether a value is a real number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: object, *, least: int) -> None:
    """Raise ParameterError unless a value is a whole number, and not below the least."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ParameterError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_between(name: str, value: Any, *, least: float, greatest: float, why: str = "") -> None:
    """Raise ParameterError unless a value is a real number from the least to the greatest; ``why`` ends the message."""
    if not is_number(value) or not least <= float(value) <= greatest:
        reason = f": {why}" if why else ""
        raise ParameterError(f"{name} must be a number from {least:g} to {greatest:g}, got {value!r}{reason}")
