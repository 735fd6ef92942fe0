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
# # Four real tables, and what a band says of them
#
# Four tables that textbooks estimate by a straight line. Of each: the question, the line with its interval, a curve with its
# band, and what to write in the end. Nobody knows the truth here. What can be learned is how to read the answers beside one
# another: where a curve is clear, where its band says nothing, and where the curve is not the data's at all.

# %%
import textwrap
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from linearmodels.datasets import fertility, meps, mroz

import cfiv
from cfiv.datasets import card1995

torch.set_num_threads(1)
warnings.simplefilter("ignore", cfiv.CfivWarning)  # what they say stands in the notes that we print


# %%
def effects(fits, table, start, end):
    """The effect of one treatment beside another: each model's own, and with its interval by ``infer``."""
    asked = {"treatment_from": start, "treatment_to": end}
    found = pd.concat({name: inference.effect(**asked).table for name, (_, inference) in fits.items()}).droplevel(1)
    own = [model.effect(table, **asked).mean() for model, _ in fits.values()]
    return found[["estimate", "std_error", "lower", "upper"]].assign(**{"the model's own": own}).round(3)


def bends(inference, grid):
    """The p-value of a straight line: are all steps from one treatment to the next the same?"""
    steps = inference.dose_response(grid[1:]) - inference.dose_response(grid[:-1])
    first = inference.dose_response(grid[1:2]) - inference.dose_response(grid[:1])
    return (steps - first).test().pval


def draw(fits, grid, low, high):
    """Curves with bands side by side, and over each the line of two-stage least squares, dotted."""
    line = fits["2SLS"][1].dose_response(grid).values
    _, axes = plt.subplots(1, len(fits), figsize=(3.8 * len(fits), 3.6), sharey=True, layout="constrained")
    for ax, (name, (_, inference)) in zip(axes, fits.items(), strict=True):
        inference.dose_response(grid).plot(ax).set(ylim=(low, high), title=name)
        ax.plot(grid, line, ":", color="black")
        ax.get_legend().remove()
    plt.show()


def notes(inference):
    print("\n".join(textwrap.fill(note, 100, initial_indent="* ", subsequent_indent="  ") for note in inference.notes))


# %% [markdown]
# ## 1. Schooling and wages of women (Mroz 1987)
#
# 428 working women, their schooling and their wages. The able both study longer and earn more; the schooling of their parents is
# the instrument.

# %%
women = mroz.load().dropna(subset=["lwage"])
formula = "lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]"
fits = {}
for name, model in {
    "2SLS": cfiv.TwoStageLeastSquares(formula),
    "SieveIV": cfiv.SieveIV(formula, random_state=0),
    "KernelIV": cfiv.KernelIV(formula, random_state=0),
}.items():
    fits[name] = model.fit(women), cfiv.infer(women, model)
effects(fits, women, 12, 13)

# %%
years = np.arange(8, 18)
draw(fits, years, -1, 4)
print({name: round(bends(inference, years), 3) for name, (_, inference) in fits.items() if name != "2SLS"})

# %%
notes(fits["KernelIV"][1])
pd.concat({name: i.average_derivative().table for name, (_, i) in fits.items()}).droplevel(1).round(3)

# %%
fits["KernelIV"][1].dose_response(years).table.round(2)

# %% [markdown]
# ## 2. Schooling and children (Sander 1992)

# %%
births = fertility.load()
controls = "black + east + northcen + west + farm + othrural + town + smcity + y74 + y76 + y78 + y80 + y82 + y84"
formula = f"kids ~ age + agesq + {controls} + [educ ~ meduc + feduc]"
fits = {}
for name, model in {
    "2SLS": cfiv.TwoStageLeastSquares(formula),
    "SieveIV": cfiv.SieveIV(formula, random_state=0),
    "DFIV": cfiv.DFIV(formula, fits=1, steps=100, random_state=0, progress=False),
}.items():
    fits[name] = model.fit(births), cfiv.infer(births, model)
effects(fits, births, 8, 16)

# %%
years = np.arange(6, 19)
draw(fits, years, -1, 7)
print({name: round(bends(inference, years), 3) for name, (_, inference) in fits.items() if name != "2SLS"})

# %%
notes(fits["DFIV"][1])
pd.concat({name: i.average_derivative().table for name, (_, i) in fits.items()}).droplevel(1).round(3)

# %% [markdown]
# ## 3. Schooling and wages of men (Card 1995)

# %%
men = card1995.load()
fits = {}
for name, model in {
    "least squares": cfiv.LeastSquares(card1995.FORMULA),
    "2SLS": cfiv.TwoStageLeastSquares(card1995.FORMULA),
    "KernelIV": cfiv.KernelIV(card1995.FORMULA, random_state=0),
}.items():
    fits[name] = model.fit(men), cfiv.infer(men, model)
effects(fits, men, 12, 13)

# %%
print(fits["KernelIV"][0].trust_)
notes(fits["KernelIV"][1])
draw(fits, np.arange(8, 19), 4.5, 8)

# %% [markdown]
# ## 4. Insurance and the cost of drugs (MEPS)

# %%
elderly = meps.load().dropna(subset=["linc"])
formula = "ldrugexp ~ totchr + age + female + blhisp + linc + [hi_empunion ~ ssiratio]"
fits = {}
for name, model in {
    "least squares": cfiv.LeastSquares(formula),
    "2SLS": cfiv.TwoStageLeastSquares(formula),
    "DFIV": cfiv.DFIV(formula, fits=1, steps=100, random_state=0, progress=False),
}.items():
    fits[name] = model.fit(elderly), cfiv.infer(elderly, model)
effects(fits, elderly, 0, 1)
