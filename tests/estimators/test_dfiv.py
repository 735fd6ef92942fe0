"""DFIV: two-stage least squares as its special case, what its options do, and how a fit may end."""

from __future__ import annotations

import copy
import signal
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

import cfiv
from cfiv import DFIV, DivergenceError, IVData, ParameterError, Training, TrainingWarning, TwoStageLeastSquares
from cfiv.errors import WeakIdentificationWarning
from cfiv.estimators import dfiv_learning
from cfiv.learning.adam import Adam
from cfiv.networks.default_networks import FeatureNetwork
from cfiv.objectives import dfiv_fit

#: Two ways to one answer in float64, on columns of very different scale.
SAME = 1e-8
#: Two ways to one answer through float32 features and a few steps of training.
TRAINED = 1e-3

FORMULA = "y ~ x + [t ~ z]"


def curve(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """``y = t^2 + x t + confounding``, with covariate x and instrument z."""
    z, x, u, noise = np.random.default_rng(seed).normal(size=(4, n))
    t = z + 0.5 * u
    return pd.DataFrame({"y": t**2 + x * t + u + 0.2 * noise, "t": t, "z": z, "x": x})


def truth(frame: pd.DataFrame) -> pd.Series:
    return frame["t"] ** 2 + frame["x"] * frame["t"]


def quick(formula: str | None = FORMULA, **arguments: Any) -> DFIV:
    return DFIV(formula, **({"steps": 10, "fits": 1, "nested": False, "progress": False, "random_state": 0} | arguments))


# Two-stage least squares is DFIV with fixed linear features, no penalty, and the same rows in both stages.


def line(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """Linear with two treatments, their instruments and two covariates, none of unit scale or mean zero."""
    z, q, x, r, u, v = np.random.default_rng(seed).normal(size=(6, n))
    t, s = 10 + z + 0.3 * x + u, 0.01 * (q - 0.5 * z + v)
    y = 1000 + 2 * t - 100 * s + 0.5 * x + u + v
    weights = np.random.default_rng(seed + 1).uniform(0.2, 3.0, n)
    return pd.DataFrame({"y": y, "t": t, "s": s, "z": z, "q": 100 * q, "x": x, "r": 50 + 5 * r, "w": weights})


LINEAR: dict[str, Any] = {
    **dict.fromkeys(("treatment_network", "instrument_network", "covariate_network"), nn.Identity()),
    **dict.fromkeys(("lambda1", "lambda2", "lambda12", "ridge1", "ridge2"), 0.0),
    "structure": "additive",
    "batch_size": None,
    "training": Training(split=None, holdout=0.0, refit_ridges=(), double=True),
}


@pytest.mark.filterwarnings("ignore::cfiv.errors.UnsupportedTreatmentWarning")
@pytest.mark.oracle
@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize(("steps", "report"), [(0, "refit"), (3, "refit"), (3, "current")])
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", ["y ~ [t ~ z]", "y ~ [t ~ z + q]", "y ~ x + r + [t ~ z]", "y ~ x + r + [t + s ~ z + q]"])
def test_identity_features_without_penalty_give_the_coefficients_of_two_stage_least_squares(
    formula: str, weights: str | None, steps: int, report: Any, standardise: bool
) -> None:
    frame = line()
    options = LINEAR | {"steps": steps, "report": report, "standardise": standardise, "weights": weights}
    ours = quick(formula, **options).fit(frame)
    linear = TwoStageLeastSquares(formula, weights=weights).fit(frame)
    expected = linear.coefficients_["coefficient"].rename({"Intercept": "constant"})
    # h is linear: its value at zero is the constant, its differences are the slopes.
    columns = [name for name in expected.index if name != "constant"]
    points = pd.DataFrame(np.vstack([np.zeros(len(columns)), np.eye(len(columns))]), columns=columns)
    values = ours.predict(points)
    got = pd.Series([values[0], *(values[1:] - values[0])], index=["constant", *columns])
    # The constant is some 1000, and slopes are differences of values of that size.
    np.testing.assert_allclose(got[expected.index], expected, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(ours.predict(frame), linear.predict(frame), rtol=SAME)
    assert ours.score(frame) == pytest.approx(linear.score(frame), rel=SAME)


@pytest.mark.law
def test_penalties_move_identity_features_away_from_two_stage_least_squares() -> None:
    frame = line()
    exact = quick("y ~ x + [t ~ z]", **LINEAR).fit(frame).predict(frame)
    for name in ("ridge1", "ridge2"):
        penalised = quick("y ~ x + [t ~ z]", **(LINEAR | {name: 0.1})).fit(frame).predict(frame)
        assert np.abs(penalised - exact).max() > 0.01


# What a fit learns


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"batch_size": None}, id="full batches"),
        pytest.param({"batch_size": 32}, id="small batches"),
        pytest.param({"report": "current"}, id="current weights"),
        pytest.param({"fits": 2}, id="two fits"),
        pytest.param({"standardise": False}, id="user's units"),
        pytest.param({"training": Training(order="backbone-first")}, id="backbone first"),
        pytest.param({"training": Training(covariate_steps=1)}, id="covariate steps"),
        pytest.param({"training": Training(holdout=0.0)}, id="nothing held out"),
        pytest.param({"training": Training(double=True)}, id="double"),
    ],
)
def test_every_way_to_train_learns_a_curve_that_least_squares_misses(options: dict[str, Any]) -> None:
    train, test = curve(1000), curve(1000, seed=1)
    model = quick(steps=60, **options).fit(train)
    error, variance = np.mean((model.predict(test) - truth(test)) ** 2), truth(test).var()
    # 2 % to 18 % of the variance in trials; the best linear function leaves all of it.
    assert error < 0.25 * variance
    assert model.score(test) > 0.4
    linear = TwoStageLeastSquares(FORMULA).fit(train)
    assert np.mean((linear.predict(test) - truth(test)) ** 2) > 0.8 * variance


