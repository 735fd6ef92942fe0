"""Roles, fitted parts and columns as nested values of a model file, and back: compared with what formulas call for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cfiv.file_values import choice, fields, flag, like, listed, numbers, text, texts
from cfiv.tables.columns import plain_level
from cfiv.tables.formula import Part
from cfiv.tables.parts import PartState
from cfiv.tables.roles import Roles

#: What marks an interval in a file.
INTERVAL = "interval"


def roles_from_values(values: Any) -> Roles:
    """Roles as their names and texts."""
    own = ("outcome", "treatment", "instruments", "covariates", "weights", "intercept", "clusters", "fixed_effects")
    fields({"fixed_effects": []} | values, *own)  # which files have had since there are any
    covariates, weights = (None if values[role] is None else text(values[role]) for role in ("covariates", "weights"))
    clusters = values["clusters"]  # one name, or none, in older files
    clusters = [] if clusters is None else [clusters] if isinstance(clusters, str) else clusters
    return Roles(
        outcome=text(values["outcome"]),
        treatment=text(values["treatment"]),
        instruments=text(values["instruments"]),
        covariates=covariates,
        weights=weights,
        intercept=flag(values["intercept"]),
        clusters=texts(clusters),
        fixed_effects=texts(values.get("fixed_effects", [])),
    )


def part_to_values(part: PartState) -> dict[str, Any]:
    """All that :func:`part_from_values` needs."""
    return {
        "formula": part.formula.text,
        "columns": part.columns,
        "transform_state": learned_to_values(part.transform_state),
        "levels": [[name, learned_to_values(levels)] for name, levels in part.levels.items()],
        "intercept": part.intercept,
        "beside": None if part.formula.beside is None else part.formula.beside.text,
    }


def part_from_values(values: Any, part: Part) -> PartState:
    """A fitted part whose formula is the role's."""
    fields(values, "formula", "columns", "transform_state", "levels", "intercept", "beside")
    if text(values["formula"]) != part.text:
        raise ValueError(f"a part {values['formula']!r} for the role {part.text!r}")
    levels: dict[str, tuple[Any, ...]] = {}
    for name, seen in (listed(pair, count=2) for pair in listed(values["levels"])):
        levels[text(name)] = tuple(level_from_value(level, name) for level in listed(seen))
    state = _learned(values["transform_state"])
    if not isinstance(state, dict) or not all(isinstance(term, str) and isinstance(kept, dict) for term, kept in state.items()):
        raise TypeError("transforms that have learned nothing by name")
    if values["beside"] is not None:
        part = Part(part.text, Part(text(values["beside"])))
    return PartState(part, texts(values["columns"]), state, levels, flag(values["intercept"]))


def check_part(part: PartState, frame: pd.DataFrame) -> None:
    """Raise unless a part makes, of the rows that are kept, the columns that it names, and learns nothing anew."""
    learned = copy.deepcopy(dict(part.transform_state))
    made = part.materialise(frame)
    if made.columns != part.columns:
        raise ValueError(f"{part.formula.text!r} makes the columns {made.columns}, got {part.columns}")
    like(made.transform_state, learned)


def learned_to_values(value: Any) -> Any:
    """What transforms learned, with an interval as a dict of its ends."""
    if isinstance(value, Mapping):
        return {learned_to_values(key): learned_to_values(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [learned_to_values(part) for part in value]
    if isinstance(value, pd.Interval):
        return {INTERVAL: [value.left, value.right, value.closed]}
    return value


def _learned(value: Any) -> Any:
    if isinstance(value, list):
        return [_learned(part) for part in value]
    if isinstance(value, dict):
        if set(value) == {INTERVAL}:
            left, right, closed = listed(value[INTERVAL], count=3)
            return pd.Interval(left, right, choice(closed, ("left", "right", "both", "neither")))
        return {_learned(key): _learned(part) for key, part in value.items()}
    return value


def level_from_value(value: Any, name: str) -> Any:
    """A category, as plain text, number, truth value or interval."""
    return plain_level(_learned(value), name)


def column_to_values(name: str, column: pd.Series[Any], *, category: bool) -> dict[str, Any]:
    """Numbers as floats, which hold no whole number beyond 2**53; the distinct values of a category, and which is where."""
    if not category:
        return {"name": name, "values": column.to_numpy(dtype=np.float64, copy=True), "categories": None}
    codes, distinct = pd.factorize(column.astype(object), sort=False)
    levels = [learned_to_values(plain_level(value, name)) for value in distinct]
    return {"name": name, "values": codes.astype(np.int64), "categories": levels}


def column_from_values(values: Any) -> tuple[str, pd.Series[Any]]:
    """A column by its name."""
    fields(values, "name", "values", "categories")
    name, found = text(values["name"]), values["values"]
    if values["categories"] is None:
        return name, pd.Series(numbers(found, (len(found),)))
    categories = [level_from_value(category, name) for category in listed(values["categories"])]
    if not isinstance(found, np.ndarray) or found.dtype != np.int64 or found.ndim != 1:
        raise TypeError(f"numbers of the categories of {name!r}")
    if len(found) and not 0 <= found.min() <= found.max() < len(categories):
        raise ValueError(f"numbers of the categories of {name!r} from {found.min()} to {found.max()}")
    return name, pd.Series([categories[code] for code in found], dtype=object)
