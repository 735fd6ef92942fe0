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
# another, and when to stay with the line. Tutorial 07 says what an interval promises, and what a band.

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

torch.set_num_threads(1)  # small networks run no faster on more
warnings.simplefilter("ignore", cfiv.CfivWarning)  # what they say is in the notes that we print


# %%
def both(models, table):
    """Each model fitted, and its inference."""
    fitted = {name: model.fit(table) for name, model in models.items()}
    return {name: (model, cfiv.infer(table, model)) for name, model in fitted.items()}


def effects(fits, table, start, end):
    """The effect of one treatment beside another: with its interval by ``infer``, and as the model has it by itself."""
    asked = {"treatment_from": start, "treatment_to": end}
    found = pd.concat({name: inference.effect(**asked).table for name, (_, inference) in fits.items()}).droplevel(1)
    own = [model.effect(table, **asked).mean() for model, _ in fits.values()]
    return found[["estimate", "std_error", "lower", "upper"]].assign(**{"model's own": own}).round(3)


def derivatives(fits):
    found = pd.concat({name: inference.average_derivative().table for name, (_, inference) in fits.items()}).droplevel(1)
    return found[["estimate", "std_error", "lower", "upper"]].round(3)


def draw(fits, grid, low, high):
    """Curves with bands side by side, and over each the line of two-stage least squares, dotted."""
    _, axes = plt.subplots(1, len(fits), figsize=(3.8 * len(fits), 3.6), sharey=True, layout="constrained")
    for ax, (name, (_, inference)) in zip(axes, fits.items(), strict=True):
        inference.dose_response(grid).plot(ax).set(ylim=(low, high), title=name)
        ax.plot(grid, fits["2SLS"][1].dose_response(grid).values, ":", color="black")
        ax.get_legend().remove()
        ax.label_outer()
    plt.show()


def straight(inference, grid):
    """The p-value of a straight line: are the steps from each treatment to the next all the same?"""
    steps = inference.dose_response(grid[1:]) - inference.dose_response(grid[:-1])
    first = inference.dose_response(grid[1:2]) - inference.dose_response(grid[:1])
    return round((steps - first).test().pval, 2)


def notes(inference):
    print("\n".join(textwrap.fill(note, 100, initial_indent="* ", subsequent_indent="  ") for note in inference.notes))


# %% [markdown]
# ## 1. Women's schooling and wages: a shape that is not there
#
# 428 working women (Mroz 1987). The able both study longer and earn more, so the schooling of a woman's parents is the
# instrument for hers. What is a year of schooling worth, and is a year of college worth more than one of school?

# %%
women = mroz.load().dropna(subset=["lwage"])
formula = "lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]"
wages = both(
    {
        "2SLS": cfiv.TwoStageLeastSquares(formula),
        "SieveIV": cfiv.SieveIV(formula, random_state=0),
        "KernelIV": cfiv.KernelIV(formula, random_state=0),
    },
    women,
)
years = np.arange(8, 18)
draw(wages, years, -1, 4)

# %% [markdown]
# Dark is the pointwise interval, light the uniform band; two dashed lines are a band with a note against it, which we come
# to. Look at the right end of both curves: from 13 years on wages seem to climb, and at 17 the dark interval of `SieveIV`
# just leaves the dotted line below it. Whoever chose that year after seeing the figure would have a finding: college pays,
# school does not. But it was chosen after seeing it. The *band* is for such readers, and the line fits into it everywhere. So
# says the test of all years at once:

# %%
print("p-values of a straight line:", {name: straight(wages[name][1], years) for name in ("SieveIV", "KernelIV")})

# %% [markdown]
# The effect of one year, from 12 to 13, and the average over all women of what a further year brings:

# %%
effects(wages, women, 12, 13)

# %%
derivatives(wages)

# %% [markdown]
# A curve has no answer to the first question: its interval is some four times that of the line, on both sides of zero. To the
# second the curves have nearly the answer of the line, at one and a half to two times its error. An average asks less of a
# curve than a point does.
#
# The two curves are nearly one. `KernelIV` found no more by itself than splines do, and what `infer` draws is not the
# model's own curve: it is that of the model *corrected* by splines. Under "model's own" stands what the model says, which
# has no interval. The notes say so, and why the band is dashed:

# %%
notes(wages["KernelIV"][1])

# %% [markdown]
# **What to write.** The line: 0.061 a year, with an interval that just holds zero. "Nothing speaks for a curve, and 428 rows
# could hardly show one." Not: "the effect is linear".
#
# ## 2. Schooling and children: an average that does not depend on the line
#
# 1129 women of the General Social Survey (Sander 1992), and how many children they have. Instruments are again their parents'
# schooling. `DFIV` learns here for 100 steps, on one split, to be quick.

# %%
mothers = fertility.load()
controls = "black + east + northcen + west + farm + othrural + town + smcity + y74 + y76 + y78 + y80 + y82 + y84"
formula = f"kids ~ age + agesq + {controls} + [educ ~ meduc + feduc]"
children = both(
    {
        "2SLS": cfiv.TwoStageLeastSquares(formula),
        "SieveIV": cfiv.SieveIV(formula, random_state=0),
        "DFIV": cfiv.DFIV(formula, fits=1, steps=100, random_state=0, progress=False),
    },
    mothers,
)
years = np.arange(6, 19)
draw(children, years, -1, 8)
print("p-values of a straight line:", {name: straight(children[name][1], years) for name in ("SieveIV", "DFIV")})

# %%
derivatives(children)

# %% [markdown]
# The line fits into the bands with room to spare. And now it is worth something that the curves were drawn: three estimates
# that assume different forms agree on the average, and none of the intervals holds zero. More schooling means fewer children,
# a seventh of a child a year, and that is no product of the straight line.
#
# What stands against it, if anything:

# %%
notes(children["DFIV"][1])

# %% [markdown]
# Read closely: it is the effect's *variation over the rows* that may be noise. DFIV's own function has effects that bend, and
# that differ with the covariates, and of that there is nothing to be seen. The average is another question, and has its own
# interval, above. What the note forbids is a sentence on whose schooling matters more, or between which years.
#
# With `random_state` 1 and 2 the second note is not there, and the corrected average is the same. A record of doubts is
# itself an estimate, here from one split and a short training; its silence is not worth more than its word.
#
# **What to write.** The line, and one sentence: "allowing for curves in all variables changes the average effect by less than
# half its standard error".
#
# ## 3. Men's schooling and wages: the number that looks best
#
# Card's (1995) 3010 men, and whether there was a college nearby. Tutorial 01 has DFIV on this table. Here is `KernelIV`, and
# least squares for scale.

# %%
men = card1995.load()
returns = both(
    {
        "least squares": cfiv.LeastSquares(card1995.FORMULA),
        "2SLS": cfiv.TwoStageLeastSquares(card1995.FORMULA),
        "KernelIV": cfiv.KernelIV(card1995.FORMULA, random_state=0),
    },
    men,
)
effects(returns, men, 12, 13)

# %%
print("KernelIV by itself:", returns["KernelIV"][0].trust_, end="\n\n")
notes(returns["KernelIV"][1])

# %% [markdown]
# By itself `KernelIV` has no more than the answer of least squares, the one that the instrument was to mend. Its record doubts
# the bends, with this seed; with some others it has nothing against it. That is what penalties do where an instrument says
# little. Corrected, it is two-stage least squares again, with the error of that: the penalty was all the difference. An
# estimate that looks more precise than 2SLS with a weak instrument has its precision from somewhere else.
#
# The last note says what the instrument, of two values, leaves open: any bend. A smooth curve within straight-line bands
# would be the method's, not the data's.

# %%
draw(returns, np.arange(8, 19), 4.5, 8)

# %% [markdown]
# The bow tie misleads in two ways. It is narrow at 13 years because the *level* is known at the mean, and not the slope. And
# the line of least squares lies inside the bands from end to end: this table cannot tell its 0.075 from 0.132.
#
# **What to write.** The line with the Anderson-Rubin set of `cfiv.diagnose`, 0.028 to 0.281, as the instrument is weak; and
# no curve.
#
# ## 4. Insurance and drugs: the curve that mattered was another one
#
# 10,089 Americans of 65 and more years (Medical Expenditure Panel Survey, in Cameron and Trivedi's book). Do those whom an
# employer or a union insures besides spend more on drugs? The treatment has two values, so there is no curve. The instrument
# is the ratio of social security to all of their income.

# %%
elderly = meps.load().dropna(subset=["linc"])
formula = "ldrugexp ~ totchr + age + female + blhisp + linc + [hi_empunion ~ ssiratio]"
drugs = both(
    {
        "least squares": cfiv.LeastSquares(formula),
        "2SLS": cfiv.TwoStageLeastSquares(formula),
        "DFIV": cfiv.DFIV(formula, fits=1, steps=100, random_state=0, progress=False),
    },
    elderly,
)
print("DFIV:", drugs["DFIV"][0].trust_)
effects(drugs, elderly, 0, 1)

# %% [markdown]
# The instrument is strong, nothing speaks against DFIV, and yet the two are not of one mind: by DFIV, corrected or not, the
# effect is about half as large again, or more, and its error about twice that of the line. A curve in a treatment of two
# values cannot be the reason. What else does DFIV do? It has curves of the *covariates*. Two-stage least squares can have
# them, too:

# %%
curved = {}
for income in ("linc", "bs(linc, df=3)", "bs(linc, df=6)"):
    line = cfiv.TwoStageLeastSquares(formula.replace("linc", income)).fit(elderly)
    strength = {"F": cfiv.infer(elderly, line).strength.leading_f}
    curved[income] = line.coefficients_.loc["hi_empunion", ["coefficient", "std_error", "lower", "upper"]].to_dict() | strength
pd.DataFrame(curved).T.round(2)

# %% [markdown]
# There it is. The instrument is a ratio with income below the line, so whatever a straight line in log income leaves of
# spending goes to it, and by it to insurance. The more freely income may bend, the larger the effect, and the less is left of
# the instrument. No interval in either table counts that: each takes its own control for granted.
#
# An effect of -1.5 would be three quarters less spending by those who are insured *better*. Before one believes that, one
# doubts that the ratio touches spending through insurance alone, and no table can settle this.
#
# **What to write.** Not one number with its interval. All three rows, and that the answer hangs on the control for income.
#
# ## What to take home
#
# | table | the curve's band | what else spoke | report |
# |---|---|---|---|
# | Mroz | holds the line; pointwise intervals alone would have made a finding | few rows; the model doubts itself | the line |
# | fertility | holds the line | the average is the same in every form | the line, and that |
# | Card | only a line's, of an instrument of two values | its own number is least squares' | the line, the Anderson-Rubin set |
# | MEPS | a treatment of two values has none | a curve of a *covariate* moves the effect | how the answer hangs on it |
#
# Where there is a band of a curve, it holds the straight line; so it does for the test scores of tutorial 07. Economists'
# tables are small, and their instruments move a slope better than a bend. A curve is worth drawing all the same: for the
# average that does not depend on the form, and for the sentence that nothing speaks for more. What it takes for a band that
# rules out a line can be seen in the first part of tutorial 07: an instrument that is strong and takes many values, and 2000
# rows.
