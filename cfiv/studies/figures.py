"""Figures of simulation studies, drawn from their results."""

from __future__ import annotations

from collections import Counter
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
STRETCH = 3.0
#: By how much values may exceed their upper quartile on a logarithmic axis; what is further up is cut off, and said at the
#: top: a method that has diverged would press all others into one line.
FAR = 1000.0
#: Lines in a panel up to which methods share it.
MOST_LINES = 12
#: Of lines, when the colours have all been used once.
DASHES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
#: Characters of a name that figures show; tables show them all.
LONGEST = 36
#: Inches of a letter's width and of a legend's line.
LETTER, LINE = 0.08, 0.19
#: Names of boxes in a panel up to which they are written at a flat angle.
FEW = 6


def box_plot(
    results: pd.DataFrame, metric: str, *, axes: Sequence[str], log: bool | None = None, failed_as: float = np.inf
) -> Figure:
    """A panel a cell of the designs, a box a method: quartiles, whiskers to 1.5 times their distance, a dot a replication.

    Failed replications are infinitely wrong, as in the tables, so that a box may reach beyond the panel; their number is at the
    top, as is that of values far above all others, where the axis is logarithmic.

    Parameters
    ----------
    results : DataFrame
        Of ``Study.results``.
    metric : str
    axes : sequence of str
        The columns that tell cells apart: those before "method" name a panel, the others a box.
    log : bool, optional
        Whether the metric's axis is logarithmic; by default where all values are positive.
    failed_as : float
        As of :func:`summary.distribution`.
    """
    log = _positive(results, metric) if log is None else log
    finite = _finite(results, metric)
    outside, top = _beyond(finite, log=log), _top(finite, log=log)
    panels, boxes = _split(results, axes)
    cells = list(results.groupby(panels, sort=False, dropna=False))
    label = _label(results, boxes)
    names = list(label.unique())
    shown = [_shown(name) for name in names]
    angle = 30 if len(names) <= FEW else 60
    below = LETTER * max(map(len, shown)) * np.sin(np.radians(angle))
    figure, grid = _panels(results, panels, len(cells), width=max(WIDTH, BOX * len(names)), below=below)
    for ax, (key, cell) in zip(grid.flat, cells, strict=False):
        for place, (name, colour) in enumerate(zip(names, _colours(names), strict=True)):
            here = cell[label[cell.index] == name]
            _box(ax, place, here, metric, colour, failed_as=failed_as, outside=outside, top=top)
        ax.set_xticks(range(len(names)), shown, rotation=angle, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.set_title(_title(panels, key), loc="left", fontsize=10)
        if log:
            ax.set_yscale("log")
        _bare(ax)
    _fit(grid.flat[0], finite[finite <= top], log=log)
    _label_outer(grid, len(cells), metric)
    return figure


def convergence(
    results: pd.DataFrame, metric: str, *, axes: Sequence[str], along: str = "n", failed_as: float = np.inf
) -> Figure:
    """Median (line) and quartiles (band) of a metric against ``along``; the legend has slopes against n.

    Designs that do not vary ``along`` are left out. Axes are logarithmic where all values are positive. A median that is then
    far above all others is a number at the top. Methods with so many settings that their lines would not be told apart have a
    panel each.
    """
    results = results[results[along].notna()]
    log = _positive(results, metric)
    panels, lines = _split(results, [name for name in axes if name != along])
    label = _label(results, lines)
    if apart := label.nunique() > max(MOST_LINES, 2 * results["method"].nunique()):
        panels = [*(name for name in panels if results[name].nunique(dropna=False) > 1), "method"]
        label = _label(results, lines[1:])
    cells = list(results.groupby(panels, sort=False, dropna=False))
    # Methods keep their colours from panel to panel.
    legends = [list(label[cell.index if apart else results.index].unique()) for _, cell in cells]
    figure, grid = _panels(results, panels, len(cells), width=WIDTH, below=LINE * (max(map(len, legends)) + 3))
    drawn: list[tuple[Axes, float, float, str]] = []  # medians: where they are, and in which colour
    quartiles: list[float] = []
    outside = _beyond(_finite(results, metric), log=log)
    for ax, (key, cell), names in zip(grid.flat, cells, legends, strict=False):
        handles, said = [], []
        for i, (name, colour) in enumerate(zip(names, _colours(names), strict=True)):
            here = cell[label[cell.index] == name]
            if here.empty:
                continue
            table = summary.distribution(here, metric, [along], failed_as=failed_as).sort_index()
            found = summary.slopes(here, metric, ["method"], along=along)
            slopes = found["slope"] if along == "n" and log else found["slope"][:0]
            said.append(_shown(name) + "".join(f" ({round(slope, 2) + 0.0:.2f})" for slope in slopes))
            finite = table[np.isfinite(table["median"])]
            low, high = (finite[quartile].clip(*outside) for quartile in ("quartile_1", "quartile_3"))
            drawn.extend((ax, at, median, colour) for at, median in finite["median"].items())
            quartiles.extend([*low, *high])
            dashes, marker = DASHES[i // len(COLOURS) % len(DASHES)]
            style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "linewidth": 1.8}
            handles.extend(ax.plot(finite.index, finite["median"], **style))
            ax.fill_between(finite.index, low, high, color=colour, alpha=0.15, linewidth=0)
        values = sorted(cell[along].unique())
        ax.set(
            xscale="log" if values[0] > 0 else "linear",
            yscale="log" if log else "linear",
            xlabel=_plain(along.replace("_", " ")),
        )
        ax.set_xticks(values, [number_text(value) for value in values])
        ax.xaxis.minorticks_off()
        ax.set_title(_title(panels, key), loc="left", fontsize=10)
        title = "(slope)" if along == "n" and log else None
        ax.legend(
            handles,
            said,
            frameon=False,
            fontsize=8,
            title=title,
            title_fontsize=8,
            alignment="left",
            loc="upper left",
            bbox_to_anchor=(0, -0.2),
        )
        _bare(ax)
    medians = np.array([median for _, _, median, _ in drawn])
    top = _top(medians, log=log)
    medians = medians[medians <= top]
    inside = np.array([value for value in quartiles if value not in outside])
    if log and len(medians):
        inside = np.clip(inside, medians.min() / STRETCH, medians.max() * STRETCH)
    known = np.concatenate([inside, medians])
    _fit(grid.flat[0], known if len(known) else _finite(results, metric), log=log)
    said_at: Counter[tuple[Axes, float]] = Counter()
    for ax, at, median, colour in drawn:
        if median > top:
            _say_at_top(ax, at, f"{median:,.3g}", colour, below=said_at[ax, at])
            said_at[ax, at] += 1
    _label_outer(grid, len(cells), metric, every_x=True)  # its legend would stand between a panel and the numbers of the next
    return figure


def _box(
    ax: Axes,
    place: int,
    cell: pd.DataFrame,
    metric: str,
    colour: str,
    *,
    failed_as: float,
    outside: tuple[float, float],
    top: float,
) -> None:
    done = cell["status"] == "done"
    counted = np.sort(cell[metric].where(done, failed_as).to_numpy(dtype=np.float64))
    values = cell.loc[done, metric].to_numpy(dtype=np.float64)
    if len(values):
        line = {"color": colour, "linewidth": 1.3}
        found = summary.quartiles(counted)
        low, middle, high = (float(np.clip(found[name], *outside)) for name in ("quartile_1", "median", "quartile_3"))
        reach = 1.5 * (high - low)
        near = values[(values >= low - reach) & (values <= high + reach)]
        ends = {"whislo": min([low, *near]), "whishi": max([high, *near])}
        ax.bxp(
            [{"med": middle, "q1": low, "q3": high, **ends}],
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
    failed, above = int((cell["status"] == "failed").sum()), int((values > top).sum())
    said = [f"{count} {what}" for count, what in ((failed, "failed"), (above, "above")) if count]
    if said:
        _say_at_top(ax, place, "\n".join(said), colour)


def _say_at_top(ax: Axes, place: float, text: str, colour: str, *, below: int = 0) -> None:
    """Small text that hangs from the top of a panel, below so many other lines."""
    ax.annotate(
        text,
        (place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0.0, -8.0 * below),
        textcoords="offset points",
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


def _label(results: pd.DataFrame, columns: Sequence[str]) -> pd.Series[str]:
    """A method with what varies in it, ``DFIV, batch_size 64``, or where columns are without "method" what varies alone.

    Two methods whose names read alike with what varies, such as ``DFIV`` with an axis and one called ``DFIV, batch_size 64``,
    are told apart by a number.
    """
    method = results["method"].astype(str)
    label = method if "method" in columns else pd.Series("", index=results.index)
    for name in (name for name in columns if name != "method"):
        label = label + results[name].map(lambda value, name=name: "" if _missing(value) else f", {name} {number_text(value)}")
    label = label.str.removeprefix(", ").where(label != "", method)
    kind = results.groupby(["method", *(name for name in columns if name != "method")], sort=False, dropna=False).ngroup()
    alike = kind.groupby(label, sort=False).transform(lambda kinds: pd.factorize(kinds)[0])
    return label.where(alike == 0, label + " (" + (alike + 1).astype(str) + ")")


def number_text(value: Any) -> str:
    """``1,000`` also where the column is of floats, since other methods have no such parameter."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _colours(names: Sequence[str]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(names))]


def _plain(text: str) -> str:
    """Text that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def _shown(name: str) -> str:
    return _plain(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}")


def _finite(results: pd.DataFrame, metric: str) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = results.loc[results["status"] == "done", metric].to_numpy(dtype=np.float64)
    finite: npt.NDArray[np.float64] = values[np.isfinite(values)]
    return finite


def _positive(results: pd.DataFrame, metric: str) -> bool:
    """Whether there are values, and all have a logarithm."""
    values = _finite(results, metric)
    return len(values) > 0 and bool((values > 0.0).all())


def _beyond(values: npt.NDArray[np.float64], *, log: bool) -> tuple[float, float]:
    """Where what is infinite is drawn: outside of the panel, and no further, since drawing is in 32 bits."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    far = 100.0 * (high - low or 1.0)
    return (low / 1e3, high * 1e3) if log else (low - far, high + far)


def _top(values: npt.NDArray[np.float64], *, log: bool) -> float:
    """Above what values are left out of a figure."""
    return FAR * float(np.quantile(values, 0.75)) if log and len(values) else np.inf


def _fit(ax: Axes, values: npt.NDArray[np.float64], *, log: bool) -> None:
    """Limits, with a margin, and marks of the vertical axis that panels share."""
    if len(values) and log:
        low, high = values.min(), values.max()
        room = (high / low) ** 0.05 if high > low else 2.0
        ax.set_ylim(low / room, high * room)
        _mark_logarithms(ax)
    elif len(values):
        low, high = values.min(), values.max()
        room = 0.05 * (high - low) if high > low else 0.5 * abs(high) or 1.0
        ax.set_ylim(low - room, high + room)


def _title(columns: Sequence[str], key: tuple[Any, ...]) -> str:
    return _plain(
        ", ".join(
            str(value) if name in ("design", "method") else f"{name} {number_text(value)}"
            for name, value in zip(columns, key, strict=True)
            if not _missing(value)
        )
    )


def _panels(
    results: pd.DataFrame, panels: Sequence[str], count: int, *, width: float, below: float
) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure with so many panels and inches below; a row has all values of the last axis, where that makes a rectangle."""
    try:
        from cfiv.studies.displayed_figure import DisplayedFigure
    except ImportError:
        raise MissingPackageError("figures need matplotlib, which is not installed: pip install 'cfiv[plot]'") from None
    last = results[panels[-1]].nunique(dropna=False)
    columns = last if 1 < last <= MOST_COLUMNS and count % last == 0 else min(MOST_COLUMNS, count)
    rows = -(-count // columns)
    figure = DisplayedFigure(figsize=(width * columns + 0.6, HEIGHT * rows + below), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in list(grid.flat)[count:]:
        ax.set_visible(False)
    return figure, grid


def _label_outer(grid: npt.NDArray[Any], count: int, metric: str, *, every_x: bool = False) -> None:
    """The metric at the left of each row, the x axis' labels under each panel, or under the last one of each column."""
    columns = grid.shape[1]
    for place, ax in enumerate(list(grid.flat)[:count]):
        if place % columns == 0:
            ax.set_ylabel(_plain(metric))
        below = place + columns < count and not every_x
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
