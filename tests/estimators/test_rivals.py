"""DeepIV and AGMM: the objectives that they are, what they find, and what becomes of training that is cut short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cfiv
from cfiv import AGMM, DataError, DeepIV, DivergenceError, ParameterError, TrainingWarning
from cfiv.datasets import demand
from cfiv.errors import ModelFileError
from cfiv.estimators import deep_iv, gradient_training
from cfiv.learning.gradient_steps import Batch
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample
from cfiv.networks.member_networks import Pass
from cfiv.networks.stacked_networks import member_network
from cfiv.numerics.mixture_density import mixture_width
from cfiv.objectives.adversarial import HALVES, CriticObjective
from cfiv.objectives.deep_iv import SampledObjective, conditional_mean

BOTH = pytest.mark.parametrize("kind", [DeepIV, AGMM])
QUICK: dict[str, Any] = {"steps": 12, "progress": False, "random_state": 0}


def linear(n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The effect of t is 2; a regression gives 2.5, for ``u`` moves both t and y."""
    z, x, u, e = np.random.default_rng(seed).normal(size=(4, n))
    t = z + u
    return pd.DataFrame({"y": 1 + 2 * t + x + u + 0.1 * e, "t": t, "z": z, "x": x})


WIDTHS = {"outcome": 1, "treatment": 1, "instruments": 3, "covariates": 2}


