"""Tables as text, Markdown, LaTeX and HTML."""

import numpy as np
import pandas as pd

from cfiv.rendering import shown, to_html, to_latex, to_markdown, to_text

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
