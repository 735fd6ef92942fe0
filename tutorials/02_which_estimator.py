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
# # Which estimator, and when none
#
# Six of the estimators of cfiv take part here. Two ignore the instruments, four use them; two are linear in the columns
# you give them, four find curves by themselves. We fit five of them (`SieveIV`, splines that choose themselves, suits effects
# that do not vary with several covariates) to data whose truth is known, ask what could have been known without the truth, and
# then take the instrument away, little by little, to see how each of them fails.

# %%
import textwrap
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import cfiv
from cfiv import plots
from cfiv.datasets import card1995, demand

torch.set_num_threads(1)  # small networks run no faster on more

# %% [markdown]
# ## 1. What would plain regression have said?
#
# The data are the airline tickets of the first tutorial: the cost of `fuel` moves the price, and an unrecorded conference
# moves price and sales together. In the published design that conference matters little, so we first make it matter:
# `error_scale=50` lets what is unrecorded move sales by 50 tickets (one standard deviation) instead of 1, and with `rho=0.9`
# most of that goes with the price.
#
# "2SLS, splines" has its nonlinear terms by formula: splines in time, and a price effect that varies with time and with
# emotion; its instruments vary likewise. Of 4, 5, 6 and 8 degrees of freedom, 8 had the best held-out score.

# %%
spline = "bs(time, df=8, extrapolation='clip')"
splines = f"sales ~ {spline}*emotion + [price + price:{spline} + price:emotion ~ fuel + fuel:{spline} + fuel:emotion]"


def all_estimators():
    return {
        "Least squares": cfiv.LeastSquares(demand.FORMULA),
        "Network, no instruments": cfiv.NetworkRegression(demand.FORMULA, random_state=0, progress=False),
        "2SLS": cfiv.TwoStageLeastSquares(demand.FORMULA),
        "2SLS, splines": cfiv.TwoStageLeastSquares(splines),
        "Kernel IV": cfiv.KernelIV(demand.FORMULA, random_state=0),
        "DFIV": cfiv.DFIV(demand.FORMULA, random_state=0, progress=False),
    }


# %%
train, truth = demand.simulate(n=2000, rho=0.9, seed=0, error_scale=50)
fresh, _ = demand.simulate(n=2000, rho=0.9, seed=1, error_scale=50)
models = {name: model.fit(train.frame) for name, model in all_estimators().items()}

# %% [markdown]
# `compare` makes the table. `score` is the share of the variance of fresh sales that the model explains *through the
# instruments*, by $E[h(T, X) \mid Z, X]$; `error` is the mean squared error against the true structural function, for prices
# from 10 to 25 at all times. We add `fit`, the share explained by the prediction $h(T, X)$ itself, which is what a regression
# is usually judged by.


# %%
def table(models, fresh):
    comparison = cfiv.compare(models, data=fresh.frame, truth=truth).table[["seconds", "score", "error"]]
    misses = {name: np.mean((fresh.frame["sales"] - model.predict(fresh.frame)) ** 2) for name, model in models.items()}
    comparison.insert(1, "fit", 1 - pd.Series(misses) / np.var(fresh.frame["sales"]))
    return comparison.sort_values("error").round({"seconds": 1, "fit": 3, "score": 3, "error": 0})


table(models, fresh)

# %% [markdown]
# By `fit` the network without instruments wins: it predicts sales better than any other. As a structural function it is
# wrong: its error is twelve times that of DFIV. Neither more data nor a larger network would help, for what prediction tends to
# is $h + E[e \mid T, X]$, and on the same grid that is wrong by

# %%
print(f"{np.mean(demand.confounding_bias(truth.grid, rho=0.9, error_scale=50) ** 2):,.0f}")

