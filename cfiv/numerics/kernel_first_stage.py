"""Stage 1 of cross-fitted kernel instrumental variable regression, of kernels and of lines.

``V`` predicts ``psi`` on a fold from the other folds. Where ``psi`` begins with the columns of a line, L, these have a penalty
of their own, and either of two predictions:

* by lines in the instruments and covariates, from all rows: those of two-stage least squares. This is so unless curves
  predict held-out rows better by more than chance.
* by curves, from the other folds, regressed on once more over all rows, ``L ~ C' V' phi``: noise in V then makes them
  imprecise, not too small.

The predictions of a kernel's features are left as they are. Their noise pulls the curve towards the line. Most of it comes from
lines in many instruments and covariates: of features that are departures from a line, these lines may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from operator import add

import torch
from torch import Tensor

from cfiv.numerics.kernel_two_stage import Moments
from cfiv.numerics.ridge_path import PenaltyChoice, RidgePath, SquaredError

#: Standard errors by which a curve must be better than a line on held-out rows.
ENOUGH = 1.0

#: Share of their mean square that is added to Gram matrices of predictions, which may be collinear.
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
        Of coefficients of a line or of controls, on the mean loss: 1/n, one row's worth of information.
    departures : bool
        Whether the kernel's features in ``psi`` are departures from the line, which curves alone may predict.
    """

    instruments: int = 0
    treatments: int = 0
    constant: bool = False
    controls: int = 0
    penalty: float = 0.0
    departures: bool = False


PLAIN = Layout()


@dataclass(frozen=True, eq=False, kw_only=True)
class FirstStage:
    """Stage 1 with its penalties.

    Parameters
    ----------
    folds : sequence of Moments
    layout : Layout
    choice : PenaltyChoice
        Of the features of a kernel.
    of_line : float
        The penalty for the line and controls; infinite where lines predict them.
    calibration : Tensor (l, l)
        ``C``, the identity where lines predict.
    alone : bool
        Whether the features of a kernel are predicted by those of a kernel and a constant, without a line.
    """

    folds: Sequence[Moments]
    layout: Layout
    choice: PenaltyChoice
    of_line: float
    calibration: Tensor
    alone: bool = False

    @classmethod
    def choose(cls, folds: Sequence[Moments], penalties: Tensor, layout: Layout) -> FirstStage:
        """By the losses of each fold's predictions by the others."""
        kernel, others = _targets(folds[0].first_stage, layout)
        straight = penalties.new_tensor([math.inf])
        losses, losses_of_line, of_straight = torch.zeros_like(penalties), torch.zeros_like(penalties), torch.zeros(1).double()
        for k, fold in enumerate(folds):
            path = RidgePath.factor(_outside(folds, k), leading=layout.instruments, own=layout.penalty)
            seen = fold.first_stage.through(path.basis)
            losses += path.of(kernel).losses(seen.of(kernel, square=seen.square), penalties)
            if layout.treatments:
                # Standardised columns: each has a mean square of one.
                of_line = seen.of(others, square=seen.weight * len(others))
                losses_of_line += path.of(others).losses(of_line, penalties)
                of_straight += path.of(others).losses(of_line, straight)
        choice, alone = PenaltyChoice(penalties=penalties, losses=losses), False
        if layout.departures:
            without = _losses_alone(folds, penalties, layout)
            alone = bool(without.min() < losses.min())
            choice = PenaltyChoice(penalties=penalties, losses=without) if alone else choice
        identity = torch.eye(layout.treatments, dtype=penalties.dtype)
        first = cls(folds=folds, layout=layout, choice=choice, of_line=choice.chosen, calibration=identity, alone=alone)
        if not layout.treatments:
            return first
        curved = PenaltyChoice(penalties=penalties, losses=losses_of_line)
        first = replace(first, of_line=curved.chosen)
        loss, gain = float(curved.losses.min()), float(of_straight - curved.losses.min())
        square = sum(first._square_of_curves(k) for k in range(len(folds)))
        if is_beyond_chance(gain, loss=loss, square=square, rows=1.0 / layout.penalty):
            return replace(first, calibration=first._calibrated())
        return replace(first, of_line=math.inf)

    def outside(self, *without: int) -> Tensor:
        """V of the rows outside some folds, by curves, controls included; (p, q + c)."""
        sample = _outside(self.folds, *without)
        if not self.layout.treatments:
            return sample.minimiser(self.choice.chosen)
        kernel, others = _targets(sample, self.layout)
        v = torch.empty_like(sample.right)
        v[:, kernel] = self._curves_alone(sample, kernel) if self.alone else self._minimiser(sample, kernel, self.choice.chosen)
        v[:, others] = self._minimiser(sample, others, self.of_line)
        return v

    def lined(self, v: Tensor, *, held_out: int | None = None) -> Tensor:
        """V (p, q) without its controls, its line by straight lines of all rows that are not held out, or calibrated."""
        at, end = self.layout.treatments, v.shape[1] - self.layout.controls
        if math.isinf(self.of_line):
            sample = _outside(self.folds, *(() if held_out is None else (held_out,)))
            line = self._lines(sample, torch.arange(at))
        else:
            line = v[:, :at] @ self.calibration
        return torch.cat([line, v[:, at:end]], dim=1)

    def pairs(self) -> Iterator[tuple[int, int, Tensor]]:
        """Of all j and k: V (p, q) that predicts fold j while k is held out, from the rows outside both.

        That of (j, k) and of (k, j) is the same but for its line. Of two folds each predicts the other.
        """
        for pair in combinations(range(len(self.folds)), 2):
            both = self.outside(*pair) if len(self.folds) > 2 else None
            for j, k in (pair, pair[::-1]):
                yield j, k, self.lined(self.outside(j) if both is None else both, held_out=k)

    def _minimiser(self, sample: SquaredError, targets: Tensor, penalty: float) -> Tensor:
        if math.isinf(penalty):
            return self._lines(sample, targets)
        penalties = sample.gram.new_full((len(sample.gram),), penalty)
        penalties[: self.layout.instruments] = self.layout.penalty
        return sample.of(targets, square=0.0).minimiser(penalties)

    def _curves_alone(self, sample: SquaredError, targets: Tensor) -> Tensor:
        """V without the line's columns of ``phi``."""
        used = _without_line(sample, self.layout)
        penalties = sample.gram.new_full((len(used),), self.choice.chosen)
        penalties[: int(self.layout.constant)] = self.layout.penalty
        v = sample.gram.new_zeros(len(sample.gram), len(targets))
        v[used] = sample.of(targets, square=0.0).columns(used).minimiser(penalties)
        return v

    def _lines(self, sample: SquaredError, targets: Tensor) -> Tensor:
        """V of the line's columns of ``phi`` alone."""
        leading = torch.arange(self.layout.instruments)
        v = sample.gram.new_zeros(len(sample.gram), len(targets))
        v[leading] = sample.of(targets, square=0.0).columns(leading).minimiser(self.layout.penalty)
        return v

    def _square_of_curves(self, k: int) -> float:
        """``sum w d^2`` of the differences between curves and lines that predict fold k."""
        sample = _outside(self.folds, k)
        _, others = _targets(sample, self.layout)
        difference = self._minimiser(sample, others, self.of_line) - self._lines(sample, others)
        return float((difference * (self.folds[k].first_stage.gram @ difference)).sum())

    def _calibrated(self) -> Tensor:
        """C of the regression of the line's columns on their predictions, over all folds."""
        line = torch.arange(self.layout.treatments)
        parts = (
            fold.first_stage.of(line, square=0.0).through(self._minimiser(_outside(self.folds, k), line, self.of_line))
            for k, fold in enumerate(self.folds)
        )
        sample = replace(reduce(add, parts), weight=1.0)
        return sample.minimiser(COLLINEAR * sample.gram.diagonal().clamp(min=COLLINEAR))


