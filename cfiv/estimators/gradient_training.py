"""What estimators that descend an objective have in common: hyper-parameters, members trained, functions put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from torch import nn

from cfiv.checks import check_choice, check_flag, check_number, check_random_state, check_whole
from cfiv.data import IVData
from cfiv.errors import DivergenceError
from cfiv.estimators.estimator import Estimate, warn_of_learned_constant
from cfiv.estimators.fit_members import fit_members
from cfiv.estimators.parameters import learning_rates, per_network
from cfiv.estimators.planned_members import PlannedMember, in_all_rows, plan_member
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.standardised import ReducedFormFit, StandardisedData
from cfiv.estimators.units import check_units
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.gradient_steps import GradientFit, GradientProblem, Objective, fit_gradient
from cfiv.learning.loop import Ended
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample, batch_rows, check_batch_size
from cfiv.learning.training import Training
from cfiv.networks.member_networks import MemberNetwork
from cfiv.networks.stacked_networks import member_network
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.dfiv_step import PerNetwork
from cfiv.objectives.regression import RegressionFit
from cfiv.objectives.structural_networks import structural_weights
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.processes import here
from cfiv.terminal import progress_bar

#: States of these runs are compared twice as often as DFIV's: a look costs little beside so many steps.
LOOKS = Training(checks=20, patience=6)


@dataclass(frozen=True)
class TrainedFunction:
    """One of the functions that are averaged.

    Parameters
    ----------
    networks : list of Module
        ``[psi, xi, u]``, see :mod:`cfiv.objectives.structural_networks`.
    reduced_form : ReducedFormFit
    heldout_loss : float
        Of stage 2, nan without held-out rows.
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "interrupted", "diverged"}
    """

    networks: list[nn.Module]
    reduced_form: ReducedFormFit
    heldout_loss: float
    history: list[dict[str, Any]]
    ended: Ended


class Descending(Protocol):
    """The hyper-parameters that these have in common."""

    structure: Structure
    batch_size: int | str | None
    steps: int
    learning_rate: float | PerNetwork | Literal["auto"]
    weight_decay: float | PerNetwork
    standardise: bool
    holdout: float
    fits: int
    device: str
    progress: bool
    random_state: int | np.random.Generator | None


class Trainable(Descending, Protocol):
    """An estimator all of whose layers take gradient steps, with what it does with planned members."""

    def _networks(self, problem: StandardisedData) -> list[nn.Module]:
        """Those of a member, freshly drawn."""
        ...

    def _train(
        self,
        problem: StandardisedData,
        together: Sequence[PlannedMember],
        *,
        on_step: Callable[[], object],
        file: Callable[..., RunFile | None],
    ) -> list[TrainedFunction | DivergenceError]:
        """See :class:`cfiv.estimators.fit_members.Train`."""
        ...


def check_descending(estimator: Descending) -> None:
    """Raise a ParameterError for hyper-parameters out of range."""
    check_whole("steps", estimator.steps, least=0)
    check_whole("fits", estimator.fits, least=1)
    check_choice("structure", estimator.structure, ("product", "additive"))
    check_number("holdout", estimator.holdout, least=0.0, most=0.9)
    for flag in ("standardise", "progress"):
        check_flag(flag, getattr(estimator, flag))
    check_random_state(estimator.random_state)
    learning_rates(estimator.learning_rate, images=False)
    per_network("weight_decay", estimator.weight_decay)
    resolve_device(estimator.device)
    check_batch_size(estimator.batch_size)


def train_members(
    estimator: Descending,
    sample: Sample,
    together: Sequence[PlannedMember],
    objective: Objective,
    *,
    rates_of: Sequence[int],
    on_step: Callable[[], object],
    file: RunFile | None,
    networks: slice = slice(None),
    steps: int | None = None,
    deadline: Deadline = NEVER,
    network: Callable[[Sequence[nn.Module]], MemberNetwork] = member_network,
) -> list[GradientFit | DivergenceError]:
    """Train some networks of members down an objective; ``steps`` other than the estimator's where given.

    ``rates_of`` says whose rate and decay each of the networks has: 0 for the treatment's, 1 the instruments', 2 the
    covariates'. The rest is as for :func:`cfiv.learning.gradient_steps.fit_gradient`.
    """
    rates = learning_rates(estimator.learning_rate, images=sample.treatment.ndim > 2)
    decays = per_network("weight_decay", estimator.weight_decay)
    problem = GradientProblem(
        sample=sample,
        splits=tuple(member.split for member in together),
        objective=objective,
        steps=int(estimator.steps) if steps is None else steps,
        batch_size=together[0].batch_size,
        learning_rates=tuple(rates[place] for place in rates_of),
        weight_decays=tuple(decays[place] for place in rates_of),
        training=LOOKS,
    )
    return fit_gradient(
        problem,
        [member.networks[networks] for member in together],
        generators=[member.batches for member in together],
        on_step=on_step,
        deadline=deadline,
        file=file,
        network=network,
    )


def estimate_by_gradients(
    estimator: Trainable,
    data: IVData,
    *,
    intercept: bool,
    runs: SavedRuns | None,
    stages: int,
    auto_batch: int,
    facts: dict[str, str],
) -> Estimate:
    """Plan the members, train them, and average their functions.

    Parameters
    ----------
    estimator : Trainable
    data : IVData
    intercept : bool
    runs : SavedRuns or None
    stages : int
        How many times ``steps`` a member trains.
    auto_batch : int
        Rows of a batch that "auto" stands for.
    facts : dict
        For the summary, besides those that all have.
    """
    check_units(data)
    if not intercept:
        warn_of_learned_constant(estimator)
    problem = StandardisedData.prepare(
        data, device=resolve_device(estimator.device), double=False, standardise=estimator.standardise
    )
    members = [
        plan_member(
            problem,
            number,
            generator,
            rows=in_all_rows(problem, holdout=estimator.holdout),
            batch=partial(batch_rows, estimator.batch_size, auto=auto_batch),
            networks=lambda: estimator._networks(problem),
        )
        for number, generator in enumerate(np.random.default_rng(estimator.random_state).spawn(estimator.fits))
    ]
    total = stages * estimator.steps * estimator.fits
    with progress_bar(
        total, description=type(estimator).__name__, unit="step", shown=estimator.progress and here().first
    ) as bar:
        train = partial(estimator._train, problem)
        fitted, interrupted = fit_members(problem, members, train, runs=runs, on_step=bar.update)
    functions = [one for _, one in fitted]
    history = [{"fit": member.fit, **record} for member, one in fitted for record in one.history]
    components = tuple(
        problem.component(
            treatment=one.networks[0],
            covariate=one.networks[1] if len(one.networks) > 2 else None,
            structural=structural_weights(one.networks),
            structure=estimator.structure,
        )
        for one in functions
    )
    return Estimate(
        components,
        problem.reduced_form([one.reduced_form for one in functions]),
        {**training_facts(estimator, functions), **facts},
        pd.DataFrame(history),
        interrupted=interrupted,
    )


def training_facts(estimator: Descending, functions: Sequence[TrainedFunction | RegressionFit]) -> dict[str, str | int]:
    """For the summary."""
    heldout = float(np.mean([one.heldout_loss for one in functions]))
    unit = " of the outcome variance" if estimator.standardise else ""
    ended = " and ".join(sorted({one.ended for one in functions}))
    return {
        "Functions averaged": len(functions),
        "Held-out loss": f"{heldout:.4g}{unit}" if math.isfinite(heldout) else "not held out",
        "Training": f"{estimator.steps} steps, {ended}",
    }
