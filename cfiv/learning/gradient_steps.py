"""Members whose networks take gradient steps down an objective that is passed in, which may solve a last layer besides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.errors import DivergenceError
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.early_stopping import Checkpoint
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.learner import Learner
from cfiv.learning.loop import Ended, drive
from cfiv.learning.member import Member
from cfiv.learning.members import MembersRun
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import CHECK_ROWS, Sample, Split, batches
from cfiv.learning.training import Training
from cfiv.networks.member_networks import MemberNetwork, Pass
from cfiv.networks.stacked_networks import member_network


@dataclass(frozen=True)
class Batch:
    """Rows of a step of every member.

    Parameters
    ----------
    rows : Tensor (members, b)
        Their numbers.
    sample : Sample
        With the axis of the members in front.
    noise : tuple of Tensor (members, b, ...)
        What the objective draws.
    memory : Memory or None
        What its last layer remembers, where it has one.
    pull : float
        See :class:`cfiv.learning.solving.Solving`.
    """

    rows: Tensor
    sample: Sample
    noise: tuple[Tensor, ...]
    memory: Memory | None = None
    pull: float = 1.0


class Learned(NamedTuple):
    """Of a batch: the losses (members,), the passes through all networks that they depend on, and what is remembered."""

    losses: Tensor
    passes: list[Pass]
    memory: Memory | None = None


class Judged(NamedTuple):
    """One or several last layers on held-out rows.

    Parameters
    ----------
    losses : Tensor (candidates, rows), float64
        Row weights are not yet in them.
    weights : Tensor (candidates, d, k), float64, optional
    ridges : tuple of float
        One a candidate.
    """

    losses: Tensor
    weights: Tensor | None = None
    ridges: tuple[float, ...] = ()


class Objective(Protocol):
    """What members learn, and what they are judged by."""

    def noise(self, generator: np.random.Generator, rows: int) -> tuple[Tensor, ...]:
        """What a step of one member draws, (rows, ...)."""
        ...

    def learn(self, networks: Sequence[MemberNetwork], batch: Batch) -> Learned:
        """What a batch says."""
        ...

    def judge(self, networks: Sequence[MemberNetwork], place: int, *, seen: Tensor, heldout: Tensor) -> Judged:
        """A member by each held-out row, of which there may be none for one that solves; rows ``seen`` may be fitted to."""
        ...

    def solved(self, networks: Sequence[MemberNetwork]) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """The last layer that is solved on every batch, where there is one, with the shape of its weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class GradientProblem:
    """What members that train side by side are asked to do.

    Parameters
    ----------
    sample : Sample
        All rows.
    splits : tuple of Split
        One a member, of which the rows of stage 2 train, and those held out serve early stopping.
    objective : Objective
    steps : int
    batch_size : int or None
        None for full batches.
    learning_rates, weight_decays : tuple of float
        One for each of the networks.
    training : Training
        Its rate schedule, checks, tolerance and patience.
    """

    sample: Sample
    splits: tuple[Split, ...]
    objective: Objective
    steps: int
    batch_size: int | None
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    training: Training


@dataclass(frozen=True, kw_only=True)
class GradientFit:
    """The state that was kept of a member.

    Parameters
    ----------
    networks : list of Module
        In evaluation mode.
    heldout_loss : float
        nan without held-out rows.
    ridge : float
        Of the last layer that was best there; nan where there is none.
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "diverged", "interrupted", "out of time"}
    """

    networks: list[nn.Module]
    heldout_loss: float
    ridge: float
    history: list[dict[str, Any]]
    ended: Ended

    def cpu(self) -> GradientFit:
        """The fit in the processor's memory, where results live, its networks frozen."""
        return replace(self, networks=[network.cpu().requires_grad_(False) for network in self.networks])


def fit_gradient(
    problem: GradientProblem,
    networks: Sequence[Sequence[nn.Module]],
    *,
    generators: Sequence[np.random.Generator],
    on_step: Callable[[], object],
    deadline: Deadline = NEVER,
    file: RunFile | None = None,
    network: Callable[[Sequence[nn.Module]], MemberNetwork] = member_network,
) -> list[GradientFit | DivergenceError]:
    """Train members side by side, and choose a state of each by held-out loss.

    Parameters
    ----------
    problem : GradientProblem
    networks : sequence of sequences of Module
        Those of every member, trained in place.
    generators : sequence of Generator
        Sources of the members' batches and of their noise.
    on_step : callable
        Called after every step, for progress.
    deadline : Deadline, optional
        After which no further step is taken.
    file : RunFile, optional
        Where the run is saved on its way, and continued from.
    network : callable
        Makes one network of those of all members.

    Returns
    -------
    list of GradientFit or DivergenceError
        One a member; the latter where it diverged before any check.

    Raises
    ------
    KeyboardInterrupt, ModelFileError, OutputError
        As :func:`cfiv.objectives.dfiv_fit.fit_dfiv`.
    """
    steps = GradientSteps(problem, [network(same) for same in zip(*networks, strict=True)], generators)
    run = MembersRun(steps, count=problem.steps, training=problem.training, sample=problem.sample, splits=problem.splits)
    drive(run, steps=problem.steps, on_step=on_step, file=file, deadline=deadline)
    return run.conclude()


