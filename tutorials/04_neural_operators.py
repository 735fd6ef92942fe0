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
# # Neural operators with a solved last layer
#
# What cfiv does to the two stages of a regression with instruments, it can do to any torch module that ends in a linear map:
# the backbone takes gradient steps, the last layer is solved on every batch. Here the module is the Fourier neural operator
# of [neuraloperator](https://neuraloperator.github.io) (`pip install 'cfiv[operators]'`), used as it is, and what it learns is
# the solution operator of a differential equation.

# %%
import time
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import torch
from neuralop.models import FNO

import cfiv
from cfiv.datasets import burgers
from cfiv.plots import COLOURS, INK

torch.set_num_threads(1)  # small networks run no faster on more

# %% [markdown]
# ## 1. The operator
#
# The viscous Burgers equation carries a function along itself and smooths it, $u_t + u\,u_x = \nu u_{xx}$ on a circle. The
# operator to learn takes the function at time 0 to that at time 1. `burgers.simulate` draws initial functions from the
# Gaussian measure of Li et al. (2021) and solves the equation with a spectral method that agrees with the exact solution of
# Cole and Hopf in ten digits. The same functions can be had on any grid.

# %%
fine = burgers.simulate(400, points=256, seed=0)
unseen = burgers.simulate(100, points=1024, seed=1)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for ax, functions, title in zip(axes, (fine.inputs, fine.outputs), ("in: u at time 0", "out: u at time 1"), strict=True):
    for row, colour in zip(functions[:4], COLOURS, strict=False):
        ax.plot(fine.grid, row, color=colour)
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel("x")
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# What comes out is a hundred times smaller, smooth, and of very different size from function to function. That is why such
# operators are judged by the *relative* error $|\hat u - u| / |u|$ of each function. Squared loss can have that in view too:
# a row of weight $1 / |u|^2$ turns the mean squared error into a mean of squared relative errors, and the trainer takes
# row weights as a third array.

# %%
inside, outside = fine.inputs.std(), fine.outputs.std()


def examples(pairs, every=1):
    """Functions as images of one channel, in units of their standard deviation, on every so many points."""
    x = torch.tensor(pairs.inputs[:, None, ::every] / inside, dtype=torch.float32)
    y = torch.tensor(pairs.outputs[:, None, ::every] / outside, dtype=torch.float32)
    return x, y


x, y = examples(fine, every=2)  # learn on 128 points
train = (x, y, 1 / y.square().mean(dim=(1, 2)))
test = examples(unseen, every=8)

# %% [markdown]
# ## 2. Two ways to train it
#
# Both start from the same network and see the same batches of 20 for the same epochs; both move the backbone with Adam. One
# takes gradient steps on the last layer as well, the other solves it:
#
# $$W = \arg\min_W \; \mathrm{mean}_i\, w_i |y_i - W^\top \phi_i|^2 + \lambda |W - W_{\text{prev}}|^2 .$$
#
# The trainer looks for the last linear map of the module itself. Every grid point is a row of the solve: 20 functions on 128
# points are 2560 rows for 65 unknowns. So a batch nearly determines its last layer, and a small $\lambda$ will do. (Where a
# batch has fewer rows than there are features that would be a bad choice: see tutorial 05.)


# %%
def trained(last_layer, *, epochs=8):
    """A trainer, and its test error on the way, by steps and by seconds of training."""
    torch.manual_seed(0)
    network = FNO(n_modes=(16,), in_channels=1, out_channels=1, hidden_channels=32, n_layers=4)
    trainer = cfiv.LastLayerTrainer(
        network, last_layer, optimizer=partial(torch.optim.Adam, lr=2e-3), learning_rate_schedule="cosine", batch_size=20
    )
    course, spent, resumed = [], 0.0, time.process_time()

    def look(step, loss):
        nonlocal spent, resumed
        if step in (1, 2, 5) or step % 10 == 0:
            spent += time.process_time() - resumed
            course.append((step, spent, trainer.evaluate(test).relative_l2))
            resumed = time.process_time()

    trainer.fit(train, epochs=epochs, on_step=look)
    return trainer, pd.DataFrame(course, columns=["step", "seconds", "error"])


