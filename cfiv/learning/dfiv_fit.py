"""DFIV's training: members side by side, each judged, kept and ended by itself."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DivergenceError, TrainingWarning, warn
from cfiv.file_values import fields, listed, tensor_of
from cfiv.learning.dfiv_member import ADVICE, Member
from cfiv.learning.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.learning.dfiv_step import (
    Batch,
    DFIVState,
    Losses,
    MemberNetworks,
    Stage1Rows,
    Stage2Rows,
    StepOptions,
    step,
)
from cfiv.learning.last_layer import Memory
from cfiv.learning.loop import check_steps, drive
from cfiv.learning.member_networks import member_network
from cfiv.learning.networks import Networks
from cfiv.learning.run_file import RunFile, draws_of, restore_draws
from cfiv.learning.samples import batches
from cfiv.learning.saved_state import check_draws, check_optimiser
from cfiv.numerics.two_stage import structural_features

#: Besides at checks the instrument features are judged after these steps: with little to learn they overfit within a few.
EARLY_CHECKS = {2, 4, 8, 16}


def fit_dfiv(
    problem: DFIVProblem,
    networks: Sequence[Networks],
    *,
    generators: Sequence[np.random.Generator],
    on_step: Callable[[], object],
    file: RunFile | None = None,
) -> list[TwoStageFit | DivergenceError]:
    """Train members side by side, choose a state of each by its held-out stage-2 loss, and solve its last layers.

    With "current" the last state is taken as it is. A member that diverges stops at the last state kept, Ctrl-C stops all of
    them; both give a TrainingWarning.

    Parameters
    ----------
    problem : DFIVProblem
    networks : sequence of Networks
        One a member; trained in place.
    generators : sequence of Generator
        Sources of the members' batches.
    on_step : callable
        Called after every step, for progress.
    file : RunFile, optional
        Where the run is saved on its way, and continued from.

    Returns
    -------
    list of TwoStageFit or DivergenceError
        One a member; the latter where it diverged before any check.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted before the first step was done.
    ModelFileError, OutputError
        From the file.

    References
    ----------
    Xu et al. 2021, algorithm 1, for the alternation of the stages; Galashov et al., arXiv 2510.04606, for the proximal solves.
    """
    run = DFIVRun(problem, networks, generators)
    drive(run, steps=problem.steps, on_step=on_step, file=file)
    run.warn()
    return [member.fitted() for member in run.members]


class DFIVRun:
    """The steps of all members of a problem; its state moves on with every one."""

    def __init__(self, problem: DFIVProblem, networks: Sequence[Networks], generators: Sequence[np.random.Generator]) -> None:
        self._problem, training = problem, problem.training
        covariate = [each.covariate for each in networks if each.covariate is not None]
        self._networks = MemberNetworks(
            member_network([each.treatment for each in networks]),
            member_network([each.instrument for each in networks]),
            member_network(covariate) if covariate else None,
        )
        self._state = DFIVState.begin(
            self._networks, training=training, learning_rate=problem.learning_rate, weight_decay=problem.weight_decay
        )
        self._options = StepOptions(training, problem.structure, problem.unpredicted_penalty)
        resting = replace(training, stage1_steps=0, stage2_steps=0, covariate_steps=0)
        self._resting = replace(self._options, training=resting)
        self._batches = draw_batches(problem, generators)
        self.members = [Member(problem, self._networks, place) for place in range(len(problem.splits))]
        self._checks = check_steps(problem.steps, training.checks)
        self._judged = EARLY_CHECKS | self._checks if training.stage1_steps else set()
        self._losses: list[Losses] = []

    @property
    def over(self) -> bool:
        """Whether all members have ended."""
        return not self._active()

    def step(self, number: int) -> None:
        """Take step ``number`` (from 1), and go back to better instrument features where there were any."""
        training, learning = self._problem.training, self._problem.learning_steps
        if number <= learning:
            for learner in self._state.learners():
                learner.set_rate(training.rate_factor(number - 1, learning))
            layers = self._problem.layers.scheduled(training.lambda_factor(number - 1, learning))
        else:
            # The k-th step of rest: with these gains the k-th batch weighs k times as much as the first. They are the memory
            # now; large proximal penalties would only keep directions of little variance from settling.
            layers = self._problem.layers.scheduled(training.lambda_start).settling(2.0 / (number - learning + 1))
        options = self._options if number <= learning else self._resting
        self._state, losses = step(next(self._batches), self._state, layers=layers, options=options)
        self._losses.append(losses)
        for place, member in self._active():
            member.judge.forget()
            if number in self._judged and member.gives_up:
                with member.surviving(number):
                    first_stage = member.choose_instrument_features()
                    if first_stage is not None:
                        self._solved[0][place] = first_stage

    def look(self, number: int) -> None:
        """Judge all members as they would be reported now, at every check."""
        if number not in self._checks:
            return
        stage1, stage2 = (torch.stack([getattr(losses, name) for losses in self._losses]) for name in ("stage1", "stage2"))
        self._losses, (v, u) = [], self._solved
        for place, member in self._active():
            with member.surviving(number):
                member.look(number, stage1=stage1[:, place], stage2=stage2[:, place], v=v[place], u=u[place])

    def interrupt(self, number: int) -> None:
        """End all members with what is kept of them."""
        v, u = self._solved
        for place, member in self._active():
            with member.surviving(number):
                member.interrupt(number, v=v[place], u=u[place])

    def warn(self) -> None:
        """Say why members have ended that did not on their own terms."""
        for reason in dict.fromkeys(member.reason for member in self.members if member.reason and member.kept_step):
            steps = sorted({member.kept_step for member in self.members if member.reason == reason and member.kept_step})
            kept = f"the state of step {steps[0]} is kept and usable"
            if len(steps) > 1:
                kept = f"the states of steps {' and '.join(map(str, steps))} are kept and usable"
            advice = f"; {ADVICE}" if "diverged" in reason else ""
            warn(f"{reason}{advice}; {kept}", TrainingWarning)

    def saved(self) -> dict[str, Any]:
        """The state, what is remembered of every member, and the generators."""
        state, places = self._state, range(len(self.members))
        return {
            "networks": [[network.state(place) for place in places] for network in self._networks.those()],
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers()],
            "last_layers": [[memory.weights, *memory.more] for memory in (state.v, state.u) if memory is not None],
            "losses": [[losses.stage1, losses.stage2] for losses in self._losses],
            "members": [member.saved() for member in self.members],
            "draws": draws_of(self._device),
        }

    def restore(self, values: dict[str, Any], *, done: int) -> None:
        """Go where the run was after ``done`` steps. Their batches are drawn again, one of each sample a step."""
        fields(values, *self.saved())
        count, device = len(self.members), self._device
        draws = check_draws(values["draws"], device)
        v, u = self._restored_memories(values["last_layers"])
        self._state = replace(self._state, v=v, u=u)
        for network, states in zip(self._networks.those(), listed(values["networks"]), strict=True):
            for place, state in enumerate(listed(states, count=count)):
                network.put(place, network.check(state))
        for optimiser, kept in zip(self._optimisers(), listed(values["optimisers"]), strict=True):
            optimiser.load_state_dict(check_optimiser(kept, optimiser))
        looks = sorted(at for at in self._checks if 0 < at <= done)
        for member, kept in zip(self.members, listed(values["members"]), strict=True):
            member.restore(kept, looks=looks, v=v.weights.shape[1:], u=u.weights.shape[1:])
        for pair in listed(values["losses"], count=done - max(looks, default=0)):
            stage1, stage2 = (tensor_of(loss, (count,), loss.dtype, finite=False) for loss in listed(pair, count=2))
            self._losses.append(Losses(stage1.to(device), stage2.to(device)))
        for _ in range(done):
            next(self._batches)
        restore_draws(draws, device)

    def _restored_memories(self, values: Any) -> list[Memory]:
        """Of V and u, whose shapes are those that these networks' features give."""
        row, networks = self._problem.sample.rows(slice(0, 1)), self._networks
        psi = networks.treatment.evaluate(0, row.treatment)
        phi = networks.instrument.evaluate(0, row.instruments)
        xi = None if networks.covariate is None or row.covariates is None else networks.covariate.evaluate(0, row.covariates)
        f = structural_features(treatment_features=psi, covariate_features=xi, structure=self._problem.structure)
        count = len(self.members)
        shapes = [(count, phi.shape[1] + 1, psi.shape[1]), (count, f.shape[1], 1)]
        memories = []
        for kept, shape in zip(listed(values), shapes, strict=True):
            weights, *more = listed(kept)
            tensor_of(weights, shape, torch.float64, finite=False)
            memories.append(Memory(weights.to(self._device), tuple(part.to(self._device) for part in more)))
        return memories

    @property
    def _solved(self) -> tuple[Tensor, Tensor]:
        """V and u of all members."""
        v, u = self._state.v, self._state.u
        assert v is not None, "after the first step"
        assert u is not None, "after the first step"
        return v.weights, u.weights

    @property
    def _device(self) -> torch.device:
        return self._problem.sample.outcome.device

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [learner.optimiser for learner in self._state.learners() if learner.optimiser is not None]

    def _active(self) -> list[tuple[int, Member]]:
        return [(place, member) for place, member in enumerate(self.members) if member.ended is None]


