"""The ledger: one row a finished replication, in an SQLite file that one process writes and any may read."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from cfiv.errors import LedgerError, OutputError
from cfiv.files import from_here

#: Raised whenever an older cfiv could not read what a newer one wrote.
FORMAT_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE configurations (hash TEXT PRIMARY KEY, configuration TEXT NOT NULL);
CREATE TABLE environments (id INTEGER PRIMARY KEY, versions TEXT NOT NULL UNIQUE);
CREATE TABLE replications (
    hash TEXT NOT NULL REFERENCES configurations,
    replication INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    metrics TEXT NOT NULL,
    reason TEXT,
    details TEXT,
    seconds REAL,
    cpu_seconds REAL,
    memory_mb REAL,
    warnings TEXT NOT NULL,
    data_seed INTEGER NOT NULL,
    fit_seed INTEGER NOT NULL,
    environment INTEGER NOT NULL REFERENCES environments,
    finished REAL NOT NULL,
    PRIMARY KEY (hash, replication)
) WITHOUT ROWID;
"""
_COLUMNS = (
    "hash, replication, status, metrics, reason, details, seconds, cpu_seconds, memory_mb, warnings, data_seed, fit_seed, "
    "environment, finished"
)


class Ledger:
    """An open ledger; :meth:`reading` or :meth:`writing` open one.

    A replication is found by the hash of its configuration (design, method, metrics, study's seed) and its number, so that a
    changed configuration has no rows yet, and the rows of the one before stay. Each row is a transaction of its own in SQLite's
    write-ahead log: a kill at any moment leaves all rows before it, and none in part.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._environment: int | None = None

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[Self]:
        """Open to look at, also while another process writes. Where there is none, it has no rows.

        Raises
        ------
        LedgerError
            If it is no ledger, damaged, or from a newer version.
        """
        path = from_here(path)
        with _explained(path):
            connection = _to_read(path) if path.exists() else sqlite3.connect(":memory:")
            try:
                if _is_empty(connection):  # or a kill came before its first table, which is no fault of the reader
                    connection.close()
                    connection = sqlite3.connect(":memory:")
                    _begin(connection)
                _check_format(path, connection)
                yield cls(path, connection)
            finally:
                connection.close()

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
        lock = FileLock(f"{path.resolve()}.lock")  # a link to the file is no other ledger
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            if not Path(lock.lock_file).exists():  # nor could it be made, as in /proc
                raise OutputError(f"the ledger '{path}' cannot be written there: choose another place") from None
            raise LedgerError(
                f"another process is writing the ledger '{path}': wait for it, or give this study a ledger of its own"
            ) from None
        except OSError as error:
            raise OutputError(
                f"the ledger '{path}' cannot be written ({error.strerror or error}): choose another place"
            ) from error
        try:
            with _explained(path):
                connection = sqlite3.connect(path, timeout=30.0)
                try:
                    if _is_empty(connection):
                        _begin(connection)
                    _check_format(path, connection)
                    _check_whole(path, connection)
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = NORMAL")
                    yield cls(path, connection)
                finally:
                    connection.close()
        finally:
            lock.release()

    def describe(self, configurations: Mapping[str, Any], *, versions: Mapping[str, str]) -> None:
        """Keep what the hashes stand for, and the versions that the coming rows are fitted with."""
        with self._connection as connection:
            rows = [(key, json.dumps(value)) for key, value in configurations.items()]
            connection.executemany("INSERT OR IGNORE INTO configurations VALUES (?, ?)", rows)
            text = json.dumps(dict(versions), sort_keys=True)
            connection.execute("INSERT OR IGNORE INTO environments (versions) VALUES (?)", (text,))
            (self._environment,) = connection.execute("SELECT id FROM environments WHERE versions = ?", (text,)).fetchone()

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
            connection.execute(f"INSERT OR REPLACE INTO replications ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)

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
        query = f"SELECT {_COLUMNS}, versions FROM replications JOIN environments ON environment = id WHERE hash = ?"
        cursor = self._connection.execute(f"{query} ORDER BY replication", (key,))
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
        try:
            return [{**row, **{name: json.loads(row[name]) for name in ("metrics", "warnings", "versions")}} for row in rows]
        except (TypeError, ValueError) as error:
            raise LedgerError(_damaged(self.path, error)) from error

    def seconds(self) -> dict[str, float]:
        """Mean seconds of the finished fits of every configuration."""
        query = "SELECT hash, AVG(seconds) FROM replications WHERE seconds IS NOT NULL GROUP BY hash"
        return dict(self._connection.execute(query))


def _to_read(path: Path) -> sqlite3.Connection:
    """A connection; where nothing may be written, SQLite has to be told that nobody else writes either."""
    connection = sqlite3.connect(path, timeout=30.0)
    try:
        _is_empty(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        if "readonly" not in str(error) and "unable to open" not in str(error):
            raise
        if not path.is_file() or Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _begin(connection: sqlite3.Connection) -> None:
    """All tables and the version in one transaction, so that a kill leaves no half of a ledger."""
    statements = [*_SCHEMA.split(";")[:-1], f"INSERT INTO meta VALUES ('format', '{FORMAT_VERSION}')"]
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    try:
        found = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    except sqlite3.OperationalError as error:
        if "no such" not in str(error):
            raise
        found = None
    if found is None or not str(found[0]).isdigit():
        raise LedgerError(f"'{path}' is an SQLite file but no ledger of a study: give the study's ledger another name")
    if int(found[0]) > FORMAT_VERSION:
        raise LedgerError(
            f"the ledger '{path}' has format {found[0]}, this cfiv knows up to {FORMAT_VERSION}: install a newer cfiv, "
            "or begin another ledger"
        )
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for name in re.findall(r"CREATE TABLE (\w+)", _SCHEMA):
        if name not in tables:
            raise LedgerError(_damaged(path, f"no such table: {name}"))


def _check_whole(path: Path, connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise LedgerError(_damaged(path, found))


def _damaged(path: Path, what: object) -> str:
    return (
        f"the ledger '{path}' is damaged or no SQLite file ({what}): move it away and begin another, or save what can be read "
        f"with `sqlite3 {path} .recover`; nothing in it was changed"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors, with what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "decode" in text or "no such" in text:
            raise LedgerError(_damaged(path, error)) from error
        if "locked" in text:
            raise LedgerError(f"the ledger '{path}' is locked by another program ({text}): close it there") from error
        if "full" in text or "disk I/O" in text:
            raise OutputError(
                f"the ledger '{path}' cannot grow ({text}): make room and run the study again, it continues after the last row"
            ) from error
        raise OutputError(f"the ledger '{path}' cannot be used ({text}): check the place and its permissions") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # in damaged files, SQLite's messages too are damaged
        raise LedgerError(_damaged(path, error)) from error
