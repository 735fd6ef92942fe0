"""A supervised fit under way: steps, checks on validation data, whoever watches, and an end that loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from cfiv.errors import DivergenceError, SingularError, TrainingWarning, warn
from cfiv.file_values import fields, listed, tensor_of, whole
from cfiv.learning.deadline import Deadline
from cfiv.learning.last_layer import Memory, remembered_shapes
from cfiv.learning.loop import Cut, DivergedError, Ended, drive
from cfiv.learning.run_file import RunFile, described, draws_of, restore_draws, without_addresses
from cfiv.learning.saved_state import check_draws, check_generator, check_optimiser
from cfiv.learning.schedules import Schedules
from cfiv.learning.solving import describe_layer
from cfiv.networks.saved_networks import check_module
from cfiv.runtime.draws import watched
from cfiv.runtime.module_state import put, state_of
from cfiv.supervised.evaluation import place
from cfiv.supervised.examples import Examples
from cfiv.supervised.last_finite import LastFinite
from cfiv.supervised.passes import Position, draw_batches
from cfiv.supervised.sources import Source
from cfiv.supervised.step import Recipe, TrainerState, step
from cfiv.supervised.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one fit is asked to do: so many steps in all, before a moment, with draws from a seed; ``on_step`` watches."""

    recipe: Recipe
    schedules: Schedules
    steps: int
    seed: int
    on_step: Callable[[int, float], object] | None
    deadline: Deadline


