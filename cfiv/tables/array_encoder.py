"""ArrayEncoder: the shapes, names and unit of a fit to arrays, against which later arrays are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from cfiv.arrays import Array, numeric_array
from cfiv.data import ROLES, IVData, column_labels
from cfiv.errors import DataError, ParameterError, quoted
from cfiv.file_values import choice, fields, listed, number, numbers, texts, whole
from cfiv.tables.columns import Missing
from cfiv.tables.encoder import REFERENCE_ROWS, Counterfactuals
from cfiv.tables.treatment_values import one_array

#: Images whose values range over this many times more than those of training, or over this many times less, are in another
#: unit: bytes differ from shares by 255. Much less may also be a dim picture of one's own unit, much more hardly.
TIMES_MORE, TIMES_LESS = 20.0, 100.0
#: What a file holds of it.
SAVED = ("treatment_shape", "covariates", "reference", "pixels", "columns")


@dataclass(frozen=True, eq=False)
class ArrayEncoder:
    """Of a fit to arrays; an :class:`cfiv.tables.encoder.Encoder`.

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
    reference: Array | None = field(repr=False)
    pixels: tuple[float, float] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    kind: ClassVar[str] = "array"
    intercept: ClassVar[bool] = True
    text_columns: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fit(cls, data: IVData) -> ArrayEncoder:
        """Remember the shapes of training arrays."""
        reference, width = None, 0
        if data.covariates is not None:
            stride = max(1, -(-len(data) // REFERENCE_ROWS))
            reference, width = np.array(data.covariates[::stride], dtype=np.float64), data.covariates.shape[1]
        return cls(tuple(data.treatment.shape[1:]), width, reference, _range(data.treatment), data.columns)

    @property
    def shape(self) -> tuple[tuple[int, ...], int]:
        """Of one treatment, and the number of covariate columns."""
        return self.treatment_shape, self.covariates

    def inputs(self, rows: Any) -> tuple[Array, Array | None]:
        """Treatment and covariate arrays, checked against those of training.

        Raises
        ------
        DataError
            For a table, treatments of another shape, images in another unit, another number of covariate columns, or columns
            that are named in another order.
        """
        data = _arrays(rows, "give predict(treatment=..., covariates=...) or an IVData")
        if tuple(data.treatment.shape[1:]) != self.treatment_shape:
            raise DataError(
                f"each treatment must have shape {self.treatment_shape}, as in training, got {data.treatment.shape[1:]}"
            )
        self._check_unit(data.treatment)
        covariates = self._covariates(data)
        for role, columns in data.columns.items():
            self._check_columns(role, columns)
        return data.treatment, covariates

    @property
    def treatment_names(self) -> tuple[str, ...]:
        """``treatment``, or ``treatment0``, ``treatment1``, ... where there are several columns."""
        several = len(self.treatment_shape) == 1 and self.treatment_shape[0] > 1
        return tuple(f"treatment{i}" for i in range(self.treatment_shape[0])) if several else ("treatment",)

    @property
    def reference_rows(self) -> IVData:
        """Covariates of training, with the treatments of :meth:`example`."""
        treatment = self.example().treatment
        rows = 1 if self.reference is None else len(self.reference)
        return IVData(treatment=np.broadcast_to(treatment, (rows, *self.treatment_shape)), covariates=self.reference)

    def observations(self, rows: Any, *, missing: Missing = "drop", labels: Sequence[str] = ()) -> IVData:
        """The same arrays, which have no gaps, checked as by :meth:`inputs`."""
        data = _arrays(rows, "score an IVData")
        self.inputs(data)
        return data

    def raw(self, rows: Any) -> pd.DataFrame:
        """Their columns, treatments first; of images none."""
        treatment, covariates = self.inputs(rows)
        table = pd.DataFrame(treatment, columns=list(self.treatment_names)) if treatment.ndim == 2 else pd.DataFrame()
        return table if covariates is None else table.assign(**{f"covariate{i}": x for i, x in enumerate(covariates.T)})

    def treatments_asked(self, name: str, value: Any, *, rows: Any, count: int) -> pd.DataFrame:
        """One treatment for all rows."""
        one = one_array(name, value, shape=self.treatment_shape, columns=self.columns.get("treatment"))
        return pd.DataFrame(one[None], columns=list(self.treatment_names))

    def at(self, rows: Any, treatments: Mapping[str, Any], *, averaged: bool = False) -> Counterfactuals:
        """Rows with other treatments, each of the shape of those of training and the same for all rows, which have no gaps."""
        data = _arrays(rows, "give an IVData")
        columns = self.columns.get("treatment")
        same = np.stack(
            [one_array(name, value, shape=self.treatment_shape, columns=columns) for name, value in treatments.items()]
        )
        for treatment in same:
            self._check_unit(treatment[None])
        return Counterfactuals(len(data), self._covariates(data), same, iter(()))

    def complete(self, rows: Any, *, treatment: bool = True) -> Any:
        """All of them."""
        return rows

    def grid(self, grid: Any, rows: Any | None) -> tuple[pd.DataFrame, Counterfactuals]:
        """A grid of m treatments as a table: their columns, or the numbers of the images."""
        self._check_columns("treatment", column_labels(grid))
        values = numeric_array("the grid", grid)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim == 0 or len(values) == 0 or tuple(values.shape[1:]) != self.treatment_shape:
            raise ParameterError(
                f"the grid must hold treatments of shape {self.treatment_shape}, as in training, got an array of "
                f"shape {np.shape(grid)}"
            )
        self._check_unit(values)
        covariates = self.reference if rows is None else self.inputs(rows)[1]
        images = values.ndim > 2
        columns = list(self.treatment_names)
        table = pd.DataFrame({"treatment": range(len(values))}) if images else pd.DataFrame(values, columns=columns)
        return table, Counterfactuals(1 if covariates is None else len(covariates), covariates, values, iter(()))

    def covariate_table(self, data: IVData) -> pd.DataFrame:
        """Their columns, as they are."""
        assert data.names is not None
        return pd.DataFrame(data.covariates, columns=list(data.names["covariates"]))

    def describe(self) -> list[tuple[str, str]]:
        """What the arrays were."""
        covariates = f"{self.covariates} columns" if self.covariates else "none"
        return [("Treatment", f"array, one of shape {self.treatment_shape}"), ("Covariates", covariates)]

    def example(self) -> IVData:
        """A treatment of zeros, or of the darkest pixel of training, at covariates of training."""
        treatment = np.full((1, *self.treatment_shape), 0.0 if self.pixels is None else self.pixels[0])
        return IVData(treatment=treatment, covariates=None if self.reference is None else self.reference[:1])

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in SAVED}}

    @classmethod
    def from_values(cls, values: Any) -> ArrayEncoder:
        """From the values of a file, compared with one another.

        Raises
        ------
        Exception
            One of :data:`cfiv.tensor_file.DAMAGE`, for anything else.
        """
        fields(values, "kind", *SAVED)
        shape = tuple(whole(size, 1, 2**62) for size in listed(values["treatment_shape"]))
        if not shape:
            raise ValueError("treatments of no shape")
        covariates, reference, pixels = whole(values["covariates"], 0, 2**62), values["reference"], values["pixels"]
        if (reference is None) != (covariates == 0) or (reference is not None and not len(reference) >= 1):
            raise ValueError(f"rows to average over of {covariates} covariates")
        if reference is not None:
            reference = numbers(reference, (whole(len(reference), 1, REFERENCE_ROWS), covariates))
        if pixels is not None:
            least, greatest = (number(pixel) for pixel in listed(pixels, count=2))
            if least > greatest:
                raise ValueError(f"pixels from {least} to {greatest}")
            pixels = (least, greatest)
        columns = {choice(role, ROLES): texts(names) for role, names in dict.items(values["columns"])}
        return cls(shape, covariates, reference, pixels, columns)

    def _covariates(self, data: IVData) -> Array | None:
        width = 0 if data.covariates is None else data.covariates.shape[1]
        if width != self.covariates:
            raise DataError(
                f"training had {self.covariates} covariate columns, got {width}: give covariates=array of shape (n, "
                f"{self.covariates})"
            )
        self._check_columns("covariates", data.columns.get("covariates"))
        covariates: Array | None = data.covariates
        return covariates

    def _check_columns(self, role: str, columns: Sequence[str] | None) -> None:
        """Raise where both these columns and those of training have names, and not the same in the same order."""
        trained = self.columns.get(role)
        if columns is not None and trained is not None and list(columns) != list(trained):
            raise DataError(
                f"the columns of {role} are {quoted(columns)}, those of training were {quoted(trained)}: give them in that "
                "order, or .to_numpy() to go by position"
            )

    def _check_unit(self, treatment: Array) -> None:
        """Raise where images range over some orders of magnitude more or less than in training; one grey alone says nothing."""
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


def _arrays(rows: Any, remedy: str) -> IVData:
    if not isinstance(rows, IVData):
        raise DataError(f"the estimator was fitted to arrays, got {type(rows).__name__}: {remedy}")
    return rows
