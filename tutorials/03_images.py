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
# # Causal effects of an image
#
# A treatment need not be a column. Here it is a picture: what would the outcome be if the picture were another one? The
# pictures are those of dSprites (Matthey et al. 2017), the design is that of Xu et al. (2021), and as in the other tutorials
# the truth is known. We fit a network that ignores the confounder and one that uses instruments, draw pictures of our own to
# ask both for effects, and then look at what instruments cannot say about a picture, which is most of it.

# %%
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import cfiv
from cfiv import plots
from cfiv.datasets import dsprites

torch.set_num_threads(1)  # small networks run no faster on more
GREY = {"cmap": "gray", "vmin": 0, "vmax": 1}

# %% [markdown]
# ## 1. The pictures
#
# A white heart on 64 x 64 black pixels. Four numbers make it, and `render` draws it from their indices: six values of scale,
# 40 of orientation, 32 of `posX` (from the left) and 32 of `posY` (from the top).

# %%
middle = {"scale": 3, "orientation": 0, "posX": 15, "posY": 15}
varied = {"scale": (0, 2, 4, 5), "orientation": (0, 10, 20, 30), "posX": (0, 10, 20, 31), "posY": (0, 10, 20, 31)}
_, axes = plt.subplots(4, 4, figsize=(5.6, 6.1), layout="constrained")
for row, (name, values) in zip(axes, varied.items(), strict=True):
    for ax, value in zip(row, values, strict=True):
        ax.imshow(dsprites.render([list((middle | {name: value}).values())])[0], **GREY)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{name} {value}", fontsize="small")
plt.show()

# %% [markdown]
# `simulate` draws hearts at random, puts noise on every pixel and returns the roles as arrays:
#
# * **treatment**: the noisy image;
# * **outcome**: $Y = h(\text{image}) + (\text{posY} - 16) + \text{noise}$, with posY as its index, 0 to 31;
# * **confounder**: posY, the heart's height. It is in the picture and it is in the outcome, but the outcome does not get it
#   *from the picture*: moving the heart would change nothing;
# * **instruments**: scale, orientation and posX, which move the picture, touch the outcome through it alone and know nothing
#   of posY.
#
# The structural function $h$ looks at all pixels, but it is nearly a function of how many are white: of the heart's size.

# %%
data, truth = dsprites.simulate(n=5000, seed=0)
clean, _ = dsprites.simulate(n=5000, seed=0, pixel_noise=0)
_, axes = plt.subplots(1, 2, figsize=(5.6, 3.0), layout="constrained")
for ax, sample, title in zip(axes, (clean, data), ("as drawn", "as the model sees it"), strict=True):
    ax.imshow(sample.treatment[0, 0], **GREY)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize="small")
plt.show()

# %% [markdown]
# The roles are an `IVData`, which you would make of your own arrays as `cfiv.IVData(outcome=..., treatment=...,
# instruments=...)`. The images are (rows, channels, height, width), here from 0 for black to 1 for white, and are kept as
# they are given: pixels are converted a batch at a time, so `uint8` stays `uint8`, at a quarter of the memory. Predictions and
# effects are in the outcome's unit.

# %%
for sample in (data, clean):
    images = sample.treatment
    print(f"{images.shape}, {images.dtype}, {images.min():.2f} to {images.max():.2f}, {images.nbytes / 1e6:.0f} MB")
pd.DataFrame(data.instruments, columns=data.names["instruments"]).assign(outcome=data.outcome).head(3).round(2)

# %% [markdown]
# ## 2. What confounding does to a plain network
#
# Both estimators choose their networks by the shape of the treatment. Neither is told what a heart is.

# %%
models = {
    "Network, no instruments": cfiv.NetworkRegression(random_state=0, progress=False).fit(data),
    "DFIV": cfiv.DFIV(random_state=0, progress=False).fit(data),
}

