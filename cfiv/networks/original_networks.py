"""The networks of Xu et al. (2021), on the demand design and on dSprites."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def original_treatment_network(inputs: int) -> nn.Module:
    """``psi`` of Xu et al. 2021 on the demand design: 1-16-1, ReLU."""
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 1))


def original_instrument_network(inputs: int) -> nn.Module:
    """``phi`` of Xu et al. 2021 on the demand design: 3-128-64-32, ReLU, batch normalisation last."""
    hidden = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(64, 32), nn.BatchNorm1d(32))


def original_covariate_network(inputs: int) -> nn.Module:
    """``xi`` of Xu et al. 2021 on the demand design: 2-128-32-16, ReLU, batch normalisation after the second layer."""
    hidden = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(32, 16), nn.ReLU())


def original_image_treatment_network(shape: Sequence[int]) -> nn.Module:
    """``psi`` of Xu et al. 2021 on dSprites: 4096-1024-512-BN-128-32-BN-Tanh, ReLU, spectral normalisation of every layer."""
    first = (
        nn.Flatten(),
        _spectral(math.prod(shape), after=1024),
        nn.ReLU(),
        _spectral(1024, after=512),
        nn.ReLU(),
        nn.BatchNorm1d(512),
    )
    return nn.Sequential(*first, _spectral(512, after=128), nn.ReLU(), _spectral(128, after=32), nn.BatchNorm1d(32), nn.Tanh())


def original_image_instrument_network(inputs: int) -> nn.Module:
    """``phi`` of Xu et al. 2021 on dSprites: 3-256-128-BN-128-BN-32-BN-ReLU, ReLU, spectral normalisation of every layer."""
    first = (_spectral(inputs, after=256), nn.ReLU(), _spectral(256, after=128), nn.ReLU(), nn.BatchNorm1d(128))
    second = (_spectral(128, after=128), nn.ReLU(), nn.BatchNorm1d(128))
    return nn.Sequential(*first, *second, _spectral(128, after=32), nn.BatchNorm1d(32), nn.ReLU())


def _spectral(before: int, *, after: int) -> nn.Module:
    """A linear layer from one width to another, its weights divided by their largest singular value."""
    return nn.utils.parametrizations.spectral_norm(nn.Linear(before, after))
