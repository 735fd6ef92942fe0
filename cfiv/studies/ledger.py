"""The ledger: one row a finished replication, in an SQLite file that one process writes and any may read."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from cfiv.errors import LedgerError, OutputError
from cfiv.files import from_here, replacing
from cfiv.studies.ledger_file import COLUMNS, begin, checked_seal, describe_damage, digest, read_row, seal_anew, seal_text
from cfiv.studies.ledger_log import PATIENCE, check_log

_ROW = f"SELECT {', '.join(COLUMNS)} FROM replications WHERE hash = ?"


class Ledger:
    """An open ledger; :meth:`reading` or :meth:`writing` open one.

    A replication is found by the hash of its configuration (design, method, metrics, study's seed) and its number, so that a
    changed configuration has no rows yet, and the rows of the one before stay. Each row is a transaction of its own in SQLite's
    write-ahead log: a kill at any moment leaves all rows before it, and none in part. With each row a seal over all of them is
    written, and whoever opens the ledger compares: what is damaged is refused before anything of it is used.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, seal: int = 0) -> None:
        self.path = path
        self._connection = connection
        self._seal = seal
        self._environment: int | None = None

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[Self]:
        """Open to look at, also while another process writes, whose rows of that time do not come. Where there is none, it has
        no rows.

        Raises
        ------
        LedgerError
            If it is no ledger, damaged, or from a newer version.
        """
        path = from_here(path)
        there = _is_there(path)
        with _explained(path), closing(_to_read(path) if there else _without_rows()) as connection:
            if there:
                check_log(path, connection)
            connection.execute("BEGIN")  # what is checked now is what is read later
            checked_seal(path, connection)
            yield cls(path, connection)

    @classmethod
    @contextmanager
    def writing(cls, path: Path) -> Iterator[Self]:
        """Open to add rows; begun where there is none. A lock beside the file, which ends with this process, keeps others out.

        Raises
        ------
        LedgerError
            As :meth:`reading`, and if another process is writing.
        OutputError
            If the place cannot be written to, now or when the disk is full; every row before stays.
        """
        path = from_here(path)
        try:
            place = path.resolve()  # a link to the file is no other ledger
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{place}.lock", timeout=0)
            lock.acquire()
        except Timeout as taken:
            if not Path(taken.lock_file).exists():  # nor could it be made, as in /proc
                raise OutputError(f"the ledger '{path}' cannot be written there: choose another place") from None
            raise LedgerError(
                f"another process is writing the ledger '{path}': wait for it, or give this study a ledger of its own"
            ) from None
        except (OSError, RuntimeError) as error:  # the second, in older Pythons, of a link that leads to itself
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"the ledger '{path}' cannot be written ({reason}): choose another place") from error
        try:
            with _explained(path):
                if not _is_there(path):
                    _begun(path)
                with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
                    check_log(path, connection)
                    seal = checked_seal(path, connection) or seal_anew(connection)
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = NORMAL")
                    yield cls(path, connection, int(seal, 16))
        finally:
            lock.release()

    def describe(self, configurations: Mapping[str, Any], *, versions: Mapping[str, str]) -> None:
        """Keep what the hashes stand for, and the versions that the coming rows are fitted with."""
        text = json.dumps(dict(versions), sort_keys=True)
        seal = self._seal
        with self._connection as connection:
            for key, value in configurations.items():
                row = (key, json.dumps(value))
                if connection.execute("INSERT OR IGNORE INTO configurations VALUES (?, ?)", row).rowcount:
                    seal += digest("configurations", row)
            new = connection.execute("INSERT OR IGNORE INTO environments (versions) VALUES (?)", (text,)).rowcount
            (environment,) = connection.execute("SELECT id FROM environments WHERE versions = ?", (text,)).fetchone()
            seal += digest("environments", (environment, text)) if new else 0
            self._write_seal(seal)
        self._seal, self._environment = seal, environment

    def add(self, key: str, replication: int, outcome: Mapping[str, Any], *, data_seed: int, fit_seed: int) -> None:
        """Write one row, at once; it takes the place of a failed one."""
        row = (
            key,
            replication,
            outcome["status"],
            json.dumps(outcome.get("values", {})),
            outcome.get("reason"),
            outcome.get("details"),
            outcome.get("seconds"),
            outcome.get("cpu_seconds"),
            outcome.get("memory_mb"),
            json.dumps(outcome.get("warnings", [])),
            data_seed,
            fit_seed,
            self._environment,
            time.time(),
        )
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            seal = self._seal - self._digest(key, replication)
            connection.execute(f"INSERT OR REPLACE INTO replications VALUES ({', '.join('?' * len(row))})", row)
            seal += self._digest(key, replication)
            self._write_seal(seal)
        self._seal = seal

    def finished(self, keys: Iterable[str]) -> dict[tuple[str, int], str]:
        """Hash and replication of every row of these configurations, with its status."""
        query = "SELECT replication, status FROM replications WHERE hash = ?"
        return {(key, replication): status for key in keys for replication, status in self._connection.execute(query, (key,))}

    def others(self, keys: Iterable[str]) -> int:
        """How many rows are of configurations but these."""
        counts: dict[str, int] = dict(self._connection.execute("SELECT hash, COUNT(*) FROM replications GROUP BY hash"))
        return sum(counts.values()) - sum(counts.get(key, 0) for key in keys)

    def rows(self, key: str) -> list[dict[str, Any]]:
        """All rows of a configuration, by replication, with ``metrics``, ``warnings`` and ``versions`` as they were given."""
        versions = dict(self._connection.execute("SELECT id, versions FROM environments"))
        found = self._connection.execute(f"{_ROW} ORDER BY replication", (key,))
        return [read_row(self.path, row, versions) for row in found]

    def seconds(self) -> dict[str, float]:
        """Mean seconds of the finished fits of every configuration."""
        query = "SELECT hash, AVG(seconds) FROM replications WHERE seconds IS NOT NULL GROUP BY hash"
        return dict(self._connection.execute(query))

    def _digest(self, key: str, replication: int) -> int:
        """That of a row as SQLite has it; 0 where there is none."""
        row = self._connection.execute(f"{_ROW} AND replication = ?", (key, replication)).fetchone()
        return 0 if row is None else digest("replications", row)

    def _write_seal(self, seal: int) -> None:
        self._connection.execute("UPDATE meta SET value = ? WHERE key = 'seal'", (seal_text(seal),))


