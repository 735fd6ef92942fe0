"""Gaussian product kernels: matrices of them, and sums of them.

A point is a row of d columns, each divided by its bandwidth, and a product of Gaussian kernels is one Gaussian kernel,

    k(x, x') = prod_j exp(-(x_j - x'_j)^2 / (2 b_j^2)).

Columns that form one input (the pixels of an image) share a bandwidth, and then their product is the Gaussian kernel of the
whole input. Everything is float64. Matrices are made in blocks of rows, so that no temporary is larger than ``BLOCK`` numbers.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019, for the product kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Numbers of one block: 32 MB.
BLOCK = 2**22

#: Columns up to which differences are summed one column at a time, exactly zero for equal points; above, inner products are
#: faster (an image has thousands) and lose the last digits of small distances.
NARROW = 32


def kernel_matrix(one: Tensor, other: Tensor, *, bandwidths: Tensor) -> Tensor:
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


def blocks(*, rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a (rows, columns) matrix, each of at most ``BLOCK`` numbers and at least one row."""
    size = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


@dataclass(frozen=True, eq=False, kw_only=True)
class Line:
    """``l(x) = constant + slopes'(x - centre)``.

    Parameters
    ----------
    constant : Tensor ()
    slopes, centre : Tensor (d,)
    """

    constant: Tensor
    slopes: Tensor
    centre: Tensor

    def __call__(self, at: Tensor) -> Tensor:
        """``l`` at each row, shape (n, d) -> (n,)."""
        values: Tensor = self.constant + (at - self.centre) @ self.slopes
        return values


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelExpansion:
    """``f(x) = sum_l c_l k(x_l, x) + l(x)``.

    Parameters
    ----------
    points : Tensor (r, d)
    bandwidths : Tensor (d,)
    coefficients : Tensor (r,)
    line : Line, optional
        ``l``; zero where there is none.
    """

    points: Tensor
    bandwidths: Tensor
    coefficients: Tensor
    line: Line | None = None

    def __call__(self, at: Tensor) -> Tensor:
        """``f`` at each row, shape (n, d) -> (n,), in blocks of rows."""
        parts = [
            kernel_matrix(at[rows], self.points, bandwidths=self.bandwidths) @ self.coefficients
            for rows in blocks(rows=len(at), columns=len(self.points))
        ]
        values = torch.cat(parts)
        return values if self.line is None else values + self.line(at)
