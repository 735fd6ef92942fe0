"""Functions that are fitted and averaged: the rows, networks and random numbers of each, and which of them train together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from cfiv.errors import DivergenceError, TrainingWarning, warn
from cfiv.estimators.standardised import StandardisedData
from cfiv.learning import networks as nets
from cfiv.learning.build import NetworkSpec, build
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.member_networks import can_be_stacked
from cfiv.learning.samples import Split, batch_rows, split_rows
from cfiv.runtime.draws import Draws
from cfiv.runtime.module_state import cast
from cfiv.runtime.processes import here

#: Members that train side by side at most: more take as long as one after another.
TOGETHER = 16
F = TypeVar("F")


@dataclass(frozen=True)
class PlannedMember:
    """One of the functions that are averaged.

    Parameters
    ----------
    fit : int
    swapped : bool
        Whether the samples have swapped roles.
    split : Split
    batch_size : int or None
    networks : list of Module
    batches : Generator
        Source of its batches.
    draws : Draws
        What its networks draw from.
    part : int
        Of the parts of the rows that are estimated apart.
    """

    fit: int
    swapped: bool
    split: Split
    batch_size: int | None
    networks: list[nn.Module]
    batches: np.random.Generator
    draws: Draws
    part: int = 0


def plan_member(
    problem: StandardisedData,
    number: int,
    generator: np.random.Generator,
    *,
    holdout: float,
    batch_size: int | str | None,
    networks: Callable[[], list[nn.Module]],
    auto: int = 128,
) -> PlannedMember:
    """A member that trains on all rows but those held out, for an estimator that splits no samples.

    Parameters
    ----------
    problem : StandardisedData
    number : int
    generator : Generator
        Of the held-out rows, the batches, and what ``networks`` draws.
    holdout : float
        Share of the rows; none are held out where that leaves fewer than two on either side.
    batch_size : int, "auto" or None
    networks : callable
        Makes the networks, freshly drawn.
    auto : int
        Rows of a batch that "auto" stands for.
    """
    split_generator, batches, network_generator = generator.spawn(3)
    rows = len(problem.sample)
    heldout, train = None, torch.arange(rows)
    if min(round(holdout * rows), rows - round(holdout * rows)) >= 2:
        heldout, train = split_rows(rows, share=float(holdout), generator=split_generator, clusters=problem.clusters)
    draws = Draws(int(network_generator.integers(2**62)), problem.device)
    with draws.here(other_code=True):
        made = networks()
    for network in made:
        cast(network, problem.sample.outcome.dtype, device=problem.device)
    size = batch_rows(batch_size, smallest_sample=len(train), auto=auto)
    return PlannedMember(number, False, Split(train, train, heldout), size, made, batches, draws)


def structural_networks(problem: StandardisedData, *, treatment: NetworkSpec, covariate: NetworkSpec) -> list[nn.Module]:
    """``psi`` and, with covariates, ``xi``, of such a problem."""
    sample = problem.sample
    psi = build(treatment, shape=sample.treatment.shape[1:], default=nets.treatment_network, role="treatment")
    made = [problem.on_stored(psi)]
    if sample.covariates is not None:
        shape = sample.covariates.shape[1:]
        made.append(build(covariate, shape=shape, default=nets.covariate_network, role="covariate"))
    return made


def instrument_network(problem: StandardisedData, *, instrument: NetworkSpec) -> nn.Module:
    """``phi`` of such a problem."""
    shape = problem.sample.instruments.shape[1:]
    return build(instrument, shape=shape, default=nets.instrument_network, role="instrument")


def group_members(members: Sequence[PlannedMember]) -> Iterator[list[PlannedMember]]:
    """Members that train together: all with plain networks and equal batches, at most ``TOGETHER``; others one by one."""
    sizes = {(len(m.split.stage1), len(m.split.stage2)) if m.batch_size is None else m.batch_size for m in members}
    alike = zip(*(member.networks for member in members), strict=True)
    together = len(sizes) == 1 and all(can_be_stacked(networks) for networks in alike)
    size = TOGETHER if together else 1
    for start in range(0, len(members), size):
        yield list(members[start : start + size])


def fit_members(
    members: Sequence[PlannedMember],
    fit: Callable[[list[PlannedMember], str], Sequence[F | DivergenceError]],
    deadline: Deadline = NEVER,
) -> tuple[list[tuple[PlannedMember, F]], bool]:
    """Fit all members, group by group, until one is interrupted or the time is over; those that diverged are left out.

    Parameters
    ----------
    members : sequence of PlannedMember
    fit : callable
        From members that train together, and the name of their run file, to what comes of each.
    deadline : Deadline, optional
        No group but the first is begun after it.

    Returns
    -------
    fitted : list of (PlannedMember, fit)
        At least one.
    interrupted : bool

    Raises
    ------
    DivergenceError
        If the first diverged before any usable state.
    KeyboardInterrupt
        If training was interrupted before the first step.

    Warns
    -----
    TrainingWarning
        Where one is left out.
    """
    outcomes: list[F | DivergenceError] = []
    interrupted = False
    for number, together in enumerate(group_members(members), start=1):
        try:
            outcomes += fit(together, f"fits-{number}")
        except KeyboardInterrupt:
            if not outcomes or here().count > 1:
                raise
            interrupted = True
            what = f"training was interrupted before the first step of fit {len(outcomes) + 1}"
            warn(f"{what}; what was fitted before is kept and usable", TrainingWarning)
        interrupted = interrupted or any(getattr(outcome, "ended", None) == "interrupted" for outcome in outcomes)
        if interrupted or deadline.passed():
            break
    if isinstance(outcomes[0], DivergenceError):
        raise outcomes[0]
    for outcome in outcomes:
        if isinstance(outcome, DivergenceError):
            warn(f"a fit is left out of the average: {outcome}", TrainingWarning)
    pairs = zip(members, outcomes, strict=False)
    return [(member, outcome) for member, outcome in pairs if not isinstance(outcome, DivergenceError)], interrupted
