"""What a program has set in torch before it calls cfiv, set aside: the numbers of a seed do not depend on it.

Set aside are the settings that say what an operation *means*: gradients off, inference mode, autocast, the default dtype and
device, flushed denormals, float32 products of fewer digits. What says by which kernels it is computed (the number of threads,
``torch.backends``, deterministic algorithms) and what only watches (anomaly detection, profilers, modes of one's own) stays.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

import torch

from cfiv.runtime.threads import settle_threads

#: Kinds of devices whose autocast a caller may have turned on.
AUTOCAST = ("cpu", "cuda")
S = TypeVar("S")


class _OfTheProcess(Generic[S]):
    """A setting that torch has once for all threads: ordinary while any block is entered, then what it was."""

    def __init__(self, get: Callable[[], S], put: Callable[[S], object], ordinary: S) -> None:
        self._get, self._put, self._ordinary, self._before = get, put, ordinary, ordinary
        self._users, self._lock = 0, threading.Lock()

    @contextmanager
    def ordinary(self) -> Iterator[None]:
        with self._lock:
            now = self._get()
            if now != self._ordinary:
                self._before = now
                self._put(self._ordinary)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._before != self._ordinary:
                    self._put(self._before)
                    self._before = self._ordinary


_DTYPE = _OfTheProcess(torch.get_default_dtype, torch.set_default_dtype, torch.float32)
_PRECISION = _OfTheProcess(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")


@contextmanager
def ordinary_torch(*, device: torch.device | None = None, floats: torch.dtype = torch.float32) -> Iterator[None]:
    """Torch as a new process has it inside; outside, also after an exception or Ctrl-C, as the caller has set it.

    Parameters
    ----------
    device : device, optional
        Where is computed, if not on the cpu. On cuda the precision of float32 products stays: there it is a choice among
        units of the hardware, for many times the speed.
    floats : dtype
        Of a module that is given as it is: where the caller has made it the default, it stays.

    Notes
    -----
    The default dtype and the precision belong to the whole process: where the caller has changed one, all threads see the
    ordinary one until the last block is left.
    """
    settle_threads()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # turns gradients on, too
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # to say cpu, even where it is, makes every call slower
            stack.enter_context(torch.device("cpu"))
        if sys.float_info.min * 0.5 == 0.0:  # torch tells nobody, but it holds for Python too
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        if floats == torch.float32 or torch.get_default_dtype() != floats:
            stack.enter_context(_DTYPE.ordinary())
        if device is None or device.type != "cuda":
            stack.enter_context(_PRECISION.ordinary())
        yield
