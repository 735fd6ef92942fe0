"""Regression with learned features and a solved last layer: one stage, no instruments.

    W = argmin_W  mean |Y - W' f|^2 + ridge |W|^2 + lambda |W - W_prev|^2,      f the features of a row,

solved on every minibatch; only the features take gradient steps. What the features are made of is the business of a
:class:`Features`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.learning.early_stopping import Checkpoint
from cfiv.learning.last_layer import Memory, Proximal
from cfiv.learning.loop import DIVERGED, Ended, train
from cfiv.learning.networks import evaluate, features_of
from cfiv.learning.optimisers import adam
from cfiv.learning.samples import Sample, joined
from cfiv.learning.samples import sample_batches as batches
from cfiv.learning.training import Training
from cfiv.learning.whole_sample import CHECK_ROWS, chunks, refit
from cfiv.numerics.last_layer import last_layer_loss
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.moments import accumulate, moments, ridge_path
from cfiv.numerics.two_stage import Structure, structural_features
from cfiv.runtime.draws import running_again
from cfiv.runtime.module_state import put, state_of


class Features(Protocol):
    """Features ``f`` of a sample's rows, constant included."""

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that learn."""
        ...

    def __call__(self, sample: Sample, *, fixed: bool) -> Tensor:
        """``f``, shape (n, d); ``fixed`` in evaluation mode and without gradients."""
        ...


@dataclass(frozen=True)
class StructuralFeatures:
    """``f(psi(T), xi(X))``, the features of the structural function at the treatment itself."""

    treatment: nn.Module
    covariate: nn.Module | None
    structure: Structure

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """``psi`` and, with covariates, ``xi``."""
        return (self.treatment,) if self.covariate is None else (self.treatment, self.covariate)

    def __call__(self, sample: Sample, *, fixed: bool) -> Tensor:
        """Shape (n, p)."""
        covariates = None
        if self.covariate is not None:
            assert sample.covariates is not None
            covariates = _apply(self.covariate, sample.covariates, fixed=fixed)
        treatment = _apply(self.treatment, sample.treatment, fixed=fixed)
        return structural_features(treatment_features=treatment, covariate_features=covariates, structure=self.structure)


@dataclass(frozen=True)
class InstrumentFeatures:
    """``[phi(Z, X), 1]``, the features of a conditional mean given instruments and covariates."""

    instrument: nn.Module

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """``phi``."""
        return (self.instrument,)

    def __call__(self, sample: Sample, *, fixed: bool) -> Tensor:
        """Shape (n, d + 1)."""
        return with_intercept(_apply(self.instrument, sample.instruments, fixed=fixed))


@dataclass(frozen=True)
class RegressionProblem:
    """What one fit is asked to do.

    Parameters
    ----------
    train : Sample
        Rows that the gradients see.
    heldout : Sample or None
        Rows for early stopping and the choice of the final ridge.
    layer : Proximal
        Penalties as they stand at the end of training.
    steps : int
    batch_size : int or None
        None for full batches.
    learning_rates, weight_decays : tuple of float
        One for each of the features' networks.
    training : Training
        Its schedules, checks, tolerance, patience and refit ridges; what concerns two stages is not used.
    """

    train: Sample
    heldout: Sample | None
    layer: Proximal
    steps: int
    batch_size: int | None
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    training: Training

    @property
    def ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final last layer."""
        return self.training.refit_ridges or (self.layer.beta,)


@dataclass(frozen=True)
class RegressionFit:
    """A fitted conditional mean ``W' f`` in the units of training.

    Parameters
    ----------
    features : Features
        With networks in evaluation mode.
    weights : Tensor (d, 1), float64
        W, refitted on all rows.
    heldout_loss, refit_ridge : float
        Held-out mean squared error of the state kept (nan without held-out rows) and the ridge of W.
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "interrupted", "diverged"}
    """

    features: Features
    weights: Tensor
    heldout_loss: float
    refit_ridge: float
    history: list[dict[str, Any]]
    ended: Ended

    def predict(self, sample: Sample) -> Tensor:
        """``W' f`` at each row, shape (n, 1), float64."""
        return torch.cat([self.features(chunk, fixed=True).double() @ self.weights for chunk in chunks(sample)])


@dataclass(frozen=True)
class LastLayer:
    """W of a state, and the ridge that it is to be refitted with."""

    weights: Tensor
    ridge: float


@dataclass(frozen=True)
class RegressionState:
    """What a step hands to the next: features and optimiser (changed in place), and W (None before the first batch)."""

    features: Features
    optimiser: torch.optim.Optimizer | None
    weights: Tensor | None = None


def step(batch: Sample, state: RegressionState, *, layer: Proximal) -> tuple[RegressionState, Tensor]:
    """Solve W on the batch, pulled to the last one, and take a gradient step of the features at that W.

    Returns
    -------
    state : RegressionState
    loss : Tensor ()
        On the batch, before the gradient step.
    """
    before = None if state.weights is None else Memory(state.weights)

    def solve(**given: Any) -> Tensor:
        return layer.update(before, **given).weights

    loss, weights = last_layer_loss(
        features=state.features(batch, fixed=False), targets=batch.outcome, solve=solve, weights=batch.weights
    )
    if state.optimiser is not None and loss.requires_grad:
        state.optimiser.zero_grad(set_to_none=True)
        with running_again():
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        state.optimiser.step()
    return replace(state, weights=weights), loss.detach()


