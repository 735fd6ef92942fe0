"""The dSprites release: pictures from the file that its authors published, checked against those drawn here.

``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz`` (26 MB, 3 GB unpacked) holds ``imgs`` (737280, 64, 64), uint8, 0 or 1, and
``latents_classes`` (737280, 6), the indices of color, shape, scale, orientation, posX and posY of each picture. Rows are found
by these indices, so a smaller file of the same members will do. Its other members are not read: ``metadata`` is a pickle,
which could run a program.

References
----------
Matthey, Higgins, Hassabis, Lerchner, "dSprites: Disentanglement testing Sprites dataset", 2017,
https://github.com/google-deepmind/dsprites-dataset.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from cfiv.checks import check_choice
from cfiv.datasets.dsprites_drawing import LATENTS, SHAPES, SIDE, ImageArray, checked_latents, render
from cfiv.errors import CfivError, DataError, PictureWarning, quoted, warn

Array = npt.NDArray[Any]
IndexArray = npt.NDArray[np.int64]

#: The official file, and where it is to be had.
FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
HOME = "https://github.com/google-deepmind/dsprites-dataset"

#: The columns of latents_classes, and how many values each has.
COLUMNS = {"color": 1, "shape": 3, **LATENTS}
#: The file's indices of the shapes.
SHAPE_CLASSES = {"square": 0, "ellipse": 1, "heart": 2}

#: Bytes unpacked at a time, and pictures compared at a time.
BLOCK_BYTES, BLOCK = 1 << 22, 1024

#: Hearts that differ from those drawn in at most so many pixels, in at most this share of them (two pictures always), are still
#: those of the release. With constants that the 84 frames allow, 9 of 100 drawn hearts differ, none of 4000 in more than 3
#: pixels. A position or a scale that is off by one changes every heart in 16 or more, an orientation 97 of 100.
FEW_PIXELS, FEW_PICTURES, FEW = 8, 0.25, 2

#: What reading a damaged archive raises. TokenError and SyntaxError are those of numpy's reader of headers.
DAMAGE = (BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, SyntaxError, TokenError)


def load(path: str | Path, latents: npt.ArrayLike | None = None, *, shape: str = "heart") -> ImageArray:
    """Pictures of one shape from the file of the release, or from a smaller one of the same format.

    Parameters
    ----------
    path : str or Path
        The .npz file.
    latents : array_like of integers (n, 4), optional
        Indices of scale, orientation, posX and posY, as for :func:`~cfiv.datasets.dsprites.render`; the first picture where
        the file holds them more than once. None takes all that it holds of this shape, in its order: :func:`held_latents`
        names them.
    shape : {"heart", "ellipse", "square"}
        The shape.

    Returns
    -------
    ndarray of uint8 (n, 64, 64)
        1 where the shape is, 0 elsewhere; rows from the top.

    Raises
    ------
    DataError
        If the file is missing, damaged, of another format, or without the latents asked for; if its hearts are not those drawn
        (more than 8 pixels of one, or more than a quarter of them, differ); or if the latents are no indices.
    ParameterError
        If the shape is unknown.

    Warns
    -----
    PictureWarning
        If pictures differ from those drawn, hearts by no more than the above; ellipses and squares, whose drawn sizes are
        guesses, by however much. The file's are returned.

    Notes
    -----
    The file is unpacked to its end, a few seconds for 3 GB, and a few megabytes at a time: beyond the result (4 kB a picture,
    1 GB for all hearts) memory holds the 35 MB of ``latents_classes``, two or three times over.

    Examples
    --------
    >>> pictures = load("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", [[5, 0, 16, 16]])  # doctest: +SKIP
    >>> pictures.shape  # doctest: +SKIP
    (1, 64, 64)
    """
    path = Path(path)
    asked = None if latents is None else checked_latents(latents)
    rows, held, count = _held(path, shape)
    if asked is None:
        asked = held
    else:
        rows = rows[_places(held, asked, shape, path)]
    pictures = _pictures(path, rows, count)
    _compare(pictures, asked, shape, path)
    return pictures


def held_latents(path: str | Path, *, shape: str = "heart") -> IndexArray:
    """The latents of the pictures of one shape that a file holds, in its order.

    Parameters
    ----------
    path : str or Path
        The .npz file.
    shape : {"heart", "ellipse", "square"}
        The shape.

    Returns
    -------
    ndarray of int64 (n, 4)
        Indices of scale, orientation, posX and posY. ``load(path, shape=shape)`` has the pictures in this order.

    Raises
    ------
    DataError
        If the file is missing, damaged, of another format, or without this shape.
    ParameterError
        If the shape is unknown.
    """
    return _held(Path(path), shape)[1]


def _held(path: Path, shape: str) -> tuple[IndexArray, IndexArray, int]:
    """The rows of a shape in the file, their latents, and how many rows the file has in all."""
    check_choice("shape", shape, SHAPES)
    blocks = _blocks(path, "latents_classes", dtype=np.integer, sample=(len(COLUMNS),))
    classes = np.concatenate([np.empty((0, len(COLUMNS)), dtype=np.int64), *(block.astype(np.int64) for block in blocks)])
    for column, (name, size) in zip(classes.T, COLUMNS.items(), strict=True):
        outside = (column < 0) | (column >= size)
        if outside.any():
            row = int(outside.argmax())
            raise DataError(
                f"latents_classes of '{path}' must hold the indices of {', '.join(COLUMNS)} in this order, {name} from 0 to "
                f"{size - 1}, got {column[row]} in row {row}: save it as in {FILE}"
            )
    rows = np.flatnonzero(classes[:, 1] == SHAPE_CLASSES[shape])
    if not len(rows):
        raise DataError(f"'{path}' holds no {shape} among its {len(classes)} pictures: use {FILE}, which holds all ({HOME})")
    return rows, classes[rows, 2:], len(classes)


def _places(held: IndexArray, asked: npt.NDArray[np.integer], shape: str, path: Path) -> IndexArray:
    """Where among the latents held those asked for are; the first place where they are held more than once."""
    sizes = tuple(LATENTS.values())
    place = np.full(math.prod(sizes), -1, dtype=np.int64)
    place[np.ravel_multi_index(tuple(held[::-1].T), sizes)] = np.arange(len(held))[::-1]
    found: IndexArray = place[np.ravel_multi_index(tuple(asked.astype(np.int64).T), sizes)]
    missing = found < 0
    if missing.any():
        row = int(missing.argmax())
        raise DataError(
            f"'{path}' does not hold {int(missing.sum())} of the {len(asked)} latents asked for, first the {shape} of "
            f"{_named(asked[row])} (row {row}): ask for those of held_latents(path), or use {FILE}, which holds all ({HOME})"
        )
    return found


def _pictures(path: Path, rows: IndexArray, count: int) -> ImageArray:
    """The pictures in some rows of ``imgs``, picked while it is unpacked."""
    pictures = np.empty((len(rows), SIDE, SIDE), dtype=np.uint8)
    order = np.argsort(rows, kind="stable")
    sought, start = rows[order], 0
    for block in _blocks(path, "imgs", dtype=np.uint8, sample=(SIDE, SIDE), count=count):
        first, past = np.searchsorted(sought, (start, start + len(block)))
        pictures[order[first:past]] = block[sought[first:past] - start]
        start += len(block)
    greatest = int(pictures.max(initial=0))
    if greatest > 1:
        raise DataError(
            f"imgs of '{path}' must be 0 where black and 1 where white, got values up to {greatest}: "
            f"{'divide its 0..255 by 255 and save it as uint8' if greatest == 255 else f'use {FILE} ({HOME})'}"
        )
    return pictures


def _compare(pictures: ImageArray, latents: npt.NDArray[np.integer], shape: str, path: Path) -> None:
    """Raise if the pictures are not those of the latents, warn if they are but not in every pixel."""
    differing = np.zeros(len(pictures), dtype=np.int64)
    for start in range(0, len(pictures), BLOCK):
        rows = slice(start, start + BLOCK)
        differing[rows] = np.count_nonzero(pictures[rows] != render(latents[rows], shape), axis=(1, 2))
    count = int(np.count_nonzero(differing))
    if not count:
        return
    worst = int(differing.argmax())
    found = (
        f"{count} of {len(pictures)} {shape}s of '{path}' differ from those drawn, in {int(differing.sum())} pixels together, "
        f"most ({differing[worst]} of {SIDE * SIDE}) that of {_named(latents[worst])}"
    )
    if shape == "heart" and (differing[worst] > FEW_PIXELS or count > max(FEW, FEW_PICTURES * len(pictures))):
        raise DataError(
            f"{found}: its imgs do not belong to its latents_classes, or are not those of {FILE}; download that again "
            f"({HOME}), or do without a file (render draws the pictures)"
        )
    reason = "a few differences were to be expected" if shape == "heart" else f"the size of the {shape}s drawn is a guess"
    warn(f"{found}: {reason}, and the file's pictures are used", PictureWarning)


def _blocks(path: Path, name: str, *, dtype: Any, sample: tuple[int, ...], count: int | None = None) -> Iterator[Array]:
    """The rows of an archive's member, a few megabytes at a time, read to the end, where the checksum is compared.

    ``dtype``, which may be abstract, says of which kind its numbers must be, ``sample`` of which shape a row is, and ``count``
    how many rows there must be.
    """
    try:
        with ZipFile(path) as archive, _member(archive, name, path) as file:
            shape, by_columns, stored = _header(file)
            if shape[1:] != sample or len(shape) != 1 + len(sample) or count not in (None, shape[0]):
                expected = ("n" if count is None else str(count), *map(str, sample))
                raise DataError(f"{name} of '{path}' must have shape ({', '.join(expected)}), got {shape}: use {FILE} ({HOME})")
            if not np.issubdtype(stored, dtype):
                raise DataError(f"{name} of '{path}' must be of dtype {dtype.__name__}, got {stored}: use {FILE} ({HOME})")
            if by_columns:
                raise DataError(f"{name} of '{path}' must be stored row by row: save numpy.ascontiguousarray({name})")
            size = math.prod(sample) * stored.itemsize
            at_a_time, left = max(1, BLOCK_BYTES // size), shape[0]
            while left:
                rows = min(at_a_time, left)
                content = file.read(rows * size)
                if len(content) < rows * size:
                    raise EOFError(f"{name} ends {left * size - len(content)} bytes before the {shape[0]} rows of its header")
                yield np.frombuffer(content, stored).reshape(rows, *sample)
                left -= rows
            if file.read(1):
                raise EOFError(f"{name} goes on behind the {shape[0]} rows of its header")
    except CfivError:
        raise
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist: give the place of {FILE}, to be had from {HOME}") from None
    except DAMAGE as error:
        raise DataError(
            f"'{path}' cannot be read as an .npz archive: {str(error) or f'{name} is cut off'}; it is another file, or damaged "
            f"or incomplete: download {FILE} again ({HOME})"
        ) from error


def _member(archive: ZipFile, name: str, path: Path) -> IO[bytes]:
    members = archive.namelist()
    if f"{name}.npy" not in members:
        raise DataError(f"'{path}' has no member {name}, only {quoted(members)}: use {FILE} ({HOME})")
    if archive.getinfo(f"{name}.npy").compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise BadZipFile(f"{name} is compressed in a way that numpy does not use")
    return archive.open(f"{name}.npy")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """A member's shape, whether it is stored by columns, and its dtype."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"the npy format's version {version} is unknown")
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


def _named(latents: npt.NDArray[np.integer]) -> str:
    return ", ".join(f"{name} {index}" for name, index in zip(LATENTS, latents, strict=True))
