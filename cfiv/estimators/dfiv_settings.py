"""The hyper-parameters of a DFIV: checked, and what "auto" and None stand for."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING

from cfiv.checks import check_choice, check_flag, check_instance, check_number, check_random_state, refusal
from cfiv.estimators.budget import check_fits, check_training_steps
from cfiv.estimators.parameters import learning_rates, per_network
from cfiv.learning.deadline import check_max_seconds
from cfiv.learning.last_layer import Proximal
from cfiv.learning.samples import check_batch_size
from cfiv.learning.solving import check_last_layer
from cfiv.learning.training import Training
from cfiv.objectives.dfiv_step import LastLayers
from cfiv.runtime.devices import resolve_device

if TYPE_CHECKING:
    from cfiv.estimators.dfiv import DFIV

#: What "auto" stands for on images.
IMAGE_UNPREDICTED_PENALTY = 1.0


def check_dfiv(model: DFIV) -> None:
    """Raise a ParameterError for hyper-parameters out of range."""
    check_training_steps(model.steps)
    check_max_seconds(model.max_seconds)
    check_fits(model.fits)
    check_choice("structure", model.structure, ("product", "additive"))
    check_choice("report", model.report, ("refit", "current"))
    for flag in ("standardise", "swap", "nested", "progress"):
        check_flag(flag, getattr(model, flag))
    check_instance("training", model.training, (Training, NoneType), "a cfiv.Training or None")
    check_random_state(model.random_state)
    for name in ("lambda1", "lambda2", "lambda12", "ridge1", "ridge2"):
        check_number(name, getattr(model, name), least=0.0)
    last_layers(model)
    unpredicted_penalty(model, images=False)
    learning_rates(model.learning_rate, images=False)
    per_network("weight_decay", model.weight_decay)
    resolve_device(model.device)
    check_batch_size(model.batch_size)


def training_options(model: DFIV) -> Training:
    """Those given, or the defaults."""
    return Training() if model.training is None else model.training


def swaps(model: DFIV) -> tuple[bool, ...]:
    """Whether the samples have swapped roles, of the functions of one split."""
    return (False, True) if model.swap and training_options(model).split is not None else (False,)


def last_layers(model: DFIV) -> LastLayers:
    """V in both stages and u as they stand at the end of training."""
    given = model.last_layer
    if given is None:
        return LastLayers(
            v1=Proximal(model.lambda1, beta=model.ridge1),
            v12=Proximal(model.lambda12, beta=model.ridge1),
            u=Proximal(model.lambda2, beta=model.ridge2),
        )
    layers = tuple(given) if isinstance(given, tuple | list) else (given, given, given)
    if len(layers) != 3:
        raise refusal("last_layer", "one layer, or three: of V in stage 1, of V in stage 2, and of u", given)
    for layer in layers:
        check_last_layer(layer)
    return LastLayers(*layers)


def unpredicted_penalty(model: DFIV, *, images: bool) -> float:
    """``gamma``."""
    given = model.unpredicted_penalty
    if isinstance(given, str) and given == "auto":
        return IMAGE_UNPREDICTED_PENALTY if images else 0.0
    return check_number("unpredicted_penalty", given, least=0.0, alternative="or 'auto'")
