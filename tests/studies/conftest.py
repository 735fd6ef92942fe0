"""Fitting processes take seconds to start: tests share one, or do without."""

from collections.abc import Iterator

import pytest

from cfiv.studies import engine
from cfiv.studies.process import FittingProcesses


@pytest.fixture(scope="session")
def fitting_processes() -> Iterator[FittingProcesses]:
    processes = FittingProcesses(1)
    yield processes
    processes.stop()


@pytest.fixture
def kept(fitting_processes: FittingProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without ending their processes, and the next goes on with them."""
    monkeypatch.setattr(engine, "processes_of", lambda run, *, threads: fitting_processes)
    monkeypatch.setattr(engine, "stop_processes", lambda run: None)
