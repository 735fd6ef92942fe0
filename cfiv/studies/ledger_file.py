"""What makes an SQLite file a ledger: its tables, its format, and a seal that tells whether every row is as it was written."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfiv.errors import LedgerError

#: Raised whenever an older cfiv could not read what a newer one wrote. 2: with a seal.
FORMAT_VERSION = 2

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
_STATEMENTS = [statement.strip() for statement in _SCHEMA.split(";")[:-1]]
#: What each table was made by, as SQLite keeps it.
_TABLES = {statement.split()[2]: statement for statement in _STATEMENTS}
#: Of ``replications``, in their order, with the types of their values.
COLUMNS: Mapping[str, tuple[type, ...]] = {
    "hash": (str,),
    "replication": (int,),
    "status": (str,),
    "metrics": (str,),
    "reason": (str, type(None)),
    "details": (str, type(None)),
    "seconds": (float, type(None)),
    "cpu_seconds": (float, type(None)),
    "memory_mb": (float, type(None)),
    "warnings": (str,),
    "data_seed": (int,),
    "fit_seed": (int,),
    "environment": (int,),
    "finished": (float,),
}
_SEAL_BITS = 128


def begin(connection: sqlite3.Connection) -> None:
    """All tables, the format and the seal of no rows, in one transaction."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _STATEMENTS:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('format', ?), ('seal', ?)", (str(FORMAT_VERSION), seal_text(0)))


def digest(table: str, row: Sequence[Any]) -> int:
    """128 bits of a row and of the table it is in."""
    text = json.dumps([table, *row]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_SEAL_BITS // 8).digest(), "big")


def seal_text(seal: int) -> str:
    """A seal as ``meta`` has it: the sum of the digests of all rows, modulo 2^128, in hexadecimal digits.

    A sum, so that one more row, or another in its place, changes it in no more time than that row takes.
    """
    return f"{seal % 2**_SEAL_BITS:0{_SEAL_BITS // 4}x}"


def checked_seal(path: Path, connection: sqlite3.Connection) -> str | None:
    """The seal of a ledger whose rows are as they were written; None of format 1, which had none.

    Of format 1 it is checked that its rows could have been written by cfiv, not that they were. Reads every row once: some ten
    microseconds each.

    Raises
    ------
    LedgerError
        If it is no ledger, from a newer version, or damaged.
    """
    meta = _meta(path, connection)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"))
    for name in sorted(found.keys() | _TABLES.keys()):
        if found.get(name) != _TABLES.get(name):
            raise LedgerError(describe_damage(path, f"its {name!r} is not that of a ledger"))
    (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        raise LedgerError(describe_damage(path, said))
    if meta.keys() != ({"format"} if meta["format"] == "1" else {"format", "seal"}):
        raise LedgerError(describe_damage(path, f"format {meta['format']} with {', '.join(meta)}"))
    try:
        found_seal = seal_text(_sum(connection))
    except TypeError as error:  # bytes where there should be text, or types that have no order
        raise LedgerError(describe_damage(path, error)) from None
    except _OutOfOrderError:
        raise LedgerError(describe_damage(path, "its rows are not in their order")) from None
    if "seal" not in meta:
        _check_every_row(path, connection)
    elif meta["seal"] != found_seal:
        raise LedgerError(describe_damage(path, "its rows are not those that were written"))
    return meta.get("seal")


def seal_anew(connection: sqlite3.Connection) -> str:
    """Bring a ledger of format 1, which has been checked, to this one."""
    seal = seal_text(_sum(connection))
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT_VERSION),))
        connection.execute("INSERT INTO meta VALUES ('seal', ?)", (seal,))
    return seal


def read_row(path: Path, row: Sequence[Any], environments: Mapping[int, str]) -> dict[str, Any]:
    """A row of ``replications`` by column, ``metrics`` and ``warnings`` as they were given, with its ``versions``.

    Raises
    ------
    LedgerError
        If it could not have been written.
    """
    record = dict(zip(COLUMNS, row, strict=True))
    for name, kinds in COLUMNS.items():
        if type(record[name]) not in kinds:
            raise LedgerError(describe_damage(path, f"{name} of a row is {type(record[name]).__name__}"))
    try:
        texts = record["metrics"], record["warnings"], environments[record["environment"]]
        metrics, warnings, versions = (json.loads(text, parse_constant=_refused) for text in texts)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise LedgerError(describe_damage(path, f"a row cannot be read: {type(error).__name__}: {error}")) from None
    whole = (
        record["status"] in ("done", "failed")
        and isinstance(metrics, dict)
        and all(type(value) is float and math.isfinite(value) for value in metrics.values())
        and isinstance(warnings, list)
        and all(isinstance(warning, str) for warning in warnings)
        and isinstance(versions, dict)
        and all(isinstance(version, str) for version in versions.values())
    )
    if not whole:
        raise LedgerError(describe_damage(path, "a row holds what no replication has"))
    return {**record, "metrics": metrics, "warnings": warnings, "versions": versions}


def describe_damage(path: Path, what: object) -> str:
    """What to say of a ledger that is not whole."""
    return (
        f"the ledger '{path}' is damaged or no SQLite file ({what}): move it away and begin another, or look at what can be "
        f"read with `sqlite3 {path} .recover`; nothing in it was changed"
    )


def _meta(path: Path, connection: sqlite3.Connection) -> dict[str, str]:
    """The table ``meta``, with a format that this cfiv knows."""
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    except sqlite3.OperationalError as error:
        if "no such" not in str(error):
            raise
        meta = {}
    found = str(meta.get("format"))
    if not (found.isascii() and found.isdigit() and all(isinstance(value, str) for value in meta.values())):
        raise LedgerError(f"'{path}' is an SQLite file but no ledger of a study: give the study's ledger another name")
    if len(found) > 9 or int(found) > FORMAT_VERSION:
        raise LedgerError(
            f"the ledger '{path}' has format {found}, this cfiv knows up to {FORMAT_VERSION}: install a newer cfiv, or begin "
            "another ledger"
        )
    if found not in map(str, range(1, FORMAT_VERSION + 1)):
        raise LedgerError(describe_damage(path, f"format {found}"))
    return meta


def _sum(connection: sqlite3.Connection) -> int:
    """The digests of all rows of all tables together.

    Raises
    ------
    _OutOfOrderError
        If replications are not in the order of their key: SQLite finds them by bisection, and would not find some.
    TypeError
        If a value is of no type that a ledger has.
    """
    total = sum(
        digest(table, row)
        for table in ("configurations", "environments")
        for row in connection.execute(f"SELECT * FROM {table}")
    )
    before: tuple[Any, ...] = ()
    for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM replications"):
        if not before < row[:2]:
            raise _OutOfOrderError
        before = row[:2]
        total += digest("replications", row)
    return total


def _check_every_row(path: Path, connection: sqlite3.Connection) -> None:
    """:func:`read_row` of all."""
    versions = dict(connection.execute("SELECT id, versions FROM environments"))
    for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM replications"):
        read_row(path, row, versions)


class _OutOfOrderError(Exception):
    """Of rows."""


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of a ledger")
