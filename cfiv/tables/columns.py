"""Raw columns: those that are there, without gaps, as numbers or as categories."""

from __future__ import annotations

import difflib
from collections.abc import Container, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from cfiv.arrays import Array, real_numbers
from cfiv.errors import DataError, MissingRowsWarning, quoted, warn

Missing = Literal["drop", "raise"]


def require_columns(frame: pd.DataFrame, names: Sequence[str], *, needed_for: str) -> None:
    """Raise a DataError, with the nearest name, unless the table has these columns."""
    for name in names:
        if name not in frame.columns:
            present = [str(column) for column in frame.columns]
            near = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the table has {quoted(present)}"
            raise DataError(f"{needed_for} need column {name!r}, which the table does not have: {hint}")


def gaps_in(frame: pd.DataFrame) -> pd.DataFrame:
    """Which values are missing; raises a DataError for a column whose values cannot be asked."""
    try:
        return frame.isna()
    except (TypeError, ArithmeticError) as error:  # raw bytes, decimals that signal
        raise DataError(
            f"among {quoted(list(frame.columns))} is a column that holds neither numbers nor text: {error}"
        ) from None


def without_gaps(frame: pd.DataFrame, missing: Missing) -> pd.DataFrame:
    """The rows without a gap in any column, with a warning that counts the others; raises where ``missing="raise"``."""
    gaps = gaps_in(frame)
    rows = gaps.any(axis=1).to_numpy()
    if not rows.any():
        return frame.reset_index(drop=True)
    counts = ", ".join(f"{name}: {count}" for name, count in gaps.sum().items() if count)
    if missing == "raise":
        raise DataError(f"{int(rows.sum())} of {len(frame)} rows have gaps ({counts}): fill them, or use missing='drop'")
    if rows.all():
        raise DataError(f"all {len(frame)} rows have gaps ({counts}): nothing is left; fill them or drop the column")
    warn(f"dropped {int(rows.sum())} of {len(frame)} rows with gaps ({counts})", MissingRowsWarning)
    return frame[~rows].reset_index(drop=True)


def numeric(frame: pd.DataFrame, variables: Sequence[str], categories: Container[str] = ()) -> pd.DataFrame:
    """The raw columns of a part as float64, those used as categories as they are, whatever the type of the rows."""
    return pd.DataFrame({name: frame[name] if name in categories else column_numbers(name, frame[name]) for name in variables})


def column_numbers(name: str, column: pd.Series[Any]) -> pd.Series[float]:
    """A column of numbers as float64; raises a DataError for anything else, and for numbers that no float holds."""
    dtype = column.dtype
    numeric_dtype = pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype)
    if numeric_dtype and not (pd.api.types.is_complex_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype)):
        with np.errstate(over="ignore"):  # what no float64 holds is infinite, and refused below
            numbers = column.astype(np.float64)
    else:
        otherwise = (
            f"convert it with pandas.to_numeric, or mark it as categories with C({name}) in the formula or astype('category')"
        )
        values = real_numbers(f"column {name!r}", column.astype(object).to_numpy(), otherwise=otherwise)
        numbers = pd.Series(values, index=column.index)
    # Before a transform learns from it: one infinity would make a whole centred column undefined.
    bad = ~np.isfinite(numbers.to_numpy())
    if bad.any():
        what = "missing" if np.isnan(numbers.iloc[int(bad.argmax())]) else "infinite"
        raise DataError(
            f"column {name!r} is {what} in {int(bad.sum())} of {len(bad)} rows (first: row {int(bad.argmax())}): drop those "
            "rows or mend their values"
        )
    return numbers


def row_weights(frame: pd.DataFrame, name: str) -> Array:
    """A column of row weights as numbers, shape (n,)."""
    return column_numbers(name, frame[name]).to_numpy()
