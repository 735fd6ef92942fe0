"""Part: the formula of one role, read once; its text is for files and messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from formulaic.parser.types import Factor, Term

from cfiv.errors import FormulaError
from cfiv.tables.grammar import part_terms
from cfiv.tables.terms import Contents, contents, identifier_of


@dataclass(frozen=True)
class Part:
    """A sum of terms, such as ``C(shop) + poly(x, 2):z``, with what it is coded beside.

    Parameters
    ----------
    text : str
    beside : Part, optional
        Covariate terms that the part's categories are coded beside.

    Attributes
    ----------
    terms : tuple of Term
        As formulaic has them, without the constant, those of fewer factors first.
    own : tuple of Term
        Those of them that are not among those that it is coded beside.
    factors : mapping from the text of a factor to what it holds
        Of these terms and of those beside them, without literal numbers.
    variables : tuple of str
        All raw columns in them, in the order of their first use.
    categories : frozenset of str
        Those in ``C(...)``.

    Raises
    ------
    FormulaError
        If it cannot be read, is too long or too deep, or is more than a sum of terms that formulas may hold.
    """

    text: str
    beside: Part | None = None
    terms: tuple[Term, ...] = field(init=False, repr=False, compare=False)
    own: tuple[Term, ...] = field(init=False, repr=False, compare=False)
    factors: dict[str, Contents] = field(init=False, repr=False, compare=False)
    variables: tuple[str, ...] = field(init=False, repr=False, compare=False)
    categories: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terms = part_terms(self.text)
        before, known = ((), {}) if self.beside is None else (self.beside.terms, self.beside.factors)
        found = {factor.expr: factor for term in (*before, *terms) for factor in term.factors}
        factors = {
            text: known[text] if text in known else contents(factor)
            for text, factor in found.items()
            if factor.eval_method is not Factor.EvalMethod.LITERAL
        }
        read = {
            "terms": terms,
            "own": tuple(term for term in terms if term not in before),
            "factors": factors,
            "variables": tuple(dict.fromkeys(name for held in factors.values() for name in held.columns)),
            "categories": frozenset(name for held in factors.values() if held.category for name in held.columns),
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)
        python = Factor.EvalMethod.PYTHON
        self._check_names(
            {name for text, factor in found.items() if factor.eval_method is python for name in factors[text].columns}
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its text, whatever formulaic makes of it there."""
        return Part, (self.text, self.beside)

    @property
    def joint(self) -> str:
        """The text of the sum with what it is coded beside."""
        return self.text if self.beside is None else f"{self.beside.text} + {self.text}"

    def _check_names(self, in_code: set[str]) -> None:
        """Raise for columns that formulaic takes for a function, or in code for one another."""
        for function in dict.fromkeys(function for held in self.factors.values() for function in held.functions):
            if function.split(".")[0] in self.variables:
                raise FormulaError(
                    f"{self.joint!r} calls {function}() beside a column named {function.split('.')[0]!r}, which would take the "
                    "function's place: rename that column"
                )
        for name in sorted(in_code):
            identifier = identifier_of(name)
            for other in self.variables:
                if other != name and identifier in (other, other in in_code and identifier_of(other)):
                    raise FormulaError(
                        f"columns {name!r} and {other!r} cannot be told apart in {self.joint!r}: rename one of them"
                    )
