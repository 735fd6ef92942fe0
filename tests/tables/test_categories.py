"""Categories: coded beside the constant and the covariates, in the order that was declared, and known by training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from formulaic import model_matrix
from linearmodels.iv import IV2SLS

import cfiv
from cfiv.diagnostics.first_stage import effective_f
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.rank import cragg_donald
from cfiv.errors import CfivError, DataError, FormulaError, FormulaWarning, ModelFileError
from cfiv.estimators.linear_regression import Covariance
from cfiv.tables.encoding import fit_encoder
from cfiv.tables.formula import Part
from cfiv.tables.roles import Roles
from cfiv.tables.table_encoder import TableEncoder

#: Least squares of a few columns, by QR and by the normal equations.
CLOSE = 1e-9


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """The shops of issue 17, with noise of its own, a number, and more categories."""
    generator = np.random.default_rng(0)
    n = 200
    table = pd.DataFrame({"z": generator.normal(size=n), "shop": generator.choice(["a", "b", "c"], n)})
    hidden = generator.normal(size=n)
    table["t"] = table.z + hidden
    table["y"] = 2 * table.t + hidden + table["shop"].map({"a": 5, "b": 7, "c": 9}) + generator.normal(size=n)
    table["year"] = generator.integers(2001, 2005, n)
    table["x"] = generator.normal(size=n)
    table["size"] = pd.cut(table.t, 3, labels=["small", "medium", "large"])
    table["bins"] = pd.cut(table.t, [-10, -0.5, 0.5, 10])
    return table


def fitted(formula: str, frame: pd.DataFrame) -> cfiv.TwoStageLeastSquares:
    return cfiv.TwoStageLeastSquares(formula).fit(frame)


def coefficients(formula: str, frame: pd.DataFrame) -> dict[str, float]:
    table: dict[str, float] = fitted(formula, frame).coefficients_["coefficient"].to_dict()
    return table


def encoder(formula: str, frame: pd.DataFrame) -> TableEncoder:
    return fit_encoder(frame, Roles.from_formula(formula))[0]


def reloaded(model: Any, place: Path) -> cfiv.StructuralFunction:
    model.save(place / "model")
    return cfiv.load(place / "model")


# Without a constant


@pytest.mark.oracle
def test_without_a_constant_every_category_has_its_coefficient() -> None:
    """The example of issue 17; linearmodels' own formula says the same."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"z": generator.normal(size=400), "shop": generator.choice(["a", "b", "c"], 400)})
    hidden = generator.normal(size=400)
    table["t"] = table.z + hidden
    table["y"] = 2 * table.t + hidden + table["shop"].map({"a": 5, "b": 7, "c": 9})
    for formula in ("y ~ 0 + C(shop) + [t ~ z]", "y ~ C(shop) - 1 + [t ~ z]"):
        found = coefficients(formula, table)
        expected = {"C(shop)[a]": 4.8980, "C(shop)[b]": 6.9188, "C(shop)[c]": 8.8943, "t": 2.0138}
        assert found == pytest.approx(expected, abs=5e-5)
        other = IV2SLS.from_formula("y ~ C(shop) + [t ~ z]", table).fit().params
        np.testing.assert_allclose(list(found.values()), other, rtol=CLOSE)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "covariates",
    [
        "0 + C(shop) + C(year)",
        "0 + C(year) + C(shop) + x",
        "0 + C(shop):x",
        "0 + x + C(shop):x",
        "0 + C(shop)*C(year)",
        "0 + C(shop):C(year)",
        "C(shop):x",
        "x + C(shop):x",
        "C(shop):C(year)",
        "0 + x",
        "0 + bs(x, df=5, include_intercept=True)",
        "0 + C(shop, contr.sum) + C(year)",
    ],
)
def test_covariates_are_the_columns_of_formulaic(frame: pd.DataFrame, covariates: str) -> None:
    fit, data = fit_encoder(frame, Roles.from_formula(f"y ~ {covariates} + [t ~ z]"))
    expected = model_matrix(covariates, frame).drop(columns="Intercept", errors="ignore")
    assert data.names is not None
    assert list(data.names["covariates"]) == list(expected.columns)
    np.testing.assert_array_equal(data.covariates, expected.to_numpy(dtype=float))
    np.testing.assert_array_equal(fit.inputs(frame[:1])[1], expected.to_numpy(dtype=float)[:1])