# %% [markdown]
# That is more than the fitted network's error, because near time 10 the grid asks for prices far from any that occur, and
# there the network does not follow the confounded slope all the way.
#
# The `score`, which knows no truth, ranks the six as the error does, but for one pair: it prefers the network to the splines.
# Of a confounded prediction it sees only the part that the instrument moves, and it looks only where there are data.
#
# Instruments alone are not enough. The plane of 2SLS uses them and has a larger error here than the network, which does not:
# it is too stiff for this function. The figure shows four models for customers of emotion 4. Ticks at the
# foot are prices that occurred near that time; sales below zero are the design's. Where such prices never occurred the models
# warn, and their curves are thin and dashed.

# %%
prices, times = np.linspace(10, 25, 31), (2.0, 5.0, 8.0)
slices = pd.DataFrame([(price, time, 4.0) for time in times for price in prices], columns=["price", "time", "emotion"])
shown = ["Network, no instruments", "2SLS, splines", "Kernel IV", "DFIV"]
curves = slices.assign(
    truth=truth(slices),
    supported=models["DFIV"].supported(slices),
    **{name: models[name].predict(slices) for name in shown},
)
near = pd.concat([train.frame[(train.frame["time"] - time).abs() < 0.2].assign(time=time) for time in times])
axes = plots.structural_panels(
    curves, treatment="price", estimates=shown, panel_by="time", truth="truth", observed=near, outcome="sales (tickets)"
)
for ax in axes:
    ax.set_xlabel("price (dollars)")
plt.show()

# %% [markdown]
# At times 5 and 8 the network has sales rise with the price, where in truth they fall: that is the conference. DFIV is close
# to the truth at 2 and at 8, where most prices occurred. At 5 fuel moves the price least of the three, the ticks are close
# together, and DFIV and kernel IV, too, get the slope wrong.
#
# The splines do well because they are nearly the form of the truth, which we knew. One more term, a price effect that varies
# with time and emotion together, is just as plausible, and the truth has it:

# %%
further = splines.replace("price:emotion", f"price:emotion + price:emotion:{spline}")
further = further.replace("fuel:emotion", f"fuel:emotion + fuel:emotion:{spline}")
table({"2SLS, further splines": cfiv.TwoStageLeastSquares(further).fit(train.frame)}, fresh)

# %% [markdown]
# Its score is no worse, and its error is in the millions. Nearly all of that comes from times close to 10, where fuel does
# not move the price, so that the slope there is anyone's guess. The score sees $h$ only as far as the instrument moves the
# price: a wrong slope where it does not move costs no score. Here the negative `fit` gives it away. Look at predictions, not
# only at scores.

# %% [markdown]
# ### The design as published
#
# Now the same six with `error_scale=1`.

# %%
train_published, _ = demand.simulate(n=2000, rho=0.9, seed=0)
fresh_published, _ = demand.simulate(n=2000, rho=0.9, seed=1)
published = {name: model.fit(train_published.frame) for name, model in all_estimators().items()}
table(published, fresh_published)

# %%
print(f"error of a perfect prediction: {np.mean(demand.confounding_bias(truth.grid, rho=0.9) ** 2):.1f}")

# %% [markdown]
# Here plain prediction is as accurate as DFIV, and far better than the others. Confounding adds less than 5 to errors that they
# count in hundreds or thousands. What this design asks for is flexibility; a small error on it does not
# show that a method removes confounding, and a correlation of 0.9 does not say that there is much to remove. So begin with
# the regression without instruments. Where the instrumented estimate hardly differs from it, instruments cost precision and
# change nothing.

# %% [markdown]
# ## 2. Before a curve: diagnostics
#
# With your own data there is no `error`. `diagnose` asks the questions in order, and each line has its reading.

# %%
print(cfiv.diagnose(train.frame, demand.FORMULA))

