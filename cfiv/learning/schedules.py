"""Schedules that a user gives: functions of the share of the steps done, whose factors are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cfiv.checks import is_within, shown
from cfiv.errors import ParameterError


def checked(name: str, schedule: Callable[[float], float]) -> Callable[[int, int], float]:
    """From the steps done, and all of them, to a checked factor."""

    def factor(done: int, steps: int) -> float:
        try:
            value: Any = schedule(done / steps)
        except TypeError as error:
            raise ParameterError(f"{name} could not be called with a share of the steps: {error}") from error
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
            value = value.item()
        if not is_within(value, least=0.0):
            raise ParameterError(
                f"{name} must give factors that are finite and >= 0, got {shown(value)} at {done / steps:g} of the steps"
            )
        return float(value)

    return factor


def places(steps: int) -> list[int]:
    """All steps, or ten thousand of them from the first to the last."""
    return list(range(steps)) if steps <= 10_000 else [place * (steps - 1) // 9_999 for place in range(10_000)]
