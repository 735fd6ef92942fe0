"""Roles by formula and by name, and the encoding that new rows go through."""

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

from cfiv.data import IVData, read_table
from cfiv.errors import CfivError, DataError, FormulaError, MissingRowsWarning, ParameterError
from cfiv.tables.encoding import fit_encoder
from cfiv.tables.roles import Roles
from cfiv.tables.table_encoder import TableEncoder

#: Sums of a few products in another order.
ROUNDING = 1e-14


def table(n: int = 40, seed: int = 0) -> pd.DataFrame:
    """Numbers, a positive number, text, a flag and a column whose name needs quotes."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.normal(size=(n, 5)), columns=["y", "t", "z", "x", "fuel price"])
    return frame.assign(positive=frame["x"].abs() + 0.1, region=generator.choice(list("abc"), n), flag=frame["z"] > 0)


def encoder(formula: str, frame: pd.DataFrame, **options: Any) -> TableEncoder:
    return fit_encoder(frame, Roles.from_formula(formula), **options)[0]


def covariates(term: str, frame: pd.DataFrame, new: pd.DataFrame) -> np.ndarray:
    """The columns that a covariate term makes of new rows, with the state it learned from ``frame``."""
    columns = encoder(f"y ~ {term} + [t ~ z]", frame).inputs(new)[1]
    assert columns is not None
    return columns


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(CfivError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# Roles


@pytest.mark.parametrize(
    ("formula", "outcome", "treatment", "instruments", "covariates", "intercept"),
    [
        ("y ~ [t ~ z]", "y", "t", "z", None, True),
        ("y ~ x + [t ~ z]", "y", "t", "z", "x", True),
        ("y ~ 1 + x + [t ~ z1 + z2]", "y", "t", "z1 + z2", "x", True),
        ("y ~ 0 + x + [t ~ z]", "y", "t", "z", "x", False),
        ("y ~ x - 1 + [t ~ z]", "y", "t", "z", "x", False),
        ("y ~ [t + s ~ z + w] + x", "y", "t + s", "z + w", "x", True),
        ("y ~ x + [t ~ z] + [s ~ w]", "y", "t + s", "z + w", "x", True),
        ("y ~ a*b + [t + t:a ~ z + z:a]", "y", "t + t:a", "z + z:a", "a + b + a:b", True),
        ("log(y) ~ C(r) + [poly(t, 2) ~ bs(z, df=4)]", "log(y)", "poly(t, 2)", "bs(z, df=4)", "C(r)", True),
        ("`my y` ~ `x:1` + log(`a b`) + [`t 1` ~ `z 1`]", "`my y`", "`t 1`", "`z 1`", "`x:1` + log(`a b`)", True),
        ("y ~ {x**2} + [t ~ {z / 2}]", "y", "t", "{z / 2}", "{x ** 2}", True),
    ],
)
def test_a_formula_gives_every_column_its_role(
    formula: str, outcome: str, treatment: str, instruments: str, covariates: str | None, intercept: bool
) -> None:
    assert Roles.from_formula(formula, weights="w") == Roles(outcome, treatment, instruments, covariates, "w", intercept)


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ x + t", ["names no instruments", "'y ~ x + t'", "write 'outcome ~ covariates + [treatment ~ instruments]'"]),
        ("y + v ~ [t ~ z]", ["must have one outcome", "got 2"]),
        ("y ~ x + [t ~ z + [s ~ w]]", ["brackets within brackets", "all treatments in one pair"]),
        ("~ x + [t ~ z]", ["needs an outcome and a '~'"]),
        ("", ["needs an outcome and a '~'"]),
        ("y ~ x + [t ~ z", ["cannot be read", "write 'outcome ~"]),
        ("y ~ [t ~ ]", ["cannot be read", "write 'outcome ~"]),
        ("y ~ [[t ~ z] ~ w]", ["brackets within brackets"]),
        ("y ~ x'", ["cannot be read", "write 'outcome ~"]),
        ("y ~ [1 ~ z]", ["need a treatment and an instrument"]),
        ("y ~ x * [t ~ z]", ["multiplies the brackets", "[price + price:time ~ fuel + fuel:time]"]),
        ("y ~ t_hat + [t ~ z]", ["the reserved name 't_hat'", "rename that column"]),
        (3, ["a formula is text", "got int"]),
    ],
)
def test_a_formula_that_cannot_be_read_is_refused_with_the_way_to_write_it(formula: Any, says: list[str]) -> None:
    message = refusal(Roles.from_formula, formula)
    assert [part for part in says if part not in message] == []


def test_names_make_the_roles_that_the_formula_makes() -> None:
    named = Roles.from_names(outcome="y", treatment="t", instruments=["z", "fuel price"], covariates=("x",))
    written = Roles.from_formula("y ~ x + [t ~ z + `fuel price`]")
    frame = table()
    for one, other in zip(
        vars(fit_encoder(frame, named)[1]).items(), vars(fit_encoder(frame, written)[1]).items(), strict=True
    ):
        assert one[0] == other[0]
        assert str(one[1]) == str(other[1])


@pytest.mark.parametrize(
    "names",
    [pd.Index(["z", "w"]), np.array(["z", "w"]), pd.Series(["z", "w"], index=[5, 5]), ("z", np.str_("w")),
     pl.Series(["z", "w"]), np.array(["z", "w"], dtype=object), pd.Series(["z", "w"], dtype="category")],
    ids=lambda names: type(names).__name__,
)  # fmt: skip
def test_names_are_taken_in_any_container_that_has_an_order(names: Any) -> None:
    roles = {"outcome": "y", "treatment": "t", "covariates": "x"}
    assert Roles.from_names(**roles, instruments=names) == Roles.from_names(**roles, instruments=["z", "w"])
    assert Roles.from_names(**{**roles, "outcome": names[:1]}, instruments="v").outcome == "`z`"
    assert Roles.from_names(**roles, instruments=np.array("z")).instruments == "`z`"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"treatment": None}, ["no treatment named", "treatment=[...]"]),
        ({"instruments": []}, ["no instruments named", "instruments=[...]"]),
        ({"outcome": None}, ["no outcome named", "outcome=..."]),
        ({"covariates": [1]}, ["covariates must be column names", "got [1]"]),
        ({"outcome": "a`b"}, ["outcome must be column names", "without backticks"]),
        ({"instruments": 3}, ["instruments must be column names", "got 3"]),
        ({"instruments": ["z", None]}, ["got ['z', None]"]),
        ({"instruments": [["z", "w"]]}, ["got [['z', 'w']]"]),
        ({"instruments": {"z": 1}}, ["must be column names (text without backticks, one or a list of them), got {'z': 1}"]),
        ({"instruments": {"z"}}, ["got {'z'}"]),
        ({"instruments": b"z"}, ["got b'z'"]),
        ({"instruments": np.array([1, 2])}, ["got array([1, 2])"]),
        ({"instruments": pd.DataFrame({"z": [1.0]})}, ["arrays of values go into IVData(instruments=...)"]),
        ({"instruments": pd.Series([0.5, 1.5])}, ["arrays of values go into IVData(instruments=...)"]),
        ({"instruments": (name for name in "zw")}, ["got <generator"]),
        ({"instruments": pd.Index([])}, ["no instruments named"]),
        ({"outcome": 0}, ["outcome must be column names", "got 0"]),
        ({"covariates": ""}, ["covariates must be column names", "got ''"]),
        ({"treatment": ["t", "s"], "covariates": ["s"]}, ["'s' is both treatment and covariate", "one of the two roles"]),
    ],
)
def test_names_that_are_missing_or_no_names_are_refused(changes: dict[str, Any], says: list[str]) -> None:
    message = refusal(Roles.from_names, **({"outcome": "y", "treatment": "t", "instruments": "z"} | changes))
    assert [part for part in says if part not in message] == []


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ y + [t ~ z]", ["column 'y' is both outcome and covariates"]),
        ("y ~ [y ~ z]", ["column 'y' is both outcome and treatment"]),
        ("log(t) ~ [t ~ z]", ["column 't' is both outcome and treatment"]),
        ("y ~ [t ~ t]", ["column 't' is both treatment and instrument", "must be another variable"]),
        ("y ~ [t ~ z + I(t**2)]", ["column 't' is both treatment and instrument"]),
        ("y ~ x + [t ~ x]", ["instruments 'x' is made of covariates only", "name instruments besides them"]),
        ("y ~ t + [t ~ z]", ["treatment 't' is made of covariates only", "name a treatment besides them"]),
        ("y ~ x + [t + x ~ z + flag]", ["'x' is both treatment and covariate", "give it one of the two roles"]),
        ("y ~ x:flag + [t + flag:x ~ z + flag]", ["'flag:x' is both treatment and covariate"]),
        ("1 ~ [t ~ z]", ["outcome '1' uses no column"]),
        ("C(region) ~ [t ~ z]", ["the outcome 'C(region)' must be one numeric column", "got 2"]),
    ],
)
def test_a_column_with_two_roles_that_exclude_each_other_is_refused(formula: str, says: list[str]) -> None:
    message = refusal(encoder, formula, table())
    assert [part for part in says if part not in message] == []


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ x + [prize ~ z]", ["column 'prize'", "does not have", "did you mean 'price'?"]),
        ("y ~ x + [price ~ quite_another]", ["column 'quite_another'", "the table has 'y', 'price', 'z', 'x'"]),
    ],
)
def test_an_unknown_column_is_refused_with_the_nearest_name_or_all_there_are(formula: str, says: list[str]) -> None:
    frame = table()[["y", "t", "z", "x"]].rename(columns={"t": "price"})
    message = refusal(encoder, formula, frame)
    assert [part for part in says if part not in message] == []


# What formulas may not do


CODE = "__import__('pathlib').Path('{place}').touch()"
#: The same without quotes, which alone give most attempts away.
UNQUOTED = "exec(bytes([{codes}]))"


@pytest.mark.parametrize(
    "term",
    [
        "{code}",
        "I(x if {code} else x)",
        "log(x, {code})",
        "{{({code} or np.log)(x)}}",
        'C("`", {code}, "`")',  # formulaic does not see backticks within quotes
        "log(x, '\\\"', '`', {code}, '`')",
        """poly(x, "'+str({code})))#")""",  # formulaic pastes a term into code between double quotes
        """poly(x, '''f'{{{code}}}'x''')""",  # pairs of quotes within triple ones
        """poly(x, \"\"\"a"+{code}+"a\"\"\")""",
        "log(`lambda`)",
        "log(``)",
        "`a`.__class__",
        "x.map(print)",
        "[c for c in x]",
        "{{(lambda: x)()}}",
        "np.load('x.npy')",
        "np.log.__globals__",
        "f'{{x}}'",
        "x[0]",
    ],
)
def test_a_term_runs_nothing_but_arithmetic_and_known_transforms(term: str, tmp_path: Any) -> None:
    place = tmp_path / "executed"
    code = CODE.format(place=place)
    for text in (term.format(code=code), term.format(code=UNQUOTED.format(codes=", ".join(map(str, code.encode()))))):
        attempt(text)
    assert not place.exists()


