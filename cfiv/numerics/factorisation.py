"""Solves from a factorisation, with a condition number, a rank and a warning where the digits are few.

Two systems are solved for the shift ``D = W - W_0`` from the anchor: ``(G + mu I) D = R`` by an eigendecomposition, and
``min_D sum_i w_i |r_i - D' phi_i|^2 + mu |D|^2`` by QR. Both scale the columns to unit length first, so
that their units do not matter. Arguments are float64 and taken as checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cfiv.errors import IllConditionedWarning, warn
from cfiv.numerics.inputs import check_finite

#: The spacing of float64 at one.
EPSILON = torch.finfo(torch.float64).eps

#: Below this many trustworthy digits in the solution a warning is given (float64 carries about 15.65).
TRUSTED_DIGITS = 6.0

#: Rows of one QR. The rounding of a QR grows with its rows where a column is constant, up to 1e4 units in the last place at a
#: million rows (measured, MKL); a tree of QRs of this many rows leaves 20, and is no slower.
QR_ROWS = 1024


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


def solve_symmetric(*, gram: Tensor, right: Tensor, mu: float, anchor: Tensor | None) -> Solution:
    """``anchor + D`` with ``(gram + mu I) D = right``, gram (d, d) and right (d, k), by :func:`scaled_solution`."""
    shift, condition, rank = scaled_solution(gram=gram, right=right, mu=mu)
    _warn_if_untrusted(condition, rank, columns=gram.shape[0], squared=True)
    return Solution(shift if anchor is None else anchor + shift, condition, rank)


def scaled_solution(*, gram: Tensor, right: Tensor, mu: float) -> tuple[Tensor, float, int]:
    """``(gram + mu I)^-1 right``, condition number and rank: diagonal scaling, then an eigendecomposition.

    The condition number is that of the features, the square root of the scaled system's. Without warning: directions that
    rounding has erased get no weight. A ``DataError`` where the system is not finite.
    """
    system = gram + mu * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    check_finite(**{"products of the features": system, "products of features and targets": right})
    scale = _inverse_scale(system.diagonal().sqrt())
    values, vectors = torch.linalg.eigh(scale[:, None] * system * scale)
    kept = values > values[-1].clamp_min(0) * gram.shape[0] * EPSILON
    inverse = torch.where(kept, 1.0 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
    shift = scale[:, None] * (vectors @ (inverse[:, None] * (vectors.mT @ (scale[:, None] * right))))
    rank = int(kept.sum())
    if rank < gram.shape[0]:
        shift = _nearest(shift=shift, unseen=scale[:, None] * vectors[:, ~kept])
    condition = float((values[-1] / values[0].clamp_min(torch.finfo(gram.dtype).tiny)).sqrt()) if rank else math.inf
    return shift, condition, rank


def solve_qr(*, phi: Tensor, targets: Tensor, weights: Tensor, mu: float, anchor: Tensor | None) -> Solution:
    """Least squares on the penalised, column-scaled features: QR, then an SVD of its small factor.

    Takes features (n, d), targets (n, k) and row weights (n, 1), not normalised.
    """
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
    shift = scale * (vh[:rank].mT / values[:rank]) @ (u[:, :rank].mT @ rotated)
    condition = float(values[0] / values[-1].clamp_min(torch.finfo(phi.dtype).tiny)) if rank else math.inf
    if len(left) < columns:
        condition = math.inf
    _warn_if_untrusted(condition, rank, columns=columns, squared=False)
    if rank < columns:
        shift = _nearest(shift=shift, unseen=scale * vh[rank:].mT)
    return Solution(shift if anchor is None else anchor + shift, condition, rank)


def _triangle(*, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """``R`` and ``Q' right`` of ``left = Q R`` (n, d), by a tree of QRs of few rows; shapes (min(n, d), d), (min(n, d), k)."""
    while True:
        count = math.ceil(left.shape[0] / max(QR_ROWS, 4 * left.shape[1]))  # no more than half of the rows stay on each level
        parts = [torch.linalg.qr(part) for part in left.tensor_split(count)]
        right = torch.cat([part.Q.mT @ piece for part, piece in zip(parts, right.tensor_split(count), strict=True)])
        left = torch.cat([part.R for part in parts])
        if count == 1:
            return left, right


def _nearest(*, shift: Tensor, unseen: Tensor) -> Tensor:
    """Of all minimisers the one nearest to the anchor: the part of ``shift`` (d, k) orthogonal to the unseen directions."""
    basis: Tensor = torch.linalg.qr(unseen).Q
    return shift - basis @ (basis.mT @ shift)


def _inverse_scale(norms: Tensor) -> Tensor:
    """``1 / norm``, and 1 for a column of zeros."""
    return torch.where(norms > 0, 1.0 / torch.where(norms > 0, norms, torch.ones_like(norms)), torch.ones_like(norms))


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
    warn(f"{message}; rescale or drop collinear features, or use a ridge penalty > 0", IllConditionedWarning)
