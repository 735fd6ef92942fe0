"""DFIV as Xu et al. (2021) configured it, on the demand design and on dSprites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfiv.learning.training import Training
from cfiv.networks.original_networks import (
    original_covariate_network,
    original_image_instrument_network,
    original_image_treatment_network,
    original_instrument_network,
    original_treatment_network,
)

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