# %% [markdown]
# `fit` is the share of the variance of fresh outcomes that the prediction $h(T)$ explains, as a regression is usually judged;
# `score` the share explained *through the instruments*, by $E[h(T) \mid Z]$; `error` the mean squared error against the true
# $h$ on 588 test pictures without noise.

# %%
fresh, _ = dsprites.simulate(n=2000, seed=1)


def judged(models):
    comparison = cfiv.compare(models, data=fresh, truth=truth).table[["seconds", "score", "error"]]
    misses = {name: np.mean((fresh.outcome - model.predict(treatment=fresh.treatment)) ** 2) for name, model in models.items()}
    comparison.insert(1, "fit", 1 - pd.Series(misses) / np.var(fresh.outcome))
    return comparison.round({"seconds": 1, "fit": 3, "score": 4, "error": 2})


judged(models)

# %% [markdown]
# The plain network predicts nearly everything, and its error is a hundred times that of DFIV. DFIV predicts little of the
# outcome, and should: most of what varies in it is posY, and that is not the picture's doing.
#
# To see what each network has learned we take the test hearts and set one of their four numbers, to each value in turn.


# %%
def averages(models, latent, values):
    rows = []
    for value in values:
        pictures = dsprites.render(dsprites.test_grid().assign(**{latent: value}).to_numpy())[:, None]
        means = {name: model.predict(treatment=pictures).mean() for name, model in models.items()}
        rows.append({latent: value, "truth": truth(pictures).mean()} | means)
    return pd.DataFrame(rows).set_index(latent)


def two_panels(along_height, along_scale, colours):
    _, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for ax, table in zip(axes, (along_height, along_scale), strict=True):
        for name, colour in colours.items():
            ax.plot(table[name], color=colour, linewidth=2.4, label=name)
        ax.plot(table["truth"], color=plots.INK, linewidth=1.4, linestyle=plots.DASHES, label="truth")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(xlabel="posY, from the top", ylabel="outcome, averaged over the test hearts")
    axes[1].set(xlabel="scale")
    axes[1].legend(frameon=False, loc="upper left")


# %%
heights, scales = range(0, 32, 3), range(6)
height, scale = averages(models, "posY", heights), averages(models, "scale", scales)
two_panels(height, scale, dict(zip(models, plots.COLOURS[1::-1], strict=True)))
plt.show()

# %% [markdown]
# Moving the heart down changes nothing in truth, and nothing to speak of for DFIV. The plain network says that every step down
# adds about one: it has read the confounder off the picture. That makes it a good forecaster of outcomes that arise as these
# did, and a bad adviser to anyone who would move the heart. Height and scale have nothing to do with each other, so along
# scale both are about right. (Both lie low. The mean of posY - 16 is -0.5, and no estimator can tell it from the constant of
# $h$.)
#
# Without confounding the same network is right about height as well:

# %%
unconfounded, _ = dsprites.simulate(n=5000, seed=0, confounding=0)
unhindered = cfiv.NetworkRegression(random_state=0, progress=False).fit(unconfounded)
print(f"confounding 1: error {truth.error(models['Network, no instruments']):6.2f}")
print(f"confounding 0: error {truth.error(unhindered):6.2f}, of DFIV with confounding {truth.error(models['DFIV']):.2f}")
averages({"no confounding": unhindered}, "posY", (0, 15, 30)).round(1)

# %% [markdown]
# So the network was not too small and the sample not too short. It answered another question.
#
# ## 3. Effects
#
# An effect is the difference that a change of picture makes. `effect` takes two pictures of the shape seen in training. The
# rows it asks for are there for covariates; we have none, so one row will do.

# %%
changes = {"larger": {"scale": 5}, "upside down": {"orientation": 20}, "to the right": {"posX": 30}, "lower": {"posY": 30}}
before, *after = dsprites.render([list((middle | change).values()) for change in ({}, *changes.values())])[:, None]
one_row = cfiv.IVData(treatment=before[None])
rows = {
    name: [model.effect(one_row, treatment_from=before, treatment_to=picture)[0] for picture in after]
    for name, model in models.items()
}
effects = pd.DataFrame(rows, index=list(changes))
effects.insert(0, "truth", truth(np.stack(after)) - truth(before[None]))
effects.round(1)

