"""How much memory there is, and what is said where it does not suffice."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cfiv.errors import TooLargeError

#: What torch says in its RuntimeErrors and numpy in its ValueErrors: of memory that the system does not give, and of sizes that
#: no memory has. ("bad_alloc" and "out of memory" are of C++ and of GPUs.)
_SAID = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "storage size calculation overflowed",
    "integer multiplication overflow",
    "array is too big",
    "maximum allowed dimension exceeded",
)


def is_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, in whatever library's words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, ValueError)) and any(words in str(error).lower() for words in _SAID)
    )


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Errors of allocators inside, with what to do.

    Parameters
    ----------
    what : str
        That needs the memory, such as ``KernelIV.fit``.
    remedy : str
        What would need less.

    Raises
    ------
    TooLargeError
    """
    try:
        yield
    except TooLargeError:
        raise
    except Exception as error:
        if not is_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TooLargeError(f"{what} needs more memory than there is ({said}): {remedy}") from error


def available_memory() -> int | None:
    """Bytes that this process may still get: what the machine has free, within the process's limit (``ulimit -v``).

    None where neither is said.
    """
    known = [size for size in (_of_machine(), _of_process()) if size is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _of_process() -> int | None:
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most == resource.RLIM_INFINITY:
            return None
        with open("/proc/self/statm") as file:
            return max(0, most - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    except (ImportError, OSError, ValueError, AttributeError):
        return None
