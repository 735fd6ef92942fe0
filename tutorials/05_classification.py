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
# # Classification with a solved last layer
#
# Squared loss is not what one usually trains a classifier with, though Hui and Belkin (2021) found it no worse than
# cross-entropy over many tasks. It has a last layer in closed form, so the trainer of cfiv can solve it. This tutorial does
# so on handwritten digits, beside gradient steps on the same loss and beside cross-entropy, and looks for the settings in
# which solving is a bad idea, which for classification are easier to find than for operators.

# %%
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

import cfiv
from cfiv.datasets import cifar, digits
from cfiv.plots import COLOURS

torch.set_num_threads(1)  # small networks run no faster on more

# %% [markdown]
# ## 1. The data
#
# Scikit-learn's digits: 8 x 8 pixels, 1438 to learn from and 359 to test on.

# %%
data = digits.load()
train, test = (
    (torch.tensor(part.images, dtype=torch.float32) / data.brightest, torch.tensor(part.labels))
    for part in (data.train, data.test)
)
figure, axes = plt.subplots(1, 10, figsize=(9, 1.3), layout="constrained")
for ax, image, label in zip(axes, train[0], train[1], strict=False):
    ax.imshow(image[0], cmap="gray_r")
    ax.set_title(data.classes[label], fontsize=11)
    ax.axis("off")

# %% [markdown]
# ## 2. A network and four ways to train it
#
# A small residual network that ends in a linear layer with one output a class. The trainer turns labels into one-hot rows
# (times `one_hot_scale`, Hui and Belkin's *M*; a solved layer takes up the scale by itself, so we leave it at one). A row
# is assigned to the class with the largest output.


# %%
class Residual(nn.Module):
    """An image plus what two convolutions make of it."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, images):
        return torch.relu(images + self.inner(images))


def network():
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), Residual(16), nn.MaxPool2d(2), Residual(16), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def trainer(last_layer, *, optimizer, batch_size=64, **options):
    return cfiv.LastLayerTrainer(
        network(),
        last_layer,
        optimizer=optimizer,
        order="backbone-first",
        task="classification",
        learning_rate_schedule="cosine",
        batch_size=batch_size,
        **options,
    )


adam, sgd = torch.optim.Adam, torch.optim.SGD
methods = {
    "SGD": lambda: trainer(cfiv.Gradient(), optimizer=partial(sgd, lr=0.5)),
    "SGD with momentum": lambda: trainer(cfiv.Gradient(), optimizer=partial(sgd, lr=0.2, momentum=0.9)),
    "cross-entropy, Adam": lambda: trainer(cfiv.Gradient(), optimizer=partial(adam, lr=0.004), loss="cross-entropy"),
    "solved, Adam": lambda: trainer(cfiv.Proximal(lam=1.0), optimizer=partial(adam, lr=0.02)),
}


def fitted(model, *, epochs=10):
    """Test accuracy and training loss of a trainer, by steps and by seconds of training."""
    course, spent, resumed = [], 0.0, time.process_time()

    def look(step, loss):
        nonlocal spent, resumed
        if step % 11 == 0:
            spent += time.process_time() - resumed
            course.append((step, spent, model.evaluate(train).loss, model.evaluate(test).accuracy))
            resumed = time.process_time()

    model.fit(train, epochs=epochs, on_step=look)
    return pd.DataFrame(course, columns=["step", "seconds", "loss", "accuracy"])


fitted(methods["solved, Adam"](), epochs=1)  # what torch loads in a first step is no cost of the method
courses = {name: fitted(make()) for name, make in methods.items()}

# %% [markdown]
# Rates and $\lambda$ were chosen on a part of the training images, four or so for each method. The outputs of a network
# trained with cross-entropy are no estimates of one-hot rows, so it has no squared loss worth a line.

# %%
figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharey="row", layout="constrained")
for (name, course), colour in zip(courses.items(), COLOURS, strict=False):
    for column, along in enumerate(("step", "seconds")):
        if "cross" not in name:
            axes[0, column].plot(course[along], course["loss"], color=colour)
        axes[1, column].plot(course[along], 100 * course["accuracy"], color=colour, label=name)
axes[0, 0].set_yscale("log")
axes[0, 0].set_ylabel("squared loss, training images")
axes[1, 0].set_ylabel("right classes, test, %")
axes[1, 0].set_ylim(90, 100.5)
axes[1, 0].set_xlabel("steps")
axes[1, 1].set_xlabel("seconds of one processor")
axes[1, 1].legend(frameon=False)
for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)

# %% [markdown]
# With the last layer solved, 220 steps end at less than half of the squared loss of either SGD, and half of the steps are
# enough for where those end. That is one network and one order of batches. Over five seeds, with a few more epochs, SGD with
# momentum comes closer: then it is the backbone that takes its time, and a better optimiser helps it as much as a better last
# layer does. Accuracies at the end differ by a few images in 359.
#
# ## 3. Where solving is a bad idea
#
# The network has 64 features. A batch of 16 is fitted by its own last layer exactly, whatever the features are. Then the loss
# on the batch is zero, and so is the gradient. The penalty $\lambda |W - W_{\text{prev}}|^2$ keeps the layer from
# that, if it is large enough; so does letting the backbone step first, at weights that have not seen the batch.


# %%
def after(order, last_layer):
    model = cfiv.LastLayerTrainer(
        network(), last_layer, optimizer=partial(adam, lr=0.003), order=order, task="classification", batch_size=16
    )
    model.fit(train, epochs=3)
    current = model.evaluate(test).accuracy
    return {"as training left it": current, "after a refit": model.refit(train, beta=1e-6).evaluate(test).accuracy}


layers = {"ridge": cfiv.Ridge(beta=1e-4)} | {f"proximal, lambda {lam:g}": cfiv.Proximal(lam=lam) for lam in (0.01, 1, 100)}
table = {(name, order): after(order, layer) for name, layer in layers.items() for order in ("solve-first", "backbone-first")}
(100 * pd.DataFrame(table).T).round(1)

# %% [markdown]
# A ridge layer is of the last batch alone, and that shows. A refit on all training images mends the layer, but not the
# backbone that learned little under it.
#
# With many classes there is one more thing to say: the solve costs $O(n d^2 + d^2 k)$ a step, which grows with the square of
# the features, not with the network before them. For 64 features it is nothing, for 4096 it would be more than the rest.
#
# ## 4. CIFAR
#
# `cifar.load` reads CIFAR-10 or CIFAR-100 from the official archive, where you have it. Everything else stays the same.

# %%
folder = Path("cifar")
if folder.exists():
    pictures = cifar.load(folder, classes=10)
    print(len(pictures.train), "images of", pictures.classes)
else:
    print(f"no folder {folder}: get the python version of the archive, and put it there")
