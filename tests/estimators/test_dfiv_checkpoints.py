"""A fit of DFIV that is killed goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cfiv
from cfiv.datasets import demand
from cfiv.learning.run_file import RunFile

FORMULA = "sales ~ time + emotion + [price ~ fuel]"
STEPS = 24
QUIET = {"progress": False, "device": "cpu", "random_state": 3, "steps": STEPS}


def drawing(width: int) -> nn.Module:
    """A network that draws, and whose normalisation has a state."""
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4))


def columns() -> Any:
    return demand.simulate(240, seed=0)[0].frame


def images() -> cfiv.IVData:
    generator = np.random.default_rng(0)
    z = generator.standard_normal((200, 2))
    pictures = (generator.random((200, 8, 8)) * 60 + 60 * (z[:, :1, None] > 0)).astype(np.uint8)
    return cfiv.IVData(outcome=pictures.mean(axis=(1, 2)) / 100 + z[:, 1], treatment=pictures, instruments=z)


#: Those that train side by side, in one pass; of the others each has a pass and a file of its own.
SIDE_BY_SIDE = ("default", "current")
#: Names of models and data, all small.
CASES: dict[str, tuple[Callable[[], cfiv.DFIV], Callable[[], Any]]] = {
    "default": (lambda: cfiv.DFIV(FORMULA, batch_size=32, **QUIET), columns),
    "original, full batches": (lambda: cfiv.DFIV.original(FORMULA, **QUIET), columns),
    "current": (lambda: cfiv.DFIV(FORMULA, batch_size=32, report="current", **QUIET), columns),
    "dropout": (
        lambda: cfiv.DFIV(FORMULA, batch_size=32, treatment_network=drawing, instrument_network=drawing, fits=2, **QUIET),
        columns,
    ),
    "images": (lambda: cfiv.DFIV(batch_size=32, **QUIET), images),
}


class KilledError(BaseException):
    """Stands for a kill: nothing in the library handles it."""


def killed_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Kill whoever writes a run for the ``writes``-th time, right after."""
    write, done = RunFile.write, [0]

    def counted(self: RunFile, values: Any) -> None:
        write(self, values)
        done[0] += 1
        if done[0] == writes:
            raise KilledError

    monkeypatch.setattr(RunFile, "write", counted)


def same(first: cfiv.DFIV, second: cfiv.DFIV, data: Any) -> None:
    """In every bit that a user can see, and in the networks."""
    assert first.history_.equals(second.history_)
    for one, other in zip(first.fits_, second.fits_, strict=True):
        assert torch.equal(one.structural, other.structural)
        assert torch.equal(one.first_stage, other.first_stage)
        for module, again in zip(one.networks.modules(), other.networks.modules(), strict=True):
            for name, value in module.state_dict().items():
                assert torch.equal(value, again.state_dict()[name])
    assert first.score(data) == second.score(data)


