"""The ledger: what is in it stays, and what is no ledger is told from one."""

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfiv.errors import CfivError, LedgerError, OutputError
from cfiv.studies.ledger import FORMAT_VERSION, Ledger

ROOT = str(Path(__file__).parents[2])
OUTCOME = {"status": "done", "values": {"error": 0.25}, "seconds": 1.0, "warnings": ["UserWarning: so"]}


def filled(path: Path, rows: int = 3) -> Path:
    with Ledger.writing(path) as ledger:
        ledger.describe({"a": {"x": 1}, "b": {"x": 2}}, versions={"cfiv": "0"})
        for replication in range(rows):
            ledger.add("a", replication, OUTCOME, data_seed=1, fit_seed=2)
    return path


def opened(path: Path) -> list[dict[str, Any]]:
    with Ledger.reading(path) as ledger:
        return ledger.rows("a")


def written(path: Path) -> None:
    with Ledger.writing(path) as ledger:
        ledger.describe({"a": {"x": 1}}, versions={"cfiv": "0"})
        ledger.add("a", 0, OUTCOME, data_seed=1, fit_seed=2)


@pytest.mark.law
def test_what_is_written_is_read(tmp_path: Path) -> None:
    outcome = {
        **OUTCOME,
        "values": {"error": float(np.nextafter(0.1, 1.0)), "tiny": 5e-324},
        "reason": "<b>'\"\n;DROP TABLE meta",
        "memory_mb": None,
    }
    path = tmp_path / "l.sqlite"
    with Ledger.writing(path) as ledger:
        ledger.describe({"a": {}}, versions={"cfiv": "0", "torch": "1"})
        ledger.add("a", 7, outcome, data_seed=2**32 - 1, fit_seed=0)
    (row,) = opened(path)
    assert row["metrics"] == outcome["values"]
    assert (row["reason"], row["warnings"]) == (outcome["reason"], outcome["warnings"])
    assert (row["data_seed"], row["fit_seed"], row["replication"]) == (2**32 - 1, 0, 7)
    assert row["versions"] == {"cfiv": "0", "torch": "1"}


@pytest.mark.contract
def test_of_two_writers_the_second_is_refused_also_through_a_link_and_readers_are_not(tmp_path: Path) -> None:
    path = filled(tmp_path / "l.sqlite")
    (tmp_path / "link.sqlite").symlink_to(path)
    with Ledger.writing(path) as ledger:
        ledger.describe({"a": {}}, versions={})
        for name in ("l.sqlite", "link.sqlite"):
            with pytest.raises(LedgerError, match=r"another process is writing the ledger.*wait for it, or give"):
                written(tmp_path / name)
        assert len(opened(path)) == 3
        ledger.add("a", 3, OUTCOME, data_seed=1, fit_seed=2)
        assert len(opened(path)) == 4
    written(path)  # the lock went with its holder


@pytest.mark.contract
def test_a_ledger_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = filled(tmp_path / "l.sqlite")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT_VERSION + 1),))
    connection.close()
    before = path.read_bytes()
    for use in (opened, written):
        with pytest.raises(LedgerError, match=rf"has format {FORMAT_VERSION + 1}.*install a newer cfiv, or begin another"):
            use(path)
    assert path.read_bytes() == before