class GradientSteps:
    """The steps of all members of a problem; see :class:`cfiv.learning.members.MemberSteps`."""

    losses: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(
        self, problem: GradientProblem, networks: Sequence[MemberNetwork], generators: Sequence[np.random.Generator]
    ) -> None:
        self._problem, self.networks = problem, list(networks)
        rates = zip(self.networks, problem.learning_rates, problem.weight_decays, strict=True)
        self.learners = [Learner.of(rates, decoupled=True)]
        self.refits = bool(self.solved())
        self.memories: list[Memory | None] = [None] if self.refits else []
        self.notes = ("heldout_loss", "refit_ridge") if self.refits else ("heldout_loss",)
        self.advice = "lower learning_rate, or raise the penalties" if self.refits else "lower learning_rate"
        self.batches: Iterator[Batch] = self._draw(generators)

    def step(self, number: int) -> tuple[Tensor]:
        """Take a gradient step of all networks at once."""
        (learner,), problem = self.learners, self._problem
        learner.set_rate(problem.training.rate_factor(number - 1, steps=problem.steps))
        batch = next(self.batches)
        if self.refits:
            pull = problem.training.lambda_factor(number - 1, steps=problem.steps)
            batch = replace(batch, memory=self.memories[0], pull=pull)
        learned = problem.objective.learn(self.networks, batch)
        learner.descend(learned.losses, *([one] for one in learned.passes))
        if self.refits:
            self.memories = [learned.memory]
        return (learned.losses.detach(),)

    def settle(self, place: int, *, number: int) -> None:
        """Nothing."""

    def checkpoint(self, place: int, *, number: int) -> tuple[Checkpoint, tuple[float, ...]]:
        """The state as it would be reported now, with the last layer that has the lowest held-out loss."""
        split, parameters = self._problem.splits[place], [network.state(place) for network in self.networks]
        heldout = split.stage2[:0] if split.heldout is None else split.heldout[:CHECK_ROWS]
        judged = Judged(torch.zeros(1, 0, dtype=torch.float64, device=self._problem.sample.outcome.device))
        if self.refits or len(heldout):
            judged = self._problem.objective.judge(self.networks, place, seen=split.stage2[:CHECK_ROWS], heldout=heldout)
        losses, weights = judged.losses, self._problem.sample.weights
        if weights is not None:
            losses = losses * (weights[heldout] / weights[heldout].mean())
        best = int(losses.mean(dim=1).argmin())
        solved = () if judged.weights is None else (judged.weights[best],)
        now = Checkpoint(number, parameters, solved, judged.ridges[best : best + 1], losses[best])
        return now, (now.loss, *now.ridges)

    def report(self, place: int, member: Member) -> GradientFit:
        """The state that is kept of a member (none where there were no steps)."""
        kept = member.kept
        if kept is not None:
            for network, state in zip(self.networks, kept.parameters, strict=True):
                network.put(place, state)
        (ridge,) = (kept.ridges if kept is not None else ()) or (math.nan,)
        loss, modules = math.nan if kept is None else kept.loss, [network.module(place) for network in self.networks]
        return GradientFit(
            networks=modules, heldout_loss=loss, ridge=ridge, history=member.history, ended=member.ended or "finished"
        )

    def solved(self) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """That of the objective."""
        return self._problem.objective.solved(self.networks)

    def saved(self, place: int) -> None:
        """Nothing else is remembered."""

    def restore(self, place: int, values: Any) -> None:
        """Nothing else is remembered."""
        if values is not None:
            raise ValueError("more is remembered of a member than there is")

    def _draw(self, generators: Sequence[np.random.Generator]) -> Iterator[Batch]:
        """A batch of every member, without end."""
        problem = self._problem
        streams = [
            batches(split.stage2, size=problem.batch_size, generator=generator)
            for split, generator in zip(problem.splits, generators, strict=True)
        ]
        device = problem.sample.outcome.device
        while True:
            rows = torch.stack([next(stream) for stream in streams])
            drawn = [problem.objective.noise(generator, rows.shape[1]) for generator in generators]
            noise = tuple(torch.stack(parts).to(device) for parts in zip(*drawn, strict=True))
            yield Batch(rows, problem.sample.rows(rows), noise)
