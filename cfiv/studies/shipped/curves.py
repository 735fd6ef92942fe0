"""Designs with one treatment: lines, smooth curves and kinks, with instruments from weak to strong.

    "line"   4 x - 2                                 "kink"  sign(16 x - 8) log(|16 x - 8| + 1)
    "sine"   sin(pi x)                               "cusp"  |x|

"line" and "kink" have treatment and instrument on (0, 1) and an error of variance one, correlated by 0.5 with the treatment's
before that is put on the interval; "sine" and "cusp" have both on (-1, 1) and an error of variance 0.1. Instruments correlate
with the treatment by 0.71 and 0.85, all being normal before.

References
----------
Chen and Christensen, "Optimal sup-norm rates and uniform inference on nonlinear functionals of nonparametric IV regression",
Quantitative Economics 2018, for "line" and "kink"; the demonstration of the R package npiv for the other two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from cfiv.checks import check_choice, check_number, check_whole
from cfiv.data import IVData
from cfiv.datasets.truth import Truth

Array = npt.NDArray[Any]

#: Roles of :func:`one_treatment` and :func:`straight` as formulas.
FORMULA, FORMULA_STRAIGHT = "y ~ [t ~ z]", "y ~ x + [t ~ z]"
#: Curves on (0, 1), and on (-1, 1).
UNIT: dict[str, Callable[[Array], Array]] = {
    "line": lambda x: 4 * x - 2,
    "kink": lambda x: np.sign(16 * x - 8) * np.log(np.abs(16 * x - 8) + 1),
}
CENTRED: dict[str, Callable[[Array], Array]] = {"sine": lambda x: np.sin(np.pi * x), "cusp": np.abs}


def one_treatment(*, n: int, curve: str, seed: int) -> tuple[IVData, Truth]:
    """Draw one of the curves.

    Parameters
    ----------
    n : int
        Rows.
    curve : {"line", "kink", "sine", "cusp"}
    seed : int

    Returns
    -------
    data : IVData
        With ``frame`` of columns y, t and z.
    truth : Truth
        Judged at 2000 further draws of the treatment.

    Raises
    ------
    ParameterError
        If n < 1, the seed < 0, or the curve is another.
    """
    check_whole("n", n, least=1)
    check_whole("seed", seed, least=0)
    check_choice("curve", curve, (*UNIT, *CENTRED))
    instrument, own, noise, fresh = np.random.default_rng(seed).normal(size=(4, n + 2000))
    if curve in UNIT:
        h, treatment, error = UNIT[curve], (instrument + own) / np.sqrt(2), 0.5 * own + np.sqrt(0.75) * noise
        place: Callable[[Array], Array] = norm.cdf
    else:
        correlation = 0.85
        h, treatment = CENTRED[curve], correlation * instrument + np.sqrt(1 - correlation**2) * own
        share = 0.5 / np.sqrt(1 - correlation**2)
        error = np.sqrt(0.1) * (share * own + np.sqrt(1 - share**2) * noise)
        place = _centred
    t = place(treatment)
    frame = pd.DataFrame({"y": h(t) + error, "t": t, "z": place(instrument)})[:n]
    return _with_truth(frame, lambda rows: h(rows["t"].to_numpy()), grid=pd.DataFrame({"t": place(fresh[-2000:])}))


def straight(*, n: int, strength: float, seed: int) -> tuple[IVData, Truth]:
    """Draw from ``y = t + x + u + e``, ``t = strength z + u``, all else standard normal.

    The instrument explains ``strength^2 / (1 + strength^2)`` of the treatment: its concentration is ``n strength^2``.

    Parameters
    ----------
    n : int
    strength : float
    seed : int

    Returns
    -------
    data : IVData
        With ``frame`` of columns y, x, t and z.
    truth : Truth
        ``t + x``, judged at 2000 further draws.

    Raises
    ------
    ParameterError
        If n < 1, the seed < 0, or the strength is not finite.
    """
    check_whole("n", n, least=1)
    check_whole("seed", seed, least=0)
    check_number("strength", strength)
    z, x, u, e = np.random.default_rng(seed).normal(size=(4, n + 2000))
    t = strength * z + u
    frame = pd.DataFrame({"y": t + x + u + e, "x": x, "t": t, "z": z})
    return _with_truth(frame[:n], lambda rows: rows["t"].to_numpy() + rows["x"].to_numpy(), grid=frame[["x", "t"]][n:])


def _centred(values: Array) -> Array:
    return np.asarray(2 * norm.cdf(values) - 1)


def _with_truth(frame: pd.DataFrame, h: Callable[[pd.DataFrame], Array], *, grid: pd.DataFrame) -> tuple[IVData, Truth]:
    grid = grid.reset_index(drop=True)
    data = IVData(
        outcome=frame["y"],
        treatment=frame["t"],
        instruments=frame["z"],
        covariates=frame.get("x"),
        frame=frame,
    )
    return data, Truth(grid.assign(structural=h(grid)), h)
