"""The one closed form: laws, gradients, refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from cfiv.errors import ParameterError, SingularError
from cfiv.numerics.least_squares import solve, solve_step, with_intercept
from cfiv.numerics.moments import accumulate, moments, solve_moments
from tests.numerics.problems import LAW, METHODS, SAME, assert_same, normal, problems, random_problem

#: The rounding of float64 times a condition number of 1e6.
CONDITIONED = 1e-9


def orthogonal(size: int, *, seed: int) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def objective(solution: Tensor, problem: dict[str, Any]) -> Tensor:
    """The penalised loss as the module's docstring writes it."""
    features, targets = problem["features"], problem["targets"]
    weights = torch.ones(len(features), dtype=torch.float64) if problem["weights"] is None else problem["weights"]
    previous = torch.zeros_like(solution) if problem["previous"] is None else problem["previous"]
    loss = (weights / weights.sum()) @ (targets - features @ solution).square().sum(dim=1)
    return loss + problem["ridge"] * solution.square().sum() + problem["proximal"] * (solution - previous).square().sum()


# ---------------------------------------------------------------------------------------------------------------- oracles


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


# -------------------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="method must be one of 'auto', 'primal', 'dual', 'qr', got 'lu'"):
        solve(**random_problem(n=9, d=3), method="lu")  # type: ignore[arg-type]


def test_the_dual_without_a_penalty_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"'dual' needs ridge \+ proximal > 0, got 0.*'qr'"):
        solve(**random_problem(n=9, d=3), method="dual")


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


def beside(shape: tuple[int, int], *, weighted: bool, pulled: bool) -> dict[str, Any]:
    """Six problems, two by three."""
    (n, d), k = shape, 2

    def drawn(*sizes: int, seed: int) -> Tensor:
        return normal(6, sizes[0] * sizes[1], seed=seed).reshape(2, 3, *sizes)

    return {
        "features": drawn(n, d, seed=1),
        "targets": drawn(n, k, seed=2),
        "previous": drawn(d, k, seed=3) if pulled else None,
        "weights": drawn(n, 1, seed=4)[..., 0].abs() if weighted else None,
        "ridge": 0.1,
        "proximal": 0.5,
    }


def one_of(problem: dict[str, Any], place: tuple[int, int]) -> dict[str, Any]:
    return {name: value[place] if isinstance(value, Tensor) else value for name, value in problem.items()}


PLACES = [(i, j) for i in range(2) for j in range(3)]


@pytest.mark.law
@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(20, 4), (3, 7)], ids=["primal", "dual"])
def test_problems_side_by_side_are_each_solved_alone(shape: tuple[int, int], weighted: bool, pulled: bool) -> None:
    problem = beside(shape, weighted=weighted, pulled=pulled)
    together = solve_step(**problem)
    assert together.shape == (2, 3, shape[1], 2)
    for place in PLACES:
        torch.testing.assert_close(together[place], solve_step(**one_of(problem, place)), rtol=SAME, atol=SAME)


@pytest.mark.gradient
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(20, 4), (3, 7)], ids=["primal", "dual"])
def test_gradients_of_problems_side_by_side_are_those_of_each_alone(shape: tuple[int, int], weighted: bool) -> None:
    problem = beside(shape, weighted=weighted, pulled=True)
    live = ("features", "targets", "previous")
    upstream = normal(6, shape[1] * 2, seed=5).reshape(2, 3, shape[1], 2)

    def gradients(given: dict[str, Any], upstream: Tensor) -> tuple[Tensor, ...]:
        leaves = {name: given[name].clone().requires_grad_() for name in live}
        return torch.autograd.grad(solve_step(**{**given, **leaves}), list(leaves.values()), upstream)

    together = gradients(problem, upstream)
    for place in PLACES:
        for part, own in zip(together, gradients(one_of(problem, place), upstream[place]), strict=True):
            torch.testing.assert_close(part[place], own, rtol=SAME, atol=SAME)


@pytest.mark.law
@pytest.mark.parametrize("shape", [(20, 4), (3, 7)], ids=["primal", "dual"])
@pytest.mark.parametrize("bad", [0.0, math.nan], ids=["zero", "missing"])
def test_a_singular_problem_among_several_is_missing_and_the_others_and_their_gradients_are_not(
    shape: tuple[int, int], bad: float
) -> None:
    problem = beside(shape, weighted=False, pulled=False) | {"ridge": 0.0, "proximal": 0.0}
    expected = solve_step(**problem)
    problem["features"][1, 2] = bad
    problem["targets"].requires_grad_()
    found = solve_step(**problem)
    (gradient,) = torch.autograd.grad(found.sum(), problem["targets"])
    assert found[1, 2].isnan().all()
    for place in PLACES[:-1]:
        assert torch.equal(found[place], expected[place])
        assert gradient[place].isfinite().all()
    with pytest.raises(SingularError):
        solve_step(**one_of(problem, (1, 2)))


@pytest.mark.parametrize("features", [torch.zeros(9, 2), torch.full((9, 2), math.nan)], ids=["zero", "missing"])
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