def foreign(statement: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        connection = sqlite3.connect(path)
        with connection:
            connection.executescript(statement)
        connection.close()

    return make


NO_LEDGERS: dict[str, tuple[Callable[[Path], Any], type[CfivError], str]] = {
    "garbage": (lambda path: path.write_bytes(os.urandom(5000)), LedgerError, "damaged or no SQLite file.*move it away"),
    "text": (lambda path: path.write_text("a,b\n1,2\n" * 500), LedgerError, "damaged or no SQLite file.*move it away"),
    "foreign": (foreign("CREATE TABLE books (title)"), LedgerError, "no ledger of a study: give"),
    "other meta": (foreign("CREATE TABLE meta (id)"), LedgerError, "no ledger of a study: give"),
    "number as format": (
        foreign("CREATE TABLE meta (key, value); INSERT INTO meta VALUES ('format', 1.5)"),
        LedgerError,
        "no ledger of a study: give",
    ),
    "no rows": (
        foreign("CREATE TABLE meta (key, value); INSERT INTO meta VALUES ('format', '1')"),
        LedgerError,
        "damaged.*no such table",
    ),
    "folder": (lambda path: path.mkdir(), OutputError, "cannot be used .*check the place"),
}


@pytest.mark.contract
@pytest.mark.parametrize("kind", NO_LEDGERS)
@pytest.mark.parametrize("use", [opened, written])
def test_what_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path, kind: str, use: Callable[[Path], Any]) -> None:
    make, error, message = NO_LEDGERS[kind]
    path = tmp_path / "l.sqlite"
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(error, match=message):
        use(path)
    assert before is None or path.read_bytes() == before


def test_a_file_without_anything_is_a_ledger_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    path.touch()  # what a kill leaves between making the file and its first table
    assert opened(path) == []
    written(path)
    assert len(opened(path)) == 1


@pytest.mark.contract
def test_damage_anywhere_is_refused_or_does_no_harm(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole.sqlite", rows=40).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for case in range(120):
        damaged = bytearray(whole)
        if case % 3 == 0:
            del damaged[int(generator.integers(1, len(whole))) :]
        else:
            start = int(generator.integers(len(whole) - 64))
            damaged[start : start + 64] = generator.bytes(64)
        path = tmp_path / f"{case}.sqlite"
        path.write_bytes(damaged)
        try:
            opened(path)
            written(path)
        except (LedgerError, OutputError):
            refused += 1
    assert refused > 40  # of every truncation at least


@pytest.mark.contract
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (Path("/sys/l.sqlite"), tmp_path / "file" / "l.sqlite"):
        with pytest.raises(OutputError, match=r"l\.sqlite' cannot be written .*: choose another place"):
            written(place)
    written(tmp_path / "new" / "folder" / "l.sqlite")


@pytest.mark.contract
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_a_ledger_that_may_only_be_read_is_read() -> None:
    folder = Path("/tmp") / f"cfiv-read-only-{os.getpid()}"
    folder.mkdir()
    try:
        path = filled(folder / "l.sqlite")
        path.chmod(0o444)
        folder.chmod(0o555)
        program = f"""
            import os, sys
            sys.path.insert(0, {ROOT!r})
            from pathlib import Path
            from cfiv.studies.ledger import Ledger, _explained
            os.setgid(65534); os.setuid(65534)
            with Ledger.reading(Path({str(path)!r})) as ledger:
                print(len(ledger.rows("a")))
            """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
        assert done.stdout == "3\n", done.stderr
    finally:
        shutil.rmtree(folder)


FULL = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from cfiv.studies.ledger import Ledger
from tests.studies.test_ledger import OUTCOME
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
with Ledger.writing(Path({path!r})) as ledger:
    ledger.describe({{"a": {{}}}}, versions={{}})
    for replication in range(100_000):
        ledger.add("a", replication, OUTCOME, data_seed=1, fit_seed=2)
        print(replication, flush=True)
"""


@pytest.mark.contract
def test_a_full_disk_is_said_and_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    program = FULL.format(root=ROOT, path=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "OutputError: the ledger" in done.stderr
    assert "make room and run the study again, it continues after the last row" in done.stderr
    safe = len(done.stdout.split())
    assert safe > 20
    assert [row["replication"] for row in opened(path)][:safe] == list(range(safe))
    with Ledger.writing(path) as ledger:  # there is room again
        ledger.describe({"a": {}}, versions={})
        ledger.add("a", 200_000, OUTCOME, data_seed=1, fit_seed=2)
    assert len(opened(path)) >= safe + 1
