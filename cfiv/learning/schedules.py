"""Schedules that a user gives: functions of the share of the steps done, whose factors are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cfiv.checks import check_choice, check_number, is_within, shown
from cfiv.errors import ParameterError
from cfiv.learning.training import Schedule, Training
from cfiv.runtime.digest import digest
from cfiv.runtime.draws import watched


class Factor(Protocol):
    """A schedule."""

    def __call__(self, done: int, /, *, steps: int) -> float:
        """From the steps done, and all of them, to a factor."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Factors of the last layer's penalty and of the optimiser's rates."""

    penalty: Factor
    rate: Factor

    def check(self, steps: int) -> None:
        """Refuse schedules that give no factors before the first step, and not in the middle."""
        for done in _choose_places(steps):
            self.penalty(done, steps=steps)
            self.rate(done, steps=steps)

    def describe(self, steps: int) -> dict[str, Any]:
        """What tells them from others: their factors at every tenth in words, and at all steps as a digest."""
        factors = [[factor(done, steps=steps) for done in _choose_places(steps)] for factor in (self.penalty, self.rate)]
        return {
            "lambda_schedule": [self.penalty(tenth, steps=10) for tenth in range(11)],
            "learning_rate_schedule": [self.rate(tenth, steps=10) for tenth in range(11)],
            "schedules": digest([torch.tensor(factors, dtype=torch.float64)]),
        }


def make_schedules(
    *, lambda_schedule: float | Callable[[float], float], learning_rate_schedule: Schedule | Callable[[float], float]
) -> Schedules:
    """Of functions; of a number, from which the penalty's factor rises linearly to 1; of a name.

    Raises
    ------
    ParameterError
        If they are none of these. What functions give is checked when they are called.
    """
    penalty: Factor
    rate: Factor
    if callable(lambda_schedule):
        penalty = _check_factors("lambda_schedule", lambda_schedule)
    else:
        start = check_number("lambda_schedule", lambda_schedule, least=0.0, most=1.0, alternative="or a callable")
        penalty = Training(lambda_start=start).lambda_factor
    if callable(learning_rate_schedule):
        rate = _check_factors("learning_rate_schedule", learning_rate_schedule)
    else:
        check_choice("learning_rate_schedule", learning_rate_schedule, ("constant", "cosine"), alternative="or a callable")
        rate = Training(learning_rate_schedule=learning_rate_schedule).rate_factor
    return Schedules(penalty=penalty, rate=rate)


def _check_factors(name: str, schedule: Callable[[float], float]) -> Factor:
    """From the steps done, and all of them, to a checked factor."""

    def factor(done: int, *, steps: int) -> float:
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


def _choose_places(steps: int) -> list[int]:
    """All steps, or ten thousand of them from the first to the last."""
    return list(range(steps)) if steps <= 10_000 else [place * (steps - 1) // 9_999 for place in range(10_000)]
