"""What goes wrong in a study: a row with its reason where a person's code is at fault, a refusal where the study is."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfiv.errors import CfivError, StudyError
from cfiv.studies import Estimate, Fit, Study, engine
from tests.studies import problems
from tests.studies.test_kill import rows
from tests.studies.test_process import PATIENCE

ROOT = str(Path(__file__).parents[2])


def study(ledger: Path, **changes: Any) -> Study:
    settings: dict[str, Any] = {"designs": {"line": problems.line}, "methods": {"slope": problems.Slope()}, "replications": 2}
    return Study("s", ledger=ledger, **{**settings, **changes})


@pytest.mark.contract
@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_a_failure_is_a_row_with_its_reason_and_the_rest_is_unharmed_and_it_is_run_again_when_asked(tmp_path: Path) -> None:
    reasons = {
        "raises": (problems.Raises(), "the method raised ZeroDivisionError: no slope today"),
        "dies": (problems.Dies(), "its process died, by SIGABRT"),
        "not a number": (problems.NotANumber(), problems.NotANumber.REASON),
        "unspeakable": (problems.Unspeakable(), "the method raised ValueError: \\udc80"),
        "not a model": (lambda seed: 3, "the method raised AttributeError: 'int' object has no attribute 'fit'"),
    }
    methods = {name: method for name, (method, _) in reasons.items()}
    settings: dict[str, Any] = {
        "methods": {"before": problems.Slope(), **methods, "after": problems.Slope()},
        "replications": 1,
    }
    made = study(tmp_path / "s.sqlite", **settings)
    made.run(jobs=1, progress=False)
    results = made.results().set_index("method")
    assert results.loc[["before", "after"], "status"].tolist() == ["done", "done"]
    assert results.loc["before", "error"] == results.loc["after", "error"]
    for name, (_, reason) in reasons.items():
        assert results.loc[name, "status"] == "failed"
        assert results.loc[name, "reason"] == reason
    assert results["error"].notna().sum() == 2
    details = made.failures().set_index("method")["details"]
    assert "no slope today" in details["raises"]
    assert "the floor gives way" in details["dies"]

    before = rows(made.ledger)
    made.run(jobs=1, progress=False)
    assert rows(made.ledger) == before  # a failure is a result
    only = study(tmp_path / "s.sqlite", **{**settings, "methods": {"before": problems.Slope(), "raises": problems.Raises()}})
    only.run(jobs=1, retry_failed=True, progress=False)
    after = rows(made.ledger)
    changed = {key for key in before if before[key] != after[key]}
    assert [only.cells[key].labels["method"] for key, _ in changed] == ["raises"]


@pytest.mark.contract
@pytest.mark.usefixtures("kept")
def test_a_replication_that_takes_too_long_is_a_failure_that_took_its_time_limit(tmp_path: Path) -> None:
    made = study(tmp_path / "s.sqlite", methods={"hangs": problems.Hangs()}, time_limit=0.5, replications=1)
    made.run(jobs=1, progress=False)
    (row,) = made.results().to_dict("records")
    assert (row["status"], row["reason"]) == ("failed", "took longer than its time limit of 0.5 s and was stopped")
    assert row["seconds"] == 0.5  # or the rest of its cell would seem to take no time


EDITED = """
from pathlib import Path
from tests.studies import problems

class Fitted(problems.Slope):
    def fit(self, data):
        Path({other!r}).write_text("# edited\\n" + Path({other!r}).read_text())
        return super().fit(data)
