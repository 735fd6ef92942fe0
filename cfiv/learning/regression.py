"""Regression with learned features and a solved last layer: one stage, no instruments.

    W = argmin_W  mean |Y - W' f|^2 + ridge |W|^2 + lambda |W - W_prev|^2,      f the features of a row,

solved on every minibatch; only the features take gradient steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.errors import DivergenceError
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.early_stopping import Checkpoint
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.learner import Learner
from cfiv.learning.loop import Ended, drive
from cfiv.learning.member_networks import MemberNetwork
from cfiv.learning.members import Member, MembersRun
from cfiv.learning.networks import evaluate
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import CHECK_ROWS, Sample, Split, batches
from cfiv.learning.shared_network import shared_network
from cfiv.learning.solving import Solving
from cfiv.learning.training import Training
from cfiv.learning.whole_sample import chunk_rows, chunks, refit
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

    def inputs(self, sample: Sample, rows: Tensor | slice) -> list[Tensor]:
        """Of the networks, at some rows."""
        return [getattr(sample, role)[rows] for role in self.roles]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Features (..., n, d), the constant last, from those of the networks (..., n, m)."""
        if self.roles == ("instruments",):
            return with_intercept(parts[0])
        return structural_features(
            treatment_features=parts[0], covariate_features=parts[1] if len(parts) > 1 else None, structure=self.structure
        )


