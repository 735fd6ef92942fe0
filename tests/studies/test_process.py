"""A fitting process: whatever a job does, it has one answer, and nobody outlives whom it works for."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cfiv.studies import error, process
from cfiv.studies.process import FittingProcess, FittingProcesses, pack
from cfiv.studies.replication import Cell
from tests.studies import problems

ROOT = str(Path(__file__).parents[2])
#: Seconds after which what should have happened is taken not to happen, on a machine however busy.
PATIENCE = 300.0
SEEDS = {"data_seed": 1, "fit_seed": 2}


def job(estimator: Any, simulate: Callable[..., Any] = problems.line) -> bytes:
    return pack(Cell(simulate, {}, estimator, {}, {"error": error}), {})


@pytest.fixture(scope="module")
def processes() -> Iterator[FittingProcesses]:
    pool = FittingProcesses(1)
    yield pool
    pool.stop()


def gone(pid: int) -> bool:
    """Whether a process ends; one that has ended and waits for its parent's attention has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.contract
def test_each_way_to_fail_is_one_answer_with_its_reason_and_the_next_job_is_done(processes: FittingProcesses) -> None:
    def answer(estimator: Any) -> dict[str, Any]:
        return processes.answer(job(estimator), SEEDS, time_limit=None)

    expected = {
        problems.Raises(): "the method raised ZeroDivisionError: no slope today",
        problems.Exits(): "the method raised SystemExit: 3",
        problems.NotANumber(): problems.NotANumber.REASON,
        problems.Unspeakable(): "the method raised ValueError: \\udc80",
        problems.Unloadable(): "could not be loaded: ImportError: not on this machine: \\udc80",
    }
    for estimator, reason in expected.items():
        outcome = answer(estimator)
        assert (outcome["status"], outcome["reason"]) == ("failed", reason)
    assert answer(problems.Prints())["status"] == "done"  # its output and input are not the protocol's
    assert len(processes._idle) == 1  # one process did all that
    died, exited = answer(problems.Dies()), answer(problems.Exiting())
    assert (died["status"], died["reason"]) == ("failed", "its process died, by SIGABRT")
    assert "the floor gives way" in died["details"]
    assert (exited["status"], exited["reason"]) == ("failed", "its process died, with exit code 3")
    assert answer(problems.Slope())["status"] == "done"


@pytest.mark.contract
def test_what_hangs_is_stopped_at_its_time_limit_with_all_that_it_started(processes: FittingProcesses, tmp_path: Path) -> None:
    outcome = processes.answer(job(problems.Forks(str(tmp_path), then="hang")), SEEDS, time_limit=0.5)
    assert outcome["reason"] == "took longer than its time limit of 0.5 s and was stopped"
    (child,) = tmp_path.iterdir()
    assert gone(int(child.name))


@pytest.mark.contract
def test_a_death_is_seen_though_a_forked_child_keeps_the_pipe_open(processes: FittingProcesses, tmp_path: Path) -> None:
    outcome = processes.answer(job(problems.Forks(str(tmp_path), then="die")), SEEDS, time_limit=None)
    assert outcome["reason"] == "its process died, by SIGABRT"
    (child,) = tmp_path.iterdir()
    assert gone(int(child.name))


@pytest.mark.contract
def test_a_job_larger_than_a_pipe_does_not_wait_for_a_process_that_never_reads() -> None:
    stopped = FittingProcess(1)
    os.kill(stopped._process.pid, signal.SIGSTOP)
    outcome = stopped.answer(bytes(1 << 22), SEEDS, time_limit=None, loading_limit=0.5)
    assert outcome["reason"] == "could not be loaded within 0.5 s and was stopped"
    stopped.close()


@pytest.mark.contract
def test_a_process_that_has_been_idle_for_long_is_ended(processes: FittingProcesses) -> None:
    assert processes.answer(job(problems.Slope()), SEEDS, time_limit=None)["status"] == "done"
    (idle,) = processes._idle
    processes.retire(older_than=3600.0)
    assert idle.alive
    processes.retire(older_than=0.0)
    assert not idle.alive
    assert processes.answer(job(problems.Slope()), SEEDS, time_limit=None)["status"] == "done"


