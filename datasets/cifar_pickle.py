"""The pickles of CIFAR, read without trusting them.

A pickle is a program: it names functions, and unpickling calls them. The files of CIFAR need two, those that rebuild a numpy
array. Here their names stand for small objects that only note what they are given; every other name is refused before anything
is called, and no function or class of numpy or of Python is reached, so that what numpy would make of a forged array does not
matter either. What comes out are dictionaries, lists, numbers, bytes and arrays of bytes.

References
----------
The Python documentation of ``pickle``, "Restricting Globals".
"""

from __future__ import annotations

import io
import math
import pickle

import numpy as np
import numpy.typing as npt

from cfiv.errors import DataError

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"

#: What unpickling raises where a file is damaged or foreign.
DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def read(content: bytes, *, origin: str) -> dict[object, object]:
    """The dictionary that a pickle holds, if it is of the kind that CIFAR's files are.

    Parameters
    ----------
    content : bytes
        The file, written by Python 2: its strings become bytes.
    origin : str
        Where it is from, for messages.

    Returns
    -------
    dict
        Of lists, numbers, bytes, and uint8 arrays of two dimensions, which cannot be written to.

    Raises
    ------
    DataError
        If it names any function or class but those that rebuild an array, is no dictionary, or cannot be read.

    Notes
    -----
    A file of CIFAR-100, the largest with 155 MB, takes 0.1 s. A forged one can run nothing, but it can ask for much memory.

    Examples
    --------
    >>> read(pickle.dumps({"labels": [1, 2]}, protocol=2), origin="an example")
    {'labels': [1, 2]}
    """
    unpickler = _Unpickler(io.BytesIO(content), encoding="bytes")
    try:
        return _plain(unpickler.load())
    except DAMAGE as error:
        if unpickler.refused:
            raise DataError(
                f"{origin} names {unpickler.refused!r}, which no file of CIFAR does: unpickling it could run a program, so "
                f"that was not done; get the archive from {HOME}"
            ) from None
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{origin} cannot be read as a file of CIFAR: {reason}; it is another file, or damaged or incomplete: get the "
            f"archive from {HOME}"
        ) from error


class _Unpickler(pickle.Unpickler):
    refused = ""

    def find_class(self, module: str, name: str) -> object:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Reconstruct()
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Type() if name == "ndarray" else _MakeDtype()
        self.refused = f"{module}.{name}"
        raise pickle.UnpicklingError("a name that is refused")


class _Type:
    """Stands for ``numpy.ndarray``, which is only passed on."""

    __slots__ = ()


class _Dtype:
    """Stands for ``numpy.dtype("u1")``."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes do not have."""


class _MakeDtype:
    """Stands for ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, code: object, *_: object) -> _Dtype:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"its arrays must be of uint8, got {code!r}")
        return _Dtype()


class _Array:
    """Stands for an array that is being rebuilt, and then is one."""

    __slots__ = ("values",)

    values: npt.NDArray[np.uint8]

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, (int(rows), int(columns)), _Dtype(), bool() | int() as by_columns, bytes(raw)):
                if min(rows, columns) < 0 or math.prod((rows, columns)) != len(raw):
                    raise pickle.UnpicklingError(f"an array of {rows} x {columns} bytes has {len(raw)}")
                self.values = np.frombuffer(raw, np.uint8).reshape((rows, columns), order="F" if by_columns else "C")
            case _:
                raise pickle.UnpicklingError("an array is not of two dimensions of uint8")


class _Reconstruct:
    """Stands for the function that begins an array."""

    __slots__ = ()

    def __call__(self, kind: object, *_: object) -> _Array:
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("something else than an array is rebuilt")
        return _Array()


def _plain(value: object) -> dict[object, object]:
    """The dictionary, with its arrays in place of what stood for them."""
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__} where a dictionary is expected")
    return {key: held.values if isinstance(held, _Array) else held for key, held in value.items()}