def attempt(text: str) -> None:
    assert refusal(lambda: encoder(f"y ~ {text} + [t ~ z]", table()))
    # The same text as a part of its own, as it would stand in a model file.
    assert refusal(fit_encoder, table(), Roles("y", "t", "z", text))


def test_a_function_outside_the_list_is_refused_with_the_list() -> None:
    message = refusal(encoder, "y ~ lag(x) + [t ~ z]", table())
    assert "may not call 'lag'" in message
    assert "compute that column first, or use one of C, I, bs" in message


@pytest.mark.parametrize(
    ("term", "besides"),
    [
        ("C(x // 4)", ""),
        ("C(-x)", ""),
        ("C(np.log(x))", ""),
        ("C(I(x // 4))", ""),
        ("C(x > 1)", ", or write I() for a column of 0 and 1"),
        ("C(`fuel price` > 1)", ", or write I() for a column of 0 and 1"),
    ],
)
def test_what_c_cannot_make_categories_of_is_refused_with_what_to_write(term: str, besides: str) -> None:
    said = refusal(encoder, f"y ~ {term} + [t ~ z]", table())
    assert said == f"C() takes a column as it is, got {term!r}: compute that column first{besides}"


def test_c_takes_what_can_be_asked_of_categories() -> None:
    frame = table()
    for term in ("C(region)", "C(I(region))", "C(region == 'a')", "C((region == 'a') | (region == 'b'))"):
        assert set(np.unique(covariates(term, frame, frame))) == {0.0, 1.0}


