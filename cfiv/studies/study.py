"""A simulation study: designs x methods x replications, run once, continued at will."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

import cfiv
from cfiv.checks import check_file_name, check_number, check_whole
from cfiv.errors import MixedVersionsWarning, ParameterError, StudyError, warn
from cfiv.interrupts import one_interrupt
from cfiv.studies import metrics as known_metrics
from cfiv.studies.design import MOST_CELLS, Design, grid, labels, size
from cfiv.studies.engine import Job, answers
from cfiv.studies.identity import configuration_hash, description, file_digest, modules_in, seed_of
from cfiv.studies.ledger import Ledger
from cfiv.studies.method import Method
from cfiv.studies.metrics import Metric
from cfiv.studies.process import pack
from cfiv.studies.replication import Cell
from cfiv.studies.report import Report
from cfiv.terminal import progress_bar

#: Packages whose versions every row remembers.
PACKAGES = ("numpy", "scipy", "pandas", "torch", "scikit-learn", "linearmodels", "statsmodels")
#: tqdm's bar without its own estimate, which takes all fits to be of one length.
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
#: What `results` calls its own columns; parameters and metrics need other names.
OWN_COLUMNS = ("design", "method", "replication", "status", "reason", "seconds", "cpu_seconds", "memory_mb")
#: What is one value of a study.
SETTINGS = ("name", "replications", "seed", "threads", "time_limit")
#: What the rows of a study are found by.
IDENTITY = ("seed", "threads", "designs", "methods", "metrics")
#: The least that settings may be.
LEAST = {"replications": 0, "seed": 0, "threads": 1}
MOST_REPLICATIONS = 10**9
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]*")


@dataclass(frozen=True)
class StudyCell:
    """A cell of a design with a cell of a method.

    Parameters
    ----------
    coordinates : dict
        What varies: ``design``, its axes, ``method``, its axes.
    labels : dict
        The same as columns of the results: numbers and text.
    data : list
        What its data depend on beside the study's seed and the replication.
    replication : Cell
        What is run.
    sources : dict of str
        Digests of the files of a person's own modules when the study was made, by module.
    """

    coordinates: dict[str, Any]
    labels: dict[str, Any]
    data: list[Any]
    replication: Cell
    sources: dict[str, str] = field(default_factory=dict)


class Study:
    """A grid of replications: every method on every cell of every design.

    Parameters
    ----------
    name : str
        Also of its files.
    designs : mapping from a name to a :class:`Design` or its function
    methods : mapping from a name to a :class:`Method` or its estimator
    replications : int
        Draws from each cell of the designs. It may be set anew later, to more, as may ``time_limit``; what rows are found by
        stays.
    seed : int
        All randomness comes from it. The data of a replication have a seed of ``(seed, design, its parameters, replication)``;
        all methods get the same data, and all the same second seed, so that comparisons are paired. No number depends on the
        order, on what runs beside, or on what else is in the study.
    metrics : mapping from a name to a function of a :class:`Fit`, optional
        By default ``{"error": cfiv.studies.error}``.
    time_limit : float, optional
        Seconds that drawing, fitting and measuring one replication may take before it is stopped and counts as failed.
    threads : int
        That each fit may use. Sums are added in another order by another number of threads, so it does not follow from the
        machine, and another number is another configuration.
    ledger : path, optional
        By default ``NAME.sqlite`` in the folder of the call. It may be set anew.

    Raises
    ------
    ParameterError
        For names that are empty or taken twice, no design, method or metric, negative replications, more than 100,000 cells,
        and the like.

    Notes
    -----
    Each replication runs in a process of its own that is kept for the next one, is told apart from a frozen one by
    ``time_limit``, and takes nothing with it when it dies. What a method or a design is made of must be picklable; functions
    defined in a notebook are.

    Examples
    --------
    >>> import cfiv
    >>> from cfiv.datasets import demand
    >>> study = Study(
    ...     "prices",
    ...     designs={"demand": Design(demand.simulate, n=[1000, 5000])},
    ...     methods={"2SLS": cfiv.TwoStageLeastSquares(demand.FORMULA), "DFIV": cfiv.DFIV(demand.FORMULA)},
    ...     replications=20,
    ... )
    >>> len(study)
    80
    """

    def __init__(
        self,
        name: str,
        *,
        designs: Mapping[str, Any],
        methods: Mapping[str, Any],
        replications: int = 20,
        seed: int = 0,
        metrics: Mapping[str, Metric] | None = None,
        time_limit: float | None = None,
        threads: int = 1,
        ledger: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name, self.replications, self.seed = name, replications, seed
        self.threads, self.time_limit = threads, time_limit
        self.designs = MappingProxyType(
            {key: value if isinstance(value, Design) else Design(value) for key, value in _named("designs", designs).items()}
        )
        self.methods = MappingProxyType(
            {key: value if isinstance(value, Method) else Method(value) for key, value in _named("methods", methods).items()}
        )
        self.metrics = MappingProxyType(_named("metrics", {"error": known_metrics.error} if metrics is None else metrics))
        self.ledger = _place(f"{name}.sqlite" if ledger is None else ledger)
        for key, metric in self.metrics.items():
            if not callable(metric):
                raise ParameterError(f"the metric {key!r} must be a function of a cfiv.studies.Fit, got {metric!r}")
        self._check_columns()
        cells = sum(size(of.axes) for of in self.designs.values()) * sum(size(of.axes) for of in self.methods.values())
        if cells > MOST_CELLS:
            raise ParameterError(f"a study has at most {MOST_CELLS:,} cells, got {cells:,}: vary less at once")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTINGS:
            check_setting(name, value)
        if name in LEAST:
            value = int(value)  # of numpy's, which JSON does not know
        if name == "ledger":
            value = _place(value)
        if name in IDENTITY and name in vars(self):
            raise ParameterError(f"{name} of a study stays as it is, since its rows are found by that: make another Study")
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.cells) * self.replications

    @functools.cached_property
    def cells(self) -> dict[str, StudyCell]:
        """Every cell by the hash of its configuration, in the order of designs, their grids, methods, their grids."""
        cells: dict[str, StudyCell] = {}
        digest = functools.cache(file_digest)
        for cell in self._cells():
            configuration = self.configuration(cell)
            key = configuration_hash(configuration)
            if key in cells:
                raise ParameterError(f"two cells are the same, {cell.labels}: name each value of an axis once")
            sources = {module: found for module in modules_in(configuration) if (found := digest(module)) is not None}
            cells[key] = dataclasses.replace(cell, sources=sources)
        return cells

    def _cells(self) -> Iterator[StudyCell]:
        for design_name, design in self.designs.items():
            for at, at_labels in zip(design.cells(), grid(labels(design.axes)), strict=True):
                for method_name, method in self.methods.items():
                    for of, of_labels in zip(method.cells(), grid(labels(method.axes)), strict=True):
                        yield StudyCell(
                            {"design": design_name, **at, "method": method_name, **of},
                            {"design": design_name, **at_labels, "method": method_name, **of_labels},
                            [design_name, {**design.fixed, **at}],
                            Cell(
                                design.simulate,
                                {**design.fixed, **at},
                                method.estimator,
                                {**method.fixed, **of},
                                dict(self.metrics),
                            ),
                        )

    def configuration(self, cell: StudyCell) -> dict[str, Any]:
        """All that the numbers of a cell depend on, as JSON."""
        run = cell.replication
        return {
            "seed": self.seed,
            "coordinates": description(cell.coordinates),
            "design": description([run.simulate, run.parameters]),
            "method": [description(run.estimator), description(run.hyper_parameters)],
            "metrics": description(run.metrics),
            **({"threads": self.threads} if self.threads != 1 else {}),  # sums are rounded in another order
        }

    def seeds(self, cell: StudyCell, replication: int) -> dict[str, int]:
        """``data_seed`` and ``fit_seed`` of one replication, below 2^32."""
        coordinates = (self.seed, cell.data, replication)
        return {"data_seed": seed_of("data", *coordinates), "fit_seed": seed_of("fit", *coordinates)}

    def run(self, *, jobs: int | None = None, retry_failed: bool = False, progress: bool = True) -> Report:
        """Run what the ledger does not have yet.

        Parameters
        ----------
        jobs : int, optional
            Replications at once; by default a processor each, or as many as the backend of an enclosing
            ``joblib.parallel_config(backend="dask")`` has workers, whatever that says of ``n_jobs``.
        retry_failed : bool
            Whether to run those again that failed.
        progress : bool
            Whether to show how far it is and how long it will take.

        Returns
        -------
        Report
            Of :meth:`results`.

        Raises
        ------
        LedgerError, OutputError
            If the ledger is damaged, from a newer version, being written by another process, or cannot grow.
        StudyError
            If a design does not return data and truth as it should, or what the study is made of is not what it was when the
            study was made: an estimator was changed, or a module was edited. (Whatever a design or a method raises itself is a
            row of the ledger, with its reason, and the study goes on.)
        KeyboardInterrupt
            After Ctrl-C, once everything finished is safe and nothing is being fitted any more; a second Ctrl-C meanwhile is
            ignored. Call ``run`` again to continue.
        """
        if jobs is not None:
            check_whole("jobs", jobs, least=1)
        configurations, pickled = self._configurations(), self._pickled()
        with one_interrupt(), Ledger.writing(self.ledger) as ledger:
            ledger.describe(configurations, versions=_versions())
            pending = list(self._pending(ledger, retry_failed=retry_failed))
            tasks = [
                Job(index=index, cell=pickled[key], time_limit=self.time_limit, **self.seeds(self.cells[key], replication))
                for index, (key, replication) in enumerate(pending)
            ]
            forecast = Forecast(ledger.seconds(), [key for key, _ in pending], workers=jobs)
            done = len(self) - len(tasks)
            with progress_bar(len(self), initial=done, description=self.name, shown=progress, bar_format=BAR) as bar:
                running = answers(tasks, workers=jobs or -1, threads=self.threads)
                try:
                    for index, outcome in running:
                        key, replication = pending[index]
                        if outcome.get("stale"):
                            raise StudyError(outcome["reason"])
                        if outcome.get("broken"):
                            raise StudyError(f"design {self.cells[key].coordinates['design']!r}: {outcome['reason']}")
                        ledger.add(key, replication, outcome, **self.seeds(self.cells[key], replication))
                        forecast.done(key, outcome.get("seconds"))
                        bar.set_postfix_str(forecast.describe(), refresh=False)
                        bar.update()
                finally:
                    running.close()
        return self.report()

    def _pending(self, ledger: Ledger, *, retry_failed: bool) -> Iterator[tuple[str, int]]:
        """What is to do, replication by replication, so that a study that is stopped has as many of each cell."""
        finished = ledger.finished(self.cells)
        for replication in range(self.replications):
            for key in self.cells:
                status = finished.get((key, replication))
                if status is None or (retry_failed and status == "failed"):
                    yield key, replication

    def _configurations(self) -> dict[str, dict[str, Any]]:
        """The configuration of every cell, by its hash."""
        found = {key: self.configuration(cell) for key, cell in self.cells.items()}
        for key, configuration in found.items():
            if configuration_hash(configuration) != key:  # its rows would be taken for those of what it was
                at = self.cells[key].coordinates
                raise StudyError(
                    f"the design {at['design']!r}, the method {at['method']!r} or a metric is not what it was when the study "
                    "was made: make the study again; what has finished is kept, and counts where it is the same"
                )
        return found

    def _pickled(self) -> dict[str, bytes]:
        try:
            return {key: pack(cell.replication, cell.sources) for key, cell in self.cells.items()}
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise StudyError(
                f"designs, methods and metrics are sent to other processes, and one cannot be pickled ({error}): "
                "give a function that makes it"
            ) from error

    def results(self) -> pd.DataFrame:
        """One row a replication that is in the ledger.

        Returns
        -------
        DataFrame
            ``design``, the axes of the designs, ``method``, the axes of the methods, ``replication``, ``status`` ("done" or
            "failed"), a column a metric (empty where it failed), ``seconds`` (of ``fit``; the time limit where that
            stopped it), ``cpu_seconds``, ``memory_mb`` (by how much the process grew during ``fit``) and ``reason`` (of a
            failure). In the order of the study.

        Warns
        -----
        MixedVersionsWarning
            If rows were fitted with different versions of cfiv.
        """
        records = []
        rows = list(self._rows())
        _warn_of_versions(Counter(row["versions"].get("cfiv", "of no known version") for _, row in rows))
        for cell, row in rows:
            record = {**cell.labels, "replication": row["replication"], "status": row["status"], **row["metrics"]}
            records.append({**record, **{name: row[name] for name in ("seconds", "cpu_seconds", "memory_mb", "reason")}})
        measured = dict.fromkeys([*self.metrics, *(name for _, row in rows for name in row["metrics"])])
        columns = [*self._axes(), "replication", "status", *measured, "seconds", "cpu_seconds", "memory_mb", "reason"]
        results = pd.DataFrame(records, columns=columns)
        # Where nothing was measured pandas would not know that these are numbers.
        return results.astype(dict.fromkeys([*measured, "seconds", "cpu_seconds", "memory_mb"], np.float64))

    def failures(self) -> pd.DataFrame:
        """One row a failed replication: its coordinates, ``reason``, and ``details``, mostly a traceback."""
        records = [
            {**cell.labels, "replication": row["replication"], "reason": row["reason"], "details": row["details"]}
            for cell, row in self._rows()
            if row["status"] == "failed"
        ]
        return pd.DataFrame(records, columns=[*self._axes(), "replication", "reason", "details"])

    def status(self) -> pd.DataFrame:
        """One row a cell: its coordinates, and how many replications are ``done``, ``failed`` and ``pending``."""
        counts: dict[str, dict[str, int]] = {key: {"done": 0, "failed": 0} for key in self.cells}
        with Ledger.reading(self.ledger) as ledger:
            for (key, replication), status in ledger.finished(self.cells).items():
                if replication < self.replications:
                    counts[key][status] += 1
        records = [
            {**cell.labels, **counts[key], "pending": self.replications - sum(counts[key].values())}
            for key, cell in self.cells.items()
        ]
        return pd.DataFrame(records, columns=[*self._axes(), "done", "failed", "pending"])

    def others(self) -> int:
        """How many rows of other configurations the ledger has: of what this study was before a change, or of another one."""
        with Ledger.reading(self.ledger) as ledger:
            return ledger.others(self.cells)

    def report(self) -> Report:
        """Tables and figures of what is in the ledger."""
        rewards = tuple(name for name, metric in self.metrics.items() if getattr(metric, "higher_is_better", False))
        return Report(self.results(), name=self.name, axes=self._axes(), metrics=tuple(self.metrics), rewards=rewards)

    def _rows(self) -> Iterator[tuple[StudyCell, dict[str, Any]]]:
        with Ledger.reading(self.ledger) as ledger:
            for key, cell in self.cells.items():
                yield from ((cell, row) for row in ledger.rows(key) if row["replication"] < self.replications)

    def _axes(self) -> list[str]:
        """The columns that tell cells apart."""
        designs = [name for design in self.designs.values() for name in design.axes]
        methods = [name for method in self.methods.values() for name in method.axes]
        return list(dict.fromkeys(["design", *designs, "method", *methods]))

    def _check_columns(self) -> None:
        designs = {name for design in self.designs.values() for name in design.axes}
        methods = {name for method in self.methods.values() for name in method.axes}
        metrics = Counter(name + suffix for name in self.metrics for suffix in known_metrics.SUFFIXES.values())
        axes, columns = designs | methods, set(metrics)
        for name in sorted((axes | columns) & set(OWN_COLUMNS)):
            raise ParameterError(f"{name!r} is a column of a study's tables already: call the axis or the metric otherwise")
        for name in sorted((designs & methods) | (axes & columns) | {name for name in metrics if metrics[name] > 1}):
            raise ParameterError(
                f"{name!r} would be the name of two columns: a design's axis, a method's axis and a metric need different "
                "names (and a metric m may fill m_truth, m_lower and m_upper as well)"
            )


class Forecast:
    """How long the rest will take: what is left of each cell, by the mean seconds of its fits so far."""

    def __init__(self, seconds: Mapping[str, float], pending: Sequence[str], *, workers: int | None) -> None:
        self._spent = {key: (mean, 1) for key, mean in seconds.items()}
        self._left = Counter(pending)
        self._workers = workers or os.cpu_count() or 1

    def done(self, key: str, seconds: float | None) -> None:
        """One more of a cell."""
        self._left[key] -= 1
        if seconds is not None:
            total, count = self._spent.get(key, (0.0, 0))
            self._spent[key] = total + seconds, count + 1

    def describe(self) -> str:
        """Such as ``about 12 min left``; nothing before anything is known."""
        means = {key: total / count for key, (total, count) in self._spent.items() if key in self._left}
        if not means:
            return ""
        other = sum(means.values()) / len(means)
        left = sum(count * means.get(key, other) for key, count in self._left.items()) / self._workers
        unit, size = next(
            (unit, size) for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)) if left >= size or unit == "s"
        )
        return f"about {left / size:.0f} {unit} left"


def _named(what: str, given: Any) -> dict[str, Any]:
    """A mapping with at least one name."""
    if not isinstance(given, Mapping):
        raise ParameterError(f"{what} must be a mapping from names, got {type(given).__name__}: give {{'name': ...}}")
    if not given:
        raise ParameterError(f"{what} must name at least one, got none")
    for name in given:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ParameterError(f"{what} need names of text on one line, got {name!r}")
    return dict(given)


def _place(ledger: Any) -> Path:
    """Where a ledger is, whatever the current folder will be."""
    return check_file_name("ledger", ledger).absolute()


def check_setting(key: str, value: object) -> None:
    """Raise a ParameterError where a setting of a study cannot be that."""
    if key == "name" and (not isinstance(value, str) or not _NAME.fullmatch(value)):
        raise ParameterError(
            f"name must be letters from A to Z, digits, spaces and any of _.- after a letter or a digit, got {value!r}"
        )
    if key in LEAST:
        check_whole(key, value, least=LEAST[key])
    if key == "replications" and value > MOST_REPLICATIONS:  # type: ignore[operator]
        raise ParameterError(f"replications must be at most {MOST_REPLICATIONS:,}, got {value!r}")
    if key == "time_limit" and value is not None:
        check_number(key, value, above=0.0, alternative="in seconds, or None")


def _warn_of_versions(rows: Counter[str]) -> None:
    if len(rows) > 1:
        said = ", ".join(f"{count} of {rows.total()} rows with cfiv {version}" for version, count in sorted(rows.items()))
        warn(
            f"the ledger has {said}, and their numbers may differ: give the study another ledger to fit all with this version",
            MixedVersionsWarning,
        )


def _versions() -> dict[str, str]:
    found = {package: metadata.version(package) for package in PACKAGES}
    return {"python": sys.version.split()[0], "platform": sys.platform, "cfiv": cfiv.__version__, **found}
