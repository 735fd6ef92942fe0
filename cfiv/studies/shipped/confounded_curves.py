"""Curves that are confounded, with instruments that tell fine functions apart far worse than coarse ones.

Treatment and instrument are transforms of normal variables, so that the canonical correlations of bases of them fall
geometrically: the severely ill-posed case. Two settings are of the literature, on [-1, 1] rather than on [0, 1] where need be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

Array = npt.NDArray[np.float64]
CURVES: Mapping[str, Callable[[Array], Array]] = {
    "line": lambda t: 2 * t,
    "cube": lambda t: t**3,
    "sine": lambda t: np.sin(np.pi * t),
    "corner": np.abs,
    "bend": lambda t: np.sign(t) * np.log(np.abs(8 * t) + 1),
}


def confounded_curve(
    n: int,
    curve: str = "sine",
    *,
    correlation: float = 0.85,
    confounding: float = 0.5,
    variance: float = 0.1,
    seed: int,
) -> tuple[pd.DataFrame, Callable[[pd.DataFrame], Array]]:
    """``y = h(t) + sqrt(variance) u`` with ``t = 2 Phi(a) - 1``, ``z = 2 Phi(b) - 1`` and normal ``a, b, u``.

    Parameters
    ----------
    n : int
    curve : {"line", "cube", "sine", "corner", "bend"}
        ``h``.
    correlation, confounding : float
        Of ``a`` with ``b``, and of ``a`` with ``u``.
    variance : float
        Of the error.
    seed : int

    Returns
    -------
    table, truth
        Columns ``y, t, z``; ``truth(rows)`` is ``h``, and ignoring the confounder adds about ``sqrt(variance) confounding a``.

    References
    ----------
    With the defaults the design of the demonstrations of the R package npiv. With a correlation of sqrt(1/2), a confounding of
    sqrt(1/8) and a variance of one, "line" and "bend" are those of Chen and Christensen, *Quantitative Economics* 9, 2018.
    """
    generator = np.random.default_rng(seed)
    b, u, rest = generator.normal(size=(3, n))
    a = correlation * b + confounding * u + np.sqrt(1 - correlation**2 - confounding**2) * rest
    t, z = 2 * special.ndtr(a) - 1, 2 * special.ndtr(b) - 1
    h = CURVES[curve]
    return pd.DataFrame({"y": h(t) + np.sqrt(variance) * u, "t": t, "z": z}), lambda rows: h(rows["t"].to_numpy())
