"""TableEncoder: roles fitted to a table; later tables become the same arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from reprlib import repr as shortened
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from cfiv.data import Array, IVData, read_table
from cfiv.errors import DataError, FormulaError, ParameterError, quoted
from cfiv.file_values import choice, fields, listed, texts
from cfiv.rendering import joined
from cfiv.tables.columns import (
    Missing,
    gaps_in,
    release_table,
    report_gaps,
    require_columns,
    row_weights,
    rows_counted_without,
    without_gaps,
    without_zero_weights,
)
from cfiv.tables.encoder import REFERENCE_ROWS, Counterfactuals
from cfiv.tables.formula import Part
from cfiv.tables.group_means import GroupMeans
from cfiv.tables.parts import PartState
from cfiv.tables.roles import Roles
from cfiv.tables.saved_parts import (
    check_part,
    column_from_values,
    column_to_values,
    part_from_values,
    part_to_values,
    roles_from_values,
)
from cfiv.tables.stored import is_stored, read_stored
from cfiv.tables.terms import term_text
from cfiv.tables.treatment_values import grid_table, values_by_column

PARTS = ("outcome", "treatment", "instruments", "covariates")

#: What to do about rows with gaps that are refused.
ADVICE = "predictions need complete rows, so drop or fill them"


@dataclass(frozen=True, eq=False)
class TableEncoder:
    """Of a fit to a table; an :class:`cfiv.tables.encoder.Encoder`.

    Parameters
    ----------
    roles : Roles
    outcome, treatment, instruments, covariates : PartState
        ``covariates`` is None where there are none.
    reference : DataFrame
        Rows of the training table (all raw columns the structural function needs) to average over.
    means : tuple of GroupMeans
        Covariates besides, that stand for fixed effects; none where these are absorbed.
    missing : {"drop", "raise"}
        What training did with rows with gaps, and averages over other rows do; what has an answer for each row refuses them.
    """

    roles: Roles
    outcome: PartState
    treatment: PartState
    instruments: PartState
    covariates: PartState | None
    reference: pd.DataFrame = field(repr=False)
    means: tuple[GroupMeans, ...] = field(default=(), repr=False)
    missing: Missing = "raise"

    kind: ClassVar[str] = "table"

    @property
    def shape(self) -> tuple[tuple[int, ...], int]:
        """Of one treatment, (columns,), and the number of covariate columns."""
        own = 0 if self.covariates is None else len(self.covariates.columns)
        return (len(self.treatment.columns),), own + sum(len(means.columns) for means in self.means)

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """Raw columns that the structural function needs: of treatments and covariates, and labels of groups."""
        return tuple(dict.fromkeys([*self.roles.prediction_columns, *(means.group for means in self.means)]))

    @property
    def intercept(self) -> bool:
        """Whether the formula leaves the constant in."""
        return self.roles.intercept

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns of predictions that training knew as text, which a file may hold as digits."""
        parts = [part for part in (self.treatment, self.covariates) if part is not None]
        levels = {name: known for part in parts for name, known in part.levels.items()}
        levels |= {means.group: means.labels for means in self.means}
        return tuple(name for name, known in levels.items() if all(isinstance(level, str) for level in known))

    def inputs(self, rows: Any) -> tuple[Array, Array | None]:
        """Treatment and covariate arrays at new rows.

        Raises
        ------
        DataError
            For missing columns, gaps, infinities, text, or categories that training did not see.
        """
        frame, _ = self._table(rows)
        return self.treatment.matrix(frame), self._covariates(frame)

    @property
    def treatment_names(self) -> tuple[str, ...]:
        """The raw columns that are the treatment."""
        return self.roles.treatment_columns

    @property
    def reference_rows(self) -> pd.DataFrame:
        """Rows of the training table."""
        return self.reference

    def observations(self, rows: Any, *, missing: Missing = "drop", labels: Sequence[str] = ()) -> IVData:
        """Every role at new rows, for held-out criteria; drops rows with gaps as training does, and those of weight zero."""
        weights, fixed = self.roles.weights, self.roles.named["fixed_effects"]
        given = {role: getattr(self, role) for role in ("outcome", "treatment", "instruments", "covariates")}
        parts = {role: part for role, part in given.items() if part is not None}
        used = [name for part in parts.values() for name in part.formula.variables]
        names = list(dict.fromkeys([*used, *([weights] if weights else []), *fixed, *labels]))
        needed_for = "held-out criteria"
        if is_stored(rows):
            known = [*self.roles.label_columns, *labels]
            frame, _ = read_stored(rows, names, labels=known, needed_for=needed_for, missing=missing, weights=weights)
        else:
            frame = read_table(rows)
            require_columns(frame, names, needed_for=needed_for)
            frame = without_zero_weights(without_gaps(frame[names], missing), weights).reset_index(drop=True)
        return IVData(
            outcome=self.outcome.matrix(frame)[:, 0],
            treatment=self.treatment.matrix(frame),
            instruments=self.instruments.matrix(frame),
            covariates=self._covariates(frame),
            weights=None if weights is None else row_weights(frame, weights),
            fixed_effects=frame[list(fixed)] if fixed and not self.means else None,
            frame=frame,
            names=role_names(self.roles, parts, self.means, but=("weights", "clusters")),
        )

    def raw(self, rows: Any) -> pd.DataFrame:
        """The columns of the table that predictions need: numbers, and categories as training knows them."""
        frame = read_table(rows)
        self._complete(frame)
        parts = [part.raw(frame) for part in (self.treatment, self.covariates) if part is not None]
        columns = {str(name): column for part in parts for name, column in part.items()}
        columns |= {means.group: frame[means.group] for means in self.means}
        release_table(frame)
        return pd.DataFrame({name: columns[name] for name in self.prediction_columns}, copy=False)

    def treatments_asked(self, name: str, value: Any, *, rows: Any, count: int) -> pd.DataFrame:
        """Treatment columns of one row for all, or of one each."""
        values = self._treatments_given(name, value, rows=rows, count=count)
        return pd.DataFrame(values, index=range(count) if any(map(np.ndim, values.values())) else [0])

    def complete(self, rows: Any, *, treatment: bool = True) -> Any:
        """The rows of a table that have no gaps in what predictions need."""
        frame = read_table(rows)
        kept = self._complete(frame, without=() if treatment else self.roles.treatment_columns, missing=self.missing)
        return rows if kept is None else frame[kept]

    def at(self, rows: Any, treatments: Mapping[str, Any], *, averaged: bool = False) -> Counterfactuals:
        """Rows with their treatment columns set: to one number, one each, or a mapping from column to number(s)."""
        without, missing = self.roles.treatment_columns, self.missing if averaged else "raise"
        frame, kept = self._table(rows, without=without, missing=missing)
        count = len(frame) if kept is None else len(kept)
        given = [self._treatments_given(name, value, rows=rows, count=count) for name, value in treatments.items()]
        varying = any(np.ndim(item) for values in given for item in values.values())
        same = None if varying else [pd.DataFrame(values, index=[0]) for values in given]
        return self._asked(frame, given, same, kept=kept)

    def grid(self, grid: Any, rows: Any | None) -> tuple[pd.DataFrame, Counterfactuals]:
        """A grid of m treatments as a table of the treatment columns."""
        table = grid_table(grid, columns=self.roles.treatment_columns)
        frame, kept = self.reference, None
        if rows is not None:
            frame, kept = self._table(rows, without=self.roles.treatment_columns, missing=self.missing)
        points = [{str(name): value for name, value in point.items()} for point in table.to_dict("records")]
        return table, self._asked(frame, points, [table], kept=kept)

    def treatment_values(self, value: Any, *, rows: int) -> dict[str, Any]:
        """Values by treatment column, each one number or one for each row: of one number, one each, or a mapping.

        Raises
        ------
        ParameterError
            Unless they cover all treatment columns, and nothing else.
        """
        columns = self.roles.treatment_columns
        if isinstance(value, Mapping):
            # By position, as everywhere: assign would align a Series on its index.
            values = {name: item if np.ndim(item) == 0 else np.asarray(item) for name, item in value.items()}
        elif np.ndim(value) == 0:
            values = dict.fromkeys(columns[:1], value)
        else:
            each = list(value)
            values = {}
            if len(each) == len(columns):
                values = {name: np.asarray(item) if np.ndim(item) else item for name, item in zip(columns, each, strict=True)}
            elif len(columns) == 1 and len(each) == rows:  # one a row
                values = {columns[0]: np.asarray(value)}
        if set(values) != set(columns):
            many = f", {len(value)} of them for {rows} rows" if not isinstance(value, Mapping) and np.ndim(value) else ""
            raise ParameterError(
                f"treatment values must cover {quoted(columns)}, got {shortened(value)}{many}: give one number for "
                "each, or a mapping from column to number, or to one number a row, as in "
                f"{{{columns[0]!r}: ...}}"
            )
        for name, item in values.items():
            if np.ndim(item) > 0 and np.shape(item) != (rows,):
                raise ParameterError(
                    f"treatment values of {name!r} must be one number, or one for each of the {rows} rows, got shape "
                    f"{np.shape(item)}"
                )
        return values

    def _treatments_given(self, name: str, value: Any, *, rows: Any, count: int) -> dict[str, Any]:
        """The values of an argument, by treatment column."""
        columns = self.roles.treatment_columns
        return self.treatment_values(values_by_column(name, value, rows=rows, count=count, columns=columns), rows=count)

    def covariate_table(self, data: IVData) -> pd.DataFrame:
        """The raw columns of the covariates."""
        assert self.covariates is not None
        assert data.frame is not None
        return self.covariates.raw(data.frame)

    def describe(self) -> list[tuple[str, str]]:
        """Each role's part of the formula: plain columns by their names, long sums shortened."""
        roles = self.roles
        lines = [(role.capitalize(), _as_read(roles.parts.get(role))) for role in PARTS]
        lines += [(role.replace("_", " ").capitalize(), " + ".join(names)) for role, names in roles.named.items() if names]
        means = [name for means in self.means for name in means.columns]
        return lines + ([("In their place", f"{joined(means, between=', ')}, on which alone they may depend")] if means else [])

    def example(self) -> pd.DataFrame:
        """A row of training."""
        return self.reference.iloc[:1]

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        parts = {role: getattr(self, role) for role in PARTS}
        categories = {name for part in parts.values() if part is not None for name in part.levels}
        categories |= {means.group for means in self.means}
        columns = [(name, self.reference[name]) for name in self.reference.columns]
        return {
            "kind": self.kind,
            "roles": asdict(self.roles),
            "parts": {role: None if part is None else part_to_values(part) for role, part in parts.items()},
            "treatment_columns": self.roles.treatment_columns,
            "means": [means.to_values() for means in self.means],
            "missing": self.missing,
            "reference": [column_to_values(name, column, category=name in categories) for name, column in columns],
        }

    @classmethod
    def from_values(cls, values: Any) -> TableEncoder:
        """From the values of a file, compared with what the roles call for.

        Raises
        ------
        Exception
            One of :data:`cfiv.tensor_file.DAMAGE`, for anything else.
        """
        values = {"means": [], "missing": "raise"} | values  # which files have had since there are any
        fields(values, "kind", "roles", "parts", "treatment_columns", "means", "missing", "reference")
        roles = roles_from_values(values["roles"])
        parts = fields(values["parts"], *PARTS)
        if roles.covariates is None and parts["covariates"] is not None:
            raise ValueError("covariates without a role")
        fitted: dict[str, Any] = {role: part_from_values(parts[role], part) for role, part in roles.parts.items()}
        reference = pd.DataFrame(dict(column_from_values(column) for column in listed(values["reference"])))
        means = tuple(GroupMeans.from_values(found) for found in listed(values["means"]))
        if means and tuple(one.group for one in means) != roles.fixed_effects:
            raise ValueError(f"means of other groups than {roles.fixed_effects}")
        missing: Any = choice(values["missing"], ("drop", "raise"))
        encoder = cls(roles=roles, reference=reference, means=means, missing=missing, **{"covariates": None, **fitted})
        if tuple(reference.columns) != encoder.prediction_columns or not 1 <= len(reference) <= REFERENCE_ROWS:
            raise ValueError(
                f"{len(reference)} rows of {list(reference.columns)} to average over, of {encoder.prediction_columns}"
            )
        if texts(values["treatment_columns"]) != roles.treatment_columns:
            raise ValueError(f"the treatment columns are {roles.treatment_columns}, got {values['treatment_columns']}")
        for part in (encoder.treatment, encoder.covariates):
            if part is not None:
                check_part(part, encoder.reference)
        for one in means:
            one.at(reference)
        return encoder

    def _table(
        self, rows: Any, *, without: Sequence[str] = (), missing: Missing = "raise"
    ) -> tuple[pd.DataFrame, Array | None]:
        """New rows without gaps, and which of those given they are, None of all: of a stored table what predictions need."""
        if is_stored(rows):
            needed = self.roles.prediction_columns
            names = [name for name in needed if name not in without] or needed
            labels = self.roles.label_columns
            return read_stored(rows, names, labels=labels, needed_for="predictions", missing=missing, advice=ADVICE)
        frame = read_table(rows)
        kept = self._complete(frame, without=without, missing=missing)
        return (frame if kept is None else frame[kept].reset_index(drop=True)), kept

    def _asked(
        self,
        frame: pd.DataFrame,
        each: Sequence[Mapping[str, Any]],
        same: Sequence[pd.DataFrame] | None,
        *,
        kept: Array | None,
    ) -> Counterfactuals:
        """Rows at each of several treatments, which are encoded by themselves where nothing else enters their columns."""
        if kept is not None:
            each = [{name: item[kept] if np.ndim(item) else item for name, item in values.items()} for values in each]
        with rows_counted_without(0 if kept is None else int((~kept).sum())):
            covariates = self._covariates(frame)
        encoded = None
        if same is not None and set(self.treatment.formula.variables) <= set(self.roles.treatment_columns):
            with suppress(DataError, FormulaError):  # which is then said of the rows
                encoded = np.concatenate([self.treatment.matrix(table) for table in same])
        return Counterfactuals(
            len(frame), covariates, encoded, (self.treatment.matrix(frame.assign(**values)) for values in each), kept
        )

    def _covariates(self, frame: pd.DataFrame) -> Array | None:
        """The covariates' columns at rows, and the means of their groups."""
        own = [] if self.covariates is None else [self.covariates.matrix(frame)]
        return joined_columns([*own, *(means.at(frame) for means in self.means)])

    def _complete(self, frame: pd.DataFrame, *, without: Sequence[str] = (), missing: Missing = "raise") -> Array | None:
        """Which rows have no gaps in the columns that predictions need, None of all; raises where a column is missing.

        Where rows with gaps are dropped, a warning counts them; otherwise they are refused.
        """
        needed = [name for name in self.prediction_columns if name not in without]
        require_columns(frame, needed, needed_for="predictions")
        found = gaps_in(frame[needed])
        gaps = found.any(axis=1).to_numpy()
        if not gaps.any():
            return None
        if missing == "drop":
            report_gaps(found.sum(), dropped=int(gaps.sum()), rows=len(frame), missing=missing)
            return np.asarray(~gaps)
        named = quoted([name for name in needed if found[name].any()])
        raise DataError(
            f"{int(gaps.sum())} of {len(frame)} rows have gaps in {named} (first: row {int(gaps.argmax())}): {ADVICE}, as with "
            f".dropna(subset=[{named}])"
        )


def joined_columns(parts: Sequence[Array]) -> Array | None:
    """Arrays (n, ...) side by side, one as it is; None of none."""
    return None if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def role_names(
    roles: Roles, parts: Mapping[str, PartState], means: Sequence[GroupMeans], *, but: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Names of the columns of each role, those left out that are named besides."""
    names = {role: part.columns for role, part in parts.items()}
    if means:
        names["covariates"] = (*names.get("covariates", ()), *(name for one in means for name in one.columns))
    absent = (*but, "fixed_effects") if means else but
    return names | {role: named for role, named in roles.named.items() if named and role not in absent}


def _as_read(part: Part | None) -> str:
    """A part as people read it, without the backticks that only formulas need."""
    terms = [] if part is None else [term_text(term) for term in part.terms]
    plain = [text[1:-1] if text.startswith("`") and text.find("`", 1) == len(text) - 1 else text for text in terms]
    return joined(plain, between=" + ")
