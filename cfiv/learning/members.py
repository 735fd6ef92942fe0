"""Members that train side by side, each judged, kept and ended by itself: the run of all estimators that train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cfiv.errors import DivergenceError, TrainingWarning, warn
from cfiv.file_values import fields, listed, number, tensor_of
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.last_layer import ClosedForm, Memory, remembered_shapes
from cfiv.learning.learner import Learner
from cfiv.learning.loop import DIVERGED, Cut, DivergedError, check_steps
from cfiv.learning.member import FAILURES, Member
from cfiv.learning.optimisers import Optimiser
from cfiv.learning.run_file import draws_of, restore_draws
from cfiv.learning.samples import CHECK_ROWS, Sample, Split
from cfiv.learning.saved_state import check_draws, check_optimiser
from cfiv.learning.training import Training
from cfiv.networks.member_networks import MemberNetwork
from cfiv.runtime.digest import digest
from cfiv.runtime.processes import here

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class MemberSteps(Protocol[R_co]):
    """What members learn: their steps, and what one of them would report.

    Parameters
    ----------
    networks : list of MemberNetwork
    learners : list of Learner
    batches : iterator
        Those of all members, one a step, without end.
    memories : list of Memory or None
        What the last layers remember, (members, ...).
    losses : tuple of str
        Names of the training losses.
    """

    batches: Iterator[Any]
    memories: list[Memory | None]
    losses: ClassVar[tuple[str, ...]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Names of what the history notes of a check."""
        ...

    @property
    def advice(self) -> str:
        """What to do where a member diverges."""
        ...

    @property
    def refits(self) -> bool:
        """Whether last layers are solved once more, at the ridges of the state that is kept: those are numbers then."""
        ...

    @property
    def networks(self) -> list[MemberNetwork]:
        """All feature maps, in a fixed order."""
        ...

    @property
    def learners(self) -> list[Learner]:
        """Of all of them."""
        ...

    def step(self, number: int) -> tuple[Tensor, ...]:
        """Take step ``number`` (from 1); its losses (members,), not yet read."""
        ...

    def settle(self, place: int, *, number: int) -> None:
        """What a member does after a step, before it is judged."""
        ...

    def checkpoint(self, place: int, *, number: int) -> tuple[Checkpoint, tuple[float, ...]]:
        """A member as it would be reported now, and what the history notes of it."""
        ...

    def solved(self) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """The last layers in their order, with the shapes of their weights."""
        ...

    def report(self, place: int, member: Member) -> R_co:
        """What comes of a member: the state that is kept of it (none where there were no steps)."""
        ...

    def saved(self, place: int) -> Any:
        """What else is remembered of a member."""
        ...

    def restore(self, place: int, values: Any) -> None:
        """The reverse, checked."""
        ...


