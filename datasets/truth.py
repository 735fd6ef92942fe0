"""What a simulated design knows and an estimator may not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.arrays import numeric_array
from cfiv.data import IVData
from cfiv.errors import DataError, UnsupportedTreatmentWarning, silence
from cfiv.labels import check_same_rows


class Predicts(Protocol):
    """Anything with ``predict(rows)``: an estimator or a structural function."""

    def predict(self, rows: Any) -> npt.NDArray[Any]:
        """``h`` at each row."""
        ...


@dataclass(frozen=True, eq=False)
class Truth:
    """The true structural function of a design, and the grid it is judged on.

    Parameters
    ----------
    grid : DataFrame
        Treatment and covariates of the test points, and ``structural``, the true ``h`` there.
    function : callable
        ``h`` of a table with treatment and covariate columns, shape (n,).
    """

    grid: pd.DataFrame
    function: Callable[[pd.DataFrame], npt.NDArray[np.float64]]

    def __call__(self, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """The true structural function at the rows of a table, shape (n,)."""
        return self.function(rows)

    def error(self, model: Predicts) -> float:
        """Mean squared error of a model's predictions on the test grid, in squared units of the outcome.

        Raises
        ------
        DataError
            If the predictions are not one finite number a row, or have row labels other than the grid's.
        """
        with silence(UnsupportedTreatmentWarning):  # what is asked here is known
            predicted = model.predict(self.grid.drop(columns="structural"))
        return _mean_squared_error(predicted, self.grid)


#: A structural function of images (n, ..., 64, 64), shape (n,).
StructuralOfImages = Callable[[npt.ArrayLike], npt.NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class ImageTruth:
    """The true structural function of a design whose treatment is an image, and the images it is judged on.

    Parameters
    ----------
    grid : DataFrame
        A row a test image: its latents, and ``structural``, the true ``h`` there.
    images : array (rows, 1, 64, 64)
        The test images, without noise.
    function : callable
        ``h`` of images, shape (n,).
    """

    grid: pd.DataFrame
    images: npt.NDArray[Any]
    function: StructuralOfImages

    def __call__(self, images: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The true structural function at images, shape (n,)."""
        return self.function(images)

    def error(self, model: Predicts) -> float:
        """Mean squared error of a model's predictions at the test images, in squared units of the outcome.

        Raises
        ------
        DataError
            If the predictions are not one finite number a row, or have row labels other than the grid's.
        """
        return _mean_squared_error(model.predict(IVData(treatment=self.images)), self.grid)


def _mean_squared_error(predicted: npt.ArrayLike, grid: pd.DataFrame) -> float:
    check_same_rows({"the grid": grid, "the predictions": predicted})
    predictions, structural = numeric_array("predictions", predicted), grid["structural"].to_numpy()
    if predictions.shape != structural.shape:
        # A column of predictions less a row of truths would be a table, and its mean a number that looks right.
        raise DataError(f"predictions must be one number a row, shape {structural.shape}, got shape {predictions.shape}")
    return float(np.mean((predictions - structural) ** 2))
