"""The file of the dSprites release, in small: its pictures are those asked for, and no damage to it goes unseen."""

from __future__ import annotations

import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cfiv
from cfiv.datasets import dsprites
from cfiv.datasets.dsprites import held_latents, load
from cfiv.datasets.dsprites_drawing import LATENTS, SHAPES, render
from cfiv.errors import DataError, ParameterError, PictureWarning

CLASSES = {"square": 0, "ellipse": 1, "heart": 2}


def some_latents(n: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    codes = draw.choice(6 * 40 * 32 * 32, n, replace=False)
    return np.column_stack(np.unravel_index(codes, tuple(LATENTS.values())))


def members(latents: np.ndarray, shape: str = "heart") -> dict[str, np.ndarray]:
    """What the official file has under these names, for fewer pictures."""
    n = len(latents)
    values = latents / [5, 39, 31, 31] * [0.5, 2 * np.pi, 1, 1] + [0.5, 0, 0, 0]
    return {
        "metadata": np.array({"date": "April 2017", "latents_names": ("color", "shape")}, dtype=object),
        "imgs": render(latents, shape),
        "latents_classes": np.column_stack([np.zeros(n), np.full(n, CLASSES[shape]), latents]).astype(np.int64),
        "latents_values": np.column_stack([np.ones(n), np.full(n, CLASSES[shape] + 1.0), values]),
    }


def joined(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: array if name == "metadata" else np.concatenate([part[name] for part in parts])
        for name, array in parts[0].items()
    }


def written(folder: Path, content: dict[str, Any], name: str = "some.npz") -> Path:
    np.savez_compressed(folder / name, **content)
    return folder / name


def refused(path: Path, *says: str, **arguments: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(path, **arguments)
    assert [part for part in (*says, str(path)) if part not in str(caught.value)] == []


@pytest.fixture
def content() -> dict[str, np.ndarray]:
    return members(some_latents(12))


def test_the_pictures_are_those_of_the_latents_asked_for_in_their_order(tmp_path: Path) -> None:
    latents = some_latents(50)
    path = written(tmp_path, joined(members(some_latents(9, seed=1), "square"), members(latents)))
    asked = latents[[7, 3, 3, 49, 0]]
    for rows in (asked, asked.tolist(), asked.astype(np.uint8), asked.astype(np.uint64)):
        pictures = load(path, rows)
        assert pictures.dtype == np.uint8
        np.testing.assert_array_equal(pictures, render(asked))
    np.testing.assert_array_equal(load(str(path), asked[:1]), render(asked[:1]))
    assert load(path, asked[:0]).shape == (0, 64, 64)


def test_of_latents_that_the_file_holds_twice_the_first_picture_is_taken(tmp_path: Path) -> None:
    latents = some_latents(4)[[0, 1, 1, 2, 3]]
    content = members(latents)
    content["imgs"][2, 0, 0] = 1
    path = written(tmp_path, content)
    np.testing.assert_array_equal(load(path, latents), render(latents))
    with pytest.warns(PictureWarning, match="1 of 5 hearts"):
        np.testing.assert_array_equal(load(path), content["imgs"])


@pytest.mark.law
def test_blocks_of_the_file_do_not_show(tmp_path: Path) -> None:
    latents = some_latents(2100)  # 4 MB are 1024 pictures
    path = written(tmp_path, members(latents))
    order = np.random.default_rng(1).permutation(len(latents))
    np.testing.assert_array_equal(load(path, latents[order]), render(latents[order]))


@pytest.mark.law
@pytest.mark.filterwarnings("ignore::cfiv.errors.PictureWarning")
def test_without_latents_all_of_the_shape_are_taken_in_the_order_that_held_latents_tells(tmp_path: Path) -> None:
    parts = {shape: some_latents(10 + k, seed=k) for k, shape in enumerate(SHAPES)}
    content = joined(*(members(latents, shape) for shape, latents in parts.items()))
    mixed = np.random.default_rng(0).permutation(33)
    path = written(tmp_path, {name: array if name == "metadata" else array[mixed] for name, array in content.items()})
    for shape, latents in parts.items():
        held = held_latents(path, shape=shape)
        assert sorted(held.tolist()) == sorted(latents.tolist())
        np.testing.assert_array_equal(load(path, shape=shape), render(held, shape))
        np.testing.assert_array_equal(load(path, held, shape=shape), render(held, shape))


def test_members_that_are_not_needed_are_not_read(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the pickle was run",))

    content["metadata"] = np.array(Harmful(), dtype=object)
    del content["latents_values"]
    path = written(tmp_path, content)
    assert len(load(path)) == len(held_latents(path)) == 12


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    content = members(some_latents(10))
    rows = 20_000
    content["imgs"] = np.concatenate([content["imgs"], np.zeros((rows, 64, 64), dtype=np.uint8)])
    content["latents_classes"] = np.vstack([content["latents_classes"], np.zeros((rows, 6), dtype=np.int64)])
    path = written(tmp_path, content)
    tracemalloc.start()
    try:
        load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 82 MB unpacked; a block is 4 MB, and unpacking joins blocks of packed and unpacked bytes.
    assert peak < 20e6


def test_a_missing_file_is_told_with_where_to_get_it(tmp_path: Path) -> None:
    refused(
        tmp_path / "none.npz",
        "does not exist",
        "dsprites_ndarray_co1sh3",
        "https://github.com/google-deepmind/dsprites-dataset",
    )


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "page.npz").write_text("<html>Not found</html>")
    refused(tmp_path / "page.npz", "cannot be read as an .npz archive: File is not a zip file", "download")
    (tmp_path / "empty.npz").write_bytes(b"")
    refused(tmp_path / "empty.npz", "File is not a zip file")
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused(tmp_path / "array.npy", "File is not a zip file")
    refused(tmp_path, "Is a directory")


@pytest.mark.law
def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path, members(some_latents(3))).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        refused(path, "cannot be read as an .npz archive", "download")


@pytest.mark.law
@pytest.mark.parametrize("how", [np.savez, np.savez_compressed])
def test_whatever_byte_is_damaged_the_pictures_are_right_or_refused(tmp_path: Path, how: Any) -> None:
    latents = some_latents(2)
    how(tmp_path / "whole.npz", **members(latents))
    whole = (tmp_path / "whole.npz").read_bytes()
    draw, path, seen = np.random.default_rng(0), tmp_path / "damaged.npz", 0
    # Half of the bytes from anywhere, half from the archive's directory, its last 600.
    places = np.concatenate([draw.integers(0, len(whole), 300), draw.integers(len(whole) - 600, len(whole), 300)])
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= draw.integers(1, 256)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(load(path, latents), render(latents))
        except DataError:
            seen += 1
    assert seen > 100  # the others lie in members that are not read, and in dates and sizes that do not matter


def test_a_member_that_is_damaged_or_of_another_length_is_refused(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    path = written(tmp_path, content)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("imgs.npy").header_offset
        plain = {name: archive.read(name) for name in archive.namelist()}
    damaged = bytearray(path.read_bytes())
    damaged[offset + 100] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    refused(tmp_path / "damaged.npz", "cannot be read as an .npz archive: ", "download")

    stored = tmp_path / "stored.npz"
    with zipfile.ZipFile(stored, "w") as archive:
        for name, member in plain.items():
            archive.writestr(name, member)
    end = bytearray(stored.read_bytes())
    end[end.index(plain["imgs.npy"]) + len(plain["imgs.npy"]) - 1] ^= 1  # the last pixel of the last picture
    stored.write_bytes(end)
    refused(stored, "Bad CRC-32 for file 'imgs.npy'")

    for member, says in (
        (plain["imgs.npy"][:-10], "imgs ends 10 bytes before the 12 rows of its header"),
        (plain["imgs.npy"] + b"x", "imgs goes on behind the 12 rows of its header"),
        (b"\x93NUMPY\x03\x00" + plain["imgs.npy"][8:], "version (3, 0) is unknown"),
        (b"pixels, no header", "magic string is not correct"),
    ):
        with zipfile.ZipFile(stored, "w") as archive:
            for name, whole in plain.items():
                archive.writestr(name, member if name == "imgs.npy" else whole)
        refused(stored, says)

    with zipfile.ZipFile(stored, "w", zipfile.ZIP_BZIP2) as archive:
        for name, whole in plain.items():
            archive.writestr(name, whole)
    refused(stored, "latents_classes is compressed in a way that numpy does not use")


@pytest.mark.parametrize("name", ["imgs", "latents_classes"])
def test_a_missing_member_is_named(tmp_path: Path, content: dict[str, np.ndarray], name: str) -> None:
    del content[name]
    refused(written(tmp_path, content), f"has no member {name}, only 'metadata.npy'", "use dsprites_ndarray_co1sh3")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("imgs", lambda imgs: imgs[:, ::2, ::2], "imgs of '{path}' must have shape (12, 64, 64), got (12, 32, 32)"),
        ("imgs", lambda imgs: imgs[:, None], "got (12, 1, 64, 64)"),
        ("imgs", lambda imgs: imgs.reshape(12, -1), "got (12, 4096)"),
        ("imgs", lambda imgs: imgs[:5], "must have shape (12, 64, 64), got (5, 64, 64)"),
        ("imgs", lambda imgs: imgs[0, 0, 0], "got ()"),
        ("imgs", lambda imgs: imgs.astype(np.float32), "imgs of '{path}' must be of dtype uint8, got float32"),
        ("imgs", lambda imgs: imgs.astype(bool), "must be of dtype uint8, got bool"),
        ("imgs", lambda imgs: imgs.astype(object), "must be of dtype uint8, got object"),
        ("imgs", np.asfortranarray, "imgs of '{path}' must be stored row by row: save numpy.ascontiguousarray(imgs)"),
        ("imgs", lambda imgs: imgs * 255, "got values up to 255: divide its 0..255 by 255 and save it as uint8"),
        ("imgs", lambda imgs: imgs * 3, "must be 0 where black and 1 where white, got values up to 3"),
        ("latents_classes", lambda rows: rows[:, 2:], "latents_classes of '{path}' must have shape (n, 6), got (12, 4)"),
        ("latents_classes", lambda rows: rows.astype(float), "must be of dtype integer, got float64"),
        ("latents_classes", lambda rows: np.take(rows, [0, 1, 4, 5, 2, 3], axis=1), "scale from 0 to 5, got "),
        ("latents_classes", lambda rows: np.add(rows, [1, 0, 0, 0, 0, 0]), "color from 0 to 0, got 1 in row 0"),
        ("latents_classes", lambda rows: rows.astype(np.uint64) - np.uint64(99), "color from 0 to 0, got -99"),
    ],
)
def test_members_of_another_form_are_refused(
    tmp_path: Path, content: dict[str, np.ndarray], name: str, change: Any, says: str
) -> None:
    content[name] = change(content[name])
    path = written(tmp_path, content)
    refused(path, says.format(path=path))


