"""Members all of whose layers take gradient steps, down an objective that is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.errors import DivergenceError
from cfiv.learning.early_stopping import Checkpoint
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.learner import Learner
from cfiv.learning.loop import Ended, drive
from cfiv.learning.member_networks import MemberNetwork, Pass, member_network
from cfiv.learning.members import Member, MembersRun
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import CHECK_ROWS, Sample, Split, batches
from cfiv.learning.training import Training


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
    """

    rows: Tensor
    sample: Sample
    noise: tuple[Tensor, ...]


class Objective(Protocol):
    """What members learn, and what they are judged by."""

    def noise(self, generator: np.random.Generator, rows: int) -> tuple[Tensor, ...]:
        """What a step of one member draws, (rows, ...)."""
        ...

    def learn(self, networks: Sequence[MemberNetwork], batch: Batch) -> tuple[Tensor, list[Pass]]:
        """The losses (members,), and the passes through all networks that they depend on."""
        ...

    def heldout_losses(self, networks: Sequence[nn.Module], place: int, *, seen: Tensor, heldout: Tensor) -> Tensor:
        """The loss of each held-out row, (rows,), float64, by a member's networks; rows ``seen`` may be fitted to."""
        ...


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class GradientFit:
    """The state that was kept of a member.

    Parameters
    ----------
    networks : list of Module
        In evaluation mode.
    heldout_loss : float
        nan without held-out rows.
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "interrupted", "diverged"}
    """

    networks: list[nn.Module]
    heldout_loss: float
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
    file: RunFile | None = None,
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
    file : RunFile, optional
        Where the run is saved on its way, and continued from.

    Returns
    -------
    list of GradientFit or DivergenceError
        One a member; the latter where it diverged before any check.

    Raises
    ------
    KeyboardInterrupt, ModelFileError, OutputError
        As :func:`cfiv.learning.dfiv_fit.fit_dfiv`.
    """
    steps = GradientSteps(problem, networks, generators)
    run = MembersRun(steps, count=problem.steps, training=problem.training, sample=problem.sample, splits=problem.splits)
    drive(run, steps=problem.steps, on_step=on_step, file=file)
    return run.conclude()


class GradientSteps:
    """The steps of all members of a problem; see :class:`cfiv.learning.members.MemberSteps`. No last layer is solved."""

    losses: ClassVar[tuple[str, ...]] = ("loss",)
    notes: ClassVar[tuple[str, ...]] = ("heldout_loss",)
    advice: ClassVar[str] = "lower learning_rate"
    refits: ClassVar[bool] = False

    def __init__(
        self, problem: GradientProblem, networks: Sequence[Sequence[nn.Module]], generators: Sequence[np.random.Generator]
    ) -> None:
        self._problem = problem
        self.networks: list[MemberNetwork] = [member_network(same) for same in zip(*networks, strict=True)]
        rates = zip(self.networks, problem.learning_rates, problem.weight_decays, strict=True)
        self.learners = [Learner.of(rates, decoupled=True)]
        self.memories: list[Memory | None] = []
        self.batches: Iterator[Batch] = self._draw(generators)

    def step(self, number: int) -> tuple[Tensor]:
        """Take a gradient step of all networks at once."""
        (learner,), problem = self.learners, self._problem
        learner.set_rate(problem.training.rate_factor(number - 1, problem.steps))
        losses, passes = problem.objective.learn(self.networks, next(self.batches))
        learner.descend(losses, *([one] for one in passes))
        return (losses.detach(),)

    def settle(self, place: int, number: int) -> None:
        """Nothing."""

    def checkpoint(self, place: int, number: int) -> tuple[Checkpoint, tuple[float]]:
        """The state as it would be reported now."""
        split, parameters = self._problem.splits[place], [network.state(place) for network in self.networks]
        losses = torch.zeros(0, dtype=torch.float64, device=self._problem.sample.outcome.device)
        if split.heldout is not None:
            seen, heldout = split.stage2[:CHECK_ROWS], split.heldout[:CHECK_ROWS]
            modules = [network.module(place) for network in self.networks]
            losses = self._problem.objective.heldout_losses(modules, place, seen=seen, heldout=heldout)
            weights = self._problem.sample.weights
            if weights is not None:
                losses = losses * (weights[heldout] / weights[heldout].mean())
            for module in modules:
                module.train()
        now = Checkpoint(number, parameters, (), (), losses)
        return now, (now.loss,)

    def report(self, place: int, member: Member) -> GradientFit:
        """The state that is kept of a member (none where there were no steps)."""
        if member.kept is not None:
            for network, state in zip(self.networks, member.kept.parameters, strict=True):
                network.put(place, state)
        loss = math.nan if member.kept is None else member.kept.loss
        modules = [network.module(place) for network in self.networks]
        return GradientFit(modules, loss, member.history, member.ended or "finished")

    def solved(self) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """None."""
        return []

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
