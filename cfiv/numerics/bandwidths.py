"""Bandwidths of Gaussian kernels by the median heuristic.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019, appendix A.5.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

#: Rows among which distances are taken for a median: two million distances.
MEDIAN_ROWS = 2000


def median_bandwidth(points: Tensor, *, generator: np.random.Generator) -> float:
    """The median heuristic: ``median_{i < l} |x_i - x_l|`` of one input.

    Parameters
    ----------
    points : Tensor (n, d)
        The rows of one input: one column, or the pixels of an image.
    generator : Generator
        Draws ``MEDIAN_ROWS`` rows where there are more. It is not touched where there are not.

    Returns
    -------
    float
        In the unit of the input. Where half of the pairs or more are equal (a rare category), the median of the distances that
        are positive; 0 only where all points are equal.

    Notes
    -----
    Costs O(MEDIAN_ROWS^2 d). The fallback for ties is ours.
    """
    rows = points.double()
    # In a unit, a power of two, in which no square vanishes or overflows.
    unit = math.frexp(float(rows.abs().max()))[1]
    rows = torch.ldexp(rows, torch.tensor(-unit))
    if len(rows) > MEDIAN_ROWS:
        drawn = rows[torch.from_numpy(np.sort(generator.choice(len(rows), MEDIAN_ROWS, replace=False)))]
        # Of a very rare category the draw may hold none.
        rows = drawn if bool((drawn != drawn[0]).any()) else torch.unique(rows, dim=0)[:MEDIAN_ROWS]
    distances = torch.pdist(rows)
    middle = float(np.median(distances.numpy())) if len(distances) else 0.0
    if middle > 0:
        return math.ldexp(middle, unit)
    positive = distances[distances > 0]
    return math.ldexp(float(np.median(positive.numpy())), unit) if len(positive) else 0.0
