"""Cross-fitted kernel instrumental variable regression, with a line beside the curve.

``psi`` and ``phi`` may begin with the columns of a line, ``L = [1, x]``, whose penalty is their own: one row's worth of
information, 1/n on the mean loss of standardised columns. Then

    h(x) = b' L(x) + u' psi(x),    penalised by  |b|^2 / n + xi |u|^2,

so that a truth that is a line costs little and nothing pulls its effect to zero; an infinite xi leaves two-stage least squares
on the instruments that stage 1 makes. These predictions of L are regressed on once more, ``L ~ C' V' phi``: noise in V then makes
them imprecise, not too small. (The predictions of ``psi`` are left as they are. Their noise pulls the curve towards the line.)

A curve alone, without the line, is a candidate too: it knows with fewer directions what instruments cannot tell.

Which xi, and which candidate, is said by rows that neither stage has seen. To :data:`cfiv.numerics.kernel_two_stage.Validation`
comes a third loss: with ``v`` what stage 1 leaves of the treatment,

    min_rho  mean (Y - h(X) - rho' v)^2.

Under confounding the error e leans on v. Where it is linear in v (a linear control function) this loss sees all of h, as the paper's
does, and is not drawn to the confounder. Nothing else rests on that: all candidates are solutions of stage 2.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019. Cross-fitting is after Chernozhukov et al.,
"Double/debiased machine learning", Econometrics Journal 21, 2018; control functions after Newey, Powell, Vella, "Nonparametric
estimation of triangular simultaneous equations models", Econometrica 67, 1999. Lines, candidates and their choice are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from cfiv.numerics.kernel_two_stage import KernelTwoStage, Moments
from cfiv.numerics.ridge_path import PenaltyChoice, RidgePath, SquaredError

#: Standard errors by which a curve must be better than the line on held-out rows.
ENOUGH = 1.0

#: Share of their mean square that is added to Gram matrices of predictions and of controls, which may be collinear.
COLLINEAR = 1e-9


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the columns of a line and controls are.

    Parameters
    ----------
    instruments, treatments : int
        Leading columns of ``phi`` and of ``psi`` that are a line's; zero without one.
    constant : bool
        Whether the first is a constant.
    controls : int
        Trailing columns of ``psi``.
    penalty : float
        Of a line's coefficients, on the mean loss.
    """

    instruments: int = 0
    treatments: int = 0
    constant: bool = False
    controls: int = 0
    penalty: float = 0.0


PLAIN = Layout()

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
    first = _FirstStage.choose(folds, stage1_penalties, layout)
    predicted = [first.outside(k) for k in range(len(folds))]
    calibration = _calibration(folds, predicted, layout)
    first_stages = [_calibrated(v, calibration=calibration, layout=layout) for v in predicted]
    held_out = [_held_out(first, k, predicted=predicted[k], calibration=calibration) for k in range(len(folds))]
    everything = _stage2(folds, range(len(folds)), first_stages)
    width = len(everything.right)
    search = _Search(everything, held_out, layout)
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
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _FirstStage:
    """Stage 1 with its penalties: of a line and controls, and of the features of a kernel."""

    folds: Sequence[Moments]
    layout: Layout
    choice: PenaltyChoice
    of_line: float

    @classmethod
    def choose(cls, folds: Sequence[Moments], penalties: Tensor, layout: Layout) -> _FirstStage:
        """By the losses of each fold's predictions by the others."""
        kernel, others = _targets(folds[0].first_stage, layout)
        losses, losses_of_line = torch.zeros_like(penalties), torch.zeros_like(penalties)
        for k, fold in enumerate(folds):
            path = RidgePath.factor(_outside(folds, k), leading=layout.instruments, own=layout.penalty)
            losses += path.of(kernel).losses(fold.first_stage.of(kernel, square=fold.first_stage.square), penalties)
            if layout.treatments:
                losses_of_line += path.of(others).losses(fold.first_stage.of(others, square=0.0), penalties)
        choice = PenaltyChoice(penalties=penalties, losses=losses)
        of_line = PenaltyChoice(penalties=penalties, losses=losses_of_line).chosen if layout.treatments else choice.chosen
        return cls(folds=folds, layout=layout, choice=choice, of_line=of_line)

    def outside(self, *without: int) -> Tensor:
        """V of the rows outside some folds, controls included; (p, q + c)."""
        sample = _outside(self.folds, *without)
        if not self.layout.treatments:
            return sample.minimiser(self.choice.chosen)
        kernel, others = _targets(sample, self.layout)
        v = torch.empty_like(sample.right)
        for targets, penalty in ((kernel, self.choice.chosen), (others, self.of_line)):
            v[:, targets] = sample.of(targets, square=0.0).minimiser(self._penalties(sample, penalty))
        return v

    def _penalties(self, sample: SquaredError, penalty: float) -> Tensor:
        penalties = sample.gram.new_full((len(sample.gram),), penalty)
        penalties[: self.layout.instruments] = self.layout.penalty
        return penalties


