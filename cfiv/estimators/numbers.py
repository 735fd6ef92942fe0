"""What counts as a number in a hyper-parameter: Python's and numpy's, but not True and False."""

from __future__ import annotations

from numbers import Real

import numpy as np

from cfiv.errors import ParameterError


def is_number(value: object) -> bool:
    """A real number, possibly infinite or NaN."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """A whole number by type: 3, not 3.0."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_random_state(seed: object) -> None:
    """Raise a ParameterError unless it is a whole number >= 0, a Generator or None."""
    if seed is None or isinstance(seed, np.random.Generator):
        return
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ParameterError(f"random_state must be a whole number >= 0, a numpy Generator or None, got {seed!r}")
