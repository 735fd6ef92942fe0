"""A study's numbers follow from its seed and coordinates, and from nothing else."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.datasets import demand
from cfiv.errors import ParameterError, StudyError
from cfiv.studies import AverageEffect, Coefficient, Design, Estimate, Fit, Method, Study, error, score
from cfiv.studies.identity import configuration_hash, seed_of
from cfiv.studies.ledger import Ledger
from tests.studies import problems
from tests.studies.test_process import PATIENCE
from tests.test_terminal import STREAMS

pytestmark = pytest.mark.usefixtures("kept")

#: What of a table is measured of the machine.
MEASURED = ["seconds", "cpu_seconds", "memory_mb"]


def study(ledger: Path, **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "designs": {"line": Design(problems.line, n=[10, 30])},
        "methods": {
            "slope": problems.Slope(),
            "jittered": problems.Jittered(),
            "shrunk": Method(problems.Slope(), ridge=[1.0, 5.0]),
        },
        "metrics": {"error": error, "slope": problems.slope},
        "replications": 4,
    }
    return Study("line", ledger=ledger, **{**settings, **changes})


def table(made: Study, jobs: int = 1) -> pd.DataFrame:
    made.run(jobs=jobs, progress=False)
    return made.results().drop(columns=MEASURED)


@pytest.mark.law
@pytest.mark.slow
def test_serial_two_processes_and_dask_give_the_same_bits(tmp_path: Path) -> None:
    designs = {"demand": Design(demand.simulate, n=[200], rho=[0.1, 0.9])}
    methods = {
        "2SLS": cfiv.TwoStageLeastSquares(demand.FORMULA),
        "DFIV": cfiv.DFIV(demand.FORMULA, steps=20, progress=False),
        "jittered": lambda seed: Constant(seed),
    }

    def of(name: str) -> Study:
        return study(tmp_path / f"{name}.sqlite", designs=designs, methods=methods, metrics=None, replications=3)

    serial, parallel = table(of("serial")), table(of("parallel"), jobs=2)
    pd.testing.assert_frame_equal(serial, parallel, check_exact=True)
    assert (serial["status"] == "done").all()
    assert serial["error"].nunique() == len(serial)
    program = DASK.format(
        root=str(Path(__file__).parents[2]), ledger=str(tmp_path / "dask.sqlite"), out=str(tmp_path / "dask.csv")
    )
    script = tmp_path / "on_dask.py"
    script.write_text(program)
    finished = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr
    assert "cfiv/studies" not in finished.stderr  # of a worker; on a busy machine dask may have remarks of its own
    on_dask = pd.read_csv(tmp_path / "dask.csv")
    ours = serial[serial["method"] != "jittered"].reset_index(drop=True)
    assert on_dask["error"].tolist() == ours["error"].tolist()
    assert on_dask["method"].tolist() == ours["method"].tolist()


def test_a_backend_that_gives_its_answers_only_at_the_end_is_refused(tmp_path: Path) -> None:
    made = study(tmp_path / "s.sqlite")
    with (
        joblib.parallel_config(backend="multiprocessing"),
        pytest.raises(StudyError, match="use dask or threading, and ray as"),
    ):
        made.run(progress=False)
    assert made.status()["pending"].sum() == len(made)


@pytest.mark.contract
def test_an_estimator_that_is_changed_after_its_study_was_made_is_not_run_under_the_name_of_what_it_was(tmp_path: Path) -> None:
    changed = problems.Slope()
    made = study(tmp_path / "s.sqlite", methods={"changed": changed, "other": problems.Slope(ridge=1.0)})
    made.run(jobs=1, progress=False)
    before = made.results()
    made.replications += 1
    changed.ridge = 1e6
    with pytest.raises(StudyError, match="the method 'changed' or a metric is not what it was when the study was made: make"):
        made.run(jobs=1, progress=False)
    pd.testing.assert_frame_equal(made.results(), before)
    changed.ridge = 0.0
    assert len(made.run(jobs=1, progress=False).results) == len(made)


@pytest.mark.contract
def test_what_rows_are_found_by_stays_and_settings_are_checked_whenever_they_are_set(tmp_path: Path) -> None:
    made = study(tmp_path / "s.sqlite")
    for name in ("seed", "threads", "designs", "methods", "metrics"):
        with pytest.raises(ParameterError, match=f"{name} of a study stays as it is.*make another Study"):
            setattr(made, name, getattr(made, name))
    with pytest.raises(TypeError):
        made.metrics["other"] = error  # type: ignore[index]
    with pytest.raises(ParameterError, match="replications must be a whole number >= 0, got -3"):
        made.replications = -3
    with pytest.raises(ParameterError, match="time_limit must be finite and > 0, in seconds"):
        made.time_limit = 0.0
    made.replications = 5
    assert len(made) == 5 * len(made.cells)


def test_a_ledger_stays_where_it_was_named_and_integers_of_numpy_are_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = study(Path("here.sqlite"), seed=np.int64(0), threads=np.int64(1), replications=np.int64(1))
    assert set(made.cells) == set(study(tmp_path / "other.sqlite").cells)
    made.run(jobs=1, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert made.status()["done"].sum() == len(made)
    assert made.others() == 0
    made.ledger = "another.sqlite"  # type: ignore[assignment]
    assert made.status()["pending"].sum() == len(made)


def test_a_parameter_may_have_the_name_of_what_is_asked_for_here() -> None:
    assert Design(lambda seed, simulate: None, simulate=[1, 2]).axes == {"simulate": [1, 2]}
    assert Method(lambda seed, estimator: None, estimator=[1, 2]).axes == {"estimator": [1, 2]}


def test_a_range_is_an_axis_as_a_list_is(tmp_path: Path) -> None:
    by_range, by_list = (
        study(tmp_path / "s.sqlite", designs={"line": Design(problems.line, n=n)}) for n in (range(10, 40, 10), [10, 20, 30])
    )
    assert list(by_range.cells) == list(by_list.cells)


class Constant:
    """A method that is a function of its seed, defined where only this process can import it from by value."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, data: Any) -> None:
        self.value = np.random.default_rng(self.seed).normal()

    def predict(self, rows: pd.DataFrame) -> Any:
        return np.full(len(rows), self.value)


