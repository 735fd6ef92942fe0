"""One member of a run: what is kept of it, why it trains no longer, and how that is written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cfiv.errors import DataError, SingularError
from cfiv.file_values import choice, fields, listed, number, texts, whole
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.loop import DivergedError, Ended
from cfiv.tensor_file import short

#: Rows were finite when training began, so what these say of them is about features that no longer are.
FAILURES = (SingularError, DataError, DivergedError)


class Member:
    """What is kept of one member, and why it trains no longer.

    Parameters
    ----------
    stopping : EarlyStopping
    limit : float
        Above which the last of its training losses has diverged.
    """

    def __init__(self, stopping: EarlyStopping, *, limit: float) -> None:
        self.stopping, self._limit = stopping, limit
        self._history: list[dict[str, Any]] = []
        self.ended: Ended | None = None
        self.reason = self.why = ""

    @property
    def kept(self) -> Checkpoint | None:
        """The state to report; None where there was no check."""
        return self.stopping.kept

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record a check: ``step``, mean training losses since the last one, what was noted, and ``kept``."""
        return [record | {"kept": self.kept is not None and record["step"] == self.kept.step} for record in self._history]

    def look(
        self, step: int, *, losses: Mapping[str, Tensor], judge: Callable[[], tuple[Checkpoint, dict[str, float]]]
    ) -> None:
        """Take the state after a step into account, by the training losses (k,) since the last look and a judgement."""
        means = _mean_losses(losses, limit=self._limit, last=step)
        now, notes = judge()
        self.stopping.add(now)
        self._history.append({"step": step, **means, **notes})
        if self.stopping.exhausted:
            self.ended = "stopped early"

    @contextmanager
    def surviving(self, step: int, *, steps: int) -> Iterator[None]:
        """Failures inside end this member alone."""
        try:
            yield
        except FAILURES as error:
            self.diverge(step, error, steps=steps)

    def diverge(self, step: int, error: Exception, *, steps: int) -> None:
        """End, with what is kept."""
        self.ended, self.reason, self.why = "diverged", f"training diverged at step {step} of {steps}", f" ({error})"

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs, in nested values."""
        stopping = self.stopping
        return {
            "ended": self.ended,
            "reason": [self.reason, self.why],
            "history": self._history,
            "best": _packed(stopping.best),
            "kept": _packed(stopping.kept),
            "risen": stopping.risen,
        }

    def restore(
        self, values: Any, *, looks: list[int], losses: Sequence[str], notes: Sequence[str], check: Callable[[Any], Checkpoint]
    ) -> None:
        """Be as saved after looks at these steps.

        Parameters
        ----------
        values : dict
        looks : list of int
        losses, notes : sequence of str
            What the history notes of each.
        check : callable
            From the values of a checkpoint to it; what it raises is one of ``tensor_file.DAMAGE``.
        """
        fields(values, "ended", "reason", "history", "best", "kept", "risen")
        ended, (reason, why), history = values["ended"], texts(values["reason"]), listed(values["history"])
        self.ended = None if ended is None else choice(ended, ("stopped early", "diverged"))
        if (reason != "") != (ended == "diverged"):
            raise ValueError(f"a member that is {short(ended)} for the reason {short(reason)}")
        if len(history) > len(looks) or (ended is None and len(history) < len(looks)):
            raise ValueError(f"{len(history)} records of {len(looks)} checks")
        for at, record in zip(looks, history, strict=False):
            fields(record, "step", *losses, *notes)
            whole(record["step"], at, at)
            for name in (*losses, *notes):
                number(record[name], finite=name in losses)
        self.reason, self.why, self._history = reason, why, history
        steps = [record["step"] for record in history]

        def state(given: Any) -> Checkpoint | None:
            if (given is None) != (not steps):
                raise ValueError("a state is kept from the first check on")
            checkpoint = None if given is None else check(given)
            if checkpoint is not None and checkpoint.step not in steps:
                raise ValueError(f"a state after step {short(checkpoint.step)}")
            return checkpoint

        self.stopping.best, self.stopping.kept = state(values["best"]), state(values["kept"])
        self.stopping.risen = whole(values["risen"], 0, self.stopping.patience)


def _packed(checkpoint: Checkpoint | None) -> list[Any] | None:
    if checkpoint is None:
        return None
    return [checkpoint.step, checkpoint.parameters, [*checkpoint.weights, *checkpoint.ridges], checkpoint.losses]


def _mean_losses(losses: Mapping[str, Tensor], *, limit: float, last: int) -> dict[str, float]:
    """Of the steps (k,) up to the last one; raises where they are not finite, or the last kind is enormous."""
    *_, bounded = losses
    bad = torch.stack([~loss.isfinite() | ((loss > limit) & (name == bounded)) for name, loss in losses.items()]).any(dim=0)
    if bool(bad.any()):
        at = int(bad.int().argmax())
        which = " and ".join(f"{name.replace('_', ' ')} was {float(loss[at]):.3g}" for name, loss in losses.items())
        finite = all(math.isfinite(float(loss[at])) for loss in losses.values())
        why = "" if finite else ", by a singular system or features that are not finite"
        raise DivergedError(f"{which} at step {last - len(bad) + at + 1}{why}")
    return {name: float(loss.mean()) for name, loss in losses.items()}