"""


@pytest.mark.contract
@pytest.mark.slow
def test_a_module_that_is_edited_while_its_study_runs_stops_it_before_its_numbers_count_for_the_old_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edits.py").write_text(EDITED.format(other=str(tmp_path / "edited.py")))
    (tmp_path / "edited.py").write_text("from tests.studies import problems\n\nclass Fitted(problems.Slope):\n    pass\n")

    def made() -> Study:
        for name in ("edits", "edited"):
            sys.modules.pop(name, None)
        methods = {name: importlib.import_module(name).Fitted() for name in ("edits", "edited")}
        return study(tmp_path / "s.sqlite", methods=methods, replications=1)

    with pytest.raises(StudyError, match="the module 'edited' is not what it was when the study was made: run the study again"):
        made().run(jobs=1, progress=False)
    again = made()
    assert again.results()["method"].tolist() == ["edits"]  # what had finished, and nothing of the other
    again.run(jobs=1, progress=False)
    assert again.results()["status"].tolist() == ["done", "done"]


@pytest.mark.contract
@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("design", "said"),
    [
        (lambda seed: 3, "design 'd': a design must return (data, truth), got int"),
        (
            lambda seed: (problems.line(5, seed=seed)[0], np.zeros(4)),
            "shape (5,), got shape (4,): return an array of that shape",
        ),
        (lambda seed: (problems.line(5, seed=seed)[0], np.zeros((5, 1))), "shape (5,), got shape (5, 1): return an array"),
        (lambda seed: (problems.line(5, seed=seed)[0], lambda rows: 3.0), "shape (5,), got shape (): return an array"),
        (
            lambda seed: (problems.line(5, seed=seed)[0], "sin"),
            "the truth must be an array, got str: give an array or a list of its values in order",
        ),
        (
            lambda seed: (problems.line(5, seed=seed)[0], [1.0, np.nan, 3.0, np.inf, 5.0]),
            "the truth must be finite, got 2 values that are infinite or missing (the first is missing in row 1)",
        ),
        (
            lambda seed: (frame := problems.line(5, seed=seed)[0], frame["x"][::-1]),
            "the truth and the data have the same row labels in another order",
        ),
        (
            lambda seed: (problems.line(5, seed=seed)[0], np.ma.masked_less(np.arange(5.0), 1)),
            "the truth must have no masked values, got 1",
        ),
        (lambda seed: ({"x": np.zeros(5)}, np.zeros(5)), "needs data with rows, a table or an array, got dict: return a truth"),
        (
            lambda seed: (None, np.zeros(5)),
            "needs data with rows, a table or an array, got NoneType: return a truth with error",
        ),
    ],
    ids=["no pair", "short", "a column", "a number", "text", "not finite", "other labels", "masked", "a dict", "no data"],
)
def test_a_design_that_is_none_stops_its_study_and_says_what_it_should_return(tmp_path: Path, design: Any, said: str) -> None:
    made = study(tmp_path / "s.sqlite", designs={"d": design}, replications=50)
    with pytest.raises(StudyError) as refused:
        made.run(jobs=1, progress=False)
    assert said in str(refused.value)
    assert made.status()["pending"].sum() == 50  # once it is mended all are still to do


class Broken:
    """Processes that find a design broken."""

    def answer(self, job: bytes, seeds: Any, *, time_limit: float | None) -> dict[str, Any]:
        return {"status": "failed", "reason": "a design must return (data, truth), got int", "broken": True}


@pytest.mark.contract
def test_a_study_that_stops_early_does_so_without_joblibs_warning_of_answers_that_nobody_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "processes_of", lambda run, *, threads: Broken())
    before = set(threading.enumerate())
    with pytest.raises(StudyError, match=r"design 'line': a design must return \(data, truth\), got int"):
        study(tmp_path / "s.sqlite", replications=50).run(jobs=2, progress=False)
    assert not threads_left(before)


@pytest.mark.contract
@pytest.mark.usefixtures("kept")
def test_a_design_that_raises_and_metrics_that_are_none_are_rows(tmp_path: Path) -> None:
    def raises(seed: int) -> Any:
        raise OSError("no disk")

    metrics = {
        "text": lambda fit: "0.5",
        "infinite": lambda fit: np.inf,
        "nothing": lambda fit: None,
        "half": lambda fit: Estimate(estimate=1.0, truth=1.0, lower=np.nan, upper=2.0),
    }
    found = {}
    for name, metric in metrics.items():
        made = study(tmp_path / f"{name}.sqlite", metrics={name: metric}, replications=1)
        made.run(jobs=1, progress=False)
        found[name] = made.results()["reason"].iloc[0].removeprefix("a metric raised StudyError: ")
    assert found == {
        "text": "a metric must be a number or an Estimate, got str for 'text'",
        "infinite": "the metric 'infinite' is inf",
        "nothing": "a metric must be a number or an Estimate, got NoneType for 'nothing'",
        "half": "the metric 'half_lower' is nan",
    }
    made = study(tmp_path / "raises.sqlite", designs={"d": raises})
    made.run(jobs=1, progress=False)
    assert made.results()["reason"].tolist() == ["the design raised OSError: no disk"] * 2


def test_what_cannot_be_sent_to_another_process_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    lock = threading.Lock()

    def holds(fit: Fit) -> float:
        return float(lock.locked())

    with pytest.raises(CfivError, match=r"one cannot be pickled .*: give a function that makes it"):
        study(tmp_path / "s.sqlite", metrics={"holds": holds}).run(jobs=1, progress=False)
    assert not (tmp_path / "s.sqlite").exists()


def threads_left(before: set[threading.Thread]) -> list[str]:
    """Names of those that were begun since, but for tqdm's own, and do not end however long one waits."""
    begun = [thread for thread in set(threading.enumerate()) - before if thread.name != "tqdm_monitor"]
    for thread in begun:
        thread.join(PATIENCE)
    return [thread.name for thread in begun if thread.is_alive()]


