"""Bandwidths of Gaussian kernels for many columns: small where a function turns, large where it is straight or does not care.

A regression of targets on a line and a kernel is fitted with the bandwidths

    b_j = factor m_j / sqrt(r_j),    sum_j r_j = 1,

``m_j`` the median distances. It starts from equal ``r_j``, or from some that are given; then each is the share of column j in
the squared gradients of what the fit adds to a line (after its own least-squares line), in units of ``m_j``; and so on a few
times. Columns that do not matter fade. The factor, the ridge penalty and the turn to stop at have the highest restricted
likelihood. Where many columns matter alike, small factors are left out: all rows would be strangers.

So they are where columns are many and their ``r_j`` equal: such a fit is a line, and its gradients are noise. Of more than
:data:`MANY` columns there is a start from what each of them shows by itself (:mod:`cfiv.numerics.bends`).

References
----------
Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in neural networks and backpropagation-free machine
learning models", Science 383, 2024, for weights from gradients; the line beside them and the choice by likelihood are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cfiv.numerics.bends import bends
from cfiv.numerics.kernels import KernelExpansion, kernel_matrix
from cfiv.numerics.landmarks import KernelFeatures, LineColumns, LinedFeatures, line_of
from cfiv.numerics.ridge_path import RidgePath, SquaredError

#: More columns than so many are many.
MANY = 3
#: Rows that are looked at, and landmarks among them.
ROWS, LANDMARKS = 1500, 200
#: Factors of the median distances, and how often weights are taken from gradients.
FACTORS, TURNS = (0.125, 0.25, 0.5, 1.0, 2.0), 4
#: Ridge penalties on the mean loss.
PENALTIES = torch.logspace(-9, 2, 45, dtype=torch.float64)
#: The least weight of a column.
FAINT = 1e-6
#: Of many columns, the share of a start that those have which show nothing by themselves.
ELSEWHERE = 0.1


def relevant_fit(
    points: Tensor,
    *,
    targets: Tensor,
    weights: Tensor,
    medians: Tensor,
    columns: LineColumns,
    generator: np.random.Generator,
    leading: int,
    starts: Sequence[Tensor] = (),
) -> RelevantFit:
    """The regression of targets on points with the bandwidths for functions like it.

    Parameters
    ----------
    points : Tensor (n, d)
    targets : Tensor (n, k)
        Of unit variance, each with its own regression.
    weights : Tensor (n,)
        Of rows, equal in mean to one.
    medians : Tensor (d,)
        Median distances of the columns.
    columns : LineColumns
        The line, with penalty 1/n.
    generator : Generator
        Draws the rows and the landmarks.
    leading : int
        Columns that come first, treatments or instruments: of many columns, products of these with all others are looked at.
    starts : sequence of Tensor (d,)
        Bandwidths whose shares are tried beside equal ones.

    Notes
    -----
    O(ROWS LANDMARKS^2) a fit, some fourteen fits a start, and of many columns O(ROWS d^2) for what each shows by itself.
    """
    rows = torch.from_numpy(np.sort(generator.choice(len(points), min(len(points), ROWS), replace=False)))
    points, targets, weights = points[rows], targets[rows], weights[rows]
    landmarks = points[torch.from_numpy(np.sort(generator.choice(len(points), min(len(points), LANDMARKS), replace=False)))]
    shares = [torch.ones_like(medians), *((medians / start).square() for start in starts)]
    if len(medians) > MANY:
        found = bends(points, targets=targets, weights=weights, columns=columns, leading=leading)
        if bool(found.any()):
            shares.append((1.0 - ELSEWHERE) * found / found.sum() + ELSEWHERE / len(found))
    turns = [
        fit
        for first in shares
        for fit in _turns(
            points,
            shares=first / first.sum(),
            targets=targets,
            weights=weights,
            landmarks=landmarks,
            medians=medians,
            columns=columns,
        )
    ]
    return min(turns, key=lambda fit: fit.evidence)


@dataclass(frozen=True, eq=False, kw_only=True)
class RelevantFit:
    """A regression on a line and a kernel at its likeliest penalty.

    Parameters
    ----------
    evidence : float
        ``-2 log`` of the restricted likelihood.
    features : LinedFeatures
    weights : Tensor (p, k)
        Of the features.
    line : Tensor (l, p - l)
        In the kernel's features.
    """

    evidence: float
    features: LinedFeatures
    weights: Tensor
    line: Tensor

    @property
    def bandwidths(self) -> Tensor:
        """Of the columns (d,)."""
        return self.features.kernel.bandwidths

    def departure(self) -> KernelExpansion:
        """What the fit of the first target adds to its least-squares line."""
        weights = self.weights[:, 0].clone()
        weights[: len(self.features.columns)] = 0.0
        return replace(self.features, line=self.line).expansion(weights)


def _turns(
    points: Tensor,
    *,
    shares: Tensor,
    targets: Tensor,
    weights: Tensor,
    landmarks: Tensor,
    medians: Tensor,
    columns: LineColumns,
) -> Iterator[RelevantFit]:
    """The likeliest fit of each turn."""
    factors: tuple[float, ...] = FACTORS
    for _ in range(TURNS):
        # Columns that matter alike.
        alike = 1.0 / float(shares.square().sum())
        tried = [factor for factor in factors if factor >= FACTORS[0] * math.sqrt(alike)] or [FACTORS[-1]]
        fits = {
            factor: _fit(
                points,
                targets=targets,
                weights=weights,
                landmarks=landmarks,
                bandwidths=factor * medians / shares.sqrt(),
                columns=columns,
            )
            for factor in tried
        }
        factor, fit = min(fits.items(), key=lambda item: item[1].evidence)
        yield fit
        shares = _shares(fit, points, weights=weights, medians=medians)
        at = FACTORS.index(factor)
        factors = FACTORS[max(0, at - 1) : at + 2]


def _fit(
    points: Tensor, *, targets: Tensor, weights: Tensor, landmarks: Tensor, bandwidths: Tensor, columns: LineColumns
) -> RelevantFit:
    features = LinedFeatures(columns, KernelFeatures.of_landmarks(landmarks, bandwidths=bandwidths))
    values, w = features(points), weights[:, None] / weights.sum()
    square = (w * targets.square()).sum(dim=0)
    sample = SquaredError(gram=values.mT @ (w * values), right=values.mT @ (w * targets), square=float(square.sum()))
    path = RidgePath.factor(sample, leading=len(columns), own=1.0 / len(points))
    evidence = path.evidence(square=square, rows=len(points), penalties=PENALTIES)
    least = int(evidence.argmin())
    line = line_of(sample.gram, at=len(columns), rows=len(points))
    return RelevantFit(
        evidence=float(evidence[least]), features=features, weights=path.weights(float(PENALTIES[least])), line=line
    )


def _shares(fit: RelevantFit, points: Tensor, *, weights: Tensor, medians: Tensor) -> Tensor:
    """Of each column in the squared gradients of what the fits add to lines."""
    columns, kernel = fit.features.columns, fit.features.kernel
    squares = torch.zeros_like(medians)
    kernels = kernel_matrix(points, kernel.landmarks, bandwidths=kernel.bandwidths)
    for own in fit.weights[len(columns) :].mT:
        c = kernel.expansion(own).coefficients[:, None]
        gradients = (kernels @ (c * kernel.landmarks) - points * (kernels @ c)) / kernel.bandwidths.square()
        gradients -= columns.line(fit.line @ own).slopes
        squares += (weights[:, None] * (gradients * medians).square()).mean(dim=0)
    total = squares.sum()
    if not bool(total > 0):
        return torch.full_like(medians, 1.0 / len(medians))
    floored = squares / total + FAINT
    shares: Tensor = floored / floored.sum()
    return shares
