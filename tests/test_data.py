"""IVData and the reading of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from cfiv.data import IVData, read_table, to_tensor
from cfiv.errors import DataError

COLUMNS = {"y": [1.0, 2.0, 4.0], "count": [1, 2, 3], "flag": [True, False, True], "region": ["a", "b", "a"]}


def arrays(**changes: Any) -> IVData:
    """Five rows in every role, with some roles changed or (None) left out."""
    rows = np.arange(5.0)
    roles = {"outcome": rows**2, "treatment": rows, "instruments": -rows, "covariates": rows[:, None] * [1, 2], "weights": rows}
    return IVData(**(roles | changes))


@pytest.mark.parametrize(
    "values",
    [[1.0, 2.0], (1, 2), np.array([1, 2], dtype=np.uint8), pd.Series([1.0, 2.0], index=[7, 7]), torch.tensor([1.0, 2.0]),
     pl.Series([1, 2]), np.array([[1.0], [2.0]])],
    ids=["list", "tuple", "uint8", "Series", "Tensor", "polars", "column"],
)  # fmt: skip
def test_numbers_of_any_container_become_the_same_arrays(values: object) -> None:
    data = IVData(outcome=values, treatment=values, instruments=values, covariates=values, weights=values)
    for vector in (data.outcome, data.weights):
        assert vector.tolist() == [1.0, 2.0]
    for matrix in (data.treatment, data.instruments, data.covariates):
        assert matrix.tolist() == [[1.0], [2.0]]


def test_arrays_are_taken_as_they_are_without_a_copy() -> None:
    images = np.zeros((4, 8, 8), dtype=np.uint8)
    data = IVData(treatment=images)
    assert data.treatment.dtype == np.uint8
    assert np.shares_memory(data.treatment, images)


def test_a_tensor_that_requires_gradients_is_read_without_them() -> None:
    assert IVData(treatment=torch.ones(3, requires_grad=True)).treatment.tolist() == [[1.0], [1.0], [1.0]]


def test_flags_become_zeros_and_ones() -> None:
    assert IVData(treatment=[True, False]).treatment.tolist() == [[1.0], [0.0]]


def test_columns_are_named_by_their_role_unless_names_are_given() -> None:
    named = arrays(names={"outcome": ["sales"]}).names
    assert named is not None
    assert {role: list(names) for role, names in named.items()} == {
        "outcome": ["sales"],
        "treatment": ["treatment"],
        "instruments": ["instrument"],
        "covariates": ["covariate0", "covariate1"],
        "weights": ["weights"],
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"treatment": None}, ["a treatment is needed", "got None", "IVData(treatment=...)"]),
        ({"outcome": ["a"] * 5}, ["outcome holds text ('a' in row 0)", "numbers are needed", "convert it", "C(...)"]),
        (
            {"treatment": np.array([1.0, np.nan, 2.0, np.inf, 0.0])},
            ["treatment must be finite", "got 2 values", "drop"],
        ),
        ({"outcome": np.ones((5, 2))}, ["outcome must be one number a row", "got shape (5, 2)"]),
        ({"covariates": np.ones((5, 2, 2))}, ["covariates must have shape (n,) or (n, columns)", "got (5, 2, 2)"]),
        ({"instruments": np.ones(4)}, ["same number of rows", "'instruments': 4"]),
        ({"instruments": 1.0}, ["instruments must be an array of rows", "got the single value 1.0"]),
        ({"covariates": np.ones((5, 0))}, ["covariates must have at least one column", "got shape (5, 0)", "leave it out"]),
        ({"weights": [1.0, 1.0, -2.0, 1.0, 1.0]}, ["weights must be >= 0", "got a smallest of -2"]),
        ({"weights": np.zeros(5)}, ["weights are all zero", "give at least one row a weight > 0"]),
        ({"weights": [1.0, np.nan, 1.0, 1.0, 1.0]}, ["weights must be finite", "got 1 values"]),
        ({"names": {"covariates": ["x", "x"]}}, ["names['covariates'] must be different", "got ['x', 'x']"]),
        ({"names": {"treatment": 3}}, ["names['treatment'] must be text", "got 3"]),
        ({"names": {"treatment": [None]}}, ["names['treatment'] must be text", "got [None]"]),
        ({"names": {"covariates": {"x", "w"}}}, ["names['covariates'] must be text, or several in an order"]),
        ({"names": ["y"]}, ["names must be a mapping from role to column names", "got list"]),
        ({"frame": "train.csv"}, ["a table is needed", "got the name 'train.csv'"]),
        ({"frame": 5}, ["a table is needed", "got int"]),
        ({"names": {"covariates": ["only one"]}}, ["names['covariates'] must name 2 columns", "got ['only one']"]),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_with_what_was_got(changes: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        arrays(**changes)
    assert [part for part in says if part not in str(caught.value)] == []


@pytest.mark.parametrize("container", [dict, pl.DataFrame, pa.table])
def test_a_frame_of_any_kind_stands_beside_its_arrays(container: Any) -> None:
    data = arrays(frame=container({"a": [5, 6, 7, 8, 9]}), weights=[0, 1, 1, 1, 1]).with_positive_weight()
    assert data.frame is not None
    assert data.frame["a"].tolist() == [6, 7, 8, 9]


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"the data have no rows: give at least one"):
        IVData(treatment=np.empty((0, 1)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outcome": None}, ["fitting needs outcome", "got none", "give IVData(outcome=...)"]),
        ({"instruments": None}, ["fitting needs instruments", "got none", "give IVData(instruments=...)"]),
        (
            {"treatment": np.ones(5)},
            ["treatment 'treatment' is constant over 5 rows", "drop it or use data in which it varies"],
        ),
        ({"outcome": np.ones(5)}, ["outcome 'outcome' is constant over 5 rows"]),
        ({"instruments": np.array([[0.0, 1.0]] * 4 + [[0.0, 2.0]])}, ["instruments 'instrument0' is constant"]),
        ({"treatment": np.ones((5, 3, 3))}, ["treatment 'treatment' is constant over 5 rows"]),
    ],
)
def test_data_that_identify_nothing_are_not_fittable(changes: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        arrays(**changes).check_fittable()
    assert [part for part in says if part not in str(caught.value)] == []


def test_an_image_may_have_constant_pixels() -> None:
    images = np.zeros((5, 3, 3))
    images[:, 1, 1] = np.arange(5)
    arrays(treatment=images).check_fittable()


@pytest.mark.parametrize(
    "table",
    [COLUMNS, pd.DataFrame(COLUMNS), pd.DataFrame(COLUMNS, index=[5, 5, 5]), pl.DataFrame(COLUMNS), pl.LazyFrame(COLUMNS),
     pa.table(COLUMNS), IVData(treatment=np.ones(3), frame=pd.DataFrame(COLUMNS))],
    ids=["dict", "pandas", "duplicate index", "polars", "lazy polars", "arrow", "IVData"],
)  # fmt: skip
def test_tables_of_any_kind_read_the_same(table: object) -> None:
    frame = read_table(table)
    assert frame.index.tolist() == [0, 1, 2]
    assert frame.to_dict("list") == COLUMNS


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["a", "b"])])
def test_categories_of_polars_are_categories(kind: Any) -> None:
    frame = read_table(pl.DataFrame(COLUMNS).with_columns(pl.col("region").cast(kind)))
    assert isinstance(frame["region"].dtype, pd.CategoricalDtype)
    assert frame["region"].tolist() == COLUMNS["region"]


def test_gaps_of_polars_are_gaps() -> None:
    frame = read_table(pl.DataFrame({"whole": [1, None, 3], "text": ["a", None, "b"], "flag": [True, False, None]}))
    assert frame.isna().to_numpy().tolist() == [[False, False, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (np.ones((3, 2)), ["a table is needed", "got ndarray", "give arrays as IVData("]),
        ("train.csv", ["a table is needed", "got the name 'train.csv'", "read it"]),
        (None, ["a table is needed", "got NoneType"]),
        (IVData(treatment=np.ones(3)), ["names columns", "holds arrays only", "IVData(frame=...)"]),
        (pd.DataFrame({"y": []}), ["the table has no rows", "give at least one"]),
        (pd.DataFrame([[1, 2]], columns=["y", "y"]), ["column names must be unique", "got 'y'", "rename them"]),
        ({"y": [1, 2], "t": [1]}, ["columns of one length", "All arrays must be of the same length"]),
        ({"y": 1, "t": 2}, ["columns of one length"]),
    ],
)
def test_what_is_no_table_is_refused_with_what_was_got(table: object, says: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_table(table)
    assert [part for part in says if part not in str(caught.value)] == []


def test_tensors_are_copies_of_read_only_and_column_ordered_arrays() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    array.flags.writeable = False
    tensor = to_tensor(array, dtype=torch.float32)
    tensor += 1
    assert array.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert tensor.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_one_name_may_be_given_as_text_and_unknown_roles_or_another_length_are_refused() -> None:
    arrays = {"outcome": [1.0, 2.0], "treatment": [0.0, 1.0], "instruments": [1.0, 0.0]}
    named = IVData(**arrays, names={"outcome": "sales"}).names
    assert named is not None
    assert named["outcome"] == ("sales",)
    with pytest.raises(DataError, match=r"names has the unknown roles 'instrument': the roles are 'outcome'"):
        IVData(**arrays, names={"instrument": "fuel"})
    with pytest.raises(DataError, match=r"must have the same number of rows, got .*'frame': 3"):
        IVData(**arrays, frame=pd.DataFrame({"a": [1, 2, 3]}))


@pytest.mark.law
def test_rows_of_weight_zero_do_not_count_and_only_ratios_of_weights_do() -> None:
    data = IVData(outcome=[1.0, 2.0, 3.0], treatment=[0.0, 1.0, 5.0], instruments=[1.0, 0.0, 7.0], weights=[2e300, 1e300, 0.0])
    counted = data.with_positive_weight()
    assert counted.outcome.tolist() == [1.0, 2.0]
    assert counted.weights.tolist() == [1.0, 0.5]
    constant = IVData(outcome=[1.0, 2.0, 3.0], treatment=[1.0, 1.0, 5.0], instruments=[1.0, 0.0, 7.0], weights=[1.0, 1.0, 0.0])
    with pytest.raises(DataError, match="treatment 'treatment' is constant over 2 rows"):
        constant.with_positive_weight().check_fittable()


def test_masked_values_are_refused_and_not_read_as_numbers() -> None:
    masked = np.ma.masked_equal([1.0, -999.0, 2.0], -999.0)
    with pytest.raises(DataError, match="treatment must have no masked values, got 1: drop or fill those rows"):
        IVData(treatment=masked)


LARGE = [np.int64(2**60), None, 2**60 + 1, 2**60, 2**63, -(2**60)]


@pytest.mark.parametrize(
    "container",
    [
        dict,
        pl.DataFrame,
        pa.table,
        lambda columns: {"id": tuple(columns["id"])},
        lambda columns: pd.DataFrame(columns, dtype=object),
    ],
    ids=["dict", "polars", "arrow", "tuple", "objects"],
)
def test_large_whole_numbers_keep_their_digits_where_some_are_missing(container: Any) -> None:
    within = [value for value in LARGE if value is None or value < 2**63]
    frame = read_table(container({"id": within}))
    assert [None if pd.isna(value) else int(value) for value in frame["id"]] == within


def test_large_whole_numbers_of_python_are_no_floats() -> None:
    assert read_table({"id": LARGE})["id"].dropna().tolist() == [value for value in LARGE if value is not None]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"y": {1.0, 2.0}}, "makes no table"),
        ({"y": [1.0], "t": np.ones((1, 2))}, "makes no table"),
        ({"y": torch.empty(2, device="meta")}, "column 'y' makes no array"),
    ],
)
def test_a_mapping_of_anything_else_than_columns_is_refused(columns: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_table(columns)


def test_tensors_with_gradients_are_columns() -> None:
    assert read_table({"y": torch.tensor([1.0, 2.0], requires_grad=True)})["y"].tolist() == [1.0, 2.0]


def test_what_the_caller_changes_afterwards_is_seen_for_arrays_are_kept_as_given() -> None:
    treatment = np.array([1.0, 2.0])
    data = IVData(treatment=treatment)
    treatment[0] = 7.0
    assert data.treatment[0, 0] == 7.0


@pytest.mark.contract
def test_labels_of_groups_may_be_of_several_kinds() -> None:
    kinds = pd.DataFrame({"firm": ["b", "a", "b"], "year": [2001, 2001, 2002]})
    data = IVData(treatment=[1.0, 2.0, 3.0], clusters=kinds, fixed_effects=kinds.to_numpy())
    assert data.clusters.tolist() == data.fixed_effects.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert IVData(treatment=[1.0, 2.0], clusters=[["b"], ["a"]], fixed_effects=["b", "a"]).clusters.tolist() == [0, 1]
    assert data.with_positive_weight().names == data.names
    with pytest.raises(DataError, match="two kinds at most, got 3"):
        IVData(treatment=[1.0, 2.0], clusters=[[1, 2, 3], [1, 2, 3]])
    for role in ("clusters", "fixed_effects"):
        for bad in (np.zeros((2, 0)), np.zeros((2, 1, 1)), [[1], [1, 2]], 5):
            with pytest.raises(DataError, match=role):
                IVData(treatment=[1.0, 2.0], **{role: bad})
        with pytest.raises(DataError, match="1 rows without"):
            IVData(treatment=[1.0, 2.0], **{role: [None, "a"]})
