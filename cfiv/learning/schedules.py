"""Schedules that a user gives: functions of the share of the steps done, whose factors are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cfiv.checks import check_choice, check_number, is_within, shown
from cfiv.errors import ParameterError
from cfiv.learning.training import Schedule, Training
from cfiv.runtime.draws import watched

#: From the steps done, and all of them, to a factor.
Factor = Callable[[int, int], float]


def lambda_factor(given: float | Callable[[float], float]) -> Factor:
    """Of a last layer's penalty: a function's, or one that rises linearly from a number to 1."""
    if callable(given):
        return checked("lambda_schedule", given)
    start = check_number("lambda_schedule", given, least=0.0, most=1.0, alternative="or a callable")
    return Training(lambda_start=start).lambda_factor


def rate_factor(given: Schedule | Callable[[float], float]) -> Factor:
    """Of an optimiser's rates: a function's, or one with a name."""
    if callable(given):
        return checked("learning_rate_schedule", given)
    check_choice("learning_rate_schedule", given, ("constant", "cosine"), alternative="or a callable")
    return Training(learning_rate_schedule=given).rate_factor


def checked(name: str, schedule: Callable[[float], float]) -> Factor:
    """From the steps done, and all of them, to a checked factor."""

    def factor(done: int, steps: int) -> float:
        try:
            with watched():
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