DASK = """
import sys
sys.path.insert(0, {root!r})
import joblib
import cfiv
from cfiv.datasets import demand
from cfiv.studies import Design, Study

if __name__ == "__main__":
    from dask.distributed import Client

    with Client(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None):
        with joblib.parallel_config(backend="dask"):
            study = Study(
                "line",
                designs={{"demand": Design(demand.simulate, n=[200], rho=[0.1, 0.9])}},
                methods={{
                    "2SLS": cfiv.TwoStageLeastSquares(demand.FORMULA),
                    "DFIV": cfiv.DFIV(demand.FORMULA, steps=20, progress=False),
                }},
                replications=3,
                ledger={ledger!r},
            )
            study.run(progress=False)
    study.results().to_csv({out!r}, index=False)
"""


@pytest.mark.law
def test_numbers_depend_neither_on_order_nor_on_what_else_is_in_the_study(tmp_path: Path) -> None:
    whole = table(study(tmp_path / "whole.sqlite"))
    alone = table(
        study(
            tmp_path / "alone.sqlite",
            designs={"other": problems.line, "line": Design(problems.line, n=[30])},
            methods={"jittered": problems.Jittered()},
            replications=3,
        )
    )
    of = whole[(whole["method"] == "jittered") & (whole["n"] == 30) & (whole["replication"] < 3)]
    assert alone[alone["design"] == "line"]["slope"].tolist() == of["slope"].tolist()
    assert of["slope"].nunique() == 3


@pytest.mark.contract
@pytest.mark.parametrize("lost", ["none", "closed", "unread", "full"])
def test_a_study_runs_where_its_progress_cannot_be_shown(tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path / "s.sqlite", replications=1)
    monkeypatch.setattr(sys, "stderr", STREAMS[lost]())
    assert (made.run(jobs=1, progress=True).results["status"] == "done").all()


@pytest.mark.law
def test_all_methods_get_the_same_data(tmp_path: Path) -> None:
    results = table(study(tmp_path / "paired.sqlite", methods={"one": problems.Slope(), "two": problems.Slope()}))
    one, two = (results[results["method"] == name]["slope"].tolist() for name in ("one", "two"))
    assert one == two
    assert len(set(one)) == len(one)


@pytest.mark.law
def test_running_again_runs_only_what_is_new(tmp_path: Path) -> None:
    ledger = tmp_path / "again.sqlite"
    first = table(study(ledger))
    before = ledger_rows(ledger)
    assert len(before) == len(first) == 32
    more = study(ledger, replications=6)
    assert more.status()["pending"].sum() == 16
    assert table(more).query("replication < 4").reset_index(drop=True).equals(first)
    changed = {"slope": problems.Slope(), "jittered": problems.Jittered(), "shrunk": Method(problems.Slope(), ridge=[1.0, 6.0])}
    other = study(ledger, methods=changed)
    assert other.status().query("pending > 0")["ridge"].tolist() == [6.0, 6.0]
    table(other)
    assert set(before) <= set(ledger_rows(ledger))  # with the time that each was finished: none was run again
    assert study(ledger).status()["pending"].sum() == 0  # the rows of the configuration before are still there


