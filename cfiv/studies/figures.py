"""Figures of simulation studies, drawn from their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.errors import MissingPackageError
from cfiv.plots import COLOURS
from cfiv.studies import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches of a panel.
WIDTH, HEIGHT = 3.4, 3.0
#: Inches that a box needs.
BOX = 0.34
MOST_COLUMNS = 3
#: By how much quartiles may stretch a logarithmic axis beyond the medians; what is further out is cut off.
STRETCH = 10.0


def box_plot(results: pd.DataFrame, metric: str, *, axes: Sequence[str], log: bool = True) -> Figure:
    """A panel a cell of the designs, a box a method: quartiles, whiskers to 1.5 times their distance, a dot a replication.

    Failed replications are counted at the top of their box.

    Parameters
    ----------
    results : DataFrame
        Of ``Study.results``.
    metric : str
    axes : sequence of str
        The columns that tell cells apart: those before "method" name a panel, the others a box.
    log : bool
        Whether the metric's axis is logarithmic.
    """
    panels, boxes = _split(results, axes)
    cells = list(results.groupby(panels, sort=False, dropna=False))
    names = _labels(results, boxes)
    figure, grid = _panels(results, panels, len(cells), width=max(WIDTH, BOX * len(names)))
    for ax, (key, cell) in zip(grid.flat, cells, strict=False):
        for place, (name, colour) in enumerate(zip(names, _colours(names), strict=True)):
            here = cell[_label(cell, boxes) == name]
            _box(ax, place, here, metric, colour)
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.set_title(_title(panels, key), loc="left", fontsize=10)
        if log:
            ax.set_yscale("log")
        _bare(ax)
    if log:
        _mark_logarithms(grid.flat[0])
    _label_outer(grid, len(cells), metric)
    return figure


def convergence(results: pd.DataFrame, metric: str, *, axes: Sequence[str], along: str = "n") -> Figure:
    """Median (line) and quartiles (band) of a metric against ``along``, both logarithmic; the legend has slopes against n."""
    panels, lines = _split(results, [name for name in axes if name != along])
    cells = list(results.groupby(panels, sort=False, dropna=False))
    names = _labels(results, lines)
    figure, grid = _panels(results, panels, len(cells), width=WIDTH)
    medians: list[float] = []
    for ax, (key, cell) in zip(grid.flat, cells, strict=False):
        for name, colour in zip(names, _colours(names), strict=True):
            here = cell[(_label(cell, lines) == name) & cell[along].notna()]
            if here.empty:
                continue
            table = summary.distribution(here, metric, [along]).sort_index()
            found = summary.slopes(here.assign(line=name), metric, ["line"], along=along)
            said = f"{name} ({round(found['slope'].iloc[0], 2) + 0.0:.2f})" if along == "n" and len(found) else name
            finite = table[np.isfinite(table["median"])]
            medians.extend(finite["median"])
            ax.plot(finite.index, finite["median"], color=colour, marker="o", markersize=4, linewidth=1.8, label=said)
            ax.fill_between(finite.index, finite["quartile_1"], finite["quartile_3"], color=colour, alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log", xlabel=along.replace("_", " "))
        values = sorted(cell[along].dropna().unique())
        ax.set_xticks(values, [_number(value) for value in values])
        ax.xaxis.minorticks_off()
        ax.set_title(_title(panels, key), loc="left", fontsize=10)
        title = "(slope)" if along == "n" else None
        ax.legend(
            frameon=False,
            fontsize=8,
            title=title,
            title_fontsize=8,
            alignment="left",
            loc="upper left",
            bbox_to_anchor=(0, -0.2),
        )
        _bare(ax)
    if medians:
        low, high = grid.flat[0].get_ylim()
        grid.flat[0].set_ylim(max(low, min(medians) / STRETCH), min(high, max(medians) * STRETCH))
        _mark_logarithms(grid.flat[0])
    _label_outer(grid, len(cells), metric)
    return figure


def _box(ax: Axes, place: int, cell: pd.DataFrame, metric: str, colour: str) -> None:
    values = cell.loc[cell["status"] == "done", metric].dropna().to_numpy(dtype=np.float64)
    if len(values):
        line = {"color": colour, "linewidth": 1.3}
        ax.boxplot(
            values,
            positions=[place],
            widths=0.6,
            showfliers=False,
            manage_ticks=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={**line, "linewidth": 2.4},
        )
        # Dots side by side rather than at random, so that a figure is the same each time.
        aside = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
        ax.scatter(place + aside, values, s=7, color=colour, alpha=0.45, linewidths=0)
    failed = int((cell["status"] == "failed").sum())
    if failed:
        ax.annotate(
            f"{failed} failed",
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            ha="center",
            va="top",
            color=colour,
        )


def _split(results: pd.DataFrame, axes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns of panels and of what is inside; a design that is the only one names no panel."""
    at = list(axes).index("method")
    panels = [name for name in axes[:at] if name != "design" or results["design"].nunique() > 1]
    return panels or ["design"], list(axes[at:])


def _label(cell: pd.DataFrame, columns: Sequence[str]) -> pd.Series[str]:
    """A method with what varies in it: ``DFIV, batch_size 64``."""
    label = cell["method"].astype(str)
    for name in columns[1:]:
        label = label + cell[name].map(lambda value, name=name: "" if _missing(value) else f", {name} {_number(value)}")
    return label


def _number(value: Any) -> str:
    """``1,000`` also where the column is of floats, since other methods have no such parameter."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _labels(results: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(_label(results, columns)))


def _colours(names: Sequence[str]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(names))]


def _title(columns: Sequence[str], key: tuple[Any, ...]) -> str:
    return ", ".join(
        str(value) if name == "design" else f"{name} {_number(value)}"
        for name, value in zip(columns, key, strict=True)
        if not _missing(value)
    )


def _panels(results: pd.DataFrame, panels: Sequence[str], count: int, *, width: float) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure with so many panels; a row has all values of the last axis, where that makes a rectangle."""
    try:
        from cfiv.studies.displayed_figure import DisplayedFigure
    except ImportError:
        raise MissingPackageError("figures need matplotlib, which is not installed: pip install 'cfiv[plot]'") from None
    last = results[panels[-1]].nunique(dropna=False)
    columns = last if 1 < last <= MOST_COLUMNS and count % last == 0 else min(MOST_COLUMNS, count)
    rows = -(-count // columns)
    figure = DisplayedFigure(figsize=(width * columns + 0.6, HEIGHT * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in list(grid.flat)[count:]:
        ax.set_visible(False)
    return figure, grid


def _label_outer(grid: npt.NDArray[Any], count: int, metric: str) -> None:
    """The metric at the left of each row, the x axis' labels under the last panel of each column."""
    columns = grid.shape[1]
    for place, ax in enumerate(list(grid.flat)[:count]):
        if place % columns == 0:
            ax.set_ylabel(metric)
        below = place + columns < count
        ax.tick_params(labelbottom=not below)
        if below:
            ax.set_xlabel("")


def _mark_logarithms(ax: Axes) -> None:
    """Numbers such as 0.5 and 2,000 on a logarithmic axis, at 1, 2 and 5 where it spans less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100.0 * low else (1.0,), numticks=12))
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
