"""CIFAR-10 and CIFAR-100 from their official archives: 60,000 colour photographs of 32 x 32 pixels, in 10 or 100 classes.

Nothing is downloaded: the "python version" of either, ``cifar-10-python.tar.gz`` (163 MB) or ``cifar-100-python.tar.gz`` (161
MB), is to be had from https://www.cs.toronto.edu/~kriz/cifar.html. Its files are pickles, which are read here so that they
cannot run a program (:mod:`cfiv.datasets.cifar_pickle`).

References
----------
Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cfiv.checks import is_whole
from cfiv.datasets.cifar_pickle import HOME, read
from cfiv.datasets.labelled_images import ImageClassification, LabelledImages
from cfiv.errors import CfivError, DataError, ParameterError, quoted

#: Colours, rows and columns of an image, in the order in which its bytes are stored.
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
#: No file of either release has more bytes than 155 million.
MOST_BYTES = 1 << 28

#: What reading a damaged archive raises.
DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class _Release:
    name: str
    archive: str
    folder: str
    names_file: str
    train: tuple[str, ...]
    labels: bytes
    names: bytes
    test: str

    @property
    def files(self) -> tuple[str, ...]:
        return (self.names_file, *self.train, self.test)


RELEASES = {
    10: _Release(
        name="CIFAR-10",
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        names_file="batches.meta",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        labels=b"labels",
        names=b"label_names",
        test="test_batch",
    ),
    100: _Release(
        name="CIFAR-100",
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        names_file="meta",
        train=("train",),
        labels=b"fine_labels",
        names=b"fine_label_names",
        test="test",
    ),
}


def load(folder: str | Path, *, classes: int = 10) -> ImageClassification:
    """Read a release, or a smaller set of images in its format.

    Parameters
    ----------
    folder : str or Path
        The archive, the folder that was unpacked from it (``cifar-10-batches-py`` or ``cifar-100-python``), or a folder that
        has one of them in it; an unpacked one is preferred.
    classes : {10, 100}
        CIFAR-10 or CIFAR-100, the latter with its fine labels.

    Returns
    -------
    ImageClassification
        ``train`` and ``test`` as released, of 50,000 and 10,000 images (n, 3, 32, 32): red, green, blue, uint8 from 0 to
        ``brightest`` = 255, in the order of the files. ``classes`` are the release's names.

    Raises
    ------
    ParameterError
        If classes is neither 10 nor 100.
    DataError
        If files are missing, damaged, cut off, not those of this release, or name anything that a pickle of it does not need;
        if images, labels and names do not fit each other; or if a part does not hold as many images of every class.

    Notes
    -----
    Unpacking an archive takes a few seconds, and an archive is read to its end, where its checksum is compared. The result has
    184 MB; while it is made, memory holds up to three times as much.

    Examples
    --------
    >>> data = load("downloads", classes=10)  # doctest: +SKIP
    >>> data.train.images.shape, data.classes[:2]  # doctest: +SKIP
    ((50000, 3, 32, 32), ('airplane', 'automobile'))
    """
    if not is_whole(classes) or classes not in RELEASES:
        raise ParameterError(f"classes must be 10 (CIFAR-10) or 100 (CIFAR-100), got {classes!r}")
    release = RELEASES[classes]
    place = _place(Path(folder), release)
    files = _archived(place, release) if place.is_file() else _unpacked(place, release)
    held = {name: read(content, origin=f"{name} of '{place}'") for name, content in files}
    missing = [name for name in release.files if name not in held]
    if missing:
        raise DataError(
            f"'{place}' does not hold {quoted(missing)} of {release.folder}: classes={classes} reads {release.name}, "
            f"{release.archive}, to be had from {HOME}"
        )
    names = _names(held[release.names_file], classes, release, place)
    count = held[release.names_file].get(b"num_cases_per_batch")
    parts = []
    for part in (release.train, (release.test,)):
        batches = [_batch(held[name], f"{name} of '{place}'", classes, release.labels, count) for name in part]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        _check_balanced(labels, classes, f"{quoted(part)} of '{place}'")
        parts.append(LabelledImages(images.reshape(-1, *SHAPE), labels.astype(np.int64)))
    return ImageClassification(parts[0], parts[1], names, 255)


def _place(given: Path, release: _Release) -> Path:
    """The archive, or the folder with the files."""
    if given.is_file():
        return given
    for folder in (given, given / release.folder):
        if (folder / release.names_file).is_file():
            return folder
    if (given / release.archive).is_file():
        return given / release.archive
    if not given.exists():
        raise DataError(f"'{given}' does not exist: give the place of {release.archive}, to be had from {HOME}")
    raise DataError(
        f"'{given}' holds neither {release.archive} nor its unpacked files ({release.names_file} and others, by themselves or "
        f"in {release.folder}): get the archive of {release.name} from {HOME}"
    )


def _unpacked(folder: Path, release: _Release) -> Iterator[tuple[str, bytes]]:
    for name in release.files:
        path = folder / name
        try:
            if not path.exists():
                continue
            if path.stat().st_size > MOST_BYTES:
                raise DataError(f"'{path}' has {path.stat().st_size} bytes, more than any file of {release.name}: see {HOME}")
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error}; unpack {release.archive} again") from error
        yield name, content


def _archived(path: Path, release: _Release) -> Iterator[tuple[str, bytes]]:
    """The files of an archive in its order; nothing is written to disk."""
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.parent.name != release.folder or name.name not in release.files or not member.isreg():
                    continue
                if member.size > MOST_BYTES:
                    raise DataError(
                        f"{name} of '{path}' has {member.size} bytes, more than any file of {release.name}: see {HOME}"
                    )
                file = archive.extractfile(member)
                if file is not None:
                    yield name.name, file.read()
            while packed.read(1 << 20):  # to the end, where the checksum is compared
                pass
    except CfivError:
        raise
    except DAMAGE as error:
        raise DataError(
            f"'{path}' cannot be read as {release.archive}: {str(error) or 'it is cut off'}; it is another file, or damaged or "
            f"incomplete: get it again from {HOME}"
        ) from error


def _names(held: dict[object, object], classes: int, release: _Release, place: Path) -> tuple[str, ...]:
    origin = f"{release.names_file} of '{place}'"
    names = held.get(release.names)
    if not isinstance(names, list) or not all(isinstance(name, bytes) and name.isascii() for name in names):
        raise DataError(f"{origin} has no list of names {release.names.decode()}: get {release.archive} from {HOME}")
    if len(names) != classes or len(set(names)) != classes:
        raise DataError(f"{origin} must name {classes} classes, each once, got {quoted([name.decode() for name in names])}")
    return tuple(name.decode() for name in names)


def _batch(
    held: dict[object, object], origin: str, classes: int, key: bytes, count: object
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A file's pixels (n, 3072) and labels (n,)."""
    pixels, labels = held.get(b"data"), held.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.shape[1] != PIXELS or not len(pixels):
        got = f"shape {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"data in {origin} must be an array of bytes, (n, {PIXELS}), a row an image, got {got}: see {HOME}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{key.decode()} in {origin} must be a list of whole numbers, got {type(labels).__name__}: see {HOME}")
    if len(labels) != len(pixels) or count not in (None, len(pixels)):
        stated = "" if count is None else f", where num_cases_per_batch is {count!r}"
        raise DataError(f"{origin} has {len(pixels)} images and {len(labels)} labels{stated}: get the archive from {HOME}")
    if min(labels) < 0 or max(labels) >= classes:
        raise DataError(
            f"{key.decode()} in {origin} must be from 0 to {classes - 1}, got {min(labels)} to {max(labels)}: see {HOME}"
        )
    return pixels, np.array(labels, dtype=np.int64)


def _check_balanced(labels: npt.NDArray[np.int64], classes: int, origin: str) -> None:
    each = np.bincount(labels, minlength=classes)
    if each.min() != each.max():
        raise DataError(
            f"{origin} must hold as many images of every class, as the release does, got {each.min()} to {each.max()}: get the "
            f"archive from {HOME}"
        )
