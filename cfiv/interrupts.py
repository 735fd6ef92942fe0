"""Ctrl-C where work has to be put away: the first one counts, and impatient ones after it harm nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def heed_one_interrupt() -> bool:
    """From now on raise KeyboardInterrupt at the first Ctrl-C, and ignore those after it.

    Returns
    -------
    bool
        Whether that changed anything. It does not where Ctrl-C does something else than raise KeyboardInterrupt, as in a job in
        the background, nor in a thread, which Python sends no signals to.
    """
    main = threading.current_thread() is threading.main_thread()
    changed = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if changed:
        signal.signal(signal.SIGINT, _first)
    return changed


@contextmanager
def one_interrupt() -> Iterator[None]:
    """:func:`heed_one_interrupt` for a block."""
    changed = heed_one_interrupt()
    try:
        yield
    finally:
        if changed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C for the rest of this process, its end included, where Python's own clean-up would print a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _first(number: int, frame: FrameType | None) -> NoReturn:
    ignore_interrupts()
    raise KeyboardInterrupt
