"""The commands ``cfiv study init | run | status | report | export``."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from cfiv.errors import OutputError, StudyError
from cfiv.files import check_table_place, from_here, replacing, write_table_file
from cfiv.interrupts import heed_one_interrupt
from cfiv.terminal import is_watched

if TYPE_CHECKING:
    import pandas as pd

    from cfiv.studies import Study

EPILOG = """\b
Examples:
  cfiv study init mine                  # a commented file to begin with
  cfiv study run mine.toml --jobs 2
  cfiv study report mine.toml --out report
  cfiv study run demand                 # a study that ships with cfiv
"""
FILE = click.argument("study", metavar="STUDY")
#: Found without importing what reads them, since help needs their names.
SHIPPED = sorted(path.stem for path in (Path(__file__).parent / "studies" / "shipped").glob("*.toml"))
#: Reasons of failures that `status` lists.
LISTED = 8


@click.group(epilog=EPILOG, invoke_without_command=True)
@click.pass_context
def study(context: click.Context) -> None:
    """Simulation studies: designs x methods x replications.

    STUDY is a TOML file, or the name of a study that ships with cfiv (see cfiv study init --help). What has finished is kept in
    an SQLite ledger beside it: a study that was stopped or killed goes on where it was.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@study.command(name="init")
@click.argument("name")
@click.option("--like", metavar="SHIPPED", help=f"Begin with a study that ships with cfiv: {', '.join(SHIPPED)}.")
def init(name: str, like: str | None) -> None:
    """Write NAME.toml, a commented example to begin with."""
    from importlib import resources

    from cfiv.studies.study import check_setting
    from cfiv.studies.study_file import shipped_text

    target = Path(name if name.endswith(".toml") else f"{name}.toml")
    check_setting("name", target.name.removesuffix(".toml"))
    if target.exists():
        raise OutputError(f"'{target}' is there already: choose another name, or move it away")
    if like is None:
        text = (resources.files("cfiv.studies") / "example.toml").read_text(encoding="utf-8")
        text = text.replace("THIS_FILE", shlex.quote(str(target)))
    else:
        text = re.sub(r"(?m)^name = .*$", f'name = "{target.stem}"', shipped_text(like), count=1)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"Written: {target}. Edit it, then: cfiv study run {shlex.quote(str(target))}")


@study.command()
@FILE
@click.option("--jobs", type=click.IntRange(min=1), help="Replications at once; by default one a processor.")
@click.option("--retry-failed", is_flag=True, help="Run those again that failed.")
@click.option("--quiet", is_flag=True, help="No progress bar and no table at the end.")
def run(study: str, jobs: int | None, *, retry_failed: bool, quiet: bool) -> None:
    """Run what is missing in the ledger of STUDY.

    Replications that fail are results too: the exit code says whether the study could be run, not how its methods did.
    """
    planned = _read(study)
    heed_one_interrupt()
    ledger = from_here(planned.ledger)
    click.echo(f"{planned.name}: {len(planned):,} replications of {len(planned.cells)} cells, ledger {ledger}", err=True)
    _say_others(planned)
    try:
        report = planned.run(jobs=jobs, retry_failed=retry_failed, progress=not quiet and is_watched())
    except KeyboardInterrupt:
        status = planned.status()
        safe = int(status["done"].sum() + status["failed"].sum())
        click.echo(f"cfiv: {safe:,} of {len(planned):,} are safe in {ledger}: run it again to go on", err=True)
        raise
    if not quiet:
        click.echo(str(report))
    _say_failures(planned)


@study.command()
@FILE
@click.option("--tracebacks", is_flag=True, help="Show where each kind of failure came from, once.")
def status(study: str, *, tracebacks: bool) -> None:
    """How far STUDY is, cell by cell, and why replications failed."""
    planned = _read(study)
    table = planned.status()
    done, failed = int(table["done"].sum()), int(table["failed"].sum())
    click.echo(f"{planned.name}: {done:,} done, {failed:,} failed, {len(planned) - done - failed:,} pending\n")
    click.echo(_as_text(table))
    _say_others(planned)
    _say_failures(planned, tracebacks=tracebacks)


@study.command()
@FILE
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.md, .tex and .html, results.csv and figures.  [default: NAME-report]",
)
def report(study: str, folder: Path | None) -> None:
    """Write tables and figures of what is in the ledger of STUDY."""
    planned = _read(study)
    found = planned.report()
    place = folder or Path(f"{planned.name}-report")
    written = found.write(place)
    click.echo(f"{found}\n")
    for path in written:
        click.echo(f"Written: {path}")


@study.command()
@FILE
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .csv or .parquet file.")
def export(study: str, out: Path) -> None:
    """Write one row a replication of STUDY as a table."""
    check_table_place(out)
    planned = _read(study)
    results = planned.results()
    if results.empty:
        raise StudyError(f"the study {planned.name!r} has no results yet: cfiv study run {study}")
    write_table_file(results, out)
    click.echo(f"Written: {out} ({len(results):,} rows)")


def _read(study: str) -> Study:
    from cfiv.studies.study_file import read_study

    return read_study(study)


def _say_others(planned: Study) -> None:
    others = planned.others()
    if others:
        click.echo(
            f"The ledger also has {others:,} rows of other configurations, as this study was before a change or of another "
            "study: they stay, and do not count here.",
            err=True,
        )


def _say_failures(planned: Study, *, tracebacks: bool = False) -> None:
    failures = planned.failures()
    if failures.empty:
        return
    hint = "" if tracebacks else " (with --tracebacks, `cfiv study status` shows where)"
    click.echo(f"\n{len(failures):,} failed{hint}:")
    kinds = failures.groupby(["method", "reason"], sort=False)["details"].agg(["size", "first"])
    for key, kind in list(kinds.sort_values("size", ascending=False, kind="stable").iterrows())[:LISTED]:
        method, reason = cast("tuple[str, str]", key)
        click.echo(f"  {kind['size']:,} x {method}: {' '.join(str(reason).split())}")
        if tracebacks and kind["first"]:
            click.echo(textwrap.indent(kind["first"].rstrip(), "      "))


def _as_text(table: pd.DataFrame) -> str:
    from cfiv.rendering import to_text  # brings pandas, which --help does without

    return to_text(table.set_index(table.columns[0]))
