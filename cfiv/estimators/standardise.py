"""Standardisation: estimators compute on columns of mean zero and unit variance, users see their own units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from cfiv.data import Array


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
        """Learn mean and standard deviation (weighted, population form); a constant column keeps scale one."""
        columns = values.reshape(-1, 1) if values.ndim > 2 else values
        scaler = StandardScaler().fit(columns.astype(np.float64), sample_weight=weights if values.ndim <= 2 else None)
        if values.ndim > 2:
            return cls(np.asarray(scaler.mean_[0]), np.asarray(scaler.scale_[0]))
        return cls(scaler.mean_, scaler.scale_)

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
