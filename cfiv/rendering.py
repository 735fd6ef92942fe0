"""Tables of results as text, Markdown, LaTeX and HTML: numbers to four digits, the index first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import accumulate

import pandas as pd

_MARKDOWN = {sign: f"\\{sign}" for sign in "|<*`\\"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def shown(value: object) -> str:
    """A cell: whole numbers with thousands separators, others to four digits, nothing for nan."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value != value:
        return ""
    if isinstance(value, int) or (abs(value) >= 10_000 and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def joined(names: Sequence[str], *, between: str = ", ", width: int = 72) -> str:
    """As many names as fit a line, one at least, and how many there are; none of none."""
    if not names:
        return "none"
    lengths = accumulate(len(name) + len(between) for name in names)
    fitting = max(1, sum(length <= width for length in lengths))
    text = between.join(names[:fitting])
    return text if fitting == len(names) else f"{text}{between}... ({len(names)} in all)"


def to_text(table: pd.DataFrame) -> str:
    """Columns aligned with spaces, numbers to the right."""
    header, rows, right = _cells(table)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table."""
    header, rows, right = _cells(table)
    rule = ["---:" if r else "---" for r in right]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(_escaped(cell, _MARKDOWN) for cell in line) + " |" for line in lines)


def to_latex(table: pd.DataFrame) -> str:
    """A tabular with the rules of the booktabs package."""
    header, rows, right = _cells(table)

    def line(cells: list[str]) -> str:
        return " & ".join(_escaped(cell, _LATEX) for cell in cells) + r" \\"

    columns = "".join("r" if r else "l" for r in right)
    body = [line(row) for row in rows]
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(header), r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )


def to_html(table: pd.DataFrame) -> str:
    """A plain table, for notebooks."""
    header, rows, right = _cells(table)

    def line(cells: list[str], tag: str) -> str:
        sides = ["right" if r else "left" for r in right]
        return "".join(
            f"<{tag} style='text-align:{side}'>{escape(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _escaped(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text)


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]], list[bool]]:
    """Header, rows and whether a column stands to the right; the index is the first column."""
    flat = table.reset_index()
    header = [str(name) for name in flat.columns]
    columns = [flat[name] for name in flat.columns]
    right = [pd.api.types.is_numeric_dtype(c.dtype) and not pd.api.types.is_bool_dtype(c.dtype) for c in columns]
    rows = [[shown(value) for value in row] for row in zip(*(column.tolist() for column in columns), strict=True)]
    return header, rows, right
