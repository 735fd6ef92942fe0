"""The DFIV step: one batch of each sample in, new last layers out, features moved along their gradients.

``step(batch, state) -> (state, losses)``, for all members side by side. What the last layers V and u remember are values of the
state. The networks and their optimisers are objects that the state carries along; a step changes them in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from cfiv.errors import ParameterError
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.learner import Learner
from cfiv.learning.solving import Solving
from cfiv.learning.training import Training
from cfiv.networks.member_networks import MemberNetwork, Pass
from cfiv.numerics.two_stage import (
    Structure,
    Unpredicted,
    first_stage_loss,
    predicted_treatment_features,
    second_stage_loss,
    unpredicted_features,
)
from cfiv.objectives.dfiv_batches import Stage1Rows, TwoStageBatch

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
class StepOptions:
    """How a step is taken.

    Parameters
    ----------
    training : Training
        Its numbers of steps and its order.
    structure : {"product", "additive"}
    unpredicted_penalty : float
        ``gamma``.
    pull, gain : float
        How strongly last layers are held where they were, and how far they go; see :class:`cfiv.learning.solving.Solving`.
    """

    training: Training
    structure: Structure
    unpredicted_penalty: float
    _: KW_ONLY
    pull: float = 1.0
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of the members (members,) on the batch, before its last gradient steps."""

    stage1: Tensor
    stage2: Tensor


def step(batch: TwoStageBatch, state: DFIVState, *, layers: LastLayers, options: StepOptions) -> tuple[DFIVState, Losses]:
    """Stage 1, covariate features, stage 2 on one pair of minibatches.

    1. ``stage1_steps`` times: V solved with lambda1, psi fixed; a gradient step of phi.
    2. ``covariate_steps`` times: V12 and u solved; a gradient step of xi alone.
    3. ``stage2_steps`` times: V12 solved with lambda12, live in psi, and u with lambda2; a gradient step of psi (and of xi
       where it has no steps of its own).

    Networks that are held fixed run in evaluation mode. Every solve continues from the V and u that came in with ``state``. In
    the backbone-first order the gradients of phi, and of psi and xi, are taken at that V and that u (V12 is solved and live
    all the same), and V and u are solved once more with the updated features.
    """
    training, psi = options.training, state.networks.treatment
    backbone_first, learns = training.order == "backbone-first", training.stage2_steps > 0
    apart = training.covariate_steps > 0 and state.xi.optimiser is not None

    # Where training mode makes no difference, one pass serves stage 1 and stage 2.
    shared = psi.learn(batch.stage1.treatment) if psi.steady and learns else None
    fixed = psi.features(batch.stage1.treatment) if shared is None else shared.features.detach()
    loss1 = learn_instrument_features(batch.stage1, fixed, state, layers.v1, options)
    second = SecondStage(batch, _instrument_features(batch, state.networks.instrument), state, layers, options)
    solved: tuple[Tensor, Memory, Memory] | None = None
    for _ in range(training.covariate_steps if apart else 0):
        xi = second.learn_covariates()
        loss, *_ = second.solve(fixed, [one.features for one in xi], hold_u=backbone_first)
        state.xi.descend(loss, xi)
    for _ in range(training.stage2_steps):
        live = psi.learn(batch.stage1.treatment) if shared is None else shared
        xi = [] if apart else second.learn_covariates()
        solved = second.solve(live.features, [one.features for one in xi] or second.covariates(), hold_u=backbone_first)
        state.psi.descend(solved[0], [live], *([xi] if xi else []))
        shared = None
    if solved is None or backbone_first:
        if learns:
            fixed = psi.learn(batch.stage1.treatment).features.detach()
        live_xi = learns and not apart
        xi_now = [one.features.detach() for one in second.learn_covariates()] if live_xi else second.covariates()
        solved = second.solve(fixed, xi_now, hold_u=False)
    loss2, v, u = solved
    return replace(state, v=v, u=u), Losses(stage1=loss1, stage2=loss2.detach())


