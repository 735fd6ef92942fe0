"""Bandwidths of KernelIV: one an input, given by role or the median distance between two rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfiv.checks import check_number, refusal, several
from cfiv.errors import DataError, ParameterError
from cfiv.numerics.bandwidths import median_bandwidth

Bandwidths = Mapping[str, float | Sequence[float]]
ROLES = ("treatment", "instruments", "covariates")


def check_bandwidths(given: Any) -> None:
    """Raise a ParameterError unless every bandwidth given is finite and > 0, under a role."""
    if not isinstance(given, Mapping) or not set(given) <= set(ROLES):
        raise refusal("bandwidths", "a mapping with keys among 'treatment', 'instruments' and 'covariates'", given)
    for role, values in given.items():
        for value in several(values):
            check_number(f"bandwidths[{role!r}]", value, above=0.0)


def resolve_bandwidths(
    given: Bandwidths,
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
    if "covariates" in given and "covariates" not in inputs:
        raise ParameterError("bandwidths are given for covariates, but there are none: leave them out")
    found: dict[str, list[float]] = {}
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


def column_bandwidths(bandwidths: Mapping[str, Sequence[float]], role: str, *, width: int) -> Tensor:
    """The bandwidth of each of the ``width`` columns of a role and the covariates; pixels share one."""
    covariates, own = list(bandwidths.get("covariates", ())), list(bandwidths[role])
    repeats = (width - len(covariates)) // len(own)
    return torch.tensor(own * repeats + covariates, dtype=torch.float64)


def bandwidth_records(bandwidths: Mapping[str, Sequence[float]], names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """``role, column, bandwidth`` of each input, for a summary."""
    return [
        {"role": role, "column": name, "bandwidth": value}
        for role, values in bandwidths.items()
        for name, value in zip(names[role], values, strict=True)
    ]
