"""The command line: ``cfiv demo | simulate | fit | predict | effect | dose-response | plot | diagnose | compare | infer |
study``.

Results go to standard output; progress, warnings and errors to standard error, one line each. Exit code 2 means that the
command was refused, with the reason; 130 that Ctrl-C ended it. Where nobody reads one of the two, or it is closed, the command
is done all the same. Heavy imports wait until a command needs them: help is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import cfiv
from cfiv.errors import (
    CfivError,
    CfivWarning,
    OutputError,
    ParameterError,
    UnsupportedTreatmentWarning,
    silence,
)
from cfiv.estimators import registry
from cfiv.files import check_place, check_table_place, replacing, unwritable, write_table_file
from cfiv.interrupts import ignore_interrupts
from cfiv.memory import is_of_memory
from cfiv.terminal import is_watched, note, streams_that_may_be_lost

try:
    import click
except ImportError:  # the script is installed without the extra as well
    sys.stderr.write("cfiv: error: the command line needs click, which is not installed: pip install 'cfiv[cli]'\n")
    raise SystemExit(2) from None

from cfiv.cli_ask import dose_response, effect, plot, predict
from cfiv.cli_compare import compare
from cfiv.cli_infer import infer
from cfiv.cli_inputs import (
    CLUSTERS,
    COVARIANCE_OR_KERNEL,
    DEBIASED,
    INPUT,
    KNOWN,
    NAMES,
    OUTPUT,
    ROWS,
    SEED,
    WEIGHTS,
    DebiasedCommand,
    make,
    read_columns,
    training_data,
    training_table,
)
from cfiv.cli_outputs import ENDINGS, check_distinct, check_result_place, write_result
from cfiv.cli_study import study

EXAMPLES = """\b
Examples:
  cfiv demo
  cfiv simulate demand --out train.csv --truth grid.csv
  cfiv fit train.csv "sales ~ time + emotion + [price ~ fuel]" \\
      --out model.safetensors
  cfiv predict model.safetensors grid.csv --out predictions.csv
  cfiv effect model.safetensors --from 15 --to 20
  cfiv compare train.csv "sales ~ time + [price ~ fuel]" \\
      "sales ~ time + emotion + [price ~ fuel]" --out table.tex
"""

RHO_HELP = "Correlation of the errors: strength of confounding."
SCALE_HELP = "Standard deviation of the outcome's error; 1 in the published design."


@click.group(invoke_without_command=True, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cfiv.__version__, prog_name="cfiv", message="%(prog)s %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Nonlinear instrumental-variable regression on tables.

    Estimates the structural function h in Y = h(T, X) + e with E[e | Z, X] = 0 from columns of a table: outcome Y,
    treatment T, covariates X and instruments Z. Tables are .csv or .parquet files.
    """
    _help_where_nothing_is_asked(context)