class SupervisedRun:
    """The steps of one fit, for :func:`cfiv.learning.loop.drive`; its state moves on with every one.

    Parameters
    ----------
    source : Source
    state : TrainerState
    plan : Plan
    file : RunFile, optional
        Where it is saved.
    validation : Validation, optional

    Attributes
    ----------
    history : list of (pass, loss)
        One a step.
    ended : {"finished", "stopped early", "diverged", "interrupted", "out of time"}
    """

    def __init__(
        self, source: Source, state: TrainerState, plan: Plan, *, file: RunFile | None, validation: Validation | None
    ) -> None:
        self._source, self._state, self._plan, self._file, self._validation = source, state, plan, file, validation
        self._device = state.head.device
        self._peaks = [] if state.optimiser is None else [group["lr"] for group in state.optimiser.param_groups]
        self._last_finite = LastFinite(state.head.module)
        self._position = Position()
        self._batches = draw_batches(source, self._position, seed=plan.seed, device=self._device)
        self._began = 1
        self.history: list[tuple[int, float]] = []
        self.ended: Ended = "finished"

    def train(self) -> None:
        """Drive it to its end, or to an earlier one, and leave the state to keep in the module.

        Call it with the module in training mode and in a block of :class:`cfiv.runtime.draws.Draws`.

        Raises
        ------
        DataError, ParameterError, ModelFileError, OutputError
            From the data, the targets, the checkpoint.
        DivergenceError
            If the first step fails before validation has kept a state; the module is left as it was.
        KeyboardInterrupt
            If it was interrupted before the first step was done.

        Warns
        -----
        TrainingWarning
            Where it was interrupted or diverged.
        """
        try:
            drive(self, steps=self._plan.steps, file=self._file, deadline=self._plan.deadline)
        except DivergedError as error:
            what = f"training stopped at step {self._began} of {self._plan.steps}: {error}"
            advice = "lower the learning rate, raise the penalties, or check the data"
            if not self._last_finite.go_back() and self._kept_step is None:
                raise DivergenceError(f"{what}; {advice}") from error
            self.ended = "diverged"
            warn(f"{what}; {self._say_kept('the last state with a finite loss is kept')}; {advice}", TrainingWarning)
        if self._validation is not None:
            self._validation.leave()

    def over(self) -> bool:
        """Whether it has ended before its last step."""
        return self.ended != "finished"

    def step(self, number: int) -> None:
        """Take step ``number`` (from 1); raises a DivergedError where its loss is not finite or its solve fails."""
        plan, self._began = self._plan, number
        self._position, batch = next(self._batches)
        with self._last_finite.keep():
            self._set_rates(plan.schedules.rate(number - 1, steps=plan.steps))
            pull = plan.schedules.penalty(number - 1, steps=plan.steps)
            try:
                self._state, loss = step(place(batch, self._state.head.module), self._state, recipe=plan.recipe, pull=pull)
            except (DivergenceError, SingularError) as error:
                raise DivergedError(str(error)) from error
            self.history.append((self._position.epoch, loss))

    def look(self, number: int) -> None:
        """Check what step ``number`` has left, where it is to last or to be judged; then tell whoever watches."""
        validation = self._validation if self._validation is not None and self._validation.is_due(number) else None
        saved = self._file is not None and number % self._file.every == 0
        if saved or validation is not None or number == self._plan.steps:
            self._last_finite.check()
        if validation is not None:
            validation.look(number)
            self.ended = "stopped early" if validation.exhausted else "finished"
        if self._plan.on_step is not None:  # what they draw is undrawn
            draws = draws_of(self._device)
            with watched():
                self._plan.on_step(number, self.history[-1][1])
            restore_draws(draws, self._device)

    def cut(self, number: int, *, ended: Cut, during: int) -> None:
        """End with what is kept, after step ``number`` or in the one that follows it."""
        self.ended = ended
        if ended == "out of time":  # as was asked
            return
        what = f"training was interrupted at step {during} of {self._plan.steps}"
        warn(f"{what}; {self._say_kept('what it had reached is kept and usable')}", TrainingWarning)

    def saved(self) -> dict[str, Any]:
        """The state, its place in the data, losses, generators, and what validation remembers."""
        state, position = self._state, self._position
        return {
            "module": state_of(state.head.module),
            "optimiser": None if state.optimiser is None else state.optimiser.state_dict(),
            "memory": [state.memory.weights, *state.memory.more],
            "position": [position.epoch, position.taken, position.generator],
            "draws": draws_of(self._device),
            "epochs": torch.tensor([epoch for epoch, _ in self.history]),
            "losses": torch.tensor([loss for _, loss in self.history], dtype=torch.float64),
            "validation": None if self._validation is None else self._validation.saved(),
        }

    def restore(self, values: dict[str, Any], *, done: int) -> None:
        """Go where the run was after ``done`` steps; nothing is touched before all is known to fit."""
        fields(values, *self.saved())
        plan, state = self._plan, self._state
        check_module(values["module"], state.head.module, finite=True)
        optimiser = values["optimiser"]
        if (optimiser is None) != (state.optimiser is None):
            raise ValueError("an optimiser where nothing learns, or none")
        if state.optimiser is not None:
            optimiser = check_optimiser(optimiser, state.optimiser)
        memory = self._check_memory(values["memory"])
        epochs = tensor_of(values["epochs"], (done,), torch.int64).tolist()
        losses = tensor_of(values["losses"], (done,), torch.float64).tolist()
        position, draws = self._check_position(values["position"], epochs), check_draws(values["draws"], self._device)
        if (values["validation"] is None) != (self._validation is None):
            raise ValueError("losses on validation data where there are none, or none")
        if self._validation is not None:
            self._validation.restore(values["validation"], done=done)
            self.ended = "stopped early" if self._validation.exhausted else "finished"
        put(state.head.module, values["module"])
        if state.optimiser is not None:
            state.optimiser.load_state_dict(optimiser)
        self._state, self._position = replace(state, memory=memory), position
        self._batches = draw_batches(self._source, position, seed=plan.seed, device=self._device, draws=draws)
        self.history = list(zip(epochs, losses, strict=True))

    def _check_memory(self, values: Any) -> Memory:
        weights, *more = listed(values)
        fresh = self._state.memory.weights
        tensor_of(weights, fresh.shape, torch.float64)
        shapes = remembered_shapes(self._plan.recipe.last_layer, weights)
        for part, shape in zip(more, [part.shape for part in more] if shapes is None else shapes, strict=True):
            tensor_of(part, shape, part.dtype if shapes is None else torch.float64)
        return Memory(weights.to(fresh.device), tuple(part.to(fresh.device) for part in more))

    def _check_position(self, values: Any, epochs: list[int]) -> Position:
        """The place in the last of these passes, one a step."""
        if epochs[0] != 0 or any(later - epoch not in (0, 1) for epoch, later in pairwise(epochs)):
            raise ValueError("passes that do not follow one another")
        epoch, taken, generator = listed(values, count=3)
        whole(epoch, epochs[-1], epochs[-1])
        whole(taken, epochs.count(epoch), epochs.count(epoch))
        own = self._source.generator
        if (generator is None) != (own is None):
            raise ValueError(
                f"the loader has {'a' if generator is None else 'no'} generator of its own, that of the run not so"
            )
        if own is not None:
            check_generator(generator, own.device)
        return Position(epoch=epoch, taken=taken, generator=generator)

    def _set_rates(self, factor: float) -> None:
        """Every learning rate to a fraction of its peak."""
        if self._state.optimiser is not None:
            for group, peak in zip(self._state.optimiser.param_groups, self._peaks, strict=True):
                group["lr"] = factor * peak

    def _say_kept(self, otherwise: str) -> str:
        """Which state stays in the module: what validation keeps, before its first check something else."""
        return otherwise if self._kept_step is None else f"the state of step {self._kept_step} is kept and usable"

    @property
    def _kept_step(self) -> int | None:
        return None if self._validation is None else self._validation.kept_step


def describe_run(
    source: Source, first: Examples, state: TrainerState, plan: Plan, validation: Validation | None
) -> dict[str, Any]:
    """What has to be the same for a run to go on; ``first`` is a batch of the source."""
    module, recipe = state.head.module, plan.recipe
    return {
        **described(module),
        "trained": [name for name, parameter in module.named_parameters() if parameter.requires_grad],
        "last_module": state.head.name,
        "last_layer": describe_layer(recipe.last_layer),
        "optimizer": without_addresses(state.optimiser),
        "order": recipe.order,
        "task": repr(recipe.task),
        "loss": recipe.loss,
        **plan.schedules.describe(plan.steps),
        "mixed_precision": bool(recipe.mixed_precision),
        "random_state": plan.seed,
        "data": source.description,
        "values of the data": source.contents(first),
        "validation": None if validation is None else validation.describe(),
        "steps": plan.steps,
        "torch": torch.__version__,
    }
