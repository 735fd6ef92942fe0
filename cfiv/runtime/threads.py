"""On how many threads torch computes, for one thread of the program at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

#: Parameters of the largest network up to which training runs on one thread.
SMALL_NETWORK = 200_000
T = TypeVar("T")

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def suitable_threads(networks: Iterable[nn.Module]) -> Iterator[None]:
    """One thread inside for small networks, as many as torch was set to for larger ones; unchanged outside.

    Where a step is made of many small operations further threads only wait for each other: on a machine that is busy
    otherwise, a fit of the demand design took ten times as long on two threads as on one. On one thread the numbers of such a
    fit do not depend on the machine's cores either. Those of larger networks may, in the last digits.
    """
    threads = settle_threads()
    largest = max(sum(p.numel() for p in network.parameters()) for network in networks)
    if largest > SMALL_NETWORK or threads == 1:
        yield
        return
    _set_threads_here(1)
    try:
        yield
    finally:
        _set_threads_here(threads)


def settle_threads() -> int:
    """On how many threads this one computes: from now on so many, whatever other threads say."""
    with _ONE_AT_A_TIME:
        return torch.get_num_threads()


def _set_threads_here(count: int) -> None:
    """Of the program's present thread alone.

    Torch holds the count of each thread, and beside it the one that a thread begins with; to set the first sets the second,
    and a thread that began during a fit would compute on one for the rest of its life. So the second is put back, which only
    another thread can do without touching the first. A thread begins where torch is first asked to compute in it, or here.
    """
    with _ONE_AT_A_TIME:
        beginning = _elsewhere(torch.get_num_threads)
        torch.set_num_threads(count)
        if beginning != count:
            _elsewhere(lambda: torch.set_num_threads(beginning))


def _elsewhere(what: Callable[[], T]) -> T:
    """What a function returns in a thread of its own."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(what()))
    thread.start()
    thread.join()
    return found[0]
