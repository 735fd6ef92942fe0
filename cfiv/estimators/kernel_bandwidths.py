"""Bandwidths of KernelIV: one an input, found by relevance, given by role, or the median distance between two rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cfiv.checks import check_number, refusal, several
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.kernel_inputs import KernelInputs
from cfiv.numerics.bandwidths import median_bandwidth
from cfiv.numerics.landmarks import line_of
from cfiv.numerics.relevance import RelevantFit, relevant_fit

Bandwidths = Mapping[str, float | Sequence[float]] | Literal["median"]
#: Covariates are inputs of both kernels, and may have other bandwidths in that of stage 1.
FIRST_STAGE = "first_stage_covariates"
ROLES = ("treatment", "instruments", "covariates", FIRST_STAGE)


def check_bandwidths(given: Any) -> None:
    """Raise a ParameterError unless every bandwidth given is finite and > 0, under a role."""
    if isinstance(given, str) and given == "median":
        return
    if not isinstance(given, Mapping) or not set(given) <= set(ROLES):
        keys = f"a mapping with keys among {', '.join(map(repr, ROLES))}"
        raise refusal("bandwidths", keys, given, alternative="'median', or None to find them")
    for role, values in given.items():
        for value in several(values):
            check_number(f"bandwidths[{role!r}]", value, above=0.0)


def resolve_bandwidths(
    given: Mapping[str, float | Sequence[float]],
    inputs: Mapping[str, Sequence[Tensor]],
    names: Mapping[str, Sequence[str]],
    generator: np.random.Generator,
) -> dict[str, list[float]]:
    """The bandwidth of each input, one list a role.

    Parameters
    ----------
    given : mapping
        What the user gave; other roles get their median distances.
    inputs : mapping from role to tensors (n, columns)
        An image is one input with many columns.
    names : mapping from role to names of the inputs
    generator : Generator
        See :func:`cfiv.numerics.bandwidths.median_bandwidth`.

    Raises
    ------
    ParameterError
        If the number of bandwidths is not that of the inputs.
    DataError
        If an input has no two different rows.
    """
    if ("covariates" in given or FIRST_STAGE in given) and "covariates" not in inputs:
        raise ParameterError("bandwidths are given for covariates, but there are none: leave them out")
    found: dict[str, list[float]] = {}
    if FIRST_STAGE in given:
        inputs = {**inputs, FIRST_STAGE: inputs["covariates"]}
    for role, columns in inputs.items():
        if role in given:
            numbers = [float(value) for value in several(given[role])]
            if len(numbers) not in (1, len(columns)):
                raise refusal(f"bandwidths[{role!r}]", f"one number or one for each of the {len(columns)} inputs", given[role])
            found[role] = numbers * (len(columns) // len(numbers))
            continue
        found[role] = [median_bandwidth(column, generator=generator) for column in columns]
        for name, value in zip(names[role], found[role], strict=True):
            if not value > 0:
                raise DataError(
                    f"{role} {name!r} is the same in all {len(columns[0])} rows, so that its median distance, the "
                    f"bandwidth, is zero: drop it, or give bandwidths={{{role!r}: ...}}"
                )
    return found


def found_bandwidths(
    inputs: KernelInputs, medians: Mapping[str, Sequence[float]], generator: np.random.Generator
) -> dict[str, list[float]]:
    """Bandwidths of columns by what they matter for: see :mod:`cfiv.numerics.relevance`.

    Those of stage 1 are for the treatments and the outcome given the instruments and covariates; those of ``h`` for the outcome
    given the treatments and covariates. (That regression is confounded, but the function turns where ``h`` does.) Of many
    columns stage 1 looks at the curve of that regression as well, which has less noise than the outcome.
    """
    count = inputs.covariates
    treatments, instruments = inputs.treatments, inputs.instruments
    own = inputs.line_columns(treatments)(treatments)[:, int(inputs.centred) :]
    targets = torch.cat([own[:, : own.shape[1] - count], inputs.outcome], dim=1)
    of_h, of_first = (column_bandwidths(medians, role) for role in ("treatment", "instruments"))
    fit = _relevant(inputs, treatments, targets=inputs.outcome, medians=of_h, generator=generator)
    structural = fit.bandwidths * inputs.line_columns(treatments).scale
    # Stage 1 must follow h in the covariates: what matters there is where its search begins.
    starts = [torch.cat([of_first[: len(of_first) - count], structural[len(structural) - count :]])]
    if inputs.many:
        starts.append(_through_treatments(inputs, structural, of_h=of_h, of_first=of_first))
        targets = torch.cat([targets, _curve(inputs, fit)], dim=1)
    first = _relevant(inputs, instruments, targets=targets, medians=of_first, generator=generator, starts=starts).bandwidths
    first = first * inputs.line_columns(instruments).scale
    at, of = len(structural) - count, len(first) - count
    found = {"treatment": structural[:at], "instruments": first[:of]}
    if count:
        found |= {"covariates": structural[at:], FIRST_STAGE: first[of:]}
    return {role: [float(value) for value in values] for role, values in found.items()}


def _relevant(
    inputs: KernelInputs,
    points: Tensor,
    *,
    targets: Tensor,
    medians: Tensor,
    generator: np.random.Generator,
    starts: Sequence[Tensor] = (),
) -> RelevantFit:
    """In standardised columns, where no square vanishes or overflows."""
    columns, weights = inputs.line_columns(points), inputs.weights / inputs.weights.max()
    standard = replace(columns, centre=torch.zeros_like(columns.centre), scale=torch.ones_like(columns.scale))
    return relevant_fit(
        columns(points)[:, int(columns.constant) :],
        targets=targets,
        weights=weights / weights.mean(),
        medians=medians / columns.scale,
        columns=standard,
        generator=generator,
        leading=len(medians) - inputs.covariates,
        starts=[start / columns.scale for start in starts],
    )


def _curve(inputs: KernelInputs, fit: RelevantFit) -> Tensor:
    """What the fit of the outcome departs from its line by, (n, 1), of unit mean square."""
    columns = inputs.line_columns(inputs.treatments)
    curve = fit.departure()(columns(inputs.treatments)[:, int(columns.constant) :])
    square = (inputs.weights * curve.square()).sum() / inputs.weights.sum()
    return (curve / square.clamp(min=torch.finfo(square.dtype).tiny).sqrt())[:, None]


def _through_treatments(inputs: KernelInputs, structural: Tensor, *, of_h: Tensor, of_first: Tensor) -> Tensor:
    """Bandwidths of stage 1 for a function like ``h`` of what lines predict of the treatments.

    By the chain rule the squared gradient along an instrument is that along a treatment times the squared slope of the
    treatment along the instrument; a covariate's own is added to it.

    Parameters
    ----------
    inputs : KernelInputs
    structural : Tensor (k + p,)
        Bandwidths of ``h``.
    of_h, of_first : Tensor (k + p,), (q + p,)
        Median distances.
    """
    columns, at = inputs.line_columns(inputs.instruments), len(of_h) - inputs.covariates
    values = torch.cat([columns(inputs.instruments), inputs.treatments[:, :at]], dim=1)
    gram = values.mT @ (inputs.weights[:, None] / inputs.weights.sum() * values)
    slopes = line_of(gram, at=len(columns), rows=len(inputs))[int(columns.constant) :] / columns.scale[:, None]
    squares = (of_h / structural).square()
    gradients = (slopes * of_first[:, None] / of_h[:at]).square() @ squares[:at]
    gradients[len(gradients) - inputs.covariates :] += squares[at:]
    return of_first / gradients.clamp(min=torch.finfo(gradients.dtype).tiny).sqrt()


def column_bandwidths(bandwidths: Mapping[str, Sequence[float]], role: str, *, pixels: int = 1) -> Tensor:
    """The bandwidth of each column of a role and the covariates; pixels of an image share one."""
    covariates = bandwidths.get("covariates", ())
    if role == "instruments":
        covariates = bandwidths.get(FIRST_STAGE, covariates)
    return torch.tensor([*(list(bandwidths[role]) * pixels), *covariates], dtype=torch.float64)


def widened(bandwidths: Mapping[str, Sequence[float]], factor: float) -> dict[str, list[float]]:
    """Those of ``h`` times a factor."""
    of_h = ("treatment", "covariates")
    return {role: [value * (factor if role in of_h else 1.0) for value in values] for role, values in bandwidths.items()}


def bandwidth_records(bandwidths: Mapping[str, Sequence[float]], names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """``role, column, bandwidth`` of each input, for a summary."""
    return [
        {"role": role.replace("_", " "), "column": name, "bandwidth": value}
        for role, values in bandwidths.items()
        for name, value in zip(names["covariates" if role == FIRST_STAGE else role], values, strict=True)
    ]
