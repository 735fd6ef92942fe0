"""DFIV's training: what its members learn and report, and the fit around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from cfiv.errors import DivergenceError
from cfiv.file_values import fields, number
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.early_stopping import Checkpoint
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.learner import Learner
from cfiv.learning.loop import DivergedError, check_steps, drive
from cfiv.learning.member import Member
from cfiv.learning.members import MembersRun
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample, Split
from cfiv.learning.whole_sample import refit_last_layers
from cfiv.networks.feature_maps import Networks
from cfiv.networks.member_networks import MemberNetwork
from cfiv.networks.shared_network import shared_network
from cfiv.numerics.two_stage import structural_features
from cfiv.objectives.dfiv_batches import draw_batches
from cfiv.objectives.dfiv_judge import Judge
from cfiv.objectives.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.objectives.dfiv_step import DFIVState, MemberNetworks, StepOptions, step

#: Of layers that training left as they were.
RIDGE = 1e-4
#: Besides at checks the instrument features are judged after these steps: with little to learn they overfit within a few.
EARLY_CHECKS = {2, 4, 8, 16}


def fit_dfiv(
    problem: DFIVProblem,
    networks: Sequence[Networks],
    *,
    generators: Sequence[np.random.Generator],
    on_step: Callable[[], object],
    deadline: Deadline = NEVER,
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
    deadline : Deadline, optional
        After which no further step is taken.
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
    # "current" is what training leaves: no state is given up for an earlier one.
    training = problem.training if problem.report == "refit" else replace(problem.training, tolerance=math.inf)
    steps = DFIVSteps(problem, networks, generators)
    run = MembersRun(steps, count=problem.steps, training=training, sample=problem.sample, splits=problem.splits)
    drive(run, steps=problem.steps, on_step=on_step, file=file, deadline=deadline)
    return run.conclude()


def refit_elsewhere(fitted: TwoStageFit, sample: Sample, split: Split, *, unpredicted_penalty: float) -> TwoStageFit:
    """The fit with both last layers solved on its sample 2 alone, features and penalties as they are.

    Neither the outcomes of sample 1 nor, up to what features remember of them, its treatments have a part in that function.
    """
    rows = split.sample2.cpu()
    ridges = [ridge if math.isfinite(ridge) else RIDGE for ridge in (fitted.first_stage_ridge, fitted.refit_ridge)]
    first_stage, structural = refit_last_layers(
        sample.cpu(),
        fitted.networks,
        stage1=rows,
        stage2=rows,
        structure=fitted.structure,
        first_stage_ridge=ridges[0],
        ridge=ridges[1],
        unpredicted_penalty=unpredicted_penalty,
    )
    return replace(fitted, first_stage=first_stage, structural=structural)


class DFIVSteps:
    """The steps of all members of a problem; see :class:`cfiv.learning.members.MemberSteps`."""

    losses: ClassVar[tuple[str, ...]] = ("stage1_loss", "stage2_loss")
    notes: ClassVar[tuple[str, ...]] = ("stage1_heldout_loss", "heldout_loss", "refit_ridge")
    advice: ClassVar[str] = "lower learning_rate, raise lambda1, lambda2 and lambda12 or the ridges"

    def __init__(self, problem: DFIVProblem, networks: Sequence[Networks], generators: Sequence[np.random.Generator]) -> None:
        self._problem, training = problem, problem.training
        self.refits = problem.report == "refit"
        covariate = [each.covariate for each in networks if each.covariate is not None]
        self._networks = MemberNetworks(
            shared_network([each.treatment for each in networks]),
            shared_network([each.instrument for each in networks]),
            shared_network(covariate) if covariate else None,
        )
        self._state = DFIVState.begin(
            self._networks, training=training, learning_rate=problem.learning_rate, weight_decay=problem.weight_decay
        )
        self._options = StepOptions(training, problem.structure, problem.unpredicted_penalty)
        resting = replace(training, stage1_steps=0, stage2_steps=0, covariate_steps=0)
        self._resting = replace(self._options, training=resting)
        self.batches: Iterator[Any] = draw_batches(
            problem.sample,
            problem.splits,
            generators,
            size=problem.batch_size,
            covariates_stage1=problem.unpredicted_penalty > 0,
        )
        places = range(len(problem.splits))
        self._judges = [Judge(problem, self._networks, place) for place in places]
        self._stage1_heldout_losses = [math.nan for _ in places]
        self._judged = EARLY_CHECKS | check_steps(problem.steps, checks=training.checks) if training.stage1_steps else set()

    @property
    def networks(self) -> list[MemberNetwork]:
        """All feature maps."""
        return self._networks.those()

    @property
    def learners(self) -> list[Learner]:
        """Of phi, of psi and xi."""
        return self._state.learners()

    @property
    def memories(self) -> list[Memory | None]:
        """Of V and u."""
        return [self._state.v, self._state.u]

    @memories.setter
    def memories(self, memories: list[Memory | None]) -> None:
        v, u = memories
        self._state = replace(self._state, v=v, u=u)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Stage 1 and stage 2 on the next batches."""
        training, learning = self._problem.training, self._problem.learning_steps
        if number <= learning:
            for learner in self._state.learners():
                learner.set_rate(training.rate_factor(number - 1, steps=learning))
            options = replace(self._options, pull=training.lambda_factor(number - 1, steps=learning))
        else:
            # The k-th step of rest: with these gains the k-th batch weighs k times as much as the first. They are the memory
            # now; large proximal penalties would only keep directions of little variance from settling.
            options = replace(self._resting, pull=training.lambda_start, gain=2.0 / (number - learning + 1))
        self._state, losses = step(next(self.batches), self._state, layers=self._problem.layers, options=options)
        return losses.stage1, losses.stage2

    def settle(self, place: int, *, number: int) -> None:
        """Go back to better instrument features where there were any."""
        judge = self._judges[place]
        judge.forget()
        if number in self._judged and self._problem.gives_up(place):
            first_stage, self._stage1_heldout_losses[place] = judge.best_instrument_features()
            if first_stage is not None:
                self._solved()[0][place] = first_stage

    def checkpoint(self, place: int, *, number: int) -> tuple[Checkpoint, tuple[float, ...]]:
        """The state as it would be reported now, with its held-out losses.

        The ridge of V is the one with the lowest stage-1 loss on sample 2, the ridge of u that with the lowest stage-2 loss on
        the held-out rows. Where nothing is given up, V and u are as training has them.
        """
        problem, judge = self._problem, self._judges[place]
        if not (problem.gives_up(place) or judge.finite()):  # no solve would notice
            raise DivergedError("the features are not finite")
        parameters = [network.state(place) for network in self.networks]
        if problem.gives_up(place):
            first_stage, ridges = judge.first_stage(), problem.refit_ridges
            candidates, losses = judge.heldout_losses(first_stage, ridges)
            chosen = int(losses.mean(dim=1).argmin())
            weights = first_stage.weights, candidates[chosen]
            now = Checkpoint(number, parameters, weights, (first_stage.ridge, ridges[chosen]), losses[chosen])
        else:
            v, u = (each[place].clone() for each in self._solved())
            ridges = (problem.ridge1, problem.ridge2) if problem.report == "refit" else (math.nan, math.nan)
            heldout = problem.splits[place].heldout is not None
            losses = judge.squared_errors(u[None], first_stage=v)[0] if heldout else v.new_zeros(0)
            now = Checkpoint(number, parameters, (v, u), ridges, losses)
        return now, (self._stage1_heldout_losses[place], now.loss, now.ridges[1])

    def report(self, place: int, member: Member) -> TwoStageFit:
        """The state that is kept of a member (none where there were no steps), its last layers refitted where asked for."""
        kept, problem = member.kept, self._problem
        if kept is not None:
            for network, state in zip(self.networks, kept.parameters, strict=True):
                network.put(place, state)
        networks = Networks.of([network.module(place) for network in self.networks])
        ridges = (problem.ridge1, problem.ridge2) if kept is None else kept.ridges
        if kept is None or problem.report == "refit":
            first_stage, structural = self._refit(place, networks, ridges)
        else:
            first_stage, structural = kept.weights
        return TwoStageFit(
            networks=networks,
            first_stage=first_stage,
            structural=structural,
            structure=problem.structure,
            heldout_loss=math.nan if kept is None else kept.loss,
            first_stage_ridge=ridges[0],
            refit_ridge=ridges[1],
            history=member.history,
            ended=member.ended or "finished",
        )

    def _refit(self, place: int, networks: Networks, ridges: Sequence[float]) -> tuple[Tensor, Tensor]:
        """V and u on all rows of the samples."""
        sample, split = self._problem.sample, self._problem.splits[place]
        return refit_last_layers(
            sample,
            networks,
            stage1=split.stage1,
            stage2=split.sample2,
            structure=self._problem.structure,
            first_stage_ridge=ridges[0],
            ridge=ridges[1],
            unpredicted_penalty=self._problem.unpredicted_penalty,
        )

    def solved(self) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """V and u, with these networks' features."""
        row, networks = self._problem.sample.rows(slice(0, 1)), self._networks
        psi, phi = networks.treatment.evaluate(0, row.treatment), networks.instrument.evaluate(0, row.instruments)
        xi = None if networks.covariate is None or row.covariates is None else networks.covariate.evaluate(0, row.covariates)
        f = structural_features(treatment_features=psi, covariate_features=xi, structure=self._problem.structure)
        layers = self._problem.layers
        return [(layers.v12, (phi.shape[1] + 1, psi.shape[1])), (layers.u, (f.shape[1], 1))]

    def saved(self, place: int) -> dict[str, Any]:
        """What the judgement of instrument features remembers."""
        state, loss = self._judges[place].best_state, self._stage1_heldout_losses[place]
        return {"instrument_features": state, "stage1_heldout_loss": loss}

    def restore(self, place: int, values: Any) -> None:
        """The reverse."""
        fields(values, "instrument_features", "stage1_heldout_loss")
        state, loss = values["instrument_features"], values["stage1_heldout_loss"]
        self._judges[place].best_state = None if state is None else self._networks.instrument.check(state)
        self._stage1_heldout_losses[place] = number(loss, finite=state is not None)

    def _solved(self) -> tuple[Tensor, Tensor]:
        """V and u of all members."""
        v, u = self._state.v, self._state.u
        assert v is not None, "after the first step"
        assert u is not None, "after the first step"
        return v.weights, u.weights
