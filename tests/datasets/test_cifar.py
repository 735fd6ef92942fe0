"""CIFAR: archives in the official format are read exactly, and no damage or malice in them goes unseen."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest

from cfiv.datasets import cifar
from cfiv.datasets.cifar_pickle import read
from cfiv.errors import DataError, ParameterError

Files = dict[str, Any]
ROOM = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
ARCHIVE = {10: "cifar-10-python.tar.gz", 100: "cifar-100-python.tar.gz"}
HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"

#: What ran of a pickle that should not have.
RAN: list[object] = []


def run(*arguments: object) -> None:
    RAN.append(arguments)


class Code(bytes):
    """Instructions of a pickle, as they are."""


def dumped(value: Any) -> bytes:
    """A value in the words of Python 2's pickles, protocol 2, in which the releases are written."""
    return b"\x80\x02" + words(value) + b"."


def words(value: Any) -> bytes:
    match value:
        case Code():
            return bytes(value)
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + pack("<i", value)
        case bytes():
            return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + pack("<i", len(value))) + value
        case tuple():
            return b"(" + b"".join(map(words, value)) + b"t"
        case list():
            return b"](" + b"".join(map(words, value)) + b"e"
        case dict():
            return b"}(" + b"".join(words(part) for item in value.items() for part in item) + b"u"
        case np.ndarray():
            by_columns = not value.flags.c_contiguous
            kind = (
                Code(b"cnumpy\ndtype\n" + words((value.dtype.str[1:].encode(), 0, 1)) + b"R"),
                (3, b"|", None, None, None, -1, -1, 0),
            )
            begun = b"cnumpy.core.multiarray\n_reconstruct\n" + words((Code(b"cnumpy\nndarray\n"), (0,), b"b")) + b"R"
            state = (1, value.shape, Code(words(kind[0]) + words(kind[1]) + b"b"), by_columns, value.tobytes("A"))
            return begun + words(state) + b"b"
    raise TypeError(type(value))


def part(n: int, classes: int, draw: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """n images of every class, mixed."""
    labels = draw.permutation(np.tile(np.arange(classes), n)).tolist()
    return draw.integers(0, 256, (len(labels), 3072), dtype=np.uint8), labels


def release(classes: int, seed: int = 0) -> Files:
    """The files of a release, with two images of every class in a training file and one in the test."""
    draw, files = np.random.default_rng(seed), {}
    names = [f"thing {k}".encode() for k in range(classes)]
    if classes == 10:
        for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
            data, labels = part(2, 10, draw)
            files[name] = {b"batch_label": name.encode(), b"labels": labels, b"data": data, b"filenames": [b"some.png"] * 20}
        return {"batches.meta": {b"num_cases_per_batch": 20, b"label_names": names, b"num_vis": 3072}, **files}
    for name, n in (("train", 2), ("test", 1)):
        data, labels = part(n, 100, draw)
        coarse = [label // 5 for label in labels]
        files[name] = {b"data": data, b"batch_label": name.encode(), b"fine_labels": labels, b"coarse_labels": coarse}
    return {"meta": {b"fine_label_names": names, b"coarse_label_names": names[:20]}, **files}


def unpacked(folder: Path, files: Files, classes: int = 10) -> Path:
    place = folder / ROOM[classes]
    place.mkdir(exist_ok=True)
    for name, value in files.items():
        (place / name).write_bytes(value if isinstance(value, bytes) else dumped(value))
    return place


def archived(folder: Path, files: Files, classes: int = 10) -> Path:
    path = folder / ARCHIVE[classes]
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **files}.items():
            content = content if isinstance(content, bytes) else dumped(content)
            member = tarfile.TarInfo(f"{ROOM[classes]}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refused(place: Path, *says: str, classes: int = 10) -> None:
    with pytest.raises(DataError) as caught:
        cifar.load(place, classes=classes)
    assert [words for words in says if words not in str(caught.value)] == []


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:numpy.core")
def test_the_files_of_these_tests_are_pickles_of_numpy() -> None:
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 200, 70000], b"long": b"x" * 300}
    for array in (value[b"data"], np.asfortranarray(value[b"data"])):
        content = dumped({**value, b"data": array})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ordinary = pickle.loads(content, encoding="bytes")
        np.testing.assert_equal(ordinary, value)
        np.testing.assert_equal(read(content, origin="it"), value)


