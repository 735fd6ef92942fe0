"""Where memory does not suffice, that is said, with what needs less."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cfiv
from cfiv.datasets import demand
from cfiv.memory import is_of_memory, within_memory

ROOT = str(Path(__file__).parents[1])


def too_much() -> Iterator[Exception]:
    """What libraries raise where there is no such memory, by asking each for some."""
    for ask in (
        lambda: np.empty(2**60),
        lambda: np.empty(2**62),
        lambda: np.empty((2**40, 2**40)),
        lambda: torch.empty(2**58),
        lambda: torch.empty(2**62),
        lambda: torch.empty(2**40, 2**40),
        lambda: bytearray(2**62),
    ):
        try:
            ask()
        except Exception as error:  # noqa: BLE001  of whatever type
            yield error
    yield MemoryError()
    yield RuntimeError("std::bad_alloc")
    yield torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    yield OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.contract
@pytest.mark.parametrize("error", list(too_much()), ids=lambda error: f"{type(error).__name__}: {str(error)[:40]}")
def test_whatever_a_library_says_of_memory_is_told_with_a_remedy(error: Exception) -> None:
    says = r"^The work needs more memory than there is \(.*\): rest$"
    with pytest.raises(cfiv.errors.TooLargeError, match=says), within_memory("The work", "rest"):
        raise error


@pytest.mark.contract
@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("mat1 and mat2"), OSError(2, "no file"), KeyError("memory")])
def test_other_errors_are_not_taken_for_such(error: Exception) -> None:
    assert not is_of_memory(error)
    with pytest.raises(type(error)), within_memory("the work", "rest"):
        raise error


@pytest.mark.contract
def test_what_was_told_is_not_told_again() -> None:
    with pytest.raises(cfiv.errors.TooLargeError, match=r"^once$"), within_memory("the work", "rest"):
        raise cfiv.errors.TooLargeError("once")


REMEDIES = {
    cfiv.KernelIV: "landmarks=1000",
    cfiv.SieveIV: "fewer segments",
    cfiv.DFIV: "smaller batch_size",
    cfiv.NetworkRegression: "smaller batch_size",
    cfiv.DeepIV: "smaller batch_size",
    cfiv.AGMM: "smaller batch_size",
    cfiv.TwoStageLeastSquares: "fewer rows",
    cfiv.LIML: "fewer rows",
    cfiv.LeastSquares: "fewer rows",
}


@pytest.mark.contract
@pytest.mark.parametrize("make", REMEDIES)
def test_an_estimator_that_gets_no_memory_says_what_needs_less(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, truth = demand.simulate(60, seed=0)
    options: dict[str, Any] = {"steps": 2, "progress": False} if "steps" in make(demand.FORMULA).get_params() else {}
    model = make(demand.FORMULA, **options).fit(data)

    def without(*_: object, **__: object) -> Any:
        return torch.empty(2**58)

    with monkeypatch.context() as changed:
        changed.setattr(make, "_estimate", without)
        with pytest.raises(cfiv.errors.TooLargeError, match=rf"^{make.__name__}\.fit needs more memory.*{REMEDIES[make]}"):
            make(demand.FORMULA, **options).fit(data)
    for way in ("evaluate", "cross"):
        monkeypatch.setattr(type(model.structural_function_.components[0]), way, without)
    for ask in (model.predict, lambda rows: model.dose_response([20.0], rows)):
        with pytest.raises(
            cfiv.errors.TooLargeError, match=r"structural function needs more memory .*: give fewer rows at a time"
        ):
            ask(truth.grid)


@pytest.mark.contract
def test_a_trainer_that_gets_no_memory_says_what_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.ones(20, 1)
    trainer = cfiv.LastLayerTrainer(
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), cfiv.Proximal(1.0), batch_size=5
    )
    trainer.fit((x, y), steps=1)
    for name in ("run.step", "trained_module.predict", "trained_module.evaluate", "trained_module.refit"):
        monkeypatch.setattr(f"cfiv.supervised.{name}", lambda *_, **__: torch.empty(2**58))
    asked = {
        "fit": lambda: trainer.fit((x, y), steps=1),
        "predict": lambda: trainer.predict(x),
        "evaluate": lambda: trainer.evaluate((x, y)),
        "refit": lambda: trainer.refit((x, y)),
    }
    for name, ask in asked.items():
        with pytest.raises(
            cfiv.errors.TooLargeError, match=rf"^LastLayerTrainer\.{name} needs more memory .*smaller batch_size"
        ):
            ask()


LIMITED = """
import resource, sys, warnings
sys.path.insert(0, {root!r})
import numpy as np, pandas as pd
import cfiv
from cfiv.memory import available_memory
warnings.simplefilter("ignore")
r = np.random.default_rng(0)
d = pd.DataFrame(r.normal(size=(20_000, 4)), columns=list("zxty"))
model = cfiv.KernelIV("y ~ x + [t ~ z]", landmarks=50, random_state=0).fit(d[:200])
rows = d.loc[d.index.repeat(600), ["x", "t"]]
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for limit, work in (
    (2**20, lambda: cfiv.KernelIV("y ~ x + [t ~ z]", landmarks=None, bandwidths="median").fit(d)),
    (2**24, lambda: cfiv.KernelIV("y ~ x + [t ~ z]", landmarks=None, bandwidths="median").fit(d)),
    (2**27, lambda: cfiv.KernelIV("y ~ x + [t ~ z]", landmarks=None, bandwidths="median").fit(d)),
    (2**24, lambda: model.predict(rows)),
):
    resource.setrlimit(resource.RLIMIT_AS, (size + limit, resource.RLIM_INFINITY))
    try:
        work()
    except cfiv.errors.TooLargeError as error:
        print("told", "landmarks" in str(error))
    assert available_memory() <= 2**28
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.contract
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_within_a_limit_of_memory_kernels_are_refused_in_words() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(root=ROOT)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.splitlines() == ["told True", "told True", "told True", "told False"], done.stderr
