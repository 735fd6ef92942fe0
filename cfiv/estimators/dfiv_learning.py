"""DFIV's functions, learned: the members planned, trained side by side, and sorted by the parts of the rows they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from cfiv.data import Array, IVData
from cfiv.errors import DivergenceError
from cfiv.estimators.budget import number_of_fits, rate_of_long_runs, training_batch, training_steps
from cfiv.estimators.dfiv_settings import last_layers, swaps, training_options, unpredicted_penalty
from cfiv.estimators.estimator import warn_of_learned_constant
from cfiv.estimators.few_instruments import warn_if_few_instruments
from cfiv.estimators.fit_members import fit_members
from cfiv.estimators.parameters import learning_rates, per_network
from cfiv.estimators.planned_members import (
    DEFAULT_NETWORKS,
    DefaultNetworks,
    PlannedMember,
    build_networks,
    in_two_samples,
    plan_member,
)
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.standardised import StandardisedData
from cfiv.estimators.units import check_units
from cfiv.learning.deadline import Deadline
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample
from cfiv.networks.default_networks import dfiv_instrument_network
from cfiv.networks.feature_maps import Networks
from cfiv.objectives.dfiv_fit import fit_dfiv
from cfiv.objectives.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.processes import here
from cfiv.terminal import progress_bar

if TYPE_CHECKING:
    from cfiv.estimators.dfiv import DFIV

NETWORKS: DefaultNetworks = {**DEFAULT_NETWORKS, "instrument": dfiv_instrument_network}


@dataclass(frozen=True, eq=False)
class LearnedPart:
    """What was learned of a part of the rows.

    Parameters
    ----------
    problem : StandardisedData
        All rows.
    part : array of int or None
        Row numbers; None for all.
    members : list of PlannedMember
    fits : list of TwoStageFit
        One a member.
    steps : int
    interrupted : bool
    generator : Generator
        For what comes after.
    """

    problem: StandardisedData
    part: Array | None
    members: list[PlannedMember]
    fits: list[TwoStageFit]
    steps: int
    interrupted: bool
    generator: np.random.Generator


def learn_parts(
    model: DFIV,
    data: IVData,
    parts: Sequence[Array | None],
    seeds: Sequence[Any],
    *,
    fits: int,
    intercept: bool,
    runs: SavedRuns | None = None,
) -> list[LearnedPart]:
    """Learn so many splits of each part of the rows (None: all), each from its seed, all of them side by side."""
    check_units(data)
    if not intercept:
        warn_of_learned_constant(model)
    double = training_options(model).double
    problem = StandardisedData.prepare(data, device=resolve_device(model.device), double=double, standardise=model.standardise)
    members, generators = [], []
    for number, (part, seed) in enumerate(zip(parts, seeds, strict=True)):
        *own, last = np.random.default_rng(seed).spawn(fits * len(swaps(model)) + 1)
        members += plan_members(model, problem, own[:fits], part=part, number=number)
        generators.append(last)
    warn_if_few_instruments(problem, members[0].networks[0])
    rows = max(len(data) if part is None else len(part) for part in parts)
    steps, deadline = training_steps(model.steps, rows=rows), Deadline.after(model.max_seconds)
    with progress_bar(steps * len(members), description="DFIV", unit="step", shown=model.progress and here().first) as bar:
        train = partial(train_together, model, problem.sample, steps=steps, deadline=deadline)
        fitted, interrupted = fit_members(problem, members, train, runs=runs, on_step=bar.update, deadline=deadline)
    problem.release()
    learned = []
    for number, (part, generator) in enumerate(zip(parts, generators, strict=True)):
        own_fits = [(member, one.cpu()) for member, one in fitted if member.part == number]
        if not own_fits:
            raise DivergenceError(
                f"nothing was learned of part {number + 1} of {len(parts)} of the rows: training diverged, was "
                "interrupted, or its time was over; give more max_seconds, or a lower learning_rate"
            )
        there, found = map(list, zip(*own_fits, strict=True))
        learned.append(LearnedPart(problem, part, there, found, steps, interrupted, generator))
    return learned


def plan_members(
    model: DFIV, problem: StandardisedData, generators: Sequence[np.random.Generator], *, part: Array | None, number: int
) -> list[PlannedMember]:
    """Every function to be averaged of a part: its rows, networks and random numbers; of each split a generator."""
    options, members = training_options(model), list[PlannedMember]()
    rows, images = len(problem.sample) if part is None else len(part), problem.sample.treatment.ndim > 2
    fits = number_of_fits(model.fits, rows=rows, images=images)
    batch = partial(training_batch, model.batch_size, rows=rows, fits=fits, images=images)

    def networks() -> list[nn.Module]:
        specs = {"treatment": model.treatment_network, "instrument": model.instrument_network}
        return build_networks(problem, defaults=NETWORKS, **specs, covariate=model.covariate_network)

    for fit, generator in enumerate(generators):
        of_split, *own = generator.spawn(1 + len(swaps(model)))
        samples = in_two_samples(problem, of_split, share=options.split, holdout=options.holdout, part=part)
        for swapped, its, split in zip(swaps(model), own, samples, strict=False):
            members.append(
                plan_member(problem, fit, its, rows=split, batch=batch, networks=networks, swapped=swapped, part=number)
            )
    return members


def train_together(
    model: DFIV,
    sample: Sample,
    together: Sequence[PlannedMember],
    *,
    on_step: Callable[[], object],
    file: Callable[..., RunFile | None],
    steps: int,
    deadline: Deadline,
) -> list[TwoStageFit | DivergenceError]:
    """What comes of members that train side by side; see :class:`cfiv.estimators.fit_members.Train`."""
    images = sample.treatment.ndim > 2
    problem = DFIVProblem(
        sample=sample,
        splits=tuple(member.split for member in together),
        structure=model.structure,
        layers=last_layers(model),
        ridge1=float(model.ridge1),
        ridge2=float(model.ridge2),
        unpredicted_penalty=unpredicted_penalty(model, images=images),
        steps=steps,
        batch_size=together[0].batch_size,
        learning_rate=learning_rates(model.learning_rate, images=images, factor=rate_of_long_runs(steps)),
        weight_decay=per_network("weight_decay", model.weight_decay),
        report=model.report,
        training=training_options(model),
    )
    return fit_dfiv(
        problem,
        [Networks.of(member.networks) for member in together],
        generators=[member.batches for member in together],
        on_step=on_step,
        deadline=deadline,
        file=file(),
    )
