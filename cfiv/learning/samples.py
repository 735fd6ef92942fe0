"""Samples as tensors: the two-way split, and minibatches from an explicit generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfiv.arrays import Array
from cfiv.checks import check_whole
from cfiv.errors import DataError, ParameterError


@dataclass(frozen=True)
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
        """The sample at some of its rows."""
        return Sample(
            self.outcome[index],
            self.treatment[index],
            self.instruments[index],
            None if self.covariates is None else self.covariates[index],
            None if self.weights is None else self.weights[index],
        )

    def cpu(self) -> Sample:
        """The sample in the processor's memory."""
        covariates, weights = (None if part is None else part.cpu() for part in (self.covariates, self.weights))
        return Sample(self.outcome.cpu(), self.treatment.cpu(), self.instruments.cpu(), covariates, weights)


@dataclass(frozen=True)
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
    """Two disjoint random sets of rows, the first with about ``share`` of them, each in random order.

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
        return _split_groups(clusters, share=share, generator=generator, purpose="splitting")
    first = round(share * rows)
    if min(first, rows - first) < 2:
        raise DataError(
            f"splitting {rows} rows at {share:g} leaves {first} and {rows - first}: each sample needs at least 2 rows"
        )
    order = torch.from_numpy(generator.permutation(rows))
    return order[:first], order[first:]


def hold_out(
    stage1: Tensor, sample2: Tensor, *, share: float, generator: np.random.Generator, clusters: Array | None = None
) -> Split:
    """Set a share of sample 2 aside; none where the share is 0 or sample 2 is too small to spare two rows.

    Parameters
    ----------
    stage1, sample2 : Tensor
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
        return Split(stage1, sample2, None)
    if clusters is not None:
        labels = clusters[sample2.numpy()]
        heldout, others = _split_groups(labels, share=share, generator=generator, purpose="holding out rows of a sample")
        return Split(stage1, sample2[others], sample2[heldout])
    order = torch.from_numpy(generator.permutation(len(sample2)))
    return Split(stage1, sample2[order[held:]], sample2[order[:held]])


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
    """Minibatches of rows without end: every pass a fresh permutation, without its ragged tail. None gives all, in order."""
    while size is None or size >= len(rows):
        yield rows
    while True:
        order = torch.from_numpy(generator.permutation(len(rows)))
        for start in range(0, len(rows) - size + 1, size):
            yield rows[order[start : start + size]]


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
