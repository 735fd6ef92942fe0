"""Bad input: every kind that the issue names, each with a message of what is wrong, what was got, and what to do.

Roles, tables and columns are checked before any estimator sees them, so those cases run for every estimator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import cross_val_score

import cfiv
from cfiv import (
    DFIV,
    CfivError,
    DataError,
    FormulaError,
    IVData,
    LeastSquares,
    ParameterError,
    Training,
    TwoStageLeastSquares,
)
from cfiv.estimators.estimator import StructuralEstimator

FORMULA = "sales ~ time + [price ~ fuel]"
QUICK = {"steps": 3, "progress": False, "random_state": 0}

ESTIMATORS = [
    kind
    for kind in (getattr(cfiv, name) for name in cfiv.__all__)
    if isinstance(kind, type) and issubclass(kind, StructuralEstimator)
]
EVERY = pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)

Change = Callable[[pd.DataFrame], Any]


def table(n: int = 60) -> pd.DataFrame:
    fuel, time, u = np.random.default_rng(0).normal(size=(3, n))
    price = fuel + 0.5 * time + u
    return pd.DataFrame(
        {"sales": price + time + u, "price": price, "time": time, "fuel": fuel, "region": list("abc") * (n // 3)}
    )


def make(kind: type, formula: str | None = FORMULA, **arguments: Any) -> Any:
    parameters = inspect.signature(kind).parameters
    return kind(formula, **{**{name: value for name, value in QUICK.items() if name in parameters}, **arguments})


def refusal(error: type[CfivError], call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert isinstance(caught.value, CfivError)
    return str(caught.value)


def gaps(column: str, *rows: int) -> Change:
    return lambda frame: frame.assign(**{column: frame[column].where(~frame.index.isin(rows))})


def absent(message: str, says: list[str]) -> list[str]:
    return [part for part in says if part not in message]


# Columns and roles: for every estimator


COLUMNS = [
    pytest.param(
        "sales ~ time + [prize ~ fuel]",
        None,
        DataError,
        ["'prize'", "does not have", "did you mean 'price'?"],
        id="unknown column",
    ),
    pytest.param(
        "sales ~ time + [price ~ oil]",
        None,
        DataError,
        ["'oil'", "the table has 'sales', 'price', 'time', 'fuel'"],
        id="unknown column unlike any other",
    ),
    pytest.param(
        "sales ~ time + [price ~ price]",
        None,
        FormulaError,
        ["column 'price' is both treatment and instrument", "must be another variable"],
        id="treatment as instrument",
    ),
    pytest.param(
        "sales ~ time + price", None, FormulaError, ["names no instruments", "[treatment ~ instruments]"], id="no instruments"
    ),
    pytest.param(
        FORMULA,
        lambda f: f.assign(fuel=3.0),
        DataError,
        ["instruments 'fuel' is constant over 60 rows", "drop it or use data in which it varies"],
        id="constant instrument",
    ),
    pytest.param(
        FORMULA,
        lambda f: f.assign(price=3.0),
        DataError,
        ["treatment 'price' is constant over 60 rows", "drop it or use data in which it varies"],
        id="constant treatment",
    ),
    pytest.param(
        FORMULA, lambda f: f.assign(sales=3.0), DataError, ["outcome 'sales' is constant over 60 rows"], id="constant outcome"
    ),
    pytest.param(
        "sales ~ region + [price ~ fuel]",
        None,
        DataError,
        ["column 'region' holds text ('a' in row 0)", "pandas.to_numeric", "C(region)"],
        id="text",
    ),
    pytest.param(
        FORMULA,
        lambda f: f.assign(price=f["price"].map("{:.2f} EUR".format)),
        DataError,
        ["column 'price' holds text", "EUR' in row 0", "pandas.to_numeric"],
        id="numbers with units",
    ),
    pytest.param(
        FORMULA,
        lambda f: f.assign(price=f["price"].where(f.index != 7, -np.inf)),
        DataError,
        ["column 'price' is infinite in 1 of 60 rows (first: row 7)", "drop those rows"],
        id="infinity",
    ),
    pytest.param(
        "sales ~ log(time) + [price ~ fuel]",
        None,
        DataError,
        ["'log(time)' is infinite or undefined", "drop those rows or choose another transform"],
        id="undefined transform",
    ),
    pytest.param(FORMULA, lambda f: f[:0], DataError, ["the table has no rows", "give at least one"], id="empty table"),
    pytest.param(FORMULA, lambda f: f[:1], DataError, ["fitting needs at least 2 rows, got 1"], id="one row"),
    pytest.param(FORMULA, lambda f: f.to_numpy(), DataError, ["a table is needed", "got ndarray", "IVData("], id="no table"),
    pytest.param(
        FORMULA,
        lambda f: pd.concat([f, f[["time"]]], axis=1),
        DataError,
        ["column names must be unique", "got 'time'", "rename them"],
        id="duplicate column",
    ),
    pytest.param(
        FORMULA,
        lambda f: f.assign(fuel=np.nan),
        DataError,
        ["all 60 rows have gaps (fuel: 60)", "fill them or drop the column"],
        id="nothing but gaps",
    ),
    pytest.param(
        "sales ~ time + C(region) + [price ~ fuel]",
        lambda f: f.assign(region="a"),
        DataError,
        ["column 'region' has the single category 'a'", "drop it"],
        id="single category",
    ),
    pytest.param(None, None, FormulaError, ["does not know the roles", "give it a formula", "fit an IVData"], id="no roles"),
]


@EVERY
@pytest.mark.parametrize(("formula", "change", "error", "says"), COLUMNS)
def test_a_table_that_cannot_be_fitted_is_refused(
    kind: type, formula: str | None, change: Change | None, error: type[CfivError], says: list[str]
) -> None:
    frame = table() if change is None else change(table())
    assert absent(refusal(error, make(kind, formula).fit, frame), says) == []


@EVERY
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"formula": FORMULA, "outcome": "sales"}, ["either a formula or column names", FORMULA, "outcome"]),
        ({"outcome": "sales", "treatment": "price"}, ["no instruments named", "instruments=[...]"]),
        ({"outcome": "sales", "instruments": "fuel"}, ["no treatment named"]),
        ({"outcome": "sales", "treatment": "price", "instruments": "price"}, ["both treatment and instrument"]),
        ({"outcome": "sales", "treatment": "price", "instruments": "fuel", "covariates": "price"}, ["covariates only"]),
        ({"weights": "time"}, ["weights='time' names a column, but no other role is named", "IVData(weights=...)"]),
    ],
)
def test_roles_that_do_not_fit_together_are_refused(kind: type, arguments: dict[str, Any], says: list[str]) -> None:
    formula = arguments.get("formula")
    named = {name: value for name, value in arguments.items() if name != "formula"}
    assert absent(refusal(FormulaError, make(kind, formula, **named).fit, table()), says) == []


@EVERY
def test_rows_with_gaps_are_dropped_with_a_count_or_refused(kind: type) -> None:
    frame = gaps("fuel", 1, 2)(gaps("time", 2, 3, 4)(table()))
    with pytest.warns(cfiv.errors.MissingRowsWarning, match=r"dropped 4 of 60 rows with gaps \(fuel: 2, time: 3\)") as caught:
        model = make(kind).fit(frame)
    assert len(caught) == 1
    assert model.n_rows_ == 56
    message = refusal(DataError, make(kind, missing="raise").fit, frame)
    assert absent(message, ["4 of 60 rows have gaps (fuel: 2, time: 3)", "fill them, or use missing='drop'"]) == []
    message = refusal(ParameterError, make(kind, missing="ignore").fit, frame)
    assert absent(message, ["missing must be 'drop' or 'raise'", "got 'ignore'"]) == []


@EVERY
def test_targets_beside_the_data_are_refused_and_not_ignored(kind: type) -> None:
    frame = table()
    for call in (
        lambda: make(kind).fit(frame, frame["time"]),
        lambda: make(kind, None).fit(frame[["price"]].to_numpy(), frame["sales"]),
        lambda: make(kind).fit(frame).score(frame, frame["sales"]),
        lambda: cross_val_score(make(kind), frame, frame["sales"], error_score="raise"),
    ):
        says = ["the outcome is one of the roles of the data", "as y besides (Series)", "IVData(outcome=y, treatment=..."]
        assert absent(refusal(ParameterError, call), says) == []


@EVERY
@pytest.mark.parametrize("change", [lambda f: f, lambda f: f[["price"]].to_numpy()], ids=["table", "array"])
def test_without_roles_the_way_of_arrays_is_named_first(kind: type, change: Change) -> None:
    message = refusal(FormulaError, make(kind, None).fit, change(table()))
    assert 0 < message.index("IVData(outcome=..., treatment=..., instruments=...)") < message.index("a formula")


@EVERY
@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (np.zeros(60), ["weights are all zero", "give at least one row a weight > 0"]),
        (np.linspace(-1, 1, 60), ["weights must be >= 0", "got a smallest of -1"]),
        ([np.inf] + [1.0] * 59, ["column 'w' is infinite in 1 of 60 rows"]),
        (["heavy"] * 60, ["column 'w' holds text ('heavy' in row 0)"]),
    ],
    ids=["zero", "negative", "infinite", "text"],
)
def test_weights_that_are_none_are_refused(kind: type, weights: Any, says: list[str]) -> None:
    assert absent(refusal(DataError, make(kind, weights="w").fit, table().assign(w=weights)), says) == []


@EVERY
def test_weights_of_an_ivdata_are_not_silently_ignored(kind: type) -> None:
    frame = table()
    data = IVData(treatment=frame["price"], weights=frame["fuel"].abs(), frame=frame)
    message = refusal(DataError, make(kind).fit, data)
    assert absent(message, ["the IVData has weights", "give weights='column', or leave the roles out"]) == []


# Asking: for every estimator


ASKING = [
    pytest.param(
        lambda m, f: m.predict(f.drop(columns="time").rename(columns={"region": "times"})),
        DataError,
        ["predictions need column 'time'", "did you mean 'times'?"],
        id="missing column",
    ),
    pytest.param(
        lambda m, f: m.predict(f.assign(region="d")),
        DataError,
        [
            "'region' has 1 category that training did not see ('d')",
            "known are 'a', 'b', 'c'",
            "drop those rows or train with them",
        ],
        id="unseen category",
    ),
    pytest.param(
        lambda m, f: m.predict(gaps("time", 5)(f)),
        DataError,
        ["1 of 60 rows have gaps", "first: row 5", "drop or fill them"],
        id="gaps",
    ),
    pytest.param(
        lambda m, f: m.predict(f.assign(price=np.inf)), DataError, ["'price' is infinite in 60 of 60 rows"], id="infinity"
    ),
    pytest.param(
        lambda m, f: m.predict(f.assign(price="dear")), DataError, ["column 'price' holds text ('dear' in row 0)"], id="text"
    ),
    pytest.param(lambda m, f: m.predict(f[:0]), DataError, ["the table has no rows"], id="no rows"),
    pytest.param(lambda m, f: m.predict(f.to_numpy()), DataError, ["a table is needed", "got ndarray"], id="array"),
    pytest.param(
        lambda m, f: m.predict(treatment=f["price"]), DataError, ["names columns", "give it a table"], id="array by role"
    ),
    pytest.param(
        lambda m, f: m.predict(f, treatment=f["price"]),
        ParameterError,
        ["either rows, or treatment and covariates", "got both"],
        id="table and array",
    ),
    pytest.param(
        lambda m, f: m.effect(f, treatment_from=1.0, treatment_to=[1.0, 2.0]),
        ParameterError,
        ["must cover 'price'", "got [1.0, 2.0]", "give one number for each"],
        id="effect of two numbers",
    ),
    pytest.param(
        lambda m, f: m.effect(f, treatment_from=1.0, treatment_to={"prices": 1.0}),
        ParameterError,
        ["must cover 'price'", "got {'prices': 1.0}"],
        id="effect of another column",
    ),
    pytest.param(
        lambda m, f: m.effect(f, treatment_from={"price": [1.0, 2.0]}, treatment_to=0.0),
        ParameterError,
        ["one for each of the 60 rows", "got shape (2,)"],
        id="effect of too few rows",
    ),
    pytest.param(
        lambda m, f: m.effect(f, treatment_from=0.0, treatment_to=np.nan),
        DataError,
        ["treatment_to has gaps", "got nan"],
        id="effect of nan",
    ),
    pytest.param(
        lambda m, f: m.dose_response([[1.0, 2.0]]),
        ParameterError,
        ["a value for each of ['price']", "got an array of shape (1, 2)"],
        id="grid too wide",
    ),
    pytest.param(
        lambda m, f: m.dose_response({"prices": [1.0]}),
        ParameterError,
        ["the columns ['price']", "got ['prices'] with 1 rows"],
        id="grid of another column",
    ),
    pytest.param(lambda m, f: m.dose_response([]), ParameterError, ["the grid must have rows"], id="empty grid"),
    pytest.param(lambda m, f: m.dose_response([np.inf]), DataError, ["'price' is infinite"], id="grid of infinity"),
    pytest.param(lambda m, f: m.score(f.drop(columns="fuel")), DataError, ["held-out criteria need column 'fuel'"], id="score"),
    pytest.param(
        lambda m, f: cfiv.compare({}),
        ParameterError,
        ["models must be a mapping from names", "compare({'2SLS': model})", "got {}"],
        id="compare nothing",
    ),
    pytest.param(
        lambda m, f: cfiv.compare([m, m]),
        ParameterError,
        ["models must be a mapping from names", "compare({'2SLS': model})", "got list"],
        id="compare a list",
    ),
    pytest.param(
        lambda m, f: cfiv.compare({"a": m}, truth=3),
        ParameterError,
        ["truth must have a method error", "got 3"],
        id="compare bad truth",
    ),
    pytest.param(
        lambda m, f: cfiv.compare({"a": m.structural_function_}),
        ParameterError,
        ["'a' must be a fitted cfiv estimator", "got StructuralFunction"],
        id="compare no estimator",
    ),
]


@functools.cache
def asked(kind: type) -> Any:
    """A fitted model to ask things of that it refuses."""
    return make(kind, "sales ~ time + C(region) + [price ~ fuel]").fit(table())


@EVERY
@pytest.mark.parametrize(("ask", "error", "says"), ASKING)
def test_a_question_that_makes_no_sense_is_refused(
    kind: type, ask: Callable[[Any, pd.DataFrame], Any], error: type[CfivError], says: list[str]
) -> None:
    assert absent(refusal(error, ask, asked(kind), table()), says) == []


ASKING_OF_ARRAYS = [
    pytest.param(
        lambda m, d: m.predict(treatment=np.ones((3, 3)), covariates=np.ones(3)),
        DataError,
        ["each treatment must have shape (2,)", "got (3,)"],
        id="treatment",
    ),
    pytest.param(
        lambda m, d: m.predict(treatment=d.treatment), DataError, ["training had 1 covariate columns, got 0"], id="covariates"
    ),
    pytest.param(
        lambda m, d: m.predict(table()),
        DataError,
        ["fitted to arrays, got DataFrame", "predict(treatment=..., covariates=...)"],
        id="table",
    ),
    pytest.param(lambda m, d: m.predict(treatment=[[np.nan, 1.0]], covariates=[1.0]), DataError, ["must be finite"], id="nan"),
    pytest.param(lambda m, d: m.score(table()), DataError, ["fitted to arrays", "got DataFrame"], id="score of a table"),
    pytest.param(
        lambda m, d: m.score(IVData(treatment=d.treatment, covariates=d.covariates)),
        DataError,
        ["scoring needs outcome, got none"],
        id="score without outcome",
    ),
    pytest.param(
        lambda m, d: m.score(
            IVData(outcome=d.outcome, treatment=d.treatment, instruments=d.treatment[:, :1], covariates=d.covariates)
        ),
        DataError,
        ["training had 2 instrument columns, got 1"],
        id="score with fewer instruments",
    ),
    pytest.param(
        lambda m, d: m.effect(d, treatment_from=1.0, treatment_to=[1.0, 2.0]),
        ParameterError,
        ["a treatment must have shape (2,)", "got one of shape ()"],
        id="effect of a number",
    ),
    pytest.param(
        lambda m, d: m.effect(table(), treatment_from=[1.0, 2.0], treatment_to=[1.0, 2.0]),
        DataError,
        ["fitted to arrays", "got DataFrame"],
        id="effect at a table",
    ),
    pytest.param(
        lambda m, d: m.dose_response([1.0, 2.0]),
        ParameterError,
        ["the grid must hold treatments of shape (2,)", "got an array of shape (2,)"],
        id="flat grid",
    ),
    pytest.param(
        lambda m, d: m.dose_response([[1.0, 2.0]], table()),
        DataError,
        ["fitted to arrays, got DataFrame"],
        id="grid at a table",
    ),
    pytest.param(lambda m, d: m.dose_response([[np.inf, 2.0]]), DataError, ["the grid must be finite"], id="grid of infinity"),
]


def arrays() -> IVData:
    fuel, oil, time, u = np.random.default_rng(0).normal(size=(4, 60))
    treatment = np.column_stack([fuel + u, oil - u])
    return IVData(
        outcome=treatment.sum(axis=1) + u, treatment=treatment, instruments=np.column_stack([fuel, oil]), covariates=time
    )


@functools.cache
def asked_of_arrays(kind: type) -> Any:
    """As :func:`asked`."""
    return make(kind, None).fit(arrays())


@EVERY
@pytest.mark.parametrize(("ask", "error", "says"), ASKING_OF_ARRAYS)
def test_a_question_of_another_shape_than_the_arrays_of_training_is_refused(
    kind: type, ask: Callable[[Any, IVData], Any], error: type[CfivError], says: list[str]
) -> None:
    assert absent(refusal(error, ask, asked_of_arrays(kind), arrays()), says) == []


# Two-stage least squares


@pytest.mark.parametrize(
    ("formula", "change", "says"),
    [
        (
            "sales ~ time + [price + I(price**2) ~ fuel]",
            None,
            [
                "at least as many instruments as treatments",
                "got 1 ('fuel') for 2 ('price', 'I(price ** 2)')",
                "add instruments",
            ],
        ),
        (
            "sales ~ time + I(2*time) + [price ~ fuel]",
            None,
            ["'I(2 * time)' is a linear combination of 'time'", "drop one of them"],
        ),
        ("sales ~ time + [price ~ fuel]", lambda f: f[:3], ["needs more rows than its 3 coefficients", "got 3"]),
    ],
    ids=["fewer instruments than treatments", "collinear columns", "more coefficients than rows"],
)
def test_two_stage_least_squares_refuses_what_is_not_identified(formula: str, change: Change | None, says: list[str]) -> None:
    frame = table() if change is None else change(table())
    assert absent(refusal(DataError, TwoStageLeastSquares(formula).fit, frame), says) == []


LINEAR = pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)


@LINEAR
def test_linear_estimators_refuse_images(kind: type) -> None:
    frame = table()
    images = IVData(
        outcome=frame["sales"], treatment=np.random.default_rng(0).normal(size=(60, 4, 4)), instruments=frame["fuel"]
    )
    assert absent(refusal(DataError, kind().fit, images), ["got arrays of shape (4, 4)", "flatten them"]) == []


@LINEAR
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"covariance": "HC3"}, ParameterError, ["covariance must be one of 'robust', 'unadjusted'", "got 'HC3'"]),
        ({"kernel": "gauss"}, ParameterError, ["kernel must be one of 'bartlett'", "got 'gauss'"]),
        ({"debiased": 1.0}, ParameterError, ["debiased must be 'fixest' or 'stata', True, False or None", "got 1.0"]),
        ({"bandwidth": -1, "covariance": "kernel"}, ParameterError, ["whole number >= 0, in lags, or None", "got -1"]),
        ({"bandwidth": 60, "covariance": "kernel"}, ParameterError, ["less than the 60 rows", "got 60"]),
        ({"kernel": "qs"}, ParameterError, ["kernel='qs' is for covariance='kernel'", "got covariance='robust'"]),
        ({"bandwidth": 2}, ParameterError, ["bandwidth=2 is for covariance='kernel'", "got covariance='robust'"]),
        ({"covariance": "clustered"}, ParameterError, ["needs groups of rows", "give clusters='column'"]),
        ({"clusters": "time"}, ParameterError, ["covariance='robust' does not use them", "set covariance='clustered'"]),
        ({"clusters": ["time", "one"], "covariance": "clustered"}, DataError, ["at least 2 clusters", "got 1"]),
        ({"clusters": ["time", "one", "fuel"], "covariance": "clustered"}, FormulaError, ["a column, or two", "'fuel'"]),
        ({"clusters": ["time", "time"], "covariance": "clustered"}, FormulaError, ["two of them", "['time', 'time']"]),
        ({"weights": ["one"]}, FormulaError, ["weights must be the name of one column", "got ['one']"]),
        ({"clusters": "one", "covariance": "clustered"}, DataError, ["at least 2 clusters", "got 1"]),
        ({"clusters": "tiem", "covariance": "clustered"}, DataError, ["need column 'tiem'", "did you mean 'time'?"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_linear_estimators_refuse_covariances_that_make_no_sense(
    kind: type, arguments: dict[str, Any], error: type[CfivError], says: list[str]
) -> None:
    assert absent(refusal(error, kind(FORMULA, **arguments).fit, table().assign(one=1.0)), says) == []


def test_clusters_of_arrays_are_labels_of_every_row() -> None:
    frame = table()
    roles = {"outcome": frame["sales"], "treatment": frame["price"], "instruments": frame["fuel"]}
    assert IVData(**roles, clusters=["b", "a"] * 30).clusters.tolist() == [0, 1] * 30
    assert absent(refusal(DataError, IVData, **roles, clusters=[None, "a"] * 30), ["every row", "got 30 rows"]) == []
    assert absent(refusal(DataError, IVData, **roles, clusters=np.ones((60, 3))), ["two kinds at most", "got 3"]) == []
    clustered = IVData(**roles, clusters=frame["time"], frame=frame)
    message = refusal(DataError, TwoStageLeastSquares("sales ~ [price ~ fuel]", covariance="clustered").fit, clustered)
    assert absent(message, ["the IVData has clusters", "give clusters='column'"]) == []
    message = refusal(FormulaError, TwoStageLeastSquares(clusters="time", covariance="clustered").fit, clustered)
    assert absent(message, ["clusters='time' names a column", "IVData(clusters=...)"]) == []


# DFIV


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "much", None, True])
@pytest.mark.parametrize("name", ["lambda1", "lambda2", "lambda12", "ridge1", "ridge2"])
def test_a_penalty_must_be_finite_and_not_negative(name: str, value: Any) -> None:
    assert refusal(ParameterError, make(DFIV, **{name: value}).fit, table()) == f"{name} must be finite and >= 0, got {value!r}"


PARAMETERS = [
    ({"batch_size": 0}, ["batch_size must be a whole number >= 1, 'auto', or None for full batches", "got 0"]),
    ({"batch_size": -5}, ["batch_size must be a whole number >= 1", "got -5"]),
    ({"batch_size": 2.5}, ["batch_size must be a whole number >= 1", "got 2.5"]),
    ({"batch_size": "all"}, ["batch_size must be a whole number >= 1", "got 'all'"]),
    ({"batch_size": 64}, ["batch_size=64 exceeds the 24 rows of the smallest sample", "use at most 24, 'auto', or None"]),
    ({"steps": -1}, ["steps must be a whole number >= 0", "got -1"]),
    ({"steps": 1.5}, ["steps must be a whole number >= 0", "got 1.5"]),
    ({"fits": 0}, ["fits must be a whole number >= 1", "got 0"]),
    ({"learning_rate": 0.0}, ["learning_rate must be", "> 0", "got 0.0"]),
    ({"learning_rate": np.nan}, ["learning_rate must be", "got nan"]),
    ({"learning_rate": "fast"}, ["learning_rate must be", "got 'fast'"]),
    ({"weight_decay": -0.1}, ["weight_decay must be one number or three", "got -0.1"]),
    ({"weight_decay": (0.1, 0.2)}, ["weight_decay must be one number or three", "got (0.1, 0.2)"]),
    ({"weight_decay": None}, ["weight_decay must be one number or three", "got None"]),
    ({"structure": "sum"}, ["structure must be 'product' or 'additive'", "got 'sum'"]),
    ({"report": "best"}, ["report must be 'refit' or 'current'", "got 'best'"]),
    ({"training": {"split": 0.5}}, ["training must be a cfiv.Training or None", "got dict"]),
    ({"device": "tpu0"}, ["device 'tpu0' cannot be used here", "use 'auto' or 'cpu'"]),
    ({"device": "meta"}, ["device 'meta' cannot be used here", "use 'auto' or 'cpu'"]),
    ({"random_state": -1}, ["random_state must be a whole number >= 0, a numpy Generator or None", "got -1"]),
    ({"random_state": "seed"}, ["random_state must be", "got 'seed'"]),
    ({"random_state": np.random.RandomState(0)}, ["random_state must be", "a numpy Generator", "got RandomState"]),
    ({"treatment_network": 32}, ["treatment_network must be None, a factory or a torch module", "got int"]),
    ({"covariate_network": lambda inputs: "net"}, ["covariate_network factory must return a torch module", "got str"]),
]


@pytest.mark.parametrize(("arguments", "says"), PARAMETERS, ids=lambda value: str(value)[:40])
def test_a_parameter_of_dfiv_out_of_range_is_refused(arguments: dict[str, Any], says: list[str]) -> None:
    assert absent(refusal(ParameterError, make(DFIV, **arguments).fit, table()), says) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stage1_steps": -1}, ["stage1_steps must be a whole number >= 0", "got -1"]),
        ({"checks": 0}, ["checks must be a whole number >= 1", "got 0"]),
        ({"order": "last"}, ["order must be 'solve-first' or 'backbone-first'", "got 'last'"]),
        ({"split": 1.0}, ["split must be > 0 and < 1, or None", "got 1.0"]),
        ({"holdout": 1.0}, ["holdout must be between 0 and 0.9", "got 1.0"]),
        ({"holdout": np.nan}, ["holdout must be between", "got nan"]),
        ({"refit_ridges": (-1.0,)}, ["refit_ridges must be finite and >= 0", "got (-1.0,)"]),
        ({"refit_ridges": ("a",)}, ["refit_ridges must be finite and >= 0", "got ('a',)"]),
        ({"tolerance": "1"}, ["tolerance must be >= 0", "got '1'"]),
        ({"split": "a"}, ["split must be > 0 and < 1", "got 'a'"]),
    ],
    ids=str,
)
def test_an_option_of_training_out_of_range_is_refused(options: dict[str, Any], says: list[str]) -> None:
    assert absent(refusal(ParameterError, Training, **options), says) == []


@pytest.mark.parametrize(("rows", "first", "second"), [(2, 1, 1), (3, 2, 1)])
def test_a_sample_of_one_row_is_refused(rows: int, first: int, second: int) -> None:
    message = refusal(DataError, make(DFIV).fit, table()[:rows])
    assert (
        absent(message, [f"splitting {rows} rows at 0.5 leaves {first} and {second}", "each sample needs at least 2 rows"])
        == []
    )


def test_the_smallest_table_that_can_be_split_is_fitted() -> None:
    assert np.isfinite(make(DFIV).fit(table()[:4]).predict(table())).all()


def test_numbers_of_numpy_are_numbers() -> None:
    given = {
        "lambda2": np.int64(1),
        "ridge1": np.float32(0.5),
        "steps": np.int64(3),
        "batch_size": np.int64(8),
        "random_state": np.uint8(0),
    }
    plain = {name: value.item() for name, value in given.items()}
    frame = table()
    same = [make(DFIV, **arguments, learning_rate=np.float32(0.25)).fit(frame).predict(frame) for arguments in (given, plain)]
    np.testing.assert_array_equal(*same)


@EVERY
def test_a_duplicate_index_is_no_matter(kind: type) -> None:
    frame = table()
    model = make(kind).fit(frame.set_index(pd.Index([1] * 60)))
    expected = make(kind).fit(frame)
    np.testing.assert_array_equal(model.predict(frame.set_index(pd.Index([2] * 60))), expected.predict(frame))
    shuffled = frame.set_index(pd.Index(np.arange(60)[::-1]))
    up = {"price": shuffled["price"] + 1}
    np.testing.assert_array_equal(
        model.effect(shuffled, treatment_from={"price": shuffled["price"]}, treatment_to=up),
        expected.predict(frame.assign(price=frame["price"] + 1)) - expected.predict(frame),
    )
