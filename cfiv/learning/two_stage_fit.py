"""One DFIV fit: the loop over steps, early stopping on held-out stage-2 loss, and the final last layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError, TrainingWarning
from cfiv.learning.networks import evaluate
from cfiv.learning.samples import Sample, Split, batches
from cfiv.learning.training import Penalties, Report, Training
from cfiv.learning.two_stage import Batch, Networks, StepInfo, TwoStageState, optimisers, step
from cfiv.numerics.least_squares import accumulate, moments, ridge_path, solve, solve_moments, with_intercept
from cfiv.numerics.two_stage import Structure, structural_features

Ended = Literal["finished", "stopped early", "interrupted", "diverged"]

#: Rows whose features are held at once when a whole sample is passed through the networks.
CHUNK = 8192
#: Rows of a sample that a check looks at; a held-out loss needs no more.
CHECK_ROWS = 20_000
#: Feature values (rows x columns) up to which the final solve uses QR rather than moments: 400 MB of float64 with its copies.
QR_VALUES = 10_000_000
#: A stage-2 training loss this many times the outcome's mean square has diverged.
DIVERGED = 1e4


@dataclass(frozen=True)
class TwoStageFit:
    """A fitted structural function ``h = u' f`` on standardised inputs.

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
        Held-out stage-2 mean squared error of the state kept, in units of the outcome's variance; nan without held-out rows.
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


@dataclass(frozen=True)
class _Kept:
    """A state to return to."""

    step: int
    parameters: list[dict[str, Tensor]]
    first_stage: Tensor
    structural: Tensor
    ridge: float
    losses: Tensor  # (held-out rows,) weighted squared errors that average to the held-out loss

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def fit_two_stage(
    split: Split,
    networks: Networks,
    *,
    structure: Structure,
    penalties: Penalties,
    training: Training,
    steps: int,
    batch_size: int | None,
    learning_rate: float,
    weight_decay: tuple[float, float, float],
    report: Report,
    generator: np.random.Generator,
    on_step: Callable[[], None],
) -> TwoStageFit:
    """Train the networks on the two samples, choose a state by held-out stage-2 loss, and solve its last layers.

    The latest state whose held-out loss is not significantly above the lowest is kept (``training.tolerance``). A diverging run
    stops at the last good state, Ctrl-C at the best one so far; both give a TrainingWarning.

    Raises
    ------
    DivergenceError
        If training diverged before any check.

    References
    ----------
    Xu et al. 2021, algorithm 1, for the alternation of the stages; Galashov et al. 2025 for the proximal solves. The stopping
    rule and the choice of the final ridge are ours.
    """
    state = TwoStageState(networks, optimisers(networks, training=training, weight_decay=weight_decay))
    limit = DIVERGED * float(split.stage2.outcome.square().mean())
    drawn = _pairs(split, batch_size, generator)
    check_steps = {round(steps * (i + 1) / training.checks) for i in range(training.checks)} - {0}
    history: list[dict[str, Any]] = []
    best: _Kept | None = None
    kept: _Kept | None = None
    risen, done = 0, 0
    ended: Ended = "finished"
    infos: list[StepInfo] = []
    _set_training(networks, True)
    try:
        for done in range(1, steps + 1):
            factor = training.lambda_factor(done - 1, steps)
            state.optimisers.set_rate(learning_rate * training.rate_factor(done - 1, steps))
            stage1, stage2 = next(drawn)
            state, info = step(Batch(stage1, stage2, _scaled(penalties, factor)), state, training=training, structure=structure)
            infos.append(info)
            on_step()
            if done not in check_steps:
                continue
            losses = _mean_losses(infos, done, limit)
            now = _check(state, split, penalties, training, structure, report, done)
            infos = []
            if best is None or now.loss < best.loss:
                best = now
            excess = _excess(now, best)
            if kept is None or excess <= training.tolerance:
                kept = now
            risen = risen + 1 if excess > 2 * training.tolerance else 0
            history.append(
                {
                    "step": done,
                    **losses,
                    "heldout_loss": now.loss,
                    "refit_ridge": now.ridge,
                    "kept": now is kept,
                    "lambda_factor": factor,
                }
            )
            if risen >= training.patience:
                ended = "stopped early"
                break
    except KeyboardInterrupt:
        ended = "interrupted"
        if kept is None and state.structural is not None:
            kept = _check(state, split, penalties, training, structure, report, done)
        if kept is None:
            raise
        warnings.warn(
            f"training was interrupted at step {done} of {steps}; the state of step {kept.step} is kept and usable",
            TrainingWarning,
            stacklevel=5,
        )
    # The rows were finite when training began, so a DataError here speaks of features that no longer are.
    except (SingularError, DataError, _Diverged) as error:
        ended = "diverged"
        if kept is None:
            raise DivergenceError(
                f"training diverged at step {done} of {steps} before any usable state ({error}): lower learning_rate, raise lambda1, lambda2 "
                "and lambda12 or the ridges, or check the data for extreme values"
            ) from error
        warnings.warn(
            f"training diverged at step {done} of {steps} ({error}); the state of step {kept.step} is kept: lower learning_rate or raise the penalties",
            TrainingWarning,
            stacklevel=5,
        )
    if kept is not None:
        for module, parameters in zip(networks.modules(), kept.parameters, strict=True):
            module.load_state_dict(parameters)
        history = [record | {"kept": record["step"] == kept.step} for record in history]
    _set_training(networks, False)
    loss = kept.loss if kept is not None else float("nan")
    if report == "current" and kept is not None:
        return TwoStageFit(networks, kept.first_stage, kept.structural, structure, loss, float("nan"), history, ended)
    ridge = kept.ridge if kept is not None else penalties.ridge2
    first, structural = refit_last_layers(
        split.stage1,
        split.whole_stage2,
        networks,
        structure=structure,
        first_stage_ridge=_first_stage_ridge(training, penalties),
        ridge=ridge,
    )
    return TwoStageFit(networks, first, structural, structure, loss, ridge, history, ended)


