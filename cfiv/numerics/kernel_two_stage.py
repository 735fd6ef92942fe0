"""Kernel instrumental variable regression: both stages over a path of penalties, from one factorisation each.

With features ``phi`` of instruments and covariates and ``psi`` of treatments and covariates whose inner products are the
kernels, stage 1 on sample 1 and stage 2 on sample 2 are ridge regressions on *mean* losses (row weights w sum to one in either
sample),

    V(lambda) = argmin_V  sum_1 w_i |psi(X_i) - V' phi(Z_i)|^2 + lambda |V|^2
    u(xi)     = argmin_u  sum_2 w_j (Y_j - u' V' phi(Z_j))^2   + xi |u|^2          h(x) = u' psi(x).

With every row of sample 1 as a landmark this is Algorithm 1 of the paper, whose penalties multiply sums: with n and m rows,
``W = K_XX (K_ZZ + n lambda I)^-1 K_ZZ~`` and ``h(x) = alpha' K_Xx``, ``alpha = (W W' + m xi K_XX)^-1 W Y~``.

Both losses and both solutions need means over the samples only, so rows come in blocks and memory does not grow with them.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019, Algorithm 1 and appendix A.5. The form in
features, the path and the row weights are our own algebra.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cfiv.numerics.kernels import KernelFeatures, blocks


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted means over the rows of one sample, float64.

    Parameters
    ----------
    instrument : Tensor (p, p)
        ``sum w phi phi'``.
    treatment : Tensor (q, q)
        ``sum w psi psi'``.
    cross : Tensor (p, q)
        ``sum w phi psi'``.
    instrument_outcome, treatment_outcome : Tensor (p, 1), (q, 1)
        ``sum w phi Y`` and ``sum w psi Y``.
    outcome : float
        ``sum w Y^2``.
    """

    instrument: Tensor
    treatment: Tensor
    cross: Tensor
    instrument_outcome: Tensor
    treatment_outcome: Tensor
    outcome: float


def sample_moments(
    *,
    instruments: Tensor,
    treatments: Tensor,
    outcome: Tensor,
    instrument_features: KernelFeatures,
    treatment_features: KernelFeatures,
    weights: Tensor | None = None,
) -> Moments:
    """Moments of one sample.

    Parameters
    ----------
    instruments : Tensor (n, q + p)
        Instruments and covariates.
    treatments : Tensor (n, k + p)
        Treatments and covariates.
    outcome : Tensor (n, 1)
    instrument_features, treatment_features : KernelFeatures
        ``phi`` and ``psi``.
    weights : Tensor (n,), optional
        Row weights >= 0 with a positive sum; equal by default.

    Notes
    -----
    O(n r^2) for r landmarks; besides the result, memory for a few blocks of rows.
    """
    p, q = len(instrument_features), len(treatment_features)
    w = outcome.new_ones(len(outcome)) if weights is None else weights
    root = (w / w.sum()).sqrt()[:, None]
    moments = outcome.new_zeros(p + q + 1, p + q + 1)
    for rows in blocks(len(outcome), len(instrument_features.landmarks)):
        phi, psi = instrument_features(instruments[rows]), treatment_features(treatments[rows])
        stacked = torch.cat([phi, psi, outcome[rows]], dim=1).mul_(root[rows])
        moments.addmm_(stacked.mT, stacked)
    return Moments(
        instrument=moments[:p, :p],
        treatment=moments[p:-1, p:-1],
        cross=moments[:p, p:-1],
        instrument_outcome=moments[:p, -1:],
        treatment_outcome=moments[p:-1, -1:],
        outcome=float(moments[-1, -1]),
    )


