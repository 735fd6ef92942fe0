"""Figures drawn from tables. Each function takes a DataFrame, draws on the Axes it is given or on new ones, and returns them.

matplotlib is imported when a figure is first drawn; it comes with ``pip install 'cfiv[plot]'``. Axes carry the names of the
table's columns: where units are known, add them, as in ``ax.set_xlabel("price (dollars)")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfiv.errors import DataError, MissingPackageError, ParameterError
from cfiv.tables.columns import require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart with any colour vision; their yellow is left out, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
#: A boolean column of this name says which points of a curve are supported, as in ``model.dose_response(grid)``.
SUPPORTED = "supported"
#: The truth, and what else there is to compare with.
INK = "#222222"
DASHES = (0, (4, 2))
#: Above and below a band, as a share of its height: for the ticks at the foot, and the beginning of what is faint.
MARGIN = 0.15


def structural_curves(
    table: pd.DataFrame,
    *,
    treatment: str,
    estimate: str = "estimate",
    slice_by: str | None = None,
    truth: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One structural function against one treatment: a line a slice, and the truth dashed where it is known.

    Parameters
    ----------
    table : DataFrame
        One row a point; with ``slice_by``, one for each value of the treatment in each slice, so fix the other covariates
        first. ``model.dose_response(grid)`` is such a table. Where it has a column ``supported`` of True and False, parts of a
        curve that are not supported are thin and dashed.
    treatment : str
        The column on the horizontal axis.
    estimate : str
        The column with the estimates.
    slice_by : str, optional
        A covariate; each of its values (six at most) is a line of its own.
    truth : str, optional
        The column with the true structural function.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        For missing columns, values that are not finite numbers, no rows, several rows for one point, or too many slices.

    Examples
    --------
    >>> table = pd.DataFrame({"price": [10.0, 20.0], "estimate": [120.0, 90.0]})
    >>> structural_curves(table, treatment="price").get_xlabel()
    'price'
    """
    by = [slice_by] if slice_by is not None else []
    _check_table(table, numbers=[treatment, estimate, *([truth] if truth is not None else [])], others=by)
    _check_one_row_a_point(table, [treatment, *by])
    slices = _groups(table, slice_by, limit=len(COLOURS), kind="lines") if slice_by is not None else [("", table)]
    ax = _axes(ax)
    for (label, rows), colour in zip(slices, COLOURS, strict=False):
        ordered = rows.sort_values(treatment)
        _draw_curve(ax, ordered, treatment, estimate, color=colour, label=label or estimate)
        if truth is not None:
            ax.plot(ordered[treatment], ordered[truth], color=_darker(colour), linewidth=1.4, linestyle=DASHES)
    if truth is not None:
        ax.plot([], [], color=INK, linewidth=1.4, linestyle=DASHES, label=truth)
    _dress(ax, xlabel=treatment, ylabel=estimate)
    if len(slices) > 1 or truth is not None:
        ax.legend(frameon=False)
    return ax