def test_arrays_as_today_s_numpy_pickles_them_are_read_too() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in (3, 4):  # from 3 on bytes are bytes
        content = pickle.dumps({b"data": array}, protocol=protocol)
        np.testing.assert_array_equal(read(content, origin="it")[b"data"], array)


@pytest.mark.oracle
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("written", [unpacked, archived])
def test_images_and_labels_are_those_of_the_files(tmp_path: Path, written: Callable[..., Path], classes: int) -> None:
    files = release(classes)
    place = written(tmp_path, files, classes)
    train = [f"data_batch_{k}" for k in range(1, 6)] if classes == 10 else ["train"]
    for given in (place, str(place), tmp_path):
        data = cifar.load(given, classes=classes)
        for found, names in ((data.train, train), (data.test, ["test_batch" if classes == 10 else "test"])):
            row = 0
            for name in names:
                labels = files[name][b"labels" if classes == 10 else b"fine_labels"]
                for pixels, label in zip(files[name][b"data"], labels, strict=True):
                    red, green, blue = np.split(pixels, 3)
                    np.testing.assert_array_equal(found.images[row, 1], green.reshape(32, 32))
                    np.testing.assert_array_equal(found.images[row, [0, 2]].reshape(2, -1), [red, blue])
                    assert found.labels[row] == label
                    row += 1
            assert len(found) == row
            assert found.images.dtype == np.uint8
            assert found.labels.dtype == np.int64
            assert found.images.flags.writeable
            assert found.images.flags.c_contiguous
        assert data.classes == tuple(f"thing {k}" for k in range(classes))
        assert data.brightest == 255


def test_of_an_archive_and_its_unpacked_folder_the_latter_is_read(tmp_path: Path) -> None:
    archived(tmp_path, release(10, seed=1))
    files = release(10)
    unpacked(tmp_path, files)
    np.testing.assert_array_equal(cifar.load(tmp_path).test.labels, files["test_batch"][b"labels"])


def test_both_releases_may_lie_in_one_folder(tmp_path: Path) -> None:
    for classes in (10, 100):
        archived(tmp_path, release(classes), classes)
    assert [len(cifar.load(tmp_path, classes=classes).classes) for classes in (10, 100)] == [10, 100]


