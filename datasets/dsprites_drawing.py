"""The pictures of dSprites, drawn: a white heart, ellipse or square on 64 x 64 black pixels, from the indices of its latents.

A shape is a polygon (u, v) with v downward. Scale index i, orientation j, positions k and l put its points, in pixels from the
upper left corner, at

    x = 16 + 32 k/31 + 9.6 s ( u cos t + v sin t)        s = 0.5 + 0.1 i
    y = 16 + 32 l/31 + 9.6 s (-u sin t + v cos t)        t = 2 pi j/39

and the heart has 150 corners at equal steps of the angle a,

    u = sin(a)^3,    v = -(13 cos a - 5 cos 2a - 2 cos 3a - cos 4a) / 14.5 - 0.15.

Corners are rounded to 1/256 pixel, as graphics processors do. A pixel is white if its centre lies inside; a centre on an edge
counts as inside at a left or top edge. From the rounded corners on, arithmetic is exact.

Notes
-----
The authors drew with LÖVE, the heart as a mesh of vertices, without antialiasing (their answers in the repository's issues 2
and 3); they published no program. The constants here are inferred from 84 real frames of hearts, all of which they reproduce in
every pixel. With the others as they are, these frames allow no grid of corners coarser or finer than 1/256 pixel by a factor of
two, no other 16, 32 or 9.6 to three decimals, a lift between 0.1498 and 0.1501, a divisor from 14.491 to 14.5003, and of 60 to
399 corners, from a = 0 or half a step on, 150 and also 161 (from 0) and 152 (from half a step). Of these,
150 and 14.5 are round.

Hearts other than those 84 were not compared. If one constant were another that these frames allow, a pixel or two would differ
in up to 8 of 100 pictures; if the original drew in float32, in 1 of 10,000. No pixel centre in these frames lies on an edge, so
the rule for edges is the usual one of graphics processors, not an observed one; its opposite changes 3 of 100 pictures.

**Ellipses and squares were not checked against real frames**: none were at hand. That they are LÖVE's own is published, their
sizes are not. They are drawn by the same rule in sizes that are guesses: as wide as the heart, the ellipse half as high.

References
----------
Matthey, Higgins, Hassabis, Lerchner, "dSprites: Disentanglement testing Sprites dataset", 2017,
https://github.com/google-deepmind/dsprites-dataset.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cfiv.arrays import as_array
from cfiv.errors import DataError, ParameterError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
ImageArray = npt.NDArray[np.uint8]

#: The latents in their order, and how many values each has.
LATENTS = {"scale": 6, "orientation": 40, "posX": 32, "posY": 32}
SHAPES = ("heart", "ellipse", "square")

#: Pixels on a side, and steps of the corners' grid in a pixel.
SIDE, STEPS = 64, 256
#: Pixels: the least centre, the range of centres, half the width of a shape of scale 1.
LEAST_CENTRE, RANGE, HALF_WIDTH = 16.0, 32.0, 9.6
#: The heart's corners, the divisor of its height, and by how much it is lifted (in half widths).
CORNERS, HEART_DIVISOR, HEART_LIFT = 150, 14.5, 0.15
#: A guess: the ellipse's height as a share of its width.
ELLIPSE_HEIGHT = 0.5

#: Pictures drawn at a time: a few megabytes of working memory.
BLOCK = 256


def render(latents: npt.ArrayLike, shape: str = "heart") -> ImageArray:
    """Draw pictures from the indices of their latents.

    Parameters
    ----------
    latents : array_like of integers (n, 4)
        Indices, not values: scale 0..5, orientation 0..39 (0 and 39 are the same picture), posX 0..31 and posY 0..31, from
        the left and from the top.
    shape : str
        "heart"; or "ellipse" or "square", which **were not checked against real frames** and whose sizes are guesses.

    Returns
    -------
    ndarray of uint8 (n, 64, 64)
        1 where the shape is, 0 elsewhere; rows from the top.

    Raises
    ------
    DataError
        If latents are not integers, not of shape (n, 4), or out of range.
    ParameterError
        If the shape is unknown.

    Notes
    -----
    About 10,000 pictures in half a second; beyond the result, memory does not grow with n.

    Examples
    --------
    >>> image = render([[0, 0, 0, 0]])[0]
    >>> for row in image[11:20, 10:22]:
    ...     print("".join("-#"[pixel] for pixel in row))
    ---#----#---
    --########--
    -##########-
    -##########-
    --########--
    --########--
    ---######---
    ----####----
    -----##-----
    """
    corners = _corners(shape)
    indices = checked_latents(latents)
    images = np.empty((len(indices), SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(indices), BLOCK):
        block = slice(start, start + BLOCK)
        images[block] = _filled(*_placed(*corners, indices[block]))
    return images


def checked_latents(latents: npt.ArrayLike) -> npt.NDArray[np.integer]:
    """Indices (n, 4) as an array; raises a DataError where :func:`render` does."""
    names = ", ".join(LATENTS)
    indices = as_array("latents", latents)
    if indices.ndim != 2 or indices.shape[1] != len(LATENTS):
        raise DataError(f"latents must have shape (n, 4), columns {names}, got shape {indices.shape}")
    if not np.issubdtype(indices.dtype, np.integer):
        raise DataError(f"latents must be integers, the indices of {names} and not their values, got dtype {indices.dtype}")
    for column, (name, size) in zip(indices.T, LATENTS.items(), strict=True):
        outside = (column < 0) | (column >= size)
        if outside.any():
            row = int(outside.argmax())
            raise DataError(f"{name} must be an index from 0 to {size - 1}, got {column[row]} in row {row} of latents")
    return indices


def _corners(shape: str) -> tuple[FloatArray, FloatArray]:
    """The corners u (rightward) and v (downward) of a shape whose half width is 1."""
    if shape not in SHAPES:
        raise ParameterError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    if shape == "square":
        return np.array([-1.0, 1.0, 1.0, -1.0]), np.array([-1.0, -1.0, 1.0, 1.0])
    a = 2.0 * np.pi * np.arange(CORNERS) / CORNERS
    if shape == "ellipse":
        return np.cos(a), ELLIPSE_HEIGHT * np.sin(a)
    curve = 13.0 * np.cos(a) - 5.0 * np.cos(2.0 * a) - 2.0 * np.cos(3.0 * a) - np.cos(4.0 * a)
    return np.sin(a) ** 3, -curve / HEART_DIVISOR - HEART_LIFT


def _placed(u: FloatArray, v: FloatArray, indices: npt.NDArray[np.integer]) -> tuple[IntArray, IntArray]:
    """The corners' x and y in steps of 1/256 pixel, each (n, corners)."""
    scale, orientation, pos_x, pos_y = (column[:, None].astype(np.float64) for column in indices.T)
    size = HALF_WIDTH * (0.5 + 0.1 * scale)
    turn = 2.0 * np.pi * (orientation % 39.0) / 39.0
    along, across = size * np.cos(turn), size * np.sin(turn)
    x = LEAST_CENTRE + RANGE * pos_x / 31.0 + along * u + across * v
    y = LEAST_CENTRE + RANGE * pos_y / 31.0 + along * v - across * u
    return np.rint(STEPS * x).astype(np.int32), np.rint(STEPS * y).astype(np.int32)