# %% [markdown]
# Both find about what enlarging the heart does. To the plain network moving it down does twice as much, where in truth it does
# nearly nothing, and turning it upside down, which puts its middle three pixels lower, does three pixels' worth.
#
# `dose_response` takes a stack of pictures, and its column `treatment` counts them. Here are the six sizes of hearts at three
# heights.

# %%
tables = []
for position in (0, 15, 31):
    pictures = dsprites.render([list((middle | {"scale": size, "posY": position}).values()) for size in range(6)])[:, None]
    curve = models["DFIV"].dose_response(pictures).rename(columns={"treatment": "scale"})
    tables.append(curve.assign(posY=position, truth=truth(pictures)))
ax = plots.structural_curves(pd.concat(tables), treatment="scale", slice_by="posY", truth="truth")
ax.set_ylabel("outcome")
plt.show()

# %% [markdown]
# In truth the three are nearly one line. DFIV's are apart, most for large hearts at the upper edge. A single picture is
# estimated less well than the average over many that section 2 showed.
#
# ## 4. What the data cannot say
#
# Look at the scores in section 2 again: they hardly differ, though one function is nearly right and the other far off. All
# that instruments give is
#
# $$ E[Y - h(T) \mid Z] = 0. $$
#
# Take any $h$ that satisfies it, and add to it something in the picture that no instrument moves, such as the heart's height
# less its mean. That has mean zero whatever $Z$ is, so the sum satisfies it too. The plain network's function is nearly such a
# sum. Of a function of 4096 pixels three instruments see little; the rest is open.
#
# Something has to choose, and by default DFIV does for images: of the functions that explain the outcome equally well it
# prefers the one that varies least beyond what the instruments predict. It adds to the loss of stage 2
#
# $$ \gamma \; E \, \mathrm{Var}(h(T) \mid Z), \qquad \gamma = 1. $$
#
# `unpredicted_penalty=0` switches that off. We do so twice, with different splits and initial weights.

# %%
no_penalty = {
    f"DFIV, gamma = 0, seed {seed}": cfiv.DFIV(unpredicted_penalty=0, random_state=seed, progress=False).fit(data)
    for seed in (0, 1)
}
penalty = {"DFIV, gamma = 1": models["DFIV"]} | no_penalty


def share_along_height(model):
    predictions = pd.Series(model.predict(treatment=truth.images))
    alike_but_for_height = predictions.groupby([truth.grid[name] for name in data.names["instruments"]])
    return alike_but_for_height.var(ddof=0).mean() / predictions.var(ddof=0)


shares = pd.Series({name: share_along_height(model) for name, model in penalty.items()})
judged(penalty)[["score", "error"]].assign(**{"share of variance along posY": shares.round(3)})

# %%
colours = dict(zip(penalty, (plots.COLOURS[0], plots.COLOURS[2], plots.COLOURS[3]), strict=True))
two_panels(averages(penalty, "posY", heights), averages(penalty, "scale", scales), colours)
plt.show()

# %% [markdown]
# Of scale, which an instrument moves, the three say the same. Of height the two without the penalty say more, each something
# else: it is made up. (The share also counts what the averages in the figure hide.) Their errors are larger, ten and four
# times, and their scores as good. Of one a warning says that what the treatment does may be noise, for the functions of its
# swapped samples differ; from the other only a truth that we happen to know tells the first.
#
# ### A preference is not information
#
# Think of another world, in which the heart's height *acts* on the outcome through the picture, one for every step, and
# nothing confounds. Its data are the same, number for number: the same pictures, the same instruments, the same outcomes. So
# every estimator says the same of it as of ours, and there the plain network is right.

# %%
actual = {name: model.predict(treatment=truth.images) for name, model in models.items()}
worlds = {"posY confounds": truth.grid["structural"], "posY acts": truth.grid["structural"] + truth.grid["posY"] - 16}
pd.DataFrame({world: {name: np.mean((h - true) ** 2) for name, h in actual.items()} for world, true in worlds.items()}).round(2)

