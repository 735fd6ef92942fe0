"""One DFIV fit: the loop over steps, early stopping on a held-out stage-2 loss, and the final last layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError, TrainingWarning
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.networks import evaluate
from cfiv.learning.samples import Sample, Split, batches
from cfiv.learning.training import Penalties, Report, Training
from cfiv.learning.two_stage import Batch, Networks, PerNetwork, StepInfo, TwoStageState, optimisers, step
from cfiv.learning.whole_sample import (
    first_stage_moments,
    predicted_outcome,
    refit_last_layers,
    second_stage_moments,
    squared_errors,
)
from cfiv.numerics.moments import ridge_path
from cfiv.numerics.two_stage import Structure

Ended = Literal["finished", "stopped early", "interrupted", "diverged"]

#: Rows of a sample that a check looks at; a held-out loss needs no more.
CHECK_ROWS = 20_000
#: A stage-2 training loss this many times the outcome's mean square has diverged.
DIVERGED = 1e4


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
    refit_ridge : float
        The ridge of the final u; nan where the weights are those that training left ("current").
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
    def refit_ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final u."""
        return self.training.refit_ridges or (self.penalties.ridge2,)

    @property
    def first_stage_ridge(self) -> float:
        """The ridge of the final V: where ridges are chosen freely, no shrinkage beyond rounding; it is not what overfits."""
        return min(self.training.refit_ridges, default=self.penalties.ridge1)


