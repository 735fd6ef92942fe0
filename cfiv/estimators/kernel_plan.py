"""What a fit of KernelIV is made on: rows, folds, landmarks, and the features of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from cfiv.estimators.kernel_bandwidths import column_bandwidths
from cfiv.estimators.kernel_inputs import KernelInputs
from cfiv.estimators.kernel_memory import features_that_fit
from cfiv.numerics.kernel_first_stage import Layout
from cfiv.numerics.landmarks import Features, LinedFeatures

#: Factors of the bandwidths of ``h`` that are tried: a confounded regression may turn faster than ``h``.
FACTORS = (1.0, 2.0, 4.0)

#: Landmarks that are enough: so many, or so many times the root of the rows, and never more than the last.
FEW, BY_ROOT, MANY = 500, 8.0, 1200

#: Landmarks with which kernels are compared.
COARSE = 200


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
    """

    inputs: KernelInputs
    parts: Sequence[Tensor]
    landmark_rows: Tensor
    landmarks: int | None
    folds: int | None
    lined: bool

    def coarse(self) -> KernelPlan:
        """The same with few landmarks, for a choice among kernels."""
        return replace(self, landmark_rows=self.landmark_rows[:COARSE])

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
        return LinedFeatures(self.inputs.line_columns(points), kernel) if self.lined else kernel

    def layout(self, phi: Features, psi: Features, controls: Tensor | None) -> Layout:
        """Where the columns of lines and controls are."""
        weights = self.inputs.weights / self.inputs.weights.max()
        # One over the number of rows that count: fewer than there are where weights differ.
        plain = Layout(
            controls=0 if controls is None else controls.shape[1],
            penalty=float(weights.square().sum() / weights.sum().square()),
        )
        if not (isinstance(phi, LinedFeatures) and isinstance(psi, LinedFeatures)):
            return plain
        lines = {"instruments": len(phi.columns), "treatments": len(psi.columns), "constant": psi.columns.constant}
        return replace(plain, **lines)
