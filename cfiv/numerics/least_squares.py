"""The one closed form: least squares with a ridge and a proximal penalty.

For features ``Phi`` (n, d), targets ``Y`` (n, k), row weights ``w`` (n,) that sum to one and previous weights ``W_prev`` (d, k)

    W* = argmin_W  sum_i w_i |y_i - W' phi_i|^2  +  ridge |W|^2  +  proximal |W - W_prev|^2.

Both penalties act on the *mean* squared error, so they keep their meaning when the batch size changes. With
``mu = ridge + proximal`` and the anchor ``W_0 = (proximal / mu) W_prev`` the two penalties are one,

    W* = W_0 + argmin_D  sum_i w_i |(y_i - W_0' phi_i) - D' phi_i|^2  +  mu |D|^2,

and that is how every route below solves it: primal (n >= d), dual (n < d), QR, or from moments summed over batches.

Whatever the dtype of the features, sums and solves run in float64; the solution is float64 too. Only :func:`solve_step` is
differentiable; everything else detaches what it is given.

References
----------
Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization", arXiv 2510.04606. The dual with an anchor and
the treatment of row weights are our own algebra.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cfiv.errors import DataError, IllConditionedWarning, ParameterError, SingularError
from cfiv.numerics.compensated import matmul, two_product, two_sum

Method = Literal["auto", "primal", "dual", "qr"]

#: The spacing of float64 at one.
EPSILON = torch.finfo(torch.float64).eps

#: Below this many trustworthy digits in the solution a warning is given (float64 carries about 15.65).
TRUSTED_DIGITS = 6.0

#: A QR solution that rounding leaves with fewer digits than this is refined in doubled precision.
REFINED_DIGITS = 10.5

#: Steps of refinement at most. One or two reach the last digit for a condition number kappa up to 1e8; above, three reach an
#: error of about (kappa eps)^2, where doubled precision itself ends.
REFINEMENTS = 3

#: Products held at once while refining: 1 MB a tensor, so that a dozen of them stay near the processor.
REFINED_PRODUCTS = 2**17

#: Rows of one QR. The rounding of a QR grows with its rows where a column is constant, up to 1e4 units in the last place at a
#: million rows (measured, MKL); a tree of QRs of this many rows leaves 20, and is no slower.
QR_ROWS = 1024

#: A Cholesky pivot below this share of its diagonal entry is rounding (about 450 units in the last place), not information.
SINGULAR_PIVOT = 1e-13

#: An eigenvalue of the Gram matrix below this share of the largest has fewer than about four correct digits.
RESOLVED = 1e-11


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a least-squares problem; they add up over batches.

    Parameters
    ----------
    gram : Tensor (d, d)
        ``sum_i w_i phi_i phi_i'`` with unnormalised row weights ``w``.
    cross : Tensor (d, k)
        ``sum_i w_i phi_i y_i'``.
    mass : float
        ``sum_i w_i``; the solve divides by it, so penalties act on the mean.

    Notes
    -----
    Memory is O(d (d + k)) whatever the number of rows. Forming the Gram matrix squares the condition number of the features:
    where digits matter and the rows fit in memory, use ``solve(..., method="qr")``. The sums are not centred: a column whose
    mean is 10^p times its standard deviation loses 2 p digits beside a constant, so standardise columns with an offset first.
    """

    gram: Tensor
    cross: Tensor
    mass: float

    def __add__(self, other: Moments) -> Moments:
        _check_addable(self, other)
        return Moments(self.gram + other.gram, self.cross + other.cross, self.mass + other.mass)


@dataclass(frozen=True)
class Solution:
    """What a final solve returns.

    Parameters
    ----------
    weights : Tensor (d, k), float64
        The minimiser.
    condition : float
        Two-norm condition number of the system that was solved. For ``qr`` that of the column-scaled, penalised features;
        for ``primal``, ``dual`` and moments the square root of that of the penalised Gram matrix, which is the same scale.
    rank : int
        Numerical rank of the penalised features (of the rows' Gram matrix for ``dual``).
    """

    weights: Tensor
    condition: float
    rank: int


def with_intercept(features: Tensor) -> Tensor:
    """Append a column of ones: ``[Phi, 1]``, shape (n, d) -> (n, d + 1). The intercept's weights are the last row of ``W``."""
    return torch.cat([features, features.new_ones(features.shape[0], 1)], dim=1)


