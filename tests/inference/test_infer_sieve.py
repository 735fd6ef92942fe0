"""``cfiv.infer`` on SieveIV: sizes that the data chose, and those that intervals are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import Inference, SieveIV
from cfiv.estimators.components import SieveComponent
from cfiv.studies.shipped.confounded_curves import confounded_curve

GRID = np.linspace(-0.9, 0.9, 37)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return confounded_curve(2000, "sine", seed=0)[0]


def component(model: SieveIV) -> SieveComponent:
    (found,) = model.structural_function_.components
    assert isinstance(found, SieveComponent)
    return found


@pytest.mark.law
def test_intervals_are_those_of_the_larger_size_given_and_the_model_keeps_its_curve(frame: pd.DataFrame) -> None:
    model = SieveIV("y ~ [t ~ z]", random_state=0).fit(frame)
    choice = component(model).choice
    assert choice is not None
    given = SieveIV("y ~ [t ~ z]", segments=choice.segments[choice.larger]).fit(frame)
    before = model.predict(frame)
    answer, same = (cfiv.infer(frame, one).dose_response(GRID) for one in (model, given))
    pd.testing.assert_frame_equal(answer.table, same.table, check_exact=True)
    np.testing.assert_array_equal(model.predict(frame), before)
    assert np.abs(answer.values - model.dose_response(GRID)["estimate"]).max() > 0.01
    inference = cfiv.infer(frame, model)
    (note,) = inference.notes
    assert f"estimates are of {choice.sizes[choice.larger]} functions" in note
    assert f"the curve of {choice.sizes[choice.chosen]} is the model's" in note
    mean = inference.functional(lambda h: h(frame).mean())
    np.testing.assert_allclose(mean.values, given.predict(frame).mean(), rtol=1e-9)


@pytest.mark.law
def test_without_undersmoothing_estimates_are_the_models_and_the_band_has_the_allowance_of_the_rule(
    frame: pd.DataFrame,
) -> None:
    model = SieveIV("y ~ [t ~ z]", random_state=0).fit(frame)
    choice = component(model).choice
    assert choice is not None
    inference = cfiv.infer(frame, model, undersmooth=False)
    np.testing.assert_allclose(inference.dose_response(GRID).values, model.dose_response(GRID)["estimate"], rtol=1e-9)
    assert inference.law.multipliers.allowance == choice.allowance > 0
    assert len(inference.law.fits) == 1 + len(choice.bases)
    assert f"of the {choice.sizes[choice.chosen]} functions that the data chose" in inference.notes[0]


@pytest.mark.law
def test_a_size_that_larger_ones_contradict_is_said_and_its_band_is_dashed(frame: pd.DataFrame) -> None:
    model = SieveIV("y ~ [t ~ z]", random_state=0).fit(frame)
    own = component(model)
    assert own.choice is not None
    contrasts = list(own.choice.contrasts)
    contrasts[own.choice.larger] = 2 * own.choice.threshold
    worse = replace(own, choice=replace(own.choice, contrasts=tuple(contrasts)))
    model.structural_function_ = replace(model.structural_function_, components=(worse,))
    inference, plain = (cfiv.infer(frame, model, undersmooth=flag) for flag in (True, False))
    assert "larger sizes have another curve" in inference.notes[-1]
    assert inference.law.doubtful
    assert not plain.law.doubtful
    pytest.importorskip("matplotlib")
    styles = [
        {line.get_linestyle() for line in one.dose_response(GRID).plot().get_lines() if len(line.get_xdata()) > 2}
        for one in (inference, plain)
    ]
    assert "--" in styles[0]
    assert "--" not in styles[1]


@pytest.mark.statistical
def test_segments_given_that_are_too_few_are_said_and_enough_are_not() -> None:
    """Of a sharp bend, with an instrument that all but is the treatment: one cubic is not enough, of a line it is."""
    said = {"bend": 0, "line": 0}
    for curve in said:
        for seed in range(20):
            frame, _ = confounded_curve(2000, curve, correlation=0.98, confounding=0.15, seed=seed)
            inference = cfiv.infer(frame, SieveIV("y ~ [t ~ z]", segments=1).fit(frame), draws=100)
            assert inference.law.doubtful == bool(inference.notes)
            said[curve] += inference.law.doubtful
    assert said["bend"] >= 18
    assert said["line"] <= 5, "the threshold of the rule is liberal"


@pytest.mark.law
@pytest.mark.parametrize("undersmooth", [True, False])
def test_saved_and_loaded_it_answers_bit_for_bit_without_data(frame: pd.DataFrame, tmp_path: Path, undersmooth: bool) -> None:
    inference = cfiv.infer(frame, SieveIV("y ~ [t ~ z]", random_state=0).fit(frame), undersmooth=undersmooth)
    inference.save(tmp_path / "inference")
    same = Inference.load(tmp_path / "inference")
    assert str(same) == str(inference)
    for one in (GRID, np.linspace(-3, 3, 7)):
        pd.testing.assert_frame_equal(same.dose_response(one).table, inference.dose_response(one).table, check_exact=True)
    assert same.law.doubtful == inference.law.doubtful


@pytest.mark.law
@pytest.mark.parametrize("seed", [13, 23])
def test_nearly_empty_intervals_of_the_instrument_are_as_the_fit_has_them(seed: int) -> None:
    """Of normal instruments splines far out depend on one another up to some 1e-7 of their length."""
    u, v, e, z = np.random.default_rng(seed).normal(size=(4, 2000))
    t = 0.8 * z + 0.6 * (u + 0.3 * v) / 1.044
    for h in (np.abs(t), np.sin(4 * t)):
        rows = pd.DataFrame({"y": h + u + 0.3 * e, "t": t, "z": z})
        model = SieveIV("y ~ [t ~ z]").fit(rows)
        found = cfiv.infer(rows, model, undersmooth=False).predict(rows.head(50)).values
        np.testing.assert_allclose(found, model.predict(rows.head(50)), rtol=0, atol=1e-6 * float(np.ptp(rows["y"])))


@pytest.mark.contract
def test_what_few_rows_do_not_bear_is_said() -> None:
    few, _ = confounded_curve(40, "sine", seed=0)
    model = SieveIV("y ~ [t ~ z]", random_state=0).fit(few)
    assert len(model.sizes_) == 1
    assert "these rows do not bear more" in str(cfiv.infer(few, model))
    some, _ = confounded_curve(60, "sine", seed=0)
    model = SieveIV("y ~ [t ~ z]", random_state=0).fit(some)
    choice = component(model).choice
    assert choice is not None
    assert not choice.small_bias
    assert choice.sizes[choice.larger] < 2 * choice.sizes[choice.chosen]
    assert "these rows do not bear more, so its bias may not be small" in str(cfiv.infer(some, model))


@pytest.mark.statistical
def test_bands_of_a_sine_hold_by_undersmoothing_and_not_around_the_curve_of_the_rule() -> None:
    """Fifty samples, 95 %: the binomial's 1 % quantile is 44; the curve of the rule is known to hold in about a third."""
    held = {True: 0, False: 0}
    for seed in range(50):
        frame, truth = confounded_curve(1000, "sine", seed=seed)
        model = SieveIV("y ~ [t ~ z]", random_state=seed).fit(frame)
        at = truth(pd.DataFrame({"t": GRID}))
        for undersmooth in held:
            band = cfiv.infer(frame, model, undersmooth=undersmooth, draws=1000).dose_response(GRID).table
            held[undersmooth] += bool(((band["band_lower"] <= at) & (at <= band["band_upper"])).all())
    assert held[True] >= 44
    assert held[False] <= 35
