"""Absorbed fixed effects of linear estimators: pyfixest's numbers, those of indicators, and what is asked of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linearmodels.datasets import wage_panel

import cfiv
from cfiv import DFIV, DataError, FormulaError, IVData, KernelIV, LeastSquares, ParameterError, SieveIV, TwoStageLeastSquares
from cfiv.errors import FewClustersWarning
from tests.estimators.panel import panel

#: Two programs' roundings in well-conditioned problems.
SAME = 1e-8
FORMULA = "y ~ x + [t ~ z] | firm + year"
RECORDS = json.loads(Path(__file__).with_name("pyfixest.json").read_text())["records"]

pytestmark = pytest.mark.filterwarnings("ignore::cfiv.errors.FewClustersWarning")


def without_singletons() -> Any:
    """The panel without firms of a single row (no year has one)."""
    frame = panel()
    return frame[frame.groupby("firm")["firm"].transform("size") > 1].reset_index(drop=True)


@pytest.mark.oracle
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: ", ".join(map(str, record[:4])))
def test_coefficients_errors_and_p_values_are_those_of_pyfixest(record: list[Any]) -> None:
    """Made by ``tests/estimators/make_pyfixest.py``; one way, two ways, weights, instruments, singletons left out."""
    effects, instrumented, errors, weights, coefficient, of_x, of_t, p_value, rows = record
    clusters = None if errors in ("unadjusted", "robust") else errors.split(" + ")
    model = (TwoStageLeastSquares if instrumented else LeastSquares)(
        "y ~ x + [t ~ z]" + f" | {effects}" * bool(effects),
        weights=weights,
        clusters=clusters,
        covariance=errors if clusters is None else "clustered",
        debiased="fixest",
    )
    results = model.fit(panel()).results_
    found = (results.params["t"], results.std_errors["x"], results.std_errors["t"], results.pvalues["t"])
    np.testing.assert_allclose(found, (coefficient, of_x, of_t, p_value), rtol=SAME, atol=1e-12)
    assert results.nobs == rows


@pytest.mark.oracle
def test_the_wages_of_545_men_are_those_of_the_textbook() -> None:
    """Wooldridge, *Introductory Econometrics*, table 14.2, fixed effects; the data are Vella and Verbeek's."""
    formula = "lwage ~ expersq + married + [union ~ hours] | nr + year"
    model = LeastSquares(formula, covariance="unadjusted", debiased=True).fit(wage_panel.load())
    found = model.coefficients_.loc[["expersq", "married", "union"], ["coefficient", "std_error"]].to_numpy()
    assert [f"{b:.4f} ({s:.4f})" for b, s in found[:1]] == ["-0.0052 (0.0007)"]
    assert [f"{b:.3f} ({s:.3f})" for b, s in found[1:]] == ["0.047 (0.018)", "0.080 (0.019)"]


@pytest.mark.law
@pytest.mark.parametrize("weights", [None, "weight"])
@pytest.mark.parametrize("covariance", ["unadjusted", "robust"])
def test_absorbing_is_a_regression_on_indicators(covariance: str, weights: str | None) -> None:
    frame = without_singletons()
    kind: dict[str, Any] = {"covariance": covariance, "weights": weights, "debiased": True}
    absorbed = TwoStageLeastSquares(FORMULA, **kind).fit(frame).results_
    plain = TwoStageLeastSquares("y ~ x + C(firm) + C(year) + [t ~ z]", **kind).fit(frame).results_
    for name in ("x", "t"):
        for one, other in ((absorbed.params, plain.params), (absorbed.std_errors, plain.std_errors)):
            assert one[name] == pytest.approx(other[name], rel=SAME)
    for name in ("rsquared", "rsquared_adj", "df_resid", "s2", "total_ss"):
        assert getattr(absorbed, name) == pytest.approx(getattr(plain, name), rel=SAME)
    np.testing.assert_allclose(absorbed.resids, plain.resids, atol=SAME)
    np.testing.assert_allclose(absorbed.fitted_values, plain.fitted_values, atol=SAME)
    np.testing.assert_allclose(absorbed.conf_int().loc["t"], plain.conf_int().loc["t"], rtol=SAME)
    ours, theirs = (one.first_stage.diagnostics.loc["t"] for one in (absorbed, plain))
    assert ours["f.stat"] == pytest.approx(theirs["f.stat"], rel=SAME)
    assert ours["partial.rsquared"] == pytest.approx(theirs["partial.rsquared"], rel=SAME)


@pytest.mark.law
def test_the_constant_is_the_mean_fixed_effect_and_levels_are_at_it() -> None:
    frame = without_singletons()
    model = TwoStageLeastSquares(FORMULA).fit(frame)
    slopes = model.results_.params
    level = (frame["y"] - slopes["t"] * frame["t"] - slopes["x"] * frame["x"]).mean()
    assert slopes["Intercept"] == pytest.approx(level, rel=SAME)
    rows = frame[["t", "x"]].iloc[:3]
    np.testing.assert_allclose(model.predict(rows), level + slopes["t"] * rows["t"] + slopes["x"] * rows["x"], rtol=SAME)
    effect = model.effect(rows[["x"]], treatment_from=0.0, treatment_to=2.0)
    np.testing.assert_allclose(effect, 2 * slopes["t"], rtol=SAME)


