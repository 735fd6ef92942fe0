"""Parts: the terms of one role, fitted to a table, as columns of numbers.

formulaic evaluates the terms and codes the categories. A category has as many columns as the others leave it: all of its levels
where there is no constant, one less beside one. So a part is coded *beside* what else enters its regression: the constant, and
for treatment and instruments the covariates. Ours besides are checks of what comes out, and a state that can be saved.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
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
from cfiv.tables.columns import numeric, require_columns
from cfiv.tables.grammar import UNREADABLE, part_terms, reason
from cfiv.tables.levels import categorised, listed, plain_level, seen_levels
from cfiv.tables.terms import (
    category_columns,
    factor_columns,
    factor_width,
    is_category,
    named_levels,
    part_factors,
    raw_columns,
    term_text,
)

#: Columns that the terms of a part may make, besides those of the table itself.
MOST_COLUMNS = 100_000


@dataclass(frozen=True)
class PartState:
    """A formula part fitted to a table: what it takes to build the same columns from new rows.

    Parameters
    ----------
    formula : str
    columns : tuple of str
        Names of the matrix's columns, without the constant.
    transform_state : mapping
        What ``center``, ``bs``, ``poly``, ... learned, by term.
    levels : mapping from raw column to its categories
        For the columns used as categories, in the order in which they are coded, the first being the reference.
    intercept : bool
        Whether the part is coded beside a constant.
    beside : str or None
        Covariate terms that the part's categories are coded beside.

    Raises
    ------
    FormulaError, DataError
        For parts of a file that no table can have made.
    """

    formula: str
    columns: tuple[str, ...]
    transform_state: Mapping[str, Any]
    levels: Mapping[str, tuple[Hashable, ...]]
    intercept: bool = True
    beside: str | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.formula, self.beside or "")):
            raise FormulaError(f"a part is text, got {self.formula!r} beside {self.beside!r}: fit again")
        variables = raw_columns(self._joint)
        if not isinstance(self.transform_state, Mapping):
            raise FormulaError(f"the part {self.formula!r} has a state of the wrong type: fit again")
        if not self.columns or not all(isinstance(name, str) for name in self.columns):
            raise FormulaError(f"the part {self.formula!r} has columns without names: fit again")
        for name, known in self.levels.items():
            if name not in variables or not isinstance(known, tuple):
                raise FormulaError(f"the part {self.formula!r} has categories of {name!r}, which it does not use: fit again")
            if len(dict.fromkeys(plain_level(level, name) for level in known)) < max(2, len(known)):
                raise DataError(f"column {name!r} has too few categories, or one twice: fit again")
        if set(category_columns(self._joint)) - set(self.levels):
            raise FormulaError(f"the part {self.formula!r} lacks categories that it uses: fit again")

    @property
    def _joint(self) -> str:
        return _joint(self.formula, self.beside)

    def matrix(self, frame: pd.DataFrame) -> Array:
        """The part's columns at the rows of ``frame``, shape (n, len(columns)); raises as :meth:`materialise`."""
        made = self.materialise(frame)
        if made.columns != self.columns:
            raise FormulaError(f"{self.formula!r} makes other columns than in training: fit again")
        return made.matrix

    def materialise(self, frame: pd.DataFrame) -> Made:
        """What formulaic makes of the part at the rows of ``frame``.

        Raises
        ------
        DataError
            For missing columns, text, infinities, and categories that training did not see.
        """
        variables = raw_columns(self._joint)
        require_columns(frame, variables, needed_for="predictions")  # again, for a file whose parts disagree
        ready = categorised(numeric(frame, variables, self.levels), self.levels)
        return _materialise(self, ready)


@dataclass(frozen=True, eq=False)
class Made:
    """What formulaic makes of a part: its columns (n, k), what its transforms learned, and terms that have no column left."""

    matrix: Array
    columns: tuple[str, ...]
    transform_state: Mapping[str, Any]
    spanned: tuple[str, ...]


