"""Where tables lie that are not in memory: Parquet files and folders of them, and dataframes of dask."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from cfiv.errors import CfivError, DataError
from cfiv.mapped import BLOCK_ROWS

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.dataset import Dataset


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """A Parquet file or folder, and the columns of it that are read.

    Parameters
    ----------
    dataset : pyarrow.dataset.Dataset
    path : str
    columns : sequence of str
    """

    dataset: Dataset
    path: str
    columns: Sequence[str] = ()

    @classmethod
    def of(cls, place: str | os.PathLike[str]) -> Self:
        """Open it, without reading rows; a DataError for what is none."""
        path = Path(place)
        if not path.exists():
            raise DataError(f"there is no '{path}': give a table, or the name of a Parquet file or of a folder of them")
        if path.is_file() and path.suffix.lower() != ".parquet":
            raise DataError(
                f"rows are read from .parquet files, or folders of them, got '{path}': convert it, or read it as a table"
            )
        if find_spec("pyarrow") is None:
            raise DataError(f"'{path}' needs pyarrow, which is not installed: pip install 'cfiv[parquet]'")
        import pyarrow.dataset as datasets

        with _in_words(str(path)):
            partitions = datasets.HivePartitioning.discover(infer_dictionary=True)
            found: Dataset = datasets.dataset(path, format="parquet", partitioning=partitions)
            if not found.files:
                raise DataError(f"the folder '{path}' has no Parquet files: give one that has")
            return cls(found, os.fspath(place))

    @property
    def said(self) -> str:
        """For messages."""
        return f"'{self.path}'"

    @property
    def names(self) -> list[str]:
        """All columns."""
        return list(self.dataset.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """Their types."""
        return self.dataset.schema

    def of_columns(self, names: Sequence[str]) -> Self:
        """Some of the columns; a DataError for one that some files lack, whose rows would be dropped, file after file."""
        from pyarrow.dataset import get_partition_keys

        with _in_words(self.path):
            files = list(self.dataset.get_fragments())
            present = [{*file.physical_schema.names, *get_partition_keys(file.partition_expression)} for file in files]
        for name in names:
            without = [os.path.basename(file.path) for file, own in zip(files, present, strict=True) if name not in own]
            if 0 < len(without) < len(files):
                raise DataError(
                    f"column {name!r} is in {len(files) - len(without)} of the {len(files)} files of {self.said}, and not in "
                    f"'{without[0]}': give files that have it, or add it to the others, empty where nothing is known"
                )
        return replace(self, columns=names)

    def count_rows(self) -> int:
        """Rows, those with gaps among them."""
        with _in_words(self.path):
            return int(self.dataset.count_rows())

    def batches(self) -> Iterator[pa.RecordBatch]:
        """One after another, without reading ahead."""
        from pyarrow.dataset import ParquetFragmentScanOptions

        with _in_words(self.path):
            yield from self.dataset.to_batches(
                columns=list(self.columns),
                batch_size=BLOCK_ROWS,
                batch_readahead=1,
                fragment_readahead=1,
                fragment_scan_options=ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True),
            )


class DaskFrame(Protocol):
    """Of a dataframe of dask what is used here."""

    columns: Any
    partitions: Any
    npartitions: int

    def __getitem__(self, names: list[str]) -> DaskFrame: ...

    def __len__(self) -> int: ...


def is_dask(data: object) -> bool:
    """Whether this is a dataframe of dask, of any version."""
    module = type(data).__module__
    return module.split(".")[:2] == ["dask", "dataframe"] and hasattr(data, "partitions") and hasattr(data, "columns")


@dataclass(frozen=True, eq=False)
class DaskSource:
    """A dataframe of dask: a partition at a time is in memory."""

    frame: DaskFrame
    said: str = "the dask dataframe"

    @classmethod
    def of(cls, frame: DaskFrame) -> Self:
        """A DataError without pyarrow."""
        if find_spec("pyarrow") is None:
            raise DataError("dask dataframes need pyarrow, which is not installed: pip install 'cfiv[parquet]'")
        return cls(frame)

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [str(name) for name in self.frame.columns]

    @property
    def schema(self) -> pa.Schema:
        """Their types."""
        import pyarrow as pa

        return pa.Schema.from_pandas(self.frame._meta, preserve_index=False)  # type: ignore[attr-defined]

    def of_columns(self, names: Sequence[str]) -> Self:
        """Some of the columns, as far as they are there."""
        return replace(self, frame=self.frame[[name for name in names if name in self.names]])

    def count_rows(self) -> int:
        """Rows, those with gaps among them."""
        return len(self.frame)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Partition after partition."""
        import pyarrow as pa

        for i in range(self.frame.npartitions):
            part = self.frame.partitions[i].compute()
            try:
                table = pa.Table.from_pandas(part, preserve_index=False)
            except pa.ArrowException as error:
                raise DataError(
                    f"{self.said} has values of several types in a column ({error}): give each column one"
                ) from error
            yield from table.to_batches(max_chunksize=BLOCK_ROWS)


@contextmanager
def _in_words(path: str) -> Iterator[None]:
    """Errors of Arrow as a DataError."""
    import pyarrow as pa

    try:
        yield
    except CfivError:
        raise
    except (pa.ArrowException, OSError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if os.path.isfile(path):
            raise DataError(f"'{path}' is not a well-formed .parquet file: {said}") from error
        raise DataError(
            f"'{path}' cannot be read as one table ({said}): its files must be Parquet, with columns of the same types in each"
        ) from error