@dataclass(frozen=True)
class RegressionProblem:
    """What members that train side by side are asked to do.

    Parameters
    ----------
    sample : Sample
        All rows.
    splits : tuple of Split
        One a member, of which the rows of stage 2 train, and those held out serve early stopping and the choice of the ridge.
    features : Features
    layer : ClosedForm
        The last layer as it stands at the end of training.
    ridge : float
        Of the final last layer where nothing is held out.
    steps : int
    batch_size : int or None
        None for full batches.
    learning_rates, weight_decays : tuple of float
        One for each of the networks.
    training : Training
        Its schedules, checks, tolerance, patience and refit ridges; what concerns two stages is not used.
    """

    sample: Sample
    splits: tuple[Split, ...]
    features: Features
    layer: ClosedForm
    ridge: float
    steps: int
    batch_size: int | None
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    training: Training

    @property
    def ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final last layer."""
        return self.training.refit_ridges or (self.ridge,)


@dataclass(frozen=True)
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
        inputs = self.features.inputs(sample, slice(None))
        return self.features.join([evaluate(network, x) for network, x in zip(self.networks, inputs, strict=True)])


def fit_regression(
    problem: RegressionProblem,
    networks: Sequence[Sequence[nn.Module]],
    *,
    generators: Sequence[np.random.Generator],
    on_step: Callable[[], object],
    deadline: Deadline = NEVER,
    file: RunFile | None = None,
) -> list[RegressionFit | DivergenceError]:
    """Train members side by side, choose a state of each by held-out loss, and solve its last layer on all rows.

    Parameters
    ----------
    problem : RegressionProblem
    networks : sequence of sequences of Module
        Those of every member, in the order of the features' roles; trained in place.
    generators : sequence of Generator
        Sources of the members' batches.
    on_step : callable
        Called after every step, for progress.
    deadline : Deadline, optional
        After which no further step is taken.
    file : RunFile, optional
        Where the run is saved on its way, and continued from.

    Returns
    -------
    list of RegressionFit or DivergenceError
        One a member; the latter where it diverged before any check.

    Raises
    ------
    KeyboardInterrupt, ModelFileError, OutputError
        As :func:`cfiv.learning.dfiv_fit.fit_dfiv`.

    References
    ----------
    Galashov et al., arXiv 2510.04606, equation 9, with the proximal penalty.
    """
    steps = RegressionSteps(problem, networks, generators)
    run = MembersRun(steps, count=problem.steps, training=problem.training, sample=problem.sample, splits=problem.splits)
    drive(run, steps=problem.steps, on_step=on_step, file=file, deadline=deadline)
    return run.conclude()


class RegressionSteps:
    """The steps of all members of a problem; see :class:`cfiv.learning.members.MemberSteps`."""

    losses: ClassVar[tuple[str, ...]] = ("loss",)
    notes: ClassVar[tuple[str, ...]] = ("heldout_loss", "refit_ridge")
    advice: ClassVar[str] = "lower learning_rate, or raise the penalties"
    refits: ClassVar[bool] = True

    def __init__(
        self, problem: RegressionProblem, networks: Sequence[Sequence[nn.Module]], generators: Sequence[np.random.Generator]
    ) -> None:
        self._problem = problem
        self.networks: list[MemberNetwork] = [shared_network(same) for same in zip(*networks, strict=True)]
        rates = zip(self.networks, problem.learning_rates, problem.weight_decays, strict=True)
        self.learners = [Learner.of(rates, decoupled=True)]
        self.memories: list[Memory | None] = [None]
        self.batches: Iterator[Any] = self._draw(generators)

    def step(self, number: int) -> tuple[Tensor]:
        """Solve W on the batch, pulled to the last one, and take a gradient step of the features at that W."""
        problem, training, (learner,) = self._problem, self._problem.training, self.learners
        learner.set_rate(training.rate_factor(number - 1, problem.steps))
        rows = next(self.batches)
        outcome, weights = (
            problem.sample.outcome[rows],
            None if problem.sample.weights is None else problem.sample.weights[rows],
        )
        inputs = problem.features.inputs(problem.sample, rows)
        passes = [network.learn(x) for network, x in zip(self.networks, inputs, strict=True)]
        features = problem.features.join([one.features for one in passes])
        pull = training.lambda_factor(number - 1, problem.steps)
        solve = Solving(problem.layer, self.memories[0], pull=pull)
        loss, _ = last_layer_loss(features=features, targets=outcome, solve=solve, weights=weights)
        learner.descend(loss, *([one] for one in passes))
        self.memories = [solve.memory]
        return (loss.detach(),)

    def settle(self, place: int, number: int) -> None:
        """Nothing."""

    def checkpoint(self, place: int, number: int) -> tuple[Checkpoint, tuple[float, float]]:
        """The state as it would be reported now, its ridge the one with the lowest held-out loss."""
        problem, split = self._problem, self._problem.splits[place]
        seen = (problem.sample.rows(part) for part in torch.split(split.stage2[:CHECK_ROWS], self._size))
        total = accumulate(
            moments(features=self._features(place, rows), targets=rows.outcome, weights=rows.weights) for rows in seen
        )
        parameters = [network.state(place) for network in self.networks]
        if split.heldout is None:
            (weights,) = ridge_path(total, (problem.ridge,))
            now = Checkpoint(number, parameters, (weights,), (problem.ridge,), weights.new_zeros(0))
            return now, (now.loss, problem.ridge)
        candidates = ridge_path(total, problem.ridges)
        looked_at = split.heldout[:CHECK_ROWS]
        heldout = replace(problem.sample, treatment=problem.sample.outcome).rows(looked_at)
        parts = chunks(problem.sample, looked_at)
        predicted = torch.cat(
            [predict_with_each(candidates, features=self._features(place, chunk).double()) for chunk in parts], dim=1
        )
        losses = (heldout.outcome - predicted)[..., 0].square()
        if heldout.weights is not None:
            losses = losses * (heldout.weights / heldout.weights.mean())
        best = int(losses.mean(dim=1).argmin())
        now = Checkpoint(number, parameters, (candidates[best],), (problem.ridges[best],), losses[best])
        return now, (now.loss, problem.ridges[best])

    def report(self, place: int, member: Member) -> RegressionFit:
        """The state that is kept of a member (none where there were no steps), with W solved on all rows."""
        kept, problem, split = member.kept, self._problem, self._problem.splits[place]
        if kept is not None:
            for network, state in zip(self.networks, kept.parameters, strict=True):
                network.put(place, state)
        ridge = problem.ridge if kept is None else kept.ridges[0]
        fitted = RegressionFit(
            features=problem.features,
            networks=[network.module(place) for network in self.networks],
            weights=problem.sample.outcome.new_zeros(0),
            heldout_loss=math.nan if kept is None else kept.loss,
            refit_ridge=ridge,
            history=member.history,
            ended=member.ended or "finished",
        )
        weights = refit(problem.sample, fitted.evaluate, lambda chunk: chunk.outcome, ridge, index=split.sample2)
        return replace(fitted, weights=weights)

    def solved(self) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """W, with these networks' features."""
        return [(self._problem.layer, (self._features(0, self._problem.sample.rows(slice(0, 1))).shape[1], 1))]

    def saved(self, place: int) -> None:
        """Nothing else is remembered."""

    def restore(self, place: int, values: Any) -> None:
        """Nothing else is remembered."""
        if values is not None:
            raise ValueError("more is remembered of a member than there is")

    @property
    def _size(self) -> int:
        return chunk_rows(self._problem.sample.treatment.shape[1:])

    def _features(self, place: int, rows: Sample) -> Tensor:
        inputs = self._problem.features.inputs(rows, slice(None))
        return self._problem.features.join(
            [network.evaluate(place, x) for network, x in zip(self.networks, inputs, strict=True)]
        )

    def _draw(self, generators: Sequence[np.random.Generator]) -> Iterator[Tensor]:
        """Rows of a batch of every member, (members, rows), without end."""
        streams = [
            batches(split.stage2, size=self._problem.batch_size, generator=generator)
            for split, generator in zip(self._problem.splits, generators, strict=True)
        ]
        while True:
            yield torch.stack([next(stream) for stream in streams])
