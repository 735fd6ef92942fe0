"""The ledger: what is in it stays, and what is no ledger is told from one."""

import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfiv.errors import CfivError, LedgerError, OutputError
from cfiv.studies.ledger import Ledger
from cfiv.studies.ledger_file import FORMAT_VERSION

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
    "garbage": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        LedgerError,
        "damaged or no SQLite file.*move it away",
    ),
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
        "damaged.*'configurations' is not that of a ledger",
    ),
    "empty": (lambda path: path.touch(), LedgerError, "is an empty file: remove it to begin the study anew"),
    "a log alone": (
        lambda path: Path(f"{path}-wal").write_bytes(bytes(64)),
        LedgerError,
        "is gone and its log '.*l.sqlite-wal' is there: put it back, or move the log away",
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
    before = path.read_bytes() if path.is_file() else path.exists()
    with pytest.raises(error, match=message):
        use(path)
    assert (path.read_bytes() if path.is_file() else path.exists()) == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of several pages, not to be written to."""
    return filled(tmp_path_factory.mktemp("whole") / "whole.sqlite", rows=60)


def refused_or_the_same(path: Path, expected: list[dict[str, Any]]) -> bool:
    """Whether a ledger is refused, to be read and to be written; if not, its rows are those expected."""
    try:
        found = opened(path)
    except LedgerError:
        with pytest.raises(LedgerError), Ledger.writing(path):
            pass
        return True
    assert found == expected
    return False


@pytest.mark.contract
def test_damage_anywhere_is_refused_or_does_no_harm(tmp_path: Path, whole: Path) -> None:
    content, expected, page = whole.read_bytes(), opened(whole), 4096
    pages = [content[start : start + page] for start in range(0, len(content), page)]
    assert len(pages) > 6
    generator = np.random.default_rng(0)
    damaged = []
    for _ in range(50):
        flipped, overwritten = bytearray(content), bytearray(content)
        flipped[int(generator.integers(len(content)))] ^= 1 << int(generator.integers(8))
        start = int(generator.integers(len(content) - 64))
        overwritten[start : start + 64] = generator.bytes(64)
        damaged += [bytes(flipped), bytes(overwritten)]
    refused = 0
    for case, data in enumerate(damaged):
        path = tmp_path / f"{case}.sqlite"
        path.write_bytes(data)
        refused += refused_or_the_same(path, expected)
    assert refused > 10  # most of a file of so few rows is empty
    cut_short = [content[: int(length)] for length in [0, *generator.integers(len(content), size=15)]]
    cut_short += [content[: number * page] for number in range(1, len(pages))]
    lost = [b"".join([*pages[:number], bytes(page), *pages[number + 1 :]]) for number in range(len(pages))]
    swapped = [b"".join([pages[0], *pages[2:number], pages[1], *pages[number:]]) for number in range(3, len(pages))]
    for case, data in enumerate([*cut_short, *lost, *swapped]):
        path = tmp_path / f"page {case}.sqlite"
        path.write_bytes(data)
        assert refused_or_the_same(path, expected)


EDITS = {
    "a metric": "UPDATE replications SET metrics = '{\"error\": 0.5}' WHERE replication = 1",
    "a status": "UPDATE replications SET status = 'failed' WHERE replication = 1",
    "seconds": "UPDATE replications SET seconds = 2.0 WHERE replication = 1",
    "a number": "UPDATE replications SET replication = 900 WHERE replication = 1",
    "a configuration": "UPDATE replications SET hash = 'b' WHERE replication = 1",
    "bytes": "UPDATE replications SET reason = x'00ff' WHERE replication = 1",
    "bytes as a number": "UPDATE replications SET replication = x'00ff' WHERE replication = 1",
    "an environment": "UPDATE replications SET environment = 7 WHERE replication = 1",
    "versions": 'UPDATE environments SET versions = \'{"cfiv": "1"}\'',
    "what a hash stands for": "UPDATE configurations SET configuration = '{}' WHERE hash = 'a'",
    "a row less": "DELETE FROM replications WHERE replication = 1",
    "no rows": "DELETE FROM replications",
    "a row more": (
        "INSERT INTO replications SELECT hash, 900, status, metrics, reason, details, seconds, cpu_seconds, memory_mb, "
        "warnings, data_seed, fit_seed, environment, finished FROM replications WHERE replication = 1"
    ),
    "a column less": "ALTER TABLE replications DROP COLUMN details",
    "a column more": "ALTER TABLE replications ADD COLUMN more",
    "a table less": "DROP TABLE configurations",
    "a table more": "CREATE TABLE books (title)",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON replications BEGIN DELETE FROM replications; END",
    "a view": "DROP TABLE replications; CREATE VIEW replications AS SELECT 1 AS hash",
    "no seal": "DELETE FROM meta WHERE key = 'seal'",
    "another seal": "UPDATE meta SET value = '0' WHERE key = 'seal'",
    "an older format": "UPDATE meta SET value = '1' WHERE key = 'format'",
    "format 0": "UPDATE meta SET value = '0' WHERE key = 'format'",
    "format 01": "UPDATE meta SET value = '01' WHERE key = 'format'",
    "a long format": f"UPDATE meta SET value = '{'9' * 5000}' WHERE key = 'format'",
}


@pytest.mark.contract
@pytest.mark.parametrize("edit", EDITS)
def test_rows_that_were_edited_are_refused(tmp_path: Path, edit: str) -> None:
    path = filled(tmp_path / "l.sqlite")
    foreign(f"PRAGMA foreign_keys = 0; {EDITS[edit]}")(path)
    assert refused_or_the_same(path, [])


@pytest.mark.contract
def test_what_changes_nothing_but_the_file_is_not_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "l.sqlite")
    before = opened(path)
    foreign("VACUUM; ANALYZE; PRAGMA journal_mode = DELETE; PRAGMA user_version = 7")(path)
    assert opened(path) == before
    written(path)
    assert [row["replication"] for row in opened(path)] == [0, 1, 2]


TO_FORMAT_1 = "DELETE FROM meta WHERE key = 'seal'; UPDATE meta SET value = '1' WHERE key = 'format';"


@pytest.mark.contract
def test_a_ledger_of_format_1_is_read_and_is_sealed_when_it_is_written_to(tmp_path: Path) -> None:
    path = filled(tmp_path / "l.sqlite")
    before = opened(path)
    foreign(TO_FORMAT_1)(path)
    assert opened(path) == before
    with Ledger.writing(path):
        pass
    assert opened(path) == before
    foreign(EDITS["seconds"])(path)
    assert refused_or_the_same(path, [])


@pytest.mark.contract
@pytest.mark.parametrize(
    "edit",
    [
        "metrics = '" + "[" * 10_000 + "]" * 10_000 + "'",
        'metrics = \'{"error": "x"}\'',
        "metrics = '{\"error\": NaN}'",
        "metrics = '{\"error\": 1e999}'",
        'metrics = \'{"error": ' + "9" * 5000 + "}'",
        "metrics = '[]'",
        "metrics = '{'",
        "warnings = '[3]'",
        "seconds = 'long'",
        "data_seed = 1.5",
        "environment = 7",
        "reason = x'ff'",
    ],
    ids=lambda edit: edit[:24],
)
def test_a_ledger_of_format_1_with_what_no_replication_has_is_refused(tmp_path: Path, edit: str) -> None:
    path = filled(tmp_path / "l.sqlite")
    foreign(f"PRAGMA foreign_keys = 0; {TO_FORMAT_1} UPDATE replications SET {edit} WHERE replication = 1")(path)
    assert refused_or_the_same(path, [])


@pytest.mark.contract
def test_of_a_log_that_a_kill_left_damage_is_refused_and_a_last_frame_in_part_is_not(tmp_path: Path) -> None:
    path, log = tmp_path / "l.sqlite", tmp_path / "l.sqlite-wal"
    with Ledger.writing(path) as ledger:
        ledger.describe({"a": {}}, versions={})
        for replication in range(12):
            ledger.add("a", replication, OUTCOME, data_seed=1, fit_seed=2)
        file, frames, frame = path.read_bytes(), log.read_bytes(), 24 + 4096  # as kill -9 would leave them now
    generator = np.random.default_rng(0)
    count = (len(frames) - 32) // frame
    assert count > 20

    def left(data: bytes) -> Path:
        for name in ("-wal", "-shm"):
            Path(f"{path}{name}").unlink(missing_ok=True)
        path.write_bytes(file)
        log.write_bytes(data)
        return path

    for position in [*range(0, 32, 3), *generator.integers(32, 32 + (count - 2) * frame, size=30)]:
        flipped = bytearray(frames)
        flipped[int(position)] ^= 1
        with pytest.raises(
            LedgerError, match=r"the log '.*l.sqlite-wal' .* is damaged, and rows in it cannot be read: move it"
        ):
            opened(left(bytes(flipped)))
    assert [row["replication"] for row in opened(left(frames))] == list(range(12))
    for end in (frames[:-1], frames[:-1] + b"?", frames[: -frame // 2]):
        assert [row["replication"] for row in opened(left(end))] == list(range(11))
    left(frames)
    log.unlink()
    assert opened(path) == []  # as it was before them, and all are run again


@pytest.mark.contract
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop-l.sqlite").symlink_to("loop-l.sqlite")
    for place in (Path("/sys/l.sqlite"), tmp_path / "file" / "l.sqlite", tmp_path / "loop-l.sqlite"):
        with pytest.raises(OutputError, match=r"l\.sqlite' cannot be written .*: choose another place"):
            written(place)
    written(tmp_path / "new" / "folder" / "l.sqlite")


@pytest.mark.contract
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_a_ledger_that_may_only_be_read_is_read() -> None:
    folder = Path("/tmp") / f"cfiv-read-only-{os.getpid()}"  # where another user may look, unlike pytest's
    folder.mkdir()
    try:
        path = filled(folder / "l.sqlite")
        path.chmod(0o444)
        folder.chmod(0o555)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                (folder / "new").touch()
            assert len(opened(path)) == 3
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(folder)


@contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """Files that grow beyond a size are as on a full disk. Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.contract
def test_a_full_disk_is_said_and_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    safe = 0

    def write_until_it_is_full() -> None:
        nonlocal safe
        with full_beyond(200_000), Ledger.writing(path) as ledger:
            ledger.describe({"a": {}}, versions={})
            while True:
                ledger.add("a", safe, OUTCOME, data_seed=1, fit_seed=2)
                safe += 1

    with pytest.raises(OutputError) as refused:
        write_until_it_is_full()
    assert str(refused.value).startswith(f"the ledger '{path}' cannot grow")
    assert str(refused.value).endswith("make room and run the study again, it continues after the last row")
    assert safe > 20
    assert [row["replication"] for row in opened(path)] == list(range(safe))
    with Ledger.writing(path) as ledger:  # there is room again
        ledger.describe({"a": {}}, versions={})
        ledger.add("a", 200_000, OUTCOME, data_seed=1, fit_seed=2)
    assert len(opened(path)) == safe + 1
