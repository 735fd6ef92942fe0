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

    With ``lam = 0`` it is the ridge layer, which forgets every batch but the last.

    References
    ----------
    Galashov et al., arXiv 2510.04606, "l2 c.f. proximal" and "l2 c.f. ridge".
    """

    lam: float
    ridge: float = 0.0

    def after(self, previous: Tensor | None) -> Solve:
        """The penalised solve that is pulled to ``previous``."""
        # Without a past there is nothing to stay close to; pulling the first batch to zero would only bias it.
        lam = 0.0 if previous is None else self.lam
        return partial(solve_step, ridge=self.ridge, proximal=lam, previous=previous)


@dataclass(frozen=True)
class RunningAverage:
    """``A_t = A_{t-1} + (eta + 1)/(t + eta) (W_t - A_{t-1})``: the average of the solves so far, the latest weighing most.

    About the last of ``eta + 1`` equal parts of a run counts, whenever it is looked at. Features settle towards the end of a
    run, and there the average of last layers that have each seen a few batches is nearly the one that has seen them all.

    Parameters
    ----------
    value : Tensor or None
        ``A_t``; None before the first solve.
    solves : int
        ``t``.

    References
    ----------
    Shamir and Zhang, "Stochastic gradient descent for non-smooth optimization", ICML 2013, equation 1 of section 4.
    """

    value: Tensor | None = None
    solves: int = 0

    def after(self, weights: Tensor, *, eta: float | None) -> RunningAverage:
        """With one more solve; with ``eta`` None the average is the latest solve."""
        solves = self.solves + 1
        if self.value is None or eta is None:
            return RunningAverage(weights, solves)
        return RunningAverage(self.value + (eta + 1.0) / (solves + eta) * (weights - self.value), solves)


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