def test_braces_compute_and_are_not_read_as_a_formula() -> None:
    frame = table()
    np.testing.assert_array_equal(covariates("{x**2 + 1}", frame, frame)[:, 0], frame["x"] ** 2 + 1)


@pytest.mark.parametrize("term", ["I(`fuel price` * center(`fuel price`))", "center(`fuel price`) + fuel_price"])
def test_quoted_names_that_formulaic_would_confuse_are_refused(term: str) -> None:
    message = refusal(encoder, f"y ~ {term} + [t ~ z]", table().assign(fuel_price=1.0))
    assert "cannot be told apart" in message
    assert "rename" in message


# Transforms learn once


STATEFUL = [
    "center(x)",
    "center(`fuel price`)",
    "scale(x)",
    "poly(x, 3)",
    "bs(x, df=5)",
    "cr(x, df=4, constraints='center')",
    "cc(x, df=4, constraints='center')",
    "C(region)",
    "C(region):center(x)",
    "flag",
    "C(flag)",
]


@pytest.mark.law
@pytest.mark.parametrize("term", [*STATEFUL, "log(positive)", "np.clip(x, 0, 1)", "I(x > 0)", "I(x**2):flag"])
def test_a_row_is_encoded_the_same_alone_as_among_the_rows_of_training(term: str) -> None:
    frame = table()
    together = covariates(term, frame, frame)
    alone = [covariates(term, frame, frame[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(alone, together[:3], rtol=ROUNDING)


@pytest.mark.oracle
def test_transforms_are_what_their_names_say() -> None:
    frame = table()
    x = frame["x"].to_numpy()
    new = pd.DataFrame({"x": [2.0], "t": [0.0], "positive": [3.0]})
    expected = {
        "center(x)": 2.0 - x.mean(),
        "scale(x)": (2.0 - x.mean()) / x.std(ddof=1),
        "log(positive)": np.log(3.0),
        "log2(positive)": np.log2(3.0),
        "log10(positive)": np.log10(3.0),
        "exp(x)": np.exp(2.0),
        "exp2(x)": 4.0,
        "np.sqrt(positive)": np.sqrt(3.0),
        "I(x + positive)": 5.0,
    }
    assert {term: covariates(term, frame, new).item() for term in expected} == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("values", [[1, 0, 1], [1.0, 0.0, 1.0], [True, False, True]])
def test_a_category_is_known_by_its_value_whatever_the_type(values: list[Any]) -> None:
    frame = table()
    new = pd.DataFrame({"t": 0.0, "flag": values})
    np.testing.assert_array_equal(covariates("C(flag)", frame, new)[:, 0], [1.0, 0.0, 1.0])


@pytest.mark.law
@pytest.mark.parametrize("term", ["center(x)", "scale(x)", "poly(x, 2)", "bs(x, df=4)", "C(region)"])
def test_rows_with_gaps_are_dropped_jointly_before_a_transform_learns_from_them(term: str) -> None:
    whole = table()
    holed = whole.copy()
    # Each row misses another role; their values would shift every mean, and add a category.
    holed.loc[len(holed)] = {"y": np.nan, "t": 1.0, "z": 1.0, "x": 50.0, "region": "d", "flag": True}
    holed.loc[len(holed)] = {"y": 1.0, "t": 1.0, "z": np.nan, "x": -90.0, "region": "e", "flag": True}
    formula = f"y ~ {term} + [t ~ z]"
    with pytest.warns(MissingRowsWarning, match=r"dropped 2 of 42 rows with gaps \(y: 1, z: 1\)"):
        with_gaps, data = fit_encoder(holed, Roles.from_formula(formula))
    assert len(data) == len(whole)
    np.testing.assert_array_equal(with_gaps.inputs(whole)[1], encoder(formula, whole).inputs(whole)[1])


def test_gaps_in_columns_that_no_role_uses_drop_nothing() -> None:
    assert len(fit_encoder(table().assign(unused=np.nan), Roles.from_formula("y ~ x + [t ~ z]"))[1]) == 40


def test_gaps_in_the_weights_drop_their_rows() -> None:
    frame = table().assign(w=1.0)
    frame.loc[3, "w"] = np.nan
    with pytest.warns(MissingRowsWarning, match=r"dropped 1 of 40 rows with gaps \(w: 1\)"):
        data = fit_encoder(frame, Roles.from_formula("y ~ [t ~ z]", weights="w"))[1]
    assert len(data) == 39


@pytest.mark.parametrize(
    ("missing", "gaps", "says"),
    [
        ("raise", [3, 4], ["2 of 40 rows have gaps (x: 2)", "fill them, or use missing='drop'"]),
        ("drop", list(range(40)), ["all 40 rows have gaps (x: 40)", "nothing is left", "fill them or drop the column"]),
        ("ignore", [3], ["missing must be 'drop' or 'raise'", "got 'ignore'"]),
    ],
)
def test_gaps_are_refused_where_that_is_asked_for_or_nothing_is_left(missing: Any, gaps: list[int], says: list[str]) -> None:
    frame = table()
    frame.loc[gaps, "x"] = np.nan
    message = refusal(encoder, "y ~ x + [t ~ z]", frame, missing=missing)
    assert [part for part in says if part not in message] == []


# Values


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (["1.5"] * 39 + ["n/a"], ["column 'x' holds text ('n/a' in row 39)", "pandas.to_numeric", "C(x)"]),
        (["1.5"] * 40, ["column 'x' holds text ('1.5' in row 0)", "pandas.to_numeric"]),
        (pd.date_range("2020-01-01", periods=40), ["column 'x' holds dates", "convert it to a number"]),
        (np.ones(40) * 1j, ["column 'x' holds complex numbers", "take its real part or modulus"]),
        (pd.Series([1j] * 40, dtype=object), ["column 'x' holds complex numbers (1j in row 0)"]),
        (pd.Series([2, "1"] * 20, dtype=object), ["column 'x' holds text ('1' in row 1)"]),
        ([b"1.5"] * 40, ["column 'x' holds values of type bytes"]),
        ([[1.0]] * 40, ["column 'x' holds values of type list"]),
        ([datetime.time(1)] * 40, ["column 'x' holds values of type time"]),
        ([10**400] + [0] * 39, ["column 'x' is infinite in 1 of 40 rows (first: row 0)"]),
        ([0] * 39 + [Decimal("1e400")], ["column 'x' is infinite in 1 of 40 rows (first: row 39)"]),
        (np.array(["1e400"] + ["0"] * 39, dtype=np.longdouble), ["column 'x' is infinite in 1 of 40 rows (first: row 0)"]),
        (pd.Series([np.ma.masked] + [0.0] * 39, dtype=object), ["column 'x' is missing in 1 of 40 rows (first: row 0)"]),
        ([Decimal("sNaN")] * 40, ["'x' is a column that holds neither numbers nor text"]),
        ([np.inf] + [0.0] * 39, ["column 'x' is infinite in 1 of 40 rows (first: row 0)", "drop those rows"]),
    ],
)
@pytest.mark.parametrize("term", ["x", "center(x)"])
def test_a_numeric_term_refuses_a_column_of_anything_else(column: Any, says: list[str], term: str) -> None:
    message = refusal(encoder, f"y ~ {term} + [t ~ z]", table().assign(x=column))
    assert [part for part in says if part not in message] == []


MONTHS = pd.period_range("2020-01", periods=40, freq="M")
DAYS = MONTHS.to_timestamp()


def days_since_the_first(when: Any) -> Any:
    """What the messages say of dates, ``when = pandas.to_datetime(...)``."""
    return (when - when.min()) / pd.Timedelta(days=1)


@pytest.mark.parametrize(
    ("column", "remedy"),
    [
        (DAYS, pd.to_datetime),
        (DAYS.tz_localize("Asia/Tokyo"), pd.to_datetime),
        ([day.date() for day in DAYS], pd.to_datetime),
        (pd.Series(list(DAYS), dtype=object), pd.to_datetime),
        (pd.Series(DAYS, dtype=pd.ArrowDtype(pa.date32())), pd.to_datetime),
        (pd.Series(DAYS, dtype=pd.ArrowDtype(pa.timestamp("us"))), pd.to_datetime),
        (DAYS.strftime("%Y-%m-%d"), pd.to_datetime),
        (MONTHS, lambda column: pd.PeriodIndex(column).to_timestamp()),
        (pd.Series(list(MONTHS), dtype=object), lambda column: pd.PeriodIndex(column).to_timestamp()),
    ],
    ids=["datetime", "tokyo", "date", "Timestamp", "arrow date", "arrow timestamp", "text", "period", "Period"],
)
def test_dates_are_refused_with_a_remedy_that_works(column: Any, remedy: Any) -> None:
    frame = table().assign(x=column)
    message = refusal(encoder, "y ~ x + [t ~ z]", frame)
    assert "column 'x' holds dates" in message
    assert "(when - when.min()) / pandas.Timedelta(days=1) where when = pandas." in message
    mended = frame.assign(x=days_since_the_first(remedy(frame["x"])))
    expected = [float((day - DAYS[0]).days) for day in DAYS]
    assert covariates("x", mended, mended)[:, 0].tolist() == expected
    assert IVData(treatment=remedy_of_an_array(column, remedy)).treatment[:, 0].tolist() == expected


def remedy_of_an_array(column: Any, remedy: Any) -> Any:
    assert "treatment holds dates" in refusal(lambda: IVData(treatment=column))
    return days_since_the_first(remedy(column))


@pytest.mark.parametrize(
    "column",
    [
        DAYS - DAYS[0],
        [datetime.timedelta(int(days)) for days in (DAYS - DAYS[0]).days],
        pd.Series(DAYS - DAYS[0], dtype=pd.ArrowDtype(pa.duration("s"))),
    ],
    ids=["dtype", "objects", "arrow"],
)
def test_durations_are_refused_with_a_remedy_that_works(column: Any) -> None:
    frame = table().assign(x=column)
    message = refusal(encoder, "y ~ x + [t ~ z]", frame)
    assert "column 'x' holds durations" in message
    assert "pandas.to_timedelta(...) / pandas.Timedelta(days=1)" in message
    mended = frame.assign(x=pd.to_timedelta(frame["x"]) / pd.Timedelta(days=1))
    assert covariates("x", mended, mended)[:, 0].tolist() == [float((day - DAYS[0]).days) for day in DAYS]


@pytest.mark.parametrize("kind", [pl.Date, pl.Datetime, pl.Duration])
def test_dates_of_polars_are_refused_as_dates(kind: Any) -> None:
    frame = pl.DataFrame(table()[["y", "t", "z"]].to_dict("list")).with_columns(x=pl.int_range(40).cast(kind))
    assert f"column 'x' holds {'durations' if kind is pl.Duration else 'dates'}" in refusal(
        encoder, "y ~ x + [t ~ z]", read_table(frame)
    )


@pytest.mark.oracle
@pytest.mark.parametrize(
    "dtype",
    ["Int64", "Float64", "boolean", "Float32", "bool", "float16", "float32", "uint64", ">i4", ">f8", object, np.longdouble,
     pd.ArrowDtype(pa.int8()), pd.ArrowDtype(pa.bool_()), pd.SparseDtype("float64", 0.0), pd.SparseDtype("int64", 0)],
    ids=str,
)  # fmt: skip
def test_a_column_of_numbers_means_the_same_in_every_type(dtype: Any) -> None:
    frame = table().assign(x=np.arange(40) % 2)
    as_type = frame.assign(x=pd.Series(frame["x"].to_numpy(), dtype=dtype))
    np.testing.assert_array_equal(covariates("x", as_type, as_type)[:, 0], np.arange(40) % 2)


@pytest.mark.oracle
def test_decimals_and_fractions_are_the_nearest_floats() -> None:
    frame = table()
    for exact in (lambda value: Decimal(repr(value)), Fraction):
        np.testing.assert_array_equal(covariates("x", frame.assign(x=frame["x"].map(exact)), frame), frame[["x"]])


@pytest.mark.parametrize("levels", [[10, 20], ["no", "yes"], [True, False]])
def test_an_outcome_of_two_categories_is_no_number_whatever_its_values(levels: list[Any]) -> None:
    message = refusal(encoder, "y ~ [t ~ z]", table().assign(y=pd.Categorical(levels * 20)))
    assert "the outcome 'y' must be one numeric column, got the categories" in message
    assert ".astype(float)" in message


def test_weights_in_a_category_are_its_values_and_text_is_refused() -> None:
    weighted = Roles.from_formula("y ~ [t ~ z]", weights="w")
    data = fit_encoder(table().assign(w=pd.Categorical([10, 30] * 20)), weighted)[1]
    assert data.weights.tolist() == [10.0, 30.0] * 20
    assert "column 'w' holds text ('a' in row 0)" in refusal(
        fit_encoder, table().assign(w=pd.Categorical(["a", "b"] * 20)), weighted
    )


@pytest.mark.parametrize("levels", [[0.5, 2.0], [10, 20]])
def test_a_number_stays_a_number_in_new_rows_that_declare_categories(levels: list[float]) -> None:
    frame = table()
    new = pd.DataFrame({"t": 0.0, "x": pd.Categorical(levels)})
    assert covariates("x", frame, new)[:, 0].tolist() == levels


def test_categories_by_dtype_are_known_in_new_rows_of_text() -> None:
    frame = table()
    declared = frame.astype({"region": "category"})
    np.testing.assert_array_equal(covariates("region", declared, frame), covariates("C(region)", frame, frame))


def test_numbers_kept_as_objects_are_numbers() -> None:
    frame = table()
    as_objects = frame.assign(x=frame["x"].astype(object))
    np.testing.assert_array_equal(covariates("x", as_objects, frame), frame[["x"]])


def test_a_term_undefined_in_some_rows_is_refused_with_their_number() -> None:
    message = refusal(encoder, "y ~ log(x) + [t ~ z]", table().assign(x=[-1.0, 0.0] + [1.0, 2.0] * 19))
    assert "'log(x)' is infinite or undefined in 2 of 40 rows (first: row 0)" in message
    assert "drop those rows or choose another transform" in message


def test_a_term_that_cannot_be_evaluated_says_which() -> None:
    message = refusal(encoder, "y ~ bs(x, df=4, extrapolation='no') + [t ~ z]", table())
    assert "the term(s) \"bs(x, df=4, extrapolation='no')\" cannot be evaluated" in message


def test_a_single_category_is_refused() -> None:
    assert "column 'region' has the single category 'a'" in refusal(
        encoder, "y ~ C(region) + [t ~ z]", table().assign(region="a")
    )


def test_a_column_is_not_both_category_and_number() -> None:
    message = refusal(encoder, "y ~ C(x) + x + [t ~ z]", table().round())
    assert "column 'x' is both C(x) and a number" in message
    assert "copy it to a second column" in message


# New rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="t").rename(columns={"x": "xs"}), ["predictions need column 't'", "the table has"]),
        (lambda f: f.rename(columns={"region": "regions"}), ["need column 'region'", "did you mean 'regions'?"]),
        (lambda f: f.assign(region="d"), ["column 'region' has 1 category that training did not see ('d')", "'a', 'b', 'c'",
                                          "drop those rows or train with them"]),
        (lambda f: f.assign(x=f["x"].where(f["x"] < 0)), ["rows have gaps", "predictions need complete rows", "drop or fill"]),
        (lambda f: f.assign(x=np.inf), ["column 'x' is infinite in 40 of 40 rows"]),
        (lambda f: f.assign(x="a"), ["column 'x' holds text ('a' in row 0)"]),
    ],
)  # fmt: skip
def test_new_rows_that_cannot_be_encoded_are_refused(change: Any, says: list[str]) -> None:
    fitted = encoder("y ~ x + C(region) + [t ~ z]", table())
    message = refusal(fitted.inputs, change(table()))
    assert [part for part in says if part not in message] == []


