"""Solves from a factorisation: certified data sets, ranks and condition numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from cfiv.errors import IllConditionedWarning
from cfiv.numerics.least_squares import solve, solve_step, with_intercept
from cfiv.numerics.moments import moments, ridge_path
from tests.numerics.nist import PROBLEMS
from tests.numerics.problems import ERASED, assert_same, normal, random_problem

#: An exact solution against NIST's 15 printed digits.
PRINTED = 1e-14
#: LRE, the correct digits of the worst coefficient: a digit or so below the least in 200 orders of the rows (10.4, 8.8, 12.3,
#: 8.7, 7.4, 5.4 and 6.6), so that another BLAS passes too.
DIGITS = {"Longley": 9, "Wampler1": 8, "Wampler2": 11, "Wampler3": 8, "Wampler4": 6, "Wampler5": 4, "Filip": 6}


def exact_least_squares(features: list[list[Fraction]], targets: list[Fraction]) -> list[Fraction]:
    """Normal equations by Gauss-Jordan elimination in rational arithmetic."""
    rows = [[*row, target] for row, target in zip(features, targets, strict=True)]
    size = len(rows[0]) - 1
    system = [[sum(row[i] * row[j] for row in rows) for j in range(size + 1)] for i in range(size)]
    for i in range(size):
        system[i] = [value / system[i][i] for value in system[i]]
        for other in set(range(size)) - {i}:
            factor = system[other][i]
            system[other] = [a - factor * b for a, b in zip(system[other], system[i], strict=True)]
    return [row[-1] for row in system]


def nist_tensors(name: str) -> tuple[Tensor, Tensor]:
    """Features with a constant, and targets, each rounded to float64 once."""
    features = torch.tensor([[float(value) for value in row] for row in PROBLEMS[name].features], dtype=torch.float64)
    targets = torch.tensor([[float(value)] for value in PROBLEMS[name].targets], dtype=torch.float64)
    return with_intercept(features), targets


def relative_error(got: Tensor, exact: list[Fraction]) -> float:
    """Of the worst coefficient."""
    return float(max(abs(Fraction(value) / other - 1) for value, other in zip(got.flatten().tolist(), exact, strict=True)))


@pytest.mark.oracle
@pytest.mark.parametrize("name", PROBLEMS)
def test_certified_coefficients_are_the_exact_solution_of_their_data(name: str) -> None:
    features = [[*row, Fraction(1)] for row in PROBLEMS[name].features]
    for exact, certified in zip(exact_least_squares(features, PROBLEMS[name].targets), PROBLEMS[name].certified, strict=True):
        assert abs(exact - certified) <= PRINTED * abs(certified)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:about 6 digits:cfiv.errors.IllConditionedWarning")  # Filip, rightly: it has 7
@pytest.mark.parametrize(("name", "digits"), DIGITS.items())
def test_solve_reaches_the_certified_digits_of_nist_in_any_order_of_the_rows(name: str, digits: int) -> None:
    features, targets = nist_tensors(name)
    orders = [
        torch.arange(len(features)),
        *(torch.from_numpy(np.random.default_rng(i).permutation(len(features))) for i in range(8)),
    ]
    for order in orders:
        solution = solve(features=features[order], targets=targets[order]).weights
        assert relative_error(solution, PROBLEMS[name].certified) <= 10.0**-digits


@pytest.mark.law
@pytest.mark.parametrize("rows", [1024, 1025, 5000])
def test_a_tall_problem_is_solved_in_pieces_as_a_whole(rows: int) -> None:
    problem = random_problem(n=rows, d=300 if rows == 5000 else 3, ridge=0.1)
    assert_same(solve(**problem).weights, solve(**problem, method="primal").weights)


@pytest.mark.law
def test_the_rank_does_not_depend_on_the_number_of_rows() -> None:
    first = (normal(300_000, 1, seed=0) > 0).double()
    trap = torch.cat([first, 1 - first], dim=1)  # with a constant, the dummy variable trap
    with pytest.warns(IllConditionedWarning, match="rank 2 of 3"):
        assert solve(features=with_intercept(trap), targets=first).rank == 2
    close = torch.cat([first, first + 1e-11 * normal(300_000, 1, seed=1)], dim=1)
    with pytest.warns(IllConditionedWarning, match="about [45] digits"):
        assert solve(features=close, targets=first).rank == 2


@pytest.mark.law
@pytest.mark.parametrize("shape", ["wide", "collinear", "zero column"])
def test_without_a_unique_minimiser_solve_gives_the_shortest_one(shape: str) -> None:
    scales = torch.tensor([1.0, 30.0, 0.01, 5.0, 1.0], dtype=torch.float64)  # so that scaling the columns would show
    features = normal(3 if shape == "wide" else 30, 5, seed=0) * scales
    if shape == "collinear":
        features[:, 4] = features[:, 0] - 2 * features[:, 1]
    if shape == "zero column":
        features[:, 4] = 0.0
    targets = normal(len(features), 2, seed=1)
    shortest = torch.linalg.pinv(features, rtol=1e-12) @ targets
    for method in ["qr", "primal"]:
        with pytest.warns(IllConditionedWarning, match="rank"):
            assert_same(solve(features=features, targets=targets, method=method).weights, shortest, ERASED)
    assert_same(ridge_path(moments(features=features, targets=targets), [0.0])[0], shortest, ERASED)
    if shape == "wide":
        step = solve_step(features=features, targets=targets, ridge=0.0, proximal=0.0, previous=None)
        assert_same(step, shortest)


@pytest.mark.parametrize("method", ["qr", "primal"])
def test_collinear_features_are_solved_with_a_warning_that_gives_the_rank(method: str) -> None:
    features = normal(50, 3, seed=0)
    features = torch.cat([features, features[:, :1]], dim=1)
    with pytest.warns(IllConditionedWarning, match="rank 3 of 4.*; rescale or drop collinear .*ridge penalty > 0") as caught:
        solution = solve(features=features, targets=features[:, :1], method=method)
    assert solution.rank == 3
    assert caught[0].filename == __file__
    solve(features=features, targets=features[:, :1], method=method, ridge=1e-3)  # takes the remedy: no warning


@pytest.mark.parametrize("method", ["qr", "primal"])
def test_features_that_are_all_zero_are_solved_by_zero_with_a_warning(method: str) -> None:
    with pytest.warns(IllConditionedWarning, match="rank 0 of 2"):
        solution = solve(features=torch.zeros(9, 2), targets=torch.ones(9, 1), method=method)
    assert solution.rank == 0
    assert math.isinf(solution.condition)
    assert not solution.weights.any()


@pytest.mark.parametrize(("method", "gap"), [("qr", 1e-11), ("primal", 1e-6)])
def test_nearly_collinear_features_are_solved_with_a_warning_that_gives_the_digits(method: str, gap: float) -> None:
    features = normal(50, 2, seed=0)
    features = torch.cat([features, features[:, :1] + gap * normal(50, 1, seed=1)], dim=1)
    with pytest.warns(IllConditionedWarning, match=r"about [34] digits .* \(condition number [12]\..*e\+"):
        solution = solve(features=features, targets=normal(50, 1, seed=2), method=method)
    assert solution.rank == 3
    assert 0.5 / gap < solution.condition < 5 / gap


@pytest.mark.parametrize("method", ["qr", "primal"])
def test_fewer_rows_than_features_and_no_penalty_mean_an_infinite_condition_number(method: str) -> None:
    with pytest.warns(IllConditionedWarning, match="rank 4 of 9"):
        solution = solve(features=normal(4, 9, seed=0), targets=normal(4, 1, seed=1), method=method)
    assert solution.condition > 1e15


@pytest.mark.law
@pytest.mark.parametrize("method", ["qr", "primal"])
def test_the_condition_number_is_that_of_the_column_scaled_penalised_features(method: str) -> None:
    problem = random_problem(n=40, d=4, ridge=0.2)
    problem["features"] = problem["features"] * torch.tensor([1.0, 1e4, 1e-4, 10.0])
    stacked = torch.cat([problem["features"] / math.sqrt(40), math.sqrt(0.2) * torch.eye(4, dtype=torch.float64)])
    expected = float(torch.linalg.cond(stacked / stacked.norm(dim=0)))
    assert solve(**problem, method=method).condition == pytest.approx(expected, rel=1e-6)