def test_classes_of_any_integer_dtype_are_read(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    latents = content["latents_classes"][:, 2:]
    for dtype in ("u1", "<i4", ">i8", "<u8"):
        content["latents_classes"] = content["latents_classes"].astype(dtype)
        np.testing.assert_array_equal(load(written(tmp_path, content), latents), content["imgs"])


def test_latents_that_the_file_does_not_hold_are_named(tmp_path: Path) -> None:
    latents = some_latents(12)
    path = written(tmp_path, members(latents[:10]))
    scale, orientation, pos_x, pos_y = latents[10]
    says = f"the heart of scale {scale}, orientation {orientation}, posX {pos_x}, posY {pos_y} (row 1)"
    refused(path, "does not hold 2 of the 4 latents asked for", says, "held_latents", latents=latents[[0, 10, 1, 11]])
    refused(path, "holds no ellipse among its 10 pictures", shape="ellipse")
    refused(path, "holds no square among its 10 pictures", shape="square", latents=latents[:1])
    with pytest.raises(DataError, match="holds no square"):
        held_latents(path, shape="square")


def test_an_empty_archive_holds_nothing(tmp_path: Path) -> None:
    refused(written(tmp_path, members(some_latents(1)[:0])), "holds no heart among its 0 pictures")


@pytest.mark.parametrize("latents", [[0, 0, 0, 0], [[0.0, 0.0, 0.5, 0.5]], [[6, 0, 0, 0]]])
def test_bad_latents_are_refused_as_in_drawing_before_the_file_is_read(latents: object) -> None:
    with pytest.raises(DataError) as drawing:
        render(latents)
    with pytest.raises(DataError, match=re.escape(str(drawing.value))):
        load("none.npz", latents)


@pytest.mark.parametrize("shape", ["triangle", "Heart", 2, None, ["heart"]])
def test_an_unknown_shape_is_refused(shape: Any) -> None:
    for read in (load, held_latents):
        with pytest.raises(
            ParameterError, match=re.escape(f"shape must be one of 'heart', 'ellipse', 'square', got {shape!r}")
        ):
            read("none.npz", shape=shape)


def turned(imgs: np.ndarray, pixels: int, pictures: int = 1) -> np.ndarray:
    """The first pixels of the first pictures made the other colour."""
    changed = imgs.reshape(len(imgs), -1).copy()
    changed[:pictures, :pixels] ^= 1
    return changed.reshape(imgs.shape)


def test_a_heart_that_differs_in_a_few_pixels_is_used_and_told(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    content["imgs"] = turned(content["imgs"], pixels=8, pictures=2)
    path = written(tmp_path, content)
    with pytest.warns(PictureWarning) as caught:
        pictures = load(path)
    np.testing.assert_array_equal(pictures, content["imgs"])
    (warning,) = caught
    assert warning.filename == __file__
    scale, orientation, pos_x, pos_y = content["latents_classes"][0, 2:]
    for part in (
        f"2 of 12 hearts of '{path}' differ from those drawn, in 16 pixels together",
        f"most (8 of 4096) that of scale {scale}, orientation {orientation}, posX {pos_x}, posY {pos_y}",
        "the file's pictures are used",
    ):
        assert part in str(warning.message)
    assert issubclass(PictureWarning, cfiv.CfivWarning)
    # Only pictures that were asked for are compared.
    assert len(load(path, content["latents_classes"][2:, 2:])) == 10


def test_two_hearts_may_differ_however_few_there_are(tmp_path: Path) -> None:
    content = members(some_latents(2))
    content["imgs"] = turned(content["imgs"], pixels=1, pictures=2)
    with pytest.warns(PictureWarning, match="2 of 2 hearts"):
        load(written(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda imgs: turned(imgs, pixels=9), "1 of 40 hearts"),
        (lambda imgs: turned(imgs, pixels=1, pictures=11), "11 of 40 hearts"),
        (lambda imgs: imgs[::-1], "40 of 40 hearts"),
        (lambda imgs: np.roll(imgs, 1, axis=2), "40 of 40 hearts"),
        (lambda imgs: imgs.swapaxes(1, 2).copy(), "of 40 hearts"),
        (lambda imgs: 1 - imgs, "in 163840 pixels together"),
        (lambda imgs: 0 * imgs, "40 of 40 hearts"),
        (lambda imgs: np.random.default_rng(0).integers(0, 2, imgs.shape, dtype=np.uint8), "40 of 40 hearts"),
    ],
)
def test_hearts_that_are_others_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    content = members(some_latents(40))
    content["imgs"] = change(content["imgs"])
    refused(written(tmp_path, content), says, "its imgs do not belong to its latents_classes", "download", "render")


@pytest.mark.law
@pytest.mark.parametrize("latent", list(LATENTS))
def test_a_latent_that_is_off_by_one_is_seen(tmp_path: Path, latent: str) -> None:
    latents = some_latents(40)
    content = members(latents)
    column = list(LATENTS).index(latent)
    content["latents_classes"][:, 2 + column] = (latents[:, column] + 1) % LATENTS[latent]
    refused(written(tmp_path, content), "of 40 hearts", "its imgs do not belong to its latents_classes")


@pytest.mark.parametrize("shape", ["ellipse", "square"])
def test_ellipses_and_squares_whose_drawn_sizes_are_guesses_are_used_whatever_they_are(tmp_path: Path, shape: str) -> None:
    content = members(some_latents(20), shape)
    path = written(tmp_path, content)
    np.testing.assert_array_equal(load(path, shape=shape), content["imgs"])  # without a warning
    content["imgs"] = 1 - content["imgs"]
    path = written(tmp_path, content)
    with pytest.warns(PictureWarning, match=f"20 of 20 {shape}s .* the size of the {shape}s drawn is a guess"):
        np.testing.assert_array_equal(load(path, shape=shape), content["imgs"])


def archive_of(folder: Path, n: int, seed: int) -> tuple[Path, dict[str, np.ndarray]]:
    """What a draw and the test grid need, and where the draw's pictures are in it: the first n rows."""
    draw = np.random.default_rng(seed)
    pos_x, pos_y, scale, orientation = (draw.integers(size, size=n) for size in (32, 32, 6, 40))
    content = members(np.vstack([np.column_stack([scale, orientation, pos_x, pos_y]), dsprites.test_grid().to_numpy()]))
    return written(folder, content), content


@pytest.mark.law
@pytest.mark.parametrize("arguments", [{}, {"function": "second", "confounding": 3.0}, {"pixel_noise": 0.0}])
def test_a_design_with_the_file_is_the_design_without(tmp_path: Path, arguments: dict[str, Any]) -> None:
    path, _ = archive_of(tmp_path, n=15, seed=4)
    data, truth = dsprites.simulate(15, seed=4, archive=path, **arguments)
    drawn, drawn_truth = dsprites.simulate(15, seed=4, **arguments)
    for role in ("outcome", "treatment", "instruments"):
        np.testing.assert_array_equal(getattr(data, role), getattr(drawn, role))
        assert getattr(data, role).dtype == getattr(drawn, role).dtype
    assert data.names == drawn.names
    assert truth.grid.equals(drawn_truth.grid)
    np.testing.assert_array_equal(truth.images, drawn_truth.images)


def test_a_design_has_the_file_s_pictures_in_the_sample_and_in_the_test_grid(tmp_path: Path) -> None:
    path, content = archive_of(tmp_path, n=15, seed=4)
    content["imgs"][[0, 15], 0, 0] ^= 1  # the first of the sample, and the first of the grid
    path = written(tmp_path, content)
    with pytest.warns(PictureWarning, match="2 of 603 hearts"):
        data, truth = dsprites.simulate(15, seed=4, archive=str(path), pixel_noise=0.0)
    drawn, drawn_truth = dsprites.simulate(15, seed=4, pixel_noise=0.0)
    for images, others in ((data.treatment, drawn.treatment), (truth.images, drawn_truth.images)):
        assert np.argwhere(images != others).tolist() == [[0, 0, 0, 0]]
    for values, others in ((data.outcome, drawn.outcome), (truth.grid["structural"], drawn_truth.grid["structural"])):
        assert np.flatnonzero(np.asarray(values) != np.asarray(others)).tolist() == [0]


def test_a_design_refuses_a_file_without_its_pictures(tmp_path: Path) -> None:
    path, _ = archive_of(tmp_path, n=15, seed=4)
    with pytest.raises(DataError, match=r"does not hold \d+ of the 603 latents asked for"):
        dsprites.simulate(15, seed=5, archive=path)
    with pytest.raises(DataError, match="does not exist"):
        dsprites.simulate(15, archive=tmp_path / "none.npz")
