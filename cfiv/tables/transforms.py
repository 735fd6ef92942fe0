"""Transforms: the functions that a formula may call, with what arguments, and how large those may be.

A formula may come from a model file, and a file from anywhere: no argument is passed that is not named here, and the sizes that
decide how long a call takes and how many columns it makes are whole numbers within bounds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from cfiv.errors import FormulaError

#: The most columns that one call may be asked for, and the highest degree of a polynomial or a spline.
MOST_COLUMNS, HIGHEST_DEGREE = 1000, 100


@dataclass(frozen=True)
class Signature:
    """What a function takes.

    Parameters
    ----------
    positional : tuple of str
        Its parameters in order; each may also be given by name.
    named : tuple of str
        Those that may only be given by name.
    sizes : mapping from parameter to int
        Whole numbers that decide the cost, and the largest allowed.
    lists : tuple of str
        Parameters that may be a list of constants.
    learns : bool
        Whether it learns from the rows of training: then all but the first argument are constants, for it would learn them too.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    learns: bool = False


_COLUMN = Signature(("x",))
_PAIR = Signature(("x1", "x2"))
_CUBIC = Signature(
    ("x", "df", "knots", "lower_bound", "upper_bound", "constraints"),
    ("extrapolation",),
    {"df": MOST_COLUMNS},
    ("knots", "constraints"),
    learns=True,
)
#: The functions that a formula may call. Without exp10, which formulaic 1.2 computes as x ** 10.
TRANSFORMS: Mapping[str, Signature] = {
    "C": Signature(("data", "contrasts"), ("levels", "spans_intercept"), lists=("contrasts", "levels"), learns=True),
    "bs": Signature(
        ("x", "df", "knots", "degree", "include_intercept", "lower_bound", "upper_bound", "extrapolation"),
        sizes={"df": MOST_COLUMNS, "degree": HIGHEST_DEGREE},
        lists=("knots",),
        learns=True,
    ),
    **dict.fromkeys(("cc", "cr", "cs"), _CUBIC),
    "poly": Signature(("x", "degree", "raw"), sizes={"degree": HIGHEST_DEGREE}, learns=True),
    "scale": Signature(("data", "center", "scale", "ddof"), learns=True),
    # One argument: numpy would write its result into a second one, which may be a column.
    **dict.fromkeys(("I", "center", "exp", "exp2", "log", "log10", "log2"), _COLUMN),
    **dict.fromkeys(("np.abs", "np.cos", "np.exp", "np.log", "np.log1p", "np.sign", "np.sin", "np.sqrt"), _COLUMN),
    **dict.fromkeys(("np.maximum", "np.minimum"), _PAIR),
    "np.clip": Signature(("a", "a_min", "a_max"), ("min", "max")),
}
#: The codings of categories, the second argument of C, under the names of formulaic (and R), and of patsy.
CONTRASTS: Mapping[str, Signature] = {
    "contr.treatment": Signature(("base",)),
    "contr.SAS": Signature(("base",)),
    "contr.sum": Signature(()),
    "contr.helmert": Signature(("reverse", "scale")),
    "contr.diff": Signature(("backward",)),
    "contr.poly": Signature(("scores",), lists=("scores",)),
    "Treatment": Signature(("reference",)),
    "Sum": Signature(()),
    "Helmert": Signature(("reverse", "scale")),
    "Diff": Signature(("backward",)),
    "Poly": Signature(("scores",), lists=("scores",)),
}


def learns(function: str) -> bool:
    """Whether a function that a formula calls learns numbers from the rows of training: knots, means, scales."""
    return function == "center" or (function != "C" and function in TRANSFORMS and TRANSFORMS[function].learns)


def arguments(call: ast.Call, signature: Signature, term: str) -> list[tuple[str, ast.expr]]:
    """Arguments of a call by the name of their parameter, in order.

    Raises
    ------
    FormulaError
        For arguments that the function does not take, or takes once.
    """
    function = ast.unparse(call.func)
    if len(call.args) > len(signature.positional):
        raise FormulaError(
            f"{function}() takes {len(signature.positional)} arguments ({', '.join(signature.positional) or 'none'}), got "
            f"{len(call.args)} in {term!r}: leave the others out"
        )
    found = list(zip(signature.positional, call.args, strict=False))
    known = (*signature.positional, *signature.named)
    for keyword in call.keywords:
        if keyword.arg not in known or keyword.arg in dict(found):
            raise FormulaError(
                f"{function}() takes {', '.join(known) or 'no arguments'}, each once, got {keyword.arg or '**'!r} in {term!r}: "
                "leave it out"
            )
        found.append((keyword.arg, keyword.value))
    return found


def check_size(name: str, value: float | None, most: int, term: str) -> None:
    """Raise unless a size is a constant whole number within its bound.

    Raises
    ------
    FormulaError
    """
    if value is None or value != int(value) or not 0 <= value <= most:
        got = "no constant" if value is None else f"{value:g}"
        raise FormulaError(f"{name} must be a whole number from 0 to {most:,}, got {got} in {term!r}: choose a smaller one")