def test_values_beyond_a_spline_are_refused_unless_the_formula_says_what_to_do_with_them() -> None:
    frame, beyond = table(), table().assign(x=100.0)
    message = refusal(encoder("y ~ bs(x, df=4) + [t ~ z]", frame).inputs, beyond)
    assert "got values beyond those of training" in message
    assert "bs(..., extrapolation='clip')" in message
    clipped = covariates("bs(x, df=4, extrapolation='clip')", frame, beyond)
    np.testing.assert_array_equal(clipped, covariates("bs(x, df=4)", frame, frame.assign(x=frame["x"].max())))


def test_predictions_need_neither_outcome_nor_instruments_nor_weights() -> None:
    fitted = fit_encoder(table().assign(w=1.0), Roles.from_formula("y ~ x + [t ~ z]", weights="w"))[0]
    assert fitted.roles.prediction_columns == ("t", "x")
    treatment, covariate = fitted.inputs(table()[["x", "t"]])
    np.testing.assert_array_equal(treatment, table()[["t"]])
    np.testing.assert_array_equal(covariate, table()[["x"]])


@pytest.mark.parametrize("n", [40, 4100])
def test_the_rows_kept_for_averages_are_at_most_2000_spread_over_the_table(n: int) -> None:
    frame = table(n).assign(x=np.arange(n))
    kept = encoder("y ~ x + [t ~ z]", frame).reference
    steps = np.diff(kept["x"])
    assert len(kept) <= 2000
    assert (steps == steps[0]).all()
    assert kept["x"].iloc[-1] > n - 1 - steps[0]


