"""DFIV's training: members side by side, each judged, kept and ended by itself; then the final last layers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError
from cfiv.learning.dfiv_judge import Judge
from cfiv.learning.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.learning.dfiv_step import Batch, DFIVState, LastLayers, Losses, MemberNetworks, Stage1Rows, Stage2Rows, StepOptions, step
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.last_layer import Proximal
from cfiv.learning.loop import DIVERGED, DivergedError, Ended, check_steps
from cfiv.learning.member_networks import member_network
from cfiv.learning.networks import Networks
from cfiv.learning.samples import batches
from cfiv.learning.training import Penalties
from cfiv.learning.whole_sample import refit_last_layers, with_treatment_features

#: Besides at checks the instrument features are judged after these steps: with little to learn they overfit within a few.
EARLY_CHECKS = {2, 4, 8, 16}
ADVICE = "lower learning_rate, raise lambda1, lambda2 and lambda12 or the ridges"


@dataclass(frozen=True)
class SolvedLayers:
    """V and u as they would be reported, with the ridges that they are (to be) refitted with; nan where they are not."""

    first_stage: Tensor
    structural: Tensor
    first_stage_ridge: float
    ridge: float


@dataclass
class Member:
    """What is kept of one member, and how it has ended; None while it trains."""

    judge: Judge
    stopping: EarlyStopping[SolvedLayers]
    gives_up: bool
    limit: float
    history: list[dict[str, Any]] = field(default_factory=list)
    stage1_heldout_loss: float = math.nan
    ended: Ended | None = None
    reason: str = ""


class DFIVRun:
    """The steps of all members of a problem; its state moves on with every one."""

    def __init__(self, problem: DFIVProblem, networks: Sequence[Networks], generators: Sequence[np.random.Generator]) -> None:
        self._problem = problem
        self._networks = MemberNetworks(
            member_network([each.treatment for each in networks]),
            member_network([each.instrument for each in networks]),
            None if networks[0].covariate is None else member_network([each.covariate for each in networks]),
        )
        training = problem.training
        self._state = DFIVState.begin(
            self._networks, training=training, learning_rate=problem.learning_rate, weight_decay=problem.weight_decay
        )
        options = StepOptions(training, problem.structure, problem.penalties.unpredicted)
        resting = replace(training, stage1_steps=0, stage2_steps=0, covariate_steps=0)
        self._options, self._resting = options, replace(options, training=resting)
        self._batches = _Batches(problem, generators)
        tolerance = training.tolerance if problem.report == "refit" else math.inf
        self._members = [
            Member(
                judge=Judge(problem, self._networks, number),
                stopping=EarlyStopping(tolerance=tolerance, patience=training.patience),
                gives_up=split.heldout is not None and problem.report == "refit",
                limit=DIVERGED * float(problem.sample.outcome[split.stage2].square().mean()),
            )
            for number, split in enumerate(problem.splits)
        ]
        self._judged = EARLY_CHECKS | check_steps(problem.steps, training.checks) if training.stage1_steps else set()
        self._losses: list[Losses] = []

    def step(self, number: int) -> None:
        """Take step ``number`` (from 1)."""
        problem, learning = self._problem, self._problem.learning_steps
        training, batch = problem.training, next(self._batches)
        if number <= learning:
            for learner in self._state.learners():
                learner.set_rate(training.rate_factor(number - 1, learning))
            layers = last_layers(problem.penalties, factor=training.lambda_factor(number - 1, learning))
        else:
            # The k-th step of rest: with these gains the k-th batch weighs k times as much as the first. They are the memory
            # now; large proximal penalties would only keep directions of little variance from settling.
            layers = last_layers(problem.penalties, factor=training.lambda_start, gain=2.0 / (number - learning + 1))
        options = self._options if number <= learning else self._resting
        self._state, losses = step(batch, self._state, layers=layers, options=options)
        self._losses.append(losses)
        for member in self._active():
            member.judge.look()
            if number in self._judged and member.gives_up:
                with self._surviving(member, number):
                    first_stage, member.stage1_heldout_loss = member.judge.best_instrument_features()
                    if first_stage is not None:
                        assert self._state.v is not None
                        self._state.v.weights[self._members.index(member)] = first_stage

    def check(self, number: int) -> None:
        """Judge all members as they would be reported after step ``number``."""
        stage1, stage2 = (torch.stack([getattr(losses, name) for losses in self._losses]) for name in ("stage1", "stage2"))
        first, self._losses = number - len(self._losses) + 1, []
        for place, member in enumerate(self._members):
            if member.ended is None:
                with self._surviving(member, number):
                    means = _mean_losses(stage1[:, place], stage2[:, place], member.limit, first)
                    now = self._checkpoint(place, number)
                    notes = {"stage1_heldout_loss": member.stage1_heldout_loss, "heldout_loss": now.loss}
                    member.stopping.add(now)
                    member.history.append({"step": number, **means, **notes, "refit_ridge": now.last_layers.ridge})
                    if member.stopping.exhausted:
                        member.ended = "stopped early"

    def _checkpoint(self, place: int, number: int) -> Checkpoint[SolvedLayers]:
        """The state as it would be reported now, with its held-out losses.

        The ridge of V is the one with the lowest stage-1 loss on sample 2, the ridge of u that with the lowest stage-2 loss on
        the held-out rows. Where nothing is given up, V and u are as training has them.
        """
        member, problem, state = self._members[place], self._problem, self._state
        assert state.v is not None
        assert state.u is not None
        if not member.judge.finite():  # no solve below would notice
            raise DivergedError("the networks' weights or features are not finite")
        parameters = [network.state(place) for network in self._networks.those()]
        v, u = state.v.weights[place].clone(), state.u.weights[place].clone()
        if member.gives_up:
            first_stage, ridges = member.judge.first_stage(), problem.refit_ridges
            candidates, losses = member.judge.heldout_losses(first_stage, ridges)
            chosen = int(losses.mean(dim=1).argmin())
            solved = SolvedLayers(first_stage.weights, candidates[chosen], first_stage.ridge, ridges[chosen])
            return Checkpoint(number, parameters, solved, losses[chosen])
        refitted = problem.report == "refit"
        solved = SolvedLayers(
            v, u, *((problem.penalties.ridge1, problem.penalties.ridge2) if refitted else (math.nan, math.nan))
        )
        if problem.splits[place].heldout is None:
            return Checkpoint(number, parameters, solved, v.new_zeros(0))
        return Checkpoint(number, parameters, solved, member.judge.squared_errors(v, u[None])[0])

    @contextmanager
    def _surviving(self, member: Member, number: int) -> Iterator[None]:
        """The rows were finite when training began: errors inside speak of features that no longer are, of this member alone."""
        try:
            yield
        except (SingularError, DataError, DivergedError) as error:
            member.ended, member.reason = "diverged", f"training diverged at step {number} of {self._problem.steps} ({error})"

    def _active(self) -> list[Member]:
        return [member for member in self._members if member.ended is None]

    @property
    def over(self) -> bool:
        return not self._active()

    def fitted(self) -> list[TwoStageFit | DivergenceError]:
        """Return every member to the state that is kept of it, and refit its last layers where asked for."""
        return [self._fitted(place) for place in range(len(self._members))]

    def _fitted(self, place: int) -> TwoStageFit | DivergenceError:
        member, problem = self._members[place], self._problem
        kept, split, penalties = member.stopping.kept, problem.splits[place], problem.penalties
        if kept is None and member.ended == "diverged":
            return DivergenceError(f"{member.reason} before any usable state: {ADVICE}, or check the data for extreme values")
        for network, state in zip(self._networks.those(), [] if kept is None else kept.parameters, strict=kept is not None):
            network.put(place, state)
        networks = Networks(
            self._networks.treatment.module(place),
            self._networks.instrument.module(place),
            None if self._networks.covariate is None else self._networks.covariate.module(place),
        )
        if problem.report == "current" and kept is not None:
            first, structural = kept.last_layers.first_stage, kept.last_layers.structural
            first_ridge = ridge = math.nan
        else:
            first_ridge = penalties.ridge1 if kept is None else kept.last_layers.first_stage_ridge
            ridge = penalties.ridge2 if kept is None else kept.last_layers.ridge
            sample2 = replace(problem.sample, treatment=problem.sample.outcome).rows(split.sample2)
            first, structural = refit_last_layers(
                with_treatment_features(problem.sample.rows(split.stage1), networks.treatment),
                sample2,
                networks,
                structure=problem.structure,
                first_stage_ridge=first_ridge,
                ridge=ridge,
                unpredicted_penalty=penalties.unpredicted,
            )
        history = [record | {"kept": kept is not None and record["step"] == kept.step} for record in member.history]
        return TwoStageFit(
            networks=networks,
            first_stage=first,
            structural=structural,
            structure=problem.structure,
            heldout_loss=math.nan if kept is None else kept.loss,
            first_stage_ridge=first_ridge,
            refit_ridge=ridge,
            history=history,
            ended=member.ended or "finished",
        )


class _Batches:
    """Minibatches of both samples of every member, side by side."""

    def __init__(self, problem: DFIVProblem, generators: Sequence[np.random.Generator]) -> None:
        self._sample = problem.sample
        streams: list[tuple[Iterator[Tensor], Iterator[Tensor]]] = []
        for split, generator in zip(problem.splits, generators, strict=True):
            first, second = generator.spawn(2)
            size = problem.batch_size
            streams.append((batches(split.stage1, size=size, generator=first), batches(split.stage2, size=size, generator=second)))
        self._streams = list(zip(*streams, strict=True))
        self._gamma = problem.penalties.unpredicted
        self._rows: list[Tensor] = []
        self._last: Batch | None = None

    def __next__(self) -> Batch:
        rows1, rows2 = ([next(stream) for stream in streams] for streams in self._streams)
        # A full batch is the one before.
        if self._last is None or not all(map(operator.is_, rows1 + rows2, self._rows)):
            self._rows, self._last = rows1 + rows2, self._drawn(torch.stack(rows1), torch.stack(rows2))
        return self._last

    def _drawn(self, rows1: Tensor, rows2: Tensor) -> Batch:
        """What the stages look at, and no more."""
        sample, w = self._sample, self._sample.weights
        x = sample.covariates
        return Batch(
            Stage1Rows(
                sample.treatment[rows1],
                sample.instruments[rows1],
                None if x is None or not self._gamma else x[rows1],
                None if w is None else w[rows1],
            ),
            Stage2Rows(
                sample.outcome[rows2],
                sample.instruments[rows2],
                None if x is None else x[rows2],
                None if w is None else w[rows2],
            ),
        )


def fit_dfiv(
    problem: DFIVProblem,
    networks: Sequence[Networks],
    *,
    generators: Sequence[np.random.Generator],
    on_step: Callable[[], object],
) -> list[TwoStageFit | DivergenceError]:
    run = DFIVRun(problem, networks, generators)
    when = check_steps(problem.steps, problem.training.checks)
    for number in range(1, problem.steps + 1):
        run.step(number)
        on_step()
        if number in when:
            run.check(number)
        if run.over:
            break
    return run.fitted()


def last_layers(penalties: Penalties, *, factor: float, gain: float = 1.0) -> LastLayers:
    """The proximal layers of both stages, their pull at a factor of what it is at the end of training."""
    p = penalties
    return LastLayers(
        v1=Proximal(p.lambda1 * factor, beta=p.ridge1),
        v12=Proximal(p.lambda12 * factor, beta=p.ridge1, gain=gain),
        u=Proximal(p.lambda2 * factor, beta=p.ridge2, gain=gain),
    )


def _mean_losses(stage1: Tensor, stage2: Tensor, limit: float, first: int) -> dict[str, float]:
    """Of the steps since the last check (k,); raises where they are not finite or enormous."""
    bad = ~stage1.isfinite() | ~stage2.isfinite() | (stage2 > limit)
    if bool(bad.any()):
        at = int(bad.int().argmax())
        raise DivergedError(
            f"stage1 loss was {float(stage1[at]):.3g} and stage2 loss was {float(stage2[at]):.3g} at step {first + at}"
        )
    return {"stage1_loss": float(stage1.mean()), "stage2_loss": float(stage2.mean())}
