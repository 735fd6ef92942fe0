"""Labels of rows: those of groups, which become codes, and those of an index, which say what belongs together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cfiv.arrays import Array, as_array, is_tensor
from cfiv.errors import DataError


def label_codes(name: str, value: object) -> Array:
    """Labels of rows as whole numbers from 0, in the order of their first appearance; equal ones get the same.

    Parameters
    ----------
    name : str
        What messages call them.
    value : array-like (n,) or (n, 1)
        Numbers, text, dates or anything hashable. Whole numbers are compared exactly, however large, and 1 is not "1".

    Returns
    -------
    array (n,) of whole numbers

    Raises
    ------
    DataError
        If it is not one label a row, or some are missing or cannot be compared.
    """
    labels = as_array(name, value)
    if isinstance(value, (list, tuple)) and labels.ndim == 1 and not any(map(is_tensor, value)):
        labels = np.empty(len(value), dtype=object)  # numpy would make text of 1 beside "1", and floats of large numbers
        labels[:] = value
    elif labels.dtype.kind in "fcVT" and labels.dtype.itemsize > 8:
        labels = labels.astype(object)  # which pandas would round, or cannot compare
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{name} must be one label a row, shape (n,), got shape {labels.shape}")
    if labels.dtype.kind == "O" and any(map(is_tensor, labels)):
        raise DataError(f"{name} holds tensors one by one, which are never equal: give one tensor of all labels")
    try:
        codes, _ = pd.factorize(labels.astype(labels.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise DataError(f"{name} must be labels that can be compared ({error}): give numbers or text") from None
    if (codes < 0).any():
        raise DataError(
            f"{name} must label every row, got {int((codes < 0).sum())} rows without (first: row {int((codes < 0).argmax())}): "
            "drop them or fill them"
        )
    return np.asarray(codes)


def check_same_rows(given: Mapping[str, object]) -> None:
    """Raise unless all that has row labels, an index of pandas, has the same in the same order; arrays go by position.

    Raises
    ------
    DataError
        Naming the first two whose labels differ.
    """
    found = {name: getattr(value, "index", None) for name, value in given.items()}
    indices = {name: index for name, index in found.items() if isinstance(index, pd.Index)}  # a list has a method of that name
    for name, index in indices.items():
        first, expected = next(iter(indices.items()))
        if not index.equals(expected):
            order = len(index) == len(expected) and set(index) == set(expected)
            if len(index) != len(expected):
                raise DataError(
                    f"{name} and {first} have {len(index)} and {len(expected)} rows, so that it is not clear which belong "
                    "together: give one for each, with the same labels"
                )
            raise DataError(
                f"{name} and {first} have {'the same row labels in another order' if order else 'different row labels'} "
                f"({_some(index)} and {_some(expected)}), so that it is not clear which rows belong together: bring them into "
                "one order with .loc or .reindex, or give .to_numpy() to go by position"
            )


def _some(index: pd.Index) -> str:
    return ", ".join(repr(label) for label in index[:3]) + (", ..." if len(index) > 3 else "")
