"""Settings that must be in the environment before torch and matplotlib are first imported.

As environment variables they cost tests without torch nothing, and they reach the processes that tests start.
"""

import os
import random
import signal
import sys

import pytest

# One thread a test process: xdist runs one process a core, and sums are then added in the same order whatever the machine.
# `make bench` sets its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Figures are drawn into files, also where there is a display.
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell that starts the tests in the background makes them ignore Ctrl-C, and tests of Ctrl-C send themselves one.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: Of the global generators before each test; none that a test uses, so that what it draws and what it seeds are not the same.
SEED = 20_261_127


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, dealt to the processes that xdist gives one stretch of the list each: the others end together."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    count, ordered = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), []
    for i in range(count):
        stretch = (len(items) - len(ordered)) // (count - i)
        first = slow[i::count]
        room = max(0, stretch - len(first))
        ordered += [*first, *others[:room]]
        others = others[room:]
    items[:] = [*ordered, *others]


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws from global generators does not depend on the tests before it in its process."""
    random.seed(SEED)
    for module, seed in (("numpy", lambda numpy: numpy.random.seed(SEED)), ("torch", lambda torch: torch.manual_seed(SEED))):
        if module in sys.modules:
            seed(sys.modules[module])


@pytest.fixture
def replications_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies run their replications in this process."""
    from cfiv.studies import engine
    from tests.studies.in_this_process import InThisProcess

    here = InThisProcess()
    monkeypatch.setattr(engine, "processes_of", lambda run, *, threads: here)
    monkeypatch.setattr(engine, "stop_processes", lambda run: None)
