"""Start-up on an idle machine: importing the package, and asking the command line for help."""

import statistics
import subprocess
import sys
import time

import pytest


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("command", "bound"),
    [([sys.executable, "-c", "import cfiv"], 0.3), ([sys.executable, "-m", "cfiv.cli", "--help"], 0.6)],
    ids=["import cfiv", "cfiv --help"],
)
def test_start_up_is_quick(benchmark, command: list[str], bound: float) -> None:
    seconds(command)
    times = [seconds(command) for _ in range(5)]
    benchmark.pedantic(seconds, args=(command,), rounds=3)
    benchmark.extra_info["median, s"] = statistics.median(times)
    assert statistics.median(times) <= bound