@commands.command()
@click.option("--n", type=int, default=5000, show_default=True, help="Rows to simulate.")
@click.option("--rho", type=float, default=0.9, show_default=True, help=RHO_HELP)
@click.option("--error-scale", type=float, default=50.0, show_default=True, help=SCALE_HELP)
@click.option(
    "--estimator",
    "chosen",
    type=KNOWN,
    metavar="NAME",
    multiple=True,
    help=f"What to fit, of {NAMES}; may be given several times.  [default: all but liml, deep-iv and agmm]",
)
@click.option("--steps", type=int, help="Training steps of those that train; by default their own.")
@SEED
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("cfiv-demo"),
    show_default=True,
    help="Folder for the files, made where there is none.",
)
def demo(
    n: int, *, rho: float, error_scale: float, chosen: tuple[str, ...], steps: int | None, seed: int, folder: Path
) -> None:
    """Fit simulated data and compare with the truth.

    Simulates the demand design (airline ticket sales, where an unseen conference moves both price and sales), fits
    estimators, and writes estimates.csv, structural_function.png and a model file for each.
    """
    from cfiv import demonstration, plots
    from cfiv.datasets import demand

    every = [registered.name for registered in registry.estimators() if registered.demonstrated]
    wanted = [registry.estimator(name) for name in dict.fromkeys(chosen) or every]
    if steps is not None and not any(registered.takes("steps") for registered in wanted):
        raise ParameterError(
            f"--steps is for estimators that train, got --steps {steps} with {', '.join(chosen)}: leave it out"
        )
    figure = plots.new_figure((9.0, 6.3))
    data, truth = demand.simulate(n, rho=rho, seed=seed, error_scale=error_scale)
    _make_folder(folder)
    assert data.frame is not None
    click.echo(f'Demand design: {n:,} rows, rho {rho:g}, error scale {error_scale:g}, seed {seed}\n"{demand.FORMULA}"')
    models = {}
    for registered in wanted:
        model = make(
            registered, demand.FORMULA, seed=seed, progress=is_watched(), steps=steps if registered.takes("steps") else None
        )
        try:
            models[registered.label] = model.fit(data)
        except KeyboardInterrupt:  # before this one had anything to show
            if not models:
                raise
            _say(f"warning: interrupted while fitting {registered.label}; what was fitted before is kept")
            break
        model.save(folder / f"{registered.name}.safetensors")
        if model.interrupted_:  # Ctrl-C means no further ones either
            break
    with silence(UnsupportedTreatmentWarning):  # the figure shows where
        estimates = truth.grid.assign(**{name: model.predict(truth.grid) for name, model in models.items()})
    write_table_file(estimates, folder / "estimates.csv")
    demonstration.draw(figure, models, truth=truth, observed=data.frame)
    with replacing(folder / "structural_function.png") as temporary:
        figure.savefig(temporary, dpi=150)
    click.echo()
    bias = demand.confounding_bias(truth.grid, rho=rho, error_scale=error_scale)
    table = cfiv.compare(models, truth=truth).table
    click.echo(demonstration.comparison_text(table, truth=truth, bias=float((bias**2).mean())))
    click.echo(f"\nWritten to {folder}{os.sep}:")
    click.echo("  estimates.csv            the test points: true and estimated values")
    click.echo("  structural_function.png  the picture")
    click.echo("  *.safetensors            the models, for cfiv predict and cfiv.load")


@commands.group(invoke_without_command=True)
@click.pass_context
def simulate(context: click.Context) -> None:
    """Draw data from a design whose truth is known."""
    _help_where_nothing_is_asked(context)


@simulate.command()
@click.option("--n", type=int, default=5000, show_default=True, help="Rows.")
@click.option("--rho", type=float, default=0.5, show_default=True, help=RHO_HELP)
@click.option("--error-scale", type=float, default=1.0, show_default=True, help=SCALE_HELP)
@click.option(
    "--instrument-strength", type=float, default=1.0, show_default=True, help="What fuel cost does to the price; 0 is nothing."
)
@SEED
@click.option("--out", type=OUTPUT, required=True, help="Table of sales, price, time, emotion, fuel.")
@click.option("--truth", "truth_out", type=OUTPUT, help="Table of test points with the true function, column structural.")
def demand(
    n: int, *, rho: float, error_scale: float, instrument_strength: float, seed: int, out: Path, truth_out: Path | None
) -> None:
    """Airline ticket sales with an unseen conference."""
    check_table_place(out)
    if truth_out is not None:
        check_distinct(truth_out, out)
        check_table_place(truth_out)
    from cfiv.datasets import demand as design

    data, truth = design.simulate(n, rho=rho, seed=seed, error_scale=error_scale, instrument_strength=instrument_strength)
    assert data.frame is not None
    write_table_file(data.frame, out)
    click.echo(f"Written: {out} ({n:,} rows)")
    if truth_out is not None:
        write_table_file(truth.grid, truth_out)
        click.echo(f"Written: {truth_out} ({len(truth.grid):,} test points)")


