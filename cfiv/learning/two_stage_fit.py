"""One DFIV fit: the loop over steps, early stopping on a held-out stage-2 loss, and the final last layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cfiv.learning.early_stopping import Checkpoint, standard_errors_above_zero
from cfiv.learning.loop import DIVERGED, DivergedError, Ended, Progress, Trained, check_steps, train
from cfiv.learning.networks import evaluate
from cfiv.learning.run_file import RunFile, draws_of, restore_draws
from cfiv.learning.samples import Sample, Split, batches
from cfiv.learning.saved_state import check_two_stage
from cfiv.learning.training import Penalties, Report, Training
from cfiv.learning.two_stage import Batch, Networks, PerNetwork, TwoStageState, optimisers, step
from cfiv.learning.whole_sample import (
    CHECK_ROWS,
    first_stage_errors,
    first_stage_moments,
    predicted_outcome,
    refit_last_layers,
    second_stage_moments,
    squared_errors,
    with_treatment_features,
)
from cfiv.numerics.moments import ridge_path
from cfiv.numerics.two_stage import Structure
from cfiv.runtime.module_state import ModuleState, put, state_of

#: Rows of sample 1 whose features must be finite where no solve would notice.
FINITE_ROWS = 256
#: Besides at checks the instrument features are judged after these steps: with little to learn they overfit within a few.
EARLY_CHECKS = {2, 4, 8, 16}


@dataclass(frozen=True)
class LastLayers:
    """V and u as they would be reported, with the ridges that they are (to be) refitted with; nan where they are not."""

    first_stage: Tensor
    structural: Tensor
    first_stage_ridge: float
    ridge: float


@dataclass(frozen=True)
class TwoStageFit:
    """A fitted structural function ``h = u' f`` in the units of training.

    Parameters
    ----------
    networks : Networks
        In evaluation mode.
    first_stage : Tensor (d + 1, m), float64
        V.
    structural : Tensor (p, 1), float64
        u.
    structure : {"product", "additive"}
    heldout_loss : float
        Held-out stage-2 mean squared error of the state kept; nan without held-out rows.
    first_stage_ridge, refit_ridge : float
        The ridges of the final V and u; nan where the weights are those that training left ("current").
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "interrupted", "diverged"}
        How training ended.
    """

    networks: Networks
    first_stage: Tensor
    structural: Tensor
    structure: Structure
    heldout_loss: float
    first_stage_ridge: float
    refit_ridge: float
    history: list[dict[str, Any]]
    ended: Ended

    def predicted_outcome(self, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
        """``E[h(T, X) | Z, X]``, shape (n, 1), float64; see :func:`~cfiv.learning.whole_sample.predicted_outcome`."""
        return predicted_outcome(
            self.networks,
            first_stage=self.first_stage,
            structural=self.structural,
            structure=self.structure,
            instruments=instruments,
            covariates=covariates,
        )


@dataclass(frozen=True)
class TwoStageProblem:
    """What one fit is asked to do; the options of :class:`~cfiv.learning.training.Training` come on top.

    Parameters
    ----------
    split : Split
        The samples of both stages and the held-out rows.
    structure : {"product", "additive"}
    penalties : Penalties
        As they stand at the end of training.
    steps : int
    batch_size : int or None
        None for full batches.
    learning_rate, weight_decay : (float, float, float)
        Peak rates and decays of treatment, instrument and covariate network.
    report : {"refit", "current"}
    training : Training
    """

    split: Split
    structure: Structure
    penalties: Penalties
    steps: int
    batch_size: int | None
    learning_rate: PerNetwork
    weight_decay: PerNetwork
    report: Report
    training: Training

    @property
    def learning_steps(self) -> int:
        """Steps in which features learn; all of them, but for the rest at the end of "current"."""
        return self.steps - round(self.training.rest * self.steps) if self.report == "current" else self.steps

    @property
    def gives_up(self) -> bool:
        """Whether states may be given up for earlier ones, by losses on held-out rows."""
        return self.split.heldout is not None and self.report == "refit"

    @property
    def refit_ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final u."""
        return self.training.refit_ridges or (self.penalties.ridge2,)

    @property
    def first_stage_ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final V."""
        return self.training.refit_ridges or (self.penalties.ridge1,)


def fit_two_stage(
    problem: TwoStageProblem,
    networks: Networks,
    *,
    generator: np.random.Generator,
    on_step: Callable[[], object],
    file: RunFile | None = None,
) -> TwoStageFit:
    """Train the networks on the two samples, choose a state by held-out stage-2 loss, and solve its last layers; with "current"
    take the last state as it is.

    A diverging run stops at the last state kept, Ctrl-C too; both give a TrainingWarning.

    Parameters
    ----------
    problem : TwoStageProblem
    networks : Networks
        Trained in place.
    generator : Generator
        Source of the batches.
    on_step : callable
        Called after every step, for progress.
    file : RunFile, optional
        Where the run is saved on its way, and continued from.

    Returns
    -------
    TwoStageFit

    Raises
    ------
    DivergenceError
        If training diverged before any check.
    KeyboardInterrupt
        If it was interrupted before the first step was done.

    References
    ----------
    Xu et al. 2021, algorithm 1, for the alternation of the stages; Galashov et al., arXiv 2510.04606, for the proximal solves.
    """
    _set_training(networks, True)
    run = _TwoStageRun(problem, networks, generator)
    # "current" is what training leaves: no state is given up for an earlier one.
    training = problem.training if problem.report == "refit" else replace(problem.training, tolerance=math.inf)
    archive = None if file is None else TwoStageArchive(run, file)
    trained = train(run, steps=problem.steps, training=training, on_step=on_step, archive=archive)
    return _report(trained, problem, networks)


class _TwoStageRun:
    """The steps of both stages; its state moves on with every one."""

    advice = "lower learning_rate, raise lambda1, lambda2 and lambda12 or the ridges"

    def __init__(self, problem: TwoStageProblem, networks: Networks, generator: np.random.Generator) -> None:
        rates, decays, split = problem.learning_rate, problem.weight_decay, problem.split
        self.limits = {"stage2_loss": DIVERGED * float(split.stage2.outcome.square().mean())}
        self._problem = problem
        self._learning = problem.learning_steps
        self._resting = replace(problem.training, stage1_steps=0, stage2_steps=0, covariate_steps=0)
        self._state = TwoStageState(
            networks, optimisers(networks, training=problem.training, learning_rate=rates, weight_decay=decays)
        )
        stage1_generator, stage2_generator = generator.spawn(2)
        self._stage1 = batches(split.stage1, size=problem.batch_size, generator=stage1_generator)
        self._stage2 = batches(split.stage2, size=problem.batch_size, generator=stage2_generator)
        self._judged = EARLY_CHECKS | check_steps(problem.steps, problem.training.checks) if problem.gives_up else set()
        self._instrument_features: ModuleState | None = None
        self._stage1_heldout_loss = float("nan")
        self._seen: tuple[int, Seen] | None = None

    def step(self, number: int) -> dict[str, Tensor]:
        problem, training, learning = self._problem, self._problem.training, self._learning
        if number <= learning:
            self._state.optimisers.set_rate(training.rate_factor(number - 1, learning))
            penalties = _rising(problem.penalties, training.lambda_factor(number - 1, learning))
            batch = Batch(next(self._stage1), next(self._stage2), penalties)
        else:
            # The k-th step of rest: with these gains the k-th batch weighs k times as much as the first. They are the memory
            # now; large proximal penalties would only keep directions of little variance from settling.
            penalties, gain = _rising(problem.penalties, training.lambda_start), 2.0 / (number - learning + 1)
            training, batch = self._resting, Batch(next(self._stage1), next(self._stage2), penalties, gain)
        self._state, info = step(batch, self._state, training=training, structure=problem.structure)
        if number in self._judged:
            self._instrument_features, first_stage, self._stage1_heldout_loss = best_instrument_features(
                self._state.networks, problem, self._instrument_features, seen=self._see(number)
            )
            if first_stage is not None:
                self._state = replace(self._state, first_stage=first_stage)
        return {"stage1_loss": info.stage1_loss, "stage2_loss": info.stage2_loss}

    def check(self, number: int) -> tuple[Checkpoint[LastLayers], dict[str, float]]:
        now = check(self._state, self._problem, number, seen=self._see(number) if self._problem.gives_up else None)
        notes = {
            "stage1_heldout_loss": self._stage1_heldout_loss,
            "heldout_loss": now.loss,
            "refit_ridge": now.last_layers.ridge,
        }
        return now, notes

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs: the state, what the judgement of instrument features remembers, the generators."""
        state = self._state
        return {
            "networks": [state_of(module) for module in state.networks.modules()],
            "optimisers": [optimiser.state_dict() for optimiser in state.optimisers.those()],
            "last_layers": [state.first_stage, state.structural],
            "instrument_features": self._instrument_features,
            "stage1_heldout_loss": self._stage1_heldout_loss,
            "draws": draws_of(self.device),
        }

    def restore(self, values: Mapping[str, Any], *, done: int) -> None:
        """Go where the run was after ``done`` steps. Their batches are drawn again, one of each sample a step."""
        state = self._state
        for module, parameters in zip(state.networks.modules(), values["networks"], strict=True):
            put(module, parameters)
        for optimiser, kept in zip(state.optimisers.those(), values["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        first, structural = (None if value is None else value.to(self.device) for value in values["last_layers"])
        self._state = replace(state, first_stage=first, structural=structural)
        self._instrument_features = values["instrument_features"]
        self._stage1_heldout_loss = values["stage1_heldout_loss"]
        for _ in range(done):
            next(self._stage1), next(self._stage2)
        restore_draws(values["draws"], self.device)

    @property
    def problem(self) -> TwoStageProblem:
        """What the fit is asked to do."""
        return self._problem

    @property
    def state(self) -> TwoStageState:
        """Of the last step."""
        return self._state

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self._problem.split.stage1.outcome.device

    def _see(self, number: int) -> Seen:
        """The rows that are judged after step ``number``; their treatment features are computed once."""
        if self._seen is None or self._seen[0] != number:
            self._seen = number, Seen.by(self._state.networks, self._problem)
        return self._seen[1]


@dataclass(frozen=True)
class TwoStageArchive:
    """A run and the file that it is saved in: plain values to the file, states from it."""

    run: _TwoStageRun
    file: RunFile

    @property
    def every(self) -> int:
        """Steps between two writes."""
        return self.file.every

    def write(self, progress: Progress[LastLayers]) -> None:
        """Replace the file by one of the present."""
        stopping = progress.stopping
        loop = {
            "done": progress.done,
            "ended": progress.ended,
            "history": progress.history,
            "losses": progress.losses,
            "best": _plain(stopping.best),
            "kept": _plain(stopping.kept),
            "risen": stopping.risen,
        }
        self.file.write({"loop": loop, "run": self.run.saved()})

    def restore(self, progress: Progress[LastLayers]) -> None:
        """Put both where the file has them, if there is one."""
        run = self.run
        self.file.read(lambda values: self._put(check_two_stage(values, run.problem, run.state), progress))

    def _put(self, values: Mapping[str, Any], progress: Progress[LastLayers]) -> None:
        loop, device = values["loop"], self.run.device
        progress.done, progress.ended, progress.history = loop["done"], loop["ended"], loop["history"]
        progress.losses = [{name: loss.to(device) for name, loss in step.items()} for step in loop["losses"]]
        progress.stopping.best = _checkpoint(loop["best"], device)
        progress.stopping.kept = _checkpoint(loop["kept"], device)
        progress.stopping.risen = loop["risen"]
        self.run.restore(values["run"], done=progress.done)


def _plain(checkpoint: Checkpoint[LastLayers] | None) -> list[Any] | None:
    """Tensors and numbers."""
    if checkpoint is None:
        return None
    layers = checkpoint.last_layers
    plain = [layers.first_stage, layers.structural, layers.first_stage_ridge, layers.ridge]
    return [checkpoint.step, checkpoint.parameters, plain, checkpoint.losses]


def _checkpoint(plain: list[Any] | None, device: torch.device) -> Checkpoint[LastLayers] | None:
    """The reverse; networks load their parameters from any device."""
    if plain is None:
        return None
    step, parameters, (first, structural, first_ridge, ridge), losses = plain
    layers = LastLayers(first.to(device), structural.to(device), first_ridge, ridge)
    return Checkpoint(step, parameters, layers, losses.to(device))


@dataclass(frozen=True)
class Seen:
    """Rows that checks look at, the first ``CHECK_ROWS`` of each sample, with treatment features of one moment in training."""

    stage1: Sample
    stage2: Sample

    @classmethod
    def by(cls, networks: Networks, problem: TwoStageProblem) -> Self:
        """The rows as ``psi`` sees them now."""
        samples = (problem.split.stage1, problem.split.stage2)
        return cls(*(with_treatment_features(sample.rows(slice(CHECK_ROWS)), networks.treatment) for sample in samples))


def check(state: TwoStageState, problem: TwoStageProblem, done: int, *, seen: Seen | None) -> Checkpoint[LastLayers]:
    """The state as it would be reported now, with its held-out losses.

    The ridge of V is the one with the lowest stage-1 loss on sample 2, the ridge of u that with the lowest stage-2 loss on the
    held-out rows. Without rows ``seen``, V and u are as training has them.
    """
    networks, split = state.networks, problem.split
    # The treatment features in ``seen`` may be older than the weights that are about to be kept.
    if not all(bool(torch.isfinite(p).all()) for module in networks.modules() for p in module.parameters()):
        raise DivergedError("the networks' weights are not finite")
    parameters = [state_of(module) for module in networks.modules()]
    first, structural = state.first_stage, state.structural
    assert first is not None
    assert structural is not None
    penalties = problem.penalties
    heldout = None if split.heldout is None else split.heldout.rows(slice(CHECK_ROWS))
    if seen is None or heldout is None:
        _check_features(networks, split.stage1.rows(slice(FINITE_ROWS)))  # no solve below would notice
        refitted = problem.report == "refit"
        ridges = (penalties.ridge1, penalties.ridge2) if refitted else (float("nan"), float("nan"))
        losses = first.new_zeros(0)
        if heldout is not None:
            losses = squared_errors(heldout, networks, first, structural[None], problem.structure)[0]
        return Checkpoint(done, parameters, LastLayers(first, structural, *ridges), losses)
    first, first_ridge, _ = _first_stage(networks, problem, seen)
    candidates_of_u = problem.refit_ridges
    total = second_stage_moments(
        seen.stage1,
        seen.stage2,
        networks,
        first,
        structure=problem.structure,
        unpredicted_penalty=penalties.unpredicted,
    )
    candidates = ridge_path(total, candidates_of_u)
    losses = squared_errors(heldout, networks, first, candidates, problem.structure)
    chosen = int(losses.mean(dim=1).argmin())
    layers = LastLayers(first, candidates[chosen], first_ridge, candidates_of_u[chosen])
    return Checkpoint(done, parameters, layers, losses[chosen])


def best_instrument_features(
    networks: Networks, problem: TwoStageProblem, earlier: ModuleState | None, *, seen: Seen
) -> tuple[ModuleState | None, Tensor | None, float]:
    """Go back to earlier instrument features where the present ones predict the treatment features clearly worse in sample 2.

    Stage 1 learns from sample 1 alone, so all rows of sample 2 are unseen by it. A first stage that fits the noise of its
    sample predicts little of the treatment in the other one, and stage 2 is left with a weak instrument of its own making,
    which biases the structural function towards a constant; a held-out stage-2 loss, in which the outcome's noise drowns
    everything, does not notice. Both states of phi are judged on the present psi, by their own V. Clearly is by more than
    four times ``tolerance`` standard errors of the paired difference. With "current" nothing is given up, since u would not
    fit another V.

    Parameters
    ----------
    networks : Networks
        The instrument network is set to the better state.
    problem : TwoStageProblem
    earlier : ModuleState, optional
        The best instrument features so far.
    seen : Seen
        Rows with the present treatment features.

    Returns
    -------
    features : ModuleState
        The best instrument features now; None where this is turned off.
    first_stage : Tensor (d + 1, m), optional
        V of the earlier features where training goes on from them; None where it goes on as it was.
    loss : float
        The stage-1 loss on sample 2 of the features in place, each treatment feature in units of its variance.

    References
    ----------
    Ours. Angrist and Krueger (JBES 1995) for the bias of split-sample estimates; Singh, Sahani and Gretton (NeurIPS 2019)
    choose the penalty of a kernel first stage by the same out-of-sample loss.
    """
    if not problem.gives_up or not problem.training.stage1_steps:
        return None, None, float("nan")
    network = networks.instrument
    present = state_of(network)
    _, _, losses = _first_stage(networks, problem, seen)
    if earlier is None:
        return present, None, float(losses.mean())
    put(network, earlier)
    earlier_first, _, earlier_losses = _first_stage(networks, problem, seen)
    if standard_errors_above_zero(losses - earlier_losses) > 4 * problem.training.tolerance:
        return earlier, earlier_first, float(earlier_losses.mean())
    put(network, present)
    return (present if losses.mean() < earlier_losses.mean() else earlier), None, float(losses.mean())


def _first_stage(networks: Networks, problem: TwoStageProblem, seen: Seen) -> tuple[Tensor, float, Tensor]:
    """V with the ridge that has the lowest stage-1 loss on sample 2, that ridge, and its losses there."""
    candidates = ridge_path(first_stage_moments(seen.stage1, networks), problem.first_stage_ridges)
    losses = first_stage_errors(seen.stage2, networks, candidates)
    best = int(losses.mean(dim=1).argmin())
    return candidates[best], problem.first_stage_ridges[best], losses[best]


def _report(trained: Trained[LastLayers], problem: TwoStageProblem, networks: Networks) -> TwoStageFit:
    """Return to the state kept (none where there were no steps), and refit its last layers where asked for."""
    kept = trained.kept
    if kept is not None:
        for module, parameters in zip(networks.modules(), kept.parameters, strict=True):
            put(module, parameters)
    _set_training(networks, False)
    if problem.report == "current" and kept is not None:
        first, structural = kept.last_layers.first_stage, kept.last_layers.structural
        first_ridge = ridge = float("nan")
    else:
        first_ridge = problem.penalties.ridge1 if kept is None else kept.last_layers.first_stage_ridge
        ridge = problem.penalties.ridge2 if kept is None else kept.last_layers.ridge
        first, structural = refit_last_layers(
            with_treatment_features(problem.split.stage1, networks.treatment),
            problem.split.whole_stage2,
            networks,
            structure=problem.structure,
            first_stage_ridge=first_ridge,
            ridge=ridge,
            unpredicted_penalty=problem.penalties.unpredicted,
        )
    return TwoStageFit(
        networks=networks,
        first_stage=first,
        structural=structural,
        structure=problem.structure,
        heldout_loss=float("nan") if kept is None else kept.loss,
        first_stage_ridge=first_ridge,
        refit_ridge=ridge,
        history=trained.history,
        ended=trained.ended,
    )


def _check_features(networks: Networks, sample: Sample) -> None:
    """Raise where the last gradient step has left features that are not finite."""
    features = [evaluate(networks.treatment, sample.treatment), evaluate(networks.instrument, sample.instruments)]
    if networks.covariate is not None and sample.covariates is not None:
        features.append(evaluate(networks.covariate, sample.covariates))
    if not all(bool(torch.isfinite(values).all()) for values in features):
        raise DivergedError("the features are not finite")


def _rising(penalties: Penalties, factor: float) -> Penalties:
    return replace(
        penalties, lambda1=penalties.lambda1 * factor, lambda2=penalties.lambda2 * factor, lambda12=penalties.lambda12 * factor
    )


def _set_training(networks: Networks, mode: bool) -> None:
    for module in networks.modules():
        module.train(mode)
