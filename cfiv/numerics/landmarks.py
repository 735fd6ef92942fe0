"""Features of landmarks: functions on a kernel's span of some points, in coordinates whose inner product is the kernel's.
Before them there may be the columns of a line.

References
----------
Williams and Seeger, "Using the Nyström Method to Speed Up Kernel Machines", NeurIPS 2000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfiv.numerics.kernels import KernelExpansion, Line, blocks, kernel_matrix
from cfiv.numerics.pivoted_cholesky import pivoted_cholesky


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelFeatures:
    """Features whose inner product is the kernel, as far as the landmarks span it: ``f(x) = L^-1 k_P(x)``.

    P are those landmarks that span the others to rounding, with the kernel matrix ``K_P = L L'``, so that
    ``f(x)' f(x') = k_P(x)' K_P^-1 k_P(x')``. That is ``k(x, x')`` wherever x or x' is a landmark: with all points as landmarks
    nothing is approximated.

    Parameters
    ----------
    landmarks : Tensor (k, d)
        P.
    bandwidths : Tensor (d,)
    triangle : Tensor (k, k)
        ``L``, lower triangular.
    """

    landmarks: Tensor
    bandwidths: Tensor
    triangle: Tensor

    @classmethod
    def of_landmarks(cls, landmarks: Tensor, *, bandwidths: Tensor, most: int | None = None) -> KernelFeatures:
        """Features of landmarks (r, d), O(r k^2) for k that span them.

        Raises
        ------
        TooLargeError
            If k would be larger than ``most``.
        """
        factor = pivoted_cholesky(landmarks.double(), bandwidths=bandwidths, most=most)
        return cls(landmarks=landmarks[factor.pivots].double(), bandwidths=bandwidths, triangle=factor.triangle)

    def __len__(self) -> int:
        return len(self.landmarks)

    def __call__(self, at: Tensor) -> Tensor:
        """Shape (n, d) -> (n, k); O(n k^2)."""
        kernels = kernel_matrix(at, self.landmarks, bandwidths=self.bandwidths)
        features: Tensor = torch.linalg.solve_triangular(self.triangle, kernels.mT, upper=False)
        return features.mT

    def expansion(self, weights: Tensor) -> KernelExpansion:
        """The function ``x -> weights' f(x)`` of weights (k,) as a sum of kernels at the landmarks."""
        coefficients = torch.linalg.solve_triangular(self.triangle.mT, weights[:, None], upper=True)[:, 0]
        return KernelExpansion(points=self.landmarks, bandwidths=self.bandwidths, coefficients=coefficients)


@dataclass(frozen=True, eq=False, kw_only=True)
class LineColumns:
    """The columns of a line: a constant, where there is one, and the inputs, ``[1, (x - centre) / scale]``.

    Parameters
    ----------
    centre, scale : Tensor (d,)
    constant : bool
    """

    centre: Tensor
    scale: Tensor
    constant: bool

    def __len__(self) -> int:
        return int(self.constant) + len(self.centre)

    def __call__(self, at: Tensor) -> Tensor:
        """Shape (n, d) -> (n, 1 + d), or (n, d) without a constant."""
        columns = (at - self.centre) / self.scale
        return torch.cat([columns.new_ones(len(at), 1), columns], dim=1) if self.constant else columns

    def line(self, weights: Tensor) -> Line:
        """The function of weights, one a column."""
        constant = weights[0] if self.constant else weights.new_zeros(())
        return Line(constant=constant, slopes=weights[int(self.constant) :] / self.scale, centre=self.centre)


@dataclass(frozen=True, eq=False)
class LinedFeatures:
    """The columns of a line, and then the features of a kernel, ``[L, f]``, or their departures from a line, ``[L, f - A'L]``.

    Parameters
    ----------
    columns : LineColumns
    kernel : KernelFeatures
    line : Tensor (l, k), optional
        ``A``.
    """

    columns: LineColumns
    kernel: KernelFeatures
    line: Tensor | None = None

    def __len__(self) -> int:
        return len(self.columns) + len(self.kernel)

    def __call__(self, at: Tensor) -> Tensor:
        """Shape (n, d) -> (n, 1 + d + k)."""
        columns, kernel = self.columns(at), self.kernel(at)
        return torch.cat([columns, kernel if self.line is None else kernel - columns @ self.line], dim=1)

    def expansion(self, weights: Tensor) -> KernelExpansion:
        """The function ``x -> weights' f(x)``."""
        of_line, of_kernel = weights[: len(self.columns)], weights[len(self.columns) :]
        if self.line is not None:
            of_line = of_line - self.line @ of_kernel
        return replace(self.kernel.expansion(of_kernel), line=self.columns.line(of_line))

    def departures(self, points: Tensor, *, weights: Tensor) -> LinedFeatures:
        """Features beyond the least-squares line at points (n, d), with weights (n,) >= 0 and one row's worth of a penalty.

        O(n (1 + d) (1 + d + k)).
        """
        at = len(self.columns)
        gram = points.new_zeros(at, len(self))
        for rows in blocks(rows=len(points), columns=len(self)):
            values = self(points[rows])
            gram.addmm_(values[:, :at].mT, weights[rows, None] * values)
        return replace(self, line=line_of(gram / weights.sum(), at=at, rows=len(points)))


def line_of(gram: Tensor, *, at: int, rows: int) -> Tensor:
    """The regression (at, k) of features on the first ``at`` of them, by mean products (>= at, at + k); penalty 1/rows."""
    first = gram[:at, :at].clone()
    first.diagonal().add_(1.0 / rows)
    line: Tensor = torch.linalg.solve(first, gram[:at, at:])
    return line


#: Functions of points whose span is searched.
Features = KernelFeatures | LinedFeatures
