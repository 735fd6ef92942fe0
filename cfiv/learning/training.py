"""How training proceeds: penalties, step counts, rates, the order of solve and gradient step, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from cfiv.checks import check_choice, check_flag, check_number, check_whole, is_within, refusal, several

Order = Literal["solve-first", "backbone-first"]
Schedule = Literal["cosine", "constant"]
Report = Literal["refit", "current"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of the training loop that rarely need a change; the frequent ones are arguments of the estimator.

    Parameters
    ----------
    stage1_steps, stage2_steps : int
        Gradient steps of the instrument features, and of the treatment features, on each batch. The previous weights of the
        proximal solves stay fixed within a batch: repeated solves against moving ones would weaken their memory as often.
    covariate_steps : int
        Gradient steps of the covariate features alone, on each batch, before stage 2; with 0 (default) they learn together with
        the treatment features.
    order : {"solve-first", "backbone-first"}
        Whether a gradient step is taken at the weights solved on its own batch, or at the previous weights, with the solve
        after it.
    learning_rate_schedule : {"cosine", "constant"}
        Cosine decays to zero over the run, times a linear warm-up over its first hundredth (at least ten steps).
    lambda_start : float
        The proximal penalties rise linearly from this fraction of their value to all of it.
    rest : float
        With "current", the share of the steps at the end in which the features rest and only V and u are solved, at the
        proximal penalties of the start and the k-th time 2/(k + 1) of the way from the last ones, so that they settle; 0
        reports the last solves, as in the paper.
    decoupled_weight_decay : bool
        AdamW when True; when False the decay is part of Adam's gradient, as in the original.
    split : float or None
        Share of the rows that goes to sample 1 (stage 1); the rest is sample 2 (stage 2). None uses every row in both stages.
    holdout : float
        Share of sample 2 that the gradients never see, for early stopping and for the choice of the final ridge; 0 turns both
        off.
    checks : int
        How many times per fit the held-out loss is looked at.
    tolerance : float
        A state is given up for an earlier one only where its held-out loss is higher by more than this many standard errors
        of the paired difference. The latest state that is not, is kept. Instrument features are given up for earlier ones where
        their loss on sample 2 is higher by more than four times as many.
    patience : int
        Training stops after this many checks in a row whose loss is higher than the best by more than twice the tolerance.
    refit_ridges : tuple of float
        Candidates for the ridges of the final V, chosen by its loss on sample 2, and of the final u, chosen by held-out loss;
        empty (or without held-out rows) means ridge1 and ridge2.
    double : bool
        Features in float64 instead of float32. Solves are in float64 always.
    """

    stage1_steps: int = 1
    stage2_steps: int = 1
    covariate_steps: int = 0
    order: Order = "solve-first"
    learning_rate_schedule: Schedule = "cosine"
    lambda_start: float = 0.05
    rest: float = 0.3
    decoupled_weight_decay: bool = True
    split: float | None = 0.5
    holdout: float = 0.2
    checks: int = 10
    tolerance: float = 1.0
    patience: int = 3
    refit_ridges: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    double: bool = False

    def __post_init__(self) -> None:
        for name, least in (("stage1_steps", 0), ("stage2_steps", 0), ("covariate_steps", 0), ("checks", 1), ("patience", 1)):
            check_whole(name, getattr(self, name), least=least)
        check_choice("order", self.order, ("solve-first", "backbone-first"))
        check_choice("learning_rate_schedule", self.learning_rate_schedule, ("cosine", "constant"))
        for name, most in (("lambda_start", 1.0), ("rest", 1.0), ("holdout", 0.9)):
            check_number(name, getattr(self, name), least=0.0, most=most)
        check_number("tolerance", self.tolerance, least=0.0, finite=False)
        if self.split is not None:
            check_number("split", self.split, above=0.0, below=1.0, alternative="or None for the same rows in both stages")
        ridges = several(self.refit_ridges)
        if not all(is_within(ridge, least=0.0) for ridge in ridges):
            raise refusal("refit_ridges", "finite and >= 0", self.refit_ridges)
        check_flag("decoupled_weight_decay", self.decoupled_weight_decay)
        check_flag("double", self.double)
        object.__setattr__(self, "refit_ridges", tuple(map(float, ridges)))
        for field in fields(
            self
        ):  # numpy's numbers are what grids of a search are made of: one training, however it is written
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())

    def rate_factor(self, step: int, *, steps: int) -> float:
        """Learning rate at a step, as a fraction of its peak."""
        if self.learning_rate_schedule == "constant":
            return 1.0
        warm = min(1.0, (step + 1) / max(10, steps // 100))
        return warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    def lambda_factor(self, step: int, *, steps: int) -> float:
        """Proximal penalties at a step, as a fraction of their final value."""
        return self.lambda_start + (1.0 - self.lambda_start) * step / steps
