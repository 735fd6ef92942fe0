"""Terms: what a part of a formula is made of, and what it may call.

Terms may use columns, arithmetic and the transforms in :data:`TRANSFORMS`, nothing else, so that a formula read from a model
file cannot run code of its author's choosing.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections import Counter

from formulaic import Formula
from formulaic.errors import FormulaicError
from formulaic.formula import SimpleFormula
from formulaic.parser.types import Factor, Term

from cfiv.errors import FormulaError, quoted

#: The functions that a formula may call.
TRANSFORMS = frozenset(
    # Without exp10, which formulaic 1.2 computes as x ** 10.
    {"C", "I", "bs", "cc", "center", "cr", "cs", "exp", "exp2", "log", "log10", "log2", "poly", "scale"}
    | {f"np.{name}" for name in ("abs", "clip", "cos", "exp", "log", "log1p", "maximum", "minimum", "sign", "sin", "sqrt")}
)
#: Those that make as many columns as they are asked for.
_SPLINES_AND_POLYNOMIALS = frozenset({"bs", "cc", "cr", "cs", "poly"})
_CODE = (
    *(ast.Expression, ast.Call, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Load, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.Tuple, ast.List),
)
#: Text in a term, such as extrapolation='clip': plain words. Quotes, backslashes and backticks inside text mean one thing to
#: our check and another to formulaic, which pastes them into code, so that a term could hide what it runs.
_PLAIN_TEXT = re.compile(r"'[\w .-]*'|\"[\w .-]*\"")
_QUOTED_NAME = re.compile(r"`([^`]*)`")


def raw_columns(formula: str) -> tuple[str, ...]:
    """Raw columns that a part uses, in the order of their first use."""
    factors = part_factors(formula)
    names = tuple(dict.fromkeys(name for factor in factors for name in factor_columns(factor)))
    in_code = {name for factor in factors if factor.eval_method is Factor.EvalMethod.PYTHON for name in factor_columns(factor)}
    for name in sorted(in_code):
        clashing = [
            other for other in names if other != name and _identifier(name) in (other, other in in_code and _identifier(other))
        ]
        if clashing:
            raise FormulaError(f"columns {name!r} and {clashing[0]!r} cannot be told apart in {formula!r}: rename one of them")
    return names


def category_columns(formula: str) -> set[str]:
    """Raw columns that a part uses as categories, by ``C(...)``."""
    return {name for factor in part_factors(formula) if is_category(factor) for name in factor_columns(factor)}


def is_category(factor: Factor) -> bool:
    """Whether a factor is a call of ``C``."""
    return str(factor.expr).startswith("C(")


def part_factors(formula: str) -> list[Factor]:
    """The distinct factors of a part's terms, without the constant."""
    try:
        parsed = Formula(f"1 + {formula}")
    except (FormulaicError, IndexError, SyntaxError) as error:
        raise FormulaError(f"{formula!r} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(parsed, SimpleFormula):
        raise FormulaError(f"{formula!r} must be a sum of terms without '~' and '|'")
    factors = {factor.expr: factor for term in parsed for factor in term.factors}
    return [factor for factor in factors.values() if factor.eval_method is not Factor.EvalMethod.LITERAL]


def columns_asked_for(formula: str) -> int:
    """The largest degree, or number of columns, that a part asks a spline or a polynomial for: what it costs to evaluate."""
    asked = [0]
    for factor in part_factors(formula):
        if factor.eval_method is not Factor.EvalMethod.PYTHON:
            continue
        for call in ast.walk(_parsed(factor.expr)[0]):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in _SPLINES_AND_POLYNOMIALS:
                # bs(x, df, knots, degree), poly(x, degree); bounds of a column may be any numbers.
                named = [keyword.value for keyword in call.keywords if keyword.arg in ("df", "degree")]
                given = [*call.args[1:2], *call.args[3:4], *named]
                asked += [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, int)]
    return max(asked)


def factor_columns(factor: Factor) -> list[str]:
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
                f"the term {expression!r} quotes {quoted([n for n in unusual if _identifier(n) == name])}, which cannot be "
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


def term_text(term: Term) -> str:
    """A term as formula text, with the backticks and braces that formulaic strips from unusual names and from code."""
    return ":".join(_factor_text(factor) for factor in term.factors)


def _factor_text(factor: Factor) -> str:
    if factor.eval_method is Factor.EvalMethod.LOOKUP:
        return factor.expr if factor.expr.isidentifier() else f"`{factor.expr}`"
    if factor.eval_method is Factor.EvalMethod.PYTHON and not isinstance(_parsed(factor.expr)[0].body, ast.Call):
        return f"{{{factor.expr}}}"  # or {x**2} would come back as x**2, which formulas read as x
    return str(factor.expr)
