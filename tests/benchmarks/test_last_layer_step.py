"""What solving the last layer costs in a training step, against one SGD step of the same network."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cfiv.learning.last_layer import Proximal

BATCH = 256
#: Alternating repetitions of both steps; their medians are compared.
ROUNDS = 15


def backbone(features: int) -> nn.Module:
    """A dSprites-sized network: 64 x 64 pixels to ``features``."""
    return nn.Sequential(nn.Linear(4096, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, features), nn.ReLU())


def sgd_step(features: int) -> Callable[[], None]:
    network = nn.Sequential(backbone(features), nn.Linear(features, 1))
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    inputs, targets = torch.rand(BATCH, 4096), torch.rand(BATCH, 1)

    def step() -> None:
        optimiser.zero_grad()
        (network(inputs) - targets).square().mean().backward()
        optimiser.step()

    return step


def closed_form_step(features: int) -> Callable[[], None]:
    network = backbone(features)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    layer = Proximal(lam=1.0, beta=1e-3)
    inputs, targets = torch.rand(BATCH, 4096), torch.rand(BATCH, 1)
    memory = None

    def step() -> None:
        nonlocal memory
        optimiser.zero_grad()
        phi = network(inputs)
        memory = layer.update(memory, features=phi.detach(), targets=targets, weights=None)
        (phi @ memory.weights.float() - targets).square().mean().backward()
        optimiser.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


@pytest.mark.parametrize(("features", "bound"), [(32, 1.25), (512, 2.0)])
def test_a_closed_form_step_costs_little_more_than_an_sgd_step(benchmark, features: int, bound: float) -> None:
    torch.manual_seed(0)
    sgd, closed = sgd_step(features), closed_form_step(features)
    for step in (sgd, closed) * 3:
        step()
    ratios = [seconds(closed) / seconds(sgd) for _ in range(ROUNDS)]
    benchmark.pedantic(closed, rounds=5)
    benchmark.extra_info["ratio to an SGD step"] = statistics.median(ratios)
    assert statistics.median(ratios) <= bound
