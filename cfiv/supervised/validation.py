"""Validation of a supervised run: losses on examples that the gradients never see, and the state that they keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfiv.errors import DataError
from cfiv.file_values import fields, listed, tensor_of, whole
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.loop import DivergedError, check_steps
from cfiv.learning.training import Training
from cfiv.networks.saved_networks import check_module
from cfiv.runtime.digest import digest
from cfiv.runtime.draws import Draws
from cfiv.runtime.module_state import put, state_of
from cfiv.supervised.evaluation import squared_errors
from cfiv.supervised.examples import Examples
from cfiv.supervised.last_linear_map import LastLinearMap
from cfiv.supervised.tasks import Task


class Validation:
    """What a run is judged by at its checks, and the state that is kept: see :class:`EarlyStopping`.

    Parameters
    ----------
    batches : sequence of Examples
        The same at every check.
    head : LastLinearMap
    task : Task
    rule : Training
        Its ``checks``, ``tolerance`` and ``patience``.
    steps : int
        Of the run.
    seed : int
        Of what the module may draw in evaluation mode, the same at every check; the run's own draws go on undisturbed.

    Attributes
    ----------
    losses : dict
        From the steps after which a check took place to the loss.

    Raises
    ------
    DataError
        If the module does not take the examples.
    """

    def __init__(
        self, batches: Sequence[Examples], head: LastLinearMap, task: Task, *, rule: Training, steps: int, seed: int
    ) -> None:
        self._batches, self._head, self._task, self._rule, self._seed = batches, head, task, rule, seed
        self._checks = check_steps(steps, checks=rule.checks)
        self._stopping = EarlyStopping(tolerance=rule.tolerance, patience=rule.patience)
        self.losses: dict[int, float] = {}
        if head.processes.count > 1:
            head.processes.check_alike("validation data", self.describe())
        self._examples = len(self._squared_errors())  # before any step, for whatever the module does not take

    @property
    def kept_step(self) -> int | None:
        """The step whose state is kept; None before the first check."""
        return None if self._stopping.kept is None else self._stopping.kept.step

    @property
    def exhausted(self) -> bool:
        """Whether the loss has risen for good."""
        return self._stopping.exhausted

    def describe(self) -> dict[str, Any]:
        """What tells it from another."""
        values = digest([part for batch in self._batches for part in batch.parts()])
        rule = self._rule
        return {"values": values, "checks": rule.checks, "tolerance": rule.tolerance, "patience": rule.patience}

    def is_due(self, number: int) -> bool:
        """Whether a check follows this step."""
        return number in self._checks

    def look(self, number: int) -> None:
        """Take the state after a step into account; raises a DivergedError where its outputs are not finite."""
        try:
            errors = self._squared_errors()
        except DataError as error:
            raise DivergedError(f"on the validation data {error}") from error
        if not bool(torch.isfinite(errors).all()):
            raise DivergedError("squared errors on the validation data are not finite")
        now = Checkpoint(number, [state_of(self._head.module)], (), (), errors)
        self._stopping.add(now)
        self.losses[number] = now.loss

    def leave(self) -> None:
        """Put the state that is kept into the module, once there is one."""
        if self._stopping.kept is not None:
            put(self._head.module, self._stopping.kept.parameters[0])

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs; of the best state its errors only, which is all that others are compared with."""
        best, kept = self._stopping.best, self._stopping.kept
        return {
            "losses": list(self.losses.values()),
            "best": None if best is None else [best.step, best.losses],
            "kept": None if kept is None else [kept.step, kept.losses, kept.parameters[0]],
            "risen": self._stopping.risen,
        }

    def restore(self, values: Any, *, done: int) -> None:
        """Be as saved after ``done`` steps; raises one of ``tensor_file.DAMAGE``, and then is as before."""
        fields(values, *self.saved())
        looks = sorted(step for step in self._checks if 0 < step <= done)
        losses = tensor_of(torch.tensor(listed(values["losses"]), dtype=torch.float64), (len(looks),), torch.float64)
        best, kept = self._read(values["best"], looks, states=0), self._read(values["kept"], looks, states=1)
        risen = whole(values["risen"], 0, self._rule.patience)
        self.losses = dict(zip(looks, losses.tolist(), strict=True))
        self._stopping.best, self._stopping.kept, self._stopping.risen = best, kept, risen

    def _read(self, values: Any, looks: Sequence[int], *, states: int) -> Checkpoint | None:
        """A state of one of these steps."""
        if (values is None) != (not looks):
            raise ValueError("a state is kept from the first check on")
        if values is None:
            return None
        step, errors, *given = listed(values, count=2 + states)
        if step not in looks:
            raise ValueError(f"a state after another step than {looks}")
        tensor_of(errors, (self._examples,), torch.float64)
        parameters = [check_module(state, self._head.module, finite=True) for state in given]
        return Checkpoint(step, parameters, (), (), errors.to(self._head.device))

    def _squared_errors(self) -> Tensor:
        with Draws(self._seed, self._head.device).here(self._head.module):
            return squared_errors(self._head, self._task, self._batches)