@pytest.mark.law
def test_effects_vary_with_the_covariates_in_a_product_and_not_in_a_sum() -> None:
    frame = curve()
    spread = {
        structure: np.ptp(quick(structure=structure).fit(frame).effect(frame, treatment_from=-1.0, treatment_to=1.0))
        for structure in ("product", "additive")
    }
    assert spread["product"] > 1.0
    assert spread["additive"] < 1e-12 * spread["product"]


@pytest.mark.law
@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, -1e6)])
@pytest.mark.parametrize("column", ["y", "t", "z", "x"])
def test_units_and_origins_of_all_columns_pass_through(column: str, scale: float, shift: float) -> None:
    frame = curve()
    expected = quick().fit(frame).predict(frame)
    other = frame.assign(**{column: shift + scale * frame[column]})
    got = quick().fit(other).predict(other)
    if column == "y":
        got = (got - shift) / scale
    np.testing.assert_allclose(got, expected, rtol=TRAINED, atol=TRAINED * np.abs(expected).max())


@pytest.mark.parametrize(("swap", "fits", "components"), [(False, 1, 1), (True, 1, 2), (False, 3, 3), (True, 2, 4)])
def test_the_prediction_is_the_mean_over_swapped_samples_and_repeated_splits(swap: bool, fits: int, components: int) -> None:
    frame = curve()
    model = quick(swap=swap, fits=fits).fit(frame)
    parts = model.structural_function_.components
    assert len(parts) == len(model.fits_) == components
    values = np.array([part.evaluate(frame[["t"]].to_numpy(), frame[["x"]].to_numpy()) for part in parts])
    np.testing.assert_allclose(model.predict(frame), values.mean(axis=0), rtol=1e-12)
    assert len(np.unique(values[:, 0])) == components  # no two of them are the same function
    labels = [(number, swapped) for number in range(fits) for swapped in ((False, True) if swap else (False,))]
    assert list(model.history_[["fit", "swapped"]].drop_duplicates().itertuples(index=False, name=None)) == labels


