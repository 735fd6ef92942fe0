"""Roles by formula or by column name, and the fitted encoding that turns new rows into the same columns.

``"sales ~ time + emotion + [price ~ fuel]"`` reads: the outcome ``sales`` depends on the covariates ``time`` and ``emotion``
and on the treatment ``price``, for which ``fuel`` is the instrument. formulaic parses and materialises; what is ours is the
assignment of roles, joint dropping of rows with gaps *before* any transform learns its state, checks, and a state that can be
saved.

Terms may use columns, arithmetic and the transforms in :data:`TRANSFORMS`, nothing else, so that a formula read from a model
file cannot run code of its author's choosing.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, Literal

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import FormulaicError
from formulaic.formula import SimpleFormula
from formulaic.parser import DefaultFormulaParser
from formulaic.parser.types import Factor, Term

from cfiv.data import Array, IVData
from cfiv.errors import DataError, FormulaError, MissingRowsWarning, ParameterError

Missing = Literal["drop", "raise"]

#: The functions that a formula may call.
TRANSFORMS = frozenset(
    # Without exp10, which formulaic 1.2 computes as x ** 10.
    {"C", "I", "bs", "cc", "center", "cr", "cs", "exp", "exp2", "log", "log10", "log2", "poly", "scale"}
    | {f"np.{name}" for name in ("abs", "clip", "cos", "exp", "log", "log1p", "maximum", "minimum", "sign", "sin", "sqrt")}
)
_CODE = (
    *(ast.Expression, ast.Call, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Load, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.Tuple, ast.List),
)
#: Text in a term, such as extrapolation='clip': plain words. Quotes, backslashes and backticks inside text mean one thing to
#: our check and another to formulaic, which pastes them into code, so that a term could hide what it runs.
_PLAIN_TEXT = re.compile(r"'[\w .-]*'|\"[\w .-]*\"")
_QUOTED_NAME = re.compile(r"`([^`]*)`")


@dataclass(frozen=True)
class Roles:
    """Which columns, or transforms of columns, play which role.

    Parameters
    ----------
    outcome, treatment, instruments : str
        One formula part each, such as ``"sales"``, ``"poly(price, 2)"``, ``"fuel + fuel:time"``; constants are implied.
    covariates : str or None
        The exogenous part; it enters both stages by itself.
    weights : str or None
        The name of a column of row weights.
    intercept : bool
        False where the formula says ``0 +`` or ``- 1``. It concerns linear estimators: learned features carry a constant.
    """

    outcome: str
    treatment: str
    instruments: str
    covariates: str | None = None
    weights: str | None = None
    intercept: bool = True

    @classmethod
    def from_formula(cls, formula: str, *, weights: str | None = None) -> Roles:
        """Read ``outcome ~ covariates + [treatment ~ instruments]``.

        Raises
        ------
        FormulaError
            If it cannot be parsed, has no or empty brackets, or calls what formulas may not call.
        """
        hint = "write 'outcome ~ covariates + [treatment ~ instruments]'"
        if not isinstance(formula, str):
            raise FormulaError(f"a formula is text, got {type(formula).__name__}: {hint}")
        try:
            parser = DefaultFormulaParser(feature_flags=DefaultFormulaParser.FeatureFlags.ALL)
            parsed = Formula(formula, _parser=parser)
            left, right = parsed.lhs, parsed.rhs
        except (FormulaicError, AttributeError, IndexError, SyntaxError, NotImplementedError) as error:
            reason = "it needs an outcome and a '~'" if isinstance(error, AttributeError) else str(error).splitlines()[0]
            raise FormulaError(f"the formula {formula!r} cannot be read: {reason}; {hint}") from None
        if not getattr(right, "deps", None):
            raise FormulaError(f"the formula {formula!r} names no instruments: {hint}")
        if len(left) != 1:
            raise FormulaError(f"the formula {formula!r} must have one outcome, got {len(left)}: {hint}")
        # formulaic puts a placeholder "<term>_hat" among the covariates for each term before the inner "~".
        endogenous = [term for stage in right.deps for term in stage.lhs]
        placeholders = {f"{term}_hat" for term in endogenous}
        for name in placeholders:
            if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", formula):
                raise FormulaError(
                    f"the formula {formula!r} uses the reserved name {name!r}: rename that column, or give names instead"
                )
        if any(len(term.factors) > 1 and placeholders & {factor.expr for factor in term.factors} for term in right.root):
            raise FormulaError(
                f"the formula {formula!r} multiplies the brackets by a term: put the products inside, as in "
                "'[price + price:time ~ fuel + fuel:time]'"
            )
        exogenous = [_text(term) for term in right.root if not placeholders & {factor.expr for factor in term.factors}]
        treatment = [_text(term) for term in endogenous if str(term) != "1"]
        instruments = list(dict.fromkeys(_text(term) for stage in right.deps for term in stage.rhs if str(term) != "1"))
        covariates = [term for term in exogenous if term != "1"]
        if not treatment or not instruments:
            raise FormulaError(f"the brackets of {formula!r} need a treatment and an instrument: {hint}")
        return cls(
            outcome=_text(next(iter(left))),
            treatment=" + ".join(treatment),
            instruments=" + ".join(instruments),
            covariates=" + ".join(covariates) or None,
            weights=weights,
            intercept="1" in exogenous,
        )

    @classmethod
    def from_names(
        cls,
        *,
        outcome: str | None,
        treatment: str | Sequence[str] | None,
        instruments: str | Sequence[str] | None,
        covariates: str | Sequence[str] | None = None,
        weights: str | None = None,
    ) -> Roles:
        """Roles from plain column names, which may hold any character but a backtick."""
        parts: dict[str, str | None] = {}
        for role, given in (
            ("outcome", outcome),
            ("treatment", treatment),
            ("instruments", instruments),
            ("covariates", covariates),
        ):
            names: list[Any] = [given] if isinstance(given, str) else list(given or ())
            if not names and role != "covariates":
                raise FormulaError(f"no {role} named: give a formula, or {role}={'...' if role == 'outcome' else '[...]'}")
            if any(not isinstance(name, str) or "`" in name for name in names):
                raise FormulaError(f"{role} must be column names (text without backticks), got {names!r}")
            parts[role] = " + ".join(f"`{name}`" for name in names) or None
        assert parts["outcome"]
        assert parts["treatment"]
        assert parts["instruments"]
        return cls(parts["outcome"], parts["treatment"], parts["instruments"], parts["covariates"], weights)


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
        For the columns used as categories.
    """

    formula: str
    columns: tuple[str, ...]
    transform_state: Mapping[str, Any]
    levels: Mapping[str, tuple[Hashable, ...]]

    def matrix(self, frame: pd.DataFrame) -> Array:
        """The part's columns at the rows of ``frame``, shape (n, len(columns))."""
        variables = _variables(self.formula)
        _require_columns(frame, variables, needed_for="predictions")  # again, for a file whose parts disagree
        ready = _categorised(_numeric(frame, variables, self.formula), self.levels)
        return _materialise(self.formula, ready, self.transform_state)[0]


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

    def inputs(self, frame: pd.DataFrame) -> tuple[Array, Array | None]:
        """Treatment and covariate arrays at new rows.

        Raises
        ------
        DataError
            For missing columns, gaps, infinities, text, or categories that training did not see.
        """
        self._check_complete(frame, self.columns, needed_for="predictions")
        return self.treatment.matrix(frame), None if self.covariates is None else self.covariates.matrix(frame)

    def observations(self, frame: pd.DataFrame, *, missing: Missing = "drop") -> IVData:
        """Every role at new rows, for held-out criteria; drops rows with gaps as training does, raises as :meth:`inputs`."""
        weights = self.roles.weights
        parts = [part for part in (self.outcome, self.treatment, self.instruments, self.covariates) if part is not None]
        names = [name for part in parts for name in _variables(part.formula)] + ([weights] if weights else [])
        _require_columns(frame, names, needed_for="held-out criteria")
        frame = _without_gaps(frame[list(dict.fromkeys(names))], missing, stacklevel=4)
        return IVData(
            outcome=self.outcome.matrix(frame)[:, 0],
            treatment=self.treatment.matrix(frame),
            instruments=self.instruments.matrix(frame),
            covariates=None if self.covariates is None else self.covariates.matrix(frame),
            weights=None if weights is None else _row_weights(frame, weights),
        )

    @staticmethod
    def _check_complete(frame: pd.DataFrame, columns: Sequence[str], *, needed_for: str) -> None:
        _require_columns(frame, columns, needed_for=needed_for)
        gaps = frame[list(columns)].isna().any(axis=1).to_numpy()
        if gaps.any():
            raise DataError(
                f"{int(gaps.sum())} of {len(frame)} rows have gaps in {_quoted(columns)} (first: row {int(gaps.argmax())}): "
                f"{needed_for} need complete rows, so drop or fill them"
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
            values = (
                dict(zip(self.treatment_columns, listed, strict=False)) if len(listed) == len(self.treatment_columns) else {}
            )
        if set(values) != set(self.treatment_columns):
            raise ParameterError(
                f"treatment values must cover {_quoted(self.treatment_columns)}, got {shortened(value)}: give one number for "
                "each, or a mapping from column to number, or to one number a row"
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
    if missing not in ("drop", "raise"):
        raise ParameterError(f"missing must be 'drop' or 'raise', got {missing!r}")
    parts = {"outcome": roles.outcome, "treatment": roles.treatment, "instruments": roles.instruments}
    if roles.covariates is not None:
        parts["covariates"] = roles.covariates
    variables = {role: _variables(part) for role, part in parts.items()}
    _check_roles(variables, roles)
    used = list(dict.fromkeys(name for names in variables.values() for name in names))
    if roles.weights is not None and roles.weights not in used:
        used.append(roles.weights)
    _require_columns(frame, used, needed_for="the roles")
    frame = _without_gaps(frame[used], missing, stacklevel=5)
    states, arrays = {}, {}
    for role, part in parts.items():
        states[role], arrays[role] = _fit_part(frame, part)
    outcome = arrays["outcome"]
    if outcome.shape[1] != 1:
        raise DataError(
            f"the outcome {roles.outcome!r} must be one numeric column, got {outcome.shape[1]}: {states['outcome'].columns}"
        )
    weights = None
    if roles.weights is not None:
        weights = _row_weights(frame, roles.weights)
    data = IVData(
        outcome=outcome[:, 0],
        treatment=arrays["treatment"],
        instruments=arrays["instruments"],
        covariates=arrays.get("covariates"),
        weights=weights,
        frame=frame,
        names={role: state.columns for role, state in states.items()}
        | ({"weights": (roles.weights,)} if roles.weights else {}),
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


def _row_weights(frame: pd.DataFrame, name: str) -> Array:
    return _numeric(frame, (name,), f"`{name}`")[name].to_numpy(dtype=np.float64)


def _without_gaps(frame: pd.DataFrame, missing: Missing, *, stacklevel: int) -> pd.DataFrame:
    gaps = frame.isna()
    rows = gaps.any(axis=1).to_numpy()
    if not rows.any():
        return frame.reset_index(drop=True)
    counts = ", ".join(f"{name}: {count}" for name, count in gaps.sum().items() if count)
    if missing == "raise":
        raise DataError(f"{int(rows.sum())} of {len(frame)} rows have gaps ({counts}): fill them, or use missing='drop'")
    if rows.all():
        raise DataError(f"all {len(frame)} rows have gaps ({counts}): nothing is left; fill them or drop the column")
    warnings.warn(
        f"dropped {int(rows.sum())} of {len(frame)} rows with gaps ({counts})", MissingRowsWarning, stacklevel=stacklevel
    )
    return frame[~rows].reset_index(drop=True)


def _fit_part(frame: pd.DataFrame, formula: str) -> tuple[PartState, Array]:
    variables = _variables(formula)
    ready = _numeric(frame, variables, formula)
    levels = {
        name: tuple(sorted(ready[name].unique().tolist(), key=lambda level: (str(type(level)), level)))
        for name in variables
        if isinstance(ready[name].dtype, pd.CategoricalDtype) or name in _categorical_variables(formula)
    }
    for name, seen in levels.items():
        as_number = [f.expr for f in _factors(formula) if name in _columns(f) and not _is_category(f)]
        if as_number and not isinstance(ready[name].dtype, pd.CategoricalDtype):
            raise FormulaError(
                f"column {name!r} is both C({name}) and a number in {formula!r}: copy it to a second column for one of the two"
            )
        if len(seen) < 2:
            raise DataError(f"column {name!r} has the single category {seen[0]!r} and distinguishes nothing: drop it")
    matrix, columns, state = _materialise(formula, _categorised(ready, levels), {})
    return PartState(formula, columns, state, levels), matrix


def _materialise(
    formula: str, frame: pd.DataFrame, state: Mapping[str, Any]
) -> tuple[Array, tuple[str, ...], Mapping[str, Any]]:
    """formulaic's model matrix without its constant (which it needs to code categories), with a check for finite values."""
    spec = ModelSpec(formula=Formula(f"1 + {formula}"), transform_state=dict(state), na_action="ignore")
    try:
        # A bad value shows below as a value that is not finite; numpy's warning about it says less.
        with np.errstate(all="ignore"):
            table = spec.get_model_matrix(frame, context={})
    except (FormulaicError, ValueError, TypeError, ArithmeticError) as error:
        if "extrapolation" in str(error) and state:
            raise DataError(
                f"the spline(s) in {formula!r} got values beyond those of training: write bs(..., extrapolation='clip') or "
                "'extend' in the formula, or drop those rows"
            ) from None
        raise FormulaError(f"the term(s) {formula!r} cannot be evaluated: {str(error).splitlines()[0]}") from None
    fitted = table.model_spec
    table = pd.DataFrame(table).drop(columns="Intercept")
    matrix = table.to_numpy(dtype=np.float64, copy=True)
    finite = np.isfinite(matrix)
    if not finite.all():
        column = int((~finite).any(axis=0).argmax())
        bad = ~finite[:, column]
        raise DataError(
            f"{table.columns[column]!r} is infinite or undefined in {int(bad.sum())} of {len(bad)} rows (first: row "
            f"{int(bad.argmax())}): drop those rows or choose another transform"
        )
    return matrix, tuple(str(name) for name in table.columns), fitted.transform_state


def _numeric(frame: pd.DataFrame, variables: Sequence[str], formula: str) -> pd.DataFrame:
    """The raw columns of a part as float64, or as categories where the part uses them as such."""
    allowed = _categorical_variables(formula)
    columns: dict[str, Any] = {}
    for name in variables:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            columns[name] = column.astype("category")
        elif name in allowed:
            columns[name] = column.astype(object) if not pd.api.types.is_numeric_dtype(column.dtype) else column
        elif pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
            if pd.api.types.is_complex_dtype(column.dtype):
                raise DataError(f"column {name!r} holds complex numbers: take its real part or modulus first")
            columns[name] = column.astype(np.float64)
        elif pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
            raise DataError(f"column {name!r} holds dates: convert it to a number, for instance days since a first date")
        else:
            converted = pd.to_numeric(column, errors="coerce").astype(np.float64)
            text = converted.isna().to_numpy()
            if text.any() or any(isinstance(value, str) for value in column):
                row = int(text.argmax()) if text.any() else 0
                raise DataError(
                    f"column {name!r} holds text ({column.iloc[row]!r} in row {row}) where numbers are needed: convert it with "
                    f"pandas.to_numeric, or mark it as categories with C({name}) in the formula or astype('category')"
                )
            columns[name] = converted
        if columns[name].dtype == np.float64:
            # Before a transform learns from it: one infinity would make a whole centred column undefined.
            infinite = np.isinf(columns[name].to_numpy())
            if infinite.any():
                raise DataError(
                    f"column {name!r} is infinite in {int(infinite.sum())} of {len(infinite)} rows (first: row "
                    f"{int(infinite.argmax())}): drop those rows or mend their values"
                )
    return pd.DataFrame(columns)


def _categorised(frame: pd.DataFrame, levels: Mapping[str, Sequence[Hashable]]) -> pd.DataFrame:
    """Columns used as categories, with the categories of training; unseen ones are refused."""
    for name, known in levels.items():
        # By equality of values, whatever their type: a category True may come back as 1, or 2 as 2.0.
        positions = {level: position for position, level in enumerate(known)}
        codes = [positions.get(level, -1) for level in frame[name].tolist()]
        unseen = list(dict.fromkeys(level for level, code in zip(frame[name].tolist(), codes, strict=True) if code < 0))
        if unseen:
            raise DataError(
                f"column {name!r} has {len(unseen)} categories that training did not see ({_quoted(unseen)}); known are "
                f"{_quoted(known)}: drop those rows or train with them"
            )
        frame = frame.assign(**{name: pd.Categorical.from_codes(codes, categories=pd.Index(list(known)))})
    return frame


def _require_columns(frame: pd.DataFrame, names: Sequence[str], *, needed_for: str) -> None:
    for name in names:
        if name not in frame.columns:
            present = [str(column) for column in frame.columns]
            near = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the table has {_quoted(present)}"
            raise DataError(f"{needed_for} need column {name!r}, which the table does not have: {hint}")


def _variables(formula: str) -> tuple[str, ...]:
    """Raw columns that a part uses, in the order of their first use."""
    factors = _factors(formula)
    names = tuple(dict.fromkeys(name for factor in factors for name in _columns(factor)))
    in_code = {name for factor in factors if factor.eval_method is Factor.EvalMethod.PYTHON for name in _columns(factor)}
    for name in sorted(in_code):
        clashing = [
            other for other in names if other != name and _identifier(name) in (other, other in in_code and _identifier(other))
        ]
        if clashing:
            raise FormulaError(f"columns {name!r} and {clashing[0]!r} cannot be told apart in {formula!r}: rename one of them")
    return names


def _categorical_variables(formula: str) -> set[str]:
    return {name for factor in _factors(formula) if _is_category(factor) for name in _columns(factor)}


def _is_category(factor: Factor) -> bool:
    return str(factor.expr).startswith("C(")


def _factors(formula: str) -> list[Factor]:
    """The distinct factors of a part's terms, without the constant."""
    try:
        parsed = Formula(f"1 + {formula}")
    except (FormulaicError, IndexError, SyntaxError) as error:
        raise FormulaError(f"{formula!r} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(parsed, SimpleFormula):
        raise FormulaError(f"{formula!r} must be a sum of terms without '~' and '|'")
    factors = {factor.expr: factor for term in parsed for factor in term.factors}
    return [factor for factor in factors.values() if factor.eval_method is not Factor.EvalMethod.LITERAL]


def _columns(factor: Factor) -> list[str]:
    """Columns in one factor; raises unless it is built from columns, arithmetic and TRANSFORMS."""
    if factor.eval_method is Factor.EvalMethod.LOOKUP:
        return [factor.expr]
    tree, original = _parsed(factor.expr)
    functions: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called not in TRANSFORMS:
                raise FormulaError(
                    f"formulas may not call {called!r}, got {factor.expr!r}: compute that column first, or use one of "
                    f"{', '.join(sorted(TRANSFORMS))}"
                )
            functions.update(id(inner) for inner in ast.walk(node.func))
    found = []
    for node in ast.walk(tree):
        if id(node) in functions:
            continue
        if not isinstance(node, _CODE) or (isinstance(node, ast.Constant) and not _is_plain(node.value)):
            raise FormulaError(
                f"formulas may use columns, arithmetic and transforms, got {factor.expr!r}: compute that column first"
            )
        if isinstance(node, ast.Name):
            found.append(original.get(node.id, node.id))
    return found


def _is_plain(value: object) -> bool:
    """Numbers, and text without quotes: within triple quotes they pass as pairs of plain ones."""
    return (
        value is None or isinstance(value, (int, float)) or (isinstance(value, str) and "'" not in value and '"' not in value)
    )


def _parsed(expression: str) -> tuple[ast.Expression, dict[str, str]]:
    """The syntax tree of a factor, the one that formulaic runs, and the columns behind the names that stand for quoted ones.

    formulaic replaces a quoted name by an identifier, which it draws from numpy's global generator where two would be equal,
    and files what a transform learned under it: such names are refused, or nothing would be found at prediction.
    """
    if re.search(r"['\"\\#]", _PLAIN_TEXT.sub("", expression)):
        raise FormulaError(
            f"the term {expression!r} has quotes, backslashes or '#' in it: rename the column, or compute that column first"
        )
    for name in _QUOTED_NAME.findall(expression):
        if not name or keyword.iskeyword(name):
            raise FormulaError(f"the term {expression!r} quotes {name!r}, which python reserves: rename that column")
    unusual = [name for name in _QUOTED_NAME.findall(expression) if not name.isidentifier()]
    for name, uses in Counter(map(_identifier, unusual)).items():
        if uses > 1:
            raise FormulaError(
                f"the term {expression!r} quotes {_quoted([n for n in unusual if _identifier(n) == name])}, which cannot be "
                "told apart: a term may name a quoted column once, so rename it"
            )
    original = {_identifier(name): name for name in unusual}
    source = _QUOTED_NAME.sub(lambda match: f" {_identifier(match.group(1))} ", expression)
    try:
        return ast.parse(source.strip(), mode="eval"), original
    except (SyntaxError, ValueError):
        raise FormulaError(f"the term {expression!r} cannot be read: quote unusual column names with backticks") from None


def _identifier(name: str) -> str:
    """The identifier that formulaic puts in the place of a quoted column name."""
    if name.isidentifier():
        return name
    identifier = re.sub(r"\W", "_", name)
    return f"_{identifier}" if identifier[:1].isdigit() else identifier


def _text(term: Term) -> str:
    """A term as formula text, with the backticks and braces that formulaic strips from unusual names and from code."""
    return ":".join(_factor_text(factor) for factor in term.factors)


def _factor_text(factor: Factor) -> str:
    if factor.eval_method is Factor.EvalMethod.LOOKUP:
        return factor.expr if factor.expr.isidentifier() else f"`{factor.expr}`"
    if factor.eval_method is Factor.EvalMethod.PYTHON and not isinstance(_parsed(factor.expr)[0].body, ast.Call):
        return f"{{{factor.expr}}}"  # or {x**2} would come back as x**2, which formulas read as x
    return str(factor.expr)


def _quoted(names: Sequence[object], limit: int = 8) -> str:
    shown = ", ".join(repr(str(name)) for name in list(names)[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"
