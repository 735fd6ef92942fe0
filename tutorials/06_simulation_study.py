# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own simulation study
#
# You have an idea for an estimator, or a suspicion about an old one. Whether it is right is shown by data whose truth is
# known, drawn many times: a design, some methods, a number of replications, a table at the end. `cfiv.studies` keeps the
# grid, the seeds and the finished work, so that what you write is the design and the method.
#
# The question here: **what does an effect that bends cost a linear estimator, and what does a clumsy control function cost?**

# %%
from pathlib import Path

import numpy as np
import pandas as pd

import cfiv
from cfiv.studies import AverageEffect, Design, Method, Study

Path("bends.sqlite").unlink(missing_ok=True)  # this page starts anew each time; your own study would not

# %% [markdown]
# ## A design
#
# A function of a seed and of what you want to vary. It returns a table and the truth: here the true structural function,
# which takes rows and gives a number each. The truth is $h(t) = 2 t + c\,(t^2 - 2)$ with curvature $c$. The confounder $u$
# moves treatment and outcome alike; $z$ moves the treatment alone. A regression without instruments would be wrong by the
# part of $u$ that $t$ predicts, $E[u \mid t] = t / 2$: it finds a slope of 2.5.


# %%
def bends(n: int, curvature: float, *, seed: int):
    generator = np.random.default_rng(seed)
    z, u, noise = generator.normal(size=(3, n))
    t = z + u

    def truth(rows: pd.DataFrame) -> pd.Series:
        return 2.0 * rows["t"] + curvature * (rows["t"] ** 2 - 2.0)

    data = pd.DataFrame({"t": t, "z": z})
    return data.assign(y=truth(data) + u + noise), truth


# %% [markdown]
# ## An estimator
#
# Any object with `fit(data)` and `predict(rows)`. This one is a **control function**: the residual $v$ of the first stage
# stands for the confounder in a regression of the outcome on $t, t^2$ and $v$. Values that you want to vary are arguments.


# %%
class ControlFunction:
    def __init__(self, degree: int):
        self.degree = degree

    def fit(self, data: pd.DataFrame):
        first = np.polyfit(data["z"], data["t"], 1)
        residual = data["t"] - np.polyval(first, data["z"])
        columns = np.column_stack([data["t"] ** k for k in range(self.degree + 1)] + [residual])
        self.coefficients = np.linalg.lstsq(columns, data["y"])[0][:-1]
        return self

    def predict(self, rows: pd.DataFrame):
        return np.polyval(self.coefficients[::-1], rows["t"])


# %% [markdown]
# ## The study
#
# Lists are axes of the grid: two sample sizes and two curvatures make four cells, and the control function comes in two
# degrees. A function of a seed makes an estimator that is not one of cfiv's. Metrics are functions too: by default the mean
# squared error against the truth, and `AverageEffect` is the effect of moving everyone's treatment from 0 to 1, of which the
# report gives bias and standard deviation, and how surely both are known after so many replications.

# %%
study = Study(
    "bends",
    designs={"bends": Design(bends, n=[200, 2000], curvature=[0.0, 0.5])},
    methods={
        "2SLS": cfiv.TwoStageLeastSquares("y ~ [t ~ z]"),
        "2SLS, squares": cfiv.TwoStageLeastSquares("y ~ [t + I(t**2) ~ z + I(z**2)]"),
        "Least squares": cfiv.LeastSquares("y ~ [t ~ z]"),
        "Control function": Method(lambda seed, degree: ControlFunction(degree), degree=[1, 2]),
    },
    metrics={"error": cfiv.studies.error, "effect": AverageEffect("t", treatment_from=0.0, treatment_to=1.0)},
    replications=50,
    time_limit=60,
)
report = study.run(jobs=2, progress=False)  # leave progress out to see how long it will take
report

# %% [markdown]
# Each number came from a fit in a process of its own, with a seed that follows from the study's seed, the cell's name and the
# number of the replication, and from nothing else. All methods saw the same data.
#
# What the tables say: where the truth is a line (curvature 0) everyone but plain least squares is right on average. Where it
# bends, a straight line is wrong at any n: its error does not fall, and by 2SLS the effect of moving from 0 to 1 is too small
# by half a unit however many rows there are. That of plain least squares is right there, and by chance alone: its bias of half
# a unit and the missing bend cancel, at this curvature and this step. The error of those with a square falls like $1/n$, a
# slope of -1 in the table of slopes. And two rows are equal to the last digit: a control function of degree 1 *is* two-stage
# least squares.

# %%
report.box_plot("error")

# %%
report.convergence("error")

# %% [markdown]
# ## Stop, continue, change
#
# Every finished fit is a row in `bends.sqlite`. Whatever happens to this notebook, `study.run()` again does the rest; right
# now there is nothing to do, and it takes a moment. More replications, another n in the list or another method later leave
# every number as it is, and a method whose source or arguments you change is run again, it alone. Metrics are part of every
# row: with another one, all is run again.

# %%
study.run(progress=False)
results = study.results()
results.head()

# %% [markdown]
# `results` has one row a replication, for questions that no report foresees. For instance: since the data are the same for
# all, how often is the quadratic control function closer to the truth than quadratic 2SLS? (In most replications. It assumes
# more, a confounder that is linear in the residual, and in this design that is true. A design where it is false would be the
# next study.)

# %%
errors = results.fillna({"degree": 0}).set_index(["curvature", "n", "replication", "method", "degree"])["error"]
ours, theirs = errors.xs(("Control function", 2), level=(3, 4)), errors.xs(("2SLS, squares", 0), level=(3, 4))
(ours < theirs).groupby(["curvature", "n"]).mean().rename("share of replications").to_frame()

# %% [markdown]
# Where something fails, the row says why, and the others are unharmed: a method that raises, hangs past the time limit,
# returns NaN or takes its process down.


# %%
def hopeless(seed: int):
    raise RuntimeError("I never liked this design")


broken = Study(
    "hopeless", designs={"bends": Design(bends, n=200, curvature=0.5)}, methods={"hopeless": hopeless}, replications=2
)
broken.run(jobs=1, progress=False)
broken.failures()[["method", "replication", "reason"]]

# %% [markdown]
# ## To others
#
# `report.write(folder)` writes the tables as Markdown and LaTeX, the figures as PNG and SVG, the rows as CSV, and one page of
# HTML with everything.

# %%
[path.name for path in report.write("bends-report")]

# %% [markdown]
# ## From here
#
# * The same from a file and the shell: `cfiv study init mine`, edit `mine.toml`, `cfiv study run mine.toml`. Your own
#   functions are named `"my_module:my_design"`, in a file beside it.
# * The studies that ship with cfiv repeat its literature: `cfiv study run demand`, then `cfiv study report demand`.
# * On a cluster: start a dask client, and call `run` inside `joblib.parallel_config(backend="dask")`. The numbers are the
#   same to the last bit.
