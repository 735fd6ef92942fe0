"""The one closed form: certified data sets, laws, gradients, refusals."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from cfiv.errors import DataError, IllConditionedWarning, ParameterError, SingularError
from cfiv.numerics import least_squares
from cfiv.numerics.least_squares import accumulate, moments, ridge_path, solve, solve_moments, solve_step, with_intercept
from tests.numerics.nist import PROBLEMS

#: Two float64 routes to one solution: rounding (2e-16) times the squared condition number of the random problems (up to 1e5).
SAME = 1e-10
#: An exact solution against NIST's 15 printed digits.
PRINTED = 1e-14
#: The rounding of float64 times a condition number of 1e6.
CONDITIONED = 1e-9
#: An eigenvalue or singular value that is zero but for rounding (2e-16) perturbs its neighbours by that over their gap.
ERASED = 1e-8
#: Refined in doubled precision, a solution is wrong by little more than its own rounding.
REFINED = 4 * torch.finfo(torch.float64).eps
#: The condition number of Filip, 5e9, times the rounding unit, squared: where doubled precision itself ends.
DOUBLED = 1e-12
#: LRE, the correct digits of the worst coefficient: a digit or so below the least in 200 orders of the rows, so that another
#: BLAS passes too. Wampler4, Wampler5 and Filip are refined, exactly; but the powers in Filip are not float64 numbers, and
#: rounding them moves its coefficients in the eighth digit. Longley and the other Wamplers are left as QR has them.
DIGITS = {"Longley": 9, "Wampler1": 8, "Wampler2": 11, "Wampler3": 8, "Wampler4": 14, "Wampler5": 14, "Filip": 7}

LAW = settings(max_examples=40, derandomize=True, deadline=None)
METHODS = ["qr", "primal", "dual"]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, *, seed: int) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def random_problem(*, n: int, d: int, k: int = 2, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The arguments of a solve: random features, targets, previous weights; row weights and penalties only by ``changes``."""
    problem = {"features": normal(n, d, seed=seed), "targets": normal(n, k, seed=seed + 1), "ridge": 0.0, "proximal": 0.0}
    return problem | {"previous": normal(d, k, seed=seed + 2), "weights": None} | changes


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Random problems with a unique solution: tall or wide, weighted or not, either penalty, both, or (if tall) none."""
    n, d, k = draw(st.integers(1, 24)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**20))
    weights = torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 3.0, n)) if draw(st.booleans()) else None
    proximal = draw(st.sampled_from([0.0, 0.3, 5.0]))
    unique = n >= 2 * d or proximal > 0
    ridge = draw(st.sampled_from([0.0, 0.1, 2.0] if unique else [0.1, 2.0]))
    previous = normal(d, k, seed=seed + 2) if draw(st.booleans()) else None
    return random_problem(n=n, d=d, k=k, seed=seed, ridge=ridge, proximal=proximal, previous=previous, weights=weights)


def objective(solution: Tensor, problem: dict[str, Any]) -> Tensor:
    """The penalised loss as the module's docstring writes it."""
    features, targets = problem["features"], problem["targets"]
    weights = torch.ones(len(features), dtype=torch.float64) if problem["weights"] is None else problem["weights"]
    previous = torch.zeros_like(solution) if problem["previous"] is None else problem["previous"]
    loss = (weights / weights.sum()) @ (targets - features @ solution).square().sum(dim=1)
    return loss + problem["ridge"] * solution.square().sum() + problem["proximal"] * (solution - previous).square().sum()


def assert_same(got: Tensor, expected: Tensor, tolerance: float = SAME) -> None:
    scale = max(float(expected.detach().abs().max()), torch.finfo(torch.float64).tiny)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=tolerance * scale)


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


def fractions(tensor: Tensor) -> list[list[Fraction]]:
    return [[Fraction(value) for value in row] for row in tensor.tolist()]


