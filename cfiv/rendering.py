"""Results as text, Markdown, LaTeX and HTML: one grid of cells, drawn four ways.

Numbers have four digits, p-values four decimals; a grid is made of a table, or cell by cell where one holds more than a number.
"""

from __future__ import annotations

import abc
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

import pandas as pd

#: Characters a line of text, for notes beneath a table.
WIDTH = 80
#: Columns of these names hold p-values.
P_VALUES = ("p_value", "p-value")
#: What columns of our tables are called on a page.
HEADINGS = {
    "column": "Column",
    "estimate": "Estimate",
    "coefficient": "Coefficient",
    "std_error": "Std. error",
    "p_value": "p-value",
    "lower": "Lower",
    "upper": "Upper",
    "band_lower": "Band lower",
    "band_upper": "Band upper",
    "supported": "Supported",
}
#: A column of text with a longer cell than this wraps on a page.
LONG = 60

_MARKDOWN = {sign: f"\\{sign}" for sign in "|<*`\\"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", "|": r"\textbar{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}
#: Numbers as mathematics has them: minus signs, infinity, stars raised.
_MATHEMATICS = (
    (r"(^|[ (\[])-inf\b", r"\1$-\\infty$"),
    (r"(?<=, )inf\)", r"$\\infty$)"),
    (r"(^|[ (\[])-(?=\.?\d)", r"\1$-$"),
    (r"^(.*\d)(\*+)$", r"\1$^{\2}$"),
)


class Rendered(abc.ABC):
    """Abstract: what is read as tables. Text in a terminal, HTML in a notebook, Markdown and LaTeX for a paper."""

    @abc.abstractmethod
    def _grids(self) -> tuple[Grid, ...]:
        """The tables, in their order."""

    def to_markdown(self) -> str:
        """As pipe tables."""
        return "\n\n".join(to_markdown(grid) for grid in self._grids())

    def to_latex(self) -> str:
        r"""As tabulars with the rules of the booktabs package (``\usepackage{booktabs}``)."""
        return "\n\n".join(to_latex(grid) for grid in self._grids())

    def to_html(self) -> str:
        """As plain HTML tables, without a page around them."""
        return "".join(to_html(grid) for grid in self._grids())

    def __str__(self) -> str:
        return "\n\n".join(to_text(grid) for grid in self._grids())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.to_html()


@dataclass(frozen=True, repr=False)
class Grid(Rendered):
    """Cells of a table, each as it is read.

    Parameters
    ----------
    header : tuple of str
    blocks : tuple of tuples of rows
        Rows, a rule between blocks.
    sides : str
        ``l``, ``r`` or ``c``, one a column. Text has ``c`` to the right; there the last digits of a block stand below another,
        before stars and brackets.
    title : str
    notes : tuple of str
        Sentences beneath.
    """

    header: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    sides: str
    title: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: pd.DataFrame, *, index: bool = True, title: str = "", notes: tuple[str, ...] = ()) -> Grid:
        """Of a table; its index is the first column, unless left out."""
        flat = table.reset_index() if index else table
        columns = [(str(name), flat.iloc[:, place]) for place, name in enumerate(flat.columns)]
        cells = [[shown_p(v) if name in P_VALUES else shown(v) for v in values.tolist()] for name, values in columns]
        sides = ["r" if _is_number(values) or name in P_VALUES else "l" for name, values in columns]
        return cls(tuple(name for name, _ in columns), (tuple(zip(*cells, strict=True)),), "".join(sides), title, notes)

    def _grids(self) -> tuple[Grid, ...]:
        return (self,)


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


def shown_p(value: float | None) -> str:
    """A p-value: four decimals, ``< .0001`` below them, nothing where there is none."""
    if value is None or value != value:
        return ""
    return "< .0001" if value < 0.0001 else f"{value:.4f}"


def to_text(table: pd.DataFrame | Grid) -> str:
    """Columns aligned with spaces, numbers to the right; those of several blocks in panels no wider than a terminal."""
    grid = _grid(table)
    blocks = [_digits_aligned(block, grid.sides) for block in grid.blocks]
    rows = [grid.header, *(row for block in blocks for row in block)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(grid.header))]
    ruled = len(blocks) > 1
    gap = 1 if ruled and sum(widths) + 2 * (len(widths) - 1) > WIDTH else 2
    panels = _panels(widths, gap=gap) if ruled else [list(range(len(widths)))]

    def line(row: tuple[str, ...], panel: list[int]) -> str:
        cells = [row[i].ljust(widths[i]) if grid.sides[i] == "l" else row[i].rjust(widths[i]) for i in panel]
        return (" " * gap).join(cells).rstrip()

    lines = [grid.title] * bool(grid.title)
    for panel in panels:
        rule = ["-" * (sum(widths[i] for i in panel) + gap * (len(panel) - 1))] * ruled
        lines += [""] * (panel is not panels[0]) + [line(grid.header, panel)]
        for block in blocks:
            lines += [*rule, *(line(row, panel) for row in block)]
        lines += rule
    return "\n".join([*lines, *(part for note in grid.notes for part in textwrap.wrap(note, WIDTH))])


