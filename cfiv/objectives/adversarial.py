"""A structural function against a critic, who looks for the function of the instruments whose moment it violates most.

    min_h max_f  mean 2 f(Z, X) (Y - h(T, X)) - f(Z, X)^2 - ridge |w|^2,        f = w' [phi(Z, X), 1].

At any ``phi`` the best ``w`` is known: it is the regression of the residual on the features, and is solved on every batch. So
the critic's features learn to explain what is left of the outcome, and ``h`` to leave nothing that they explain.

A regression on few rows also explains noise, each row's its own, and an ``h`` that is to leave nothing of that learns the
confounder. So a batch has two halves, each with a ``w``, and ``h`` answers in either half to the critic of the other.

References
----------
Dikkala, Lewis, Mackey, Syrgkanis, "Minimax Estimation of Conditional Moment Models", NeurIPS 2020, for the game. That the
critic's last layer is solved is ours; without it both players took gradient steps, and training did not settle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.learning.gradient_steps import Batch, Judged, Learned
from cfiv.learning.last_layer import ClosedForm
from cfiv.learning.samples import Sample
from cfiv.learning.whole_sample import refit
from cfiv.networks.feature_maps import evaluate
from cfiv.networks.member_networks import MemberNetwork, member_modules
from cfiv.numerics.last_layer import last_layer_loss, weighted_mean
from cfiv.numerics.least_squares import solve_step, with_intercept
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.structural_networks import learn_structural, structural_values

#: Every second row of a batch, and the others.
HALVES = (slice(None, None, 2), slice(1, None, 2))


@dataclass(frozen=True)
class CriticObjective:
    """The game, of networks ``[phi, psi, xi, u]``; see :class:`cfiv.learning.gradient_steps.Objective`.

    Parameters
    ----------
    sample : Sample
        All rows.
    ridge : float
        Of ``w``, on the mean squared error.
    structure : {"product", "additive"}
    """

    sample: Sample
    ridge: float
    structure: Structure

    def noise(self, generator: np.random.Generator, rows: int) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def solved(self, networks: Sequence[MemberNetwork]) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """None that remembers: the critic's ``w`` is the batch's own."""
        return []

    def learn(self, networks: Sequence[MemberNetwork], batch: Batch) -> Learned:
        """The values of the game; their gradients are those of ``h`` down, and of the critic's features up."""
        rows = batch.sample
        phi = networks[0].learn(rows.instruments)
        h, passes = learn_structural(
            networks[1:], treatment=rows.treatment[:, None, None], covariates=rows.covariates, structure=self.structure
        )
        residual, features = rows.outcome[..., 0] - h[:, 0], with_intercept(phi.features)
        unexplained, w = zip(
            *(self._solve(features, residual=residual, weights=rows.weights, half=half) for half in HALVES), strict=True
        )
        critic = torch.empty_like(residual)
        for half, other in zip(HALVES, reversed(w), strict=True):
            critic[:, half] = (features[:, half].detach() @ other.to(features.dtype))[..., 0]
        game = weighted_mean(critic * (2 * residual - critic), weights=rows.weights)
        # What is unexplained falls where the game rises: its own value is taken off, and its gradient left.
        left = (unexplained[0] + unexplained[1]) / 2
        return Learned(game + (left - left.detach()), [phi, *passes])

    def _solve(self, features: Tensor, *, residual: Tensor, weights: Tensor | None, half: slice) -> tuple[Tensor, Tensor]:
        """What the critic leaves unexplained of the residuals of half of a batch, and its ``w``."""
        return last_layer_loss(
            features=features[:, half],
            targets=residual.detach()[:, half, None],
            solve=partial(solve_step, ridge=self.ridge),
            weights=None if weights is None else weights[:, half],
        )

    def judge(self, networks: Sequence[MemberNetwork], place: int, *, seen: Tensor, heldout: Tensor) -> Judged:
        """``(Y - E[h | Z, X])^2`` of each row, the mean as the critic's features explain it."""
        rows = self.sample.rows(heldout)
        with member_modules(networks, place) as modules:
            explained = Explained.of(modules, self.sample.rows(seen), ridge=self.ridge, structure=self.structure)
            mean = explained.predicted_outcome(instruments=rows.instruments, covariates=rows.covariates)
        return Judged((rows.outcome.double() - mean)[:, 0].square()[None])


@dataclass(frozen=True)
class Explained:
    """What the critic's features explain of ``h``: ``E[h | Z, X] = c' [phi(Z, X), 1]``.

    Parameters
    ----------
    network : Module
        ``phi``.
    weights : Tensor (d, 1), float64
        ``c``.
    """

    network: nn.Module
    weights: Tensor

    @classmethod
    def of(cls, networks: Sequence[nn.Module], sample: Sample, *, ridge: float, structure: Structure) -> Explained:
        """By ridge regression on a sample, of networks ``[phi, psi, xi, u]``."""

        def h(chunk: Sample) -> Tensor:
            psi = evaluate(networks[1], chunk.treatment)
            return structural_values(networks[1:], treatment_features=psi, covariates=chunk.covariates, structure=structure)

        weights = refit(sample, lambda chunk: with_intercept(evaluate(networks[0], chunk.instruments)), h, ridge)
        return cls(networks[0], weights)

    def cpu(self) -> Explained:
        """In the processor's memory, where results live."""
        return Explained(self.network.cpu(), self.weights.cpu())

    def predicted_outcome(self, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
        """``E[h | Z, X]`` in standard units, shape (n, 1); ``instruments`` includes the covariates."""
        return with_intercept(evaluate(self.network, instruments)).double() @ self.weights