def nist_tensors(name: str) -> tuple[Tensor, Tensor]:
    """Features with a constant, and targets, each rounded to float64 once."""
    features = torch.tensor([[float(value) for value in row] for row in PROBLEMS[name].features], dtype=torch.float64)
    targets = torch.tensor([[float(value)] for value in PROBLEMS[name].targets], dtype=torch.float64)
    return with_intercept(features), targets


def relative_error(got: Tensor, exact: list[Fraction]) -> float:
    """Of the worst coefficient."""
    return float(max(abs(Fraction(value) / other - 1) for value, other in zip(got.flatten().tolist(), exact, strict=True)))


# ---------------------------------------------------------------------------------------------------------------- oracles


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


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:about 6 digits:cfiv.errors.IllConditionedWarning")
@pytest.mark.parametrize(("name", "tolerance"), [("Wampler4", REFINED), ("Wampler5", REFINED), ("Filip", DOUBLED)])
def test_a_refined_solution_is_the_exact_one_of_the_numbers_given(name: str, tolerance: float) -> None:
    features, targets = nist_tensors(name)
    exact = exact_least_squares(fractions(features), [row[0] for row in fractions(targets)])
    assert relative_error(solve(features=features, targets=targets).weights, exact) <= tolerance


@pytest.mark.oracle
@pytest.mark.parametrize(("n", "d"), [(40, 5), (4, 9)])
def test_ridge_is_the_ridge_of_scikit_learn_with_alpha_n_times_larger(n: int, d: int) -> None:
    problem = random_problem(n=n, d=d, ridge=0.3)
    sklearn = Ridge(alpha=n * 0.3, fit_intercept=False, solver="svd").fit(problem["features"], problem["targets"])
    assert_same(solve(**problem).weights, torch.from_numpy(sklearn.coef_.T))


# ------------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.law
@LAW
@given(problem=problems(), data=st.data())
def test_every_route_gives_the_same_minimiser(problem: dict[str, Any], data: st.DataObject) -> None:
    penalties = {name: problem[name] for name in ("ridge", "proximal", "previous")}
    rows = {name: problem[name] for name in ("features", "targets", "weights") if problem[name] is not None}
    expected = solve(**problem).weights
    assert_same(solve(**problem, method="primal").weights, expected)
    if problem["ridge"] + problem["proximal"] > 0:
        assert_same(solve(**problem, method="dual").weights, expected)
    assert_same(solve_step(**problem), expected)
    assert_same(solve_moments(moments(**rows), **penalties).weights, expected)

    n = len(problem["features"])
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=4)) if n > 1 else []), n]
    order = torch.from_numpy(np.random.default_rng(n).permutation(n))
    batches = [order[start:stop] for start, stop in pairwise(cuts)]
    total = accumulate(moments(**{name: value[batch] for name, value in rows.items()}) for batch in batches)
    assert_same(solve_moments(total, **penalties).weights, expected)


@pytest.mark.law
@LAW
@given(problem=problems())
def test_the_penalised_objective_is_stationary_at_the_solution(problem: dict[str, Any]) -> None:
    solution = solve_step(**problem).requires_grad_()
    elsewhere = (solution.detach() + 1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(solution, problem), solution)
    (reference,) = torch.autograd.grad(objective(elsewhere, problem), elsewhere)
    assert gradient.abs().max() <= SAME * (reference.abs().max() + problem["targets"].abs().max())


@pytest.mark.law
@LAW
@given(problem=problems(), factor=st.sampled_from([1e-3, 1.0, 7.0]))
def test_only_the_ratios_of_row_weights_matter(problem: dict[str, Any], factor: float) -> None:
    given_weights = problem["weights"] if problem["weights"] is not None else torch.ones(len(problem["features"]))
    assert_same(solve_step(**problem | {"weights": factor * given_weights}), solve_step(**problem))
    assert_same(solve(**problem | {"weights": factor * given_weights}).weights, solve_step(**problem))


