"""Support: which treatments training has seen, and at which covariates; beyond them a structural function is a guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cfiv.arrays import Array
from cfiv.data import IVData
from cfiv.errors import UnsupportedTreatmentWarning, warn
from cfiv.estimators.support_cells import Cells, Ends
from cfiv.file_values import fields, number, numbers, texts

#: Rows that are looked at, and values of them, at most; the ranges over all rows are those of all rows.
ROWS, VALUES, FEWEST_ROWS, MANY_ROWS = 10_000, 250_000, 1_000, 1_000_000
#: What ranges of treatments and of covariates are widened by at least, as shares of their widths.
TREATMENT_MARGIN, COVARIATE_MARGIN = 0.05, 0.5
#: A column that is the same in all rows of a cell counts as this wide, as a share of its width over all rows.
NARROWEST = 1e-3
#: Ordinary rows may lie outside now and then: a smaller share is worth no warning, unless one lies so many widths of the range
#: of training beyond it.
FEW, FAR = 0.05, 3.0
#: Columns that a summary shows.
SHOWN = 4


@dataclass(frozen=True, eq=False)
class Support:
    """Ranges of the treatments within cells of like covariates, and ranges of the covariates. It holds no rows.

    Ranges are those of training, widened by a share of their width. That share is chosen on rows that the cells were not made
    from, so that nearly all of them lie within what the others of their cell span: fresh rows from where training came from are
    rarely marked, whatever their distribution and however many columns there are. A treatment between two that were seen counts
    as seen.

    Parameters
    ----------
    names : tuple of str
        Of the columns of treatments, then of covariates.
    least, greatest : array (k + p,)
        Their ranges in training, as they were.
    slack : float
        What those of covariates are widened by, as a share of their width.
    cells : Cells
    lower, upper : array (nodes of the cells, k)
        Ranges of treatments in each cell, widened.
    """

    names: tuple[str, ...]
    least: Array
    greatest: Array
    slack: float
    cells: Cells
    lower: Array
    upper: Array

    @classmethod
    def of(cls, data: IVData) -> Support | None:
        """Of the rows of training; None for images, of which single pixels say nothing."""
        if data.treatment.ndim > 2:
            return None
        assert data.names is not None
        names = (*data.names["treatment"], *data.names.get("covariates", ()))
        parts = [data.treatment] if data.covariates is None else [data.treatment, data.covariates]
        least, greatest = (np.concatenate([end(part, axis=0) for part in parts]).astype(np.float64) for end in (np.min, np.max))
        order = _some_rows(len(data), at_most=min(ROWS, max(FEWEST_ROWS, VALUES // len(names))))
        treatments = _columns(data.treatment[order], len(order))
        covariates = _columns(None if data.covariates is None else data.covariates[order], len(order))
        half, k, width = len(order) // 2, treatments.shape[1], greatest - least
        cells = Cells.grow(treatments[:half], covariates[:half])
        one, places = np.zeros(len(order), dtype=np.int64), cells.of(covariates)
        slack = Ends.of(covariates, one, 1).margin(covariates, one, narrowest=NARROWEST * width[k:], at_least=COVARIATE_MARGIN)
        narrowest, width = NARROWEST * width[:k], width[:k]
        overall = Ends.of(treatments, one, 1).margin(treatments, one, narrowest=narrowest, at_least=TREATMENT_MARGIN)
        ends, fresh = Ends.of(treatments, places, len(cells)), slice(half if len(cells) > 1 else 0, None)
        within = ends.margin(treatments[fresh], places[fresh], narrowest=narrowest, at_least=TREATMENT_MARGIN)
        room = within * np.maximum(ends.greatest - ends.least, narrowest)
        lower = np.maximum(ends.least - room, least[:k] - overall * width)
        upper = np.minimum(ends.greatest + room, greatest[:k] + overall * width)
        return cls(names, least, greatest, slack, cells, lower, upper)

    def places(self, covariates: Array | None, rows: int) -> Array:
        """The cell of each of so many rows, shape (rows,); -1 where the covariates are none that were seen."""
        values, k = _columns(covariates, rows), self.lower.shape[1]
        least, greatest = self.least[k:], self.greatest[k:]
        slack = self.slack * (greatest - least)
        seen = ((values >= least - slack) & (values <= greatest + slack)).all(axis=1)
        return np.where(seen, self.cells.of(values), -1)

    def at(self, places: Array, treatments: Array) -> Array:
        """Whether treatments (n, k), or one for all (1, k), were seen in the cells (n,) of rows; shape (n,), bool."""
        seen = (treatments >= self.lower[places]) & (treatments <= self.upper[places])
        return np.asarray(seen.all(axis=1) & (places >= 0))

    def covers(self, treatments: Array, covariates: Array | None) -> Array:
        """Whether each treatment (n, k) was seen at such covariates (n, p); shape (n,), bool."""
        return self.at(self.places(covariates, len(treatments)), treatments)

    def warn_outside(self, seen: Array, treatments: Array, covariates: Array | None, *, what: str) -> None:
        """Warn where more than a few of some rows are not among those seen, or one is far from them.

        Parameters
        ----------
        seen : array (n,) bool
        treatments : array (n, k) or (1, k)
        covariates : array (n, p), optional
            Left out where rows are averaged over.
        what : str
            What the rows are called.

        Warns
        -----
        UnsupportedTreatmentWarning
        """
        if seen.all():
            return
        rows = np.broadcast_to(_columns(treatments, len(seen)), (len(seen), treatments.shape[1]))
        values = np.concatenate([rows[~seen], _columns(covariates, len(seen))[~seen]], axis=1)
        least, greatest = self.least[: values.shape[1]], self.greatest[: values.shape[1]]
        width = np.where(greatest > least, greatest - least, np.maximum(np.abs(greatest), np.finfo(np.float64).tiny))
        beyond = np.maximum(least - values, values - greatest) / width
        if len(values) < FEW * len(seen) and beyond.max() <= FAR:
            return
        reason = "such treatments were seen, but not at such covariates"
        margin = np.full(values.shape[1], self.slack)
        margin[: treatments.shape[1]] = TREATMENT_MARGIN
        if (beyond > margin).any():
            column = int((beyond - margin).max(axis=0).argmax())
            there = values[beyond[:, column] > margin[column], column]
            trained = _span(np.array([least[column], greatest[column]]))
            reason = f"{self.names[column]!r} is {_span(there)} there, and was {trained} in training"
        warn(
            f"{len(values)} of {len(seen)} {what} are outside of what training has seen: {reason}; the structural function is "
            "a guess there (supported tells where), so ask elsewhere",
            UnsupportedTreatmentWarning,
        )

    def describe(self) -> str:
        """The ranges of treatments, for the summary."""
        k = self.lower.shape[1]
        ranges = np.stack([self.least, self.greatest], axis=1)[: min(k, SHOWN)]
        spans = [f"{name} {_span(ends)}" for name, ends in zip(self.names, ranges, strict=False)]
        return ", ".join(spans) + (f", ... ({k} columns)" if k > SHOWN else "")

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {**vars(self), "cells": self.cells.to_values()}

    @classmethod
    def from_values(cls, values: Any, *, treatments: int, covariates: int) -> Support:
        """From the values of a file, compared with the numbers of columns.

        Raises
        ------
        Exception
            One of :data:`cfiv.tensor_file.DAMAGE`, for anything else.
        """
        fields(values, "names", "least", "greatest", "slack", "cells", "lower", "upper")
        names = texts(values["names"])
        if len(names) != treatments + covariates:
            raise ValueError(f"{len(names)} names of {treatments} treatments and {covariates} covariates")
        cells = Cells.from_values(values["cells"], covariates=covariates)
        return cls(
            names,
            numbers(values["least"], (len(names),)),
            numbers(values["greatest"], (len(names),)),
            number(values["slack"]),
            cells,
            numbers(values["lower"], (len(cells), treatments)),
            numbers(values["upper"], (len(cells), treatments)),
        )


def _some_rows(rows: int, *, at_most: int) -> Array:
    """Numbers of some rows at random, always the same."""
    generator = np.random.default_rng(0)
    if rows > MANY_ROWS:  # a permutation takes as long as a regression of them
        return generator.choice(rows, at_most, replace=False)
    return generator.permutation(rows)[:at_most]


def _columns(values: Array | None, rows: int) -> Array:
    """As float64; (rows, 0) where there are none."""
    return np.zeros((rows, 0)) if values is None else values.astype(np.float64, copy=False)


def _span(values: Array) -> str:
    """From the least to the greatest."""
    return " to ".join(dict.fromkeys(f"{end:.4g}" for end in (values.min(), values.max())))
