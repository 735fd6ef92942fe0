"""``cfiv study``: what it writes runs, what it is asked it says, and what it refuses it says on one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cfiv.studies.ledger import Ledger
from cfiv.studies.study_file import read_study, shipped
from tests.command_line import Answer, Run, runner

ROOT = str(Path(__file__).parents[1])
#: A design and methods of a person's own, beside the study's file.
OWN = """
import time
import numpy as np
import pandas as pd

def line(n, *, seed):
    x = np.random.default_rng(seed).normal(size=n)
    return pd.DataFrame({"x": x, "y": 2 * x}), 2 * x

class Slope:
    def fit(self, data):
        self.slope = float(data["x"] @ data["y"] / (data["x"] @ data["x"]))

    def predict(self, rows):
        return (self.slope + 1e-3) * rows["x"]

class Raises(Slope):
    def fit(self, data):
        raise ValueError("not\\ntoday")

class Waits(Slope):
    def fit(self, data):
        open("waiting", "w").close()
        time.sleep(60)
"""
FILE = """
replications = 2
[designs.line]
design = "own:line"
n = [10, 20]
[methods.slope]
estimator = "own:Slope"
[methods.raises]
estimator = "own:Raises"
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run ``cfiv study`` in this process, in a folder with a study ``own.toml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("own", None)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.toml").write_text(FILE)
    yield runner(capsys, "study")
    sys.modules.pop("own", None)


def filled(name: str = "own.toml") -> None:
    """The rows of a study without a fit."""
    study = read_study(name)
    with Ledger.writing(study.ledger) as ledger:
        ledger.describe({key: study.configuration(cell) for key, cell in study.cells.items()}, versions={})
        for key, cell in study.cells.items():
            for replication in range(study.replications):
                if cell.labels["method"] == "raises":
                    outcome = {"status": "failed", "reason": "the method raised ValueError: not\ntoday"}
                else:
                    outcome = {"status": "done", "values": {"error": 0.1 / cell.labels["n"]}, "seconds": 0.5}
                ledger.add(key, replication, outcome, **study.seeds(cell, replication))


def assert_refused(answer: Answer, *words: str) -> None:
    """Exit code 2 and one line that holds the words; a run has said before what it is about to do."""
    assert answer.code == 2, answer
    *before, last = answer.err.splitlines(keepends=True)
    assert last.startswith("cfiv: error: "), answer
    assert last.endswith("\n"), answer
    assert before in ([], ["own: 8 replications of 4 cells, ledger own.sqlite\n"]), answer
    for word in words:
        assert word in last, answer


def test_the_commands_are_named_where_nothing_is_asked(run: Run) -> None:
    answer = run()
    assert answer.code == 0
    for name in ("init", "run", "status", "report", "export"):
        assert f"\n  {name} " in answer.out


@pytest.mark.usefixtures("replications_here")
def test_the_file_that_init_writes_runs_and_is_reported_and_exported(run: Run, tmp_path: Path) -> None:
    answer = run("init", "mine")
    assert (answer.code, answer.out, answer.err) == (0, "Written: mine.toml. Edit it, then: cfiv study run mine.toml\n", "")
    text = Path("mine.toml").read_text()
    assert "cfiv study run mine.toml " in text
    assert "THIS_FILE" not in text
    small = text.replace("n = [500, 1000]", "n = [60, 120]").replace("replications = 5", "replications = 1")
    small = small.replace('estimator = "dfiv"\n', 'estimator = "dfiv"\nsteps = 2\n').replace("rho = [0.1, 0.9]", "rho = 0.5")
    Path("mine.toml").write_text(small)
    answer = run("run", "mine.toml", "--jobs", 1)
    assert answer.code == 0, answer
    assert answer.err == "mine: 6 replications of 6 cells, ledger mine.sqlite\n"
    assert "6 replications of 6 cells\n" in answer.out
    assert "failed" not in answer.out
    answer = run("status", "mine")
    assert answer.out.startswith("mine: 6 done, 0 failed, 0 pending\n")
    answer = run("report", "mine.toml", "--out", "there")
    assert {path.name for path in Path("there").iterdir()} >= {
        "report.html",
        "report.md",
        "report.tex",
        "results.csv",
        "error_by_method.png",
    }
    assert run("export", "mine.toml", "--out", "r.parquet").out == "Written: r.parquet (6 rows)\n"
    assert (pd.read_parquet("r.parquet")["status"] == "done").all()
    again = run("run", "mine.toml", "--quiet")  # there is nothing to do
    assert (again.code, again.out) == (0, "")


@pytest.mark.usefixtures("replications_here")
def test_failures_are_said_by_method_and_run_again_when_asked(run: Run) -> None:
    answer = run("run", "own.toml", "--jobs", 1)
    assert answer.code == 0
    assert "8 replications of 4 cells, 4 failed" in answer.out
    assert (
        "\n4 failed (with --tracebacks, `cfiv study status` shows where):\n"
        "  4 x raises: the method raised ValueError: not today\n" in answer.out
    )
    assert "The ledger also has" not in answer.err
    said = run("status", "own.toml", "--tracebacks").out
    assert said.count("\n      Traceback (most recent call last):\n") == 1
    assert "own.py" in said.split("4 failed:\n")[1]
    own = Path("own.py")
    own.write_text(own.read_text().replace('raise ValueError("not\\ntoday")', "super().fit(data)"))
    sys.modules.pop("own")
    # Its source changed, so that it is another method, whose rows are missing.
    answer = run("status", "own.toml")
    assert "4 done, 0 failed, 4 pending" in answer.out
    assert answer.err.startswith("The ledger also has 4 rows of other configurations, ")