# Setting the treatment


@pytest.mark.parametrize("value", [1.5, [1.5], {"t": 1.5}, {"t": np.full(40, 1.5)}, np.float32(1.5)])
def test_the_treatment_is_set_by_number_sequence_or_mapping(value: object) -> None:
    frame = table()
    changed = frame.assign(**encoder("y ~ x + [t ~ z]", frame).treatment_values(value, rows=40))
    assert (changed["t"] == 1.5).all()
    assert changed.drop(columns="t").equals(frame.drop(columns="t"))


def test_one_value_a_row_is_set_by_position_not_by_index() -> None:
    frame = table()
    values = pd.Series(np.arange(40.0), index=np.arange(40)[::-1])
    changed = frame.assign(**encoder("y ~ x + [t ~ z]", frame).treatment_values({"t": values}, rows=40))
    assert changed["t"].tolist() == values.tolist()


def test_a_transformed_treatment_is_set_by_its_raw_column_and_covariates_stay() -> None:
    fitted = encoder("y ~ x + [t + t:x + I(t**2) ~ z + z:x + I(z**2)]", table())
    assert fitted.roles.treatment_columns == ("t",)
    made, _ = fitted.inputs(table().assign(**fitted.treatment_values(3.0, rows=40)))
    np.testing.assert_array_equal(made, np.column_stack([np.full(40, 3.0), np.full(40, 9.0), 3.0 * table()["x"]]))


