"""What every exported estimator must do. A new estimator in ``cfiv.__all__`` is tested here without further ado."""

from __future__ import annotations

import functools
import inspect
import json
import pickle
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score

import cfiv
from cfiv import IVData
from cfiv.estimators import registry
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.structural import FORMAT_VERSION

EXPORTED = [getattr(cfiv, name) for name in cfiv.__all__]
ESTIMATORS = [kind for kind in EXPORTED if isinstance(kind, type) and issubclass(kind, StructuralEstimator)]
REGISTERED = [registered.kind for registered in registry.estimators()]
#: Arguments that make a fit short and silent, for those estimators that take them.
QUICK = {"steps": 3, "progress": False, "random_state": 0}

#: Estimators whose features are learned in float32.
LEARNED = (cfiv.DFIV, cfiv.NetworkRegression, cfiv.DeepIV, cfiv.AGMM)

FORMULA = "y ~ x + [t ~ z]"
#: Terms that learn, categories, several treatments and several instruments.
RICH = "y ~ center(x) + C(region) + bs(q, df=4, extrapolation='clip') + [t + s + t:x ~ z + w + z:x]"

#: The same numbers added up in another order.
ROUNDING = 1e-12
#: Features in float32 of the same inputs in tables of other lengths: a matrix product treats its last rows by themselves.
SINGLE = 1e-6
#: The same fit after float32 training on columns that differ by rounding: a few steps, so differences cannot grow far.
TRAINED = 1e-3

pytestmark = [pytest.mark.contract, pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)]


