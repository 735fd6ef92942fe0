"""The two-stage closed form with penalties lambda1, lambda2 and lambda12.

The structural function is ``h(t, x) = u' f(t, x)`` with treatment features ``psi(t)``, covariate features ``xi(x)`` and

    f = [psi, 1] (x) [xi, 1]      ("product": every treatment feature may change with the covariates)
    f = [psi, xi, 1]              ("additive": a partially additive model)
    f = [psi, 1]                  (without covariates).

The treatment is endogenous, so ``psi(T)`` is replaced by its conditional mean given instruments and covariates, a linear map of
instrument features ``phi(Z)``. Sample 1 learns that map, sample 2 learns ``u``:

    V   = argmin_V  mean_1 |psi(T_1) - V' [phi(Z_1), 1]|^2 + ridge1 |V|^2 + lambda |V - V_prev|^2
    u   = argmin_u  mean_2 (Y_2 - u' f_2)^2 + ridge2 |u|^2 + lambda2 |u - u_prev|^2,
    f_2 = f with psi replaced by V' [phi(Z_2), 1].

``lambda`` is lambda1 while the instrument features learn (psi fixed) and lambda12 while the treatment and covariate features
learn (phi fixed, psi live). The second V minimises another loss than the one being differentiated, so the gradient has to run
through it; it is linear in ``psi(T_1)``, so only the right-hand side of its solve is differentiated. The first V and ``u``
minimise the very objective that is differentiated, penalties included, and are held fixed: by the envelope theorem the
gradient is exact.

References
----------
Xu, Chen, Srinivasan, de Freitas, Doucet, Gretton, "Learning Deep Features in Instrumental Variable Regression", ICLR 2021,
for the two stages; Galashov et al., arXiv 2510.04606, for the proximal penalties. The additive form is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cfiv.errors import ParameterError
from cfiv.numerics.last_layer import Solve, last_layer_loss
from cfiv.numerics.least_squares import with_intercept

Structure = Literal["product", "additive"]


def structural_features(*, treatment_features: Tensor, covariate_features: Tensor | None, structure: Structure) -> Tensor:
    """``f`` of the module's equation.

    Parameters
    ----------
    treatment_features : Tensor (n, m)
        ``psi(T)``, or its predicted conditional mean.
    covariate_features : Tensor (n, c), optional
        ``xi(X)``.
    structure : {"product", "additive"}

    Returns
    -------
    Tensor (n, p)
        ``p = (m + 1)(c + 1)`` for the product, ``m + c + 1`` for the sum, ``m + 1`` without covariates. The constant is last.

    Raises
    ------
    ParameterError
        If the structure is neither of the two.
    """
    if structure not in ("product", "additive"):
        raise ParameterError(f"structure must be 'product' or 'additive', got {structure!r}")
    treatment = with_intercept(treatment_features)
    if covariate_features is None:
        return treatment
    covariates = with_intercept(covariate_features.to(treatment_features.dtype))
    if structure == "additive":
        return torch.cat([treatment_features, covariates], dim=1)
    return (treatment[:, :, None] * covariates[:, None, :]).flatten(start_dim=1)


def first_stage_loss(
    *,
    instrument_features_stage1: Tensor,
    treatment_features_stage1: Tensor,
    solve: Solve,
    weights_stage1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 1 for the instrument features: solve V, then the loss ``sum_i w_i |psi(T_1i) - V' [phi(Z_1i), 1]|^2`` at V held
    fixed.

    Penalties are left out of the loss, since they do not depend on the features; its gradient is that of the minimised
    objective.

    Parameters
    ----------
    instrument_features_stage1 : Tensor (n1, d)
        ``phi(Z_1)`` without the constant; gradients flow through it.
    treatment_features_stage1 : Tensor (n1, m)
        ``psi(T_1)``, taken as given.
    solve : Solve
        How V is found: with ridge1, lambda1 and ``V_prev`` (d + 1, m).
    weights_stage1 : Tensor (n1,), optional

    Returns
    -------
    loss : Tensor ()
    weights : Tensor (d + 1, m), float64, detached
    """
    return last_layer_loss(
        features=with_intercept(instrument_features_stage1),
        targets=treatment_features_stage1.detach(),
        solve=solve,
        weights=weights_stage1,
    )


def predicted_treatment_features(
    *,
    instrument_features_stage1: Tensor,
    treatment_features_stage1: Tensor,
    instrument_features_stage2: Tensor,
    solve: Solve,
    weights_stage1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``V12' [phi(Z_2), 1]``, live in the treatment features that V12 was solved from.

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
    predicted : Tensor (n2, m)
    weights : Tensor (d + 1, m), float64
        V12, detached.
    """
    v12 = solve(
        features=with_intercept(instrument_features_stage1.detach()),
        targets=treatment_features_stage1,
        weights=weights_stage1,
    )
    return with_intercept(instrument_features_stage2.detach()) @ v12.to(instrument_features_stage2.dtype), v12.detach()


def second_stage_loss(
    *,
    predicted_treatment_features_stage2: Tensor,
    covariate_features_stage2: Tensor | None,
    outcome_stage2: Tensor,
    structure: Structure,
    solve: Solve,
    weights_stage2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 2 for the treatment and covariate features: solve u, then the loss ``sum_i w_i (Y_2i - u' f_2i)^2`` at u held
    fixed.

    Penalties are left out of the loss, since they do not depend on the features; its gradient is that of the minimised
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

    Returns
    -------
    loss : Tensor ()
    weights : Tensor (p, 1), float64
        u, detached.
    """
    features = structural_features(
        treatment_features=predicted_treatment_features_stage2,
        covariate_features=covariate_features_stage2,
        structure=structure,
    )
    return last_layer_loss(features=features, targets=outcome_stage2, solve=solve, weights=weights_stage2)