@pytest.mark.law
@pytest.mark.parametrize(("n", "d"), [(12, 3), (5, 9)])
def test_integer_row_weights_are_repeated_rows(n: int, d: int) -> None:
    problem = random_problem(n=n, d=d, ridge=0.1, proximal=0.4)
    counts = torch.arange(n) % 4  # some rows are left out
    repeated = {name: problem[name].repeat_interleave(counts, dim=0) for name in ("features", "targets")}
    weighted = problem | {"weights": counts.double()}
    assert_same(solve_step(**weighted), solve_step(**problem | repeated))
    for method in METHODS:
        assert_same(solve(**weighted, method=method).weights, solve_step(**problem | repeated))
    sums = moments(features=problem["features"], targets=problem["targets"], weights=counts)
    expected = moments(**repeated)
    assert_same(sums.gram, expected.gram)
    assert_same(sums.cross, expected.cross)
    assert sums.mass == expected.mass


@pytest.mark.law
@LAW
@given(problem=problems(), copies=st.integers(2, 4))
def test_penalties_act_on_the_mean_so_repeating_all_rows_changes_nothing(problem: dict[str, Any], copies: int) -> None:
    repeated = {name: problem[name].repeat(copies, 1) for name in ("features", "targets")}
    if problem["weights"] is not None:
        repeated["weights"] = problem["weights"].repeat(copies)
    assert_same(solve_step(**problem | repeated), solve_step(**problem))
    assert_same(solve(**problem | repeated).weights, solve_step(**problem))


@pytest.mark.law
@pytest.mark.parametrize("previous", [None, torch.zeros(6, 2, dtype=torch.float64)])
@pytest.mark.parametrize("n", [4, 20])
def test_ridge_plus_a_proximal_pull_to_zero_is_the_ridge_of_their_sum(n: int, previous: Tensor | None) -> None:
    both = random_problem(n=n, d=6, ridge=0.2, proximal=0.5, previous=previous)
    assert_same(solve_step(**both), solve_step(**both | {"ridge": 0.7, "proximal": 0.0}))
    assert_same(solve(**both).weights, solve(**both | {"ridge": 0.7, "proximal": 0.0}).weights)