def to_markdown(table: pd.DataFrame | Grid) -> str:
    """A pipe table."""
    grid = _grid(table)
    rule = {"l": "---", "r": "---:", "c": ":---:"}

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(_escaped(cell, _MARKDOWN) for cell in cells) + " |"

    rows = [line(row) for block in grid.blocks for row in block]
    lines = [line(grid.header), "| " + " | ".join(rule[side] for side in grid.sides) + " |", *rows]
    notes = " ".join(_escaped(note, _MARKDOWN) for note in grid.notes)
    return "\n".join([*[f"**{_escaped(grid.title, _MARKDOWN)}**", ""] * bool(grid.title), *lines, *["", notes] * bool(notes)])


def to_latex(table: pd.DataFrame | Grid) -> str:
    """A tabular with the rules of the booktabs package."""
    grid = _grid(table)

    def line(cells: tuple[str, ...]) -> str:
        return " & ".join(_latex(cell) for cell in cells) + r" \\"

    longest = [max((len(row[i]) for block in grid.blocks for row in block), default=0) for i in range(len(grid.sides))]
    columns = [r"p{0.6\linewidth}" if n > LONG else side for n, side in zip(longest, grid.sides, strict=True)]
    lines = [f"% {' '.join(grid.title.split())}"] * bool(grid.title)
    lines += [rf"\begin{{tabular}}{{{''.join(columns)}}}", r"\toprule", line(grid.header)]
    for block in grid.blocks:
        lines += [r"\midrule", *map(line, block)]
    lines.append(r"\bottomrule")
    wide = rf"\multicolumn{{{len(columns)}}}{{l}}{{\footnotesize "
    lines += [rf"{wide}{_latex(part)}}} \\" for note in grid.notes for part in textwrap.wrap(note, WIDTH)]
    return "\n".join([*lines, r"\end{tabular}"])


def to_html(table: pd.DataFrame | Grid) -> str:
    """A plain table, for notebooks."""
    grid = _grid(table)
    sides = [{"l": "left", "r": "right", "c": "center"}[side] for side in grid.sides]

    def line(cells: tuple[str, ...], tag: str) -> str:
        return "".join(
            f"<{tag} style='text-align:{side}'>{escape(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True)
        )

    rule = " style='border-top:1px solid'" if len(grid.blocks) > 1 else ""
    rows = ["".join(f"<tr>{line(row, 'td')}</tr>" for row in block) for block in grid.blocks]
    bodies = "".join(f"<tbody{rule}>{body}</tbody>" for body in rows)
    caption = f"<caption>{escape(grid.title)}</caption>" if grid.title else ""
    notes = "".join(f"<tr><td colspan='{len(sides)}' style='text-align:left'>{escape(note)}</td></tr>" for note in grid.notes)
    foot = f"<tfoot{rule}>{notes}</tfoot>" if notes else ""
    return f"<table>{caption}<thead><tr>{line(grid.header, 'th')}</tr></thead>{bodies}{foot}</table>"


def _grid(table: pd.DataFrame | Grid) -> Grid:
    return table if isinstance(table, Grid) else Grid.of(table)


def _is_number(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype))


def _escaped(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text)


def _latex(cell: str) -> str:
    r"""A cell of LaTeX. One that begins with ``[`` or ``*`` would be an argument of the ``\\`` or the rule before it."""
    text = _escaped(cell, _LATEX)
    for pattern, replacement in _MATHEMATICS:
        text = re.sub(pattern, replacement, text)
    return f"{{{text[0]}}}{text[1:]}" if text[:1] in ("[", "*") else text


def _panels(widths: list[int], *, gap: int) -> list[list[int]]:
    """Columns that fit beside one another, each time after the first; one at least."""
    panels = [[0]]
    for i in range(1, len(widths)):
        if len(panels[-1]) > 1 and sum(widths[j] + gap for j in panels[-1]) + widths[i] > WIDTH:
            panels.append([0])
        panels[-1].append(i)
    return panels


def _digits_aligned(block: tuple[tuple[str, ...], ...], sides: str) -> list[tuple[str, ...]]:
    """With spaces for stars and brackets that other rows end with, in columns that stand to the right."""
    columns = []
    for cells, side in zip(zip(*block, strict=True), sides, strict=False):
        ends = [len(cell) - len(cell.rstrip("*)]")) for cell in cells]
        columns.append(
            cells if side == "l" else [cell + " " * (max(ends) - end) for cell, end in zip(cells, ends, strict=True)]
        )
    return list(zip(*columns, strict=True))
