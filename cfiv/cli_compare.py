"""The command ``cfiv compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cfiv.cli_inputs import (
    CLUSTERS,
    COVARIANCE_OR_KERNEL,
    DEBIASED,
    INPUT,
    KNOWN,
    NAMES,
    OUTPUT,
    SEED,
    WEIGHTS,
    DebiasedCommand,
    make,
    read_columns,
    read_treatment,
    training_table,
)
from cfiv.cli_outputs import ENDINGS, check_result_place, write_result
from cfiv.errors import ParameterError
from cfiv.estimators import registry
from cfiv.terminal import is_watched

if TYPE_CHECKING:
    import pandas as pd

    from cfiv.estimators.estimator import StructuralEstimator
    from cfiv.inference.inference import Inference


@click.command(cls=DebiasedCommand)
@click.argument("train", type=INPUT)
@click.argument("formulas", nargs=-1, required=True, metavar="FORMULA...")
@click.option(
    "--estimator",
    "chosen",
    type=KNOWN,
    metavar="NAME",
    multiple=True,
    default=["2sls"],
    show_default=True,
    help=f"What to fit, of {NAMES}, each to every FORMULA; may be given several times.",
)
@click.option(
    "--effect", "effects", nargs=2, multiple=True, metavar="FROM TO", help="Average effect, in place of coefficients."
)
@click.option("--term", "terms", multiple=True, metavar="NAME", help="Coefficient to show; by default all.")
@click.option("--stars", is_flag=True, help="One to three stars for p-values below .1, .05 and .01.")
@click.option("--digits", type=click.IntRange(1, 8), default=3, show_default=True, help="Significant digits of errors.")
@click.option("--held-out", type=INPUT, help="Table of other rows, for a score of each model.")
@WEIGHTS
@CLUSTERS
@COVARIANCE_OR_KERNEL
@DEBIASED
@SEED
@click.option("--out", type=OUTPUT, help=f"The table; {ENDINGS}.")
def compare(
    train: Path,
    formulas: tuple[str, ...],
    *,
    chosen: tuple[str, ...],
    effects: tuple[tuple[str, str], ...],
    terms: tuple[str, ...],
    stars: bool,
    digits: int,
    held_out: Path | None,
    clusters: str | None,
    seed: int,
    out: Path | None,
    **options: Any,
) -> None:
    """Regression table of several models.

    Of the table TRAIN, a column for every FORMULA and estimator. Coefficients, or effects, with standard errors in brackets;
    at the foot the first-stage F, J, Anderson-Rubin set, standard errors, clusters and rows. --covariance and --debiased are
    for the estimators that have them.
    """
    import cfiv

    check_result_place(out, train, *([] if held_out is None else [held_out]))
    registered = [registry.estimator(name) for name in dict.fromkeys(chosen)]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if not any(each.takes(name) for each in registered) and not (effects and name == "covariance"):
            raise ParameterError(f"--{name} is for none of {', '.join(each.name for each in registered)}: leave it out")
    other = None if held_out is None else training_table(held_out, formulas[0])
    models: dict[str, StructuralEstimator | Inference] = {}
    for formula in formulas:
        frame = training_table(train, formula, clusters=read_columns(clusters))
        for each in registered:
            taken = {name: value for name, value in given.items() if each.takes(name)}
            model = make(each, formula, seed=seed, progress=is_watched(), clusters=clusters, **taken).fit(frame)
            if effects and not each.takes("covariance"):
                models[f"({len(models) + 1})"] = _with_errors(
                    model, frame, covariance=given.get("covariance"), clusters=read_columns(clusters) or None, seed=seed
                )
            else:
                models[f"({len(models) + 1})"] = model
    comparison = cfiv.compare(
        models,
        effects=[(read_treatment(start), read_treatment(end)) for start, end in effects] or None,
        terms=list(terms) or None,
        stars=stars,
        digits=digits,
        data=other,
    )
    click.echo(str(comparison))
    if out is not None:
        numbers = comparison.table.reset_index().merge(comparison.estimates, how="left", on="model")
        write_result(out, numbers, comparison)
        click.echo(f"\nWritten: {out}")


def _with_errors(
    model: StructuralEstimator, frame: pd.DataFrame, *, covariance: str | None, clusters: Any, seed: int
) -> StructuralEstimator | Inference:
    """The inference on a model whose effects have no errors of their own, where there is one."""
    import cfiv
    from cfiv.inference.infer import check_estimator

    try:
        check_estimator(type(model))
    except ParameterError:
        return model
    return cfiv.infer(frame, model, covariance=covariance, clusters=clusters, random_state=seed)
