"""The networks of Xu et al. (2021), on the demand design and on dSprites, and the other arguments that go with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cfiv.learning.training import Training


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
    first = (nn.Flatten(), _spectral(math.prod(shape), 1024), nn.ReLU(), _spectral(1024, 512), nn.ReLU(), nn.BatchNorm1d(512))
    return nn.Sequential(*first, _spectral(512, 128), nn.ReLU(), _spectral(128, 32), nn.BatchNorm1d(32), nn.Tanh())


def original_image_instrument_network(inputs: int) -> nn.Module:
    """``phi`` of Xu et al. 2021 on dSprites: 3-256-128-BN-128-BN-32-BN-ReLU, ReLU, spectral normalisation of every layer."""
    first = (_spectral(inputs, 256), nn.ReLU(), _spectral(256, 128), nn.ReLU(), nn.BatchNorm1d(128))
    second = (_spectral(128, 128), nn.ReLU(), nn.BatchNorm1d(128))
    return nn.Sequential(*first, *second, _spectral(128, 32), nn.BatchNorm1d(32), nn.ReLU())


def _spectral(inputs: int, outputs: int) -> nn.Module:
    """A linear layer whose weights are divided by their largest singular value."""
    return nn.utils.parametrizations.spectral_norm(nn.Linear(inputs, outputs))


#: Arguments of :meth:`cfiv.DFIV.original`.
ORIGINAL: Mapping[str, Any] = {
    "treatment_network": original_treatment_network,
    "instrument_network": original_instrument_network,
    "covariate_network": original_covariate_network,
    "lambda1": 0.0,
    "lambda2": 0.0,
    "lambda12": 0.0,
    "ridge1": 0.1,
    "ridge2": 0.1,
    "unpredicted_penalty": 0.0,
    "batch_size": None,
    "steps": 100,
    "learning_rate": 1e-3,
    "weight_decay": (0.0, 0.0, 4e-5),
    "standardise": False,
    "swap": False,
    "fits": 1,
    "nested": False,
    "training": Training(
        stage1_steps=20,
        covariate_steps=20,
        learning_rate_schedule="constant",
        decoupled_weight_decay=False,
        rest=0.0,
        holdout=0.0,
        checks=20,
        refit_ridges=(),
    ),
}
#: Of :meth:`cfiv.DFIV.original_image`.
ORIGINAL_IMAGE: Mapping[str, Any] = {
    **ORIGINAL,
    "treatment_network": original_image_treatment_network,
    "instrument_network": original_image_instrument_network,
    "weight_decay": (4e-5, 4e-5, 0.0),
}
