"""Inputs with targets, batch by batch: from arrays in an order of our own, or from the loader of a user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DataError
from cfiv.learning.samples import batch_rows
from cfiv.numerics.inputs import check_weights


@dataclass(frozen=True)
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
        return Examples(self.inputs[index], self.targets[index], None if self.weights is None else self.weights[index])


class Source(Protocol):
    """Batches, a pass at a time."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of a pass; None where that is not known."""
        ...

    @property
    def generator(self) -> torch.Generator | None:
        """A generator that a pass draws its order from, besides torch's global one."""
        ...

    @property
    def description(self) -> str:
        """What tells it from another, as far as that can be told."""
        ...

    def first(self) -> Examples:
        """A batch to look at, before any pass."""
        ...

    def epoch(self, number: int) -> Iterator[Examples]:
        """The batches of pass ``number``, from 0."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Minibatches of arrays: pass e is a permutation drawn from (seed, e), without its ragged tail, so any can be repeated."""

    everything: Examples
    size: int | None
    seed: int
    generator: torch.Generator | None = None

    @property
    def steps_per_epoch(self) -> int | None:
        """Whole batches."""
        return 1 if self.size is None else len(self.everything) // self.size

    @property
    def description(self) -> str:
        """Shapes and types, and the size of a batch."""
        given = (self.everything.inputs, self.everything.targets, self.everything.weights)
        parts = [None if part is None else (tuple(part.shape), part.dtype) for part in given]
        return f"arrays {parts} in batches of {self.size}"

    def first(self) -> Examples:
        """The first rows."""
        return self.everything.rows(slice(self.size))

    def epoch(self, number: int) -> Iterator[Examples]:
        """In the order of that pass; all rows in their own order where batches are full."""
        if self.size is None:
            yield self.everything
            return
        order = torch.from_numpy(np.random.default_rng([self.seed, number]).permutation(len(self.everything)))
        for start in range(0, len(order) - self.size + 1, self.size):
            yield self.everything.rows(order[start : start + self.size])


@dataclass(frozen=True)
class LoaderSource:
    """Whatever can be passed over again and again and yields (input, target) or (input, target, row weights)."""

    loader: Iterable[Any]

    def __post_init__(self) -> None:
        if isinstance(self.loader, Iterator):
            raise DataError(
                f"a {type(self.loader).__name__} can be passed over only once: give a DataLoader, a list of batches, or arrays"
            )

    @property
    def steps_per_epoch(self) -> int | None:
        """The loader's length, where it has one."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def generator(self) -> torch.Generator | None:
        """That of a DataLoader, or of its sampler."""
        for owner in (self.loader, getattr(self.loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                return generator
        return None

    @property
    def description(self) -> str:
        """Its length."""
        return f"loader of {self.steps_per_epoch} batches"

    def first(self) -> Examples:
        """Of a pass of its own, which leaves the loader's generator as it was."""
        generator = self.generator
        state = None if generator is None else generator.get_state()
        batch = next(self.epoch(0), None)
        if generator is not None and state is not None:
            generator.set_state(state)
        if batch is None:
            raise DataError(f"the {type(self.loader).__name__} given yields no batch: give at least one")
        return batch

    def epoch(self, number: int) -> Iterator[Examples]:
        """One pass; the number is not used."""
        return (_batch(given) for given in self.loader)


def source(data: Any, *, size: int | str | None, seed: int) -> Source:
    """Arrays or tensors (inputs, targets[, row weights]), or an iterable of such batches.

    Raises
    ------
    DataError, ParameterError
        If it is neither, yields nothing, or the batch size does not fit.
    """
    if isinstance(data, (tuple, list)) and data and all(isinstance(part, (Tensor, np.ndarray)) for part in data):
        everything = _batch(data)
        return ArraySource(everything, batch_rows(size, smallest_sample=len(everything)), seed)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict, Tensor, np.ndarray)):
        return LoaderSource(data)
    raise DataError(f"data must be (inputs, targets[, row weights]) or a loader of such batches, got {type(data).__name__}")


def as_tensor(values: Any) -> Tensor:
    """A tensor of an array; copied where torch could not share its memory, or the tensor was made in inference mode."""
    if isinstance(values, Tensor):
        return values.clone() if values.is_inference() else values  # which no gradient could be taken through
    array = np.asarray(values)
    # Torch has no read-only tensors, and none with negative strides.
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())


def _batch(given: Any) -> Examples:
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        what = f"{len(given)} parts" if isinstance(given, (tuple, list)) else type(given).__name__
        raise DataError(f"a batch must be (inputs, targets) or (inputs, targets, row weights), got {what}")
    inputs, targets, *rest = (as_tensor(part) for part in given)
    weights = rest[0] if rest else None
    if inputs.ndim == 0 or len(inputs) == 0 or targets.shape[:1] != inputs.shape[:1]:
        raise DataError(
            f"inputs and targets must have the same number of rows, at least one, got shapes {tuple(inputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if weights is not None:
        if weights.shape != inputs.shape[:1]:
            raise DataError(f"row weights must have shape ({len(inputs)},), one an example, got {tuple(weights.shape)}")
        if not check_weights(weights) > 0:
            raise DataError("row weights of a batch must have a positive sum, got 0: leave such rows out")
    return Examples(inputs, targets, weights)
