"""Standardisation: estimators compute on columns of mean zero and unit variance, users see their own units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from cfiv.data import Array
from cfiv.estimators.units import exponents, in_unit

#: Values of images that are looked at together in float64.
BLOCK_VALUES = 1_000_000


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
        unit = exponents(values)  # in which no square vanishes or overflows
        scaler = StandardScaler().fit(in_unit(values, unit), sample_weight=weights)
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
