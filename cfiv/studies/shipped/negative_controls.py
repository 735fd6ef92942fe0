"""Data of which nobody should believe an interval: instruments that hardly say anything, or contradict one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.checks import check_choice

Array = npt.NDArray[np.float64]
Kind = Literal["valid", "two values", "weak", "irrelevant", "one confounded"]
#: Share of the weak instrument in the treatment's standard deviation, and correlation of the confounded one with the error.
WEAK, CONFOUNDED = 0.05, 0.6


def negative_control(n: int, kind: Kind, *, seed: int) -> tuple[pd.DataFrame, Callable[[pd.DataFrame], Array]]:
    """``y = sin(2 t) + u + .3 e`` with normal ``u, e`` and a treatment that leans on ``u``.

    Parameters
    ----------
    n : int
    kind : {"valid", "two values", "weak", "irrelevant", "one confounded"}
        Of the instruments ``z1`` (and ``z2`` in the first and last): both valid; of two values, through which goes a line only;
        nearly without an effect; without any, so that all that moves the treatment is the confounder; the second correlated
        with ``u``.
    seed : int

    Returns
    -------
    table, truth
        Columns ``y, t, z1`` and in two kinds ``z2``; ``truth(rows)`` is ``sin(2 t)``.

    Raises
    ------
    ParameterError
        For another kind.
    """
    check_choice("kind", kind, get_args(Kind))
    z, second, u, v, e = np.random.default_rng(seed).normal(size=(5, n))
    if kind == "one confounded":
        second = np.sqrt(1 - CONFOUNDED**2) * second + CONFOUNDED * u
    if kind == "two values":
        z = (z > 0).astype(np.float64)
    t = {
        "two values": z + u,
        "weak": WEAK * z + np.sqrt(1 - WEAK**2) * (u + v) / np.sqrt(2),
        "irrelevant": (u + 0.1 * v) / np.sqrt(1.01),
    }.get(kind, 0.7 * z + 0.7 * second + 0.5 * u + 0.5 * v)
    instruments = {"z1": z, "z2": second} if kind in ("valid", "one confounded") else {"z1": z}
    table = pd.DataFrame({"y": np.sin(2 * t) + u + 0.3 * e, "t": t, **instruments})
    return table, lambda rows: np.sin(2 * rows["t"].to_numpy())
