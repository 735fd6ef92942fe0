"""Gaussian product kernels: bandwidths, kernel matrices, features of landmarks, and sums of kernels.

A point is a row of d columns, each divided by its bandwidth, and a product of Gaussian kernels is one Gaussian kernel,

    k(x, x') = prod_j exp(-(x_j - x'_j)^2 / (2 b_j^2)).

Columns that form one input (the pixels of an image) share a bandwidth, and then their product is the Gaussian kernel of the
whole input. Everything is float64. Matrices are made in blocks of rows, so that no temporary is larger than ``BLOCK`` numbers.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019, for the product kernel and the median
heuristic; Williams and Seeger, "Using the Nyström Method to Speed Up Kernel Machines", NeurIPS 2000, for landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Numbers of one block: 32 MB.
BLOCK = 2**22

#: Rows among which distances are taken for a median: two million distances.
MEDIAN_ROWS = 2000

#: Columns up to which differences are summed one column at a time, exactly zero for equal points; above, inner products are
#: faster (an image has thousands) and lose the last digits of small distances.
NARROW = 32

#: The spacing of float64 at one.
EPSILON = torch.finfo(torch.float64).eps


def median_bandwidth(points: Tensor, *, generator: np.random.Generator) -> float:
    """The median heuristic: ``median_{i < l} |x_i - x_l|`` of one input.

    Parameters
    ----------
    points : Tensor (n, d)
        The rows of one input: one column, or the pixels of an image.
    generator : Generator
        Draws ``MEDIAN_ROWS`` rows where there are more. It is not touched where there are not.

    Returns
    -------
    float
        In the unit of the input. Where half of the pairs or more are equal (a rare category), the median of the distances that
        are positive; 0 only where all points are equal.

    Notes
    -----
    Costs O(MEDIAN_ROWS^2 d). The fallback for ties is ours.
    """
    rows = points.double()
    if len(rows) > MEDIAN_ROWS:
        drawn = rows[torch.from_numpy(np.sort(generator.choice(len(rows), MEDIAN_ROWS, replace=False)))]
        # Of a very rare category the draw may hold none.
        rows = drawn if bool((drawn != drawn[0]).any()) else torch.unique(rows, dim=0)[:MEDIAN_ROWS]
    distances = torch.pdist(rows)
    middle = float(np.median(distances.numpy())) if len(distances) else 0.0
    if middle > 0:
        return middle
    positive = distances[distances > 0]
    return float(np.median(positive.numpy())) if len(positive) else 0.0


def kernel_matrix(one: Tensor, other: Tensor, bandwidths: Tensor) -> Tensor:
    """``k(x_i, x'_l)``, shape (n, d), (r, d) and (d,) -> (n, r), float64. Costs O(n r d)."""
    left, right = one.double() / bandwidths, other.double() / bandwidths
    if left.shape[1] > NARROW:
        centre = right.mean(dim=0)  # the kernel does not see a shift, rounding does
        left, right = left - centre, right - centre
        squares = torch.addmm(right.square().sum(dim=1)[None, :], left, right.mT, alpha=-2.0)
        return squares.add_(left.square().sum(dim=1)[:, None]).clamp_(min=0.0).mul_(-0.5).exp_()
    squares = left.new_zeros(len(left), len(right))
    for j in range(left.shape[1]):
        difference = left[:, j, None] - right[None, :, j]
        squares.addcmul_(difference, difference)
    return squares.mul_(-0.5).exp_()


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a (rows, columns) matrix, each of at most ``BLOCK`` numbers and at least one row."""
    size = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


@dataclass(frozen=True, eq=False)
class KernelExpansion:
    """``f(x) = sum_l c_l k(x_l, x)``.

    Parameters
    ----------
    points : Tensor (r, d)
    bandwidths : Tensor (d,)
    coefficients : Tensor (r,)
    """

    points: Tensor
    bandwidths: Tensor
    coefficients: Tensor

    def __call__(self, at: Tensor) -> Tensor:
        """``f`` at each row, shape (n, d) -> (n,), in blocks of rows."""
        parts = [
            kernel_matrix(at[rows], self.points, self.bandwidths) @ self.coefficients
            for rows in blocks(len(at), len(self.points))
        ]
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class KernelFeatures:
    """Features whose inner product is the kernel, as far as the landmarks span it: ``f(x) = S' k_L(x)``.

    With the kernel matrix of the landmarks ``K_L = U diag(s) U'``, ``S = U diag(s^-1/2)`` over the positive ``s``, so that
    ``f(x)' f(x') = k_L(x)' K_L^+ k_L(x')``. That is ``k(x, x')`` wherever x or x' is a landmark: with all points as landmarks
    nothing is approximated.

    Parameters
    ----------
    landmarks : Tensor (r, d)
    bandwidths : Tensor (d,)
    whitening : Tensor (r, k)
        ``S``, k <= r.
    """

    landmarks: Tensor
    bandwidths: Tensor
    whitening: Tensor

    @classmethod
    def of_landmarks(cls, landmarks: Tensor, bandwidths: Tensor) -> KernelFeatures:
        """Factor the kernel matrix of landmarks (r, d), O(r^3).

        Eigenvalues below ``r eps max s`` are rounding and are left out. The kernels are smooth, so that these are most of the
        directions of a large matrix, and all that follows is the cheaper for it.
        """
        values, vectors = torch.linalg.eigh(kernel_matrix(landmarks, landmarks, bandwidths))
        kept = values > len(landmarks) * EPSILON * values[-1]
        return cls(landmarks, bandwidths, vectors[:, kept] / values[kept].sqrt())

    def __len__(self) -> int:
        return self.whitening.shape[1]

    def __call__(self, at: Tensor) -> Tensor:
        """Shape (n, d) -> (n, k)."""
        return kernel_matrix(at, self.landmarks, self.bandwidths) @ self.whitening

    def expansion(self, weights: Tensor) -> KernelExpansion:
        """The function ``x -> weights' f(x)`` of weights (k,) as a sum of kernels at the landmarks."""
        return KernelExpansion(self.landmarks, self.bandwidths, self.whitening @ weights)
