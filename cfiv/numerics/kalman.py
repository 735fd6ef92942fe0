"""The Kalman filter of a last layer: its weights as a random walk that every batch of rows observes."""

from __future__ import annotations

import torch
from torch import Tensor

from cfiv.errors import SingularError
from cfiv.numerics.inputs import row_weights


def kalman_update(
    *,
    features: Tensor,
    targets: Tensor,
    mean: Tensor,
    root: Tensor | None,
    process_noise: float,
    observation_noise: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict and correct: the posterior of the weights after one more batch.

    The columns of W share one covariance. With ``P_prev = R R'``, or 0 where there is no root,

        W ~ N(W_prev, P),   P = P_prev + process_noise^2 I,        y_i ~ N(W' phi_i, observation_noise^2 / (n w_i))
        P_new = (P^-1 + Phi' D Phi n / observation_noise^2)^-1
        W_new = W_prev + P_new Phi' D (Y - Phi W_prev) n / observation_noise^2,     D = diag(w), sum w = 1.

    Parameters
    ----------
    features : Tensor (n, d)
    targets : Tensor (n, k)
        Gradients flow to them; not to the features.
    mean : Tensor (d, k), float64
        ``W_prev``.
    root : Tensor (d, d), float64, or None
        Any square root R of the previous covariance.
    process_noise, observation_noise : float
        Standard deviations: of a step of the random walk, >= 0, and of a target, > 0. Of the likelihood of all rows, which is a
        *sum*: with P = process_noise^2 I the answer is the proximal one with ``observation_noise^2 / process_noise^2`` beside
        the sum of squares, or that over n beside their mean.
    weights : Tensor (n,), optional
        Row weights, here made to average to one.

    Returns
    -------
    mean : Tensor (d, k), float64
    root : Tensor (d, d), float64

    Raises
    ------
    SingularError
        If the features or the root are not finite.
    DataError
        If a row weight is negative or not finite, or their sum is not positive.

    Notes
    -----
    O(n d^2 + d^3). The root is carried, not the covariance: with ``P = F F'`` and ``I + F' Phi' D Phi F n / s^2 = C C'`` the
    new root is ``F C^-T``, a triangular solve, so the covariance never loses its symmetry or its sign. ``C`` always exists.

    References
    ----------
    Galashov et al., arXiv 2510.04606, appendix A. The square-root form and the row weights are ours.
    """
    phi = features.detach().double()
    residual = targets.double() - phi @ mean
    identity = torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
    if root is None:
        factor = process_noise * identity
    elif process_noise == 0.0:
        factor = root
    else:
        factor = _cholesky(root @ root.mT + process_noise**2 * identity)
    if weights is None:
        phi, residual = phi / observation_noise, residual / observation_noise
    else:
        w = row_weights(weights, like=phi)
        precision = ((w / w.mean()).sqrt() / observation_noise)[:, None]
        phi, residual = phi * precision, residual * precision
    seen = phi @ factor
    new = torch.linalg.solve_triangular(_cholesky(identity + seen.mT @ seen), factor.mT, upper=False).mT
    return mean + new @ (new.mT @ (phi.mT @ residual)), new


def _cholesky(symmetric: Tensor) -> Tensor:
    factor: Tensor
    factor, failure = torch.linalg.cholesky_ex(symmetric)
    if int(failure):
        raise SingularError(
            "the covariance of the Kalman filter is not finite: the features have become infinite or not a number; lower the "
            "learning rate"
        )
    return factor