def test_status_report_and_export_are_those_of_the_ledger(run: Run) -> None:
    assert "own: 0 done, 0 failed, 8 pending" in run("status", "own.toml").out
    filled()
    answer = run("status", "own.toml")
    assert answer.out.startswith("own: 4 done, 4 failed, 0 pending\n\ndesign   n  method  done  failed  pending\n")
    assert "  4 x raises: the method raised ValueError: not today\n" in answer.out
    answer = run("report", "own.toml")
    assert answer.code == 0
    assert f"Written: {Path('own-report', 'report.html')}\n" in answer.out
    expected = read_study("own.toml").results()
    for name in ("r.csv", "r.parquet"):
        assert run("export", "own.toml", "--out", name).out == f"Written: {name} (8 rows)\n"
    from_csv = pd.read_csv("r.csv")
    assert from_csv["error"].dropna().tolist() == expected["error"].dropna().tolist()
    np.testing.assert_array_equal(pd.read_parquet("r.parquet")["error"], expected["error"])
    assert pd.read_parquet("r.parquet").columns.tolist() == expected.columns.tolist()


@pytest.mark.contract
def test_refusals_are_one_line_and_leave_what_was_there(run: Run, tmp_path: Path) -> None:
    Path("there.toml").write_text("mine")
    assert_refused(run("init", "there"), "'there.toml' is there already: choose another name, or move it away")
    assert Path("there.toml").read_text() == "mine"
    for name in ("", "größe", "nowhere/.toml"):
        assert_refused(
            run("init", name), "name must be letters from A to Z, digits, spaces and any of _.- after a letter or a digit"
        )
    assert_refused(run("init", "nowhere/mine"), "cannot be written", "choose a folder that exists")
    assert_refused(run("init", "mine", "--like", "demnd"), "no study 'demnd' ships with cfiv: did you mean 'demand'?")
    assert not Path("mine.toml").exists()
    assert_refused(run("run", "owm.toml"), "there is no file 'owm.toml'")
    for command in ("run", "status", "report"):
        assert_refused(run(command, "there.toml"), "'there.toml' is not TOML")
    assert_refused(run("report", "own.toml"), "the study 'own' has no results yet: run it first")
    assert not Path("own-report").exists()
    assert_refused(run("export", "own.toml", "--out", "r.csv"), "has no results yet: cfiv study run own.toml")
    assert_refused(run("export", "own.toml", "--out", "r.txt"), "tables are .csv or .parquet files, got 'r.txt'")
    assert_refused(run("run", "own.toml", "--jobs", 0), "--jobs", "0")
    assert_refused(run("export", "own.toml"), "--out")
    Path("own.sqlite").write_text("no ledger" * 100)
    for arguments in (("run", "own.toml"), ("status", "own.toml"), ("export", "own.toml", "--out", "r.csv")):
        assert_refused(run(*arguments), "the ledger 'own.sqlite' is damaged or no SQLite file", "move it away")
    assert Path("own.sqlite").read_text() == "no ledger" * 100


def test_a_second_run_of_one_study_is_refused(run: Run) -> None:
    filled()
    with Ledger.writing(Path("own.sqlite")):
        assert_refused(run("run", "own.toml"), "another process is writing the ledger 'own.sqlite': wait for it")
        assert run("status", "own.toml").code == 0


@pytest.mark.parametrize("name", shipped())
def test_a_study_that_ships_can_be_begun_from(run: Run, name: str) -> None:
    assert run("init", "mine", "--like", name).code == 0
    assert len(read_study("mine.toml")) == len(read_study(name)) > 0
    assert read_study("mine.toml").name == "mine"


def test_what_init_says_to_run_can_be_pasted(run: Run) -> None:
    answer = run("init", "my study")
    assert answer.out.endswith("then: cfiv study run 'my study.toml'\n")
    assert "cfiv study run 'my study.toml' " in Path("my study.toml").read_text()


@pytest.mark.slow
def test_ctrl_c_says_what_is_safe_and_any_number_after_it_change_nothing(run: Run, tmp_path: Path) -> None:
    Path("own.toml").write_text(FILE.replace("own:Raises", "own:Waits").replace("slope", "first"))
    process = subprocess.Popen(
        [sys.executable, "-m", "cfiv.cli", "study", "run", "own.toml", "--jobs", "1"],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300.0
    # The first replication is there, and the second will not end.
    while not Path("waiting").exists() or read_study("own.toml").status()["done"].sum() < 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while process.poll() is None:  # to its last moment
        assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
    out, err = process.communicate()
    assert process.returncode == 130, (out, err)
    assert out == ""
    said = err.splitlines()
    assert said[0] == "own: 8 replications of 4 cells, ledger own.sqlite"
    assert said[1:] == ["cfiv: 1 of 8 are safe in own.sqlite: run it again to go on", "", "cfiv: interrupted"]
    assert read_study("own.toml").status()["failed"].sum() == 0
    done = read_study("own.toml").status()["done"].sum()
    assert done == 1
    with Ledger.writing(Path("own.sqlite")):  # nobody holds it any more
        pass
