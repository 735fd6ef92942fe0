"""The fitted encoding: what turns a training table into arrays, and new rows into the same columns.

What is ours, beside formulaic's terms, is the joint dropping of rows with gaps *before* any transform learns its state, and the
checks that every column has one role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened

import numpy as np
import pandas as pd

from cfiv.checks import check_choice
from cfiv.data import Array, IVData
from cfiv.errors import DataError, FormulaError, ParameterError, quoted
from cfiv.tables.columns import Missing, gaps_in, require_columns, row_weights, without_gaps
from cfiv.tables.parts import PartState, fit_part
from cfiv.tables.roles import Roles
from cfiv.tables.terms import raw_columns


@dataclass(frozen=True, eq=False)
class TableEncoder:
    """Roles fitted to a table; turns later tables into the same arrays.

    Parameters
    ----------
    roles : Roles
    outcome, treatment, instruments, covariates : PartState
        ``covariates`` is None where there are none.
    treatment_columns : tuple of str
        The raw columns that are the treatment, those that ``effect`` and ``dose_response`` set.
    reference : DataFrame
        Rows of the training table (all raw columns the structural function needs) to average over.
    """

    roles: Roles
    outcome: PartState
    treatment: PartState
    instruments: PartState
    covariates: PartState | None
    treatment_columns: tuple[str, ...]
    reference: pd.DataFrame

    #: Rows kept for averages over the covariates, evenly spread over the training table.
    REFERENCE_ROWS = 2000

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that prediction needs."""
        return tuple(self.reference.columns)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Those of them that training knew as text, which a file may hold as digits."""
        parts = [part for part in (self.treatment, self.covariates) if part is not None]
        levels = {name: known for part in parts for name, known in part.levels.items()}
        return tuple(name for name, known in levels.items() if all(isinstance(level, str) for level in known))

    def inputs(self, frame: pd.DataFrame) -> tuple[Array, Array | None]:
        """Treatment and covariate arrays at new rows.

        Raises
        ------
        DataError
            For missing columns, gaps, infinities, text, or categories that training did not see.
        """
        require_columns(frame, self.columns, needed_for="predictions")
        gaps = gaps_in(frame[list(self.columns)]).any(axis=1).to_numpy()
        if gaps.any():
            raise DataError(
                f"{int(gaps.sum())} of {len(frame)} rows have gaps in {quoted(self.columns)} (first: row "
                f"{int(gaps.argmax())}): predictions need complete rows, so drop or fill them"
            )
        return self.treatment.matrix(frame), None if self.covariates is None else self.covariates.matrix(frame)

    def observations(self, frame: pd.DataFrame, *, missing: Missing = "drop") -> IVData:
        """Every role at new rows, for held-out criteria; drops rows with gaps as training does, raises as :meth:`inputs`."""
        weights = self.roles.weights
        parts = [part for part in (self.outcome, self.treatment, self.instruments, self.covariates) if part is not None]
        names = [name for part in parts for name in raw_columns(part.formula)] + ([weights] if weights else [])
        require_columns(frame, names, needed_for="held-out criteria")
        frame = without_gaps(frame[list(dict.fromkeys(names))], missing)
        return IVData(
            outcome=self.outcome.matrix(frame)[:, 0],
            treatment=self.treatment.matrix(frame),
            instruments=self.instruments.matrix(frame),
            covariates=None if self.covariates is None else self.covariates.matrix(frame),
            weights=None if weights is None else row_weights(frame, weights),
        )

    def with_treatment(self, frame: pd.DataFrame, value: object) -> pd.DataFrame:
        """The same rows with the treatment columns set: to one number, one each, or a mapping from column to number(s)."""
        if isinstance(value, Mapping):
            # By position, as everywhere: assign would align a Series on its index.
            values = {name: item if np.ndim(item) == 0 else np.asarray(item) for name, item in value.items()}
        elif np.ndim(value) == 0:  # type: ignore[arg-type]
            values = dict.fromkeys(self.treatment_columns[:1], value)
        else:
            listed = list(value)  # type: ignore[call-overload]
            values = {}
            if len(listed) == len(self.treatment_columns):
                values = dict(zip(self.treatment_columns, listed, strict=True))
            elif len(self.treatment_columns) == 1 and len(listed) == len(frame):  # one a row
                values = {self.treatment_columns[0]: np.asarray(value)}
        if set(values) != set(self.treatment_columns):
            raise ParameterError(
                f"treatment values must cover {quoted(self.treatment_columns)}, got {shortened(value)}: give one number for "
                "each, or a mapping from column to number, or to one number a row, as in "
                f"{{{self.treatment_columns[0]!r}: ...}}"
            )
        for name, item in values.items():
            if np.ndim(item) > 0 and np.shape(item) != (len(frame),):
                raise ParameterError(
                    f"treatment values of {name!r} must be one number, or one for each of the {len(frame)} rows, got shape "
                    f"{np.shape(item)}"
                )
        return frame.assign(**values)


def fit_encoder(frame: pd.DataFrame, roles: Roles, *, missing: Missing = "drop") -> tuple[TableEncoder, IVData]:
    """Check the roles against a table, drop rows with gaps jointly, learn the transforms, and return the arrays.

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
    parts = {"outcome": roles.outcome, "treatment": roles.treatment, "instruments": roles.instruments}
    if roles.covariates is not None:
        parts["covariates"] = roles.covariates
    variables = {role: raw_columns(part) for role, part in parts.items()}
    _check_roles(variables, roles)
    used = list(dict.fromkeys(name for names in variables.values() for name in names))
    used += [name for name in (roles.weights, roles.clusters) if name is not None]
    require_columns(frame, used, needed_for="the roles")
    frame = without_gaps(frame[list(dict.fromkeys(used))], missing)
    states, arrays = {}, {}
    for role, part in parts.items():
        # Outcomes are no sum of columns. Treatment and instruments enter regressions beside the constant and the covariates.
        beside = roles.covariates if role in ("treatment", "instruments") else None
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
    data = IVData(
        outcome=outcome[:, 0],
        treatment=arrays["treatment"],
        instruments=arrays["instruments"],
        covariates=arrays.get("covariates"),
        weights=None if roles.weights is None else row_weights(frame, roles.weights),
        clusters=None if roles.clusters is None else frame[roles.clusters],
        frame=frame,
        names={role: state.columns for role, state in states.items()}
        | {role: (name,) for role, name in (("weights", roles.weights), ("clusters", roles.clusters)) if name is not None},
    )
    needed = list(dict.fromkeys((*variables["treatment"], *variables.get("covariates", ()))))
    stride = max(1, -(-len(frame) // TableEncoder.REFERENCE_ROWS))
    encoder = TableEncoder(
        roles=roles,
        outcome=states["outcome"],
        treatment=states["treatment"],
        instruments=states["instruments"],
        covariates=states.get("covariates"),
        treatment_columns=tuple(n for n in variables["treatment"] if n not in variables.get("covariates", ())),
        reference=frame[needed].iloc[::stride].reset_index(drop=True),
    )
    return encoder, data


def _check_roles(variables: Mapping[str, Sequence[str]], roles: Roles) -> None:
    covariates = set(variables.get("covariates", ()))
    if not variables["outcome"]:
        raise FormulaError(f"the outcome {roles.outcome!r} uses no column: name one")
    for role in ("treatment", "instruments", "covariates"):
        for name in variables.get(role, ()):
            if name in variables["outcome"]:
                raise FormulaError(f"column {name!r} is both outcome and {role}: give each column one role")
    for name in variables["instruments"]:
        if name in variables["treatment"] and name not in covariates:
            raise FormulaError(f"column {name!r} is both treatment and instrument: an instrument must be another variable")
    for role in ("treatment", "instruments"):
        if set(variables[role]) <= covariates:
            raise FormulaError(
                f"the {role} {getattr(roles, role)!r} is made of covariates only: covariates enter both stages by themselves, "
                f"so name {'a treatment' if role == 'treatment' else 'instruments'} besides them"
            )
