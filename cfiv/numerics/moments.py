"""The closed form from moments: sums over rows that add up over batches, so that no more than one batch is held at once.

With ``G = sum_i w_i phi_i phi_i'``, ``C = sum_i w_i phi_i y_i'`` and ``m = sum_i w_i`` the minimiser of
:mod:`cfiv.numerics.least_squares` solves

    (G / m + mu I) (W - W_0) = C / m - (G / m) W_0.

Sums and solves run in float64 and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfiv.errors import DataError
from cfiv.numerics.factorisation import Solution, scaled_solution, solve_symmetric
from cfiv.numerics.inputs import check_finite, check_penalties, check_previous, check_shapes, check_weights, penalty_and_anchor

#: An eigenvalue of the Gram matrix below this share of the largest has fewer than about four correct digits.
RESOLVED = 1e-11


@dataclass(frozen=True, kw_only=True)
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
    where digits matter and the rows fit in memory, use ``least_squares.solve(..., method="qr")``. The sums are not centred: a
    column whose mean is 10^p times its standard deviation loses 2 p digits beside a constant, so standardise columns with an
    offset first.
    """

    gram: Tensor
    cross: Tensor
    mass: float

    def __add__(self, other: Moments) -> Moments:
        _check_addable(self, other)
        return Moments(gram=self.gram + other.gram, cross=self.cross + other.cross, mass=self.mass + other.mass)


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
    check_shapes(features=features, targets=targets, weights=weights)
    phi, y = features.detach().double(), targets.detach().double()
    weighted, mass = phi, float(phi.shape[0])
    if weights is not None:
        w = weights.detach().double()
        weighted, mass = phi * w[:, None], check_weights(w)
    return Moments(gram=weighted.mT @ phi, cross=weighted.mT @ y, mass=mass)


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
            total = Moments(gram=batch.gram.clone(), cross=batch.cross.clone(), mass=batch.mass)
        else:
            _check_addable(total, batch)
            total = Moments(gram=total.gram.add_(batch.gram), cross=total.cross.add_(batch.cross), mass=total.mass + batch.mass)
    if total is None:
        raise DataError("no batch of rows to accumulate: got an empty sequence; give at least one batch")
    return total


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
        Where fewer than ``factorisation.TRUSTED_DIGITS`` digits can be trusted; directions that rounding has erased are left
        at the anchor.
    """
    check_penalties(ridge=ridge, proximal=proximal)
    gram, cross = _means(total)
    check_previous(previous, columns=cross.shape[0], targets=cross.shape[1])
    mu, anchor = penalty_and_anchor(
        ridge=ridge, proximal=proximal, previous=None if previous is None else previous.detach(), like=cross
    )
    return solve_symmetric(gram=gram, right=cross if anchor is None else cross - gram @ anchor, mu=mu, anchor=anchor)


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
    :func:`cfiv.numerics.least_squares.solve` gives the final answer.
    """
    check_penalties(**{f"ridges[{i}]": ridge for i, ridge in enumerate(ridges)})
    gram, cross = _means(total)
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(gram)
    penalised = values + torch.tensor(ridges, dtype=values.dtype, device=values.device)[:, None]
    path: Tensor = vectors @ ((vectors.mT @ cross) / penalised[:, :, None])
    for i in (penalised[:, 0] <= RESOLVED * values[-1]).nonzero().flatten().tolist():
        path[i] = scaled_solution(gram=gram, right=cross, mu=ridges[i])[0]
    return path


def predict_with_each(solutions: Tensor, *, features: Tensor) -> Tensor:
    """``W_r' f`` for several W (r, d, k) at features (n, d), by one product: shape (r, n, k)."""
    r, d, k = solutions.shape
    return (features @ solutions.permute(1, 0, 2).reshape(d, r * k)).view(-1, r, k).transpose(0, 1)


def _means(total: Moments) -> tuple[Tensor, Tensor]:
    """``G / m`` and ``C / m``."""
    if not total.mass > 0:
        raise DataError(f"the row weights must have a positive sum, got {total.mass}: give at least one row a weight > 0")
    check_finite(**{"products of the features": total.gram, "products of features and targets": total.cross})
    return total.gram / total.mass, total.cross / total.mass


def _check_addable(first: Moments, second: Moments) -> None:
    (d, k), (other_d, other_k) = first.cross.shape, second.cross.shape
    if (d, k) != (other_d, other_k):
        raise DataError(
            f"moments must have the same features and targets to add up, got {d} and {other_d} features, {k} and {other_k} "
            "targets: make every batch with the same columns"
        )
