"""NetworkRegression: the regression that it is, the bias that it has, and its training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cfiv
from cfiv import DivergenceError, LeastSquares, NetworkRegression, ParameterError, TrainingWarning
from cfiv.datasets import demand
from cfiv.estimators import network_regression
from cfiv.learning.last_layer import Proximal
from cfiv.learning.regression import RegressionFit, RegressionState, StructuralFeatures, fit_regression, step
from cfiv.learning.samples import Sample

#: float32 features, float64 solves.
SINGLE = 1e-5


def linear(n: int = 400, seed: int = 0) -> pd.DataFrame:
    """The effect of t is 2; ``u`` moves both t and y, so that a regression gives 2 + Cov / Var = 2.5."""
    z, x, u, e = np.random.default_rng(seed).normal(size=(4, n))
    t = z + u
    return pd.DataFrame({"y": 1 + 2 * t + x + u + 0.1 * e, "t": t, "z": z, "x": x, "w": np.arange(n) % 3 + 1.0})


def identity(**arguments: object) -> NetworkRegression:
    """Nothing to learn: the last layer on standardised columns."""
    networks = {f"{role}_network": nn.Identity() for role in ("treatment", "instrument", "covariate")}
    return NetworkRegression(
        "y ~ x + [t ~ z]", **networks, structure="additive", steps=5, fits=1, progress=False, random_state=0, **arguments
    )


@pytest.mark.oracle
@pytest.mark.parametrize("weights", [None, "w"])
def test_with_identity_features_and_no_penalty_it_is_least_squares(weights: str | None) -> None:
    frame, fresh = linear(), linear(seed=1)
    model = identity(ridge=0.0, holdout=0.0, weights=weights).fit(frame)
    reference = LeastSquares("y ~ x + [t ~ z]", weights=weights).fit(frame)
    np.testing.assert_allclose(model.predict(fresh), reference.predict(fresh), rtol=SINGLE, atol=SINGLE)
    assert model.score(fresh) == pytest.approx(reference.score(fresh), abs=SINGLE)
    assert model.chosen_penalties_ == {}


@pytest.mark.law
def test_a_step_solves_the_last_layer_and_moves_the_features_along_the_gradient_at_it() -> None:
    torch.manual_seed(0)
    with torch.random.fork_rng():
        rows = Sample(*(torch.randn(50, width, dtype=torch.float64) for width in (1, 2, 3)))
        network = nn.Linear(2, 3, dtype=torch.float64)
    features = StructuralFeatures(network, None, "product")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.weight.detach().clone()
    previous = torch.ones(4, 1, dtype=torch.float64)
    state, loss = step(rows, RegressionState(features, optimiser, previous), layer=Proximal(0.3, beta=0.1))

    def objective(weight: torch.Tensor) -> torch.Tensor:
        """The minimised objective as a function of the features, by its own solve."""
        phi = torch.cat([rows.treatment @ weight.mT + network.bias.detach() * 0 + bias, torch.ones(50, 1)], dim=1)
        u = torch.linalg.solve(phi.mT @ phi / 50 + 0.4 * torch.eye(4), phi.mT @ rows.outcome / 50 + 0.3 * previous)
        fit = (rows.outcome - phi @ u).square().mean()
        return fit + 0.1 * u.square().sum() + 0.3 * (u - previous).square().sum()

    bias = (network.bias + 0.1 * network.bias.grad).detach() if network.bias.grad is not None else network.bias.detach()
    weight = before.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(weight), [weight])
    torch.testing.assert_close(network.weight, before - 0.1 * gradient, rtol=1e-9, atol=1e-9)
    assert float(loss) > 0
    assert state.weights is not None
    assert state.weights.shape == (4, 1)


@pytest.mark.statistical
def test_it_predicts_nearly_perfectly_and_misses_the_effect_by_the_confounders_share() -> None:
    frame, fresh = linear(4000), linear(4000, seed=1)
    model = NetworkRegression("y ~ x + [t ~ z]", steps=200, progress=False, random_state=0).fit(frame)
    residual = fresh["y"] - model.predict(fresh)
    # Given t, the variance of u is 1/2, and the noise has .01.
    assert residual.var() == pytest.approx(0.51, rel=0.1)
    slope = np.mean(model.effect(fresh, treatment_from=-1.0, treatment_to=1.0)) / 2
    assert slope == pytest.approx(2.5, abs=0.1)
    linear_model = LeastSquares("y ~ x + [t ~ z]").fit(frame)
    assert model.score(fresh) == pytest.approx(linear_model.score(fresh), abs=0.02)


@pytest.mark.statistical
@pytest.mark.slow
def test_on_the_demand_design_with_large_errors_dfiv_is_far_closer_to_the_truth() -> None:
    for seed in range(2):
        data, truth = demand.simulate(5000, rho=0.9, seed=seed, error_scale=50.0)
        plain, dfiv = (
            truth.error(kind(demand.FORMULA, progress=False, random_state=seed).fit(data))
            for kind in (NetworkRegression, cfiv.DFIV)
        )
        print(f"\ndemand n=5000 rho=.9 error scale 50, seed {seed}: network {plain:.0f}, DFIV {dfiv:.0f}")
        assert plain > 4 * dfiv


def test_history_has_one_row_a_check_and_marks_the_state_kept() -> None:
    model = NetworkRegression("y ~ x + [t ~ z]", steps=40, progress=False, random_state=0).fit(linear())
    assert list(model.history_.columns) == ["fit", "step", "loss", "heldout_loss", "refit_ridge", "kept"]
    assert model.history_.groupby("fit")["kept"].sum().tolist() == [1, 1]
    assert len(model.chosen_penalties_["ridge"]) == 2
    assert all(math.isfinite(value) for value in model.chosen_penalties_["ridge"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"holdout": 1.0}, "holdout must be between 0 and 0.9, got 1.0"),
        ({"proximal": -1.0}, "proximal must be finite and >= 0, got -1.0"),
        ({"ridge": math.inf}, "ridge must be finite and >= 0, got inf"),
        ({"fits": 0}, "fits must be a whole number >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, or 'auto', got 0.0"),
    ],
)
def test_bad_hyper_parameters_are_refused(arguments: dict[str, float], says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        NetworkRegression("y ~ x + [t ~ z]", **arguments).fit(linear())
    assert says in str(caught.value)


def test_images_are_treatments_like_any_other() -> None:
    generator = np.random.default_rng(0)
    position = generator.uniform(size=200)
    images = np.zeros((200, 6, 6), dtype=np.uint8)
    images[np.arange(200), (position * 6).astype(int)] = 1
    data = cfiv.IVData(outcome=(position * 6).astype(int), treatment=images, instruments=position)
    model = NetworkRegression(steps=200, learning_rate=3e-3, progress=False, random_state=0).fit(data)
    error = np.mean((model.predict(data) - data.outcome) ** 2)
    assert error < 0.05 * data.outcome.var()


@pytest.mark.parametrize("failing", [2, 3], ids=["second fit", "features for score"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DivergenceError("training diverged at step 1")], ids=["Ctrl-C", "diverged"]
)
def test_what_was_fitted_before_is_kept(monkeypatch: pytest.MonkeyPatch, error: BaseException, failing: int) -> None:
    calls = 0

    def failing_once(*arguments: Any, **options: Any) -> RegressionFit:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        return fit_regression(*arguments, **options)

    monkeypatch.setattr(network_regression, "fit_regression", failing_once)
    frame = demand.simulate(n=200, seed=0)[0].frame
    model = NetworkRegression(demand.FORMULA, steps=5, progress=False, random_state=0)
    with pytest.warns(TrainingWarning, match="left out of the average" if failing == 2 else "left untrained"):
        model.fit(frame)
    assert len(model.fits_) == failing - 1
    assert model.interrupted_ == isinstance(error, KeyboardInterrupt)
    assert np.isfinite(model.predict(frame)).all()
    assert np.isfinite(model.score(frame))
