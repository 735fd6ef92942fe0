"""Grammar: the text of a formula as terms. formulaic reads it; ours are bounds of its cost, and a word about what vanishes.

By the convention of formulas ``*``, ``:`` and ``**`` make interactions, not products, and ``-`` takes terms away: ``t**2`` is
``t``. Whoever meant arithmetic gets another model than was asked for, so what has no effect is noted.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

from formulaic import Formula
from formulaic.errors import FormulaicError
from formulaic.formula import SimpleFormula
from formulaic.parser import DefaultFormulaParser, DefaultOperatorResolver
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Factor, Operator, Term, Token

from cfiv.errors import FormulaError


class OneReader:
    """A lock that a thread may take again, free in a process that was forked while another thread held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """In a child of ``os.fork``, where that thread is no more."""
        self._lock = threading.RLock()


#: Bounds, far beyond what people write, of what a formula (perhaps of a damaged model file) may cost: characters in all, and
#: between two plus signs; operators, where it is more than a sum of names; terms of one product; the power of a sum; brackets
#: within brackets.
MOST_TEXT, LONGEST_TERM, MOST_OPERATORS, MOST_TERMS, MOST_POWER, DEEPEST = 500_000, 10_000, 5_000, 10_000, 100, 50
#: What formulaic and Python's parser raise for text that is no formula, however it is broken.
UNREADABLE = (
    *(FormulaicError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(NotImplementedError, RecursionError, MemoryError),
)
#: Held while Python makes or compiles syntax trees, as formulaic has it do for each factor: CPython (seen with 3.11.7) counts
#: for all threads together how deep it is in one, and two at once end in a SystemError now and then.
ONE_READER = OneReader()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ONE_READER.renew)
_QUOTED = re.compile(r"`[^`]*`")
_MANY_COLUMNS = re.compile(r"\b(bs|cc|cr|cs|poly)\(")


def read_formula(text: str) -> tuple[Any, list[str]]:
    """A whole formula with brackets, as formulaic has it, and notes on its terms that have no effect.

    Raises
    ------
    FormulaError, or one of UNREADABLE
        Where it is too long or too deep, or no formula.
    """
    check_bounds(text)
    opened = operators = 0
    for token in tokenize(text):
        operators += token.kind is Token.Kind.OPERATOR
        if token.kind is Token.Kind.CONTEXT and token.token in "[]":
            opened += 1 if token.token == "[" else -1
            if opened > 1:
                raise FormulaError("it has brackets within brackets, so put all treatments in one pair")
    if operators > MOST_OPERATORS:
        raise FormulaError(
            f"a formula may have up to {MOST_OPERATORS:,} operators, got {operators:,}: name the columns instead"
        )
    resolver = _Resolver()
    parser = DefaultFormulaParser(operator_resolver=resolver, feature_flags=DefaultFormulaParser.FeatureFlags.ALL)
    with ONE_READER:
        return Formula(text, _parser=parser), list(dict.fromkeys(resolver.notes))


def split_fixed_effects(text: str) -> tuple[str, tuple[str, ...]]:
    """A formula without its bar, and the columns named after it: ``y ~ x + [t ~ z] | firm + year``.

    Raises
    ------
    FormulaError
        For two bars, and for anything but names of columns, each once, after one.
    """
    check_bounds(text)
    blank = _QUOTED.sub(lambda found: "_" * len(found.group()), text)
    depths = accumulate((character in "([{") - (character in ")]}") for character in blank)
    bars = [i for i, (character, depth) in enumerate(zip(blank, depths, strict=True)) if character == "|" and depth == 0]
    if not bars:
        return text, ()
    advice = "fixed effects are names of columns after one bar, as in 'outcome ~ x + [treatment ~ instruments] | firm + year'"
    if len(bars) > 1:
        raise FormulaError(f"the formula {_shown(text)} has {len(bars)} bars: {advice}")
    after = text[bars[0] + 1 :]
    try:
        terms = _sum_of_names(after) if after.strip() else None
    except UNREADABLE:
        terms = None
    if terms is None:
        raise FormulaError(
            f"{_shown(after)} after the bar of {_shown(text)} cannot be absorbed: {advice}; combine several columns into one "
            "for groups that they make together"
        )
    names = tuple(str(next(iter(term.factors)).expr) for term in terms)
    if len(list(tokenize(after))) > 2 * len(names):  # names and plus signs between them; terms are distinct
        raise FormulaError(f"{_shown(after)} after the bar of {_shown(text)} names a column twice: name each once")
    return text[: bars[0]], names


def part_terms(formula: str) -> tuple[Term, ...]:
    """The terms of one part, without the constant, those of fewer factors first.

    Raises
    ------
    FormulaError
        If it cannot be read, is too long or too deep, or is more than a sum of terms.
    """
    try:
        check_bounds(formula)
        terms = _sum_of_names(formula)
        if terms is None:
            with ONE_READER:
                parsed = Formula(f"1 + {formula}", _parser=DefaultFormulaParser(operator_resolver=_Resolver()))
            if not isinstance(parsed, SimpleFormula):
                raise FormulaError(f"{_shown(formula)} must be a sum of terms without '~' and '|'")
            terms = list(parsed)
    except FormulaError:
        raise
    except UNREADABLE as error:
        raise FormulaError(f"{_shown(formula)} cannot be read: {reason(error)}") from None
    return tuple(term for term in terms if str(term) != "1")


