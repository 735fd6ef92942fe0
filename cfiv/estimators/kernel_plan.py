"""What a fit of KernelIV is made on: rows, folds, landmarks, and the features of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfiv.estimators.kernel_bandwidths import column_bandwidths, widened
from cfiv.estimators.kernel_inputs import KernelInputs
from cfiv.estimators.kernel_memory import features_that_fit
from cfiv.numerics.kernel_cross_fitting import Family, fit_across_folds
from cfiv.numerics.kernel_first_stage import Layout
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Validation, fit_two_samples
from cfiv.numerics.landmarks import Features, LinedFeatures

#: Factors of the bandwidths of ``h`` that are tried: a confounded regression may turn faster than ``h``.
FACTORS = (1.0, 2.0, 4.0)

#: Landmarks that are enough: so many, or so many times the root of the rows, and never more than the last.
FEW, BY_ROOT, MANY = 500, 8.0, 1200

#: What ``h`` may be, besides a line.
FAMILIES: Sequence[Family] = ("line and curve", "curve")

#: Landmarks with which kernels are compared.
COARSE = 150


def automatic_landmarks(rows: int) -> int:
    """How many are enough for so many rows."""
    return min(MANY, max(FEW, int(BY_ROOT * math.sqrt(rows))))


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelPlan:
    """Everything but the bandwidths and penalties.

    Parameters
    ----------
    inputs : KernelInputs
    parts : sequence of Tensor
        Rows of the folds, or of sample 1 and sample 2.
    landmark_rows : Tensor
    landmarks : int or None
        How many, None where they are all rows that might be.
    folds : int or None
        None for two samples.
    lined : bool
        Whether there is a line beside the kernel.
    penalties : mapping
        ``stage1_penalties`` and ``stage2_penalties`` (m,).
    validation : {"control", "treatment", "instruments"}
    fallback : bool
        Whether the answer may be the line alone.
    """

    inputs: KernelInputs
    parts: Sequence[Tensor]
    landmark_rows: Tensor
    landmarks: int | None
    folds: int | None
    lined: bool
    penalties: Mapping[str, Tensor]
    validation: Validation
    fallback: bool

    def features(self, role: str, bandwidths: Mapping[str, Sequence[float]]) -> Features:
        """Features of a role and the covariates."""
        points = self.inputs.treatments if role == "treatment" else self.inputs.instruments
        pixels = points.shape[1] - self.inputs.covariates if role == "treatment" and self.inputs.image else 1
        kernel = features_that_fit(
            landmarks=points[self.landmark_rows],
            bandwidths=column_bandwidths(bandwidths, role, pixels=pixels),
            role=role,
            folds=self.folds,
        )
        if not self.lined:
            return kernel
        features = LinedFeatures(self.inputs.line_columns(points), kernel)
        if role == "treatment" and self.inputs.many:
            return features.departures(points, weights=self.inputs.weights)
        return features

    @property
    def families(self) -> Sequence[Family]:
        """Candidates for ``h``, besides a line; departures from one are no candidate without it."""
        return FAMILIES[:1] if self.lined and self.inputs.many else FAMILIES

    def stages(self, phi: Features, psi: Features, families: Sequence[Family]) -> KernelTwoStage:
        """Both stages."""
        inputs, parts = self.inputs, self.parts
        if self.folds is None:
            first, second = parts
            sample1 = inputs.moments(first, of=first, phi=phi, psi=psi, structural=True)
            sample2 = inputs.moments(second, of=second, phi=phi, psi=psi, structural=False)
            return fit_two_samples(sample1=sample1, sample2=sample2, **self.penalties)
        controls = inputs.controls() if self.validation == "control" else None
        everything, structural = torch.cat(tuple(parts)), self.validation != "instruments"
        folds = [
            inputs.moments(part, of=everything, phi=phi, psi=psi, structural=structural, controls=controls) for part in parts
        ]
        fallback = self.fallback and self.validation == "control"
        return fit_across_folds(
            folds, layout=self._layout(phi, psi, controls), families=families, fallback=fallback, **self.penalties
        )

    def widened(self, bandwidths: Mapping[str, Sequence[float]]) -> tuple[dict[str, list[float]], Sequence[Family]]:
        """With few landmarks: the factor of the bandwidths of ``h``, and the family, with the lowest loss on held-out rows."""
        coarse = replace(self, landmark_rows=self.landmark_rows[:COARSE])
        phi = coarse.features("instruments", bandwidths)
        found = []
        for factor in FACTORS:
            wide = widened(bandwidths, factor)
            stages = coarse.stages(phi, coarse.features("treatment", wide), self.families)
            found.append((float(stages.stage2.losses.min()), wide, stages.family))
        _, wide, family = min(found, key=lambda each: each[0])
        return wide, ("curve",) if family == "curve" else ("line and curve",)

    def _layout(self, phi: Features, psi: Features, controls: Tensor | None) -> Layout:
        """Where the columns of lines and controls are."""
        weights = self.inputs.weights / self.inputs.weights.max()
        # One over the number of rows that count: fewer than there are where weights differ.
        plain = Layout(
            controls=0 if controls is None else controls.shape[1],
            penalty=float(weights.square().sum() / weights.sum().square()),
        )
        if not (isinstance(phi, LinedFeatures) and isinstance(psi, LinedFeatures)):
            return plain
        constant = psi.columns.constant
        departures = psi.line is not None
        return replace(
            plain, instruments=len(phi.columns), treatments=len(psi.columns), constant=constant, departures=departures
        )
