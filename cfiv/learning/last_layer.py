"""Last layers as pieces: previous weights in, new weights out. Penalties act on the mean squared error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from cfiv.numerics.last_layer import Solve
from cfiv.numerics.least_squares import solve_step


class LastLayer(Protocol):
    """What a training step asks of a last layer: a closed form that remembers the weights it came from."""

    def after(self, previous: Tensor | None) -> Solve:
        """The solve that continues from ``previous`` weights (d, k), or starts where they are None."""
        ...


@dataclass(frozen=True)
class Proximal:
    """``argmin_W mean |y - W' phi|^2 + ridge |W|^2 + lam |W - W_prev|^2``: small steps away from what earlier batches said.

    With ``lam = 0`` it is the ridge layer, which forgets every batch but the last. With a ``gain`` below 1 only that share of
    the way from W_prev to the minimiser is gone: gains that fall like 1/t let the weights settle at those of all batches.

    References
    ----------
    Galashov et al., arXiv 2510.04606, "l2 c.f. proximal" and "l2 c.f. ridge".
    """

    lam: float
    ridge: float = 0.0
    gain: float = 1.0

    def after(self, previous: Tensor | None) -> Solve:
        """The penalised solve that is pulled to ``previous``."""
        # Without a past there is nothing to stay close to; pulling the first batch to zero would only bias it.
        lam = 0.0 if previous is None else self.lam
        solve = partial(solve_step, ridge=self.ridge, proximal=lam, previous=previous)
        if previous is None or self.gain == 1.0:
            return solve

        def part_of_the_way(*, features: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
            return previous + self.gain * (solve(features=features, targets=targets, weights=weights) - previous)

        return part_of_the_way


@dataclass(frozen=True)
class Held:
    """The previous weights themselves; what the backbone-first order differentiates at. Solves once where there are none."""

    start: Proximal

    def after(self, previous: Tensor | None) -> Solve:
        """No solve at all, unless there is nothing to hold."""
        if previous is None:
            return self.start.after(None)

        def held(*, features: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
            return previous

        return held