def fit_two_stage(
    problem: TwoStageProblem, networks: Networks, *, generator: np.random.Generator, on_step: Callable[[], object]
) -> TwoStageFit:
    """Train the networks on the two samples, choose a state by held-out stage-2 loss, and solve its last layers.

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
    training, steps = problem.training, problem.steps
    rates, decays = problem.learning_rate, problem.weight_decay
    state = TwoStageState(networks, optimisers(networks, training=training, learning_rate=rates, weight_decay=decays))
    stage1_generator, stage2_generator = generator.spawn(2)
    stage1_batches = batches(problem.split.stage1, size=problem.batch_size, generator=stage1_generator)
    stage2_batches = batches(problem.split.stage2, size=problem.batch_size, generator=stage2_generator)
    check_steps = {round(steps * (i + 1) / training.checks) for i in range(training.checks)}
    stopping = EarlyStopping(tolerance=training.tolerance, patience=training.patience)
    history: list[dict[str, Any]] = []
    infos: list[StepInfo] = []
    ended: Ended = "finished"
    done = 0
    _set_training(networks, True)
    try:
        for done in range(1, steps + 1):
            state.optimisers.set_rate(training.rate_factor(done - 1, steps))
            penalties = _rising(problem.penalties, training.lambda_factor(done - 1, steps))
            batch = Batch(next(stage1_batches), next(stage2_batches), penalties)
            state, info = step(batch, state, training=training, structure=problem.structure)
            infos.append(info)
            on_step()
            if done in check_steps:
                losses, infos = _mean_losses(infos, done, problem.split), []
                now = check(state, problem, done)
                stopping.add(now)
                history.append({"step": done, **losses, "heldout_loss": now.loss, "refit_ridge": now.ridge})
                if stopping.exhausted:
                    ended = "stopped early"
                    break
    except KeyboardInterrupt:
        if state.structural is None:
            raise
        if stopping.kept is None:
            stopping.add(check(state, problem, done))
        ended = "interrupted"
        _warn_of_early_end(f"training was interrupted at step {done} of {steps}", stopping.kept)
    # The rows were finite when training began, so a DataError here speaks of features that no longer are.
    except (SingularError, DataError, _DivergedError) as error:
        if stopping.kept is None:
            raise DivergenceError(
                f"training diverged at step {done} of {steps} before any usable state ({error}): lower learning_rate, "
                "raise lambda1, lambda2 and lambda12 or the ridges, or check the data for extreme values"
            ) from error
        ended = "diverged"
        _warn_of_early_end(
            f"training diverged at step {done} of {steps} ({error}); lower learning_rate or raise the penalties", stopping.kept
        )
    history = [record | {"kept": stopping.kept is not None and record["step"] == stopping.kept.step} for record in history]
    return _report(stopping.kept, problem, networks, history, ended)


def check(state: TwoStageState, problem: TwoStageProblem, done: int) -> Checkpoint:
    """The state as it would be reported now, with its held-out losses; the ridge of u is the one with the lowest."""
    networks, split = state.networks, problem.split
    parameters = [{name: value.clone() for name, value in module.state_dict().items()} for module in networks.modules()]
    assert state.first_stage is not None
    assert state.structural is not None
    first, structural = state.first_stage, state.structural
    if split.heldout is None or problem.report == "current":  # no solve below would notice
        _check_features(networks, split.stage1.rows(slice(CHECK_ROWS)))
    if split.heldout is None:
        return Checkpoint(done, parameters, first, structural, problem.penalties.ridge2, first.new_zeros(0))
    heldout = split.heldout.rows(slice(CHECK_ROWS))
    if problem.report == "current":
        losses = squared_errors(heldout, networks, first, structural[None], problem.structure)[0]
        return Checkpoint(done, parameters, first, structural, float("nan"), losses)
    stage1, stage2 = split.stage1.rows(slice(CHECK_ROWS)), split.stage2.rows(slice(CHECK_ROWS))
    first = ridge_path(first_stage_moments(stage1, networks), [problem.first_stage_ridge])[0]
    ridges = problem.refit_ridges
    candidates = ridge_path(second_stage_moments(stage2, networks, first, problem.structure), ridges)
    losses = squared_errors(heldout, networks, first, candidates, problem.structure)
    chosen = int(losses.mean(dim=1).argmin())
    return Checkpoint(done, parameters, first, candidates[chosen], ridges[chosen], losses[chosen])


def _report(
    kept: Checkpoint | None, problem: TwoStageProblem, networks: Networks, history: list[dict[str, Any]], ended: Ended
) -> TwoStageFit:
    """Return to the state kept (None where there were no steps), and refit its last layers where asked for."""
    if kept is not None:
        for module, parameters in zip(networks.modules(), kept.parameters, strict=True):
            module.load_state_dict(parameters)
    _set_training(networks, False)
    loss = float("nan") if kept is None else kept.loss
    if problem.report == "current" and kept is not None:
        nan = float("nan")
        return TwoStageFit(networks, kept.first_stage, kept.structural, problem.structure, loss, nan, history, ended)
    ridge = problem.penalties.ridge2 if kept is None else kept.ridge
    first, structural = refit_last_layers(
        problem.split.stage1,
        problem.split.whole_stage2,
        networks,
        structure=problem.structure,
        first_stage_ridge=problem.first_stage_ridge,
        ridge=ridge,
    )
    return TwoStageFit(networks, first, structural, problem.structure, loss, ridge, history, ended)


class _DivergedError(ArithmeticError):
    """The training loss is not finite or enormous."""


def _check_features(networks: Networks, sample: Sample) -> None:
    """Raise where the last gradient step has left features that are not finite."""
    features = [evaluate(networks.treatment, sample.treatment), evaluate(networks.instrument, sample.instruments)]
    if networks.covariate is not None and sample.covariates is not None:
        features.append(evaluate(networks.covariate, sample.covariates))
    if not all(bool(torch.isfinite(values).all()) for values in features):
        raise _DivergedError("the features are not finite")


def _mean_losses(infos: list[StepInfo], done: int, split: Split) -> dict[str, float]:
    """Training losses since the last check; raises where they are not finite or enormous."""
    stage1 = torch.stack([info.stage1_loss for info in infos])
    stage2 = torch.stack([info.stage2_loss for info in infos])
    limit = DIVERGED * split.stage2.outcome.square().mean()
    bad = ~torch.isfinite(stage1) | ~torch.isfinite(stage2) | (stage2 > limit)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        when = done - len(infos) + first + 1
        raise _DivergedError(
            f"the losses of the stages were {float(stage1[first]):.3g} and {float(stage2[first]):.3g} at step {when}"
        )
    return {"stage1_loss": float(stage1.mean()), "stage2_loss": float(stage2.mean())}


def _warn_of_early_end(what: str, kept: Checkpoint | None) -> None:
    assert kept is not None
    message = f"{what}; the state of step {kept.step} is kept and usable"
    warnings.warn(message, TrainingWarning, stacklevel=6)


def _rising(penalties: Penalties, factor: float) -> Penalties:
    return replace(
        penalties, lambda1=penalties.lambda1 * factor, lambda2=penalties.lambda2 * factor, lambda12=penalties.lambda12 * factor
    )


def _set_training(networks: Networks, mode: bool) -> None:
    for module in networks.modules():
        module.train(mode)