@pytest.mark.law
@pytest.mark.parametrize(
    ("without", "beside"),
    [
        ("0 + C(shop)", "C(shop)"),
        ("0 + C(shop) + C(year)", "C(shop) + C(year)"),
        ("x + C(shop) - 1", "x + C(shop)"),
        ("0 + C(shop):C(year)", "C(shop)*C(year)"),
    ],
)
@pytest.mark.parametrize("make", [cfiv.TwoStageLeastSquares, cfiv.LeastSquares])
def test_the_effect_is_that_with_a_constant_where_categories_span_it(
    frame: pd.DataFrame, make: Any, without: str, beside: str, tmp_path: Path
) -> None:
    one, other = (make(f"y ~ {part} + [t ~ z]").fit(frame) for part in (without, beside))
    assert one.coefficients_.loc["t", "coefficient"] == pytest.approx(other.coefficients_.loc["t", "coefficient"], rel=CLOSE)
    np.testing.assert_allclose(one.predict(frame), other.predict(frame), rtol=CLOSE)
    assert one.score(frame) == pytest.approx(other.score(frame), rel=CLOSE)
    # Rows of one level have the columns of all.
    np.testing.assert_array_equal(reloaded(one, tmp_path).predict(frame[:1]), one.predict(frame[:1]))


@pytest.mark.law
def test_diagnostics_are_those_with_a_constant_where_categories_span_it(frame: pd.DataFrame) -> None:
    problems = []
    for part in ("0 + C(shop)", "C(shop)"):
        fit, data = fit_encoder(frame, Roles.from_formula(f"y ~ {part} + [t ~ z]"))
        problems.append(LinearProblem.from_data(data, intercept=fit.roles.intercept, covariance=Covariance()))
    for test in (effective_f, cragg_donald):
        one, other = map(test, problems)
        assert one.statistic == pytest.approx(other.statistic, rel=CLOSE)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("covariates", "brackets"),
    [
        ("0 + x", "t ~ C(shop)"),
        ("1", "t ~ C(shop)"),
        ("C(year)", "t ~ C(shop)*C(year)"),
        ("C(year)", "t ~ C(shop):C(year)"),
        ("0 + C(year)", "t ~ C(shop)"),
        ("0 + C(year)", "t ~ C(shop):C(year)"),
        ("x", "t ~ z + C(shop):x"),
        ("C(shop)", "t + t:C(shop) ~ z + z:C(shop)"),
        ("0 + C(shop)", "C(shop):t ~ C(shop):z"),
        ("0 + x", "size ~ z + I(z**2) + I(z**3)"),
        ("x + C(shop)", "t + t:C(shop) ~ z + z:C(shop) + x:C(shop)"),
    ],
)
def test_brackets_are_coded_beside_the_constant_and_the_covariates(
    frame: pd.DataFrame, covariates: str, brackets: str, tmp_path: Path
) -> None:
    """``[1, X, T]`` and ``[1, X, Z]`` have full rank, and span what formulaic makes of the whole sums; by numpy."""
    model = fitted(f"y ~ {covariates} + [{brackets}]", frame)
    function = model.structural_function_.encoder
    assert isinstance(function, TableEncoder)
    data = function.observations(frame)
    constant = np.ones((len(frame), int(function.roles.intercept)))
    exogenous = constant if data.covariates is None else np.column_stack([constant, data.covariates])
    treatment, instruments = brackets.split(" ~ ")
    for columns, part in ((data.treatment, treatment), (data.instruments, instruments)):
        made = np.column_stack([exogenous, columns])
        whole = model_matrix(f"{covariates} + {part}", frame).to_numpy(dtype=float)
        rank = np.linalg.matrix_rank(whole)
        assert made.shape[1] == np.linalg.matrix_rank(made) == rank == np.linalg.matrix_rank(np.column_stack([made, whole]))
    design, projector = np.column_stack([exogenous, data.treatment]), np.column_stack([exogenous, data.instruments])
    projected = projector @ np.linalg.lstsq(projector, design, rcond=None)[0]
    expected = np.linalg.lstsq(projected, frame["y"].to_numpy(), rcond=None)[0]
    np.testing.assert_allclose(model.coefficients_["coefficient"], expected, rtol=1e-6)
    np.testing.assert_array_equal(reloaded(model, tmp_path).predict(frame[:3]), model.predict(frame[:3]))