RUN = f"{__name__}\nrun\n".encode()
MALICE = {
    "called": b"c" + RUN + words((b"it ran",)) + b"R",
    "called by an old instruction": b"(" + words(b"it ran") + b"i" + RUN,
    "called by a new instruction": b"\x80\x04\x8c" + bytes([len(__name__)]) + __name__.encode() + b"\x8c\x03run\x93(tR",
    "of the system": b"cposix\nsystem\n" + words((b"true",)) + b"R",
    "built in": b"c__builtin__\neval\n" + words((b"1",)) + b"R",
    "built in, by its new name": b"cbuiltins\ngetattr\n" + words((b"1", b"real")) + b"R",
    "of numpy": b"cnumpy\nload\n" + words((b"/etc/passwd",)) + b"R",
    "of numpy, hidden behind a dot": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dot\x93(tR",
    "of numpy's pickles, on something else": b"cnumpy.core.multiarray\nscalar\n(tR",
    "only named": b"c" + RUN,
}


@pytest.mark.parametrize("code", MALICE.values(), ids=MALICE)
@pytest.mark.parametrize("name", ["batches.meta", "data_batch_3", "test_batch"])
def test_a_pickle_that_would_run_a_program_is_refused_and_nothing_is_run(tmp_path: Path, name: str, code: bytes) -> None:
    RAN.clear()
    files = release(10)
    for value in (Code(code), {**files[name], b"more": Code(code)}, {**files[name], b"data": [Code(code)]}):
        place = unpacked(tmp_path, {**files, name: value})
        refused(place, name, str(place), "which no file of CIFAR does: unpickling it could run a program", HOME)
    assert RAN == []


@pytest.mark.filterwarnings("ignore:numpy.core")
def test_without_the_guard_such_a_pickle_would_have_run() -> None:
    RAN.clear()
    pickle.loads(dumped(Code(MALICE["called"])), encoding="bytes")
    assert RAN == [(b"it ran",)]


NDARRAY, RECONSTRUCT = b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"
FORGED = {
    "an array of objects": words(np.zeros((2, 2), dtype=np.uint8)).replace(b"U\x02u1", b"U\x02O8"),
    "an array of floats": words(np.zeros((2, 3072), dtype=np.float32)),
    "an array of more bytes than it has": words(np.zeros((20, 3072), dtype=np.uint8)).replace(
        words((20, 3072)), words((21, 3072))
    ),
    "an array of negative size": words(np.zeros((20, 3072), dtype=np.uint8)).replace(words((20, 3072)), words((-20, -3072))),
    "an array of three dimensions": words(np.zeros((20, 3, 1024), dtype=np.uint8)),
    "an array never filled": RECONSTRUCT + words((Code(NDARRAY), (0,), b"b")) + b"R",
    "an array of another class": RECONSTRUCT + words((b"ndarray", (0,), b"b")) + b"R",
    "the class called": NDARRAY + words((2,)) + b"R",
    "the class made anew": NDARRAY + words((2,)) + b"\x81",
    "the class changed": NDARRAY + words({b"__setstate__": 1}) + b"b",
    "the function changed": RECONSTRUCT + words((None, {b"__call__": 1})) + b"b",
    "a persistent name": b"Psomething\n",
    "an extension": b"\x82\x01",
}


@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED)
def test_a_forged_array_is_refused(tmp_path: Path, code: bytes) -> None:
    files = release(10)
    files["data_batch_2"][b"data"] = Code(code)
    refused(unpacked(tmp_path, files), "data_batch_2", "cannot be read as a file of CIFAR", HOME)


@pytest.mark.law
def test_a_pickle_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = dumped({b"labels": [1, 2], b"data": np.zeros((2, 30), dtype=np.uint8), b"name": b"x" * 300})
    read(content, origin="it")
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"it cannot be read as a file of CIFAR: .* get the archive from"):
            read(content[:length], origin="it")