def reason(error: BaseException) -> str:
    """The first line of an error of UNREADABLE, in words where it has none."""
    if isinstance(error, (RecursionError, MemoryError)):
        return "it is nested too deeply"
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_bounds(text: str) -> None:
    """Raise a FormulaError for text that would take long to read."""
    if not isinstance(text, str):
        raise FormulaError(f"a formula is text, got {type(text).__name__}")
    if len(text) > MOST_TEXT:
        raise FormulaError(f"a formula may have up to {MOST_TEXT:,} characters, got {len(text):,}: {_shown(text)}")
    if max(map(len, re.split("[+~]", text))) > LONGEST_TERM or re.search(r"[^\w`'\"()\[\]{}]{1000}", text):
        raise FormulaError(f"a term of a formula may have up to {LONGEST_TERM:,} characters, got more: {_shown(text)}")
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", _QUOTED.sub("", text)):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise FormulaError(f"a formula may nest brackets {DEEPEST} deep, got {deepest}: {_shown(text)}")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


def _sum_of_names(text: str) -> list[Term] | None:
    """The terms of ``a + b + ...``, of which wide tables have thousands (formulaic's time is quadratic in them); else None."""
    tokens = list(tokenize(text))
    if len(tokens) % 2 and all(
        token.token == "+" if i % 2 else bool(token.token) and token.kind is Token.Kind.NAME for i, token in enumerate(tokens)
    ):
        return list(dict.fromkeys(Term([Factor(token.token, eval_method="lookup")]) for token in tokens[::2]))
    if sum(token.kind is Token.Kind.OPERATOR for token in tokens) > MOST_OPERATORS:
        raise FormulaError(f"a formula may have up to {MOST_OPERATORS:,} operators, got more: {_shown(text)}")
    return None


class _Resolver(DefaultOperatorResolver):  # type: ignore[misc]  # formulaic ships no types
    """formulaic's operators, with a look at what goes into each and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    @property
    def operators(self) -> list[Operator]:
        watched: list[Operator] = super().operators
        for operator in watched:
            if operator.symbol in ("*", ":", "/", "in", "**", "^", "-", "."):
                plain = operator.to_terms
                operator.to_terms = partial(self._watched, operator, plain)
        return watched

    def _watched(self, operator: Operator, plain: Any, *sides: Any, context: Mapping[str, Any] | None = None) -> Any:
        symbol = operator.symbol
        if symbol == ".":
            raise FormulaError(
                "'.' stands for all other columns in other programs, and here for nothing, since it would make covariates of "
                "whatever a table holds: name the covariates"
            )
        power = _power(sides[1]) if symbol in ("**", "^") else None
        if symbol not in ("-", "."):
            _check_size(sides, power)
        terms = plain(*sides, context=context)
        if symbol == "-":
            there = set(sides[0]) if len(sides) == 2 else set()
            gone = [term for term in sides[-1] if _numbers(term) and term not in there]
            self.notes += [
                f"'- {_arithmetic(term)}' takes away a term that is not there (write I(x - w) for a difference, I(-x) for a "
                "negative)"
                for term in gone
            ]
        elif symbol == ":":
            left, right = (list(side) for side in sides)
            if left != right or len(left) == 1:
                self._note((one, f"{_factored(one)} * {_factored(other)}")
                           for one in left for other in right if _within(other, one))  # fmt: skip
        elif power is not None:
            if power > 1 and set(terms) == set(sides[0]):
                self._note((term, f"{_factored(term)}**{power}") for term in sides[0])
        elif set(terms) in (set(sides[0]), set(sides[1])):
            self._note(
                (one, f"{_factored(one)} * {_factored(other)}")
                for one in sides[0]
                for other in sides[1]
                if _within(other, one) or _within(one, other)
            )
        return terms

    def _note(self, products: Iterable[tuple[Term, str]]) -> None:
        """Note a product that is one of its factors, and how to write it as arithmetic."""
        for term, product in products:
            if any(factor.startswith("C(") for factor in _numbers(term)):  # products of its dummies are the dummies
                continue
            halves = product.split(" * ")
            squared = f"{halves[0]}**2" if len(halves) == 2 and halves[0] == halves[1] else product
            advice = "compute that column first" if _MANY_COLUMNS.search(product) else f"write I({squared}) for the product"
            self.notes.append(f"{product!r} is {_arithmetic(term)!r} ({advice})")


def _power(side: Any) -> int:
    """The power of a sum; formulaic refuses all but whole numbers itself."""
    text = str(next(iter(side), ""))
    return min(int(text[:10]), MOST_POWER + 1) if text.isdecimal() else 1


def _check_size(sides: tuple[Any, ...], power: int | None) -> None:
    sizes = [len(list(side)) for side in sides]
    if power is not None and not 1 <= power <= MOST_POWER:
        raise FormulaError(f"powers of sums go from 1 to {MOST_POWER}, got more")
    most = math.prod(sizes) if power is None else sizes[0] ** power
    if most > MOST_TERMS:
        raise FormulaError(f"a product in a formula may have up to {MOST_TERMS:,} terms, got more")


def _within(one: Term, other: Term) -> bool:
    """Whether a product of the two is the other."""
    return bool(_numbers(one)) and set(_numbers(one)) <= set(_numbers(other))


def _numbers(term: Term) -> list[str]:
    """A term's factors without literal numbers."""
    return [factor.expr for factor in term.factors if factor.eval_method is not Factor.EvalMethod.LITERAL]


def _arithmetic(term: Term) -> str:
    """A term as it would be written to compute with it."""
    names = {f.expr: f.eval_method is Factor.EvalMethod.LOOKUP and not f.expr.isidentifier() for f in term.factors}
    return "*".join(f"`{name}`" if odd else name for name, odd in names.items())


def _factored(term: Term) -> str:
    text = _arithmetic(term)
    return f"({text})" if len(term.factors) > 1 else text
