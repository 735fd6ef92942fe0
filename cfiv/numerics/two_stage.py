"""The two-stage closed form with penalties lambda1, lambda2 and lambda12.

The structural function is ``h(t, x) = u' f(t, x)`` with treatment features ``psi(t)``, covariate features ``xi(x)`` and

    f = [psi, 1] (x) [xi, 1]      ("product": every treatment feature may change with the covariates)
    f = [psi, xi, 1]              ("additive": a partially additive model)
    f = [psi, 1]                  (without covariates).

The treatment is endogenous, so ``psi(T)`` is replaced by its conditional mean given instruments and covariates, a linear map of
instrument features ``phi(Z)``. Sample 1 learns that map, sample 2 learns ``u``:

    V   = argmin_V  mean_1 |psi(T_1) - V' [phi(Z_1), 1]|^2 + ridge1 |V|^2 + lambda |V - V_prev|^2
    u   = argmin_u  mean_2 (Y_2 - u' f_2)^2 + gamma mean_1 (u' (f(T_1) - f_1))^2 + ridge2 |u|^2 + lambda2 |u - u_prev|^2,
    f_1, f_2 = f with psi replaced by V' [phi(Z_1), 1] and by V' [phi(Z_2), 1].

``lambda`` is lambda1 while the instrument features learn (psi fixed) and lambda12 while the treatment and covariate features
learn (phi fixed, psi live). The second V minimises another loss than the one being differentiated, so the gradient has to run
through it; it is linear in ``psi(T_1)``, so only the right-hand side of its solve is differentiated. The first V and ``u``
minimise the very objective that is differentiated, penalties included, and are held fixed: by the envelope theorem the
gradient is exact.

The moment condition E[Y - h | Z, X] = 0 sees the conditional mean of ``h`` alone. What varies in ``h(T, X)`` beyond that, say
with something in a picture that no instrument moves, the data leave open. ``gamma``, the *unpredicted penalty*, weighs the
variance of that,

    E Var(h(T, X) | Z, X) ~ mean_1 (u' (f(T_1) - f_1))^2,

against the squared error of stage 2. Both are in squared units of the outcome, so ``gamma`` has no unit. Of all functions that
explain the outcome equally well, a small ``gamma`` takes the one that varies least beyond what the instruments explain; a large
one shrinks every effect, those of well predicted treatments least. With ``gamma = 0`` the two stages are those of the paper.

References
----------
Xu, Chen, Srinivasan, de Freitas, Doucet, Gretton, "Learning Deep Features in Instrumental Variable Regression", ICLR 2021,
for the two stages; Galashov et al., arXiv 2510.04606, for the proximal penalties. The additive form and the unpredicted penalty
are ours; penalties on ``h`` itself are those of Blundell, Chen and Kristensen (Econometrica 2007) and of Carrasco, Florens and
Renault (Handbook of Econometrics 6B, 2007), for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cfiv.checks import check_choice
from cfiv.numerics.inputs import row_weights
from cfiv.numerics.last_layer import Solve, last_layer_gradient, mean_square
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.structural_loss import Held, structural_loss

Structure = Literal["product", "additive"]


def structural_features(*, treatment_features: Tensor, covariate_features: Tensor | None, structure: Structure) -> Tensor:
    """``f`` of the module's equation.

    Parameters
    ----------
    treatment_features : Tensor (..., n, m)
        ``psi(T)``, or its predicted conditional mean.
    covariate_features : Tensor (..., n, c), optional
        ``xi(X)``.
    structure : {"product", "additive"}

    Returns
    -------
    Tensor (..., n, p)
        ``p = (m + 1)(c + 1)`` for the product, ``m + c + 1`` for the sum, ``m + 1`` without covariates. The constant is last.

    Raises
    ------
    ParameterError
        If the structure is neither of the two.
    """
    check_choice("structure", structure, ("product", "additive"))
    treatment = with_intercept(treatment_features)
    if covariate_features is None:
        return treatment
    covariates = with_intercept(covariate_features.to(treatment_features.dtype))
    if structure == "additive":
        return torch.cat([treatment_features, covariates], dim=-1)
    return (treatment[..., :, None] * covariates[..., None, :]).flatten(start_dim=-2)


def structural_grid(
    structural: Tensor, *, treatment_features: Tensor, covariate_features: Tensor | None, structure: Structure
) -> Tensor:
    """``f(psi_i, xi_j)' u`` for each treatment i with each row of covariates j, without making the features of all pairs.

    Parameters
    ----------
    structural : Tensor (p, 1)
        ``u``.
    treatment_features : Tensor (b, m)
    covariate_features : Tensor (n, c), optional
    structure : {"product", "additive"}

    Returns
    -------
    Tensor (b, n)
        (b, 1) without covariates.
    """
    treatment = with_intercept(treatment_features)
    if covariate_features is None:
        return treatment @ structural
    covariates = with_intercept(covariate_features.to(treatment_features.dtype))
    if structure == "additive":
        own, others = structural[: treatment_features.shape[1]], structural[treatment_features.shape[1] :]
        return treatment_features @ own + (covariates @ others).mT
    return treatment @ structural.reshape(treatment.shape[1], covariates.shape[1]) @ covariates.mT


def first_stage_loss(
    *,
    instrument_features_stage1: Tensor,
    treatment_features_stage1: Tensor,
    solve: Solve,
    weights_stage1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 1 for the instrument features: solve V, then the loss ``sum_i w_i |psi(T_1i) - V' [phi(Z_1i), 1]|^2`` at V held
    fixed, and its gradient with respect to ``phi(Z_1)``.

    Penalties are left out of the loss, since they do not depend on the features; the gradient is that of the minimised
    objective.

    Parameters
    ----------
    instrument_features_stage1 : Tensor (..., n1, d)
        ``phi(Z_1)`` without the constant, without a graph. Leading axes are problems of their own.
    treatment_features_stage1 : Tensor (..., n1, m)
        ``psi(T_1)``, taken as given.
    solve : Solve
        How V is found: with ridge1, lambda1 and ``V_prev`` (..., d + 1, m).
    weights_stage1 : Tensor (..., n1), optional

    Returns
    -------
    loss : Tensor (...)
    gradient : Tensor (..., n1, d)
    """
    phi, psi = with_intercept(instrument_features_stage1), treatment_features_stage1.detach()
    solution = solve(features=phi, targets=psi, weights=weights_stage1).to(phi.dtype)
    residual = psi - phi @ solution
    gradient = last_layer_gradient(residual=residual, solution=solution, weights=weights_stage1)
    return mean_square(residual, weights=weights_stage1), gradient[..., :-1]


