"""Ridge regressions on mean losses, for many penalties from one factorisation.

A sample enters through its :class:`SquaredError` alone, a quadratic in the weights W (d, k):

    sum_i w_i |y_i - W' f_i|^2 = square - 2 <W, R> + <W, G W>,    G = sum w f f',  R = sum w f y'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class SquaredError:
    """The squared error of linear predictions on one sample, as a function of the weights W (d, k).

    Parameters
    ----------
    gram : Tensor (d, d)
        ``G = sum w f f'``.
    right : Tensor (d, k)
        ``R = sum w f y'``.
    square : float
        ``sum w |y|^2``.
    weight : float
        ``sum w``: one for a mean, a share for a part of a sample.
    """

    gram: Tensor
    right: Tensor
    square: float
    weight: float = 1.0

    def __add__(self, other: SquaredError) -> SquaredError:
        return SquaredError(
            gram=self.gram + other.gram,
            right=self.right + other.right,
            square=self.square + other.square,
            weight=self.weight + other.weight,
        )

    def through(self, first_stage: Tensor) -> SquaredError:
        """The same of features ``V' f`` for V (d, q); O(d^2 q)."""
        v = first_stage
        return SquaredError(gram=v.mT @ (self.gram @ v), right=v.mT @ self.right, square=self.square, weight=self.weight)

    def minimiser(self, penalty: float) -> Tensor:
        """``argmin_W mean squared error + penalty |W|^2``, shape (d, k), for one penalty > 0; O(d^3 + d^2 k)."""
        penalised = self.gram.clone()
        penalised.diagonal().add_(penalty * self.weight)
        return torch.cholesky_solve(self.right, torch.linalg.cholesky(penalised))


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgePath:
    """``W(mu) = argmin_W mean squared error + mu |W|^2`` for any penalty, from one ``G = U diag(s) U'``.

    Parameters
    ----------
    values : Tensor (d,)
        ``s`` of the mean, with rounding below zero put to zero.
    vectors : Tensor (d, d)
        ``U``.
    rotated : Tensor (d, k)
        ``U' R`` of the mean.
    """

    values: Tensor
    vectors: Tensor
    rotated: Tensor

    @classmethod
    def factor(cls, sample: SquaredError) -> RidgePath:
        """Decompose the Gram matrix of a sample; O(d^3)."""
        values, vectors = torch.linalg.eigh(sample.gram)
        return cls(
            values=(values / sample.weight).clamp(min=0.0), vectors=vectors, rotated=(vectors.mT @ sample.right) / sample.weight
        )

    def weights(self, penalty: float) -> Tensor:
        """``W(mu)``, shape (d, k), for a penalty > 0 on the mean squared error; O(d^2 k)."""
        return self.vectors @ (self.rotated / (self.values + penalty)[:, None])

    def losses(self, other: SquaredError, penalties: Tensor) -> Tensor:
        """The squared error of ``W(mu)`` on another sample, for all penalties at once.

        With ``rho = 1 / (s + mu)``, ``A = U' R``, ``B = U' R_other`` and ``C = U' G_other U`` it is
        ``square - 2 sum_k rho_k <A_k, B_k> + sum_kl rho_k rho_l C_kl <A_k, A_l>``: O(d^3 + d^2 k) once, then O(d^2) a penalty.

        Parameters
        ----------
        other : SquaredError
            Of the other rows, a sum with their weight (not divided by it).
        penalties : Tensor (m,)
            Each > 0.

        Returns
        -------
        Tensor (m,)
        """
        shares = 1.0 / (self.values[:, None] + penalties[None, :])
        linear = (self.rotated * (self.vectors.mT @ other.right)).sum(dim=1)
        quadratic = (self.vectors.mT @ other.gram @ self.vectors).mul_(self.rotated @ self.rotated.mT)
        return other.square - 2.0 * (linear @ shares) + (shares * (quadratic @ shares)).sum(dim=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class PenaltyChoice:
    """A path of penalties, the out-of-sample loss of each, and the one with the lowest."""

    penalties: Tensor
    losses: Tensor

    @property
    def chosen(self) -> float:
        """The penalty with the lowest loss; of equals the first."""
        return float(self.penalties[int(self.losses.argmin())])

    def slope(self) -> float:
        """Where the lowest loss is at an end of several penalties: the share of it by which it falls a decade towards that end.

        Zero for a minimum inside, and for a single penalty.
        """
        order = self.penalties.argsort()
        penalties, losses = self.penalties[order], self.losses[order]
        best = int(losses.argmin())
        if len(losses) < 2 or 0 < best < len(losses) - 1:
            return 0.0
        next_to_it = 1 if best == 0 else best - 1
        decades = abs(float(torch.log10(penalties[next_to_it] / penalties[best])))
        if decades == 0:
            return 0.0
        return float(losses[next_to_it] / losses[best] - 1.0) / decades
