"""A process that fits for a study, and the handle on it: what hangs is killed, and what dies takes nothing with it.

Jobs and answers are pickles, each with its length before it, over the process's standard input and output. Pickles run code
when they are read, so neither side reads from anyone but the other.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import cloudpickle

from cfiv.errors import StudyError
from cfiv.studies.identity import file_digest

#: Seconds that a process may take to load what it is to fit: torch is large, and a busy disk slow.
LOADING_LIMIT = 300.0
#: Environment variables that numerical libraries read once, when they are first imported.
THREAD_VARIABLES = ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR", "NUMBA")
LENGTH = 8
#: Seconds between looks at whether a process that says nothing is still there.
LOOK_EVERY = 1.0
#: Bytes of what a process said before it died that are kept.
MOST_SAID = 4000
#: Seconds that a process without a job has to put its own things away at its end.
FAREWELL = 2.0
#: Seconds after which a process that has nothing to do is ended. A study ends its own at its end, but not those in the workers
#: of dask or ray.
IDLE_LIMIT = 120.0


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
            # -P: the current folder is not where modules come from, unless it is so for the study.
            [sys.executable, "-P", "-c", f"from cfiv.studies.process import main; main({os.getpid()})"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._jobs.fileno(), False)
        self._heard = b""
        self._code: int | None = None

    def answer(
        self, job: bytes, seeds: Mapping[str, int], *, time_limit: float | None, loading_limit: float = LOADING_LIMIT
    ) -> dict[str, Any]:
        """The outcome of a job; a failed one, and this process gone, where it took too long or died."""
        self._said.seek(0)
        self._said.truncate()
        reason, seconds = f"could not be loaded within {loading_limit:g} s and was stopped", None
        try:
            loaded_by = time.monotonic() + loading_limit
            self._send((job, dict(seeds)), loaded_by)
            self._receive(loaded_by)
            reason, seconds = f"took longer than its time limit of {time_limit} s and was stopped", time_limit
            outcome: dict[str, Any] = self._receive(None if time_limit is None else time.monotonic() + time_limit)
            return outcome
        except TimeoutError:
            self.end()
            return {"status": "failed", "reason": reason, "seconds": seconds}
        except (EOFError, BrokenPipeError):
            return {"status": "failed", "reason": f"its process died, {_ended(self.end())}", "details": self._last_words()}

    def _send(self, message: Any, deadline: float | None) -> None:
        data = memoryview(_framed(message))
        while data:
            self._wait(self._jobs, selectors.EVENT_WRITE, deadline)
            data = data[os.write(self._jobs.fileno(), data[: 1 << 16]) :]

    def _receive(self, deadline: float | None) -> Any:
        while len(self._heard) < (end := _end_of_message(self._heard)):
            self._wait(self._answers, selectors.EVENT_READ, deadline)
            chunk = os.read(self._answers.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            self._heard += chunk
        message, self._heard = self._heard[LENGTH:end], self._heard[end:]
        return pickle.loads(message)

    def _wait(self, stream: IO[bytes], event: int, deadline: float | None) -> None:
        """Until a stream is ready.

        Raises
        ------
        TimeoutError
            If it is not by then, on the monotonic clock.
        EOFError
            If it will never be. The pipe's end alone does not tell: a process that the fit has forked may keep it open.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(stream, event)
            while True:
                left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
                dead = not self.alive  # asked first: what it said before it died is still read
                if selector.select(max(0.0, left)):
                    return
                if dead:
                    raise EOFError
                if left <= 0.0:
                    raise TimeoutError

    def _last_words(self) -> str:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - MOST_SAID))
        return self._said.read().decode(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None

    def end(self) -> int:
        """End it and all that it has started now, and give its exit code; whoever waits for its answer has a failed one."""
        if self._code is None:  # its number may be another's by now
            code = self._process.poll()
            with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                os.killpg(self._process.pid, signal.SIGKILL)
            self._code = self._process.wait() if code is None else code
        return self._code

    def dismiss(self) -> None:
        """Let it know that there will be no job any more, so that it ends by itself."""
        self._jobs.close()

    def close(self, *, farewell: float = 0.0) -> None:
        """End it, at the latest after so many seconds, and close what led to it; nobody waits for its answer."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(farewell)
        self.end()
        for stream in (self._jobs, self._answers, self._said):
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
        self._idle: dict[FittingProcess, float] = {}  # and since when
        self._busy: set[FittingProcess] = set()
        self._retiring = False
        self._stopped = threading.Event()

    def answer(self, job: bytes, seeds: Mapping[str, int], *, time_limit: float | None) -> dict[str, Any]:
        """The outcome of a job, in an idle process or in a new one; at once a failure nobody reads after :meth:`stop`."""
        with self._lock:
            if self._stopped.is_set():
                return {"status": "failed", "reason": "the study was stopped"}
            process, dead = self._taken()
            self._busy.add(process)
        _end_all(dead)
        answered = False
        try:
            outcome = process.answer(job, seeds, time_limit=time_limit)
            answered = True
            return outcome
        finally:
            with self._lock:
                self._busy.discard(process)
                kept = answered and process.alive and not self._stopped.is_set()
                if kept:
                    self._idle[process] = time.monotonic()
                    if not self._retiring:
                        self._retiring = True
                        threading.Thread(target=self._retire_while_any, daemon=True).start()
            if not kept:
                process.close()

    def _taken(self) -> tuple[FittingProcess, list[FittingProcess]]:
        """An idle process or a new one, and those that have died meanwhile: a fit may have left something that ended it."""
        dead: list[FittingProcess] = []
        while self._idle:
            process = self._idle.popitem()[0]
            if process.alive:
                return process, dead
            dead.append(process)
        return FittingProcess(self._threads), dead

    def retire(self, *, older_than: float) -> None:
        """End those that have been idle for more seconds."""
        now = time.monotonic()
        with self._lock:
            retired = [process for process, since in self._idle.items() if now - since > older_than]
            for process in retired:
                del self._idle[process]
        _end_all(retired)

    def _retire_while_any(self) -> None:
        """Look from time to time for those that have nothing to do, as long as there may be some."""
        while not self._stopped.wait(IDLE_LIMIT / 4):
            self.retire(older_than=IDLE_LIMIT)
            with self._lock:
                self._retiring = bool(self._idle or self._busy)
                if not self._retiring:
                    return

    def stop(self) -> None:
        """End all of them now, whatever they are doing, and start no other."""
        with self._lock:
            self._stopped.set()
            idle, busy = list(self._idle), list(self._busy)
            self._idle.clear()
        for process in busy:
            process.end()  # whoever waits for its answer closes it
        _end_all(idle)


def _end_all(processes: Sequence[FittingProcess]) -> None:
    """End processes that have nothing to do; each may put away what libraries have made for it, such as shared memory."""
    for process in processes:
        process.dismiss()
    until = time.monotonic() + FAREWELL
    for process in processes:
        process.close(farewell=max(0.0, until - time.monotonic()))


#: Of this process, by run; a worker of dask or ray has its own.
_POOLS: dict[str, FittingProcesses] = {}
_POOLS_LOCK = threading.Lock()


def processes_of(run: str, *, threads: int) -> FittingProcesses:
    """Those of a run, begun where there are none."""
    with _POOLS_LOCK:
        if run not in _POOLS:
            _POOLS[run] = FittingProcesses(threads)
        return _POOLS[run]


def stop_processes(run: str) -> None:
    """End those of a run in this process. What joblib still hands out finds them stopped."""
    with _POOLS_LOCK:
        pool = _POOLS.get(run)
    if pool is not None:
        pool.stop()


def pack(cell: Any, sources: Mapping[str, str]) -> bytes:
    """A job: a :class:`Cell`, and the digests that files of modules must have where it is unpacked."""
    return pickle.dumps((dict(sources), cloudpickle.dumps(cell)), protocol=pickle.HIGHEST_PROTOCOL)


def _framed(message: Any) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH, "big") + data


def _ended(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _end_of_message(heard: bytes) -> int:
    """How many bytes the first message has with its length, or that alone as long as it is not known."""
    return LENGTH + int.from_bytes(heard[:LENGTH], "big") if len(heard) >= LENGTH else LENGTH


# ---- in the fitting process -------------------------------------------------------------------------------------------


def _next_job(stream: IO[bytes]) -> Any:
    """The next job; None where there will be none."""
    head = stream.read(LENGTH)
    data = stream.read(_end_of_message(head) - LENGTH) if len(head) == LENGTH else b""
    return pickle.loads(data) if data and len(data) == _end_of_message(head) - LENGTH else None


def main(parent: int | None = None) -> None:
    """Answer jobs until standard input ends, or the parent: it is named, as it may be killed before this process looks up."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a person's code prints goes where errors go, and what it reads is empty: both are in use here.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(parent or os.getppid(),), daemon=True).start()
    from cfiv.studies.replication import Surroundings, replicate, storable

    surroundings = Surroundings.now()
    verified: set[str] = set()
    while (message := _next_job(jobs)) is not None:
        job, seeds = message
        surroundings.restore()
        try:
            cell = _unpacked(job, verified)
        except StudyError as error:
            _tell(answers, "loaded", {"status": "failed", "reason": str(error), "stale": True})
            continue
        except BaseException as error:  # noqa: BLE001  a module that cannot be imported here is a failed replication
            reason = storable(f"could not be loaded: {type(error).__name__}: {error}")
            outcome = {"status": "failed", "reason": reason, "details": storable(traceback.format_exc())}
            _tell(answers, "loaded", outcome)
            continue
        surroundings = Surroundings.now()  # with what a module sets for all when it is imported
        _tell(answers, "loaded")
        _tell(answers, replicate(cell, **seeds))


def _unpacked(job: bytes, verified: set[str]) -> Any:
    """The cell in a job, whose modules are those that the study saw; once loaded, they stay so in this process.

    Raises
    ------
    StudyError
        If a module's file is another: its numbers would be taken for those of the code that the study saw.
    """
    sources, pickled = pickle.loads(job)
    for module, digest in sources.items():
        if module not in verified and file_digest(module) not in (None, digest):  # a module that is not there fails below
            raise StudyError(
                f"the module {module!r} is not what it was when the study was made: run the study again, in a new program; "
                "what has finished is kept, and counts where the code is the same"
            )
    verified.update(sources)
    return pickle.loads(pickled)


def _tell(stream: IO[bytes], *messages: Any) -> None:
    for message in messages:
        stream.write(_framed(message))
    stream.flush()


def _end_with_parent(parent: int) -> None:
    """A killed study leaves nobody fitting for it, nor what a fit has started."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)
