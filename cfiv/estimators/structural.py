"""StructuralFunction: the frozen result of every estimator, and what one asks of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from cfiv.arrays import Array
from cfiv.data import IVData
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.components import Component, averaged
from cfiv.estimators.saved_components import component_to_values
from cfiv.estimators.summary import Summary
from cfiv.estimators.support import Support
from cfiv.mapped import BLOCK_ROWS, is_mapped, release
from cfiv.memory import within_memory
from cfiv.rendering import shown
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.tables.encoder import Counterfactuals, Encoder
from cfiv.tables.groups import Groups
from cfiv.tensor_file import TensorFile

#: Values of several treatments at all rows that are held at once, 64 MB; of one treatment where there are more rows.
BLOCK = 2**23
#: A point of a dose response is supported where its treatment was seen at this share of the rows that are averaged over.
MOST = 0.5
FORMAT_VERSION = 4
#: Of what models it is not known which treatments training has seen.
UNKNOWN = "of images, and of model files written before it was kept"
#: The fact of an outcome with two values, and by how much of their distance a prediction may miss them.
OUTSIDE, ROUNDING = "Predicted outside", 1e-6
MODEL_FILE = TensorFile(
    key="cfiv",
    version=FORMAT_VERSION,
    digested=3,
    noun="model file",
    remedy="save it again",
    otherwise="leave out what it belongs to, or compute that column first",
)


@dataclass(frozen=True, eq=False)
class StructuralFunction:
    """An estimate of ``h`` in ``Y = h(T, X) + e``, ``E[e | Z, X] = 0``: the average of its components, or a mixture of them.

    Parameters
    ----------
    estimator : str
        The estimator that made it.
    components : tuple of Component
        Functions that are averaged (the fits on swapped and repeated splits, and what they are nested in).
    encoder : Encoder
        How rows become treatment and covariate arrays.
    outcome : str
        The outcome's name.
    facts : mapping
        What the estimator says of the fit, for the summary: numbers and short texts.
    shares : tuple of float
        What each component counts for; none where all count alike.
    support : Support, optional
        Where training has seen treatments. None where that is not known: for images, and models of files that were written
        before it was kept.
    """

    estimator: str
    components: tuple[Component, ...]
    encoder: Encoder
    outcome: str = "outcome"
    facts: Mapping[str, Any] = field(default_factory=dict)
    shares: tuple[float, ...] = ()
    support: Support | None = None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns whose categories were text in training: from a file they are to be read as text, or 007 would be 7."""
        return self.encoder.text_columns

    def predict(self, rows: Any = None, *, treatment: Any = None, covariates: Any = None) -> Array:
        """``h`` at given treatments and covariates; neither instruments nor an outcome are needed.

        Parameters
        ----------
        rows : table, path or IVData, optional
            A table with the treatment and covariate columns, the path of a Parquet file or folder that has them, which is read
            block by block, or arrays in their roles.
        treatment, covariates : array, optional
            Instead of ``rows``, for estimators fitted to arrays.

        Returns
        -------
        array (n,), float64
            In the outcome's units, in the order of the rows.

        Raises
        ------
        DataError
            For missing columns, gaps, infinities, unseen categories, shapes other than in training, or images in another unit
            (0..255 where training had 0..1, or the reverse).
        TooLargeError
            If there is not enough memory for so many rows at a time.

        Warns
        -----
        UnsupportedTreatmentWarning
            Where training has seen no treatments like those of 5 % of the rows at such covariates, or a row is far from all
            that it has seen, as in another unit; :meth:`supported` tells which.
        """
        with self._within_memory():
            treatment, covariates = self._inputs(rows, treatment, covariates)
            values = self._at(treatment, covariates)
            if self.support is not None:
                seen = self.support.covers(treatment, covariates)
                self.support.warn_outside(seen, treatment, covariates, what="rows")
            return values

    def supported(self, rows: Any = None, *, treatment: Any = None, covariates: Any = None) -> Array:
        """Whether training has seen treatments like that of each row, at covariates like those of the row.

        Elsewhere ``h`` is a guess. Seen is what lies in the range of the treatments of training rows with like covariates, a
        little widened: of rows from where those of training came from, fewer than one in a hundred lie outside.

        Parameters
        ----------
        rows, treatment, covariates
            As for :meth:`predict`.

        Returns
        -------
        array (n,), bool

        Raises
        ------
        ParameterError
            If it is not known: of images, and of models from files that were written before it was kept.
        DataError
            As :meth:`predict`.
        """
        with self._within_memory():
            inputs = self._inputs(rows, treatment, covariates)
            if self.support is None:
                raise ParameterError(f"it is not known where training has seen treatments ({UNKNOWN}): leave it out")
            return self.support.covers(*inputs)

    @overload
    def effect(self, rows: Any = None, *, treatment_from: Any, treatment_to: Any, by: None = None) -> Array: ...

    @overload
    def effect(self, rows: Any = None, *, treatment_from: Any, treatment_to: Any, by: Any) -> pd.DataFrame: ...

    def effect(self, rows: Any = None, *, treatment_from: Any, treatment_to: Any, by: Any = None) -> Array | pd.DataFrame:
        """``h(treatment_to, x) - h(treatment_from, x)`` at the covariates of each row.

        Parameters
        ----------
        rows : table, path or IVData, optional
            Where the covariates are; its treatment columns are replaced and may be absent. By default the rows that
            :meth:`dose_response` averages over.
        treatment_from, treatment_to : number, sequence, mapping, Series or table
            One number (or category) for one treatment, one each for several, or a mapping from column to number, or to one
            number a row. For arrays, one treatment of the training shape. Labels of a Series are heeded: those of columns, and
            those of rows, which must be the labels of ``rows``.
        by : str or labels (n,), optional
            A column of ``rows``, or one label a row: effects are then averaged over the rows of each.

        Returns
        -------
        array (n,), float64, or DataFrame
            In the outcome's units. With ``by`` a row a group: its label, ``rows``, how many it has, and ``estimate``, the mean
            of the effects of its rows. :meth:`cfiv.Inference.effect` has intervals for these.

        Raises
        ------
        ParameterError, DataError
            Where a treatment is not covered, and as in :meth:`predict`.

        Warns
        -----
        MissingRowsWarning
            With ``by``, and where the fit left rows with gaps out: with the number of rows left out of the averages.
        UnsupportedTreatmentWarning
            As :meth:`predict`, of either treatment.
        """
        treatments = {"treatment_to": treatment_to, "treatment_from": treatment_from}
        rows = self.encoder.reference_rows if rows is None else rows
        with self._within_memory():
            asked = self.encoder.at(rows, treatments, averaged=by is not None)
            (to, at_to), (other, at_from) = self._each(asked)
            if self.support is not None:
                places = self.support.places(asked.covariates, asked.rows)
                for name, treatment in zip(treatments, (to, other), strict=True):
                    seen = self.support.at(places, treatment)
                    self.support.warn_outside(seen, treatment, asked.covariates, what=f"rows at {name}")
        effects = at_to - at_from
        if by is None:
            return effects
        groups = Groups.of(by, rows, count=asked.given, kept=asked.kept, beside=("estimate",))
        return groups.table().assign(estimate=[float(effects[members].mean()) for members in groups.members])

    def dose_response(self, grid: Any, rows: Any = None) -> pd.DataFrame:
        """The structural function against treatment, averaged over covariates: ``mean_i h(t, X_i)`` for each t, unweighted.

        Parameters
        ----------
        grid : sequence, table or array (m, ...)
            Treatment values: a sequence for one treatment, a table (or mapping) with a column for each of several. For arrays,
            m treatments of the training shape.
        rows : table, path or IVData, optional
            Rows to average over; by default up to 2000 rows of the training data, evenly spread, which the function keeps.

        Returns
        -------
        DataFrame
            The treatment column(s), ``estimate`` and ``supported``, one row a grid point, in the grid's order. A point is
            supported where training has seen its treatment at the covariates of half of the rows or more. There is no such
            column where that is not known: of images, and of models from files that were written before it was kept.

        Raises
        ------
        ParameterError, DataError
            Where the grid has other columns or shapes than the treatments of training, and as in :meth:`predict`.

        Warns
        -----
        MissingRowsWarning
            With the number of rows with gaps, left out of the average where the fit left such rows out.
        UnsupportedTreatmentWarning
            Where 5 % of the points are not supported, or one is far from all treatments of training.

        Notes
        -----
        Covariates are encoded once, and what depends on them alone is computed once: tens of points cost a few predictions of
        the same rows. Where treatment terms hold covariates, as in ``price:time``, each point costs one.
        """
        with self._within_memory():
            table, asked = self.encoder.grid(grid, rows)
            if self.support is None:
                return table.assign(estimate=[float(values.mean()) for _, values in self._each(asked)])
            places, estimates, seen, points = self.support.places(asked.covariates, asked.rows), [], [], []
            for treatment, values in self._each(asked):
                estimates.append(float(values.mean()))
                seen.append(bool(self.support.at(places, treatment).mean() >= MOST))
                points.append(treatment[:1])
            self.support.warn_outside(np.array(seen), np.concatenate(points), None, what="points of the grid")
            return table.assign(estimate=estimates, supported=seen)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file (safetensors with a JSON header; nothing executable). See :func:`cfiv.load`.

        The file holds the networks and coefficients, the formulas, and the up to 2000 rows of treatment and covariates that
        :meth:`dose_response` averages over: do not publish it where those rows are confidential.

        Raises
        ------
        ModelFileError
            If the function holds something that no file can.
        OutputError
            If the place cannot be written to. An existing file is replaced only once the new one is whole.
        """
        MODEL_FILE.write(Path(path), self.to_values())

    def to_values(self) -> dict[str, Any]:
        """All that a file holds of it."""
        return {
            "estimator": self.estimator,
            "outcome": self.outcome,
            "facts": self.facts,
            "encoder": self.encoder.to_values(),
            "components": [component_to_values(component) for component in self.components],
            "shares": list(self.shares),
            "support": None if self.support is None else self.support.to_values(),
        }

    def summary(self) -> Summary:
        """What was estimated, how, and from what; text in a terminal, a table in a notebook."""
        lines = [("Estimator", self.estimator), *self.encoder.describe()]
        lines.append(("Treatments seen", f"not known ({UNKNOWN})" if self.support is None else self.support.describe()))
        lines += [(name, shown(value)) for name, value in self.facts.items() if not isinstance(value, (list, tuple))]
        tables = {name: value for name, value in self.facts.items() if isinstance(value, (list, tuple))}
        return Summary("Structural function", tuple(lines), tables)

    def __repr__(self) -> str:
        """One line, without the rows that it keeps."""
        said = ", ".join(f"{name.lower()} {value}" for name, value in self.encoder.describe())
        rows = f", {shown(self.facts['Rows'])} rows" if "Rows" in self.facts else ""
        return f"<StructuralFunction by {self.estimator}: {said}{rows}>"

    def aware_of_bounds(self, data: IVData) -> StructuralFunction:
        """The same, with the fact of how many rows are predicted outside of an outcome's two values, if it has two."""
        least, greatest = float(data.outcome.min()), float(data.outcome.max())
        if not ((data.outcome == least) | (data.outcome == greatest)).all():
            return self
        with self._within_memory():
            values = self._at(data.treatment, data.covariates)
        excess = np.maximum(least - values, values - greatest)
        count = int((excess > ROUNDING * (greatest - least)).sum())
        said = f"{count:,} of {len(data):,} rows of training, for nothing keeps a prediction in [{least:g}, {greatest:g}]"
        return replace(self, facts={**self.facts, OUTSIDE: said})

    def _inputs(self, rows: Any, treatment: Any, covariates: Any) -> tuple[Array, Array | None]:
        """Treatments and covariates of rows, or as they were given."""
        if rows is None:
            rows = IVData(treatment=treatment, covariates=covariates)
        elif treatment is not None or covariates is not None:
            raise ParameterError("give either rows, or treatment and covariates, got both")
        return self.encoder.inputs(rows)

    def _each(self, asked: Counterfactuals) -> Iterator[tuple[Array, Array]]:
        """One treatment after the other, (n, ...) or (1, ...) where all rows have the same, and ``h`` there, shape (n,)."""
        if asked.same is None:
            for treatment in asked.own:
                yield treatment, self._at(treatment, asked.covariates)
            return
        many = max(1, BLOCK // asked.rows)
        for start in range(0, len(asked.same), many):
            treatments = asked.same[start : start + many]
            block = self._finite(self._mean(component.cross(treatments, asked.covariates) for component in self.components))
            yield from zip(treatments[:, None], np.broadcast_to(block, (len(treatments), asked.rows)), strict=True)

    def _at(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,); of columns on disk a block of rows at a time."""
        many, parts = BLOCK_ROWS if treatment.ndim == 2 and is_mapped(treatment) else len(treatment), []
        for start in range(0, len(treatment), many):
            block = slice(start, start + many)
            own, given = treatment[block], None if covariates is None else covariates[block]
            parts.append(self._mean(component.evaluate(own, given) for component in self.components))
            release(treatment, covariates)
        return self._finite(np.concatenate(parts))

    def _mean(self, values: Iterable[Array]) -> Array:
        """Of the components' values, two of which are held at once."""
        return averaged(values, self.shares, count=len(self.components))

    def _finite(self, mean: Array) -> Array:
        """Values (n,) or (b, n), refused where one is no number."""
        finite = np.isfinite(mean)
        if not finite.all():
            rows = finite.reshape(-1, finite.shape[-1])
            bad = ~rows[int(rows.all(axis=1).argmin())]  # at one treatment
            raise DataError(
                f"{int(bad.sum())} of {len(bad)} predictions are not finite (first: row {int(bad.argmax())}): "
                "their treatments or covariates are out of all proportion to those of training; predict at others"
            )
        return mean

    @contextmanager
    def _within_memory(self) -> Iterator[None]:
        """The surroundings of all computations; numbers that overflow are refused by :meth:`_finite`."""
        with (
            within_memory(f"{self.estimator}'s structural function", "give fewer rows at a time"),
            ordinary_torch(),
            np.errstate(over="ignore", invalid="ignore"),
        ):
            yield
