"""Ridge regressions on mean losses, for many penalties from one factorisation.

A sample enters through its :class:`SquaredError` alone, a quadratic in the weights W (d, k):

    sum_i w_i |y_i - W' f_i|^2 = square - 2 <W, R> + <W, G W>,    G = sum w f f',  R = sum w f y'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def columns(self, features: Tensor) -> SquaredError:
        """The same of some of the features, by their indices."""
        return replace(self, gram=self.gram[features][:, features], right=self.right[features])

    def of(self, targets: Tensor, *, square: float) -> SquaredError:
        """The same of some of the targets, by their indices, and their ``sum w |y|^2``."""
        return replace(self, right=self.right[:, targets], square=square)

    def minimiser(self, penalty: float | Tensor) -> Tensor:
        """``argmin_W mean squared error + penalty |W|^2``, (d, k), for a penalty > 0, or one a feature; O(d^3 + d^2 k)."""
        penalised = self.gram.clone()
        penalised.diagonal().add_(penalty * self.weight)
        return torch.cholesky_solve(self.right, torch.linalg.cholesky(penalised))


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgePath:
    """``W(mu) = argmin_W mean squared error + mu |W|^2`` for any penalty, from one decomposition.

    Leading features may have a penalty of their own, whatever ``mu``. In a basis M in which ``G`` and both penalties are
    diagonal, ``W(mu) = M diag(1 / (s + mu)) M' R``, without ``mu`` for the leading ones. Without such features M is
    orthogonal.

    Parameters
    ----------
    values : Tensor (d,)
        ``s`` of the mean, with rounding below zero put to zero; of leading features with their penalty.
    basis : Tensor (d, d)
        ``M``.
    rotated : Tensor (d, k)
        ``M' R`` of the mean.
    leading : int
        Features whose penalty is their own.
    """

    values: Tensor
    basis: Tensor
    rotated: Tensor
    leading: int = 0

    @classmethod
    def factor(cls, sample: SquaredError, *, leading: int = 0, own: float = 0.0) -> RidgePath:
        """Decompose the Gram matrix of a sample; O(d^3).

        Parameters
        ----------
        sample : SquaredError
        leading : int
            Features that come first and have the penalty ``own`` > 0: the others are taken as what is left of them.
        own : float
        """
        gram, at = sample.gram / sample.weight, leading
        first = gram[:at, :at].clone()
        first.diagonal().add_(own)
        on_first = torch.linalg.solve(first, gram[:at, at:])
        left = gram[at:, at:] - gram[:at, at:].mT @ on_first
        own_values, own_vectors = torch.linalg.eigh(first)
        values, vectors = torch.linalg.eigh(left)
        basis = torch.zeros_like(gram)
        basis[:at, :at], basis[at:, at:] = own_vectors, vectors
        basis[:at, at:] = -on_first @ vectors
        return cls(
            values=torch.cat([own_values, values.clamp(min=0.0)]),
            basis=basis,
            rotated=basis.mT @ (sample.right / sample.weight),
            leading=leading,
        )

    def of(self, targets: Tensor) -> RidgePath:
        """The same of some of the targets, by their indices."""
        return replace(self, rotated=self.rotated[:, targets])

    def shares(self, penalties: Tensor) -> Tensor:
        """``1 / (s + mu)``, shape (d, m), for penalties (m,); an infinite one leaves nothing but the leading features."""
        own = (1.0 / self.values[: self.leading, None]).expand(-1, len(penalties))
        return torch.cat([own, 1.0 / (self.values[self.leading :, None] + penalties[None, :])])

    def weights(self, penalty: float) -> Tensor:
        """``W(mu)``, shape (d, k), for a penalty > 0 on the mean squared error; O(d^2 k)."""
        return self.basis @ (self.rotated * self.shares(self.values.new_tensor([penalty])))

    def paths(self, penalties: Tensor) -> Tensor:
        """``W(mu)`` of the first target for each penalty, shape (d, m); O(d^2 m)."""
        return self.basis @ (self.rotated[:, :1] * self.shares(penalties))

    def losses(self, other: SquaredError, penalties: Tensor) -> Tensor:
        """The squared error of ``W(mu)`` on another sample, for all penalties at once.

        With ``rho = 1 / (s + mu)``, ``A = M' R``, ``B = M' R_other`` and ``C = M' G_other M`` it is
        ``square - 2 sum_k rho_k <A_k, B_k> + sum_kl rho_k rho_l C_kl <A_k, A_l>``: O(d^2 k) once, then O(d^2) a penalty.

        Parameters
        ----------
        other : SquaredError
            Of the other rows in this basis, ``sample.through(path.basis)``: a sum with their weight, not divided by it.
        penalties : Tensor (m,)
            Each > 0.

        Returns
        -------
        Tensor (m,)
        """
        shares = self.shares(penalties)
        linear = (self.rotated * other.right).sum(dim=1)
        quadratic = other.gram * (self.rotated @ self.rotated.mT)
        return other.square - 2.0 * (linear @ shares) + (shares * (quadratic @ shares)).sum(dim=0)

    def evidence(self, *, square: Tensor, rows: float, penalties: Tensor) -> Tensor:
        """``-2 log`` of the restricted likelihood of ``mu``, up to a constant, the noise of each target profiled out.

        The weights of all but the leading features are normal with variance ``noise / (rows mu)``, one ``mu`` for all targets.

        Parameters
        ----------
        square : Tensor (k,)
            Mean square of each target.
        rows : float
        penalties : Tensor (m,)

        Returns
        -------
        Tensor (m,)

        Notes
        -----
        A leading feature costs a degree of freedom; at least one is left. O(d k m).
        """
        left = square[:, None] - self.rotated.square().mT @ self.shares(penalties)
        freedom = max(1.0, rows - self.leading)
        determinant = torch.log1p(self.values[self.leading :, None] / penalties[None, :]).sum(dim=0)
        tiny = torch.finfo(left.dtype).eps
        return freedom * left.clamp(min=tiny).log().sum(dim=0) + self.rotated.shape[1] * determinant


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
