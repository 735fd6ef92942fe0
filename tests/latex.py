"""What would keep a LaTeX table from compiling, for tests on machines without LaTeX."""

import re

RULES = (r"\toprule", r"\midrule", r"\bottomrule")
COLUMN = r"[lrc]|p\{[^}]*\}"


def assert_compilable(latex: str) -> None:
    """Tabulars whose braces, mathematics and environments are closed, with as many cells a row as columns, all escaped."""
    tabulars = latex.split("\n\n")
    assert tabulars
    for tabular in tabulars:
        lines = [line for line in tabular.splitlines() if not line.startswith("%")]
        begin = re.fullmatch(rf"\\begin\{{tabular\}}\{{((?:{COLUMN})+)\}}", lines[0])
        assert begin is not None, lines[0]
        assert lines[-1] == r"\end{tabular}"
        for line in lines[1:-1]:
            if line not in RULES:
                assert_row(line, columns=len(re.findall(COLUMN, begin[1])))


def assert_row(line: str, *, columns: int) -> None:
    """One row of a tabular."""
    assert line.endswith(r" \\"), line
    assert line[:1] not in ("[", "*"), "an argument of the line before it"
    row = re.sub(r"\\[&%$#_{}]", "", line.removesuffix(r" \\"))  # without signs that are escaped
    assert row.count("{") == row.count("}"), line
    assert row.count("$") % 2 == 0, line
    assert not set(row) & set("%#~"), line
    assert not set(re.sub(r"\$[^$]*\$", "", row)) & set("_^<>|"), "outside of mathematics"
    commands = set(re.findall(r"\\([a-zA-Z]+)", row))
    assert commands <= {"multicolumn", "footnotesize", "infty"} | {f"text{sign}" for sign in SIGNS}, commands
    spanned = sum(int(many) - 1 for many in re.findall(r"\\multicolumn\{(\d+)\}", row))
    assert row.count("&") + spanned == columns - 1, line


SIGNS = ("backslash", "asciitilde", "asciicircum", "less", "greater", "bar")
