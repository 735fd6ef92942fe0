"""A fitting process: whatever a job does, it has one answer, and nobody outlives whom it works for."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cfiv.studies import error
from cfiv.studies.process import FittingProcess, FittingProcesses, packed
from cfiv.studies.replication import Cell
from tests.studies import problems

ROOT = str(Path(__file__).parents[2])
SEEDS = {"data_seed": 1, "fit_seed": 2}


def job(estimator: Any, simulate: Callable[..., Any] = problems.line) -> bytes:
    return packed(Cell(simulate, {}, estimator, {}, {"error": error}), {})


@pytest.fixture(scope="module")
def processes() -> Iterator[FittingProcesses]:
    pool = FittingProcesses(1)
    yield pool
    pool.stop()


def gone(pid: int, within: float) -> bool:
    """Whether a process ends; one that has ended and waits for its parent's attention has ended."""
    deadline = time.monotonic() + within
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
    def answer(estimator: Any, limit: float | None = 60.0) -> dict[str, Any]:
        return processes.answer(job(estimator), SEEDS, time_limit=limit)

    expected = {
        problems.Raises(): "the method raised ZeroDivisionError: no slope today",
        problems.Exits(): "the method raised SystemExit: 3",
        problems.NotANumber(): "a metric raised StudyError: the metric 'error' is nan",
        problems.Unspeakable(): "the method raised ValueError: \\udc80",
        problems.Unloadable(): "could not be loaded: ImportError: not on this machine: \\udc80",
    }
    for estimator, reason in expected.items():
        outcome = answer(estimator)
        assert (outcome["status"], outcome["reason"]) == ("failed", reason)
    assert answer(problems.Prints())["status"] == "done"  # its output and input are not the protocol's
    assert len(processes._idle) == 1  # one process did all that
    for estimator, reason in {
        problems.Dies(): "its process died, by SIGABRT",
        problems.Exiting(): "its process died, with exit code 3",
    }.items():
        outcome = answer(estimator)
        assert (outcome["status"], outcome["reason"]) == ("failed", reason)
    assert "the floor gives way" in answer(problems.Dies())["details"]
    assert answer(problems.Slope())["status"] == "done"


@pytest.mark.contract
def test_what_hangs_is_stopped_at_its_time_limit_with_all_that_it_started(processes: FittingProcesses, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = processes.answer(job(problems.Forks(str(tmp_path), then="hang")), SEEDS, time_limit=0.5)
    assert outcome["reason"] == "took longer than its time limit of 0.5 s and was stopped"
    assert time.monotonic() - started < 60.0
    (child,) = tmp_path.iterdir()
    assert gone(int(child.name), within=5.0)


@pytest.mark.contract
def test_a_death_is_seen_though_a_forked_child_keeps_the_pipe_open(processes: FittingProcesses, tmp_path: Path) -> None:
    outcome = processes.answer(job(problems.Forks(str(tmp_path), then="die")), SEEDS, time_limit=None)
    assert outcome["reason"] == "its process died, by SIGABRT"
    (child,) = tmp_path.iterdir()
    assert gone(int(child.name), within=5.0)


@pytest.mark.contract
def test_a_job_larger_than_a_pipe_does_not_wait_for_a_process_that_never_reads() -> None:
    process = FittingProcess(1)
    os.kill(process._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    outcome = process.answer(bytes(1 << 22), SEEDS, time_limit=None, loading_limit=0.5)
    assert outcome["reason"] == "could not be loaded within 0.5 s and was stopped"
    assert time.monotonic() - started < 5.0
    process.close()


@pytest.mark.contract
def test_a_process_that_has_been_idle_for_long_is_ended(processes: FittingProcesses) -> None:
    assert processes.answer(job(problems.Slope()), SEEDS, time_limit=None)["status"] == "done"
    (process,) = processes._idle
    processes.retire(older_than=3600.0)
    assert process.alive
    processes.retire(older_than=0.0)
    assert not process.alive
    assert processes.answer(job(problems.Slope()), SEEDS, time_limit=None)["status"] == "done"


@pytest.mark.contract
def test_a_process_that_died_of_what_a_fit_left_in_it_gets_no_other_job(processes: FittingProcesses, tmp_path: Path) -> None:
    left = problems.LeavesBehind(str(tmp_path / "end"), str(tmp_path / "ended"))
    assert processes.answer(job(left), SEEDS, time_limit=None)["status"] == "done"
    (process,) = processes._idle
    (tmp_path / "end").touch()
    deadline = time.monotonic() + 10.0
    while process.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    outcome = processes.answer(job(problems.Slope()), SEEDS, time_limit=None)
    assert outcome["status"] == "done", outcome


@pytest.mark.contract
def test_a_process_without_a_job_puts_its_things_away_before_it_ends(tmp_path: Path) -> None:
    pool = FittingProcesses(1)
    pool.answer(job(problems.LeavesBehind(str(tmp_path / "end"), str(tmp_path / "ended"))), SEEDS, time_limit=None)
    pool.stop()
    assert (tmp_path / "ended").exists()


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


@pytest.mark.contract
def test_files_are_closed_when_processes_end() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    pool = FittingProcesses(1)
    pool.answer(job(problems.Dies()), SEEDS, time_limit=None)
    pool.answer(job(problems.Raises()), SEEDS, time_limit=None)
    assert open_files() > before
    pool.stop()
    assert open_files() == before


@pytest.mark.contract
def test_a_study_killed_as_soon_as_it_started_a_process_leaves_nobody_fitting(tmp_path: Path) -> None:
    # The child's first look at its parent comes seconds later, when the parent is gone already.
    program = f"""
        import sys
        sys.path.insert(0, {ROOT!r})
        import os
        from cfiv.studies import error
        from cfiv.studies.process import FittingProcess, _framed, packed
        from cfiv.studies.replication import Cell
        from tests.studies import problems
        job = packed(Cell(problems.line, {{}}, problems.Hangs(), {{}}, {{"error": error}}), {{}})
        process = FittingProcess(1)
        os.write(process._jobs.fileno(), _framed((job, {SEEDS!r})))
        print(process._process.pid, flush=True)
        os.kill(os.getpid(), 9)
        """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, timeout=120, check=False
    ).stdout
    assert gone(int(said), within=30.0)


@pytest.mark.law
def test_what_a_fit_changes_for_its_whole_process_is_undone_before_the_next(processes: FittingProcesses) -> None:
    def numbers(estimator: Any) -> dict[str, Any]:
        outcome = processes.answer(job(estimator), SEEDS, time_limit=60.0)
        assert outcome["status"] == "done", outcome
        return dict(outcome["values"])

    before = numbers(problems.Surroundings())
    numbers(problems.Litters())
    assert numbers(problems.Surroundings()) == before
    assert len(processes._idle) == 1
