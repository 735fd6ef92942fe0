"""Feature networks that are made where a user gives none, chosen from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class FeatureNetwork(nn.Module):
    """A multilayer perceptron whose features include its input: ``x -> [x, f(x)]``, ``f`` with SiLU between linear layers.

    Carrying the input makes the linear structural function, and so two-stage least squares with a learned first stage, the
    point that learning starts from. Inputs of more than one axis (images) are flattened and not carried along.

    Parameters
    ----------
    inputs : int
        Width of the flattened input.
    hidden : sequence of int
        Widths of the hidden layers.
    outputs : int
        Number of learned features.
    carry : bool
        Whether the input is among the features.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, *, carry: bool = True) -> None:
        super().__init__()
        self.inputs, self.hidden, self.outputs, self.carry = inputs, tuple(hidden), outputs, carry
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Features of each row, (n, ...) -> (n, columns)."""
        x = x.flatten(start_dim=1)
        features: Tensor = self.layers(x)
        return torch.cat([x, features], dim=1) if self.carry else features


def treatment_network(shape: Sequence[int]) -> nn.Module:
    """Default ``psi``: the treatment itself and one learned feature; of an image, :func:`image_network`.

    Few treatment features are a strong regulariser: the first stage has to predict each of them, and noise in any of them
    reaches the structural function.
    """
    return image_network(shape) if len(shape) > 1 else FeatureNetwork(shape[0], (32, 32), 1)


def image_network(shape: Sequence[int]) -> nn.Module:
    """Default ``psi`` of images (rows, columns) or (channels, rows, columns): eight features of a coarser image.

    Squares of ``side`` x ``side`` pixels are added up so that 16 to 31 are left on the shorter side, and divided by ``side``,
    which leaves the variance of independent noise as it was,

        x'_kl = sum_{i, j < side} x_{side k + i, side l + j} / side,        side = floor(min(rows, columns) / 16).

    Pixels beyond the last whole square, at most ``side - 1`` rows and columns, are left out. Then fully connected 512-128-8
    with SiLU. Images of fewer than 32 pixels on the shorter side, or of more than three axes, are taken pixel by pixel. A
    network that has to see detail is for the user to give.

    Parameters
    ----------
    shape : sequence of int
        Of one image.

    Returns
    -------
    Module
        (n, *shape) -> (n, 8).
    """
    side = max(1, min(shape[-2:]) // 16)
    if len(shape) > 3 or side == 1:
        return FeatureNetwork(math.prod(shape), (512, 128), 8, carry=False)
    pixels = (shape[-2] // side) * (shape[-1] // side) * math.prod(shape[:-2])
    pool = nn.AvgPool2d(side, divisor_override=side)
    return nn.Sequential(pool, nn.Flatten(), FeatureNetwork(pixels, (512, 128), 8, carry=False))


def instrument_network(shape: Sequence[int]) -> FeatureNetwork:
    """Default ``phi``, on instruments and covariates together: they and 32 learned features."""
    return FeatureNetwork(math.prod(shape), (128, 64), 32)


def dfiv_instrument_network(shape: Sequence[int]) -> FeatureNetwork:
    """``phi`` of DFIV by default, half as wide: its last layer is solved, not learned, and it is half of what a step costs."""
    return FeatureNetwork(math.prod(shape), (64, 32), 32)


def covariate_network(shape: Sequence[int]) -> FeatureNetwork:
    """Default ``xi``: the covariates and 16 learned features."""
    return FeatureNetwork(math.prod(shape), (128, 32), 16)
