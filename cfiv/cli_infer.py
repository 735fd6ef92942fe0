"""The command ``cfiv infer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cfiv.cli_inputs import (
    CLUSTERS,
    COVARIANCE,
    DEBIASED,
    KNOWN,
    NAMES,
    OUTPUT,
    ROWS,
    SEED,
    WEIGHTS,
    DebiasedCommand,
    make,
    read_columns,
    read_grid,
    read_treatment,
    training_data,
)
from cfiv.cli_outputs import ENDINGS, check_distinct, check_picture_place, check_result_place, write_picture, write_result
from cfiv.errors import ParameterError
from cfiv.estimators import registry
from cfiv.files import check_place

if TYPE_CHECKING:
    from cfiv.inference.estimates import Estimates
    from cfiv.inference.inference import Inference


@click.command(cls=DebiasedCommand)
@click.argument("train", type=ROWS)
@click.argument("formula")
@click.option("--estimator", type=KNOWN, metavar="NAME", default="2sls", show_default=True, help=f"What to fit, of {NAMES}.")
@click.option("--effect", nargs=2, multiple=True, metavar="FROM TO", help="Average effect of a change of the treatment.")
@click.option("--dose-response", "grid", metavar="FROM:TO:POINTS", help="Curve at evenly spaced treatments, such as 10:25:16.")
@click.option("--derivative", is_flag=True, help="Average derivative.")
@click.option("--fuller", type=float, help="Fuller's constant of liml, such as 1; by default 0, LIML itself.")
@WEIGHTS
@CLUSTERS
@COVARIANCE
@DEBIASED
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence level, as a share.")
@click.option(
    "--undersmooth/--no-undersmooth",
    default=True,
    show_default=True,
    help="Of sieve-iv, whether intervals are of more functions than the data chose, for small bias.",
)
@click.option("--draws", type=int, default=10_000, show_default=True, help="Draws for the uniform band.")
@SEED
@click.option("--out", type=OUTPUT, help=f"All estimates; {ENDINGS}.")
@click.option("--plot", type=OUTPUT, help="Picture of the dose response with its band.")
@click.option("--save", type=OUTPUT, help="Inference file: of it predict, effect, dose-response and plot have errors.")
def infer(
    train: Path,
    formula: str,
    *,
    estimator: str,
    effect: tuple[tuple[str, str], ...],
    grid: str | None,
    derivative: bool,
    weights: str | None,
    clusters: str | None,
    covariance: str | None,
    debiased: bool | str | None,
    fuller: float | None,
    level: float,
    undersmooth: bool,
    draws: int,
    seed: int,
    out: Path | None,
    plot: Path | None,
    save: Path | None,
) -> None:
    """Intervals and bands for what FORMULA estimates from the table TRAIN, or a folder of Parquet files.

    Effects, the curve of the treatment, and its average derivative, averaged over the rows. Curves come from --estimator
    sieve-iv, or from the formula, as in "sales ~ time + [bs(price, df=5) ~ bs(fuel, df=8)]"; those of dfiv and kernel-iv are
    corrected by splines first, which takes a few times as long as a fit.
    """
    import cfiv
    from cfiv.inference.estimates import table_of
    from cfiv.inference.infer import check_estimator

    if not (effect or grid or derivative or save):
        raise ParameterError(
            "nothing is asked: give --effect FROM TO, --dose-response FROM:TO:POINTS, --derivative, or --save FILE to ask later"
        )
    points = None if grid is None else read_grid(grid)
    _check_outputs(train, out, plot, save, grid=grid, asked=bool(effect or grid or derivative))
    registered = registry.estimator(estimator)
    check_estimator(registered.kind)
    groups = read_columns(clusters)
    data = training_data(train, formula, clusters=groups)
    given: dict[str, Any] = {"weights": weights, "clusters": clusters, "debiased": debiased, "fuller": fuller}
    model = make(registered, formula, seed=seed, progress=False, **given).fit(data)
    inference = cfiv.infer(
        data,
        model,
        covariance=covariance,
        clusters=groups or None,
        level=level,
        undersmooth=undersmooth,
        draws=draws,
        random_state=seed,
    )
    answers = _answers(inference, effect, points, derivative=derivative)
    click.echo("\n\n".join(map(str, (inference, *answers))))
    if save is not None:
        inference.save(save)
        click.echo(f"\nWritten: {save}")
    if out is not None:
        write_result(out, table_of(answers), *answers)
        click.echo(f"\nWritten: {out}")
    if plot is not None:
        _draw(next(answer for answer in answers if answer.question == "dose response"), plot)
        click.echo(f"\nWritten: {plot}")


def _answers(
    inference: Inference, effects: tuple[tuple[str, str], ...], points: list[Any] | None, *, derivative: bool
) -> list[Estimates]:
    found = [inference.effect(treatment_from=read_treatment(one), treatment_to=read_treatment(other)) for one, other in effects]
    if points is not None:
        found.append(inference.dose_response(points))
    if derivative:
        found.append(inference.average_derivative())
    return found


def _draw(answer: Estimates, plot: Path) -> None:
    from cfiv.plots import new_figure

    figure = new_figure((6.4, 4.0))
    answer.plot(figure.subplots())
    write_picture(figure, plot)


def _check_outputs(
    train: Path, out: Path | None, plot: Path | None, save: Path | None, *, grid: str | None, asked: bool
) -> None:
    """Raise before any work for places that cannot be written to, and a table or a picture of nothing."""
    check_result_place(out, train)
    if out is not None and not asked:
        raise ParameterError("--out has the answers, and nothing is asked: give --effect, --dose-response or --derivative")
    if plot is not None:
        if grid is None:
            raise ParameterError("--plot draws the dose response, and none is asked: give --dose-response FROM:TO:POINTS")
        check_picture_place(plot, train, *([] if out is None else [out]))
    if save is not None:
        check_distinct(save, train, *(place for place in (out, plot) if place is not None))
        check_place(save)