def ledger_rows(ledger: Path) -> list[Any]:
    connection = sqlite3.connect(ledger)
    rows = connection.execute("SELECT hash, replication, finished FROM replications").fetchall()
    connection.close()
    return rows


def test_results_are_tidy_and_in_the_order_of_the_study(tmp_path: Path) -> None:
    results = table(study(tmp_path / "tidy.sqlite"), jobs=2)
    assert results.columns.tolist() == ["design", "n", "method", "ridge", "replication", "status", "error", "slope", "reason"]
    assert results["n"].tolist() == [10] * 16 + [30] * 16
    assert results["method"].tolist()[:16] == ["slope"] * 4 + ["jittered"] * 4 + ["shrunk"] * 8
    assert results["ridge"].tolist()[8:16] == [1.0] * 4 + [5.0] * 4


def test_time_and_memory_are_those_of_the_fit(tmp_path: Path) -> None:
    made = study(
        tmp_path / "costs.sqlite", methods={"large": lambda seed: Large()}, metrics={"x": lambda fit: 1.0}, replications=2
    )
    made.run(jobs=1, progress=False)
    results = made.results()
    assert (results["seconds"] >= 0.05).all()
    assert (results["cpu_seconds"] < results["seconds"]).all()
    if sys.platform == "linux":
        assert results["memory_mb"].between(60, 400).all()


class Large:
    def fit(self, data: Any) -> None:
        time.sleep(0.05)
        self.size = float(np.ones(10_000_000).sum())  # 80 MB

    def predict(self, rows: Any) -> Any:
        return rows


def test_the_ledger_remembers_versions_and_configuration(tmp_path: Path) -> None:
    made = study(tmp_path / "about.sqlite")
    made.run(jobs=1, progress=False)
    connection = sqlite3.connect(made.ledger)
    (versions,) = connection.execute("SELECT versions FROM environments").fetchone()
    configurations = dict(connection.execute("SELECT hash, configuration FROM configurations"))
    connection.close()
    assert json.loads(versions)["cfiv"] == cfiv.__version__
    assert set(configurations) == set(made.cells)
    assert all(configuration_hash(json.loads(text)) == key for key, text in configurations.items())


def test_results_of_two_versions_of_cfiv_are_not_put_into_one_table_without_a_word(tmp_path: Path) -> None:
    made = study(tmp_path / "mixed.sqlite", replications=1)
    with Ledger.writing(made.ledger) as ledger:
        ledger.describe({}, versions={"cfiv": "0.0.9"})
        key, cell = next(iter(made.cells.items()))
        outcome = {"status": "done", "values": {"error": 0.5, "slope": 2.0}}
        ledger.add(key, 0, outcome, **made.seeds(cell, 0))
    with pytest.warns(cfiv.errors.MixedVersionsWarning):
        table(made)
    with pytest.warns(cfiv.errors.MixedVersionsWarning, match=f"1 of 8 rows.*0.0.9.*7.*{cfiv.__version__}.*another ledger"):
        assert len(made.results()) == 8


