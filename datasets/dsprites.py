"""The dSprites designs: what a picture of a heart does, where the heart's height, unseen by the analyst, does something too.

A heart of random scale, orientation and position is drawn on 64 x 64 pixels (:func:`render`); with noise on every pixel it is
the treatment,

    T = picture + N(0, 0.1^2) a pixel,    Y = h(T) + c (k - 16) + N(0, 0.5^2),

where ``k``, the index 0..31 of the heart's height posY, is the confounder: it is in the picture and, with strength ``c``, in
the outcome. Instruments are the values of scale (0.5..1), orientation (0..2 pi) and posX (0..1). 0.1 and 0.5 are standard
deviations, not variances. The structural functions, ``x`` the 4096 pixels row by row:

    "original":   h(x) = (mean_j (A' x)_j^2 - 5000) / 1000,    A (4096, 10) with entries U(0, 1)
    "second":     h(x) = ((B' x)^2 - 3000) / 500,              B = |32 - column| / 32 at every pixel

The first is nearly a function of the heart's size alone; the second depends on its position as well.

The mean of ``k - 16`` is -0.5: the model E[e | Z] = 0 holds up to that constant, and even a perfect estimator of
``E[Y | do(T)]`` keeps an error of 0.25 c^2 on the test grid.

References
----------
Xu et al., "Learning Deep Features in Instrumental Variable Regression", ICLR 2021, section 5.2 (the authors' program for the
draw order and the test grid). The second function is that of Xu, Kanagawa, Gretton, "Deep Proxy Causal Learning", NeurIPS 2021;
Galashov et al., arXiv 2510.04606, use it with instruments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt
import pandas as pd

from cfiv.arrays import as_array
from cfiv.data import IVData
from cfiv.datasets.arguments import check_whole, is_number
from cfiv.datasets.dsprites_archive import held_latents, load
from cfiv.datasets.dsprites_drawing import LATENTS, SIDE, ImageArray, render
from cfiv.datasets.truth import ImageTruth, StructuralOfImages
from cfiv.errors import DataError, ParameterError

__all__ = ["OriginalFunction", "SecondFunction", "held_latents", "load", "render", "simulate", "test_grid"]

FloatArray = npt.NDArray[np.float64]

PIXELS = SIDE * SIDE
#: Columns of the original's A.
COLUMNS = 10
#: Standard deviations of a pixel's noise and of the outcome's.
PIXEL_NOISE, OUTCOME_NOISE = 0.1, 0.5
#: What is taken off the confounder's index 0..31.
MIDDLE = 16.0
INSTRUMENTS = ("scale", "orientation", "posX")
FUNCTIONS = ("original", "second")

#: Rows whose noise is drawn at a time, in float64.
BLOCK = 1024


class OriginalFunction:
    """``h(x) = (mean_j (A' x)_j^2 - 5000) / 1000``, of Xu et al. 2021.

    Parameters
    ----------
    matrix : None, array_like (4096, 10), or path of a .npy file
        ``A``. None draws it, U(0, 1), from ``numpy.random.default_rng(0)``; the authors' own is the file ``dsprite_mat.npy`` of
        their repository.

    Raises
    ------
    DataError
        If it has another shape, is not finite, or the file cannot be read.
    """

    def __init__(self, matrix: npt.ArrayLike | str | Path | None = None) -> None:
        if matrix is None:
            self.matrix: FloatArray = np.random.default_rng(0).uniform(size=(PIXELS, COLUMNS))
            return
        if isinstance(matrix, str | Path):
            matrix = _read_matrix(Path(matrix))
        given = as_array("the matrix A", matrix)
        if given.shape != (PIXELS, COLUMNS) or given.dtype.kind not in "fiu":
            raise DataError(
                f"the matrix A must hold numbers in shape {(PIXELS, COLUMNS)}, a row a pixel, got shape {given.shape} of "
                f"{given.dtype}{': give its transpose' if given.shape == (COLUMNS, PIXELS) else ''}"
            )
        if not np.isfinite(given).all():
            raise DataError("the matrix A must be finite, got infinite or missing entries")
        self.matrix = given.astype(np.float64)

    def __call__(self, images: npt.ArrayLike) -> FloatArray:
        """``h`` at images (n, ..., 64, 64) or (n, 4096), shape (n,)."""
        values: FloatArray = (((_flat(images) @ self.matrix) ** 2).mean(axis=1) - 5000.0) / 1000.0
        return values


class SecondFunction:
    """``h(x) = ((B' x)^2 - 3000) / 500`` with ``B = |32 - column| / 32``, of Xu, Kanagawa and Gretton 2021."""

    def __init__(self) -> None:
        self.weights: FloatArray = np.tile(np.abs(32.0 - np.arange(SIDE)) / 32.0, SIDE)

    def __call__(self, images: npt.ArrayLike) -> FloatArray:
        """``h`` at images (n, ..., 64, 64) or (n, 4096), shape (n,)."""
        values: FloatArray = ((_flat(images) @ self.weights) ** 2 - 3000.0) / 500.0
        return values


def simulate(
    n: int = 5000,
    *,
    seed: int = 0,
    function: str = "original",
    matrix: npt.ArrayLike | str | Path | None = None,
    confounding: float = 1.0,
    instruments: Sequence[str] = INSTRUMENTS,
    pixel_noise: float = PIXEL_NOISE,
    archive: str | Path | None = None,
) -> tuple[IVData, ImageTruth]:
    """Draw from a design.

    Parameters
    ----------
    n : int
        Rows.
    seed : int
        Seeds one generator; drawn in the order posX, posY, scale, orientation, pixel noise, outcome noise.
    function : {"original", "second"}
        The structural function.
    matrix : None, array_like (4096, 10), or path of a .npy file
        ``A`` of the original function; see :class:`OriginalFunction`. The same in every draw, whatever the seed.
    confounding : float
        ``c``, what a step of the heart's height adds to the outcome; 1 in the published designs. At 0 nothing confounds, and
        regression without instruments estimates ``h``.
    instruments : sequence of str
        Which of scale, orientation and posX the analyst has; posY too, which is a valid instrument only where
        ``confounding`` is 0.
    pixel_noise : float
        Standard deviation of the noise of a pixel; at 0 images stay uint8.
    archive : str or Path, optional
        The .npz file of the release: its pictures are taken, in the sample and in the test grid, by :func:`load`. None draws
        them, and the numbers are the same where the pictures are.

    Returns
    -------
    data : IVData
        ``treatment`` (n, 1, 64, 64), float32, or uint8 without pixel noise: channel, row, column, as convolutions want it. 16
        kB a row, or 4.
    truth : ImageTruth
        The structural function and its test grid of 588 images.

    Raises
    ------
    ParameterError
        If an argument is out of its range or a name unknown, or posY is an instrument where it confounds.
    DataError
        If the matrix or the archive cannot be used.

    Warns
    -----
    PictureWarning
        If pictures of the archive differ in a few pixels from those drawn.

    Examples
    --------
    >>> data, truth = simulate(n=3, seed=0)
    >>> data.treatment.shape, data.names["instruments"], len(truth.grid)
    ((3, 1, 64, 64), ('scale', 'orientation', 'posX'), 588)
    """
    check_whole("n", n, least=1)
    check_whole("seed", seed, least=0)
    _check_finite("confounding", confounding)
    _check_finite("pixel_noise", pixel_noise)
    if pixel_noise < 0:
        raise ParameterError(f"pixel_noise must be >= 0, got {pixel_noise!r}")
    chosen = _instruments(instruments, confounding=float(confounding))
    structural = _function(function, matrix)

    generator = np.random.default_rng(seed)
    drawn = {name: generator.integers(LATENTS[name], size=n) for name in ("posX", "posY", "scale", "orientation")}
    pictures, test_pictures = _pictures(np.column_stack([drawn[name] for name in LATENTS]), archive)
    images, outcome = _photographed(pictures, structural, float(pixel_noise), generator)
    outcome += confounding * (drawn["posY"] - MIDDLE) + generator.normal(0.0, OUTCOME_NOISE, n)
    data = IVData(
        outcome=outcome,
        treatment=images,
        instruments=np.column_stack([_value(name, drawn[name]) for name in chosen]),
        names={"outcome": ("outcome",), "treatment": ("image",), "instruments": chosen},
    )
    return data, _truth(structural, test_pictures)


def test_grid() -> pd.DataFrame:
    """Latents of the 588 test images: posX and posY 0, 5, ..., 30; scale 0, 3, 5; orientation 0, 10, 20, 30."""
    positions = range(0, 31, 5)
    rows = product(positions, positions, (0, 3, 5), (0, 10, 20, 30))
    return pd.DataFrame(rows, columns=["posX", "posY", "scale", "orientation"])[list(LATENTS)]


test_grid.__test__ = False  # type: ignore[attr-defined]


def _pictures(latents: npt.NDArray[np.integer], archive: str | Path | None) -> tuple[ImageArray, ImageArray]:
    """Those of the sample and of the test grid, drawn, or from one reading of the archive."""
    both = np.vstack([latents, test_grid().to_numpy()])
    pictures = render(both) if archive is None else load(archive, both)
    return pictures[: len(latents)], pictures[len(latents) :]


def _truth(structural: StructuralOfImages, pictures: ImageArray) -> ImageTruth:
    images = pictures[:, None]
    return ImageTruth(test_grid().assign(structural=structural(images)), images, structural)


def _photographed(
    pictures: ImageArray, structural: StructuralOfImages, pixel_noise: float, generator: np.random.Generator
) -> tuple[npt.NDArray[np.float32] | ImageArray, FloatArray]:
    """Images with noise, (n, 1, 64, 64), and ``h`` there, a block of rows at a time in the order of one draw."""
    outcome = np.empty(len(pictures))
    if pixel_noise == 0.0:
        for start in range(0, len(pictures), BLOCK):
            outcome[start : start + BLOCK] = structural(pictures[start : start + BLOCK])
        return pictures[:, None], outcome
    images = np.empty((len(pictures), 1, SIDE, SIDE), dtype=np.float32)
    for start in range(0, len(pictures), BLOCK):
        rows = slice(start, start + BLOCK)
        noisy = pictures[rows] + generator.normal(0.0, pixel_noise, pictures[rows].shape)
        images[rows, 0] = noisy
        outcome[rows] = structural(noisy)
    return images, outcome


def _value(name: str, index: npt.NDArray[np.integer]) -> FloatArray:
    """A latent's value: scale from 0.5 to 1, orientation from 0 to 2 pi, positions from 0 to 1."""
    least, greatest = {"scale": (0.5, 1.0), "orientation": (0.0, 2.0 * np.pi)}.get(name, (0.0, 1.0))
    values: FloatArray = np.linspace(least, greatest, LATENTS[name])[index]
    return values


def _function(name: str, matrix: npt.ArrayLike | str | Path | None) -> StructuralOfImages:
    if name == "original":
        return OriginalFunction(matrix)
    if name == "second":
        if matrix is not None:
            raise ParameterError('matrix is that of the original function, got one beside function="second": leave it out')
        return SecondFunction()
    raise ParameterError(f"function must be one of {', '.join(FUNCTIONS)}, got {name!r}")


def _instruments(names: Sequence[str], *, confounding: float) -> tuple[str, ...]:
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(LATENTS):
        raise ParameterError(f"instruments must be one or more of {', '.join(LATENTS)}, each once, got {names!r}")
    if "posY" in chosen and confounding != 0.0:
        raise ParameterError(
            f"posY confounds with strength {confounding:g} and is no valid instrument: leave it out of instruments={names!r}, "
            "or set confounding=0"
        )
    return chosen


def _check_finite(name: str, value: Any) -> None:
    if not is_number(value) or not np.isfinite(float(value)):
        raise ParameterError(f"{name} must be a finite number, got {value!r}")


def _flat(images: npt.ArrayLike) -> FloatArray:
    array = as_array("images", images)
    if array.ndim < 2 or math.prod(array.shape[1:]) != PIXELS:
        raise DataError(f"images must have {SIDE} x {SIDE} pixels a row, got shape {array.shape}")
    if array.dtype.kind not in "bfiu":
        raise DataError(f"images must hold numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise DataError("images must be finite, got infinite or missing pixels")
    if array.size and (array.max() > 100 or (array.dtype.kind == "u" and array.max() > 1)):
        raise DataError(
            f"images must be 0 where black and 1 where white, got values up to {array.max():g}: divide 0..255 by 255"
        )
    return array.reshape(len(array), PIXELS).astype(np.float64)


def _read_matrix(path: Path) -> npt.NDArray[np.generic]:
    try:
        with path.open("rb") as file:
            matrix: npt.NDArray[np.generic] = npy.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the matrix A could not be read from {path}: {error}") from error
    return matrix
