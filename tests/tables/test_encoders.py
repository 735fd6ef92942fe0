"""Encoders: formulas are read once, and questions about many treatments have the answers that one has about each."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.estimators import structural
from cfiv.tables import formula
from cfiv.tables.formula import Part
from cfiv.tables.roles import read_roles

#: Sums of the same float64 numbers in another order.
ROUNDING = 1e-12
FORMULAS = {
    "apart": "y ~ x + C(shop) + [t ~ z]",
    "transformed": "y ~ x + [poly(t, 2) ~ z + I(z**2)]",
    "beside covariates": "y ~ x + [t + t:x ~ z + z:x]",
    "coded beside covariates": "y ~ C(shop) + [t:C(shop) ~ z:C(shop)]",
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    n = 120
    table = pd.DataFrame({name: generator.normal(size=n) for name in ("z", "x", "e")})
    table["shop"] = generator.choice(["a", "b", "c"], n)
    table["t"] = table.z + table.e + 0.1 * table.z**2
    return table.assign(y=table.t * (1 + table.x) + table.e + generator.normal(size=n))


@pytest.fixture(scope="module", params=FORMULAS)
def model(request: pytest.FixtureRequest, frame: pd.DataFrame) -> cfiv.TwoStageLeastSquares:
    return cfiv.TwoStageLeastSquares(FORMULAS[request.param]).fit(frame)


@pytest.mark.law
def test_answers_about_many_treatments_are_those_about_each(model: Any, frame: pd.DataFrame) -> None:
    at = [model.predict(frame.assign(t=value)) for value in (-0.5, 0.25, 1.0)]
    response = model.dose_response([-0.5, 0.25, 1.0], frame)["estimate"]
    np.testing.assert_allclose(response, np.mean(at, axis=1), rtol=ROUNDING, atol=ROUNDING)
    effect = model.effect(frame.drop(columns="t"), treatment_from=-0.5, treatment_to=1.0)
    np.testing.assert_allclose(effect, at[2] - at[0], rtol=ROUNDING, atol=ROUNDING)
    varying = model.effect(frame, treatment_from=frame["t"].to_numpy(), treatment_to=1.0)
    np.testing.assert_allclose(varying, at[2] - model.predict(frame), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.law
def test_blocks_of_treatments_do_not_show(model: Any, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.linspace(-1, 1, 7)
    whole = model.dose_response(grid, frame)
    monkeypatch.setattr(structural, "BLOCK", 3 * len(frame))
    pd.testing.assert_frame_equal(model.dose_response(grid, frame), whole)


@pytest.mark.contract
def test_no_prediction_reads_a_formula(model: Any, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(f"{text!r} is read again")

    monkeypatch.setattr(formula, "part_terms", refuse)
    model.predict(frame)
    model.score(frame)
    model.effect(frame, treatment_from=0.0, treatment_to=1.0)
    model.dose_response([0.0, 1.0])


@pytest.mark.contract
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_copies_answer_alike(model: Any, frame: pd.DataFrame, copied: Any) -> None:
    other = copied(model)
    np.testing.assert_array_equal(other.predict(frame), model.predict(frame))
    pd.testing.assert_frame_equal(other.dose_response([0.0, 1.0]), model.dose_response([0.0, 1.0]))


@pytest.mark.contract
def test_a_part_is_its_text() -> None:
    part = Part("C(shop) + poly(x, 2):z")
    assert part.variables == ("shop", "x", "z")
    assert part.categories == {"shop"}
    assert part == Part(part.text) == pickle.loads(pickle.dumps(part))
    assert part != Part("C(shop)")
    beside = Part("C(shop):z", Part("z + w"))
    assert beside.variables == ("z", "w", "shop")
    assert beside.joint == "z + w + C(shop):z"
    assert beside != Part("C(shop):z")
    assert beside == copy.deepcopy(beside)
    assert Part("z + C(shop):z", Part("z")).own == Part("C(shop):z").terms


@pytest.mark.contract
def test_a_bad_point_of_a_grid_is_refused_in_words_about_rows(frame: pd.DataFrame) -> None:
    model = cfiv.TwoStageLeastSquares("y ~ x + [t ~ z]").fit(frame)
    with pytest.raises(cfiv.DataError, match=r"column 't' is infinite in 120 of 120 rows"):
        model.dose_response([0.0, np.inf], frame)


@pytest.mark.contract
def test_roles_are_read_without_an_estimator() -> None:
    assert read_roles(None) is None
    named = read_roles(None, outcome="y", treatment="t", instruments=["z"], covariates=["x"], weights="w")
    written = read_roles("y ~ x + [t ~ z]", weights="w")
    assert named is not None
    assert written is not None
    assert {role: part.variables for role, part in named.parts.items()} == {
        role: part.variables for role, part in written.parts.items()
    }
    with pytest.raises(cfiv.FormulaError, match="give either a formula or column names"):
        read_roles("y ~ x + [t ~ z]", outcome="y")


def test_roles_given_by_names_are_said_without_backticks_and_long_lists_are_cut_with_their_count() -> None:
    names = ["unit price", *(f"x{i}" for i in range(40))]
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 44)), columns=["y", "t", "z", *names])
    model = cfiv.TwoStageLeastSquares(outcome="y", treatment="t", instruments="z", covariates=names).fit(frame)
    said = dict(model.summary().lines)
    assert (said["Outcome"], said["Treatment"], said["Instruments"]) == ("y", "t", "z")
    assert said["Covariates"].startswith("unit price + x0 + x1 + ")
    assert said["Covariates"].endswith(" + ... (41 in all)")
    assert len(said["Covariates"]) <= 96


def test_backticks_stay_where_code_needs_them() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)), columns=["y", "t", "z", "a b"])
    said = dict(cfiv.TwoStageLeastSquares("y ~ `a b` + np.exp(`a b`) + [t ~ z]").fit(frame).summary().lines)
    assert said["Covariates"] == "a b + np.exp(`a b`)"
