"""Commands that ask a fitted model, or an inference on one: ``cfiv predict | effect | dose-response | plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cfiv.cli_inputs import INPUT, OUTPUT, read_grid, read_treatment
from cfiv.cli_outputs import (
    ENDINGS,
    check_distinct,
    check_picture_place,
    check_result_place,
    write_picture,
    write_result,
)
from cfiv.errors import DataError, ModelFileError, ParameterError
from cfiv.files import check_table_place, read_table_file, table_kind, write_table_file

if TYPE_CHECKING:
    import pandas as pd

    from cfiv.estimators.structural import StructuralFunction
    from cfiv.inference.inference import Inference

ROWS = click.option("--rows", type=INPUT, help="Table of covariates to average over; by default rows that the model kept.")
#: Shares of the rows below an effect.
SHARES = (0.1, 0.5, 0.9)


@click.command()
@click.argument("model", type=INPUT)
@click.argument("grid", type=INPUT)
@click.option("--out", type=OUTPUT, required=True, help="Table of the columns of GRID, estimate and supported.")
def predict(model: Path, grid: Path, out: Path) -> None:
    """Evaluate the model file MODEL at the rows of the table GRID.

    GRID needs the treatment and covariate columns, neither instruments nor an outcome. The output has its columns, unchanged,
    the structural function in estimate, and in supported whether training has seen such treatments at such covariates (there
    is no such column for model files that do not know). Of an inference file, MODEL of cfiv infer --save, also std_error, lower
    and upper.
    """
    check_distinct(out, model, grid)
    check_table_place(out)
    function, inference = _load(model)
    frame = _rows(grid, function)
    names = ("estimate", "supported") if inference is None else ("estimate", "std_error", "lower", "upper", "supported")
    taken = [name for name in names if name in frame.columns]
    if taken:
        raise DataError(f"'{grid}' already has a column {taken[0]!r}, which the output would overwrite: rename or drop it")
    if inference is not None:
        found = inference.predict(frame).table
        columns = {name: found[name].to_numpy() for name in names}
    else:
        columns = {"estimate": function.predict(frame)}
        if function.support is not None:
            columns["supported"] = function.supported(frame)
    if table_kind(grid) == table_kind(out) == "csv":  # as text, so that codes such as 007 stay as they are
        frame = read_table_file(grid, dtype=str, na_filter=False)
    write_table_file(frame.assign(**columns), out)
    click.echo(f"Written: {out} ({len(frame):,} rows)")


@click.command()
@click.argument("model", type=INPUT)
@click.option("--from", "start", required=True, metavar="VALUE", help="Treatment; of several columns price=10,size=2.")
@click.option("--to", "end", required=True, metavar="VALUE", help="Treatment that it is changed to.")
@ROWS
@click.option("--out", type=OUTPUT, help=f"The same table; {ENDINGS}.")
def effect(model: Path, start: str, end: str, rows: Path | None, out: Path | None) -> None:
    """Average effect of a change of the treatment.

    And how it varies with the covariates: the shares of the rows whose effect is lower. A model file knows no standard
    errors, which need the rows of the fit: the last line is the command that has them. Of an inference file, MODEL
    of cfiv infer --save, they are printed here.
    """
    import numpy as np
    import pandas as pd

    from cfiv.rendering import Grid

    check_result_place(out, model, *([] if rows is None else [rows]))
    change = {"treatment_from": read_treatment(start), "treatment_to": read_treatment(end)}
    function, inference = _load(model)
    averaged = None if rows is None else _rows(rows, function)
    if inference is not None:
        found = inference.effect(**change, rows=averaged)
        _report(found.table, found, out)
        return
    if averaged is not None:
        averaged = function.encoder.complete(averaged, treatment=False)
    values = function.effect(averaged, **change)
    quantiles = np.quantile(values, SHARES)
    record = {"from": start, "to": end, "rows": len(values), "average": values.mean(), "lowest": values.min()}
    record |= {f"{100 * share:g} %": value for share, value in zip(SHARES, quantiles, strict=True)}
    table = pd.DataFrame([record | {"highest": values.max()}])
    _report(table, Grid.of(table, index=False, title=f"Effect on {function.outcome}, {function.estimator}"), out)
    _say_errors(function, f"--effect {start} {end}")


@click.command("dose-response")
@click.argument("model", type=INPUT)
@click.argument("grid")
@ROWS
@click.option("--out", type=OUTPUT, help=f"The same table; {ENDINGS}.")
def dose_response(model: Path, grid: str, rows: Path | None, out: Path | None) -> None:
    """Structural function at treatments, on average.

    Averaged over covariates, at the treatments GRID: FROM:TO:POINTS, evenly spaced such as 10:25:16, or values between
    commas. A model file knows no standard errors, which need the rows of the fit: the last line
    is the command that has them, and a band. Of an inference file, MODEL of cfiv infer --save, they are printed here.
    """
    from cfiv.rendering import Grid

    check_result_place(out, model, *([] if rows is None else [rows]))
    points = read_grid(grid)
    function, inference = _load(model)
    averaged = None if rows is None else _rows(rows, function)
    if inference is not None:
        found = inference.dose_response(points, averaged)
        _report(found.table, found, out)
        return
    table = function.dose_response(points, averaged)
    _report(table, Grid.of(table, index=False, title=f"Dose response of {function.outcome}, {function.estimator}"), out)
    _say_errors(function, f"--dose-response {grid}")


@click.command()
@click.argument("models", nargs=-1, required=True, type=INPUT, metavar="MODEL...")
@click.argument("grid")
@ROWS
@click.option("--out", type=OUTPUT, required=True, help="Picture, a .png, .pdf or .svg file.")
def plot(models: Sequence[Path], grid: str, rows: Path | None, out: Path) -> None:
    """Draw the dose response of model files, or of one inference file with its band.

    At the treatments GRID: FROM:TO:POINTS, evenly spaced such as 10:25:61. Curves are thin and dashed where training saw no
    such treatments. Inference files are of cfiv infer --save.
    """
    from cfiv.plots import new_figure, structural_curves

    check_picture_place(out, *models, *([] if rows is None else [rows]))
    points = read_grid(grid)
    figure = new_figure((6.4, 4.0))
    loaded = [_load(path) for path in models]
    functions = {name: function for name, (function, _) in zip(_names(models), loaded, strict=True)}
    treatment = _one_treatment(functions, points)
    inference = next((found for _, found in loaded if found is not None), None)
    if inference is not None:
        if len(models) > 1:
            raise ParameterError("a curve with its band is drawn by itself: give one inference file, or model files alone")
        averaged = None if rows is None else _rows(rows, inference.function)
        inference.dose_response(points, averaged).plot(figure.subplots())
        write_picture(figure, out)
        click.echo(f"Written: {out}")
        return
    tables = []
    for name, function in functions.items():
        tables.append(function.dose_response(points, None if rows is None else _rows(rows, function)).assign(model=name))
    outcome = next(iter(functions.values())).outcome
    table = _below(tables)
    axes = structural_curves(table, treatment=treatment, slice_by="model" if len(functions) > 1 else None, ax=figure.subplots())
    axes.set_ylabel(outcome)
    write_picture(figure, out)
    click.echo(f"Written: {out}")


def _load(path: Path) -> tuple[StructuralFunction, Inference | None]:
    """The function of a model file; of an inference file its function and the inference."""
    import cfiv

    try:
        return cfiv.load(path), None
    except ModelFileError as error:
        try:
            inference = cfiv.Inference.load(path)
        except ModelFileError:
            raise error from None
    return inference.function, inference


def _rows(path: Path, function: StructuralFunction) -> pd.DataFrame:
    """A table of rows to predict; categories such as 007 stay text."""
    return read_table_file(path, dtype=dict.fromkeys(function.text_columns, str))


def _report(table: pd.DataFrame, shown: Any, out: Path | None) -> None:
    click.echo(str(shown))
    if out is not None:
        write_result(out, table, shown)
        click.echo(f"\nWritten: {out}")


def _say_errors(function: StructuralFunction, asked: str) -> None:
    """The command that has standard errors of the same question, or that the estimator has none."""
    from cfiv.estimators import registry
    from cfiv.inference.infer import WITHOUT

    if function.estimator in WITHOUT:
        click.echo(f"\n{function.estimator} has no standard errors: {WITHOUT[function.estimator]}")
        return
    name = next((one.name for one in registry.estimators() if one.class_name == function.estimator), None)
    if name is not None:
        roles, facts = dict(function.encoder.describe()), function.facts
        named = [f" --{role.lower()} {roles[role].replace(' + ', ',')}" for role in ("Weights", "Clusters") if role in roles]
        click.echo(f"\nWith standard errors: cfiv infer TRAIN FORMULA --estimator {name}{''.join(named)} {asked}")
        covariance = facts.get("Covariance", "robust")
        besides = [] if covariance in ("robust", "clustered") else [f"its covariance is {covariance}"]
        besides += [f"its kappa is {facts['Kappa']}, --fuller or not"] if "Kappa" in facts else []
        if besides:
            click.echo(f"and what else the fit was given: {', '.join(besides)}")


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of files, or their paths where two have the same name."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _one_treatment(functions: dict[str, StructuralFunction], points: Sequence[object]) -> str:
    """The treatment that all have, a number."""
    names = {function.encoder.treatment_names for function in functions.values()}
    if len(names) > 1 or len(next(iter(names))) > 1 or not all(isinstance(point, float) for point in points):
        found = " and ".join(", ".join(each) for each in sorted(names))
        raise ParameterError(f"a picture is of one treatment that is a number and that all models have, got {found}")
    return next(iter(names))[0]


def _below(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other, with the columns that all have: older model files do not know what is supported."""
    import pandas as pd

    return pd.concat(tables, ignore_index=True, join="inner")
