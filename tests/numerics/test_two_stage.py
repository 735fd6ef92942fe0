"""The two-stage closed form: gradients, first-order conditions, and two-stage least squares as its special case."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linearmodels.iv import IV2SLS
from torch import Tensor

from cfiv.errors import ParameterError
from cfiv.numerics.last_layer import mean_square
from cfiv.numerics.least_squares import solve_step, with_intercept
from cfiv.numerics.two_stage import (
    first_stage_loss,
    predicted_treatment_features,
    second_stage_loss,
    structural_features,
)

#: Two float64 routes to one solution or gradient through two well-conditioned solves.
SAME = 1e-8
#: The same sum in another order.
ROUNDING = 1e-13

STRUCTURES = pytest.mark.parametrize("structure", ["product", "additive", "without covariates"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])
PENALISED = pytest.mark.parametrize("penalised", [False, True])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row_weights(n: int) -> Tensor:
    return torch.linspace(0.5, 3.0, n, dtype=torch.float64)


def assert_same(got: Tensor, expected: Tensor, tolerance: float = SAME) -> None:
    torch.testing.assert_close(got, expected, rtol=0.0, atol=tolerance * float(expected.detach().abs().max()))


def first_stage_problem(*, penalised: bool, weighted: bool = False, n: int = 20) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the first stage without ``solve``, and the penalties and previous weights of its solve."""
    instruments = normal(n, 4, seed=0)
    rows = {
        "instrument_features_stage1": instruments,
        "treatment_features_stage1": (instruments @ normal(4, 2, seed=1)).tanh() + 0.3 * normal(n, 2, seed=2),
        "weights_stage1": row_weights(n) if weighted else None,
    }
    penalties = {"ridge": 0.2, "proximal": 0.3, "previous": normal(5, 2, seed=3)} if penalised else {}
    return rows, penalties


