"""The rows of an IVData as the inputs of two kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from cfiv.data import Array, IVData, to_tensor
from cfiv.estimators.units import Standardiser, exponents, in_unit
from cfiv.numerics.kernel_two_stage import Moments, sample_moments
from cfiv.numerics.kernels import KernelExpansion
from cfiv.numerics.landmarks import Features, LineColumns
from cfiv.numerics.relevance import MANY


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelInputs:
    """Rows as float64, in the user's units but for the outcome.

    Parameters
    ----------
    outcome : Tensor (n, 1)
        Standardised.
    outcome_scale : Standardiser
    treatments : Tensor (n, k + p)
        Treatments (images as flat vectors) and covariates.
    instruments : Tensor (n, q + p)
        Instruments and covariates.
    weights : Tensor (n,)
        Equal where the data have none.
    covariates : int
        p.
    image : bool
        Whether the treatment is one input of many columns.
    centred : bool
        Whether functions have a constant.
    """

    outcome: Tensor
    outcome_scale: Standardiser
    treatments: Tensor
    instruments: Tensor
    weights: Tensor
    covariates: int
    image: bool
    centred: bool

    @classmethod
    def of(cls, data: IVData, *, centred: bool) -> KernelInputs:
        """Standardise the outcome (without ``centred``, by its root mean square alone) and put the columns side by side."""
        outcome_scale = _outcome_scale(data, centred=centred)
        return cls(
            outcome=to_tensor(outcome_scale.apply(data.outcome[:, None]), dtype=torch.float64),
            outcome_scale=outcome_scale,
            treatments=side_by_side(data.treatment, data.covariates),
            instruments=side_by_side(data.instruments, data.covariates),
            weights=to_tensor(np.ones(len(data)) if data.weights is None else data.weights, dtype=torch.float64),
            covariates=0 if data.covariates is None else data.covariates.shape[1],
            image=data.treatment.ndim > 2,
            centred=centred,
        )

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def many(self) -> bool:
        """Whether there are so many columns that most cannot matter; never of images."""
        return not self.image and self.treatments.shape[1] > MANY

    def by_role(self) -> dict[str, list[Tensor]]:
        """The inputs of each role, each with the columns that share a bandwidth."""
        treatment = self.treatments[:, : self.treatments.shape[1] - self.covariates]
        instruments = self.instruments[:, : self.instruments.shape[1] - self.covariates]
        roles = {"treatment": [treatment] if self.image else _columns(treatment), "instruments": _columns(instruments)}
        if self.covariates:
            roles["covariates"] = _columns(self.instruments[:, instruments.shape[1] :])
        return roles

    def line_columns(self, points: Tensor) -> LineColumns:
        """Of a line in all treatments or all instruments: of unit variance and, where there is a constant, centred."""
        scale = Standardiser.fit(points.numpy(), self.weights.numpy())
        mean, deviation = (to_tensor(part, dtype=torch.float64) for part in (scale.mean, scale.scale))
        if self.centred:
            return LineColumns(centre=mean, scale=deviation, constant=True)
        return LineColumns(centre=torch.zeros_like(mean), scale=torch.hypot(mean, deviation), constant=False)

    def controls(self) -> Tensor:
        """Each treatment, and its normal scores, shape (n, 2k): the error may be linear in what stage 1 leaves of either."""
        treatments = self.treatments[:, : self.treatments.shape[1] - self.covariates].numpy()
        scores = ndtri((rankdata(treatments, axis=0) - 0.5) / len(treatments))
        standardised = Standardiser.fit(treatments, self.weights.numpy()).apply(treatments)
        return to_tensor(np.concatenate([standardised, scores], axis=1), dtype=torch.float64)

    def moments(
        self, rows: Tensor, *, of: Tensor, phi: Features, psi: Features, structural: bool, controls: Tensor | None = None
    ) -> Moments:
        """Moments of some rows, with their shares of the weights of the rows ``of``."""
        return sample_moments(
            instruments=self.instruments[rows],
            treatments=self.treatments[rows],
            outcome=self.outcome[rows],
            weights=self.weights[rows] / self.weights[of].sum(),
            instrument_features=phi,
            treatment_features=psi,
            structural=structural,
            controls=None if controls is None else controls[rows],
        )


@dataclass(frozen=True, eq=False)
class KernelReducedForm:
    """``E[h | Z, X]`` in the outcome's units: the first stage's prediction of the structural function."""

    expansion: KernelExpansion
    outcome_scale: Standardiser

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        """Shape (n,), at instruments (n, q) and covariates (n, p)."""
        return self.outcome_scale.undo(self.expansion(side_by_side(instruments, covariates)).numpy())


def side_by_side(values: Array, covariates: Array | None) -> Tensor:
    """One row each of flat values and covariates, float64."""
    flat = to_tensor(values, dtype=torch.float64).flatten(start_dim=1)
    return flat if covariates is None else torch.cat([flat, to_tensor(covariates, dtype=torch.float64)], dim=1)


def _columns(values: Tensor) -> list[Tensor]:
    return [values[:, j : j + 1] for j in range(values.shape[1])]


def _outcome_scale(data: IVData, *, centred: bool) -> Standardiser:
    if centred:
        fitted = Standardiser.fit(data.outcome[:, None], data.weights)
        return Standardiser(fitted.mean[0], fitted.scale[0])
    unit = exponents(data.outcome)
    squares = in_unit(data.outcome, unit) ** 2
    return Standardiser(np.zeros(()), np.ldexp(np.sqrt(np.average(squares, weights=data.weights)), unit))
