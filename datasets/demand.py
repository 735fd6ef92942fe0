"""The demand design: airline ticket sales, where an unseen conference moves both price and sales.

    psi(t) = 2 ((t - 5)^4 / 600 + exp(-4 (t - 5)^2) + t / 10 - 2)
    h(p, t, s) = 100 + (10 + p) s psi(t) - 2 p
    p = 25 + (k c + 3) psi(t) + v,    y = h(p, t, s) + m e,    e = rho v + N(0, 1 - rho^2)

with price p (treatment), time of year t ~ U(0, 10) and customer emotion s ~ U{1, ..., 7} (covariates), fuel cost c ~ N(0, 1)
(instrument) and v ~ N(0, 1). ``1 - rho^2`` is a variance. In the published design the instrument's strength k and the error's
standard deviation m are 1.

The true effect of a price p' instead of p is ``(p' - p) (s psi(t) - 2)``. A regression that ignores the confounder is biased by

    m E[e | p, t, s] = m rho (p - 25 - 3 psi(t)) / (1 + k^2 psi(t)^2),

whose mean square over the test grid is ``5.7 m^2 rho^2`` (k = 1). In the published design that is at most 5.7, where the
structural function has a variance of 32,644: flexibility matters more than confounding, and the bias shows only in estimators
that are nearly exact. With m = 50 it is 11,500 at rho = 0.9: there ignoring the confounder is what hurts.

References
----------
Hartford, Lewis, Leyton-Brown, Taddy, "Deep IV", ICML 2017, section 5.1; the form, the draw order and the test grid are those
of Xu et al., ICLR 2021.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.arrays import numeric_array
from cfiv.data import IVData, read_table
from cfiv.datasets.arguments import check_whole, is_number
from cfiv.datasets.truth import Truth
from cfiv.errors import DataError, ParameterError, quoted

FloatArray = npt.NDArray[np.float64]

#: The design's roles as a formula.
FORMULA = "sales ~ time + emotion + [price ~ fuel]"


def seasonality(time: FloatArray) -> FloatArray:
    """``psi(t)``, shape-preserving."""
    curve: FloatArray = 2.0 * ((time - 5.0) ** 4 / 600.0 + np.exp(-4.0 * (time - 5.0) ** 2) + time / 10.0 - 2.0)
    return curve


def structural(rows: pd.DataFrame) -> FloatArray:
    """``h(price, time, emotion)`` at the rows of a table, shape (n,)."""
    price, time, emotion = _columns(rows, "price", "time", "emotion")
    values: FloatArray = 100.0 + (10.0 + price) * emotion * seasonality(time) - 2.0 * price
    return values


def _columns(rows: object, *names: str) -> tuple[FloatArray, ...]:
    """Columns of a table of any kind; raises a DataError where one is not there, or is not of finite numbers."""
    table = read_table(rows)
    absent = [name for name in names if name not in table]
    if absent:
        raise DataError(f"the demand design has the columns {quoted(names)}, got a table without {quoted(absent)}")
    return tuple(numeric_array(name, table[name]).astype(np.float64) for name in names)


def confounding_bias(
    rows: pd.DataFrame, *, rho: float, error_scale: float = 1.0, instrument_strength: float = 1.0
) -> FloatArray:
    """``E[m e | price, time, emotion]`` at the rows, shape (n,): what a perfect prediction of sales adds to ``h``."""
    price, time = _columns(rows, "price", "time")
    season = seasonality(time)
    bias: FloatArray = error_scale * rho * (price - 25.0 - 3.0 * season) / (1.0 + (instrument_strength * season) ** 2)
    return bias


def test_grid() -> pd.DataFrame:
    """The 2800 test points: 20 prices on [10, 25] x 20 times on [0, 10] x emotions 1..7, and ``structural`` there."""
    price, time, emotion = np.meshgrid(np.linspace(10, 25, 20), np.linspace(0, 10, 20), np.arange(1.0, 8.0), indexing="ij")
    grid = pd.DataFrame({"price": price.ravel(), "time": time.ravel(), "emotion": emotion.ravel()})
    return grid.assign(structural=structural(grid))


test_grid.__test__ = False  # type: ignore[attr-defined]


def simulate(
    n: int = 5000, *, rho: float = 0.5, seed: int = 0, instrument_strength: float = 1.0, error_scale: float = 1.0
) -> tuple[IVData, Truth]:
    """Draw from the design.

    Parameters
    ----------
    n : int
        Rows.
    rho : float
        Correlation of the price's error v with the outcome's e, between -1 and 1: the strength of confounding.
    seed : int
        Seeds one generator; drawn in the order emotion, time, fuel, v, noise.
    instrument_strength : float
        ``k``, what fuel cost does to the price; at 0 the instrument is irrelevant. Given time, the concentration of the first
        stage is ``n k^2 E psi(t)^2 = 6.5 n k^2``.
    error_scale : float
        ``m``, the standard deviation of the outcome's error, in units of sales.

    Returns
    -------
    data : IVData
        With ``frame`` of columns sales, price, time, emotion, fuel.
    truth : Truth
        The structural function and its test grid.

    Raises
    ------
    ParameterError
        If n < 1, seed < 0, rho is outside [-1, 1], or the strength or the scale is negative or not finite.

    Examples
    --------
    >>> data, truth = simulate(n=3, rho=0.5, seed=0)
    >>> list(data.frame.columns), len(truth.grid)
    (['sales', 'price', 'time', 'emotion', 'fuel'], 2800)
    """
    check_whole("n", n, least=1)
    check_whole("seed", seed, least=0)
    if not is_number(rho) or not -1.0 <= rho <= 1.0:
        raise ParameterError(f"rho must be between -1 and 1, got {rho!r}")
    for name, value in (("instrument_strength", instrument_strength), ("error_scale", error_scale)):
        if not is_number(value) or not 0.0 <= value < math.inf:
            raise ParameterError(f"{name} must be finite and >= 0, got {value!r}")
    generator = np.random.default_rng(seed)
    emotion = generator.choice(np.arange(1, 8), n).astype(np.float64)
    time = generator.uniform(0.0, 10.0, n)
    fuel = generator.normal(0.0, 1.0, n)
    v = generator.normal(0.0, 1.0, n)
    noise = generator.normal(0.0, 1.0, n)
    price = 25.0 + (instrument_strength * fuel + 3.0) * seasonality(time) + v
    frame = pd.DataFrame({"sales": np.zeros(n), "price": price, "time": time, "emotion": emotion, "fuel": fuel})
    frame["sales"] = structural(frame) + error_scale * (rho * v + math.sqrt(1.0 - rho**2) * noise)
    data = IVData(
        outcome=frame["sales"],
        treatment=frame["price"],
        instruments=frame["fuel"],
        covariates=frame[["time", "emotion"]],
        frame=frame,
        names={"outcome": ("sales",), "treatment": ("price",), "instruments": ("fuel",), "covariates": ("time", "emotion")},
    )
    return data, Truth(test_grid(), structural)
