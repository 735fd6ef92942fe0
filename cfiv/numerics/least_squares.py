"""The one closed form: least squares with a ridge and a proximal penalty.

For features ``Phi`` (n, d), targets ``Y`` (n, k), row weights ``w`` (n,) that sum to one and previous weights ``W_prev`` (d, k)

    W* = argmin_W  sum_i w_i |y_i - W' phi_i|^2  +  ridge |W|^2  +  proximal |W - W_prev|^2.

Both penalties act on the *mean* squared error, so they keep their meaning when the batch size changes. With
``mu = ridge + proximal`` and the anchor ``W_0 = (proximal / mu) W_prev`` the two penalties are one,

    W* = W_0 + argmin_D  sum_i w_i |(y_i - W_0' phi_i) - D' phi_i|^2  +  mu |D|^2,

and that is how every final route solves it: primal (n >= d), dual (n < d) or QR here, or from batches in
:mod:`cfiv.numerics.moments`.

Whatever the dtype of the features, sums and solves run in float64; the solution is float64 too. Only :func:`solve_step` is
differentiable; everything else detaches what it is given.

References
----------
Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization", arXiv 2510.04606. The dual with an anchor and
the treatment of row weights are our own algebra.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cfiv.checks import check_choice
from cfiv.errors import ParameterError, SingularError
from cfiv.numerics.factorisation import Solution, solve_qr, solve_symmetric
from cfiv.numerics.inputs import check_finite, check_penalties, check_previous, check_shapes, penalty_and_anchor, row_weights

Method = Literal["auto", "primal", "dual", "qr"]

#: A Cholesky pivot below this share of its diagonal entry is rounding (about 450 units in the last place), not information.
SINGULAR_PIVOT = 1e-13


def with_intercept(features: Tensor) -> Tensor:
    """Append a column of ones: ``[Phi, 1]``, shape (..., n, d) -> (..., n, d + 1). Its weights are the last row of ``W``."""
    return torch.cat([features, features.new_ones(()).expand(*features.shape[:-1], 1)], dim=-1)


def solve(
    *,
    features: Tensor,
    targets: Tensor,
    ridge: float = 0.0,
    proximal: float = 0.0,
    previous: Tensor | None = None,
    weights: Tensor | None = None,
    method: Method = "auto",
) -> Solution:
    """The closed form for final answers: checked, with a condition number and a warning where it cannot be trusted.

    Minimises ``sum_i w_i |y_i - W' phi_i|^2 + ridge |W|^2 + proximal |W - W_prev|^2`` with ``w`` scaled to sum to one.

    Parameters
    ----------
    features : Tensor (n, d)
        Any float dtype; the arithmetic is float64. Use :func:`with_intercept` for a constant.
    targets : Tensor (n, k)
    ridge, proximal : float
        Penalties >= 0, on the *mean* squared error.
    previous : Tensor (d, k), optional
        ``W_prev``; zeros when absent.
    weights : Tensor (n,), optional
        Row weights >= 0 with a positive sum; equal by default.
    method : {"auto", "primal", "dual", "qr"}
        ``primal`` factors the (d, d) Gram matrix, ``dual`` the (n, n) one (it needs a penalty > 0), ``qr`` the features
        themselves with columns scaled to unit length, then an SVD of R. ``auto`` is ``qr``, the accurate one.

    Returns
    -------
    Solution

    Raises
    ------
    ParameterError, DataError
        For bad penalties, shapes, weights or values.

    Warns
    -----
    IllConditionedWarning
        Where fewer than ``factorisation.TRUSTED_DIGITS`` digits can be trusted, or the features are collinear. Collinear
        directions are left at the anchor: the answer is the one nearest to it.

    Notes
    -----
    Primal costs O(n d^2) and loses twice the digits of the condition number kappa; dual O(n^2 d). QR costs O((n + d) d^2) with
    a larger constant and loses the digits of ``kappa + kappa^2 |r| / (|Phi| |W|)`` for a residual ``r``. A warning counts
    those of kappa, which are lost where the numbers given were rounded to float64, whatever solver follows.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    >>> solve(features=with_intercept(x), targets=2 * x + 1).weights.flatten().round(decimals=6).tolist()
    [2.0, 1.0]
    """
    check_choice("method", method, ("auto", "primal", "dual", "qr"))
    check_penalties(ridge=ridge, proximal=proximal)
    check_shapes(features=features, targets=targets, weights=weights)
    check_finite(features=features, targets=targets)
    check_previous(previous, columns=features.shape[1], targets=targets.shape[1])
    phi, y = features.detach().double(), targets.detach().double()
    mu, anchor = penalty_and_anchor(
        ridge=ridge, proximal=proximal, previous=None if previous is None else previous.detach(), like=phi
    )
    w = phi.new_ones(phi.shape[0]) if weights is None else row_weights(weights, like=phi)
    if method in ("auto", "qr"):
        return solve_qr(phi=phi, targets=y, weights=w[:, None], mu=mu, anchor=anchor)
    root = (w / w.sum()).sqrt()[:, None]
    phi, residual = root * phi, root * (y if anchor is None else y - phi @ anchor)
    if method == "primal":
        return solve_symmetric(gram=phi.mT @ phi, right=phi.mT @ residual, mu=mu, anchor=anchor)
    if mu == 0:  # the (n, n) system is singular, and its scaled pseudo-inverse would weight the rows
        raise ParameterError("method 'dual' needs ridge + proximal > 0, got 0: give a penalty or use 'qr'")
    dual = solve_symmetric(gram=phi @ phi.mT, right=residual, mu=mu, anchor=None)
    shift = phi.mT @ dual.weights
    return Solution(shift if anchor is None else anchor + shift, dual.condition, dual.rank)


def solve_step(
    *,
    features: Tensor,
    targets: Tensor,
    ridge: float = 0.0,
    proximal: float = 0.0,
    previous: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The closed form for the inside of a training loop: one Cholesky factorisation, differentiable, little checked.

    The same minimiser as :func:`solve`, by the primal when n >= d and by the dual when n < d; leading axes are problems of
    their own, solved side by side. Gradients flow through features, targets and previous weights where they require them;
    where only ``targets`` do, the backward pass reuses the factorisation and costs two triangular solves. Checked are the row
    weights and that the system is not singular; shapes, penalties and finite values are not.

    Parameters
    ----------
    features : Tensor (..., n, d)
    targets : Tensor (..., n, k)
    ridge, proximal : float
        Penalties on the mean squared error, taken as checked.
    previous : Tensor (..., d, k) float64, or None
        ``W_prev``. With None the proximal pull is towards zero, as for a first batch.
    weights : Tensor (..., n), optional
        Row weights, not necessarily normalised. They are data: no gradient flows to them.

    Returns
    -------
    Tensor (..., d, k), float64
        With leading axes, nan for problems whose system is singular: the others have their answers.

    Raises
    ------
    DataError
        If a row weight is negative or not finite, or their sum is not positive.
    SingularError
        If there is one system and it is singular: without penalties and with collinear features (n >= d) or rows (n < d).
        Without penalties and with n < d independent rows, the answer is the shortest of the many solutions.
    """
    phi, y = features.double(), targets.double()
    rows, columns = phi.shape[-2:]
    if weights is not None:
        w = row_weights(weights, like=phi)
        root = (w * (rows / w.sum(dim=-1, keepdim=True))).sqrt()[..., None]
        phi, y = phi * root, y * root
    # Sums over rows and not means: the number of rows multiplies the penalties instead of dividing every row.
    if rows >= columns:
        right = (y.mT @ phi).mT  # a product with few columns takes three times as long as one with few rows
        if previous is not None and proximal:
            right = torch.add(right, previous, alpha=proximal * rows)
        return torch.cholesky_solve(right, _cholesky(phi.mT @ phi, ridge + proximal, rows))
    mu, anchor = penalty_and_anchor(ridge=ridge, proximal=proximal, previous=previous, like=phi)
    residual = y if anchor is None else y - phi @ anchor
    shift = phi.mT @ torch.cholesky_solve(residual, _cholesky(phi @ phi.mT, mu, rows))
    return shift if anchor is None else anchor + shift


def _cholesky(symmetric: Tensor, mu: float, rows: int) -> Tensor:
    """Factor ``symmetric + rows mu I``, which takes the place of ``symmetric``; of several, nan where one is singular."""
    diagonal = symmetric.diagonal(dim1=-2, dim2=-1).add_(rows * mu)
    factor: Tensor
    factor, failure = torch.linalg.cholesky_ex(symmetric)
    # Rounding leaves an exactly singular system a tiny positive pivot as often as a negative one.
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square() / diagonal.detach()
    solvable = (failure == 0) & (pivots.amin(dim=-1) >= SINGULAR_PIVOT)
    if symmetric.ndim > 2:
        usable: Tensor = factor / solvable[..., None, None]  # nan or infinite where it is not
        return usable
    if not bool(solvable):
        raise SingularError(
            f"the last-layer system is singular at pivot {int(failure) or int(pivots.argmin()) + 1} of {symmetric.shape[0]} "
            f"with penalties {mu:g}: the features are collinear or not finite; use a ridge or proximal penalty > 0, or fewer "
            "features"
        )
    return factor
