"""The training loop: steps, checks on held-out rows, early stopping, and an end that loses nothing.

What is trained is the business of a :class:`Run`; the loop knows neither its data nor its networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError, TrainingWarning, warn
from cfiv.file_values import whole
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.run_file import RunFile
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


@dataclass
class Progress(Generic[L]):
    """What the loop itself remembers between two steps.

    Parameters
    ----------
    stopping : EarlyStopping
    history : list of dict
    losses : list of dict
        Training losses since the last check.
    done : int
        Steps taken.
    ended : {"finished", "stopped early", "interrupted", "diverged"}
    """

    stopping: EarlyStopping[L]
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    done: int = 0
    ended: Ended = "finished"


class Archive(Protocol[L]):
    """Where a run is saved on its way, and continued from."""

    @property
    def every(self) -> int:
        """After how many steps each time."""
        ...

    def write(self, progress: Progress[L]) -> None:
        """Save the run and the loop's progress."""
        ...

    def restore(self, progress: Progress[L]) -> None:
        """Put the run and the loop's progress where they were saved; leave both alone where they never were."""
        ...


class DrivenRun(Protocol):
    """What :func:`drive` drives: something that takes steps, looks at itself, and can be written down."""

    def over(self) -> bool:
        """Whether nothing is left to train."""
        ...

    def step(self, number: int) -> None:
        """Take step ``number`` (from 1)."""
        ...

    def look(self, number: int) -> None:
        """Judge what step ``number`` has left, where it is time to."""
        ...

    def interrupt(self, number: int, *, during: int) -> None:
        """End after step ``number``, with what is kept; Ctrl-C came ``during`` that step or the next."""
        ...

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs, in nested values."""
        ...

    def restore(self, values: dict[str, Any], *, done: int) -> None:
        """Go where the run was after ``done`` steps; what it raises because of damaged values is about the file."""
        ...


def drive(run: DrivenRun, *, steps: int, on_step: Callable[[], object] = lambda: None, file: RunFile | None = None) -> None:
    """The one loop: step after step to the end, or to an earlier one: where nothing is left to train, or on Ctrl-C.

    Parameters
    ----------
    run : DrivenRun
        What its methods raise ends the loop, and nothing is saved then.
    steps : int
    on_step : callable, optional
        Called after every step, for progress; at once for the steps that a continued run has behind it.
    file : RunFile, optional
        Where the run is saved on its way, and continued from. Saving changes no number, and a continued run has those of one
        that was never stopped.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted before the first step was done.
    ModelFileError, OutputError
        From the file.
    """

    def restored(values: dict[str, Any]) -> int:
        there = dict(values)
        done = whole(there.pop("done", None), 1, steps)
        run.restore(there, done=done)
        return done

    during = 0
    found = None if file is None else file.read(restored)
    done = 0 if found is None else found
    for _ in range(done):
        on_step()
    try:
        while done < steps and not run.over():
            during = done + 1
            run.step(during)
            done = during
            on_step()
            run.look(done)
            if file is not None and (done == steps or run.over() or done % file.every == 0):
                file.write({"done": done, **run.saved()})
    except KeyboardInterrupt:
        if not done:
            raise
        run.interrupt(done, during=during)


class DivergedError(ArithmeticError):
    """The training loss is not finite or enormous."""


def check_steps(steps: int, checks: int) -> set[int]:
    """The steps after which a check takes place, evenly spread; the last is among them."""
    return {round(steps * (i + 1) / checks) for i in range(checks)}


def train(
    run: Run[L],
    *,
    steps: int,
    training: Training,
    on_step: Callable[[], object],
    archive: Archive[L] | None = None,
) -> Trained[L]:
    """Drive a run to its end, or to an earlier one: where the held-out loss has risen, on Ctrl-C, or where it diverges.

    Parameters
    ----------
    run : Run
    steps : int
    training : Training
        Its ``checks``, ``tolerance`` and ``patience``.
    on_step : callable
        Called after every step, for progress; at once for the steps that a continued run has behind it.
    archive : Archive, optional
        Of the same run. Saving changes no number, and a continued run has those of one that was never stopped.

    Returns
    -------
    Trained

    Raises
    ------
    DivergenceError
        If it diverged before any check.
    KeyboardInterrupt
        If it was interrupted before the first step was done.
    ModelFileError, OutputError
        From the archive.

    Warns
    -----
    TrainingWarning
        Where it diverged or was interrupted; the state kept is usable.
    """
    when = check_steps(steps, training.checks)
    stopping: EarlyStopping[L] = EarlyStopping(tolerance=training.tolerance, patience=training.patience)
    progress = Progress(stopping)
    if archive is not None:
        archive.restore(progress)
    started = progress.done
    try:
        for _ in range(progress.done):
            on_step()
        while progress.done < steps and progress.ended == "finished":
            started = progress.done + 1
            progress.losses.append(run.step(started))
            progress.done = started
            on_step()
            if progress.done in when:
                means, progress.losses = _mean_losses(progress.losses, run.limits, progress.done), []
                now, notes = run.check(progress.done)
                stopping.add(now)
                progress.history.append({"step": progress.done, **means, **notes})
                if stopping.exhausted:
                    progress.ended = "stopped early"
            over = progress.done == steps or progress.ended != "finished"
            if archive is not None and (over or progress.done % archive.every == 0):
                archive.write(progress)
    except KeyboardInterrupt:
        if not progress.done:
            raise
        if stopping.kept is None:
            stopping.add(run.check(progress.done)[0])
        progress.ended = "interrupted"
        _warn(f"training was interrupted at step {started} of {steps}", stopping.kept)
    # The rows were finite when training began, so a DataError here speaks of features that no longer are.
    except (SingularError, DataError, DivergedError) as error:
        if stopping.kept is None:
            raise DivergenceError(
                f"training diverged at step {started} of {steps} before any usable state ({error}): {run.advice}, or check the "
                "data for extreme values"
            ) from error
        progress.ended = "diverged"
        _warn(f"training diverged at step {started} of {steps} ({error}); {run.advice}", stopping.kept)
    kept = stopping.kept
    history = [record | {"kept": kept is not None and record["step"] == kept.step} for record in progress.history]
    return Trained(kept, history, progress.ended)


def _mean_losses(losses: list[dict[str, Tensor]], limits: Mapping[str, float], done: int) -> dict[str, float]:
    """Training losses since the last check; raises where they are not finite or enormous."""
    values = {name: torch.stack([step[name] for step in losses]) for name in losses[0]}
    bad = torch.stack([~torch.isfinite(v) | (v > limits.get(name, torch.inf)) for name, v in values.items()]).any(dim=0)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        which = " and ".join(f"{name.replace('_', ' ')} was {float(value[first]):.3g}" for name, value in values.items())
        raise DivergedError(f"{which} at step {done - len(losses) + first + 1}")
    return {name: float(value.mean()) for name, value in values.items()}


def _warn(what: str, kept: Checkpoint[L] | None) -> None:
    assert kept is not None
    message = f"{what}; the state of step {kept.step} is kept and usable"
    warn(message, TrainingWarning)
