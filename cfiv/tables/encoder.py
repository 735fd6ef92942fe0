"""Encoders: the one way from a user's rows, tables or arrays, to treatments and covariates as they were in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pandas as pd

from cfiv.arrays import Array
from cfiv.data import IVData
from cfiv.tables.columns import Missing

#: Rows kept for averages over the covariates, evenly spread over those of training.
REFERENCE_ROWS = 2000


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Rows, and several treatments at which each of them is asked.

    Parameters
    ----------
    rows : int
        How many, ``n``.
    covariates : array (n, p) or None
    same : array (m, ...) or None
        Treatments that are the same for all rows. None where treatments are made of the rows' own columns besides.
    own : iterator of arrays (n, ...)
        Then these, made when they are asked for.
    kept : array of bool, optional
        Which of the rows that were given these are, where some were left out for gaps.
    """

    rows: int
    covariates: Array | None
    same: Array | None
    own: Iterator[Array]
    kept: Array | None = None

    @property
    def given(self) -> int:
        """How many rows were given."""
        return self.rows if self.kept is None else len(self.kept)

    def in_groups(self, members: Sequence[Array]) -> list[Counterfactuals]:
        """The same treatments at each group of rows, given by their numbers; ``own`` is then spent."""
        own = [] if self.same is not None else list(self.own)
        return [
            Counterfactuals(
                len(rows),
                None if self.covariates is None else self.covariates[rows],
                self.same,
                iter([treatments[rows] for treatments in own]),
            )
            for rows in members
        ]


class Encoder(Protocol):
    """What a fit remembers of its data: it reads later rows as those of training, and refuses what does not resemble them.

    All methods raise a DataError or a ParameterError for rows or treatments that are not like those of training.
    """

    kind: ClassVar[str]

    @property
    def shape(self) -> tuple[tuple[int, ...], int]:
        """Of one treatment as the structural function takes it, and the number of covariate columns."""
        ...

    @property
    def intercept(self) -> bool:
        """Whether a linear model of these roles has a constant."""
        ...

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns of predictions that training knew as text, which a file may hold as digits."""
        ...

    def inputs(self, rows: Any) -> tuple[Array, Array | None]:
        """Treatments (n, ...) and covariates (n, p) of new rows."""
        ...

    @property
    def treatment_names(self) -> tuple[str, ...]:
        """The treatments as one asks about them, before any formula."""
        ...

    @property
    def reference_rows(self) -> Any:
        """Rows to average over where none are given: those of training that are kept."""
        ...

    def observations(self, rows: Any, *, missing: Missing = "drop", labels: Sequence[str] = ()) -> IVData:
        """Every role of new rows, for held-out criteria; and further columns of their table, in the ``frame``."""
        ...

    def raw(self, rows: Any) -> pd.DataFrame:
        """Treatments and covariates of rows as they came, before any formula."""
        ...

    def treatments_asked(self, name: str, value: Any, *, rows: Any, count: int) -> pd.DataFrame:
        """Treatments that an argument gives, as they came: one row for all of the ``count`` rows, or one for each."""
        ...

    def at(self, rows: Any, treatments: Mapping[str, Any], *, averaged: bool = False) -> Counterfactuals:
        """Rows with other treatments than their own, by the names of the arguments that they were given as.

        Rows with gaps are left out where they are averaged over and training left such rows out too, and refused otherwise.
        """
        ...

    def complete(self, rows: Any, *, treatment: bool = True) -> Any:
        """Rows to average over, by their own treatments or not: without those with gaps, where training left such rows out."""
        ...

    def grid(self, grid: Any, rows: Any | None) -> tuple[pd.DataFrame, Counterfactuals]:
        """A grid of treatments as a table with one row for each, and the rows (of training where None) at all of them."""
        ...

    def covariate_table(self, data: IVData) -> pd.DataFrame:
        """The covariates of encoded rows as they came, before any formula: columns of numbers, or of categories."""
        ...

    def describe(self) -> list[tuple[str, str]]:
        """The roles, for the summary."""
        ...

    def example(self) -> Any:
        """One row at which the structural function has a finite answer."""
        ...

    def to_values(self) -> dict[str, Any]:
        """All that it takes to make the encoder again, as nested values of a model file."""
        ...
