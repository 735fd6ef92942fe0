"""Terms: the factors that a formula is made of, and what they may hold.

Terms may use columns, arithmetic and the functions in :mod:`cfiv.tables.transforms`, nothing else, so that a formula read from
a model file can neither run code of its author's choosing nor compute without end.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from formulaic.parser.types import Factor, Term

from cfiv.errors import FormulaError, quoted
from cfiv.tables.grammar import ONE_READER, UNREADABLE
from cfiv.tables.transforms import CONTRASTS, TRANSFORMS, arguments, check_size

#: Arithmetic on columns; matrix products would mix rows, and shifts make numbers without bound.
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float] | None] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: None,  # of comparisons, never of constants
    ast.BitOr: None,
    ast.BitXor: None,
}
#: Text in a term, such as extrapolation='clip': plain words. Quotes, backslashes and backticks inside text mean one thing to
#: our check and another to formulaic, which pastes them into code, so that a term could hide what it runs.
_PLAIN_TEXT = re.compile(r"'[\w .,:;/&%+-]*'|\"[\w .,:;/&%+-]*\"")
_QUOTED_NAME = re.compile(r"`([^`]*)`")


@dataclass(frozen=True)
class Contents:
    """What a factor of a term holds.

    Parameters
    ----------
    columns : tuple of str
        Raw columns, in the order of their use.
    category : bool
        Whether it is a call of ``C``.
    functions : tuple of str
        Those that it uses, with those of CONTRASTS that C is given without a call.
    width : int
        An upper bound of the columns that its calls make of one column.
    named : mapping from ``levels``, ``base`` or ``reference`` to categories
        Those that C and its contrasts name.
    """

    columns: tuple[str, ...]
    category: bool = False
    functions: tuple[str, ...] = ()
    width: int = 1
    named: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def contents(factor: Factor) -> Contents:
    """Read a factor.

    Raises
    ------
    FormulaError
        Unless it is built from columns, arithmetic and TRANSFORMS, of sizes within their bounds.
    """
    if factor.eval_method is Factor.EvalMethod.LOOKUP:
        return Contents((factor.expr,))
    term = str(factor.expr)
    tree, original = _parsed(term)
    check = _Check(term)
    try:
        check.number(tree.body)
    except RecursionError:
        raise FormulaError(f"the term {term[:200]!r} is nested too deeply: compute that column first") from None
    category, functions, width, named = term.startswith("C("), [], 1, {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        signature = TRANSFORMS.get(function) or CONTRASTS[function]
        given = arguments(call, signature, term)
        handed = [ast.unparse(node) for _, node in given]
        functions += [function, *(text for text in handed if text in TRANSFORMS or text in CONTRASTS)]
        if signature.sizes:
            sizes = [_constant(node, term) or 0 for name, node in given if name in signature.sizes]
            lists = [len(node.elts) for _, node in given if isinstance(node, (ast.List, ast.Tuple))]
            width *= int(sum(sizes) + sum(lists)) + 4  # a spline's degree is 3 where nothing is said
        for name, node in given if category else ():
            if name in ("levels", "base", "reference"):
                nodes = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
                named[name] = [n.value if isinstance(n, ast.Constant) else _constant(n, term) for n in nodes]
    columns = tuple(original.get(name, name) for name in check.columns)
    return Contents(columns, category, tuple(functions), width, named)


class _Check:
    """One walk over a factor's code, which collects its columns and raises for whatever else it may not hold."""

    def __init__(self, term: str) -> None:
        self.term = term
        self.columns: list[str] = []

    def number(self, node: ast.expr) -> None:
        """Something that arithmetic may be done with."""
        if isinstance(node, ast.Name):
            self.columns.append(node.id)
        elif isinstance(node, ast.UnaryOp):
            self.number(node.operand)
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            self.number(node.left)
            self.number(node.right)
            _constant(node, self.term)  # raises where it is too large
        elif isinstance(node, ast.Compare):
            before = len(self.columns)
            for side in (node.left, *node.comparators):
                self.argument(side)
            if len(self.columns) == before:
                self.refuse("a comparison needs a column")
        elif isinstance(node, ast.Call):
            self.call(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            _constant(node, self.term)
        else:
            self.refuse("formulas may use columns, arithmetic and transforms")

    def argument(self, node: ast.expr) -> None:
        """A number, a plain text or None."""
        plain = isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str))
        # Without quotes in it: within triple quotes they pass as pairs of plain ones.
        if not plain or (isinstance(node, ast.Constant) and re.search("['\"]", str(node.value))):
            self.number(node)

    def constants(self, node: ast.expr) -> None:
        """A list of constants, or of such lists."""
        if isinstance(node, (ast.List, ast.Tuple)):
            for element in node.elts:
                self.constants(element)
        else:
            before = len(self.columns)
            self.argument(node)
            if len(self.columns) > before:
                self.refuse("lists, and what a transform is told besides its column, are constants")

    def call(self, node: ast.Call) -> None:
        """A call of one of TRANSFORMS, at least one of whose arguments holds a column."""
        called = ast.unparse(node.func)
        if called not in TRANSFORMS:
            hint = f"give {called} as the second argument of C()" if called in CONTRASTS else "compute that column first"
            raise FormulaError(
                f"formulas may not call {called!r} there, got {self.term!r}: {hint}, or use one of "
                f"{', '.join(sorted(TRANSFORMS))}"
            )
        signature, before = TRANSFORMS[called], len(self.columns)
        for name, value in arguments(node, signature, self.term):
            none = isinstance(value, ast.Constant) and value.value is None
            if name in signature.sizes and not none:
                self.argument(value)
                size = _constant(value, self.term)
                check_size(f"{name} of {called}()", size, signature.sizes[name], self.term)
            elif isinstance(value, (ast.List, ast.Tuple)) and name in signature.lists:
                self.constants(value)
            elif called == "C" and name == "data":
                self.category(value)
            elif name == "contrasts":
                self.contrasts(value)
            elif signature.learns and name != signature.positional[0] and not isinstance(value, (ast.List, ast.Tuple)):
                self.constants(value)
            else:
                self.argument(value)
        if len(self.columns) == before:
            self.refuse(f"{called}() needs a column")

    def category(self, node: ast.expr) -> None:
        """What ``C`` makes categories of: a column, which it sees as categories, and with those nothing computes."""
        self.number(node)
        for part in filter(_computes, ast.walk(node)):
            flag = ", or write I() for a column of 0 and 1" if isinstance(part, ast.Compare) else ""
            raise FormulaError(f"C() takes a column as it is, got {self.term!r}: compute that column first{flag}")

    def contrasts(self, node: ast.expr) -> None:
        """The coding of a category: one of CONTRASTS, called with constants or by its name alone."""
        called = ast.unparse(node.func if isinstance(node, ast.Call) else node)
        if called not in CONTRASTS:
            raise FormulaError(
                f"a category is coded by one of {', '.join(CONTRASTS)}, got {called!r} in {self.term!r}: use one of these, or "
                "compute the columns first"
            )
        if isinstance(node, ast.Call):
            for _, value in arguments(node, CONTRASTS[called], self.term):
                self.constants(value)

    def refuse(self, what: str) -> None:
        raise FormulaError(f"{what}, got {self.term!r}: compute that column first")


