"""A process that fits for a study, and the handle on it: what hangs is killed, and what dies takes nothing with it.

Jobs and answers are pickles, each with its length before it, over the process's standard input and output. Pickles run code
when they are read, so neither side reads from anyone but the other.
"""

from __future__ import annotations

import functools
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

#: Seconds that a process may take to load what it is to fit: torch is large, and a busy disk slow.
LOADING_LIMIT = 300.0
#: Environment variables that numerical libraries read once, when they are first imported.
THREAD_VARIABLES = ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR", "NUMBA")
LENGTH = 8
#: Seconds between looks at whether a process that says nothing is still there.
LOOK_EVERY = 1.0
#: Characters of what a process said before it died that are kept.
MOST_SAID = 4000


class FittingProcess:
    """A process started for a study, which answers one job after another.

    Parameters
    ----------
    threads : int
        How many each numerical library may use.
    """

    def __init__(self, threads: int) -> None:
        environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in THREAD_VARIABLES}}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment["PYTHONHASHSEED"] = "0"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process is
        # A session of its own: Ctrl-C in the terminal reaches the study, which decides what becomes of its processes, and
        # whatever a fit starts ends with it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from cfiv.studies.process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self._answers = self._process.stdin, self._process.stdout
        self._heard = b""

    def answer(self, job: bytes, seeds: Mapping[str, int], *, time_limit: float | None) -> dict[str, Any]:
        """The outcome of a job; a failed one, and this process gone, where it took too long or died."""
        self._said.seek(0)
        self._said.truncate()
        try:
            _write(self._jobs, (job, dict(seeds)))
            self._read(LOADING_LIMIT)
            outcome: dict[str, Any] = self._read(time_limit)
            return outcome
        except TimeoutError as error:
            return {"status": "failed", "reason": f"took longer than its time limit of {error.args[0]:g} s and was stopped"}
        except (EOFError, BrokenPipeError):
            code = self.end()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")[-MOST_SAID:]
            return {"status": "failed", "reason": f"its process died, {how}", "details": said}

    def _read(self, limit: float | None) -> Any:
        """The next message.

        Raises
        ------
        TimeoutError
            If there is none after so many seconds; the process is ended.
        EOFError
            If there will be none. Not by the pipe's end alone: a process that the fit has forked may keep it open.
        """
        deadline = None if limit is None else time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while len(self._heard) < (end := _end_of_message(self._heard)):
                left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
                dead = not self.alive  # asked first: what it said before it died is still read
                if selector.select(max(0.0, left)):
                    chunk = os.read(self._answers.fileno(), 1 << 16)
                    if not chunk:
                        raise EOFError
                    self._heard += chunk
                elif dead:
                    raise EOFError
                elif left <= 0.0:
                    self.end()
                    raise TimeoutError(limit)
        message, self._heard = self._heard[LENGTH:end], self._heard[end:]
        return pickle.loads(message)

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None

    def end(self) -> int:
        """End it and all that it has started now, and give its exit code; whoever waits for its answer has a failed one."""
        code = self._process.poll()
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait() if code is None else code

    def close(self) -> None:
        """End it, and close what led to it; nobody waits for its answer."""
        self.end()
        for stream in (self._jobs, self._answers, self._said):
            with suppress(BrokenPipeError):  # what was left to write has nobody to read it
                stream.close()


class FittingProcesses:
    """The fitting processes of one run of a study in this process, kept between jobs, since starting one takes seconds.

    Parameters
    ----------
    threads : int
        How many each numerical library of each process may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._idle: list[FittingProcess] = []
        self._busy: set[FittingProcess] = set()
        self._stopped = False

    def answer(self, job: bytes, seeds: Mapping[str, int], *, time_limit: float | None) -> dict[str, Any]:
        """The outcome of a job, in an idle process or in a new one; at once a failure nobody reads after :meth:`stop`."""
        with self._lock:
            if self._stopped:
                return {"status": "failed", "reason": "the study was stopped"}
            process = self._idle.pop() if self._idle else FittingProcess(self._threads)
            self._busy.add(process)
        try:
            return process.answer(job, seeds, time_limit=time_limit)
        finally:
            with self._lock:
                self._busy.discard(process)
                kept = process.alive and not self._stopped
                if kept:
                    self._idle.append(process)
            if not kept:
                process.close()

    def stop(self) -> None:
        """End all of them now, whatever they are doing, and start no other."""
        with self._lock:
            self._stopped = True
            idle, busy = list(self._idle), list(self._busy)
            self._idle.clear()
        for process in idle:
            process.close()
        for process in busy:
            process.end()  # whoever waits for its answer closes it


#: Of this process, by run; a worker of dask or ray has its own.
_POOLS: dict[str, FittingProcesses] = {}
_POOLS_LOCK = threading.Lock()


def processes_of(run: str, *, threads: int) -> FittingProcesses:
    """Those of a run, begun where there are none."""
    with _POOLS_LOCK:
        return _POOLS.setdefault(run, FittingProcesses(threads))


def stop_processes(run: str) -> None:
    """End those of a run in this process. What joblib still hands out finds them stopped."""
    with _POOLS_LOCK:
        pool = _POOLS.get(run)
    if pool is not None:
        pool.stop()


def _write(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(len(data).to_bytes(LENGTH, "big") + data)
    stream.flush()


def _end_of_message(heard: bytes) -> int:
    """How many bytes the first message has with its length, or that alone as long as it is not known."""
    return LENGTH + int.from_bytes(heard[:LENGTH], "big") if len(heard) >= LENGTH else LENGTH


# ---- in the fitting process -------------------------------------------------------------------------------------------


def _next_job(stream: IO[bytes]) -> Any:
    """The next job; None where there will be none."""
    head = stream.read(LENGTH)
    data = stream.read(_end_of_message(head) - LENGTH) if len(head) == LENGTH else b""
    return pickle.loads(data) if data and len(data) == _end_of_message(head) - LENGTH else None


def main() -> None:
    """Answer jobs until standard input ends."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a person's code prints goes where errors go, and what it reads is empty: both are in use here.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    while (message := _next_job(jobs)) is not None:
        job, seeds = message
        try:
            run = _loaded(job)
        except BaseException as error:  # noqa: BLE001  a module that cannot be imported here is a failed replication
            _write(answers, "loaded")
            _write(answers, {"status": "failed", "reason": f"could not be loaded: {type(error).__name__}: {error}"})
            continue
        _write(answers, "loaded")
        _write(answers, run(**seeds))


def _loaded(job: bytes) -> Any:
    """The replication that a job describes, with a fresh copy of all that it may change."""
    from cfiv.studies.replication import replicate

    return functools.partial(replicate, pickle.loads(job))


def _end_with_parent(parent: int) -> None:
    """A killed study leaves nobody fitting for it, nor what a fit has started."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)
