"""Kernel instrumental variable regression: both stages, cross-fitted or on two samples, over paths of penalties.

With features ``phi`` of instruments and covariates and ``psi`` of treatments and covariates whose inner products are the
kernels, both stages are ridge regressions on *mean* losses (of weighted rows where rows have weights),

    V(lambda) = argmin_V  mean |psi(X) - V' phi(Z)|^2 + lambda |V|^2
    u(xi)     = argmin_u  mean (Y - u' V' phi(Z))^2   + xi |u|^2          h(x) = u' psi(x).

On the rows of its own stage 1 the prediction ``V' phi(Z)`` leans to ``psi(X)``, and with it to the confounder. So no row may
be predicted by a V that has seen it. Two ways:

* two samples: V from sample 1, u from sample 2. With every row of sample 1 as a landmark this is Algorithm 1 of the paper,
  whose penalties multiply sums: with n and m rows, ``W = K_XX (K_ZZ + n lambda I)^-1 K_ZZ~`` and ``h(x) = alpha' K_Xx``,
  ``alpha = (W W' + m xi K_XX)^-1 W Y~``.
* cross-fitting: V_k from the rows outside fold k predicts ``psi`` on fold k, for every fold; u from all rows at once.

The penalty of either stage has the lowest loss on rows that the stage was not fitted to. For ``xi`` there are two losses,
:data:`Validation`. With ``E[e | Z] = 0``,

    mean (Y - h(X))^2       = mean (h_true - h)^2(X)           + 2 mean e (h_true - h)(X) + mean e^2
    mean (Y - E[h | Z])^2   = mean (E[h_true - h | Z])^2       + a constant.

The first, the paper's, sees all of h, but under confounding its second term favours an h that fits the confounder. That moves
xi and no more, since all candidates are solutions of stage 2. The second has no such term, but is blind to whatever in h the
instruments do not move: it is flat where h is already far off, and least at too small a xi.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019, Algorithm 1 and appendix A.5. The form in
features, the paths, the row weights and the cross-fitting (after Chernozhukov et al., "Double/debiased machine learning",
Econometrics Journal 21, 2018) are our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cfiv.numerics.kernels import blocks
from cfiv.numerics.landmarks import Features, LinedFeatures
from cfiv.numerics.ridge_path import PenaltyChoice, RidgePath, SquaredError

#: What is compared with the outcome of held-out rows when xi is chosen: ``h(T, X)`` with controls for the confounder beside it,
#: ``h(T, X)`` alone, or ``E[h | Z, X]``.
Validation = Literal["control", "treatment", "instruments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What both stages need of some rows, as sums with the rows' shares of all weights. Parts of a sample add up.

    Parameters
    ----------
    first_stage : SquaredError
        Of ``psi`` on ``phi``: G (p, p), R (p, q). Controls count among the last columns of ``psi``.
    instrument_outcome : Tensor (p, 1)
        ``sum w phi Y``.
    structural : SquaredError or None
        Of Y on ``psi``: G (q, q), R (q, 1). Only where it is asked for.
    outcome : float
        ``sum w Y^2``.
    """

    first_stage: SquaredError
    instrument_outcome: Tensor
    structural: SquaredError | None
    outcome: float

    @property
    def reduced_form(self) -> SquaredError:
        """Of Y on ``phi``."""
        return SquaredError(
            gram=self.first_stage.gram, right=self.instrument_outcome, square=self.outcome, weight=self.first_stage.weight
        )


