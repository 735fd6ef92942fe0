"""Last layers as pieces: what the proximal memory remembers."""

from collections.abc import Callable

import pytest
import torch

from cfiv.learning.last_layer import Held, Proximal
from cfiv.numerics.least_squares import solve_step

#: Float64 solves of well-conditioned systems of a few columns.
SAME = 1e-12


def batch(seed: int, rows: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return {"features": features, "targets": features @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 0.1}


@pytest.mark.law
def test_the_first_batch_is_not_pulled_to_zero() -> None:
    first = Proximal(lam=100.0).after(None)(**batch(0), weights=None)
    torch.testing.assert_close(first, solve_step(**batch(0)), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_later_batches_are_pulled_to_the_previous_weights() -> None:
    layer = Proximal(lam=1.0, beta=0.1)
    first = layer.after(None)(**batch(0), weights=None)
    second = layer.after(first)(**batch(1), weights=None)
    expected = solve_step(**batch(1), ridge=0.1, proximal=1.0, previous=first)
    torch.testing.assert_close(second, expected, rtol=SAME, atol=SAME)
    assert (second - first).norm() < (solve_step(**batch(1), ridge=0.1) - first).norm()


@pytest.mark.law
def test_solving_one_batch_again_against_its_own_answer_weakens_the_memory() -> None:
    """The trap that a step avoids by keeping the previous weights fixed within its batch."""
    layer, previous = Proximal(lam=1.0), torch.zeros(3, 1, dtype=torch.float64)
    once = layer.after(previous)(**batch(0), weights=None)
    again = layer.after(previous)(**batch(0), weights=None)
    moved = layer.after(once)(**batch(0), weights=None)
    assert torch.equal(again, once)
    assert (moved - previous).norm() > 1.2 * (once - previous).norm()


@pytest.mark.law
def test_held_weights_are_the_previous_ones_and_solved_only_where_there_are_none() -> None:
    held = Held(Proximal(lam=1.0, beta=0.1))
    first = held.after(None)(**batch(0), weights=None)
    torch.testing.assert_close(first, solve_step(**batch(0), ridge=0.1), rtol=SAME, atol=SAME)
    assert held.after(first)(**batch(1), weights=None) is first


@pytest.mark.law
def test_a_gain_goes_that_share_of_the_way_from_the_previous_weights() -> None:
    previous = torch.ones(3, 1, dtype=torch.float64)
    whole = Proximal(lam=1.0, beta=0.1).after(previous)(**batch(0), weights=None)
    part = Proximal(lam=1.0, beta=0.1, gain=0.25).after(previous)(**batch(0), weights=None)
    torch.testing.assert_close(part, previous + 0.25 * (whole - previous), rtol=SAME, atol=SAME)
    first = Proximal(lam=1.0, gain=0.25).after(None)(**batch(0), weights=None)
    torch.testing.assert_close(first, solve_step(**batch(0)), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_falling_gains_settle_at_the_weights_of_all_batches_together() -> None:
    features, truth = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.ones(3, 1)
    targets = features @ truth.double() + 3.0 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1)).double()
    everything = solve_step(features=features, targets=targets)

    def distance(gain: Callable[[int], float]) -> float:
        weights = None
        for k, rows in enumerate(torch.arange(4000).split(20), start=1):
            layer = Proximal(lam=1.0, gain=gain(k))
            weights = layer.after(weights)(features=features[rows], targets=targets[rows], weights=None)
        return float((weights - everything).norm())

    assert distance(lambda k: 2.0 / (k + 1)) < distance(lambda k: 1.0) / 4