def _computes(node: ast.AST) -> bool:
    """Whether a column itself is computed with or put in order; that it is this or that, can be asked of categories too."""
    parts: list[ast.expr] = []
    if isinstance(node, (ast.BinOp, ast.UnaryOp)):
        parts = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
    elif isinstance(node, ast.Compare) and not all(isinstance(sign, (ast.Eq, ast.NotEq)) for sign in node.ops):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) not in ("C", "I"):
        parts = node.args
    return any(isinstance(part, ast.Name) for part in parts)


def _constant(node: ast.expr, term: str) -> float | None:
    """The value of arithmetic among constants, or None where there is a column.

    Raises
    ------
    FormulaError
        If it, or a part of it, is no float: Python's whole numbers have no bound, and so no end.
    """
    try:
        value: Any
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            value = float(node.value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            inside = _constant(node.operand, term)
            return inside if inside is None or isinstance(node.op, ast.UAdd) else -inside
        elif isinstance(node, ast.BinOp):
            left, right = _constant(node.left, term), _constant(node.right, term)
            compute = _ARITHMETIC.get(type(node.op))
            if left is None or right is None:
                return None
            value = math.nan if compute is None else compute(left, right)
        else:
            return None
    except ArithmeticError:
        value = math.nan
    if not isinstance(value, float) or not math.isfinite(value):
        raise FormulaError(f"the constant {ast.unparse(node)[:50]} in {term[:200]!r} is no finite number: write its value")
    return value


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
    for name, uses in Counter(map(identifier_of, unusual)).items():
        if uses > 1:
            raise FormulaError(
                f"the term {expression!r} quotes {quoted([n for n in unusual if identifier_of(n) == name])}, which cannot be "
                "told apart: a term may name a quoted column once, so rename it"
            )
    original = {identifier_of(name): name for name in unusual}
    source = _QUOTED_NAME.sub(lambda match: f" {identifier_of(match.group(1))} ", expression)
    try:
        with ONE_READER:
            return ast.parse(source.strip(), mode="eval"), original
    except UNREADABLE:
        raise FormulaError(f"the term {expression[:200]!r} cannot be read: quote unusual column names with backticks") from None


def identifier_of(name: str) -> str:
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
