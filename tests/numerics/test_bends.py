"""Along which columns a function bends, beside least squares of one column at a time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cfiv.numerics.bends import KNOTS, bends
from cfiv.numerics.landmarks import LineColumns

ROWS, COLUMNS = 400, 6
#: Relative: the same least squares, with a penalty of one row on the line in one and none in the other.
PENALISED = 1e-2


def found(points: Tensor, target: Tensor, *, leading: int = 1, weights: Tensor | None = None) -> Tensor:
    d = points.shape[1]
    line = LineColumns(centre=torch.zeros(d, dtype=torch.float64), scale=torch.ones(d, dtype=torch.float64), constant=True)
    weights = torch.ones(len(points), dtype=torch.float64) if weights is None else weights
    return bends(points, targets=target[:, None], weights=weights, columns=line, leading=leading)


def normal(columns: int, *, rows: int = ROWS, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)))


def unexplained(columns: Tensor, target: Tensor) -> float:
    """The least sum of squares beside a constant."""
    design = torch.cat([torch.ones(len(columns), 1, dtype=torch.float64), columns], dim=1)
    return float((target - design @ torch.linalg.lstsq(design, target).solution).square().sum())


@pytest.mark.oracle
def test_a_column_is_worth_what_its_splines_and_products_take_off_the_squares_beyond_chance() -> None:
    points, noise = normal(COLUMNS), normal(1, seed=1)[:, 0]
    target = points[:, 0] * points[:, 1] + points[:, 2].abs() + 0.5 * noise
    line, log = unexplained(points, target), math.log(COLUMNS)

    def beyond(further: Tensor) -> float:
        q = further.shape[1]
        chance = q + 2 * math.sqrt(q * log) + 2 * log
        share = 1 - unexplained(torch.cat([points, further], dim=1), target) / line
        return max(0.0, share - chance / (ROWS - COLUMNS - 1))

    knots = torch.quantile(points, torch.tensor(KNOTS, dtype=torch.float64), dim=0)
    expected = torch.tensor(
        [beyond((points[:, j, None] - knots[:, j]).clamp(min=0)) for j in range(COLUMNS)], dtype=torch.float64
    )
    for j in range(1, COLUMNS):
        product = beyond(points[:, :1] * points[:, j : j + 1])
        expected[[0, j]] += product
    assert (expected[:3] > 0.05).all()
    torch.testing.assert_close(found(points, target), expected, rtol=PENALISED, atol=1e-4)


@pytest.mark.law
def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    points = normal(3, rows=200)
    target = torch.sin(2 * points[:, 0])
    twice = torch.cat([points, points[:100]]), torch.cat([target, target[:100]])
    weights = torch.cat([torch.full((100,), 2.0), torch.ones(100)]).double()
    # Knots are quantiles of rows, and what chance could do goes by the rows that count.
    torch.testing.assert_close(found(points, target, weights=weights), found(*twice), rtol=0.1, atol=0.02)


@pytest.mark.statistical
def test_a_line_in_many_columns_seldom_seems_to_bend() -> None:
    """By chance about one of the splines of a column is beyond the bound in one of some samples; the bound is not sharp."""
    some = 0
    for seed in range(10):
        points = normal(100, rows=600, seed=seed)
        some += int(found(points, points[:, 0] + normal(1, rows=600, seed=100 + seed)[:, 0]).any())
    assert some <= 3


@pytest.mark.contract
def test_nothing_bends_where_rows_are_fewer_than_columns_or_columns_have_two_values() -> None:
    points = normal(60, rows=40)
    assert not found(points, points[:, 0].square()).any()
    two_values = (normal(4) > 0).double()
    assert not found(two_values, two_values[:, 0] + normal(1, seed=1)[:, 0], leading=4).any()