def test_one_sample_for_both_stages_has_nothing_to_swap() -> None:
    assert len(quick(training=Training(split=None)).fit(curve()).fits_) == 1


def test_refit_and_current_report_the_last_layers_of_the_same_training() -> None:
    frame = curve()
    # Without held-out rows and without a rest at the end both keep the last state: the features are the same, and only the last
    # layers differ.
    models = {
        report: quick(report=report, swap=False, training=Training(holdout=0.0, rest=0.0)).fit(frame)
        for report in ("refit", "current")
    }
    refit, current = (models[report].fits_[0] for report in ("refit", "current"))
    for one, other in zip(refit.networks.modules(), current.networks.modules(), strict=True):
        for value, same in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(value, same)
    assert not torch.allclose(refit.structural, current.structural)
    assert refit.refit_ridge == 1e-3  # ridge2, since nothing was held out to choose by
    assert np.isnan(current.refit_ridge)
    assert "refitted on whole samples" in str(models["refit"].summary())
    assert "as training left them" in str(models["current"].summary())


def test_the_history_has_the_losses_of_every_check_and_the_state_kept() -> None:
    model = quick(steps=40).fit(curve())
    history = model.history_
    assert {"fit", "swapped", "step", "stage1_loss", "stage2_loss", "heldout_loss", "refit_ridge", "kept"} <= set(history)
    assert np.isfinite(history[["stage1_loss", "stage2_loss", "heldout_loss"]]).all(axis=None)
    for fitted, (_, rows) in zip(model.fits_, history.groupby("swapped"), strict=True):
        assert rows["step"].is_monotonic_increasing
        assert rows["kept"].sum() == 1
        kept = rows[rows["kept"]].iloc[0]
        assert (kept["heldout_loss"], kept["refit_ridge"]) == (fitted.heldout_loss, fitted.refit_ridge)
        assert kept["refit_ridge"] in Training().refit_ridges


def test_without_steps_the_initial_features_are_regressed_on() -> None:
    model = quick(steps=0).fit(curve())
    assert model.history_.empty
    assert np.isfinite(model.predict(curve())).all()


# Seeds and watching


def test_a_progress_bar_changes_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    silent = quick().fit(curve()).predict(curve())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    np.testing.assert_array_equal(quick(progress=True).fit(curve()).predict(curve()), silent)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20/20" in captured.err  # ten steps, twice


def test_generators_and_seeds_are_sources_of_the_same_draws() -> None:
    frame = curve()
    by_seed = quick(random_state=7).fit(frame).predict(frame)
    generator = np.random.default_rng(7)
    np.testing.assert_array_equal(quick(random_state=generator).fit(frame).predict(frame), by_seed)
    assert not np.array_equal(quick(random_state=generator).fit(frame).predict(frame), by_seed)  # it has moved on
    assert not np.array_equal(quick(random_state=8).fit(frame).predict(frame), by_seed)
    assert not np.array_equal(*(quick(random_state=None).fit(frame).predict(frame) for _ in range(2)))


@pytest.mark.parametrize("dropout", [False, True])
def test_the_global_generator_has_no_say(dropout: bool) -> None:
    frame = curve()

    def network(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Dropout(0.5 if dropout else 0.0), nn.Linear(4, 2))

    predictions = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        predictions.append(quick(covariate_network=network).fit(frame).predict(frame))
    np.testing.assert_array_equal(*predictions)


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        quick(steps=1).fit(curve())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Networks


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("mode", [True, False])
def test_a_module_that_is_given_keeps_its_mode_and_weights_and_shares_them_with_no_fit(mode: bool) -> None:
    given = layers().train(mode)
    before = copy.deepcopy(given.state_dict())
    model = quick(covariate_network=given)
    fits = [fitted for m in (model, clone(model)) for fitted in m.fit(curve()).fits_]
    assert all(module.training is mode for module in given.modules())
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert all(parameter.requires_grad for parameter in given.parameters())
    homes = [
        parameter.data_ptr()
        for network in (given, *(fitted.networks.covariate for fitted in fits))
        for parameter in network.parameters()
    ]
    assert len(set(homes)) == len(homes)


