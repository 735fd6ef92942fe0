"""The split and the batches."""

import numpy as np
import pytest
import torch

from cfiv.errors import DataError, ParameterError
from cfiv.learning.samples import Sample, batch_rows, batches, hold_out, split_rows


def numbered(rows: int, *, weighted: bool = False) -> Sample:
    """A sample whose outcome is its row number."""
    numbers = torch.arange(rows, dtype=torch.float64)[:, None]
    return Sample(numbers, numbers, numbers, numbers, numbers[:, 0] + 1 if weighted else None)


@pytest.mark.law
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_split_puts_every_row_in_exactly_one_sample(share: float) -> None:
    first, second = split_rows(101, share=share, generator=np.random.default_rng(0))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101))
    assert len(first) == round(101 * share)


@pytest.mark.law
def test_holding_out_keeps_sample_2_whole_and_sample_1_untouched() -> None:
    sample = numbered(50, weighted=True)
    split = hold_out(stage1=sample, sample2=sample, share=0.2, generator=np.random.default_rng(0))
    assert split.heldout is not None
    assert len(split.heldout) == 10
    assert split.stage1 is sample
    whole = split.whole_stage2
    assert sorted(whole.outcome[:, 0].tolist()) == list(range(50))
    assert whole.weights is not None
    assert torch.equal(whole.weights, whole.outcome[:, 0] + 1)


@pytest.mark.law
def test_a_sample_too_small_to_spare_rows_holds_none_out() -> None:
    split = hold_out(stage1=numbered(5), sample2=numbered(5), share=0.2, generator=np.random.default_rng(0))
    assert split.heldout is None
    assert len(split.whole_stage2) == 5


@pytest.mark.law
def test_a_pass_of_batches_sees_no_row_twice_and_roles_stay_together() -> None:
    drawn = batches(numbered(23, weighted=True), size=5, generator=np.random.default_rng(0))
    for _ in range(3):
        one_pass = [next(drawn) for _ in range(4)]  # 23 rows: four batches, and a tail of three that this pass leaves out
        rows = torch.cat([batch.outcome[:, 0] for batch in one_pass])
        assert len(rows.unique()) == 20
        for batch in one_pass:
            assert batch.weights is not None
            assert torch.equal(batch.outcome, batch.treatment)
            assert torch.equal(batch.outcome[:, 0] + 1, batch.weights)


@pytest.mark.law
def test_batches_depend_on_their_generator_only() -> None:
    torch.manual_seed(1)
    first = next(batches(numbered(30), size=7, generator=np.random.default_rng(5))).outcome
    torch.manual_seed(2)
    again = next(batches(numbered(30), size=7, generator=np.random.default_rng(5))).outcome
    other = next(batches(numbered(30), size=7, generator=np.random.default_rng(6))).outcome
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.law
@pytest.mark.parametrize("size", [None, 30, 31])
def test_a_batch_as_large_as_the_sample_is_the_sample(size: int | None) -> None:
    sample = numbered(30)
    assert next(batches(sample, size=size, generator=np.random.default_rng(0))) is sample


@pytest.mark.parametrize(("rows", "share"), [(3, 0.5), (10, 0.05), (10, 0.95)])
def test_a_split_that_leaves_a_sample_too_small_is_refused(rows: int, share: float) -> None:
    with pytest.raises(DataError, match=r"each sample needs at least 2 rows"):
        split_rows(rows, share=share, generator=np.random.default_rng(0))


def test_auto_batches_shrink_to_the_sample_and_explicit_ones_do_not() -> None:
    assert batch_rows("auto", smallest_sample=1000) == 128
    assert batch_rows("auto", smallest_sample=40) == 40
    assert batch_rows(None, smallest_sample=40) is None
    with pytest.raises(ParameterError, match=r"batch_size=128 exceeds the 40 rows of the smallest sample: use at most 40"):
        batch_rows(128, smallest_sample=40)
    for bad in (0, -3, 2.5, True, "large"):
        with pytest.raises(ParameterError, match=r"batch_size must be a whole number >= 1, 'auto', or None"):
            batch_rows(bad, smallest_sample=40)
