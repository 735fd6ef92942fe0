"""Last layers by gradients and in closed form, over batch sizes: neural operators, classification, a synthetic regression.

    python docs/last_layers.py run burgers        # tunes, then fits: about an hour on one core; needs cfiv[operators]
    python docs/last_layers.py run digits         # minutes; also: darcy, synthetic
    python docs/last_layers.py run cifar --cifar FOLDER
    python docs/last_layers.py report             # tables and figures from what is there, nothing fitted

Each continues where it stopped, even after a kill, and can be run in part: --batch-sizes 20 --seeds 1. `--share 1/2` and
`--share 2/2` are two processes that do half each. Fits go to docs/last_layers_fits.csv, their course to
docs/last_layers_courses.csv, the tuning to docs/last_layers_tuning.csv.

What is compared: the same backbone with the same initial weights, batches and epochs. "sgd" (momentum 0.9) and "adam" take
gradient steps on everything, as does "cross-entropy" (Adam) on another loss; "ridge", "proximal" and "kalman" solve the last
layer while Adam moves the rest. Rates fall to zero like a cosine. Each method has eight settings to choose from, for each
problem and batch size, by one shorter fit on four fifths of the training examples and its error on the last fifth. Every method
is reported twice, with the last layer as training left it and after a refit on all training examples. Seconds are the
processor's, of one thread, without the measurements on the way.
"""

import argparse
import itertools
import time
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from last_layer_problems import Examples, Problem, problems
from ledger import HERE, Ledger, shared
from matplotlib.ticker import NullFormatter

import cfiv
from cfiv.plots import COLOURS
from cfiv.rendering import to_markdown

Settings = dict[str, tuple[dict[str, Any], ...]]
GRADIENTS: Settings = {
    "sgd": tuple({"rate": rate} for rate in (0.003, 0.01, 0.03, 0.05, 0.1, 0.14, 0.2, 0.4)),
    "adam": tuple({"rate": rate} for rate in (0.0002, 0.0003, 0.0005, 0.001, 0.0014, 0.002, 0.004, 0.008)),
}
#: Settings of each method, as many for one as for another. Where a batch has many rows for few features (every point of a
#: grid is a row) it nearly determines the last layer, and penalties are small.
MANY_ROWS: Settings = GRADIENTS | {
    "ridge": tuple({"rate": rate, "beta": beta} for rate in (0.001, 0.003) for beta in (1e-9, 1e-7, 1e-5, 1e-3)),
    "proximal": (
        *({"rate": 0.001, "lam": lam, "order": "solve-first"} for lam in (1e-6, 1e-4, 0.01, 1.0)),
        *({"rate": 0.003, "lam": lam, "order": "solve-first"} for lam in (0.01, 1.0)),
        *({"rate": rate, "lam": 1.0, "order": "backbone-first"} for rate in (0.001, 0.003)),
    ),
    "kalman": tuple({"rate": rate, "process_noise": noise} for rate in (0.001, 0.003) for noise in (0.01, 0.1, 1.0, 10.0)),
}
FEW_ROWS: Settings = GRADIENTS | {
    "ridge": tuple({"rate": rate, "beta": beta} for rate in (0.003, 0.01) for beta in (1e-3, 0.01, 0.1, 1.0)),
    "proximal": tuple(
        {"rate": rate, "lam": lam, "order": order}
        for rate in (0.003, 0.01)
        for lam in (1.0, 10.0)
        for order in ("solve-first", "backbone-first")
    ),
    "kalman": tuple({"rate": rate, "process_noise": noise} for rate in (0.003, 0.01) for noise in (0.003, 0.01, 0.03, 0.1)),
    "cross-entropy": tuple({"rate": rate} for rate in (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008)),
}
#: In the order of tables and figures.
METHODS = tuple(FEW_ROWS)
TUNING_SEED, FIRST_SEED = 50, 100
#: When a fit is measured, in shares of its steps.
LOOKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Ridge of the refit, on squared errors of the order of one.
REFIT = 1e-8

TUNING = Ledger("last_layers_tuning.csv", ["problem", "method", "batch_size", "setting"])
FITS = Ledger("last_layers_fits.csv", ["problem", "method", "batch_size", "setting", "seed"])
COURSES = Ledger("last_layers_courses.csv", ["problem", "method", "batch_size", "setting", "seed", "step"])


