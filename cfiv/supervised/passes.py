"""Batches of pass after pass, from any place in them on: a run that goes on draws those that it has taken once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfiv.errors import DataError
from cfiv.learning.run_file import restore_draws
from cfiv.runtime.draws import reseed, watched
from cfiv.supervised.examples import Examples
from cfiv.supervised.sources import Source


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is in the order of its batches: the pass, batches taken from it, and its loader's generator as it began."""

    epoch: int = 0
    taken: int = 0
    generator: Tensor | None = None


def draw_batches(
    source: Source, start: Position, *, seed: int, device: torch.device, draws: list[Tensor] | None = None
) -> Iterator[tuple[Position, Examples]]:
    """Batches without end from a position on, each with the position behind it. Those before it are passed over.

    Every pass starts the draws of this thread's block anew, from (seed, pass), so that it can be repeated.

    Parameters
    ----------
    source : Source
    start : Position
    seed : int
    device : device
        Whose generator starts anew, besides the processor's.
    draws : list of Tensor, optional
        States of the generators at that position.

    Raises
    ------
    DataError
        If a pass yields no batch, or fewer than were taken from it.
    """
    epoch, skip = start.epoch, start.taken
    generator = source.generator
    if generator is not None and start.generator is not None:
        generator.set_state(start.generator)
    while True:
        reseed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]), device)
        at_start = None if generator is None else generator.get_state()
        taken = 0
        for taken, batch in enumerate(_draw_pass(source, epoch), start=1):
            if taken > skip:
                yield Position(epoch=epoch, taken=taken, generator=at_start), batch
            elif taken == skip and draws is not None:
                restore_draws(draws, device)
        if taken < max(1, skip):
            raise DataError(
                f"the loader yielded {taken} batches in pass {epoch + 1}, at least {max(1, skip)} expected: give a loader that "
                "yields its batches in every pass anew"
            )
        epoch, skip = epoch + 1, 0


def _draw_pass(source: Source, epoch: int) -> Iterator[Examples]:
    """The batches of a pass; a loader draws as it begins, and while it looks for the next."""
    with watched():
        batches = source.epoch(epoch)
    while True:
        with watched():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
