"""The split and the batches."""

import numpy as np
import pytest
import torch

from cfiv.errors import DataError, ParameterError
from cfiv.learning.samples import Sample, batch_rows, batches, hold_out, split_rows


@pytest.mark.law
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_split_puts_every_row_in_exactly_one_sample(share: float) -> None:
    first, second = split_rows(101, share=share, generator=np.random.default_rng(0))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101))
    assert len(first) == round(101 * share)


@pytest.mark.law
def test_holding_out_keeps_sample_2_whole_and_sample_1_untouched() -> None:
    stage1, sample2 = torch.arange(50), torch.arange(50, 100)
    split = hold_out(stage1=stage1, sample2=sample2, share=0.2, generator=np.random.default_rng(0))
    assert split.heldout is not None
    assert len(split.heldout) == 10
    assert split.stage1 is stage1
    assert sorted(split.sample2.tolist()) == sample2.tolist()
    assert sorted([*split.stage2.tolist(), *split.heldout.tolist()]) == sample2.tolist()


@pytest.mark.law
def test_a_sample_too_small_to_spare_rows_holds_none_out() -> None:
    split = hold_out(stage1=torch.arange(5), sample2=torch.arange(5), share=0.2, generator=np.random.default_rng(0))
    assert split.heldout is None
    assert len(split.sample2) == 5


@pytest.mark.law
def test_rows_of_a_sample_stay_together() -> None:
    numbers = torch.arange(30, dtype=torch.float64)[:, None]
    sample = Sample(outcome=numbers, treatment=numbers, instruments=numbers, covariates=numbers, weights=numbers[:, 0] + 1)
    some = sample.rows(torch.tensor([[3, 1], [20, 3]]))  # of two members
    assert some.outcome[..., 0].tolist() == [[3.0, 1.0], [20.0, 3.0]]
    assert all(torch.equal(some.outcome, part) for part in (some.treatment, some.instruments, some.covariates))
    assert torch.equal(some.outcome[..., 0] + 1, some.weights)


@pytest.mark.law
def test_a_pass_of_batches_sees_no_row_twice() -> None:
    drawn = batches(torch.arange(100, 123), size=5, generator=np.random.default_rng(0))
    for _ in range(3):
        one_pass = torch.cat([next(drawn) for _ in range(4)])  # 23 rows: four batches, and a tail of three that is left out
        assert len(one_pass.unique()) == 20
        assert 100 <= int(one_pass.min()) <= int(one_pass.max()) < 123


@pytest.mark.law
@pytest.mark.parametrize("size", [5, 60, 300])
def test_a_pass_over_a_large_sample_sees_no_row_twice_and_a_window_reads_few_places(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfiv.learning.samples.WINDOW", 64)
    monkeypatch.setattr("cfiv.learning.samples.RUN", 8)
    rows = 1000
    drawn = batches(torch.arange(rows), size=size, generator=np.random.default_rng(0))
    first, second = (torch.cat([next(drawn) for _ in range(rows // size)]) for _ in range(2))
    for one_pass in (first, second):
        assert len(one_pass.unique()) == rows // size * size
    assert not torch.equal(first, second)
    for window in first[:640].split(64):  # runs of eight rows
        assert len((window // 8).unique()) == 8
    assert first[:64].sort().values.diff().max() > 8
    assert abs(float(first[:64].diff().sign().double().mean())) < 0.4


@pytest.mark.law
def test_a_large_sample_is_judged_on_random_rows_and_lies_in_order_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfiv.learning.samples.WINDOW", 300)
    monkeypatch.setattr("cfiv.learning.samples.CHECK_ROWS", 100)
    first, second = split_rows(1000, share=0.5, generator=np.random.default_rng(0))
    split = hold_out(stage1=first, sample2=second, share=0.2, generator=np.random.default_rng(0))
    assert split.heldout is not None
    assert sorted([*first.tolist(), *split.stage2.tolist(), *split.heldout.tolist()]) == list(range(1000))
    for rows in (first, second, split.stage2):
        assert (rows[100:].diff() > 0).all()
        assert not (rows[:100].diff() > 0).all()
        assert 400 < float(rows[:100].double().mean()) < 600
    assert not (split.heldout.diff() > 0).all()


@pytest.mark.law
def test_batches_depend_on_their_generator_only() -> None:
    torch.manual_seed(1)
    first = next(batches(torch.arange(30), size=7, generator=np.random.default_rng(5)))
    torch.manual_seed(2)
    again = next(batches(torch.arange(30), size=7, generator=np.random.default_rng(5)))
    other = next(batches(torch.arange(30), size=7, generator=np.random.default_rng(6)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.law
@pytest.mark.parametrize("size", [None, 30, 31])
def test_a_batch_as_large_as_the_sample_is_the_sample(size: int | None) -> None:
    rows = torch.arange(30)
    assert next(batches(rows, size=size, generator=np.random.default_rng(0))) is rows


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
