"""KernelIV says of itself what DFIV says: strength, held-out losses, and what its answer leaves to the instruments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import IVData, KernelIV, TwoStageLeastSquares
from cfiv.datasets import demand
from cfiv.errors import WorthlessFitWarning
from cfiv.estimators.closed_form_trust import closed_form_trust
from cfiv.estimators.nesting import LearnedFunction
from cfiv.estimators.smooth_model import SmoothModel

FORMULA = "y ~ x + [t ~ z]"


def straight(n: int, *, seed: int, strength: float = 1.0, effect: float = 1.0) -> pd.DataFrame:
    """``y = effect t + x + u + e``, ``t = strength z + u``."""
    z, x, u, e = np.random.default_rng(seed).normal(size=(4, n))
    t = strength * z + u
    return pd.DataFrame({"y": effect * t + x + u + e, "t": t, "z": z, "x": x})


def quick(**changes: Any) -> KernelIV:
    return KernelIV(**({"formula": FORMULA, "random_state": 0, "landmarks": 60} | changes))


def line_of(frame: pd.DataFrame) -> SmoothModel:
    data = IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], covariates=frame["x"])
    data.check_fittable()
    model = SmoothModel.fit(data, np.random.default_rng(0), products=False, curves=False)
    assert model is not None
    return model


@pytest.mark.oracle
def test_a_line_without_curves_is_two_stage_least_squares_and_what_zero_leaves_is_its_slope() -> None:
    frame = straight(500, seed=0)
    line, reference = line_of(frame), TwoStageLeastSquares(FORMULA).fit(frame)
    np.testing.assert_allclose(
        line.component().evaluate(frame[["t"]].to_numpy(), frame[["x"]].to_numpy()), reference.predict(frame), atol=1e-6
    )
    row = reference.coefficients_.loc["t"]
    expected = (row["coefficient"] - 3.0 * row["std_error"]) * frame["t"].std(ddof=0) / frame["y"].std(ddof=0)
    assert line.left(np.zeros(500)) == pytest.approx(expected, rel=0.01)


@pytest.mark.law
def test_the_truth_and_two_stage_least_squares_leave_nothing() -> None:
    frame = straight(500, seed=1)
    line = line_of(frame)
    assert line.left((frame["t"] + frame["x"]).to_numpy()) == 0.0
    assert line.left(TwoStageLeastSquares(FORMULA).fit(frame).predict(frame)) == 0.0


@pytest.mark.statistical
def test_an_effect_that_penalties_take_away_is_flagged_and_one_that_is_there_is_not() -> None:
    train, _ = demand.simulate(600, rho=0.9, error_scale=50.0, seed=0)
    good = KernelIV(demand.FORMULA, random_state=0, landmarks=150).fit(train.frame)
    assert good.trust_.trusted
    with pytest.warns(WorthlessFitWarning, match="moves with the instruments"):
        shrunk = KernelIV(demand.FORMULA, random_state=0, landmarks=150, linear=False, ridge2=1.0).fit(train.frame)
    before, after = (float(model.effect(train.frame, treatment_from=20, treatment_to=21).mean()) for model in (good, shrunk))
    assert abs(after) < 0.1 * abs(before)


@pytest.mark.statistical
def test_irrelevant_instruments_are_flagged_and_strong_ones_are_not() -> None:
    for seed in range(3):
        assert not quick().fit(straight(300, seed=seed, strength=0.0)).trust_.trusted
        assert quick().fit(straight(300, seed=seed)).trust_.trusted


@pytest.mark.oracle
def test_fits_without_each_of_many_folds_tell_the_noise_that_a_covariance_tells() -> None:
    frame = straight(400, seed=2, strength=0.5)
    line, rows = line_of(frame), np.arange(400).reshape(80, 5)
    data = IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], covariates=frame["x"])
    unseen = [
        LearnedFunction(others.component(), others.reduced_form(), fold) for fold in rows for others in [line.without(fold)]
    ]
    found = closed_form_trust(data, line.component(), unseen=unseen)
    assert found.noise == pytest.approx(line.noise(), rel=0.25)  # the noise of a variance of 80 folds
    assert math.isnan(closed_form_trust(data, line.component()).noise)


@pytest.mark.statistical
def test_curves_in_noise_are_flagged_and_curves_that_are_there_are_not() -> None:
    curves, flagged = 0, 0
    for seed in range(12):
        z, u, e = np.random.default_rng(seed).normal(size=(3, 300))
        t = z + u / 2
        rows, model = pd.DataFrame({"t": t, "z": z}), quick(formula="y ~ [t ~ z]")
        noise = model.fit(rows.assign(y=e)).trust_
        curves, flagged = curves + (not noise.line), flagged + (not noise.trusted)
        assert model.fit(rows.assign(y=np.sin(1.5 * t) + u / 2 + e / 3)).trust_.trusted
    assert curves >= 3
    assert flagged >= 11


@pytest.mark.law
def test_held_out_losses_of_a_line_are_those_of_two_stage_least_squares_and_below_a_constant() -> None:
    trust = quick().fit(straight(400, seed=0)).trust_
    assert trust.heldout_loss == pytest.approx(trust.line_loss, abs=0.03)
    assert trust.above_constant < -3
    assert abs(trust.above_line) < 3


def test_two_samples_have_no_held_out_losses_and_images_nothing_at_all() -> None:
    split = quick(split=0.5, linear=False).fit(straight(200, seed=0)).trust_
    assert math.isnan(split.heldout_loss)
    assert split.strength > 10
    generator = np.random.default_rng(0)
    z = generator.normal(size=(60, 1))
    images = IVData(outcome=z[:, 0], treatment=z[:, :, None] + generator.normal(size=(60, 3, 3)), instruments=z)
    assert KernelIV(random_state=0).fit(images).trust_.trusted


def test_summary_comparison_and_model_file_have_the_same_words(tmp_path: Path) -> None:
    model = quick().fit(straight(200, seed=0, strength=0.0))
    words = str(model.trust_)
    assert "hardly move the treatment" in words
    assert "hardly move the treatment" in str(model.summary())
    assert cfiv.compare({"model": model}).table["trusted"].item() == "no"
    model.save(tmp_path / "model.cfiv")
    assert cfiv.load(tmp_path / "model.cfiv").facts["Trust"] == words


def in_clusters(frame: pd.DataFrame, groups: Any) -> SmoothModel:
    data = IVData(
        outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], covariates=frame["x"], clusters=np.asarray(groups)
    )
    data.check_fittable()
    model = SmoothModel.fit(data, np.random.default_rng(0), products=False)
    assert model is not None
    return model


@pytest.mark.oracle
def test_with_clusters_the_strength_is_the_effective_f_of_diagnose() -> None:
    """Of a line in the instrument, with the covariates' curves among the exogenous columns or no curves worth mention."""
    r = np.random.default_rng(1)
    groups = np.repeat(np.arange(50), 60)
    z, own = r.normal(size=(2, 50))[:, groups]
    u, x, e = r.normal(size=(3, 3000))
    t = 0.35 * z + own + u
    frame = pd.DataFrame({"y": t + u + own + e, "t": t, "z": z, "x": x, "group": groups})
    found = in_clusters(frame, groups).strength()
    expected = cfiv.diagnose(frame, FORMULA, clusters="group").effective_f
    assert found == pytest.approx(expected.statistic, rel=0.15)
    assert found < 10.0 < in_clusters(frame, np.arange(3000)).strength()


@pytest.mark.law
def test_clusters_that_mean_nothing_take_no_trust_away() -> None:
    frame = straight(2000, seed=0)
    rows, some = (in_clusters(frame, groups) for groups in (np.arange(2000), np.arange(2000) % 30))
    alone = line_of(frame).strength()
    assert rows.strength() == pytest.approx(alone, rel=0.1)
    assert 0.4 * alone < some.strength() < 2.5 * alone
    assert some.noise() < 0.05
    assert math.isnan(in_clusters(frame, np.arange(2000) % 9).strength())
