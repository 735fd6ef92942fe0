"""A process that fits for a study, and the handle on it: what hangs is killed, and what dies takes nothing with it.

Jobs and answers are pickles, each with its length before it, over the process's standard input and output. Pickles run code
when they are read, so neither side reads from anyone but the other.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

#: Seconds that a process may take to load what it is to fit: torch is large, and a busy disk slow.
LOADING_LIMIT = 300.0
#: Environment variables that numerical libraries read once, when they are first imported.
THREAD_VARIABLES = ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR", "NUMBA")
LENGTH = 8


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
        # A session of its own: Ctrl-C in the terminal reaches the study, which decides what becomes of its processes.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from cfiv.studies.process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )

    def answer(self, job: bytes, seeds: Mapping[str, int], *, time_limit: float | None) -> dict[str, Any]:
        """The outcome of a job; a failed one, and this process gone, where it took too long or died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write(self._process.stdin, (job, dict(seeds)))
            loaded, late = self._read(LOADING_LIMIT)
            outcome, late = self._read(time_limit) if loaded is not None else (None, late)
        except BrokenPipeError:
            outcome, late = None, False
        if outcome is not None:
            answered: dict[str, Any] = outcome
            return answered
        return self._failure(time_limit, late=late)

    def _failure(self, time_limit: float | None, *, late: bool) -> dict[str, Any]:
        self._process.kill()
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")[-4000:]
        self.kill()
        if late:
            return {"status": "failed", "reason": f"took longer than its time limit of {time_limit:g} s and was stopped"}
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return {"status": "failed", "reason": f"its process died, {how}", "details": said}

    def _read(self, limit: float | None) -> tuple[Any, bool]:
        """The next message and False; None, and whether time was up, where there will be none."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(limit, stop) if limit is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            assert self._process.stdout is not None
            return _read(self._process.stdout), late.is_set()
        except EOFError:
            return None, late.is_set()
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None

    def close(self) -> None:
        """Let it end by itself; it has no job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=5.0)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        self.kill()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:  # what was left to write has nobody to read it
                pass


class FittingProcesses:
    """The fitting processes of this process, kept between jobs, since starting one takes seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, list[FittingProcess]] = {}
        self._busy: set[FittingProcess] = set()

    def answer(self, job: bytes, seeds: Mapping[str, int], *, threads: int, time_limit: float | None) -> dict[str, Any]:
        """The outcome of a job, in an idle process or in a new one."""
        with self._lock:
            idle = self._idle.setdefault(threads, [])
            process = idle.pop() if idle else FittingProcess(threads)
            self._busy.add(process)
        try:
            return process.answer(job, seeds, time_limit=time_limit)
        finally:
            with self._lock:
                self._busy.discard(process)
                if process.alive:
                    self._idle.setdefault(threads, []).append(process)

    def close(self, *, kill: bool = False) -> None:
        """End the idle ones; with ``kill`` the busy ones too, whose jobs then count as died."""
        with self._lock:
            idle = [process for processes in self._idle.values() for process in processes]
            self._idle.clear()
            busy = list(self._busy) if kill else []
        for process in busy:
            process._process.kill()  # whoever waits for its answer tidies up
        for process in idle:
            process.close()


#: Those of this process; a worker of dask or ray has its own.
PROCESSES = FittingProcesses()


def _write(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(len(data).to_bytes(LENGTH, "big") + data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    head = stream.read(LENGTH)
    if len(head) < LENGTH:
        raise EOFError
    length = int.from_bytes(head, "big")
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


# ---- in the fitting process -------------------------------------------------------------------------------------------


def main() -> None:
    """Answer jobs until standard input ends."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a person's code prints goes where errors go, and what it reads is empty: both are in use here.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            job, seeds = _read(jobs)
        except EOFError:
            return
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
    """A killed study leaves nobody fitting for it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