def _is_there(path: Path) -> bool:
    """Whether there is a ledger or something in its place.

    Raises
    ------
    LedgerError
        If only its log is there, or its file is empty, which is how a ledger is cut short: one begins with its first table.
    OutputError
        If nothing can have such a name.
    """
    try:
        there = path.exists()
    except OSError as error:
        raise OutputError(f"the ledger '{path}' cannot be used ({error.strerror}): choose another place") from error
    if not there:
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size:
            raise LedgerError(f"the ledger '{path}' is gone and its log '{log}' is there: put it back, or move the log away")
        return False
    if path.is_file() and not path.stat().st_size:
        raise LedgerError(f"the ledger '{path}' is an empty file: remove it to begin the study anew, or put back a copy of it")
    return True


def _without_rows() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    begin(connection)
    return connection


def _begun(path: Path) -> None:
    """A new ledger, in its place once it is whole."""
    with replacing(path) as temporary, closing(sqlite3.connect(temporary)) as connection:
        begin(connection)


def _to_read(path: Path) -> sqlite3.Connection:
    """A connection; where nothing may be written, SQLite has to be told that nobody else writes either."""
    connection = sqlite3.connect(path, timeout=PATIENCE)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if "readonly" not in str(error) and "unable to open" not in str(error):
            raise
        if not path.is_file() or Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors, with what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "decode" in text or "no such" in text:
            raise LedgerError(describe_damage(path, error)) from error
        if "locked" in text:
            raise LedgerError(f"the ledger '{path}' is locked by another program ({text}): close it there") from error
        if "full" in text or "disk I/O" in text:
            raise OutputError(
                f"the ledger '{path}' cannot grow ({text}): make room and run the study again, it continues after the last row"
            ) from error
        raise OutputError(f"the ledger '{path}' cannot be used ({text}): check the place and its permissions") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # in damaged files, SQLite's messages too are damaged
        raise LedgerError(describe_damage(path, error)) from error
