"""The DFIV step: one batch of each sample in, new last layers out, features moved along their gradients.

``step(batch, state) -> (state, info)``. The last layers V and u are values of the state. The networks and their optimisers are
mutable objects of torch that the state carries along; a step changes them in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cfiv.learning.last_layer import Held, LastLayer, Proximal
from cfiv.learning.networks import evaluate, features_of
from cfiv.learning.optimisers import adam
from cfiv.learning.samples import Sample
from cfiv.learning.training import Penalties, Training
from cfiv.numerics.two_stage import (
    Structure,
    Unpredicted,
    first_stage_loss,
    predicted_treatment_features,
    second_stage_loss,
    unpredicted_features,
)
from cfiv.runtime.draws import running_again

#: One value each for the treatment, the instrument and the covariate network.
PerNetwork = tuple[float, float, float]


@dataclass(frozen=True)
class Networks:
    """Feature maps: ``treatment`` psi, ``instrument`` phi, ``covariate`` xi (None without covariates)."""

    treatment: nn.Module
    instrument: nn.Module
    covariate: nn.Module | None

    def modules(self) -> list[nn.Module]:
        """The networks that exist, in a fixed order."""
        return [module for module in (self.treatment, self.instrument, self.covariate) if module is not None]

    def covariate_features(self, covariates: Tensor | None, *, fixed: bool) -> Tensor | None:
        """``xi(X)``, or None where there are no covariates; ``fixed`` in evaluation mode and without gradients."""
        if self.covariate is None or covariates is None:
            return None
        features: Tensor = evaluate(self.covariate, covariates) if fixed else features_of(self.covariate, covariates)
        return features


@dataclass(frozen=True)
class Optimisers:
    """One optimiser a network; None for a network without parameters."""

    treatment: torch.optim.Optimizer | None
    instrument: torch.optim.Optimizer | None
    covariate: torch.optim.Optimizer | None

    def those(self) -> list[torch.optim.Optimizer]:
        """The optimisers that exist, in a fixed order."""
        return [optimiser for optimiser in (self.treatment, self.instrument, self.covariate) if optimiser is not None]

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to a fraction of its peak."""
        for optimiser in self.those():
            for group in optimiser.param_groups:
                group["lr"] = factor * group["peak"]


@dataclass(frozen=True)
class TwoStageState:
    """What a step hands to the next.

    Parameters
    ----------
    networks, optimisers
        Changed in place by a step.
    first_stage : Tensor (d + 1, m) or None
        V, float64; None before the first batch.
    structural : Tensor (p, 1) or None
        u, float64.
    """

    networks: Networks
    optimisers: Optimisers
    first_stage: Tensor | None = None
    structural: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One minibatch of each sample, with the penalties in force and the gain of V12 and u (see :class:`Proximal`)."""

    stage1: Sample
    stage2: Sample
    penalties: Penalties
    gain: float = 1.0


@dataclass(frozen=True)
class StepInfo:
    """Losses on the batch before its last gradient steps, as tensors so that reading them is the caller's choice."""

    stage1_loss: Tensor
    stage2_loss: Tensor


def optimisers(networks: Networks, *, training: Training, learning_rate: PerNetwork, weight_decay: PerNetwork) -> Optimisers:
    """Adam or AdamW for each network, with its peak learning rate and weight decay."""
    kind = torch.optim.AdamW if training.decoupled_weight_decay else torch.optim.Adam

    def make(module: nn.Module | None, rate: float, decay: float) -> torch.optim.Optimizer | None:
        parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
        groups = [{"params": parameters, "peak": rate}]
        return adam(kind, groups, lr=rate, weight_decay=decay) if parameters else None

    modules = (networks.treatment, networks.instrument, networks.covariate)
    return Optimisers(*(make(*arguments) for arguments in zip(modules, learning_rate, weight_decay, strict=True)))