@commands.command(cls=DebiasedCommand)
@click.argument("train", type=ROWS)
@click.argument("formula")
@click.option("--estimator", type=KNOWN, metavar="NAME", default="dfiv", show_default=True, help=f"What to fit, of {NAMES}.")
@SEED
@click.option("--steps", type=int, help="Training steps of those that train; by default their own.")
@click.option("--landmarks", type=int, help="Landmarks of kernel-iv; by default all of 500 rows, some hundred of more.")
@click.option("--segments", type=int, help="Segments of sieve-iv; by default chosen from the data.")
@click.option("--fuller", type=float, help="Fuller's constant of liml, such as 1; by default 0, LIML itself.")
@click.option(
    "--covariance",
    help="Of 2sls, liml and least-squares: robust, unadjusted, clustered or kernel; by default robust, or clustered where "
    "--clusters is given.",
)
@CLUSTERS
@DEBIASED
@WEIGHTS
@click.option(
    "--missing", type=click.Choice(["drop", "raise"]), default="drop", show_default=True, help="What to do with rows with gaps."
)
@click.option("--quiet", is_flag=True, help="Neither a progress bar nor the summary.")
@click.option("--out", type=OUTPUT, required=True, help="The model file, for instance model.safetensors.")
def fit(
    train: Path,
    formula: str,
    estimator: str,
    seed: int,
    quiet: bool,
    out: Path,
    **options: Any,
) -> None:
    """Fit FORMULA to the table TRAIN, or a folder of Parquet files, and write a model file.

    FORMULA is "outcome ~ covariates + [treatment ~ instruments]", such as "sales ~ time + emotion + [price ~ fuel]". Covariates
    enter both stages by themselves; C(column) makes categories. Every estimator takes the same formula.
    """
    check_distinct(out, train)
    check_place(out)
    model = make(registry.estimator(estimator), formula, seed=seed, progress=is_watched() and not quiet, **options)
    model.fit(training_data(train, formula, clusters=read_columns(options["clusters"]))).save(out)
    if not quiet:
        click.echo(f"{model.summary()}\n\nFitted in {model.fit_seconds_:.1f} s. Written: {out}")


@commands.command()
@click.argument("train", type=INPUT)
@click.argument("formula")
@WEIGHTS
@CLUSTERS
@COVARIANCE_OR_KERNEL
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence level; tests are read at one minus it.")
@SEED
@click.option("--out", type=OUTPUT, help=f"One row a test; {ENDINGS}.")
def diagnose(
    train: Path,
    formula: str,
    weights: str | None,
    clusters: str | None,
    covariance: Any,
    level: float,
    seed: int,
    out: Path | None,
) -> None:
    """Test what linear IV regression assumes of the table TRAIN.

    Are the instruments of FORMULA strong, do they agree, are they needed, what is the effect however weak they are, and is a
    linear model adequate, or is a nonlinear estimator such as DFIV needed?
    """
    check_result_place(out, train)
    groups = read_columns(clusters)
    frame = training_table(train, formula, clusters=groups)
    named: Any = groups if len(groups) > 1 else clusters
    result = cfiv.diagnose(
        frame, formula, weights=weights, clusters=named, covariance=covariance, level=level, random_state=seed
    )
    click.echo(str(result))
    if out is not None:
        write_result(out, result.table, result)
        click.echo(f"\nWritten: {out}")


for command in (predict, effect, dose_response, plot, compare, infer, study):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, by default this process's, and exit: 0 done, 2 refused, 130 interrupted."""
    given = None if arguments is None else list(arguments)
    with streams_that_may_be_lost() as out:
        code = _run(given)
        out.flush()
        # A reader who has left, as in `cfiv ... | head`, has what it wanted; a disk that is full has not.
        if isinstance(out.lost, OSError) and not isinstance(out.lost, BrokenPipeError) and code == 0:
            code = _refused(f"standard output cannot be written ({out.lost.strerror or out.lost}): send it elsewhere")
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    """Run a command line; its exit code."""
    try:
        with _one_line_warnings():
            code = commands.main(args=arguments, prog_name="cfiv", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx is not None else "cfiv"
        return _refused(f"{error.format_message()} See {place} --help.")
    except click.ClickException as error:
        return _refused(error.format_message())
    except CfivError as error:
        return _refused(str(error))
    except (click.Abort, KeyboardInterrupt):  # a RuntimeError, of click
        ignore_interrupts()
        _say("interrupted")
        return 130
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        if is_of_memory(error):
            return _refused(f"there is not enough memory ({str(error) or type(error).__name__}): give fewer rows")
        if not isinstance(error, OSError):
            raise
        return _refused(f"{error.strerror or error}" + (f": {error.filename!r}" if error.filename else ""))


def _refused(message: str) -> int:
    _say(f"error: {message}")
    return 2


def _say(message: str) -> None:
    """One line on standard error."""
    note("cfiv: " + " ".join(message.split()))


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show each warning once and on one line, without the place in the code that Python adds."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            _say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", CfivWarning)
        warnings.showwarning = show
        yield


def _help_where_nothing_is_asked(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(unwritable(folder, error)) from error
    check_place(folder / "estimates.csv")


if __name__ == "__main__":
    main()