def trainer(problem: Problem, method: str, setting: dict[str, Any], *, batch_size: int, seed: int) -> cfiv.LastLayerTrainer:
    """A method with a setting, on a backbone drawn from the seed."""
    optimizer = partial(torch.optim.SGD, momentum=0.9) if method == "sgd" else torch.optim.Adam
    layer: Any = {
        "sgd": lambda: cfiv.Gradient(),
        "adam": lambda: cfiv.Gradient(),
        "cross-entropy": lambda: cfiv.Gradient(),
        "ridge": lambda: cfiv.Ridge(beta=setting["beta"]),
        "proximal": lambda: cfiv.Proximal(lam=setting["lam"]),
        "kalman": lambda: cfiv.Kalman(process_noise=setting["process_noise"], observation_noise=1.0),
    }[method]()
    torch.manual_seed(seed)
    return cfiv.LastLayerTrainer(
        problem.module(),
        layer,
        optimizer=partial(optimizer, lr=setting["rate"]),
        order=setting.get("order", "solve-first"),
        learning_rate_schedule="cosine",
        task=problem.task,
        loss="cross-entropy" if method == "cross-entropy" else "squared",
        batch_size=batch_size,
        device="cpu",
        random_state=seed,
    )


def fitted(
    model: cfiv.LastLayerTrainer, problem: Problem, train: Examples, test: Examples, epochs: int
) -> tuple[list[tuple[int, float, float]], float]:
    """(step, seconds, error on the test) along the way, and the seconds of all steps; infinite errors where it diverged."""
    steps = epochs * (len(train[0]) // int(model.batch_size or len(train[0])))
    looks = {round(share * steps) for share in LOOKS}
    course: list[tuple[int, float, float]] = []
    spent, resumed = 0.0, time.process_time()

    def look(step: int, _: float) -> None:
        nonlocal spent, resumed
        if step in looks:
            spent += time.process_time() - resumed
            course.append((step, spent, problem.measure(model, test)))
            resumed = time.process_time()

    try:
        model.fit(train, epochs=epochs, on_step=look)
    except cfiv.DivergenceError:
        return [], spent
    return course, spent


def settings(problem: Problem) -> Settings:
    """What each method may choose from."""
    known = MANY_ROWS if problem.many_rows else FEW_ROWS
    return {method: known[method] for method in known if method != "cross-entropy" or problem.task == "classification"}


def tune(name: str, problem: Problem, method: str, batch_size: int, train: Examples) -> dict[str, Any]:
    """The setting with the smallest error on the last fifth of the training examples; fits what is not in the ledger."""
    cut = 4 * len(train[0]) // 5
    cell = {"problem": name, "method": method, "batch_size": str(batch_size)}
    for setting in settings(problem)[method]:
        record = {**cell, "setting": said(setting)}
        if not TUNING.has(record):
            model = trainer(problem, method, setting, batch_size=batch_size, seed=TUNING_SEED)
            inside, outside = tuple(part[:cut] for part in train), tuple(part[cut:] for part in train)
            course, _ = fitted(model, problem, inside, outside, problem.tuning_epochs)
            whole = bool(course) and model.ended_ == "finished"
            TUNING.add({**record, "error": course[-1][2] if whole else float("inf")})
    done = TUNING.read()
    here = done[np.all([done[key] == value for key, value in cell.items()], axis=0)].set_index("setting")["error"]
    return next(setting for setting in settings(problem)[method] if said(setting) == here.idxmin())


def run(work: argparse.Namespace) -> None:
    """Tune and fit every method, over batch sizes and seeds."""
    known = problems(work.cifar)
    for name in work.problem:
        if name not in known:
            raise SystemExit(f"{name}: give the folder of the official archive with --cifar")
        problem = known[name]
        train, test = problem.data()
        cells = list(itertools.product(work.batch_sizes or problem.batch_sizes, settings(problem)))
        for batch_size, method in shared(cells, work.share):
            for seed in range(FIRST_SEED, FIRST_SEED + work.seeds):
                setting = tune(name, problem, method, batch_size, train)
                of = {"problem": name, "method": method, "batch_size": str(batch_size)}
                cell = {**of, "setting": said(setting), "seed": seed}
                if FITS.has(cell):
                    continue
                model = trainer(problem, method, setting, batch_size=batch_size, seed=seed)
                course, seconds = fitted(model, problem, train, test, problem.epochs)
                current = course[-1][2] if course and model.ended_ == "finished" else float("inf")
                lost = model.evaluate(train).loss if course else float("inf")
                refit = problem.measure(model.refit(train, beta=REFIT), test) if course else float("inf")
                if course:
                    COURSES.add(*({**cell, "step": step, "seconds": at, "error": error} for step, at, error in course))
                # The fit's own line comes last: a kill before it repeats the fit, and the report takes the newer course.
                measured = {"error": current, "refit": refit, "train_loss": lost, "seconds": seconds}
                FITS.add({**cell, **measured})


def report(_: argparse.Namespace) -> None:
    """Print a table for each problem as Markdown, and draw its figure."""
    chosen = (
        TUNING.read()
        .sort_values("error", kind="stable")
        .drop_duplicates(["problem", "method", "batch_size"])
        .drop(columns="error")
    )
    fits, courses = (done.merge(chosen) for done in (FITS.read(), COURSES.read().drop_duplicates(COURSES.keys, keep="last")))
    known = problems("")
    for name in fits["problem"].unique():
        problem, here = known[name], fits[fits["problem"] == name]
        table = here.groupby(["batch_size", "method"])[["error", "refit", "seconds"]].median()
        table["seeds"] = here.groupby(["batch_size", "method"])["seed"].nunique()
        table["setting"] = here.groupby(["batch_size", "method"])["setting"].first()
        order = [(str(size), method) for size in problem.batch_sizes for method in METHODS]
        print(f"{name}: median {problem.name} on the test, {problem.epochs} epochs\n")
        print(to_markdown(table.reindex([cell for cell in order if cell in table.index])), "\n")
        draw(courses[courses["problem"] == name], problem).savefig(HERE / f"last_layers_{name}.png", dpi=150)


def draw(courses: pd.DataFrame, problem: Problem) -> plt.Figure:
    """Test error against steps (above) and seconds (below), a column a batch size; medians over seeds."""
    sizes = [size for size in problem.batch_sizes if str(size) in set(courses["batch_size"])]
    figure, axes = plt.subplots(
        2, len(sizes), figsize=(3.4 * len(sizes) + 1, 6.0), sharey=True, squeeze=False, layout="constrained"
    )
    colours = dict(zip(METHODS, COLOURS, strict=False))
    for column, size in enumerate(sizes):
        here = courses[courses["batch_size"] == str(size)]
        for method in [method for method in METHODS if method in set(here["method"])]:
            middle = median_course(here[here["method"] == method])
            for ax, x in zip(axes[:, column], (middle.index, middle["seconds"]), strict=True):
                ax.plot(x, middle["error"], color=colours[method], linewidth=2 if method == "proximal" else 1.3, label=method)
        axes[0, column].set_title(f"batches of {size}", loc="left", fontsize=11)
        axes[0, column].set_xlabel("steps")
        axes[1, column].set_xlabel("seconds of one processor")
    for ax in axes.flat:
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{problem.name}, test")
    axes[0, -1].legend(frameon=False, fontsize=9)
    return figure


def median_course(fits: pd.DataFrame) -> pd.DataFrame:
    """Median seconds and error at each step; a fit that has diverged before it counts as an infinite error."""
    courses = fits.pivot(index="step", columns="seed", values=["seconds", "error"])
    return pd.DataFrame({"seconds": courses["seconds"].median(axis=1), "error": courses["error"].fillna(np.inf).median(axis=1)})


def said(setting: dict[str, Any]) -> str:
    """A setting as the ledgers have it."""
    return " ".join(f"{key}={value}" for key, value in setting.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("problem", nargs="*", choices=("burgers", "darcy", "digits", "synthetic", "cifar", []))
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 100")
    parser.add_argument("--cifar", metavar="FOLDER", help="where the official CIFAR-10 archive is")
    parser.add_argument("--share", default="1/1", help="i/k: the i-th of k processes")
    arguments = parser.parse_args()
    {"run": run, "report": report}[arguments.part](arguments)
