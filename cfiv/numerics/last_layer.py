"""A last layer that is solved: its weights as a function of the features, and the loss that the features learn from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Solve(Protocol):
    """A closed form with its penalties and previous weights filled in, such as a partial of ``least_squares.solve_step``."""

    def __call__(self, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The minimiser, shape (d, k), float64."""
        ...


def last_layer_loss(*, features: Tensor, targets: Tensor, solve: Solve, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve W for the features, then the loss ``sum_i w_i |y_i - W' phi_i|^2`` at W held fixed.

    W minimises this loss plus penalties that do not depend on the features. So, by the envelope theorem, the gradient at W held
    fixed is the gradient of the minimised objective, and no gradient has to run through the solve.

    Parameters
    ----------
    features : Tensor (n, d)
        ``phi``, live.
    targets : Tensor (n, k)
    solve : Solve
        How W is found, with its penalties and previous weights (d, k).
    weights : Tensor (n,), optional

    Returns
    -------
    loss : Tensor ()
    weights : Tensor (d, k), float64, detached

    References
    ----------
    Galashov et al., arXiv 2510.04606, theorems 1 and 2.
    """
    solution = solve(features=features.detach(), targets=targets, weights=weights)
    residual = targets - features @ solution.to(features.dtype)
    return mean_square(residual, weights=weights), solution.detach()


def last_layer_gradient(*, residual: Tensor, solution: Tensor, weights: Tensor | None) -> Tensor:
    """The gradient of ``sum_i w_i |y_i - W' phi_i|^2`` with respect to the features, ``-2 w_i (y_i - W' phi_i) W'``.

    Parameters
    ----------
    residual : Tensor (..., n, k)
        ``y - W' phi``.
    solution : Tensor (..., d, k)
        W, held fixed: where it minimises the loss plus penalties on itself, this is the gradient of the minimum.
    weights : Tensor (..., n), optional

    Returns
    -------
    Tensor (..., n, d)
    """
    return prediction_gradient(residual, weights=weights) @ solution.mT


def prediction_gradient(residual: Tensor, *, weights: Tensor | None) -> Tensor:
    """The gradient of ``sum_i w_i |r_i|^2`` with respect to what was taken off the targets, ``-2 w_i r_i``, (..., n, k)."""
    if weights is None:
        return residual * (-2.0 / residual.shape[-2])
    w = weights.to(residual.dtype)
    return residual * (w * (-2.0 / w.sum(dim=-1, keepdim=True)))[..., None]


def mean_square(residual: Tensor, *, weights: Tensor | None) -> Tensor:
    """``sum_i w_i |r_i|^2`` with ``w`` scaled to sum to one; shape (..., n, k) -> (...)."""
    return weighted_mean(residual.square().sum(dim=-1), weights=weights)


def weighted_mean(values: Tensor, *, weights: Tensor | None) -> Tensor:
    """``sum_i w_i v_i`` with ``w`` scaled to sum to one; shape (..., n) -> (...)."""
    if weights is None:
        return values.mean(dim=-1)
    w = weights.to(values.dtype)
    return (w * values).sum(dim=-1) / w.sum(dim=-1)
