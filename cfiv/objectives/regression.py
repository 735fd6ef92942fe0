"""Regression with learned features and a solved last layer: one stage, no instruments.

    W = argmin_W  mean |Y - W' f|^2 + ridge |W|^2 + lambda |W - W_prev|^2,      f the features of a row,

solved on every minibatch; only the features take gradient steps.

References
----------
Galashov et al., arXiv 2510.04606, equation 9, with the proximal penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.learning.gradient_steps import Batch, GradientFit, Judged, Learned
from cfiv.learning.last_layer import ClosedForm
from cfiv.learning.loop import Ended
from cfiv.learning.samples import Sample, Split
from cfiv.learning.solving import Solving
from cfiv.learning.whole_sample import chunk_rows, chunks, refit
from cfiv.networks.feature_maps import evaluate
from cfiv.networks.member_networks import MemberNetwork
from cfiv.numerics.last_layer import last_layer_loss
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.moments import accumulate, moments, predict_with_each, ridge_path
from cfiv.numerics.two_stage import Structure, structural_features

#: Roles of a sample's columns that networks take.
Role = Literal["treatment", "covariates", "instruments"]


@dataclass(frozen=True)
class Features:
    """What features are made of: the roles that networks take, and how their features come together.

    Parameters
    ----------
    roles : tuple of str
        The treatment first: ``f(psi(T), xi(X))``, those of the structural function at the treatment itself; or the instruments
        alone: ``[phi(Z, X), 1]``, those of a conditional mean.
    structure : {"product", "additive"}
    """

    roles: tuple[Role, ...]
    structure: Structure

    def inputs(self, sample: Sample) -> list[Tensor]:
        """Of the networks."""
        return [getattr(sample, role) for role in self.roles]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Features (..., n, d), the constant last, from those of the networks (..., n, m)."""
        if self.roles == ("instruments",):
            return with_intercept(parts[0])
        return structural_features(
            treatment_features=parts[0], covariate_features=parts[1] if len(parts) > 1 else None, structure=self.structure
        )


@dataclass(frozen=True)
class RegressionObjective:
    """The squared error at the W solved on the batch; see :class:`cfiv.learning.gradient_steps.Objective`.

    Parameters
    ----------
    sample : Sample
        All rows.
    features : Features
    layer : ClosedForm
        The last layer as it stands at the end of training.
    ridge : float
        Of the final last layer where nothing is held out.
    ridges : tuple of float
        Candidates for it where rows are.
    """

    sample: Sample
    features: Features
    layer: ClosedForm
    ridge: float
    ridges: tuple[float, ...]

    def noise(self, generator: np.random.Generator, rows: int) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def solved(self, networks: Sequence[MemberNetwork]) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """W, with these networks' features."""
        return [(self.layer, (self._join(networks, 0, self.sample.rows(slice(0, 1))).shape[1], 1))]

    def learn(self, networks: Sequence[MemberNetwork], batch: Batch) -> Learned:
        """The mean squared errors at W, which is solved on the batch and pulled to the last one."""
        rows = batch.sample
        passes = [network.learn(x) for network, x in zip(networks, self.features.inputs(rows), strict=True)]
        features = self.features.join([one.features for one in passes])
        solve = Solving(self.layer, batch.memory, pull=batch.pull)
        losses, _ = last_layer_loss(features=features, targets=rows.outcome, solve=solve, weights=rows.weights)
        return Learned(losses, passes, solve.memory)

    def judge(self, networks: Sequence[MemberNetwork], place: int, *, seen: Tensor, heldout: Tensor) -> Judged:
        """W at each candidate ridge, and its squared errors."""
        ridges = self.ridges if len(heldout) else (self.ridge,)
        parts = (self.sample.rows(part) for part in torch.split(seen, chunk_rows(self.sample.treatment.shape[1:])))
        total = accumulate(
            moments(features=self._join(networks, place, rows), targets=rows.outcome, weights=rows.weights) for rows in parts
        )
        candidates, errors = ridge_path(total, ridges), [total.gram.new_zeros(len(ridges), 0)]
        for rows in chunks(self.sample, heldout):
            predicted = predict_with_each(candidates, features=self._join(networks, place, rows).double())
            errors.append((rows.outcome - predicted)[..., 0].square())
        return Judged(torch.cat(errors, dim=1), candidates, ridges)

    def _join(self, networks: Sequence[MemberNetwork], place: int, rows: Sample) -> Tensor:
        """A member's features at some rows."""
        inputs = zip(networks, self.features.inputs(rows), strict=True)
        return self.features.join([network.evaluate(place, x) for network, x in inputs])


@dataclass(frozen=True, kw_only=True)
class RegressionFit:
    """A fitted conditional mean ``W' f`` in the units of training.

    Parameters
    ----------
    features : Features
    networks : list of Module
        In the order of the features' roles, in evaluation mode.
    weights : Tensor (d, 1), float64
        W, refitted on all rows.
    heldout_loss, refit_ridge : float
        Held-out mean squared error of the state kept (nan without held-out rows) and the ridge of W.
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "diverged", "interrupted", "out of time"}
    """

    features: Features
    networks: list[nn.Module]
    weights: Tensor
    heldout_loss: float
    refit_ridge: float
    history: list[dict[str, Any]]
    ended: Ended

    def predict(self, sample: Sample) -> Tensor:
        """``W' f`` at each row, shape (n, 1), float64."""
        return torch.cat([self.evaluate(chunk).double() @ self.weights for chunk in chunks(sample)])

    def evaluate(self, sample: Sample) -> Tensor:
        """``f`` at each row."""
        inputs = self.features.inputs(sample)
        return self.features.join([evaluate(network, x) for network, x in zip(self.networks, inputs, strict=True)])

    def cpu(self) -> RegressionFit:
        """The fit in the processor's memory, where results live, its networks frozen."""
        networks = [network.cpu().requires_grad_(False) for network in self.networks]
        return replace(self, networks=networks, weights=self.weights.cpu())


def solve_regression(objective: RegressionObjective, fit: GradientFit, split: Split) -> RegressionFit:
    """The state that was kept of a member, with W solved on all rows of its split."""
    ridge = objective.ridge if math.isnan(fit.ridge) else fit.ridge
    nothing = objective.sample.outcome.new_zeros(0)
    fitted = RegressionFit(
        features=objective.features,
        networks=fit.networks,
        weights=nothing,
        heldout_loss=fit.heldout_loss,
        refit_ridge=ridge,
        history=fit.history,
        ended=fit.ended,
    )
    weights = refit(objective.sample, fitted.evaluate, lambda chunk: chunk.outcome, ridge, index=split.sample2)
    return replace(fitted, weights=weights)
