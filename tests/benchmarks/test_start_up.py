"""A beginning on an idle machine: importing the package, asking the command line for help, and the ten minutes as a program."""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/start.md"


def seconds(command: list[str], place: Path | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=place)
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


def test_the_ten_minutes_take_one(benchmark, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "pasted.py").write_text("\n".join(blocks))
    taken = benchmark.pedantic(seconds, args=([sys.executable, "pasted.py"], tmp_path), rounds=1)
    assert taken <= 60
