"""What commands have in common: their files, their seed, and how they make an estimator and read its training table."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cfiv.errors import CfivWarning, OutputError, ParameterError
from cfiv.files import read_table_file, table_kind

if TYPE_CHECKING:
    import pandas as pd

    from cfiv.estimators.estimator import StructuralEstimator
    from cfiv.estimators.registry import Registered

INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)
#: A table, or a folder of Parquet files.
ROWS = click.Path(exists=True, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The source of all randomness.")


def make(registered: Registered, formula: str, *, seed: int, progress: bool, **options: Any) -> StructuralEstimator:
    """An estimator with the options that were set; for the others the library's defaults hold."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not registered.takes(name):
            raise ParameterError(f"--{name} is not for --estimator {registered.name}, got --{name} {value}: leave it out")
    general = {"random_state": seed, "progress": progress}
    return registered.make(formula, **given, **{name: value for name, value in general.items() if registered.takes(name)})


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


def check_distinct(output: Path, *others: Path) -> None:
    """Raise where an output is one of the other files."""
    if any(output.resolve() == other.resolve() for other in others):
        raise OutputError(f"'{output}' is named twice, and writing it would destroy the other: give --out another name")
