"""What commands write: results as numbers or as they are read, by an ending that is checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cfiv.errors import OutputError
from cfiv.files import check_place, check_table_place, replacing, write_table_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cfiv.rendering import Rendered

#: Numbers to read by programs, and what a paper, a page of notes or a browser shows.
NUMBERS = (".csv", ".parquet")
PAGES = (".tex", ".md", ".html")
PICTURES = (".png", ".pdf", ".svg")
#: What ``--out`` of a command with results says in its help.
ENDINGS = ".csv or .parquet has numbers, .tex, .md and .html the table as it is read"


def check_distinct(output: Path, *others: Path) -> None:
    """Raise where an output is one of the other files."""
    if any(output.resolve() == other.resolve() for other in others):
        raise OutputError(f"'{output}' is named twice, and writing it would destroy the other: give --out another name")


def check_result_place(out: Path | None, *others: Path) -> None:
    """Raise before any work is done for a place or an ending that results cannot have."""
    if out is None:
        return
    check_distinct(out, *others)
    if out.suffix.lower() in NUMBERS:
        check_table_place(out)
        return
    if out.suffix.lower() not in PAGES:
        raise OutputError(f"results are {', '.join(NUMBERS + PAGES)} files, got '{out}': rename it")
    check_place(out)


def check_picture_place(out: Path, *others: Path) -> None:
    """Likewise of a picture."""
    check_distinct(out, *others)
    if out.suffix.lower() not in PICTURES:
        raise OutputError(f"pictures are {', '.join(PICTURES)} files, got '{out}': rename it")
    check_place(out)


def write_result(out: Path, table: pd.DataFrame, *shown: Rendered) -> None:
    """Write a result by its ending: the table of numbers, or what is read, one below the other."""
    kind = out.suffix.lower()
    if kind in NUMBERS:
        write_table_file(table, out)
        return
    if kind == ".html":
        body = "".join(part.to_html() for part in shown)
        text = f"<!doctype html>\n<meta charset='utf-8'>\n<title>{out.stem}</title>\n{body}"
    else:
        text = "\n\n".join(part.to_latex() if kind == ".tex" else part.to_markdown() for part in shown)
    with replacing(out) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def write_picture(figure: Figure, out: Path) -> None:
    """Write a figure by its ending."""
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150, format=out.suffix[1:].lower())