def problem(rows: int = 40) -> tuple[Sample, list[nn.Module]]:
    """A sample, and ``psi, xi, u`` of it, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sample = Sample(**{name: torch.randn(rows, width, dtype=torch.float64) for name, width in WIDTHS.items()})
        networks = [nn.Sequential(nn.Linear(1, 4), nn.Tanh()), nn.Linear(2, 2), nn.Linear(5 * 3, 1, bias=False)]
    return sample, [network.double() for network in networks]


def gradients(losses: torch.Tensor, passes: Sequence[Pass]) -> list[torch.Tensor]:
    """Of the parameters of all networks."""
    leaves = torch.autograd.grad(losses.sum(), [one.features for one in passes])
    return [one.gradients(leaf)[0][0] for one, leaf in zip(passes, leaves, strict=True)]  # type: ignore[index]


# What is learned


@pytest.mark.statistical
def test_the_gradient_of_stage_2_of_deep_iv_is_unbiased_for_that_of_the_squared_error_of_the_mean() -> None:
    sample, modules = problem(4)
    parameters = torch.randn(4, mixture_width(2, columns=1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    networks = [member_network([module]) for module in modules]
    rows, generator = torch.arange(4), np.random.default_rng(0)

    def found(draws: int) -> torch.Tensor:
        """The gradient of ``psi``."""
        objective = SampledObjective(sample, parameters[None], draws, "product")
        noise = tuple(part[None] for part in objective.noise(generator, 4))
        return gradients(*objective.learn(networks, Batch(rows[None], sample.rows(rows[None]), noise))[:2])[0]

    exact, noisy = found(20_000), torch.stack([found(1) for _ in range(2000)])
    standard_error = noisy.std(dim=0) / len(noisy) ** 0.5
    assert bool(((noisy.mean(dim=0) - exact).abs() < 5 * standard_error + 0.02 * exact.abs().max()).all())


@pytest.mark.law
def test_a_conditional_mean_over_a_narrow_density_is_the_function_at_its_place() -> None:
    sample, modules = problem()
    parameters = torch.zeros(40, mixture_width(1, columns=1), dtype=torch.float64)
    parameters[:, 1], parameters[:, 2] = sample.treatment[:, 0], -50.0
    mean = conditional_mean(modules, parameters, columns=1, covariates=sample.covariates, structure="product")
    psi = modules[0](sample.treatment)
    f = torch.einsum("ni,nj->nij", *(torch.cat([m, torch.ones(40, 1)], dim=1) for m in (psi, modules[1](sample.covariates))))
    torch.testing.assert_close(mean, modules[2](f.flatten(1)), rtol=0, atol=1e-3)  # a scale of LEAST_SCALE is left


@pytest.mark.gradient
def test_agmm_s_critic_follows_what_it_explains_of_its_half_and_h_what_the_critic_of_the_other_half_says() -> None:
    sample, modules = problem()
    phi, rows, ridge = nn.Linear(3, 4).double(), torch.arange(40), 0.1
    learned = CriticObjective(sample, ridge, "product").learn(
        [member_network([module]) for module in (phi, *modules)], Batch(rows[None], sample.rows(rows[None]), ())
    )
    parts = (modules[0](sample.treatment), modules[1](sample.covariates))
    f = torch.einsum("ni,nj->nij", *(torch.cat([part, torch.ones(40, 1)], dim=1) for part in parts))
    residual = sample.outcome - modules[2](f.flatten(1))
    features = torch.cat([phi(sample.instruments), torch.ones(40, 1)], dim=1)

    def minimised(half: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """What is left of a half, with its penalty, and ``w``, by its own solve and through it."""
        x, r = features[half], residual[half].detach()
        w = torch.linalg.solve(x.mT @ x / 20 + ridge * torch.eye(5, dtype=torch.float64), x.mT @ r / 20)
        return (r - x @ w).square().mean() + ridge * w.square().sum(), w.detach()

    (left, w), (other_left, other_w) = (minimised(half) for half in HALVES)
    critic = torch.empty_like(residual)
    critic[HALVES[0]], critic[HALVES[1]] = (features[HALVES[0]] @ other_w).detach(), (features[HALVES[1]] @ w).detach()
    objectives = [(left + other_left) / 2, *[(2 * critic * residual - critic**2).mean()] * 3]
    for module, objective, found in zip((phi, *modules), objectives, gradients(*learned[:2]), strict=True):
        expected = []
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                own = [layer.weight, *([] if layer.bias is None else [layer.bias])]
                found_here = torch.autograd.grad(objective, own, retain_graph=True)
                expected += [part.mT.flatten() if part.ndim == 2 else part for part in found_here]
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.statistical
@BOTH
def test_it_finds_the_effect_that_a_regression_misses(kind: Any) -> None:
    model = kind("y ~ x + [t ~ z]", steps=300, progress=False, random_state=0).fit(linear())
    slope = np.mean(model.effect(linear(seed=1), treatment_from=-1.0, treatment_to=1.0)) / 2
    assert slope == pytest.approx(2.0, abs=0.2)


@pytest.mark.statistical
def test_deep_iv_takes_a_treatment_of_two_values() -> None:
    frame = linear(2000)
    frame = frame.assign(t=(frame["t"] > 0).astype(float))
    frame["y"] = frame["y"] - 2 * linear(2000)["t"] + 2 * frame["t"]
    model = DeepIV("y ~ x + [t ~ z]", steps=300, progress=False, random_state=0).fit(frame)
    assert np.mean(model.effect(frame, treatment_from=0.0, treatment_to=1.0)) == pytest.approx(2.0, abs=0.4)


def test_images_are_treatments_of_agmm_and_are_refused_by_deep_iv() -> None:
    generator = np.random.default_rng(0)
    data = cfiv.IVData(
        outcome=generator.normal(size=60), treatment=generator.random((60, 6, 6)), instruments=generator.normal(size=60)
    )
    assert np.isfinite(AGMM(**QUICK).fit(data).predict(data)).all()
    with pytest.raises(DataError, match=r"density of treatment columns, got arrays of shape \(6, 6\): use DFIV or AGMM"):
        DeepIV(**QUICK).fit(data)


# What is said


def test_history_has_a_row_a_check_of_every_stage_and_marks_the_state_kept() -> None:
    deep = DeepIV("y ~ x + [t ~ z]", **{**QUICK, "steps": 40}).fit(linear(200))
    assert list(deep.history_.columns) == ["fit", "stage", "step", "loss", "heldout_loss", "kept"]
    assert deep.history_.groupby(["fit", "stage"])["kept"].sum().tolist() == [1] * 4
    critic = AGMM("y ~ x + [t ~ z]", **{**QUICK, "steps": 40}).fit(linear(200))
    assert list(critic.history_.columns) == ["fit", "step", "loss", "heldout_loss", "kept"]
    assert critic.history_.groupby("fit")["kept"].sum().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (DeepIV, {"components": 0}, "components must be a whole number >= 1, got 0"),
        (DeepIV, {"draws": 0.5}, "draws must be a whole number >= 1, got 0.5"),
        (AGMM, {"critic_ridge": 0.0}, "critic_ridge must be finite and > 0, got 0.0"),
        (AGMM, {"batch_size": 1}, "batch_size must be a whole number >= 2, 'auto', or None for full batches, got 1"),
        (AGMM, {"holdout": 1.0}, "holdout must be between 0 and 0.9, got 1.0"),
        (
            DeepIV,
            {"learning_rate": 0.0},
            "learning_rate must be 'auto', one number or three (treatment, instrument, covariate), each finite and > 0, "
            "got 0.0",
        ),
    ],
)
def test_bad_hyper_parameters_are_refused(kind: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        kind("y ~ x + [t ~ z]", **arguments).fit(linear(100))
    assert says in str(caught.value)


# What is cut short


def drawing(width: int) -> nn.Module:
    """One that does not train beside others."""
    return nn.Sequential(nn.Linear(width, 4), nn.Dropout(0.1))


class KilledError(BaseException):
    """Stands for a kill: nothing in the library handles it."""


@pytest.mark.law
@BOTH
@pytest.mark.parametrize("networks", [{}, {"treatment_network": drawing}], ids=["side by side", "one by one"])
def test_a_fit_that_is_killed_anywhere_goes_on_bit_for_bit(
    kind: Any, networks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = demand.simulate(n=200, seed=0)[0].frame

    def fitted(**checkpoint: Any) -> Any:
        return kind(demand.FORMULA, **networks, batch_size=32, **QUICK).fit(frame, **checkpoint)

    undisturbed, write = fitted(), RunFile.write
    runs = (2 if networks else 1) * (2 if kind is DeepIV else 1)
    for writes in (1, 5, 12 * runs - 4):
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


@BOTH
def test_fits_of_another_configuration_are_refused(kind: Any, tmp_path: Path) -> None:
    frame = demand.simulate(n=200, seed=0)[0].frame
    kind(demand.FORMULA, **QUICK).fit(frame, checkpoint=tmp_path)
    with pytest.raises(ModelFileError, match=r"weight_decay was '0.0', is '0.1'"):
        kind(demand.FORMULA, **QUICK, weight_decay=0.1).fit(frame, checkpoint=tmp_path)


@pytest.mark.parametrize(("kind", "failing"), [(AGMM, 2), (DeepIV, 3), (DeepIV, 4)])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DivergenceError("training diverged at step 1")], ids=["Ctrl-C", "diverged"]
)
def test_what_was_fitted_before_is_kept(kind: Any, failing: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fit = 0, gradient_training.fit_gradient

    def failing_once(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing and isinstance(error, DivergenceError):
            return [error]
        if calls == failing:
            raise error
        return fit(*arguments, **options)

    monkeypatch.setattr(gradient_training, "fit_gradient", failing_once)
    frame = demand.simulate(n=200, seed=0)[0].frame
    model = kind(demand.FORMULA, treatment_network=drawing, **QUICK)
    left_out = "left out of the average" if isinstance(error, DivergenceError) else "before the first step of fit 2"
    with pytest.warns(TrainingWarning, match=left_out):
        model.fit(frame)
    assert len(model.structural_function_.components) == 1
    assert model.interrupted_ == isinstance(error, KeyboardInterrupt)
    assert np.isfinite(model.predict(frame)).all()
    assert np.isfinite(model.score(frame))


def test_deep_iv_that_is_interrupted_in_stage_1_has_no_function_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    learn, calls = deep_iv.DensityObjective.learn, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return learn(*arguments)

    monkeypatch.setattr(deep_iv.DensityObjective, "learn", interrupted)
    with pytest.warns(TrainingWarning, match="interrupted at step 5"), pytest.raises(KeyboardInterrupt):
        DeepIV(demand.FORMULA, **QUICK).fit(demand.simulate(n=200, seed=0)[0].frame)
