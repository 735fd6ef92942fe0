"""Bandwidths of Gaussian kernels for many columns: small where a function turns, large where it is straight or does not care.

A regression of targets on a line and a kernel is fitted with the bandwidths

    b_j = factor m_j / sqrt(r_j),    sum_j r_j = 1,

``m_j`` the median distances. It starts from equal ``r_j``, or from some that are given; then each is the share of column j in
the squared gradients of what the fit adds to a line (after its own least-squares line), in units of ``m_j``; and so on a few
times. Columns that do not matter fade. The factor, the ridge penalty and the turn to stop at have the highest restricted
likelihood. Where many columns matter alike, small factors are left out: all rows would be strangers.

References
----------
Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in neural networks and backpropagation-free machine
learning models", Science 383, 2024, for weights from gradients; the line beside them and the choice by likelihood are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfiv.numerics.kernels import kernel_matrix
from cfiv.numerics.landmarks import KernelFeatures, LineColumns, LinedFeatures
from cfiv.numerics.ridge_path import RidgePath, SquaredError

#: Rows that are looked at, and landmarks among them.
ROWS, LANDMARKS = 1500, 200
#: Factors of the median distances, and how often weights are taken from gradients.
FACTORS, TURNS = (0.125, 0.25, 0.5, 1.0, 2.0), 4
#: Ridge penalties on the mean loss.
PENALTIES = torch.logspace(-9, 2, 45, dtype=torch.float64)
#: The least weight of a column.
FAINT = 1e-6


def relevant_bandwidths(
    points: Tensor,
    *,
    targets: Tensor,
    weights: Tensor,
    medians: Tensor,
    columns: LineColumns,
    generator: np.random.Generator,
    start: Tensor | None = None,
) -> Tensor:
    """The bandwidths for functions like the regression of targets on points.

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
    start : Tensor (d,), optional
        Bandwidths whose shares are tried beside equal ones.

    Returns
    -------
    Tensor (d,)

    Notes
    -----
    O(ROWS LANDMARKS^2) a fit, some fourteen fits a start.
    """
    rows = torch.from_numpy(np.sort(generator.choice(len(points), min(len(points), ROWS), replace=False)))
    points, targets, weights = points[rows], targets[rows], weights[rows]
    landmarks = points[torch.from_numpy(np.sort(generator.choice(len(points), min(len(points), LANDMARKS), replace=False)))]
    starts = [torch.ones_like(medians)] if start is None else [torch.ones_like(medians), (medians / start).square()]
    turns = [
        fit
        for first in starts
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
    return min(turns, key=lambda fit: fit.evidence).features.kernel.bandwidths


def _turns(
    points: Tensor,
    *,
    shares: Tensor,
    targets: Tensor,
    weights: Tensor,
    landmarks: Tensor,
    medians: Tensor,
    columns: LineColumns,
) -> Iterator[_Fit]:
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


@dataclass(frozen=True, eq=False, kw_only=True)
class _Fit:
    """A regression at its likeliest penalty: weights (p, k) of the features, and the line (l, p) in the kernel's features."""

    evidence: float
    features: LinedFeatures
    weights: Tensor
    line: Tensor


def _fit(
    points: Tensor, *, targets: Tensor, weights: Tensor, landmarks: Tensor, bandwidths: Tensor, columns: LineColumns
) -> _Fit:
    features = LinedFeatures(columns, KernelFeatures.of_landmarks(landmarks, bandwidths=bandwidths))
    values, w = features(points), weights[:, None] / weights.sum()
    square = (w * targets.square()).sum(dim=0)
    sample = SquaredError(gram=values.mT @ (w * values), right=values.mT @ (w * targets), square=float(square.sum()))
    path = RidgePath.factor(sample, leading=len(columns), own=1.0 / len(points))
    evidence = path.evidence(square=square, rows=len(points), penalties=PENALTIES)
    least = int(evidence.argmin())
    at = len(columns)
    first = sample.gram[:at, :at].clone()
    first.diagonal().add_(1.0 / len(points))
    line = torch.linalg.solve(first, sample.gram[:at, at:])
    return _Fit(evidence=float(evidence[least]), features=features, weights=path.weights(float(PENALTIES[least])), line=line)


def _shares(fit: _Fit, points: Tensor, *, weights: Tensor, medians: Tensor) -> Tensor:
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
