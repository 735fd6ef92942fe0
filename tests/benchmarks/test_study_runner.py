"""The runner of studies: what it costs beside the fits, and a report of ten thousand replications."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfiv.studies import Design, Study
from cfiv.studies.ledger import Ledger
from tests.studies import problems

#: Seconds a replication beside its fit, and of a report, on an idle machine.
OVERHEAD, REPORT = 5e-3, 5.0
#: Replications of a short and of a long run: what is the same in both, such as starting processes, is in neither figure.
FEW, MANY = 50, 1050


def seconds(folder: Path, replications: int, jobs: int) -> float:
    study = Study(
        "nothing",
        designs={"nothing": problems.nothing},
        methods={"nothing": problems.Nothing()},
        metrics={"zero": problems.zero},
        replications=replications,
        ledger=folder / f"{replications}-{jobs}-{time.perf_counter_ns()}.sqlite",
    )
    started = time.perf_counter()
    study.run(jobs=jobs, progress=False)
    return time.perf_counter() - started


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_replication_costs_at_most_5_ms_beside_its_fit(benchmark: Any, tmp_path: Path, jobs: int) -> None:
    def overhead() -> float:
        return (seconds(tmp_path, MANY, jobs) - seconds(tmp_path, FEW, jobs)) / (MANY - FEW)

    found = min(benchmark.pedantic(overhead, rounds=1), overhead())  # the first starts things up for the second
    benchmark.extra_info["overhead, ms a replication"] = 1e3 * found
    print(f"\n{jobs} at once: {1e3 * found:.2f} ms a replication")
    assert found <= OVERHEAD


def test_a_report_of_10000_replications_is_written_in_5_s(benchmark: Any, tmp_path: Path) -> None:
    study = Study(
        "many",
        designs={"line": Design(problems.line, n=[10, 100, 1000, 10_000])},
        methods={f"method {i}": problems.Slope() for i in range(5)},
        replications=500,
        ledger=tmp_path / "many.sqlite",
    )
    generator = np.random.default_rng(0)
    with Ledger.writing(study.ledger) as ledger:
        ledger.describe({key: study.configuration(cell) for key, cell in study.cells.items()}, versions={})
        for key, cell in study.cells.items():
            for replication in range(study.replications):
                values = {"error": float(generator.lognormal() / cell.labels["n"])}
                outcome = {"status": "done", "values": values, "seconds": 1.0}
                ledger.add(key, replication, outcome, **study.seeds(cell, replication))

    def report() -> float:
        started = time.perf_counter()
        written = study.report().write(tmp_path / "report")
        assert len(written) == 8
        return time.perf_counter() - started

    found = benchmark.pedantic(report, rounds=1)
    benchmark.extra_info["report, s"] = found
    print(f"\nreport of {len(study):,} replications: {found:.2f} s")
    assert found <= REPORT