def fit_part(
    frame: pd.DataFrame, formula: str, *, role: str, intercept: bool, covariates: str | None
) -> tuple[PartState, Array]:
    """Learn a part's categories and transforms from a table without gaps, and its columns there.

    Parameters
    ----------
    frame : DataFrame
    formula : str
    role : str
        For messages.
    intercept : bool
        Whether a constant enters the part's regression.
    covariates : str or None
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
    typed = {name for name in raw_columns(formula) if _is_categorical(frame, name)}
    beside = _covariates_beside(formula, covariates, frame) if typed or category_columns(formula) else None
    joint = _joint(formula, beside)
    variables = raw_columns(joint)
    categories = category_columns(joint) | {name for name in variables if _is_categorical(frame, name)}
    ready = numeric(frame, variables, categories)
    for name in variables:
        as_number = [f.expr for f in part_factors(joint) if name in factor_columns(f) and not is_category(f)]
        if name in category_columns(joint) and as_number and not _is_categorical(frame, name):
            raise FormulaError(
                f"column {name!r} is both C({name}) and a number in {joint!r}: copy it to a second column for one of the two"
            )
    levels = {name: seen_levels(ready[name], name) for name in variables if name in categories}
    _check_named_levels(joint, levels)
    made = _materialise(PartState(formula, (formula,), {}, levels, intercept, beside), categorised(ready, levels))
    if made.spanned and (role == "treatment" or not made.columns):
        raise FormulaError(
            f"the {role} term {made.spanned[0]!r} is among the covariates already, which enter both stages by themselves: name "
            "it once"
        )
    return PartState(formula, made.columns, made.transform_state, levels, intercept, beside), made.matrix


def _joint(formula: str, beside: str | None) -> str:
    return formula if beside is None else f"{beside} + {formula}"


def _is_categorical(frame: pd.DataFrame, name: str) -> bool:
    return isinstance(frame[name].dtype, pd.CategoricalDtype)


def _check_named_levels(formula: str, levels: Mapping[str, Sequence[Hashable]]) -> None:
    """Raise unless the categories that ``C(..., levels=...)`` and its contrasts name are those of the column."""
    for factor in part_factors(formula):
        for argument, named in named_levels(factor).items():
            for column in factor_columns(factor)[:1]:
                known = levels[column]
                strange = [level for level in named if level not in known]
                if strange or (argument == "levels" and len(named) != len(known)):
                    raise FormulaError(
                        f"{argument} of {factor.expr!r} must name {'all ' if argument == 'levels' else ''}categories of "
                        f"{column!r}, got {listed(named)}: they are {listed(known)}"
                    )


def _covariates_beside(formula: str, covariates: str | None, frame: pd.DataFrame) -> str | None:
    """The covariate terms that a part's categories have to be coded beside.

    Those of the same numbers: beside ``x`` the categories of ``C(shop):x`` are one less, beside ``w`` they are not.
    """

    def split(term: Term) -> tuple[frozenset[str], bool]:
        """A term's factors that are numbers, and whether there are categories besides."""
        factors = [factor for factor in term.factors if factor.eval_method is not Factor.EvalMethod.LITERAL]
        lookup = Factor.EvalMethod.LOOKUP
        kinds = [is_category(f) or (f.eval_method is lookup and _is_categorical(frame, f.expr)) for f in factors]
        return frozenset(f.expr for f, kind in zip(factors, kinds, strict=True) if not kind), any(kinds)

    own = {term: split(term) for term in part_terms(formula)}
    numbers = {only for only, categories in own.values() if categories}
    kept = [
        term_text(term)
        for term in (part_terms(covariates) if covariates is not None else ())
        if split(term)[0] in numbers and (split(term)[1] or term not in own)
    ]
    return " + ".join(kept) or None


def _materialise(part: PartState, frame: pd.DataFrame) -> Made:
    """formulaic's model matrix, of it the part's own columns, with a check for finite values."""
    formula = part.formula
    constant = [Term([Factor("1", eval_method="literal")])] if part.intercept else []
    before = () if part.beside is None else part_terms(part.beside)
    own = [term for term in part_terms(formula) if term not in before]
    _check_width([*before, *own], part.levels, formula)
    spec = ModelSpec(
        formula=SimpleFormula([*constant, *before, *own], _ordering="none"),
        transform_state=dict(part.transform_state),
        na_action="ignore",
    )
    try:
        # A bad value shows below as a value that is not finite; numpy's warning about it says less.
        with np.errstate(all="ignore"):
            table = spec.get_model_matrix(frame, context={})
    except MemoryError:
        raise TooLargeError(f"the columns of {formula!r} do not fit in memory: use fewer rows, categories or knots") from None
    except UNREADABLE as error:
        if "extrapolation" in str(error) and part.transform_state:
            raise DataError(
                f"the spline(s) in {formula!r} got values beyond those of training: write bs(..., extrapolation='clip') or "
                "'extend' in the formula, or drop those rows"
            ) from None
        raise FormulaError(f"the term(s) {formula!r} cannot be evaluated: {reason(error)}") from None
    structure = table.model_spec.structure
    if sum(len(term.columns) for term in structure) != table.shape[1]:
        raise FormulaError(f"two terms of {_joint(formula, part.beside)!r} make columns of the same name: rename a column")
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
    spanned = [term for term in part_terms(formula) if term not in own]
    spanned += [term.term for term in structure if term.term in own and not term.columns]
    return Made(matrix, tuple(map(str, names)), table.model_spec.transform_state, tuple(map(str, spanned)))


def _check_width(terms: Sequence[Term], levels: Mapping[str, Sequence[Hashable]], formula: str) -> None:
    """Raise before any is made where there would be very many columns."""

    def width(factor: Factor) -> int:
        if factor.eval_method is Factor.EvalMethod.LITERAL:
            return 1
        return factor_width(factor) * prod(len(levels[name]) for name in factor_columns(factor) if name in levels)

    made = sum(prod(width(factor) for factor in term.factors) for term in terms if not _is_column(term, levels))
    if made > MOST_COLUMNS:
        raise FormulaError(
            f"{formula[:200]!r} makes up to {made:,} columns, and {MOST_COLUMNS:,} at most: use fewer categories or knots"
        )


def _is_column(term: Term, levels: Mapping[str, Sequence[Hashable]]) -> bool:
    return all(f.eval_method is Factor.EvalMethod.LOOKUP and f.expr not in levels for f in term.factors)
