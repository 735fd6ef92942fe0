"""Who a replication is: what tells configurations apart, and what does not."""

import functools
import importlib
import subprocess
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import stats
from sklearn.base import BaseEstimator
from torch import nn

import cfiv
from cfiv.errors import StudyError
from cfiv.studies.identity import configuration_hash, description
from tests.studies import problems


def test_descriptions_tell_apart_what_gives_other_numbers() -> None:
    def of(offset: int) -> Any:
        return lambda seed: seed + offset

    assert description(of(1)) == description(of(1))
    assert description(of(1)) != description(of(2))
    assert description(cfiv.DFIV(steps=5)) != description(cfiv.DFIV(steps=6))
    assert description(cfiv.DFIV(progress=False, random_state=3)) == description(cfiv.DFIV(progress=True))
    assert description(np.arange(3)) != description(np.arange(3.0))
    assert description(cfiv.Training(rest=0.1)) != description(cfiv.Training(rest=0.2))
    assert description(problems.Slope) != description(problems.Slow)
    assert description({"a", "b", "c"}) == description({"c", "b", "a"})


def test_descriptions_tell_apart_defaults_tensors_slots_indices_and_base_classes() -> None:
    functions = [lambda seed, k=k: seed + k for k in (1, 2)]  # one source
    keywords = [functools.partial(f, k=k) for f in functions for k in (1, 2)]
    for kind in (
        functions,
        keywords[:2],
        [torch.arange(3.0), torch.arange(3.0) + 1e-7],
        [Slotted(1), Slotted(2)],
        [pd.DataFrame({"x": [1, 2]}, index=index) for index in ([0, 1], [1, 0])],
        [type("One", (problems.Slope,), {}), type("One", (problems.Slow,), {})],
    ):
        one, two = kind
        assert description(one) == description(one)
        assert description(one) != description(two), kind


class Slotted:
    """Without ``__dict__``, and printed alike whatever it holds."""

    __slots__ = ("held",)

    def __init__(self, held: int) -> None:
        self.held = held

    def __repr__(self) -> str:
        return "slotted"


def written(folder: Path, source: str) -> types.ModuleType:
    """A module of that source, imported as any other."""
    (folder / "written.py").write_text(source)
    sys.modules.pop("written", None)
    importlib.invalidate_caches()
    return importlib.import_module("written")


@pytest.mark.law
@pytest.mark.parametrize(
    "source",
    [
        "made = lambda seed: dict() \\\n    .setdefault('a', {})\n",
        "made = {{\n    'a': lambda fit: fit\n    + {},\n}}['a']\n",
        "import functools\n\n@functools.cache\ndef made(seed):\n    return {}\n",
    ],
    ids=["a line that goes on", "a lambda over two lines", "behind a cache"],
)
def test_all_of_a_functions_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    one, again, two = (
        description(written(tmp_path, text).made)
        for text in (source.format(1), f"# more\n{source.format(1)}", source.format(2))
    )
    assert one == again
    assert one != two


def test_two_lambdas_on_one_line_are_two() -> None:
    one, two = (lambda x: x, lambda x: x**2)
    assert description(one) != description(two)


IN_A_NOTEBOOK = """
from cfiv.studies.identity import configuration_hash, description
source = '''
class Fitted:
    rate = {rate}
    @staticmethod
    def fit(data): return {fit}
    @property
    def seen(self): return {seen}
'''
def of(**changed):
    names = {"__name__": "__main__"}
    exec(source.format(**{"rate": 1, "fit": 2, "seen": 3, **changed}), names)
    return configuration_hash(description(names["Fitted"]))
print(of(), of(rate=4), of(fit=4), of(seen=4))
"""


