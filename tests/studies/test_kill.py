"""kill -9, at any moment, costs what was being fitted and nothing else."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.studies import problems

#: Runs the study in a process of its own for each line that it gets; forked, since to import cfiv takes seconds.
RUNNER = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.studies import problems

if __name__ == "__main__":
    print("ready", flush=True)
    while sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            problems.some_work(Path({ledger!r})).run(jobs=2, progress=False)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
"""
#: Kills while the ledger is made, while the fitting processes start, and while they fit.
CREATION, START, WORK = 5, 5, 10
#: Rows that a run may add before it is killed, on a machine however fast: so that none finishes.
MOST_ADDED = 20
#: Seconds after which it is taken that a process does not see that its study is gone, on a machine however busy.
PATIENCE = 300.0
MEASURED = ["seconds", "cpu_seconds", "memory_mb"]


def rows(ledger: Path) -> dict[tuple[str, int], Any]:
    """Everything in the ledger, by configuration and replication."""
    if not ledger.exists() or not ledger.stat().st_size:
        return {}
    connection = sqlite3.connect(ledger)
    try:
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            return {}
        found = connection.execute("SELECT hash, replication, metrics, seconds, finished FROM replications").fetchall()
    finally:
        connection.close()
    assert len({row[:2] for row in found}) == len(found)
    return {(row[0], row[1]): row for row in found}


def fitting_for(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"main({pid})".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.law
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.usefixtures("kept")
def test_a_study_killed_twenty_times_ends_with_the_bits_of_one_left_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "killed.sqlite"
    script = tmp_path / "runner.py"
    script.write_text(RUNNER.format(root=str(Path(__file__).parents[2]), ledger=str(ledger)))
    generator = np.random.default_rng(20)
    delays = [*generator.uniform(0.0, 0.05, CREATION), *generator.uniform(0.0, 4.0, START), *generator.uniform(0.0, 0.4, WORK)]
    runner = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert runner.stdin is not None
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"

    def started() -> int:
        runner.stdin.write("run\n")
        runner.stdin.flush()
        return int(runner.stdout.readline())

    safe: dict[tuple[str, int], Any] = {}
    pids = []
    try:
        for i, delay in enumerate(delays):
            pids.append(started())
            while i >= CREATION + START and len(rows(ledger)) == len(safe):
                time.sleep(0.02)
            until = time.monotonic() + delay
            while time.monotonic() < until and len(rows(ledger)) < len(safe) + MOST_ADDED:
                time.sleep(0.005)
            os.kill(pids[-1], signal.SIGKILL)
            assert int(runner.stdout.readline()) == signal.SIGKILL, "it had finished before it was killed"
            now = rows(ledger)
            assert safe.items() <= now.items()  # with the time that each was finished
            assert problems.some_work(ledger).status()["done"].sum() == len(now)
            safe = now
        assert 0 < len(safe) < 600
        started()
        assert int(runner.stdout.readline()) == 0
    finally:
        runner.stdin.close()
        runner.wait(timeout=PATIENCE)
        runner.stdout.close()
    assert safe.items() <= rows(ledger).items()
    deadline = time.monotonic() + PATIENCE
    while any(map(fitting_for, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    undisturbed = problems.some_work(tmp_path / "undisturbed.sqlite")
    undisturbed.run(jobs=1, progress=False)
    expected, found = (study.results().drop(columns=MEASURED) for study in (undisturbed, problems.some_work(ledger)))
    assert len(expected) == 600
    assert (expected["status"] == "done").all()
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
