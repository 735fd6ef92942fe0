"""One replication: draw, fit, measure. Runs in a process of its own (see ``process.py``), and never raises."""

from __future__ import annotations

import ctypes
import os
import random
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cfiv.errors import StudyError
from cfiv.studies.design import Simulate, draw
from cfiv.studies.identity import seed_of
from cfiv.studies.method import make_estimator
from cfiv.studies.metrics import Fit, Metric, measure

#: Warnings of one replication that are kept, each once.
KEPT_WARNINGS = 5


@dataclass(frozen=True)
class Cell:
    """What all replications of a design's cell with a method's cell share.

    Parameters
    ----------
    simulate : callable
    parameters : dict
        Passed to ``simulate``.
    estimator : object with ``fit``, or callable
    hyper_parameters : dict
        Set on the estimator.
    metrics : mapping from a name to a metric
    """

    simulate: Simulate
    parameters: dict[str, Any]
    estimator: Any
    hyper_parameters: dict[str, Any]
    metrics: Mapping[str, Metric]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a replication ended.

    Parameters
    ----------
    status : {"done", "failed"}
    values : dict of float
        By metric; empty where it failed.
    reason, details : str, optional
        Of a failure, in a line and as a traceback.
    seconds, cpu_seconds : float, optional
        Of ``fit`` alone, by the clock and of the processor.
    memory_mb : float, optional
        By how much the process grew at most during ``fit``, in 10^6 bytes; known on Linux.
    warnings : list of str
    broken : bool
        Whether the study itself is at fault, so that all its replications would fail alike.
    """

    status: Literal["done", "failed"]
    values: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    details: str | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    memory_mb: float | None = None
    warnings: list[str] = field(default_factory=list)
    broken: bool = False


def replicate(cell: Cell, *, data_seed: int, fit_seed: int) -> dict[str, Any]:
    """Draw with one seed, fit with the other, measure; an :class:`Outcome` as a dict."""
    _seed_globally(fit_seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = _outcome(cell, data_seed=data_seed, fit_seed=fit_seed)
    said = list(dict.fromkeys(f"{warning.category.__name__}: {warning.message}" for warning in caught))
    return {**asdict(outcome), "warnings": said[:KEPT_WARNINGS]}


def _outcome(cell: Cell, *, data_seed: int, fit_seed: int) -> Outcome:
    stage = "the design"
    spent: dict[str, float | None] = {}
    try:
        data, truth = draw(cell.simulate, cell.parameters, seed=data_seed)
        stage = "the method"
        model = make_estimator(cell.estimator, cell.hyper_parameters, seed=fit_seed)
        before = _reset_peak()
        clock, processor = time.perf_counter(), time.process_time()
        fitted = model.fit(data)
        spent = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
        spent["memory_mb"] = _grown(before)
        stage = "a metric"
        fit = Fit(
            model if fitted is None else fitted,
            data,
            truth,
            lambda: draw(cell.simulate, cell.parameters, seed=seed_of(data_seed, "another")),
        )
        return Outcome(status="done", values=measure(cell.metrics, fit), **spent)  # type: ignore[arg-type]
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  whatever a person's code raises, SystemExit too, is a row with its reason
        broken = stage == "the design" and isinstance(error, StudyError)
        reason = str(error) if broken else storable(f"{stage} raised {type(error).__name__}: {error}".strip())
        details = storable(traceback.format_exc())
        return Outcome(status="failed", reason=reason, details=details, broken=broken, **spent)  # type: ignore[arg-type]


def storable(text: str) -> str:
    """Text that can be written as UTF-8; of file names, that is not certain."""
    return text.encode(errors="backslashreplace").decode()


def _seed_globally(seed: int) -> None:
    """The generators that code may draw from without being given one, so that the order of replications does not matter."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    import torch

    torch.manual_seed(seed)


@dataclass(frozen=True)
class Surroundings:
    """What belongs to a whole process and changes numbers: a fit that changes it must not change those after it.

    Parameters
    ----------
    folder : str
        The current one.
    environment : dict of str
    numpy_errors : dict
        Of ``numpy.geterr``.
    dtype : torch.dtype
        The default one.
    gradients : bool
        Whether torch records operations for gradients.
    threads : int
        Of torch.
    device : torch.device
        Where torch makes tensors.
    deterministic : bool
        Whether torch is to take deterministic algorithms only.
    precision : str
        Of torch's products in float32.
    """

    folder: str
    environment: dict[str, str]
    numpy_errors: Any
    dtype: Any
    gradients: bool
    threads: int
    device: Any
    deterministic: bool
    precision: str

    @classmethod
    def now(cls) -> Self:
        """As they are."""
        import torch

        return cls(
            os.getcwd(),
            dict(os.environ),
            np.geterr(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )

    def restore(self) -> None:
        """Make them so again."""
        import torch

        os.chdir(self.folder)
        if os.environ != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        np.seterr(**self.numpy_errors)
        torch.set_default_dtype(self.dtype)
        torch.set_grad_enabled(self.gradients)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if torch.get_default_device() != self.device:  # to set it, even to what it was, makes every call slower
            torch.set_default_device(self.device)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.set_float32_matmul_precision(self.precision)


def _reset_peak() -> float | None:
    """Set the kernel's high-water mark of this process back; its size now in MB, or None where there is no such mark.

    What replications before freed goes back to the system first: a fit that fills it again would seem to need no memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def _grown(before: float | None) -> float | None:
    return None if before is None else max(0.0, _memory("VmHWM") - before)


def _memory(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) * 1024 / 1e6
