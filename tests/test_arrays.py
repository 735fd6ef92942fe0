"""Arrays of any library: the numbers and the labels in them, or a refusal that names row and remedy."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from cfiv import IVData
from cfiv.arrays import numeric_array
from cfiv.errors import DataError
from cfiv.labels import check_same_rows, label_codes

HUGE = 10**400
DAYS = pd.date_range("2020-01-31", periods=3, freq="MS")


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, 2, 3], dtype=">i4"),
        np.array([1, 2, 3], dtype=np.longdouble),
        np.array([1, 2, 3], dtype=np.float16),
        np.array([1.0, 2, True], dtype=object) + np.array([0, 0, 2]),
        [Decimal(1), Fraction(2), np.float32(3)],
        (1, 2, 3),
        range(1, 4),
        np.arange(3, 0, -1)[::-1],
        np.ma.array([1, 2, 3], mask=[0, 0, 0]),
        pd.array([1, 2, 3], dtype="Int64"),
        pd.Series([1, 2, 3], dtype=pd.ArrowDtype(pa.int8())),
        pd.Series([Decimal(1), Decimal(2), Decimal(3)], dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
        pd.arrays.SparseArray([1, 2, 3]),
        pl.Series([1, 2, 3]),
        pa.chunked_array([[1, 2], [3]]),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        torch.tensor([1, 2, 3], dtype=torch.bfloat16),
        torch.tensor([1, 2, 3]).to_sparse(),
        torch.tensor([1 - 9j, 2, 3]).conj().real,
        [torch.tensor(1.0, requires_grad=True), torch.tensor(2.0), 3.0],
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_numbers_of_any_array_are_what_they_are(value: Any) -> None:
    array = numeric_array("treatment", value)
    assert array.tolist() == [1, 2, 3]
    assert array.dtype.isnative
    assert array.dtype.itemsize <= 8


def test_a_quantised_tensor_is_read_as_the_numbers_it_stands_for() -> None:
    with pytest.warns(UserWarning, match="deprecated"):
        tensor = torch.quantize_per_tensor(torch.tensor([0.0, 0.5]), scale=0.25, zero_point=1, dtype=torch.quint8)
    assert numeric_array("treatment", tensor).tolist() == [0.0, 0.5]


def test_an_array_that_can_be_used_is_not_copied_and_truth_values_of_images_stay_small() -> None:
    images = np.zeros((2, 3, 3), dtype=np.uint8)
    assert np.shares_memory(numeric_array("treatment", images), images)
    assert numeric_array("treatment", images > 0).dtype == np.uint8


DATES = ["holds dates", "in row 0", "days", "pandas.to_datetime(...)"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array(["1", "1e400"], dtype=np.longdouble), ["must be finite, got 1 values", "the first is infinite in row 1"]),
        ([1, HUGE], ["the first is infinite in row 1"]),
        ([1, -HUGE], ["the first is infinite in row 1"]),
        ([Fraction(HUGE), 1], ["the first is infinite in row 0"]),
        ([Decimal("1e400"), 1], ["the first is infinite in row 0"]),
        (np.array([[0.0, 1.0], [2.0, np.nan]]), ["the first is missing in row 1"]),
        ([1.0, None], ["the first is missing in row 1"]),
        (pd.array([1, None], dtype="Int64"), ["the first is missing in row 1"]),
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [1.0, 2.0]}), ["the first is missing in row 1"]),
        (pl.Series([1, None]), ["the first is missing in row 1"]),
        ([Decimal("sNaN"), Decimal(1)], ["the first is missing in row 0"]),
        (np.ma.array([(1.0,)], mask=[(True,)], dtype=[("a", float)]), ["must have no masked values, got 1:"]),
        (np.ma.masked_equal([1.0, 2.0], 2.0), ["must have no masked values, got 1:", "the first is row 1"]),
        ([1.0, np.ma.masked], ["must have no masked values, got 1:", "the first is row 1"]),
        ([np.ma.masked_equal([1.0, 3.0], 2.0), np.ma.masked_equal([2.0, 2.0], 2.0)], ["no masked values, got 2:", "row 1"]),
        (DAYS, DATES),
        (DAYS.to_numpy(), DATES),
        (DAYS.tz_localize("UTC"), DATES),
        ([day.date() for day in DAYS], DATES),
        (pl.Series([day.date() for day in DAYS]), DATES),
        (pd.Series(DAYS, dtype=pd.ArrowDtype(pa.date32())), DATES),
        (pd.DataFrame({"a": [1.0] * 3, "b": DAYS}), DATES),
        (DAYS.to_period("M"), ["holds dates", "pandas.PeriodIndex(...).to_timestamp()"]),
        (DAYS - DAYS[0], ["holds durations", "pandas.to_timedelta(...) / pandas.Timedelta(days=1)"]),
        ([datetime.timedelta(1)], ["holds durations"]),
        (["2020-01-31", "2020-02-01"], ["holds dates as text ('2020-01-31' in row 0)"]),
        (["1", 2.5], ["holds text ('1' in row 0)"]),
        (np.array(["1.5", "x"], dtype=object), ["holds text ('x' in row 1)"]),
        (pd.Series(["1"], dtype="string"), ["holds text"]),
        ([b"1"], ["holds values of type bytes"]),
        ([1j], ["holds complex numbers", "real part"]),
        (torch.tensor([1j]), ["holds complex numbers"]),
        (np.array([1.0, 1j], dtype=object), ["holds complex numbers (1j in row 1)"]),
        (pd.Series([1, 2], dtype="category"), ["holds categories", ".astype(float)", "get_dummies"]),
        (pd.DataFrame({"a": pd.Series([1, 2], dtype="category")}), ["holds categories"]),
        (np.zeros(2, dtype=[("a", float)]), ["holds values of type tuple"]),
        ([[1.0], [1.0, 2.0]], ["makes no array (its rows differ in length)", "rows all of one shape"]),
        (torch.empty(2, device="meta"), ["makes no array", "meta"]),
        ({1.0, 2.0}, ["must be an array, got set"]),
        ({"a": 1.0}, ["must be an array, got dict"]),
        ((float(i) for i in range(2)), ["must be an array, got generator"]),
        ("12", ["must be an array, got str"]),
        (b"12", ["must be an array, got bytes"]),
        ([pd.Series({"a": 1, "b": 2}), pd.Series({"b": 2, "a": 1})], ["got Series with different labels"]),
        (len, ["must be an array, got builtin"]),
        (None, ["must be an array, got NoneType"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else type(value).__name__,
)  # fmt: skip
def test_what_is_no_real_number_is_refused_with_its_row(value: Any, says: list[str]) -> None:
    message = refusal(numeric_array, "treatment", value)
    assert message.startswith("treatment ")
    assert [part for part in says if part not in message] == []


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        ([2**63, -1, 2**63 + 1, 2**63], [0, 1, 2, 0]),  # numpy makes floats of these
        ([1, "1", 1.0], [0, 1, 0]),  # and text of these
        (np.array([2**60, 2**60 + 1], dtype=">i8"), [0, 1]),
        (pd.Series([2**60, 2**60 + 1], dtype="Int64"), [0, 1]),
        (np.array([1, 1 + np.finfo(np.longdouble).eps], dtype=np.longdouble), [0, 1]),
        (np.array([0.5, 0.5, 2.0], dtype=np.float16), [0, 0, 1]),
        (torch.tensor([7.0, 7.0, 8.0], requires_grad=True), [0, 0, 1]),
        ([torch.tensor(7), torch.tensor(7)], [0, 0]),
        (list(DAYS[[1, 0, 1]].date), [0, 1, 0]),
        (DAYS.to_period("M"), [0, 1, 2]),
        (pd.Series(["b", "a", "b"], dtype="category"), [0, 1, 0]),
        (np.array([["b"], ["a"]]), [0, 1]),
        (np.array([(1, 2.0), (1, 3.0), (1, 2.0)], dtype=[("a", int), ("b", float)]), [0, 1, 0]),
    ],
    ids=str,
)  # fmt: skip
def test_labels_are_equal_where_their_values_are_and_nowhere_else(labels: Any, codes: list[int]) -> None:
    assert label_codes("clusters", labels).tolist() == codes


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.ma.masked_equal([1, 2], 2), ["must have no masked values, got 1:"]),
        ([1, None], ["must label every row, got 1 rows without (first: row 1)"]),
        (pd.Series([pd.NaT, DAYS[0]]), ["first: row 0"]),
        ([[1], [1, 2]], ["makes no array"]),
        (pd.Series([[1], [2]]), ["labels that can be compared"]),
        (pd.Series([torch.tensor(1), torch.tensor(1)]), ["tensors one by one"]),
        (np.ones((2, 2)), ["one label a row", "(2, 2)"]),
        (7, ["one label a row"]),
        ({1, 2}, ["must be an array, got set"]),
    ],
)
def test_labels_that_leave_rows_without_or_cannot_be_compared_are_refused(labels: Any, says: list[str]) -> None:
    message = refusal(label_codes, "clusters", labels)
    assert [part for part in says if part not in message] == []


# Row labels


ROWS = pd.DataFrame({"y": [1.0, 2.0, 4.0], "t": [0.0, 1.0, 2.0], "z": [0.0, 0.0, 1.0]}, index=["a", "b", "c"])
SHUFFLED = ROWS.loc[["c", "a", "b"]]


@pytest.mark.parametrize("role", ["outcome", "instruments", "covariates", "weights", "clusters", "frame"])
def test_rows_whose_labels_differ_are_refused_in_every_role(role: str) -> None:
    value = SHUFFLED if role == "frame" else SHUFFLED["y"]
    message = refusal(lambda: IVData(**{"treatment": ROWS["t"], role: value}))
    assert f"{role} and " in message or f"treatment and {role}" in message
    assert "the same row labels in another order" in message
    assert ".loc or .reindex, or give .to_numpy()" in message


@pytest.mark.parametrize("other", [ROWS.index.str.upper(), [0, 1, 2], pd.MultiIndex.from_product([["a"], [1, 2, 3]])])
def test_labels_of_other_rows_are_refused(other: Any) -> None:
    message = refusal(check_same_rows, {"one": ROWS["t"], "another": ROWS["y"].set_axis(other)})
    assert message.startswith("another and one have different row labels (")


def test_the_remedies_in_the_message_work() -> None:
    by_label = IVData(outcome=SHUFFLED["y"].reindex(ROWS.index), treatment=ROWS["t"])
    assert by_label.outcome.tolist() == IVData(outcome=SHUFFLED["y"].loc[ROWS.index], treatment=ROWS["t"]).outcome.tolist()
    assert by_label.outcome.tolist() == [1.0, 2.0, 4.0]
    assert IVData(outcome=SHUFFLED["y"].to_numpy(), treatment=ROWS["t"]).outcome.tolist() == [4.0, 1.0, 2.0]


def test_equal_labels_and_arrays_without_any_go_together() -> None:
    data = IVData(
        outcome=SHUFFLED["y"],
        treatment=SHUFFLED[["t"]],
        instruments=SHUFFLED["z"].to_numpy(),
        weights=[1, 1, 1],
        frame=SHUFFLED,
    )
    assert data.outcome.tolist() == [4.0, 1.0, 2.0]
    repeated = ROWS.set_axis([1, 1, 1])
    assert len(IVData(outcome=repeated["y"], treatment=repeated["t"], clusters=pl.Series([1, 2, 3]))) == 3
