"""``cfiv.diagnose``: roles of every kind, one table, and refusals that say what to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from linearmodels.datasets import card, fertility, mroz, wage

import cfiv
from cfiv import DFIV, CfivError, DataError, FormulaError, IVData, ParameterError, TwoStageLeastSquares
from cfiv.datasets import card1995, demand
from cfiv.diagnostics import adequacy
from cfiv.diagnostics.report import Diagnostics
from cfiv.diagnostics.results import ConfidenceSet, TestResult, Unavailable
from cfiv.errors import FewClustersWarning, MissingRowsWarning
from tests.diagnostics.problems import COVARIANCES, FORMULAS, SAME, reference, table

FORMULA = "y ~ x + [t ~ z + q]"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One division instead of ten: these tests are of what goes in and out."""
    monkeypatch.setattr(adequacy, "DIVISIONS", 1)


def shown(result: Diagnostics) -> str:
    return str(result.table.drop(columns="question").to_dict("records"))


@pytest.mark.law
def test_a_formula_names_an_estimator_and_arrays_in_the_same_roles_give_the_same_result() -> None:
    frame = table()
    expected = shown(cfiv.diagnose(frame, FORMULA, weights="w"))
    names = {"outcome": "y", "treatment": "t", "instruments": ["z", "q"], "covariates": "x", "weights": "w"}
    data = IVData(
        outcome=frame["y"],
        treatment=frame["t"],
        instruments=frame[["z", "q"]],
        covariates=frame["x"],
        weights=frame["w"],
        names={role: [name] if isinstance(name, str) else name for role, name in names.items()},
    )
    fitted = TwoStageLeastSquares(FORMULA, weights="w").fit(frame)
    for given in (
        (frame, TwoStageLeastSquares(**names)),  # type: ignore[arg-type]
        (frame, fitted),
        (frame, DFIV(FORMULA, weights="w")),
        (IVData(outcome=frame["y"], treatment=frame["t"], frame=frame), DFIV(FORMULA, weights="w")),
        (data, None),
    ):
        assert shown(cfiv.diagnose(*given)) == expected
    assert shown(cfiv.diagnose(frame, DFIV(FORMULA), weights="w")) == expected


@pytest.mark.law
def test_the_estimator_is_left_as_it_is() -> None:
    model = DFIV(FORMULA, weights="w")
    before = dict(vars(model))
    cfiv.diagnose(table(), model)
    assert vars(model) == before


@pytest.mark.law
def test_clusters_of_a_column_an_estimator_and_arrays_are_the_same() -> None:
    frame = table()
    expected = shown(cfiv.diagnose(frame, "y ~ [t ~ z]", clusters="group", covariance="clustered"))
    data = IVData(
        outcome=frame["y"],
        treatment=frame["t"],
        instruments=frame["z"],
        clusters=frame["group"],
        names={"outcome": ["y"], "treatment": ["t"], "instruments": ["z"]},
    )
    model = TwoStageLeastSquares("y ~ [t ~ z]", clusters="group", covariance="clustered")
    assert shown(cfiv.diagnose(data, covariance="clustered")) == expected
    assert shown(cfiv.diagnose(frame, model, covariance="clustered")) == expected
    assert shown(cfiv.diagnose(frame, DFIV("y ~ [t ~ z]"), clusters="group", covariance="clustered")) == expected


@pytest.mark.law
def test_rows_with_gaps_and_rows_without_weight_do_not_count() -> None:
    frame = table().assign(w=lambda f: np.where(f.index % 5 == 0, 0.0, f["w"]))
    holed = frame.assign(x=frame["x"].where(frame.index % 7 != 0))
    kept = frame[(frame.index % 7 != 0) & (frame["w"] > 0)]
    with pytest.warns(MissingRowsWarning, match="dropped 43 of 300 rows") as caught:
        result = cfiv.diagnose(holed, FORMULA, weights="w")
    assert caught[0].filename == __file__
    # To rounding, as sums of products may depend on where the rows lie in memory.
    pd.testing.assert_frame_equal(result.table, cfiv.diagnose(kept, FORMULA, weights="w").table, rtol=1e-9)
    with pytest.raises(DataError, match="43 of 300 rows have gaps"):
        cfiv.diagnose(holed, FORMULA, missing="raise")


