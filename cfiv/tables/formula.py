"""Part: the formula of one role, read once; its text is for files and messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from formulaic.parser.types import Factor, Term

from cfiv.errors import FormulaError
from cfiv.tables.grammar import part_terms
from cfiv.tables.terms import factor_columns, factor_functions, factor_width, identifier_of, is_category


@dataclass(frozen=True)
class Part:
    """A sum of terms, such as ``C(shop) + poly(x, 2):z``.

    Parameters
    ----------
    text : str

    Attributes
    ----------
    terms : tuple of Term
        As formulaic has them, without the constant, those of fewer factors first.
    factors : tuple of Factor
        Of all terms, each once, without literal numbers.
    columns : mapping from the text of a factor to the raw columns in it
    widths : mapping from the text of a factor to the number of columns that its calls make of one, at most
    variables : tuple of str
        All raw columns, in the order of their first use.
    categories : frozenset of str
        Those in ``C(...)``.

    Raises
    ------
    FormulaError
        If it cannot be read, is too long or too deep, or is more than a sum of terms that formulas may hold.
    """

    text: str
    terms: tuple[Term, ...] = field(init=False, repr=False, compare=False)
    factors: tuple[Factor, ...] = field(init=False, repr=False, compare=False)
    columns: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    widths: dict[str, int] = field(init=False, repr=False, compare=False)
    variables: tuple[str, ...] = field(init=False, repr=False, compare=False)
    categories: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = part_terms(self.text)
        found = {factor.expr: factor for term in terms for factor in term.factors}
        factors = tuple(factor for factor in found.values() if factor.eval_method is not Factor.EvalMethod.LITERAL)
        columns = {factor.expr: factor_columns(factor) for factor in factors}
        read = {
            "terms": terms,
            "factors": factors,
            "columns": columns,
            "widths": {factor.expr: factor_width(factor) for factor in factors},
            "variables": tuple(dict.fromkeys(name for names in columns.values() for name in names)),
            "categories": frozenset(name for factor in factors if is_category(factor) for name in columns[factor.expr]),
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)
        self._check_names()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its text, whatever formulaic makes of it there."""
        return Part, (self.text,)

    def beside(self, other: Part | None) -> Part:
        """The sum of the other's terms and these."""
        return self if other is None else Part(f"{other.text} + {self.text}")

    def _check_names(self) -> None:
        """Raise for columns that formulaic takes for a function, or for one another."""
        for function in dict.fromkeys(function for factor in self.factors for function in factor_functions(factor)):
            if function.split(".")[0] in self.variables:
                raise FormulaError(
                    f"{self.text!r} calls {function}() beside a column named {function.split('.')[0]!r}, which would take the "
                    "function's place: rename that column"
                )
        python = [factor for factor in self.factors if factor.eval_method is Factor.EvalMethod.PYTHON]
        in_code = {name for factor in python for name in self.columns[factor.expr]}
        for name in sorted(in_code):
            identifier = identifier_of(name)
            for other in self.variables:
                if other != name and identifier in (other, other in in_code and identifier_of(other)):
                    raise FormulaError(
                        f"columns {name!r} and {other!r} cannot be told apart in {self.text!r}: rename one of them"
                    )
