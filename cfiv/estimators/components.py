"""Components: the functions that a structural function averages. Each is plain data with a way to evaluate it.

Their arrays and tensors are in memory of their own, so that one that is read from a file rounds as the one that was saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.data import Array, to_tensor
from cfiv.estimators.standardise import Standardiser
from cfiv.learning.networks import evaluate
from cfiv.learning.whole_sample import chunk_rows
from cfiv.numerics.kernels import KernelExpansion
from cfiv.numerics.two_stage import Structure, structural_features
from cfiv.tensor_file import owned


class Component(Protocol):
    """One function ``h(t, x)`` in the user's units."""

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,), float64."""
        ...


@dataclass(frozen=True, eq=False)
class LinearComponent:
    """``h(t, x) = constant + t' treatment + x' covariates``, on the columns that the roles' formulas make."""

    constant: float
    treatment: Array
    covariates: Array

    def __post_init__(self) -> None:
        for name in ("treatment", "covariates"):
            object.__setattr__(self, name, np.array(getattr(self, name)))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,)."""
        values: Array = self.constant + treatment.astype(np.float64) @ self.treatment
        return values if covariates is None else values + covariates @ self.covariates


@dataclass(frozen=True, eq=False)
class NetworkComponent:
    """``h(t, x) = undo(u' f)``, ``f`` the structural features of standardised inputs (see ``numerics.two_stage``).

    Parameters
    ----------
    treatment_network, covariate_network : Module
        ``psi`` and ``xi``; ``xi`` None without covariates.
    structural : Tensor (p, 1), float64
        ``u``.
    structure : {"product", "additive"}
    outcome_scale, treatment_scale, covariate_scale : Standardiser
    double : bool
        Whether the networks are in float64 rather than float32.
    """

    treatment_network: nn.Module
    covariate_network: nn.Module | None
    structural: Tensor
    structure: Structure
    outcome_scale: Standardiser
    treatment_scale: Standardiser
    covariate_scale: Standardiser
    double: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "structural", owned(self.structural))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,); in evaluation mode, in chunks."""
        rows = chunk_rows(treatment.shape[1:])
        values = [
            self._chunk(treatment[start : start + rows], None if covariates is None else covariates[start : start + rows])
            for start in range(0, len(treatment), rows)
        ]
        return self.outcome_scale.undo(np.concatenate(values))

    def _chunk(self, treatment: Array, covariates: Array | None) -> Array:
        dtype = torch.float64 if self.double else torch.float32
        psi = evaluate(self.treatment_network, to_tensor(self.treatment_scale.apply(treatment), dtype=dtype))
        xi = None
        if self.covariate_network is not None and covariates is not None:
            xi = evaluate(self.covariate_network, to_tensor(self.covariate_scale.apply(covariates), dtype=dtype))
        features = structural_features(treatment_features=psi.double(), covariate_features=xi, structure=self.structure)
        values: Array = (features @ self.structural)[:, 0].numpy()
        return values


@dataclass(frozen=True, eq=False)
class KernelComponent:
    """``h(t, x) = undo(sum_l c_l k((t_l, x_l), (t, x)))``, images as flat vectors.

    Parameters
    ----------
    expansion : KernelExpansion
        On treatment columns and covariate columns side by side, in the user's units.
    outcome_scale : Standardiser
    """

    expansion: KernelExpansion
    outcome_scale: Standardiser

    def __post_init__(self) -> None:
        parts = {name: owned(part) for name, part in vars(self.expansion).items()}
        object.__setattr__(self, "expansion", KernelExpansion(**parts))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,); kernels of a block of rows at a time."""
        points = to_tensor(treatment, dtype=torch.float64).flatten(start_dim=1)
        if covariates is not None:
            points = torch.cat([points, to_tensor(covariates, dtype=torch.float64)], dim=1)
        return self.outcome_scale.undo(self.expansion(points).numpy())
