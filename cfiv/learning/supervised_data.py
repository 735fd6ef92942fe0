"""Inputs with targets, batch by batch: from arrays in an order of our own, or from the loader of a user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from cfiv.errors import DataError
from cfiv.learning.samples import batch_rows
from cfiv.numerics.inputs import check_weights
from cfiv.runtime.arrays import as_tensor, columns_of, is_array
from cfiv.runtime.digest import digest

#: Of the largest row weight, or its reciprocal: beyond it float32 has no digits for weighted sums.
LEAST_WEIGHT = 1e-30


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

    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """All there is to compare."""
        return self.inputs, self.targets, self.weights


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

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the inputs' columns, where they are a table."""
        ...

    def first(self) -> Examples:
        """A batch to look at, before any pass."""
        ...

    def contents(self, first: Examples) -> str:
        """A digest of its values, as far as they can be known from what it is and from its first batch."""
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
    columns: tuple[str, ...] | None = None

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

    def contents(self, first: Examples) -> str:
        """Of all values."""
        return digest(self.everything.parts())

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
    """Whatever can be passed over again and again and yields (input, target) or (input, target, row weights).

    Parameters
    ----------
    loader : iterable
    seed : int
        Of the first batch, for a loader with a generator of its own.
    finite : bool
        Whether to look for values that are infinite or missing.
    """

    loader: Iterable[Any]
    seed: int
    finite: bool
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.loader, Iterator):
            raise DataError(
                f"a {type(self.loader).__name__} can be passed over only once: give a DataLoader, a list of batches, or arrays"
            )

    @property
    def steps_per_epoch(self) -> int | None:
        """The loader's length, where it has one."""
        return _length(self.loader)

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
        """What kind of loader and of data, how many of them, and in which order."""
        said = f"{type(self.loader).__name__} of {self.steps_per_epoch} batches"
        data = getattr(self.loader, "dataset", None)
        if data is None:
            return said
        size, order = getattr(self.loader, "batch_size", None), type(getattr(self.loader, "sampler", None)).__name__
        return f"{said} of {size} of {_length(data)} examples of a {type(data).__name__} by {order}"

    def first(self) -> Examples:
        """Of a pass of its own, the same in every call, which leaves the loader's generator as it was."""
        generator = self.generator
        state = None if generator is None else generator.get_state()
        if generator is not None:
            generator.manual_seed(self.seed)
        batch = next(self.epoch(0), None)
        if generator is not None and state is not None:
            generator.set_state(state)
        if batch is None:
            raise DataError(f"the {type(self.loader).__name__} given yields no batch: give at least one")
        return batch

    def contents(self, first: Examples) -> str:
        """Of all values of a list of batches or of a TensorDataset; of the first batch, whatever the loader."""
        known = list(first.parts())
        if isinstance(self.loader, (list, tuple)):
            known += [part for batch in self.epoch(0) for part in batch.parts()]
        return digest([*known, *_stored(getattr(self.loader, "dataset", None))])

    def epoch(self, number: int) -> Iterator[Examples]:
        """One pass; the number is not used."""
        return (_batch(given, finite=self.finite) for given in self.loader)


def source(data: Any, *, size: int | str | None, seed: int, finite: bool = True) -> Source:
    """Arrays, tensors or tables (inputs, targets[, row weights]), or an iterable of such batches.

    A list or tuple is an iterable of batches where every part of it is a batch; a list of anything but arrays is, too. With
    ``finite=False`` the batches of an iterable may hold values that are infinite or missing.

    Raises
    ------
    DataError, ParameterError
        If it is neither, yields nothing, or the batch size does not fit.
    """
    if isinstance(data, (tuple, list)) and data and _is_one_batch(data):
        everything = _batch(data, finite=True)
        return ArraySource(everything, batch_rows(size, smallest_sample=len(everything)), seed, columns=columns_of(data[0]))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping)) and not is_array(data):
        return LoaderSource(data, seed=seed, finite=finite)
    raise DataError(f"data must be (inputs, targets[, row weights]) or a loader of such batches, got {type(data).__name__}")


def _is_one_batch(data: tuple[Any, ...] | list[Any]) -> bool:
    if all(is_array(part) for part in data):
        return True
    batches = all(isinstance(part, (tuple, list)) and len(part) in (2, 3) and all(map(is_array, part)) for part in data)
    return isinstance(data, tuple) and not batches


def _batch(given: Any, *, finite: bool) -> Examples:
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
            raise DataError("row weights of a batch must have a positive sum, got 0: leave such rows out")
        if not LEAST_WEIGHT < float(weights.max()) < 1 / LEAST_WEIGHT:
            raise DataError(
                f"row weights must be of an ordinary size, got a largest of {float(weights.max()):g}: only their ratios "
                "matter, so divide them by it"
            )
    return Examples(inputs, targets, weights)


def _check_index(parts: Mapping[str, Any]) -> None:
    """Refuse tables of pandas whose rows have other labels, or another order: pairs of them would not belong together."""
    indices = {role: part.index for role, part in parts.items() if isinstance(part, (pd.DataFrame, pd.Series))}
    for (one, index), (other, labels) in pairwise(indices.items()):
        if len(index) == len(labels) and not index.equals(labels):
            raise DataError(
                f"{one} and {other} must have the same index, got other labels or another order: align them, or call "
                "reset_index(drop=True) on both if their rows belong together as they stand"
            )


def _length(of: Any) -> int | None:
    try:
        return len(of)
    except TypeError:
        return None


def _stored(data: Dataset[Any] | None) -> list[Tensor | None]:
    """The values of a data set that is nothing but tensors, and of parts of it."""
    if isinstance(data, Subset):
        return [torch.as_tensor(list(data.indices)), *_stored(data.dataset)]
    return list(data.tensors) if isinstance(data, TensorDataset) else []
