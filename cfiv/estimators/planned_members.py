"""Functions that are fitted and averaged: the rows, the networks and the random numbers of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from cfiv.data import Array
from cfiv.estimators.standardised import StandardisedData
from cfiv.learning.samples import Split, hold_out, in_place, split_rows
from cfiv.networks import default_networks
from cfiv.networks.build import NetworkSpec, build
from cfiv.runtime.draws import Draws
from cfiv.runtime.module_state import cast
from cfiv.runtime.threads import suitable_threads

#: From a role to what makes its network of the shape of its input, where the user has given none.
DefaultNetworks = Mapping[str, Callable[[Sequence[int]], nn.Module]]
DEFAULT_NETWORKS: DefaultNetworks = {
    "treatment": default_networks.treatment_network,
    "instrument": default_networks.instrument_network,
    "covariate": default_networks.covariate_network,
}


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

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, its networks draw from its own numbers, on as many threads as suit them."""
        with self.draws.here(*self.networks), suitable_threads(self.networks):
            yield


def plan_member(
    problem: StandardisedData,
    fit: int,
    generator: np.random.Generator,
    *,
    rows: Callable[..., Split],
    batch: Callable[..., int | None],
    networks: Callable[[], list[nn.Module]],
    swapped: bool = False,
    part: int = 0,
) -> PlannedMember:
    """Draw the rows of a member, then its networks.

    Parameters
    ----------
    problem : StandardisedData
    fit : int
    generator : Generator
        Of the held-out rows, the batches, and what ``networks`` draws.
    rows : callable
        From ``generator=`` to a Split, see :func:`in_all_rows` and :func:`in_two_samples`.
    batch : callable
        From ``smallest_sample=`` to the rows of a batch.
    networks : callable
        Makes the networks, freshly drawn, such as by :func:`build_networks`.
    swapped, part
        See :class:`PlannedMember`.
    """
    of_rows, batches, of_networks = generator.spawn(3)
    split, draws = rows(generator=of_rows), Draws(int(of_networks.integers(2**62)), problem.device)
    with draws.here(other_code=True):
        made = [cast(network, problem.sample.outcome.dtype, device=problem.device) for network in networks()]
    size = batch(smallest_sample=min(len(split.stage1), len(split.stage2)))
    return PlannedMember(fit, swapped, split, size, made, batches, draws, part)


def in_all_rows(problem: StandardisedData, *, holdout: float) -> Callable[..., Split]:
    """For an estimator that splits no samples: all rows train, but those held out."""
    everything = torch.arange(len(problem.sample))
    return partial(hold_out, stage1=None, sample2=everything, share=float(holdout), clusters=problem.clusters)


def in_two_samples(
    problem: StandardisedData,
    generator: np.random.Generator,
    *,
    share: float | None,
    holdout: float,
    part: Array | None,
) -> list[Callable[..., Split]]:
    """For two stages: the rows, or those of a part, in two samples; and with the samples swapped.

    Parameters
    ----------
    problem : StandardisedData
    generator : Generator
    share : float or None
        Of the rows that go to sample 1; None puts all of them in both samples.
    holdout : float
        Share of sample 2 that is held out.
    part : array of int or None
        Row numbers.
    """
    rows, clusters = len(problem.sample) if part is None else len(part), problem.clusters
    if share is None:
        # Not as they lie, since checks look at the first rows of a large sample.
        first = second = in_place(torch.from_numpy(generator.permutation(rows)))
    else:
        groups = clusters if part is None or clusters is None else clusters[part]
        first, second = split_rows(rows, share=share, generator=generator, clusters=groups)
    if part is not None:
        first, second = (torch.from_numpy(part)[sample] for sample in (first, second))
    hold = partial(hold_out, share=holdout, clusters=clusters)
    return [partial(hold, stage1=first, sample2=second), partial(hold, stage1=second, sample2=first)]


def build_networks(
    problem: StandardisedData, *, defaults: DefaultNetworks = DEFAULT_NETWORKS, **specs: NetworkSpec
) -> list[nn.Module]:
    """The networks of ``treatment``, ``instrument`` and ``covariate`` that are asked for, drawn in the order of the request.

    There is no covariate network where there are no covariates.
    """
    sample, made = problem.sample, []
    inputs = {"treatment": sample.treatment, "instrument": sample.instruments, "covariate": sample.covariates}
    for role, spec in specs.items():
        given = inputs[role]
        if given is not None:
            network = build(spec, shape=given.shape[1:], default=defaults[role], role=role)
            made.append(problem.on_stored(network) if role == "treatment" else network)
    return made
