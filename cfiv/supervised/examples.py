"""Inputs with targets, and weights where there are some: as a user gives them, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
from torch import Tensor

from cfiv.errors import DataError
from cfiv.learning.samples import rows_of
from cfiv.numerics.inputs import check_weights
from cfiv.runtime.arrays import as_tensor

#: Of the largest row weight, or its reciprocal: beyond it float32 has no digits for weighted sums.
LEAST_WEIGHT = 1e-30


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A batch, or all there is.

    Parameters
    ----------
    inputs : Tensor (n, ...)
    targets : Tensor (n, ...)
        Values, or labels of classes.
    weights : Tensor (n,) or None
        Row weights >= 0.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def rows(self, index: Tensor | slice) -> Examples:
        """Some of them."""
        weights = None if self.weights is None else rows_of(self.weights, index)
        return Examples(inputs=rows_of(self.inputs, index), targets=rows_of(self.targets, index), weights=weights)

    def with_positive_weight(self) -> Examples:
        """Those whose weight is not zero; the same where all are such, or there are no weights."""
        if self.weights is None or bool((self.weights > 0).all()):
            return self
        return self.rows((self.weights > 0).nonzero()[:, 0])

    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """All there is to compare."""
        return self.inputs, self.targets, self.weights


def read_examples(given: Any, *, finite: bool) -> Examples:
    """Of (inputs, targets) or (inputs, targets, row weights); values may be infinite or missing where ``finite`` is False.

    Raises
    ------
    DataError
        If it is neither, rows do not belong together, or values or weights cannot be used.
    """
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        what = f"{len(given)} parts" if isinstance(given, (tuple, list)) else type(given).__name__
        raise DataError(f"a batch must be (inputs, targets) or (inputs, targets, row weights), got {what}")
    roles = ("inputs", "targets", "row weights")
    _check_index(dict(zip(roles, given, strict=False)))
    inputs, targets, *rest = (as_tensor(role, part, finite=finite) for role, part in zip(roles, given, strict=False))
    weights = rest[0] if rest else None
    if inputs.ndim == 0 or len(inputs) == 0 or targets.shape[:1] != inputs.shape[:1]:
        raise DataError(
            f"inputs and targets must have the same number of rows, at least one, got shapes {tuple(inputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if weights is not None:
        if weights.shape == (len(inputs), 1):  # a table of one column
            weights = weights[:, 0]
        if weights.shape != inputs.shape[:1]:
            raise DataError(f"row weights must have shape ({len(inputs)},), one an example, got {tuple(weights.shape)}")
        if not check_weights(weights) > 0:
            raise DataError(
                "row weights of a batch must have a positive sum, got 0: leave rows of weight zero out, or make batches larger"
            )
        if not LEAST_WEIGHT < float(weights.max()) < 1 / LEAST_WEIGHT:
            raise DataError(
                f"row weights must be of an ordinary size, got a largest of {float(weights.max()):g}: only their ratios "
                "matter, so divide them by it"
            )
    return Examples(inputs=inputs, targets=targets, weights=weights)


def _check_index(parts: Mapping[str, Any]) -> None:
    """Refuse tables of pandas whose rows have other labels, or another order: pairs of them would not belong together."""
    indices = {role: part.index for role, part in parts.items() if isinstance(part, (pd.DataFrame, pd.Series))}
    for (one, index), (other, labels) in pairwise(indices.items()):
        if len(index) == len(labels) and not index.equals(labels):
            raise DataError(
                f"{one} and {other} must have the same index, got other labels or another order: align them, or call "
                "reset_index(drop=True) on both if their rows belong together as they stand"
            )
