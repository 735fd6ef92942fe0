"""What linearmodels reports of a fit, cfiv reports too, under the same names; and an F statistic is an F statistic."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from linearmodels.iv import IV2SLS
from scipy import stats

from cfiv import DataError, IVData, LeastSquares, ParameterError, TwoStageLeastSquares
from cfiv.diagnostics.first_stage import partial_f
from cfiv.errors import CfivError, MissingRowsWarning, SingularError
from tests.diagnostics.problems import SAME, SIGNIFICANCE, problem, table

FORMULAS = [
    "y ~ x + [t ~ z + q]",
    "y ~ x + C(region) + [t + s ~ z + q + r]",
    "y ~ 0 + x + [t ~ z + q]",
    "y ~ [t + s ~ z + q]",
]
COVARIANCES: list[dict[str, Any]] = [
    {"covariance": "unadjusted"},
    {"covariance": "robust", "debiased": True},
    {"covariance": "clustered", "clusters": "group"},
    {"covariance": "kernel"},
    {"covariance": "kernel", "kernel": "qs", "bandwidth": 3, "debiased": True},
]
#: Every formula with every covariance, half of them weighted.
CASES = [
    pytest.param(formula, options, "w" if (i + j) % 2 else None, id=f"{formula}-{'-'.join(map(str, options.values()))}")
    for i, formula in enumerate(FORMULAS)
    for j, options in enumerate(COVARIANCES)
]


def fits(formula: str, options: dict[str, Any], weights: str | None = None) -> tuple[Any, Any]:
    """Results of cfiv and of linearmodels."""
    frame = table()
    written = formula if "0 +" in formula else formula.replace("~", "~ 1 +", 1)
    theirs = {"cov_type": options["covariance"], **{k: v for k, v in options.items() if k not in ("covariance", "clusters")}}
    if "clusters" in options:
        theirs["clusters"] = frame["group"]
    reference = IV2SLS.from_formula(written, frame, weights=frame[weights] if weights else None).fit(**theirs)
    return TwoStageLeastSquares(formula, weights=weights, **options).fit(frame).results_, reference


def same(ours: Any, theirs: Any, tolerance: float = SAME) -> None:
    np.testing.assert_allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), rtol=tolerance, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize(("formula", "options", "weights"), CASES)
def test_every_statistic_is_that_of_linearmodels(formula: str, options: dict[str, Any], weights: str | None) -> None:
    ours, theirs = fits(formula, options, weights)
    for name in ("params", "std_errors", "tstats", "pvalues"):
        same(getattr(ours, name), getattr(theirs, name)[ours.params.index])
    same(ours.cov, theirs.cov.loc[ours.cov.index, ours.cov.columns])
    same(ours.conf_int(0.9), theirs.conf_int(0.9).loc[ours.params.index])
    for name in ("nobs", "df_model", "df_resid", "rsquared", "rsquared_adj", "s2", "resid_ss", "total_ss", "model_ss"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=SAME), name
    for name in ("has_constant", "debiased", "cov_type"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.cov_config.get("bandwidth") == theirs.cov_config.get("bandwidth")
    for name in ("resids", "wresids"):
        same(getattr(ours, name), getattr(theirs, name))
    same(ours.fitted_values, theirs.fitted_values["fitted_values"])
    for name in ("durbin", "wu_hausman"):
        assert_same_test(getattr(ours, name)(), getattr(theirs, name)())
    for name in ("wooldridge_score", "wooldridge_regression", "f_statistic"):
        assert_same_test(getattr(ours, name), getattr(theirs, name))
    if formula != FORMULAS[-1]:
        for name in ("sargan", "basmann", "basmann_f", "anderson_rubin", "wooldridge_overid"):
            assert_same_test(getattr(ours, name), getattr(theirs, name))
    same(ours.wald_test(formula="t = 1").stat, theirs.wald_test(formula="t = 1").stat)


def assert_same_test(ours: Any, theirs: Any) -> None:
    assert ours.stat == pytest.approx(float(np.squeeze(theirs.stat)), rel=1e-7)
    assert ours.pval == pytest.approx(float(np.squeeze(theirs.pval)), rel=1e-6, abs=1e-15)
    assert (ours.df, ours.df_denom, ours.dist_name) == (theirs.df, theirs.df_denom, theirs.dist_name)


@pytest.mark.oracle
@pytest.mark.parametrize(("formula", "options", "weights"), CASES)
def test_the_first_stage_is_that_of_linearmodels(formula: str, options: dict[str, Any], weights: str | None) -> None:
    ours, theirs = (results.first_stage for results in fits(formula, options, weights))
    for name in ("rsquared", "partial.rsquared", "shea.rsquared"):
        same(ours.diagnostics[name], theirs.diagnostics[name].loc[ours.diagnostics.index])
    assert list(ours.individual) == list(theirs.individual)
    for name, regression in ours.individual.items():
        expected = theirs.individual[name]
        for part in ("params", "std_errors", "pvalues"):
            same(getattr(regression, part), getattr(expected, part)[regression.params.index])
    assert_same_test(ours.cragg_donald, theirs.cragg_donald)
    assert_same_test(ours.kleibergen_paap, theirs.kleibergen_paap)
    assert ours.cragg_donald_f == pytest.approx(theirs.cragg_donald_f, rel=SAME)
    assert ours.kleibergen_paap_f == pytest.approx(theirs.kleibergen_paap_f, rel=SAME)


@pytest.mark.law
@pytest.mark.parametrize("weights", [None, "w"])
def test_the_first_stages_f_is_the_textbooks_whatever_debiased_says(weights: str | None) -> None:
    frame = table()
    root = np.sqrt(frame[weights] / frame[weights].mean()) if weights else np.ones(len(frame))

    def squares(columns: list[str]) -> float:
        design = np.column_stack([np.ones(len(frame)), frame[columns]]) * np.asarray(root)[:, None]
        outcome = frame["t"] * root
        return float(np.sum((outcome - design @ np.linalg.lstsq(design, outcome, rcond=None)[0]) ** 2))

    full, restricted = squares(["x", "z", "q"]), squares(["x"])
    expected = (restricted - full) / 2 / (full / (300 - 4))
    for debiased in (False, True):
        model = TwoStageLeastSquares("y ~ x + [t ~ z + q]", covariance="unadjusted", debiased=debiased, weights=weights)
        found = model.fit(frame).results_.first_stage.diagnostics.loc["t"]
        assert found["f.stat"] == pytest.approx(expected, rel=SAME)
        assert found["f.dist"] == "F(2,296)"
        assert found["f.pval"] == pytest.approx(stats.f.sf(expected, 2, 296), rel=1e-6)


@pytest.mark.law
@pytest.mark.parametrize("options", [{"covariance": "robust"}, {"covariance": "clustered", "clusters": "group"}])
def test_the_first_stages_f_is_that_of_diagnose(options: dict[str, Any]) -> None:
    formula = "y ~ x + [t + s ~ z + q + r]"
    model = TwoStageLeastSquares(formula, **options).fit(table())
    found = model.results_.first_stage.diagnostics
    partial = partial_f(problem(formula, table(), covariance=options["covariance"]), significance=SIGNIFICANCE)
    for name, test in zip(found.index, partial, strict=True):
        assert found.loc[name, "f.stat"] == pytest.approx(test.statistic, rel=SAME)
        assert found.loc[name, "f.dist"].replace(",", ", ") == test.distribution


@pytest.mark.oracle
@pytest.mark.parametrize("variables", ["t", ["s"], ["s", "t"]])
def test_some_treatments_can_be_tested_for_exogeneity(variables: Any) -> None:
    ours, theirs = fits("y ~ x + [t + s ~ z + q + r]", {"covariance": "robust"})
    for name in ("durbin", "wu_hausman"):
        assert_same_test(getattr(ours, name)(variables), getattr(theirs, name)(variables))
    with pytest.raises(ParameterError, match="there is no treatment 'x'"):
        ours.durbin("x")


@pytest.mark.law
def test_combinations_have_the_variance_of_the_quadratic_form_in_any_unit() -> None:
    formula, weights = "y ~ x + [t + s ~ z + q + r]", np.array([[0.0, 1.0, 2.0, -3.0], [1.0, 0.0, 0.0, 0.0]])
    results = TwoStageLeastSquares(formula).fit(table()).results_
    found = results.combination(weights)
    np.testing.assert_allclose(found["estimate"], weights @ results.params, rtol=1e-12)
    np.testing.assert_allclose(found["std_error"], np.sqrt(np.diag(weights @ results.cov @ weights.T)), rtol=1e-12)
    tiny = TwoStageLeastSquares(formula).fit(table().assign(y=lambda f: 1e-300 * f["y"])).results_
    np.testing.assert_allclose(tiny.combination(weights) * 1e300, found, rtol=1e-12)
    same(tiny.wald_test(weights[:1], [1e-300]).stat, results.wald_test(weights[:1], [1.0]).stat)
    with pytest.raises(DataError, match="use std_errors and combination"):
        tiny.cov
    with pytest.raises(DataError, match="rescale it"):
        tiny.s2
    assert tiny.rsquared == pytest.approx(results.rsquared, rel=1e-12)
    assert tiny.f_statistic.stat == pytest.approx(results.f_statistic.stat, rel=1e-10)
    for name in ("sargan", "basmann", "wooldridge_overid", "wooldridge_score", "wooldridge_regression"):
        assert getattr(tiny, name).stat == pytest.approx(getattr(results, name).stat, rel=1e-8)


@pytest.mark.law
def test_a_test_that_counts_rows_which_dummies_take_up_says_so() -> None:
    frame = table().assign(cell=np.arange(300) % 100)
    results = TwoStageLeastSquares("y ~ C(cell) + [t ~ z + q]").fit(frame).results_
    for test in (results.sargan, results.durbin(), results.anderson_rubin):
        assert "counts all 300 rows, though exogenous columns take up 100: times 0.67 it would not" in str(test)
    for test in (results.basmann, results.wu_hausman(), results.wooldridge_score):
        assert test.note == ""
    assert TwoStageLeastSquares("y ~ x + [t ~ z + q]").fit(frame).results_.sargan.note == ""


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda r: r.sargan, DataError, "needs more instruments than treatments, got 1 for 1"),
        (lambda r: r.conf_int(95), ParameterError, "such as 0.95, got 95"),
        (lambda r: r.conf_int("a"), ParameterError, "got 'a'"),
        (lambda r: r.combination([1.0]), ParameterError, "3 numbers a row"),
        (lambda r: r.combination([1.0, np.nan, 0.0]), ParameterError, "finite numbers, got [1.0, nan, 0.0]"),
        (lambda r: r.combination({"t": np.nan}), ParameterError, "finite numbers, got {'t': nan}"),
        (lambda r: r.combination("x"), ParameterError, "weights must be finite numbers, got 'x'"),
        (lambda r: r.wald_test(), ParameterError, "give either restriction="),
        (lambda r: r.wald_test([[1, 0, 0]], formula="x = 0"), ParameterError, "give either restriction="),
        (lambda r: r.wald_test([[0, 1, 0]], [1.0, 2.0]), ParameterError, "one number a restriction, 1, got 2"),
        (lambda r: r.wald_test(formula="nothing = 0"), ParameterError, "no restriction of Intercept, x, t"),
        (lambda r: r.wald_test(formula=3), ParameterError, "formula must be text"),
        (lambda r: r.wald_test([[0, 1, 0], [0, 2, 0]]), SingularError, "singular"),
    ],
)
def test_bad_questions_are_refused_in_words(call: Any, kind: type, words: str) -> None:
    results = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(table()).results_
    with pytest.raises(CfivError) as caught:
        call(results)
    assert isinstance(caught.value, kind)
    assert words in str(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize("formula", ["x = 0, t = 2", "x = t = 0", ["x = 0", "t + x = 1"], {"x": 0, "t": 1}, "x"])
def test_restrictions_are_read_as_linearmodels_reads_them(formula: Any) -> None:
    ours, theirs = fits("y ~ x + [t ~ z]", {"covariance": "robust"})
    if formula == "x":
        assert_same_test(ours.wald_test(formula=formula), theirs.wald_test(formula="x = 0"))
    else:
        assert_same_test(ours.wald_test(formula=formula), theirs.wald_test(formula=formula))


@pytest.mark.law
def test_a_perfect_fit_has_no_missing_statistic() -> None:
    frame = pd.DataFrame({"t": [0.0, 1.0, 2.0, 4.0], "z": [0.0, 1.0, 2.0, 4.0], "y": [0.0, 2.0, 4.0, 8.0]})
    for kind in (TwoStageLeastSquares, LeastSquares):
        found = kind("y ~ 0 + [t ~ z]").fit(frame).coefficients_
        assert found["coefficient"]["t"] == pytest.approx(2.0, rel=1e-15)
        assert not found.isna().any().any()


def test_results_can_be_copied_pickled_and_read() -> None:
    for kind in (TwoStageLeastSquares, LeastSquares):
        model = kind("y ~ x + [t ~ z]").fit(table())
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            pd.testing.assert_frame_equal(other.results_.cov, model.results_.cov)
        assert repr(model.results_).splitlines()[1].split() == list(model.coefficients_.columns)


def test_combinations_and_restrictions_heed_the_names_of_coefficients() -> None:
    x, z, u = np.random.default_rng(0).normal(size=(3, 60))
    frame = pd.DataFrame({"y": 2 * (z + u) + x + u, "t": z + u, "x": x, "z": z})
    results = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(frame).results_
    expected = results.combination([0.0, 0.0, 1.0])
    for weights in ({"t": 1.0}, pd.Series({"t": 1.0, "x": 0.0}), pd.DataFrame({"t": [1.0]}), pd.Series([0.0, 0.0, 1.0])):
        pd.testing.assert_frame_equal(results.combination(weights), expected)
    assert results.wald_test({"t": 1.0}).stat == results.wald_test(formula="t = 0").stat
    with pytest.raises(ParameterError, match="weights name 'tt', which is no coefficient: did you mean 't'"):
        results.combination({"tt": 1.0})
    with pytest.raises(ParameterError, match="value goes by position"):
        results.wald_test({"t": 1.0}, pd.Series({"a": 2.0}))


@pytest.mark.contract
def test_residuals_and_fitted_values_go_back_into_the_table_that_was_fitted_to() -> None:
    """Whatever its index, and whatever rows were dropped: for gaps, or for a weight of zero."""
    r = np.random.default_rng(0)
    frame = pd.DataFrame(r.normal(size=(40, 4)), columns=["z", "x", "t", "y"], index=[f"row {i}" for i in r.permutation(40)])
    frame["t"] += frame["z"]
    frame["w"] = np.where(np.arange(40) % 7 == 0, 0.0, 1.0)
    frame.loc[frame.index[[3, 20]], "x"] = np.nan
    with pytest.warns(MissingRowsWarning):
        model = TwoStageLeastSquares("y ~ x + [t ~ z]", weights="w").fit(frame)
    used = frame.dropna()[lambda rows: rows["w"] > 0]
    assert model.results_.resids.index.equals(used.index)
    assert model.results_.wresids.index.equals(used.index)
    back = frame.assign(fitted=model.results_.fitted_values, left=model.results_.resids)
    assert back["left"].isna().sum() == len(frame) - len(used)
    kept = back.loc[used.index]
    np.testing.assert_allclose(kept["fitted"] + kept["left"], kept["y"], rtol=1e-12)
    np.testing.assert_allclose(kept["fitted"], model.predict(used), rtol=1e-9)


@pytest.mark.contract
def test_residuals_of_arrays_have_the_labels_of_a_series_and_are_numbered_without() -> None:
    r = np.random.default_rng(0)
    t, z, y = r.normal(size=(3, 12))
    index = pd.Index(list("abcdefghijkl"))
    arrays = IVData(outcome=pd.Series(y, index=index), treatment=t, instruments=z)
    assert TwoStageLeastSquares().fit(arrays).results_.resids.index.equals(index)
    numbered = IVData(outcome=y, treatment=t, instruments=z)
    assert TwoStageLeastSquares().fit(numbered).results_.resids.index.tolist() == list(range(12))
    with pytest.raises(DataError, match="a label for each of the 12 rows, got 3"):
        IVData(outcome=y, treatment=t, instruments=z, row_labels=index[:3])