@pytest.mark.law
def test_hashes_and_seeds_are_the_same_in_every_process() -> None:
    made = Study("x", designs={"d": Design(demand.simulate, n=[10])}, methods={"m": cfiv.DFIV(demand.FORMULA)})
    program = (
        "import cfiv; from cfiv.datasets import demand; from cfiv.studies import *\n"
        "s = Study('x', designs={'d': Design(demand.simulate, n=[10])}, methods={'m': cfiv.DFIV(demand.FORMULA)})\n"
        "((key, cell),) = s.cells.items(); print(key, s.seeds(cell, 3))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment).stdout
    ((key, cell),) = made.cells.items()
    assert there.strip() == f"{key} {made.seeds(cell, 3)}"


@pytest.mark.law
def test_more_threads_are_another_configuration_and_one_is_as_if_not_said(tmp_path: Path) -> None:
    one, said, two = (study(tmp_path / "t.sqlite", **given) for given in ({}, {"threads": 1}, {"threads": 2}))
    assert set(one.cells) == set(said.cells)
    assert not set(one.cells) & set(two.cells)


@pytest.mark.statistical
def test_seeds_are_spread_over_their_range() -> None:
    seeds = np.array([seed_of("data", 0, ["demand", {"n": 100}], i) for i in range(4000)])
    assert len(set(seeds)) == 4000
    counts = np.histogram(seeds, bins=16, range=(0, 2**32))[0]
    assert abs(counts - 250).max() < 5 * np.sqrt(250)  # five standard deviations of a count


def test_a_truth_may_be_an_object_a_function_or_an_array(tmp_path: Path) -> None:
    def as_array(n: int = 10, *, seed: int) -> Any:
        data, truth = problems.line(n, seed=seed)
        return data, truth(data).to_numpy()

    made = study(
        tmp_path / "truths.sqlite",
        designs={"function": problems.line, "array": as_array},
        methods={"slope": problems.Slope()},
        replications=3,
    )
    assert (table(made)["status"] == "done").all()


def test_metrics_of_effects_and_coefficients(tmp_path: Path) -> None:
    made = Study(
        "effects",
        designs={"demand": Design(demand.simulate, n=300)},
        methods={"2SLS": cfiv.TwoStageLeastSquares(demand.FORMULA)},
        metrics={
            "effect": AverageEffect("price", treatment_from=15.0, treatment_to=20.0),
            "price": Coefficient("price", -1.0),
            "score": score,
            "rows": lambda fit: float(len(fit.another()[0])),
        },
        replications=2,
        ledger=tmp_path / "effects.sqlite",
    )
    made.run(jobs=1, progress=False)
    row = made.results().iloc[0]
    assert row["status"] == "done", row["reason"]
    ((_, cell),) = made.cells.items()
    seeds = made.seeds(cell, 0)
    data, truth = demand.simulate(300, seed=seeds["data_seed"])
    model = cfiv.TwoStageLeastSquares(demand.FORMULA).fit(data)
    assert row["price"] == model.coefficients_.loc["price", "coefficient"]
    assert row["price_lower"] < row["price"] < row["price_upper"]
    assert row["effect"] == pytest.approx(5.0 * row["price"], rel=1e-9)  # a line
    at = [data.frame.assign(price=price) for price in (15.0, 20.0)]
    assert row["effect_truth"] == np.mean(truth(at[1]) - truth(at[0]))
    assert row["rows"] == 300
    assert row["score"] != model.score(data)  # other rows


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {root!r})
from cfiv.studies import Study
from tests.studies import problems

if __name__ == "__main__":
    Study(
        "s",
        designs={{"line": problems.line}},
        methods={{"quick": problems.Slope(), "leaves": problems.Leaves({folder!r})}},
        replications=2,
        ledger={ledger!r},
        threads=2,
    ).run(jobs=2, progress=False)
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_has_finished_and_ends_what_is_running(tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    root = str(Path(__file__).parents[2])
    script.write_text(STOPPED.format(root=root, folder=str(tmp_path), ledger=str(tmp_path / "s.sqlite")))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not (pids := [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    assert (tmp_path / str(pids[0])).read_text() == "2"  # threads
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in said
    assert process.returncode != 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    connection = sqlite3.connect(tmp_path / "s.sqlite")
    rows = dict(connection.execute("SELECT status, count(*) FROM replications GROUP BY status").fetchall())
    connection.close()
    assert rows.keys() <= {"done"}  # what was cut short is no failure: it is run again


@pytest.mark.contract
def test_a_metric_that_does_not_apply_leaves_the_others_and_a_coefficient_does_not_to_what_has_none(tmp_path: Path) -> None:
    methods = {
        "line": cfiv.TwoStageLeastSquares(demand.FORMULA),
        "curve": cfiv.KernelIV(demand.FORMULA, landmarks=10),
    }

    def run(name: str) -> tuple[pd.DataFrame, Any]:
        metrics = {"error": cfiv.studies.error, name: Coefficient(name, truth=2.0)}
        settings: dict[str, Any] = {"methods": methods, "metrics": metrics, "ledger": tmp_path / f"{name}.sqlite"}
        made = Study("s", designs={"demand": Design(demand.simulate, n=100)}, replications=2, **settings)
        report = made.run(jobs=1, progress=False)
        return made.results().set_index("method"), report

    results, report = run("price")
    assert (results["status"] == "done").all()
    assert results["error"].notna().all()
    assert results.loc["curve", "price"].isna().all()
    assert report.table("price").index.tolist() == ["line"]
    results, _ = run("rice")
    assert results.loc["line", "reason"].str.contains("has no coefficient 'rice': it has .*price").all()
    assert (results.loc["curve", "status"] == "done").all()


def test_an_estimate_without_an_interval_has_no_ends(tmp_path: Path) -> None:
    def half(fit: Fit) -> Estimate:
        return Estimate(estimate=fit.model.slope / 2, truth=1.0)

    made = study(tmp_path / "half.sqlite", metrics={"half": half}, replications=5)
    report = made.run(jobs=1, progress=False)
    assert "half_lower" not in made.results()
    assert "coverage" not in report.table("half")
    slopes = made.results().query("method == 'slope' and n == 10")["half"]
    assert report.table("half").loc[(10, "slope", np.nan), "bias"] == pytest.approx(slopes.mean() - 1.0, rel=1e-12)