def table(n: int = 120, seed: int = 0) -> pd.DataFrame:
    """Two confounded treatments ``t, s``, their instruments ``z, w``, covariates ``x, q, region`` and row weights ``n``."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.normal(size=(n, 6)), columns=["z", "w", "x", "u", "v", "noise"])
    frame["t"] = frame["z"] + 0.3 * frame["x"] + frame["u"]
    frame["s"] = frame["w"] + frame["v"]
    frame["y"] = 2 * frame["t"] - frame["s"] + frame["x"] + frame["u"] + frame["v"] + 0.1 * frame["noise"]
    frame["q"] = generator.uniform(0, 1, n)
    frame["n"] = generator.integers(1, 4, n).astype(float)
    return frame.drop(columns=["u", "v", "noise"]).assign(region=generator.choice(["a & b", "<c>", "d"], n))


def make(kind: type, formula: str | None = FORMULA, **arguments: Any) -> Any:
    parameters = inspect.signature(kind).parameters
    return kind(formula, **{**{name: value for name, value in QUICK.items() if name in parameters}, **arguments})


@functools.cache
def fitted(kind: type, formula: str = FORMULA) -> Any:
    """A fitted model to ask things of; tests that fit again make their own."""
    return make(kind, formula).fit(table())


def arrays(frame: pd.DataFrame) -> IVData:
    return IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], covariates=frame["x"])


def same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one, other)


def test_the_package_exports_it_with_the_shared_roles(kind: type) -> None:
    assert kind in REGISTERED
    assert set(REGISTERED) == set(ESTIMATORS)
    parameters = inspect.signature(kind).parameters
    roles = ["formula", "outcome", "treatment", "instruments", "covariates", "weights", "missing", "clusters"]
    assert list(parameters)[: len(roles)] == roles
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "formula")


# fit


def test_fit_returns_the_estimator_with_its_results(kind: type) -> None:
    model = make(kind)
    assert model.fit(table()) is model
    assert isinstance(model.structural_function_, cfiv.StructuralFunction)
    assert isinstance(model.history_, pd.DataFrame)
    assert model.n_rows_ == len(table())
    assert model.fit_seconds_ > 0


def global_state() -> list[Any]:
    return [
        pickle.dumps(np.random.get_state()),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        pickle.dumps(random.getstate()),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        np.geterr(),
        list(warnings.filters),
        dict(pd.options.mode.__dict__["d"]),
    ]


def test_fitting_saving_and_loading_change_no_argument_no_global_state_and_not_the_data(kind: type, tmp_path: Path) -> None:
    frame = table()
    model = make(kind, RICH)
    arguments, state = dict(model.get_params(deep=False)), global_state()
    model.fit(frame).score(frame)
    model.save(tmp_path / "model")
    cfiv.load(tmp_path / "model").predict(frame)
    assert global_state() == state
    assert all(model.get_params(deep=False)[name] is value for name, value in arguments.items())
    pd.testing.assert_frame_equal(frame, table())


def test_fitting_arrays_does_not_write_to_them(kind: type) -> None:
    given = {
        role: table()[column].to_numpy(copy=True)
        for role, column in zip(("outcome", "treatment", "instruments"), "ytz", strict=True)
    }
    for array in given.values():
        array.flags.writeable = False
    make(kind, None).fit(IVData(**given))


def test_the_same_seed_gives_the_same_bits_on_the_same_and_on_another_object(kind: type) -> None:
    frame = table()
    first = make(kind, RICH).fit(frame)
    expected = first.predict(frame)
    same(first.fit(frame).predict(frame), expected)
    same(make(kind, RICH).fit(frame).predict(frame), expected)


@pytest.mark.parametrize("missing", ["drop", "raise"])
def test_a_complete_table_gives_the_same_bits_whatever_missing_says(kind: type, missing: str) -> None:
    same(make(kind, missing=missing).fit(table()).predict(table()), fitted(kind).predict(table()))


# The structural function


def test_the_estimator_answers_with_its_structural_function(kind: type) -> None:
    model, frame = fitted(kind, RICH), table(30, seed=1)
    function = model.structural_function_
    same(model.predict(frame), function.predict(frame))
    change = {"treatment_from": [0.0, 1.0], "treatment_to": {"t": 2.0, "s": frame["s"]}}
    same(model.effect(frame, **change), function.effect(frame, **change))
    grid = {"t": [0.0, 1.0], "s": [1.0, 0.0]}
    pd.testing.assert_frame_equal(model.dose_response(grid), function.dose_response(grid))
    assert str(model.summary()) == str(function.summary())


def test_an_effect_is_a_difference_of_predictions_and_needs_no_treatment_column(kind: type) -> None:
    model, frame = fitted(kind, RICH), table(30, seed=1)
    effect = model.effect(frame.drop(columns=["t", "s"]), treatment_from=[0.5, -1.0], treatment_to={"s": 3.0, "t": 2.0})
    same(effect, model.predict(frame.assign(t=2.0, s=3.0)) - model.predict(frame.assign(t=0.5, s=-1.0)))


def test_an_effect_without_rows_is_at_those_of_the_dose_response(kind: type) -> None:
    named, by_array = fitted(kind), make(kind, None).fit(arrays(table()))
    for model in (named, named.structural_function_, by_array):
        start, end = model.dose_response([0.0, 1.0])["estimate"]
        effects = model.effect(treatment_from=0.0, treatment_to=1.0)
        assert effects.shape == (len(table()),)
        np.testing.assert_allclose(effects.mean(), end - start, rtol=ROUNDING, atol=1e-6 if kind in LEARNED else ROUNDING)
    by_x = named.effect(treatment_from=0.0, treatment_to=1.0, by=table()["x"] > 0)
    assert by_x["rows"].sum() == len(table())


def test_a_dose_response_is_an_average_of_predictions(kind: type) -> None:
    model, frame = fitted(kind), table(30, seed=1)
    grid = [-1.0, 0.0, 2.5]
    for rows, averaged in ((frame, frame), (None, table())):  # the rows of training by default
        response = model.dose_response(grid, rows)
        assert response["t"].tolist() == grid
        tolerance = SINGLE if kind in LEARNED else ROUNDING
        np.testing.assert_allclose(
            response["estimate"], [model.predict(averaged.assign(t=t)).mean() for t in grid], rtol=tolerance
        )


@pytest.mark.parametrize("container", [pd.DataFrame, pl.DataFrame, dict])
def test_a_grid_of_several_treatments_goes_by_name_in_any_container(kind: type, container: Any) -> None:
    model = fitted(kind, RICH)
    expected = model.dose_response([[0.0, 5.0], [1.0, 4.0]])["estimate"]
    same(model.dose_response(container({"s": [5.0, 4.0], "t": [0.0, 1.0]}))["estimate"], expected)


def test_a_row_gets_its_own_prediction_whatever_the_rows_around_it(kind: type) -> None:
    model, frame = fitted(kind, RICH), table()
    together = model.predict(frame)
    scale = np.abs(together).max()
    # Another number of rows may be multiplied in another order, in float32 where features are.
    np.testing.assert_allclose(model.predict(frame[::-1])[::-1], together, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(model.predict(frame[:1]), together[:1], rtol=0, atol=1e-5 * scale)


# Tables


@pytest.mark.parametrize(
    "disguise",
    [
        pytest.param(lambda f: f.to_dict("list"), id="dict of lists"),
        pytest.param(lambda f: dict(f.items()), id="dict of columns"),
        pytest.param(lambda f: pl.DataFrame(f.to_dict("list")), id="polars"),
        pytest.param(lambda f: pl.DataFrame(f.to_dict("list"), schema_overrides={"region": pl.Categorical}), id="category"),
        pytest.param(lambda f: pa.table(f.to_dict("list")), id="arrow"),
        pytest.param(lambda f: IVData(treatment=f["t"], frame=f), id="IVData"),
        pytest.param(lambda f: f[f.columns[::-1]], id="column order"),
        pytest.param(lambda f: f.assign(extra="text", other=np.nan), id="extra columns"),
        pytest.param(lambda f: f.set_index(pd.Index([3] * len(f))), id="duplicate index"),
        pytest.param(lambda f: f.astype({"region": "category"}), id="categories"),
        pytest.param(lambda f: f.convert_dtypes(), id="nullable dtypes"),
    ],
)  # fmt: skip
def test_the_numbers_of_a_table_matter_and_not_its_container(kind: type, disguise: Any) -> None:
    frame = table()
    model = make(kind, RICH).fit(disguise(frame))
    same(model.predict(disguise(frame)), fitted(kind, RICH).predict(frame))
    assert model.score(disguise(frame)) == fitted(kind, RICH).score(frame)


def test_categories_by_dtype_are_categories_by_formula(kind: type) -> None:
    frame = table()
    # With an order of levels and a level that no row has; then in the order that text has.
    declared = frame.assign(region=pd.Categorical(frame["region"], categories=["d", "none", "<c>", "a & b"]))
    by_order = frame.assign(region=pd.Categorical(frame["region"], categories=["<c>", "a & b", "d", "none"]))
    for levels, other in ((declared, declared), (by_order, frame)):
        by_dtype = make(kind, "y ~ x + region + [t ~ z]").fit(levels)
        same(by_dtype.predict(levels), make(kind, "y ~ x + C(region) + [t ~ z]").fit(other).predict(frame))


def test_roles_by_name_by_formula_and_by_array_give_the_same_numbers(kind: type) -> None:
    frame = table()
    expected = fitted(kind).predict(frame)
    named = make(kind, None, outcome="y", treatment="t", instruments=["z"], covariates=["x"]).fit(frame)
    same(named.predict(frame), expected)
    by_array = make(kind, None).fit(arrays(frame))
    same(by_array.predict(arrays(frame)), expected)
    same(by_array.predict(treatment=frame["t"], covariates=frame["x"]), expected)
    assert by_array.score(arrays(frame)) == fitted(kind).score(frame)
    same(
        by_array.effect(arrays(frame), treatment_from=0.0, treatment_to=1.0),
        named.effect(frame, treatment_from=0.0, treatment_to=1.0),
    )
    same(by_array.dose_response([0.0, 1.0])["estimate"], named.dose_response([0.0, 1.0])["estimate"])


@pytest.mark.parametrize("dtype", [np.uint8, np.longdouble, ">i2"])
def test_arrays_of_any_type_of_numbers_give_the_same_bits(kind: type, dtype: Any) -> None:
    whole = (table()[["y", "t", "z", "x"]] * 20 + 120).round().clip(0, 255)
    answers = []
    for given in (np.float64, dtype):
        columns = {name: whole[name].to_numpy().astype(given) for name in whole}
        model = make(kind, None).fit(
            IVData(outcome=columns["y"], treatment=columns["t"], instruments=columns["z"], covariates=columns["x"])
        )
        answers.append(model.predict(treatment=columns["t"], covariates=columns["x"]))
        answers[-1] = np.append(answers[-1], model.dose_response(columns["t"][:3])["estimate"])
    same(*answers)


def test_names_may_hold_any_character(kind: type) -> None:
    strange = {"y": "log(y) ~ x", "t": "price: £", "z": "my z", "x": "2nd"}
    model = make(kind, None, outcome=strange["y"], treatment=strange["t"], instruments=strange["z"], covariates=strange["x"])
    frame = table().rename(columns=strange)
    same(model.fit(frame).predict(frame), fitted(kind).predict(table()))


def test_equal_weights_are_no_weights(kind: type) -> None:
    frame = table().assign(n=2.0)
    expected = fitted(kind).predict(frame)
    np.testing.assert_allclose(make(kind, weights="n").fit(frame).predict(frame), expected, rtol=TRAINED, atol=TRAINED)


def test_weights_matter_and_have_a_place_in_an_ivdata_too(kind: type) -> None:
    frame = table()
    weighted = make(kind, weights="n").fit(frame).predict(frame)
    assert not np.allclose(weighted, fitted(kind).predict(frame), rtol=TRAINED)
    data = IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], covariates=frame["x"], weights=frame["n"])
    same(make(kind, None).fit(data).predict(data), weighted)


def test_rows_with_gaps_are_dropped_from_the_fit_and_from_the_score(kind: type) -> None:
    frame = table()
    holed = pd.concat([frame, frame[:2].assign(x=np.nan)])
    with pytest.warns(cfiv.errors.MissingRowsWarning, match=r"dropped 2 of 122 rows with gaps \(x: 2\)") as caught:
        model = make(kind).fit(holed)
    assert caught[0].filename == __file__  # the warning points at the user's line
    same(model.predict(frame), fitted(kind).predict(frame))
    facts = model.structural_function_.facts
    assert (facts["Rows"], facts["Rows left out"]) == (120, 2)
    assert "Rows left out" not in fitted(kind).structural_function_.facts
    with pytest.warns(cfiv.errors.MissingRowsWarning) as caught:
        assert model.score(holed) == model.score(frame)
    assert caught[0].filename == __file__


# scikit-learn


@pytest.mark.filterwarnings("ignore::cfiv.errors.MissingRowsWarning")
def test_the_summary_counts_rows_left_out_of_any_container(kind: type, tmp_path: Path) -> None:
    frame = table().assign(x=lambda f: f["x"].where(f.index > 2), n=lambda f: f["n"].where(f.index > 4, 0.0))
    frame.to_parquet(tmp_path / "rows.parquet")
    given = (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame), dict(frame.items()), tmp_path / "rows.parquet")
    for data in (*given, IVData(treatment=frame["t"], frame=frame)):
        model = make(kind, weights="n").fit(data)
        assert ("Rows left out", "5") in model.summary().lines, type(data)
    roles = {"outcome": frame["y"], "treatment": frame["t"], "instruments": frame["z"]}
    by_array = make(kind, None).fit(IVData(**roles, weights=frame["n"]))
    assert ("Rows left out", "5") in by_array.summary().lines


def test_rows_of_weight_zero_are_as_if_they_were_not_there(kind: type, tmp_path: Path) -> None:
    frame = table().assign(n=lambda f: f["n"].where(f.index % 4 > 0, 0.0))
    frame["region"] = frame["region"].where(frame["n"] > 0, "elsewhere")
    there = frame[frame["n"] > 0]
    formula = "y ~ scale(x) + C(region) + [t ~ z + w]"
    by_hand, model = (make(kind, formula, weights="n").fit(data) for data in (there, frame))
    change = {"treatment_from": 0.0, "treatment_to": 1.0}
    same(model.predict(there), by_hand.predict(there))
    same(model.dose_response([0.0, 1.0])["estimate"], by_hand.dose_response([0.0, 1.0])["estimate"])
    same(model.effect(**change), by_hand.effect(**change))
    assert model.score(frame) == by_hand.score(there)
    with pytest.raises(cfiv.DataError, match="1 category that training did not see"):
        model.predict(frame)
    if kind in (cfiv.TwoStageLeastSquares, cfiv.KernelIV, cfiv.DFIV):
        inferred = [cfiv.infer(data, made).effect(**change).table for data, made in ((frame, model), (there, by_hand))]
        pd.testing.assert_frame_equal(*inferred)


def test_rows_with_gaps_are_dropped_from_averages_as_from_the_fit_and_refused_one_by_one(kind: type, tmp_path: Path) -> None:
    frame = table()
    model = make(kind).fit(frame)
    model.save(tmp_path / "model")
    holed = frame.assign(x=frame["x"].where(np.arange(120) % 30 != 3), t=np.nan)
    kept, by, change = holed["x"].notna().to_numpy(), {"by": "region"}, {"treatment_from": 0.0, "treatment_to": 1.0}
    each = {"treatment_from": 0.0, "treatment_to": {"t": np.linspace(-1, 1, 120)}}
    for asked in (model, cfiv.load(tmp_path / "model")):
        with pytest.warns(cfiv.errors.MissingRowsWarning, match=r"dropped 4 of 120 rows with gaps \(x: 4\)") as caught:
            curve = asked.dose_response([0.0, 1.0], holed)
        assert caught[0].filename == __file__
        pd.testing.assert_frame_equal(curve, asked.dose_response([0.0, 1.0], frame[kept]))
        with pytest.warns(cfiv.errors.MissingRowsWarning, match="dropped 4 of 120"):
            found = asked.effect(holed, **change, by=holed["region"])
        pd.testing.assert_frame_equal(found, asked.effect(frame[kept], **change, **by))
        with pytest.warns(cfiv.errors.MissingRowsWarning, match="dropped 4 of 120"):
            found = asked.effect(holed, **each, by=holed["region"].where(kept))  # labels of rows left out may be missing
        assert found["rows"].sum() == 116
        with pytest.warns(cfiv.errors.MissingRowsWarning, match="dropped 4 of 120"):
            found = asked.effect(holed, **each, **by)
        those = {**each, "treatment_to": {"t": each["treatment_to"]["t"][kept]}}
        pd.testing.assert_frame_equal(found, asked.effect(frame[kept], **those, **by))
        for ask in (asked.predict, functools.partial(asked.effect, **change)):  # an answer has the place of its row
            with pytest.raises(cfiv.DataError, match=r"have gaps in .*so drop or fill them, as with .dropna\(subset="):
                ask(holed)
    strict = make(kind, missing="raise").fit(frame)
    for question in (lambda: strict.dose_response([0.0], holed), lambda: strict.effect(holed, **change, **by)):
        with pytest.raises(cfiv.DataError, match="have gaps in 'x'"):
            question()


def test_parameters_can_be_read_set_and_cloned(kind: type) -> None:
    model = make(kind, weights="n")
    assert not hasattr(clone(fitted(kind)), "structural_function_")
    assert clone(model).get_params() == model.get_params()
    assert set(model.get_params()) == set(inspect.signature(kind).parameters)
    assert model.set_params(weights=None, missing="raise") is model
    same(clone(model).fit(table()).predict(table()), fitted(kind).predict(table()))
    with pytest.raises(ValueError, match="Invalid parameter 'lambda_two'"):
        model.set_params(lambda_two=1.0)


@pytest.mark.parametrize("container", [pd.Index, np.array], ids=lambda container: container.__name__)
def test_names_in_any_container_give_the_same_bits_and_work_in_scikit_learn(kind: type, container: Any) -> None:
    frame = table()
    names = {"outcome": "y", "treatment": "t", "covariates": "x", "instruments": ["z", "w"]}
    model = make(kind, None, **{**names, "instruments": container(["z", "w"])})
    expected = make(kind, None, **names).fit(frame).predict(frame)
    same(clone(model).fit(frame).predict(frame), expected)
    assert "instruments=" in repr(clone(model))
    search = GridSearchCV(model, {"instruments": [container(["z"])]}, cv=KFold(2), refit=False, error_score="raise").fit(frame)
    assert list(search.best_params_["instruments"]) == ["z"]


def test_cross_validation_scores_folds_of_a_frame(kind: type) -> None:
    frame, folds = table(), KFold(3)
    scores = cross_val_score(make(kind), frame, cv=folds, error_score="raise")
    expected = [make(kind).fit(frame.iloc[train]).score(frame.iloc[test]) for train, test in folds.split(frame)]
    same(scores, expected)
    assert (np.asarray(expected) < 1).all()


def test_a_fitted_model_survives_pickling(kind: type) -> None:
    frame = table()
    copy = pickle.loads(pickle.dumps(fitted(kind, RICH)))
    same(copy.predict(frame), fitted(kind, RICH).predict(frame))
    assert copy.score(frame) == fitted(kind, RICH).score(frame)


@pytest.mark.parametrize("ask", [
    lambda m: m.predict(table()),
    lambda m: m.effect(table(), treatment_from=0, treatment_to=1),
    lambda m: m.dose_response([1.0]),
    lambda m: m.score(table()),
    lambda m: m.summary(),
    lambda m: m.save("model"),
    lambda m: cfiv.compare({"it": m}),
], ids=["predict", "effect", "dose_response", "score", "summary", "save", "compare"])  # fmt: skip
def test_asking_before_fitting_is_refused(kind: type, ask: Any) -> None:
    with pytest.raises(cfiv.NotFittedError, match=rf"this {kind.__name__} has not been fitted: call fit\(data\) first"):
        ask(make(kind))


@pytest.mark.law
def test_the_score_does_not_depend_on_units_and_falls_when_the_outcome_is_noise(kind: type) -> None:
    frame = table()
    model = fitted(kind)
    metres = make(kind).fit(frame.assign(y=frame["y"] * 1000 + 5))
    assert metres.score(frame.assign(y=frame["y"] * 1000 + 5)) == pytest.approx(model.score(frame), abs=TRAINED)
    noise = frame.assign(y=np.random.default_rng(1).normal(size=len(frame)))
    assert model.score(noise) < 0 < model.score(frame)


def test_scoring_needs_an_outcome_that_varies_but_not_a_treatment_that_does(kind: type) -> None:
    model, frame = fitted(kind), table()
    assert np.isfinite(model.score(frame.assign(t=1.0, z=0.0)))
    with pytest.raises(cfiv.DataError, match=r"the outcome is the same in all 120 rows.*score rows in which it varies"):
        model.score(frame.assign(y=1.0))


# Outcomes with two values


def test_predictions_outside_of_an_outcomes_two_values_are_counted_in_the_summary(kind: type) -> None:
    frame = table()
    model = make(kind).fit(frame.assign(y=3.0 * (frame["y"] > frame["y"].median())))
    values = model.predict(frame)
    count = int(((values < 0) | (values > 3)).sum())
    said = f"{count} of 120 rows of training, for nothing keeps a prediction in [0, 3]"
    assert dict(model.summary().lines)["Predicted outside"] == said
    assert "Predicted outside" not in dict(fitted(kind).summary().lines)


# Effects by group


def test_effects_by_group_are_the_means_of_those_of_its_rows(kind: type) -> None:
    frame, model = table(), fitted(kind, RICH)
    asked = {"treatment_from": [0.0, 0.0], "treatment_to": [1.0, 2.0]}
    each = model.effect(frame, **asked)
    by_region = model.effect(frame, by="region", **asked)
    assert list(by_region) == ["region", "rows", "estimate"]
    assert by_region["region"].tolist() == sorted(frame["region"].unique())
    for label, rows, estimate in by_region.itertuples(index=False):
        members = (frame["region"] == label).to_numpy()
        assert rows == members.sum()
        assert estimate == pytest.approx(each[members].mean(), rel=1e-12)
    labels = frame["region"].to_numpy()
    same([model.effect(frame, by=labels, **asked)["estimate"]], [by_region["estimate"]])


def test_groups_with_the_name_of_a_column_of_the_answer_are_refused(kind: type) -> None:
    model, change = fitted(kind), {"treatment_from": 0.0, "treatment_to": 1.0}
    for name in ("rows", "estimate"):
        with pytest.raises(cfiv.DataError, match=f"groups by '{name}' would hide a column of the table that is called so"):
            model.effect(table().rename(columns={"region": name}), **change, by=name)


def test_rows_in_messages_are_counted_without_those_left_out_and_say_so(kind: type) -> None:
    frame = table().assign(x=lambda f: f["x"].where(f.index > 2).where(f.index != 9, np.inf))
    said = r"'x' is infinite in 1 of 117 rows \(first: row 6\): .* \(rows are counted without the 3 that are left out\)$"
    with pytest.warns(cfiv.errors.MissingRowsWarning), pytest.raises(cfiv.DataError, match=said):
        make(kind).fit(frame)
    with pytest.warns(cfiv.errors.MissingRowsWarning), pytest.raises(cfiv.DataError, match=said):
        fitted(kind).dose_response([0.0, 1.0], frame)
    with pytest.raises(cfiv.DataError, match="by and the rows have 120 and 117 rows, so that it is not clear which belong"):
        fitted(kind).effect(table()[3:], treatment_from=0.0, treatment_to=1.0, by=frame["region"])


def test_groups_that_are_no_labels_of_the_rows_are_refused(kind: type) -> None:
    frame, model = table(), fitted(kind, RICH)
    for by, said in (
        ("regoin", "did you mean 'region'"),
        (np.arange(3), "each of the 120 rows, got 3"),
        (np.full(120, np.nan), "label"),
    ):
        with pytest.raises(cfiv.DataError, match=said):
            model.effect(frame, treatment_from=[0.0, 0.0], treatment_to=[1.0, 2.0], by=by)


# Model files


def answers(function: Any, frame: pd.DataFrame) -> np.ndarray:
    effect = function.effect(frame, treatment_from=[0.0, 0.0], treatment_to=[1.0, 2.0])
    return np.concatenate([function.predict(frame), effect, function.dose_response([[0.0, 1.0]])["estimate"]])


def test_a_loaded_model_answers_with_the_same_bits(kind: type, tmp_path: Path) -> None:
    frame, path = table(), tmp_path / "model.safetensors"
    model = fitted(kind, RICH)
    model.save(path)
    loaded = cfiv.load(path)
    same(answers(loaded, frame), answers(model, frame))
    assert str(loaded.summary()) == str(model.summary())


def test_a_loaded_model_is_one_line_in_a_console_and_shows_no_row_of_training(kind: type, tmp_path: Path) -> None:
    fitted(kind, RICH).save(tmp_path / "model")
    text = repr(cfiv.load(tmp_path / "model"))
    assert text.startswith(f"<StructuralFunction by {kind.__name__}: outcome ")
    assert text.endswith(", 120 rows>")
    assert "\n" not in text
    assert len(text) < 400


def test_saving_twice_writes_the_same_bytes_and_so_does_saving_what_was_loaded(kind: type, tmp_path: Path) -> None:
    for name, model in (("one", fitted(kind, RICH)), ("two", fitted(kind, RICH))):
        model.save(tmp_path / name)
    cfiv.load(tmp_path / "one").save(tmp_path / "three")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    # The order of tensors and of header entries is part of the file.
    assert sorted((tmp_path / "three").read_bytes()) == sorted((tmp_path / "one").read_bytes())


def test_a_model_file_is_json_and_plain_numbers_to_the_last_byte(kind: type, tmp_path: Path) -> None:
    fitted(kind, RICH).save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert list(metadata) == ["cfiv"]
    assert json.loads(metadata["cfiv"])["format"] == FORMAT_VERSION
    assert {entry["dtype"] for entry in header.values()} <= {"F64", "F32", "I64"}
    spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(content) - 8 - length


# What it says of itself


def test_the_summary_tells_roles_and_rows_as_text_and_as_html(kind: type) -> None:
    summary = fitted(kind, RICH).summary()
    text, html = str(summary), summary._repr_html_()
    assert repr(summary) == text
    for part in (kind.__name__, "center(x) + C(region)", "bs(q, df=4, ", "t + s", "z + w", "120"):
        assert part in text
        assert part in html
    assert html.count("<table") == html.count("</table>") > 0


def test_the_html_of_a_summary_escapes_names(kind: type) -> None:
    frame = table().rename(columns={"t": "<b>", "x": "a & b"})
    html = (
        make(kind, None, outcome="y", treatment="<b>", instruments="z", covariates="a & b").fit(frame).summary()._repr_html_()
    )
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "a &amp; b" in html


def test_a_comparison_has_a_row_for_each_model_with_score_and_error(kind: type) -> None:
    frame = table(50, seed=1)

    class Truth:
        def error(self, model: Any) -> float:
            return float(((model.predict(frame) - frame["y"]) ** 2).mean())

    models = {"plain": fitted(kind), "weighted": make(kind, weights="n").fit(table())}
    compared = cfiv.compare(models, data=frame, truth=Truth()).table
    assert compared.index.tolist() == ["plain", "weighted"]
    assert compared["estimator"].tolist() == [kind.__name__] * 2
    assert compared["rows"].tolist() == [120, 120]
    assert compared["score"].tolist() == [model.score(frame) for model in models.values()]
    assert compared["error"].tolist() == [Truth().error(model) for model in models.values()]
    knows = ["trusted"] if hasattr(models["plain"], "trust_") else []
    knows += ["standard_errors"] if hasattr(models["plain"], "results_") else []
    knows += ["first_stage_f", "ar_set"] if kind in (cfiv.TwoStageLeastSquares, cfiv.LIML) else []
    assert list(cfiv.compare(models).table) == ["estimator", "outcome", "rows", "seconds", "penalties", *knows]
