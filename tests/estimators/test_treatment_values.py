"""Treatments that one asks about, and the labels that come with them: heeded or refused, never dropped."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import cfiv
from cfiv import CfivError, DataError, IVData, LeastSquares, ParameterError, TwoStageLeastSquares
from cfiv.learning.run_file import without_addresses

HUGE = 10**400


def table(n: int = 30) -> pd.DataFrame:
    z, w, x, u = np.random.default_rng(0).normal(size=(4, n))
    frame = pd.DataFrame({"z": z, "w": w, "x": x, "t": z + u, "s": w - u}, index=np.arange(n) + 100)
    return frame.assign(y=2 * frame["t"] + 5 * frame["s"] + x + u)


FRAME = table()
SHUFFLED = FRAME[::-1]
BY_TABLE = TwoStageLeastSquares("y ~ x + [t + s ~ z + w]").fit(FRAME)
ONE = TwoStageLeastSquares("y ~ x + s + [t ~ z]").fit(FRAME)
ARRAYS = IVData(outcome=FRAME["y"], treatment=FRAME[["t", "s"]], instruments=FRAME[["z", "w"]], covariates=FRAME["x"])
BY_ARRAY = TwoStageLeastSquares().fit(ARRAYS)


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(CfivError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# Values


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "treatment_to has gaps, got nan"),
        (None, "treatment_to has gaps, got None"),
        (pd.NA, "treatment_to has gaps, got <NA>"),
        (pd.NaT, "treatment_to has gaps, got NaT"),
        ({"t": [1.0, None] * 15}, "treatment_to of 't' has gaps"),
        (np.ma.masked, "treatment_to must have no masked values, got 1"),
        (np.ma.array([1.0], mask=[True]), "treatment_to must have no masked values, got 1"),
        ([np.ma.masked], "treatment_to must have no masked values, got 1"),
        (np.inf, "column 't' is infinite in 30 of 30 rows"),
        (HUGE, "column 't' is infinite in 30 of 30 rows"),
        (np.longdouble("1e400"), "column 't' is infinite in 30 of 30 rows"),
        ("3", "column 't' holds text ('3' in row 0)"),
        (date(2020, 1, 1), "column 't' holds dates"),
        (np.datetime64("2020-01-01", "ns"), "column 't' holds dates"),
        ([np.datetime64("2020-01-01", "ns")], "column 't' holds dates"),
        (1j, "column 't' holds complex numbers"),
        ({1.0}, "treatment_to must be an array, got set"),
        ((value for value in [1.0]), "treatment_to must be an array, got generator"),
        (len, "treatment_to must be a value, or values in order, got <built-in function len>"),  # pandas would call it
        ({"t": len}, "treatment_to of 't' must be a value"),
        ({"t": {1.0}}, "treatment_to of 't' must be an array, got set"),
        ([], "treatment values must cover 't'"),
    ],
    ids=without_addresses,
)
def test_a_treatment_that_is_no_number_is_refused(value: Any, says: str) -> None:
    assert says in refusal(ONE.effect, FRAME, treatment_from=0.0, treatment_to=value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            [np.nan, 0.0],
            "treatment_to must be finite, got 1 values that are infinite or missing (the first is missing in row 0)",
        ),
        ([0.0, HUGE], "the first is infinite in row 1"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), "treatment_to must have no masked values, got 1"),
        (["3", "4"], "treatment_to holds text ('3' in row 0)"),
        ({"t": 1.0, "s": 2.0}, "treatment_to must be an array, got dict"),
        (3.0, "a treatment must have shape (2,)"),
        (None, "treatment_to must be an array, got NoneType"),
    ],
    ids=without_addresses,
)
def test_a_treatment_of_arrays_that_is_no_number_is_refused(value: Any, says: str) -> None:
    assert says in refusal(BY_ARRAY.effect, ARRAYS, treatment_from=[0.0, 0.0], treatment_to=value)


@pytest.mark.filterwarnings("ignore::cfiv.errors.UnsupportedTreatmentWarning")
@pytest.mark.parametrize(
    "value",
    [3, np.float16(3), Decimal(3), np.array(3.0), torch.tensor(3.0, requires_grad=True), [3.0], (3,), pd.Series([3.0]),
     pd.Series({"t": 3.0}), pl.Series([3.0]), {"t": np.full(30, 3)}, FRAME[["t"]].assign(t=3.0), {"t": FRAME["t"] * 0 + 3}],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_treatment_means_the_same_in_every_container(value: Any) -> None:
    expected = ONE.predict(FRAME.assign(t=3.0)) - ONE.predict(FRAME.assign(t=1.0))
    np.testing.assert_array_equal(ONE.effect(FRAME, treatment_from=1.0, treatment_to=value), expected)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ([0.0, np.nan], "the grid has gaps, got [0.0, nan]"),
        ({"t": [0.0, None]}, "the grid has gaps in 1 of 2 rows (first: row 1)"),
        (pd.array([1, None], dtype="Int64"), "the grid has gaps"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), "the grid must have no masked values, got 1"),
        ([1, HUGE], "column 't' is infinite"),
        (["1", "2"], "column 't' holds text ('1' in row 0)"),
        (pd.date_range("2020-01-01", periods=2), "column 't' holds dates"),
        ([[1.0], [1.0, 2.0]], "the grid makes no array"),
        ({1.0, 2.0}, "the grid must be an array, got set"),
        ((value for value in [1.0]), "the grid must be an array, got generator"),
        (1.0, "the grid must give a value for each of ['t']"),
        ("12", "the grid must give a value for each of ['t']"),
        (None, "the grid has gaps"),
        ([], "the grid must have rows"),
        ({"t": []}, "the table has no rows"),
    ],
    ids=without_addresses,
)
def test_a_grid_of_anything_but_numbers_is_refused(grid: Any, says: str) -> None:
    assert says in refusal(ONE.dose_response, grid)


@pytest.mark.parametrize("grid", [[1.0, 1.0, 0.0], pd.Series([1.0, 1.0, 0.0], index=list("aab")), {"t": [1, 1, 0]}], ids=str)
def test_a_grid_keeps_its_order_and_what_it_repeats(grid: Any) -> None:
    response = ONE.dose_response(grid)
    assert response["t"].tolist() == [1.0, 1.0, 0.0]
    assert response["estimate"].tolist() == [ONE.predict(FRAME.assign(t=t)).mean() for t in (1.0, 1.0, 0.0)]


# Labels of columns


def test_values_that_name_their_columns_go_by_name() -> None:
    expected = BY_TABLE.effect(FRAME, treatment_from=[0.0, 0.0], treatment_to=[1.0, 5.0])
    named = pd.Series({"s": 5.0, "t": 1.0})
    np.testing.assert_array_equal(BY_TABLE.effect(FRAME, treatment_from=[0.0, 0.0], treatment_to=named), expected)
    in_order = pd.Series([1.0, 5.0])
    np.testing.assert_array_equal(BY_TABLE.effect(FRAME, treatment_from=[0.0, 0.0], treatment_to=in_order), expected)
    assert "treatment values must cover 't', 's'" in refusal(
        BY_TABLE.effect, FRAME, treatment_from=[0.0, 0.0], treatment_to=named.rename({"s": "x"})
    )


def test_columns_in_another_order_than_in_training_are_refused(tmp_path: Path) -> None:
    BY_ARRAY.save(tmp_path / "model")
    swapped = FRAME[["s", "t"]]
    for model in (BY_ARRAY, cfiv.load(tmp_path / "model")):
        for ask in (
            lambda model: model.predict(treatment=swapped, covariates=FRAME["x"]),
            lambda model: model.predict(IVData(treatment=pl.DataFrame(swapped.to_dict("list")), covariates=FRAME["x"])),
            lambda model: model.dose_response(swapped),
        ):
            message = refusal(ask, model)
            assert "the columns of treatment are 's', 't', those of training were 't', 's'" in message
            assert ".to_numpy() to go by position" in message
        message = refusal(model.effect, ARRAYS, treatment_from=[0.0, 0.0], treatment_to=pd.Series({"s": 5.0, "t": 1.0}))
        assert "treatment_to has the labels 's', 't'" in message
        np.testing.assert_array_equal(
            model.predict(treatment=FRAME[["t", "s"]], covariates=FRAME["x"]),
            model.predict(treatment=FRAME[["t", "s"]].to_numpy(), covariates=FRAME["x"].to_numpy()),
        )
    held_out = IVData(outcome=FRAME["y"], treatment=FRAME[["t", "s"]], instruments=FRAME[["w", "z"]], covariates=FRAME["x"])
    assert "the columns of instruments are 'w', 'z'" in refusal(BY_ARRAY.score, held_out)


def test_covariates_in_another_order_are_refused_by_effect_too() -> None:
    data = IVData(outcome=FRAME["y"], treatment=FRAME["t"], instruments=FRAME["z"], covariates=FRAME[["x", "s"]])
    swapped = IVData(treatment=FRAME["t"], covariates=FRAME[["s", "x"]])
    model = TwoStageLeastSquares().fit(data)
    for ask in (
        lambda: model.effect(swapped, treatment_from=0.0, treatment_to=1.0),
        lambda: model.predict(swapped),
        lambda: model.dose_response([1.0], swapped),
    ):
        assert "the columns of covariates are 's', 'x'" in refusal(ask)


# Labels of rows


def test_rows_of_arrays_that_do_not_belong_together_are_refused_in_questions_too() -> None:
    assert "covariates and treatment have the same row labels in another order" in refusal(
        BY_ARRAY.predict, treatment=FRAME[["t", "s"]], covariates=SHUFFLED["x"]
    )
    message = refusal(ONE.effect, FRAME, treatment_from={"t": FRAME["t"]}, treatment_to={"t": SHUFFLED["t"]})
    assert "treatment_to of 't' and the rows have the same row labels in another order" in message
    message = refusal(ONE.effect, IVData(treatment=FRAME["t"], frame=FRAME), treatment_from=0.0, treatment_to=SHUFFLED[["t"]])
    assert "treatment_to of 't' and the rows" in message


def test_a_mapping_of_columns_whose_rows_differ_is_refused_and_else_the_table_that_it_is() -> None:
    columns = {name: FRAME[name] for name in "ytszwx"}
    for other in (SHUFFLED["y"], FRAME["y"].reset_index(drop=True)):
        message = refusal(BY_TABLE.fit, columns | {"y": other})
        assert "column 't' and column 'y' have" in message
    # Series beside lists and arrays, which go by position: pandas would give the lists labels of their own.
    mixed = columns | {"x": FRAME["x"].tolist(), "s": FRAME["s"].to_numpy()}
    np.testing.assert_array_equal(BY_TABLE.predict(mixed), BY_TABLE.predict(FRAME))


@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares])
def test_columns_given_where_names_belong_are_refused(kind: type) -> None:
    for role, names in (("weights", "one column"), ("clusters", "a column, or two of them")):
        model = kind("y ~ x + [t ~ z]", **{role: FRAME["x"].abs()})
        message = refusal(model.fit, FRAME)
        assert f"{role} must be the name of {names}" in message
        assert f"give IVData({role}=...) with arrays" in message
        assert f"{role} must be the name of {names}" in refusal(
            cfiv.diagnose, FRAME, kind("y ~ x + [t ~ z]", **{role: "x"}), **{role: FRAME["x"]}
        )


def test_errors_of_values_are_data_or_parameter_errors() -> None:
    for error, value in ((DataError, np.nan), (ParameterError, len)):
        with pytest.raises(error):
            ONE.effect(FRAME, treatment_from=0.0, treatment_to=value)


def test_one_treatment_may_have_a_value_for_each_row() -> None:
    z, u = np.random.default_rng(0).normal(size=(2, 40))
    frame = pd.DataFrame({"y": 2 * (z + u) + u, "t": z + u, "z": z})
    model = TwoStageLeastSquares("y ~ [t ~ z]").fit(frame)
    slope = model.coefficients_.loc["t"].iloc[0]
    for values in ([1.0, 2.0, 3.0], np.array([1.0, 2.0, 3.0]), pd.Series([1.0, 2.0, 3.0]), {"t": [1.0, 2.0, 3.0]}):
        effect = model.effect(frame[:3], treatment_from=0.0, treatment_to=values)
        np.testing.assert_allclose(effect, slope * np.array([1.0, 2.0, 3.0]), rtol=1e-9)
    with pytest.raises(ParameterError, match=r"as in \{'t': \.\.\.\}"):
        model.effect(frame[:3], treatment_from=0.0, treatment_to=[1.0, 2.0])


@pytest.mark.law
def test_a_series_of_one_treatment_a_row_goes_by_the_labels_of_the_rows() -> None:
    up = FRAME["t"].clip(-1, 1) + 0.1 * (FRAME["x"] > 0)
    expected = ONE.effect(FRAME, treatment_from={"t": FRAME["t"]}, treatment_to={"t": up})
    np.testing.assert_array_equal(ONE.effect(FRAME, treatment_from=FRAME["t"], treatment_to=up), expected)
    filtered = FRAME[FRAME["x"] > 0]
    np.testing.assert_array_equal(
        ONE.effect(filtered, treatment_from=filtered["t"], treatment_to=up[filtered.index]), expected[FRAME["x"] > 0]
    )
    one = FRAME[5:6]  # of one row too
    np.testing.assert_array_equal(ONE.effect(one, treatment_from=one["t"], treatment_to=up[one.index]), expected[5:6])
    numbered = FRAME.reset_index(drop=True)
    shuffled = numbered.sort_values("x")
    with pytest.raises(DataError, match="treatment_to and the rows have the same row labels in another order"):
        ONE.effect(shuffled, treatment_from=0.0, treatment_to=numbered["t"])
    by_position = numbered["t"].to_numpy()
    np.testing.assert_array_equal(
        ONE.effect(shuffled, treatment_from=0.0, treatment_to=by_position),
        ONE.effect(shuffled, treatment_from=0.0, treatment_to={"t": by_position}),
    )


@pytest.mark.law
def test_values_of_several_treatments_may_come_one_sequence_each() -> None:
    t, s = FRAME["t"] + 1, FRAME["s"] * 2
    expected = BY_TABLE.effect(FRAME, treatment_from=[0.0, 1.0], treatment_to={"t": t, "s": s})
    for pair in ([t, s], (t.to_numpy(), s.tolist()), np.stack([t, s]), [pl.Series(t.to_numpy()), s]):
        np.testing.assert_array_equal(BY_TABLE.effect(FRAME, treatment_from=[0.0, 1.0], treatment_to=pair), expected)
    with pytest.raises(DataError, match="treatment_to of 's' and the rows have the same row labels in another order"):
        BY_TABLE.effect(FRAME, treatment_from=[0.0, 1.0], treatment_to=[t, s[::-1]])
    holed = FRAME.assign(x=FRAME["x"].where(FRAME["x"] < 1))
    kept = holed["x"].notna()
    with pytest.warns(cfiv.errors.MissingRowsWarning):
        found = BY_TABLE.effect(holed, treatment_from=[t, 0.0], treatment_to=[t.tolist(), s], by=FRAME["z"] > 0)
    by_hand = BY_TABLE.effect(
        FRAME[kept], treatment_from=[t[kept], 0.0], treatment_to=[t[kept], s[kept]], by=FRAME["z"][kept] > 0
    )
    pd.testing.assert_frame_equal(found, by_hand)
