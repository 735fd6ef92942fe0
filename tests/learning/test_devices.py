"""Without a card: a step leaves its tensors where they are, and reads few of them.

Tensors of the meta device have no values, so whatever reads one fails there, and so does an operation that takes a second
tensor from elsewhere. On a card either would be a copy that everything waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cfiv import Adaptive, Gradient, Kalman, LastLayerTrainer, Proximal, Ridge, Training
from cfiv.learning.last_layer import ClosedForm
from cfiv.learning.learner import Learner
from cfiv.learning.training import Order
from cfiv.networks.stacked_networks import member_network
from cfiv.objectives.dfiv_batches import Stage1Rows, Stage2Rows, TwoStageBatch
from cfiv.objectives.dfiv_step import DFIVState, LastLayers, MemberNetworks, StepOptions, step

MEMBERS, META = 2, torch.device("meta")


def descending(learner: Learner) -> Learner:
    """With plain steps: fused ones of Adam are not for the meta device."""
    parameters = [parameter for network in learner.networks for parameter in network.parameters]
    return Learner(learner.networks, torch.optim.SGD(parameters, foreach=False) if parameters else None)


@pytest.mark.law
@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("covariate_steps", [0, 1])
@pytest.mark.parametrize("order", ["solve-first", "backbone-first"])
@pytest.mark.parametrize("layer", [Proximal(0.1, beta=1e-3), Ridge(0.1)], ids=repr)
def test_a_step_of_dfiv_reads_nothing_and_leaves_nothing_elsewhere(
    layer: ClosedForm, order: Order, covariate_steps: int, gamma: float
) -> None:
    def network(inputs: int, outputs: int) -> Any:
        layers = [nn.Sequential(nn.Linear(inputs, 8), nn.SiLU(), nn.Linear(8, outputs)).to(META) for _ in range(MEMBERS)]
        return member_network(layers)

    rows = partial(torch.empty, device=META)
    training = Training(order=order, covariate_steps=covariate_steps)
    state = DFIVState.begin(
        MemberNetworks(network(1, 4), network(3, 5), network(2, 3)),
        training=training,
        learning_rate=(1e-3, 1e-3, 1e-3),
        weight_decay=(0.0, 0.0, 0.0),
    )
    state = DFIVState(state.networks, *(descending(learner) for learner in (state.phi, state.psi, state.xi)))
    batch = TwoStageBatch(
        Stage1Rows(
            treatment=rows(MEMBERS, 50, 1),
            instruments=rows(MEMBERS, 50, 3),
            covariates=rows(MEMBERS, 50, 2),
            weights=None,
        ),
        Stage2Rows(
            outcome=rows(MEMBERS, 40, 1), instruments=rows(MEMBERS, 40, 3), covariates=rows(MEMBERS, 40, 2), weights=None
        ),
    )
    for _ in range(2):  # the second has weights to come from
        state, losses = step(
            batch, state, layers=LastLayers(layer, layer, layer), options=StepOptions(training, "product", gamma)
        )
    assert state.v is not None
    assert state.u is not None
    assert {losses.stage1.device, losses.stage2.device, state.v.weights.device, state.u.weights.device} == {META}


class Reads(TorchDispatchMode):
    """Counts what makes a program wait for its device: numbers taken out of tensors, and positions of what is true."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.contract
@pytest.mark.parametrize(
    ("layer", "numbers"),
    [(Proximal(0.1), 9), (Ridge(0.1), 9), (Kalman(0.1, observation_noise=1.0), 10), (Adaptive(), 10), (Gradient(), 4)],
    ids=repr,
)
def test_a_step_of_the_trainer_reads_so_many_numbers_and_no_more(layer: Any, numbers: int) -> None:
    """Of a batch, its features and its loss whether they are finite, and of the solve whether it could be done."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    batches = [(x, x.prod(dim=1, keepdim=True))]

    def reads(steps: int) -> Counter[str]:
        torch.manual_seed(0)
        trainer = LastLayerTrainer(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), layer)
        with Reads() as seen:
            trainer.fit(batches, steps=steps)
        return seen.counts

    more = reads(7)
    more.subtract(reads(3))
    assert {name: count / 4 for name, count in more.items() if count} == {"_local_scalar_dense": numbers}


@pytest.mark.law
@pytest.mark.parametrize("layer", [Proximal(0.1), Ridge(0.1), Kalman(0.1, observation_noise=1.0), Adaptive()], ids=repr)
def test_last_layers_solve_in_double_precision_whatever_the_features(layer: Any) -> None:
    features, targets = torch.randn(40, 4), torch.randn(40, 2)
    memory = layer.update(None, features=features, targets=targets, weights=None)
    memory = layer.update(memory, features=features, targets=targets, weights=torch.ones(40))
    assert {part.dtype for part in (memory.weights, *memory.more)} == {torch.float64}
