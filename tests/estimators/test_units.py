"""Units far from one: the digits of ordinary units, or a refusal in words; never another function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import AGMM, DFIV, DataError, DeepIV, IVData, KernelIV, NetworkRegression, SieveIV
from cfiv.diagnostics import adequacy
from cfiv.diagnostics.results import ConfidenceSet
from cfiv.errors import IllConditionedWarning
from cfiv.estimators.structural import StructuralFunction
from cfiv.estimators.units import Standardiser

ROLES = ["outcome", "treatment", "instruments", "covariates", "weights"]
MAKE: dict[str, Callable[[], Any]] = {
    "kernel": lambda: KernelIV(random_state=0, folds=2, ridge1=1e-3, ridge2=1e-3),
    "sieve": lambda: SieveIV(random_state=0, structure="linear"),
    "dfiv": lambda: DFIV(steps=2, nested=False, random_state=0, progress=False),
    "nested dfiv": lambda: DFIV(steps=2, random_state=0, progress=False),
    "network": lambda: NetworkRegression(steps=2, random_state=0, progress=False),
    "deep-iv": lambda: DeepIV(steps=2, random_state=0, progress=False),
    "agmm": lambda: AGMM(steps=2, random_state=0, progress=False),
}
#: A decimal unit rounds every value once more; float32 networks see that in their seventh digit at most.
ROUNDING = 1e-5


def arrays(scale: dict[str, float] | None = None, shift: dict[str, float] | None = None) -> dict[str, Any]:
    """Forty rows, each role in its own unit."""
    z, x, u, v = np.random.default_rng(0).normal(size=(4, 40))
    t = z + 0.3 * x + u
    parts = {"outcome": 3 + np.sin(t) + x + u, "treatment": t, "instruments": z, "covariates": x, "weights": 1 + v**2}
    return {role: (scale or {}).get(role, 1.0) * values + (shift or {}).get(role, 0.0) for role, values in parts.items()}


def answers(kind: str, parts: dict[str, Any]) -> np.ndarray:
    """Predictions at the first rows and the score."""
    model = MAKE[kind]().fit(IVData(**parts))
    predicted = model.predict(treatment=parts["treatment"][:5], covariates=parts["covariates"][:5])
    str(model.summary())
    return np.append(predicted, model.score(IVData(**parts)))


@functools.cache
def plain(kind: str) -> np.ndarray:
    """What is answered in no unit."""
    return answers(kind, arrays())


@pytest.mark.law
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", MAKE)
def test_units_that_are_powers_of_two_change_no_digit(kind: str, role: str) -> None:
    expected = plain(kind)
    for unit in (2.0**-800, 2.0**560):
        found = answers(kind, arrays({role: unit}))
        if role == "outcome":
            found[:-1] /= unit
        np.testing.assert_array_equal(found, expected)


@pytest.mark.law
@pytest.mark.parametrize("kind", MAKE)
def test_any_other_units_change_rounding_only(kind: str) -> None:
    expected = plain(kind)
    for unit in (1e-200, 1e-170, 1e-30, 1e30, 1e160):
        found = answers(kind, arrays(dict.fromkeys(ROLES, unit)))
        found[:-1] /= unit
        np.testing.assert_allclose(found, expected, rtol=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("unit", [1e-200, 1e160])
def test_an_outcome_that_is_not_centred_is_scaled_too(unit: float) -> None:
    def fitted(scale: float) -> np.ndarray:
        frame = pd.DataFrame(arrays({"outcome": scale}))
        model = KernelIV(
            "outcome ~ 0 + covariates + [treatment ~ instruments]", random_state=0, folds=2, ridge1=1e-3, ridge2=1e-3
        )
        return np.asarray(model.fit(frame).predict(frame) / scale)

    np.testing.assert_allclose(fitted(unit), fitted(1.0), rtol=1e-9)


@pytest.mark.parametrize("role", ROLES[:4])
@pytest.mark.parametrize("kind", MAKE)
def test_what_float64_has_no_room_or_no_digits_for_is_refused_or_warned_of(kind: str, role: str) -> None:
    def asked(**changes: Any) -> Any:
        return MAKE[kind]().fit(IVData(**arrays(**changes)))

    for unit in (1e-300, 1e300):
        with pytest.raises(DataError, match=f"{role} '.*' has values of up to .*: give it in another unit"):
            asked(scale={role: unit})
    with pytest.raises(DataError, match=f"{role} '.*' lies between .* steps of rounding: its differences are noise"):
        asked(shift={role: 1e16})
    with pytest.warns(IllConditionedWarning, match="have less than five digits") as caught:
        asked(shift={role: 1e12})
    assert caught[0].filename == __file__


def test_weights_of_any_size_count_by_their_ratios() -> None:
    parts = arrays()
    expected = answers("kernel", parts)
    found = answers("kernel", parts | {"weights": parts["weights"] * 1e307})
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    data = IVData(**(parts | {"weights": np.where(np.arange(40) < 20, 5e-324, 1e308)}))
    assert len(data.with_positive_weight()) == 20, "a share that is no number is none"


@pytest.mark.law
@pytest.mark.parametrize("unit", [2.0**-700, 2.0**700])
def test_pictures_in_any_unit_have_the_same_standardised_pixels(unit: float) -> None:
    images = np.random.default_rng(0).normal(5, 1, (10, 3, 3))
    one, other = Standardiser.fit(images), Standardiser.fit(unit * images)
    assert (other.mean, other.scale) == (unit * one.mean, unit * one.scale)
    for factor in (1e-40, 2e37):
        parts = {"outcome": np.arange(10.0), "instruments": np.arange(10.0) % 3}
        data = IVData(treatment=(factor * images).astype(np.float32), **parts)
        with pytest.raises(DataError, match=r"between 1e-35 and 1e\+37"):
            DFIV(steps=2, progress=False).fit(data)


@pytest.mark.filterwarnings("ignore::cfiv.errors.UnsupportedTreatmentWarning")
@pytest.mark.parametrize("kind", MAKE)
def test_no_prediction_and_no_score_is_not_a_number(kind: str) -> None:
    parts = arrays()
    model = MAKE[kind]().fit(IVData(**parts))
    if kind == "kernel":
        assert np.isfinite(model.predict(treatment=[1e300], covariates=[0.0])).all(), "far away it is the mean"
    else:
        if kind in ("sieve", "nested dfiv"):
            assert np.isfinite(model.predict(treatment=[1e300], covariates=[0.0])).all(), "far away it is a line"
        else:
            with pytest.raises(DataError, match=r"1 of 2 predictions are not finite \(first: row 1\)"):
                model.predict(treatment=[0.0, 1e300], covariates=[0.0, 0.0])
        with pytest.raises(DataError, match=r"the score is (nan|-inf)"):
            model.score(IVData(**(parts | {"instruments": np.append(1e300, parts["instruments"][1:])})))
    far = parts["outcome"].copy()
    far[0] = 1e300
    # 39 outcomes of nothing beside one far from the mean, which no model explains: 1 - n / (n - 1), by weights.
    share = parts["weights"][0] / parts["weights"].sum()
    assert model.score(IVData(**(parts | {"outcome": far}))) == pytest.approx(1 - 1 / (1 - share))


@pytest.mark.parametrize("role", ["outcome", "treatment", "instruments", "covariates"])
def test_columns_that_are_not_standardised_and_that_float32_does_not_hold_are_refused(role: str) -> None:
    for unit in (1e-60, 1e60):
        for model in (DFIV(standardise=False, steps=2, progress=False), NetworkRegression(standardise=False, progress=False)):
            with pytest.raises(DataError, match=rf"{role} '.*' ranges from .* float32 does not hold: use standardise=True"):
                model.fit(IVData(**arrays({role: unit})))


@pytest.mark.law
def test_diagnostics_of_any_unit_are_the_same_and_sets_are_in_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adequacy, "DIVISIONS", 1)

    def report(**scale: float) -> Any:
        return cfiv.diagnose(IVData(**arrays(scale)), covariance="unadjusted")

    expected = report()
    for unit in (2.0**-800, 2.0**560):
        for role in ROLES:
            found = report(**{role: unit})
            assert found.table.drop(columns=["set", "reading"]).equals(expected.table.drop(columns=["set", "reading"]))
    found = report(outcome=2.0**300, treatment=2.0**-300).anderson_rubin_set
    assert isinstance(found, ConfidenceSet)
    assert found.intervals == tuple((2.0**600 * low, 2.0**600 * high) for low, high in expected.anderson_rubin_set.intervals)
    beyond = report(outcome=2.0**800, treatment=2.0**-800).anderson_rubin_set
    assert beyond.reading.startswith("Not available: its ends are too large or too small for float64")


@pytest.mark.law
def test_compare_has_the_same_scores_in_any_unit() -> None:
    def scores(unit: float) -> Any:
        data = IVData(**arrays({"outcome": unit}))
        return cfiv.compare({"kernel": MAKE["kernel"]().fit(data)}, data=data).table["score"].tolist()

    assert scores(2.0**-700) == scores(1.0)


@pytest.mark.filterwarnings("ignore::cfiv.errors.UnsupportedTreatmentWarning")
def test_the_structural_function_is_what_refuses() -> None:
    function = MAKE["dfiv"]().fit(IVData(**arrays())).structural_function_
    assert isinstance(function, StructuralFunction)
    with pytest.raises(DataError, match="not finite"):
        function.effect(IVData(treatment=[0.0], covariates=[0.0]), treatment_from=0.0, treatment_to=1e300)