def sample_moments(
    *,
    instruments: Tensor,
    treatments: Tensor,
    outcome: Tensor,
    weights: Tensor,
    instrument_features: Features,
    treatment_features: Features,
    structural: bool,
    controls: Tensor | None = None,
) -> Moments:
    """Moments of some rows.

    Parameters
    ----------
    instruments : Tensor (n, q + p)
        Instruments and covariates.
    treatments : Tensor (n, k + p)
        Treatments and covariates.
    outcome : Tensor (n, 1)
    weights : Tensor (n,)
        The rows' shares, >= 0: of a whole sample they sum to one.
    instrument_features, treatment_features : Features
        ``phi`` and ``psi``.
    structural : bool
        Whether the moments of Y on ``psi`` are wanted.
    controls : Tensor (n, c), optional
        Further columns that stage 1 predicts: they come after ``psi``.

    Notes
    -----
    O(n r^2) for r landmarks; besides the result, memory for a few blocks of rows.
    """
    p, q = len(instrument_features), len(treatment_features) + (0 if controls is None else controls.shape[1])
    gram, cross, right = (outcome.new_zeros(p, width) for width in (p, q, 1))
    departures, square = _departures(treatment_features), 0.0
    treatment_gram, treatment_right = (outcome.new_zeros(q if structural else 0, width) for width in (q, 1))
    for rows in blocks(rows=len(outcome), columns=max(p, q)):
        w = weights[rows, None]
        phi, psi, y = instrument_features(instruments[rows]), treatment_features(treatments[rows]), w * outcome[rows]
        if controls is not None:
            psi = torch.cat([psi, controls[rows]], dim=1)
        right.addmm_(phi.mT, y)
        if departures is not None:
            square += float((w * psi[:, departures].square()).sum())
        if structural:
            treatment_right.addmm_(psi.mT, y)
            treatment_gram.addmm_(psi.mT, w * psi)
        weighted = (w * phi).mT
        gram.addmm_(weighted, phi)
        cross.addmm_(weighted, psi)
    weight, outcome_square = float(weights.sum()), float((weights[:, None] * outcome.square()).sum())
    return Moments(
        # |psi(x)|^2 = k(x, x) = 1: what the landmarks do not span of it is part of the loss, whatever the penalty.
        first_stage=SquaredError(gram=gram, right=cross, square=weight if departures is None else square, weight=weight),
        instrument_outcome=right,
        structural=SquaredError(gram=treatment_gram, right=treatment_right, square=outcome_square, weight=weight)
        if structural
        else None,
        outcome=outcome_square,
    )


def _departures(features: Features) -> slice | None:
    """The columns that are departures from a line; None where the kernel's features are as they are."""
    if isinstance(features, LinedFeatures) and features.line is not None:
        return slice(len(features.columns), len(features))
    return None


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelTwoStage:
    """What both stages found.

    Parameters
    ----------
    first_stage : Tensor (p, q)
        ``V``: ``V' phi(z)`` predicts ``psi(x)``; the mean over the folds where there are folds.
    structural : Tensor (q,)
        ``u``: ``h(x) = u' psi(x)``.
    stage1, stage2 : PenaltyChoice
        The losses of the penalties that were tried, means over the rows that they were taken on.
    family : {"curve", "line and curve", "line"}
        What ``h`` is a sum of: see :mod:`cfiv.numerics.kernel_cross_fitting`.
    unseen, without : tuple of Tensor (p,), of Tensor (q,)
        ``V u`` and ``u`` of each fold, by rows outside it alone, at the penalties chosen; none of two samples.
    """

    first_stage: Tensor
    structural: Tensor
    stage1: PenaltyChoice
    stage2: PenaltyChoice
    family: str = "curve"
    unseen: tuple[Tensor, ...] = ()
    without: tuple[Tensor, ...] = ()


def fit_two_samples(
    *, sample1: Moments, sample2: Moments, stage1_penalties: Tensor, stage2_penalties: Tensor
) -> KernelTwoStage:
    """Algorithm 1 of the paper, penalties chosen as in its appendix A.5.

    ``lambda`` minimises stage 1's loss on sample 2; then, at that V, ``xi`` minimises ``mean_1 (Y - h(X))^2``.

    Parameters
    ----------
    sample1, sample2 : Moments
        Each with a weight of one; the first with its structural moments.
    stage1_penalties, stage2_penalties : Tensor (m,)
        Values of lambda and xi to choose from, each > 0, on the mean loss.

    Notes
    -----
    Two eigendecompositions in all, O(p^3 + q^3), however many penalties.
    """
    assert sample1.structural is not None
    first = RidgePath.factor(sample1.first_stage)
    stage1 = PenaltyChoice(
        penalties=stage1_penalties, losses=first.losses(sample2.first_stage.through(first.basis), stage1_penalties)
    )
    v = first.weights(stage1.chosen)
    second = RidgePath.factor(sample2.reduced_form.through(v))
    stage2 = PenaltyChoice(
        penalties=stage2_penalties, losses=second.losses(sample1.structural.through(second.basis), stage2_penalties)
    )
    return KernelTwoStage(first_stage=v, structural=second.weights(stage2.chosen)[:, 0], stage1=stage1, stage2=stage2)