def structural_panels(
    table: pd.DataFrame,
    *,
    treatment: str,
    estimates: Sequence[str],
    panel_by: str,
    truth: str | None = None,
    observed: pd.DataFrame | None = None,
    outcome: str = "structural function",
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Several estimates of a structural function side by side: a panel a value of a covariate, a line an estimate.

    Parameters
    ----------
    table : DataFrame
        One row for each value of the treatment in each panel, so fix the other covariates first. A column ``supported`` is
        heeded as by :func:`structural_curves`; ``model.supported(table)`` makes it.
    treatment : str
        The column on the horizontal axis.
    estimates : sequence of str
        One column a model, six at most.
    panel_by : str
        A covariate; each of its values is a panel.
    truth : str, optional
        The column with the true structural function.
    observed : DataFrame, optional
        Rows of data with the columns ``treatment`` and ``panel_by``, whose treatments are marked by ticks at the foot of their
        panel: a curve beyond them is extrapolated. For a continuous covariate, give the rows near a panel its value.
    outcome : str
        What the vertical axis says.
    axes : sequence of Axes, optional
        Where to draw, one a panel.

    Returns
    -------
    list of Axes
        In the order of the panel's values, with one vertical scale.

    Raises
    ------
    DataError, ParameterError
        As :func:`structural_curves`, and where the number of axes is not that of the panels.

    Examples
    --------
    >>> table = pd.DataFrame({"price": [10.0, 20.0] * 2, "time": [0.0, 0.0, 5.0, 5.0], "2SLS": [9.0, 6.0, 8.0, 5.0]})
    >>> [ax.get_title() for ax in structural_panels(table, treatment="price", estimates=["2SLS"], panel_by="time")]
    ['time 0', 'time 5']
    """
    if isinstance(estimates, str) or not 1 <= len(estimates) <= len(COLOURS):
        raise ParameterError(f"estimates must be a list of 1 to {len(COLOURS)} columns, got {estimates!r}")
    _check_table(table, numbers=[treatment, *estimates, *([truth] if truth is not None else [])], others=[panel_by])
    _check_one_row_a_point(table, [treatment, panel_by])
    if observed is not None and observed.empty:
        observed = None
    if observed is not None:
        _check_table(observed, numbers=[treatment], others=[panel_by])
    panels = _groups(table, panel_by, limit=12, kind="panels")
    axes = _row_of_axes(len(panels)) if axes is None else list(axes)
    if len(axes) != len(panels):
        raise ParameterError(f"axes must be one a panel, got {len(axes)} for {len(panels)} values of {panel_by!r}")
    for (label, rows), ax in zip(panels, axes, strict=True):
        ordered = rows.sort_values(treatment)
        for name, colour in zip(estimates, COLOURS, strict=False):
            _draw_curve(ax, ordered, treatment, name, color=colour, label=name)
        if truth is not None:
            ax.plot(ordered[treatment], ordered[truth], color=INK, linewidth=1.4, linestyle=DASHES, label=truth)
        _dress(ax, xlabel=treatment, ylabel=outcome if ax is axes[0] else "")
        ax.set_title(label, fontsize="medium")
        if observed is not None:
            _mark_observed(ax, observed.loc[observed[panel_by] == rows[panel_by].iloc[0], treatment])
    limits = np.array([ax.get_ylim() for ax in axes])
    lowest, highest = limits[:, 0].min(), limits[:, 1].max()
    if observed is not None:
        lowest -= 0.06 * (highest - lowest)  # room for the ticks
    for ax in axes:
        ax.set_ylim(lowest, highest)
        ax.tick_params(labelleft=ax is axes[0])
    axes[0].legend(frameon=False)
    return list(axes)


def confidence_band(
    table: pd.DataFrame,
    *,
    along: str,
    outcome: str = "structural function",
    seen: Any = None,
    dashed: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """A curve with its pointwise interval (dark) and the band that holds for all of it at once (light).

    Parameters
    ----------
    table : DataFrame
        One row a point, as in ``cfiv.infer(data, model).dose_response(grid).table``: ``estimate, lower, upper``, where there
        is a band ``band_lower, band_upper``, and ``supported``: the other points are drawn faint and dashed.
    along : str
        The column on the horizontal axis.
    outcome : str
        What the vertical axis says.
    seen : array (m,), optional
        Treatments of training, marked by ticks at the foot.
    dashed : bool
        Draw the band as two dashed lines, and say in the legend that it is doubted, as with weak instruments.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        For missing columns, values that are not finite numbers, no rows, or several rows for one point.

    Examples
    --------
    >>> table = pd.DataFrame({"price": [10.0, 20.0], "estimate": [120.0, 90.0], "lower": [110.0, 85.0], "upper": [130.0, 95.0]})
    >>> confidence_band(table.assign(supported=True), along="price").get_xlabel()
    'price'
    """
    intervals = [("band_lower", "band_upper", 0.16, "uniform band")] if "band_lower" in table else []
    intervals.append(("lower", "upper", 0.32, "pointwise interval"))
    ends = [name for lower, upper, *_ in intervals for name in (lower, upper)]
    _check_table(table, numbers=[along, "estimate", *ends], others=["supported"])
    _check_one_row_a_point(table, [along])
    ax, colour = _axes(ax), COLOURS[0]
    rows = table.sort_values(along)
    points, supported = rows[along], rows["supported"].to_numpy(dtype=bool)
    joined = supported[:-1] & supported[1:]  # pieces of the curve between two supported points
    for lower, upper, alpha, label in intervals:
        if dashed and label == "uniform band":
            style: dict[str, Any] = {"color": colour, "linewidth": 1.2, "linestyle": DASHES}
            ax.plot(points, rows[lower], **style, label=f"{label}, doubted")
            ax.plot(points, rows[upper], **style)
            continue
        _shade(ax, points, rows[lower], rows[upper], joined, color=colour, alpha=alpha, label=label)
        _shade(ax, points, rows[lower], rows[upper], ~joined, color=INK, alpha=0.05)
    _draw(ax, points, rows["estimate"], joined, color=colour, linewidth=2.6, label="estimate")
    faint = {"color": colour, "alpha": 0.45, "linewidth": 1.4, "linestyle": DASHES}
    _draw(ax, points, rows["estimate"], ~joined, **faint, label="beyond what was seen")
    _dress(ax, xlabel=along, ylabel=outcome)
    if joined.any():  # what is faint may leave the frame: its ends say nothing
        within = np.append(joined, False) | np.append(False, joined)
        lowest, highest = rows.loc[within, ends].min(axis=None), rows.loc[within, ends].max(axis=None)
        ax.set_ylim(lowest - MARGIN * (highest - lowest), highest + MARGIN * (highest - lowest))
    if seen is not None:
        _mark_observed(ax, pd.Series(np.asarray(seen, dtype=np.float64)))
    ax.legend(frameon=False)
    return ax


def predicted_against_true(
    table: pd.DataFrame, *, truth: str = "structural", estimate: str = "estimate", ax: Axes | None = None
) -> Axes:
    """Estimates against the true structural function, a point a row, with the line of equality and the error.

    The title states the mean squared error, in squared units of the outcome, and its square root.

    Parameters
    ----------
    table : DataFrame
    truth, estimate : str
        Its columns with the true and the estimated structural function.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        For missing columns, values that are not finite numbers, or no rows.

    Examples
    --------
    >>> table = pd.DataFrame({"structural": [1.0, 3.0], "estimate": [2.0, 2.0]})
    >>> predicted_against_true(table).get_title()
    'mean squared error 1, root 1, 2 rows'
    """
    _check_table(table, numbers=[truth, estimate])
    ax = _axes(ax, size=(4.6, 4.4))
    true, predicted = table[truth].to_numpy(dtype=np.float64), table[estimate].to_numpy(dtype=np.float64)
    error = float(np.mean((predicted - true) ** 2))
    ax.plot(true, predicted, ".", color=COLOURS[0], alpha=0.35, markersize=5, markeredgewidth=0)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    ax.plot(ends, ends, color=INK, linewidth=1.2, linestyle=DASHES, label=f"{estimate} = {truth}")
    ax.set_aspect("equal", adjustable="datalim")
    _dress(ax, xlabel=truth, ylabel=estimate)
    ax.set_title(f"mean squared error {error:,.4g}, root {error**0.5:,.4g}, {len(table):,} rows", fontsize="medium")
    ax.legend(frameon=False, loc="upper left")
    return ax


def training_history(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Training and held-out stage-2 loss against the step, on a logarithmic scale; a circle marks the state that was kept.

    Parameters
    ----------
    history : DataFrame
        ``model.history_`` of :class:`cfiv.DFIV`: columns ``fit, swapped, step, stage2_loss, heldout_loss, kept``. Each fit
        is a line, coloured by whether its two samples had swapped roles.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        For missing columns or no rows: estimators that do not iterate have no history.
    """
    _check_table(history, numbers=["step", "stage2_loss"], others=["fit", "swapped", "heldout_loss", "kept"])
    ax = _axes(ax)
    held_out = bool(history["heldout_loss"].notna().any())
    judged = "heldout_loss" if held_out else "stage2_loss"
    solid: dict[str, Any] = {"linewidth": 2.0}
    dashed: dict[str, Any] = {"linewidth": 1.2, "linestyle": DASHES}
    circle: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 8, "markerfacecolor": "white", "markeredgewidth": 2}
    for _, rows in history.groupby(["fit", "swapped"]):
        colour = COLOURS[int(rows["swapped"].iloc[0])]
        kept = rows[rows["kept"].astype(bool)]
        ax.plot(rows["step"], rows["stage2_loss"], color=colour, alpha=0.6, **dashed)
        if held_out:
            ax.plot(rows["step"], rows["heldout_loss"], color=colour, **solid)
        ax.plot(kept["step"], kept[judged], color=colour, **circle)
    for swapped in sorted(history["swapped"].unique()):
        ax.plot([], [], color=COLOURS[int(swapped)], linewidth=4, label="samples swapped" if swapped else "samples as drawn")
    if held_out:
        ax.plot([], [], color=INK, label="held-out rows", **solid)
    ax.plot([], [], color=INK, alpha=0.6, label="training rows", **dashed)
    ax.plot([], [], color=INK, label="state kept", **circle)
    ax.set_yscale("log")
    _dress(ax, xlabel="step", ylabel="stage-2 loss (share of the outcome's variance)")
    ax.legend(frameon=False)
    return ax


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure outside pyplot, which needs no display, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise _missing() from None
    return Figure(figsize=size, layout="constrained")