def test_a_module_starts_from_the_random_state_and_not_from_its_weights() -> None:
    frame = curve()
    one, other = layers(), layers()
    predictions = [
        quick(covariate_network=network).fit(frame).predict(frame) for network in (one, other, lambda inputs: layers())
    ]
    np.testing.assert_array_equal(predictions[0], predictions[1])
    np.testing.assert_array_equal(predictions[0], predictions[2])


def test_a_factory_that_hands_out_one_module_does_not_make_fits_share_it() -> None:
    shared = layers()
    model = quick(covariate_network=lambda inputs: shared).fit(curve())
    first, second = (fitted.networks.covariate for fitted in model.fits_)
    assert first is not second
    assert not torch.equal(first[0].weight, second[0].weight)


def test_a_search_over_lambda2_finds_the_best_score_and_refits_it() -> None:
    frame = curve()
    search = GridSearchCV(
        quick(), {"lambda2": np.array([0, 2]), "ridge2": np.logspace(-3, 0, 2)}, cv=2, error_score="raise"
    ).fit(frame)
    results = search.cv_results_
    assert len(set(results["mean_test_score"])) == 4
    assert search.best_params_ == results["params"][int(np.argmax(results["mean_test_score"]))]
    expected = quick(**{name: float(value) for name, value in search.best_params_.items()}).fit(frame)
    np.testing.assert_array_equal(search.predict(frame), expected.predict(frame))
    assert search.score(frame) == expected.score(frame)


def test_parameters_of_training_can_be_searched_as_a_whole() -> None:
    search = GridSearchCV(quick(), {"training": [Training(), Training(order="backbone-first")]}, cv=2, error_score="raise")
    assert np.isfinite(search.fit(curve()).cv_results_["mean_test_score"]).all()


# Images


def images(n: int = 400, seed: int = 0) -> tuple[IVData, np.ndarray]:
    """Treatments are 8x8 bytes whose brightness t follows the instrument; the outcome is t^2 with confounding."""
    generator = np.random.default_rng(seed)
    z, u = generator.uniform(-1, 1, n), generator.uniform(-1, 1, n)
    t = 0.7 * z + 0.3 * u
    pixels = 128 + 100 * t[:, None, None] + generator.normal(0, 5, (n, 8, 8))
    data = IVData(outcome=t**2 + 0.3 * u, treatment=pixels.astype(np.uint8), instruments=z)
    return data, t**2


class Brightness(nn.Module):
    """A network of one's own, on whole images."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.last = nn.Linear(2, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert tuple(image.shape[1:]) == self.shape
        return self.last(self.convolution(image[:, None]).mean(dim=(2, 3)).tanh())


IMAGE_NETWORKS = [
    pytest.param(None, None, id="default"),
    pytest.param(Brightness, Brightness, id="factory", marks=pytest.mark.slow),
    pytest.param(Brightness((8, 8)), Brightness, id="module", marks=pytest.mark.slow),
    pytest.param(
        lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 4)),
        None,
        id="layers",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("network", "to_load"), IMAGE_NETWORKS)
def test_images_are_treatments_too(network: Any, to_load: Any, tmp_path: Any) -> None:
    (train, _), (test, h) = images(), images(100, seed=1)
    model = quick(None, treatment_network=network, learning_rate=0.01, steps=60, fits=5).fit(train)
    predicted = model.predict(test)
    assert np.mean((predicted - h) ** 2) < 0.5 * h.var()
    np.testing.assert_array_equal(model.predict(treatment=test.treatment), predicted)
    dark, bright = (np.full((8, 8), level, dtype=np.uint8) for level in (128, 220))
    expected = np.diff(model.predict(treatment=np.stack([dark, bright])))
    np.testing.assert_allclose(
        model.effect(test, treatment_from=dark, treatment_to=bright), np.repeat(expected, 100), rtol=1e-4
    )
    response = model.dose_response(np.stack([dark, bright]))
    np.testing.assert_allclose(np.diff(response["estimate"]), expected, rtol=1e-4)
    model.save(tmp_path / "model")
    loaded = cfiv.load(tmp_path / "model", networks={"treatment": to_load} if to_load else None)
    np.testing.assert_array_equal(loaded.predict(test), predicted)
    assert "one of shape (8, 8)" in str(loaded.summary())


# The penalty on what instruments leave unpredicted


def unpredicted_variance(model: DFIV, frame: pd.DataFrame) -> float:
    """Of ``h(T, X)`` beyond a cubic in instrument and covariate, which is ``E[h | Z, X]`` of this design's smooth functions."""
    h, z, x = model.predict(frame), frame["z"].to_numpy(), frame["x"].to_numpy()
    columns = np.column_stack([z**i * x**j for i in range(4) for j in range(4 - i)])
    return float((h - columns @ np.linalg.lstsq(columns, h, rcond=None)[0]).var())


