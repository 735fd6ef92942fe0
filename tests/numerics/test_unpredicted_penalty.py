"""The penalty on what instruments leave unpredicted of the structural function: its closed form, its gradient, what it does."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cfiv.numerics.last_layer import mean_square
from cfiv.numerics.least_squares import solve_step, with_intercept
from cfiv.numerics.two_stage import (
    Unpredicted,
    penalised_rows,
    predicted_treatment_features,
    second_stage_loss,
    unpredicted_features,
)

#: Two float64 routes to one solution or gradient through two well-conditioned solves.
SAME = 1e-8
#: The same sum in another order.
ROUNDING = 1e-12

N1, N2, GAMMA = 25, 30, 0.7
STRUCTURES = pytest.mark.parametrize("structure", ["product", "additive", "without covariates"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])
PENALISED = pytest.mark.parametrize("penalised", [False, True])
COLUMNS = {"product": 12, "additive": 6, "without covariates": 3}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(got: Tensor, expected: Tensor, tolerance: float = SAME) -> None:
    torch.testing.assert_close(got, expected, rtol=0.0, atol=tolerance * float(expected.detach().abs().max()))


class Problem(NamedTuple):
    """Features of both samples; ``first`` and ``second`` are penalties and previous weights of V and of u."""

    structure: str
    psi1: Tensor
    phi1: Tensor
    phi2: Tensor
    xi1: Tensor | None
    xi2: Tensor | None
    y2: Tensor
    w1: Tensor | None
    w2: Tensor | None
    first: dict[str, Any]
    second: dict[str, Any]

    @property
    def live(self) -> tuple[str, ...]:
        """The features that stage 2 trains."""
        return ("psi1",) if self.xi1 is None else ("psi1", "xi1", "xi2")


def problem(structure: str, *, weighted: bool = False, penalised: bool = False) -> Problem:
    phi1 = normal(N1, 4, seed=0)
    covariates = structure != "without covariates"
    return Problem(
        structure=structure if covariates else "additive",
        psi1=(phi1 @ normal(4, 2, seed=1)).tanh() + 0.5 * normal(N1, 2, seed=2),
        phi1=phi1,
        phi2=normal(N2, 4, seed=3),
        xi1=normal(N1, 3, seed=4) if covariates else None,
        xi2=normal(N2, 3, seed=5) if covariates else None,
        y2=normal(N2, 1, seed=6),
        w1=torch.linspace(0.5, 3.0, N1, dtype=torch.float64) if weighted else None,
        w2=torch.linspace(4.0, 1.0, N2, dtype=torch.float64) if weighted else None,
        first={"ridge": 0.2, "proximal": 0.3, "previous": normal(5, 2, seed=7)} if penalised else {},
        second={"ridge": 0.1, "proximal": 0.4, "previous": normal(COLUMNS[structure], 1, seed=8)} if penalised else {},
    )


class Stage2(NamedTuple):
    loss: Tensor
    u: Tensor
    v: Tensor


def stage_2(p: Problem, gamma: float | None) -> Stage2:
    """Stage 2 as a training step has it; without a penalty for None."""
    predicted1, predicted2, v = predicted_treatment_features(
        instrument_features_stage1=p.phi1,
        treatment_features_stage1=p.psi1,
        instrument_features_stage2=p.phi2,
        solve=partial(solve_step, **p.first),
        weights_stage1=p.w1,
    )
    unpredicted = None
    if gamma is not None:
        gap = unpredicted_features(
            treatment_features=p.psi1,
            predicted_treatment_features=predicted1,
            covariate_features=p.xi1,
            structure=p.structure,  # type: ignore[arg-type]
        )
        unpredicted = Unpredicted(gap, gamma, p.w1)
    loss, u = second_stage_loss(
        predicted_treatment_features_stage2=predicted2,
        covariate_features_stage2=p.xi2,
        outcome_stage2=p.y2,
        structure=p.structure,  # type: ignore[arg-type]
        solve=partial(solve_step, **p.second),
        weights_stage2=p.w2,
        unpredicted_stage1=unpredicted,
    )
    return Stage2(loss, u, v)


# The same written out: shares of weight, normal equations, explicit columns.


def shares(weights: Tensor | None, rows: int) -> Tensor:
    w = torch.ones(rows, dtype=torch.float64) if weights is None else weights
    return (w / w.sum())[:, None]


def columns(psi: Tensor, xi: Tensor | None, structure: str) -> Tensor:
    one = torch.ones(len(psi), 1, dtype=torch.float64)
    if xi is None:
        return torch.cat([psi, one], 1)
    if structure == "additive":
        return torch.cat([psi, xi, one], 1)
    return torch.einsum("ni,nj->nij", torch.cat([psi, one], 1), torch.cat([xi, one], 1)).reshape(len(psi), -1)


def normal_equations(gram: Tensor, right: Tensor, *, ridge: float = 0.0, proximal: float = 0.0, previous: Any = 0.0) -> Tensor:
    return torch.linalg.solve(
        gram + (ridge + proximal) * torch.eye(len(gram), dtype=torch.float64), right + proximal * previous
    )


def penalty(w: Tensor, *, ridge: float = 0.0, proximal: float = 0.0, previous: Any = 0.0) -> Tensor:
    return ridge * w.square().sum() + proximal * (w - previous).square().sum()


class WrittenOut(NamedTuple):
    u: Tensor
    objective: Tensor
    error: Tensor
    unpredicted: Tensor


def written_out(p: Problem, gamma: float, u: Tensor | None = None) -> WrittenOut:
    """u where it is not given, the objective at it with everything live, and its parts: error and unpredicted variance."""
    s1, s2 = shares(p.w1, N1), shares(p.w2, N2)
    one1, one2 = (torch.ones(n, 1, dtype=torch.float64) for n in (N1, N2))
    z1, z2 = torch.cat([p.phi1, one1], 1), torch.cat([p.phi2, one2], 1)
    v = normal_equations(z1.mT @ (s1 * z1), z1.mT @ (s1 * p.psi1), **p.first)
    f2 = columns(z2 @ v, p.xi2, p.structure)
    gap = columns(p.psi1, p.xi1, p.structure) - columns(z1 @ v, p.xi1, p.structure)
    if u is None:
        u = normal_equations(f2.mT @ (s2 * f2) + gamma * gap.mT @ (s1 * gap), f2.mT @ (s2 * p.y2), **p.second)
    error, unpredicted = (s2 * (p.y2 - f2 @ u).square()).sum(), (s1 * (gap @ u).square()).sum()
    return WrittenOut(u, error + gamma * unpredicted + penalty(u, **p.second), error, unpredicted)


@pytest.mark.oracle
@STRUCTURES
@WEIGHTED
@PENALISED
def test_u_solves_the_normal_equations_written_out(structure: str, weighted: bool, penalised: bool) -> None:
    p = problem(structure, weighted=weighted, penalised=penalised)
    got, expected = stage_2(p, GAMMA), written_out(p, GAMMA)
    assert_same(got.u, expected.u)
    assert_same(got.loss, expected.error + GAMMA * expected.unpredicted)


@pytest.mark.gradient
@STRUCTURES
@WEIGHTED
@PENALISED
def test_the_gradient_is_that_of_the_minimised_objective_written_out(structure: str, weighted: bool, penalised: bool) -> None:
    p = problem(structure, weighted=weighted, penalised=penalised)
    live = {name: getattr(p, name).clone().requires_grad_() for name in p.live}
    p = p._replace(**live)
    expected = torch.autograd.grad(written_out(p, GAMMA).objective, list(live.values()))
    got = torch.autograd.grad(stage_2(p, GAMMA).loss, list(live.values()))
    for name, gradient, dense in zip(live, got, expected, strict=True):
        # In a sum the covariates drop out of what is unpredicted.
        assert bool(dense.any()) == (name != "xi1" or structure == "product")
        assert_same(gradient, dense)


@pytest.mark.gradient
@STRUCTURES
@WEIGHTED
def test_the_gradient_is_the_finite_difference_of_the_minimised_objective(structure: str, weighted: bool) -> None:
    p = problem(structure, weighted=weighted, penalised=True)

    def minimised(*features: Tensor) -> Tensor:
        stage = stage_2(p._replace(**dict(zip(p.live, features, strict=True))), GAMMA)
        return stage.loss + penalty(stage.u, **p.second)  # u is detached: what is differentiated is the loss at u held fixed

    assert torch.autograd.gradcheck(minimised, tuple(getattr(p, name).clone().requires_grad_() for name in p.live))


@pytest.mark.gradient
def test_instrument_features_get_no_gradient_from_the_penalty() -> None:
    p = problem("product", penalised=True)
    p = p._replace(phi1=p.phi1.requires_grad_(), phi2=p.phi2.requires_grad_(), psi1=p.psi1.requires_grad_())
    stage = stage_2(p, GAMMA)
    psi, *phi = torch.autograd.grad(stage.loss, [p.psi1, p.phi1, p.phi2], allow_unused=True)
    assert psi.any()
    assert phi == [None, None]
    assert not stage.u.requires_grad


@pytest.mark.law
@STRUCTURES
@WEIGHTED
def test_a_vanishing_penalty_is_no_penalty(structure: str, weighted: bool) -> None:
    p = problem(structure, weighted=weighted, penalised=True)
    without = stage_2(p, None)
    for gamma, tolerance in ((0.0, ROUNDING), (1e-10, SAME)):
        stage = stage_2(p, gamma)
        assert_same(stage.u, without.u, tolerance)
        assert_same(stage.loss, without.loss, tolerance)


@pytest.mark.law
@STRUCTURES
@WEIGHTED
def test_the_penalty_says_nothing_of_a_treatment_that_the_instruments_predict_exactly(structure: str, weighted: bool) -> None:
    p = problem(structure, weighted=weighted)
    p = p._replace(psi1=with_intercept(p.phi1) @ normal(5, 2, seed=9))
    expected = stage_2(p, None)
    for gamma in (1.0, 1e6):
        stage = stage_2(p, gamma)
        assert_same(stage.u, expected.u)
        assert_same(stage.loss, expected.loss)


@pytest.mark.law
@STRUCTURES
@WEIGHTED
def test_as_the_penalty_rises_the_unpredicted_variance_falls_and_the_stage_2_error_rises(
    structure: str, weighted: bool
) -> None:
    p = problem(structure, weighted=weighted)
    path = [written_out(p, gamma, stage_2(p, gamma).u) for gamma in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)]
    for less, more in pairwise(path):
        assert more.unpredicted < less.unpredicted
        assert more.error > less.error


@pytest.mark.law
@pytest.mark.parametrize("scale", [1.0, 0.01, 40.0])
@WEIGHTED
def test_the_plain_mean_square_of_the_penalised_rows_is_the_sum_of_both_means(weighted: bool, scale: float) -> None:
    f2, gap, y, u = normal(N2, 3, seed=0), normal(N1, 3, seed=1), normal(N2, 1, seed=2), normal(3, 1, seed=3)
    w1, w2 = (torch.linspace(0.0, 3.0, n, dtype=torch.float64) if weighted else None for n in (N1, N2))
    features, targets = penalised_rows(
        features_stage2=f2,
        outcome_stage2=y,
        weights_stage2=w2,
        unpredicted_stage1=Unpredicted(gap, GAMMA, None if w1 is None else scale * w1),
    )
    expected = mean_square(y - f2 @ u, weights=w2) + GAMMA * mean_square(gap @ u, weights=w1)
    assert float(mean_square(targets - features @ u, weights=None)) == pytest.approx(float(expected), rel=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("structure", ["product", "additive"])
def test_covariates_alone_leave_nothing_unpredicted(structure: Any) -> None:
    """What ``f`` has of the covariates, and the constant, is the same at the treatment and at its prediction."""
    psi, predicted, xi = normal(N1, 2, seed=0), normal(N1, 2, seed=1), normal(N1, 3, seed=2)
    gap = unpredicted_features(
        treatment_features=psi, predicted_treatment_features=predicted, covariate_features=xi, structure=structure
    )
    treatment_columns = 8 if structure == "product" else 2
    assert gap[:, :treatment_columns].all()
    assert not gap[:, treatment_columns:].any()


@pytest.mark.law
def test_networks_in_float32_get_a_float32_loss_from_weights_solved_in_float64() -> None:
    p = problem("product", weighted=True, penalised=True)
    low = p._replace(**{name: getattr(p, name).float() for name in ("psi1", "phi1", "phi2", "xi1", "xi2", "y2")})
    stage, exact = stage_2(low, GAMMA), stage_2(p, GAMMA)
    assert stage.loss.dtype == torch.float32
    assert stage.u.dtype == torch.float64
    assert_same(stage.u, exact.u, 1e-5)  # the rounding of the float32 features
