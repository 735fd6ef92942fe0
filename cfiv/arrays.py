"""Arrays as people have them, of any library: the numbers in them, right or refused in words."""

from __future__ import annotations

import datetime
import math
import re
import sys
from collections.abc import Iterator, Mapping, Set
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.errors import DataError

Array = npt.NDArray[Any]

#: Values that are looked at at once, 16 MB of answers.
BLOCK_VALUES = 2**24
#: What stands for a value that is not there.
GAPS = (type(None), type(pd.NA), type(pd.NaT), type(np.ma.masked))
#: What a single value may be that numpy knows as an object only.
SCALARS = (Real, Decimal, datetime.date, datetime.timedelta, pd.Period, *GAPS)
#: Text that is a date, as files have them: 2020-01-31, 2020-01, 31.1.2020, 1/31/20.
DATE_TEXT = re.compile(r"\d{4}-\d{1,2}(-\d{1,2}.*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}.*")
DAYS = "for instance days, (when - when.min()) / pandas.Timedelta(days=1) where when = {}"


def numeric_array(name: str, value: object, *, finite: bool = True) -> Array:
    """The numbers of an array-like of any library: real, finite, of at most 64 bits, in the machine's byte order.

    Parameters
    ----------
    name : str
        What messages call it, such as ``"treatment"``.
    value : array-like
        A numpy array; a torch tensor of any layout, type and device; a Series, Index or DataFrame of pandas, polars or Arrow;
        a list or tuple of numbers, or of arrays or tensors of one shape; anything that numpy makes an array of.
    finite : bool
        Whether to refuse values that are infinite or missing.

    Returns
    -------
    array of floats or whole numbers, of the shape of ``value``
        Without a copy, and of its own type, where it can be used as it is. Truth values become float64 (in arrays of more than
        two dimensions, images, uint8), and so do long doubles and objects: Python's whole numbers, decimals and fractions.
        Whole numbers stay whole: whoever makes floats of them keeps about 16 digits.

    Raises
    ------
    DataError
        For text, dates and durations, complex numbers, categories, records; for values that are missing, masked, infinite, or
        larger than any float; for rows of different shapes, and for what has no order or can be read only once.
    """
    dtypes = value.dtypes if isinstance(value, pd.DataFrame) else (getattr(value, "dtype", None),)
    if any(isinstance(dtype, pd.CategoricalDtype) for dtype in dtypes):
        raise DataError(
            f"{name} holds categories: give their values, .astype(float), or dummies, pandas.get_dummies(..., drop_first=True)"
        )
    array = as_array(name, value)
    if array.dtype.kind not in "fiu":
        array = real_numbers(name, array, otherwise="convert it, or name a column of a table with C(...)")
    if array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # what no float64 holds is infinite, and refused below
            array = array.astype(np.float64)
    if finite and array.dtype.kind == "f":
        _check_finite(name, array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def real_numbers(name: str, values: Array, *, otherwise: str) -> Array:
    """The numbers in an array of anything: missing ones are not a number, and those that no float holds infinite.

    Parameters
    ----------
    name : str
        What messages call it.
    values : array
        Of truth values or objects; all other kinds are refused.
    otherwise : str
        What to do about values that are neither numbers nor dates.

    Returns
    -------
    array of the same shape, float64, or uint8 for truth values in more than two dimensions

    Raises
    ------
    DataError
        With the first value that is no number, its row and a remedy.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8 if values.ndim > 2 else np.float64)
    shown = values.ravel() if values.dtype.kind == "O" else values.ravel()[:1]
    items: list[Any] = list(shown) if values.dtype.kind in "Mm" else shown.tolist()  # which makes whole numbers of some dates
    refused = {kind for kind in set(map(type, items)) if not _is_real(kind)}
    if refused:
        positions = [position for position, item in enumerate(items) if type(item) in refused]
        # Rather the text that is no number, among numbers as text.
        position = next((position for position in positions if not _reads_as_number(items[position])), positions[0])
        row = position // max(1, math.prod(values.shape[1:]))
        what, remedy = _not_a_number(items[position], otherwise)
        raise DataError(f"{name} holds {what} ({_short(items[position])} in row {row}) where numbers are needed: {remedy}")
    if values.dtype.kind != "O":
        raise DataError(f"{name} must be numeric, got dtype {values.dtype}: {otherwise}")
    with np.errstate(over="ignore"):
        return np.array([_float(item) for item in items], dtype=np.float64).reshape(values.shape)


def _check_finite(name: str, array: Array) -> None:
    """Raise a DataError, with the first row, where values are infinite or missing."""
    step = max(1, BLOCK_VALUES // max(1, math.prod(array.shape[1:])))
    blocks = (array[start : start + step] for start in range(0, len(array), step)) if array.ndim else (array,)
    if not all(np.isfinite(block).all() for block in blocks):
        finite = np.isfinite(array)
        bad = np.atleast_1d(~finite)
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        what = "missing" if np.isnan(np.atleast_1d(array)[place]) else "infinite"
        raise DataError(
            f"{name} must be finite, got {int(bad.sum())} values that are infinite or missing (the first is {what} in row "
            f"{int(place[0])}): drop or fill those rows"
        )


def are_positive(weights: Array) -> Array:
    """Which row weights (n,), all >= 0 and not all zero, are not zero beside the largest: a mask (n,)."""
    positive: Array = weights / weights.max() > 0.0
    return positive


def as_array(name: str, value: object) -> Array:
    """An array-like as an array of numpy, of any dtype, as far as possible without a copy; masked values are refused.

    Raises
    ------
    DataError
        If it makes no array, has masked values, has no order or can be read only once, or is a list of Series that differ in
        their labels.
    """
    if value is None or isinstance(value, (Set, Mapping, Iterator, str, bytes, bytearray)):
        raise DataError(f"{name} must be an array, got {type(value).__name__}: give an array or a list of its values in order")
    masked = _masked(value)
    if masked.any():
        first = int((masked > 0).argmax())
        raise DataError(
            f"{name} must have no masked values, got {int(masked.sum())}: drop or fill those rows (the first is row {first})"
        )
    labels = [item.index for item in value if isinstance(item, pd.Series)] if isinstance(value, (list, tuple)) else []
    if any(not index.equals(labels[0]) for index in labels):
        raise DataError(
            f"{name} must be an array, got Series with different labels: give pandas.DataFrame(...) of them, or .to_numpy()"
        )
    try:
        if isinstance(value, (list, tuple)) and any(is_tensor(item) for item in value):
            value = [_of_tensor(item) if is_tensor(item) else item for item in value]
        array: Array = _of_tensor(value) if is_tensor(value) else np.asarray(value)
    except Exception as error:  # whatever the library raises whose object it is
        said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        reason = "its rows differ in length" if "inhomogeneous" in said else said
        raise DataError(f"{name} makes no array ({reason}): give an array of numbers, its rows all of one shape") from error
    if array.dtype.kind == "O" and array.ndim == 0 and not isinstance(array[()], SCALARS):
        raise DataError(f"{name} must be an array, got {type(value).__name__}: give an array or a list of its values")
    return array


def is_tensor(value: object) -> bool:
    """Whether it is torch's; does not import it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _of_tensor(tensor: Any) -> Array:
    """The values of a tensor of any layout, type and device, without its gradient."""
    torch = sys.modules["torch"]
    dense = tensor.detach()
    dense = dense.dequantize() if dense.is_quantized else dense.to_dense() if dense.layout != torch.strided else dense
    dense = dense.cpu().resolve_conj().resolve_neg()
    # numpy has neither bfloat16 nor smaller ones: float32 holds all of their values.
    known = (torch.float16, torch.float32, torch.float64)
    array: Array = (dense if dense.dtype in known or not dense.is_floating_point() else dense.float()).numpy()
    return array


def _masked(value: object) -> Array:
    """How many values of each row are masked; also within lists, where numpy would take what is under the mask."""
    if isinstance(value, np.ma.MaskedArray):
        mask = np.atleast_1d(np.ma.getmaskarray(value))
        if mask.dtype.names is not None:  # records, of which any part may be masked
            return np.array([any(record) for record in mask.ravel().tolist()], dtype=int)
        return np.asarray(mask.sum(axis=tuple(range(1, mask.ndim))))
    if isinstance(value, (list, tuple)):
        nested = (list, tuple, np.ma.MaskedArray)
        return np.array([_masked(item).sum() if isinstance(item, nested) else 0 for item in value], dtype=int)
    return np.zeros(1, dtype=int)


def _is_real(kind: type) -> bool:
    """Whether values of a type are real numbers, or gaps among them."""
    return kind in GAPS or (issubclass(kind, (Real, Decimal, np.bool_)) and not issubclass(kind, np.timedelta64))


def _reads_as_number(item: object) -> bool:
    try:
        return isinstance(item, str) and float(item) is not None
    except ValueError:
        return False


def _float(item: Any) -> float:
    if isinstance(item, GAPS):
        return float("nan")
    try:
        return float(item)
    except OverflowError:
        return float("inf") if item > 0 else float("-inf")
    except ValueError:  # a decimal that signals
        return float("nan")


def _not_a_number(item: Any, otherwise: str) -> tuple[str, str]:
    """What to call a value, and what to do about it."""
    if isinstance(item, pd.Period):
        return "dates", f"convert it to a number, {DAYS.format('pandas.PeriodIndex(...).to_timestamp()')}"
    if isinstance(item, (datetime.date, np.datetime64)):
        return "dates", f"convert it to a number, {DAYS.format('pandas.to_datetime(...)')}"
    if isinstance(item, (datetime.timedelta, np.timedelta64)):
        return "durations", "convert it to a number, for instance days, pandas.to_timedelta(...) / pandas.Timedelta(days=1)"
    if isinstance(item, (complex, np.complexfloating)):
        return "complex numbers", "take its real part or modulus first"
    if isinstance(item, str) and DATE_TEXT.fullmatch(item):
        return "dates as text", f"convert it to a number, {DAYS.format('pandas.to_datetime(...)')}; or {otherwise}"
    if isinstance(item, str):
        return "text", otherwise
    return f"values of type {type(item).__name__}", otherwise


def _short(item: object) -> str:
    shown = repr(item)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