@pytest.mark.law
def test_as_the_unpredicted_penalty_rises_the_function_varies_less_beyond_its_prediction() -> None:
    frame = curve(1000)
    without, some, much = (
        unpredicted_variance(quick(unpredicted_penalty=gamma, steps=30).fit(frame), frame) for gamma in (0.0, 1.0, 1000.0)
    )
    # Factors of 2.5 and 11 to 23 in trials; what is left is what the cubic and the other sample's V do not share.
    assert without > 1.5 * some
    assert some > 5 * much


@pytest.mark.law
@pytest.mark.parametrize("options", [{}, {"report": "current"}, {"training": Training(covariate_steps=1)}])
def test_auto_is_no_unpredicted_penalty_for_columns(options: dict[str, Any]) -> None:
    frame = curve()
    auto, zero, one = (
        quick(**options, **given).fit(frame) for given in ({}, {"unpredicted_penalty": 0.0}, {"unpredicted_penalty": 1.0})
    )
    assert auto.unpredicted_penalty == "auto"
    np.testing.assert_array_equal(auto.predict(frame), zero.predict(frame))
    assert not np.allclose(one.predict(frame), zero.predict(frame))
    assert "Unpredicted penalty" not in dict(auto.summary().lines)
    assert dict(one.summary().lines)["Unpredicted penalty"] == "1"


@pytest.mark.law
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8)])
def test_auto_is_an_unpredicted_penalty_of_one_for_images(shape: tuple[int, ...]) -> None:
    data, _ = images(60)
    data = IVData(outcome=data.outcome, treatment=data.treatment.reshape(-1, *shape), instruments=data.instruments)
    auto, one, zero = (quick(None, **given).fit(data) for given in ({}, *({"unpredicted_penalty": g} for g in (1, 0))))
    np.testing.assert_array_equal(auto.predict(data), one.predict(data))
    assert not np.allclose(auto.predict(data), zero.predict(data))
    assert dict(auto.summary().lines)["Unpredicted penalty"] == "1"


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "Auto", "1", None, True, [1.0], 1j])
def test_an_unpredicted_penalty_that_is_none_is_refused_by_its_name(bad: Any) -> None:
    with pytest.raises(ParameterError) as caught:
        quick(unpredicted_penalty=bad).fit(curve())
    assert str(caught.value) == f"unpredicted_penalty must be finite and >= 0, or 'auto', got {bad!r}"


@pytest.mark.parametrize("good", [0, np.float32(0.5), np.int64(2), "auto"])
def test_an_unpredicted_penalty_is_any_kind_of_number(good: Any) -> None:
    assert np.isfinite(quick(unpredicted_penalty=good, steps=1).fit(curve()).predict(curve())).all()


# The original