def moments(*, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Moments:
    """Sufficient statistics of one batch, summed (not averaged) over its rows.

    Parameters
    ----------
    features : Tensor (n, d)
    targets : Tensor (n, k)
    weights : Tensor (n,), optional
        Row weights >= 0, one each by default. They are not normalised here, so that moments of batches add up.

    Raises
    ------
    DataError
        If the shapes disagree, or a row weight is negative or not finite.
    """
    _check_shapes(features=features, targets=targets, weights=weights)
    phi, y = features.detach().double(), targets.detach().double()
    weighted, mass = phi, float(phi.shape[0])
    if weights is not None:
        w = weights.detach().double()
        weighted, mass = phi * w[:, None], _check_weights(w)
    return Moments(weighted.mT @ phi, weighted.mT @ y, mass)


def solve_moments(total: Moments, *, ridge: float = 0.0, proximal: float = 0.0, previous: Tensor | None = None) -> Solution:
    """The closed form from accumulated moments.

    Solves ``(G / m + mu I) (W - W_0) = C / m - (G / m) W_0`` for moments ``G, C, m``.

    Parameters
    ----------
    total : Moments
    ridge, proximal : float
        Penalties >= 0 on the mean squared error.
    previous : Tensor (d, k), optional
        ``W_prev``; zeros when absent.

    Returns
    -------
    Solution

    Raises
    ------
    ParameterError
        If a penalty is negative or not finite.
    DataError
        If the moments hold no weight or are not finite, or if ``previous`` has another shape or is not finite.

    Warns
    -----
    IllConditionedWarning
        Where fewer than ``TRUSTED_DIGITS`` digits can be trusted; directions that rounding has erased are left at the anchor.
    """
    _check_penalties(ridge=ridge, proximal=proximal)
    gram, cross = _means(total)
    _check_previous(previous, columns=cross.shape[0], targets=cross.shape[1])
    mu, anchor = _anchor(ridge=ridge, proximal=proximal, previous=None if previous is None else previous.detach(), like=cross)
    return _solve_symmetric(gram, cross if anchor is None else cross - gram @ anchor, mu, anchor)


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
        themselves with columns scaled to unit length, then an SVD of R; where rounding would leave fewer than
        ``REFINED_DIGITS`` digits, its solution is refined in doubled precision. ``auto`` is ``qr``, the accurate one.

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
        Where fewer than ``TRUSTED_DIGITS`` digits can be trusted, or the features are collinear. Collinear directions are left
        at the anchor: the answer is the one nearest to it.

    Notes
    -----
    Primal costs O(n d^2) and loses twice the digits of the condition number kappa; dual O(n^2 d). QR costs O((n + d) d^2) with
    a larger constant and loses the digits of ``kappa + kappa^2 |r| / (|Phi| |W|)`` for a residual ``r``. Refined, it loses none
    up to ``kappa = 1e8`` and the digits of ``kappa^2 eps`` above, in two or three steps of O(n d k), 10 ns a product: each
    as long as the QR for one target at d = 33. That is the exact answer to the numbers given; the digits a warning counts are
    those that survive where these numbers were rounded to float64 before, which no solver can undo: kappa's are lost.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    >>> solve(features=with_intercept(x), targets=2 * x + 1).weights.flatten().round(decimals=6).tolist()
    [2.0, 1.0]
    """
    _check_penalties(ridge=ridge, proximal=proximal)
    _check_shapes(features=features, targets=targets, weights=weights)
    _check_finite(features=features, targets=targets)
    _check_previous(previous, columns=features.shape[1], targets=targets.shape[1])
    phi, y = features.detach().double(), targets.detach().double()
    mu, anchor = _anchor(ridge=ridge, proximal=proximal, previous=None if previous is None else previous.detach(), like=phi)
    w = phi.new_ones(phi.shape[0]) if weights is None else _row_weights(weights, like=phi)
    if method in ("auto", "qr"):
        return _solve_qr(phi=phi, targets=y, weights=w[:, None], mu=mu, anchor=anchor)
    root = (w / w.sum()).sqrt()[:, None]
    phi, residual = root * phi, root * (y if anchor is None else y - phi @ anchor)
    if method == "primal":
        return _solve_symmetric(phi.mT @ phi, phi.mT @ residual, mu, anchor)
    if method == "dual":
        if mu == 0:  # the (n, n) system is singular, and its scaled pseudo-inverse would weight the rows
            raise ParameterError("method 'dual' needs ridge + proximal > 0, got 0: give a penalty or use 'qr'")
        dual = _solve_symmetric(phi @ phi.mT, residual, mu, None)
        shift = phi.mT @ dual.weights
        return Solution(shift if anchor is None else anchor + shift, dual.condition, dual.rank)
    raise ParameterError(f"method must be 'auto', 'primal', 'dual' or 'qr', got {method!r}")


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

    The same minimiser as :func:`solve`, by the primal when n >= d and by the dual when n < d. Gradients flow through features,
    targets and previous weights where they require them; where only ``targets`` do, the backward pass reuses the factorisation
    and costs two triangular solves. Checked are the row weights and that the system is not singular; shapes, penalties and
    finite values are not.

    Parameters
    ----------
    features : Tensor (n, d)
    targets : Tensor (n, k)
    ridge, proximal : float
        Penalties on the mean squared error, taken as checked.
    previous : Tensor (d, k) float64, or None
        ``W_prev``. With None the proximal pull is towards zero, as for a first batch.
    weights : Tensor (n,), optional
        Row weights, not necessarily normalised. They are data: no gradient flows to them.

    Returns
    -------
    Tensor (d, k), float64

    Raises
    ------
    DataError
        If a row weight is negative or not finite, or their sum is not positive.
    SingularError
        If the system is singular: without penalties and with collinear features (n >= d) or rows (n < d). Without penalties
        and with n < d independent rows, the answer is the shortest of the many solutions.
    """
    phi, y = features.double(), targets.double()
    rows, columns = phi.shape
    mu, anchor = _anchor(ridge=ridge, proximal=proximal, previous=previous, like=phi)
    residual = y if anchor is None else y - phi @ anchor
    if weights is None:
        scale = 1.0 / math.sqrt(rows)
        phi, residual = phi * scale, residual * scale
    else:
        w = _row_weights(weights, like=phi)
        root = (w / w.sum()).sqrt()[:, None]
        phi, residual = phi * root, residual * root
    if rows >= columns:
        shift = torch.cholesky_solve(phi.mT @ residual, _cholesky(phi.mT @ phi, mu))
    else:
        shift = phi.mT @ torch.cholesky_solve(residual, _cholesky(phi @ phi.mT, mu))
    return shift if anchor is None else anchor + shift


def ridge_path(total: Moments, ridges: Sequence[float]) -> Tensor:
    """Ridge solutions for several penalties from one eigendecomposition of the Gram matrix.

    Solves ``(G / m + ridge_r I) W_r = C / m`` for every ridge.

    Parameters
    ----------
    total : Moments
    ridges : sequence of r floats >= 0
        Penalties on the mean squared error.

    Returns
    -------
    Tensor (r, d, k), float64

    Raises
    ------
    ParameterError
        If a ridge is negative or not finite.
    DataError
        If the moments hold no weight or are not finite.

    Notes
    -----
    O(d^3 + r d^2 k) against O(r d^3) for separate solves. Where a penalised eigenvalue is below ``RESOLVED`` times the largest
    (a tiny ridge with collinear columns, or with columns in small units), that ridge gets a separate solve of the system scaled
    to the columns' units; directions that rounding has erased are then left without weight. For choosing a penalty;
    :func:`solve` gives the final answer.
    """
    _check_penalties(**{f"ridges[{i}]": ridge for i, ridge in enumerate(ridges)})
    gram, cross = _means(total)
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(gram)
    penalised = values + torch.tensor(ridges, dtype=values.dtype, device=values.device)[:, None]
    path: Tensor = vectors @ ((vectors.mT @ cross) / penalised[:, :, None])
    for i in (penalised[:, 0] <= RESOLVED * values[-1]).nonzero().flatten().tolist():
        path[i] = _scaled_solution(gram, cross, ridges[i])[0]
    return path


def accumulate(batches: Iterable[Moments]) -> Moments:
    """Sum moments over batches without ever holding two of them.

    Raises
    ------
    DataError
        If there is no batch, or one has other numbers of features or targets than the first.
    """
    total: Moments | None = None
    for batch in batches:
        if total is None:
            total = Moments(batch.gram.clone(), batch.cross.clone(), batch.mass)
        else:
            _check_addable(total, batch)
            total = Moments(total.gram.add_(batch.gram), total.cross.add_(batch.cross), total.mass + batch.mass)
    if total is None:
        raise DataError("no batch of rows to accumulate: got an empty sequence; give at least one batch")
    return total


def _means(total: Moments) -> tuple[Tensor, Tensor]:
    """``G / m`` and ``C / m``."""
    if not total.mass > 0:
        raise DataError(f"the row weights must have a positive sum, got {total.mass}: give at least one row a weight > 0")
    _check_finite(gram=total.gram, cross=total.cross)
    return total.gram / total.mass, total.cross / total.mass


def _cholesky(symmetric: Tensor, mu: float) -> Tensor:
    """Factor ``symmetric + mu I``."""
    # Out of place: the Gram matrix may carry gradients.
    penalised = symmetric + torch.diag_embed(symmetric.new_full((symmetric.shape[0],), mu))
    factor: Tensor
    factor, failure = torch.linalg.cholesky_ex(penalised)
    pivot = int(failure)
    if pivot == 0:
        # Rounding leaves an exactly singular system a tiny positive pivot as often as a negative one.
        share = factor.detach().diagonal().square() / penalised.detach().diagonal()
        pivot = int(share.argmin()) + 1 if float(share.min()) < SINGULAR_PIVOT else 0
    if pivot != 0:
        raise SingularError(
            f"the last-layer system is singular at pivot {pivot} of {symmetric.shape[0]} with penalties {mu:g}: "
            "the features are collinear or not finite; use a ridge or proximal penalty > 0, or fewer features"
        )
    return factor


def _solve_symmetric(gram: Tensor, right: Tensor, mu: float, anchor: Tensor | None) -> Solution:
    """Solve ``(gram + mu I) D = right`` and warn where its digits are few."""
    shift, condition, rank = _scaled_solution(gram, right, mu)
    _warn_if_untrusted(condition, rank, columns=gram.shape[0], squared=True)
    return Solution(shift if anchor is None else anchor + shift, condition, rank)


def _scaled_solution(gram: Tensor, right: Tensor, mu: float) -> tuple[Tensor, float, int]:
    """``(gram + mu I)^-1 right``, condition number and rank: diagonal scaling, then an eigendecomposition."""
    system = gram + mu * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    _check_finite(gram=system, right=right)
    scale = _inverse_scale(system.diagonal().sqrt())
    values, vectors = torch.linalg.eigh(scale[:, None] * system * scale)
    kept = values > values[-1].clamp_min(0) * gram.shape[0] * EPSILON
    inverse = torch.where(kept, 1.0 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
    shift = scale[:, None] * (vectors @ (inverse[:, None] * (vectors.mT @ (scale[:, None] * right))))
    rank = int(kept.sum())
    if rank < gram.shape[0]:
        shift = _nearest(shift, scale[:, None] * vectors[:, ~kept])
    condition = float((values[-1] / values[0].clamp_min(torch.finfo(gram.dtype).tiny)).sqrt()) if rank else math.inf
    return shift, condition, rank


def _solve_qr(*, phi: Tensor, targets: Tensor, weights: Tensor, mu: float, anchor: Tensor | None) -> Solution:
    """Least squares on the penalised, column-scaled features: QR, an SVD of its small factor, refinement where it is needed."""
    columns = phi.shape[1]
    root = (weights / weights.sum()).sqrt()
    left, right = root * phi, root * (targets if anchor is None else targets - phi @ anchor)
    if mu > 0:
        left = torch.cat([left, math.sqrt(mu) * torch.eye(columns, dtype=phi.dtype, device=phi.device)])
        right = torch.cat([right, right.new_zeros(columns, right.shape[1])])
    scale = _inverse_scale(torch.linalg.vector_norm(left, dim=0))[:, None]
    factor, rotated = _triangle(left=left * scale.mT, right=right)
    u, values, vh = torch.linalg.svd(factor)
    # What rounding leaves of a zero singular value grows with the rows of one QR, and not with all rows.
    rank = int((values > values[0] * max(min(len(left), QR_ROWS), columns) * EPSILON).sum())
    half_inverse = scale * (vh[:rank].mT / values[:rank])  # (d, rank): times its transpose, the inverse Gram matrix
    shift = half_inverse @ (u[:, :rank].mT @ rotated)
    condition = float(values[0] / values[-1].clamp_min(torch.finfo(phi.dtype).tiny)) if rank else math.inf
    if len(left) < columns:
        condition = math.inf
    _warn_if_untrusted(condition, rank, columns=columns, squared=False)
    if rank < columns:
        shift = _nearest(shift, scale * vh[rank:].mT)
        return Solution(shift if anchor is None else anchor + shift, condition, rank)

    solution = shift if anchor is None else anchor + shift
    # Rounding the features moves W by kappa + kappa^2 |r| / (|Phi| |W|) times as much: Wedin's bound, for the worst target.
    explained = values[0] * torch.linalg.vector_norm(shift / scale, dim=0)
    unexplained = torch.linalg.vector_norm(right - left @ shift, dim=0)
    share = float(torch.where(explained > 0, unexplained / explained, 0.0).max())
    if EPSILON * condition * (1 + condition * share) > 10.0**-REFINED_DIGITS:
        descent = partial(_descent, phi=phi, targets=targets, weights=weights, mu=mu, anchor=anchor)
        solution = _refine(solution, descent, half_inverse=half_inverse, scale=scale)
    return Solution(solution, condition, rank)


def _triangle(*, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """``R`` and ``Q' right`` of ``left = Q R`` (n, d), by a tree of QRs of few rows; shapes (min(n, d), d), (min(n, d), k)."""
    while True:
        count = math.ceil(left.shape[0] / max(QR_ROWS, 4 * left.shape[1]))  # no more than half of the rows stay on each level
        parts = [torch.linalg.qr(part) for part in left.tensor_split(count)]
        right = torch.cat([part.Q.mT @ piece for part, piece in zip(parts, right.tensor_split(count), strict=True)])
        left = torch.cat([part.R for part in parts])
        if count == 1:
            return left, right


def _refine(solution: Tensor, descent: Callable[[Tensor], Tensor], *, half_inverse: Tensor, scale: Tensor) -> Tensor:
    """Newton's method on the penalised loss: its gradient from doubled precision, its Hessian factored as it stands.

    Repeats ``W <- W + H H' g(W)`` while the correction of a target shrinks, with ``g`` of :func:`_descent` and ``H`` (d, d)
    from the QR. The error shrinks by a factor of about ``kappa eps`` a step.

    References
    ----------
    Bjorck, "Iterative refinement of linear least squares solutions I", BIT 7 (1967) 257-278. He refines the residual as an
    unknown of the augmented system; here it is kept in doubled precision, which satisfies the system's first row, so that the
    corrections are those of his seminormal equations (Linear Algebra Appl. 88 (1987) 31-48).
    """
    previous = solution.new_full((solution.shape[1],), math.inf)
    for _ in range(REFINEMENTS):
        correction = half_inverse @ (half_inverse.mT @ descent(solution))
        size = torch.linalg.vector_norm(correction / scale, dim=0)
        shrinks = size < previous / 2
        solution = torch.where(shrinks, solution + correction, solution)
        previous = torch.where(shrinks & (size > EPSILON * torch.linalg.vector_norm(solution / scale, dim=0)), size, 0.0)
        if not bool(previous.any()):
            break
    return solution


def _descent(solution: Tensor, *, phi: Tensor, targets: Tensor, weights: Tensor, mu: float, anchor: Tensor | None) -> Tensor:
    """``Phi' w (Y - Phi W) / sum(w) - mu (W - W_0)``, shape (d, k), its sums over rows and columns in doubled precision.

    Row weights (n, 1) are taken as given: neither their roots nor their shares, which would round, are used.
    """
    high, low = torch.zeros_like(solution), torch.zeros_like(solution)
    count = min(math.ceil(phi.shape[0] * solution.numel() / REFINED_PRODUCTS), phi.shape[0])
    for part, y, w in zip(*(rows.tensor_split(count) for rows in (phi, targets, weights)), strict=True):
        fitted, fitted_low = matmul(part, solution)
        residual, residual_low = two_sum(y, -fitted)
        weighted, weighted_low = two_product(w, residual)
        moment, moment_low = matmul(part.mT, weighted)
        high, error = two_sum(high, moment)
        low += error + moment_low + part.mT @ (weighted_low + w * (residual_low - fitted_low))
    total = weights.sum()
    pull = mu * (solution if anchor is None else solution - anchor)
    return (high / total - pull) + low / total


def _nearest(shift: Tensor, unseen: Tensor) -> Tensor:
    """Of all minimisers the one nearest to the anchor: the part of ``shift`` (d, k) orthogonal to the unseen directions."""
    basis: Tensor = torch.linalg.qr(unseen).Q
    return shift - basis @ (basis.mT @ shift)


def _inverse_scale(norms: Tensor) -> Tensor:
    """``1 / norm``, and 1 for a column of zeros."""
    return torch.where(norms > 0, 1.0 / torch.where(norms > 0, norms, torch.ones_like(norms)), torch.ones_like(norms))


def _anchor(*, ridge: float, proximal: float, previous: Tensor | None, like: Tensor) -> tuple[float, Tensor | None]:
    """The one penalty ``mu`` and the point ``W_0`` that it pulls towards (None for zero)."""
    mu = ridge + proximal
    if previous is None or proximal == 0.0:
        return mu, None
    return mu, (proximal / mu) * previous.to(dtype=torch.float64, device=like.device)


def _row_weights(weights: Tensor, *, like: Tensor) -> Tensor:
    """Row weights (n,) as float64 data beside the features: checked, not normalised."""
    w = weights.detach().to(dtype=torch.float64, device=like.device)
    total = _check_weights(w)
    if not total > 0:
        raise DataError(f"row weights must have a positive sum, got a sum of {total}: give at least one row a weight > 0")
    return w


def _check_weights(weights: Tensor) -> float:
    """The sum of the row weights, which must be finite and >= 0."""
    total = float(weights.double().sum())
    if not (math.isfinite(total) and bool((weights >= 0).all())):
        raise DataError(
            f"row weights must be finite and >= 0, got a smallest of {float(weights.min())} and a sum of {total}: "
            "drop or mend those rows"
        )
    return total


def _check_penalties(**penalties: float) -> None:
    for name, value in penalties.items():
        if not (math.isfinite(value) and value >= 0):
            raise ParameterError(f"{name} must be finite and >= 0, got {value}")


def _check_shapes(*, features: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    if features.ndim != 2 or targets.ndim != 2 or features.shape[0] != targets.shape[0]:
        raise DataError(
            f"features must be (n, d) and targets (n, k) with the same n, got {tuple(features.shape)} and "
            f"{tuple(targets.shape)}: reshape a single target to (n, 1)"
        )
    if features.shape[0] == 0 or features.shape[1] == 0:
        raise DataError(f"features must have at least one row and one column, got shape {tuple(features.shape)}")
    if weights is not None and weights.shape != features.shape[:1]:
        raise DataError(f"row weights must have shape ({features.shape[0]},), got {tuple(weights.shape)}")


def _check_addable(first: Moments, second: Moments) -> None:
    (d, k), (other_d, other_k) = first.cross.shape, second.cross.shape
    if (d, k) != (other_d, other_k):
        raise DataError(
            f"moments must have the same features and targets to add up, got {d} and {other_d} features, {k} and {other_k} "
            "targets: make every batch with the same columns"
        )


def _check_previous(previous: Tensor | None, *, columns: int, targets: int) -> None:
    if previous is None:
        return
    if previous.shape != (columns, targets):
        raise DataError(f"previous must have shape ({columns}, {targets}), got {tuple(previous.shape)}")
    _check_finite(previous=previous)


def _check_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(f"{name} must be finite, got {bad} values that are infinite or not a number")


def _warn_if_untrusted(condition: float, rank: int, *, columns: int, squared: bool) -> None:
    """Compare the digits that conditioning leaves with TRUSTED_DIGITS."""
    lost = math.log10(condition) * (2 if squared else 1) if math.isfinite(condition) else math.inf
    digits = -math.log10(EPSILON) - lost
    if rank < columns:
        message = (
            f"the penalised features have rank {rank} of {columns}: directions that the data cannot see stay at their anchor"
        )
    elif digits < TRUSTED_DIGITS:
        message = f"about {max(digits, 0):.0f} digits of the solution can be trusted (condition number {condition:.1e})"
    else:
        return
    warnings.warn(
        f"{message}; rescale or drop collinear features, or use a ridge penalty > 0", IllConditionedWarning, stacklevel=4
    )
