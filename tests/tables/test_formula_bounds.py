"""Formulas say what they mean, and cost little to read: terms that vanish, names that clash, and text that is no formula."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfiv.errors import CfivError, FormulaError, FormulaWarning
from cfiv.tables.encoding import fit_encoder
from cfiv.tables.formula import Part
from cfiv.tables.grammar import part_terms
from cfiv.tables.roles import Roles
from cfiv.tables.table_encoder import TableEncoder


def table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(30, 5)), columns=["y", "t", "z", "x", "fuel price"])
    return frame.assign(g=list("abc") * 10, k=np.arange(30) % 3)


def encoder(formula: str, frame: pd.DataFrame | None = None) -> TableEncoder:
    return fit_encoder(table() if frame is None else frame, Roles.from_formula(formula))[0]


# Terms that vanish


@pytest.mark.contract
@pytest.mark.parametrize(
    ("formula", "names"),
    [
        ("y ~ [t + t**2 ~ z + z**2]", ["'t**2' is 't' (write I(t**2)", "'z**2' is 'z' (write I(z**2)"]),
        ("y ~ x**2 + [t ~ z]", ["I(x**2)"]),
        ("y**2 ~ [t ~ z]", ["I(y**2)"]),
        ("y ~ x^3 + [t ~ z]", ["I(x**3)"]),
        ("y ~ [t*t ~ z]", ["'t * t' is 't' (write I(t**2)"]),
        ("y ~ [t:t ~ z]", ["I(t**2)"]),
        ("y ~ x + x:k:x + [t ~ z]", ["'(x*k) * x' is 'x*k'"]),
        ("y ~ (x + k):x + [t ~ z]", ["'x * x' is 'x'"]),
        ("y ~ (x*k)**2 + [t ~ z]", ["'x**2' is 'x'"]),
        ("y ~ `fuel price`**2 + [t ~ z]", ["I(`fuel price`**2)"]),
        ("y ~ exp(x)**2 + [t ~ z]", ["I(exp(x)**2)"]),
        ("y ~ poly(x, 2)**2 + [t ~ z]", ["compute that column first"]),
        ("y ~ x/x + [t ~ z]", ["'x * x' is 'x'"]),
        ("y ~ x - k + [t ~ z]", ["'- k' takes away a term that is not there", "I(x - w)"]),
        ("y ~ -x + [t ~ z]", ["'- x' takes away", "I(-x)"]),
    ],
)
def test_a_term_that_vanishes_is_said_with_the_way_to_write_it(formula: str, names: list[str]) -> None:
    with pytest.warns(FormulaWarning) as caught:
        Roles.from_formula(formula)
    assert [name for name in names if name not in str(caught[0].message)] == []


@pytest.mark.contract
@pytest.mark.parametrize(
    "part",
    [
        "(x + k)**2", "x*k", "x:k", "x + x", "(x + k)**1", "x**1", "(x + k)*(x + k)", "I(x**2)", "poly(x, 2)", "x*k - x",
        "x - 1", "0 + x", "1 + x", "x/k", "2:x", "C(g)*C(g)", "{x**2}", "(x + k + g)**3",
    ],
)  # fmt: skip
def test_other_terms_say_nothing(part: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Roles.from_formula(f"y ~ {part} + [t ~ z]")


# Names


@pytest.mark.contract
@pytest.mark.parametrize(("name", "call"), [("C", "C(g)"), ("poly", "poly(x, 2)"), ("np", "np.sin(x)"), ("I", "I(x**2)"),
                                            ("bs", "bs(x, df=4)"), ("log", "log(k + 1)"), ("contr", "C(g, contr.sum)"),
                                            ("Sum", "C(g, Sum)"), ("contr", "C(g, contr.treatment(base='b'))")])  # fmt: skip
def test_a_column_named_like_a_function_works_unless_they_meet(name: str, call: str) -> None:
    frame = table().rename(columns={"fuel price": name})
    np.testing.assert_array_equal(encoder(f"y ~ {name} + [t ~ z]", frame).inputs(frame)[1], frame[[name]])
    assert encoder(f"y ~ {call} + [t ~ z + {name}]", frame)
    with pytest.raises(FormulaError, match=rf"beside a column named '{name}', which would take the function's place: rename"):
        encoder(f"y ~ {name} + {call} + [t ~ z]", frame)


@pytest.mark.contract
def test_a_dot_is_told_what_it_would_mean() -> None:
    with pytest.raises(FormulaError, match=r"'\.' stands for all other columns in other programs.*name the covariates"):
        Roles.from_formula("y ~ . + [t ~ z]")


@pytest.mark.contract
def test_lists_within_brackets_are_no_brackets_within_brackets() -> None:
    made, _ = encoder("y ~ [bs(t, knots=[0.0]) ~ bs(z, knots=[-0.1, 0.1])]").inputs(table())
    assert made.shape == (30, 4)


@pytest.mark.contract
def test_two_terms_whose_columns_have_one_name_are_refused() -> None:
    frame = table().rename(columns={"fuel price": "C(g)[T.b]"})
    with pytest.raises(FormulaError, match="make columns of the same name: rename a column"):
        encoder("y ~ C(g) + `C(g)[T.b]` + [t ~ z]", frame)


# Bounds


@pytest.mark.contract
@pytest.mark.parametrize(
    "term",
    [
        "I(x + 9**9**9)", "I(x + 1e308 * 10)", "I(x + (1 << 10))", "I(x + 1 / 0)", "I(x ** (2**2000))", "I(I(9)**I(9)**I(9))",
        "I(((1 < 2) * 9)**9**9 + x)", "I(x + (-8)**0.5)", "I(x @ x)", "I(x + 'a' * 10)", "I(x * [1])",
        "poly(x, 10**9)", "poly(x, degree=10**9)", "poly(x, 2.5)", "poly(x, k)", "bs(x, df=10**9)", "bs(x, 10**9)",
        "bs(x, df=5, degree=10**9)", "cr(x, df=10**9)", "cc(x, 10**9)", "bs(x, df=k)", "bs(x, df=-1)", "bs(x, df=1e400)",
        "scale(x, center=k)", "bs(x, df=4, upper_bound=k)", "poly(x, 2, _state=x)", "poly(x, 2, False, x)", "log(x, z)",
        "log(**x)", "np.sqrt(x, out=x)", "C(g, output='sparse')", "C(g, contr.sum(1))",
        "(x + k + g + y)**12", "x**100000000000000000000000", "(x + k)**0",
        "bs(bs(bs(x, df=900), df=900), df=900)", "bs(x, df=900):bs(k, df=900)",
        "(" * 200 + "x" + ")" * 200, "I(" * 60 + "x" + ")" * 60, "I(" + "-" * 5000 + "x)", "I(x" + "+x" * 3000 + ")",
        "x" + ":k" * 6000, "x" + "*k" * 6000, "a" * 20000, "+" * 20000 + "x", "`x", "x[0]", "''", "{", "x\x00", "é²(",
    ],
)  # fmt: skip
def test_what_would_cost_much_or_is_no_formula_is_refused(term: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FormulaWarning)
        with pytest.raises(CfivError):
            encoder(f"y ~ {term} + [t ~ z]")
        with pytest.raises(CfivError):  # as a part of a file
            fit_encoder(table(), Roles("y", "t", "z", term))


@pytest.mark.contract
@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("I((x - 3.5) / 2**2)", lambda x: (x - 3.5) / 4),
        ("I(x**-1)", lambda x: 1 / x),
        ("I(10**6 * x + 10**-3)", lambda x: 10**6 * x + 10**-3),
        ("I((x > 0) & (x < 1))", lambda x: (x > 0) & (x < 1)),
        ("{-x % 7}", lambda x: -x % 7),
        ("np.clip(x, None, 0.5)", lambda x: x.clip(None, 0.5)),
        ("scale(x, center=False, scale=2.0)", lambda x: x / 2),
    ],
)
def test_ordinary_arithmetic_is_left_alone(term: str, expected: object) -> None:
    frame = table()
    made = encoder(f"y ~ {term} + [t ~ z]").inputs(frame)[1]
    np.testing.assert_allclose(made[:, 0], expected(frame["x"]), rtol=1e-14)  # type: ignore[index, operator]


@pytest.mark.contract
def test_a_category_of_very_many_levels_is_refused_before_its_columns_are_made() -> None:
    n = 100_002
    frame = pd.DataFrame({"y": np.arange(n) % 7, "t": np.arange(n) % 5, "z": np.arange(n) % 3, "id": np.arange(n)})
    with pytest.raises(FormulaError, match="makes up to 100,002 columns, and 100,000 at most"):
        encoder("y ~ C(id) + [t ~ z]", frame)


@pytest.mark.contract
def test_wide_tables_are_named() -> None:
    assert len(part_terms(" + ".join(f"`gene {i}`" for i in range(5000)))) == 5000


PIECES = st.sampled_from(
    ["x", "t", "C(g)", "contr.sum", "I(", "bs(x, df=4)", "(", ")", "[", "]", "{", "}", "~", "+", "-", "*", "**", ":", "/", "|",
     "`", "'", '"', "\\", "#", ",", "=", "0", "1", "2", "9**9**9", "1e400", ".", "lambda", "if", "not", "\n", "\x00", "\ud800",
     "²", "@", "<", "[0]", "*x", "...", "1j", "f'{x}'", "Intercept", " ", "%in%", "%", "^"]
)  # fmt: skip


@pytest.mark.law
@given(st.lists(PIECES, min_size=1, max_size=12).map("".join))
def test_any_text_is_a_formula_or_refused_as_one(text: str) -> None:
    for read in (Roles.from_formula, Part, part_terms):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(text)
            except FormulaError:
                continue
