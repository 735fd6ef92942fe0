"""What a closed form is given: refused where it cannot be solved, and its two penalties made one.

The messages name the argument, what was got and, where there is one, the remedy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfiv.checks import check_number
from cfiv.errors import DataError


def check_penalties(**penalties: float) -> None:
    """Refuse, with a ``ParameterError`` that names the keyword, penalties that are negative or not finite."""
    for name, value in penalties.items():
        check_number(name, value, least=0.0)


def check_shapes(*, features: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    """Refuse, with a ``DataError``, all but features (n, d), targets (n, k) and row weights (n,) with n, d >= 1."""
    if features.ndim != 2 or targets.ndim != 2 or features.shape[0] != targets.shape[0]:
        raise DataError(
            f"features must be (n, d) and targets (n, k) with the same n, got {tuple(features.shape)} and "
            f"{tuple(targets.shape)}: reshape a single target to (n, 1)"
        )
    if features.shape[0] == 0 or features.shape[1] == 0:
        raise DataError(f"features must have at least one row and one column, got shape {tuple(features.shape)}")
    if weights is not None and weights.shape != features.shape[:1]:
        raise DataError(f"row weights must have shape ({features.shape[0]},), got {tuple(weights.shape)}")


def check_finite(**tensors: Tensor) -> None:
    """Refuse, with a ``DataError`` that names the keyword, tensors with infinite or missing values."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(f"{name} must be finite, got {bad} values that are infinite or not a number")


def check_previous(previous: Tensor | None, *, columns: int, targets: int) -> None:
    """Refuse, with a ``DataError``, previous weights that are not (columns, targets) or not finite; None passes."""
    if previous is None:
        return
    if previous.shape != (columns, targets):
        raise DataError(f"previous must have shape ({columns}, {targets}), got {tuple(previous.shape)}")
    check_finite(previous=previous)


def check_weights(weights: Tensor) -> float:
    """The sum of the row weights (..., n), finite and >= 0. A sum of zero passes: one batch of many may have it."""
    total = float(weights.double().sum())
    if not (math.isfinite(total) and bool((weights >= 0).all())):
        raise DataError(
            f"row weights must be finite and >= 0, got a smallest of {float(weights.min())} and a sum of {total}: "
            "drop or mend those rows"
        )
    return total


def row_weights(weights: Tensor, *, like: Tensor) -> Tensor:
    """Row weights (..., n) as float64 data on the device of ``like``: checked to have positive sums, not normalised."""
    w = weights.detach().to(dtype=torch.float64, device=like.device)
    check_weights(w)
    total = float(w.sum(dim=-1).min())
    if not total > 0:
        raise DataError(f"row weights must have a positive sum, got a sum of {total}: give at least one row a weight > 0")
    return w


def penalty_and_anchor(*, ridge: float, proximal: float, previous: Tensor | None, like: Tensor) -> tuple[float, Tensor | None]:
    """The one penalty ``mu = ridge + proximal`` and the point ``W_0 = (proximal / mu) W_prev`` (d, k) that it pulls towards.

    None stands for a ``W_0`` of zero. It comes in float64 on the device of ``like``, with the graph of ``previous``.
    """
    mu = ridge + proximal
    if previous is None or proximal == 0.0:
        return mu, None
    return mu, (proximal / mu) * previous.to(dtype=torch.float64, device=like.device)