class MembersRun(Generic[R]):
    """A run of members, for :func:`cfiv.learning.loop.drive`.

    Parameters
    ----------
    steps : MemberSteps
    count : int
        How many steps.
    training : Training
        Its ``checks``, ``tolerance`` and ``patience``.
    sample : Sample
        All rows.
    splits : sequence of Split
        One a member: a loss ``DIVERGED`` times the mean square of the outcome in stage 2 has diverged.
    """

    def __init__(
        self, steps: MemberSteps[R], *, count: int, training: Training, sample: Sample, splits: Sequence[Split]
    ) -> None:
        self._steps, self._count, self._device = steps, count, sample.outcome.device
        self._checks = check_steps(count, checks=training.checks)
        self.members = [
            Member(
                EarlyStopping(tolerance=training.tolerance, patience=training.patience),
                limit=DIVERGED * float(sample.outcome[split.stage2].square().mean()),
            )
            for split in splits
        ]
        if here().count > 1:
            parts = (sample.outcome, sample.treatment, sample.instruments, sample.covariates, sample.weights)
            rows = (part for split in splits for part in (split.stage1, split.stage2, split.heldout))
            weights = (parameter for network in steps.networks for parameter in network.parameters)
            here().check_alike("data, steps and seeds", digest([*parts, *rows, *weights]), count)
        self._held_out = [0 if split.heldout is None else min(len(split.heldout), CHECK_ROWS) for split in splits]
        self._losses: list[tuple[Tensor, ...]] = []

    def over(self) -> bool:
        """Whether all members have ended."""
        return not self._active()

    def step(self, number: int) -> None:
        """Take step ``number`` (from 1); what fails for all members at once ends them all."""
        try:
            self._losses.append(self._steps.step(number))
        except FAILURES as error:
            for _, member in self._active():
                member.diverge(number, error, steps=self._count)
            return
        for place, member in self._active():
            with member.surviving(number, steps=self._count):
                self._steps.settle(place, number=number)

    def look(self, number: int) -> None:
        """Judge all members as they would be reported now, at every check."""
        if number not in self._checks:
            return
        together = [torch.stack(losses) for losses in zip(*self._losses, strict=True)]
        self._losses = []
        for place, member in self._active():
            losses = {name: loss[:, place] for name, loss in zip(self._steps.losses, together, strict=True)}
            with member.surviving(number, steps=self._count):
                member.look(number, losses=losses, judge=partial(self._judge, place, number=number))

    def cut(self, number: int, *, ended: Cut, during: int) -> None:
        """End all members with what is kept of them, at least the present."""
        for place, member in self._active():
            with member.surviving(number, steps=self._count):
                if member.kept is None:
                    member.stopping.add(self._judge(place, number=number)[0])
                member.ended, member.reason = ended, f"training was interrupted at step {during} of {self._count}"

    def conclude(self) -> list[R | DivergenceError]:
        """What comes of the members; an error in the place of one that diverged before any usable state.

        Warns
        -----
        TrainingWarning
            Where others diverged or were interrupted; the state kept is usable.
        """
        advice = {"diverged": f"; {self._steps.advice}", "interrupted": ""}
        kept: dict[str, set[int]] = {}
        for member in self.members:
            if member.ended in advice and member.kept is not None:
                kept.setdefault(member.reason + member.why + advice[member.ended], set()).add(member.kept.step)
        for what, steps in kept.items():
            states = " and ".join(map(str, sorted(steps)))
            one = len(steps) == 1
            warn(
                f"{what}; the state{'' if one else 's'} of step {states} {'is' if one else 'are'} kept and usable",
                TrainingWarning,
            )
        return [
            DivergenceError(
                f"{member.reason} before any usable state{member.why}: {self._steps.advice}, or check the data for extreme "
                "values"
            )
            if member.kept is None and member.ended == "diverged"
            else self._steps.report(place, member)
            for place, member in enumerate(self.members)
        ]

    def saved(self) -> dict[str, Any]:
        """The networks, what last layers and members remember, and the generators."""
        steps, places = self._steps, range(len(self.members))
        return {
            "networks": [[network.state(place) for place in places] for network in steps.networks],
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers()],
            "memories": [None if memory is None else [memory.weights, *memory.more] for memory in steps.memories],
            "losses": [list(losses) for losses in self._losses],
            "members": [member.saved() | {"more": steps.saved(place)} for place, member in enumerate(self.members)],
            "draws": draws_of(self._device),
        }

    def restore(self, values: dict[str, Any], *, done: int) -> None:
        """Go where the run was after ``done`` steps. Their batches are drawn again."""
        fields(values, "networks", "optimisers", "memories", "losses", "members", "draws")
        steps, count, device = self._steps, len(self.members), self._device
        draws = check_draws(values["draws"], device)
        for network, states in zip(steps.networks, listed(values["networks"]), strict=True):
            for place, state in enumerate(listed(states, count=count)):
                network.put(place, network.check(state))
        for optimiser, kept in zip(self._optimisers(), listed(values["optimisers"]), strict=True):
            optimiser.load_state_dict(check_optimiser(kept, optimiser))
        memories: list[Memory | None] = []
        for kept, (layer, shape) in zip(listed(values["memories"]), steps.solved(), strict=True):
            weights, *more = listed(kept)
            tensor_of(weights, (count, *shape), torch.float64, finite=False)
            shapes = remembered_shapes(layer, weights[0])
            for part, own in zip(more, [part.shape[1:] for part in more] if shapes is None else shapes, strict=True):
                tensor_of(part, (count, *own), part.dtype if shapes is None else torch.float64, finite=False)
            memories.append(Memory(weights.to(device), tuple(part.to(device) for part in more)))
        steps.memories = memories
        looks = sorted(at for at in self._checks if 0 < at <= done)
        for place, kept in enumerate(listed(values["members"], count=count)):
            rest = dict(kept)
            steps.restore(place, rest.pop("more"))
            self.members[place].restore(
                rest, looks=looks, losses=steps.losses, notes=steps.notes, check=partial(self._check, place)
            )
        for record in listed(values["losses"], count=done - max(looks, default=0)):
            parts = listed(record, count=len(steps.losses))
            self._losses.append(tuple(tensor_of(part, (count,), part.dtype, finite=False).to(device) for part in parts))
        for _ in range(done):
            next(steps.batches)
        restore_draws(draws, device)

    def _judge(self, place: int, *, number: int) -> tuple[Checkpoint, dict[str, float]]:
        if not all(network.finite(place) for network in self._steps.networks):  # no solve would notice
            raise DivergedError("the networks' weights are not finite")
        now, notes = self._steps.checkpoint(place, number=number)
        return now, dict(zip(self._steps.notes, notes, strict=True))

    def _check(self, place: int, values: Any) -> Checkpoint:
        """A member's state from a file, if it can be one of these networks and last layers."""
        step, parameters, last_layers, losses = listed(values, count=4)
        states = [network.check(state) for network, state in zip(self._steps.networks, listed(parameters), strict=True)]
        shapes = [shape for _, shape in self._steps.solved()]
        layers, rows = listed(last_layers, count=2 * len(shapes)), (self._held_out[place],)
        weights = (tensor_of(w, shape, torch.float64).to(self._device) for w, shape in zip(layers, shapes, strict=False))
        ridges = (number(ridge, finite=self._steps.refits) for ridge in layers[len(shapes) :])
        heldout = tensor_of(losses, rows, torch.float64).to(self._device)
        return Checkpoint(step, states, tuple(weights), tuple(ridges), heldout)

    def _optimisers(self) -> list[Optimiser]:
        return [learner.optimiser for learner in self._steps.learners if learner.optimiser is not None]

    def _active(self) -> list[tuple[int, Member]]:
        return [(place, member) for place, member in enumerate(self.members) if member.ended is None]
