"""Raw columns: those that are there, without gaps, as numbers, or as categories in the order that training knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from reprlib import Repr
from typing import Any, Literal

import numpy as np
import pandas as pd

from cfiv.arrays import Array, are_positive, real_numbers
from cfiv.errors import DataError, MissingRowsWarning, quoted, warn
from cfiv.mapped import is_mapped, release

Missing = Literal["drop", "raise"]
#: What to do about rows with gaps, where an argument says whether they are left out.
ADVICE = "fill them, or use missing='drop'"
#: Of one text, or digits of one number: a model file names every level.
LONGEST = 1000
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 80


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
        return frame
    report_gaps(gaps.sum(), dropped=int(rows.sum()), rows=len(frame), missing=missing)
    return frame[~rows]


def report_gaps(
    gaps: Mapping[str, int] | pd.Series[int], *, dropped: int, rows: int, missing: Missing, advice: str = ADVICE
) -> None:
    """Warn of rows that are dropped, with the number of gaps in each column; raise where ``missing="raise"``, or none is left.

    Raises
    ------
    DataError

    Warns
    -----
    MissingRowsWarning
    """
    counts = ", ".join(f"{name}: {count}" for name, count in gaps.items() if count)
    if missing == "raise":
        raise DataError(f"{dropped} of {rows} rows have gaps ({counts}): {advice}")
    if dropped == rows:
        raise DataError(f"all {rows} rows have gaps ({counts}): nothing is left; fill them or drop the column")
    warn(f"dropped {dropped} of {rows} rows with gaps ({counts})", MissingRowsWarning)


@contextmanager
def rows_counted_without(dropped: int) -> Iterator[None]:
    """Inside, errors that name a row say that rows are counted without those that were dropped, if there are any."""
    try:
        yield
    except DataError as error:
        if not dropped or not re.search(r"\brow \d", str(error)):
            raise
        raise type(error)(f"{error} (rows are counted without the {dropped} that are left out)") from error


def numeric(frame: pd.DataFrame, variables: Sequence[str], categories: Container[str] = ()) -> pd.DataFrame:
    """The raw columns of a part as float64, those used as categories as they are, whatever the type of the rows."""
    columns = {name: frame[name] if name in categories else column_numbers(name, frame[name]) for name in variables}
    return pd.DataFrame(columns, index=frame.index, copy=False)


def is_mapped_table(frame: pd.DataFrame) -> bool:
    """Whether a table's columns lie on disk and not in memory."""
    return any(map(is_mapped, _in_store(frame)))


def release_table(frame: pd.DataFrame) -> None:
    """Give back the memory that reading a table on disk has taken."""
    release(*_in_store(frame))


def _in_store(frame: pd.DataFrame) -> Iterator[Array]:
    """The numbers, and codes of categories, that columns are kept as."""
    for _, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            yield np.asarray(column.array.codes)
        elif isinstance(column.dtype, np.dtype):
            yield column.to_numpy()


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


