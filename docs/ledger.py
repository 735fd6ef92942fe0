"""A CSV file of finished work: what the programs of this folder continue from."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).parent


class Ledger:
    """A CSV file with a line a finished piece of work; a line is written at once, so a kill leaves none in part."""

    def __init__(self, name: str, keys: list[str]) -> None:
        self.path, self.keys = HERE / name, keys

    def read(self) -> pd.DataFrame:
        """What is done; batch sizes as text, since one of them is "all"."""
        begun = self.path.exists() and self.path.stat().st_size > 0
        return pd.read_csv(self.path, dtype={"batch_size": str}) if begun else pd.DataFrame(columns=self.keys)

    def has(self, record: dict[str, Any]) -> bool:
        """Whether this piece of work is done."""
        done = self.read()
        return bool(np.all([done[key].astype(str) == str(record[key]) for key in self.keys], axis=0).any())

    def add(self, *records: dict[str, Any]) -> None:
        """Append lines in one write, with the header before the first; say the last."""
        with open(self.path, "ab", buffering=0) as file:
            lines = pd.DataFrame(list(records)).to_csv(index=False, header=file.tell() == 0)
            file.write(lines.encode())
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in records[-1].items()
            ),
            flush=True,
        )


def shared(work: list[Any], share: str) -> Iterator[Any]:
    """Every k-th piece of work, from the i-th, for a share i/k."""
    first, every = (int(part) for part in share.split("/"))
    return itertools.islice(work, first - 1, None, every)