@pytest.mark.contract
def test_a_process_that_died_of_what_a_fit_left_in_it_gets_no_other_job(processes: FittingProcesses, tmp_path: Path) -> None:
    left = problems.LeavesBehind(str(tmp_path / "end"), str(tmp_path / "ended"))
    assert processes.answer(job(left), SEEDS, time_limit=None)["status"] == "done"
    (idle,) = processes._idle
    (tmp_path / "end").touch()
    deadline = time.monotonic() + PATIENCE
    while idle.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    outcome = processes.answer(job(problems.Slope()), SEEDS, time_limit=None)
    assert outcome["status"] == "done", outcome


@pytest.mark.contract
def test_modules_do_not_come_from_the_current_folder_unless_the_studys_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not the one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    pool = FittingProcesses(1)
    assert pool.answer(job(problems.Slope()), SEEDS, time_limit=None)["status"] == "done"
    pool.stop()


def pipes_here() -> set[tuple[int, int]]:
    """Pipes of which this process has an end open, each as its device and its number, which both of its ends share."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the folder itself is closed by now
            about = os.stat(f"/proc/self/fd/{descriptor}")
            found |= {(about.st_dev, about.st_ino)} if stat.S_ISFIFO(about.st_mode) else set()
    return found


@pytest.mark.contract
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_when_processes_end_they_have_put_their_things_away_and_files_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FAREWELL", PATIENCE)  # on a busy machine it takes a while
    started: list[FittingProcess] = []
    pipes: set[tuple[int, int]] = set()

    def start(threads: int) -> FittingProcess:
        started.append(FittingProcess(threads))
        for stream in (started[-1]._jobs, started[-1]._answers):
            about = os.fstat(stream.fileno())
            pipes.add((about.st_dev, about.st_ino))
        return started[-1]

    monkeypatch.setattr(process, "FittingProcess", start)
    pool = FittingProcesses(1)
    pool.answer(job(problems.Dies()), SEEDS, time_limit=None)
    pool.answer(job(problems.LeavesBehind(str(tmp_path / "end"), str(tmp_path / "ended"))), SEEDS, time_limit=None)
    assert len(started) == 2
    assert len(pipes) == 4
    assert len(pipes & pipes_here()) == 2  # of the one that is idle
    pool.stop()
    assert (tmp_path / "ended").exists()
    assert not pipes & pipes_here()
    assert all(one._said.closed for one in started)


@pytest.mark.contract
def test_a_study_killed_as_soon_as_it_started_a_process_leaves_nobody_fitting(tmp_path: Path) -> None:
    # The child's first look at its parent comes seconds later, when the parent is gone already.
    program = f"""
        import sys
        sys.path.insert(0, {ROOT!r})
        import os
        from cfiv.studies import error
        from cfiv.studies.process import FittingProcess, _framed, pack
        from cfiv.studies.replication import Cell
        from tests.studies import problems
        job = pack(Cell(problems.line, {{}}, problems.Hangs(), {{}}, {{"error": error}}), {{}})
        process = FittingProcess(1)
        os.write(process._jobs.fileno(), _framed((job, {SEEDS!r})))
        print(process._process.pid, flush=True)
        os.kill(os.getpid(), 9)
        """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
    ).stdout
    assert gone(int(said))


@pytest.mark.law
def test_what_a_fit_changes_for_its_whole_process_is_undone_before_the_next(processes: FittingProcesses) -> None:
    def numbers(estimator: Any) -> dict[str, Any]:
        outcome = processes.answer(job(estimator), SEEDS, time_limit=None)
        assert outcome["status"] == "done", outcome
        return dict(outcome["values"])

    before = numbers(problems.Surroundings())
    numbers(problems.Litters())
    assert numbers(problems.Surroundings()) == before
    assert len(processes._idle) == 1
