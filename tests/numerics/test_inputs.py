"""What a closed form is given: refusals that say what was got."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cfiv.errors import DataError, ParameterError
from cfiv.numerics.least_squares import solve
from cfiv.numerics.moments import moments, ridge_path, solve_moments
from tests.numerics.problems import METHODS, random_problem

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("name", ["ridge", "proximal"])
@pytest.mark.parametrize("value", [-1.0, NAN, INF])
def test_a_penalty_that_is_negative_or_not_finite_is_refused(name: str, value: float) -> None:
    problem = random_problem(n=9, d=3)
    total = moments(features=problem["features"], targets=problem["targets"])
    with pytest.raises(ParameterError, match=f"{name} must be finite and >= 0, got {value}"):
        solve(**problem | {name: value})
    with pytest.raises(ParameterError, match=f"{name} must be finite and >= 0, got {value}"):
        solve_moments(total, **{name: value})
    with pytest.raises(ParameterError, match=rf"ridges\[1\] must be finite and >= 0, got {value}"):
        ridge_path(total, [0.1, value])


REFUSED_ROWS = {
    "a single target without its column": ({"targets": torch.zeros(9)}, r"got \(9, 3\) and \(9,\): reshape .* \(n, 1\)"),
    "features without columns": ({"features": torch.zeros(9)}, r"features must be \(n, d\).* got \(9,\) and \(9, 2\)"),
    "rows that differ": ({"targets": torch.zeros(8, 2)}, r"the same n, got \(9, 3\) and \(8, 2\)"),
    "no rows": ({"features": torch.zeros(0, 3), "targets": torch.zeros(0, 2)}, r"at least one row .* got shape \(0, 3\)"),
    "no features": ({"features": torch.zeros(9, 0)}, r"at least one row and one column, got shape \(9, 0\)"),
    "too few row weights": ({"weights": torch.ones(8)}, r"row weights must have shape \(9,\), got \(8,\)"),
    "a column of row weights": ({"weights": torch.ones(9, 1)}, r"row weights must have shape \(9,\), got \(9, 1\)"),
    "no weight at all": ({"weights": torch.zeros(9)}, "positive sum, got a sum of 0.0: give at least one row a weight > 0"),
    "a negative row weight": ({"weights": torch.arange(-1.0, 8.0)}, ">= 0, got a smallest of -1.0 and a sum of 27.0: drop"),
    "a row weight that is missing": (
        {"weights": torch.tensor([NAN] + 8 * [1.0])},
        "must be finite.* a sum of nan: drop or mend",
    ),
    "a row weight that is infinite": (
        {"weights": torch.tensor([INF] + 8 * [1.0])},
        "must be finite.* a sum of inf: drop or mend",
    ),
    "a feature that is missing": ({"features": torch.full((9, 3), NAN)}, "features must be finite, got 27 values"),
    "a target that is infinite": ({"targets": torch.full((9, 2), -INF)}, "targets must be finite, got 18 values"),
    "previous weights for other targets": ({"previous": torch.zeros(3, 1)}, r"previous must have shape \(3, 2\), got \(3, 1\)"),
    "previous weights without columns": ({"previous": torch.zeros(3)}, r"previous must have shape \(3, 2\), got \(3,\)"),
    "previous weights that are missing": ({"previous": torch.full((3, 2), NAN)}, "previous must be finite, got 6 values"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("changes", "message"), REFUSED_ROWS.values(), ids=REFUSED_ROWS)
def test_unusable_rows_are_refused(changes: dict[str, Tensor], message: str, method: str) -> None:
    with pytest.raises(DataError, match=message):
        solve(**random_problem(n=9, d=3, proximal=0.1) | changes, method=method)
