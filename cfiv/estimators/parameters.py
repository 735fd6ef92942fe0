"""Hyper-parameters of the networks' optimisers, one for all of them or one a network, and how several numbers are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cfiv.checks import is_within, refusal
from cfiv.objectives.dfiv_step import PerNetwork

#: Peak learning rates that "auto" stands for, on flat inputs and for the treatment network on images.
RATE, IMAGE_RATE = 0.04, 3e-3


def learning_rates(given: float | PerNetwork | Literal["auto"], *, images: bool, factor: float = 1.0) -> PerNetwork:
    """Peak rates of treatment, instrument and covariate network; "auto" depends on images, and is multiplied by a factor."""
    if isinstance(given, str) and given == "auto":
        return (factor * (IMAGE_RATE if images else RATE), factor * RATE, factor * RATE)
    return per_network("learning_rate", given, zero=False, alternative="'auto', ")


def per_network(name: str, given: Any, *, zero: bool = True, alternative: str = "") -> PerNetwork:
    """One number for all networks, or three: each >= 0, or > 0 where ``zero`` is False."""
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,) * 3
    allowed = [is_within(value, least=0.0) if zero else is_within(value, above=0.0) for value in values]
    if len(values) != 3 or not all(allowed):
        limit = ">= 0" if zero else "> 0"
        words = f"{alternative}one number or three (treatment, instrument, covariate), each finite and {limit}"
        raise refusal(name, words, given)
    return float(values[0]), float(values[1]), float(values[2])


def several(values: Sequence[float]) -> str:
    """``1e-05, 0.001``, and of more than four ``1e-07 to 0.1``."""
    if len(values) > 4:
        return f"{min(values):.2g} to {max(values):.2g}"
    return ", ".join(f"{value:.2g}" for value in values)
