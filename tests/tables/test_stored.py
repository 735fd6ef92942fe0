"""Tables in Parquet files: read block by block they are what pandas reads, and refused in words where they are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cfiv.errors import CfivError, DataError, MissingRowsWarning, OutputError
from cfiv.mapped import ColumnFile, is_mapped
from cfiv.tables.columns import is_mapped_table
from cfiv.tables.encoding import encode
from cfiv.tables.roles import Roles

ROWS = 500


@pytest.fixture
def table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {name: generator.normal(size=ROWS) for name in ("y", "t", "z", "x")}
    columns["whole"] = generator.integers(0, 5, ROWS)
    columns["single"] = generator.normal(size=ROWS).astype(np.float32)
    columns["flag"] = generator.random(ROWS) < 0.5
    columns["text"] = generator.choice(["north", "south", "east"], ROWS)
    columns["declared"] = pd.Categorical(generator.choice(["c", "a", "b"], ROWS), categories=["c", "b", "a"])
    columns["when"] = pd.date_range("2020-01-01", periods=ROWS)
    columns["weight"] = generator.integers(0, 4, ROWS)
    return pd.DataFrame(columns)


@pytest.fixture(params=["file", "row groups", "folder", "partitions"])
def place(request: pytest.FixtureRequest, tmp_path: Path, table: pd.DataFrame) -> Path:
    """The same table in a file, in one of many row groups, in three files, and in a folder for each value of a column."""
    path = tmp_path / "t.parquet"
    if request.param in ("file", "row groups"):
        table.to_parquet(path, index=False, row_group_size=ROWS if request.param == "file" else 60)
        return path
    if request.param == "partitions":
        table.to_parquet(tmp_path / "parts", partition_cols=["text"], index=False)
        return tmp_path / "parts"
    (tmp_path / "parts").mkdir()
    for i in range(3):
        table[i::3].to_parquet(tmp_path / "parts" / f"{i}.parquet", index=False)
    return tmp_path / "parts"


def encoded(data: Any, formula: str, **named: Any) -> Any:
    missing = named.pop("missing", "drop")
    return encode(data, Roles.from_formula(formula, **named), reader="a test", missing=missing)


FORMULAS = (
    "y ~ x + [t ~ z]",
    "y ~ whole + single + flag + [t ~ z]",
    "y ~ C(text) + C(declared):x + [t ~ z]",
    "y ~ x + declared + C(whole) + C(flag) + [t + t:x ~ z + z:x]",
    "np.exp(y) ~ bs(x, df=5) + center(single) + [poly(t, 2) ~ cr(z, df=4)]",
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("stored", "table_sources", "parts"):
        monkeypatch.setattr(f"cfiv.tables.{room}.BLOCK_ROWS", 70)


@pytest.mark.law
@pytest.mark.parametrize("formula", FORMULAS)
def test_roles_of_a_file_or_folder_are_those_of_the_table_that_pandas_reads(place: Path, formula: str) -> None:
    of_table, expected = encoded(pd.read_parquet(place), formula, clusters=("text",), weights="weight")
    encoder, found = encoded(place, formula, clusters=("text",), weights="weight")
    assert found.names == expected.names
    for role in ("outcome", "treatment", "instruments", "covariates", "weights"):
        np.testing.assert_array_equal(getattr(found, role), getattr(expected, role))
    pairs = pd.crosstab(found.clusters, expected.clusters).to_numpy() > 0
    assert (pairs.sum(axis=0) == 1).all()
    assert (pairs.sum(axis=1) == 1).all()
    assert is_mapped_table(found.frame)
    assert is_mapped(found.treatment)
    weight = pd.read_parquet(place)["weight"]
    assert len(encoder.reference_rows) == len(of_table.reference_rows) == (weight > 0).sum() < ROWS


@pytest.mark.law
def test_weights_may_be_truth_values_and_not_all_zero(table: pd.DataFrame, tmp_path: Path) -> None:
    table.assign(weight=False).to_parquet(tmp_path / "none.parquet")
    table.to_parquet(tmp_path / "t.parquet")
    for data in (table, tmp_path / "t.parquet"):
        assert len(encoded(data, "y ~ x + [t ~ z]", weights="flag")[1]) == table["flag"].sum()
    for data in (table.assign(weight=False), tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="weights are all zero: give at least one row a weight > 0"):
            encoded(data, "y ~ x + [t ~ z]", weights="weight")


@pytest.mark.law
@pytest.mark.parametrize("formula", FORMULAS)
def test_roles_of_a_dask_dataframe_are_those_of_the_table_that_it_computes(table: pd.DataFrame, formula: str) -> None:
    dask = pytest.importorskip("dask.dataframe")
    table.loc[7, ["z", "text"]] = None
    frame = dask.from_pandas(table, npartitions=3)
    with pytest.warns(MissingRowsWarning):
        _, expected = encoded(frame.compute(), formula, clusters=("text",), weights="weight")
    with pytest.warns(MissingRowsWarning):
        encoder, found = encoded(frame, formula, clusters=("text",), weights="weight")
    assert found.names == expected.names
    for role in ("outcome", "treatment", "instruments", "covariates", "weights"):
        np.testing.assert_array_equal(getattr(found, role), getattr(expected, role))
    assert is_mapped_table(found.frame)
    complete = frame.dropna()
    for ours, theirs in zip(encoder.inputs(complete), encoder.inputs(complete.compute()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.contract
def test_what_is_wrong_in_a_dask_dataframe_is_said(table: pd.DataFrame) -> None:
    dask, dask_config = (pytest.importorskip(f"dask.{room}") for room in ("dataframe", "config"))
    for wrong, formula, words in (
        (table.assign(x="much"), "y ~ x + [t ~ z]", r"column 'x' .*(rows are counted from row 0 of the dask dataframe)"),
        (table, "y ~ w + [t ~ z]", "the roles need column 'w', which the table does not have"),
        (table[:0], "y ~ x + [t ~ z]", "the dask dataframe has no rows"),
    ):
        with pytest.raises(CfivError, match=words):
            encoded(dask.from_pandas(wrong, npartitions=2), formula)
    with dask_config.set({"dataframe.convert-string": False}), pytest.raises(DataError, match="of several types in a column"):
        encoded(dask.from_pandas(table.assign(x=[*table["x"][:-1], "a"]), npartitions=2), "y ~ x + [t ~ z]")


@pytest.mark.law
def test_rows_with_gaps_are_dropped_and_counted_as_those_of_a_table(tmp_path: Path, table: pd.DataFrame) -> None:
    table = table.astype({"whole": "Int64"})
    for i, name in enumerate(("y", "z", "text", "whole", "single")):
        table.loc[i :: 50 + i, name] = None
    table.to_parquet(tmp_path / "t.parquet", index=False)
    formula, named = "y ~ single + C(text) + C(whole) + [t ~ z]", {"clusters": ("whole",)}
    with pytest.warns(MissingRowsWarning) as expected:
        _, ours = encoded(pd.read_parquet(tmp_path / "t.parquet"), formula, **named)
    with pytest.warns(MissingRowsWarning) as said:
        _, found = encoded(tmp_path / "t.parquet", formula, **named)
    assert str(said[0].message) == str(expected[0].message)
    np.testing.assert_array_equal(found.covariates, ours.covariates)
    np.testing.assert_array_equal(found.outcome, ours.outcome)
    with pytest.raises(DataError, match=r"rows have gaps .*fill them, or use missing='drop'") as refused:
        encoded(tmp_path / "t.parquet", formula, missing="raise")
    with pytest.raises(DataError) as in_memory:
        encoded(pd.read_parquet(tmp_path / "t.parquet"), formula, missing="raise", **named)
    assert str(refused.value).partition(" rows have gaps")[0] == str(in_memory.value).partition(" rows have gaps")[0]


@pytest.mark.law
def test_whole_numbers_with_gaps_are_named_as_pandas_names_them(tmp_path: Path, table: pd.DataFrame) -> None:
    table.loc[3, "whole"] = np.nan
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(table).set_column(4, "whole", pa.array(table["whole"], pa.int64(), from_pandas=True)), path)
    with pytest.warns(MissingRowsWarning):
        _, expected = encoded(pd.read_parquet(path), "y ~ C(whole) + [t ~ z]")
    with pytest.warns(MissingRowsWarning):
        _, found = encoded(path, "y ~ C(whole) + [t ~ z]")
    assert found.names == expected.names


@pytest.mark.contract
def test_what_is_no_table_is_refused_with_what_to_do(tmp_path: Path, table: pd.DataFrame) -> None:
    def refused(place: Any, *words: str, formula: str = "y ~ x + [t ~ z]", error: type[Exception] = DataError) -> None:
        with pytest.raises(error) as caught:
            encoded(place, formula)
        assert all(word in str(caught.value) for word in words), caught.value

    refused(tmp_path / "none.parquet", "there is no", "none.parquet")
    refused(tmp_path, "has no Parquet files")
    (tmp_path / "t.csv").write_text("y,t,z\n1,2,3\n")
    refused(tmp_path / "t.csv", "t.csv", "read it as a table")
    path = tmp_path / "t.parquet"
    path.write_bytes(b"nothing")
    refused(path, "t.parquet' is not a well-formed .parquet file")
    table[:0].to_parquet(path, index=False)
    refused(path, "has no rows")
    table.to_parquet(path, index=False)
    refused(str(path), "need column 'singel'", "did you mean 'single'?", formula="y ~ singel + [t ~ z]")
    refused(path, "column 'text' holds text", "C(text)", "counted from row 0", formula="y ~ text + [t ~ z]")
    refused(path, "column 'when' holds dates", formula="y ~ when + [t ~ z]")
    table.loc[200, "x"] = np.inf
    table.to_parquet(path, index=False)
    refused(path, "column 'x' is infinite", "rows are counted from row 140")
    refused(path, "'np.log(t)' is infinite or undefined", formula="y ~ [np.log(t) ~ z]")


@pytest.mark.contract
def test_files_of_a_folder_whose_columns_differ_in_type_or_that_lack_one_are_refused(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    table.to_parquet(tmp_path / "a.parquet", index=False)
    table.assign(x="much").to_parquet(tmp_path / "b.parquet", index=False)
    with pytest.raises(DataError, match="cannot be read as one table"):
        encoded(tmp_path, "y ~ x + [t ~ z]")
    table.drop(columns="x").to_parquet(tmp_path / "b.parquet", index=False)
    with pytest.raises(DataError, match=r"column 'x' is in 1 of the 2 files of .* and not in 'b.parquet': give files that"):
        encoded(tmp_path, "y ~ x + [t ~ z]")
    assert len(encoded(tmp_path, "y ~ [t ~ z]")[1]) == 2 * ROWS
    (tmp_path / "a.parquet").rename(tmp_path / "c.parquet")  # the first file has the columns of a table
    with pytest.raises(DataError, match=r"column 'x' is in 1 of the 2 files of .* and not in 'b.parquet'"):
        encoded(tmp_path, "y ~ x + [t ~ z]")
    table.astype({"x": np.float32}).to_parquet(tmp_path / "b.parquet", index=False)
    assert len(encoded(tmp_path, "y ~ x + [t ~ z]")[1]) == 2 * ROWS


@pytest.mark.contract
def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: pd.DataFrame) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    with pytest.raises(OutputError, match=r"No space left on device.*set TMPDIR"):
        encoded(tmp_path / "t.parquet", "y ~ [t ~ z]")


@pytest.mark.law
def test_columns_set_down_come_back_however_they_were_given() -> None:
    file, generator = ColumnFile(100, columns=2), np.random.default_rng(0)
    values = generator.normal(size=(90, 2))
    for rows in np.split(values, [1, 1, 40]):
        file.append(*rows.T)
    found = file.array()
    np.testing.assert_array_equal(found, values)
    assert is_mapped(found[3:, 0])
    assert not is_mapped(values)
