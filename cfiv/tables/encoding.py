"""fit_encoder: the roles of a training table, its arrays, and the encoder that turns later tables into the same.

What is ours, beside formulaic's terms, is the joint dropping of rows with gaps *before* any transform learns its state, and the
checks that every column has one role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cfiv.checks import check_choice
from cfiv.data import IVData, read_table
from cfiv.errors import DataError, FormulaError, quoted
from cfiv.tables.array_encoder import ArrayEncoder
from cfiv.tables.columns import (
    Missing,
    cluster_labels,
    require_columns,
    row_weights,
    rows_counted_without,
    without_gaps,
    without_zero_weights,
)
from cfiv.tables.encoder import REFERENCE_ROWS, Encoder
from cfiv.tables.formula import Part
from cfiv.tables.group_means import GroupMeans
from cfiv.tables.parts import fit_part
from cfiv.tables.roles import Roles
from cfiv.tables.stored import is_stored, read_stored
from cfiv.tables.table_encoder import TableEncoder, joined_columns, role_names


def encode(
    data: Any, roles: Roles | None, *, reader: str, missing: Missing, means_of: Sequence[str] = ()
) -> tuple[Encoder, IVData]:
    """The data in their roles: rows with gaps or a weight of zero dropped, transforms learned.

    Parameters
    ----------
    data : table, path or IVData
        A path names a Parquet file, or a folder of them, whose columns then stay on disk.
    roles : Roles or None
        Of the columns of a table; None where an IVData is to have its own.
    reader : str
        Who asks, for messages.
    missing : {"drop", "raise"}
    means_of : sequence of str
        Roles whose group means are covariates in the place of fixed effects; none where these are to be absorbed.

    Raises
    ------
    DataError, FormulaError
        For bad data or roles.
    """
    if roles is None:
        if not isinstance(data, IVData):
            raise FormulaError(
                f"{reader} does not know the roles of the columns: fit an IVData(outcome=..., treatment=..., "
                "instruments=...) of arrays, or give it a formula such as 'outcome ~ covariates + [treatment ~ "
                "instruments]', or column names, for a table"
            )
        arrays = data.without_zero_weights()
        return ArrayEncoder.fit(arrays), arrays
    for role in ("weights", "clusters", "fixed_effects"):
        if isinstance(data, IVData) and getattr(data, role) is not None and not getattr(roles, role):
            raise DataError(
                f"the IVData has {role}, but this {reader} reads columns of its frame: give {role}='column', "
                "or leave the roles out to use the arrays"
            )
    if is_stored(data):
        check_choice("missing", missing, ("drop", "raise"))
        _check_roles(roles.parts)
        frame, _ = read_stored(
            data,
            roles.columns,
            labels=roles.label_columns,
            needed_for="the roles",
            missing=missing,
            weights=roles.weights,
        )
        return _fit_complete(frame, roles, means_of, missing=missing)
    labels = data.index if isinstance(data, pd.DataFrame) else getattr(data, "row_labels", None)
    return fit_encoder(read_table(data), roles, missing=missing, means_of=means_of, labels=labels)


def fit_encoder(
    frame: pd.DataFrame,
    roles: Roles,
    *,
    missing: Missing = "drop",
    means_of: Sequence[str] = (),
    labels: pd.Index | None = None,
) -> tuple[TableEncoder, IVData]:
    """Check the roles against a table, drop rows with gaps jointly, learn the transforms, and return the arrays.

    The rows of the table go by position, ``labels`` being what they are called in results.

    Raises
    ------
    DataError, FormulaError
        For unknown columns (with the nearest name), columns in two roles, text in numeric columns, gaps with
        ``missing="raise"``, infinities, and terms that cannot be evaluated.

    Warns
    -----
    MissingRowsWarning
        With the number of rows dropped.
    """
    check_choice("missing", missing, ("drop", "raise"))
    _check_roles(roles.parts)
    require_columns(frame, roles.columns, needed_for="the roles")
    complete = without_zero_weights(without_gaps(frame[list(roles.columns)], missing), roles.weights)
    kept = complete.index if labels is None else labels[complete.index]
    with rows_counted_without(len(frame) - len(complete)):
        return _fit_complete(complete.reset_index(drop=True), roles, means_of, missing=missing, labels=kept)


def _fit_complete(
    frame: pd.DataFrame, roles: Roles, means_of: Sequence[str], *, missing: Missing, labels: pd.Index | None = None
) -> tuple[TableEncoder, IVData]:
    """:func:`fit_encoder` of a table of the roles' columns without gaps."""
    parts, states, arrays = roles.parts, {}, {}
    for role, part in parts.items():
        # Outcomes are no sum of columns. Treatment and instruments enter regressions beside the constant and the covariates.
        beside = parts.get("covariates") if role in ("treatment", "instruments") else None
        intercept = roles.intercept or role == "outcome"
        states[role], arrays[role] = fit_part(frame, part, role=role, intercept=intercept, covariates=beside)
    outcome = arrays["outcome"]
    if outcome.shape[1] != 1:
        raise DataError(
            f"the outcome {roles.outcome!r} must be one numeric column, got {outcome.shape[1]}: {states['outcome'].columns}"
        )
    if states["outcome"].levels:  # of two categories one would be 0 and the other 1, whatever they stand for
        raise DataError(
            f"the outcome {roles.outcome!r} must be one numeric column, got the categories "
            f"{quoted(next(iter(states['outcome'].levels.values())))}: convert it to numbers, with .astype(float) or .map(...)"
        )
    averaged = {role: (states[role].columns, arrays[role]) for role in means_of if role in states}
    means = tuple(GroupMeans.of(frame, group, averaged) for group in roles.fixed_effects if averaged)
    own = [arrays["covariates"]] if "covariates" in arrays else []
    absent = ("weights", "fixed_effects") if means else ("weights",)
    data = IVData(
        outcome=outcome[:, 0],
        treatment=arrays["treatment"],
        instruments=arrays["instruments"],
        covariates=joined_columns([*own, *(one.at(frame) for one in means)]),
        weights=None if roles.weights is None else row_weights(frame, roles.weights),
        **{role: cluster_labels(frame, names) for role, names in roles.named.items() if names and role not in absent},
        frame=frame,
        names=role_names(roles, states, means),
        row_labels=labels,
    )
    needed = dict.fromkeys([*roles.prediction_columns, *(one.group for one in means)])
    stride = max(1, -(-len(frame) // REFERENCE_ROWS))
    encoder = TableEncoder(
        roles=roles,
        outcome=states["outcome"],
        treatment=states["treatment"],
        instruments=states["instruments"],
        covariates=states.get("covariates"),
        reference=frame[list(needed)].iloc[::stride].reset_index(drop=True),
        means=means,
        missing=missing,
    )
    return encoder, data


def _check_roles(parts: Mapping[str, Part]) -> None:
    outcome, treatment, instruments = (parts[role].variables for role in ("outcome", "treatment", "instruments"))
    covariates = parts["covariates"].variables if "covariates" in parts else ()
    if not outcome:
        raise FormulaError(f"the outcome {parts['outcome'].text!r} uses no column: name one")
    for role, names in (("treatment", treatment), ("instruments", instruments), ("covariates", covariates)):
        for name in names:
            if name in outcome:
                raise FormulaError(f"column {name!r} is both outcome and {role}: give each column one role")
    for name in instruments:
        if name in treatment and name not in covariates:
            raise FormulaError(
                f"column {name!r} is both treatment and instrument: an instrument must be another variable, and a covariate "
                f"that both are multiplied by must be a covariate by itself too (add {name} before the brackets)"
            )
    for role in ("treatment", "instruments"):
        if set(parts[role].variables) <= set(covariates):
            raise FormulaError(
                f"the {role} {parts[role].text!r} is made of covariates only: covariates enter both stages by themselves, "
                f"so name {'a treatment' if role == 'treatment' else 'instruments'} besides them"
            )