def fit_regression(
    problem: RegressionProblem, features: Features, *, generator: np.random.Generator, on_step: Callable[[], object]
) -> RegressionFit:
    """Train the features, choose a state by held-out loss, and solve its last layer on all rows.

    Parameters
    ----------
    problem : RegressionProblem
    features : Features
        Trained in place.
    generator : Generator
        Source of the batches.
    on_step : callable
        Called after every step, for progress.

    Returns
    -------
    RegressionFit

    Raises
    ------
    DivergenceError, KeyboardInterrupt
        As :func:`cfiv.learning.loop.train`.

    References
    ----------
    Galashov et al., arXiv 2510.04606, equation 9, with the proximal penalty.
    """
    for network in features.networks:
        network.train()
    run = _RegressionRun(problem, features, generator)
    trained = train(run, steps=problem.steps, training=problem.training, on_step=on_step)
    kept = trained.kept
    if kept is not None:
        for network, parameters in zip(features.networks, kept.parameters, strict=True):
            put(network, parameters)
    for network in features.networks:
        network.eval()
    ridge = problem.layer.beta if kept is None else kept.last_layers.ridge
    everything = problem.train if problem.heldout is None else joined(problem.train, problem.heldout)
    weights = refit(everything, lambda chunk: features(chunk, fixed=True), lambda chunk: chunk.outcome, ridge)
    loss = float("nan") if kept is None else kept.loss
    return RegressionFit(features, weights, loss, ridge, trained.history, trained.ended)


class _RegressionRun:
    """The steps of one regression; its state moves on with every one."""

    advice = "lower learning_rate, or raise the penalties"

    def __init__(self, problem: RegressionProblem, features: Features, generator: np.random.Generator) -> None:
        self.limits = {"loss": DIVERGED * float(problem.train.outcome.square().mean())}
        self._problem = problem
        self._state = RegressionState(features, _optimiser(problem, features))
        self._batches = batches(problem.train, size=problem.batch_size, generator=generator)

    def step(self, number: int) -> dict[str, Tensor]:
        problem, training = self._problem, self._problem.training
        if self._state.optimiser is not None:
            for group in self._state.optimiser.param_groups:
                group["lr"] = group["peak"] * training.rate_factor(number - 1, problem.steps)
        layer = replace(problem.layer, lam=problem.layer.lam * training.lambda_factor(number - 1, problem.steps))
        self._state, loss = step(next(self._batches), self._state, layer=layer)
        return {"loss": loss}

    def check(self, number: int) -> tuple[Checkpoint[LastLayer], dict[str, float]]:
        now = check(self._state, self._problem, number)
        return now, {"heldout_loss": now.loss, "refit_ridge": now.last_layers.ridge}


def check(state: RegressionState, problem: RegressionProblem, done: int) -> Checkpoint[LastLayer]:
    """The state as it would be reported now, its ridge the one with the lowest held-out loss."""
    features = state.features
    parameters = [state_of(network) for network in features.networks]
    rows = problem.train.rows(slice(CHECK_ROWS))
    together = accumulate(
        moments(features=features(chunk, fixed=True), targets=chunk.outcome, weights=chunk.weights) for chunk in chunks(rows)
    )
    candidates = ridge_path(together, problem.ridges if problem.heldout is not None else (problem.layer.beta,))
    if problem.heldout is None:
        return Checkpoint(done, parameters, LastLayer(candidates[0], problem.layer.beta), candidates.new_zeros(0))
    heldout = problem.heldout.rows(slice(CHECK_ROWS))
    predicted = torch.cat([features(chunk, fixed=True).double() @ candidates for chunk in chunks(heldout)], dim=1)
    losses = (heldout.outcome - predicted)[..., 0].square()
    if heldout.weights is not None:
        losses = losses * (heldout.weights / heldout.weights.mean())
    chosen = int(losses.mean(dim=1).argmin())
    return Checkpoint(done, parameters, LastLayer(candidates[chosen], problem.ridges[chosen]), losses[chosen])


def _optimiser(problem: RegressionProblem, features: Features) -> torch.optim.Optimizer | None:
    """AdamW with the peak rate and the decay of each network; None where nothing learns."""
    groups = [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for network, rate, decay in zip(features.networks, problem.learning_rates, problem.weight_decays, strict=True)
        if (parameters := [p for p in network.parameters() if p.requires_grad])
    ]
    return adam(torch.optim.AdamW, groups) if groups else None


def _apply(network: nn.Module, inputs: Tensor, *, fixed: bool) -> Tensor:
    features: Tensor = evaluate(network, inputs) if fixed else features_of(network, inputs)
    return features
