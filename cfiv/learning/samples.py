"""Samples as tensors: the two-way split, and minibatches from an explicit generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfiv.arrays import Array
from cfiv.checks import check_whole
from cfiv.errors import DataError, ParameterError

#: Rows of a sample that a judgement looks at, its first; what it is to tell needs no more.
CHECK_ROWS = 20_000
#: Rows among which those of a batch are drawn where a sample has more, and how many of them lie next to one another: on disk
#: some thousand places are read for some hundred batches, and not one for each row of a batch.
WINDOW, RUN = 262_144, 128


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Standardised rows of one sample, on the training device.

    Parameters
    ----------
    outcome : Tensor (n, 1)
    treatment : Tensor (n, ...)
        Images are neither standardised nor converted: their network does that.
    instruments : Tensor (n, q + p)
        Instruments and covariates: the input of the instrument features.
    covariates : Tensor (n, p) or None
    weights : Tensor (n,) or None
    """

    outcome: Tensor
    treatment: Tensor
    instruments: Tensor
    covariates: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return self.outcome.shape[0]

    def rows(self, index: Tensor | slice) -> Sample:
        """The sample at some of its rows, of which there may be those of several members."""
        return self._each(lambda part: rows_of(part, index))

    def cpu(self) -> Sample:
        """The sample in the processor's memory."""
        return self._each(Tensor.cpu)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Sample:
        """The sample with every part changed."""
        return Sample(
            outcome=change(self.outcome),
            treatment=change(self.treatment),
            instruments=change(self.instruments),
            covariates=None if self.covariates is None else change(self.covariates),
            weights=None if self.weights is None else change(self.weights),
        )