def _targets(sample: SquaredError, layout: Layout) -> tuple[Tensor, Tensor]:
    """Of stage 1: the features of the kernel, and the line with the controls."""
    targets = torch.arange(sample.right.shape[1])
    end = len(targets) - layout.controls
    return targets[layout.treatments : end], torch.cat([targets[: layout.treatments], targets[end:]])


@dataclass(frozen=True, eq=False, kw_only=True)
class _HeldOut:
    """One fold, and stage 2 on the others.

    Parameters
    ----------
    fit : SquaredError
        Of Y on ``V' phi`` on the other folds.
    fold : SquaredError
        What is compared with the outcome: Y on ``psi``, or on ``V' phi``.
    on_controls : Tensor (q + 1, c)
        ``sum w psi v'``, and in the last row ``sum w Y v'``.
    controls : Tensor (c, c)
        ``sum w v v'``.
    """

    fit: SquaredError
    fold: SquaredError
    on_controls: Tensor
    controls: Tensor


def _held_out(first: _FirstStage, k: int, *, predicted: Tensor, calibration: Tensor) -> _HeldOut:
    """Fold k, and stage 2 on the others with predictions that have seen neither it nor their own fold."""
    folds, layout = first.folds, first.layout
    rest = [j for j in range(len(folds)) if j != k]
    unseeing = (first.outside(j) if len(folds) == 2 else first.outside(j, k) for j in rest)
    fit = _stage2(folds, rest, (_calibrated(v, calibration=calibration, layout=layout) for v in unseeing))
    fold, width = folds[k], predicted.shape[1] - layout.controls
    if fold.structural is None:
        held_out = fold.reduced_form.through(_calibrated(predicted, calibration=calibration, layout=layout))
        return _HeldOut(
            fit=fit, fold=held_out, on_controls=predicted.new_zeros(width + 1, 0), controls=predicted.new_zeros(0, 0)
        )
    psi, w = torch.arange(width), predicted[:, width:]
    treatments, cross = fold.structural.gram, fold.first_stage.right
    on_controls = torch.cat([treatments[:width, width:] - cross[:, :width].mT @ w, _on_outcome(fold, w, width)])
    leaning = w.mT @ cross[:, width:]
    controls = treatments[width:, width:] - leaning - leaning.mT + w.mT @ fold.first_stage.gram @ w
    return _HeldOut(fit=fit, fold=fold.structural.columns(psi), on_controls=on_controls, controls=controls)


def _on_outcome(fold: Moments, w: Tensor, width: int) -> Tensor:
    """``sum w Y v'``, shape (1, c)."""
    assert fold.structural is not None
    return (fold.structural.right[width:] - w.mT @ fold.instrument_outcome).mT


