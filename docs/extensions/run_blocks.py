"""Run the Python blocks of pages, those of one page one after another in one namespace, and stop at the first that fails.

A block fails if it raises, or prints other words than the text block that stands right below it.

    python docs/extensions/run_blocks.py --jobs 2 docs/*.md

A block under the comment ``<!-- not run -->`` is left out. Each page runs in an empty folder, so it may write files. What it
prints is shown where it fails; numbers may be others than those on the page, for they depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

BLOCK = re.compile(
    r"^(?P<left_out><!-- not run -->\n+)?```python\n(?P<code>.*?)^```\n(\n*```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


def run(page: Path) -> int:
    """Run a page's blocks, and return how many there were. A traceback shows the page's own lines."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    found = [block for block in BLOCK.finditer(text) if not block["left_out"]]
    for block in found:
        above = text[: block.start("code")].count("\n")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * above + block["code"], str(page), "exec"), namespace)  # the pages are our own
        finally:
            print(printed.getvalue(), end="")
        if block["output"] is not None and words(printed.getvalue()) != words(block["output"]):
            raise AssertionError(f"the block from line {above + 1} on prints the above, the page says\n{block['output']}")
    return len(found)


def words(text: str) -> list[str]:
    """What is not a number, whatever the space between."""
    return NUMBER.sub("#", text).split()


def check(page: Path) -> str:
    """Run a page in an empty folder; a line that says how long it took."""
    import matplotlib as mpl

    mpl.use("agg")
    warnings.simplefilter("error")
    started, printed = time.perf_counter(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                count = run(page)
        except BaseException:
            print(f"{printed.getvalue()}{page} failed", flush=True)
            raise
    return f"{page}: {count} blocks, {time.perf_counter() - started:.0f} s" if count else ""


def main() -> None:
    """Run pages side by side, and say how long each took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("pages", nargs="+", type=Path)
    given = parser.parse_args()
    pages = sorted((page.resolve() for page in given.pages), key=lambda page: -page.stat().st_size)  # long ones first
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        for said in filter(None, pool.map(check, pages)):
            print(said, flush=True)


if __name__ == "__main__":
    main()
