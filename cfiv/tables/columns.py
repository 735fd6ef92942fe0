"""Raw columns: those that are there, without gaps, as numbers or as categories."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Container, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from cfiv.data import Array
from cfiv.errors import DataError, MissingRowsWarning, quoted

Missing = Literal["drop", "raise"]


def require_columns(frame: pd.DataFrame, names: Sequence[str], *, needed_for: str) -> None:
    """Raise a DataError, with the nearest name, unless the table has these columns."""
    for name in names:
        if name not in frame.columns:
            present = [str(column) for column in frame.columns]
            near = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the table has {quoted(present)}"
            raise DataError(f"{needed_for} need column {name!r}, which the table does not have: {hint}")


def without_gaps(frame: pd.DataFrame, missing: Missing, *, stacklevel: int) -> pd.DataFrame:
    """The rows without a gap in any column, with a warning that counts the others; raises where ``missing="raise"``."""
    gaps = frame.isna()
    rows = gaps.any(axis=1).to_numpy()
    if not rows.any():
        return frame.reset_index(drop=True)
    counts = ", ".join(f"{name}: {count}" for name, count in gaps.sum().items() if count)
    if missing == "raise":
        raise DataError(f"{int(rows.sum())} of {len(frame)} rows have gaps ({counts}): fill them, or use missing='drop'")
    if rows.all():
        raise DataError(f"all {len(frame)} rows have gaps ({counts}): nothing is left; fill them or drop the column")
    warnings.warn(
        f"dropped {int(rows.sum())} of {len(frame)} rows with gaps ({counts})", MissingRowsWarning, stacklevel=stacklevel
    )
    return frame[~rows].reset_index(drop=True)


def numeric(frame: pd.DataFrame, variables: Sequence[str], categories: Container[str] = ()) -> pd.DataFrame:
    """The raw columns of a part as float64, those used as categories as they are."""
    columns: dict[str, Any] = {}
    for name in variables:
        column = frame[name]
        if name in categories:
            columns[name] = column
            continue
        if isinstance(column.dtype, pd.CategoricalDtype):  # numbers in training: read by what they are
            column = column.astype(object)
        if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
            if pd.api.types.is_complex_dtype(column.dtype):
                raise DataError(f"column {name!r} holds complex numbers: take its real part or modulus first")
            columns[name] = column.astype(np.float64)
        elif pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
            raise DataError(f"column {name!r} holds dates: convert it to a number, for instance days since a first date")
        else:
            converted = pd.to_numeric(column, errors="coerce").astype(np.float64)
            text = converted.isna().to_numpy()
            if text.any() or any(isinstance(value, str) for value in column):
                row = int(text.argmax()) if text.any() else 0
                raise DataError(
                    f"column {name!r} holds text ({column.iloc[row]!r} in row {row}) where numbers are needed: convert it with "
                    f"pandas.to_numeric, or mark it as categories with C({name}) in the formula or astype('category')"
                )
            columns[name] = converted
        if columns[name].dtype == np.float64:
            # Before a transform learns from it: one infinity would make a whole centred column undefined.
            infinite = np.isinf(columns[name].to_numpy())
            if infinite.any():
                raise DataError(
                    f"column {name!r} is infinite in {int(infinite.sum())} of {len(infinite)} rows (first: row "
                    f"{int(infinite.argmax())}): drop those rows or mend their values"
                )
    return pd.DataFrame(columns)


def row_weights(frame: pd.DataFrame, name: str) -> Array:
    """A column of row weights as numbers, shape (n,)."""
    return numeric(frame, (name,))[name].to_numpy(dtype=np.float64)