def draw_batches(problem: DFIVProblem, generators: Sequence[np.random.Generator]) -> Iterator[Batch]:
    """Minibatches of both samples without end, of every member side by side; of what the stages look at, and no more."""
    size, streams = problem.batch_size, []
    for split, generator in zip(problem.splits, generators, strict=True):
        of_stage1, of_stage2 = generator.spawn(2)
        both = batches(split.stage1, size=size, generator=of_stage1), batches(split.stage2, size=size, generator=of_stage2)
        streams.append(both)
    sample, drawn = problem.sample, list[Tensor]()
    covariates, w, gamma = sample.covariates, sample.weights, problem.unpredicted_penalty
    batch: Batch | None = None
    while True:
        rows = [next(stream) for both in streams for stream in both]
        if batch is None or not all(map(operator.is_, rows, drawn)):  # a full batch is the one before
            drawn, stage1, stage2 = rows, torch.stack(rows[0::2]), torch.stack(rows[1::2])
            batch = Batch(
                Stage1Rows(
                    sample.treatment[stage1],
                    sample.instruments[stage1],
                    covariates[stage1] if covariates is not None and gamma else None,
                    None if w is None else w[stage1],
                ),
                Stage2Rows(
                    sample.outcome[stage2],
                    sample.instruments[stage2],
                    None if covariates is None else covariates[stage2],
                    None if w is None else w[stage2],
                ),
            )
        yield batch
