"""Penalties of KernelIV: the values to choose from, what became of them, and a warning where the choice ends at an end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cfiv.checks import is_within, refusal, several
from cfiv.errors import PenaltyRangeWarning, warn
from cfiv.numerics.ridge_path import PenaltyChoice

#: Values of either penalty that None stands for. The outcome has unit variance and the kernels are one at distance zero, so
#: they are shares; below the smallest, float64 has no digits left to tell one from another.
PENALTIES: tuple[float, ...] = tuple(float(value) for value in np.logspace(-10, 0, 50))

#: The smallest penalty that is taken: the kernels are exact to about 1e-13.
LEAST = 1e-12

#: A fall of the loss, a share of it a decade of the penalty, that is worth a warning at an end.
SLOPE = 0.05

Penalty = float | Sequence[float] | None


def penalty_values(name: str, given: Penalty) -> tuple[float, ...]:
    """The values to choose from.

    Raises
    ------
    ParameterError
        If one is no finite number >= ``LEAST``, or there are none.
    """
    if given is None:
        return PENALTIES
    values = several(given)
    if not values or not all(is_within(value, least=LEAST) for value in values):
        otherwise = f"several of them, or None for {len(PENALTIES)} values from {PENALTIES[0]:g} to {PENALTIES[-1]:g}"
        raise refusal(name, f"a finite number >= {LEAST:g}", given, alternative=otherwise)
    return tuple(float(value) for value in values)


def penalty_table(choices: Mapping[str, PenaltyChoice]) -> pd.DataFrame:
    """``stage, penalty, loss, chosen``: one row a penalty tried, by the name of its argument."""
    stages = []
    for stage, (_, choice) in enumerate(choices.items(), start=1):
        table = pd.DataFrame({"penalty": choice.penalties.numpy(), "loss": choice.losses.numpy()})
        chosen = np.arange(len(table)) == int(choice.losses.argmin())
        stages.append(table.assign(chosen=chosen, stage=stage))
    return pd.concat(stages, ignore_index=True)[["stage", "penalty", "loss", "chosen"]]


def warn_of_ends(choices: Mapping[str, PenaltyChoice], *, lined: bool) -> None:
    """Warn where the best penalty is the smallest or the largest tried and the loss is still falling there.

    Not at ``PENALTIES[0]`` or below: data without noise want no penalty, and smaller ones make no difference that float64
    shows. Nor at ``PENALTIES[-1]`` or above beside a line, which is what large ones leave.

    Warns
    -----
    PenaltyRangeWarning
    """
    for name, choice in choices.items():
        smallest = choice.chosen == float(choice.penalties.min())
        harmless = choice.chosen <= PENALTIES[0] if smallest else lined and choice.chosen >= PENALTIES[-1]
        if choice.slope() < SLOPE or harmless:
            continue
        which, towards = ("smallest", "smaller") if smallest else ("largest", "larger")
        advice = f"give {towards} values of {name}"
        if not smallest:
            advice += ", and see whether the instruments say anything about the treatment: a large penalty says no"
        rise = choice.slope()  # away from that end, in the loss there: of the loss that falls, less than all of it
        warn(
            f"the best {name} is the {which} of {len(choice.penalties)}, {choice.chosen:.3g}, and the held-out loss is still "
            f"falling there, by {rise / (1.0 + rise):.0%} a tenfold change: {advice}",
            PenaltyRangeWarning,
        )