def rows_of(values: Tensor, index: Tensor | slice) -> Tensor:
    """``values[index]`` of rows (n, ...), for numbers of rows of any shape; of wide rows, such as images, in less time."""
    if isinstance(index, slice):
        return values[index]
    return values.index_select(0, index.flatten()).view(*index.shape, *values.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Split:
    """Numbers of the rows of sample 1 (stage 1), of sample 2 (stage 2) that train, and of sample 2 that are held out."""

    stage1: Tensor
    stage2: Tensor
    heldout: Tensor | None

    @property
    def sample2(self) -> Tensor:
        """Sample 2 with its held-out rows."""
        return self.stage2 if self.heldout is None else torch.cat([self.stage2, self.heldout])


def split_rows(
    rows: int, *, share: float, generator: np.random.Generator, clusters: Array | None = None
) -> tuple[Tensor, Tensor]:
    """Two disjoint random sets of rows, the first with about ``share`` of them, each as :func:`in_place` has it.

    Parameters
    ----------
    rows : int
    share : float
    generator : Generator
    clusters : array (rows,), optional
        Labels of groups of rows, none of which is parted: the share is then only as near as the groups allow.

    Raises
    ------
    DataError
        If one of the two would have fewer than two rows.
    """
    if clusters is not None:
        first, second = _split_groups(clusters, share=share, generator=generator, purpose="splitting")
        return in_place(first), in_place(second)
    size = round(share * rows)
    if min(size, rows - size) < 2:
        raise DataError(
            f"splitting {rows} rows at {share:g} leaves {size} and {rows - size}: each sample needs at least 2 rows"
        )
    order = torch.from_numpy(generator.permutation(rows))
    return in_place(order[:size]), in_place(order[size:])


def in_place(rows: Tensor) -> Tensor:
    """Rows in random order as they are; of more than a window's, those after the first ``CHECK_ROWS`` as they lie.

    Neighbours in it are then neighbours on disk.
    """
    if len(rows) <= WINDOW:
        return rows
    return torch.cat([rows[:CHECK_ROWS], rows[CHECK_ROWS:].sort().values])


def hold_out(
    *, stage1: Tensor | None, sample2: Tensor, share: float, generator: np.random.Generator, clusters: Array | None = None
) -> Split:
    """Set a share of sample 2 aside; none where the share is 0 or sample 2 is too small to spare two rows.

    Parameters
    ----------
    stage1 : Tensor or None
        Numbers of rows; None for those of sample 2 that train.
    sample2 : Tensor
        Numbers of rows.
    share : float
    generator : Generator
    clusters : array (all rows,), optional
        As for :func:`split_rows`.

    Raises
    ------
    DataError
        If sample 2 has no two groups.
    """
    held = int(share * len(sample2))
    if held < 2 or len(sample2) - held < 2:
        return Split(stage1=sample2 if stage1 is None else stage1, stage2=sample2, heldout=None)
    if clusters is None:
        order = torch.from_numpy(generator.permutation(len(sample2)))
        heldout, others = order[:held], order[held:]
    else:
        labels = clusters[sample2.numpy()]
        heldout, others = _split_groups(labels, share=share, generator=generator, purpose="holding out rows of a sample")
    train = in_place(sample2[others])
    return Split(stage1=train if stage1 is None else stage1, stage2=train, heldout=in_place(sample2[heldout]))


def fold_groups(clusters: Array, *, folds: int, generator: np.random.Generator) -> tuple[Tensor, ...]:
    """Numbers of the rows of folds, each in random order: the largest groups first, each to the smallest fold.

    Raises
    ------
    DataError
        If there are fewer groups than folds.
    """
    _, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(sizes) < folds:
        raise DataError(
            f"{len(sizes)} groups of clusters are too few for {folds} folds, which hold whole groups: give fewer folds, finer "
            "clusters, or none"
        )
    in_random_order = generator.permutation(len(sizes))
    fold, filled = np.empty(len(sizes), dtype=np.int64), np.zeros(folds, dtype=np.int64)
    for group in in_random_order[np.argsort(-sizes[in_random_order], kind="stable")]:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    order = generator.permutation(len(clusters))
    return tuple(torch.from_numpy(order[fold[codes[order]] == number]) for number in range(folds))


def _split_groups(clusters: Array, *, share: float, generator: np.random.Generator, purpose: str) -> tuple[Tensor, Tensor]:
    """Groups in random order, cut where the first part is nearest to a share of the rows, with two rows on either side."""
    _, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    rows, shuffled = len(clusters), generator.permutation(len(sizes))
    reached = np.cumsum(sizes[shuffled])
    possible = np.flatnonzero(np.minimum(reached, rows - reached) >= 2)
    if not len(possible):
        groups = "one group" if len(sizes) == 1 else f"{len(sizes)} groups"
        raise DataError(
            f"{purpose} keeps groups of clusters whole, and {rows} rows in {groups} make no two parts of at least 2 rows: give "
            "finer clusters, or none"
        )
    cut = possible[np.abs(reached[possible] - share * rows).argmin()]
    first = np.isin(codes, shuffled[: cut + 1])
    order = generator.permutation(rows)
    return torch.from_numpy(order[first[order]]), torch.from_numpy(order[~first[order]])


def batches(rows: Tensor, *, size: int | None, generator: np.random.Generator) -> Iterator[Tensor]:
    """Minibatches of rows without end: every pass another order, without its ragged tail. None gives all, as they are.

    The order is random up to ``WINDOW`` rows. Of more, runs of ``RUN`` neighbours are in random order, and the rows of a
    window's runs are mixed: batches of a window share its places, some thousand at random.
    """
    while size is None or size >= len(rows):
        yield rows
    while True:
        left = np.zeros(0, dtype=np.int64)
        for window in _windows(len(rows), generator):
            order = torch.from_numpy(np.concatenate([left, window]))
            whole = len(order) - len(order) % size
            yield from rows[order[:whole]].view(-1, size)
            left = order[whole:].numpy()


def _windows(rows: int, generator: np.random.Generator) -> Iterator[Array]:
    """Positions of all of so many rows, those of a window at a time."""
    if rows <= WINDOW:
        yield generator.permutation(rows)
        return
    runs, many = generator.permutation(-(-rows // RUN)), WINDOW // RUN
    for start in range(0, len(runs), many):
        positions = (runs[start : start + many, None] * RUN + np.arange(RUN)).reshape(-1)
        yield generator.permutation(positions[positions < rows])


def check_batch_size(batch_size: object) -> None:
    """Raise a ParameterError unless it is a whole number >= 1, "auto" or None, whatever the sample."""
    if batch_size is not None and not (isinstance(batch_size, str) and batch_size == "auto"):
        check_whole("batch_size", batch_size, least=1, alternative="'auto', or None for full batches")


def batch_rows(batch_size: int | str | None, *, smallest_sample: int, auto: int = 128) -> int | None:
    """The number of rows of a batch; "auto" is ``auto``, or all rows where a sample has fewer.

    Raises
    ------
    ParameterError
        If it is not a positive whole number, or exceeds the smallest sample.
    """
    if batch_size is None:
        return None
    if isinstance(batch_size, str) and batch_size == "auto":
        return min(auto, smallest_sample)
    check_batch_size(batch_size)
    assert not isinstance(batch_size, str)
    if batch_size > smallest_sample:
        raise ParameterError(
            f"batch_size={batch_size} exceeds the {smallest_sample} rows of the smallest sample: "
            f"use at most {smallest_sample}, 'auto', or None for full batches"
        )
    return int(batch_size)