def children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_after_ctrl_c_in_a_notebook_nothing_is_left_and_the_study_goes_on(tmp_path: Path, jobs: int) -> None:
    before, running = children(), set(threading.enumerate())
    folder = tmp_path / "pids"
    folder.mkdir()
    made = study(
        tmp_path / "s.sqlite", methods={"slope": problems.Slope(), "leaves": problems.Leaves(str(folder))}, replications=3
    )

    def interrupt() -> None:
        while not list(folder.iterdir()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        made.run(jobs=jobs, progress=False)
    assert not children() - before
    assert not threads_left(running)
    assert made.status()["failed"].sum() == 0
    whole = study(tmp_path / "s.sqlite", methods={"slope": problems.Slope()}, replications=3)
    whole.run(jobs=jobs, progress=False)
    assert (whole.results()["status"] == "done").all()
    assert not children() - before


NOTEBOOK = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from cfiv.studies import Design, Method, Study

SCALE = 2.0

def draw(n, *, seed):
    x = np.random.default_rng(seed).normal(size=n)
    return x, SCALE * x

class Fixed:
    def __init__(self, value):
        self.value = value
    def fit(self, data):
        self.n = len(data)
    def predict(self, data):
        return self.value * data

study = Study(
    "s",
    designs={{"d": Design(draw, n=[5, 50])}},
    methods={{"m": Method(lambda seed, value: Fixed(value), value=[1.0, 2.0])}},
    metrics={{"error": lambda fit: fit.truth.error(fit.model), "rows": lambda fit: fit.model.n}},
    replications=2,
    ledger={ledger!r},
)
print(study.status()["pending"].sum())
study.run(jobs=1, progress=False)
print(study.results()[["status", "error", "rows"]].astype(str).agg(" ".join, axis=1).tolist())
"""


@pytest.mark.law
@pytest.mark.slow
def test_what_is_defined_in_a_notebook_is_sent_by_value_and_is_the_same_configuration_next_time(tmp_path: Path) -> None:
    program = NOTEBOOK.format(root=ROOT, ledger=str(tmp_path / "s.sqlite"))

    def said() -> list[str]:
        # From standard input there is no file to read a source from either.
        done = subprocess.run([sys.executable, "-W", "error", "-"], input=program, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    first, second = said(), said()
    assert (first[0], second[0]) == ("8", "0")
    assert first[1] == second[1]
    assert first[1].count("done") == 8
    assert first[1].count("'done 0.0 ") == 4
