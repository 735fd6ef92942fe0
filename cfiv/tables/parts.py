"""Parts: the terms of one role, fitted to a table, as columns of numbers.

formulaic evaluates the terms and codes the categories. A category has as many columns as the others leave it: all of its levels
where there is no constant, one less beside one. So a part is coded *beside* what else enters its regression: the constant, and
for treatment and instruments the covariates. Ours besides are checks of what comes out, and a state that can be saved.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec
from formulaic.formula import SimpleFormula
from formulaic.parser.types import Factor, Term

from cfiv.data import Array
from cfiv.errors import DataError, FormulaError, TooLargeError
from cfiv.mapped import BLOCK_ROWS, ColumnFile
from cfiv.tables.columns import (
    categorised,
    is_mapped_table,
    listed,
    numeric,
    plain_level,
    release_table,
    require_columns,
    seen_levels,
)
from cfiv.tables.formula import Part
from cfiv.tables.grammar import ONE_READER, UNREADABLE, reason
from cfiv.tables.terms import term_text
from cfiv.tables.transforms import learns

#: Columns that the terms of a part may make, besides those of the table itself.
MOST_COLUMNS = 100_000


@dataclass(frozen=True)
class PartState:
    """A formula part fitted to a table: what it takes to build the same columns from new rows.

    Parameters
    ----------
    formula : Part
    columns : tuple of str
        Names of the matrix's columns, without the constant.
    transform_state : mapping
        What ``center``, ``bs``, ``poly``, ... learned, by term.
    levels : mapping from raw column to its categories
        For the columns used as categories, in the order in which they are coded, the first being the reference.
    intercept : bool
        Whether the part is coded beside a constant.

    Raises
    ------
    FormulaError, DataError
        For parts of a file that no table can have made.
    """

    formula: Part
    columns: tuple[str, ...]
    transform_state: Mapping[str, Any]
    levels: Mapping[str, tuple[Hashable, ...]]
    intercept: bool = True

    def __post_init__(self) -> None:
        part, text = self.formula, self.formula.text
        if not isinstance(self.transform_state, Mapping):
            raise FormulaError(f"the part {text!r} has a state of the wrong type: fit again")
        if not self.columns or not all(isinstance(name, str) for name in self.columns):
            raise FormulaError(f"the part {text!r} has columns without names: fit again")
        for name, known in self.levels.items():
            if name not in part.variables or not isinstance(known, tuple):
                raise FormulaError(f"the part {text!r} has categories of {name!r}, which it does not use: fit again")
            if len(dict.fromkeys(plain_level(level, name) for level in known)) < max(2, len(known)):
                raise DataError(f"column {name!r} has too few categories, or one twice: fit again")
        if part.categories - set(self.levels):
            raise FormulaError(f"the part {text!r} lacks categories that it uses: fit again")
        _check_width(part, self.levels)

    def matrix(self, frame: pd.DataFrame) -> Array:
        """The part's columns at the rows of ``frame``, shape (n, len(columns)); raises as :meth:`materialise`.

        Of a table on disk they are on disk too.
        """
        if is_mapped_table(frame):
            return self._mapped(frame)
        made = self.materialise(frame)
        if made.columns != self.columns:
            raise FormulaError(f"{self.formula.text!r} makes other columns than in training: fit again")
        return made.matrix

    def materialise(self, frame: pd.DataFrame) -> Made:
        """What formulaic makes of the part at the rows of ``frame``.

        Raises
        ------
        DataError
            For missing columns, text, infinities, and categories that training did not see.
        """
        require_columns(frame, self.formula.variables, needed_for="predictions")  # again, for a file whose parts disagree
        return _materialise(self, self.raw(frame))

    def _mapped(self, frame: pd.DataFrame) -> Array:
        """The columns at all rows of a table on disk: the table's own where the part is one of them, or made block by block."""
        lookup = Factor.EvalMethod.LOOKUP
        factors = [factor for term in self.formula.own for factor in term.factors]
        plain = self.columns == self.formula.variables and all(factor.eval_method is lookup for factor in factors)
        if plain and len(self.columns) == 1 and frame[self.columns[0]].dtype == np.float64:
            return frame[self.columns[0]].to_numpy()[:, None]
        file = ColumnFile(len(frame), columns=len(self.columns))
        for start in range(0, len(frame), BLOCK_ROWS):
            block = frame.iloc[start : start + BLOCK_ROWS]
            try:
                file.append(*(self.raw(block).to_numpy() if plain else self.matrix(block.copy())).T)
            except DataError as error:
                raise DataError(f"{error} (rows are counted from row {start})") from error
        release_table(frame)
        return file.array()

    def raw(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The columns that the part is made of: numbers, and categories as training knows them."""
        return categorised(numeric(frame, self.formula.variables, self.levels), self.levels)


@dataclass(frozen=True, eq=False)
class Made:
    """What formulaic makes of a part: its columns (n, k), what its transforms learned, and terms that have no column left."""

    matrix: Array
    columns: tuple[str, ...]
    transform_state: Mapping[str, Any]
    spanned: tuple[str, ...]


def fit_part(
    frame: pd.DataFrame, part: Part, *, role: str, intercept: bool, covariates: Part | None
) -> tuple[PartState, Array]:
    """Learn a part's categories and transforms from a table without gaps, and its columns there.

    Parameters
    ----------
    frame : DataFrame
    part : Part
    role : str
        For messages.
    intercept : bool
        Whether a constant enters the part's regression.
    covariates : Part or None
        What else enters it.

    Returns
    -------
    state : PartState
    matrix : array (n, columns)

    Raises
    ------
    DataError, FormulaError
        For columns and terms that cannot be used.
    """
    learning = any(learns(function) for held in part.factors.values() for function in held.functions)
    typed = {str(name) for name, dtype in frame.dtypes.items() if isinstance(dtype, pd.CategoricalDtype)}
    if covariates is not None and (part.categories or typed & set(part.variables)):
        part = _beside(part, covariates, typed)
    categories = part.categories | typed
    # What learns nothing but its categories makes the same columns of some rows as of all.
    some = not learning and is_mapped_table(frame)
    ready = numeric(frame.iloc[:BLOCK_ROWS] if some else frame, part.variables, categories)
    for name in (name for name in part.variables if name in part.categories and name not in typed):
        if any(name in held.columns and not held.category for held in part.factors.values()):
            raise FormulaError(
                f"column {name!r} is both C({name}) and a number in {part.joint!r}: copy it to a second column for one of the "
                "two"
            )
    levels = {name: seen_levels(frame[name], name) for name in part.variables if name in categories}
    _check_named_levels(part, levels)
    draft = PartState(part, (part.text,), {}, levels, intercept)
    made = _materialise(draft, categorised(ready, levels))
    if made.spanned and (role == "treatment" or not made.columns):
        raise FormulaError(
            f"the {role} term {made.spanned[0]!r} is among the covariates already, which enter both stages by themselves: name "
            "it once"
        )
    state = replace(draft, columns=made.columns, transform_state=made.transform_state)
    return state, state.matrix(frame) if is_mapped_table(frame) else made.matrix


def _check_named_levels(part: Part, levels: Mapping[str, Sequence[Hashable]]) -> None:
    """Raise unless the categories that ``C(..., levels=...)`` and its contrasts name are those of the column."""
    for text, held in part.factors.items():
        for argument, named in held.named.items():
            for column in held.columns[:1]:
                known = levels[column]
                strange = [level for level in named if level not in known]
                if strange or (argument == "levels" and len(named) != len(known)):
                    raise FormulaError(
                        f"{argument} of {text!r} must name {'all ' if argument == 'levels' else ''}categories of "
                        f"{column!r}, got {listed(named)}: they are {listed(known)}"
                    )


def _beside(part: Part, covariates: Part, typed: Container[str]) -> Part:
    """The part with the covariate terms that its categories have to be coded beside.

    Those of the same numbers: beside ``x`` the categories of ``C(shop):x`` are one less, beside ``w`` they are not.
    """

    def split(term: Term) -> tuple[frozenset[str], bool]:
        """A term's factors that are numbers, and whether there are categories besides."""
        held = {factor.expr: factors[factor.expr] for factor in term.factors if factor.expr in factors}
        numbers = frozenset(text for text, one in held.items() if not one.category and text not in typed)
        return numbers, len(numbers) < len(held)

    factors = covariates.factors | part.factors

    own = {term: split(term) for term in part.terms}
    numbers = {only for only, categories in own.values() if categories}
    kept = [term_text(term) for term in covariates.terms if split(term)[0] in numbers and (split(term)[1] or term not in own)]
    return Part(part.text, Part(" + ".join(kept))) if kept else part


def _materialise(part: PartState, frame: pd.DataFrame) -> Made:
    """formulaic's model matrix, of it the part's own columns, with a check for finite values."""
    text, own = part.formula.text, frozenset(part.formula.own)
    constant = [Term([Factor("1", eval_method="literal")])] if part.intercept else []
    before = () if part.formula.beside is None else part.formula.beside.terms
    spec = ModelSpec(
        formula=SimpleFormula([*constant, *before, *part.formula.own], _ordering="none"),
        transform_state=dict(part.transform_state),
        na_action="ignore",
    )
    try:
        # A bad value shows below as a value that is not finite; numpy's warning about it says less.
        with np.errstate(all="ignore"), ONE_READER:
            table = spec.get_model_matrix(frame, context={})
    except MemoryError:
        raise TooLargeError(f"the columns of {text!r} do not fit in memory: use fewer rows, categories or knots") from None
    except UNREADABLE as error:
        if "extrapolation" in str(error) and part.transform_state:
            raise DataError(
                f"the spline(s) in {text!r} got values beyond those of training: write bs(..., extrapolation='clip') or "
                "'extend' in the formula, or drop those rows"
            ) from None
        raise FormulaError(f"the term(s) {text!r} cannot be evaluated: {reason(error)}") from None
    structure = table.model_spec.structure
    if sum(len(term.columns) for term in structure) != table.shape[1]:
        raise FormulaError(f"two terms of {part.formula.joint!r} make columns of the same name: rename a column")
    names = list(chain.from_iterable(term.columns for term in structure if term.term in own))
    matrix = pd.DataFrame(table)[names].to_numpy(dtype=np.float64, copy=True)
    finite = np.isfinite(matrix)
    if not finite.all():
        column = int((~finite).any(axis=0).argmax())
        bad = ~finite[:, column]
        raise DataError(
            f"{names[column]!r} is infinite or undefined in {int(bad.sum())} of {len(bad)} rows (first: row "
            f"{int(bad.argmax())}): drop those rows or choose another transform"
        )
    spanned = [term for term in part.formula.terms if term not in own]
    spanned += [term.term for term in structure if term.term in own and not term.columns]
    return Made(matrix, tuple(map(str, names)), table.model_spec.transform_state, tuple(map(str, spanned)))


def _check_width(part: Part, levels: Mapping[str, Sequence[Hashable]]) -> None:
    """Raise before any is made where there would be very many columns."""
    lookup, made = Factor.EvalMethod.LOOKUP, 0
    width = {
        text: held.width * prod(len(levels[name]) for name in held.columns if name in levels)
        for text, held in part.factors.items()
    }
    for term in (*(part.beside.terms if part.beside is not None else ()), *part.own):
        if not all(factor.eval_method is lookup and factor.expr not in levels for factor in term.factors):
            made += prod(width.get(factor.expr, 1) for factor in term.factors)
    if made > MOST_COLUMNS:
        raise FormulaError(
            f"{part.text[:200]!r} makes up to {made:,} columns, and {MOST_COLUMNS:,} at most: use fewer categories or knots"
        )
