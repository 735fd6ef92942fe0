"""KernelIV's defaults: effects are not pulled to zero, columns that do not matter fade, and curves stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

import cfiv
from cfiv import KernelIV, TwoStageLeastSquares

Array = npt.NDArray[Any]
FORMULA = "y ~ x + [t ~ z]"


def linear(n: int, *, strength: float, confounding: float, seed: int) -> pd.DataFrame:
    """``y = t + x + confounding u + e``, ``t = strength z + u``."""
    z, x, u, e = np.random.default_rng(seed).normal(size=(4, n))
    t = strength * z + u
    return pd.DataFrame({"y": t + x + confounding * u + e, "t": t, "z": z, "x": x})


def effect(model: cfiv.StructuralEstimator, frame: pd.DataFrame) -> float:
    """Of one more unit of treatment."""
    return float(np.mean(model.fit(frame).effect(frame, treatment_from=0.0, treatment_to=1.0)))


@pytest.mark.statistical
@pytest.mark.parametrize(("n", "strength"), [(200, 1.0), (400, 0.5), (2000, 0.25)])
def test_an_effect_that_is_a_line_is_that_of_two_stage_least_squares(n: int, strength: float) -> None:
    """It was pulled to zero, to .2 of a truth of 1."""
    found = []
    for seed in range(4):
        frame = linear(n, strength=strength, confounding=-1.5, seed=seed)
        found.append((effect(KernelIV(FORMULA, random_state=0), frame), effect(TwoStageLeastSquares(FORMULA), frame)))
    ours, theirs = np.array(found).T
    assert np.sqrt(np.mean((ours - 1) ** 2)) <= 1.5 * np.sqrt(np.mean((theirs - 1) ** 2))
    assert np.median(np.abs(ours - theirs)) < 0.1


@pytest.mark.statistical
def test_covariates_that_do_not_matter_fade() -> None:
    """One Gaussian a column at its own median distance made rows strangers: of an effect of 1 there was left .03."""
    frame = linear(800, strength=1.0, confounding=1.0, seed=0)
    noise = pd.DataFrame(np.random.default_rng(1).normal(size=(800, 30)), columns=[f"c{j}" for j in range(30)])
    frame = pd.concat([frame.assign(y=frame["y"] + 3 * np.sin(2 * frame["x"])), noise], axis=1)
    model = KernelIV(f"y ~ x + {' + '.join(noise)} + [t ~ z]", random_state=0)
    assert effect(model, frame) == pytest.approx(1.0, abs=0.2)
    relevant, *others = model.bandwidths_["covariates"]
    assert relevant < min(others)
    assert relevant < 0.2 * np.median(others)


@pytest.mark.statistical
def test_a_curve_is_found_and_bends_where_the_truth_does() -> None:
    rng = np.random.default_rng(0)
    z, hidden, noise = rng.uniform(-3, 3, 1500), rng.normal(size=1500), rng.normal(size=1500)
    t = z + 0.5 * hidden
    model = KernelIV("y ~ [t ~ z]", random_state=0).fit(pd.DataFrame({"y": np.sin(t) + hidden + 0.3 * noise, "t": t, "z": z}))
    grid = pd.DataFrame({"t": np.linspace(-2.5, 2.5, 50)})
    assert np.mean((model.predict(grid) - np.sin(grid["t"])) ** 2) < 0.02
    assert "a line\n" not in str(model.summary())


@pytest.mark.law
@pytest.mark.filterwarnings("ignore::cfiv.errors.UnsupportedTreatmentWarning")
def test_far_away_the_function_goes_to_its_line() -> None:
    frame = linear(300, strength=1.0, confounding=1.0, seed=0).assign(y=lambda rows: rows["y"] + 2 * np.sin(2 * rows["t"]))
    model = KernelIV(FORMULA, random_state=0).fit(frame)
    far = model.predict(pd.DataFrame({"t": [100.0, 200.0, 300.0, 400.0], "x": 0.0}))
    np.testing.assert_allclose(np.diff(far, n=2), 0.0, atol=1e-9)
    assert np.diff(far)[0] / 100 == pytest.approx(1.0, abs=0.4)


@pytest.mark.contract
@pytest.mark.parametrize(("rows", "landmarks"), [(400, "all rows"), (600, "500")])
def test_landmarks_are_all_rows_up_to_some_hundred(rows: int, landmarks: str) -> None:
    summary = str(KernelIV(FORMULA, random_state=0).fit(linear(rows, strength=1.0, confounding=1.0, seed=0)).summary())
    assert dict(line.split("  ", 1) for line in summary.splitlines() if "  " in line)["Landmarks"].strip() == landmarks


@pytest.mark.law
def test_bandwidths_found_give_the_same_function_again() -> None:
    frame = linear(200, strength=1.0, confounding=1.0, seed=0).assign(y=lambda rows: rows["y"] + 2 * np.sin(2 * rows["t"]))
    found = KernelIV(FORMULA, random_state=0).fit(frame)
    assert set(found.bandwidths_) == {"treatment", "instruments", "covariates", "first_stage_covariates"}
    again = KernelIV(FORMULA, random_state=0, bandwidths=found.bandwidths_).fit(frame)
    np.testing.assert_allclose(again.predict(frame), found.predict(frame), rtol=1e-9)


def wide(curve: Callable[[Array], Array]) -> tuple[pd.DataFrame, Array, str]:
    """``y = h + u + e``, ``h = curve(t) + x1``, ``t = z + x0 / 2 + u``, with 80 covariates; the table, ``h`` and a formula."""
    n, covariates = 1500, 80
    z, u, e = np.random.default_rng(0).normal(size=(3, n))
    x = np.random.default_rng(1).normal(size=(n, covariates))
    t = z + x[:, 0] / 2 + u
    h = curve(t) + x[:, 1]
    names = [f"x{j}" for j in range(covariates)]
    frame = pd.DataFrame(x, columns=names).assign(t=t, z=z, y=h + u + e)
    return frame, h, f"y ~ {' + '.join(names)} + [t ~ z]"


@pytest.mark.statistical
def test_a_curve_in_the_treatment_is_seen_among_many_covariates() -> None:
    """All rows were strangers to the search for bandwidths, and noise in stage 1 hid the curve: there was left the line."""
    frame, h, formula = wide(np.sin)
    kernel = KernelIV(formula, random_state=0).fit(frame).predict(frame)
    line = TwoStageLeastSquares(formula).fit(frame).predict(frame)
    assert np.mean((kernel - h) ** 2) < 0.6 * np.mean((line - h) ** 2)


@pytest.mark.statistical
def test_a_line_stays_that_of_two_stage_least_squares_among_many_covariates() -> None:
    frame, _, formula = wide(lambda t: t)
    ours, theirs = effect(KernelIV(formula, random_state=0), frame), effect(TwoStageLeastSquares(formula), frame)
    assert ours == pytest.approx(theirs, abs=0.02)
