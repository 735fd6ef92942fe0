"""Encoders as nested values of a model file, and back: compared with what their roles and formulas call for."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from cfiv.estimators.saved_components import Inputs
from cfiv.estimators.structural import ArrayEncoder
from cfiv.file_values import choice, fields, flag, like, listed, number, numbers, scalar, text, texts, whole
from cfiv.tables.encoding import PartState, TableEncoder
from cfiv.tables.roles import Roles
from cfiv.tables.terms import category_columns, columns_asked_for, raw_columns

#: Columns of a spline that its constraints may take away.
SPARE = 4
PARTS = ("outcome", "treatment", "instruments", "covariates")


def encoder_to_values(encoder: TableEncoder | ArrayEncoder) -> dict[str, Any]:
    """All that :func:`encoder_from_values` needs."""
    if isinstance(encoder, ArrayEncoder):
        return {
            "kind": "array",
            "treatment_shape": encoder.treatment_shape,
            "covariates": encoder.covariates,
            "reference": encoder.reference,
            "pixels": encoder.pixels,
        }
    parts = {role: getattr(encoder, role) for role in PARTS}
    return {
        "kind": "table",
        "roles": asdict(encoder.roles),
        "parts": {role: None if part is None else _part_to_values(part) for role, part in parts.items()},
        "treatment_columns": encoder.treatment_columns,
        "reference": [_column_to_values(name, encoder.reference[name]) for name in encoder.reference.columns],
    }


def encoder_from_values(values: Any) -> TableEncoder | ArrayEncoder:
    """An encoder that is one with itself.

    Raises
    ------
    Exception
        One of :data:`cfiv.tensor_file.DAMAGE`, for anything else.
    """
    if choice(values["kind"], ("array", "table")) == "array":
        return _array_encoder(values)
    fields(values, "kind", "roles", "parts", "treatment_columns", "reference")
    roles = _roles(values["roles"])
    parts = fields(values["parts"], *PARTS)
    if (parts["covariates"] is None) != (roles.covariates is None):
        raise ValueError(f"covariates that are {roles.covariates!r}")
    treatment, covariates = raw_columns(roles.treatment), raw_columns(roles.covariates) if roles.covariates else ()
    reference = pd.DataFrame(dict(_column(column) for column in listed(values["reference"])))
    expected = [*dict.fromkeys((*treatment, *covariates))]
    if list(reference.columns) != expected or not 1 <= len(reference) <= TableEncoder.REFERENCE_ROWS:
        raise ValueError(f"{len(reference)} rows of {list(reference.columns)} to average over, of the columns {expected}")
    treatment_columns = tuple(name for name in treatment if name not in covariates)
    if texts(values["treatment_columns"]) != treatment_columns:
        raise ValueError(f"the treatment columns are {treatment_columns}, got {values['treatment_columns']}")
    encoder = TableEncoder(
        roles=roles,
        outcome=_part(parts["outcome"], roles.outcome),
        treatment=_part(parts["treatment"], roles.treatment),
        instruments=_part(parts["instruments"], roles.instruments),
        covariates=None if roles.covariates is None else _part(parts["covariates"], roles.covariates),
        treatment_columns=treatment_columns,
        reference=reference,
    )
    _check_parts(encoder)
    return encoder


def inputs_of(encoder: TableEncoder | ArrayEncoder) -> Inputs:
    """What components are asked at."""
    if isinstance(encoder, ArrayEncoder):
        return Inputs(encoder.treatment_shape, encoder.covariates)
    return Inputs((len(encoder.treatment.columns),), 0 if encoder.covariates is None else len(encoder.covariates.columns))


def _array_encoder(values: dict[str, Any]) -> ArrayEncoder:
    fields(values, "kind", "treatment_shape", "covariates", "reference", "pixels")
    shape = tuple(whole(size, 1, 2**62) for size in listed(values["treatment_shape"]))
    if not shape:
        raise ValueError("treatments of no shape")
    covariates, reference, pixels = whole(values["covariates"], 0, 2**62), values["reference"], values["pixels"]
    if (reference is None) != (covariates == 0) or (reference is not None and not len(reference) >= 1):
        raise ValueError(f"rows to average over of {covariates} covariates")
    if reference is not None:
        rows = whole(len(reference), 1, TableEncoder.REFERENCE_ROWS)
        reference = numbers(reference, (rows, covariates))
    if pixels is not None:
        least, greatest = (number(pixel) for pixel in listed(pixels, count=2))
        if least > greatest:
            raise ValueError(f"pixels from {least} to {greatest}")
        pixels = (least, greatest)
    return ArrayEncoder(shape, covariates, reference, pixels)


def _roles(values: Any) -> Roles:
    fields(values, "outcome", "treatment", "instruments", "covariates", "weights", "intercept", "clusters")
    covariates, weights, clusters = (
        None if values[role] is None else text(values[role]) for role in ("covariates", "weights", "clusters")
    )
    return Roles(
        outcome=text(values["outcome"]),
        treatment=text(values["treatment"]),
        instruments=text(values["instruments"]),
        covariates=covariates,
        weights=weights,
        intercept=flag(values["intercept"]),
        clusters=clusters,
    )


def _part_to_values(part: PartState) -> dict[str, Any]:
    return {
        "formula": part.formula,
        "columns": part.columns,
        "transform_state": part.transform_state,
        "levels": [[name, list(levels)] for name, levels in part.levels.items()],
    }


def _part(values: Any, formula: str) -> PartState:
    fields(values, "formula", "columns", "transform_state", "levels")
    if text(values["formula"]) != formula:
        raise ValueError(f"a part {values['formula']!r} for the role {formula!r}")
    variables, columns = raw_columns(formula), texts(values["columns"])
    levels: dict[str, tuple[Any, ...]] = {}
    for name, seen in (listed(pair, count=2) for pair in listed(values["levels"])):
        levels[text(name)] = tuple(scalar(level) for level in listed(seen))
        if len(set(levels[name])) < max(2, len(seen)):
            raise ValueError(f"categories {seen} of {name!r}")
    if not category_columns(formula) <= set(levels) <= set(variables) or not columns:
        raise ValueError(f"categories of {list(levels)} for {formula!r}")
    if columns_asked_for(formula) > len(columns) + SPARE:
        raise ValueError(f"{formula!r} for {len(columns)} columns")
    state = values["transform_state"]
    if not isinstance(state, dict) or not all(isinstance(term, str) and isinstance(kept, dict) for term, kept in state.items()):
        raise TypeError("transforms that have learned nothing by name")
    return PartState(formula, columns, state, levels)


def _check_parts(encoder: TableEncoder) -> None:
    """Raise unless the parts make, of the rows that are kept, the columns that they name, and learn nothing anew."""
    for part in (encoder.treatment, encoder.covariates):
        if part is None:
            continue
        learned = copy.deepcopy(dict(part.transform_state))
        _, columns, state = part.materialise(encoder.reference)
        if columns != part.columns:
            raise ValueError(f"{part.formula!r} makes the columns {columns}, got {part.columns}")
        like(state, learned)


def _column_to_values(name: str, column: pd.Series[Any]) -> dict[str, Any]:
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        return {"name": name, "values": column.to_numpy(dtype=np.float64, copy=True), "categories": None, "dtype": "float64"}
    codes, categories = pd.factorize(column.astype(object), sort=False)
    return {"name": name, "values": codes.astype(np.int64), "categories": list(categories), "dtype": str(column.dtype)}


def _column(values: Any) -> tuple[str, pd.Series[Any]]:
    fields(values, "name", "values", "categories", "dtype")
    name, found = text(values["name"]), values["values"]
    if values["categories"] is None:
        choice(values["dtype"], ("float64",))
        return name, pd.Series(numbers(found, (len(found),)))
    categories = np.empty(len(listed(values["categories"])), dtype=object)
    categories[:] = [scalar(category) for category in values["categories"]]
    if not isinstance(found, np.ndarray) or found.dtype != np.int64 or found.ndim != 1:
        raise TypeError(f"numbers of the categories of {name!r}")
    if len(found) and not 0 <= found.min() <= found.max() < len(categories):
        raise ValueError(f"numbers of the categories of {name!r} from {found.min()} to {found.max()}")
    column = pd.Series(categories[found])
    return name, column.astype("category") if text(values["dtype"]) == "category" else column
