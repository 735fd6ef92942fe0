"""Last layers as pieces: what the proximal memory remembers."""

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
    layer = Proximal(lam=1.0, ridge=0.1)
    first = layer.after(None)(**batch(0), weights=None)
    second = layer.after(first)(**batch(1), weights=None)
    expected = solve_step(**batch(1), ridge=0.1, proximal=1.0, previous=first)
    torch.testing.assert_close(second, expected, rtol=SAME, atol=SAME)
    assert (second - first).norm() < (solve_step(**batch(1), ridge=0.1) - first).norm()


@pytest.mark.law
def test_solving_one_batch_again_against_its_own_answer_weakens_the_memory() -> None:
    """The trap that a step avoids by keeping the previous weights fixed within its batch (method.md, trap 1)."""
    layer, previous = Proximal(lam=1.0), torch.zeros(3, 1, dtype=torch.float64)
    once = layer.after(previous)(**batch(0), weights=None)
    again = layer.after(previous)(**batch(0), weights=None)
    moved = layer.after(once)(**batch(0), weights=None)
    assert torch.equal(again, once)
    assert (moved - previous).norm() > 1.2 * (once - previous).norm()


@pytest.mark.law
def test_held_weights_are_the_previous_ones_and_solved_only_where_there_are_none() -> None:
    held = Held(Proximal(lam=1.0, ridge=0.1))
    first = held.after(None)(**batch(0), weights=None)
    torch.testing.assert_close(first, solve_step(**batch(0), ridge=0.1), rtol=SAME, atol=SAME)
    assert held.after(first)(**batch(1), weights=None) is first