@pytest.mark.law
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_table_has_a_row_a_test_and_a_reading_in_each(formula: str, covariance: Any) -> None:
    result = cfiv.diagnose(table(), formula, covariance=covariance, clusters="group" if covariance == "clustered" else None)
    frame = result.table
    treatments = 2 if "+ s" in formula else 1
    assert len(frame) == 13 + (3 * treatments if treatments > 1 else 2)
    assert frame["test"].is_unique
    assert frame["reading"].str.endswith(".").all()
    absent = frame["reading"].str.startswith("Not available: ")
    assert frame.loc[absent, ["statistic", "p_value", "critical_value"]].isna().all(axis=None)
    assert (frame.loc[~absent, "statistic"].notna() | (frame.loc[~absent, "set"] != "")).all()
    assert frame["p_value"].dropna().between(0, 1).all()
    for text in (str(result), result.to_markdown(), result.to_latex(), result._repr_html_()):
        for name in frame["test"]:
            assert name in text
    assert max(map(len, str(result).splitlines())) <= 96
    assert repr(result) == str(result)
    lines = str(result).splitlines()
    end = next(line for line in lines if line.startswith("Test ")).index("p-value") + len("p-value")
    for name, p_value in frame.set_index("test")["p_value"].dropna().items():
        line = next(line for line in lines if line.startswith(f"  {name} "))
        assert line[:end].endswith("  < .0001" if p_value < 0.0001 else f" {p_value:.4f}"), "it stands under its heading"


@pytest.mark.law
def test_attributes_and_table_are_the_same_results() -> None:
    result = cfiv.diagnose(table(), FORMULA)
    rows = result.table.set_index("test")
    for name in ("effective_f", "cragg_donald", "sargan", "hansen_j", "wu_hausman", "anderson_rubin", "residual_prediction"):
        found = getattr(result, name)
        assert isinstance(found, TestResult)
        assert rows.loc[found.name, "statistic"] == found.statistic
        assert found.null
    assert rows.loc["Anderson-Rubin set (t)", "set"] == str(result.anderson_rubin_set)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.sargan = result.hansen_j  # type: ignore[misc]


@pytest.mark.law
def test_the_level_widens_the_set_and_moves_the_readings() -> None:
    frame = table()
    sets = [cfiv.diagnose(frame, "y ~ x + [t ~ z]", level=level).anderson_rubin_set for level in (0.5, 0.9, 0.99)]
    lengths = [one.length for one in sets if isinstance(one, ConfidenceSet)]
    assert len(lengths) == 3
    assert lengths == sorted(lengths)
    assert "At 10 %, " in str(cfiv.diagnose(frame, FORMULA, level=0.9))


@pytest.mark.law
@pytest.mark.parametrize("covariance", ["unadjusted", "robust"])
def test_units_of_any_column_do_not_matter_in_any_test_but_the_set(covariance: Any) -> None:
    frame = table()
    scaled = frame.assign(
        y=1e9 * frame["y"], t=1e-9 * frame["t"] + 1e-8, x=1e12 * frame["x"], z=1e-7 * frame["z"], q=1e5 * (frame["q"] + 100)
    )
    one, other = (cfiv.diagnose(f, FORMULA, covariance=covariance).table.iloc[:-1] for f in (frame, scaled))  # not the forests
    # 1e-6: t has lost a digit and q three to their means before anything is computed.
    np.testing.assert_allclose(other["statistic"], one["statistic"], rtol=1e-6)
    assert other["reading"].tolist() == one["reading"].tolist()


