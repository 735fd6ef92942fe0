"""Cross-fitted kernel instrumental variable regression, with a line beside the curve.

``psi`` and ``phi`` may begin with the columns of a line, ``L = [1, x]``, whose penalty is their own: one row's worth of
information, 1/n on the mean loss of standardised columns. Then

    h(x) = b' L(x) + u' psi(x),    penalised by  |b|^2 / n + xi |u|^2,

so that a truth that is a line costs little and nothing pulls its effect to zero; an infinite xi leaves two-stage least squares
on the instruments that stage 1 makes (:mod:`cfiv.numerics.kernel_first_stage`).

A curve alone, without the line, is a candidate too: it knows with fewer directions what instruments cannot tell.

Where columns are many, the curve's features are departures from the line, and only both together are a candidate. Each feature
has a line in it, which stage 1 predicts by as many slopes as there are columns, anew for each fold. Stage 2 takes that noise
for a curve.

Which xi, and which candidate, is said by rows that neither stage has seen. To :data:`cfiv.numerics.kernel_two_stage.Validation`
comes a third loss: with ``v`` what stage 1 leaves of the treatment,

    min_rho  mean (Y - h(X) - rho' v)^2 + |rho|^2 / n    on each fold.

Under confounding the error e leans on v. Where it is linear in v (a linear control function) this loss sees all of h, as the
paper's does, and is not drawn to the confounder. Nothing else rests on that: all candidates are solutions of stage 2.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019. Cross-fitting is after Chernozhukov et al.,
"Double/debiased machine learning", Econometrics Journal 21, 2018; control functions after Newey, Powell, Vella, "Nonparametric
estimation of triangular simultaneous equations models", Econometrica 67, 1999. Lines, candidates and their choice are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from cfiv.numerics.kernel_first_stage import PLAIN, FirstStage, Layout, is_beyond_chance
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Moments
from cfiv.numerics.ridge_path import PenaltyChoice, RidgePath, SquaredError

#: What ``h`` is a sum of.
Family = Literal["line and curve", "curve", "line"]


def fit_across_folds(
    folds: Sequence[Moments],
    *,
    stage1_penalties: Tensor,
    stage2_penalties: Tensor,
    layout: Layout = PLAIN,
    families: Sequence[Family] = ("line and curve", "curve"),
    fallback: bool = False,
) -> KernelTwoStage:
    """Both stages with every row predicted by a first stage that has not seen it, and stage 2 on all rows.

    Each fold k is held out once from both stages: stage 2 is fitted to the other folds j, with predictions of fold j by the
    rows outside j and k, then the loss is taken on fold k. (Of a V_j that has seen the treatments of fold k the loss falls
    again towards penalties that are far too small. Two folds leave no other rows: there j is predicted by k, as sample 2 is by
    sample 1 in the paper.) ``xi`` is beside the mean over all rows; where a fold is missing, the penalty of the *sum* stays
    what it is, as the variance of the noise does.

    Parameters
    ----------
    folds : sequence of Moments
        At least two; their weights sum to one. Without structural moments they are validated at the instruments, which needs
        three of them.
    stage1_penalties, stage2_penalties : Tensor (m,)
        As in :func:`cfiv.numerics.kernel_two_stage.fit_two_samples`. That of a line and of controls in stage 1 is chosen among
        the same by itself.
    layout : Layout
    families : sequence of {"line and curve", "curve"}
        Candidates; a line is in none of them where there is none.
    fallback : bool
        Whether the answer is the line where nothing is better than it on held-out rows by ``ENOUGH`` standard errors.

    Notes
    -----
    A decomposition a fold in stage 1 and one a fold and candidate in stage 2, however many penalties, and Cholesky solves for
    each pair of folds: O(K^2 (p^3 + q^3)).
    """
    first = FirstStage.choose(folds, stage1_penalties, layout)
    outside = [first.outside(k) for k in range(len(folds))]
    first_stages = [first.lined(v) for v in outside]
    everything = _as_mean(reduce(add, (fold.reduced_form.through(v) for fold, v in zip(folds, first_stages, strict=True))))
    fits = _fits_without(first)
    search = _Search(everything, [_held_out(first, k, fits[k], outside=v) for k, v in enumerate(outside)], layout)
    if not layout.treatments:
        families = ("curve",)
    best = min((search.candidate(family, stage2_penalties) for family in families), key=lambda found: found.loss)
    if fallback and layout.treatments:
        line = search.candidate("line", everything.gram.new_tensor([math.inf]))
        if not _is_better(best, line, folds, layout):
            best = replace(line, choice=best.choice)
    return KernelTwoStage(
        first_stage=torch.stack(first_stages).mean(dim=0),
        structural=best.structural,
        stage1=first.choice,
        stage2=best.choice,
        family=best.family,
        unseen=tuple(part.first_stage @ u for part, u in zip(search.held_out, best.held_out, strict=True)),
        without=best.held_out,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _HeldOut:
    """One fold, and stage 2 on the others.

    Parameters
    ----------
    first_stage : Tensor (p, q)
        V that has not seen the fold.
    fit : SquaredError
        Of Y on ``V' phi`` on the other folds.
    fold : SquaredError
        What is compared with the outcome: Y on ``psi``, or on ``V' phi``.
    on_controls : Tensor (q + 1, c)
        ``sum w psi v'``, and in the last row ``sum w Y v'``.
    controls : Tensor (c, c)
        ``sum w v v'``.
    """

    first_stage: Tensor
    fit: SquaredError
    fold: SquaredError
    on_controls: Tensor
    controls: Tensor


def _fits_without(first: FirstStage) -> list[SquaredError]:
    """Stage 2 on all folds but each, with predictions that have not seen it."""
    sums: dict[int, SquaredError] = {}
    for j, k, v in first.pairs():
        part = first.folds[j].reduced_form.through(v)
        sums[k] = sums[k] + part if k in sums else part
    return [_as_mean(sums[k]) for k in range(len(first.folds))]


def _held_out(first: FirstStage, k: int, fit: SquaredError, *, outside: Tensor) -> _HeldOut:
    """Fold k beside the fit to the others, and V of the rows outside it with its controls."""
    fold, v = first.folds[k], first.lined(outside, held_out=k)
    if fold.structural is None:
        none = v.new_zeros(v.shape[1] + 1, 0)
        return _HeldOut(first_stage=v, fit=fit, fold=fold.reduced_form.through(v), on_controls=none, controls=none[:0])
    width = v.shape[1]
    w = outside[:, width:]
    psi, outcome, cross = fold.structural.gram, fold.structural.right, fold.first_stage.right
    leaning = w.mT @ cross
    on_controls = torch.cat(
        [psi[:width, width:] - leaning[:, :width].mT, (outcome[width:] - w.mT @ fold.instrument_outcome).mT]
    )
    among = psi[width:, width:] - leaning[:, width:] - leaning[:, width:].mT + w.mT @ fold.first_stage.gram @ w
    psi_on_outcome = fold.structural.columns(torch.arange(width))
    return _HeldOut(first_stage=v, fit=fit, fold=psi_on_outcome, on_controls=on_controls, controls=among)


def _as_mean(some: SquaredError) -> SquaredError:
    """A sum over some folds, taken as a mean: beside it a penalty weighs as it does beside the mean over all rows."""
    return replace(some, weight=1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Candidate:
    """Stage 2 on some columns of ``psi``: ``u`` on all of them, zero on others, at the best penalty; and without each fold."""

    family: Family
    structural: Tensor
    held_out: tuple[Tensor, ...]
    choice: PenaltyChoice

    @property
    def loss(self) -> float:
        """The lowest on held-out rows."""
        return float(self.choice.losses.min())


@dataclass(frozen=True, eq=False)
class _Search:
    """Stage 2 on all rows, and on all but each fold."""

    everything: SquaredError
    held_out: Sequence[_HeldOut]
    layout: Layout

    def candidate(self, family: Family, penalties: Tensor) -> _Candidate:
        """The best penalty of a family."""
        columns = self._columns(family)
        losses = torch.zeros_like(penalties)
        paths = [self._path(part.fit, columns) for part in self.held_out]
        for part, path in zip(self.held_out, paths, strict=True):
            losses += path.losses(part.fold.columns(columns).through(path.basis), penalties)
            # Of the residuals Y - h(X) on the controls. Each fold has a slope of its own: so has each h.
            on_controls = part.on_controls[-1:] - path.paths(penalties).mT @ part.on_controls[columns]
            controls = part.controls.clone()
            controls.diagonal().add_(self.layout.penalty)
            losses -= (on_controls * torch.linalg.solve(controls, on_controls.mT).mT).sum(dim=1)
        choice = PenaltyChoice(penalties=penalties, losses=losses)
        paths.insert(0, self._path(self.everything, columns))
        structural, *held_out = (self._spread(path.weights(choice.chosen)[:, 0], columns=columns) for path in paths)
        return _Candidate(family=family, structural=structural, held_out=tuple(held_out), choice=choice)

    def _spread(self, weights: Tensor, *, columns: Tensor) -> Tensor:
        """On all columns of ``psi``, zero where it has no part."""
        return torch.zeros_like(self.everything.right[:, 0]).index_copy(0, columns, weights)

    def _path(self, sample: SquaredError, columns: Tensor) -> RidgePath:
        leading = int((columns < self.layout.treatments).sum())
        return RidgePath.factor(sample.columns(columns), leading=leading, own=self.layout.penalty)

    def _columns(self, family: Family) -> Tensor:
        everything = torch.arange(len(self.everything.right))
        line = self.layout.treatments
        if family == "line":
            return everything[:line]
        if family == "line and curve":
            return everything
        return torch.cat([everything[: int(self.layout.constant)], everything[line:]])


def _is_better(candidate: _Candidate, line: _Candidate, folds: Sequence[Moments], layout: Layout) -> bool:
    """Whether its held-out loss is lower by more than chance."""
    difference = candidate.structural - line.structural
    held_out = reduce(add, (fold.structural for fold in folds if fold.structural is not None))
    gram = held_out.gram[: len(difference), : len(difference)]
    square = float(difference @ gram @ difference)
    return is_beyond_chance(line.loss - candidate.loss, loss=candidate.loss, square=square, rows=1.0 / layout.penalty)
