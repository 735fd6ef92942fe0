"""Handwritten digits: the solved last layer against gradient steps on the same loss, and against cross-entropy."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cfiv
from cfiv.datasets import digits
from cfiv.learning.last_layer import ClosedForm
from cfiv.studies.shipped.learning_problems import residual_network

EPOCHS, BATCH, SEEDS = 12, 64, range(100, 105)

# Chosen on four fifths of the training images by what was reached there and on the last fifth, seeds 50 to 52: SGD among rates
# 0.2, 0.5, 1 and 2 (the last two diverge), cross-entropy with Adam among 0.002, 0.004, 0.008, proximal with Adam among lambda 1
# and 3 and rates from 0.01 to 0.03. Momentum 0.9 is a stronger baseline: at rate 0.2 it ends at 0.037 where proximal ends at
# half the steps at 0.07; see docs/last_layers.md.
SGD = partial(torch.optim.SGD, lr=0.5)
CROSS_ENTROPY = partial(torch.optim.Adam, lr=0.004)
PROXIMAL, BACKBONE = cfiv.Proximal(lam=1.0), partial(torch.optim.Adam, lr=0.02)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return residual_network(channels=1, width=16, classes=10)


def fitted(
    data: tuple[Tensor, Tensor], layer: ClosedForm | cfiv.Gradient, optimizer: object, *, seed: int, epochs: int, loss: str
) -> cfiv.LastLayerTrainer:
    return cfiv.LastLayerTrainer(
        network(seed),
        layer,
        optimizer=optimizer,
        order="backbone-first",
        learning_rate_schedule="cosine",
        task="classification",
        loss=loss,
        batch_size=BATCH,
        device="cpu",
        random_state=seed,
    ).fit(data, epochs=epochs)


@pytest.mark.statistical
@pytest.mark.slow
def test_proximal_reaches_sgds_loss_in_half_its_steps_and_cross_entropys_accuracy() -> None:
    everything = digits.load()
    train, test = (
        (torch.tensor(part.images, dtype=torch.float32) / everything.brightest, torch.tensor(part.labels))
        for part in (everything.train, everything.test)
    )
    halves, sgds, accuracies = [], [], []
    for seed in SEEDS:
        of = partial(fitted, train, seed=seed)
        sgds.append(of(cfiv.Gradient(), SGD, epochs=EPOCHS, loss="squared").evaluate(train).loss)
        halves.append(of(PROXIMAL, BACKBONE, epochs=EPOCHS // 2, loss="squared").evaluate(train).loss)
        cross_entropy = of(cfiv.Gradient(), CROSS_ENTROPY, epochs=EPOCHS, loss="cross-entropy")
        proximal = of(PROXIMAL, BACKBONE, epochs=EPOCHS, loss="squared")
        accuracies.append([model.evaluate(test).accuracy for model in (proximal, cross_entropy)])
    # Squared loss on all training images; the shorter run has a schedule of its own, so it is no early look at a longer one.
    assert np.mean(halves) <= np.mean(sgds)
    solved, baseline = np.mean(accuracies, axis=0)
    assert solved >= baseline - 0.003
    assert solved > 0.97
