"""Treatments that one asks about: what ``effect`` and ``dose_response`` are given, as values by column or as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import Any

import numpy as np
import pandas as pd

from cfiv.arrays import Array, as_array, numeric_array
from cfiv.data import IVData, read_table
from cfiv.errors import DataError, ParameterError, quoted
from cfiv.labels import check_same_rows


def values_by_column(name: str, given: Any, *, rows: Any, count: int, columns: Sequence[str]) -> Any:
    """Values for a table's treatment columns: one in all, one each, or a mapping; labels are heeded, gaps refused.

    Parameters
    ----------
    name : str
        The argument, for messages.
    given : scalar, sequence, Series, mapping or table
        A Series of one value a row has the labels of the rows; another one with other labels than 0, 1, ... goes by them.
    rows : table
        Where values are asked for, whose row labels those of a Series of one value a row must equal.
    count : int
        How many rows these are.
    columns : sequence of str
        The treatment columns.

    Returns
    -------
    scalar, list or dict of scalars and arrays, as :meth:`cfiv.tables.encoding.TableEncoder.with_treatment` takes it

    Raises
    ------
    ParameterError, DataError
        If it is none of that, has labels that are not the columns', or a gap.
    """
    labelled = rows.frame if isinstance(rows, IVData) else rows
    # As many as there are rows, and more than the one column could have, or with the label of the one row: one a row.
    many = isinstance(given, pd.Series) and len(columns) == 1 and len(given) == count
    if many and (count > 1 or given.index.equals(getattr(labelled, "index", None))):
        check_same_rows({"the rows": labelled, name: given})
    elif _has_labels(given):
        given = given.to_dict()
    elif hasattr(given, "columns") and not isinstance(given, Mapping):
        given = dict((given if isinstance(given, pd.DataFrame) else read_table(given)).items())
    elif isinstance(given, (list, tuple)) and len(given) == len(columns) and any(_is_many(name, one) for one in given):
        given = dict(zip(columns, given, strict=True))
    if isinstance(given, Mapping):
        for column, values in given.items():
            check_same_rows({"the rows": labelled, f"{name} of {column!r}": values})
        return {column: _values(f"{name} of {column!r}", values) for column, values in given.items()}
    values = _values(name, given)
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind not in "mM" else values


def one_array(name: str, given: Any, *, shape: tuple[int, ...], columns: Sequence[str] | None) -> Array:
    """One treatment of the shape of those of training, float64; a number where that is one column.

    Raises
    ------
    ParameterError, DataError
        For other shapes, or labels in another order than ``columns``, and as :func:`cfiv.arrays.numeric_array`.
    """
    labels = given.index if _has_labels(given) else None
    if labels is not None and columns is not None and list(map(str, labels)) != list(columns):
        raise ParameterError(
            f"{name} has the labels {quoted(list(labels))}, the treatment columns of training are {quoted(columns)}: give them "
            "in that order, with .loc, or go by position, with .to_numpy()"
        )
    one = numeric_array(name, given).astype(np.float64)
    if one.ndim == 0 and shape == (1,):
        one = one[None]
    if one.shape != shape:
        raise ParameterError(f"a treatment must have shape {shape}, as in training, got one of shape {one.shape}")
    return one


def grid_table(grid: Any, *, columns: Sequence[str]) -> pd.DataFrame:
    """The points of a grid as a table of the treatment columns.

    Raises
    ------
    ParameterError, DataError
        If it has no rows, other columns, or gaps.
    """
    if isinstance(grid, Mapping) or (hasattr(grid, "columns") and hasattr(grid, "__getitem__")):
        table = read_table(grid)
    else:
        values = _values("the grid", grid)
        values = values[:, None] if np.ndim(values) == 1 else np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(columns):
            raise ParameterError(
                f"the grid must give a value for each of {list(columns)}, got an array of shape {np.shape(grid)}"
            )
        table = pd.DataFrame(values, columns=list(columns))
    if set(table.columns) != set(columns) or table.empty:
        raise ParameterError(
            f"the grid must have rows and the columns {list(columns)}, got {list(table.columns)} with {len(table)} rows"
        )
    gaps = table.isna().any(axis=1).to_numpy()
    if gaps.any():
        raise DataError(f"the grid has gaps in {int(gaps.sum())} of {len(gaps)} rows (first: row {int(gaps.argmax())})")
    return table


def _has_labels(given: Any) -> bool:
    """Whether it is a Series that names its values, by something else than their position."""
    return isinstance(given, pd.Series) and not given.index.equals(pd.RangeIndex(len(given)))


def _is_many(name: str, given: Any) -> bool:
    """Whether it is several values, and no text."""
    return hasattr(given, "__len__") and not isinstance(given, str) and np.ndim(as_array(name, given)) > 0


def _values(name: str, given: Any) -> Any:
    """A value, or an array of values, which may be levels of a category; missing and masked ones are refused."""
    if callable(given):  # which pandas would call with the rows
        raise ParameterError(f"{name} must be a value, or values in order, got {shortened(given)}")
    one = given is None or isinstance(given, str) or not any(hasattr(given, way) for way in ("__array__", "__iter__"))
    values = given if one else as_array(name, given)
    if not one and values.dtype.kind in "SU" and isinstance(given, (list, tuple)):
        values = np.array(given, dtype=object)  # numpy would make text of a number beside text
    gaps = np.atleast_1d(pd.isna(values))
    if gaps.any():
        raise DataError(f"{name} has gaps, got {shortened(given)}: give a value for each")
    return values[()] if isinstance(values, np.ndarray) and values.ndim == 0 else values  # .item() makes numbers of some dates
