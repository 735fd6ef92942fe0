"""The one loop: step after step of anything that trains, its run file, Ctrl-C, time, and what a continued run has behind it.

What is trained, what is kept of it and when it is over is the business of a :class:`Run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from cfiv.file_values import whole
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.run_file import RunFile
from cfiv.runtime.processes import here

Cut = Literal["interrupted", "out of time"]
Ended = Literal["finished", "stopped early", "diverged", Cut]

#: A training loss this many times the outcome's mean square has diverged.
DIVERGED = 1e4


class Run(Protocol):
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

    def cut(self, number: int, *, ended: Cut, during: int) -> None:
        """End after step ``number``, with what is kept; Ctrl-C came ``during`` that step or the next, or the time was over."""
        ...

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs, in nested values."""
        ...

    def restore(self, values: dict[str, Any], *, done: int) -> None:
        """Go where the run was after ``done`` steps; what it raises because of damaged values is about the file."""
        ...


class DivergedError(ArithmeticError):
    """The training loss is not finite or enormous."""


def drive(
    run: Run,
    *,
    steps: int,
    on_step: Callable[[], object] = lambda: None,
    file: RunFile | None = None,
    deadline: Deadline = NEVER,
) -> None:
    """The one loop: step after step to the end, or to an earlier one: where nothing is left to train, no time, or on Ctrl-C.

    Parameters
    ----------
    run : Run
        What its methods raise ends the loop, and nothing is saved then.
    steps : int
    on_step : callable, optional
        Called after every step, for progress; at once for the steps that a continued run has behind it.
    file : RunFile, optional
        Where the run is saved on its way, and continued from. Saving changes no number, and a continued run has those of one
        that was never stopped.
    deadline : Deadline, optional
        After the step in which it passes there is no further one.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted before the first step was done, or is one of several processes.
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
    here().check_alike("the steps that a checkpoint has behind it", done)
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
            if done < steps and not run.over() and deadline.passed():
                run.cut(done, ended="out of time", during=done)
                return
    except KeyboardInterrupt:
        if not done or here().count > 1:  # the others may be in the midst of another step
            raise
        run.cut(done, ended="interrupted", during=during)


def check_steps(steps: int, *, checks: int) -> set[int]:
    """The steps after which a check takes place, evenly spread; the last is among them."""
    return {round(steps * (i + 1) / checks) for i in range(checks)}
