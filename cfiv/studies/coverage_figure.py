"""A figure of how often intervals and bands held, drawn from the results of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from cfiv.errors import MissingPackageError
from cfiv.plots import COLOURS
from cfiv.studies import summary
from cfiv.studies.figures import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Inches: of a cell's line, of what stands around all of them, and of the width.
LINE, AROUND, WIDTH = 0.3, 1.1, 7.2
#: What intervals mostly promise.
LEVEL = 0.95


def coverage(results: pd.DataFrame, metrics: Sequence[str], by: Sequence[str]) -> Figure:
    """A line a cell, a mark a metric: the share of replications whose interval holds, with its 95 % interval.

    Parameters
    ----------
    results : DataFrame
        Of ``Study.results``.
    metrics : sequence of str
        Estimates with intervals.
    by : sequence of str
        The columns that tell cells apart.
    """
    try:
        from cfiv.studies.displayed_figure import DisplayedFigure
    except ImportError:
        raise MissingPackageError("figures need matplotlib, which is not installed: pip install 'cfiv[plot]'") from None
    varying = [name for name in by if results[name].nunique(dropna=False) > 1] or list(by[:1])
    cells = results[varying].drop_duplicates()
    names = [", ".join(_said(name, row[name]) for name in varying if pd.notna(row[name])) for _, row in cells.iterrows()]
    places = {tuple(map(str, row)): i for i, row in enumerate(cells.itertuples(index=False))}
    figure = DisplayedFigure(figsize=(WIDTH, AROUND + LINE * len(names)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(LEVEL, color="black", linewidth=0.8, linestyle=":")
    for i, metric in enumerate(metrics):
        table = summary.accuracy(summary.select_measured(results, metric, varying), metric, varying)
        table = table[table["coverage"].notna()]
        keys = [tuple(map(str, key if isinstance(key, tuple) else (key,))) for key in table.index]
        heights = [places[key] + 0.24 * (i - (len(metrics) - 1) / 2) for key in keys]
        reach = summary.Z * table["coverage_mc_error"]
        ax.errorbar(
            table["coverage"], heights, xerr=reach, fmt="o", markersize=4, color=COLOURS[i % len(COLOURS)], label=metric
        )
    ax.set(xlim=(-0.03, 1.03), xlabel="coverage", ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    return figure


def _said(name: str, value: object) -> str:
    """Numbers with the name of what they are of."""
    return value if isinstance(value, str) else f"{name} {number_text(value)}"
