"""``cfiv.compare``: a regression table whose numbers are those of the models, of ``infer`` and of ``diagnose``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.diagnostics.results import ConfidenceSet, TestResult
from cfiv.errors import CfivError, ParameterError
from tests.diagnostics.problems import COVARIANCES, table
from tests.latex import assert_compilable

ONE = "y ~ x + [t ~ z]"
TWO = "y ~ x + [t ~ z + r]"
BOTH = "y ~ x + [t + s ~ z + q + r]"
#: The same sums in another order.
ROUNDING = 1e-9


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return table()


def fitted(frame: pd.DataFrame, formula: str = TWO, **options: Any) -> cfiv.TwoStageLeastSquares:
    return cfiv.TwoStageLeastSquares(formula, **options).fit(frame)


@pytest.fixture(scope="module")
def four(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "(1)": cfiv.LeastSquares(ONE).fit(frame),
        "(2)": fitted(frame, ONE, covariance="unadjusted", debiased=True),
        "(3)": fitted(frame, TWO, covariance="clustered", clusters="group"),
        "(4)": fitted(frame, BOTH, weights="w"),
    }


def lines(comparison: Any) -> dict[str, list[str]]:
    """Cells of the rows that have a label, by it."""
    (grid,) = comparison._grids()
    return {row[0]: list(row[1:]) for block in grid.blocks for row in block if row[0]}


# Numbers


@pytest.mark.law
@pytest.mark.parametrize("formula", [ONE, TWO, BOTH])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_foot_has_the_tests_of_diagnose_under_the_covariance_of_the_fit(
    frame: pd.DataFrame, covariance: Any, formula: str
) -> None:
    clusters = "group" if covariance == "clustered" else None
    model = fitted(frame, formula, covariance=covariance, clusters=clusters, weights="w")
    found, told = cfiv.compare({"it": model}).table.loc["it"], cfiv.diagnose(frame, model)
    strength = told.kleibergen_paap_f if formula == BOTH else told.partial_f[0]
    assert isinstance(strength, TestResult)
    assert found["first_stage_f"] == pytest.approx(strength.statistic, rel=ROUNDING)
    j = told.sargan if covariance == "unadjusted" else told.hansen_j
    if isinstance(j, TestResult):
        assert (found["j"], found["j_p_value"]) == pytest.approx((j.statistic, j.p_value), rel=ROUNDING)
    else:
        assert "j" not in found
    if isinstance(told.anderson_rubin_set, ConfidenceSet):
        ends = [float(end) for end in found["ar_set"].partition("; ")[0].strip("[]").split(", ")]
        np.testing.assert_allclose(ends, told.anderson_rubin_set.intervals[0], rtol=5e-3)  # three digits
    else:
        assert "ar_set" not in found


@pytest.mark.law
@pytest.mark.parametrize(
    "formula", [TWO, "y ~ x + [bs(t, df=4) + t:x ~ bs(z, df=5) + z:x + r]", "y ~ x + C(region) + [t + t:x ~ z + z:x + z:q]"]
)
@pytest.mark.parametrize("debiased", [True, False])
def test_effects_of_linear_models_are_those_of_infer(frame: pd.DataFrame, formula: str, debiased: bool) -> None:
    model = fitted(frame, formula, covariance="clustered", clusters="group", debiased=debiased)
    inference = cfiv.infer(frame, model)
    effects = {"small": (0.0, 0.5), "large": (-1.0, 1.0)}
    found = cfiv.compare({"model": model, "inference": inference}, effects=effects).estimates
    for label, (start, end) in effects.items():
        rows = found[found["term"] == label].set_index("model")
        expected = inference.effect(treatment_from=start, treatment_to=end)
        average = model.effect(frame, treatment_from=start, treatment_to=end).mean()
        np.testing.assert_allclose(rows["estimate"], [average] * 2, rtol=1e-7)
        np.testing.assert_allclose(rows["std_error"], [*expected.std_errors] * 2, rtol=1e-7)
        np.testing.assert_allclose(*rows["p_value"], rtol=1e-6)


@pytest.mark.law
def test_coefficients_and_errors_are_those_of_the_models(frame: pd.DataFrame, four: dict[str, Any]) -> None:
    found = cfiv.compare(four).estimates.set_index(["model", "term"])
    for name, model in four.items():
        expected = model.coefficients_
        np.testing.assert_array_equal(found.loc[name].loc[expected.index, "estimate"], expected["coefficient"])
        np.testing.assert_array_equal(found.loc[name].loc[expected.index, "std_error"], expected["std_error"])
        np.testing.assert_array_equal(found.loc[name].loc[expected.index, "p_value"], expected["p_value"])


@pytest.mark.contract
def test_models_without_errors_have_effects_and_a_note(frame: pd.DataFrame) -> None:
    kernel = cfiv.KernelIV(TWO, landmarks=50).fit(frame)
    sieve = cfiv.infer(frame, cfiv.SieveIV(TWO, segments=2).fit(frame))
    comparison = cfiv.compare({"kernel": kernel, "sieve": sieve}, effects=[(0, 1)])
    rows = comparison.estimates.set_index("model")
    assert rows["term"].tolist() == ["t 0 to 1"] * 2
    assert rows.loc["kernel", "estimate"] == pytest.approx(kernel.effect(frame, treatment_from=0, treatment_to=1).mean())
    assert np.isnan(rows.loc["kernel", "std_error"])
    assert rows.loc["sieve", "std_error"] == sieve.effect(treatment_from=0, treatment_to=1).std_errors[0]
    assert "Without standard errors: kernel." in str(comparison)


# What is shown


@pytest.mark.law
def test_treatments_come_first_the_constant_last_and_errors_beneath(four: dict[str, Any]) -> None:
    (grid,) = cfiv.compare(four)._grids()
    body = grid.blocks[0]
    assert [row[0] for row in body] == ["t", "", "s", "", "x", "", "Intercept", ""]
    assert body[2][1:4] == ("", "", "")
    assert all(cell.startswith("(") and cell.endswith(")") for cell in body[1][1:])


@pytest.mark.contract
def test_an_inference_on_a_learned_function_says_that_it_is_corrected_and_whether_the_function_is_trusted(
    frame: pd.DataFrame,
) -> None:
    noise = frame.assign(z=np.random.default_rng(99).normal(size=len(frame)))  # moves nothing
    for data, word in ((frame, "yes"), (noise, "no")):
        model = cfiv.KernelIV(ONE, random_state=0).fit(data)
        assert model.trust_.trusted is (word == "yes")
        cells = lines(cfiv.compare({"own": model, "inferred": cfiv.infer(data, model)}, effects=[(0.0, 1.0)]))
        assert cells["Trusted"] == [word, word]
        assert cells["Corrected by"] == ["", "splines"]


@pytest.mark.contract
def test_the_convention_of_debiased_errors_is_named(frame: pd.DataFrame) -> None:
    models = {str(kind): fitted(frame, debiased=kind) for kind in (False, True, "stata", "fixest")}
    assert lines(cfiv.compare(models))["Debiased"] == ["", "yes", "stata", "fixest"]


@pytest.mark.law
def test_the_foot_says_estimator_errors_clusters_and_rows(four: dict[str, Any]) -> None:
    cells = lines(cfiv.compare(four))
    assert cells["Estimator"] == ["Least squares", "2SLS", "2SLS", "2SLS"]
    assert cells["Standard errors"] == ["robust", "unadjusted", "clustered", "robust"]
    assert cells["Debiased"] == ["", "yes", "", ""]
    assert cells["Clusters"] == ["", "", "group (40)", ""]
    assert cells["Observations"] == ["300"] * 4
    assert "Fixed effects" not in cells


@pytest.mark.law
def test_fixed_effects_have_a_row_where_the_roles_say_so(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(frame)
    encoder = type(model.structural_function_.encoder)
    told = model.structural_function_.encoder.describe()
    monkeypatch.setattr(encoder, "describe", lambda _: [*told, ("Fixed effects", "firm + year")])
    assert lines(cfiv.compare({"it": model}))["Fixed effects"] == ["firm + year"]


@pytest.mark.law
@pytest.mark.parametrize(("stars", "expected"), [(False, 0), (True, 3), ((0.05,), 1), ((0.2, 0.1), 2)])
def test_stars_are_by_choice(frame: pd.DataFrame, stars: Any, expected: int) -> None:
    comparison = cfiv.compare({"it": fitted(frame)}, stars=stars)
    assert lines(comparison)["t"][0].count("*") == expected
    assert lines(comparison)["x"][0].count("*") <= expected
    assert ("* p < " in str(comparison)) == bool(expected)


@pytest.mark.law
def test_terms_are_chosen_ordered_and_named_and_the_others_counted(four: dict[str, Any]) -> None:
    comparison = cfiv.compare(four, terms={"x": "Control", "t": "Dose"})
    (grid,) = comparison._grids()
    assert [row[0] for row in grid.blocks[0]] == ["Control", "", "Dose", ""]
    assert lines(comparison)["Further terms"] == ["1", "1", "1", "2"]
    assert "Further terms" not in lines(cfiv.compare(four))
    beside = cfiv.compare({"(4)": four["(4)"]}, terms=["x"], effects={"more": ({"t": 0, "s": 0}, {"t": 1, "s": 0})})
    assert list(lines(beside))[:2] == ["more", "x"]


@pytest.mark.law
def test_the_foot_is_chosen_too(four: dict[str, Any], frame: pd.DataFrame) -> None:
    comparison = cfiv.compare(four, foot=["rows", "seconds", "score"], data=frame)
    (grid,) = comparison._grids()
    assert [row[0] for row in grid.blocks[1]] == ["Observations", "Seconds", "Held-out score"]
    assert "No J" not in str(comparison)


@pytest.mark.law
def test_estimates_have_the_decimals_of_their_errors(frame: pd.DataFrame) -> None:
    for unit in (1e-3, 1.0, 1e4):
        model = fitted(frame.assign(y=frame["y"] * unit))
        for digits in (2, 3, 4):
            (grid,) = cfiv.compare({"it": model}, digits=digits)._grids()
            value, error = grid.blocks[0][0][1].replace(",", ""), grid.blocks[0][1][1].strip("()").replace(",", "")
            assert len(value.partition(".")[2]) == len(error.partition(".")[2])
            assert float(error) == pytest.approx(model.results_.std_errors["t"], rel=0.05)
            if "." in error:
                assert len(error.replace(".", "").lstrip("0")) == digits


@pytest.mark.law
def test_blanks_have_their_reason(four: dict[str, Any]) -> None:
    text = " ".join(str(cfiv.compare(four)).split())
    assert "No J in (2): exactly identified, 1 instrument for 1 treatment." in text
    assert "No AR set in (4): for several treatments it is computed with covariance='unadjusted' only." in text
    alone = " ".join(str(cfiv.compare({"(2)": four["(2)"]})).split())
    assert "No J: exactly identified" in alone


@pytest.mark.law
def test_a_set_of_the_coefficient_says_so_beside_effects_of_other_changes(four: dict[str, Any]) -> None:
    told = "AR set: Anderson and Rubin's, of the treatment's coefficient, valid however weak the instruments."
    assert told in " ".join(str(cfiv.compare({"(2)": four["(2)"]}, effects=[(0, 3)])).split())
    beside = " ".join(str(cfiv.compare({"(2)": four["(2)"]}, effects=[(0, 3)], terms=["t"])).split())
    assert "AR set: Anderson and Rubin's, valid" in beside


@pytest.mark.law
def test_a_hac_fit_has_the_tests_of_diagnose_under_its_covariance(frame: pd.DataFrame) -> None:
    model = fitted(frame, covariance="kernel", bandwidth=3)
    comparison, told = cfiv.compare({"it": model}), cfiv.diagnose(frame, model)
    strength, j = told.partial_f[0], told.hansen_j
    assert isinstance(strength, TestResult)
    assert isinstance(j, TestResult)
    found = comparison.table.loc["it"]
    assert (found["first_stage_f"], found["j"]) == pytest.approx((strength.statistic, j.statistic), rel=ROUNDING)
    assert "HAC" in str(comparison)


@pytest.mark.law
def test_outcomes_that_differ_have_a_row(frame: pd.DataFrame) -> None:
    models = {"a": fitted(frame), "b": fitted(frame.assign(v=frame["y"] ** 2), TWO.replace("y", "v", 1))}
    assert lines(cfiv.compare(models))["Outcome"] == ["y", "v"]
    assert "Outcome: y." in str(cfiv.compare({"a": models["a"]}))


@pytest.mark.law
def test_four_models_fit_a_terminal_and_more_go_in_panels(four: dict[str, Any]) -> None:
    assert max(map(len, str(cfiv.compare(four, stars=True)).splitlines())) <= 80
    many = str(cfiv.compare({f"model {i}": four["(2)"] for i in range(9)}))
    assert max(map(len, many.splitlines())) <= 80
    assert many.count("Estimator") > 1
    assert [many.count(f"model {i}") for i in range(9)] == [1] * 9


@pytest.mark.law
def test_four_models_make_latex_markdown_and_html_that_are_whole(four: dict[str, Any]) -> None:
    comparison = cfiv.compare(
        {f"{name} & co_1": model for name, model in four.items()}, stars=True, terms={"t": "100 % [t]", "x": "*x"}
    )
    assert_compilable(comparison.to_latex())
    latex, html = comparison.to_latex(), comparison.to_html()
    assert latex.startswith(r"\begin{tabular}{lcccc}")
    assert r"{*}x & " in latex
    pipes = [line for line in comparison.to_markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in pipes} == {6}
    assert html.count("<tr") == html.count("</tr>")
    assert "&amp; co_1" in html
    assert comparison._repr_html_() == html


@pytest.mark.law
def test_estimators_of_arrays_are_compared_as_well(frame: pd.DataFrame) -> None:
    data = cfiv.IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], clusters=frame["group"])
    model = cfiv.TwoStageLeastSquares(covariance="clustered").fit(data)
    cells = lines(cfiv.compare({"it": model}, effects={"by one": (0.0, 1.0)}, terms=["Intercept"]))
    assert cells["by one"] == lines(cfiv.compare({"it": model}))["treatment"]
    assert cells["Clusters"] == ["40"]


# What is refused


@pytest.mark.contract
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stars": (0.01, 0.1)}, ["stars must be", "levels that fall"]),
        ({"stars": (5,)}, ["stars must be"]),
        ({"stars": "yes"}, ["stars must be", "'yes'"]),
        ({"digits": 0}, ["digits must be a whole number"]),
        ({"terms": ["tt"]}, ["no model has a coefficient 'tt'", "'t'"]),
        ({"foot": ["row"]}, ["no row 'row' at the foot", "'rows'"]),
        ({"effects": [1, 2]}, ["pairs of treatments", "got 1"]),
        ({"effects": {"a": (1, 2, 3)}}, ["pairs of treatments"]),
        ({"effects": [("low", "high")]}, ["column 't' holds text"]),
    ],
)
def test_what_makes_no_sense_is_refused(frame: pd.DataFrame, options: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(CfivError) as refused:
        cfiv.compare({"it": fitted(frame)}, **options)
    for words in says:
        assert words in str(refused.value)


@pytest.mark.contract
def test_something_else_than_a_model_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(ParameterError, match="must be a fitted cfiv estimator, or an Inference on one, got dict"):
        cfiv.compare({"it": {}})  # type: ignore[dict-item]
    with pytest.raises(cfiv.NotFittedError):
        cfiv.compare({"it": cfiv.LeastSquares(ONE)})


def test_names_that_are_one_as_text_are_refused(four: dict[str, Any]) -> None:
    model = next(iter(four.values()))
    with pytest.raises(cfiv.ParameterError, match=r"the models need names that differ as text, got \[1, '1'\]: rename one"):
        cfiv.compare({1: model, "1": model})
