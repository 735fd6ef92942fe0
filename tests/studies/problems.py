"""A small design, and methods that do as told; importable by the processes that fit."""

import os
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from cfiv.studies import Fit


def line(n: int = 20, slope: float = 2.0, *, seed: int) -> tuple[pd.DataFrame, Any]:
    """``y = slope x + noise``; the truth is a function of rows."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return pd.DataFrame({"x": x, "y": slope * x + generator.normal(size=n)}), lambda rows: slope * rows["x"]


class Slope:
    """Least squares through the origin, shrunk; takes part in scikit-learn's protocol as far as studies need it."""

    def __init__(self, ridge: float = 0.0, random_state: int | None = None) -> None:
        self.ridge, self.random_state = ridge, random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"ridge": self.ridge, "random_state": self.random_state}

    def set_params(self, **parameters: Any) -> Self:
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def fit(self, data: pd.DataFrame) -> Self:
        self.slope = float(data["x"] @ data["y"] / (data["x"] @ data["x"] + self.ridge))
        return self

    def predict(self, rows: pd.DataFrame) -> Any:
        return self.slope * rows["x"]


class Jittered(Slope):
    """Draws from its own generator and from the global ones."""

    def fit(self, data: pd.DataFrame) -> Self:
        import torch

        super().fit(data)
        own = np.random.default_rng(self.random_state).normal()
        self.slope += own + np.random.normal() + float(torch.randn(1))  # noqa: NPY002
        return self


class Slow(Slope):
    """Takes a hundredth of a second."""

    def fit(self, data: pd.DataFrame) -> Self:
        time.sleep(0.01)
        return super().fit(data)


class Raises(Slope):
    def fit(self, data: pd.DataFrame) -> Self:
        raise ZeroDivisionError("no slope today")


class Exits(Slope):
    def fit(self, data: pd.DataFrame) -> Self:
        raise SystemExit(3)


class Hangs(Slope):
    def fit(self, data: pd.DataFrame) -> Self:
        while True:
            time.sleep(10.0)


class Dies(Slope):
    def fit(self, data: pd.DataFrame) -> Self:
        os.write(2, b"the floor gives way\n")
        os.abort()


class NotANumber(Slope):
    def predict(self, rows: pd.DataFrame) -> Any:
        return np.full(len(rows), np.nan)


class Prints(Slope):
    """Writes to where the answers of its process go, and reads from where its jobs come."""

    def fit(self, data: pd.DataFrame) -> Self:
        print("hello")
        os.write(1, b"hello again\n")
        assert os.read(0, 1) == b""
        return super().fit(data)


class Leaves(Slope):
    """Says in a file which process it ran in."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"folder": self.folder}

    def fit(self, data: pd.DataFrame) -> Self:
        Path(self.folder, str(os.getpid())).write_text(os.environ["OMP_NUM_THREADS"])
        time.sleep(30.0)
        return super().fit(data)


def slope(fit: Fit) -> float:
    return float(fit.model.slope)
