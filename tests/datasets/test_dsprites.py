"""The dSprites designs against an independent transcription of their published form."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfiv.data import IVData
from cfiv.datasets import dsprites
from cfiv.datasets.dsprites import OriginalFunction, SecondFunction
from cfiv.datasets.dsprites_drawing import render
from cfiv.datasets.truth import Truth
from cfiv.errors import DataError, ParameterError

#: The tolerance of sums of 4096 products added in another order.
SUMS = 1e-10

A = np.random.default_rng(0).uniform(size=(4096, 10))


def original(x: np.ndarray, matrix: np.ndarray = A) -> float:
    return (sum(float(np.sum(matrix[:, j] * x)) ** 2 for j in range(10)) / 10 - 5000) / 1000


def second(x: np.ndarray) -> float:
    total = sum(abs(32 - column) / 32 * float(x[64 * row + column]) for row in range(64) for column in range(64))
    return (total**2 - 3000) / 500


PUBLISHED = {"original": original, "second": second}


def latents_of(n: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """Scale, orientation, posX, posY of a draw, and the generator after it."""
    draw = np.random.default_rng(seed)
    pos_x, pos_y = draw.integers(32, size=n), draw.integers(32, size=n)
    scale, orientation = draw.integers(6, size=n), draw.integers(40, size=n)
    return np.array([scale, orientation, pos_x, pos_y]).T, draw


def published(n: int, seed: int, function: str) -> dict[str, np.ndarray]:
    """The program of Xu et al. 2021, a row at a time where it can be; the pictures are tested in test_dsprites_drawing."""
    latents, draw = latents_of(n, seed)
    pixels = np.array([render([row])[0].ravel() for row in latents]) + draw.normal(0, 0.1, (n, 4096))
    noise = draw.normal(0, 0.5, n)
    return {
        "treatment": pixels.reshape(n, 1, 64, 64),
        "outcome": np.array([PUBLISHED[function](pixels[i]) + (latents[i, 3] - 16) + noise[i] for i in range(n)]),
        "instruments": np.array([[0.5 + s / 10, 2 * np.pi * o / 39, x / 31] for s, o, x, _ in latents]),
    }


@pytest.mark.oracle
@pytest.mark.parametrize("function", ["original", "second"])
@pytest.mark.parametrize(("n", "seed"), [(1, 0), (2, 5), (30, 1)])
def test_rows_are_those_of_the_published_design_drawn_in_its_order(n: int, seed: int, function: str) -> None:
    data, truth = dsprites.simulate(n, seed=seed, function=function)
    expected = published(n, seed, function)
    assert data.treatment.dtype == np.float32
    np.testing.assert_array_equal(data.treatment, expected["treatment"].astype(np.float32))
    np.testing.assert_allclose(data.outcome, expected["outcome"], rtol=SUMS, atol=SUMS)
    np.testing.assert_allclose(data.instruments, expected["instruments"], rtol=1e-14)
    assert data.names == {"outcome": ("outcome",), "treatment": ("image",), "instruments": ("scale", "orientation", "posX")}
    pixels = expected["treatment"]
    np.testing.assert_allclose(truth(pixels), [PUBLISHED[function](x.ravel()) for x in pixels], rtol=SUMS, atol=SUMS)


@pytest.mark.law
def test_more_rows_than_are_drawn_at_a_time_have_the_numbers_of_one_draw() -> None:
    n = dsprites.BLOCK + 76
    latents, draw = latents_of(n, seed=2)
    pixels = render(latents) + draw.normal(0, 0.1, (n, 64, 64))
    outcome = SecondFunction()(pixels) + latents[:, 3] - 16 + draw.normal(0, 0.5, n)
    data, _ = dsprites.simulate(n, seed=2, function="second")
    np.testing.assert_array_equal(data.treatment[:, 0], pixels.astype(np.float32))
    np.testing.assert_allclose(data.outcome, outcome, rtol=SUMS, atol=SUMS)
    quiet, _ = dsprites.simulate(n, seed=2, function="second", pixel_noise=0.0)
    np.testing.assert_array_equal(quiet.treatment[:, 0], render(latents))


@pytest.mark.oracle
@pytest.mark.parametrize("function", ["original", "second"])
def test_the_grid_is_the_published_588_images(function: str) -> None:
    _, truth = dsprites.simulate(1, function=function)
    positions = [0, 5, 10, 15, 20, 25, 30]
    points = list(product(positions, positions, (0, 3, 5), (0, 10, 20, 30)))
    assert len(points) == 588
    assert list(truth.grid[["posX", "posY", "scale", "orientation"]].itertuples(index=False, name=None)) == points
    assert dsprites.test_grid().equals(truth.grid.drop(columns="structural"))
    images = render([[scale, orientation, pos_x, pos_y] for pos_x, pos_y, scale, orientation in points])
    assert truth.images.dtype == np.uint8
    np.testing.assert_array_equal(truth.images, images[:, None])
    expected = [PUBLISHED[function](x.ravel().astype(float)) for x in images]
    np.testing.assert_allclose(truth.grid["structural"], expected, rtol=SUMS, atol=SUMS)


@pytest.mark.law
def test_the_functions_are_known_where_an_image_is_black_or_white() -> None:
    black, white = np.zeros((1, 64, 64)), np.ones((1, 64, 64))
    # B sums to 64 rows of 32; A's columns sum to about 2048.
    np.testing.assert_allclose(SecondFunction()([black[0], white[0]]), [-6.0, (2048**2 - 3000) / 500], rtol=1e-14)
    np.testing.assert_allclose(OriginalFunction()(black), [-5.0])
    np.testing.assert_allclose(OriginalFunction()(white), [(np.mean(A.sum(axis=0) ** 2) - 5000) / 1000], rtol=SUMS)
    np.testing.assert_allclose(OriginalFunction(np.ones((4096, 10)))(white), [(4096**2 - 5000) / 1000], rtol=1e-14)


@pytest.mark.law
@pytest.mark.parametrize("h", [OriginalFunction(), SecondFunction()])
def test_the_functions_read_images_of_any_layout_and_number_type_alike(h: Any) -> None:
    images, _ = dsprites.simulate(4, pixel_noise=0.0)
    pictures = images.treatment
    expected = h(pictures)
    for same in (pictures[:, 0], pictures.reshape(4, -1), pictures.astype(float), pictures.astype(bool), pictures.tolist()):
        np.testing.assert_array_equal(h(same), expected)
    assert h(pictures[:0]).shape == (0,)


@pytest.mark.law
def test_a_matrix_is_taken_as_an_array_as_a_list_and_from_a_file(tmp_path: Path) -> None:
    matrix = np.random.default_rng(7).uniform(size=(4096, 10))
    np.save(tmp_path / "A.npy", matrix)
    expected = [original(x.ravel().astype(float), matrix) for x in dsprites.simulate(1)[1].images]
    for given in (matrix, matrix.tolist(), tmp_path / "A.npy", str(tmp_path / "A.npy")):
        truth = dsprites.simulate(1, matrix=given)[1]
        np.testing.assert_allclose(truth.grid["structural"], expected, rtol=SUMS, atol=SUMS)


@pytest.mark.law
def test_the_matrix_is_the_same_in_every_draw() -> None:
    one, other = (dsprites.simulate(1, seed=seed)[1].grid for seed in (0, 1))
    assert one.equals(other)


@pytest.mark.law
def test_the_confounding_is_its_strength_times_the_height_and_changes_nothing_else() -> None:
    plain, none, strong = (dsprites.simulate(40, seed=3, **kind)[0] for kind in ({}, {"confounding": 0}, {"confounding": -2.5}))
    height = latents_of(40, seed=3)[0][:, 3] - 16
    np.testing.assert_allclose(plain.outcome - none.outcome, height, atol=SUMS)
    np.testing.assert_allclose(strong.outcome - none.outcome, -2.5 * height, atol=SUMS)
    for other in (none, strong):
        np.testing.assert_array_equal(other.treatment, plain.treatment)
        np.testing.assert_array_equal(other.instruments, plain.instruments)


@pytest.mark.law
def test_the_mean_of_the_confounder_is_the_docstring_s_minus_a_half() -> None:
    assert np.mean(np.arange(32) - dsprites.MIDDLE) == -0.5


@pytest.mark.law
def test_instruments_are_those_chosen_in_their_order() -> None:
    everything, _ = dsprites.simulate(20, seed=1, confounding=0.0, instruments=("scale", "orientation", "posX", "posY"))
    values = dict(zip(("scale", "orientation", "posX", "posY"), everything.instruments.T, strict=True))
    np.testing.assert_allclose(values["posY"], latents_of(20, seed=1)[0][:, 3] / 31, rtol=1e-14)
    for chosen in (["posX", "scale"], ("orientation",), "posX"):
        data, _ = dsprites.simulate(20, seed=1, instruments=chosen)
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        assert data.names is not None
        assert list(data.names["instruments"]) == names
        np.testing.assert_array_equal(data.instruments, np.column_stack([values[name] for name in names]))


@pytest.mark.law
def test_without_pixel_noise_images_stay_bytes_and_the_outcome_is_that_of_the_picture() -> None:
    data, truth = dsprites.simulate(20, seed=6, pixel_noise=0)
    latents, draw = latents_of(20, seed=6)
    assert data.treatment.dtype == np.uint8
    np.testing.assert_array_equal(data.treatment[:, 0], render(latents))
    error = latents[:, 3] - 16 + draw.normal(0, 0.5, 20)
    np.testing.assert_allclose(data.outcome, truth(data.treatment) + error, rtol=SUMS, atol=SUMS)


@pytest.mark.law
def test_pixel_noise_is_a_standard_deviation_of_the_same_draw() -> None:
    one, other = (dsprites.simulate(5, pixel_noise=noise)[0].treatment.astype(float) for noise in (0.1, 0.4))
    pictures = dsprites.simulate(5, pixel_noise=0.0)[0].treatment
    # Single precision: 6e-8 of values up to 3.
    np.testing.assert_allclose(other - pictures, 4 * (one - pictures), atol=1e-6)


def test_the_same_seed_draws_the_same_rows_and_another_seed_others() -> None:
    one, again, other = (dsprites.simulate(10, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.treatment, again.treatment)
    np.testing.assert_array_equal(one.outcome, again.outcome)
    assert (one.outcome != other.outcome).all()


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    dsprites.simulate(5)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


class Shifted:
    """Predicts a function of the images plus a constant, in a shape that may be wrong."""

    def __init__(self, function: Any, shift: float, shape: tuple[int, ...] = (-1,)) -> None:
        self.function, self.shift, self.shape = function, shift, shape

    def predict(self, rows: Any) -> np.ndarray:
        seen = rows["treatment"].to_numpy() if isinstance(rows, pd.DataFrame) else rows.treatment
        assert not isinstance(rows, IVData) or rows.outcome is None  # the truth must not reach a model
        return (self.function(seen) + self.shift).reshape(self.shape)


@pytest.mark.law
def test_the_error_of_the_truth_is_zero_and_of_a_shifted_truth_the_square_of_the_shift() -> None:
    _, truth = dsprites.simulate(1, function="second")
    assert truth.error(Shifted(truth, 0.0)) == 0.0
    assert truth.error(Shifted(truth, -3.0)) == pytest.approx(9.0, rel=SUMS)
    np.testing.assert_array_equal(truth(truth.images), truth.grid["structural"])


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1), (-1, 2)])
def test_predictions_that_are_not_one_number_a_row_have_no_error(shape: tuple[int, ...]) -> None:
    _, images = dsprites.simulate(1)
    grid = pd.DataFrame({"treatment": np.arange(588.0), "structural": np.arange(588.0)})
    for truth, function in ((images, images), (Truth(grid, lambda rows: rows["treatment"].to_numpy()), np.asarray)):
        with pytest.raises(DataError, match=re.escape("predictions must be one number a row, shape (588,), got shape (")):
            truth.error(Shifted(function, 0.0, shape))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"n": 2.5}, "n must be a whole number >= 1, got 2.5"),
        ({"n": True}, "n must be a whole number >= 1, got True"),
        ({"n": "5"}, "n must be a whole number >= 1, got '5'"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": None}, "seed must be a whole number >= 0, got None"),
        ({"pixel_noise": -0.1}, "pixel_noise must be >= 0, got -0.1"),
        ({"pixel_noise": float("nan")}, "pixel_noise must be a finite number, got nan"),
        ({"pixel_noise": True}, "pixel_noise must be a finite number, got True"),
        ({"confounding": float("inf")}, "confounding must be a finite number, got inf"),
        ({"confounding": "1"}, "confounding must be a finite number, got '1'"),
        ({"function": "third"}, "function must be one of original, second, got 'third'"),
        ({"function": "second", "matrix": A}, 'matrix is that of the original function, got one beside function="second"'),
        ({"instruments": ("scale", "posZ")}, "instruments must be one or more of scale, orientation, posX, posY, each once"),
        ({"instruments": ()}, "instruments must be one or more of scale, orientation, posX, posY, each once, got ()"),
        ({"instruments": ("scale", "scale")}, "each once, got ('scale', 'scale')"),
        ({"instruments": "color"}, "each once, got 'color'"),
        ({"instruments": ("posX", "posY")}, "posY confounds with strength 1 and is no valid instrument: leave it out"),
        ({"instruments": "posY", "confounding": -2.0}, "posY confounds with strength -2 and is no valid instrument"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(says)):
        dsprites.simulate(**{"n": 2, **arguments})


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.ones((10, 4096)), "in shape (4096, 10), a row a pixel, got shape (10, 4096) of float64: give its transpose"),
        (np.ones((4096, 9)), "got shape (4096, 9) of float64"),
        (np.ones(4096), "got shape (4096,) of float64"),
        (
            np.full((4096, 10), "1"),
            "the matrix A must hold numbers in shape (4096, 10), a row a pixel, got shape (4096, 10) of <U1",
        ),
        (np.ones((4096, 10), dtype=complex), "of complex128"),
        ([[1.0, 2.0], [3.0]], "the matrix A makes no array (its rows differ in length)"),
        (np.full((4096, 10), np.nan), "the matrix A must be finite, got infinite or missing entries"),
        (np.where(np.arange(40960).reshape(4096, 10) == 7, np.inf, 1.0), "the matrix A must be finite"),
    ],
)
def test_a_matrix_that_cannot_be_used_is_refused(matrix: Any, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        dsprites.simulate(2, matrix=matrix)


def test_a_matrix_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    contents = {"empty": b"", "text": b"1.0 2.0", "broken": b"PK\x03\x04 no zip", "pickle": b"\x80\x04K\x01."}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for path in (tmp_path / "none.npy", tmp_path, *(tmp_path / name for name in contents)):
        with pytest.raises(DataError, match=re.escape(f"the matrix A could not be read from {path}")):
            dsprites.simulate(2, matrix=path)
    np.savez(tmp_path / "many.npz", A=A)
    with pytest.raises(DataError, match="the matrix A could not be read from"):
        dsprites.simulate(2, matrix=tmp_path / "many.npz")
    np.save(tmp_path / "transposed.npy", A.T)
    with pytest.raises(DataError, match="give its transpose"):
        dsprites.simulate(2, matrix=str(tmp_path / "transposed.npy"))


@pytest.mark.parametrize("h", [OriginalFunction(), SecondFunction()])
@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((3, 32, 32)), "images must have 64 x 64 pixels a row, got shape (3, 32, 32)"),
        (np.zeros((3, 3, 64, 64)), "got shape (3, 3, 64, 64)"),
        (np.zeros(4096), "got shape (4096,)"),
        (np.float64(0), "got shape ()"),
        (np.zeros((0, 32, 32)), "got shape (0, 32, 32)"),
        ([[0.0, 1.0], [0.0]], "images makes no array (its rows differ in length)"),
        (np.full((1, 64, 64), "0"), "images must hold numbers, got <U1"),
        (np.full((1, 64, 64), np.nan), "images must be finite, got infinite or missing pixels"),
        (
            np.full((1, 64, 64), 255, dtype=np.uint8),
            "0 where black and 1 where white, got values up to 255: divide 0..255 by 255",
        ),
        (np.full((1, 64, 64), 2, dtype=np.uint8), "got values up to 2"),
        (np.full((1, 64, 64), 255.0), "got values up to 255"),
    ],
)
def test_other_images_have_no_structural_value(h: Any, images: Any, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        h(images)