@dataclass(frozen=True, eq=False)
class RidgePath:
    """``W(mu) = (G + mu I)^-1 R`` for any penalty, from one eigendecomposition ``G = U diag(s) U'``.

    Parameters
    ----------
    values : Tensor (d,)
        ``s``, with rounding below zero put to zero.
    vectors : Tensor (d, d)
        ``U``.
    rotated : Tensor (d, k)
        ``U' R``.
    """

    values: Tensor
    vectors: Tensor
    rotated: Tensor

    @classmethod
    def factor(cls, *, gram: Tensor, right: Tensor) -> RidgePath:
        """Decompose a Gram matrix (d, d) of mean products beside its right-hand side (d, k); O(d^3)."""
        values, vectors = torch.linalg.eigh(gram)
        return cls(values.clamp(min=0.0), vectors, vectors.mT @ right)

    def weights(self, penalty: float) -> Tensor:
        """``W(mu)``, shape (d, k), for a penalty > 0 on the mean squared error; O(d^2 k)."""
        return self.vectors @ (self.rotated / (self.values + penalty)[:, None])

    def losses(self, *, gram: Tensor, right: Tensor, square: float, penalties: Tensor) -> Tensor:
        """``sum_j w_j |y_j - W(mu)' f_j|^2`` on other rows, for all penalties at once.

        With ``rho = 1 / (s + mu)``, ``A = U' R``, ``B = U' R_other`` and ``C = U' G_other U`` it is
        ``square - 2 sum_k rho_k <A_k, B_k> + sum_kl rho_k rho_l C_kl <A_k, A_l>``: O(d^3 + d^2 k) once, then O(d^2) a penalty.

        Parameters
        ----------
        gram, right : Tensor (d, d), (d, k)
            ``G_other`` and ``R_other``, the mean products of the other rows.
        square : float
            Their ``sum_j w_j |y_j|^2``.
        penalties : Tensor (m,)
            Each > 0.

        Returns
        -------
        Tensor (m,)
        """
        shares = 1.0 / (self.values[:, None] + penalties[None, :])
        linear = (self.rotated * (self.vectors.mT @ right)).sum(dim=1)
        quadratic = (self.vectors.mT @ gram @ self.vectors) * (self.rotated @ self.rotated.mT)
        return square - 2.0 * (linear @ shares) + (shares * (quadratic @ shares)).sum(dim=0)


@dataclass(frozen=True, eq=False)
class PenaltyChoice:
    """A path of penalties, the out-of-sample loss of each, and the one with the lowest."""

    penalties: Tensor
    losses: Tensor

    @property
    def chosen(self) -> float:
        """The penalty with the lowest loss; of equals the first."""
        return float(self.penalties[int(self.losses.argmin())])


@dataclass(frozen=True, eq=False)
class KernelTwoStage:
    """What both stages found.

    Parameters
    ----------
    first_stage : Tensor (p, q)
        ``V``: ``V' phi(z)`` predicts ``psi(x)``.
    structural : Tensor (q,)
        ``u``: ``h(x) = u' psi(x)``.
    stage1, stage2 : PenaltyChoice
        The losses of the penalties that were tried.
    """

    first_stage: Tensor
    structural: Tensor
    stage1: PenaltyChoice
    stage2: PenaltyChoice


def kernel_two_stage(
    *, sample1: Moments, sample2: Moments, stage1_penalties: Tensor, stage2_penalties: Tensor
) -> KernelTwoStage:
    """Both stages, each at the penalty of the lowest out-of-sample loss.

    ``lambda`` minimises ``sum_2 w |psi(X) - V(lambda)' phi(Z)|^2``, stage 1's loss on sample 2; then, at that V, ``xi``
    minimises ``sum_1 w (Y - h(X))^2``, stage 2's loss on sample 1 as the paper's authors compute it.

    Parameters
    ----------
    sample1, sample2 : Moments
    stage1_penalties, stage2_penalties : Tensor (m,)
        Values of lambda and xi to choose from, each > 0, on the mean loss.

    Notes
    -----
    Two eigendecompositions in all, O(p^3 + q^3), however many penalties.
    """
    first = RidgePath.factor(gram=sample1.instrument, right=sample1.cross)
    # |psi(x)|^2 = k(x, x) = 1: what the landmarks do not span of it is part of the loss, whatever the penalty.
    losses = first.losses(gram=sample2.instrument, right=sample2.cross, square=1.0, penalties=stage1_penalties)
    stage1 = PenaltyChoice(stage1_penalties, losses)
    v = first.weights(stage1.chosen)
    second = RidgePath.factor(gram=v.mT @ sample2.instrument @ v, right=v.mT @ sample2.instrument_outcome)
    losses = second.losses(
        gram=sample1.treatment, right=sample1.treatment_outcome, square=sample1.outcome, penalties=stage2_penalties
    )
    stage2 = PenaltyChoice(stage2_penalties, losses)
    return KernelTwoStage(v, second.weights(stage2.chosen)[:, 0], stage1, stage2)
