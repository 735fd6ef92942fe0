"""dSprites: DFIV across batch sizes, and every estimator; the README's second figure and table.

    python docs/dsprites.py batches       # ridge and proximal last layers over batch sizes: two hours on one core
    python docs/dsprites.py estimators    # every estimator at its defaults: half an hour
    python docs/dsprites.py report        # tables and figure from what is there, nothing fitted

Each continues where it stopped, even after a kill, and can be run in part: --design original --batch-sizes 64 128 --seeds 1.
`--share 1/2` and `--share 2/2` are two processes that do half each. Fits go to docs/dsprites_batches.csv, its tuning to
docs/dsprites_tuning.csv, estimators to docs/dsprites_estimators.csv, a line each.

What is compared over batch sizes: features, rates and steps (500) are cfiv's defaults for images, with one split and no swap,
as in the paper. "ridge" has no proximal penalty, and its current last layers are the last solves; "proximal" has cfiv's default
ridge, and the rest at the end. Each has three values of its penalty to choose from, for each design and batch size, by the
score of the current last layers of shorter fits (100 steps, seed 50) on 5000 other rows. The truth is looked at in the end.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import cfiv
from cfiv.datasets import dsprites
from cfiv.plots import COLOURS
from cfiv.rendering import to_markdown

HERE = Path(__file__).parent
ROWS = {"original": 5000, "second": 10000}
BATCH_SIZES: tuple[int | None, ...] = (32, 64, 128, 256, 512, 1024, None)
PENALTIES = {"ridge": (1e-3, 1e-2, 1e-1), "proximal": (0.2, 2.0, 20.0)}
REPORTS = ("refit", "current")
FIRST_SEED, TUNING_SEED = 100, 50
TUNING_STEPS = 100
QUIET = {"progress": False, "device": "cpu"}
#: The medians of the DFIV poster (Xu et al. 2021), original function.
PUBLISHED = {("DFIV, original", 5000): 2.01, ("DFIV, original", 10000): 1.21, ("Kernel IV", 5000): 10.05}
PUBLISHED |= {("Network, no instruments", 5000): 91.2}


class Ledger:
    """A CSV file with a line a finished piece of work; a line is written at once, so a kill leaves none in part."""

    def __init__(self, name: str, keys: list[str]) -> None:
        self.path, self.keys = HERE / name, keys

    def read(self) -> pd.DataFrame:
        """What is done; keys as text where they may be missing."""
        return pd.read_csv(self.path) if self.path.exists() else pd.DataFrame(columns=self.keys)

    def has(self, record: dict[str, Any]) -> bool:
        """Whether this piece of work is done."""
        done = self.read()
        return bool(np.all([done[key].astype(str) == str(record[key]) for key in self.keys], axis=0).any())

    def add(self, record: dict[str, Any]) -> None:
        """Append a line, with the header before the first."""
        line = pd.DataFrame([record]).to_csv(index=False, header=not self.path.exists())
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.encode())
        print(
            ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in record.items())
        )


TUNING = Ledger("dsprites_tuning.csv", ["design", "method", "batch_size", "penalty"])
BATCHES = Ledger("dsprites_batches.csv", ["design", "method", "batch_size", "seed", "report"])
ESTIMATORS = Ledger("dsprites_estimators.csv", ["estimator", "rows", "seed"])


def model(method: str, *, penalty: float, batch_size: int | None, **options: Any) -> cfiv.DFIV:
    """DFIV with a ridge or a proximal last layer."""
    if method == "proximal":
        last_layer = {"lambda1": penalty, "lambda2": penalty, "lambda12": penalty}
    else:
        zero = {"lambda1": 0.0, "lambda2": 0.0, "lambda12": 0.0}
        last_layer = {**zero, "ridge1": penalty, "ridge2": penalty, "training": cfiv.Training(rest=0.0)}
    return cfiv.DFIV(**last_layer, batch_size=batch_size, swap=False, **QUIET, **options)


def tune(design: str, method: str, batch_size: int | None) -> float:
    """The penalty with the best score on other rows; fits what is not in the ledger."""
    cell = {"design": design, "method": method, "batch_size": shown(batch_size)}
    for penalty in PENALTIES[method]:
        record = {**cell, "penalty": penalty}
        if not TUNING.has(record):
            train, _ = drawn(design, TUNING_SEED)
            other, _ = dsprites.simulate(5000, seed=TUNING_SEED + 1, function=design)
            options = {"report": "current", "steps": TUNING_STEPS, "random_state": 0}
            candidate = model(method, penalty=penalty, batch_size=batch_size, **options)
            TUNING.add({**record, "score": candidate.fit(train).score(other)})
    done = TUNING.read()
    here = done[np.all([done[key].astype(str) == value for key, value in cell.items()], axis=0)]
    return float(here.set_index("penalty")["score"].idxmax())


def batches(work: argparse.Namespace) -> None:
    """Fit both methods over the batch sizes, tuned, reported refitted and as training left them."""
    cells = list(itertools.product(work.design, work.batch_sizes, PENALTIES))
    chosen = {cell: tune(cell[0], cell[2], cell[1]) for cell in shared(cells, work.share)}
    for seed, cell in itertools.product(range(FIRST_SEED, FIRST_SEED + work.seeds), chosen):
        design, batch_size, method = cell
        for report in REPORTS:
            record = {"design": design, "method": method, "batch_size": shown(batch_size), "seed": seed, "report": report}
            if BATCHES.has(record):
                continue
            data, truth = drawn(design, seed)
            fitted = model(method, penalty=chosen[cell], batch_size=batch_size, report=report, random_state=seed).fit(data)
            BATCHES.add({**record, "penalty": chosen[cell], "error": truth.error(fitted), "seconds": fitted.fit_seconds_})


def estimators(work: argparse.Namespace) -> None:
    """Fit every estimator at its defaults, with the original function."""
    for seed, rows in itertools.product(range(FIRST_SEED, FIRST_SEED + work.seeds), (5000, 10000)):
        models = {
            "DFIV": cfiv.DFIV(**QUIET, random_state=seed),
            "DFIV, original": cfiv.DFIV.original_image(**QUIET, random_state=seed),
            "Kernel IV": cfiv.KernelIV(random_state=seed),
            "Network, no instruments": cfiv.NetworkRegression(**QUIET, random_state=seed),
        }
        for name in shared(list(models), work.share):
            record = {"estimator": name, "rows": rows, "seed": seed}
            if ESTIMATORS.has(record) or (rows > 5000 and name != "DFIV"):
                continue
            data, truth = dsprites.simulate(rows, seed=seed)
            fitted = models[name].fit(data)
            ESTIMATORS.add({**record, "error": truth.error(fitted), "seconds": fitted.fit_seconds_})


def report(_: argparse.Namespace) -> None:
    """Print both tables as Markdown and draw the figure."""
    if ESTIMATORS.path.exists():
        fits = ESTIMATORS.read().groupby(["estimator", "rows"])
        table = fits["error"].agg(["median", "min", "max", "count"]).assign(seconds=fits["seconds"].median())
        published = [PUBLISHED.get(cell, float("nan")) for cell in table.index]
        print(to_markdown(table.assign(published=published)), "\n")
    if BATCHES.path.exists():
        fits = BATCHES.read().assign(batch_size=lambda t: t["batch_size"].astype(str))
        table = fits.pivot_table(index=["design", "batch_size"], columns=["method", "report"], values="error", aggfunc="median")
        table = table.reindex([cell for design in ROWS for cell in itertools.product([design], map(shown, BATCH_SIZES))])
        table.columns = [f"{method}, {kind}" for method, kind in table.columns]
        table.insert(0, "seeds", fits.groupby(["design", "batch_size"])["seed"].nunique())
        print(to_markdown(table))
        draw(fits).savefig(HERE / "dsprites_batch_sizes.png", dpi=150)


def draw(fits: pd.DataFrame) -> plt.Figure:
    """Error against batch size: a dot a fit, a line the medians, solid refitted, dashed current."""
    figure, axes = plt.subplots(1, len(ROWS), figsize=(10.5, 4.2), sharey=True, layout="constrained")
    places = {shown(size): place for place, size in enumerate(BATCH_SIZES)}
    for ax, (design, rows) in zip(axes, ROWS.items(), strict=True):
        for (method, kind), colour in zip(itertools.product(PENALTIES, REPORTS), np.repeat(COLOURS[1::-1], 2), strict=True):
            of = (fits["design"] == design) & (fits["method"] == method) & (fits["report"] == kind)
            cell = fits[of].assign(place=fits["batch_size"].map(places))
            ax.scatter(cell["place"], cell["error"], s=9, color=colour, alpha=0.35, linewidths=0)
            middle = cell.groupby("place")["error"].median()
            line = "-" if kind == "refit" else (0, (4, 2))
            ax.plot(middle.index, middle, color=colour, linestyle=line, linewidth=2, label=f"{method}, {kind}")
        ax.set_xticks(list(places.values()), [*list(places)[:-1], "all"])
        ax.set_xlabel("batch size")
        ax.set_title(f"{design} function, n = {rows}", loc="left", fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("mean squared error against the truth")
    axes[-1].legend(frameon=False)
    return figure


def drawn(design: str, seed: int) -> tuple[cfiv.IVData, Any]:
    """The design's data and truth."""
    return dsprites.simulate(ROWS[design], seed=seed, function=design)


def shown(batch_size: int | None) -> str:
    """A batch size as the ledgers have it."""
    return "all" if batch_size is None else str(batch_size)


def shared(work: list[Any], share: str) -> Iterator[Any]:
    """Every k-th piece of work, from the i-th, for a share i/k."""
    first, every = (int(part) for part in share.split("/"))
    return itertools.islice(work, first - 1, None, every)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("batches", "estimators", "report"))
    parser.add_argument("--design", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--batch-sizes", nargs="+", type=lambda text: None if text == "all" else int(text), default=BATCH_SIZES)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 100")
    parser.add_argument("--share", default="1/1", help="i/k: the i-th of k processes")
    arguments = parser.parse_args()
    {"batches": batches, "estimators": estimators, "report": report}[arguments.part](arguments)
