"""A small design, and methods that do as told; importable by the processes that fit."""

import atexit
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from cfiv.studies import Design, Fit, Study, error


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


class Forks(Slope):
    """Starts a process that holds on to all that it was given, says which in a folder, and then hangs or dies.

    It starts it when it is loaded, which has time, so that it is there whenever the fit is stopped.
    """

    def __init__(self, folder: str, then: str) -> None:
        super().__init__()
        self.folder, self.then = folder, then

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.fork() == 0:
            Path(self.folder, str(os.getpid())).touch()
            time.sleep(600.0)
            os._exit(0)
        while not os.listdir(self.folder):
            time.sleep(0.01)

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def fit(self, data: pd.DataFrame) -> Self:
        if self.then == "die":
            os.abort()
        time.sleep(600.0)
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"folder": self.folder, "then": self.then}


class Exiting(Slope):
    """Ends its process behind Python's back."""

    def fit(self, data: pd.DataFrame) -> Self:
        os._exit(3)


class LeavesBehind(Slope):
    """Leaves a child that ends its process when a file is there, and something to put away at its end."""

    def __init__(self, end: str, ended: str) -> None:
        super().__init__()
        self.end, self.ended = end, ended

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"end": self.end, "ended": self.ended}

    def fit(self, data: pd.DataFrame) -> Self:
        atexit.register(Path(self.ended).touch)
        threading.Thread(target=self._wait, daemon=True).start()
        return super().fit(data)

    def _wait(self) -> None:
        while not Path(self.end).exists():
            time.sleep(0.01)
        os._exit(4)


class Unspeakable(Slope):
    """Its message cannot be written as UTF-8, as a file name may not be."""

    def fit(self, data: pd.DataFrame) -> Self:
        raise ValueError("\udc80")


class Unloadable(Slope):
    """Can be sent, and not be received."""

    def __reduce__(self) -> Any:
        return _refused, ()


def _refused() -> None:
    raise ImportError("not on this machine: \udc80")


class Litters(Slope):
    """Changes what belongs to its whole process."""

    def fit(self, data: pd.DataFrame) -> Self:
        import torch

        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        np.seterr(all="raise")
        os.environ["CFIV_LITTER"] = "1"
        os.chdir("/")
        return super().fit(data)


class Surroundings(Slope):
    """Its slope says what it finds."""

    def fit(self, data: pd.DataFrame) -> Self:
        import torch

        found = (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            str(torch.get_default_device()),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            sorted(np.geterr().items()),
            os.environ.get("CFIV_LITTER"),
            os.getcwd(),
        )
        self.slope = float(int.from_bytes(hashlib.blake2b(repr(found).encode(), digest_size=4).digest(), "big"))
        return self


class NotANumber(Slope):
    REASON = (
        "a metric raised StudyError: predictions must be finite, got 20 values that are infinite or missing (the first is "
        "missing in row 0): drop or fill those rows"
    )

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
        part = Path(self.folder, f"{os.getpid()}.part")
        part.write_text(os.environ["OMP_NUM_THREADS"])
        part.rename(Path(self.folder, str(os.getpid())))  # whoever finds it finds all of it
        time.sleep(600.0)
        return super().fit(data)


def slope(fit: Fit) -> float:
    return float(fit.model.slope)


def some_work(ledger: Path) -> Study:
    """A study of six hundred replications, half of them of a hundredth of a second."""
    return Study(
        "work",
        designs={"line": Design(line, n=[10, 30])},
        methods={"slow": Slow(), "jittered": Jittered()},
        metrics={"error": error, "slope": slope},
        replications=150,
        ledger=ledger,
    )


def nothing(*, seed: int) -> tuple[None, Any]:
    """No data; whoever asks is right."""
    return None, Right()


class Right:
    def error(self, model: Any) -> float:
        return 0.0


class Nothing:
    def fit(self, data: None) -> None:
        """Do nothing."""


def zero(fit: Fit) -> float:
    return 0.0