@pytest.mark.law
@pytest.mark.parametrize("proximal", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("n", [4, 20])
def test_a_large_proximal_penalty_freezes_the_weights_in_proportion(n: int, proximal: float) -> None:
    problem = random_problem(n=n, d=6, proximal=proximal)
    features, previous = problem["features"], problem["previous"]
    descent = features.mT @ (problem["targets"] - features @ previous) / n  # W - W_prev = descent / proximal + O(proximal^-2)
    largest = torch.linalg.matrix_norm(features, ord=2) ** 2 / n
    for solution in (solve_step(**problem), solve(**problem).weights):
        moved = solution - previous
        rounding = 4 * torch.finfo(torch.float64).eps * previous.abs().max()
        assert (moved - descent / proximal).abs().max() <= largest * descent.norm() / proximal**2 + rounding


@pytest.mark.law
@LAW
@given(problem=problems())
def test_without_a_proximal_penalty_the_previous_weights_are_ignored(problem: dict[str, Any]) -> None:
    plain = problem | {"proximal": 0.0, "ridge": 0.1}
    anything = torch.full((problem["features"].shape[1], problem["targets"].shape[1]), 1e9, dtype=torch.float64)
    assert torch.equal(solve_step(**plain | {"previous": anything}), solve_step(**plain | {"previous": None}))
    assert torch.equal(solve(**plain | {"previous": anything}).weights, solve(**plain | {"previous": None}).weights)


@pytest.mark.law
@pytest.mark.parametrize(("ridge", "kept"), [(0.0, 1.0), (0.6, 0.25)])
def test_what_the_rows_cannot_see_keeps_its_previous_weights_shrunk_by_the_ridge(ridge: float, kept: float) -> None:
    problem = random_problem(n=3, d=8, ridge=ridge, proximal=0.2)  # kept = proximal / (ridge + proximal)
    unseen = torch.eye(8, dtype=torch.float64) - torch.linalg.pinv(problem["features"]) @ problem["features"]
    for solution in (solve_step(**problem), *(solve(**problem, method=method).weights for method in METHODS)):
        assert_same(unseen @ solution, kept * unseen @ problem["previous"])


@pytest.mark.law
@LAW
@given(problem=problems(), seed=st.integers(0, 99))
def test_the_solution_follows_maps_of_the_targets_and_rotations_of_the_features(problem: dict[str, Any], seed: int) -> None:
    d, k = problem["features"].shape[1], problem["targets"].shape[1]
    mixing, rotation = 3.0 * orthogonal(k, seed=seed), orthogonal(d, seed=seed)
    previous = torch.zeros(d, k, dtype=torch.float64) if problem["previous"] is None else problem["previous"]
    solution = solve_step(**problem)
    mixed = problem | {"targets": problem["targets"] @ mixing, "previous": previous @ mixing}
    rotated = problem | {"features": problem["features"] @ rotation, "previous": rotation.mT @ previous}
    assert_same(solve_step(**mixed), solution @ mixing)
    assert_same(solve_step(**rotated), rotation.mT @ solution)
    assert_same(solve(**mixed).weights, solution @ mixing)
    assert_same(solve(**rotated).weights, rotation.mT @ solution)


@pytest.mark.law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_features_of_lower_precision_are_summed_in_float64(dtype: torch.dtype) -> None:
    offset = torch.tensor([1e6, -1e3, 0.0]) if dtype == torch.float32 else torch.tensor([100.0, -10.0, 0.0])
    features, targets = (normal(500, 3, seed=0) + offset).to(dtype), normal(500, 2, seed=1).to(dtype)
    low = {"features": features, "targets": targets, "ridge": 0.1, "proximal": 0.1, "previous": normal(3, 2, seed=2)}
    high = low | {"features": features.double(), "targets": targets.double()}
    assert torch.equal(solve_step(**low), solve_step(**high))
    assert torch.equal(solve(**low).weights, solve(**high).weights)
    assert torch.equal(moments(features=features, targets=targets).gram, features.double().mT @ features.double())


@pytest.mark.law
def test_an_offset_of_a_million_in_float32_features_moves_only_the_intercept() -> None:
    features = (normal(500, 2, seed=0) + 1e6).float()  # steps of 1/16: summed in float32, nothing of the slopes would be left
    centred = features.double() - 1e6
    targets = normal(500, 1, seed=1)
    offset, expected = (solve(features=with_intercept(phi), targets=targets).weights for phi in (features, centred))
    assert_same(offset[:2], expected[:2], CONDITIONED)
    assert_same(offset[2:], expected[2:] - 1e6 * expected[:2].sum(dim=0), CONDITIONED)


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
@pytest.mark.parametrize("penalised", [False, True])
def test_refinement_gives_every_digit_of_a_weighted_and_anchored_solve(
    penalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets, previous = normal(30, 4, seed=0), 1e3 * normal(30, 1, seed=1), normal(4, 1, seed=2)
    features[:, 3] = features[:, 0] + 1e-6 * features[:, 3]
    weights = torch.arange(30.0) % 4 + 0.3
    proximal = 2.0**-40 if penalised else 0.0
    problem = {"features": features, "targets": targets, "previous": previous, "proximal": proximal, "weights": weights}
    share = [Fraction(value) for value in weights.double().tolist()]  # normal equations with w instead of w Phi on the left
    phi, y, pull = fractions(features), fractions(targets), Fraction(proximal) * sum(share)
    gram = [
        [sum(w * row[i] * row[j] for w, row in zip(share, phi, strict=True)) + pull * (i == j) for j in range(4)]
        for i in range(4)
    ]
    cross = [
        sum(w * row[i] * t[0] for w, row, t in zip(share, phi, y, strict=True)) + pull * fractions(previous)[i][0]
        for i in range(4)
    ]
    exact = exact_least_squares(gram, cross)
    assert relative_error(solve(**problem).weights, exact) <= REFINED
    monkeypatch.setattr(least_squares, "REFINEMENTS", 0)
    assert relative_error(solve(**problem).weights, exact) > 1e-12


@pytest.mark.law
def test_solves_that_rounding_leaves_enough_digits_are_not_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    collinear = normal(50, 2, seed=0) @ normal(2, 4, seed=1)
    monkeypatch.setattr(least_squares, "_refine", None)  # calling it would be an error
    solve(features=normal(50, 4, seed=0), targets=normal(50, 1, seed=1))
    solve(features=collinear, targets=normal(50, 1, seed=1), ridge=1e-3)
    solve(features=normal(50, 4, seed=0), targets=torch.zeros(50, 1))
    with pytest.warns(IllConditionedWarning, match="rank 2 of 4"):
        solve(features=collinear, targets=normal(50, 1, seed=1))


@pytest.mark.law
@pytest.mark.parametrize("method", METHODS)
def test_final_answers_carry_no_graph(method: str) -> None:
    problem = random_problem(n=9, d=3, proximal=0.3, weights=torch.ones(9, dtype=torch.float64))
    for name in ("features", "targets", "previous", "weights"):
        problem[name].requires_grad_()
    total = moments(**{name: problem[name] for name in ("features", "targets", "weights")})
    assert not total.gram.requires_grad
    assert not total.cross.requires_grad
    assert not solve(**problem, method=method).weights.requires_grad
    assert not solve_moments(total, proximal=0.3, previous=problem["previous"]).weights.requires_grad


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
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [5, 200])
def test_the_same_call_gives_the_same_bits_and_leaves_its_arguments_alone(n: int, method: str) -> None:
    problem = random_problem(n=n, d=20, proximal=0.1, weights=torch.arange(1.0, n + 1))
    before = {name: value.clone() for name, value in problem.items() if isinstance(value, Tensor)}
    generator = torch.get_rng_state()
    assert torch.equal(solve(**problem, method=method).weights, solve(**problem, method=method).weights)
    assert torch.equal(solve_step(**problem), solve_step(**problem))
    assert all(torch.equal(problem[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), generator)


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


# -------------------------------------------------------------------------------------------------------------- gradients

TALL_AND_WIDE = pytest.mark.parametrize(("n", "d"), [(9, 3), (3, 6)])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


@pytest.mark.gradient
@WEIGHTED
@TALL_AND_WIDE
@pytest.mark.parametrize("live", ["targets", "features", "previous"])
def test_solve_step_differentiates_through_the_solve(n: int, d: int, live: str, weighted: bool) -> None:
    weights = torch.linspace(0.5, 2.0, n) if weighted else None
    problem = random_problem(n=n, d=d, ridge=0.1, proximal=0.3, weights=weights)
    assert torch.autograd.gradcheck(lambda tensor: solve_step(**problem | {live: tensor}), problem[live].requires_grad_())


@pytest.mark.gradient
@WEIGHTED
@TALL_AND_WIDE
@pytest.mark.parametrize(("ridge", "proximal"), [(0.3, 0.0), (0.0, 0.7), (0.2, 0.4)])
def test_holding_the_weights_fixed_gives_the_full_gradient_of_the_penalised_loss(
    n: int, d: int, ridge: float, proximal: float, weighted: bool
) -> None:
    weights = torch.linspace(0.5, 2.0, n, dtype=torch.float64) if weighted else None
    problem = random_problem(n=n, d=d, ridge=ridge, proximal=proximal, weights=weights)
    features = problem["features"].requires_grad_()
    solution = solve_step(**problem)
    (full,) = torch.autograd.grad(objective(solution, problem), features, retain_graph=True)
    (envelope,) = torch.autograd.grad(objective(solution.detach(), problem), features)
    assert_same(envelope, full)

    # The mean square alone is not what the weights minimise: its gradient through the solve is another one.
    unpenalised = problem | {"ridge": 0.0, "proximal": 0.0}
    (other,) = torch.autograd.grad(objective(solution, unpenalised), features)
    assert (other - envelope).norm() > 0.01 * envelope.norm()


@pytest.mark.gradient
def test_without_penalties_holding_the_weights_fixed_gives_the_full_gradient_of_the_mean_square() -> None:
    problem = random_problem(n=12, d=4)
    features = problem["features"].requires_grad_()
    solution = solve_step(**problem)
    (full,) = torch.autograd.grad(objective(solution, problem), features, retain_graph=True)
    (envelope,) = torch.autograd.grad(objective(solution.detach(), problem), features)
    assert_same(envelope, full)


@pytest.mark.gradient
def test_row_weights_are_data_without_a_gradient() -> None:
    problem = random_problem(n=9, d=3, proximal=0.3, weights=torch.ones(9, dtype=torch.float64, requires_grad=True))
    assert not solve_step(**problem).requires_grad


# ------------------------------------------------------------------------------------------------- refusals and warnings

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


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="method must be 'auto', 'primal', 'dual' or 'qr', got 'lu'"):
        solve(**random_problem(n=9, d=3), method="lu")  # type: ignore[arg-type]


def test_the_dual_without_a_penalty_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"'dual' needs ridge \+ proximal > 0, got 0.*'qr'"):
        solve(**random_problem(n=9, d=3), method="dual")


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


