"""The squared error of the structural function ``u' f(psi, xi)``, with its gradient written out.

``u' f`` is linear in ``psi`` and in ``xi``: with U the weights u of a product as a matrix (m + 1, c + 1),

    u' f = [psi, 1]' U [xi, 1],    d/dpsi = U [xi, 1],    d/dxi = U' [psi, 1]    (constants left out),

and of a sum both are weights of u. So the features f, many more than psi and xi, need no graph, and no gradient of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cfiv.numerics.last_layer import mean_square, prediction_gradient
from cfiv.numerics.least_squares import with_intercept


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the loss takes as given.

    Parameters
    ----------
    features : Tensor (..., n, p)
        ``f(psi, xi)``, as :func:`cfiv.numerics.two_stage.structural_features` gives it.
    targets : Tensor (..., n, 1)
    structural : Tensor (..., p, 1)
        ``u``, in the type of f.
    weights : Tensor (..., n) or None
    product : bool
        Whether f is a product.
    """

    features: Tensor
    targets: Tensor
    structural: Tensor
    weights: Tensor | None
    product: bool


def structural_loss(*, treatment_features: Tensor, covariate_features: Tensor | None, held: Held) -> Tensor:
    """``sum_i w_i (y_i - u' f_i)^2``, with ``w`` scaled to sum to one: its value at f, live in psi and xi.

    Parameters
    ----------
    treatment_features : Tensor (..., n, m)
        ``psi``.
    covariate_features : Tensor (..., n, c) or None
        ``xi``, of the same type.
    held : Held

    Returns
    -------
    Tensor (...)
        It can be differentiated once.
    """
    loss: Tensor = _StructuralLoss.apply(treatment_features, covariate_features, held)  # type: ignore[no-untyped-call]
    return loss


class _StructuralLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        treatment_features, covariate_features, held = given
        residual = held.targets - held.features @ held.structural
        ctx.save_for_backward(treatment_features, covariate_features, residual)
        ctx.held = held
        return mean_square(residual, weights=held.weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,), (psi, xi, residual) = gradients, ctx.saved_tensors
        u, m = ctx.held.structural, psi.shape[-1]
        rows = gradient[..., None, None] * prediction_gradient(residual, weights=ctx.held.weights)
        if xi is None:
            return rows * u[..., :m, :].mT, None, None
        if not ctx.held.product:
            return rows * u[..., :m, :].mT, rows * u[..., m:-1, :].mT, None
        c = xi.shape[-1]
        matrix = u.reshape(*u.shape[:-2], m + 1, c + 1)
        of_psi = rows * (with_intercept(xi) @ matrix[..., :m, :].mT)
        return of_psi, rows * (with_intercept(psi) @ matrix[..., :c]), None