# %% [markdown]
# No number computed from the data separates these worlds. What separates them is knowledge of how the pictures came about.
# DFIV's flat line along posY is not a finding that height has no effect. It is what is left when the data are silent and the
# smaller answer is preferred.
#
# The preference misleads where a true effect runs through something that no instrument moves. Size has the one large effect
# here. We take its instrument away and keep orientation and posX:

# %%
fewer = ("orientation", "posX")
sample, unseen = (dsprites.simulate(n=n, seed=seed, instruments=fewer)[0] for n, seed in ((5000, 0), (2000, 1)))
rows = {"with scale, gamma = 1": (effects.loc["larger", "DFIV"], models["DFIV"].score(fresh))}
for gamma in (1, 0):
    blind = cfiv.DFIV(unpredicted_penalty=gamma, steps=200, random_state=0, progress=False).fit(sample)
    effect = blind.effect(one_row, treatment_from=before, treatment_to=after[0])[0]
    rows[f"without scale, gamma = {gamma}"] = (effect, blind.score(unseen))
rows |= {"truth": (effects.loc["larger", "truth"], np.nan)}
pd.DataFrame(rows, index=["effect of a larger heart", "score"]).T.round({"effect of a larger heart": 1, "score": 3})

# %% [markdown]
# The effect is gone, and both fits warn that what the treatment does is not told from noise. Without the penalty it does not
# come back: what stands there instead is noise. The score gives it away as well: it is zero, the instruments explain nothing.
# But a score well above zero only says that *some* instrument works. So before you believe an effect of a picture, ask which
# instrument makes that change. If none does, a small effect is the penalty's answer and not the data's.
#
# ## 5. Minibatches
#
# Images are the reason to work with small batches: a large network and many pictures may not fit into memory at once. DFIV has
# two regressions inside, its last layers: one predicts the treatment features from those of the instruments, one the outcome
# from these predictions. Both are solved anew on every batch.

# %%
print("coefficients of the first stage:", tuple(models["DFIV"].fits_[0].first_stage.shape))
print("coefficients of the second:     ", tuple(models["DFIV"].fits_[0].structural.shape))

# %% [markdown]
# The first has a column for every treatment feature. A batch of 32 rows is fewer than the coefficients of one column, so least
# squares would fit such a batch exactly, noise included. A **ridge** penalty pulls the coefficients to zero, which damps the
# noise and the signal alike. The **proximal** penalty pulls them to their values at the previous batch: what few rows say is
# weighed against what the batches before have said, and where the two agree nothing is shrunk.
#
# The fits behind the table are two studies that ship with cfiv, `dsprites_batches` and `dsprites_batches_second` (`cfiv
# study run`, tutorial 06), whose penalties were chosen on other rows without looking at the truth. "last solves" reports
# the very last solves, as the paper does. "current" is cfiv's `report="current"`: for the last three tenths of the steps
# the features rest while the solves go on, each going a smaller part of the way from the one before, so that they settle.
# "refit" solves both once more at the end, on whole samples, with features that were trained on small batches all the same.

# %%
here = Path.cwd()
results = next(place / "docs/results" for place in (here, *here.parents) if (place / "docs/results").exists())
studies = {"original": "dsprites_batches", "second": "dsprites_batches_second"}
fits = pd.concat(
    {function: pd.read_csv(results / study / "results.csv") for function, study in studies.items()}, names=["function"]
)
cells = ["function", "batch_size", "method"]
medians = fits.groupby(cells, sort=False)["error"].median().unstack("method").sort_index()
medians.round(1)

