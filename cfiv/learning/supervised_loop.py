"""The loop of supervised training: batches without end, checkpoints on disk, and an end that loses nothing.

:mod:`cfiv.learning.loop` judges whole states on held-out rows a few times a fit. This one keeps no state but the last good one,
looks at every loss, and saves itself in the middle of a pass over a loader that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError, TrainingWarning, warn
from cfiv.learning.last_layer import Memory
from cfiv.learning.last_linear_map import LastLinearMap
from cfiv.learning.loop import Ended
from cfiv.learning.run_file import RunFile, draws_of, restore_draws
from cfiv.learning.saved_state import check_supervised
from cfiv.learning.supervised import Recipe, TrainerState, step
from cfiv.learning.supervised_data import Examples, Source
from cfiv.runtime.draws import reseed, watched
from cfiv.runtime.module_state import put, renew, state_of, tensors_of


@dataclass(frozen=True)
class Plan:
    """What one fit is asked to do.

    Parameters
    ----------
    steps : int
        In all, those of a continued run included.
    seed : int
        Of the module's draws; every pass starts them anew from (seed, pass), so that a pass can be repeated.
    device : device
        Whose generator is saved, besides the processor's.
    place : callable
        Puts a batch on the device.
    recipe, rate_factor : callable
        From the steps done, and all of them, to what is in force.
    on_step : callable, optional
        Called with the step's number and loss.
    checkpoint : RunFile, optional
    """

    steps: int
    seed: int
    device: torch.device
    place: Callable[[Examples], Examples]
    recipe: Callable[[int, int], Recipe]
    rate_factor: Callable[[int, int], float]
    on_step: Callable[[int, float], object] | None
    checkpoint: RunFile | None


@dataclass(frozen=True)
class Position:
    """How far a run is in the order of its batches: the pass, batches taken from it, and its loader's generator as it began."""

    epoch: int = 0
    taken: int = 0
    generator: Tensor | None = None


@dataclass
class Run:
    """A run under way: its state, its place in the data, and (pass, loss) of every step."""

    state: TrainerState
    position: Position
    history: list[tuple[int, float]]
    draws: list[Tensor] | None = None


def train(batches: Source, state: TrainerState, plan: Plan) -> tuple[list[tuple[int, float]], Ended]:
    """Drive a run to its end, or to an earlier one: on Ctrl-C, or where a loss is not finite.

    Call it with the module in training mode and in a block of :class:`cfiv.runtime.draws.Draws`.

    Returns
    -------
    history : list of (pass, loss)
        One a step.
    ended : {"finished", "interrupted", "diverged"}

    Raises
    ------
    DataError, ParameterError, ModelFileError, OutputError
        From the data, the targets, the checkpoint.
    DivergenceError
        If the first step fails; the module is left as it was.
    KeyboardInterrupt
        If it was interrupted before the first step was done.

    Warns
    -----
    TrainingWarning
        Where it was interrupted or diverged.
    """
    peaks = [] if state.optimiser is None else [group["lr"] for group in state.optimiser.param_groups]
    run = Run(state, Position(), [])
    if plan.checkpoint is not None:
        run = plan.checkpoint.read(lambda values: continued(check_supervised(values, state, batches, plan), state)) or run
    good, stream = LastGood(state.head), endless(batches, run, plan)
    ended: Ended = "finished"
    done = len(run.history)
    try:
        for done in range(len(run.history), plan.steps):
            run.position, batch = next(stream)
            good.before_step()
            set_rates(run.state, peaks, plan.rate_factor(done, plan.steps))
            run.state, info = step(plan.place(batch), run.state, recipe=plan.recipe(done, plan.steps))
            run.history.append((run.position.epoch, info.loss))
            good.after_step()
            due = done + 1 == plan.steps or (plan.checkpoint is not None and (done + 1) % plan.checkpoint.every == 0)
            if due:  # to last, on disk or in the module
                good.check()
            observe(plan, done + 1, info.loss)
            if due and plan.checkpoint is not None:
                save(run, plan.checkpoint, plan.device)
    except KeyboardInterrupt:
        good.undo()
        if not run.history:
            raise
        ended = "interrupted"
        warn(
            f"training was interrupted at step {done + 1} of {plan.steps}; what it had reached is kept and usable",
            TrainingWarning,
        )
    except (DivergenceError, SingularError) as error:
        kept = good.go_back()
        advice = "lower the learning rate, raise the penalties, or check the data"
        if not kept:
            raise DivergenceError(f"training stopped at step {done + 1} of {plan.steps}: {error}; {advice}") from error
        ended = "diverged"
        what = f"training stopped at step {done + 1} of {plan.steps}: {error}"
        warn(f"{what}; the last state with a finite loss is kept; {advice}", TrainingWarning)
    return run.history, ended