def _calibration(folds: Sequence[Moments], predicted: Sequence[Tensor], layout: Layout) -> Tensor:
    """C of the regression of the line's columns on their predictions, over all folds."""
    line = slice(0, layout.treatments)
    parts = zip(folds, predicted, strict=True)
    sample = reduce(
        add, (fold.first_stage.of(torch.arange(layout.treatments), square=0.0).through(v[:, line]) for fold, v in parts)
    )
    sample = replace(sample, weight=1.0)
    return sample.minimiser(COLLINEAR * sample.gram.diagonal().clamp(min=COLLINEAR))


def _calibrated(predicted: Tensor, *, calibration: Tensor, layout: Layout) -> Tensor:
    """V without the controls, its line's columns made predictions of least squares."""
    at = layout.treatments
    return torch.cat([predicted[:, :at] @ calibration, predicted[:, at : predicted.shape[1] - layout.controls]], dim=1)


def _stage2(folds: Sequence[Moments], which: Iterable[int], first_stages: Iterable[Tensor]) -> SquaredError:
    """Of Y on ``V_j' phi`` on some folds, as a sum: beside it a penalty weighs as it does beside the mean over all rows."""
    parts = (folds[j].reduced_form.through(v) for j, v in zip(which, first_stages, strict=True))
    return replace(reduce(add, parts), weight=1.0)


def _outside(folds: Sequence[Moments], *without: int) -> SquaredError:
    """Of stage 1 on the rows outside some folds: a sum, since a difference has no digits left where one fold weighs most."""
    return reduce(add, (fold.first_stage for i, fold in enumerate(folds) if i not in without))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Candidate:
    """Stage 2 on some columns of ``psi``: ``u`` on all of them, zero on others, at the best penalty."""

    family: Family
    structural: Tensor
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
        on_controls, controls = penalties.new_zeros(len(penalties), self.layout.controls), penalties.new_zeros(())
        for part in self.held_out:
            path = self._path(part.fit, columns)
            losses += path.losses(part.fold.columns(columns), penalties)
            # Of the residuals Y - h(X) on the controls.
            on_controls += part.on_controls[-1:] - path.paths(penalties).mT @ part.on_controls[columns]
            controls = controls + part.controls
        if self.layout.controls:
            controls.diagonal().add_(COLLINEAR * controls.diagonal().clamp(min=COLLINEAR))
            losses -= (on_controls * torch.linalg.solve(controls, on_controls.mT).mT).sum(dim=1)
        choice = PenaltyChoice(penalties=penalties, losses=losses)
        structural = torch.zeros_like(self.everything.right[:, 0])
        structural[columns] = self._path(self.everything, columns).weights(choice.chosen)[:, 0]
        return _Candidate(family=family, structural=structural, choice=choice)

    def _path(self, sample: SquaredError, columns: Tensor) -> RidgePath:
        leading = int((columns < self.layout.treatments).sum())
        return RidgePath.factor(sample.columns(columns), leading=leading, own=self.layout.penalty)

    def _columns(self, family: Family) -> Tensor:
        everything = torch.arange(len(self.everything.right))
        line = self.layout.treatments
        if family == "line":
            return everything[:line]
        return (
            everything
            if family == "line and curve"
            else torch.cat([everything[: int(self.layout.constant)], everything[line:]])
        )


def _is_better(candidate: _Candidate, line: _Candidate, folds: Sequence[Moments], layout: Layout) -> bool:
    """Whether its held-out loss is lower by more than chance.

    Two functions that differ by ``d`` have losses that differ by ``mean d^2 - 2 mean e d``, with a standard error of
    ``2 sqrt(loss mean d^2 / n)``.
    """
    difference = candidate.structural - line.structural
    loss, gain = float(candidate.choice.losses.min()), float(line.choice.losses.min() - candidate.choice.losses.min())
    held_out = reduce(add, (fold.structural for fold in folds if fold.structural is not None))
    gram = held_out.gram[: len(difference), : len(difference)]
    square = float(difference @ gram @ difference)
    return gain > ENOUGH * 2.0 * math.sqrt(max(loss, 0.0) * square * layout.penalty)
