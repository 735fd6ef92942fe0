"""What a DFIV fit is asked to do, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cfiv.learning.loop import Ended
from cfiv.learning.samples import Sample, Split
from cfiv.learning.training import Report, Training
from cfiv.learning.whole_sample import predicted_outcome
from cfiv.networks.feature_maps import Networks
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.dfiv_step import LastLayers, PerNetwork


@dataclass(frozen=True, kw_only=True)
class DFIVProblem:
    """What members that train side by side are asked to do; the options of :class:`cfiv.Training` come on top.

    Parameters
    ----------
    sample : Sample
        All rows.
    splits : tuple of Split
        One a member: the rows of both stages and the held-out ones.
    structure : {"product", "additive"}
    layers : LastLayers
        As they stand at the end of training.
    ridge1, ridge2 : float
        Of the final V and u where nothing is held out to choose them by.
    unpredicted_penalty : float
        ``gamma``, on the variance of ``h(T, X)`` that instruments and covariates leave unpredicted.
    steps : int
    batch_size : int or None
        None for full batches, which then are of equal size in all members.
    learning_rate, weight_decay : (float, float, float)
        Peak rates and decays of treatment, instrument and covariate network.
    report : {"refit", "current"}
    training : Training
    """

    sample: Sample
    splits: tuple[Split, ...]
    structure: Structure
    layers: LastLayers
    ridge1: float
    ridge2: float
    unpredicted_penalty: float
    steps: int
    batch_size: int | None
    learning_rate: PerNetwork
    weight_decay: PerNetwork
    report: Report
    training: Training

    @property
    def learning_steps(self) -> int:
        """Steps in which features learn; all of them, but for the rest at the end of "current"."""
        return self.steps - round(self.training.rest * self.steps) if self.report == "current" else self.steps

    def gives_up(self, place: int) -> bool:
        """Whether states of a member may be given up for earlier ones, by losses on held-out rows."""
        return self.splits[place].heldout is not None and self.report == "refit"

    @property
    def refit_ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final u."""
        return self.training.refit_ridges or (self.ridge2,)

    @property
    def first_stage_ridges(self) -> tuple[float, ...]:
        """Candidates for the ridge of the final V."""
        return self.training.refit_ridges or (self.ridge1,)


@dataclass(frozen=True, kw_only=True)
class TwoStageFit:
    """A fitted structural function ``h = u' f`` in the units of training.

    Parameters
    ----------
    networks : Networks
        In evaluation mode.
    first_stage : Tensor (d + 1, m), float64
        V.
    structural : Tensor (p, 1), float64
        u.
    structure : {"product", "additive"}
    heldout_loss : float
        Held-out stage-2 mean squared error of the state kept; nan without held-out rows.
    first_stage_ridge, refit_ridge : float
        The ridges of the final V and u; nan where the weights are those that training left ("current").
    history : list of dict
        One record a check.
    ended : {"finished", "stopped early", "diverged", "interrupted", "out of time"}
        How training ended.
    """

    networks: Networks
    first_stage: Tensor
    structural: Tensor
    structure: Structure
    heldout_loss: float
    first_stage_ridge: float
    refit_ridge: float
    history: list[dict[str, Any]]
    ended: Ended

    def cpu(self) -> TwoStageFit:
        """The fit in the processor's memory, where results live, its networks frozen."""
        for module in self.networks.modules():
            module.cpu().requires_grad_(False)
        return replace(self, first_stage=self.first_stage.cpu(), structural=self.structural.cpu())

    def predicted_outcome(self, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
        """``E[h(T, X) | Z, X]``, shape (n, 1), float64; see :func:`~cfiv.learning.whole_sample.predicted_outcome`."""
        return predicted_outcome(
            self.networks,
            first_stage=self.first_stage,
            structural=self.structural,
            structure=self.structure,
            instruments=instruments,
            covariates=covariates,
        )