def endless(batches: Source, run: Run, plan: Plan) -> Iterator[tuple[Position, Examples]]:
    """Batches of pass after pass, from the position of a run on; those that it has taken are drawn again and passed over."""
    epoch, skip = run.position.epoch, run.position.taken
    generator = batches.generator
    if generator is not None and run.position.generator is not None:
        generator.set_state(run.position.generator)
    while True:
        seed = int(np.random.SeedSequence([plan.seed, epoch]).generate_state(1)[0])
        reseed(seed, plan.device)
        at_start = None if generator is None else generator.get_state()
        taken = 0
        for taken, batch in enumerate(_drawn(batches, epoch), start=1):
            if taken > skip:
                yield Position(epoch, taken, at_start), batch
            elif taken == skip and run.draws is not None:
                restore_draws(run.draws, plan.device)
        if taken < max(1, skip):
            raise DataError(
                f"the loader yielded {taken} batches in pass {epoch + 1}, at least {max(1, skip)} expected: give a loader that "
                "yields its batches in every pass anew"
            )
        epoch, skip = epoch + 1, 0


def _drawn(batches: Source, epoch: int) -> Iterator[Examples]:
    """The batches of a pass; a loader draws as it begins, and while it looks for the next."""
    with watched():
        passing = batches.epoch(epoch)
    while True:
        with watched():
            batch = next(passing, None)
        if batch is None:
            return
        yield batch


class LastGood:
    """The module as it was before this step and before the one before it.

    A loss that is not finite speaks of the parameters that the step before left; those before that had a finite loss.
    """

    def __init__(self, head: LastLinearMap) -> None:
        self._module = head.module
        self._kept = [state_of(head.module) for _ in range(2)]
        self._taken, self._inside = 0, False

    def before_step(self) -> None:
        """Keep the present."""
        self._kept.reverse()
        renew(self._kept[0], self._module)
        self._taken, self._inside = self._taken + 1, True

    def after_step(self) -> None:
        """The step is done: its loss was finite."""
        self._inside = False

    def undo(self) -> None:
        """Take back a step that was begun and not done."""
        if self._inside:
            put(self._module, self._kept[0])

    def go_back(self) -> bool:
        """Return to the parameters of the last finite loss; False, and to those before this step, where there was none."""
        steps = 1 if self._inside else 0
        put(self._module, self._kept[min(steps, self._taken - 1)])
        return self._taken > steps

    def check(self) -> None:
        """Raise a DivergenceError where the last step has left a parameter that is not finite: no loss will speak of it."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(self._module).values()):
            raise DivergenceError("it left parameters that are not finite")


def set_rates(state: TrainerState, peaks: list[float], factor: float) -> None:
    """Set every learning rate to a fraction of its peak."""
    if state.optimiser is not None:
        for group, peak in zip(state.optimiser.param_groups, peaks, strict=True):
            group["lr"] = factor * peak


def observe(plan: Plan, done: int, loss: float) -> None:
    """Tell whoever watches; what they draw is undrawn."""
    if plan.on_step is not None:
        draws = draws_of(plan.device)
        with watched():
            plan.on_step(done, loss)
        restore_draws(draws, plan.device)


def save(run: Run, file: RunFile, device: torch.device) -> None:
    """Write all that :func:`continued` needs."""
    state = run.state
    values = {
        "module": state_of(state.head.module),
        "optimiser": None if state.optimiser is None else state.optimiser.state_dict(),
        "memory": [state.memory.weights, *state.memory.more],
        "position": [run.position.epoch, run.position.taken, run.position.generator],
        "draws": draws_of(device),
        "epochs": torch.tensor([epoch for epoch, _ in run.history]),
        "losses": torch.tensor([loss for _, loss in run.history], dtype=torch.float64),
    }
    file.write(values)


def continued(values: Mapping[str, Any], fresh: TrainerState) -> Run:
    """The run that was saved, put into the module and the optimiser of a fresh state."""
    put(fresh.head.module, values["module"])
    if fresh.optimiser is not None:
        fresh.optimiser.load_state_dict(values["optimiser"])
    device = fresh.memory.weights.device
    weights, *more = (tensor.to(device) for tensor in values["memory"])
    history = list(zip(values["epochs"].tolist(), values["losses"].tolist(), strict=True))
    return Run(replace(fresh, memory=Memory(weights, tuple(more))), Position(*values["position"]), history, values["draws"])