# %% [markdown]
# From the top: fuel is a strong instrument. It is the only one, so whether instruments agree cannot be tested. Least squares
# and 2SLS differ: the treatment is endogenous, or a plane is the wrong shape; here it is both. The Anderson-Rubin set holds the
# slopes of a plane that the data do not reject, valid however weak the instrument. The last question is the gate: instruments
# and covariates predict what the plane leaves over, so no plane fits. A second test asks the same with curves of the
# covariates, to tell a curved covariate from a curved effect. Here both are curved, and the season's bend is too sharp for the
# curves of the test, which says that it cannot tell. In other data the reason may be an instrument that acts on the outcome
# directly, and no test can tell that from a curve.
#
# Now Card's (1995) wages: schooling, with growing up near a college as the instrument. `diagnose` also takes a model.

# %%
wages = card1995.load()
linear = cfiv.TwoStageLeastSquares(card1995.FORMULA).fit(wages)
card = cfiv.diagnose(wages, linear)
for result in (card.effective_f, card.wooldridge, card.anderson_rubin_set, card.residual_prediction):
    print(textwrap.fill(f"{result.name}: {result.reading}", 100), end="\n\n")

# %%
print("Anderson-Rubin set:", card.anderson_rubin_set)
linear.coefficients_.loc[["educ"], ["coefficient", "std_error", "lower", "upper"]].round(3)

# %% [markdown]
# The gate stays shut: nothing speaks against a linear model, so use 2SLS and do not fit a curve. The effective F is below its
# critical value, so report the Anderson-Rubin set as well; it reaches higher than the usual interval. The endogeneity test
# does not reject least squares either. None of this proves a line, or that ability does not matter: with an instrument this
# weak, tests see little. How little is what the rest of this tutorial is about.

# %% [markdown]
# ## 3. Weak instruments made visible
#
# One standard deviation of fuel cost moves the price by `instrument_strength` times a seasonal factor, some 2.5 dollars. We
# turn the strength down from 1 to 0.01, with the same draws otherwise, and ask each time: what does one more dollar do to
# sales?
#
# 2SLS now has the season among its covariates, as splines. A line in time leaves the price's own movement over the year in
# the first stage as noise: that is why the F was 1570 above and is larger here. The instrument stays fuel alone. It moves the
# price the same way nearly all year, so `fuel + fuel:bs(time)` would spread the same strength over nine columns.

# %%
design = {"rho": 0.9, "error_scale": 50}
strengths = [1, 0.3, 0.1, 0.03, 0.01]
seasonal = f"sales ~ {spline}*emotion + [price ~ fuel]"
samples = {k: demand.simulate(n=2000, seed=0, instrument_strength=k, **design)[0].frame for k in strengths}
two_sls = {k: cfiv.TwoStageLeastSquares(seasonal).fit(sample) for k, sample in samples.items()}
diagnostics = {k: cfiv.diagnose(sample, seasonal) for k, sample in samples.items()}

# %% [markdown]
# ### A slope

# %%
slopes = pd.DataFrame([model.coefficients_.loc["price"] for model in two_sls.values()], index=strengths)
weak = pd.DataFrame(
    {
        "effective F": [d.effective_f.statistic for d in diagnostics.values()],
        "2SLS": slopes["coefficient"],
        "2SLS, 95 % interval": [f"[{low:.3g}, {high:.3g}]" for low, high in slopes[["lower", "upper"]].to_numpy()],
        "Anderson-Rubin set, 95 %": [str(d.anderson_rubin_set) for d in diagnostics.values()],
        "gate, p-value": [d.residual_prediction.p_value for d in diagnostics.values()],
    },
    index=pd.Index(strengths, name="strength"),
)
weak.round({"effective F": 1, "2SLS": 1, "gate, p-value": 4})

# %%
_, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for i, k in enumerate(strengths):
    for low, high in np.clip(diagnostics[k].anderson_rubin_set.intervals, -999, 999):
        ax.plot([low, high], [i + 0.12] * 2, color=plots.COLOURS[1], linewidth=4, solid_capstyle="butt")
    ax.plot(slopes.loc[k, ["lower", "upper"]], [i - 0.12] * 2, color=plots.COLOURS[0], linewidth=4, solid_capstyle="butt")
    ax.plot(slopes.loc[k, "coefficient"], i - 0.12, "|", color=plots.INK, markersize=9)
