"""dSprites: DFIV across batch sizes, and every estimator; the README's second figure and table.

    python docs/dsprites.py batches       # ridge and proximal last layers over batch sizes: several hours on one core
    python docs/dsprites.py estimators    # every estimator at its defaults: about an hour
    python docs/dsprites.py report        # tables and figure from what is there, nothing fitted

Each continues where it stopped, even after a kill, and can be run in part: --design original --batch-sizes 64 128 --seeds 1.
`--share 1/2` and `--share 2/2` are two processes that do half each. Fits go to docs/dsprites_batches.csv, its tuning to
docs/dsprites_tuning.csv, estimators to docs/dsprites_estimators.csv, a line each.

What is compared over batch sizes: features, rates and steps (500) are cfiv's defaults for images, with one split and no swap,
as in the paper. "ridge" has no proximal penalty, "proximal" has cfiv's default ridge beside it. Either is reported refitted on
whole samples; with the last solves of training, as in the paper; and as `report="current"` of cfiv, whose features rest for the
last three tenths of the steps while the last layers settle. Both have three values of their penalty to choose from, for each
design, batch size and report, by the score of short fits (100 steps, seed 50) on 5000 other rows; refits take the penalty of
ridge's last solves and of proximal's current ones. The truth is looked at in the end.
"""

import argparse
import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ledger import HERE, Ledger, shared

import cfiv
from cfiv.datasets import dsprites
from cfiv.plots import COLOURS
from cfiv.rendering import to_markdown

ROWS = {"original": 5000, "second": 10000}
BATCH_SIZES: tuple[int | None, ...] = (32, 64, 128, 256, 512, 1024, None)
PENALTIES = {"ridge": (1e-3, 1e-2, 1e-1), "proximal": (0.2, 2.0, 20.0)}
REPORTS = ("refit", "current", "last")
#: By which report the penalty of a refit is chosen.
REFIT_LIKE = {"ridge": "last", "proximal": "current"}
FIRST_SEED, TUNING_SEED = 100, 50
TUNING_STEPS = 100
QUIET = {"progress": False, "device": "cpu"}
#: Where the figure has marks.
LEVELS = (0.5, 1, 2, 5, 10, 20, 50)
#: The medians of the DFIV poster (Xu et al. 2021), original function.
PUBLISHED = {("DFIV, original", 5000): 2.01, ("DFIV, original", 10000): 1.21, ("Kernel IV", 5000): 10.05}
PUBLISHED |= {("Network, no instruments", 5000): 91.2}


TUNING = Ledger("dsprites_tuning.csv", ["design", "method", "batch_size", "report", "penalty"])
BATCHES = Ledger("dsprites_batches.csv", ["design", "method", "batch_size", "seed", "report", "penalty"])
ESTIMATORS = Ledger("dsprites_estimators.csv", ["estimator", "rows", "seed"])


def model(method: str, report: str, *, penalty: float, batch_size: int | None, **options: Any) -> cfiv.DFIV:
    """DFIV with a ridge or a proximal last layer."""
    proximal = penalty if method == "proximal" else 0.0
    ridges = {} if method == "proximal" else {"ridge1": penalty, "ridge2": penalty}
    return cfiv.DFIV(
        lambda1=proximal,
        lambda2=proximal,
        lambda12=proximal,
        batch_size=batch_size,
        swap=False,
        report="refit" if report == "refit" else "current",
        training=cfiv.Training(rest=0.0) if report == "last" else None,
        **ridges,
        **QUIET,
        **options,
    )


def tune(design: str, method: str, batch_size: int | None, report: str) -> float:
    """The penalty with the best score on other rows; fits what is not in the ledger."""
    cell = {"design": design, "method": method, "batch_size": shown(batch_size), "report": report}
    for penalty in PENALTIES[method]:
        record = {**cell, "penalty": penalty}
        if not TUNING.has(record):
            train, _ = drawn(design, TUNING_SEED)
            other, _ = dsprites.simulate(5000, seed=TUNING_SEED + 1, function=design)
            candidate = model(method, report, penalty=penalty, batch_size=batch_size, steps=TUNING_STEPS, random_state=0)
            TUNING.add({**record, "score": candidate.fit(train).score(other)})
    done = TUNING.read()
    here = done[np.all([done[key].astype(str) == value for key, value in cell.items()], axis=0)]
    return float(here.set_index("penalty")["score"].idxmax())


