"""StructuralFunction: the frozen result of every estimator, and what one asks of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cfiv.arrays import Array, numeric_array
from cfiv.data import IVData, column_labels, read_table
from cfiv.errors import DataError, ParameterError, quoted
from cfiv.estimators.components import Component
from cfiv.estimators.treatment_values import grid_table, one_array, values_by_column
from cfiv.memory import within_memory
from cfiv.rendering import shown
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.tables.encoding import TableEncoder

#: Images whose values range over this many times more than those of training, or over this many times less, are in another
#: unit: bytes differ from shares by 255. Much less may also be a dim picture of one's own unit, much more hardly.
TIMES_MORE, TIMES_LESS = 20.0, 100.0


@dataclass(frozen=True, eq=False)
class ArrayEncoder:
    """Shapes of a fit to arrays, against which later arrays are checked.

    Parameters
    ----------
    treatment_shape : tuple of int
        Shape of one treatment.
    covariates : int
        Number of covariate columns; 0 where there are none.
    reference : array (m, covariates), optional
        Rows of the training covariates to average over.
    pixels : (float, float), optional
        The least and the greatest value of the training images; None where treatments are columns.
    columns : mapping from role to names
        Of the columns of the roles that were given as tables of several columns.
    """

    treatment_shape: tuple[int, ...]
    covariates: int
    reference: Array | None
    pixels: tuple[float, float] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def fit(cls, data: IVData) -> ArrayEncoder:
        """Remember the shapes of training arrays."""
        reference = None
        if data.covariates is not None:
            stride = max(1, -(-len(data) // TableEncoder.REFERENCE_ROWS))
            reference = np.array(data.covariates[::stride], dtype=np.float64)
        width = 0 if data.covariates is None else data.covariates.shape[1]
        return cls(tuple(data.treatment.shape[1:]), width, reference, _range(data.treatment), data.columns)

    def inputs(self, data: IVData) -> tuple[Array, Array | None]:
        """Treatment and covariate arrays, checked against those of training.

        Raises
        ------
        DataError
            For treatments of another shape, images in another unit, another number of covariate columns, or columns that are
            named in another order.
        """
        if tuple(data.treatment.shape[1:]) != self.treatment_shape:
            raise DataError(
                f"each treatment must have shape {self.treatment_shape}, as in training, got {data.treatment.shape[1:]}"
            )
        self.check_unit(data.treatment)
        width = 0 if data.covariates is None else data.covariates.shape[1]
        if width != self.covariates:
            raise DataError(
                f"training had {self.covariates} covariate columns, got {width}: give covariates=array of shape (n, "
                f"{self.covariates})"
            )
        for role, columns in data.columns.items():
            self.check_columns(role, columns)
        return data.treatment, data.covariates

    def check_columns(self, role: str, columns: Sequence[str] | None) -> None:
        """Raise a DataError where both these columns and those of training have names, and not the same in the same order."""
        trained = self.columns.get(role)
        if columns is not None and trained is not None and list(columns) != list(trained):
            raise DataError(
                f"the columns of {role} are {quoted(columns)}, those of training were {quoted(trained)}: give them in that "
                "order, or .to_numpy() to go by position"
            )

    def check_unit(self, treatment: Array) -> None:
        """Raise where images are in another unit than those of training; one grey alone says nothing of its unit.

        Raises
        ------
        DataError
            If their values range over some orders of magnitude more, or less, than those of training.
        """
        pixels, training = _range(treatment), self.pixels
        if pixels is None or training is None:
            return
        wide, trained = pixels[1] - pixels[0], training[1] - training[0]
        if wide > TIMES_MORE * trained or 0.0 < TIMES_LESS * wide < trained:
            raise DataError(
                f"the images hold values from {pixels[0]:.3g} to {pixels[1]:.3g}, those of training {training[0]:.3g} to "
                f"{training[1]:.3g}: give them in the unit of training (0..1 and 0..255 differ by a factor of 255)"
            )


def _range(treatment: Array) -> tuple[float, float] | None:
    return (float(treatment.min()), float(treatment.max())) if treatment.ndim > 2 else None


@dataclass(frozen=True, eq=False)
class StructuralFunction:
    """An estimate of ``h`` in ``Y = h(T, X) + e``, ``E[e | Z, X] = 0``: the average of its components.

    Parameters
    ----------
    estimator : str
        The estimator that made it.
    components : tuple of Component
        Functions that are averaged with equal weights (the fits on swapped and repeated splits).
    encoder : TableEncoder or ArrayEncoder
        How rows become treatment and covariate arrays.
    outcome : str
        The outcome's name.
    facts : mapping
        What the estimator says of the fit, for the summary: numbers and short texts.
    """

    estimator: str
    components: tuple[Component, ...]
    encoder: TableEncoder | ArrayEncoder
    outcome: str = "outcome"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns whose categories were text in training: from a file they are to be read as text, or 007 would be 7."""
        return self.encoder.text_columns if isinstance(self.encoder, TableEncoder) else ()

    def predict(self, rows: Any = None, *, treatment: Any = None, covariates: Any = None) -> Array:
        """``h`` at given treatments and covariates; neither instruments nor an outcome are needed.

        Parameters
        ----------
        rows : table or IVData, optional
            A table with the treatment and covariate columns, or arrays in their roles.
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
        """
        if rows is None:
            rows = IVData(treatment=treatment, covariates=covariates)
        elif treatment is not None or covariates is not None:
            raise ParameterError("give either rows, or treatment and covariates, got both")
        return self._evaluate(*self._inputs(rows))

    def effect(self, rows: Any, *, treatment_from: Any, treatment_to: Any) -> Array:
        """``h(treatment_to, x) - h(treatment_from, x)`` at the covariates of each row.

        Parameters
        ----------
        rows : table or IVData
            Where the covariates are; its treatment columns are replaced and may be absent.
        treatment_from, treatment_to : number, sequence, mapping, Series or table
            One number (or category) for one treatment, one each for several, or a mapping from column to number, or to one
            number a row. For arrays, one treatment of the training shape. Labels of a Series are heeded: those of columns, and
            those of rows, which must be the labels of ``rows``.

        Returns
        -------
        array (n,), float64
            In the outcome's units.

        Raises
        ------
        ParameterError, DataError
            Where a treatment is not covered, and as in :meth:`predict`.
        """
        at_to = self._at(rows, "treatment_to", treatment_to)
        return at_to - self._at(rows, "treatment_from", treatment_from)

    def dose_response(self, grid: Any, rows: Any = None) -> pd.DataFrame:
        """The structural function against treatment, averaged over covariates: ``mean_i h(t, X_i)`` for each t, unweighted.

        Parameters
        ----------
        grid : sequence, table or array (m, ...)
            Treatment values: a sequence for one treatment, a table (or mapping) with a column for each of several. For arrays,
            m treatments of the training shape.
        rows : table or IVData, optional
            Rows to average over; by default up to 2000 rows of the training data, evenly spread, which the function keeps.

        Returns
        -------
        DataFrame
            The treatment column(s) and ``estimate``, one row a grid point, in the grid's order.

        Raises
        ------
        ParameterError, DataError
            Where the grid has other columns or shapes than the treatments of training, and as in :meth:`predict`.
        """
        if isinstance(self.encoder, ArrayEncoder):
            self.encoder.check_columns("treatment", column_labels(grid))
            values = numeric_array("the grid", grid)
            values = values[:, None] if values.ndim == 1 else values
            if values.ndim == 0 or len(values) == 0 or tuple(values.shape[1:]) != self.encoder.treatment_shape:
                raise ParameterError(
                    f"the grid must hold treatments of shape {self.encoder.treatment_shape}, as in training, got an array of "
                    f"shape {np.shape(grid)}"
                )
            self.encoder.check_unit(values)
            covariates = self.encoder.reference if rows is None else self._inputs(rows)[1]
            estimates = [self._average(value, covariates) for value in values]
            flat = values.reshape(len(values), -1)
            names = ["treatment"] if flat.shape[1] == 1 else [f"treatment{i}" for i in range(flat.shape[1])]
            table = pd.DataFrame(flat, columns=names) if values.ndim == 2 else pd.DataFrame({"treatment": range(len(values))})
            return table.assign(estimate=estimates)
        table = grid_table(grid, columns=self.encoder.treatment_columns)
        frame = self.encoder.reference if rows is None else read_table(rows)
        points = table.to_dict("records")
        return table.assign(estimate=[float(self._at(frame, "the grid", point).mean()) for point in points])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model file (safetensors with a JSON header; nothing executable). See :func:`load`.

        The file holds the networks and coefficients, the formulas, and the up to 2000 rows of treatment and covariates that
        :meth:`dose_response` averages over: do not publish it where those rows are confidential.

        Raises
        ------
        ModelFileError
            If the function holds something that no file can.
        OutputError
            If the place cannot be written to. An existing file is replaced only once the new one is whole.
        """
        from cfiv.estimators.model_file import write_model

        write_model(self, path)

    def summary(self) -> Summary:
        """What was estimated, how, and from what; text in a terminal, a table in a notebook."""
        lines: list[tuple[str, str]] = [("Estimator", self.estimator)]
        if isinstance(self.encoder, TableEncoder):
            roles = self.encoder.roles
            lines += [("Outcome", roles.outcome), ("Treatment", roles.treatment), ("Instruments", roles.instruments)]
            lines += [("Covariates", roles.covariates or "none")] + ([("Weights", roles.weights)] if roles.weights else [])
        else:
            lines += [("Treatment", f"array, one of shape {self.encoder.treatment_shape}")]
            lines += [("Covariates", f"{self.encoder.covariates} columns" if self.encoder.covariates else "none")]
        lines += [(name, shown(value)) for name, value in self.facts.items() if not isinstance(value, (list, tuple))]
        tables = {name: value for name, value in self.facts.items() if isinstance(value, (list, tuple))}
        return Summary("Structural function", tuple(lines), tables)

    def _inputs(self, rows: Any) -> tuple[Array, Array | None]:
        if isinstance(self.encoder, ArrayEncoder):
            if not isinstance(rows, IVData):
                raise DataError(
                    f"the estimator was fitted to arrays, got {type(rows).__name__}: give predict(treatment=..., "
                    "covariates=...) or an IVData"
                )
            return self.encoder.inputs(rows)
        with within_memory(f"{self.estimator}'s structural function", "give fewer rows at a time"):
            return self.encoder.inputs(read_table(rows))

    def _at(self, rows: Any, name: str, value: Any) -> Array:
        """``h`` at the rows' covariates and one treatment value, the argument ``name``."""
        if isinstance(self.encoder, ArrayEncoder):
            if not isinstance(rows, IVData):
                raise DataError(f"the estimator was fitted to arrays: give an IVData, got {type(rows).__name__}")
            columns = self.encoder.columns.get("treatment")
            one = one_array(name, value, shape=self.encoder.treatment_shape, columns=columns)
            same = np.broadcast_to(one, (len(rows), *one.shape))
            self.encoder.check_columns("covariates", rows.columns.get("covariates"))
            return self._evaluate(*self.encoder.inputs(IVData(treatment=same, covariates=rows.covariates)))
        value = values_by_column(name, value, rows=rows)
        return self._evaluate(*self.encoder.inputs(self.encoder.with_treatment(read_table(rows), value)))

    def _average(self, value: Array, covariates: Array | None) -> float:
        rows = 1 if covariates is None else len(covariates)
        same = IVData(treatment=np.broadcast_to(value, (rows, *value.shape)), covariates=covariates)
        return float(self._evaluate(same.treatment, same.covariates).mean())

    def _evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        whose = f"{self.estimator}'s structural function"
        with (
            within_memory(whose, "give fewer rows at a time"),
            ordinary_torch(),
            np.errstate(over="ignore", invalid="ignore"),  # said below
        ):
            values = [component.evaluate(treatment, covariates) for component in self.components]
            mean: Array = np.mean(values, axis=0)
        finite = np.isfinite(mean)
        if not finite.all():
            raise DataError(
                f"{int((~finite).sum())} of {len(mean)} predictions are not finite (first: row {int((~finite).argmax())}): "
                "their treatments or covariates are out of all proportion to those of training; predict at others"
            )
        return mean