@pytest.mark.law
def test_an_archive_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = archived(tmp_path, release(10))
    content = path.read_bytes()
    for length in [0, 1, 11, *range(100, len(content), len(content) // 20), len(content) - 9, len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path, str(path), "cannot be read as cifar-10-python.tar.gz", "damaged or incomplete", HOME)


def test_a_wrong_checksum_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = archived(tmp_path, release(10))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    refused(path, "CRC check failed", HOME)
    path.write_bytes(b"<html>not found</html>" * 100)
    refused(path, "cannot be read as cifar-10-python.tar.gz", "another file", HOME)
    path.write_bytes(gzip.compress(b"no tar archive" * 100))
    refused(path, "cannot be read as cifar-10-python.tar.gz", HOME)


def test_missing_files_are_told_with_where_to_get_them(tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist", "cifar-10-python.tar.gz", HOME)
    refused(tmp_path, "holds neither cifar-10-python.tar.gz nor its unpacked files (batches.meta and others", HOME)
    files = release(10)
    del files["data_batch_4"], files["test_batch"]
    for place in (unpacked(tmp_path, files), archived(tmp_path, files)):
        refused(place, str(place), "does not hold 'data_batch_4', 'test_batch' of cifar-10-batches-py", HOME)
    refused(archived(tmp_path, release(100), 100), "does not hold 'batches.meta', 'data_batch_1'", "classes=10 reads CIFAR-10")
    refused(tmp_path / ARCHIVE[10], "does not hold 'meta', 'train', 'test'", "classes=100 reads CIFAR-100", classes=100)


def test_a_link_in_an_archive_is_no_file_of_it(tmp_path: Path) -> None:
    files = release(10)
    del files["test_batch"]
    path = archived(tmp_path, files)
    with gzip.open(path) as packed, tarfile.open(fileobj=io.BytesIO(packed.read())) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(f"{ROOM[10]}/test_batch")
        link.type, link.linkname = tarfile.LNKTYPE, f"{ROOM[10]}/data_batch_1"
        archive.addfile(link)
    refused(path, "does not hold 'test_batch'")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "MOST_BYTES", 50_000)
    for place in (unpacked(tmp_path, release(10)), archived(tmp_path, release(10))):
        refused(place, "data_batch_1", "bytes, more than any file of CIFAR-10", HOME)


def changed(name: str, key: bytes, change: Callable[[Any], Any]) -> Files:
    files = release(10)
    files[name][key] = change(files[name][key])
    return files


@pytest.mark.parametrize(
    ("name", "key", "change", "says"),
    [
        (
            "test_batch",
            b"data",
            lambda a: a[:, :-1].copy(),
            "must be an array of bytes, (n, 3072), a row an image, got shape (20, 3071)",
        ),
        ("test_batch", b"data", lambda a: a[:0], "got shape (0, 3072)"),
        ("test_batch", b"data", lambda a: [1, 2], "must be an array of bytes, (n, 3072), a row an image, got list"),
        ("data_batch_5", b"data", lambda a: a[:-1], "has 19 images and 20 labels, where num_cases_per_batch is 20"),
        ("data_batch_5", b"labels", lambda a: a[:-1], "has 20 images and 19 labels"),
        ("batches.meta", b"num_cases_per_batch", lambda n: 21, "has 20 images and 20 labels, where num_cases_per_batch is 21"),
        ("data_batch_5", b"labels", lambda a: [*a[:-1], 10], "labels in data_batch_5 of"),
        ("data_batch_5", b"labels", lambda a: [*a[:-1], 10], "must be from 0 to 9, got 0 to 10"),
        ("data_batch_5", b"labels", lambda a: [*a[:-1], -1], "must be from 0 to 9, got -1 to 9"),
        ("data_batch_5", b"labels", lambda a: [*a[:-1], b"1"], "must be a list of whole numbers, got list"),
        ("data_batch_5", b"labels", lambda a: b"1" * 20, "must be a list of whole numbers, got bytes"),
        ("data_batch_5", b"labels", lambda a: [3] * 20, "as many images of every class, as the release does, got 8 to 28"),
        ("test_batch", b"labels", lambda a: [3] * 20, "'test_batch' of"),
        ("batches.meta", b"label_names", lambda a: a[:9], "must name 10 classes, each once, got 'thing 0'"),
        ("batches.meta", b"label_names", lambda a: a[:1] * 10, "must name 10 classes, each once"),
        ("batches.meta", b"label_names", lambda a: None, "has no list of names label_names"),
        ("batches.meta", b"label_names", lambda a: [b"\xff", *a[1:]], "has no list of names label_names"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, name: str, key: bytes, change: Any, says: str) -> None:
    place = unpacked(tmp_path, changed(name, key, change))
    refused(place, says, str(place))


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    files = release(10)
    refused(unpacked(tmp_path, {**files, "test_batch": [1]}), "test_batch of", "it holds a list where a dictionary is expected")
    refused(unpacked(tmp_path, {**files, "test_batch": {}}), "data in test_batch of", "got NoneType")
    (tmp_path / ROOM[10] / "test_batch").unlink()
    (tmp_path / ROOM[10] / "test_batch").mkdir()
    refused(tmp_path, "cannot be read", "unpack cifar-10-python.tar.gz again")


@pytest.mark.parametrize("classes", [20, "10", None, True])
def test_another_number_of_classes_is_refused(tmp_path: Path, classes: int) -> None:
    says = f"classes must be 10 (CIFAR-10) or 100 (CIFAR-100), got {classes!r}"
    with pytest.raises(ParameterError, match=re.escape(says)):
        cifar.load(tmp_path, classes=classes)
