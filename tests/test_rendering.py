"""Tables as text, Markdown, LaTeX and HTML."""

import numpy as np
import pandas as pd
import pytest

from cfiv.rendering import Grid, shown, shown_p, to_html, to_latex, to_markdown, to_text
from tests.latex import assert_compilable

TABLE = pd.DataFrame(
    {"estimator": ["a|b", "c_d & 5%"], "rows": [5000, 12], "error": [12345.678, np.nan]},
    index=pd.Index(["x", "<y>"], name="model"),
)


def test_numbers_have_four_digits_and_whole_ones_all_of_theirs() -> None:
    values = [0.000123456, 1.23456, 1234.56, 123456.7, 5000, float("nan"), float("inf"), True, "text", 1e20]
    expected = ["0.0001235", "1.235", "1235", "123,457", "5,000", "", "inf", "True", "text", "1e+20"]
    assert [shown(value) for value in values] == expected


def test_text_aligns_names_left_and_numbers_right() -> None:
    assert to_text(TABLE).splitlines() == [
        "model  estimator   rows   error",
        "x      a|b        5,000  12,346",
        "<y>    c_d & 5%      12",
    ]


def test_markdown_escapes_what_would_be_a_bar_a_tag_or_an_emphasis() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "| model | estimator | rows | error |",
        "| --- | --- | ---: | ---: |",
        "| x | a\\|b | 5,000 | 12,346 |",
        "| \\<y> | c_d & 5% | 12 |  |",
    ]
    signs = pd.DataFrame({"sign": [r"a*b*", "`c`", r"d\e"]}).set_index("sign")
    assert [line.strip("| ") for line in to_markdown(signs).splitlines()[2:]] == [r"a\*b\*", r"\`c\`", r"d\\e"]


def test_latex_escapes_its_signs() -> None:
    lines = to_latex(TABLE).splitlines()
    assert lines[0] == r"\begin{tabular}{llrr}"
    assert lines[-3] == r"\textless{}y\textgreater{} & c\_d \& 5\% & 12 &  \\"


def test_html_escapes_its_brackets() -> None:
    assert "<td style='text-align:left'>&lt;y&gt;</td>" in to_html(TABLE)
    assert to_html(TABLE).count("<tr>") == 3


REGRESSION = Grid(
    ("", "(1)", "x_2"),
    ((("educ & co", "-0.1315**", "0.07"), ("", "(0.0540)", "(0.004)")), (("[set]", "(-inf, -0.4]", "[1.2, inf)"),)),
    "lcc",
    title="50 % off",
    notes=("Stars: * p < 0.1.",),
)


@pytest.mark.law
def test_the_last_digits_of_a_block_stand_below_one_another() -> None:
    assert to_text(REGRESSION).splitlines() == [
        "50 % off",
        "                    (1)         x_2",
        "-----------------------------------",
        "educ & co     -0.1315**       0.07",
        "              (0.0540)      (0.004)",
        "-----------------------------------",
        "[set]      (-inf, -0.4]  [1.2, inf)",
        "-----------------------------------",
        "Stars: * p < 0.1.",
    ]


@pytest.mark.law
def test_markdown_has_notes_below_the_table() -> None:
    lines = to_markdown(REGRESSION).splitlines()
    assert lines[0] == "**50 % off**"
    assert lines[4] == r"| educ & co | -0.1315\*\* | 0.07 |"
    assert lines[-1] == r"Stars: \* p \< 0.1."


@pytest.mark.law
def test_latex_has_minus_signs_infinities_raised_stars_and_no_accidental_argument() -> None:
    lines = to_latex(REGRESSION).splitlines()
    assert lines[2:] == [
        r"\toprule",
        r" & (1) & x\_2 \\",
        r"\midrule",
        r"educ \& co & $-$0.1315$^{**}$ & 0.07 \\",
        r" & (0.0540) & (0.004) \\",
        r"\midrule",
        r"{[}set] & ($-\infty$, $-$0.4] & {[}1.2, $\infty$) \\",
        r"\bottomrule",
        r"\multicolumn{3}{l}{\footnotesize Stars: * p \textless{} 0.1.} \\",
        r"\end{tabular}",
    ]


@pytest.mark.law
@pytest.mark.parametrize(
    "name", ["[a]", "*b", r"c\d", "{e}", "f_g^h", "i|j", "k~l", "m & n", "1%", "#2", "$3", "<o>", "-1", "x-1"]
)
def test_latex_of_any_name_is_balanced_and_escaped(name: str) -> None:
    grid = Grid((name, name), (((name, f"{name}*"),), (("-0.5***", name),)), "lc", title=name, notes=(name,))
    assert_compilable(to_latex(grid))
    assert_compilable(to_latex(TABLE.rename(columns={"rows": name})))


@pytest.mark.law
def test_a_long_column_of_text_wraps_in_latex() -> None:
    assert r"\begin{tabular}{lp{0.6\linewidth}}" in to_latex(Grid(("", ""), ((("a", "word " * 20),),), "ll"))


@pytest.mark.law
def test_html_has_a_body_for_each_block_and_a_foot_of_notes() -> None:
    html = to_html(REGRESSION)
    assert [html.count(part) for part in ("<tbody", "<tfoot", "<caption", "colspan='3'")] == [2, 1, 1, 1]


@pytest.mark.law
def test_p_values_have_four_decimals_and_small_ones_a_bound() -> None:
    assert [shown_p(value) for value in (0.5, 0.0001, 0.00009999, 0.0, None, float("nan"))] == [
        "0.5000",
        "0.0001",
        "< .0001",
        "< .0001",
        "",
        "",
    ]
    table = pd.DataFrame({"test": ["a", "b", "c"], "p_value": [0.03, 1e-9, np.nan]})
    assert to_text(Grid.of(table, index=False)).splitlines() == ["test  p_value", "a      0.0300", "b     < .0001", "c"]
