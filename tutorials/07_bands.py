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
# # How sure is a curve?
#
# A curve from 2000 rows is one of the many that 2000 rows could have given. An **interval** and a **band** say how far apart
# those are. They promise different things, and both promise nothing where the table has no rows. We first look at what they
# promise where the truth is known and samples can be drawn again, and then at wages.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from linearmodels.datasets import card

import cfiv
from cfiv.datasets import card1995
from cfiv.errors import DataError

# %% [markdown]
# ## 1. What an interval promises, and what a band
#
# A dose acts on an outcome by a sine, and something hidden moves both. An instrument moves the dose.


# %%
def sample(n, seed):
    rng = np.random.default_rng(seed)
    z, hidden = rng.uniform(-3, 3, n), rng.uniform(-1.5, 1.5, n)
    dose = z + hidden
    return pd.DataFrame({"z": z, "dose": dose, "y": np.sin(dose) + hidden + 0.3 * rng.normal(size=n)})


grid = np.linspace(-4, 4, 41)
table = sample(2000, seed=0)
model = cfiv.SieveIV("y ~ [dose ~ z]", random_state=0).fit(table)
inference = cfiv.infer(table, model)
inference

# %% [markdown]
# `SieveIV` chose a number of splines that balances bias and noise. That is the best single curve it can give, and a poor one to
# put an interval around: an interval counts noise and no bias. So `infer` estimates again with at least twice as many
# functions, whose bias is small, and says so in its note. That curve is rougher, and its interval is honest.

# %%
band = inference.dose_response(grid)
ax = band.plot()
ax.plot(grid, np.sin(grid), ":", color="black", label="truth")
ax.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# The inner ribbon is the pointwise interval, the outer one the uniform band. To see the difference, we draw the sample anew,
# sixty times, and count two things: at how many doses the interval holds the truth, and in how many samples it does so at *all*
# of them.


# %%
def held(seed):
    table = sample(2000, seed)
    model = cfiv.SieveIV("y ~ [dose ~ z]", random_state=seed).fit(table)
    found = cfiv.infer(table, model, draws=1000).dose_response(grid).table
    inside = found["lower"].lt(np.sin(grid)) & found["upper"].gt(np.sin(grid))
    banded = found["band_lower"].lt(np.sin(grid)) & found["band_upper"].gt(np.sin(grid))
    return {"interval, doses": inside.mean(), "interval, whole curves": inside.all(), "band, whole curves": banded.all()}


pd.DataFrame([held(seed) for seed in range(1, 61)]).astype(float).mean().round(2).to_frame("share that holds the truth")

# %% [markdown]
# * **The interval** is right at about 95 % of the doses. It is for a reader who named *one* dose before looking.
# * Read as a curve it is wrong in half of the samples: somewhere it misses.
# * **The band** holds whole curves in at least 95 % of the samples. It is for everything one says after looking: that the curve
#   rises, bends, or has its top at 1.6.
#
# ## 2. Wages and a test score
#
# Card's table has the wages of young men, their `IQ` in a school test, and their score in a quiz on the world of work, `KWW`.
# An IQ test measures ability with an error, which flattens the curve of wages against it. `KWW` measures ability too, and if
# its errors have nothing to do with those of the IQ test, nor with wages but through ability, it is an instrument. Whether that
# is so no table can say; it is the assumption.

# %%
columns = ["lwage", "IQ", "KWW", "exper", "black", "south", "smsa"]
wages = card.load()[columns].dropna()
formula = "lwage ~ exper + black + south + smsa + [IQ ~ KWW]"
model = cfiv.SieveIV(formula, random_state=0).fit(wages)
inference = cfiv.infer(wages, model)
inference

# %% [markdown]
# Two numbers to look at before the curve. The **canonical correlations** say how strongly the instrument moves the functions of
# the basis: the first is about a slope, and strong enough; the last a fine bend, of which the quiz tells next to nothing. A
# wide band will be the honest answer to that. Had the first been weak, or larger bases disagreed with this one, there would
# be another note, and the band would be dashed.

# %%
points = np.arange(50, 166, 2.5)
curve = inference.dose_response(points)
curve.plot().set_ylim(3, 10)
plt.show()

# %% [markdown]
# Against it least squares, in splines as well, which takes the test at its word: narrow, and about another question, as its
# note says.

# %%
plain = cfiv.LeastSquares("lwage ~ exper + black + south + smsa + [bs(IQ, df=5, extrapolation='extend') ~ KWW]").fit(wages)
naive = cfiv.infer(wages, plain)
print(naive.notes[0])
inside = points[(points >= 60) & (points <= 140)]
naive.dose_response(inside).plot().set_ylim(3, 10)
plt.show()

# %% [markdown]
# What may be said? Any one difference has its own interval, of the points that were named before; whether there is a curve at
# all is a joint test. Estimates of one inference know their covariances, so both are one line.

# %%
print(inference.effect(treatment_from=85, treatment_to=115))
print(inference.average_derivative())
middle = inference.dose_response([80, 90, 100, 110, 120])
print("flat from 80 to 120?", round((middle - inference.dose_response([100])).test().pval, 4))

# %% [markdown]
# From 85 to 115 wages rise, and a flat curve is ruled out. That the curve *bends* cannot be told: a straight line fits into its
# band everywhere, wiggles or not.
#
# ## 3. How to read `supported`

# %%
columns = ["IQ", "exper", "black", "south", "smsa"]
asked = [(100, 8, 0, 0, 1), (145, 5, 0, 0, 1), (125, 15, 1, 1, 0), (100, 20, 0, 0, 1), (165, 8, 0, 0, 1)]
answer = inference.predict(pd.DataFrame(asked, columns=columns)).table.round(2)
answer[["IQ", "exper", "black", "estimate", "lower", "upper", "supported"]]

# %% [markdown]
# `supported` is True where training has seen such a treatment *at such covariates*, and where what is asked of the basis is no
# further from the rows of training than the furthest of them.
#
# * IQ 100 at common covariates was seen, and so was 145 after five years of work. The second interval is wide all the same: few
#   such men, and an instrument that tells little of them. True is no certificate of precision.
# * IQ 125 was seen, and men with 15 years of work were, but not such men in these covariates. The interval is the narrow one of
#   others, carried over by adding up.
# * Nobody has worked for 20 years; IQ 165 is beyond all rows. There the interval says how the splines go on, not how wages do.
#
# Where it is False an estimate is not to be quoted, however narrow its interval looks. In figures those parts are faint.
#
# ## 4. And when there is no band
#
# Card's own instrument is whether there was a college nearby: two values. Through two values goes one line. A curve asked of
# them is refused rather than drawn.

# %%
try:
    cfiv.SieveIV("lwage ~ exper + black + south + smsa + [educ ~ nearc4]").fit(card1995.load())
except DataError as error:
    print(error)
line = cfiv.TwoStageLeastSquares(card1995.FORMULA).fit(card1995.load())
print(cfiv.infer(card1995.load(), line).effect(treatment_from=12, treatment_to=16))