# %%
colours = {"ridge": plots.COLOURS[1], "proximal": plots.COLOURS[0]}
dashes = {"last solves": ":", "current": plots.DASHES, "refit": "-"}
_, axes = plt.subplots(1, len(studies), figsize=(4.8 * len(studies), 4), sharey=True, layout="constrained")
for ax, function in zip(axes, studies, strict=True):
    for method, line in medians.loc[function].items():
        layer, report = method.split(", ")
        of = fits.loc[function].query("method == @method")
        ax.plot(of["batch_size"], of["error"], ".", color=colours[layer], alpha=0.4, markeredgewidth=0)
        ax.plot(line.index, line, color=colours[layer], linestyle=dashes[report], linewidth=2, label=method)
    ax.set(xscale="log", yscale="log", xlabel="batch size", title=f"the {function} function")
    ax.set_xticks(line.index, line.index)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("error against the truth")
axes[0].yaxis.set_major_formatter("{x:g}")
axes[-1].legend(frameon=False)
plt.show()

# %% [markdown]
# A dot is a fit, a line the medians. The last solves of ridge (dotted) are one batch's opinion, and with few rows a poor one.
# Pulled to the solves before, they can be much better, but need not be: compare the dotted lines of both functions. What works
# for both penalties and both functions is the rest at the end (dashed): while the features keep still, the last layers can
# settle. From 128 rows on there is then little left for a refit (solid) to mend, at 64 something, at 32 much. Fits differ in
# more than their last layers here, since features that rest for a while have learned for less long.
#
# ## 6. Your own images
#
# The unit of the pixels is yours. Say the hearts are photographs, from 0 to 255 in single bytes:

# %%
photographs = cfiv.IVData(outcome=clean.outcome, treatment=255 * clean.treatment, instruments=clean.instruments)
print(photographs.treatment.shape, photographs.treatment.dtype, "up to", photographs.treatment.max())

# %% [markdown]
# The default network adds up pixels until 16 to 31 are left on the shorter side and connects the rest fully. That sees
# shapes and sizes, and no detail. A network of your own goes in as a *factory*: a function of one image's shape that returns
# a torch module, from (rows, channels, height, width) to (rows, features). It gets pixels of mean zero and variance one. Start
# with few features: the first stage has to predict each. Here are two convolutions and four features, for 100 steps:

# %%
from torch import nn


def convolutions(shape):
    channels, height, width = shape
    first = nn.Conv2d(channels, 8, kernel_size=4, stride=4)
    second = nn.Conv2d(8, 16, kernel_size=4, stride=4)
    last = nn.Linear(16 * (height // 16) * (width // 16), 4)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Flatten(), last)


own = cfiv.DFIV(treatment_network=convolutions, steps=100, random_state=0, progress=False).fit(photographs)
predicted = own.predict(treatment=255 * truth.images)
print(f"error {np.mean((predicted - truth.grid['structural']) ** 2):.2f}, best constant {np.var(truth.grid['structural']):.2f}")

# %% [markdown]
# A model file holds layers and numbers and no code. What it loads as predicts without the data.

# %%
own.save("hearts.safetensors")
loaded = cfiv.load("hearts.safetensors")
print("identical predictions from the file:", (loaded.predict(treatment=255 * truth.images) == predicted).all())

# %% [markdown]
# Three mistakes are common with images: another unit than in training, another layout, and a network that does not take
# images. Each is refused, with what was got and what to do:

# %%
mistakes = {
    "0..1 instead of 0..255": lambda: own.predict(treatment=truth.images),
    "channels last": lambda: own.predict(treatment=255 * truth.images.transpose(0, 2, 3, 1)),
    "no flattening": lambda: cfiv.DFIV(treatment_network=nn.Linear(64 * 64, 4), progress=False).fit(photographs),
}
for mistake, attempt in mistakes.items():
    try:
        attempt()
    except cfiv.CfivError as error:
        print(textwrap.fill(f"{mistake}: {error}", 100), end="\n\n")

# %% [markdown]
# **What to take home.** A network without instruments is the better forecaster and may be wrong about every change you could
# make. Instruments give the effects of what they move: here of size. Of the rest of the picture the data say nothing; DFIV
# answers with a small effect, and it is for you to know whether small is right.
