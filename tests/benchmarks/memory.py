"""Peak memory of a program that runs in a process of its own."""

import subprocess
import sys
import textwrap

#: Put before a program: ``extra_mib(call)`` is by how much the process's memory rose at most while ``call`` ran. The kernel's
#: own mark, set back before: ru_maxrss starts with the parent's, and either remembers what was held long ago.
EXTRA = """
from pathlib import Path

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

def extra_mib(call):
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before
"""


def output_of(program: str) -> str:
    """What a program prints that may call ``extra_mib``."""
    whole = EXTRA + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", whole], check=True, capture_output=True, text=True).stdout
