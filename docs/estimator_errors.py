"""The README's table: every estimator on the demand design, with the published error and with one 50 times as large.

    python docs/estimator_errors.py            # all of it, about a quarter of an hour on one core; continues where it stopped
    python docs/estimator_errors.py --seeds 1
    python docs/estimator_errors.py --seeds 3 --long    # and the two that train, trained long, with the published error

Writes one line a fit to docs/estimator_errors.csv, and prints the table of medians as Markdown. The splines' degrees of freedom
were the largest of 4, 6, 8, 10, 12, as the held-out score prefers them; everything else is a default.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import pandas as pd

import cfiv
from cfiv.datasets import demand
from cfiv.rendering import to_markdown

LEDGER = Path(__file__).with_suffix(".csv")
N = 5000
ERROR_SCALES, RHOS = (1.0, 50.0), (0.1, 0.9)
FIRST_SEED = 100
B = "bs(time, df=12, extrapolation='clip')"
SPLINES = (
    f"sales ~ {B} + emotion + {B}:emotion"
    f" + [price + price:{B} + price:emotion + price:emotion:{B} ~ fuel + fuel:{B} + fuel:emotion + fuel:emotion:{B}]"
)
KEYS = ["method", "error_scale", "rho", "seed"]


def methods(seed: int) -> dict[str, Any]:
    """Unfitted estimators by the table's names."""
    trained = {"progress": False, "random_state": seed}
    return {
        "Least squares": cfiv.LeastSquares(demand.FORMULA),
        "Least squares with splines": cfiv.LeastSquares(SPLINES),
        "Network, no instruments": cfiv.NetworkRegression(demand.FORMULA, **trained),
        "2SLS": cfiv.TwoStageLeastSquares(demand.FORMULA),
        "2SLS with splines": cfiv.TwoStageLeastSquares(SPLINES),
        "Kernel IV": cfiv.KernelIV(demand.FORMULA, random_state=seed),
        "DFIV": cfiv.DFIV(demand.FORMULA, **trained),
    }


def trained_long(seed: int) -> dict[str, Any]:
    """The two that train, with three times the steps and four times the fits."""
    trained = {"progress": False, "random_state": seed, "steps": 1500}
    return {
        "Network, no instruments, long": cfiv.NetworkRegression(demand.FORMULA, fits=8, **trained),
        "DFIV, long": cfiv.DFIV(demand.FORMULA, fits=4, **trained),
    }


def main(seeds: int, *, long: bool) -> None:
    """Fit what is not yet in the ledger, then print the table."""
    done = pd.read_csv(LEDGER) if LEDGER.exists() else pd.DataFrame(columns=[*KEYS, "error", "seconds"])
    finished = set(done[KEYS].itertuples(index=False, name=None))
    for seed, scale, rho in itertools.product(range(FIRST_SEED, FIRST_SEED + seeds), ERROR_SCALES, RHOS):
        data, truth = demand.simulate(N, rho=rho, seed=seed, error_scale=scale)
        models = methods(seed) | (trained_long(seed) if long and scale == ERROR_SCALES[0] else {})
        for name, model in models.items():
            if (name, scale, rho, seed) in finished:
                continue
            model.fit(data.frame)
            record = dict(zip(KEYS, (name, scale, rho, seed), strict=True))
            line = pd.DataFrame([{**record, "error": truth.error(model), "seconds": model.fit_seconds_}])
            line.to_csv(LEDGER, mode="a", header=not LEDGER.exists(), index=False)
    table = pd.read_csv(LEDGER)
    medians = table.pivot_table(index="method", columns=["error_scale", "rho"], values="error", aggfunc="median")
    medians.columns = [f"error x {scale:g}, rho {rho:g}" for scale, rho in medians.columns]
    medians["seconds"] = table.groupby("method")["seconds"].median()
    print(to_markdown(medians.loc[[name for name in (*methods(0), *trained_long(0)) if name in medians.index]]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 100")
    parser.add_argument("--long", action="store_true", help="also fits that are trained long, with the published error")
    arguments = parser.parse_args()
    main(arguments.seeds, long=arguments.long)
