"""The rows of a fit, weighted and scaled, block by block: a million rows and tens of columns are no matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cfiv.data import Array, IVData
from cfiv.estimators.linear_blocks import lies_on_disk
from cfiv.estimators.linear_columns import row_roots
from cfiv.inference.linear_in_basis import Basis
from cfiv.inference.scaling import Scaling

#: Numbers of all columns at the rows of a block, 64 MB.
BLOCK = 2**23
#: The same of rows on disk, 8 MB.
MAPPED_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """Columns of one basis at all rows.

    Parameters
    ----------
    data : IVData
    basis : Basis
    instrumented : bool
        Whether instruments are used.
    root : array (n,)
        Roots of the row weights, which have a mean of one.
    step : int
        Rows of a block.
    """

    data: IVData
    basis: Basis
    instrumented: bool
    root: Array
    step: int
    _kept: dict[str, Array] = field(default_factory=dict, repr=False)

    @cached_property
    def structural(self) -> Scaling:
        """Of the structural columns."""
        return Scaling.of(_Again(self, "structural"))

    @cached_property
    def instruments(self) -> Scaling:
        """Of the instrument columns."""
        return Scaling.of(_Again(self, "instruments"))

    def slices(self) -> Iterator[slice]:
        """One a block."""
        for start in range(0, len(self.data), self.step):
            yield slice(start, start + self.step)
            self.data.release()

    def scaled(self, role: str, rows: slice) -> Array:
        """Weighted and scaled columns at the rows of a block."""
        scaling = self.structural if role == "structural" else self.instruments
        return np.asarray(self.root[rows, None] * scaling.apply(self.columns(role, rows)))

    def columns(self, role: str, rows: slice) -> Array:
        """Columns at the rows of a block, as the basis has them; kept where there is but one."""
        if role in self._kept:
            return self._kept[role]
        covariates = None if self.data.covariates is None else self.data.covariates[rows]
        if role == "structural":
            found = self.basis.structural_columns(self.data.treatment[rows], covariates)
        else:
            found = self.basis.instrument_columns(self.data.instruments[rows], covariates)
        if self.step >= len(self.data):
            self._kept[role] = found
        return found


@dataclass(frozen=True)
class _Again:
    """Columns and weights of all blocks, as often as they are asked for."""

    blocks: RowBlocks
    role: str

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for rows in self.blocks.slices():
            yield self.blocks.columns(self.role, rows), self.blocks.root[rows] ** 2


def blocks_of(data: IVData, bases: tuple[Basis, ...], *, instrumented: bool) -> tuple[RowBlocks, ...]:
    """Of several bases, with blocks of the same rows."""
    root = row_roots(data.weights, rows=len(data))
    probes = [RowBlocks(data, basis, instrumented, root, 1) for basis in bases]
    roles = ("structural", "instruments") if instrumented else ("structural",)
    width = sum(probe.columns(role, slice(0, 1)).shape[1] for probe in probes for role in roles)
    step = max(1, (MAPPED_BLOCK if lies_on_disk(data) else BLOCK) // max(1, width))
    return tuple(RowBlocks(data, basis, instrumented, root, step) for basis in bases)
