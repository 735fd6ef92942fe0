"""Instruments that take too few values to identify a curve."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from cfiv.errors import WeakIdentificationWarning, warn
from cfiv.estimators.standardised import StandardisedData
from cfiv.learning.whole_sample import chunk_rows
from cfiv.networks.feature_maps import evaluate


def warn_if_few_instruments(problem: StandardisedData, treatment: nn.Module) -> None:
    """Warn where the instruments take too few values for the features, and for the values of the treatment as well."""
    features = evaluate(treatment, problem.sample.treatment[:2]).shape[1]
    instruments = _count_distinct(problem.excluded, most=features + 1)
    if instruments > features:
        return
    treatments = _count_distinct(problem.sample.treatment, most=features + 1)
    # A function on two values has two numbers, however many features it is written in.
    if instruments >= treatments:
        return
    needs = (
        f"{features} treatment features and a constant need at least {features + 1}"
        if treatments > features
        else f"the treatment takes {treatments}"
    )
    warn(
        f"the instruments take {instruments} distinct values, but {needs}: without strong covariates the data identify only "
        "part of the curve, and its shape between is a guess; use a simpler treatment_network (torch.nn.Identity() is linear) "
        "or richer instruments",
        WeakIdentificationWarning,
    )


def _count_distinct(values: Tensor, *, most: int) -> int:
    """How many different values (n, ...) there are, rows (images) as wholes, counted up to ``most``."""
    rows, seen = chunk_rows(values.shape[1:]), np.zeros((0, values[0].numel()))
    for start in range(0, len(values), rows):
        block = values[start : start + rows].cpu().flatten(start_dim=1).numpy()
        seen = np.unique(np.concatenate([seen, block]), axis=0)
        if len(seen) >= most:
            return most
    return len(seen)