def test_the_original_is_the_published_configuration() -> None:
    # Xu et al. 2021, demand design.
    model = DFIV.original(FORMULA)
    assert {name: getattr(model, name) for name in ("lambda1", "lambda2", "lambda12", "ridge1", "ridge2")} == {
        **dict.fromkeys(("lambda1", "lambda2", "lambda12"), 0.0),
        **dict.fromkeys(("ridge1", "ridge2"), 0.1),
    }
    assert (model.batch_size, model.steps, model.learning_rate, model.swap, model.standardise) == (
        None,
        100,
        1e-3,
        False,
        False,
    )
    assert model.weight_decay == (0.0, 0.0, pytest.approx(0.1 / 2500))
    training = model.training
    assert training is not None
    assert (training.stage1_steps, training.covariate_steps, training.stage2_steps) == (20, 20, 1)
    assert (training.split, training.holdout, training.refit_ridges) == (0.5, 0.0, ())
    assert (training.learning_rate_schedule, training.decoupled_weight_decay) == ("constant", False)
    assert DFIV.original(FORMULA, steps=3, swap=True).get_params() == {**model.get_params(), "steps": 3, "swap": True}


def test_the_original_networks_have_the_published_layers() -> None:
    model = DFIV.original("y ~ x + x2 + [t ~ z]", steps=1, progress=False, random_state=0).fit(
        curve().assign(x2=lambda f: f["x"] ** 2)
    )
    (fitted,) = model.fits_

    def names(network: nn.Module | None) -> str:
        assert isinstance(network, nn.Sequential)
        return " ".join(f"{m.in_features}-{m.out_features}" if isinstance(m, nn.Linear) else type(m).__name__ for m in network)

    assert names(fitted.networks.treatment) == "1-16 ReLU 16-1"
    assert names(fitted.networks.instrument) == "3-128 ReLU 128-64 ReLU 64-32 BatchNorm1d"
    assert names(fitted.networks.covariate) == "2-128 ReLU 128-32 BatchNorm1d ReLU 32-16 ReLU"
    # [psi, 1] x [xi, 1], solved with ridge2 on all rows of sample 2.
    assert fitted.structural.shape == ((1 + 1) * (16 + 1), 1)
    assert fitted.refit_ridge == 0.1


def test_a_round_of_the_original_is_twenty_steps_of_each_auxiliary_network_and_one_of_the_treatment_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: Counter[int] = Counter()
    adam_step = Adam.step

    def counted(optimiser: Adam) -> None:
        taken[sum(p.numel() for p in optimiser.param_groups[0]["params"])] += 1
        adam_step(optimiser)

    monkeypatch.setattr(Adam, "step", counted)
    frame = curve().assign(x2=lambda f: f["x"] ** 2)
    model = DFIV.original("y ~ x + x2 + [t ~ z]", steps=3, progress=False, random_state=0).fit(frame)
    # By the number of parameters of the treatment, the instrument and the covariate network.
    treatment, instrument, covariate = (
        sum(p.numel() for p in network.parameters()) for network in model.fits_[0].networks.modules()
    )
    assert taken == {treatment: 3, instrument: 60, covariate: 60}


# How a fit may end


