"""Examples in docstrings print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import cfiv
import cfiv.datasets

pytestmark = pytest.mark.contract

PACKAGES = {"cfiv": cfiv, "cfiv.datasets": cfiv.datasets}


def _with_examples() -> list[str]:
    """Names of modules."""
    names = []
    for name, package in PACKAGES.items():
        root = Path(str(package.__file__)).parent
        found = (path for path in sorted(root.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8"))
        names += [".".join([name, *path.relative_to(root).with_suffix("").parts]) for path in found]
    return names


@pytest.mark.parametrize("module", _with_examples())
def test_examples_print_what_their_docstring_says(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    assert doctest.testmod(import_module(module)).failed == 0