@pytest.mark.contract
@pytest.mark.parametrize("make", [cfiv.DFIV, cfiv.NetworkRegression])
def test_learned_features_say_that_they_carry_a_constant_all_the_same(frame: pd.DataFrame, make: Any) -> None:
    model = make("y ~ 0 + C(shop) + [t ~ z]", steps=1, progress=False, random_state=0)
    with pytest.warns(FormulaWarning, match=f"the features of {make.__name__} carry one all the same"):
        model.fit(frame[:40])


@pytest.mark.contract
def test_a_treatment_that_is_a_covariate_too_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(FormulaError, match=r"'C\(shop\)' is both treatment and covariate: .* give it one"):
        encoder("y ~ C(shop) + [t + C(shop) ~ z + I(z**2) + x]", frame)


# Their order


@pytest.mark.oracle
@pytest.mark.parametrize("ordered", [False, True])
def test_declared_categories_are_coded_in_their_order(frame: pd.DataFrame, ordered: bool, tmp_path: Path) -> None:
    names = ["medium", "absent", "small", "large"]
    table = frame.assign(size=pd.Categorical(frame["size"].astype(str), categories=names, ordered=ordered))
    for term in ("size", "C(size)"):
        model = fitted(f"y ~ {term} + [t ~ z]", table)
        expected = model_matrix(term, table.assign(size=table["size"].cat.remove_unused_categories()))
        assert list(model.coefficients_.index) == [*expected.columns, "t"]
        other = IV2SLS(table["y"], expected, table[["t"]], table[["z"]]).fit().params
        np.testing.assert_allclose(model.coefficients_["coefficient"], other, rtol=CLOSE)
        again = reloaded(model, tmp_path)
        np.testing.assert_array_equal(again.predict(table), model.predict(table))
        np.testing.assert_array_equal(again.predict(table[:1]), model.predict(table[:1]))


@pytest.mark.oracle
def test_an_enum_of_polars_is_declared(frame: pd.DataFrame) -> None:
    names = ["small", "medium", "large"]
    table = pl.DataFrame({name: frame[name].to_numpy() for name in ("y", "t", "z")}).with_columns(
        size=pl.Series(frame["size"].astype(str).tolist(), dtype=pl.Enum(names))
    )
    assert list(fitted("y ~ size + [t ~ z]", table).coefficients_.index)[1:3] == ["size[T.medium]", "size[T.large]"]