@pytest.mark.law
@pytest.mark.parametrize("case", CASES)
def test_saving_changes_no_number_and_a_finished_fit_is_there_at_once(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, data = CASES[case][0], CASES[case][1]()
    undisturbed = make().fit(data)
    same(undisturbed, make().fit(data, checkpoint=tmp_path, every=5), data)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr("cfiv.objectives.dfiv_fit.step", never)
    same(undisturbed, make().fit(data, checkpoint=tmp_path, every=5), data)


@pytest.mark.law
@pytest.mark.parametrize("case", [name if name == "default" else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_a_fit_that_is_killed_anywhere_goes_on_bit_for_bit(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = CASES[case][0], CASES[case][1]()
    undisturbed = make().fit(data)
    passes = 1 if case in SIDE_BY_SIDE else len(undisturbed.fits_)
    # A write a step: before any check, between two checks, at the end of the first pass, within the second one.
    for place, writes in enumerate((1, 7, STEPS, STEPS + 6)):
        if writes > STEPS * passes:
            continue
        folder = tmp_path / str(place)
        with monkeypatch.context() as patch:
            killed_after(patch, writes)
            with pytest.raises(KilledError):
                make().fit(data, checkpoint=folder, every=1)
        same(undisturbed, make().fit(data, checkpoint=folder, every=4), data)


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.estimators.test_dfiv_checkpoints import CASES, RunFile
write, done = RunFile.write, []

def counted(self, values):
    write(self, values)
    done.append(self.path.name)
    if len(done) == {writes}:
        os.kill(os.getpid(), signal.SIGKILL)

RunFile.write = counted
make, data = CASES["{case}"]
make().fit(data(), checkpoint=sys.argv[1], every=5)
"""


@pytest.mark.law
@pytest.mark.slow
@pytest.mark.parametrize(("case", "writes", "files"), [("default", 3, ["fits-1"]), ("images", 7, ["fits-1", "fits-2"])])
def test_kill_9_changes_no_bit(case: str, writes: int, files: list[str], tmp_path: Path) -> None:
    program = textwrap.dedent(PROGRAM).format(root=str(Path(__file__).parents[2]), case=case, writes=writes)
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL
    assert sorted(path.stem for path in tmp_path.iterdir()) == files
    make, data = CASES[case][0], CASES[case][1]()
    same(make().fit(data), make().fit(data, checkpoint=tmp_path), data)


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"lambda2": 7.0}, 240, r"lambda2 was '2.0', is '7.0'"),
        ({"batch_size": 40}, 240, r"batch_size was '32', is '40'"),
        ({"random_state": 4}, 240, r"random_state was '3', is '4'"),
        ({"treatment_network": drawing}, 240, r"networks was .*treatment_network was"),
        ({}, 239, r"data was"),
    ],
    ids=["penalty", "batch size", "seed", "network", "data"],
)
def test_fits_of_another_configuration_or_other_data_are_refused(
    options: dict[str, Any], rows: int, message: str, tmp_path: Path
) -> None:
    data = columns()
    cfiv.DFIV(FORMULA, **{**QUIET, "batch_size": 32}).fit(data, checkpoint=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(cfiv.errors.ModelFileError, match=message):
        cfiv.DFIV(FORMULA, **{**QUIET, "batch_size": 32, **options}).fit(data.iloc[:rows], checkpoint=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_changed_value_in_the_data_is_noticed(tmp_path: Path) -> None:
    data = columns()
    model = cfiv.DFIV(FORMULA, **QUIET).fit(data, checkpoint=tmp_path)
    data.loc[5, "price"] += 1e-3
    with pytest.raises(cfiv.errors.ModelFileError, match="data was"):
        model.fit(data, checkpoint=tmp_path)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "ten"])
def test_every_must_be_a_number_of_steps(every: Any, tmp_path: Path) -> None:
    with pytest.raises(cfiv.ParameterError, match="every must be a whole number >= 1"):
        cfiv.DFIV(FORMULA, **QUIET).fit(columns(), checkpoint=tmp_path, every=every)


@pytest.mark.parametrize("seed", [None, np.random.default_rng(0)])
def test_a_seed_that_cannot_be_drawn_from_again_is_refused(seed: Any, tmp_path: Path) -> None:
    with pytest.raises(cfiv.ParameterError, match="needs a random_state"):
        cfiv.DFIV(FORMULA, **{**QUIET, "random_state": seed}).fit(columns(), checkpoint=tmp_path)


def test_a_place_that_takes_no_folder_and_a_file_that_is_no_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    with pytest.raises(cfiv.errors.OutputError, match="cannot be written"):
        cfiv.DFIV(FORMULA, **QUIET).fit(columns(), checkpoint=tmp_path / "file")
    (tmp_path / "fits-1.safetensors").write_text("no run")
    with pytest.raises(cfiv.errors.ModelFileError, match="not a whole checkpoint"):
        cfiv.DFIV(FORMULA, **QUIET).fit(columns(), checkpoint=tmp_path)


def test_names_in_another_container_are_the_same_configuration(tmp_path: Path) -> None:
    def fitted(instruments: Any) -> Any:
        model = cfiv.DFIV(outcome="sales", treatment="price", instruments=instruments, **{**QUIET, "steps": 3})
        return model.fit(columns(), checkpoint=tmp_path).predict(columns())

    expected = fitted(["fuel", "time"])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for container in (pd.Index, np.array, pd.Series):
        np.testing.assert_array_equal(fitted(container(["fuel", "time"])), expected)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files  # nothing was fitted again
    with pytest.raises(cfiv.errors.ModelFileError, match="instruments was"):
        fitted(pd.Index(["time", "fuel"]))