def without_zero_weights(frame: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """The rows whose weight is not zero beside the largest, as of IVData; all where weights will be refused."""
    weights = np.ones(1) if name is None else row_weights(frame, name)
    if not (len(weights) and weights.min() >= 0.0 < weights.max()):
        return frame
    kept = are_positive(weights)
    return frame if kept.all() else frame[kept]


def cluster_labels(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series[Any] | pd.DataFrame:
    """Columns of labels of groups, one as a series; codes of them where they are of categories, and on disk."""
    if len(names) > 1:
        return frame[list(names)]
    column = frame[names[0]]
    return column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) and is_mapped_table(frame) else column


def seen_levels(column: pd.Series[Any], name: str) -> tuple[Hashable, ...]:
    """The categories that a column holds: in the order that was declared, else numbers, then text, each sorted.

    Declared categories without a row are left out, since nothing is known of them.

    Raises
    ------
    DataError
        For a single category, categories that look the same, and values that a model file could not name: anything but text,
        numbers, True and False, and intervals of numbers.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        used = set(pd.unique(column.cat.codes).tolist())
        seen = [plain_level(level, name) for i, level in enumerate(column.cat.categories.tolist()) if i in used]
    else:
        values = (pd.unique(column) if column.dtype.kind in "iufb" else column).tolist()
        distinct = dict.fromkeys(values) if all(map(_is_hashable, values)) else values
        seen = sorted(dict.fromkeys(plain_level(value, name) for value in distinct), key=_rank)
    if len(seen) < 2:
        raise DataError(f"column {name!r} has the single category {seen[0]!r} and distinguishes nothing: drop it")
    by_text: dict[str, Hashable] = {}
    for level in seen:
        other = by_text.setdefault(str(level), level)
        if other is not level:
            raise DataError(
                f"column {name!r} has the categories {other!r} and {level!r}, which look the same: make all of them text, or "
                "all of them numbers"
            )
    return tuple(seen)


def plain_level(value: Any, name: str) -> Hashable:
    """A category as plain text, number, truth value or interval of numbers.

    Raises
    ------
    DataError
        For anything else, and text longer than LONGEST.
    """
    value = value.item() if isinstance(value, np.generic) and not isinstance(value, (np.datetime64, np.timedelta64)) else value
    level: Hashable
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        level = str.__str__(value)
        unicode = not any("\ud800" <= character <= "\udfff" for character in level)  # halves, which no file can hold
        if len(level) <= LONGEST and unicode:
            return level
        what = f"text of {len(level):,} characters" if unicode else "text that is no Unicode"
    elif isinstance(value, int):
        level = int(value)
        if level.bit_length() <= LONGEST:
            return level
        what = f"whole numbers of {level.bit_length():,} bits"
    elif isinstance(value, float) and np.isfinite(value):
        return float(value)
    elif isinstance(value, pd.Interval) and all(_is_number(end) for end in (value.left, value.right)):
        return pd.Interval(_plain_number(value.left), _plain_number(value.right), value.closed)
    else:
        what = f"values of type {type(value).__name__} ({_REPR.repr(value)})"
    raise DataError(
        f"column {name!r} has {what} as categories, and those are text, numbers, True and False, or intervals of numbers: "
        f"convert them to short text, such as frame[{name!r}].astype(str)"
    )


def level_codes(column: pd.Series[Any], name: str, known: Sequence[Hashable]) -> Array:
    """The position of each row's category among those that are known, shape (n,).

    By equality of values, whatever their type: a category True may come back as 1, or 2 as 2.0; an interval also as its text.

    Raises
    ------
    DataError
        For categories that training did not see.
    """
    positions: dict[Hashable, int] = {str(level): i for i, level in enumerate(known) if isinstance(level, pd.Interval)}
    positions |= {level: i for i, level in enumerate(known)}
    if isinstance(column.dtype, pd.CategoricalDtype):  # a look at each category and not at each row
        places = np.array([positions.get(level, -1) for level in column.cat.categories.tolist()] + [-1], dtype=np.int64)
        codes = places[column.cat.codes]
        if (codes >= 0).all():
            return codes
    values = column.tolist()
    codes = np.fromiter((positions.get(value, -1) if _is_hashable(value) else -1 for value in values), np.int64, len(values))
    if (codes < 0).any():
        strange = [value for value, code in zip(values, codes, strict=True) if code < 0]
        unseen = list(dict.fromkeys(strange)) if all(map(_is_hashable, strange)) else strange
        count = "1 category" if len(unseen) == 1 else f"{len(unseen)} categories"
        raise DataError(
            f"column {name!r} has {count} that training did not see ({listed(unseen)}); known are "
            f"{listed(known)}: drop those rows or train with them"
        )
    return codes


def categorised(frame: pd.DataFrame, levels: Mapping[str, Sequence[Hashable]]) -> pd.DataFrame:
    """Columns used as categories, with the categories of training, in their order; unseen ones are refused."""
    columns = {}
    for name, known in levels.items():
        # Of several types only as objects: pandas would round a large whole number beside a fraction.
        kind = object if len({type(level) for level in known}) > 1 else None
        codes = level_codes(frame[name], name, known)
        columns[name] = pd.Categorical.from_codes(codes, categories=pd.Index(list(known), dtype=kind))
    return frame.assign(**columns)


def listed(levels: Sequence[Any], limit: int = 8) -> str:
    """Categories for a message, with their types: text in quotes, numbers without."""
    shown = ", ".join(_REPR.repr(level) for level in levels[:limit])
    return shown if len(levels) <= limit else f"{shown}, ... ({len(levels)} in all)"


def _rank(level: Any) -> tuple[int, Any]:
    return (2 if isinstance(level, pd.Interval) else int(isinstance(level, str)), level)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))


def _plain_number(value: Any) -> int | float:
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
