"""NetworkRegression: the regression that it is, the bias that it has, and its training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cfiv
from cfiv import DivergenceError, LeastSquares, NetworkRegression, ParameterError, TrainingWarning
from cfiv.datasets import demand
from cfiv.estimators import gradient_training
from cfiv.learning.gradient_steps import GradientFit, GradientProblem, GradientSteps, fit_gradient
from cfiv.learning.last_layer import Memory, Proximal
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample, Split
from cfiv.learning.training import Training
from cfiv.networks.stacked_networks import member_network
from cfiv.objectives.regression import Features, RegressionObjective

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
    widths = {"outcome": 1, "treatment": 2, "instruments": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = Sample(**{name: torch.randn(50, width, dtype=torch.float64) for name, width in widths.items()})
        network = nn.Linear(2, 3, dtype=torch.float64)
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    everything = torch.arange(50)
    problem = GradientProblem(
        sample=rows,
        splits=(Split(stage1=everything, stage2=everything, heldout=None),),
        objective=RegressionObjective(rows, Features(("treatment",), "product"), Proximal(0.3, beta=0.1), 0.1, ()),
        steps=10,
        batch_size=None,
        learning_rates=(0.1,),
        weight_decays=(0.0,),
        training=Training(learning_rate_schedule="constant", lambda_start=1.0),
    )
    steps = GradientSteps(problem, [member_network([network])], [np.random.default_rng(0)])
    previous = torch.ones(4, 1, dtype=torch.float64)
    steps.memories = [Memory(previous[None])]
    plain = torch.optim.SGD([{"params": steps.networks[0].parameters, "peak": 0.1}], lr=0.1)
    steps.learners = [replace(steps.learners[0], optimiser=plain)]
    (loss,) = steps.step(1)

    def objective(weight: torch.Tensor) -> torch.Tensor:
        """The minimised objective as a function of the features, by its own solve."""
        phi = torch.cat([rows.treatment @ weight.mT + bias, torch.ones(50, 1)], dim=1)
        u = torch.linalg.solve(phi.mT @ phi / 50 + 0.4 * torch.eye(4), phi.mT @ rows.outcome / 50 + 0.3 * previous)
        fit = (rows.outcome - phi @ u).square().mean()
        return fit + 0.1 * u.square().sum() + 0.3 * (u - previous).square().sum()

    start = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(start), [start])
    moved = steps.networks[0].module(0)
    assert isinstance(moved, nn.Linear)
    torch.testing.assert_close(moved.weight, weight - 0.1 * gradient, rtol=1e-9, atol=1e-9)
    assert loss.shape == (1,)
    assert float(loss) > 0
    memory = steps.memories[0]
    assert memory is not None
    assert memory.weights.shape == (1, 4, 1)


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
        (
            {"learning_rate": 0.0},
            "learning_rate must be 'auto', one number or three (treatment, instrument, covariate), each finite and > 0, "
            "got 0.0",
        ),
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


def drawing(width: int) -> nn.Module:
    """One that does not train beside others."""
    return nn.Sequential(nn.Linear(width, 4), nn.Dropout(0.1))


@pytest.mark.parametrize("failing", [2, 3], ids=["second fit", "features for score"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DivergenceError("training diverged at step 1")], ids=["Ctrl-C", "diverged"]
)
def test_what_was_fitted_before_is_kept(monkeypatch: pytest.MonkeyPatch, error: BaseException, failing: int) -> None:
    calls = 0

    def failing_once(*arguments: Any, **options: Any) -> list[GradientFit | DivergenceError]:
        nonlocal calls
        calls += 1
        if calls == failing and isinstance(error, DivergenceError):
            return [error]
        if calls == failing:
            raise error
        return fit_gradient(*arguments, **options)

    monkeypatch.setattr(gradient_training, "fit_gradient", failing_once)
    frame = demand.simulate(n=200, seed=0)[0].frame
    model = NetworkRegression(demand.FORMULA, treatment_network=drawing, steps=5, progress=False, random_state=0)
    left_out = "left out of the average" if isinstance(error, DivergenceError) else "before the first step of fit 2"
    with pytest.warns(TrainingWarning, match=left_out if failing == 2 else "left untrained"):
        model.fit(frame)
    assert len(model.fits_) == failing - 1
    assert model.interrupted_ == isinstance(error, KeyboardInterrupt)
    assert np.isfinite(model.predict(frame)).all()
    assert np.isfinite(model.score(frame))


class KilledError(BaseException):
    """Stands for a kill: nothing in the library handles it."""


@pytest.mark.law
@pytest.mark.parametrize("networks", [{}, {"treatment_network": drawing}], ids=["side by side", "one by one"])
def test_a_fit_that_is_killed_anywhere_goes_on_bit_for_bit(
    networks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = demand.simulate(n=200, seed=0)[0].frame

    def fitted(**checkpoint: Any) -> NetworkRegression:
        model = NetworkRegression(demand.FORMULA, **networks, batch_size=32, steps=12, progress=False, random_state=0)
        return model.fit(frame, **checkpoint)

    undisturbed, write = fitted(), RunFile.write
    passes = 3 if networks else 2  # of the fits, and of the features for score
    for writes in (1, 7, 12 * passes - 5):
        done: list[int] = []

        def killing(self: RunFile, values: Any, done: list[int] = done, writes: int = writes) -> None:
            write(self, values)
            done.append(1)
            if len(done) == writes:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(RunFile, "write", killing)
            with pytest.raises(KilledError):
                fitted(checkpoint=tmp_path / str(writes), every=1)
        again = fitted(checkpoint=tmp_path / str(writes), every=5)
        assert again.history_.equals(undisturbed.history_)
        np.testing.assert_array_equal(again.predict(frame), undisturbed.predict(frame))
        assert again.score(frame) == undisturbed.score(frame)


def test_fits_of_other_data_or_another_configuration_are_refused(tmp_path: Path) -> None:
    frame = demand.simulate(n=200, seed=0)[0].frame
    options: dict[str, Any] = {"steps": 3, "progress": False, "random_state": 0}
    NetworkRegression(demand.FORMULA, **options).fit(frame, checkpoint=tmp_path)
    with pytest.raises(cfiv.errors.ModelFileError, match=r"proximal was '2.0', is '1.0'"):
        NetworkRegression(demand.FORMULA, **options, proximal=1.0).fit(frame, checkpoint=tmp_path)
    with pytest.raises(cfiv.errors.ModelFileError, match="data was"):
        NetworkRegression(demand.FORMULA, **options).fit(frame.iloc[1:], checkpoint=tmp_path)


@dataclass
class HalfRidge:
    """A last layer of somebody's own: ridge regression, half of the way from what it was."""

    solved: int = 0

    def update(
        self, memory: Memory | None, *, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> Memory:
        assert features.ndim == 2
        self.solved += 1
        identity = torch.eye(features.shape[1], dtype=torch.float64)
        phi, y = features.double(), targets.double()
        new = torch.linalg.solve(phi.mT @ phi / len(phi) + 0.01 * identity, phi.mT @ y / len(phi))
        return Memory(new if memory is None else (new + memory.weights) / 2)


def test_one_last_layer_of_ones_own_serves_dfiv_network_regression_and_the_trainer() -> None:
    frame = demand.simulate(n=300, seed=0)[0].frame
    # On 20 batches of each of the functions u is solved, and V once while phi learns and once while psi does; of
    # NetworkRegression u, and the features for score have one.
    for kind, solves in ((NetworkRegression, (2 + 1) * 20), (cfiv.DFIV, 3 * 4 * 20)):
        layer = HalfRidge()
        model = kind(demand.FORMULA, last_layer=layer, steps=20, fits=2, progress=False, random_state=0)
        model.fit(frame)
        assert np.isfinite(model.predict(frame)).all()
        assert layer.solved == solves
    layer = HalfRidge()
    x, y = frame[["price", "time"]].to_numpy(), frame[["sales"]].to_numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).double()
    trainer = cfiv.LastLayerTrainer(module, layer, batch_size=50).fit(((x - x.mean(0)) / x.std(0), y / y.std()), epochs=3)
    assert layer.solved == 3 * 6
    assert trainer.history_["loss"].iloc[-1] < trainer.history_["loss"].iloc[0]
