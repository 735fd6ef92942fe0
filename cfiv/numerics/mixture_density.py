"""Mixtures of normal distributions given something: densities, draws, and points that stand for them.

    p(t | z) = sum_k pi_k(z) prod_j N(t_j; mu_kj(z), sigma_kj(z)^2)

Within a component the columns of ``t`` are independent; what depends in them the components have to make.

References
----------
Bishop, "Mixture Density Networks", 1994.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

#: The least standard deviation, of a standardised column: without one the likelihood is unbounded where treatments repeat.
LEAST_SCALE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """One mixture of k components for each row.

    Parameters
    ----------
    log_shares : Tensor (..., n, k)
        ``log pi``.
    means, scales : Tensor (..., n, k, d)
        ``mu`` and ``sigma``.
    """

    log_shares: Tensor
    means: Tensor
    scales: Tensor

    @classmethod
    def of(cls, parameters: Tensor, *, columns: int) -> Mixture:
        """From unbounded parameters (..., n, k (1 + 2 d)): logits of the shares, means, and scales before a softplus."""
        k = parameters.shape[-1] // mixture_width(1, columns=columns)
        shape = (*parameters.shape[:-1], k, columns)
        means, scales = parameters[..., k : k * (1 + columns)], parameters[..., k * (1 + columns) :]
        return cls(
            log_shares=torch.log_softmax(parameters[..., :k], dim=-1),
            means=means.reshape(shape),
            scales=softplus(scales).reshape(shape) + LEAST_SCALE,
        )

    def log_density(self, values: Tensor) -> Tensor:
        """``log p`` at one value (..., n, d) a row, shape (..., n)."""
        standard = (values[..., None, :] - self.means) / self.scales
        normal = -0.5 * standard.square() - self.scales.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(self.log_shares + normal.sum(dim=-1), dim=-1)

    def draw(self, *, uniforms: Tensor, normals: Tensor) -> Tensor:
        """Draws (..., n, s, d), made of uniform (..., n, s) and standard normal (..., n, s, d) numbers."""
        reached = self.log_shares.exp().cumsum(dim=-1)
        component = (uniforms[..., None] > reached[..., None, :-1]).sum(dim=-1)
        places = component[..., None].expand(*component.shape, self.means.shape[-1])
        return self.means.gather(-2, places) + self.scales.gather(-2, places) * normals

    def nodes(self, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Points (..., n, k s, d) and their shares (..., n, k s), from points (s, d) that stand for standard normal numbers."""
        points = self.means[..., None, :] + self.scales[..., None, :] * normals
        shares = (self.log_shares.exp() / len(normals))[..., None].expand(points.shape[:-1])
        return points.flatten(-3, -2), shares.flatten(-2)


def mixture_width(components: int, *, columns: int) -> int:
    """How many parameters a mixture has: a share, and for each column a mean and a scale, of every component."""
    return components * (1 + 2 * columns)


def spread_normals(count: int, *, columns: int) -> Tensor:
    """Points (count, columns), float64, of mean zero and unit variance that stand for standard normal numbers.

    They are quantiles at ``(i + 1/2) / count``, scaled, in another order in each column, always the same.
    """
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    quantiles = quantiles / quantiles.square().mean().sqrt()
    generator = np.random.default_rng(0)
    orders = [np.arange(count), *(generator.permutation(count) for _ in range(columns - 1))]
    return torch.stack([quantiles[torch.from_numpy(order)] for order in orders], dim=1)