trained(cfiv.Proximal(lam=1e-4), epochs=1)  # what torch loads in a first step is no cost of the method
solved, course_solved = trained(cfiv.Proximal(lam=1e-4))
joint, course_joint = trained(cfiv.Gradient())
print(solved.last_linear_map_.name, solved.last_linear_map_.layer)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for ax, along in zip(axes, ("step", "seconds"), strict=True):
    for course, label, colour in (
        (course_joint, "Adam on everything", COLOURS[0]),
        (course_solved, "last layer solved", COLOURS[1]),
    ):
        ax.plot(course[along], course["error"], color=colour, label=label)
    ax.set_xlabel({"step": "steps", "seconds": "seconds of one processor"}[along])
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
axes[0].set_yscale("log")
axes[0].set_ylabel("relative L2 error, test")
axes[1].legend(frameon=False)

# %% [markdown]
# A step with a solve costs a little more than one without; the second panel says what that buys in time.
#
# ## 3. Comparing like with like
#
# A last layer solved once more on all training functions is cheap, and is there for either network: `refit`.


# %%
def errors(trainer):
    return {f"{1024 // every} points": trainer.evaluate(examples(unseen, every)).relative_l2 for every in (8, 4, 1)}


rows = {"Adam on everything": errors(joint), "last layer solved": errors(solved)}
for name, trainer in (("Adam, refit", joint), ("solved, refit", solved)):
    rows[name] = errors(trainer.refit(train, beta=1e-8))
pd.DataFrame(rows).T.round(4)

# %% [markdown]
# The columns are grids: an operator that has learned on 128 points answers on 1024 as well as on its own, nothing retrained.
# The refit weighs every training function by $1 / |u|^2$ *over the whole sample*, where a few very small functions weigh a
# thousand times as much as the others; training weighs within batches. So a refit is not always for the better here, and it
# is worth looking at both.
#
# The trained weights are in the module itself:

# %%
with torch.no_grad():
    prediction = joint.module(test[0])
assert torch.equal(prediction, joint.predict(test[0]))
middle = int((prediction - test[1]).norm(dim=(1, 2)).div(test[1].norm(dim=(1, 2))).argsort()[len(prediction) // 2])
answer = solved.predict(test[0])[middle, 0]
plt.figure(figsize=(6, 3.2), layout="constrained")
plt.plot(unseen.grid[::8], test[1][middle, 0] * outside, color=INK, label="truth")
plt.plot(unseen.grid[::8], prediction[middle, 0] * outside, color=COLOURS[0], label="Adam on everything, refit")
plt.plot(unseen.grid[::8], answer * outside, color=COLOURS[1], linestyle=(0, (4, 2)), label="solved, refit")
plt.xlabel("x")
plt.title("the test function with Adam's median error", loc="left", fontsize=11)
plt.gca().spines[["top", "right"]].set_visible(False)
plt.legend(frameon=False)

# %% [markdown]
# ## 4. Long runs
#
# `fit(train, epochs=..., checkpoint="run.ckpt", every=200)` saves the run every 200 steps. The same call after a kill goes on
# from the file, with the very same numbers as if nothing had happened; with another model or other settings it refuses.
#
# ## 5. When to expect what
#
# * Many rows a batch for few features, a smooth target and short training: the solved layer gains most, as here. Over
#   batch sizes, with every method tuned: [docs/last_layers.md](../docs/last_layers.md).
# * Few rows a batch for many features: the solve fits the batch and nothing is left for the backbone to learn from, unless
#   $\lambda$ is large. Tutorial 05 shows it.
# * The penalty is on the mean squared error in the units of the targets and *per feature*: scale inputs and targets, and try
#   $\lambda$ over several powers of ten.
