"""Whether SQLite reads all of a write-ahead log: it takes a damaged one for one that ends where the damage begins, in silence.

The log is a header and frames, each of a page and the salts of the header; after a reset it begins anew with other salts, over
what was there. They are written one after another, so that of what a killed program leaves only the last can be in part, and
frames with these salts after one that SQLite does not take mean damage. (https://www.sqlite.org/fileformat2.html, section 4)
"""

from __future__ import annotations

import sqlite3
import struct
import time
from pathlib import Path

from cfiv.errors import LedgerError

HEADER, FRAME = 32, 24
#: The last bit says in which order of bytes its check sums are counted.
MAGIC = 0x377F0682
#: Seconds to wait for another program that has the file for itself.
PATIENCE = 30.0
#: Looks at a log before it is called damaged.
LOOKS = 2


def check_log(path: Path, connection: sqlite3.Connection) -> None:
    """Raise a LedgerError where SQLite would leave out rows that are in the log beside a ledger.

    Merges the log, which SQLite does of its own accord when it closes a file.
    """
    log = Path(f"{path}-wal")
    give_up = time.monotonic() + PATIENCE
    looks = 0
    while looks < LOOKS:
        promised, salts = frames(log)
        if not promised:
            return
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        busy, used, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if used >= promised:
            return
        if busy and time.monotonic() > give_up:
            raise LedgerError(f"the ledger '{path}' is locked by another program: close it there")
        looks += not busy and frames(log)[1] == salts  # while another program merges it or begins it anew, that says nothing
        time.sleep(0.02)
    raise LedgerError(
        f"the log '{log}' of the ledger '{path}' is damaged, and rows in it cannot be read: move it away to go on with what "
        "was there before it, or put back a copy of both files"
    )


def frames(log: Path) -> tuple[int, bytes]:
    """How many frames of a log SQLite must read, by their own headers, and the salts that they share.

    Those of the transactions that had finished before the last frame, which a kill may have left in part; 1 where the log's
    header is damaged, so that it reads none.
    """
    try:
        with log.open("rb") as file:
            head = file.read(HEADER)
            if len(head) < HEADER:
                return 0, b""
            (magic, _, page, *_), salts = struct.unpack(">8I", head), head[16:24]
            if magic | 1 != MAGIC | 1 or not 512 <= page <= 65536 or _sums(head[:24], magic) != head[24:]:
                return 1, head
            promised = finished = 0
            for number in range(1, (log.stat().st_size - HEADER) // (FRAME + page) + 1):
                file.seek(HEADER + (number - 1) * (FRAME + page))
                frame = file.read(FRAME)
                if frame[8:16] == salts:
                    promised, finished = finished, number if frame[4:8] != bytes(4) else finished
            return promised, salts
    except FileNotFoundError:
        return 0, b""


def _sums(data: bytes, magic: int) -> bytes:
    """The check sums of a header."""
    words = struct.unpack(f"{'>' if magic & 1 else '<'}{len(data) // 4}I", data)
    first = second = 0
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) % 2**32
        second = (second + other + first) % 2**32
    return struct.pack(">2I", first, second)
