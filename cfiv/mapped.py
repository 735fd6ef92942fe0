"""Arrays that lie in files and not in memory: those of a user's own, and columns that a fit sets down while it reads."""

from __future__ import annotations

import os
import tempfile
import weakref
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cfiv.errors import OutputError

Array = npt.NDArray[Any]

#: Rows of mapped columns that are read at once.
BLOCK_ROWS = 65_536


def is_mapped(array: Array) -> bool:
    """Whether an array, or what it is a view of, is a ``numpy.memmap``."""
    return bool(_maps(array))


def release(*arrays: Array | None) -> None:
    """Give back the memory that reading mapped arrays has taken; they stay as they are and are read again when needed.

    Nothing is done to what is in memory, nor to maps whose changes lie nowhere else.
    """
    import mmap

    for array in arrays:
        for found in [] if array is None else _maps(array):
            inner = getattr(found, "_mmap", None)
            if inner is not None and found.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
                inner.madvise(mmap.MADV_DONTNEED)


class ColumnFile:
    """Columns of one type, row after row set down in a temporary file without a name, which is gone with its last array.

    Parameters
    ----------
    rows : int
        As many as there may be; the room is reserved at once.
    columns : int
    dtype : data type

    Raises
    ------
    OutputError
        If the disk has no such room.
    """

    def __init__(self, rows: int, *, columns: int, dtype: npt.DTypeLike = np.float64) -> None:
        self.rows, self.columns, self.dtype, self.filled = rows, columns, np.dtype(dtype), 0
        self._file = _reserved(rows * columns * self.dtype.itemsize)
        weakref.finalize(self, self._file.close)

    def append(self, *columns: Array) -> None:
        """The next rows: one array (b,) a column."""
        for j, column in enumerate(columns):
            self._file.seek((j * self.rows + self.filled) * self.dtype.itemsize)
            self._file.write(np.ascontiguousarray(column, dtype=self.dtype).data)
        self.filled += len(columns[0])

    def array(self) -> Array:
        """All rows so far, (rows, columns), each column in one piece; it cannot be written to."""
        self._file.flush()
        if not self.filled:
            return np.zeros((0, self.columns), dtype=self.dtype)
        shape = (self.rows, self.columns)
        whole: Array = np.memmap(self._file, dtype=self.dtype, mode="r", shape=shape, order="F")
        return whole[: self.filled]


def array_on_disk(rows: int, *, columns: int, dtype: npt.DTypeLike) -> Array:
    """An array (rows, columns) to be written to, each row in one piece, in a temporary file that is gone with it.

    Raises
    ------
    OutputError
        If the disk has no such room.
    """
    with _reserved(rows * columns * np.dtype(dtype).itemsize) as file:
        return np.memmap(file, dtype=dtype, mode="r+", shape=(rows, columns))


def _reserved(size: int) -> IO[bytes]:
    """A temporary file without a name, of so many bytes: written through a map, a disk that is full would end the process.

    Whoever asks closes it.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="cfiv-"))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, size))
            else:
                file.truncate(max(1, size))
            stack.pop_all()
            return file
    except OSError as error:
        raise OutputError(
            f"{size / 1e9:.3g} GB of columns cannot be set down in the folder of temporary files "
            f"'{tempfile.gettempdir()}' ({error.strerror or error}): set TMPDIR to a folder with more room"
        ) from error


def _maps(array: Any) -> list[np.memmap[Any, Any]]:
    """The maps that an array is a view of: the array itself, or what its base goes back to."""
    while array is not None:
        if isinstance(array, np.memmap):
            return [array]
        array = getattr(array, "base", None)
    return []
