"""Warnings point at the line of whoever called cfiv, however deep in it they arise."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import cross_val_score
from torch import nn

import cfiv
from cfiv.datasets import dsprites
from cfiv.datasets.dsprites_drawing import LATENTS, render
from cfiv.errors import CfivWarning, warn

FORMULA = "y ~ x + [t ~ z]"


def table(*, holed: bool = True) -> pd.DataFrame:
    """Thirty rows, with a gap in the first."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(30, 3)), columns=["z", "x", "u"])
    frame = frame.assign(t=frame["z"] + frame["u"], y=lambda f: f["t"] + f["u"], g=frame.index % 3)
    return frame.assign(x=frame["x"].mask(frame.index < holed))


def fitted() -> cfiv.LeastSquares:
    return cfiv.LeastSquares(FORMULA).fit(table(holed=False))


def last_layer() -> cfiv.LastLayerTrainer:
    return cfiv.LastLayerTrainer(nn.Linear(2, 2), cfiv.Ridge(0.1))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The second step diverges."""
    x = torch.ones(4, 2)
    return [(x, x), (x, x * torch.nan)]


def pictures(folder: Path) -> Path:
    """The file of a data set, with one wrong pixel."""
    latents = np.column_stack([np.zeros(3, dtype=np.int64)] * len(LATENTS))
    classes = np.column_stack([np.zeros((3, 1)), np.full((3, 1), 2), latents]).astype(np.int64)
    imgs = render(latents, "heart").copy()
    imgs[0, 0, 0] ^= 1
    np.savez(folder / "some.npz", imgs=imgs, latents_classes=classes)
    return folder / "some.npz"


#: Each warns once, and is called on one line.
CALLS: dict[str, Callable[[Path], Any]] = {
    "TwoStageLeastSquares.fit": lambda _: cfiv.TwoStageLeastSquares(FORMULA).fit(table()),
    "of few clusters": lambda _: cfiv.LeastSquares("y ~ [t ~ z]", covariance="clustered", clusters="g").fit(table()),
    "KernelIV.fit": lambda _: cfiv.KernelIV(FORMULA).fit(table()),
    "SieveIV.fit": lambda _: cfiv.SieveIV("y ~ 0 + [t ~ z]").fit(table()),
    "NetworkRegression.fit": lambda _: cfiv.NetworkRegression(FORMULA, steps=1, progress=False).fit(table()),
    "DeepIV.fit": lambda _: cfiv.DeepIV(FORMULA, steps=1, progress=False).fit(table()),
    "AGMM.fit": lambda _: cfiv.AGMM(FORMULA, steps=1, progress=False).fit(table()),
    "DFIV.fit": lambda _: cfiv.DFIV(FORMULA, steps=1, progress=False).fit(table()),
    "of the constant": lambda _: cfiv.DFIV("y ~ 0 + [t ~ z]", steps=1, progress=False).fit(table()),
    "encode": lambda _: cfiv.DFIV(FORMULA).encode(table()),
    "score": lambda _: fitted().score(table()),
    "compare": lambda _: cfiv.compare({"OLS": fitted()}, data=table()),
    "diagnose": lambda _: cfiv.diagnose(table(), FORMULA),
    "LastLayerTrainer.fit": lambda _: last_layer().fit(batches(), steps=2),
    "of pictures": lambda folder: dsprites.load(pictures(folder)),
    "in a search": lambda _: cross_val_score(
        cfiv.LeastSquares(FORMULA, missing="drop"), table(), cv=[(range(30), range(1, 9))]
    ),
}


@pytest.mark.law
@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_line_that_called_cfiv(name: str, tmp_path: Path) -> None:
    with pytest.warns(CfivWarning) as caught:
        CALLS[name](tmp_path)
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, CALLS[name].__code__.co_firstlineno)]


#: Within cfiv a warning may arise below a generator, the standard library or torch, and be asked for from any of them.
INSIDE = """
import functools, torch
from cfiv.errors import CfivWarning, warn

def plain():
    warn("look", CfivWarning)

def one_by_one():
    yield plain()

class Kept:
    value = functools.cached_property(lambda self: plain())

without_gradient = torch.no_grad()(plain)
below = functools.singledispatch(lambda _: without_gradient())
"""


@pytest.fixture(scope="module")
def inside() -> dict[str, Any]:
    """The names of a module of cfiv's that is nowhere in its folder."""
    names: dict[str, Any] = {"__name__": "cfiv.inside"}
    exec(INSIDE, names)
    return names


def pointed_at(call: Callable[[], Any]) -> tuple[str, int]:
    with pytest.warns(CfivWarning, match="look") as caught:
        call()
    return caught[0].filename, caught[0].lineno


def start_of(function: Callable[..., Any]) -> tuple[str, int]:
    return __file__, function.__code__.co_firstlineno


@pytest.mark.law
def test_generators_the_standard_library_and_torch_are_no_users(inside: dict[str, Any]) -> None:
    for call in (
        lambda: inside["plain"](),
        lambda: list(inside["one_by_one"]()),
        lambda: inside["Kept"]().value,
        lambda: inside["below"](0),
    ):
        assert pointed_at(call) == start_of(call)


@pytest.mark.law
def test_a_users_line_in_a_thread_or_a_generator_is_found(inside: dict[str, Any]) -> None:
    called = lambda: inside["plain"]()  # noqa: E731 -- on one line
    one_by_one = lambda: (inside["plain"]() for _ in range(1))  # noqa: E731
    assert pointed_at(lambda: run_in_a_thread(called)) == start_of(called)
    assert pointed_at(lambda: next(one_by_one())) == start_of(one_by_one)


@pytest.mark.law
def test_without_a_users_line_the_outermost_is_named(inside: dict[str, Any]) -> None:
    assert Path(pointed_at(lambda: run_in_a_thread(inside["plain"]))[0]).name == "threading.py"


def run_in_a_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.law
def test_python_shows_a_users_line_once_unless_it_is_asked_for_more() -> None:
    program = """
        from cfiv.errors import CfivWarning, warn
        def user():
            warn("look", CfivWarning)
        user(); user()
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True).stderr
    assert shown.splitlines() == ["<string>:4: CfivWarning: look"]
    always = [sys.executable, "-W", "always", "-c", textwrap.dedent(program)]
    assert subprocess.run(always, check=True, capture_output=True, text=True).stderr.count("look") == 2


@pytest.mark.law
def test_a_warning_that_is_an_error_is_raised() -> None:
    with pytest.raises(CfivWarning, match="look"):
        warn("look", CfivWarning)