def refit_last_layers(
    stage1: Sample, stage2: Sample, networks: Networks, *, structure: Structure, first_stage_ridge: float, ridge: float
) -> tuple[Tensor, Tensor]:
    """V on all rows of sample 1, then u on all rows of sample 2, features fixed.

    Parameters
    ----------
    stage1, stage2 : Sample
    networks : Networks
    structure : {"product", "additive"}
    first_stage_ridge, ridge : float
        Penalties >= 0 of V and u, on the mean squared error.

    Returns
    -------
    first_stage : Tensor (d + 1, m), float64
    structural : Tensor (p, 1), float64

    Notes
    -----
    By QR where a sample's features have up to ``QR_VALUES`` values; above that from moments added up over chunks of rows, in memory
    that does not grow with the rows.
    """
    first = _solve_first_stage(stage1, networks, first_stage_ridge)
    structural = _solve_whole(
        stage2, lambda chunk: _structural(chunk, networks, first, structure), lambda chunk: chunk.outcome, ridge, exact=True
    )
    return first, structural


def predicted_outcome(fit: TwoStageFit, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
    """``E[h(T, X) | Z, X]`` as the two stages estimate it, on standardised inputs: ``u' f(V' [phi(Z), 1], xi(X))``.

    Parameters
    ----------
    fit : TwoStageFit
    instruments : Tensor (n, q + p)
        Instruments and covariates.
    covariates : Tensor (n, p), optional

    Returns
    -------
    Tensor (n, 1), float64
    """
    rows = instruments.shape[0]
    sample = Sample(instruments.new_zeros(rows, 1), instruments.new_zeros(rows, 1), instruments, covariates)
    return torch.cat(
        [_structural(chunk, fit.networks, fit.first_stage, fit.structure) @ fit.structural for chunk in _chunks(sample)]
    )


class _Diverged(ArithmeticError):
    """The training loss is not finite or enormous."""


def _check(
    state: TwoStageState,
    split: Split,
    penalties: Penalties,
    training: Training,
    structure: Structure,
    report: Report,
    done: int,
) -> _Kept:
    """The state as it would be reported now, with its held-out losses."""
    networks = state.networks
    parameters = [{name: value.clone() for name, value in module.state_dict().items()} for module in networks.modules()]
    assert state.first_stage is not None and state.structural is not None
    first, structural = state.first_stage, state.structural
    if split.heldout is None:
        return _Kept(done, parameters, first, structural, penalties.ridge2, first.new_zeros(0))
    if report == "current":
        losses = _squared_errors(split.heldout, networks, first, structural[None], structure)[0]
        return _Kept(done, parameters, first, structural, float("nan"), losses)
    stage1, stage2 = split.stage1.rows(slice(CHECK_ROWS)), split.stage2.rows(slice(CHECK_ROWS))
    ridges = training.refit_ridges or (penalties.ridge2,)
    first = _solve_first_stage(stage1, networks, _first_stage_ridge(training, penalties), exact=False)
    total = accumulate(
        moments(features=_structural(chunk, networks, first, structure), targets=chunk.outcome, weights=chunk.weights)
        for chunk in _chunks(stage2)
    )
    candidates = ridge_path(total, ridges)
    losses = _squared_errors(split.heldout.rows(slice(CHECK_ROWS)), networks, first, candidates, structure)
    chosen = int(losses.mean(dim=1).argmin())
    return _Kept(done, parameters, first, candidates[chosen], ridges[chosen], losses[chosen])


def _excess(now: _Kept, best: _Kept) -> float:
    """How many standard errors of the paired difference a state's held-out loss lies above the best one."""
    difference = now.losses - best.losses
    if difference.numel() < 2:
        return 0.0
    spread = float(difference.std()) / difference.numel() ** 0.5
    return float(difference.mean()) / spread if spread > 0 else 0.0


def _first_stage_ridge(training: Training, penalties: Penalties) -> float:
    """The final V needs no shrinkage beyond rounding where ridges are chosen freely: its mistakes are not what overfits."""
    return min(training.refit_ridges, default=penalties.ridge1)


def _solve_first_stage(sample: Sample, networks: Networks, ridge: float, *, exact: bool = True) -> Tensor:
    """V on a whole sample, shape (d + 1, m)."""

    def features(chunk: Sample) -> Tensor:
        return with_intercept(evaluate(networks.instrument, chunk.instruments))

    def targets(chunk: Sample) -> Tensor:
        return evaluate(networks.treatment, chunk.treatment)

    return _solve_whole(sample, features, targets, ridge, exact=exact)


def _solve_whole(
    sample: Sample, features: Callable[[Sample], Tensor], targets: Callable[[Sample], Tensor], ridge: float, *, exact: bool
) -> Tensor:
    """The closed form on all rows: by QR where their features fit in memory, by moments over chunks where they do not."""
    width = features(sample.rows(slice(0, 1))).shape[1]
    if exact and len(sample) * width <= QR_VALUES:
        chunks = list(_chunks(sample))
        return solve(
            features=torch.cat([features(chunk) for chunk in chunks]),
            targets=torch.cat([targets(chunk) for chunk in chunks]),
            ridge=ridge,
            weights=sample.weights,
        ).weights
    total = accumulate(
        moments(features=features(chunk), targets=targets(chunk), weights=chunk.weights) for chunk in _chunks(sample)
    )
    return solve_moments(total, ridge=ridge).weights if exact else ridge_path(total, [ridge])[0]


def _structural(sample: Sample, networks: Networks, first: Tensor, structure: Structure) -> Tensor:
    """``f`` at predicted treatment features, float64, shape (n, p)."""
    predicted = with_intercept(evaluate(networks.instrument, sample.instruments)).double() @ first
    covariates = None
    if networks.covariate is not None and sample.covariates is not None:
        covariates = evaluate(networks.covariate, sample.covariates)
    return structural_features(treatment_features=predicted, covariate_features=covariates, structure=structure)


def _squared_errors(sample: Sample, networks: Networks, first: Tensor, candidates: Tensor, structure: Structure) -> Tensor:
    """Squared stage-2 errors (r, n) of several u (r, p, 1), scaled so that their plain mean is the weighted mean."""
    errors = torch.cat(
        [
            (chunk.outcome - _structural(chunk, networks, first, structure) @ candidates)[..., 0].square()
            for chunk in _chunks(sample)
        ],
        dim=1,
    )
    if sample.weights is None:
        return errors
    return errors * (sample.weights / sample.weights.mean())


def _chunks(sample: Sample) -> Iterator[Sample]:
    for start in range(0, len(sample), CHUNK):
        yield sample.rows(slice(start, start + CHUNK))


def _pairs(split: Split, size: int | None, generator: np.random.Generator) -> Iterator[tuple[Sample, Sample]]:
    """Batches of both samples, drawn independently."""
    stage1_generator, stage2_generator = generator.spawn(2)
    stage1 = batches(split.stage1, size=size, generator=stage1_generator)
    stage2 = batches(split.stage2, size=size, generator=stage2_generator)
    return zip(stage1, stage2, strict=False)


def _mean_losses(infos: list[StepInfo], done: int, limit: float) -> dict[str, float]:
    """Training losses since the last check; raises where they are not finite or enormous."""
    stage1 = torch.stack([info.stage1_loss for info in infos])
    stage2 = torch.stack([info.stage2_loss for info in infos])
    bad = ~torch.isfinite(stage2) | (stage2 > limit) | ~torch.isfinite(stage1)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        raise _Diverged(f"the stage-2 loss was {float(stage2[first]):.3g} at step {done - len(infos) + first + 1}")
    return {"stage1_loss": float(stage1.mean()), "stage2_loss": float(stage2.mean())}


def _scaled(penalties: Penalties, factor: float) -> Penalties:
    return replace(
        penalties, lambda1=penalties.lambda1 * factor, lambda2=penalties.lambda2 * factor, lambda12=penalties.lambda12 * factor
    )


def _set_training(networks: Networks, mode: bool) -> None:
    for module in networks.modules():
        module.train(mode)