@pytest.mark.contract
@pytest.mark.parametrize(
    ("values", "order"),
    [
        ([10, 9, 100], ["9", "10", "100"]),
        (["10", "9", "100"], ["10", "100", "9"]),
        ([1, 0.5, 2], ["0.5", "1.0", "2.0"]),
        ([True, False, True], ["False", "True"]),
        (["b", 2, "a"], ["2", "a", "b"]),
    ],
)
def test_other_categories_are_sorted_numbers_by_size_and_text_by_letters(values: list[Any], order: list[str]) -> None:
    rows = np.arange(30)
    table = pd.DataFrame({"y": rows**0.5, "t": np.sin(rows), "z": np.cos(rows), "g": pd.Series(values * 10)})
    columns = encoder("y ~ 0 + C(g) + [t ~ z]", table).covariates
    assert columns is not None
    assert columns.columns == tuple(f"C(g)[{name}]" for name in order)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "contrasts",
    [
        "contr.treatment(base='medium')",
        "contr.treatment('medium')",
        "Treatment(reference='medium')",
        "Treatment('medium')",
        "contr.SAS",
        "contr.sum",
        "Sum",
        "contr.helmert(scale=True)",
        "contr.diff",
        "contr.poly",
        "contr.poly(scores=[1, 2, 4])",
        "levels=['large', 'medium', 'small']",
    ],
)
def test_a_reference_and_other_contrasts_are_those_of_formulaic(frame: pd.DataFrame, contrasts: str, tmp_path: Path) -> None:
    term = f"C(size, {contrasts})"
    model = fitted(f"y ~ {term} + [t ~ z]", frame)
    expected = model_matrix(term, frame)
    assert list(model.coefficients_.index) == [*expected.columns, "t"]
    np.testing.assert_array_equal(encoder(f"y ~ {term} + [t ~ z]", frame).inputs(frame)[1], expected.to_numpy()[:, 1:])
    np.testing.assert_array_equal(reloaded(model, tmp_path).predict(frame[:1]), model.predict(frame[:1]))


@pytest.mark.oracle
def test_a_reference_of_numbers_is_a_number(frame: pd.DataFrame) -> None:
    names = coefficients("y ~ C(year, contr.treatment(base=2003)) + [t ~ z]", frame)
    assert [name.rsplit("[")[-1] for name in names] == ["Intercept", "T.2001]", "T.2002]", "T.2004]", "t"]


@pytest.mark.contract
@pytest.mark.parametrize(
    ("term", "says"),
    [
        ("C(size, contr.treatment(base='huge'))", ["must name categories of 'size', got 'huge'", "'small', 'medium', 'large'"]),
        ("C(year, contr.treatment(base='2003'))", ["got '2003': they are 2001, 2002, 2003, 2004"]),
        ("C(size, levels=['small', 'large'])", ["must name all categories of 'size'"]),
        ("C(size, contr.custom(1))", ["coded by one of contr.treatment", "got 'contr.custom'"]),
        ("C(size, x)", ["coded by one of", "got 'x'"]),
        ("I(contr.sum(x))", ["give contr.sum as the second argument of C()"]),
    ],
)
def test_contrasts_that_cannot_be_are_refused(frame: pd.DataFrame, term: str, says: list[str]) -> None:
    with pytest.raises(CfivError) as caught:
        encoder(f"y ~ {term} + [t ~ z]", frame)
    assert [part for part in says if part not in str(caught.value)] == []


# What training knew


@pytest.mark.law
@pytest.mark.parametrize(
    "kind",
    [
        lambda column: column.astype(str),
        lambda column: column.astype(object),
        lambda column: pd.Categorical(column.astype(str), categories=["large", "small", "medium", "huge"]),
        lambda column: column.astype(str).astype("string"),
    ],
)
def test_rows_are_read_by_the_categories_of_training_whatever_their_type(
    frame: pd.DataFrame, kind: Any, tmp_path: Path
) -> None:
    for formula in ("y ~ [size ~ z + I(z**2)]", "y ~ C(size, contr.sum) + x + [t ~ z]"):
        model = fitted(formula, frame)
        changed = frame.assign(size=kind(frame["size"]))
        for function in (model, reloaded(model, tmp_path)):
            np.testing.assert_array_equal(function.predict(changed), model.predict(frame))
            np.testing.assert_array_equal(function.predict(changed[:1]), model.predict(frame)[:1])
        assert model.score(changed) == model.score(frame)


@pytest.mark.law
def test_numbers_that_come_back_as_categories_are_numbers(frame: pd.DataFrame) -> None:
    model = fitted("y ~ year + [t ~ z]", frame)
    np.testing.assert_array_equal(model.predict(frame.assign(year=frame["year"].astype("category"))), model.predict(frame))