@pytest.mark.parametrize("value", [1.0, [1.0], [1.0, 2.0, 3.0], {"t": 1.0}, {"t": 1.0, "s": 1.0, "x": 1.0}])
def test_every_treatment_must_be_given_a_value_and_nothing_else(value: object) -> None:
    frame = table().assign(s=table(seed=1)["t"])
    message = refusal(encoder("y ~ x + [t + s ~ z + flag]", frame).treatment_values, value, rows=40)
    assert "treatment values must cover 't', 's'" in message
    assert "give one number for each, or a mapping" in message


def test_one_value_a_row_must_be_as_many_as_the_rows() -> None:
    with pytest.raises(ParameterError, match=r"one for each of the 40 rows, got shape \(3,\)"):
        encoder("y ~ x + [t ~ z]", table()).treatment_values({"t": [1.0, 2.0, 3.0]}, rows=40)


def test_errors_of_formulas_and_data_are_also_value_errors() -> None:
    for kind in (FormulaError, DataError):
        assert issubclass(kind, ValueError)


@pytest.mark.parametrize("name", ["0", "1", "Intercept"])
def test_a_column_that_is_named_like_the_constant_is_refused(name: str) -> None:
    with pytest.raises(FormulaError, match=rf"covariates has a column named '{name}', which stands for the constant: rename"):
        Roles.from_names(outcome="y", treatment="t", instruments="z", covariates=[name])
    with pytest.raises(FormulaError, match="which stands for the constant: rename that column"):
        Roles.from_formula(f"y ~ `{name}` + [t ~ z]")
