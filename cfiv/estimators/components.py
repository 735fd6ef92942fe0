"""Components: the functions that a structural function averages. Each is plain data with a way to evaluate it.

Their arrays and tensors are in memory of their own, so that one that is read from a file rounds as the one that was saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.data import Array, to_tensor
from cfiv.estimators.units import Standardiser
from cfiv.learning.whole_sample import chunk_rows
from cfiv.networks.feature_maps import evaluate
from cfiv.numerics.kernels import KernelExpansion, Line, blocks, kernel_matrix
from cfiv.numerics.sieve_basis import SieveBasis, in_blocks
from cfiv.numerics.sieve_choice import SieveChoice
from cfiv.numerics.smooth_basis import SmoothBasis
from cfiv.numerics.two_stage import Structure, structural_features, structural_grid
from cfiv.tensor_file import owned

#: A processor computes some rows of a network at once and the last ones by themselves, which rounds float32 in another way:
#: treatments that fill such groups get the features that they have in a long table.
TOGETHER = 64


class Component(Protocol):
    """One function ``h(t, x)`` in the user's units."""

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,), float64."""
        ...

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each of b treatments with each of n rows of covariates, shape (b, n), float64; (b, 1) without covariates.

        What depends on one of the two alone is computed once for each.
        """
        ...


def averaged(values: Iterable[Array], shares: tuple[float, ...], *, count: int) -> Array:
    """Of the values of ``count`` components, two of which are held at once; by their shares where there are some."""
    if shares:
        return np.asarray(reduce(np.add, (share * value for share, value in zip(shares, values, strict=True))))
    return np.asarray(reduce(np.add, values) / count)


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

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n)."""
        values = self.evaluate(treatments, None)[:, None]
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
        values = []
        for start in range(0, len(treatment), rows):
            psi = self._psi(treatment[start : start + rows])
            xi = self._xi(None if covariates is None else covariates[start : start + rows])
            features = structural_features(treatment_features=psi, covariate_features=xi, structure=self.structure)
            values.append((features @ self.structural)[:, 0].numpy())
        return self.outcome_scale.undo(np.concatenate(values))

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n); each network sees each of its inputs once."""
        count = len(treatments)
        if treatments.ndim == 2:
            treatments = np.concatenate([treatments, treatments[:1].repeat(-count % TOGETHER, axis=0)])
        rows = chunk_rows(treatments.shape[1:])
        psi = torch.cat([self._psi(treatments[start : start + rows]) for start in range(0, len(treatments), rows)])[:count]
        u, structure = self.structural, self.structure
        if covariates is None:
            grid = structural_grid(u, treatment_features=psi, covariate_features=None, structure=structure)
            return self.outcome_scale.undo(grid.numpy())
        rows = chunk_rows(covariates.shape[1:])
        values = [
            structural_grid(u, treatment_features=psi, covariate_features=self._xi(block), structure=structure).numpy()
            for block in (covariates[start : start + rows] for start in range(0, len(covariates), rows))
        ]
        return self.outcome_scale.undo(np.concatenate(values, axis=1))

    def _psi(self, treatment: Array) -> Tensor:
        """Treatment features, float64."""
        return evaluate(self.treatment_network, self._scaled(treatment, self.treatment_scale)).double()

    def _xi(self, covariates: Array | None) -> Tensor | None:
        """Covariate features, None where there are none."""
        if self.covariate_network is None or covariates is None:
            return None
        return evaluate(self.covariate_network, self._scaled(covariates, self.covariate_scale))

    def _scaled(self, values: Array, scale: Standardiser) -> Tensor:
        return to_tensor(scale.apply(values), dtype=torch.float64 if self.double else torch.float32)


@dataclass(frozen=True, eq=False)
class KernelComponent:
    """``h(t, x) = undo(sum_l c_l k((t_l, x_l), (t, x)) + l(t, x))``, images as flat vectors, the line ``l`` where there is one.

    Parameters
    ----------
    expansion : KernelExpansion
        On treatment columns and covariate columns side by side, in the user's units.
    outcome_scale : Standardiser
    """

    expansion: KernelExpansion
    outcome_scale: Standardiser

    def __post_init__(self) -> None:
        parts = {name: owned(part) for name, part in vars(self.expansion).items() if name != "line"}
        given = self.expansion.line
        line = None if given is None else Line(**{name: owned(part) for name, part in vars(given).items()})
        object.__setattr__(self, "expansion", KernelExpansion(**parts, line=line))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,); kernels of a block of rows at a time."""
        points = to_tensor(treatment, dtype=torch.float64).flatten(start_dim=1)
        if covariates is not None:
            points = torch.cat([points, to_tensor(covariates, dtype=torch.float64)], dim=1)
        return self.outcome_scale.undo(self.expansion(points).numpy())

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n): a product of kernels is the kernel of both."""
        if covariates is None:
            return self.evaluate(treatments, None)[:, None]
        points, bandwidths = self.expansion.points, self.expansion.bandwidths
        at, given = to_tensor(treatments, dtype=torch.float64).flatten(start_dim=1), to_tensor(covariates, dtype=torch.float64)
        k = at.shape[1]
        own = kernel_matrix(at, points[:, :k], bandwidths=bandwidths[:k]) * self.expansion.coefficients
        values = torch.cat(
            [
                own @ kernel_matrix(given[rows], points[:, k:], bandwidths=bandwidths[k:]).mT
                for rows in blocks(rows=len(given), columns=len(points))
            ],
            dim=1,
        )
        line = self.expansion.line
        if line is not None:
            values += line.constant + ((at - line.centre[:k]) @ line.slopes[:k])[:, None]
            values += (given - line.centre[k:]) @ line.slopes[k:]
        return self.outcome_scale.undo(values.numpy())


@dataclass(frozen=True, eq=False)
class SieveComponent:
    """``h(t, x) = c' f(t, x)`` with splines ``f``.

    Parameters
    ----------
    basis : SieveBasis
    coefficients : array (p,)
        In the outcome's units.
    choice : SieveChoice or None
        How the number of segments was chosen; None where it was given.
    undersmoothed : SieveComponent or None
        With more functions of the treatment, for intervals; None where the number was given, or is the largest.
    """

    basis: SieveBasis
    coefficients: Array
    choice: SieveChoice | None = None
    undersmoothed: SieveComponent | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", np.array(self.coefficients))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,); columns of a block of rows at a time."""
        return in_blocks(self.basis.structural_columns, self.coefficients, treatment, covariates)

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n)."""
        return self.basis.grid(self.coefficients, treatments, covariates)


@dataclass(frozen=True, eq=False)
class SmoothComponent:
    """``h(t, x) = undo(u' f(t, x))``: a line, curves, and products of treatments with covariates.

    Parameters
    ----------
    basis : SmoothBasis
    coefficients : array (p,)
        ``u``.
    outcome_scale : Standardiser
    """

    basis: SmoothBasis
    coefficients: Array
    outcome_scale: Standardiser

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", np.array(self.coefficients))

    def evaluate(self, treatment: Array, covariates: Array | None) -> Array:
        """``h`` at each row, shape (n,)."""
        return self.outcome_scale.undo(in_blocks(self.basis.structural_columns, self.coefficients, treatment, covariates))

    def cross(self, treatments: Array, covariates: Array | None) -> Array:
        """``h`` at each treatment with each row of covariates, shape (b, n)."""
        return self.outcome_scale.undo(self.basis.grid(self.coefficients, treatments, covariates))