def _filled(x: IntArray, y: IntArray) -> ImageArray:
    """Fill one polygon a row, all of whose corners lie within the picture.

    Where an edge crosses a row's centre line, the pixels from there on change sides; how often a pixel did decides.
    """
    next_x, next_y = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
    down = y <= next_y
    top_x, bottom_x = np.where(down, x, next_x), np.where(down, next_x, x)
    top_y, bottom_y = np.where(down, y, next_y), np.where(down, next_y, y)
    half = STEPS // 2
    # Rows whose centre c has top_y <= c < bottom_y.
    first, past = -((half - top_y) // STEPS), -((half - bottom_y) // STEPS)
    changes = np.zeros((len(x), SIDE, SIDE), dtype=np.uint8)
    for step in range(int((past - first).max())):
        crossing = first + step < past
        picture, _ = np.nonzero(crossing)
        row = first[crossing] + step
        x0, y0, x1, y1 = (ends[crossing] for ends in (top_x, top_y, bottom_x, bottom_y))
        height = y1 - y0
        # The first column whose centre is not left of x0 + (x1 - x0)(c - y0)/height, rounded up without a fraction.
        left = (x0 - half) * height + (x1 - x0) * (STEPS * row + half - y0)
        column = -((-left) // (STEPS * height))
        np.add.at(changes, (picture, row, column), 1)
    inside: ImageArray = np.bitwise_xor.accumulate(changes & 1, axis=2)
    return inside
