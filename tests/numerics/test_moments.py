"""Moments of batches: ridge paths, sums, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfiv.errors import DataError, IllConditionedWarning
from cfiv.numerics.moments import accumulate, moments, ridge_path, solve_moments
from tests.numerics.problems import ERASED, LAW, assert_same, normal, problems


@pytest.mark.law
@LAW
@given(problem=problems(), ridges=st.lists(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 50.0]), max_size=4))
def test_a_ridge_path_is_the_ridge_solutions_one_after_the_other(problem: dict[str, Any], ridges: list[float]) -> None:
    tall = len(problem["features"]) >= 2 * problem["features"].shape[1]
    ridges = [ridge if tall else ridge + 1e-3 for ridge in ridges]
    total = moments(features=problem["features"], targets=problem["targets"], weights=problem["weights"])
    path = ridge_path(total, ridges)
    assert len(path) == len(ridges)
    for ridge, solution in zip(ridges, path, strict=True):
        assert_same(solution, solve_moments(total, ridge=ridge).weights)


@pytest.mark.law
@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e-9])
def test_a_ridge_path_keeps_columns_in_small_units(unit: float) -> None:
    scales = torch.tensor([1.0, unit, 30.0], dtype=torch.float64)
    total = moments(features=normal(50, 3, seed=0) * scales, targets=normal(50, 2, seed=1))
    ridges = [0.0, 1e-2 * unit**2, 1e-6, 1.0]
    for ridge, solution in zip(ridges, ridge_path(total, ridges), strict=True):
        assert_same(scales[:, None] * solution, scales[:, None] * solve_moments(total, ridge=ridge).weights, ERASED)


@pytest.mark.law
def test_accumulating_leaves_the_batches_as_they_were() -> None:
    batches = [moments(features=normal(4, 3, seed=seed), targets=normal(4, 2, seed=seed + 1)) for seed in (0, 10, 20)]
    copies = [(batch.gram.clone(), batch.cross.clone(), batch.mass) for batch in batches]
    total = accumulate(batches)
    pairwise = batches[0] + (batches[1] + batches[2])
    assert_same(total.gram, pairwise.gram)
    assert_same(total.cross, pairwise.cross)
    assert total.mass == pairwise.mass == 12.0
    for batch, (gram, cross, mass) in zip(batches, copies, strict=True):
        assert torch.equal(batch.gram, gram)
        assert torch.equal(batch.cross, cross)
        assert batch.mass == mass


def test_moments_refuse_what_cannot_be_solved() -> None:
    features, targets = normal(9, 3, seed=0), normal(9, 2, seed=1)
    with pytest.raises(DataError, match=r"the same n, got \(9, 3\) and \(8, 2\)"):
        moments(features=features, targets=targets[:8])
    with pytest.raises(DataError, match=r"row weights must be .*>= 0.*smallest of -1\.0"):
        moments(features=features, targets=targets, weights=torch.arange(-1.0, 8.0))
    weightless = moments(features=features, targets=targets, weights=torch.zeros(9))
    missing = moments(features=torch.full_like(features, math.nan), targets=targets)
    for consumer in (solve_moments, lambda total: ridge_path(total, [0.1])):
        with pytest.raises(DataError, match=r"positive sum, got 0\.0: give at least one row a weight > 0"):
            consumer(weightless)
        with pytest.raises(DataError, match="products of the features must be finite, got 9 values"):
            consumer(missing)
    with pytest.raises(DataError, match=r"previous must have shape \(3, 2\), got \(3, 1\)"):
        solve_moments(moments(features=features, targets=targets), proximal=0.1, previous=torch.zeros(3, 1))
    with pytest.raises(DataError, match=r"no batch of rows to accumulate.*give at least one batch"):
        accumulate([])
    total = moments(features=features, targets=targets)
    for other in (moments(features=features, targets=targets[:, :1]), moments(features=features[:, :1], targets=targets)):
        with pytest.raises(
            DataError, match=r"same features and targets to add up, got 3 and [13] features, 2 and [12] targets"
        ):
            accumulate([total, other])
        with pytest.raises(DataError, match="to add up"):
            total + other


def test_moments_warn_where_the_caller_stands() -> None:
    column = normal(50, 1, seed=0)
    total = moments(features=torch.cat([column, column], dim=1), targets=column)
    with pytest.warns(IllConditionedWarning, match="rank 1 of 2") as caught:
        solve_moments(total)
    assert caught[0].filename == __file__
