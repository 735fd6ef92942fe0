"""The command ``cfiv infer``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cfiv.cli_inputs import OUTPUT, ROWS, SEED, check_distinct, make, training_data
from cfiv.errors import ParameterError
from cfiv.estimators import registry
from cfiv.files import check_place, check_table_place, replacing, write_table_file

if TYPE_CHECKING:
    from cfiv.inference.estimates import Estimates
    from cfiv.inference.inference import Inference

#: Points of a dose response at most, and what pictures may be.
MOST_POINTS = 10_000
PICTURES = (".png", ".pdf", ".svg")


@click.command()
@click.argument("train", type=ROWS)
@click.argument("formula")
@click.option("--estimator", type=click.Choice(registry.names()), default="2sls", show_default=True, help="What to fit.")
@click.option("--effect", nargs=2, multiple=True, metavar="FROM TO", help="Average effect of a change of the treatment.")
@click.option("--dose-response", "grid", metavar="FROM:TO:POINTS", help="Curve at evenly spaced treatments, such as 10:25:16.")
@click.option("--derivative", is_flag=True, help="Average derivative.")
@click.option("--weights", metavar="COLUMN", help="Column of row weights.")
@click.option(
    "--clusters", metavar="COLUMN", multiple=True, help="Column of groups with correlated errors; twice for two kinds."
)
@click.option(
    "--covariance",
    type=click.Choice(["robust", "unadjusted", "clustered"]),
    help="What the errors may be; by default robust, or clustered where --clusters is given.",
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence level, as a share.")
@click.option(
    "--undersmooth/--no-undersmooth",
    default=True,
    show_default=True,
    help="Of sieve-iv, whether intervals are of twice as many functions as the data chose.",
)
@click.option("--draws", type=int, default=10_000, show_default=True, help="Draws for the uniform band.")
@SEED
@click.option("--out", type=OUTPUT, help="Table of all estimates, the question first.")
@click.option("--plot", type=OUTPUT, help="Picture of the dose response with its band.")
def infer(
    train: Path,
    formula: str,
    *,
    estimator: str,
    effect: tuple[tuple[str, str], ...],
    grid: str | None,
    derivative: bool,
    weights: str | None,
    clusters: tuple[str, ...],
    covariance: str | None,
    level: float,
    undersmooth: bool,
    draws: int,
    seed: int,
    out: Path | None,
    plot: Path | None,
) -> None:
    """Intervals and bands for what FORMULA estimates from the table TRAIN, or a folder of Parquet files.

    Effects, the curve of the treatment, and its average derivative, averaged over the rows. Curves come from --estimator
    sieve-iv, or from the formula, as in "sales ~ time + [bs(price, df=5) ~ bs(fuel, df=8)]"; estimators that learn features
    have no intervals.
    """
    import cfiv
    from cfiv.inference.estimates import table_of
    from cfiv.inference.infer import check_estimator

    if not (effect or grid or derivative):
        raise ParameterError("nothing is asked: give --effect FROM TO, --dose-response FROM:TO:POINTS or --derivative")
    points = None if grid is None else _grid(grid)
    _check_outputs(train, out, plot, grid)
    registered = registry.estimator(estimator)
    check_estimator(registered.kind)
    data = training_data(train, formula, clusters=clusters)
    model = make(registered, formula, seed=seed, progress=False, weights=weights).fit(data)
    inference = cfiv.infer(
        data,
        model,
        covariance=covariance,
        clusters=clusters or None,
        level=level,
        undersmooth=undersmooth,
        draws=draws,
        random_state=seed,
    )
    answers = _answers(inference, effect, points, derivative=derivative)
    click.echo("\n\n".join(map(str, (inference, *answers))))
    if out is not None:
        write_table_file(table_of(answers), out)
        click.echo(f"\nWritten: {out}")
    if plot is not None:
        _draw(next(answer for answer in answers if answer.question == "dose response"), plot)
        click.echo(f"\nWritten: {plot}")


def _answers(
    inference: Inference, effects: tuple[tuple[str, str], ...], points: list[float] | None, *, derivative: bool
) -> list[Estimates]:
    found = [inference.effect(treatment_from=_value(one), treatment_to=_value(other)) for one, other in effects]
    if points is not None:
        found.append(inference.dose_response(points))
    if derivative:
        found.append(inference.average_derivative())
    return found


def _draw(answer: Estimates, plot: Path) -> None:
    from cfiv.plots import new_figure

    figure = new_figure((6.4, 4.0))
    answer.plot(figure.subplots())
    with replacing(plot) as temporary:
        figure.savefig(temporary, dpi=150, format=plot.suffix[1:].lower())


def _check_outputs(train: Path, out: Path | None, plot: Path | None, grid: str | None) -> None:
    """Raise before any work for places that cannot be written to, and a picture of nothing."""
    if out is not None:
        check_distinct(out, train)
        check_table_place(out)
    if plot is None:
        return
    check_distinct(plot, train, *([] if out is None else [out]))
    if grid is None:
        raise ParameterError("--plot draws the dose response, and none is asked: give --dose-response FROM:TO:POINTS")
    if plot.suffix.lower() not in PICTURES:
        raise ParameterError(f"pictures are {', '.join(PICTURES)} files, got --plot {plot}: rename it")
    check_place(plot)


def _grid(text: str) -> list[float]:
    """Evenly spaced treatments of ``FROM:TO:POINTS``."""
    try:
        first, last, count = text.split(":")
        start, end, points = float(first), float(last), int(count)
    except ValueError:
        raise ParameterError(f"--dose-response must be FROM:TO:POINTS, such as 10:25:16, got {text}") from None
    if not (math.isfinite(end - start) and start < end and 2 <= points <= MOST_POINTS):
        raise ParameterError(f"--dose-response must go upward in 2 to {MOST_POINTS:,} points, such as 10:25:16, got {text}")
    return [start + (end - start) * i / (points - 1) for i in range(points)]


def _value(text: str) -> float | str:
    """A treatment: a number, or a category."""
    try:
        return float(text)
    except ValueError:
        return text