class Breaks(nn.Module):
    """Features that are infinite from some training pass on; one pass of the treatment network is one step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.layer, self.after, self.passes = nn.Linear(1, 2), after, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.layer(x) * (np.inf if self.training and self.passes > self.after else 1.0)


VARIANTS = pytest.mark.parametrize(
    "options",
    [{}, {"report": "current"}, {"training": Training(holdout=0.0)}, {"report": "current", "training": Training(holdout=0.0)}],
    ids=["refit", "current", "no held-out rows", "current, no held-out rows"],
)


@VARIANTS
def test_a_diverging_fit_stops_with_the_last_good_state_and_names_the_step(options: dict[str, Any]) -> None:
    frame = curve()
    with pytest.warns(
        TrainingWarning, match=r"diverged at step 6 of 10 .*lower learning_rate.*state of step [1-5] is kept and usable"
    ) as caught:
        model = quick(steps=10, swap=False, treatment_network=lambda inputs: Breaks(5), **options).fit(frame)
    assert caught[0].filename == __file__
    assert [fitted.ended for fitted in model.fits_] == ["diverged"]
    assert model.history_["step"].tolist() == [1, 2, 3, 4, 5]
    assert model.history_["kept"].sum() == 1
    assert np.isfinite(model.predict(frame)).all()
    assert np.isfinite(model.score(frame))
    assert "10 steps, diverged" in str(model.summary())


@VARIANTS
@pytest.mark.parametrize("learning_rate", [1e6, 1e20, 1e38])
@pytest.mark.parametrize("steps", [1, 10])
def test_an_absurd_rate_is_refused_at_the_step_where_nothing_is_left(
    options: dict[str, Any], learning_rate: float, steps: int
) -> None:
    message = rf"training diverged at step 1 of {steps} before any usable state .*lower learning_rate"
    with pytest.raises(DivergenceError, match=message):
        quick(steps=steps, learning_rate=learning_rate, **options).fit(curve())


@VARIANTS
@pytest.mark.parametrize("learning_rate", [1e6, 1e20, 1e38])
@pytest.mark.parametrize("steps", [1, 20])
def test_treatment_features_blown_up_by_the_last_step_never_come_out_as_numbers(
    options: dict[str, Any], learning_rate: float, steps: int
) -> None:
    # With linear instrument and covariate features a step's losses are fine, and its gradient step ruins the treatment's.
    networks = {"instrument_network": nn.Identity(), "covariate_network": nn.Identity()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        try:
            predicted = quick(steps=steps, learning_rate=learning_rate, **networks, **options).fit(curve()).predict(curve())
        except DivergenceError:
            return
    assert np.isfinite(predicted).all()


class CtrlC(nn.Module):
    """A network at whose n-th training pass the user presses Ctrl-C. Passes are counted over all copies."""

    passes = 0

    def __init__(self, at: int) -> None:
        super().__init__()
        self.layer, self.at = nn.Linear(1, 2), at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            CtrlC.passes += 1
            if CtrlC.passes == self.at:
                signal.raise_signal(signal.SIGINT)
        return self.layer(x)


def interrupted(at: int, **options: Any) -> DFIV:
    CtrlC.passes = 0
    return quick(steps=20, treatment_network=lambda inputs: CtrlC(at), **options)


@VARIANTS
@pytest.mark.parametrize(("checks", "at", "kept"), [(20, 8, 7), (2, 2, 1)])
def test_ctrl_c_keeps_a_usable_state(options: dict[str, Any], checks: int, at: int, kept: int) -> None:
    """With checks at every step the last one is at 7; before any check the state after the last whole step is taken."""
    frame = curve()
    training = options.get("training", Training())
    options = options | {"training": Training(holdout=training.holdout, checks=checks, tolerance=1e9)}
    with pytest.warns(TrainingWarning, match=rf"interrupted at step {at} of 20; the state of step {kept} is kept") as caught:
        model = interrupted(at, **options).fit(frame)
    assert caught[0].filename == __file__
    assert [fitted.ended for fitted in model.fits_] == ["interrupted"]  # and the samples are not swapped any more
    assert np.isfinite(model.predict(frame)).all()
    assert np.isfinite(model.score(frame))
    assert "interrupted" in str(model.summary())


@pytest.mark.parametrize(("at", "fits", "step"), [(21, 1, "before the first step of fit 2"), (25, 2, "at step 5 of 20")])
def test_ctrl_c_in_a_later_fit_keeps_the_earlier_ones(at: int, fits: int, step: str) -> None:
    frame = curve()
    with pytest.warns(TrainingWarning, match=f"training was interrupted {step}") as caught:
        model = interrupted(at).fit(frame)
    assert caught[0].filename == __file__
    assert len(model.fits_) == fits
    assert "finished and interrupted" in str(model.summary())
    alone = quick(steps=20, treatment_network=lambda inputs: CtrlC(0), swap=False).fit(frame)
    first = model.structural_function_.components[0].evaluate(frame[["t"]].to_numpy(), frame[["x"]].to_numpy())
    np.testing.assert_array_equal(first, alone.predict(frame))


def test_ctrl_c_before_there_is_anything_to_keep_is_ctrl_c() -> None:
    model = interrupted(1)
    with pytest.raises(KeyboardInterrupt):
        model.fit(curve())
    assert not hasattr(model, "structural_function_")


def test_a_failing_second_fit_leaves_the_first_result_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = curve()
    model = quick().fit(frame)
    before, score = model.predict(frame), model.score(frame)

    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dfiv_fit, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        model.fit(frame)
    np.testing.assert_array_equal(model.predict(frame), before)
    assert model.score(frame) == score
    assert len(model.fits_) == 2


# Weak identification


def test_instruments_with_fewer_values_than_the_treatment_features_need_are_warned_of() -> None:
    frame = curve().assign(z=lambda f: (f["z"] > 0).astype(float))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick().fit(frame)
    (warned,) = (each for each in caught if each.category is WeakIdentificationWarning)  # once a fit, not once a sample
    assert warned.filename == __file__
    message = str(warned.message)
    for part in ("take 2 distinct values", "2 treatment features and a constant need at least 3", "torch.nn.Identity()"):
        assert part in message


@pytest.mark.parametrize(
    ("levels", "network"),
    [(2, nn.Identity()), (3, None), (4, lambda inputs: FeatureNetwork(inputs, (4,), 2))],
)
def test_instruments_with_enough_values_are_not_warned_of(levels: int, network: Any) -> None:
    frame = curve().assign(z=lambda f: pd.qcut(f["z"], levels, labels=False).astype(float))
    quick(treatment_network=network).fit(frame)  # warnings are errors


@pytest.mark.parametrize(("values", "levels", "words"), [(2, 2, None), (3, 3, None), (3, 2, "but the treatment takes 3:")])
def test_as_many_values_of_instruments_as_of_the_treatment_are_enough(values: int, levels: int, words: str | None) -> None:
    """A function on two values is known at both, and has no shape between; there are sixteen features."""
    frame = curve()
    frame = frame.assign(z=pd.qcut(frame["z"], levels, labels=False), t=pd.qcut(frame["t"], values, labels=False))
    model = quick(treatment_network=lambda inputs: FeatureNetwork(inputs, (4,), 15))
    if words is None:
        model.fit(frame)  # warnings are errors
    else:
        with pytest.warns(WeakIdentificationWarning, match=words):
            model.fit(frame)


def test_distinct_values_of_several_instruments_count_together() -> None:
    frame = curve().assign(z=lambda f: (f["z"] > 0).astype(float), q=lambda f: (f["x"] > 0).astype(float))
    quick("y ~ x + [t ~ z + q]").fit(frame)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fit_on_a_gpu_gives_results_on_the_cpu(tmp_path: Any) -> None:
    frame = curve()
    model = quick(device="cuda").fit(frame)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(cfiv.load(tmp_path / "model").predict(frame), model.predict(frame))
    assert model.score(frame) == pytest.approx(quick(device="cpu").fit(frame).score(frame), abs=0.1)


def test_a_later_fit_that_diverges_at_once_is_left_out_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dfiv_learning.fit_dfiv

    def second_diverges(*arguments: Any, **options: Any) -> Any:
        first, _, *others = real(*arguments, **options)
        return [first, DivergenceError("training diverged at step 1"), *others]

    monkeypatch.setattr(dfiv_learning, "fit_dfiv", second_diverges)
    with pytest.warns(TrainingWarning, match=r"a fit is left out of the average: training diverged at step 1"):
        model = quick(steps=5, fits=2).fit(curve())
    assert len(model.structural_function_.components) == 3
