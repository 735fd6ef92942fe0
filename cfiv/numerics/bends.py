"""Along which columns a function bends, one column at a time: splines of it, and its products with some others, beside a line.

Of ``r``, what a line leaves of the targets, q further columns ``H``, themselves taken beyond the line, explain the share

    s = r'H (H'H)^-1 H'r / r'r.

Of mere noise n s is about a chi-square of q degrees of freedom, which is beyond ``q + 2 sqrt(q l) + 2 l`` with a probability of
at most ``exp(-l)``. With l the logarithm of the number of columns about one of them is, by chance; what is beyond that counts.

However many columns there are, each is seen as if it were the only one; a kernel of all of them sees none.

References
----------
Laurent, Massart, "Adaptive estimation of a quadratic functional by model selection", Annals of Statistics 28, 2000, lemma 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfiv.numerics.landmarks import LineColumns

#: Knots of the splines: quantiles of a column. Between them they are straight.
KNOTS = (0.2, 0.4, 0.6, 0.8)
#: What is added to Gram matrices of columns that are of the order of one: those of a column with two values vanish.
COLLINEAR = 1e-9


def bends(points: Tensor, *, targets: Tensor, weights: Tensor, columns: LineColumns, leading: int) -> Tensor:
    """The share of the residuals of a line that each column explains beyond chance, summed over the targets.

    Parameters
    ----------
    points : Tensor (n, d)
        Standardised.
    targets : Tensor (n, k)
    weights : Tensor (n,)
        Of rows, >= 0.
    columns : LineColumns
        The line, with penalty 1/n.
    leading : int
        Columns that come first, whose products with every other column are looked at. What a product explains is of both.

    Returns
    -------
    Tensor (d,)
        Each >= 0; zero where nothing is seen.

    Notes
    -----
    O(n d (d + leading d)).
    """
    line = _Line(columns(points), weights=weights)
    residuals = line.beyond(targets)
    freedom = max(1.0, line.rows - len(columns))
    knots = torch.quantile(points, points.new_tensor(KNOTS), dim=0)
    found = torch.zeros_like(points[0])
    for j, column in enumerate(points.mT):
        curves = line.beyond((column[:, None] - knots[:, j]).clamp(min=0.0))
        found[j] = _beyond_chance(
            line.explained(residuals, by=curves[None]), degrees=len(KNOTS), of=len(found), freedom=freedom
        )
    centred = points - points.mean(dim=0)
    for a in range(leading):
        products = line.beyond(centred[:, a, None] * centred[:, a + 1 :])
        explained = line.explained(residuals, by=products.mT[:, :, None])
        together = _beyond_chance(explained, degrees=1, of=len(found), freedom=freedom)
        found[a + 1 :] += together
        found[a] += together.sum()
    return found


class _Line:
    """Regressions on the columns (n, l) of a line."""

    def __init__(self, values: Tensor, *, weights: Tensor) -> None:
        self._values, self._shares = values, (weights / weights.sum())[:, None]
        gram = values.mT @ (self._shares * values)
        gram.diagonal().add_(1.0 / len(values))
        self._factor = torch.linalg.cholesky(gram)
        #: Rows that count: fewer than there are where weights differ.
        self.rows = 1.0 / float(self._shares.square().sum())

    def beyond(self, some: Tensor) -> Tensor:
        """What the line leaves of (n, k)."""
        right = self._values.mT @ (self._shares * some)
        left: Tensor = some - self._values @ torch.cholesky_solve(right, self._factor)
        return left

    def explained(self, residuals: Tensor, *, by: Tensor) -> Tensor:
        """The share of residuals (n, k) that is explained by each of g groups of columns (g, n, q), shape (g, k)."""
        weighted = self._shares * by
        right = weighted.mT @ residuals
        gram = weighted.mT @ by
        gram.diagonal(dim1=-2, dim2=-1).add_(COLLINEAR)
        square = (self._shares * residuals.square()).sum(dim=0)
        explained: Tensor = (right * torch.linalg.solve(gram, right)).sum(dim=-2)
        return explained / square.clamp(min=torch.finfo(square.dtype).tiny)


def _beyond_chance(explained: Tensor, *, degrees: int, of: int, freedom: float) -> Tensor:
    """Of shares (g, k), what is beyond chance where so many columns are looked at, summed over the targets."""
    log = math.log(of)
    chance = degrees + 2.0 * math.sqrt(degrees * log) + 2.0 * log
    beyond: Tensor = (explained - chance / freedom).clamp(min=0.0).sum(dim=-1)
    return beyond
