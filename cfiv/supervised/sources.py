"""Inputs with targets, batch by batch: from arrays in an order of our own, or from the loader of a user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from cfiv.checks import check_whole, shown
from cfiv.errors import DataError, ParameterError
from cfiv.learning.samples import batch_rows
from cfiv.runtime.arrays import columns_of, is_array
from cfiv.runtime.digest import digest
from cfiv.supervised.examples import Examples, read_examples


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

    def keep(self) -> list[Examples]:
        """All of a pass, to be looked at again and again."""
        ...


@dataclass(frozen=True, kw_only=True)
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

    def keep(self) -> list[Examples]:
        """As one batch."""
        return [self.everything]

    def epoch(self, number: int) -> Iterator[Examples]:
        """In the order of that pass; all rows in their own order where batches are full."""
        if self.size is None:
            yield self.everything
            return
        order = torch.from_numpy(np.random.default_rng([self.seed, number]).permutation(len(self.everything)))
        for start in range(0, len(order) - self.size + 1, self.size):
            yield self.everything.rows(order[start : start + self.size])


@dataclass(frozen=True, kw_only=True)
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
        kind = f"{type(self.loader).__name__} of {self.steps_per_epoch} batches"
        data = getattr(self.loader, "dataset", None)
        if data is None:
            return kind
        size, order = getattr(self.loader, "batch_size", None), type(getattr(self.loader, "sampler", None)).__name__
        return f"{kind} of {size} of {_length(data)} examples of a {type(data).__name__} by {order}"

    def first(self) -> Examples:
        """Of a pass of its own."""
        with self._apart():
            batch = next(self.epoch(0), None)
        return self._expect(batch)

    def keep(self) -> list[Examples]:
        """Of a pass of its own."""
        with self._apart():
            batches = list(self.epoch(0))
        self._expect(next(iter(batches), None))
        return batches

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """A pass inside is the same in every call, and leaves the loader's generator as it was."""
        generator = self.generator
        if generator is None:
            yield
            return
        state = generator.get_state()
        generator.manual_seed(self.seed)
        try:
            yield
        finally:
            generator.set_state(state)

    def _expect(self, batch: Examples | None) -> Examples:
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
        return (read_examples(given, finite=self.finite) for given in self.loader)


def make_source(data: Any, *, size: int | str | None, seed: int, finite: bool = True) -> Source:
    """Arrays, tensors or tables (inputs, targets[, row weights]), or an iterable of such batches.

    A list or tuple is an iterable of batches where every part of it is a batch; a list of anything but arrays is, too. With
    ``finite=False`` the batches of an iterable may hold values that are infinite or missing. Of arrays, rows of weight zero are
    left out: a batch of nothing else would have no loss.

    Raises
    ------
    DataError, ParameterError
        If it is neither, yields nothing, or the batch size does not fit.
    """
    if isinstance(data, (tuple, list)) and data and _is_one_batch(data):
        everything = read_examples(data, finite=True).with_positive_weight()
        rows = batch_rows(size, smallest_sample=len(everything))
        return ArraySource(everything=everything, size=rows, seed=seed, columns=columns_of(data[0]))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping)) and not is_array(data):
        return LoaderSource(loader=data, seed=seed, finite=finite)
    raise DataError(f"data must be (inputs, targets[, row weights]) or a loader of such batches, got {type(data).__name__}")


def _is_one_batch(data: tuple[Any, ...] | list[Any]) -> bool:
    if all(is_array(part) for part in data):
        return True
    batches = all(isinstance(part, (tuple, list)) and len(part) in (2, 3) and all(map(is_array, part)) for part in data)
    return isinstance(data, tuple) and not batches


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


def count_steps(batches: Source, *, epochs: int | None, steps: int | None) -> int:
    """How many steps a fit takes.

    Raises
    ------
    ParameterError
        If neither or both are given, they are no whole numbers, or a pass has no length.
    """
    if steps is not None and epochs is None:
        return check_whole("steps", steps, least=1)
    if epochs is None or steps is not None:
        raise ParameterError(f"give either epochs or steps, got epochs={shown(epochs)} and steps={shown(steps)}")
    epochs = check_whole("epochs", epochs, least=1)
    if batches.steps_per_epoch is None:
        raise ParameterError("the loader has no length, so a number of epochs is no number of steps: give steps= instead")
    return max(1, epochs * batches.steps_per_epoch)