@pytest.mark.law
def test_groups_of_one_row_are_left_out_said_and_change_nothing() -> None:
    frame, fewer = panel(), without_singletons()
    every, model = TwoStageLeastSquares(FORMULA).fit(frame), TwoStageLeastSquares(FORMULA).fit(fewer)
    alone = len(frame) - len(fewer)
    assert alone > 5
    np.testing.assert_allclose(every.coefficients_, model.coefficients_, rtol=SAME)
    for text in (str(every.summary()), str(cfiv.diagnose(frame, FORMULA))):
        assert f"firm (47), year (8); rows left out as their group's only one: {alone}" in text
    assert "left out" not in str(model.summary())
    np.testing.assert_allclose(every.results_.resids, model.results_.resids, atol=SAME)
    kept = frame.groupby("firm")["firm"].transform("size") > 1
    assert every.results_.resids.index.equals(frame.index[kept])


@pytest.mark.contract
def test_names_and_arrays_have_fixed_effects_too() -> None:
    frame = panel()
    expected = TwoStageLeastSquares(FORMULA).fit(frame).coefficients_.to_numpy()
    names = {"outcome": "y", "treatment": "t", "instruments": "z", "covariates": "x", "fixed_effects": ["firm", "year"]}
    np.testing.assert_array_equal(TwoStageLeastSquares(**names).fit(frame).coefficients_.to_numpy(), expected)
    arrays = {role: frame[name] for role, name in names.items()}
    np.testing.assert_array_equal(TwoStageLeastSquares().fit(IVData(**arrays)).coefficients_.to_numpy(), expected)
    arrays["fixed_effects"] = frame[["firm", "year"]].astype(str).to_numpy()
    np.testing.assert_array_equal(TwoStageLeastSquares().fit(IVData(**arrays)).coefficients_.to_numpy(), expected)


@pytest.mark.contract
def test_a_saved_model_names_its_fixed_effects_and_needs_none_to_predict(tmp_path: Path) -> None:
    frame = panel()
    model = TwoStageLeastSquares(FORMULA, covariance="clustered", clusters=["firm", "year"]).fit(frame)
    model.save(tmp_path / "model.safetensors")
    loaded = cfiv.load(tmp_path / "model.safetensors")
    assert loaded.encoder.roles == model.structural_function_.encoder.roles  # type: ignore[attr-defined]
    assert "firm + year" in str(loaded.summary())
    np.testing.assert_array_equal(loaded.predict(frame[["t", "x"]]), model.predict(frame[["t", "x"]]))


@pytest.mark.law
@pytest.mark.parametrize("clusters", [None, "firm", ["firm", "year"]], ids=str)
@pytest.mark.parametrize("debiased", [None, False, True, "stata"])
def test_inference_has_the_errors_of_the_estimator(clusters: Any, debiased: Any) -> None:
    frame = panel()
    kind = "robust" if clusters is None else "clustered"
    model = TwoStageLeastSquares(FORMULA, covariance=kind, clusters=clusters, debiased=debiased, weights="weight").fit(frame)
    inference = cfiv.infer(frame, model)
    effect = inference.effect(treatment_from=0.0, treatment_to=1.0).table.iloc[0]
    assert effect["std_error"] == pytest.approx(model.results_.std_errors["t"], rel=SAME)
    np.testing.assert_allclose([effect["lower"], effect["upper"]], model.results_.conf_int().loc["t"], rtol=SAME)
    grid = [-1.0, 0.0, 2.0]
    levels = inference.dose_response(grid, frame).table
    expected = model.results_.combination([[1.0, frame["x"].mean(), t] for t in grid])
    np.testing.assert_allclose(levels["std_error"], expected["std_error"], rtol=SAME)
    assert levels["supported"].all()
    assert "average fixed effect" in str(inference)


@pytest.mark.law
def test_effects_do_not_depend_on_an_offset_of_a_unit_or_on_the_labels_of_units() -> None:
    frame = panel()
    moved = frame.assign(y=frame["y"] + 5.0 * frame["firm"], firm=[f"f{(7 * firm) % 61}" for firm in frame["firm"]])
    one, other = (TwoStageLeastSquares(FORMULA, covariance="clustered", clusters="firm").fit(rows) for rows in (frame, moved))
    names = ["x", "t"]
    np.testing.assert_allclose(one.coefficients_.loc[names], other.coefficients_.loc[names], rtol=1e-7)


