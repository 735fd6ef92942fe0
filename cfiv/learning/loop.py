"""The training loop: steps, checks on held-out rows, early stopping, and an end that loses nothing.

What is trained is the business of a :class:`Run`; the loop knows neither its data nor its networks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError, TrainingWarning
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.training import Training

Ended = Literal["finished", "stopped early", "interrupted", "diverged"]
L = TypeVar("L")

#: A training loss this many times the outcome's mean square has diverged.
DIVERGED = 1e4


class Run(Protocol[L]):
    """A training run that the loop drives, with last layers of type L."""

    @property
    def advice(self) -> str:
        """What to do where it diverges, for messages."""
        ...

    @property
    def limits(self) -> Mapping[str, float]:
        """Above which the training losses of these names have diverged."""
        ...

    def step(self, number: int) -> dict[str, Tensor]:
        """Take step ``number`` (from 1) and return its training losses, not yet read."""
        ...

    def check(self, number: int) -> tuple[Checkpoint[L], dict[str, float]]:
        """The state after step ``number``, as it would be reported now, and what the history notes of it."""
        ...


@dataclass(frozen=True)
class Trained(Generic[L]):
    """How a run ended.

    Parameters
    ----------
    kept : Checkpoint, optional
        The state to report; None where there were no steps.
    history : list of dict
        One record a check: ``step``, mean training losses since the last check, what the run noted, and ``kept``.
    ended : {"finished", "stopped early", "interrupted", "diverged"}
    """

    kept: Checkpoint[L] | None
    history: list[dict[str, Any]]
    ended: Ended


class DivergedError(ArithmeticError):
    """The training loss is not finite or enormous."""


def check_steps(steps: int, checks: int) -> set[int]:
    """The steps after which a check takes place, evenly spread; the last is among them."""
    return {round(steps * (i + 1) / checks) for i in range(checks)}


def train(run: Run[L], *, steps: int, training: Training, on_step: Callable[[], object], stacklevel: int) -> Trained[L]:
    """Drive a run to its end, or to an earlier one: where the held-out loss has risen, on Ctrl-C, or where it diverges.

    Parameters
    ----------
    run : Run
    steps : int
    training : Training
        Its ``checks``, ``tolerance`` and ``patience``.
    on_step : callable
        Called after every step, for progress.
    stacklevel : int
        Of the warnings, counted from the caller.

    Returns
    -------
    Trained

    Raises
    ------
    DivergenceError
        If it diverged before any check.
    KeyboardInterrupt
        If it was interrupted before the first step was done.

    Warns
    -----
    TrainingWarning
        Where it diverged or was interrupted; the state kept is usable.
    """
    when = check_steps(steps, training.checks)
    stopping: EarlyStopping[L] = EarlyStopping(tolerance=training.tolerance, patience=training.patience)
    history: list[dict[str, Any]] = []
    losses: list[dict[str, Tensor]] = []
    ended: Ended = "finished"
    started = done = 0
    try:
        for started in range(1, steps + 1):
            losses.append(run.step(started))
            done = started
            on_step()
            if done in when:
                means, losses = _mean_losses(losses, run.limits, done), []
                now, notes = run.check(done)
                stopping.add(now)
                history.append({"step": done, **means, **notes})
                if stopping.exhausted:
                    ended = "stopped early"
                    break
    except KeyboardInterrupt:
        if not done:
            raise
        if stopping.kept is None:
            stopping.add(run.check(done)[0])
        ended = "interrupted"
        _warn(f"training was interrupted at step {started} of {steps}", stopping.kept, stacklevel)
    # The rows were finite when training began, so a DataError here speaks of features that no longer are.
    except (SingularError, DataError, DivergedError) as error:
        if stopping.kept is None:
            raise DivergenceError(
                f"training diverged at step {started} of {steps} before any usable state ({error}): {run.advice}, or check the "
                "data for extreme values"
            ) from error
        ended = "diverged"
        _warn(f"training diverged at step {started} of {steps} ({error}); {run.advice}", stopping.kept, stacklevel)
    kept = stopping.kept
    return Trained(kept, [record | {"kept": kept is not None and record["step"] == kept.step} for record in history], ended)


def _mean_losses(losses: list[dict[str, Tensor]], limits: Mapping[str, float], done: int) -> dict[str, float]:
    """Training losses since the last check; raises where they are not finite or enormous."""
    values = {name: torch.stack([step[name] for step in losses]) for name in losses[0]}
    bad = torch.stack([~torch.isfinite(v) | (v > limits.get(name, torch.inf)) for name, v in values.items()]).any(dim=0)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        which = " and ".join(f"{name.replace('_', ' ')} was {float(value[first]):.3g}" for name, value in values.items())
        raise DivergedError(f"{which} at step {done - len(losses) + first + 1}")
    return {name: float(value.mean()) for name, value in values.items()}


def _warn(what: str, kept: Checkpoint[L] | None, stacklevel: int) -> None:
    assert kept is not None
    message = f"{what}; the state of step {kept.step} is kept and usable"
    warnings.warn(message, TrainingWarning, stacklevel=stacklevel + 2)