def second_stage_problem(
    *, structure: str, penalised: bool, weighted: bool = False, n1: int = 20
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Arguments of the second stage without its solves, and the penalties and previous weights of the two solves."""
    rows, first = first_stage_problem(penalised=penalised, weighted=weighted, n=n1)
    covariates = None if structure == "without covariates" else normal(30, 3, seed=11)
    rows |= {
        "instrument_features_stage2": normal(30, 4, seed=10),
        "covariate_features_stage2": covariates,
        "outcome_stage2": normal(30, 1, seed=12),
        "structure": "additive" if structure == "without covariates" else structure,
        "weights_stage2": row_weights(30).flip(0) if weighted else None,
    }
    columns = {"product": 12, "additive": 6, "without covariates": 3}[structure]
    structural = {"ridge": 0.1, "proximal": 0.4, "previous": normal(columns, 1, seed=13)} if penalised else {}
    return rows, first, structural


def penalty(weights: Tensor, *, ridge: float = 0.0, proximal: float = 0.0, previous: Tensor | None = None) -> Tensor:
    value = ridge * weights.square().sum()
    return value if previous is None else value + proximal * (weights - previous).square().sum()


class Stage2(NamedTuple):
    loss: Tensor
    u: Tensor
    v12: Tensor
    predicted: Tensor


def stage_2(
    rows: dict[str, Any],
    first: dict[str, Any],
    structural: dict[str, Any],
    *,
    hold_first_stage: bool = False,
) -> Stage2:
    """Solve V12, predict the treatment features of sample 2, solve u: stage 2 as a training step has it."""
    own = {"covariate_features_stage2", "outcome_stage2", "structure", "weights_stage2"}
    _, predicted, v12 = predicted_treatment_features(
        **{name: value for name, value in rows.items() if name not in own}, solve=partial(solve_step, **first)
    )
    loss, u = second_stage_loss(
        predicted_treatment_features_stage2=predicted.detach() if hold_first_stage else predicted,
        **{name: rows[name] for name in own},
        solve=partial(solve_step, **structural),
    )
    return Stage2(loss, u, v12, predicted)


def live_features(rows: dict[str, Any]) -> dict[str, Tensor]:
    """The features that stage 2 trains, made to require gradients."""
    names = ["treatment_features_stage1", "covariate_features_stage2"]
    return {name: rows[name].clone().requires_grad_() for name in names if rows[name] is not None}


# ------------------------------------------------------------------------------------------------------ stage 1: gradients


@pytest.mark.gradient
@WEIGHTED
@PENALISED
@pytest.mark.parametrize("n", [20, 3])  # primal and dual
def test_stage_1_gives_instrument_features_the_gradient_of_the_minimised_objective(
    n: int, penalised: bool, weighted: bool
) -> None:
    rows, penalties = first_stage_problem(penalised=penalised or n == 3, weighted=weighted, n=n)
    solved: list[Tensor] = []

    def solve(**given: Any) -> Tensor:
        solved.append(solve_step(**given, **penalties))
        return solved[-1]

    def minimised(instrument_features: Tensor) -> float:
        loss, _ = first_stage_loss(**rows | {"instrument_features_stage1": instrument_features}, solve=solve)
        return float(loss + penalty(solved[-1], **penalties))

    at = rows["instrument_features_stage1"]
    _, gradient = first_stage_loss(**rows, solve=solve)
    assert gradient.shape == at.shape
    for seed in range(3):
        direction = normal(*at.shape, seed=100 + seed)
        slope = (minimised(at + 1e-5 * direction) - minimised(at - 1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.gradient
def test_stage_1_takes_the_treatment_features_as_given() -> None:
    rows, penalties = first_stage_problem(penalised=True)
    rows["treatment_features_stage1"].requires_grad_()
    loss, gradient = first_stage_loss(**rows, solve=partial(solve_step, **penalties))
    assert not loss.requires_grad
    assert not gradient.requires_grad
    assert gradient.any()


# ------------------------------------------------------------------------------------------------------ stage 2: gradients


@pytest.mark.gradient
@STRUCTURES
@WEIGHTED
@PENALISED
@pytest.mark.parametrize("n1", [20, 3])  # V12 by the primal and by the dual
def test_stage_2_gives_treatment_and_covariate_features_the_gradient_of_the_minimised_objective(
    n1: int, penalised: bool, weighted: bool, structure: str
) -> None:
    rows, first, structural = second_stage_problem(structure=structure, penalised=penalised, weighted=weighted, n1=n1)
    live = live_features(rows)

    def minimised(*features: Tensor) -> Tensor:
        stage = stage_2(rows | dict(zip(live, features, strict=True)), first, structural)
        return stage.loss + penalty(stage.u, **structural)  # u is detached, V12 must not be

    assert torch.autograd.gradcheck(minimised, tuple(live.values()))


@pytest.mark.gradient
@STRUCTURES
@PENALISED
@WEIGHTED
def test_the_stage_2_gradient_is_that_of_the_objective_written_out_with_dense_solves(
    structure: str, penalised: bool, weighted: bool
) -> None:
    rows, first, structural = second_stage_problem(structure=structure, penalised=penalised, weighted=weighted)
    live = live_features(rows)

    def dense(phi: Tensor, targets: Tensor, weights: Tensor | None, penalties: dict[str, Any]) -> Tensor:
        w = torch.ones(len(phi), dtype=torch.float64) if weights is None else weights
        w = (w / w.sum())[:, None]
        ridge, proximal = penalties.get("ridge", 0.0), penalties.get("proximal", 0.0)
        previous = penalties.get("previous", torch.zeros(phi.shape[1], targets.shape[1], dtype=torch.float64))
        system = phi.mT @ (w * phi) + (ridge + proximal) * torch.eye(phi.shape[1], dtype=torch.float64)
        return torch.linalg.solve(system, phi.mT @ (w * targets) + proximal * previous)

    constant1, constant2 = torch.ones(20, 1, dtype=torch.float64), torch.ones(30, 1, dtype=torch.float64)
    phi1, phi2 = (torch.cat([rows[f"instrument_features_stage{i}"], c], 1) for i, c in ((1, constant1), (2, constant2)))
    psi = phi2 @ dense(phi1, live["treatment_features_stage1"], rows["weights_stage1"], first)
    xi = live.get("covariate_features_stage2", torch.empty(30, 0, dtype=torch.float64))
    if structure == "product":
        f = torch.einsum("ni,nj->nij", torch.cat([psi, constant2], 1), torch.cat([xi, constant2], 1)).reshape(30, -1)
    else:
        f = torch.cat([psi, xi, constant2], 1)
    u = dense(f, rows["outcome_stage2"], rows["weights_stage2"], structural)
    w = torch.ones(30, dtype=torch.float64) if rows["weights_stage2"] is None else rows["weights_stage2"]
    written_out = (w @ (rows["outcome_stage2"] - f @ u).square()).squeeze() / w.sum() + penalty(u, **structural)

    stage = stage_2(rows | live, first, structural)
    assert_same(stage.loss + penalty(stage.u, **structural), written_out)
    expected = torch.autograd.grad(written_out, list(live.values()))
    for got, wanted in zip(torch.autograd.grad(stage.loss, list(live.values())), expected, strict=True):
        assert_same(got, wanted)


@pytest.mark.gradient
@STRUCTURES
@WEIGHTED
def test_treatment_features_learn_only_through_the_solve_of_v12_and_not_at_all_with_v12_held_fixed(
    structure: str, weighted: bool
) -> None:
    rows, first, structural = second_stage_problem(structure=structure, penalised=True, weighted=weighted)
    psi = rows["treatment_features_stage1"].requires_grad_()
    right = stage_2(rows, first, structural)
    (gradient,) = torch.autograd.grad(right.loss, psi, retain_graph=True)
    (at_prediction,) = torch.autograd.grad(right.loss, right.predicted)

    # V12 = (Phi_1' D Phi_1 + mu I)^-1 (Phi_1' D psi + ...), so the gradient is D Phi_1 (Phi_1' D Phi_1 + mu I)^-1 Phi_2' G.
    phi1, phi2 = (with_intercept(rows[f"instrument_features_stage{i}"]) for i in (1, 2))
    weights = torch.full((20,), 1 / 20, dtype=torch.float64) if rows["weights_stage1"] is None else rows["weights_stage1"]
    weighted_phi1 = (weights / weights.sum())[:, None] * phi1
    system = phi1.mT @ weighted_phi1 + (first["ridge"] + first["proximal"]) * torch.eye(5, dtype=torch.float64)
    assert_same(gradient, weighted_phi1 @ torch.linalg.solve(system, phi2.mT @ at_prediction))

    held = stage_2(rows, first, structural, hold_first_stage=True)
    assert torch.equal(held.loss, right.loss)  # one value: only the gradient tells the trap from the method
    assert not torch.autograd.grad(held.loss + 0.0 * psi.sum(), psi)[0].any()


@pytest.mark.gradient
@STRUCTURES
def test_stage_2_takes_the_instrument_features_as_given(structure: str) -> None:
    rows, first, structural = second_stage_problem(structure=structure, penalised=True)
    live = live_features(rows)
    instruments = [rows[f"instrument_features_stage{i}"].requires_grad_() for i in (1, 2)]
    stage = stage_2(rows | live, first, structural)
    gradients = torch.autograd.grad(stage.loss, [*live.values(), *instruments], allow_unused=True)
    assert all(gradient.any() for gradient in gradients[:-2])
    assert gradients[-2:] == (None, None)
    assert not stage.u.requires_grad
    assert not stage.v12.requires_grad


# ------------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.law
@STRUCTURES
@PENALISED
@WEIGHTED
def test_v_and_u_are_stationary_points_of_their_own_objectives(structure: str, penalised: bool, weighted: bool) -> None:
    rows, first, structural = second_stage_problem(structure=structure, penalised=penalised, weighted=weighted)
    stage = stage_2(rows, first, structural)
    v, u = stage.v12.requires_grad_(), stage.u.requires_grad_()

    psi1, phi1, phi2 = (
        rows["treatment_features_stage1"],
        *(with_intercept(rows[f"instrument_features_stage{i}"]) for i in (1, 2)),
    )
    objective1 = mean_square(psi1 - phi1 @ v, weights=rows["weights_stage1"]) + penalty(v, **first)
    (gradient1,) = torch.autograd.grad(objective1, v)
    assert gradient1.abs().max() <= SAME * objective1

    f = structural_features(
        treatment_features=phi2 @ v.detach(), covariate_features=rows["covariate_features_stage2"], structure=rows["structure"]
    )
    objective2 = mean_square(rows["outcome_stage2"] - f @ u, weights=rows["weights_stage2"]) + penalty(u, **structural)
    (gradient2,) = torch.autograd.grad(objective2, u)
    assert gradient2.abs().max() <= SAME * objective2
    assert_same(stage.loss, mean_square(rows["outcome_stage2"] - f @ u, weights=rows["weights_stage2"]).detach(), ROUNDING)


@pytest.mark.law
def test_both_stages_solve_one_first_stage_when_their_penalties_are_equal() -> None:
    rows, first, structural = second_stage_problem(structure="product", penalised=True, weighted=True)
    stage1 = {name: value for name, value in rows.items() if name.endswith("stage1")}
    solved: list[Tensor] = []

    def solve(**given: Any) -> Tensor:
        solved.append(solve_step(**given, **first))
        return solved[-1]

    first_stage_loss(**stage1, solve=solve)
    assert torch.equal(solved[-1], stage_2(rows, first, structural).v12)


@pytest.mark.law
@STRUCTURES
def test_without_penalties_only_the_span_of_the_features_matters(structure: str) -> None:
    rows, _, _ = second_stage_problem(structure=structure, penalised=False, weighted=True)
    mixing, shift = normal(4, 4, seed=20), normal(1, 4, seed=21)
    mixed = rows | {name: rows[name] @ mixing + shift for name in rows if name.startswith("instrument")}
    mixed["treatment_features_stage1"] = rows["treatment_features_stage1"] @ normal(2, 2, seed=22) + normal(1, 2, seed=23)
    if rows["covariate_features_stage2"] is not None:
        mixed["covariate_features_stage2"] = rows["covariate_features_stage2"] @ normal(3, 3, seed=24) + 5.0
    assert_same(stage_2(mixed, {}, {}).loss, stage_2(rows, {}, {}).loss)


@pytest.mark.law
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    rows=st.integers(1, 6),
    treatments=st.integers(1, 4),
    covariates=st.integers(1, 4),
    structure=st.sampled_from(["product", "additive"]),
)
def test_structural_features_are_ordered_by_treatment_then_covariate_with_the_constant_last(
    rows: int, treatments: int, covariates: int, structure: str
) -> None:
    psi, xi = normal(rows, treatments, seed=0), normal(rows, covariates, seed=1)
    expected = []
    for i in range(rows):
        t, x = psi[i].tolist(), xi[i].tolist()
        if structure == "product":
            expected.append([a * b for a in [*t, 1.0] for b in [*x, 1.0]])
        else:
            expected.append([*t, *x, 1.0])
    got = structural_features(treatment_features=psi, covariate_features=xi, structure=structure)  # type: ignore[arg-type]
    assert got.tolist() == expected


@pytest.mark.law
@pytest.mark.parametrize("structure", ["product", "additive"])
def test_without_covariates_the_structural_features_are_those_of_the_treatment_and_the_constant(structure: Any) -> None:
    psi = normal(5, 3, seed=0)
    got = structural_features(treatment_features=psi, covariate_features=None, structure=structure)
    assert got.tolist() == [[*row, 1.0] for row in psi.tolist()]


@pytest.mark.law
@pytest.mark.parametrize("scale", [1.0, 0.01, 40.0])
def test_the_mean_square_sums_over_targets_and_averages_over_rows_by_weight(scale: float) -> None:
    residual, weights = normal(7, 3, seed=0), torch.arange(7, dtype=torch.float64)
    by_hand = sum(float(w) * sum(r**2 for r in row) for w, row in zip(weights, residual.tolist(), strict=True)) / 21.0
    assert float(mean_square(residual, weights=scale * weights)) == pytest.approx(by_hand, rel=ROUNDING)
    plain = sum(sum(r**2 for r in row) for row in residual.tolist()) / 7
    assert float(mean_square(residual, weights=None)) == pytest.approx(plain, rel=ROUNDING)
    assert float(mean_square(residual, weights=scale * torch.ones(7))) == pytest.approx(plain, rel=ROUNDING)


@pytest.mark.law
def test_networks_in_float32_get_a_float32_loss_from_weights_solved_in_float64() -> None:
    rows, first, structural = second_stage_problem(structure="product", penalised=True, weighted=True)
    low = {name: value.float() if isinstance(value, Tensor) else value for name, value in rows.items()}
    stage, exact = stage_2(low, first, structural), stage_2(rows, first, structural)
    assert stage.loss.dtype == torch.float32
    assert stage.u.dtype == torch.float64
    assert_same(stage.u, exact.u, 1e-5)  # the rounding of the float32 features
    assert float(stage.loss) == pytest.approx(float(exact.loss), rel=1e-5)


def test_an_unknown_structure_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="structure must be 'product' or 'additive', got 'sum'"):
        structural_features(
            treatment_features=normal(5, 2, seed=0),
            covariate_features=normal(5, 2, seed=1),
            structure="sum",  # type: ignore[arg-type]
        )


# ----------------------------------------------------------------------------------------------------------------- oracle


@pytest.mark.oracle
@WEIGHTED
@pytest.mark.parametrize("covariates", [0, 2])
def test_identity_features_without_penalties_on_one_sample_are_two_stage_least_squares(covariates: int, weighted: bool) -> None:
    n = 200
    instruments, confounder, exogenous = normal(n, 3, seed=0), normal(n, 1, seed=1), normal(n, covariates, seed=2)
    treatment = instruments @ normal(3, 2, seed=3) + exogenous.sum(dim=1, keepdim=True) + confounder + normal(n, 2, seed=4)
    outcome = 2.0 + treatment @ torch.tensor([[1.0], [-3.0]], dtype=torch.float64) + confounder + exogenous.sum(1, keepdim=True)
    weights = row_weights(n) if weighted else None

    both = torch.cat([instruments, exogenous], dim=1)  # the covariates are their own instruments
    stage = stage_2(
        {
            "instrument_features_stage1": both,
            "treatment_features_stage1": treatment,
            "instrument_features_stage2": both,
            "covariate_features_stage2": exogenous if covariates else None,
            "outcome_stage2": outcome,
            "structure": "additive",
            "weights_stage1": weights,
            "weights_stage2": weights,
        },
        {},
        {},
    )

    frame = pd.DataFrame(torch.cat([treatment, exogenous, torch.ones(n, 1), instruments], dim=1).numpy())
    structural = 2 + covariates + 1
    two_stage = IV2SLS(
        dependent=outcome.numpy(),
        exog=frame.iloc[:, 2:structural],
        endog=frame.iloc[:, :2],
        instruments=frame.iloc[:, structural:],
        weights=None if weights is None else weights.numpy(),
    ).fit()
    expected = two_stage.params.reindex(frame.columns[:structural]).to_numpy(copy=True)
    assert_same(stage.u.flatten(), torch.from_numpy(expected))
