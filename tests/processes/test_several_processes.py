"""Several processes that share the rows of every batch come to the numbers of one, and end together."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cfiv
from cfiv.errors import ProcessError
from cfiv.runtime.processes import ALONE, Processes, here
from tests.processes import worker

#: Sums over rows in another order, over a few steps of float64 (measured: 1e-13 of the trainer, 2e-9 of DFIV, which magnifies).
TRAINER, ESTIMATOR = 1e-10, 1e-6
#: The same in float32, over 200 steps of a trainer, or a few of an estimator.
SINGLE = 1e-5


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest distance of two tensors of a name, as a share of the size of the first."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


def shared(task: str, folder: Path) -> list[Any]:
    """What two processes have left."""
    for process in worker.run(task, folder):
        assert process.returncode == 0, process.stderr
    return [worker.left(task, folder, place) for place in range(2)]


@pytest.mark.law
def test_trainers_of_two_processes_have_the_weights_of_one(tmp_path: Path) -> None:
    alone = worker.fit_trainers(tmp_path)
    first, second = shared("fit_trainers", tmp_path)
    assert {name for name in alone if not apart(alone[name], first[name]) <= TRAINER} == set()
    assert {name for name in alone if apart(first[name], second[name]) != 0} == set()


@pytest.mark.law
@pytest.mark.filterwarnings("ignore::cfiv.errors.CfivWarning")
def test_estimators_of_two_processes_have_the_curve_of_one(tmp_path: Path) -> None:
    alone = worker.fit_estimators(tmp_path)
    first, second = shared("fit_estimators", tmp_path)
    bounds = {name: SINGLE if "single" in name else ESTIMATOR for name in alone}
    assert {name for name in alone if not apart(alone[name], first[name]) <= bounds[name]} == set()
    assert {name for name in alone if apart(first[name], second[name]) != 0} == set()


@pytest.mark.contract
def test_what_cannot_be_shared_is_refused_in_all_processes_alike(tmp_path: Path) -> None:
    first, second = shared("refusals", tmp_path)
    assert first == second
    assert {name: text.split(":")[0] for name, text in first.items()} == dict.fromkeys(first, "ParameterError")
    expected = {
        "batch normalisation": "GroupNorm",
        "dropout": "dropout",
        "other data": "the same data",
        "no seed": "a whole number as random_state",
        "other weights": "seed torch before a module is made",
        "other rows in an estimator": "the same data",
        "another step of a checkpoint": "the steps that a checkpoint has behind it",
    }
    assert first.keys() == expected.keys()
    assert all(words in first[name] for name, words in expected.items())


@pytest.mark.law
@pytest.mark.slow
def test_two_hundred_steps_in_single_precision_stay_together(tmp_path: Path) -> None:
    alone = worker.two_hundred_steps(tmp_path)
    first, _ = shared("two_hundred_steps", tmp_path)
    assert {name: apart(alone[name], first[name]) for name in alone} == pytest.approx(dict.fromkeys(alone, 0.0), abs=SINGLE)


@pytest.mark.law
@pytest.mark.slow
@pytest.mark.parametrize(("task", "file"), [("long_trainer", "trainer.safetensors"), ("long_dfiv", "dfiv")])
@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_process_ends_the_run_of_both_and_it_goes_on_with_the_same_numbers(
    tmp_path: Path, task: str, file: str, dying: int
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    (killed / "die").write_text(f"{dying} 6")
    ended = worker.run(task, killed)
    assert ended[dying].returncode == -signal.SIGKILL
    assert ended[1 - dying].returncode == 1
    assert "ProcessError: another process of this run has ended" in ended[1 - dying].stderr
    assert (killed / file).exists()
    (killed / "die").unlink()
    (killed / "place").unlink(missing_ok=True)
    one, two = shared(task, killed)[0], shared(task, undisturbed)[0]
    assert apart(one, two) == 0


@pytest.mark.contract
@pytest.mark.slow
def test_torchrun_runs_a_script_that_one_process_runs_as_well(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import cfiv, torch\n"
        "torch.manual_seed(0)\n"
        "module, x = torch.nn.Linear(2, 1), torch.arange(20.0).reshape(10, 2)\n"
        "with cfiv.several_processes() as here:\n"
        "    trainer = cfiv.LastLayerTrainer(module, cfiv.Ridge(0.1)).fit((x, x.sum(dim=1) + 1), steps=2)\n"
        "if here.first:\n"
        "    print(here.count, *(round(float(value), 4) for value in trainer.module.weight[0]))\n"
    )

    def printed(*launcher: str) -> str:
        ran = subprocess.run(
            [sys.executable, *launcher, str(script)], capture_output=True, text=True, cwd=worker.ROOT, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    alone = printed()
    together = printed("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert (alone.split()[0], together.split()[0]) == ("1", "2")
    assert alone.split()[1:] == together.split()[1:]


@pytest.mark.contract
def test_alone_a_block_changes_nothing() -> None:
    with cfiv.several_processes() as processes:
        assert processes is ALONE is here()
    rows = torch.arange(6.0).reshape(3, 2)
    assert processes.first
    assert torch.equal(processes.own(rows), rows)
    assert processes.gather(rows, rows=3) is rows
    assert processes.sum([rows, None])[0] is rows
    assert processes.first_says(True)
    assert not processes.first_says(False)


@pytest.mark.law
@pytest.mark.parametrize("rows", [2, 3, 7, 128])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_part_the_rows_evenly_and_in_order(rows: int, count: int) -> None:
    everything = torch.arange(rows)
    shares = [Processes(count=count, place=place).sharing(rows).own(everything) for place in range(count)]
    if rows < count:  # too few to share: each has all
        assert all(torch.equal(share, everything) for share in shares)
    else:
        assert torch.equal(torch.cat(shares), everything)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.contract
def test_a_process_that_is_gone_is_an_error_of_cfiv() -> None:
    assert issubclass(ProcessError, cfiv.CfivError)
    assert issubclass(ProcessError, RuntimeError)