def _losses_alone(folds: Sequence[Moments], penalties: Tensor, layout: Layout) -> Tensor:
    """Of a kernel's features, predicted by the kernel of ``phi`` and a constant: of each fold by the others."""
    losses = torch.zeros_like(penalties)
    used, (kernel, _) = _without_line(folds[0].first_stage, layout), _targets(folds[0].first_stage, layout)
    for k, fold in enumerate(folds):
        sample = _outside(folds, k).of(kernel, square=0.0).columns(used)
        path = RidgePath.factor(sample, leading=int(layout.constant), own=layout.penalty)
        seen = fold.first_stage.of(kernel, square=fold.first_stage.square).columns(used)
        losses += path.losses(seen.through(path.basis), penalties)
    return losses


def is_beyond_chance(gain: float, *, loss: float, square: float, rows: float) -> bool:
    """Whether a held-out loss is lower than another by more than ``ENOUGH`` standard errors.

    The losses of two functions that differ by d differ by ``mean d^2 - 2 mean e d``, with a standard error of
    ``2 sqrt(loss mean d^2 / rows)``.
    """
    return gain > ENOUGH * 2.0 * math.sqrt(max(loss, 0.0) * max(square, 0.0) / rows)


def _targets(sample: SquaredError, layout: Layout) -> tuple[Tensor, Tensor]:
    """Of stage 1: the features of the kernel, and the line with the controls."""
    targets = torch.arange(sample.right.shape[1])
    end = len(targets) - layout.controls
    return targets[layout.treatments : end], torch.cat([targets[: layout.treatments], targets[end:]])


def _without_line(sample: SquaredError, layout: Layout) -> Tensor:
    """The columns of ``phi`` but for the line's slopes."""
    columns = torch.arange(len(sample.gram))
    return torch.cat([columns[: int(layout.constant)], columns[layout.instruments :]])


def _outside(folds: Sequence[Moments], *without: int) -> SquaredError:
    """Of stage 1 on the rows outside some folds: a sum, since a difference has no digits left where one fold weighs most."""
    return reduce(add, (fold.first_stage for i, fold in enumerate(folds) if i not in without))