def learn_instrument_features(
    stage1: Stage1Rows, psi: Tensor, state: DFIVState, layer: ClosedForm, options: StepOptions
) -> Tensor:
    """Stage 1, ``mean_1 |psi(T) - V' [phi, 1]|^2`` with psi fixed: gradient steps of phi at V held fixed; the last loss.

    V minimises this loss with penalties that do not depend on phi, so by the envelope theorem the gradient is exact.
    """
    training, network, loss = options.training, state.networks.instrument, psi.new_zeros(())
    learning = training.stage1_steps > 0
    held = training.order == "backbone-first" or not learning
    for _ in range(max(1, training.stage1_steps)):  # where nothing learns from it, the history shows it
        forward = network.learn(stage1.instruments) if learning else None
        loss, gradient = first_stage_loss(
            instrument_features_stage1=network.features(stage1.instruments) if forward is None else forward.features.detach(),
            treatment_features_stage1=psi,
            solve=Solving(layer, state.v, held=held, pull=options.pull),
            weights_stage1=stage1.weights,
        )
        if forward is not None:
            state.phi.step([forward.gradients(gradient)])
    return loss


def _instrument_features(batch: TwoStageBatch, network: MemberNetwork) -> tuple[Tensor, Tensor]:
    """``phi(Z_1)`` and ``phi(Z_2)``, fixed."""
    instruments = [batch.stage1.instruments, batch.stage2.instruments]
    phi = network.features(torch.cat(instruments, dim=1))
    first, second = torch.split(phi, [part.shape[1] for part in instruments], dim=1)
    return first, second


@dataclass(frozen=True)
class SecondStage:
    """Stage 2 of a step: what does not change while psi and xi learn from the batch.

    Parameters
    ----------
    batch : TwoStageBatch
    phi : (Tensor, Tensor)
        ``phi(Z_1)`` and ``phi(Z_2)``.
    state, layers, options
    """

    batch: TwoStageBatch
    phi: tuple[Tensor, Tensor]
    state: DFIVState
    layers: LastLayers
    options: StepOptions

    def learn_covariates(self) -> list[Pass]:
        """``xi(X)`` in training mode, of sample 2 and, with gamma, of sample 1; none where there are no covariates."""
        network = self.state.networks.covariate
        return [] if network is None else [network.learn(x) for x in self._covariates()]

    def covariates(self) -> list[Tensor]:
        """The same, fixed."""
        network = self.state.networks.covariate
        return [] if network is None else [network.features(x) for x in self._covariates()]

    def solve(self, psi: Tensor, xi: Sequence[Tensor], *, hold_u: bool) -> tuple[Tensor, Memory, Memory]:
        """The loss (members,), live in psi through V12 and in xi, at u held fixed; V and u.

            mean_2 (Y - u' f(V12' [phi, 1], xi))^2 + gamma mean_1 (u' (f(psi, xi) - f(V12' [phi, 1], xi)))^2

        V12 minimises another loss than this one, so the gradient runs through it: it is linear in psi. u, unless the one of
        the batch before is held, minimises this one.
        """
        stage1, stage2, options = self.batch.stage1, self.batch.stage2, self.options
        phi_stage1, phi_stage2 = self.phi
        xi_stage2, xi_stage1 = (*xi, None, None)[:2]
        v12 = Solving(self.layers.v12, self.state.v, pull=options.pull, gain=options.gain)
        u = Solving(self.layers.u, self.state.u, held=hold_u, pull=options.pull, gain=options.gain)
        predicted_stage1, predicted_stage2, _ = predicted_treatment_features(
            instrument_features_stage1=phi_stage1,
            treatment_features_stage1=psi,
            instrument_features_stage2=phi_stage2,
            solve=v12,
            weights_stage1=stage1.weights,
        )
        if psi.requires_grad and not predicted_stage2.requires_grad:
            raise ParameterError(
                "last_layer must give weights that are differentiable in its targets, got some without a gradient: in stage 2 "
                "the treatment features learn through them; do not detach them"
            )
        unpredicted = None
        if options.unpredicted_penalty:
            gap = unpredicted_features(
                treatment_features=psi,
                predicted_treatment_features=predicted_stage1,
                covariate_features=xi_stage1,
                structure=options.structure,
            )
            unpredicted = Unpredicted(gap, options.unpredicted_penalty, stage1.weights)
        loss, _ = second_stage_loss(
            predicted_treatment_features_stage2=predicted_stage2,
            covariate_features_stage2=xi_stage2,
            outcome_stage2=stage2.outcome,
            structure=options.structure,
            solve=u,
            weights_stage2=stage2.weights,
            unpredicted_stage1=unpredicted,
        )
        return loss, v12.memory, u.memory

    def _covariates(self) -> list[Tensor]:
        parts = [self.batch.stage2.covariates, self.batch.stage1.covariates if self.options.unpredicted_penalty else None]
        return [part for part in parts if part is not None]
