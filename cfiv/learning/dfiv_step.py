"""The DFIV step: one batch of each sample in, new last layers out, features moved along their gradients.

``step(batch, state) -> (state, losses)``, for all members side by side. What the last layers V and u remember are values of the
state. The networks and their optimisers are objects that the state carries along; a step changes them in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.member_networks import MemberNetwork
from cfiv.learning.optimisers import adam
from cfiv.learning.samples import Sample
from cfiv.learning.training import Training
from cfiv.numerics.last_layer import mean_square
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.two_stage import Structure, Unpredicted, penalised_rows, structural_features, unpredicted_features
from cfiv.runtime.draws import running_again

#: One value each for the treatment, the instrument and the covariate network.
PerNetwork = tuple[float, float, float]


@dataclass(frozen=True)
class MemberNetworks:
    """Feature maps: ``treatment`` psi, ``instrument`` phi, ``covariate`` xi (None without covariates)."""

    treatment: MemberNetwork
    instrument: MemberNetwork
    covariate: MemberNetwork | None

    def those(self) -> list[MemberNetwork]:
        """The networks that exist, in a fixed order."""
        return [network for network in (self.treatment, self.instrument, self.covariate) if network is not None]

    def covariate_features(self, covariates: Tensor | None, *, fixed: bool) -> Tensor | None:
        """``xi(X)``, or None where there are no covariates."""
        if self.covariate is None or covariates is None:
            return None
        return self.covariate.features(covariates, fixed=fixed)


@dataclass(frozen=True)
class Learner:
    """Networks that take their gradient steps together, and their optimiser; None where none of them has parameters."""

    networks: tuple[MemberNetwork, ...]
    optimiser: torch.optim.Optimizer | None

    @classmethod
    def of(cls, networks: Iterable[tuple[MemberNetwork | None, float, float]], *, decoupled: bool) -> Learner:
        """Adam, or AdamW with ``decoupled`` weight decay, for networks with their peak rates and decays."""
        there = [(network, rate, decay) for network, rate, decay in networks if network is not None]
        groups = [
            {"params": network.parameters, "lr": rate, "peak": rate, "weight_decay": decay}
            for network, rate, decay in there
            if network.parameters
        ]
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        return cls(tuple(network for network, *_ in there), adam(kind, groups) if groups else None)

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to a fraction of its peak."""
        for group in () if self.optimiser is None else self.optimiser.param_groups:
            group["lr"] = factor * group["peak"]

    def descend(self, losses: Tensor) -> None:
        """One gradient step down the losses (members,); other networks' gradients are not even computed."""
        leaves = [leaf for network in self.networks for leaf in network.leaves]
        if self.optimiser is None or not losses.requires_grad:
            return
        with running_again():
            gradients = iter(torch.autograd.grad(losses.sum(), leaves, allow_unused=True))
        for network in self.networks:
            network.take([next(gradients) for _ in network.leaves])
        self.optimiser.step()


@dataclass(frozen=True)
class LastLayers:
    """V while phi learns (``v1``), V while psi learns (``v12``), and u."""

    v1: ClosedForm
    v12: ClosedForm
    u: ClosedForm


@dataclass(frozen=True)
class DFIVState:
    """What a step hands to the next.

    Parameters
    ----------
    networks : MemberNetworks
    phi, psi, xi : Learner
        ``psi`` moves xi too, unless that has steps of its own; then ``xi`` does.
    v, u : Memory or None
        Of V (members, d + 1, m) and of u (members, p, 1); None before the first batch.
    """

    networks: MemberNetworks
    phi: Learner
    psi: Learner
    xi: Learner
    v: Memory | None = None
    u: Memory | None = None

    @classmethod
    def begin(
        cls, networks: MemberNetworks, *, training: Training, learning_rate: PerNetwork, weight_decay: PerNetwork
    ) -> DFIVState:
        """Before the first batch."""
        psi, phi, xi = zip(
            (networks.treatment, networks.instrument, networks.covariate), learning_rate, weight_decay, strict=True
        )
        decoupled = training.decoupled_weight_decay
        apart = training.covariate_steps > 0
        return cls(
            networks,
            phi=Learner.of([phi], decoupled=decoupled),
            psi=Learner.of([psi] if apart else [psi, xi], decoupled=decoupled),
            xi=Learner.of([xi] if apart else [], decoupled=decoupled),
        )

    def learners(self) -> list[Learner]:
        """Those that have an optimiser, in a fixed order."""
        return [learner for learner in (self.phi, self.psi, self.xi) if learner.optimiser is not None]


@dataclass(frozen=True)
class Batch:
    """One minibatch of each sample, (members, rows, ...)."""

    stage1: Sample
    stage2: Sample


@dataclass(frozen=True)
class StepOptions:
    """What stays the same from step to step.

    Parameters
    ----------
    training : Training
        Its numbers of steps and its order.
    structure : {"product", "additive"}
    unpredicted_penalty : float
        ``gamma``.
    """

    training: Training
    structure: Structure
    unpredicted_penalty: float


@dataclass(frozen=True)
class Losses:
    """Of the members (members,) on the batch, before its last gradient steps."""

    stage1: Tensor
    stage2: Tensor


