"""Which state of a run is kept."""

import pytest
import torch

from cfiv.learning.early_stopping import Checkpoint, EarlyStopping

NOISE = torch.linspace(-1, 1, 40, dtype=torch.float64)


def at(step: int, losses: torch.Tensor) -> Checkpoint:
    return Checkpoint(step, [], (), (), losses)


def run(*losses: torch.Tensor, tolerance: float = 1.0, patience: int = 3) -> EarlyStopping:
    stopping = EarlyStopping(tolerance=tolerance, patience=patience)
    for step, loss in enumerate(losses, start=1):
        stopping.add(at(step, loss))
    return stopping


@pytest.mark.law
def test_the_latest_state_that_is_not_significantly_worse_than_the_best_is_kept() -> None:
    stopping = run(2 + NOISE, 1 + NOISE, 1.01 - 0.5 * NOISE, 3 + NOISE, 3.5 - NOISE)
    assert stopping.best is not None
    assert stopping.kept is not None
    assert (stopping.best.step, stopping.kept.step) == (2, 3)


@pytest.mark.law
def test_without_tolerance_the_best_state_is_kept() -> None:
    stopping = run(2 + NOISE, 1 + NOISE, 1.01 - 0.5 * NOISE, tolerance=0.0)
    assert stopping.kept is stopping.best


@pytest.mark.law
def test_a_common_shift_is_told_apart_however_noisy_the_losses_themselves_are() -> None:
    """Rows that are hard for one state are hard for the next: only the paired difference counts."""
    loud = 100 * NOISE.abs()
    better, worse = at(1, loud), at(2, loud + 0.1 + 0.01 * NOISE)
    assert worse.excess_over(better) > 10
    assert better.excess_over(worse) < -10


@pytest.mark.law
def test_a_new_best_state_replaces_an_older_one_that_was_kept() -> None:
    stopping = run(2 + NOISE, 1 + NOISE, 0.5 + NOISE)
    assert stopping.kept is not None
    assert stopping.kept.step == 3


@pytest.mark.law
def test_training_is_exhausted_after_as_many_clear_rises_in_a_row_as_patience_says() -> None:
    risen = [3 + i + NOISE - 0.9 * NOISE for i in range(3)]
    assert run(1 + NOISE, *risen, patience=3).exhausted
    assert not run(1 + NOISE, *risen, patience=4).exhausted
    assert not run(1 + NOISE, risen[0], 1 + NOISE, *risen[1:], patience=3).exhausted


@pytest.mark.law
def test_without_held_out_rows_the_last_state_is_kept() -> None:
    stopping = run(*(torch.zeros(0) for _ in range(3)))
    assert stopping.kept is not None
    assert stopping.kept.step == 3
    assert not stopping.exhausted
