"""The ten minutes of docs/start.md, pasted as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/start.md"


@pytest.mark.contract
@pytest.mark.slow
def test_the_ten_minutes_pasted_as_a_whole_are_a_program_that_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 10
    program = tmp_path / "pasted.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    ran = subprocess.run([sys.executable, program.name], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    for said in ("Structural function", "Effect, 95 %", "[ True] [False]", "score"):
        assert said in ran.stdout
    assert (tmp_path / "demand.safetensors").stat().st_size > 0