@pytest.mark.law
def test_of_a_class_without_a_file_all_of_its_body_counts() -> None:
    first, second = (
        subprocess.run([sys.executable, "-c", IN_A_NOTEBOOK], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda i: pl.DataFrame({"x": np.where(np.arange(100) == 50, i, 0)}),
        lambda i: np.random.default_rng(i),
        lambda i: stats.norm(0, i + 1),
        lambda i: Fraction(1, i + 2),
        lambda i: deque([i]),
        lambda i: pd.Index([i]),
        lambda i: pd.Series([1], index=[i]),
        lambda i: bytes([i]),
        lambda i: Path(f"folder{i}"),
        lambda i: range(i, 5),
        lambda i: torch.device("cpu", i),
        lambda i: torch.zeros(2, dtype=[torch.bfloat16, torch.float16][i]),
        lambda i: torch.tensor([i, 0.0]).to_sparse(),
        lambda i: torch.tensor([1j * (i + 1)]).conj(),
        lambda i: [np, functools][i],
        lambda i: _linked([i, 2]),
        lambda i: Fitter(Fitter(random_state=i)),
        lambda i: _deep(i),
    ],
)
def test_whatever_a_study_is_made_of_is_told_apart_by_what_is_in_it(make: Callable[[int], Any]) -> None:
    assert description(make(0)) == description(make(0))
    assert description(make(0)) != description(make(1))


class Fitter(BaseEstimator):
    def __init__(self, inner: Any = None, random_state: int = 0) -> None:
        self.inner, self.random_state = inner, random_state


def _linked(values: list[int]) -> Any:
    """Objects that lead back to the first."""
    nodes = [types.SimpleNamespace(value=value) for value in values]
    for one, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        one.next = other
    return nodes[0]


def _deep(value: int) -> Any:
    nested: Any = value
    for _ in range(40):
        nested = types.SimpleNamespace(inside=[nested])
    return nested


class Cached:
    def __init__(self, value: int) -> None:
        self.value = value

    @functools.cached_property
    def square(self) -> int:
        return self.value**2


@pytest.mark.law
@pytest.mark.parametrize(
    ("made", "use"),
    [
        (Path("folder"), lambda path: (str(path), path.exists(), path.suffix)),
        (Cached(3), lambda cached: cached.square),
        (stats.norm(0, 2), lambda noise: (noise.pdf(0.5), noise.rvs(2))),
        (pd.DataFrame({"a": [1]}), lambda table: table["a"]),
    ],
    ids=["a path", "a cached property", "a distribution", "a table"],
)
def test_to_have_looked_at_something_does_not_make_it_another(made: Any, use: Callable[[Any], Any]) -> None:
    before = description(made)
    use(made)
    assert description(made) == before


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))


def network(width: int = 8, slope: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.Sequential(Block(width), nn.LeakyReLU(slope)), nn.Linear(4, 3))


@pytest.mark.law
def test_networks_that_are_drawn_anew_are_their_layers_and_others_their_weights_too() -> None:
    def given(treatment_network: nn.Module) -> Any:
        return description(cfiv.DFIV(treatment_network=treatment_network))

    assert given(network()) == given(network())  # which differ in weights that no fit will see
    assert given(network()) != given(network(width=9))
    assert given(network()) != given(network(slope=0.2))
    frozen = [network().requires_grad_(False) for _ in range(2)]  # as of a pretrained encoder
    assert given(frozen[0]) == given(frozen[0])
    assert given(frozen[0]) != given(frozen[1])
    held = [types.SimpleNamespace(network=network()) for _ in range(2)]  # nobody draws these anew
    assert description(held[0]) == description(held[0])
    assert description(held[0]) != description(held[1])


def test_what_a_function_has_imported_is_its_name() -> None:
    import math

    assert description(lambda: math.pi)["closure"] == [{"module": "math"}]


def test_what_cannot_be_taken_apart_is_refused_with_a_remedy() -> None:
    with pytest.raises(StudyError, match=r"one cannot be pickled \(.*lock.*\): give a function that makes it"):
        description(types.SimpleNamespace(lock=threading.Lock()))


def test_what_is_nested_too_deeply_is_refused_with_a_remedy() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(StudyError, match="nested too deeply: give a function that makes it"):
        description(nested)


def test_a_hash_is_32_digits_and_changes_with_what_is_hashed() -> None:
    hashes = {configuration_hash({"a": value}) for value in (0, 1, None, "0", [0])}
    assert len(hashes) == 5
    assert {len(value) for value in hashes} == {32}