ax.plot([], [], color=plots.COLOURS[0], linewidth=4, label="2SLS, 95 % interval")
ax.plot([], [], color=plots.COLOURS[1], linewidth=4, label="Anderson-Rubin set, 95 %")
ax.axvline(0, color=plots.INK, linewidth=0.8)
ax.set(xlim=(-120, 120), xlabel="change of sales for one more dollar (tickets)", ylabel="instrument strength")
ax.set_yticks(range(len(strengths)), [f"{k:g}" for k in strengths])
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# Bars that touch the frame go on beyond it. While the instrument is strong, the two agree. At 0.03 the effective F is below
# its critical value of 23, and they part: the usual interval is symmetric and ends at -85, while the Anderson-Rubin set goes
# on to beyond -1000. At 0.01 it is unbounded, all numbers except some in the middle. That is not a failure. The data bound
# the effect on neither side, and a method that always gave a bounded interval would have to be wrong more often than it says.
#
# Look at the last column too. The linear model is as wrong at 0.01 as at 1, and the gate no longer sees it: with a weak
# instrument any slope, and so any curve, fits. "Nothing speaks against a line" then only means that nothing speaks. Read the
# F first and the gate second.

# %% [markdown]
# ### A curve
#
# Now kernel IV and DFIV on the same samples. At fresh rows we raise the price that was paid by one dollar and compare the
# change in sales with the true one, by the root of the mean squared difference. Two yardsticks need no fit: what a perfect
# prediction would say that ignores the confounder, in closed form, and what one says who knows nothing: no effect.


# %%
def one_dollar(function, rows):
    return function(rows.assign(price=rows["price"] + 1)) - function(rows)


records, trust = [], {}
for k in strengths:
    unseen = demand.simulate(n=2000, seed=1, instrument_strength=k, **design)[0].frame
    true = one_dollar(truth, unseen)
    bias = one_dollar(partial(demand.confounding_bias, instrument_strength=k, **design), unseen)
    kernel = cfiv.KernelIV(demand.FORMULA, random_state=0).fit(samples[k])
    dfiv = cfiv.DFIV(demand.FORMULA, random_state=0, progress=False).fit(samples[k])
    fitted, trust[k] = {"2SLS": two_sls[k], "Kernel IV": kernel, "DFIV": dfiv}, dfiv.trust_
    effects = {name: (one_dollar(model.predict, unseen), model.score(unseen)) for name, model in fitted.items()}
    effects |= {"confounder ignored": (true + bias, np.nan), "no effect": (0 * true, np.nan), "truth": (true, np.nan)}
    for name, (effect, score) in effects.items():
        records.append((k, name, effect.mean(), np.sqrt(np.mean((effect - true) ** 2)), score))
weakened = pd.DataFrame(records, columns=["strength", "estimate", "mean effect", "error", "score"])

# %% [markdown]
# One sample shows little of what happens to 2SLS, whose estimate is all noise at the end. It takes no time, so we repeat it
# on 20 other samples; its slope is the same at all rows.

# %%
repeated = []
for k in strengths:
    true = one_dollar(truth, demand.simulate(n=2000, seed=1, instrument_strength=k, **design)[0].frame)
    for seed in range(100, 120):
        sample = demand.simulate(n=2000, seed=seed, instrument_strength=k, **design)[0].frame
        slope = cfiv.TwoStageLeastSquares(seasonal).fit(sample).coefficients_.loc["price", "coefficient"]
        repeated.append((k, np.sqrt(np.mean((slope - true) ** 2))))
repeated = pd.DataFrame(repeated, columns=["strength", "error"])