@dataclass(frozen=True)
class Summary:
    """Lines of name and value, and tables of records; prints as text, and as HTML in a notebook."""

    title: str
    lines: tuple[tuple[str, str], ...]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        parts = [self.title, "=" * len(self.title), *(f"{name:<{width}}  {value}" for name, value in self.lines)]
        for name, records in self.tables.items():
            parts += ["", name, pd.DataFrame(list(records)).to_string(index=False, float_format=shown)]
        return "\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><th style='text-align:left'>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in self.lines)
        tables = "".join(
            f"<p>{escape(name)}</p>{pd.DataFrame(list(records)).to_html(index=False, float_format=shown)}"
            for name, records in self.tables.items()
        )
        return f"<table><caption>{escape(self.title)}</caption>{rows}</table>{tables}"


def load(path: str | os.PathLike[str], *, networks: Mapping[str, Any] | None = None) -> StructuralFunction:
    """Read a model file written by ``save``.

    Parameters
    ----------
    path : path
    networks : mapping, optional
        For models with networks that are not cfiv's own: ``{"treatment": factory or module, "covariate": ...}`` of the same
        architecture; a file holds weights, not code.

    Returns
    -------
    StructuralFunction
        Whose predictions equal those of the one saved, bit for bit on the same machine.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged in any bit, foreign, from a newer version, or needs ``networks``.
    """
    from cfiv.estimators.model_file import read_model

    return read_model(path, networks=networks or {})