def _draw_curve(ax: Axes, rows: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    """A line, of which each stretch that ends where it is not supported is thin and dashed."""
    if SUPPORTED in rows and not pd.api.types.is_bool_dtype(rows[SUPPORTED].dtype):
        raise DataError(f"column {SUPPORTED!r} must hold True and False, got {rows[SUPPORTED].dtype}: rename it")
    supported = rows[SUPPORTED].to_numpy(dtype=bool) if SUPPORTED in rows else np.ones(len(rows), dtype=bool)
    values = rows[y].to_numpy(dtype=np.float64)
    ax.plot(rows[x], np.where(supported, values, np.nan), linewidth=2.6, **style)
    if supported.all():
        return
    beside = ~supported
    beside[1:] |= ~supported[:-1]
    beside[:-1] |= ~supported[1:]
    ax.plot(rows[x], np.where(beside, values, np.nan), linewidth=1.2, linestyle=(0, (2, 2)), color=style["color"])


def _axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    if ax is not None:
        return ax
    new: Axes = _pyplot().subplots(figsize=size, layout="constrained")[1]
    return new


def _row_of_axes(panels: int) -> list[Axes]:
    figure = _pyplot().figure(figsize=(max(4.5, 2.9 * panels), 3.4), layout="constrained")
    return list(figure.subplots(1, panels, squeeze=False)[0])


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise _missing() from None
    return plt


def _missing() -> MissingPackageError:
    return MissingPackageError("figures need matplotlib, which is not installed: pip install 'cfiv[plot]'")


def _dress(ax: Axes, *, xlabel: str, ylabel: str) -> None:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E6E6E6", linewidth=0.8)
    ax.set_axisbelow(True)


def _mark_observed(ax: Axes, values: pd.Series[float]) -> None:
    """Ticks at the foot, without widening the horizontal axis."""
    limits = ax.get_xlim()
    ax.plot(values, np.full(len(values), 0.02), "|", color=INK, alpha=0.35, markersize=7, transform=ax.get_xaxis_transform())
    ax.set_xlim(limits)


def _draw(ax: Axes, x: pd.Series[float], y: pd.Series[float], pieces: Any, *, label: str, **style: Any) -> None:
    """The pieces (m - 1,) of a curve through m points that are chosen."""
    for start, end in _runs(pieces):
        ax.plot(x.iloc[start:end], y.iloc[start:end], label=label, **style)
        label = ""


def _shade(
    ax: Axes,
    x: pd.Series[float],
    lower: pd.Series[float],
    upper: pd.Series[float],
    pieces: Any,
    *,
    label: str = "",
    **style: Any,
) -> None:
    """The area between two curves, at the pieces that are chosen."""
    for start, end in _runs(pieces):
        ax.fill_between(x.iloc[start:end], lower.iloc[start:end], upper.iloc[start:end], label=label, linewidth=0, **style)
        label = ""


def _runs(pieces: Any) -> list[tuple[int, int]]:
    """Points ``start:end`` of each run of chosen pieces."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], pieces, [False]]).astype(int)))
    return [(int(start), int(end) + 1) for start, end in edges.reshape(-1, 2)]


def _darker(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.5 * red, 0.5 * green, 0.5 * blue


def _groups(table: pd.DataFrame, column: str, *, limit: int, kind: str) -> list[tuple[str, pd.DataFrame]]:
    """Rows by the values of a column, in order, each with a label such as ``time 2.63``."""
    count = table[column].nunique(dropna=False)
    if count > limit:
        raise DataError(
            f"column {column!r} takes {count} values and a figure shows {limit} {kind} at most: keep some, "
            f"as in table[table[{column!r}].isin([...])]"
        )
    return [(f"{column} {_shown(value)}", rows) for value, rows in table.groupby(column, dropna=False, observed=True)]


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _check_table(table: pd.DataFrame, *, numbers: Sequence[str], others: Sequence[str] = ()) -> None:
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"figures are drawn from a pandas DataFrame, got {type(table).__name__}")
    if table.empty:
        raise DataError("the table has no rows: there is nothing to draw")
    if not table.columns.is_unique:
        raise DataError(f"column names must be unique, got {list(table.columns)}: rename them")
    require_columns(table, (*numbers, *others), needed_for="figures")
    for name in numbers:
        column = table[name]
        if not pd.api.types.is_numeric_dtype(column.dtype):
            raise DataError(
                f"column {name!r} must hold numbers to be drawn, got {column.dtype}: convert it with pandas.to_numeric"
            )
        bad = int((~np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan))).sum())
        if bad:
            raise DataError(f"column {name!r} must hold finite numbers to be drawn, got {bad} that are not: drop those rows")


def _check_one_row_a_point(table: pd.DataFrame, columns: Sequence[str]) -> None:
    sizes = table.groupby(list(columns), dropna=False, observed=True).size()
    if sizes.max() > 1:
        point = sizes.index[int(sizes.argmax())]
        values = point if isinstance(point, tuple) else (point,)
        where = " and ".join(f"{name} {_shown(value)}" for name, value in zip(columns, values, strict=True))
        raise DataError(
            f"a curve needs one row a point, got {sizes.max()} rows at {where}: keep one value of the other covariates, "
            "or average over them"
        )
