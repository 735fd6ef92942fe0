"""Confounded treatments, their instruments and outcomes with a known structural function, for sieves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import norm

Draw = tuple[np.ndarray, np.ndarray, np.ndarray]


def sine(x: np.ndarray) -> np.ndarray:
    return np.sin(np.pi * x)


def line(x: np.ndarray) -> np.ndarray:
    return 4 * x - 2


def kink(x: np.ndarray) -> np.ndarray:
    return np.sign(16 * x - 8) * np.log(np.abs(16 * x - 8) + 1)


def of_npiv(n: int, *, seed: int) -> Draw:
    """Outcome, treatment, instrument of npiv's demonstration: uniform on (-1, 1), correlated .85 before, h a sine."""
    instrument, own, noise = np.random.default_rng(seed).normal(size=(3, n))
    treatment = 0.85 * instrument + np.sqrt(1 - 0.85**2) * own
    share = 0.5 / np.sqrt(1 - 0.85**2)
    x = 2 * norm.cdf(treatment) - 1
    return sine(x) + np.sqrt(0.1) * (share * own + np.sqrt(1 - share**2) * noise), x, 2 * norm.cdf(instrument) - 1


def of_chen_and_christensen(n: int, *, seed: int, h: Callable[[np.ndarray], np.ndarray]) -> Draw:
    """Outcome, treatment, instrument of Chen and Christensen (2018): uniform on (0, 1), an error of variance one."""
    own, noise, instrument = np.random.default_rng(seed).normal(size=(3, n))
    x = norm.cdf((instrument + own) / np.sqrt(2))
    return h(x) + 0.5 * own + np.sqrt(0.75) * noise, x, norm.cdf(instrument)


DESIGNS: Mapping[str, Callable[..., Draw]] = {
    "sine": of_npiv,
    "line": lambda n, *, seed: of_chen_and_christensen(n, seed=seed, h=line),
    "kink": lambda n, *, seed: of_chen_and_christensen(n, seed=seed, h=kink),
}