@pytest.mark.law
def test_instruments_that_determine_a_binary_treatment_in_some_cells_leave_out_what_is_singular_and_say_so() -> None:
    generator = np.random.default_rng(0)
    z = generator.integers(0, 3, 300)
    t = np.where(z == 1, generator.integers(0, 2, 300), z // 2).astype(float)
    frame = pd.DataFrame({"z": z.astype(str), "t": t, "y": t + generator.normal(size=300)})
    result = cfiv.diagnose(frame, "y ~ [t ~ C(z)]")
    for found in (result.partial_f[0], result.kleibergen_paap_f):
        assert isinstance(found, Unavailable)
        assert "singular" in found.reason
    for name in ("effective_f", "cragg_donald", "kleibergen_paap_lm", "sargan", "hansen_j", "wooldridge", "anderson_rubin"):
        assert isinstance(getattr(result, name), TestResult), name
    assert isinstance(result.anderson_rubin_set, ConfidenceSet)
    assert result.anderson_rubin_set.contains(1.0)


@pytest.mark.law
def test_two_exactly_irrelevant_treatments_and_one_of_two_do_not_crash() -> None:
    z, t = np.tile([-1.0, 1.0, -1.0, 1.0], 50), np.tile([0.0, 0.0, 1.0, 1.0], 50)
    generator = np.random.default_rng(0)
    q = generator.normal(size=200)
    frame = pd.DataFrame({"z": z, "t": t, "q": q, "s": q + generator.normal(size=200), "y": t + generator.normal(size=200)})
    frame["q"] = frame["q"] - np.linalg.lstsq(np.column_stack([np.ones(200), t]), q, rcond=None)[0] @ [np.ones(200), t]
    result = cfiv.diagnose(frame, "y ~ [t + s ~ z + q]", covariance="unadjusted")
    for found in (result.wu_hausman, result.residual_prediction):
        assert isinstance(found, Unavailable)
    first = result.anderson_rubin_sets[0]
    assert isinstance(first, ConfidenceSet)
    assert first.is_whole_line
    assert isinstance(result.cragg_donald, TestResult)
    assert result.cragg_donald.statistic == pytest.approx(0.0, abs=1e-12)
    assert isinstance(result.kleibergen_paap_lm, TestResult)
    assert result.kleibergen_paap_lm.p_value == pytest.approx(1.0)


#: Data that linearmodels ships, with the specifications of their papers or textbooks.
SHIPPED: dict[str, tuple[Callable[[], pd.DataFrame], str]] = {
    "Card (1995)": (card.load, card1995.FORMULA),
    "Card (1995), two instruments": (card.load, card1995.FORMULA.replace("nearc4", "nearc2 + nearc4")),
    "Mroz (1987)": (mroz.load, "lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]"),
    "Blackburn and Neumark (1992)": (wage.load, "lwage ~ exper + [educ ~ sibs + brthord + meduc]"),
    "Sander (1992)": (fertility.load, "kids ~ age + agesq + black + east + northcen + west + [educ ~ meduc + feduc]"),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", SHIPPED)
def test_on_the_data_of_published_papers_everything_is_what_linearmodels_says(name: str) -> None:
    load, formula = SHIPPED[name]
    columns = [column for column in load().columns if column in formula.replace("[", " ").replace("]", " ").split()]
    frame = load()[columns].dropna()
    for covariance in ("unadjusted", "robust"):
        ours = cfiv.diagnose(frame, formula, covariance=covariance)
        theirs = reference(formula, frame, covariance=covariance, debiased=True)
        first = theirs.first_stage
        count = formula.split("[")[1].count("+") + 1
        expected = {
            "Partial F (educ)": first.diagnostics["f.stat"]["educ"] / (1 if covariance == "unadjusted" else count),
            "Cragg-Donald F": first.cragg_donald_f,
            "Kleibergen-Paap F": first.kleibergen_paap_f,
            "Kleibergen-Paap LM": first.kleibergen_paap.stat,
            "Wu-Hausman": theirs.wu_hausman().stat,
            "Durbin": theirs.durbin().stat,
            "Wooldridge regression": reference(formula, frame, covariance=covariance).wooldridge_regression.stat,
        }
        if count > 1:
            expected["Sargan"] = theirs.sargan.stat
        found = ours.table.set_index("test")["statistic"]
        for test, value in expected.items():
            assert found[test] == pytest.approx(value, rel=SAME), test


@pytest.mark.oracle
def test_published_first_stage_statistics() -> None:
    # Wooldridge, Introductory Econometrics, example 15.5: F = 55.40; example 15.4 (Card): nearc4 has t = 3.64, so F = t^2.
    women = cfiv.diagnose(mroz.load().dropna(subset=["lwage"]), SHIPPED["Mroz (1987)"][1], covariance="unadjusted")
    men = cfiv.diagnose(card.load(), card1995.FORMULA, covariance="unadjusted")
    assert isinstance(women.partial_f[0], TestResult)
    assert isinstance(men.partial_f[0], TestResult)
    assert women.partial_f[0].statistic == pytest.approx(55.40, abs=5e-3)
    assert men.partial_f[0].statistic ** 0.5 == pytest.approx(3.64, abs=5e-3)


def arrays(**changes: Any) -> IVData:
    frame = table()
    parts = {"outcome": frame["y"], "treatment": frame["t"], "instruments": frame[["z", "q"]], "covariates": frame["x"]}
    return IVData(**(parts | changes))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda f: cfiv.diagnose(f, FORMULA, covariance="HC3"), ParameterError, "'kernel', or None, got 'HC3'"),
        (lambda f: cfiv.diagnose(f, FORMULA, kernel="parzen"), ParameterError, "kernel='parzen' is for covariance='kernel'"),
        (lambda f: cfiv.diagnose(f, FORMULA, bandwidth=3), ParameterError, "bandwidth=3 is for covariance='kernel'"),
        (lambda f: cfiv.diagnose(f, FORMULA, covariance="clustered"), ParameterError, "give clusters='column'"),
        (
            lambda f: cfiv.diagnose(f, FORMULA, clusters="group", covariance="robust"),
            ParameterError,
            "set covariance='clustered'",
        ),
        (
            lambda f: cfiv.diagnose(f, TwoStageLeastSquares(FORMULA, covariance="kernel", bandwidth=400)),
            ParameterError,
            "bandwidth must be less than the 300 rows, got 400",
        ),
        (lambda f: cfiv.diagnose(f, FORMULA, level=95), ParameterError, "such as 0.95, got 95"),
        (lambda f: cfiv.diagnose(f, FORMULA, level=0.0), ParameterError, "got 0.0"),
        (lambda f: cfiv.diagnose(f, FORMULA, level="0.9"), ParameterError, "got '0.9'"),
        (lambda f: cfiv.diagnose(f, FORMULA, random_state=-1), ParameterError, "random_state"),
        (lambda f: cfiv.diagnose(f, FORMULA, missing="ignore"), ParameterError, "missing must be"),
        (lambda f: cfiv.diagnose(f, 3), ParameterError, "or None with an IVData of arrays, got int"),
        (lambda f: cfiv.diagnose(f, DFIV), ParameterError, "not its class"),
        (lambda f: cfiv.diagnose(f, np.ones(3)), ParameterError, "got ndarray"),
        (lambda f: cfiv.diagnose(f), FormulaError, "give it a formula"),
        (lambda f: cfiv.diagnose(f, DFIV()), FormulaError, "give it a formula"),
        (lambda f: cfiv.diagnose(f, DFIV(FORMULA, weights="w"), weights="x"), ParameterError, "leave it out"),
        (lambda f: cfiv.diagnose(f, DFIV(FORMULA), missing="raise"), ParameterError, "missing='drop': leave it out"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [t + s ~ z]"), DataError, "got 1 ('z') for 2 ('t', 's')"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [t ~ z + q + zq]"), DataError, "'zq' is a linear combination"),
        (lambda f: cfiv.diagnose(f, "y ~ x + xx + [t ~ z]"), DataError, "'xx' is a linear combination"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [t ~ shifted]"), DataError, "'shifted' is a linear combination"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [t + tx ~ z + q]"), DataError, "'tx' is a linear combination"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [zq ~ z + q]"), DataError, "make it a covariate"),
        (lambda f: cfiv.diagnose(f, "exact ~ x + [t ~ z]"), DataError, "no errors to test"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [t ~ one]"), DataError, "constant"),
        (lambda f: cfiv.diagnose(f.head(4), FORMULA), DataError, "more rows than the 5 columns"),
        (lambda f: cfiv.diagnose(f, "y ~ x + [t ~ w0]", weights="w0"), DataError, "constant"),
        (lambda f: cfiv.diagnose(arrays(treatment=np.arange(4800.0).reshape(300, 4, 4))), DataError, "arrays of shape"),
        (lambda f: cfiv.diagnose(arrays(outcome=None)), DataError, "needs outcome"),
        (lambda f: cfiv.diagnose(arrays(), FORMULA), DataError, "arrays only"),
        (lambda f: cfiv.diagnose([1, 2], FORMULA), DataError, "a table is needed"),
        (
            lambda f: cfiv.diagnose(f.assign(group=1), FORMULA, covariance="clustered", clusters="group"),
            DataError,
            "2 clusters",
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_got_and_what_to_do(call: Any, kind: type, words: str) -> None:
    frame = table()
    frame = frame.assign(
        zq=frame["z"] - 2 * frame["q"],
        xx=3 * frame["x"] + 1,
        shifted=1e6 - frame["x"],
        tx=frame["t"] + frame["x"],
        exact=1 + frame["t"] - frame["x"],
        one=1.0,
        w0=(np.arange(300) < 10).astype(float),
    )
    with pytest.raises(kind) as caught:
        call(frame)
    assert isinstance(caught.value, CfivError)
    assert words in str(caught.value)


@pytest.mark.law
def test_a_confidence_set_says_what_it_is() -> None:
    infinite = math.inf
    cases = {
        (): ("empty", True, True, False),
        ((-infinite, infinite),): ("(-inf, inf)", False, False, True),
        ((-1.5, 2.0),): ("[-1.5, 2]", True, False, True),
        ((-infinite, -0.4), (1.2, infinite)): ("(-inf, -0.4] and [1.2, inf)", False, False, False),
    }
    for intervals, (text, bounded, empty, zero) in cases.items():
        found = ConfidenceSet("t", 0.95, intervals)
        assert (str(found), found.is_bounded, found.is_empty, found.contains(0.0)) == (text, bounded, empty, zero)
        assert found.reading.endswith(".")
    assert ConfidenceSet("t", 0.95, ((-1.0, 1.0), (2.0, 5.0))).length == 5.0


def test_the_gate_says_when_it_cannot_see() -> None:
    """A curve and a line look alike through an instrument that does not move the treatment."""
    formula = "sales ~ bs(time, df=8, extrapolation='clip')*emotion + [price ~ fuel]"
    readings = []
    for strength in (1.0, 0.01):
        data, _ = demand.simulate(1000, rho=0.9, seed=0, error_scale=50, instrument_strength=strength)
        readings.append(cfiv.diagnose(data.frame, formula).residual_prediction.reading)
    assert "the linear model is rejected" in readings[0]
    assert "with instruments this weak hardly anything could" in readings[1]


def test_the_covariance_is_the_estimators_own_or_what_the_data_ask_for() -> None:
    frame = table()

    def kind(*arguments: Any, **options: Any) -> str:
        return dict(cfiv.diagnose(frame, *arguments, **options).facts)["Covariance"]

    formula = "y ~ x + [t ~ z]"
    assert kind(formula) == "robust"
    assert kind(formula, clusters="group").startswith("clustered by group")
    assert kind(TwoStageLeastSquares(formula, covariance="unadjusted")) == "unadjusted"
    assert kind(TwoStageLeastSquares(formula, covariance="clustered", clusters="group")).startswith("clustered by group")
    assert kind(TwoStageLeastSquares(formula, covariance="unadjusted"), covariance="robust") == "robust"


def test_few_clusters_are_named_once() -> None:
    frame = table().assign(few=lambda f: f["group"] % 5)
    with pytest.warns(FewClustersWarning, match="there are 5 clusters") as caught:
        cfiv.diagnose(frame, "y ~ x + [t ~ z]", clusters="few")
    assert len(caught) == 1
    assert caught[0].filename == __file__
