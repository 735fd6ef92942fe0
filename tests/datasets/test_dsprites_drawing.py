"""The drawn hearts against real frames of dSprites, pixel for pixel, and the laws of drawing."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from cfiv.datasets import dsprites_drawing as dsprites
from cfiv.datasets.dsprites_drawing import LATENTS, SHAPES, render
from cfiv.errors import DataError, ParameterError
from tests.datasets.dsprites_digests import FRAMES

#: 84 real frames beside the repository, which are read where they are and never committed.
REAL_FRAMES = Path(__file__).parents[3] / "shared" / "data" / "dsprites_frames.npz"


def some_latents(n: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.column_stack([draw.integers(0, size, n) for size in LATENTS.values()])


@pytest.mark.oracle
def test_hearts_have_the_digests_of_the_84_real_frames() -> None:
    lines = [line.split() for line in FRAMES.split("\n") if line]
    assert len(lines) == 84
    images = render(np.array([line[:4] for line in lines], dtype=int))
    differ = [line[:4] for line, image in zip(lines, images, strict=True) if sha256(image.tobytes()).hexdigest() != line[4]]
    assert differ == []


@pytest.mark.oracle
@pytest.mark.skipif(not REAL_FRAMES.exists(), reason="the real frames are not beside this checkout")
def test_hearts_are_the_real_frames_pixel_for_pixel() -> None:
    with np.load(REAL_FRAMES) as real:
        np.testing.assert_array_equal(render(real["latents"]), real["images"])


def inside(px: float, py: float, x: np.ndarray, y: np.ndarray) -> bool:
    """Even-odd: how many edges a ray to the left crosses; a centre on a left or top edge counts as inside."""
    odd = False
    for i in range(len(x)):
        (ax, ay), (bx, by) = sorted([(x[i - 1], y[i - 1]), (x[i], y[i])], key=lambda corner: corner[1])
        if ay <= py < by and (bx - ax) * (py - ay) <= (px - ax) * (by - ay):
            odd = not odd
    return odd


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pixel_is_white_if_its_centre_is_inside_the_polygon(shape: str) -> None:
    u, v = dsprites._corners(shape)
    scale, orientation, k, m = latents = (3, 7, 5, 20)
    size, turn = 9.6 * (0.5 + 0.1 * scale), 2 * np.pi * orientation / 39
    # Complex numbers turn the other way round here: y points down.
    points = 16 + 32 * k / 31 + 1j * (16 + 32 * m / 31) + size * np.exp(-1j * turn) * (u + 1j * v)
    x, y = np.round(256 * points.real), np.round(256 * points.imag)
    expected = [[inside(256 * c + 128, 256 * r + 128, x, y) for c in range(64)] for r in range(64)]
    np.testing.assert_array_equal(render([latents], shape)[0], expected)


def test_a_centre_on_an_edge_is_inside_at_the_left_and_top_edges_alone() -> None:
    corners = np.array([[2, 5, 5, 2]]) * 256 + 128, np.array([[1, 1, 3, 3]]) * 256 + 128
    image = dsprites._filled(*(points.astype(np.int32) for points in corners))[0]
    expected = np.zeros((64, 64))
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(image, expected)


@pytest.mark.law
@pytest.mark.parametrize("shape", SHAPES)
def test_orientations_0_and_39_are_the_same_picture(shape: str) -> None:
    latents = some_latents(300)
    latents[:, 1] = 0
    turned = latents.copy()
    turned[:, 1] = 39
    np.testing.assert_array_equal(render(latents, shape), render(turned, shape))


@pytest.mark.law
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_31_positions_moves_the_picture_by_32_pixels(shape: str) -> None:
    latents = some_latents(300)
    latents[:, 2:] = 0
    images = render(latents, shape)
    for column, axis in ((2, 2), (3, 1)):
        moved = latents.copy()
        moved[:, column] = 31
        np.testing.assert_array_equal(render(moved, shape), np.roll(images, 32, axis=axis))


@pytest.mark.law
@pytest.mark.parametrize("shape", SHAPES)
def test_posx_moves_right_and_posy_down(shape: str) -> None:
    rows, columns = np.mgrid[:64, :64]
    for column, where in ((2, columns), (3, rows)):
        latents = np.tile([5, 3, 16, 16], (32, 1))
        latents[:, column] = np.arange(32)
        images = render(latents, shape)
        means = (images * where).sum(axis=(1, 2)) / images.sum(axis=(1, 2))
        # A position is 32/31 pixels; the mean of the pixels inside follows it to a fraction of one.
        np.testing.assert_allclose(means - means[0], np.arange(32) * 32 / 31, atol=0.2)


@pytest.mark.law
@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_grows_with_the_square_of_the_scale(shape: str) -> None:
    latents = np.tile(some_latents(200)[:, None, :], (1, 6, 1))
    latents[:, :, 0] = np.arange(6)
    areas = render(latents.reshape(-1, 4), shape).sum(axis=(1, 2)).reshape(200, 6)
    assert (np.diff(areas, axis=1) > 0).all()
    u, v = dsprites._corners(shape)
    polygon = 9.6**2 * abs(np.sum(u * np.roll(v, -1) - np.roll(u, -1) * v)) / 2
    # Pixels count the area without bias: over 200 turns and places, to one per cent.
    np.testing.assert_allclose(areas.mean(axis=0), polygon * (0.5 + 0.1 * np.arange(6)) ** 2, rtol=0.01)


@pytest.mark.law
def test_hearts_upright_in_the_middle_of_a_pixel_are_symmetric() -> None:
    images = render([[scale, 0, 0, pos_y] for scale in range(6) for pos_y in range(32)])[:, :, :32]
    np.testing.assert_array_equal(images, images[:, :, ::-1])


@pytest.mark.law
def test_blocks_of_rows_do_not_show() -> None:
    latents = some_latents(2 * dsprites.BLOCK + 5)
    images = render(latents)
    assert images.dtype == np.uint8
    assert set(np.unique(images)) == {0, 1}
    for row in (0, dsprites.BLOCK - 1, dsprites.BLOCK, len(latents) - 1):
        np.testing.assert_array_equal(images[row], render(latents[row : row + 1])[0])


def test_no_latents_make_no_pictures_and_latents_are_left_alone() -> None:
    latents = some_latents(5)
    before = latents.copy()
    assert render(latents[:0]).shape == (0, 64, 64)
    assert render(latents.astype(np.uint8)).tolist() == render(latents.tolist()).tolist()
    np.testing.assert_array_equal(latents, before)


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        ([0, 0, 0, 0], "latents must have shape (n, 4), columns scale, orientation, posX, posY, got shape (4,)"),
        ([[0, 0, 0]], "got shape (1, 3)"),
        ([[0, 0, 0, 0], [0, 0]], "latents makes no array (its rows differ in length)"),
        (
            [[1.0, 0.0, 0.5, 0.5]],
            "latents must be integers, the indices of scale, orientation, posX, posY and not their values",
        ),
        ([[0, 0, 0, float("nan")]], "got dtype float64"),
        ([[True, False, True, True]], "got dtype bool"),
        ([["0", "0", "0", "0"]], "latents must be integers"),
        ([[0, 0, 0, 0], [6, 0, 0, 0]], "scale must be an index from 0 to 5, got 6 in row 1 of latents"),
        ([[0, 40, 0, 0]], "orientation must be an index from 0 to 39, got 40 in row 0"),
        ([[0, 0, -1, 0]], "posX must be an index from 0 to 31, got -1"),
        ([[0, 0, 0, 32]], "posY must be an index from 0 to 31, got 32"),
    ],
)
def test_bad_latents_are_refused(latents: object, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        render(latents)


@pytest.mark.parametrize("shape", ["triangle", "Heart", 2, None])
def test_an_unknown_shape_is_refused(shape: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(f"shape must be one of heart, ellipse, square, got {shape!r}")):
        render([[0, 0, 0, 0]], shape)
