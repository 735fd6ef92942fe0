"""Units: columns far from one are computed with in another unit, a power of two of the user's, to the same digits.

Estimators of features compute on standardised columns, of mean zero and unit variance; users see their own units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from cfiv.data import Array, IVData
from cfiv.errors import DataError, IllConditionedWarning, warn
from cfiv.mapped import BLOCK_ROWS

ROLES = ("outcome", "treatment", "instruments", "covariates")
#: Between these the largest magnitude of a column must be, so that neither its sums nor its standard deviation leave float64;
#: pictures in float32 are not converted as wholes, and are held to what float32 has room for.
LEAST, MOST = 1e-270, 1e270
LEAST_SINGLE, MOST_SINGLE = 1e-35, 1e37
#: Rounding steps at a column's largest magnitude that it must range over: fewer than the first are noise, fewer than the second
#: leave less than five digits. Asked only where the range is less than ``SHARE`` of the magnitude, which is what costs digits.
NOISE, FEW_DIGITS = 1e2, 1e5
SHARE = 1e-3
#: Values of images that are looked at together in float64.
BLOCK_VALUES = 1_000_000


def exponents(columns: Array) -> Array:
    """For each column (n, c) the whole number ``e`` for which ``columns / 2^e`` has a largest magnitude in [1/2, 1)."""
    return np.asarray(np.frexp(np.maximum(np.abs(columns.max(axis=0)), np.abs(columns.min(axis=0))))[1])


def in_unit(columns: Array, exponent: Array | int) -> Array:
    """``columns / 2^exponent``, float64, without rounding: what is computed of it has the digits of the user's unit."""
    return np.asarray(np.ldexp(columns.astype(np.float64, copy=False), -np.asarray(exponent)))


def check_units(data: IVData) -> None:
    """Refuse columns that float64 has no room around or has kept no differences of; warn where it has kept few digits.

    Raises
    ------
    DataError
        If a column's largest magnitude is not between ``LEAST`` and ``MOST``, or its values differ by rounding only.

    Warns
    -----
    IllConditionedWarning
        If differences within a column have less than five digits, as where an origin is far away.
    """
    assert data.names is not None
    few = []
    for role in ROLES:
        values = getattr(data, role)
        if values is None:
            continue
        # Of pictures all pixels together, which share a unit.
        axis = None if values.ndim > 2 else 0
        lows, highs = (np.atleast_1d(np.asarray(f(axis=axis), dtype=np.float64)) for f in (values.min, values.max))
        for name, low, high in zip(data.names[role], lows, highs, strict=True):
            if _digits_are_few(f"{role} {name!r}", low=low, high=high, values=values):
                few.append(name)
    if few:
        warn(
            f"{', '.join(map(repr, few))}: differences between rows have less than five digits beside the values themselves, "
            "and so does what is computed of them: subtract a constant before the values are rounded, as a first year of dates",
            IllConditionedWarning,
        )


def _digits_are_few(what: str, *, low: float, high: float, values: Array) -> bool:
    """Whether a column from ``low`` to ``high`` has few digits; raises where it has none."""
    single = values.dtype == np.float32 and values.ndim > 2
    least, most = (LEAST_SINGLE, MOST_SINGLE) if single else (LEAST, MOST)
    magnitude = max(abs(low), abs(high))
    if magnitude > most or 0.0 < magnitude < least:
        raise DataError(
            f"{what} has values of up to {magnitude:.3g}, and what is computed of them would not fit between {least:g} and "
            f"{most:g}: give it in another unit"
        )
    if low == high or high - low > SHARE * magnitude:
        return False
    kind: Any = values.dtype if values.dtype.kind == "f" else np.float64
    steps = (high - low) / (magnitude * float(np.finfo(kind).eps))
    if steps < NOISE:
        raise DataError(
            f"{what} lies between {float(low)!r} and {float(high)!r}, which is {steps:.0f} steps of rounding: its differences "
            "are noise, so subtract a constant before the values are rounded, or drop it"
        )
    return steps < FEW_DIGITS


@dataclass(frozen=True, eq=False)
class Standardiser:
    """``x -> (x - mean) / scale``.

    Parameters
    ----------
    mean, scale : array (columns,) or ()
        One of each a column; one of each in all for images, whose pixels share a unit.
    """

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, values: Array, weights: Array | None = None) -> Standardiser:
        """Learn mean and standard deviation (population form); a constant column keeps scale one.

        Parameters
        ----------
        values : array (n, columns), or (n, ...) for images
        weights : array (n,), optional
            Row weights; those of images are not looked at.
        """
        if values.ndim > 2:
            return cls._of_all_pixels(values)
        unit, scaler = exponents(values), StandardScaler()  # in which no square vanishes or overflows
        for start in range(0, len(values), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            scaler.partial_fit(in_unit(values[rows], unit), sample_weight=None if weights is None else weights[rows])
        constant = values.min(axis=0) == values.max(axis=0)
        return cls(np.ldexp(scaler.mean_, unit), np.where(constant, 1.0, np.ldexp(scaler.scale_, unit)))

    @classmethod
    def _of_all_pixels(cls, images: Array) -> Standardiser:
        """One mean and one scale for all, in two passes over blocks of images: no copy of them all is made."""
        rows = max(1, BLOCK_VALUES // math.prod(images.shape[1:]))
        blocks = [images[start : start + rows] for start in range(0, len(images), rows)]
        mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / images.size
        unit = int(max(exponents(block.reshape(-1)) for block in blocks))
        squares = sum(float(np.square(in_unit(np.subtract(block, mean, dtype=np.float64), unit)).sum()) for block in blocks)
        scale = math.ldexp(math.sqrt(squares / images.size), unit)
        rounding = 10 * np.finfo(np.float64).eps * abs(mean)
        return cls(np.asarray(mean), np.asarray(scale if scale > rounding else 1.0))

    def beside(self, other: Standardiser) -> Standardiser:
        """Of the columns of both, side by side."""
        return Standardiser(np.append(self.mean, other.mean), np.append(self.scale, other.scale))

    @classmethod
    def identity(cls) -> Standardiser:
        """The one that changes nothing."""
        return cls(np.asarray(0.0), np.asarray(1.0))

    def apply(self, values: Array) -> Array:
        """To standardised units."""
        scaled: Array = (values - self.mean) / self.scale
        return scaled

    def undo(self, values: Array) -> Array:
        """Back to the user's units."""
        original: Array = values * self.scale + self.mean
        return original