# %%
errors = weakened.pivot(index="strength", columns="estimate", values="error")
_, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
ax.plot(repeated["strength"], repeated["error"], ".", color=plots.COLOURS[0], alpha=0.4, label="2SLS, 20 samples")
ax.plot(repeated.groupby("strength")["error"].median(), color=plots.COLOURS[0], linewidth=2, label="their median")
ax.plot(errors["Kernel IV"], "o-", color=plots.COLOURS[2], linewidth=2, label="Kernel IV")
ax.plot(errors["DFIV"], "o-", color=plots.COLOURS[3], linewidth=2, label="DFIV")
ax.plot(errors["confounder ignored"], color=plots.INK, linestyle=plots.DASHES, label="confounder ignored")
ax.plot(errors["no effect"], color=plots.INK, linestyle=":", label="no effect")
ax.set(
    xscale="log", yscale="log", xlabel="instrument strength, effective F", ylabel="error of the effect of one dollar (tickets)"
)
ax.set_xticks(strengths, [f"{k:g}\nF = {diagnostics[k].effective_f.statistic:,.1f}" for k in strengths])
ax.set_yticks([3, 10, 30, 100, 300], ["3", "10", "30", "100", "300"])
ax.minorticks_off()
ax.invert_xaxis()
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# From left to right: ignoring the confounder costs ever more, up to 45 tickets a dollar, since the less fuel moves the price,
# the more of what moves it is the conference. At full strength DFIV is the best, and the slope of 2SLS has an error of 6
# mainly because the true effect varies and one slope cannot.
#
# At 0.3 kernel IV is already worse than claiming no effect, and at 0.1 DFIV is no better than that, though the F is far above
# 23. That critical value is for one slope, which 2SLS still gets about right. A curve asks more of
# an instrument than a slope does.
#
# At 0.01 nothing that uses the instrument is worth having. The typical error of 2SLS is nearly that of ignoring the
# confounder, and in some samples it is many times that; kernel IV errs about as much, DFIV two thirds of it, and claiming no
# effect less than any.

# %%
weakened.pivot(index="strength", columns="estimate", values="mean effect")[list(effects)].sort_index(ascending=False).round(1)

# %% [markdown]
# Kernel IV and DFIV drift from the truth towards the confounded answer, which is where 2SLS with many weak instruments goes,
# too: by their account a higher price in the end raises sales. From 0.3 on DFIV warns, by its record of what speaks against
# the fit:

# %%
for k in strengths:
    print(f"strength {k:g}: {trust[k]}")

# %% [markdown]
# At 0.3 its effect is three quarters of the true one. The curves are smooth, and the score does not notice:

# %%
weakened.pivot(index="strength", columns="estimate", values="score")[list(fitted)].sort_index(ascending=False).round(2)

# %% [markdown]
# When fuel no longer moves the price, $E[h \mid Z, X]$ hardly depends on what a dollar does, and sales can be predicted
# through time and emotion as well as ever. Scores rank estimators *given* an instrument that works. Whether it works, only
# the first-stage diagnostics say.
#
# ## Which estimator when
#
# | what you have | use | mind |
# |---|---|---|
# | no confounding to speak of | `NetworkRegression`; `LeastSquares` for a line | a good fit never shows confounding |
# | F below its critical value, or a wide Anderson-Rubin set | 2SLS with that set; no curve | the answer may be "anything" |
# | a strong instrument, gate shut | `TwoStageLeastSquares` | effects that vary are averaged |
# | the same, gate open, a form you can write down | 2SLS with `bs()` and interactions | one term too many |
# | a very strong instrument, gate open, unknown form | `DFIV` | read its `trust_`; look at the curve |
# | the same, and no wish to train | `KernelIV` | drawn to the confounder sooner than DFIV |
#
# What they cost: least squares and 2SLS take no time, and `cfiv.infer` has intervals and bands for 2SLS, with splines or
# without, and for `SieveIV`. The networks take seconds for some thousand rows, and take images as treatments; kernel IV, a
# closed form without training, takes some seconds too, and to it an image is a flat vector with one bandwidth. Their curves
# come without an interval.
#
# All of it rests on one thing that no table above can test: that the instrument touches the outcome through the treatment
# alone.