@pytest.mark.contract
def test_curves_of_the_treatment_are_absorbed_as_their_columns() -> None:
    frame = without_singletons()
    curved = "[bs(t, df=4) ~ bs(z, df=5)]"
    model = TwoStageLeastSquares(f"y ~ x + {curved} | firm").fit(frame)
    plain = TwoStageLeastSquares(f"y ~ x + C(firm) + {curved}").fit(frame)
    ask = {"treatment_from": -1.0, "treatment_to": 1.0}
    np.testing.assert_allclose(model.effect(frame[["x"]], **ask), plain.effect(frame[["x", "firm"]], **ask), rtol=1e-6)


@pytest.mark.contract
@pytest.mark.parametrize("estimator", [DFIV, KernelIV, SieveIV])
def test_nonlinear_estimators_take_one_kind_of_clusters(estimator: type) -> None:
    with pytest.raises(ParameterError, match="one kind of clusters, got two"):
        estimator("y ~ x + [t ~ z]", clusters=["firm", "year"]).fit(panel())


@pytest.mark.contract
@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x | firm | t ~ z", "2 bars.*after one bar, as in"),
        ("y ~ x + [t ~ z] |", "after the bar.*names of columns after one bar"),
        ("y ~ x + [t ~ z] | C(firm)", r"C\(firm\).*cannot be absorbed"),
        ("y ~ x + [t ~ z] | firm + year + firm", "names a column twice"),
        ("y ~ x + [t ~ z] | firm^year", "combine several columns into one"),
        ("y ~ x + [t ~ z] | firm + 'year", "cannot be absorbed"),
    ],
)
def test_what_cannot_be_absorbed_is_refused(formula: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        TwoStageLeastSquares(formula).fit(panel())


@pytest.mark.contract
@pytest.mark.parametrize("estimator", [TwoStageLeastSquares, LeastSquares])
def test_fixed_effects_named_twice_in_a_list_are_refused(estimator: type) -> None:
    model = estimator(outcome="y", treatment="t", instruments="z", fixed_effects=["firm", "year", "firm"])
    with pytest.raises(FormulaError, match="names a column twice: name each once"):
        model.fit(panel())


@pytest.mark.contract
def test_columns_that_fixed_effects_determine_are_refused_by_name() -> None:
    frame = panel().assign(size=lambda rows: np.sqrt(rows["firm"]))
    with pytest.raises(DataError, match=r"'size' does not vary within the fixed effects 'firm'.*drop it"):
        TwoStageLeastSquares("y ~ size + [t ~ z] | firm").fit(frame)
    with pytest.raises(DataError, match="'size' does not vary within"):
        TwoStageLeastSquares("y ~ x + [t ~ size] | firm").fit(frame)
    with pytest.raises(DataError, match="every row is the only one of some group"):
        LeastSquares("y ~ x + [t ~ z] | row").fit(frame.assign(row=range(len(frame))))
    with pytest.raises(FormulaError, match="give fixed effects in the formula, after a bar"):
        LeastSquares("y ~ x + [t ~ z]", fixed_effects="firm").fit(frame)


@pytest.mark.contract
def test_what_would_count_rows_without_fixed_effects_is_refused() -> None:
    frame = panel()
    model = TwoStageLeastSquares("y ~ x + [t ~ z] | firm").fit(frame)
    with pytest.raises(DataError, match=r"cfiv\.diagnose has it"):
        model.results_.wu_hausman()
    with pytest.raises(DataError, match=r"cfiv\.diagnose has it"):
        model.results_.first_stage.cragg_donald
    with pytest.raises(ParameterError, match="score predicts outcomes"):
        model.score(frame)


@pytest.mark.law
def test_conventions_count_fixed_effects_as_they_say() -> None:
    frame = without_singletons()
    n, g = len(frame), 47
    kind: dict[str, Any] = {"covariance": "clustered", "clusters": "firm"}
    errors = {
        debiased: TwoStageLeastSquares(FORMULA, debiased=debiased, **kind).fit(frame).results_.std_errors["t"]
        for debiased in (False, True, "fixest", "stata", None)
    }
    factors = {False: 1.0, True: (n - 1) / (n - 3 - 46 - 7) * g / (g - 1), "fixest": (n - 1) / (n - 3 - 7) * g / (g - 1)}
    for name, factor in (*factors.items(), ("stata", factors["fixest"]), (None, factors["fixest"])):
        assert errors[name] == pytest.approx(errors[False] * np.sqrt(factor), rel=SAME)
    parts = frame.assign(year=frame["year"] + 100 * (frame["firm"] % 2))  # two parts that no row connects
    fixest, stata = (
        TwoStageLeastSquares(FORMULA, debiased=name, covariance="unadjusted").fit(parts).results_.small_sample
        for name in ("fixest", "stata")
    )
    assert fixest.parameters == stata.parameters + 1


@pytest.mark.contract
def test_few_clusters_of_either_kind_are_warned_of() -> None:
    with pytest.warns(FewClustersWarning, match="there are 8 clusters"):
        LeastSquares(FORMULA, covariance="clustered", clusters=["firm", "year"]).fit(panel())
