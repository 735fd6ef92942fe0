"""Draw first_picture.png, of the front pages: a confounded curve, what regression makes of it, and an estimate with its band.

    python docs/first_picture.py docs/first_picture.png

The design is that of docs/inference.md, with more of the confounder: a sine, 2000 rows. The seed is the first.
"""

from __future__ import annotations

import sys

import matplotlib as mpl
import numpy as np
import pandas as pd

import cfiv


def simulate(n: int, seed: int) -> pd.DataFrame:
    """``y = sin(t) + 1.5 u + noise``; the hidden ``u`` also moves ``t``, and an instrument ``z`` moves ``t`` alone."""
    generator = np.random.default_rng(seed)
    z, hidden = generator.uniform(-4, 4, n), generator.uniform(-1.5, 1.5, n)
    dose = z + hidden
    return pd.DataFrame({"z": z, "t": dose, "y": np.sin(dose) + 1.5 * hidden + 0.3 * generator.normal(size=n)})


def main(path: str) -> None:
    """Both fits, the truth, and 400 of the rows."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    table, grid = simulate(2000, 0), np.linspace(-5, 5, 101)
    formula = "y ~ [bs(t, df=6, extrapolation='extend') ~ bs(z, df=8)]"
    curve = cfiv.infer(table, cfiv.TwoStageLeastSquares(formula).fit(table)).dose_response(grid)
    regression = cfiv.LeastSquares(formula).fit(table).dose_response(grid)
    _, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    ax.scatter(table["t"][:400], table["y"][:400], s=7, color="#999999", alpha=0.5, linewidth=0, label="rows")
    ax = cfiv.plots.confidence_band(curve.table, along="t", outcome="outcome", ax=ax)
    ax.plot(grid, regression["estimate"], color=cfiv.plots.COLOURS[1], linewidth=2, label="regression")
    ax.plot(grid, np.sin(grid), color="black", linewidth=1.4, linestyle=":", label="truth")
    ax.set(xlabel="treatment", ylim=(-4, 4))
    ax.legend(frameon=False, ncols=3, loc="upper left", fontsize="small")
    ax.figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
