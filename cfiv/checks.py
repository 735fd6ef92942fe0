"""Checks of arguments, in the same words for the whole package. Each raises a ParameterError: what, what was got, what to do.

Numbers are Python's or numpy's; truth values are none, and neither are arrays and tensors, whatever their size. A check gives
the value back as Python's own, so that ``np.int64(3)`` and ``3`` are one argument.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from cfiv.errors import ParameterError


def is_whole(value: object) -> bool:
    """Whether it is an int, Python's or numpy's, and not a truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a real number, Python's or numpy's, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_within(
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    finite: bool = True,
) -> bool:
    """Whether it is a number in a range: >= ``least``, > ``above``, <= ``most`` and < ``below``, and finite unless told."""
    if not is_number(value):
        return False
    number = _float(value)
    inside = least <= number <= most and (above == -math.inf or above < number) and (below == math.inf or number < below)
    return inside and not (finite and math.isinf(number))


def check_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    finite: bool = True,
    alternative: str = "",
    why: str = "",
) -> float:
    """A number in a range, as :func:`is_within` has it.

    Parameters
    ----------
    name : str
        Of the argument.
    value
    least, above, most, below, finite
        The range.
    alternative : str
        What else the argument may be, such as ``"or None for all rows"``; the caller sees to that.
    why : str
        The end of the message.

    Returns
    -------
    float
    """
    if is_within(value, least=least, above=above, most=most, below=below, finite=finite):
        return _float(value)
    lower = f">= {least:g}" if least > -math.inf else f"> {above:g}" if above > -math.inf else ""
    upper = f"<= {most:g}" if most < math.inf else f"< {below:g}" if below < math.inf else ""
    if least > -math.inf and most < math.inf:
        words = f"between {least:g} and {most:g}"
    elif lower and upper:
        words = f"{lower} and {upper}"
    elif finite:
        words = f"finite and {lower or upper}" if lower or upper else "a finite number"
    else:
        words = lower or upper or "a number"
    raise refusal(name, words, value, alternative=alternative, why=why)


def check_whole(name: str, value: Any, *, least: int, most: int | None = None, alternative: str = "") -> int:
    """A whole number >= ``least`` and, where that is given, <= ``most``."""
    if is_whole(value) and least <= value and (most is None or value <= most):
        return int(value)
    words = f"a whole number >= {least}" if most is None else f"a whole number between {least} and {most}"
    raise refusal(name, words, value, alternative=alternative)


def check_choice(name: str, value: Any, choices: Sequence[str], *, alternative: str = "") -> None:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        listed = [repr(choice) for choice in choices]
        words = " or ".join(listed) if len(listed) < 3 else f"one of {', '.join(listed)}"
        raise refusal(name, words, value, alternative=alternative)


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise refusal(name, "True or False", value)
    return bool(value)


def check_random_state(value: Any, *, most: int | None = None) -> None:
    """What numbers are drawn from: a whole number >= 0, a numpy Generator, or None for other numbers every time."""
    if value is not None and not isinstance(value, np.random.Generator):
        check_whole("random_state", value, least=0, most=most, alternative="a numpy Generator or None")


def fresh_seed(random_state: int | np.integer[Any] | np.random.Generator | None) -> int:
    """A whole number to draw from: that which is given, or one that a generator gives, a new one where there is none."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(np.random.default_rng(random_state).integers(2**62))


def check_repeatable(random_state: Any) -> int:
    """What a checkpoint asks of ``random_state``: a whole number, from which a second call draws the same numbers."""
    if not is_whole(random_state):
        raise ParameterError(
            "checkpoint= needs a random_state that can be drawn from again, a whole number, got "
            f"{shown(random_state)}: give random_state=0, say"
        )
    return int(random_state)


def check_instance(name: str, value: object, kind: type | tuple[type, ...], what: str, *, why: str = "") -> None:
    """An object of a kind, and not a class; ``what`` is the kind in words."""
    if not isinstance(value, kind):
        raise refusal(name, what, value, kind=True, why=why)


def check_callable(name: str, value: object, what: str, *, why: str = "") -> None:
    """Something that can be called; ``what`` is that in words."""
    if not callable(value):
        raise refusal(name, what, value, kind=True, why=why)


def check_file_name(name: str, value: Any) -> Path:
    """The name of a file, whether there is one or not."""
    named = isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str)
    if not named or not Path(value).name or "\0" in str(value):
        raise refusal(name, "the name of a file", value)
    return Path(value)


def several(given: Any) -> tuple[Any, ...]:
    """The items of a list, tuple or array; anything else, text and an array without a dimension included, is one item."""
    if isinstance(given, np.ndarray):
        return tuple(given) if given.ndim else (given.item(),)
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def refusal(
    name: str, words: str, value: object, *, kind: bool = False, alternative: str = "", why: str = ""
) -> ParameterError:
    """The error that says what an argument must be and what it is; with ``kind`` its type alone."""
    also = f", {alternative}" if alternative else ""
    end = f": {why}" if why else ""
    return ParameterError(f"{name} must be {words}{also}, got {_kind(value) if kind else shown(value)}{end}")


def shown(value: object, limit: int = 200) -> str:
    """A value for a message: on one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction beyond all floats
        return math.inf if value > 0 else -math.inf