def batches(work: argparse.Namespace) -> None:
    """Fit both methods over the batch sizes, tuned, in all reports."""
    for seed in range(FIRST_SEED, FIRST_SEED + work.seeds):
        for design, batch_size, method in shared(list(itertools.product(work.design, work.batch_sizes, PENALTIES)), work.share):
            data, truth = drawn(design, seed)
            for report in REPORTS:
                penalty = tune(design, method, batch_size, REFIT_LIKE[method] if report == "refit" else report)
                cell = {"design": design, "method": method, "batch_size": shown(batch_size), "seed": seed}
                record = {**cell, "report": report, "penalty": penalty}
                if not BATCHES.has(record):
                    fitted = model(method, report, penalty=penalty, batch_size=batch_size, random_state=seed).fit(data)
                    BATCHES.add({**record, "error": truth.error(fitted), "seconds": fitted.fit_seconds_})


def estimators(work: argparse.Namespace) -> None:
    """Fit every estimator at its defaults, with the original function."""
    for seed, rows in itertools.product(range(FIRST_SEED, FIRST_SEED + work.seeds), (5000, 10000)):
        models = {
            "DFIV": cfiv.DFIV(**QUIET, random_state=seed),
            "DFIV, original": cfiv.DFIV.original_image(**QUIET, random_state=seed),
            "Kernel IV": cfiv.KernelIV(random_state=seed),
            "Network, no instruments": cfiv.NetworkRegression(**QUIET, random_state=seed),
        }
        for name in shared([name for name in models if name in work.only or not work.only], work.share):
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
        fits = BATCHES.read()
        table = fits.pivot_table(index=["design", "batch_size"], columns=["method", "report"], values="error", aggfunc="median")
        table = table.reindex([cell for design in ROWS for cell in itertools.product([design], map(shown, BATCH_SIZES))])
        table.columns = [f"{method}, {kind}" for method, kind in table.columns]
        table.insert(0, "seeds", fits.groupby(["design", "batch_size"])["seed"].nunique())
        print(to_markdown(table))
        draw(fits).savefig(HERE / "dsprites_batch_sizes.png", dpi=150)


def draw(fits: pd.DataFrame) -> plt.Figure:
    """Error against batch size: a dot a fit, a line the medians; solid refitted, dashed current, dotted the last solves."""
    figure, axes = plt.subplots(1, len(ROWS), figsize=(10.5, 4.4), sharey=True, layout="constrained")
    places = {shown(size): place for place, size in enumerate(BATCH_SIZES)}
    colours, lines = dict(zip(PENALTIES, COLOURS[1::-1], strict=True)), dict(zip(REPORTS, ("-", (0, (4, 2)), ":"), strict=True))
    names = {"refit": "refit", "current": "current, after a rest", "last": "last solves"}
    for ax, (design, rows) in zip(axes, ROWS.items(), strict=True):
        for method, kind in itertools.product(PENALTIES, REPORTS):
            of = (fits["design"] == design) & (fits["method"] == method) & (fits["report"] == kind)
            cell = fits[of].assign(place=fits["batch_size"].map(places))
            ax.scatter(cell["place"], cell["error"], s=9, color=colours[method], alpha=0.35, linewidths=0)
            middle = cell.groupby("place")["error"].median()
            label = f"{method}: {names[kind]}"
            ax.plot(middle.index, middle, color=colours[method], linestyle=lines[kind], linewidth=2, label=label)
        ax.set_xticks(list(places.values()), [*list(places)[:-1], "all"])
        ax.set_xlabel("batch size")
        ax.set_title(f"{design} function, n = {rows}", loc="left", fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
    axes[0].set_yscale("log")
    axes[0].set_yticks(LEVELS, [f"{level:g}" for level in LEVELS])
    axes[0].minorticks_off()
    axes[0].set_ylabel("mean squared error against the truth")
    axes[-1].legend(frameon=False, fontsize=9)
    return figure


def drawn(design: str, seed: int) -> tuple[cfiv.IVData, Any]:
    """The design's data and truth."""
    return dsprites.simulate(ROWS[design], seed=seed, function=design)


def shown(batch_size: int | None) -> str:
    """A batch size as the ledgers have it."""
    return "all" if batch_size is None else str(batch_size)


if __name__ == "__main__":
    torch.set_num_threads(1)  # times are those of one core
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("batches", "estimators", "report"))
    parser.add_argument("--design", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--batch-sizes", nargs="+", type=lambda text: None if text == "all" else int(text), default=BATCH_SIZES)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 100")
    parser.add_argument("--only", nargs="+", default=(), help='of the estimators, by the names in their ledger: "Kernel IV"')
    parser.add_argument("--share", default="1/1", help="i/k: the i-th of k processes")
    arguments = parser.parse_args()
    {"batches": batches, "estimators": estimators, "report": report}[arguments.part](arguments)
