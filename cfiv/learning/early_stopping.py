"""Early stopping: which state of a training run is kept, judged by held-out losses and their noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cfiv.runtime.module_state import ModuleState


@dataclass(frozen=True)
class Checkpoint:
    """A state to return to.

    Parameters
    ----------
    step : int
        After how many steps.
    parameters : list of ModuleState
        Of the networks, in their order.
    weights : tuple of Tensor
        The last layers as they would be reported.
    ridges : tuple of float
        Those that each is (to be) refitted with; nan where it is not.
    losses : Tensor (held-out rows,)
        Squared errors that average to the held-out loss; empty without held-out rows.
    """

    step: int
    parameters: list[ModuleState]
    weights: tuple[Tensor, ...]
    ridges: tuple[float, ...]
    losses: Tensor

    @property
    def loss(self) -> float:
        """The held-out loss; nan without held-out rows."""
        return float(self.losses.mean()) if self.losses.numel() else float("nan")

    def excess_over(self, other: Checkpoint) -> float:
        """By how many standard errors of the paired difference this held-out loss lies above another's."""
        return standard_errors_above_zero(self.losses - other.losses)


class EarlyStopping:
    """Keeps the latest state whose held-out loss is not significantly above the lowest.

    A held-out loss is noisy and, where it is flat, picking its minimum picks noise: of two states that it cannot tell apart the
    later one is better trained. A state counts as worse where its loss is higher than the lowest by more than ``tolerance``
    standard errors of the paired difference. Training may end once ``patience`` checks in a row were worse by twice that.

    References
    ----------
    Ours. It is the one-standard-error rule of cross-validation (Breiman et al. 1984) applied to paired differences along a
    training run.
    """

    def __init__(self, *, tolerance: float, patience: int) -> None:
        self.tolerance, self.patience = tolerance, patience
        self.best: Checkpoint | None = None
        self.kept: Checkpoint | None = None
        self.risen = 0

    def add(self, now: Checkpoint) -> None:
        """Take a state into account, in the order of training."""
        if self.best is None or now.loss < self.best.loss:
            self.best = now
        excess = now.excess_over(self.best)
        if self.kept is None or excess <= self.tolerance:
            self.kept = now
        self.risen = self.risen + 1 if excess > 2 * self.tolerance else 0

    @property
    def exhausted(self) -> bool:
        """Whether further training is not worth its time."""
        return self.risen >= self.patience


def standard_errors_above_zero(difference: Tensor) -> float:
    """The mean of paired differences (n,) in units of its standard error; zero where there is nothing to judge by."""
    if difference.numel() < 2:
        return 0.0
    standard_error = float(difference.std()) / difference.numel() ** 0.5
    return float(difference.mean()) / standard_error if standard_error > 0 else 0.0
