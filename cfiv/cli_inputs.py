"""What commands have in common: their files, their seed, and how they make an estimator and read its training table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cfiv.errors import CfivWarning, ParameterError
from cfiv.estimators import registry
from cfiv.estimators.small_sample import NAMES as SMALL_SAMPLE
from cfiv.files import read_table_file, table_kind

if TYPE_CHECKING:
    import pandas as pd

    from cfiv.estimators.estimator import StructuralEstimator
    from cfiv.estimators.registry import Registered

INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)
#: A table, or a folder of Parquet files.
ROWS = click.Path(exists=True, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)
#: Estimators by the names of the registry.
KNOWN = click.Choice(registry.names())
NAMES = ", ".join(registry.names())
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The source of all randomness.")
WEIGHTS = click.option("--weights", metavar="COLUMN", help="Column of row weights.")
CLUSTERS = click.option(
    "--clusters",
    metavar="COLUMN[,COLUMN]",
    help="Groups with correlated errors, that no split parts: firm, or two kinds as firm,year.",
)
KINDS = ("robust", "unadjusted", "clustered")
COVARIANCE_HELP = "What the errors may be; by default robust, or clustered where --clusters is given"
COVARIANCE = click.option("--covariance", type=click.Choice(KINDS), help=f"{COVARIANCE_HELP}.")
#: Of commands that have errors of rows in the order of time.
COVARIANCE_OR_KERNEL = click.option(
    "--covariance",
    type=click.Choice([*KINDS, "kernel"]),
    help=f"{COVARIANCE_HELP}; kernel (HAC) is for rows in the order of time.",
)
#: Given without the name of a convention.
PLAIN = "yes"
DEBIASED = click.option(
    "--debiased",
    type=click.Choice([*SMALL_SAMPLE, PLAIN]),
    metavar=f"[{'|'.join(SMALL_SAMPLE)}]",
    callback=lambda context, parameter, value: True if value == PLAIN else value,
    help="Small-sample errors of 2sls, liml and least-squares: by itself n - k, and t; else as the program named has them.",
)
#: Points of a dose response at most.
MOST_POINTS = 10_000


class DebiasedCommand(click.Command):
    """A command with ``DEBIASED``, which takes the next word only if that is the name of a convention, and no argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, once an option without a value has one."""
        following = [*args[1:], ""]
        bare = [word == "--debiased" and after not in SMALL_SAMPLE for word, after in zip(args, following, strict=True)]
        return super().parse_args(ctx, [f"{word}={PLAIN}" if flag else word for word, flag in zip(args, bare, strict=True)])


def make(
    registered: Registered, formula: str, *, seed: int, progress: bool, clusters: str | None = None, **options: Any
) -> StructuralEstimator:
    """An estimator with the options that were set; for the others the library's defaults hold, but errors go by clusters."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not registered.takes(name):
            got = f"--{name}" if value is True else f"--{name} {value}"
            raise ParameterError(f"--{name} is not for --estimator {registered.name}, got {got}: leave it out")
    if clusters is not None:
        names = read_columns(clusters)
        given["clusters"] = names[0] if len(names) == 1 else names
        if registered.takes("covariance"):
            given.setdefault("covariance", "clustered")
    general = {"random_state": seed, "progress": progress}
    return registered.make(formula, **given, **{name: value for name, value in general.items() if registered.takes(name)})


def read_columns(text: str | None) -> tuple[str, ...]:
    """Names between commas; none of nothing."""
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ParameterError(f"--clusters must be columns between commas, such as firm,year, got {text!r}")
    return names


def read_treatment(text: str) -> Any:
    """A treatment: a number or a category, or of several columns ``price=10,size=2``."""
    if "=" in text:
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): read_treatment(value.strip()) for name, _, value in pairs}
    try:
        return float(text)
    except ValueError:
        return text


def read_grid(text: str) -> list[Any]:
    """Treatments of ``FROM:TO:POINTS``, evenly spaced, or of values between commas.

    Raises
    ------
    ParameterError
        Unless there are 2 to ``MOST_POINTS`` that go upward.
    """
    if ":" not in text:
        return [read_treatment(part.strip()) for part in text.split(",")]
    try:
        first, last, count = text.split(":")
        start, end, points = float(first), float(last), int(count)
    except ValueError:
        raise ParameterError(f"a grid must be FROM:TO:POINTS, such as 10:25:16, or values as 10,15,25, got {text}") from None
    if not (math.isfinite(end - start) and start < end and 2 <= points <= MOST_POINTS):
        raise ParameterError(f"a grid must go upward in 2 to {MOST_POINTS:,} points, such as 10:25:16, got {text}")
    return [start + (end - start) * i / (points - 1) for i in range(points)]


def training_data(path: Path, formula: str, *, clusters: Sequence[str] = ()) -> pd.DataFrame | Path:
    """What an estimator is fitted to: a Parquet file or folder by its place, for it reads what it needs, or else the table."""
    return path if path.is_dir() or table_kind(path) == "parquet" else training_table(path, formula, clusters=clusters)


def training_table(path: Path, formula: str, *, clusters: Sequence[str] = ()) -> pd.DataFrame:
    """The table in a file. Labels in a CSV file stay text where numbers would make one of several: 01 and 1."""
    import pandas as pd

    from cfiv.tables.roles import Roles

    frame = read_table_file(path)
    if table_kind(path) == "csv":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CfivWarning)  # the fit will say it
            labels = [name for name in (*Roles.from_formula(formula).label_columns, *clusters) if name in frame]
        labels = [name for name in labels if pd.api.types.is_numeric_dtype(frame[name].dtype)]
        texts = read_table_file(path, dtype=dict.fromkeys(labels, str)) if labels else frame
        for name in labels:
            if texts[name].nunique() > frame[name].nunique():
                frame[name] = texts[name]
    return frame