def test_moments_refuse_what_cannot_be_solved() -> None:
    features, targets = normal(9, 3, seed=0), normal(9, 2, seed=1)
    with pytest.raises(DataError, match=r"the same n, got \(9, 3\) and \(8, 2\)"):
        moments(features=features, targets=targets[:8])
    with pytest.raises(DataError, match=r"row weights must be .*>= 0.*smallest of -1\.0"):
        moments(features=features, targets=targets, weights=torch.arange(-1.0, 8.0))
    weightless = moments(features=features, targets=targets, weights=torch.zeros(9))
    missing = moments(features=torch.full_like(features, NAN), targets=targets)
    for consumer in (solve_moments, lambda total: ridge_path(total, [0.1])):
        with pytest.raises(DataError, match=r"positive sum, got 0\.0: give at least one row a weight > 0"):
            consumer(weightless)
        with pytest.raises(DataError, match="gram must be finite, got 9 values"):
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


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", ["a column twice", "a sum of columns", "a row twice"])
def test_solve_step_refuses_a_singular_system_and_names_the_remedy(shape: str, seed: int) -> None:
    features = normal(4, 9, seed=seed) if shape == "a row twice" else normal(50, 5, seed=seed)
    if shape == "a row twice":
        features = torch.cat([features, features[:1]])
    elif shape == "a column twice":
        features = torch.cat([features, features[:, :1]], dim=1)
    else:
        features = torch.cat([features, features @ normal(5, 1, seed=seed + 100)], dim=1)
    targets = normal(len(features), 1, seed=seed + 200)
    with pytest.raises(SingularError, match=r"singular .* with penalties 0: .*collinear.*; use a ridge .* penalty > 0"):
        solve_step(features=features, targets=targets, ridge=0.0, proximal=0.0, previous=None)
    assert solve_step(features=features, targets=targets, ridge=1e-8, proximal=0.0, previous=None).isfinite().all()


@pytest.mark.parametrize("features", [torch.zeros(9, 2), torch.full((9, 2), NAN)], ids=["zero", "missing"])
def test_solve_step_refuses_features_that_are_zero_or_not_finite(features: Tensor) -> None:
    with pytest.raises(SingularError, match="singular at pivot 1 of 2"):
        solve_step(features=features, targets=torch.ones(9, 1), ridge=0.0, proximal=0.0, previous=None)


@pytest.mark.law
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singularity_does_not_depend_on_the_units_of_the_features(scale: float) -> None:
    features = normal(50, 3, seed=0) * torch.tensor([1.0, scale, scale**2])
    targets = normal(50, 1, seed=1)
    step = solve_step(features=features, targets=targets, ridge=0.0, proximal=0.0, previous=None)
    expected = solve(features=features, targets=targets).weights
    torch.testing.assert_close(step, expected, rtol=SAME, atol=0.0)


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


def test_moments_warn_where_the_caller_stands() -> None:
    column = normal(50, 1, seed=0)
    total = moments(features=torch.cat([column, column], dim=1), targets=column)
    with pytest.warns(IllConditionedWarning, match="rank 1 of 2") as caught:
        solve_moments(total)
    assert caught[0].filename == __file__


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
