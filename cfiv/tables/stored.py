"""Tables in Parquet files and dask dataframes, read batch after batch into columns that lie on disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from cfiv.arrays import Array
from cfiv.data import EXACT
from cfiv.errors import DataError, quoted
from cfiv.mapped import BLOCK_ROWS, ColumnFile
from cfiv.tables.columns import ADVICE, Missing, column_numbers, report_gaps, require_columns
from cfiv.tables.table_sources import DaskFrame, DaskSource, ParquetSource, is_dask

if TYPE_CHECKING:
    import pyarrow as pa

#: The name of a Parquet file or of a folder of them, or a dataframe of dask.
StoredTable: TypeAlias = str | os.PathLike[str] | DaskFrame


def is_stored(data: object) -> bool:
    """Whether data lie elsewhere than in memory: are named, or are a dataframe of dask."""
    return isinstance(data, (str, os.PathLike)) or is_dask(data)


def count_given(data: Any) -> int | None:
    """Rows of data as they are given, those with gaps among them; None of what would be computed once more to be counted."""
    if is_stored(data):
        return ParquetSource.of(data).count_rows() if isinstance(data, (str, os.PathLike)) else None
    if isinstance(data, Mapping):
        return len(next(iter(data.values())))
    return len(data) if hasattr(data, "__len__") else None


def read_stored(
    table: StoredTable,
    names: Sequence[str],
    *,
    labels: Collection[str],
    needed_for: str,
    missing: Missing,
    advice: str = ADVICE,
    weights: str | None = None,
) -> tuple[pd.DataFrame, Array | None]:
    """Columns of a stored table, as pandas has them once it is read, without rows that have gaps; mapped from disk.

    Parameters
    ----------
    table : path or dataframe of dask
        A dataframe is computed partition by partition, and once more for its number of rows.
    names : sequence of str
        What is read; other columns cost nothing.
    labels : collection of str
        Those whose values are labels. Text in them becomes categories, in the order of the alphabet.
    needed_for : str
        For messages.
    missing : {"drop", "raise"}
    advice : str
        What to do about rows with gaps that are refused.
    weights : str, optional
        A column; rows where it is zero are left out, in silence.

    Returns
    -------
    frame : DataFrame
        Numbers as float64, labels that are numbers in their own type. It takes 8 bytes a number of the temporary files' disk
        until nothing refers to it any more, and no memory but what reads of it take.
    kept : array of bool or None
        Which of the table's rows these are; None of all.

    Raises
    ------
    DataError
        If there is no such file, it is no Parquet, has not the columns or no rows; if columns hold text where numbers are
        needed, are not in all files of a folder, or have types in some that do not fit those of the first; or without pyarrow.
        What a dataframe of dask raises while it is computed is left as it is.
    OutputError
        If the disk has no room.

    Warns
    -----
    MissingRowsWarning
        With the number of rows dropped.
    """
    source = _source(table)
    import pyarrow as pa
    import pyarrow.compute as compute

    present = source.names
    repeated = sorted({name for name in present if present.count(name) > 1})
    if repeated:
        raise DataError(f"column names must be unique, got {quoted(repeated)} more than once in {source.said}: rename them")
    source = source.of_columns(names)
    require_columns(pd.DataFrame(columns=present), names, needed_for=needed_for)
    rows = source.count_rows()
    if rows == 0:
        raise DataError(f"{source.said} has no rows: give at least one")
    stored = _Stored.of(source.schema, names, labels=labels, rows=rows)
    gaps, incomplete, start, kept = dict.fromkeys(names, 0), 0, 0, np.ones(rows, dtype=bool)
    for batch in source.batches():
        complete, found = _complete_rows(batch)
        for name, count in found.items():
            gaps[name] += count
        incomplete += 0 if complete is None else batch.num_rows - complete.true_count
        if weights is not None and _is_plain(batch.schema.field(weights).type):
            weighed = compute.not_equal(compute.cast(batch.column(weights), pa.float64()), 0.0)
            complete = weighed if complete is None else compute.and_(complete, weighed.fill_null(False))
        if complete is not None:
            kept[start : start + batch.num_rows] = _plain(complete)
        if missing == "drop" or not any(found.values()):
            try:
                stored.append(batch if complete is None else batch.filter(complete))
            except DataError as error:
                raise DataError(f"{error} (rows are counted from row {start} of {source.said})") from error
        start += batch.num_rows
    pa.default_memory_pool().release_unused()
    if any(gaps.values()):
        report_gaps(gaps, dropped=incomplete, rows=rows, missing=missing, advice=advice)
    if not kept.any():
        raise DataError("weights are all zero: give at least one row a weight > 0")
    return stored.frame(gaps), None if kept.all() else kept


def read_labels(table: StoredTable, name: str) -> pd.Series[Any]:
    """A column of a stored table in memory, as pandas has it.

    Raises
    ------
    DataError
        If there is none of this name, and as :func:`read_stored`.
    """
    source = _source(table)
    require_columns(pd.DataFrame(columns=source.names), [name], needed_for="groups")
    import pyarrow as pa

    table_of_one = pa.Table.from_batches(source.of_columns([name]).batches()).unify_dictionaries()
    labels: pd.Series[Any] = table_of_one.to_pandas()[name]
    return labels


def _source(table: StoredTable) -> ParquetSource | DaskSource:
    return ParquetSource.of(table) if isinstance(table, (str, os.PathLike)) else DaskSource.of(table)


@dataclass(eq=False)
class _Stored:
    """Columns under way to disk: numbers side by side, labels each by itself.

    Parameters
    ----------
    names : sequence of str
    numbers : tuple of str
        Columns that become float64.
    values : ColumnFile
        Of them.
    labels : mapping from name to ColumnFile
        Of labels that are numbers, in their own type, and of codes of categories.
    categories : mapping from name to the codes of its categories
    declared : collection of str
        Categories that the file has as such, whose order is kept.
    """

    names: Sequence[str]
    numbers: tuple[str, ...]
    values: ColumnFile
    labels: dict[str, ColumnFile]
    categories: dict[str, dict[Any, int]]
    declared: Collection[str]
    filled: int = field(default=0, init=False)

    @classmethod
    def of(cls, schema: pa.Schema, names: Sequence[str], *, labels: Collection[str], rows: int) -> _Stored:
        import pyarrow.types as kinds

        types = {name: schema.field(name).type for name in names}
        declared = {name for name, kind in types.items() if kinds.is_dictionary(kind)}
        plain = {name for name, kind in types.items() if _is_plain(kind)}
        coded = [name for name in names if name in declared or (name in labels and name not in plain)]
        files = {name: ColumnFile(rows, columns=1, dtype=np.int32) for name in coded}
        for name in names:
            if name in labels and name in plain:
                files[name] = ColumnFile(rows, columns=1, dtype=types[name].to_pandas_dtype())
        numbers = tuple(name for name in names if name not in files)
        values = ColumnFile(rows, columns=len(numbers))
        return cls(names, numbers, values, files, {name: {} for name in coded}, declared)

    def append(self, batch: pa.RecordBatch) -> None:
        """The next rows, without gaps."""
        self.values.append(*(_numbers(name, batch.column(name)) for name in self.numbers))
        for name, file in self.labels.items():
            column = batch.column(name)
            file.append(_codes(column, self.categories[name]) if name in self.categories else _plain(column))
        self.filled += batch.num_rows

    def frame(self, gaps: dict[str, int]) -> pd.DataFrame:
        """The table; whole numbers that had gaps are floats, as pandas has them, where those tell them apart."""
        columns: dict[str, Any] = dict(zip(self.numbers, self.values.array().T, strict=True))
        for name, file in self.labels.items():
            found = columns[name] = file.array()[:, 0]
            if name in self.categories:
                columns[name] = _categorical(found, self.categories[name], declared=name in self.declared)
            elif gaps[name] and found.dtype.kind in "iu" and not (found.max() > EXACT or found.min() < -EXACT):
                columns[name] = found.astype(np.float64)
        return pd.DataFrame({name: columns[name] for name in self.names}, copy=False)


def _complete_rows(batch: pa.RecordBatch) -> tuple[pa.BooleanArray | None, dict[str, int]]:
    """Which rows of a batch have no gaps, None of all, and how many gaps there are in each column."""
    import pyarrow.compute as compute

    gaps, missing = None, {}
    for name in batch.schema.names:
        empty = compute.is_null(batch.column(name), nan_is_null=True)
        missing[name] = empty.true_count
        if missing[name]:
            gaps = empty if gaps is None else compute.or_(gaps, empty)
    return None if gaps is None else compute.invert(gaps), missing


def _is_plain(kind: pa.DataType) -> bool:
    """Whether it is a type of numbers, or of truth values."""
    import pyarrow.types as kinds

    return bool(kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind))


def _plain(column: pa.Array) -> Array:
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _numbers(name: str, column: pa.Array) -> Array:
    """As float64; a DataError for anything but finite numbers."""
    if _is_plain(column.type):
        found = _plain(column).astype(np.float64, copy=False)
        if np.isfinite(found).all():
            return found
    return column_numbers(name, column.to_pandas()).to_numpy()


def _codes(column: pa.Array, known: dict[Any, int]) -> Array:
    """Positions of categories among those known, which new ones join."""
    import pyarrow.types as kinds

    coded = column if kinds.is_dictionary(column.type) else column.dictionary_encode()
    places = [known.setdefault(value, len(known)) for value in coded.dictionary.to_pylist()]
    return np.array(places, dtype=np.int32)[_plain(coded.indices)]


def _categorical(codes: Array, known: dict[Any, int], *, declared: bool) -> pd.Categorical:
    """Categories from codes on disk, in the type in which pandas keeps so many; those that are not declared in order."""
    order = np.arange(len(known))
    if not declared:
        order[[known[value] for value in sorted(known)]] = np.arange(len(known))
    names = list(known) if declared else sorted(known)
    kind = np.min_scalar_type(-max(1, len(known)))
    file = ColumnFile(len(codes), columns=1, dtype=kind)
    for start in range(0, len(codes), BLOCK_ROWS):
        file.append(order[codes[start : start + BLOCK_ROWS]])
    return pd.Categorical.from_codes(file.array()[:, 0], categories=pd.Index(names), validate=False)