def step(batch: Batch, state: DFIVState, *, layers: LastLayers, options: StepOptions) -> tuple[DFIVState, Losses]:
    """Stage 1, covariate features, stage 2 on one pair of minibatches.

    1. ``stage1_steps`` times: V solved with lambda1, psi fixed; a gradient step of phi.
    2. ``covariate_steps`` times: V12 and u solved; a gradient step of xi alone.
    3. ``stage2_steps`` times: V12 solved with lambda12, live in psi, and u with lambda2; a gradient step of psi (and of xi
       where it has no steps of its own).

    Networks that are held fixed run in evaluation mode. Every solve continues from the V and u that came in with ``state``. In
    the backbone-first order the gradients of phi, and of psi and xi, are taken at that V and that u (V12 is solved and live
    all the same), and V and u are solved once more with the updated features.
    """
    training, networks = options.training, state.networks
    learns, learns_alone = training.stage2_steps > 0, training.covariate_steps > 0 and state.xi.optimiser is not None
    backbone_first = training.order == "backbone-first"
    live = networks.treatment.features(batch.stage1.treatment, fixed=False) if networks.treatment.steady and learns else None
    psi = networks.treatment.features(batch.stage1.treatment, fixed=True) if live is None else live.detach()
    loss1 = _learn_instrument_features(batch.stage1, psi, state, layers.v1, training)
    phi = _instrument_features(batch, networks.instrument)

    def second_stage(psi: Tensor, *, hold_u: bool, covariates_fixed: bool) -> tuple[Tensor, Memory, Memory]:
        held = state.u if hold_u else None
        return solve_second_stage(batch, psi, phi, state, layers, options, held=held, covariates_fixed=covariates_fixed)

    for _ in range(training.covariate_steps if learns_alone else 0):
        loss2, v, u = second_stage(psi, hold_u=backbone_first, covariates_fixed=False)
        state.xi.descend(loss2)
    for _ in range(training.stage2_steps):
        psi = networks.treatment.features(batch.stage1.treatment, fixed=False) if live is None else live
        loss2, v, u = second_stage(psi, hold_u=backbone_first, covariates_fixed=learns_alone)
        state.psi.descend(loss2)
        live = None
    if backbone_first or not learns:
        with torch.no_grad():
            if learns:
                psi = networks.treatment.features(batch.stage1.treatment, fixed=False)
            loss2, v, u = second_stage(psi, hold_u=False, covariates_fixed=learns_alone or not learns)
    return replace(state, v=v, u=u), Losses(loss1, loss2.detach())


def _learn_instrument_features(
    stage1: Sample, psi: Tensor, state: DFIVState, layer: ClosedForm, training: Training
) -> Tensor:
    """Stage 1, ``mean_1 |psi(T) - V' [phi, 1]|^2`` with psi fixed: gradient steps of phi at V held fixed; the last loss.

    V minimises this loss with penalties that do not depend on phi, so by the envelope theorem the gradient is exact.
    """
    loss, learning = psi.new_zeros(()), training.stage1_steps > 0
    held = state.v if training.order == "backbone-first" or not learning else None
    for _ in range(max(1, training.stage1_steps)):  # where nothing learns from it, the history shows it
        phi = with_intercept(state.networks.instrument.features(stage1.instruments, fixed=not learning))
        v = held or layer.update(state.v, features=phi.detach(), targets=psi, weights=stage1.weights)
        loss = mean_square(psi - phi @ v.weights.to(phi.dtype), stage1.weights)
        if learning:
            state.phi.descend(loss)
    return loss.detach()


def _instrument_features(batch: Batch, network: MemberNetwork) -> tuple[Tensor, Tensor]:
    """``[phi(Z_1), 1]`` and ``[phi(Z_2), 1]``, fixed."""
    instruments = [batch.stage1.instruments, batch.stage2.instruments]
    phi = with_intercept(network.features(torch.cat(instruments, dim=1), fixed=True))
    first, second = phi.split([part.shape[1] for part in instruments], dim=1)
    return first, second


def solve_second_stage(
    batch: Batch,
    psi: Tensor,
    phi: tuple[Tensor, Tensor],
    state: DFIVState,
    layers: LastLayers,
    options: StepOptions,
    *,
    held: Memory | None,
    covariates_fixed: bool,
) -> tuple[Tensor, Memory, Memory]:
    """The loss of stage 2, live in psi through V12 and in xi, at u held fixed; V and u.

    ``mean_2 (Y - u' f(V12' [phi, 1], xi))^2 + gamma mean_1 (u' (f(psi, xi) - f(V12' [phi, 1], xi)))^2``

    V12 minimises another loss than this one, so the gradient runs through it: it is linear in psi. u minimises this one.
    """
    stage1, stage2, networks = batch.stage1, batch.stage2, state.networks
    phi_stage1, phi_stage2 = phi
    v = layers.v12.update(state.v, features=phi_stage1, targets=psi, weights=stage1.weights)
    v12 = v.weights.to(phi_stage1.dtype)
    features = structural_features(
        treatment_features=phi_stage2 @ v12,
        covariate_features=networks.covariate_features(stage2.covariates, fixed=covariates_fixed),
        structure=options.structure,
    )
    targets, weights = stage2.outcome, stage2.weights
    if options.unpredicted_penalty:
        gap = unpredicted_features(
            treatment_features=psi,
            predicted_treatment_features=phi_stage1 @ v12,
            covariate_features=networks.covariate_features(stage1.covariates, fixed=covariates_fixed),
            structure=options.structure,
        )
        features, targets = penalised_rows(
            features_stage2=features,
            outcome_stage2=targets,
            weights_stage2=weights,
            unpredicted_stage1=Unpredicted(gap, options.unpredicted_penalty, stage1.weights),
        )
        weights = None
    u = held or layers.u.update(state.u, features=features.detach(), targets=targets, weights=weights)
    loss = mean_square(targets - features @ u.weights.to(features.dtype), weights)
    return loss, v.detached(), u
