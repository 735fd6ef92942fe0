"""Files in and out: tables as CSV or Parquet, and output that replaces what was there only once it is whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfiv.errors import CfivError, DataError, OutputError

if TYPE_CHECKING:
    import pandas as pd


def from_here(path: Path) -> Path:
    """The same place by its shortest name: from the current folder, where it is in there."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def table_kind(path: Path) -> str:
    """``csv`` or ``parquet``, by the suffix; raises a DataError for others, and for Parquet without pyarrow."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("csv", "parquet"):
        raise DataError(f"tables are .csv or .parquet files, got '{path}': rename or convert it")
    if suffix == "parquet" and not _has_pyarrow():
        raise DataError(f"'{path}' needs pyarrow, which is not installed: pip install 'cfiv[parquet]', or use a .csv file")
    return suffix


def _has_pyarrow() -> bool:
    from importlib.util import find_spec  # here, and tempfile below, so that help is quick

    return find_spec("pyarrow") is not None


def read_table_file(path: Path, **csv_options: Any) -> pd.DataFrame:
    """The table in a file; numbers in a CSV file are read exactly, and rows that do not fit its header are refused."""
    import pandas as pd
    from pandas.errors import EmptyDataError, ParserWarning

    kind = table_kind(path)
    # From 3.1 on pandas reads every number exactly, and warns of this argument.
    old = tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if old else {}
    try:
        if kind == "parquet":
            frame: pd.DataFrame = pd.read_parquet(path, engine="pyarrow")
            frame = _exact(frame, lambda names: pd.read_parquet(path, columns=names, dtype_backend="numpy_nullable"))
            return frame.reset_index() if any(name is not None for name in frame.index.names) else frame
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, na_filter=False).iloc[0]
        repeated = sorted({name for name in header[header.duplicated()] if name})
        if repeated:
            raise DataError(f"column names must be unique, got {', '.join(map(repr, repeated))} more than once in '{path}'")
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)
            options = {"index_col": False, "low_memory": False, **exact, **csv_options}
            frame = pd.read_csv(path, **options)
        places = {name: place for place, name in enumerate(frame.columns)}  # a column without a name has none in the file
        return _exact(
            frame,
            lambda names: pd.read_csv(path, usecols=[places[n] for n in names], dtype_backend="numpy_nullable", **options),
        )
    except CfivError:
        raise
    except EmptyDataError:
        raise DataError(f"'{path}' is empty: a table needs a line of column names and rows") from None
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not text in UTF-8: save it as a CSV file in UTF-8") from None
    except ParserWarning:
        raise DataError(f"rows of '{path}' have more values than its first line has names: name every column") from None
    except ValueError as error:
        raise DataError(f"'{path}' is not a well-formed .{kind} file: {error}") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from None


def _exact(frame: pd.DataFrame, again: Callable[[list[str]], pd.DataFrame]) -> pd.DataFrame:
    """With whole numbers as such where pandas made floats of them, because of gaps, that cannot tell them apart."""
    floats = frame.select_dtypes("float64")
    large = [str(name) for name in floats.columns if (floats[name].abs() > 2**53).any()]
    if not large:
        return frame
    whole = again(large).select_dtypes("integer")
    return frame.assign(**{str(name): whole[name].array for name in whole.columns})


def write_table_file(frame: pd.DataFrame, path: Path) -> None:
    """Write a table without its index, of the kind that the suffix names."""
    with replacing(path) as temporary:
        if table_kind(path) == "parquet":
            frame.to_parquet(temporary, engine="pyarrow", index=False)
        else:
            frame.to_csv(temporary, index=False)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file to write, which takes the target's place once it is whole; a link stays, and what it points to is replaced."""
    import tempfile

    try:
        target = target.resolve()
        if target.exists() and not (target.is_file() or target.is_dir()):  # a device or a pipe would be swapped for a file
            raise OutputError(f"'{target}' cannot be written, since it is not a regular file: choose another name")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".cfiv-") as folder:
            temporary = Path(folder) / target.name
            yield temporary
            os.replace(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(unwritable(target, error)) from error


def check_place(target: Path) -> None:
    """Raise before any work is done where a file could not be written afterwards."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(unwritable(target, error)) from error


def check_table_place(target: Path) -> None:
    """:func:`check_place` for a table, whose suffix has to be known."""
    table_kind(target)
    check_place(target)


def unwritable(place: Path, error: OSError) -> str:
    """What to say of a place that cannot be written to."""
    return f"'{place}' cannot be written ({error.strerror or error}): choose a folder that exists and is writable"
