"""Networks side by side: the features, gradients and states of each are those of its module alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from cfiv.networks.default_networks import FeatureNetwork, instrument_network
from cfiv.networks.member_networks import Single
from cfiv.networks.stacked_networks import ELEMENTWISE, Stacked, can_be_stacked, member_network
from cfiv.runtime.draws import seeded

#: Two float64 routes to one product.
SAME = 1e-12
CPU = torch.device("cpu")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: nn.Sequential(
            nn.Linear(3, 5), kind(), nn.Linear(5, 4, bias=False), kind(), nn.Linear(4, 2)
        )
        for kind in ELEMENTWISE
    },
    "carries its input": lambda: FeatureNetwork(3, (6, 5), 4),
    "does not": lambda: FeatureNetwork(3, (6,), 4, carry=False),
    "one layer": lambda: nn.Linear(3, 2),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)),
    "ends in a function": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
    "begins with one": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 4)),
}


def made(make: Callable[[], nn.Module], seeds: range = range(3)) -> list[nn.Module]:
    networks = []
    for seed in seeds:
        with seeded(seed, CPU):
            networks.append(make().double())
    return networks


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.oracle
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_features_and_gradients_are_those_of_the_modules(make: Callable[[], nn.Module]) -> None:
    modules, inputs = made(make), randn(3, 7, 3)
    stacked = member_network(modules)
    assert isinstance(stacked, Stacked)
    forward = stacked.learn(inputs)
    upstream = randn(*forward.features.shape, seed=1)
    (parameter,) = stacked.parameters
    (gradient,) = forward.gradients(upstream)
    assert gradient is not None
    for place, module in enumerate(modules):
        expected = module(inputs[place])
        torch.testing.assert_close(forward.features[place].detach(), expected.detach(), rtol=SAME, atol=SAME)
        torch.testing.assert_close(stacked.features(inputs)[place], expected.detach(), rtol=SAME, atol=SAME)
        torch.testing.assert_close(stacked.evaluate(place, inputs[place]), expected.detach(), rtol=SAME, atol=SAME)
        expected.backward(upstream[place])
        own = Stacked([module])
        for p in module.parameters():
            assert p.grad is not None
            p.data.copy_(p.grad)  # the gradients, in the order that rows of parameters have
        torch.testing.assert_close(gradient[place], Stacked([module]).state(0), rtol=SAME, atol=SAME)
        assert own.state(0).shape == parameter[place].shape


@pytest.mark.law
def test_a_gradient_of_features_moves_the_member_that_it_is_of_and_no_other() -> None:
    stacked = Stacked(made(NETWORKS["carries its input"]))
    forward = stacked.learn(randn(3, 7, 3))
    upstream = torch.zeros_like(forward.features)
    upstream[1] = 1.0
    (gradient,) = forward.gradients(upstream)
    assert gradient is not None
    assert [bool(row.any()) for row in gradient] == [False, True, False]


@pytest.mark.law
def test_a_state_is_a_copy_to_return_to_and_to_look_from() -> None:
    stacked, inputs = Stacked(made(NETWORKS["nested"])), randn(5, 3)
    before, features = stacked.state(1), stacked.evaluate(1, inputs)
    stacked.put(1, before + 1.0)
    assert not torch.equal(stacked.evaluate(1, inputs), features)
    assert torch.equal(stacked.evaluate(1, inputs, state=before), features)
    assert torch.equal(stacked.features(inputs.expand(3, 5, 3))[1], stacked.evaluate(1, inputs))
    stacked.put(1, before)
    assert torch.equal(stacked.evaluate(1, inputs), features)
    assert stacked.finite(1)
    stacked.put(1, before * torch.nan)
    assert not stacked.finite(1)
    assert stacked.finite(0)


@pytest.mark.law
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_member_comes_out_as_its_own_module_with_what_it_has_learned(make: Callable[[], nn.Module]) -> None:
    modules, inputs = made(make), randn(6, 3)
    stacked = Stacked(modules)
    moved = stacked.state(2) + 0.5
    stacked.put(2, moved)
    module = stacked.module(2)
    assert module is modules[2]
    assert not module.training
    torch.testing.assert_close(module(inputs).detach(), stacked.evaluate(2, inputs), rtol=SAME, atol=SAME)
    assert torch.equal(Stacked([module]).state(0), moved)


def test_identity_features_have_nothing_to_learn() -> None:
    stacked, inputs = member_network([nn.Identity(), nn.Identity()]), randn(2, 4, 3)
    assert stacked.parameters == []
    forward = stacked.learn(inputs)
    assert torch.equal(forward.features, inputs)
    assert not inputs.requires_grad
    assert list(forward.gradients(torch.ones_like(inputs))) == []


def frozen() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    return network


def hooked() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    network[0].register_forward_hook(lambda *_: None)
    return network


def hooked_backward() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    network[0].register_full_backward_pre_hook(lambda *_: None)
    return network


def shared() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


class Own(nn.Linear):
    """What it does may be anything."""


def patched() -> nn.Module:
    network = nn.Linear(3, 4)
    network.forward = lambda x: 2.0 * x  # type: ignore[method-assign]
    return network


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1)),
    "normalisation": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    "a flattening": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4)),
    "a subclass": lambda: nn.Sequential(Own(3, 4), nn.ReLU()),
    "a parametrised layer": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
    "a network within": lambda: nn.Sequential(FeatureNetwork(3, (4,), 2), nn.ReLU()),
    "frozen": frozen,
    "hooked": hooked,
    "hooked on its way back": hooked_backward,
    "shared": shared,
    "patched": patched,
}


@pytest.mark.law
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_networks_train_alone(make: Callable[[], nn.Module]) -> None:
    networks = [make(), make()]
    assert not can_be_stacked(networks)
    assert isinstance(member_network(networks[:1]), Single)


@pytest.mark.law
def test_networks_that_differ_are_not_stacked() -> None:
    def differ(*networks: Any) -> bool:
        return not can_be_stacked(networks)

    assert differ(nn.Linear(3, 4), nn.Linear(3, 5))
    assert differ(nn.Linear(3, 4), nn.Linear(3, 4, bias=False))
    assert differ(nn.Linear(3, 4), nn.Linear(3, 4).double())
    assert differ(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(3, 4), nn.SiLU()))
    assert differ(FeatureNetwork(3, (4,), 2), FeatureNetwork(3, (4,), 2, carry=False))
    same = nn.Linear(3, 4)
    assert differ(same, same)
    assert not differ(instrument_network((3,)), instrument_network((3,)))


@pytest.mark.law
def test_a_single_network_of_any_kind_has_the_gradients_of_autograd() -> None:
    with seeded(0, CPU):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    single, inputs = member_network([module]), randn(1, 9, 3)
    forward = single.learn(inputs)
    upstream = randn(1, 9, 2, seed=1)
    found = forward.gradients(upstream)
    with torch.no_grad():
        module.eval()
        fixed = module(inputs[0])
        module.train()
    torch.testing.assert_close(single.features(inputs)[0], fixed)
    expected = torch.autograd.grad(module(inputs[0]), list(module.parameters()), upstream[0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=SAME, atol=SAME)
