"""Minibatches of both samples of DFIV, for members side by side."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfiv.learning.samples import Sample, Split, batches, rows_of


@dataclass(frozen=True, kw_only=True)
class Stage1Rows:
    """Rows of sample 1, (members, rows, ...): what stage 1 looks at, and the covariates that gamma needs."""

    treatment: Tensor
    instruments: Tensor
    covariates: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Stage2Rows:
    """Rows of sample 2, (members, rows, ...)."""

    outcome: Tensor
    instruments: Tensor
    covariates: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True)
class TwoStageBatch:
    """One minibatch of each sample."""

    stage1: Stage1Rows
    stage2: Stage2Rows


def draw_batches(
    sample: Sample,
    splits: Sequence[Split],
    generators: Sequence[np.random.Generator],
    *,
    size: int | None,
    covariates_stage1: bool,
) -> Iterator[TwoStageBatch]:
    """Without end, of every member side by side; of what the stages look at, and no more.

    Parameters
    ----------
    sample : Sample
        All rows.
    splits, generators : sequences
        One a member.
    size : int or None
        Rows of a batch; None for whole samples.
    covariates_stage1 : bool
        Whether stage 1 looks at covariates.
    """
    streams = []
    for split, generator in zip(splits, generators, strict=True):
        of_stage1, of_stage2 = generator.spawn(2)
        both = batches(split.stage1, size=size, generator=of_stage1), batches(split.stage2, size=size, generator=of_stage2)
        streams.append(both)
    covariates, w, drawn = sample.covariates, sample.weights, list[Tensor]()
    batch: TwoStageBatch | None = None
    while True:
        rows = [next(stream) for both in streams for stream in both]
        if batch is None or not all(map(operator.is_, rows, drawn)):  # a full batch is the one before
            drawn, stage1, stage2 = rows, torch.stack(rows[0::2]), torch.stack(rows[1::2])
            batch = TwoStageBatch(
                Stage1Rows(
                    treatment=rows_of(sample.treatment, stage1),
                    instruments=rows_of(sample.instruments, stage1),
                    covariates=rows_of(covariates, stage1) if covariates is not None and covariates_stage1 else None,
                    weights=None if w is None else rows_of(w, stage1),
                ),
                Stage2Rows(
                    outcome=rows_of(sample.outcome, stage2),
                    instruments=rows_of(sample.instruments, stage2),
                    covariates=None if covariates is None else rows_of(covariates, stage2),
                    weights=None if w is None else rows_of(w, stage2),
                ),
            )
        yield batch
