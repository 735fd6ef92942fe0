"""Files that replace others: whole or not at all, and never a device or a pipe."""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cfiv.errors import OutputError
from cfiv.files import read_table_file, replacing


def test_a_pipe_is_refused_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="is not a regular file: choose another name"), replacing(pipe):
        pass
    assert pipe.is_fifo()


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


LARGE = [2**60, None, 2**60 + 1, 2**60 + 2]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_large_whole_numbers_stay_apart_where_some_are_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table.{suffix}"
    columns = {"shop": LARGE, "few": [1, None, 2, 3], "x": [1e300, 0.5, None, 2.0]}
    if suffix == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [",".join("" if value is None else str(value) for value in row) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([",".join(columns), *lines]).replace("shop", ""))
    frame = read_table_file(path)
    assert [None if pd.isna(value) else int(value) for value in frame.iloc[:, 0]] == LARGE
    assert frame[["few", "x"]].dtypes.tolist() == ["float64", "float64"]
    assert frame["x"].tolist()[::3] == [1e300, 2.0]