@pytest.mark.oracle
def test_the_effect_between_two_categories_is_the_difference_of_their_coefficients(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = fitted("y ~ x + [size ~ z + I(z**2)]", frame)
    of = coefficients("y ~ x + [size ~ z + I(z**2)]", frame)
    for function in (model, reloaded(model, tmp_path)):
        found = function.effect(frame[:2], treatment_from="medium", treatment_to="large")
        np.testing.assert_allclose(found, of["size[T.large]"] - of["size[T.medium]"], rtol=CLOSE)
        assert function.effect({"x": [0.0]}, treatment_from={"size": "small"}, treatment_to=["large"]) == pytest.approx(
            of["size[T.large]"], rel=CLOSE
        )
        curve = function.dose_response(["large", "small"])
        assert curve["size"].tolist() == ["large", "small"]
        assert -np.diff(curve["estimate"]).item() == pytest.approx(of["size[T.large]"], rel=CLOSE)
        again = function.dose_response(pd.Categorical(["large", "small"]))
        assert again["estimate"].tolist() == curve["estimate"].tolist()
        with pytest.raises(DataError, match=r"\('huge'\); known are 'small', 'medium', 'large'"):
            function.effect(frame[:1], treatment_from="small", treatment_to="huge")


@pytest.mark.oracle
def test_several_treatments_of_which_one_is_a_category(frame: pd.DataFrame) -> None:
    model = fitted("y ~ [t + C(shop) ~ z + x + I(z**2) + I(x**2)]", frame)
    of = model.coefficients_["coefficient"]
    expected = of["t"] + of["C(shop)[T.c]"]
    one = model.effect(frame[:1], treatment_from=(0.0, "a"), treatment_to={"t": 1.0, "shop": "c"})
    assert one.item() == pytest.approx(expected, rel=CLOSE)
    for grid in ([(0.0, "a"), (1.0, "c")], pd.DataFrame({"shop": ["a", "c"], "t": [0.0, 1.0]})):
        assert np.diff(model.dose_response(grid)["estimate"]).item() == pytest.approx(expected, rel=CLOSE)


@pytest.mark.contract
def test_numbers_as_categories_are_known_by_value_and_not_by_their_text(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = fitted("y ~ C(year) + [t ~ z]", frame)
    for function in (model, reloaded(model, tmp_path)):
        whole, fraction = (function.predict({"t": [1.0], "year": [year]}).item() for year in (2002, 2002.0))
        assert whole == fraction
        message = r"did not see \('2002'\); known are 2001, 2002, 2003, 2004: drop"
        with pytest.raises(DataError, match=message):
            function.predict({"t": [1.0], "year": ["2002"]})


@pytest.mark.law
@pytest.mark.parametrize("large", [2**53, 2**70])
def test_large_whole_numbers_are_categories_of_their_own_after_loading(frame: pd.DataFrame, large: int, tmp_path: Path) -> None:
    table = frame.assign(firm=pd.Series([large, large + 1] * 100))
    model = fitted("y ~ C(firm) + [t ~ z]", table)
    again = reloaded(model, tmp_path)
    np.testing.assert_array_equal(again.predict(table), model.predict(table))
    pd.testing.assert_frame_equal(again.dose_response([0.0, 1.0]), model.dose_response([0.0, 1.0]))


# What can be saved


@pytest.mark.law
def test_intervals_are_saved_and_known_by_value_and_by_text(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = fitted("y ~ x + [bins ~ z + I(z**2)]", frame)
    first, *_, last = frame["bins"].cat.categories
    again = reloaded(model, tmp_path)
    effect = model.effect(frame[:1], treatment_from=first, treatment_to=last)
    for table in (frame, frame.assign(bins=frame["bins"].astype(str)), frame.assign(bins=frame["bins"].astype(object))):
        np.testing.assert_array_equal(again.predict(table), model.predict(frame))
    assert again.effect(frame[:1], treatment_from=str(first), treatment_to=last) == effect
    assert effect.item() == pytest.approx(model.coefficients_.loc[f"bins[T.{last}]", "coefficient"], rel=CLOSE)
    pd.testing.assert_frame_equal(again.dose_response([first, last]), model.dose_response([first, last]))


DAYS = pd.Series(pd.date_range("2020-01-01", periods=2).repeat(100))


@pytest.mark.contract
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (DAYS, "values of type Timestamp"),
        (DAYS.astype("category"), "values of type Timestamp"),
        (DAYS.dt.date, "values of type date"),
        (DAYS.dt.to_period("D"), "values of type Period"),
        (pd.cut(DAYS, 2), "values of type Interval"),
        ([b"a", b"b"], "values of type bytes"),
        ([("a", 1), ("b", 1)], "values of type tuple"),
        ([[1], [2]], "values of type list"),
        ([1j, 2j], "values of type complex"),
        ([10**400, 1], "whole numbers of 1,329 bits"),
        (["a" * 1001, "b"], "text of 1,001 characters"),
        (["\ud800", "b"], "text that is no Unicode"),
        (["1", 1], "the categories 1 and '1', which look the same"),
        (["True", True], "the categories True and 'True', which look the same"),
    ],
)
def test_categories_that_a_file_could_not_name_are_refused_by_the_fit(frame: pd.DataFrame, values: Any, says: str) -> None:
    column = values if isinstance(values, pd.Series) else pd.Series(values * 100, dtype=object)
    with pytest.raises(DataError, match=says):
        fitted("y ~ C(g) + [t ~ z]", frame.assign(g=column))


@pytest.mark.law
@pytest.mark.parametrize(
    "values",
    [
        [True, False],
        [np.float32(1.5), np.float32(2.5)],
        [np.int8(1), np.int8(2)],
        ["a", 1],
        ["a b/c", "é"],
        pd.array([1, 2], dtype="Int64").tolist(),
        [1.5, 2**60 + 1],
    ],
)
def test_what_fits_is_saved(frame: pd.DataFrame, values: list[Any], tmp_path: Path) -> None:
    table = frame.assign(g=pd.Series(values * 100, dtype=object))
    model = fitted("y ~ C(g) + [t ~ z]", table)
    np.testing.assert_array_equal(reloaded(model, tmp_path).predict(table), model.predict(table))


@pytest.mark.contract
def test_a_file_of_an_older_cfiv_is_read_beside_a_constant(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Format 2 did not say beside what a part was coded: a constant, always."""
    from cfiv.estimators import old_model_files
    from cfiv.tables.saved_parts import part_from_values

    part = fitted("y ~ C(shop) + [t ~ z]", frame).structural_function_.encoder.covariates
    values = {"formula": part.formula.text, "columns": list(part.columns)}
    values["levels"] = [[name, list(levels)] for name, levels in part.levels.items()]
    values["transform_state"] = {
        "pairs": [[name, {"pairs": list(kept.items())}] for name, kept in part.transform_state.items()]
    }
    assert part_from_values(old_model_files._part(values), part.formula) == part


@pytest.mark.contract
def test_a_part_of_a_file_that_no_table_can_have_made_is_refused(frame: pd.DataFrame) -> None:
    from dataclasses import replace

    part = encoder("y ~ C(shop) + bs(x, df=4) + [t ~ z]", frame).covariates
    assert part is not None
    for change in (
        {"levels": {}},
        {"levels": {"shop": ("a", "a")}},
        {"levels": {"shop": ("a", "b"), "w": ("a", "b")}},
        {"levels": {"shop": ("a", ["b"])}},
        {"columns": ()},
        {"columns": (1,)},
        {"transform_state": []},
    ):
        with pytest.raises((FormulaError, DataError, ModelFileError)):
            replace(part, **change)  # type: ignore[arg-type]
    for text in ("C(shop) + bs(x, df=10**9)", None, "I(9**9**9)"):
        with pytest.raises(FormulaError):
            Part(text)  # type: ignore[arg-type]
    with pytest.raises(FormulaError, match="makes other columns than in training"):
        replace(part, columns=part.columns[:-1]).matrix(frame)
