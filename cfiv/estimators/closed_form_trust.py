"""What a fit without training knows of its worth: by the line, and by rows that parts of it have not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfiv.data import IVData
from cfiv.estimators.components import Component
from cfiv.estimators.nesting import LearnedFunction, spread, treatment_parts
from cfiv.estimators.smooth_model import SmoothModel
from cfiv.estimators.trust import HeldOut, Trust


def closed_form_trust(
    data: IVData,
    component: Component,
    *,
    is_line: bool = False,
    unseen: Sequence[LearnedFunction] = (),
) -> Trust:
    """Held-out losses beside those of a constant and of two-stage least squares, strength, and what is left to the instruments.

    Parameters
    ----------
    data : IVData
    component : Component
        ``h``.
    is_line : bool
        Whether it is one.
    unseen : sequence of LearnedFunction
        A fit without each fold; no losses, and no noise of a curve, where there are none.

    Notes
    -----
    O(n (p + q)^2) for the columns of a smooth basis, once for all rows and once for those unseen.
    """
    line = SmoothModel.fit(data, np.random.default_rng(0), products=False, curves=False)  # no fold is used
    if line is None:
        return Trust(identified=data.treatment.ndim > 2)
    losses: dict[str, Any] = _losses(data, line, unseen) if unseen else {}
    unit = float(line.outcome_scale.scale[0])  # in which no square leaves float64
    own = float(np.sqrt(np.mean((treatment_parts(data, [component]) / unit) ** 2)))
    left = line.left(component.evaluate(data.treatment, data.covariates))
    return Trust(
        **losses,
        line=is_line,
        strength=line.strength(),
        noise=line.noise() if is_line else _noise(data, unseen),
        left=left / own if own else (math.inf if left else 0.0),
    )


def _losses(data: IVData, line: SmoothModel, unseen: Sequence[LearnedFunction]) -> dict[str, float]:
    """In units of the outcome's standard deviation, so that no square leaves float64."""
    parts = []
    for function in unseen:
        rows, reduced_form = function.unseen, function.reduced_form
        others = line.without(rows)
        at = data.instruments[rows], None if data.covariates is None else data.covariates[rows]
        outcome, predict = data.outcome[rows], others.reduced_form()
        parts.append([outcome - reduced_form(*at), outcome - others.outcome_mean(), outcome - predict(*at)])
    answer, constant, straight = np.concatenate(parts, axis=1) / float(line.outcome_scale.scale[0])
    rows = np.concatenate([function.unseen for function in unseen])
    groups = rows if data.clusters is None else np.unique(data.clusters, return_inverse=True)[1][rows]
    weights = np.ones(len(rows)) if data.weights is None else data.weights[rows] / data.weights.mean()
    return HeldOut(constant, straight, weights, groups).losses(answer)


def _noise(data: IVData, unseen: Sequence[LearnedFunction]) -> float:
    """The jackknife's variance of what treatments do to ``h``, by fits without each fold, over its square; nan without."""
    if not unseen:
        return math.nan
    folds = len(unseen)
    return spread(treatment_parts(data, [function.component for function in unseen]), times=(folds - 1) / folds)
