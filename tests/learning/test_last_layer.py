"""Last layers as pieces: what the proximal memory remembers."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch

from cfiv.errors import ParameterError
from cfiv.learning.last_layer import Adaptive, ClosedForm, Gradient, Kalman, Memory, MovingAverage, Proximal, Ridge
from cfiv.learning.solving import Solving, check_last_layer, update_members
from cfiv.numerics.least_squares import solve_step

#: Float64 solves of well-conditioned systems of a few columns.
SAME = 1e-12


def batch(seed: int, rows: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return {"features": features, "targets": features @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 0.1}


def solved(layer: ClosedForm, memory: Memory | None, *, gain: float | None, given: dict[str, torch.Tensor]) -> Memory:
    """What one member remembers after a batch."""
    solve = Solving(layer, None if memory is None else Memory(memory.weights[None]), gain=gain)
    solve(features=given["features"][None], targets=given["targets"][None], weights=None)
    return Memory(solve.memory.weights[0])


@pytest.mark.law
def test_the_first_batch_is_not_pulled_to_zero() -> None:
    first = Proximal(lam=100.0).update(None, **batch(0), weights=None).weights
    torch.testing.assert_close(first, solve_step(**batch(0)), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_later_batches_are_pulled_to_the_previous_weights() -> None:
    layer = Proximal(lam=1.0, beta=0.1)
    first = layer.update(None, **batch(0), weights=None).weights
    second = layer.update(Memory(first), **batch(1), weights=None).weights
    expected = solve_step(**batch(1), ridge=0.1, proximal=1.0, previous=first)
    torch.testing.assert_close(second, expected, rtol=SAME, atol=SAME)
    assert (second - first).norm() < (solve_step(**batch(1), ridge=0.1) - first).norm()


@pytest.mark.law
def test_solving_one_batch_again_against_its_own_answer_weakens_the_memory() -> None:
    """The trap that a step avoids by keeping the previous weights fixed within its batch."""
    layer, previous = Proximal(lam=1.0), torch.zeros(3, 1, dtype=torch.float64)
    once, again = (layer.update(Memory(previous), **batch(0), weights=None).weights for _ in range(2))
    moved = layer.update(Memory(once), **batch(0), weights=None).weights
    assert torch.equal(again, once)
    assert (moved - previous).norm() > 1.2 * (once - previous).norm()


@pytest.mark.law
def test_a_gain_goes_that_share_of_the_way_from_the_previous_weights() -> None:
    previous = Memory(torch.ones(3, 1, dtype=torch.float64))
    whole = Proximal(lam=1.0, beta=0.1).update(previous, **batch(0), weights=None).weights
    part = solved(Proximal(lam=1.0, beta=0.1), previous, gain=0.25, given=batch(0)).weights
    torch.testing.assert_close(part, 1.0 + 0.25 * (whole - 1.0), rtol=SAME, atol=SAME)
    first = solved(Proximal(lam=1.0), None, gain=0.25, given=batch(0)).weights
    torch.testing.assert_close(first, solve_step(**batch(0)), rtol=SAME, atol=SAME)


LAYERS = [Ridge(0.1), Proximal(2.0, beta=0.1), Kalman(0.5, observation_noise=1.0), MovingAverage(0.5, beta=0.1)]


@pytest.mark.law
@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize("layer", [Adaptive(), *LAYERS], ids=lambda layer: type(layer).__name__)
def test_layers_of_members_remember_each_their_own(layer: ClosedForm, gain: float | None) -> None:
    memory: Memory | None = None
    alone: list[Memory | None] = [None, None, None]
    for number in range(3):
        batches = [batch(10 * number + member) for member in range(3)]
        features, targets = (torch.stack([each[name] for each in batches]) for name in ("features", "targets"))
        weights = torch.rand(3, 40, generator=torch.Generator().manual_seed(number), dtype=torch.float64) + 0.5
        solve = Solving(layer, memory, pull=0.3, gain=gain)
        solve(features=features, targets=targets, weights=weights)
        memory = solve.memory
        for member, given in enumerate(batches):
            before = alone[member] = None if alone[member] is None else replace(alone[member], pull=0.3)
            own = layer.update(before, **given, weights=weights[member])
            if gain is not None and before is not None:
                own = replace(own, weights=before.weights + gain * (own.weights - before.weights))
            alone[member] = own
            torch.testing.assert_close(memory.weights[member], own.weights, rtol=SAME, atol=SAME)
            assert len(memory.more) == len(own.more)


@pytest.mark.gradient
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_weights_are_differentiable_in_the_targets(layer: ClosedForm) -> None:
    """They are linear in them, so a difference is exact."""
    given, memory = batch(0), Memory(torch.ones(3, 1, dtype=torch.float64))
    live = given["targets"].clone().requires_grad_()
    found = layer.update(memory, features=given["features"], targets=live, weights=None).weights
    direction = torch.randn(40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found.sum(), [live])
    moved = layer.update(memory, features=given["features"], targets=given["targets"] + direction, weights=None).weights
    assert float((gradient * direction).sum()) == pytest.approx(float((moved - found).detach().sum()), rel=1e-9)


def test_what_is_no_last_layer_is_refused() -> None:
    for wrong in (Gradient(), Ridge, {"update": 1}, 3.0):
        with pytest.raises(
            ParameterError, match=r"last_layer must be Adaptive, Ridge, Proximal, Kalman, MovingAverage or an object"
        ):
            check_last_layer(wrong)
    for layer in (Adaptive(), *LAYERS):
        check_last_layer(layer)


def test_the_adaptive_layer_has_nothing_to_set() -> None:
    assert fields(Adaptive()) == ()
    assert Adaptive() == Adaptive()


def test_what_a_layer_of_ones_own_gives_is_looked_at() -> None:
    class Wrong:
        def __init__(self, given: object) -> None:
            self.given = given

        def update(self, memory: Memory | None, **_: object) -> object:
            return self.given

    features, targets = torch.ones(2, 5, 3), torch.ones(2, 5, 1)
    for given, message in ((3.0, "must be a Memory"), (Memory(torch.ones(1, 3)), r"weights of shape \(3, 1\)")):
        with pytest.raises(ParameterError, match=message):
            update_members(Wrong(given), None, features=features, targets=targets, weights=None)  # type: ignore[arg-type]


@pytest.mark.law
def test_a_schedule_concerns_the_pull_to_previous_weights_alone() -> None:
    previous = torch.ones(3, 1, dtype=torch.float64)
    pulled, weaker = (
        layer.update(Memory(previous, pull=pull), **batch(0), weights=None).weights
        for layer, pull in ((Proximal(2.0, beta=0.1), 0.25), (Proximal(0.5, beta=0.1), 1.0))
    )
    assert torch.equal(pulled, weaker)
    for layer in (Adaptive(), LAYERS[0], LAYERS[2], LAYERS[3]):
        once, again = (layer.update(Memory(previous, pull=pull), **batch(0), weights=None).weights for pull in (0.25, 1.0))
        assert torch.equal(once, again)


@pytest.mark.law
def test_falling_gains_settle_at_the_weights_of_all_batches_together() -> None:
    features, truth = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.ones(3, 1)
    targets = features @ truth.double() + 3.0 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1)).double()
    everything = solve_step(features=features, targets=targets)

    def distance(gain: Callable[[int], float]) -> float:
        memory: Memory | None = None
        for k, rows in enumerate(torch.arange(4000).split(20), start=1):
            given = {"features": features[rows], "targets": targets[rows]}
            memory = solved(Proximal(lam=1.0), memory, gain=gain(k), given=given)
        assert memory is not None
        return float((memory.weights - everything).norm())

    assert distance(lambda k: 2.0 / (k + 1)) < distance(lambda k: 1.0) / 4