def step(batch: Batch, state: TwoStageState, *, training: Training, structure: Structure) -> tuple[TwoStageState, StepInfo]:
    """Stage 1, covariate features, stage 2 on one pair of minibatches.

    1. ``stage1_steps`` times: V solved with lambda1, psi fixed; a gradient step of phi.
    2. ``covariate_steps`` times: V12 and u solved; a gradient step of xi alone.
    3. ``stage2_steps`` times: V12 solved with lambda12, live in psi, and u with lambda2; a gradient step of psi (and of xi
       where it has no steps of its own).

    Networks that are held fixed run in evaluation mode. Every solve pulls towards the V and u that came in with ``state``. In
    the backbone-first order the gradients of phi, and of psi and xi, are taken at that V and that u (V12 is solved and live
    all the same), and V and u are solved once more with the updated features.
    """
    penalties, networks, opt = batch.penalties, state.networks, state.optimisers
    stage1 = Proximal(penalties.lambda1, beta=penalties.ridge1)
    bridge = Proximal(penalties.lambda12, beta=penalties.ridge1, gain=batch.gain)
    stage2 = Proximal(penalties.lambda2, beta=penalties.ridge2, gain=batch.gain)
    backbone_first = training.order == "backbone-first"

    treatment_stage1 = evaluate(networks.treatment, batch.stage1.treatment)
    loss1 = treatment_stage1.new_zeros(())
    for _ in range(training.stage1_steps):
        loss1, _ = first_stage_loss(
            instrument_features_stage1=features_of(networks.instrument, batch.stage1.instruments),
            treatment_features_stage1=treatment_stage1,
            solve=(Held(stage1) if backbone_first else stage1).after(state.first_stage),
            weights_stage1=batch.stage1.weights,
        )
        _descend(loss1, [opt.instrument])

    instrument_stage1 = evaluate(networks.instrument, batch.stage1.instruments)
    if not training.stage1_steps:  # nothing learns from it, but the history shows it
        loss1, _ = first_stage_loss(
            instrument_features_stage1=instrument_stage1,
            treatment_features_stage1=treatment_stage1,
            solve=Held(stage1).after(state.first_stage),
            weights_stage1=batch.stage1.weights,
        )
    instrument_stage2 = evaluate(networks.instrument, batch.stage2.instruments)

    def second_stage(treatment_stage1: Tensor, layer: LastLayer, *, covariates_fixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        predicted_stage1, predicted_stage2, v = predicted_treatment_features(
            instrument_features_stage1=instrument_stage1,
            treatment_features_stage1=treatment_stage1,
            instrument_features_stage2=instrument_stage2,
            solve=bridge.after(state.first_stage),
            weights_stage1=batch.stage1.weights,
        )
        unpredicted = None
        if penalties.unpredicted:
            gap = unpredicted_features(
                treatment_features=treatment_stage1,
                predicted_treatment_features=predicted_stage1,
                covariate_features=networks.covariate_features(batch.stage1.covariates, fixed=covariates_fixed),
                structure=structure,
            )
            unpredicted = Unpredicted(gap, penalties.unpredicted, batch.stage1.weights)
        loss, u = second_stage_loss(
            predicted_treatment_features_stage2=predicted_stage2,
            covariate_features_stage2=networks.covariate_features(batch.stage2.covariates, fixed=covariates_fixed),
            outcome_stage2=batch.stage2.outcome,
            structure=structure,
            solve=layer.after(state.structural),
            weights_stage2=batch.stage2.weights,
            unpredicted_stage1=unpredicted,
        )
        return loss, u, v

    layer: LastLayer = Held(stage2) if backbone_first else stage2
    learns_alone = training.covariate_steps > 0 and opt.covariate is not None
    if learns_alone:
        for _ in range(training.covariate_steps):
            loss, *_ = second_stage(treatment_stage1, layer, covariates_fixed=False)
            _descend(loss, [opt.covariate])

    def both_stages(layer: LastLayer) -> tuple[Tensor, Tensor, Tensor]:
        if not training.stage2_steps:  # psi and xi rest: nothing of theirs moves, batch statistics included
            return second_stage(treatment_stage1, layer, covariates_fixed=True)
        return second_stage(features_of(networks.treatment, batch.stage1.treatment), layer, covariates_fixed=learns_alone)

    solved = None
    for _ in range(training.stage2_steps):
        solved = both_stages(layer)
        _descend(solved[0], [opt.treatment] if learns_alone else [opt.treatment, opt.covariate])
    if solved is None or backbone_first:
        with torch.no_grad():
            solved = both_stages(stage2)
    loss, u, v = solved
    return replace(state, first_stage=v, structural=u), StepInfo(loss1.detach(), loss.detach())


def _descend(loss: Tensor, learners: Iterable[torch.optim.Optimizer | None]) -> None:
    """One gradient step of some networks; the others' gradients are not even computed."""
    active = [optimiser for optimiser in learners if optimiser is not None]
    parameters = [p for optimiser in active for group in optimiser.param_groups for p in group["params"]]
    if not parameters or not loss.requires_grad:
        return
    with running_again():
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for optimiser in active:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