def predicted_treatment_features(
    *,
    instrument_features_stage1: Tensor,
    treatment_features_stage1: Tensor,
    instrument_features_stage2: Tensor,
    solve: Solve,
    weights_stage1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``V12' [phi(Z), 1]`` in both samples, live in the treatment features that V12 was solved from.

    Parameters
    ----------
    instrument_features_stage1, instrument_features_stage2 : Tensor (n1, d), (n2, d)
        ``phi(Z_1)`` and ``phi(Z_2)`` without the constant, taken as given.
    treatment_features_stage1 : Tensor (n1, m)
        ``psi(T_1)``, live: the gradient runs through the right-hand side of the solve and reuses its factorisation.
    solve : Solve
        How V12 is found: with ridge1, lambda12 and ``V_prev`` (d + 1, m).
    weights_stage1 : Tensor (n1,), optional

    Returns
    -------
    predicted_stage1, predicted_stage2 : Tensor (n1, m), (n2, m)
    weights : Tensor (d + 1, m), float64
        V12, detached.
    """
    phi_stage1 = with_intercept(instrument_features_stage1.detach())
    phi_stage2 = with_intercept(instrument_features_stage2.detach())
    v12 = solve(features=phi_stage1, targets=treatment_features_stage1, weights=weights_stage1)
    live = v12.to(phi_stage1.dtype)
    return phi_stage1 @ live, phi_stage2 @ live, v12.detach()


@dataclass(frozen=True)
class Unpredicted:
    """What the instruments leave unpredicted of the structural features, and how much it is penalised.

    Parameters
    ----------
    features : Tensor (n1, p)
        ``f(T_1) - f_1``, live; see :func:`unpredicted_features`.
    penalty : float
        ``gamma`` > 0.
    weights : Tensor (n1,), optional
        Row weights of sample 1.
    """

    features: Tensor
    penalty: float
    weights: Tensor | None = None


def unpredicted_features(
    *,
    treatment_features: Tensor,
    predicted_treatment_features: Tensor,
    covariate_features: Tensor | None,
    structure: Structure,
) -> Tensor:
    """``f`` at ``psi(T)`` less ``f`` at its prediction, shape (n, p); arguments as in :func:`structural_features`."""

    def f(features: Tensor) -> Tensor:
        return structural_features(treatment_features=features, covariate_features=covariate_features, structure=structure)

    return f(treatment_features) - f(predicted_treatment_features)


def second_stage_loss(
    *,
    predicted_treatment_features_stage2: Tensor,
    covariate_features_stage2: Tensor | None,
    outcome_stage2: Tensor,
    structure: Structure,
    solve: Solve,
    weights_stage2: Tensor | None = None,
    unpredicted_stage1: Unpredicted | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 2 for the treatment and covariate features: solve u, then at u held fixed the loss

        sum_i w_i (Y_2i - u' f_2i)^2 + gamma sum_i w_i (u' (f(T_1i) - f_1i))^2.

    Penalties on u are left out of the loss, since they do not depend on the features; its gradient is that of the minimised
    objective.

    Parameters
    ----------
    predicted_treatment_features_stage2 : Tensor (n2, m)
        ``V12' [phi(Z_2), 1]`` of :func:`predicted_treatment_features`, live.
    covariate_features_stage2 : Tensor (n2, c), optional
        ``xi(X_2)``, live.
    outcome_stage2 : Tensor (n2, 1)
    structure : {"product", "additive"}
    solve : Solve
        How u is found: with ridge2, lambda2 and ``u_prev`` (p, 1).
    weights_stage2 : Tensor (n2,), optional
    unpredicted_stage1 : Unpredicted, optional
        With None ``gamma`` is zero.

    Returns
    -------
    loss : Tensor ()
    weights : Tensor (p, 1), float64
        u, detached.
    """
    psi, xi, gap = predicted_treatment_features_stage2, covariate_features_stage2, unpredicted_stage1
    xi = None if xi is None else xi.to(psi.dtype)
    targets, weights = outcome_stage2, weights_stage2
    with torch.no_grad():
        rows = features = structural_features(treatment_features=psi, covariate_features=xi, structure=structure)
        if gap is not None:
            rows, targets = penalised_rows(
                features_stage2=features, outcome_stage2=targets, weights_stage2=weights, unpredicted_stage1=gap
            )
            weights = None
    u = solve(features=rows, targets=targets, weights=weights).detach()
    u_now = u.to(features.dtype)
    held = Held(
        features=features, targets=outcome_stage2, structural=u_now, weights=weights_stage2, product=structure == "product"
    )
    loss = structural_loss(treatment_features=psi, covariate_features=xi, held=held)
    if gap is not None:
        loss = loss + gap.penalty * mean_square(gap.features @ u_now, weights=gap.weights)
    return loss, u


def penalised_rows(
    *, features_stage2: Tensor, outcome_stage2: Tensor, weights_stage2: Tensor | None, unpredicted_stage1: Unpredicted
) -> tuple[Tensor, Tensor]:
    """The second stage with its unpredicted penalty as one problem: rows whose plain mean square is the sum of the two.

    Parameters
    ----------
    features_stage2 : Tensor (n2, p)
        ``f_2``.
    outcome_stage2 : Tensor (n2, 1)
    weights_stage2 : Tensor (n2,), optional
    unpredicted_stage1 : Unpredicted

    Returns
    -------
    features, targets : Tensor (n2 + n1, p), (n2 + n1, 1)
        Without row weights of their own: those given are in their scale.

    Raises
    ------
    DataError
        If row weights are negative or not finite, or their sum is not positive.
    """
    gap = unpredicted_stage1
    rows = features_stage2.shape[-2] + gap.features.shape[-2]
    scale_stage2 = _scales(rows, 1.0, like=features_stage2, weights=weights_stage2)
    scale_stage1 = _scales(rows, gap.penalty, like=gap.features, weights=gap.weights)
    features = torch.cat([scale_stage2 * features_stage2, scale_stage1 * gap.features], dim=-2)
    nothing = outcome_stage2.new_zeros(()).expand(*gap.features.shape[:-1], 1)
    return features, torch.cat([scale_stage2 * outcome_stage2, nothing], dim=-2)


def _scales(rows: int, share: float, *, like: Tensor, weights: Tensor | None) -> Tensor:
    """Factors (..., n, 1) or () whose squares, as a mean over ``rows`` rows, weigh those of ``like`` by ``share`` in all."""
    if weights is None:
        return like.new_tensor(rows * share / like.shape[-2]).sqrt()
    w = row_weights(weights, like=like)
    scales: Tensor = (rows * share * w / w.sum(dim=-1, keepdim=True)).sqrt()[..., None].to(like.dtype)
    return scales
