"""The demonstration of ``cfiv demo``: fitted models of the demand design beside its truth, as a figure and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfiv.errors import UnsupportedTreatmentWarning, silence
from cfiv.plots import structural_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cfiv.datasets.truth import Truth
    from cfiv.estimators.estimator import StructuralEstimator

#: Where the figure cuts the structural function.
EMOTION = 4.0
TIMES = (2.5, 5.0, 9.0)
PRICES = (12.0, 17.0, 22.0)


def draw(figure: Figure, models: Mapping[str, StructuralEstimator], *, truth: Truth, observed: pd.DataFrame) -> None:
    """The structural function against price at three times, and against time at three prices."""
    rows = figure.subplots(2, 3)
    cuts = {
        "price": ("time", TIMES, np.linspace(10, 25, 61), 0.25),
        "time": ("price", PRICES, np.linspace(0, 10, 201), 0.5),
    }
    for axes, (along, (panel_by, values, points, near)) in zip(rows, cuts.items(), strict=True):
        structural_panels(
            _cut(models, truth, along=along, points=points, panel_by=panel_by, values=values),
            treatment=along,
            estimates=list(models),
            panel_by=panel_by,
            truth="truth",
            observed=_nearby(observed, panel_by, values, distance=near),
            outcome="sales",
            axes=list(axes),
        )
    handles, labels = rows[0, 0].get_legend_handles_labels()
    for axes in rows[:, 0]:
        axes.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"Structural function at emotion {EMOTION:g}; ticks mark what was seen in training, curves are thin elsewhere",
        fontsize="medium",
    )


def _cut(
    models: Mapping[str, StructuralEstimator], truth: Truth, *, along: str, points: Any, panel_by: str, values: Sequence[float]
) -> pd.DataFrame:
    """True and estimated values along one column, at each of a few values of another, and where such prices were seen."""
    grid = pd.MultiIndex.from_product([values, points], names=[panel_by, along]).to_frame(index=False)
    grid = grid.assign(emotion=EMOTION)
    supported = next(iter(models.values())).supported(grid)  # they were all fitted to the same rows
    with silence(UnsupportedTreatmentWarning):
        estimates = {name: model.predict(grid) for name, model in models.items()}
    return grid.assign(truth=truth(grid), supported=supported, **estimates)


def _nearby(frame: pd.DataFrame, column: str, values: Sequence[float], *, distance: float) -> pd.DataFrame:
    """The rows near each value of a column, moved there."""
    return pd.concat([frame[(frame[column] - value).abs() <= distance].assign(**{column: value}) for value in values])


def comparison_text(table: pd.DataFrame, *, truth: Truth, bias: float) -> str:
    """Errors against the truth as text, beside the best constant, and what they say.

    Parameters
    ----------
    table : DataFrame
        Of :func:`cfiv.compare`, with the labels of the registry as its index.
    truth : Truth
    bias : float
        The mean square over the test points of what ignoring the confounder adds.
    """
    errors, seconds = ({str(name): float(value) for name, value in table[column].items()} for column in ("error", "seconds"))
    constant = float(truth.grid["structural"].var(ddof=0))
    lines = [f"{'':<15}{'squared error':>15}{'typical miss':>15}{'seconds':>10}"]
    lines.append(f"{'best constant':<15}{constant:>15,.0f}{constant**0.5:>15,.1f}")
    lines += [f"{name!s:<15}{e:>15,.0f}{e**0.5:>15,.1f}{seconds[name]:>10.1f}" for name, e in errors.items()]
    lines.append(f"(mean over {len(truth.grid):,} test points; the typical miss is its root, in units of sales)")
    for said in (_flexibility(errors), _confounding(errors, bias)):
        if said:
            lines += ["", textwrap.fill(said, 79)]
    return "\n".join(lines)


def _flexibility(errors: Mapping[str, float]) -> str:
    if not {"2SLS", "DFIV"} <= set(errors):
        return ""
    if errors["2SLS"] <= errors["DFIV"]:
        return "In this run DFIV is no closer to the truth than 2SLS: it needs more rows or steps."
    return (
        f"The squared error of 2SLS is {errors['2SLS'] / errors['DFIV']:,.3g} times that of DFIV: what a price does depends on "
        "time and emotion, and 2SLS has one slope for all of them."
    )


def _confounding(errors: Mapping[str, float], bias: float) -> str:
    if "Network" not in errors:
        return ""
    said = "Least squares and Network ignore the confounder, which adds"
    if bias <= 100:
        return (
            f"{said} a squared error of only {bias:,.2g} to a perfect prediction of sales: plain prediction does well here. "
            "Where the error of sales is larger, as with --error-scale 50, it does not."
        )
    return f"{said} a squared error of {bias:,.0f} to a perfect prediction of sales: more rows bring them closer to that."
