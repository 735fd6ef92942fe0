"""Summary: what a fit says of itself, as lines and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from cfiv.rendering import HEADINGS, Grid, Rendered, to_latex, to_text


@dataclass(frozen=True, repr=False)
class Summary(Rendered):
    """Lines of name and value, and tables of records. Prints as text, and as HTML in a notebook.

    Parameters
    ----------
    title : str
    lines : tuple of (name, value)
    tables : mapping from a heading to records
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        parts = [self.title, "=" * len(self.title), *(f"{name:<{width}}  {value}" for name, value in self.lines)]
        return "\n".join([*parts, *(f"\n{to_text(grid)}" for grid in self._grids()[1:])])

    def to_latex(self) -> str:
        r"""As tabulars with the rules of the booktabs package, headings in words."""
        grids = (replace(grid, header=tuple(HEADINGS.get(name, name) for name in grid.header)) for grid in self._grids())
        return "\n\n".join(map(to_latex, grids))

    def _grids(self) -> tuple[Grid, ...]:
        lines = Grid((self.title, ""), (self.lines,), "ll")
        return (lines, *(Grid.of(pd.DataFrame(list(rows)), index=False, title=name) for name, rows in self.tables.items()))
