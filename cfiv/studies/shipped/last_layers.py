"""Methods that differ in their last layers: of the designs of ``learning_problems``, and DFIV on images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

import cfiv
from cfiv.checks import check_choice
from cfiv.errors import ParameterError
from cfiv.studies.metrics import Fit
from cfiv.studies.shipped.learning_problems import LearningData

if TYPE_CHECKING:
    from cfiv.learning.training import Order

#: Ridge of the refit, on squared errors of the order of one.
REFIT = 1e-8
#: What ``layer`` may be.
LAYERS = ("sgd", "adam", "cross-entropy", "ridge", "proximal", "kalman", "adaptive")
#: A number, or one for each batch size, by the batch size as text, as TOML has it.
BySize = float | Mapping[str, float]


@dataclass(kw_only=True)
class TrainedModule:
    """A module trained by :class:`cfiv.LastLayerTrainer`, in the form of a study's method: ``fit(data)``.

    Parameters
    ----------
    layer : str
        One of :data:`LAYERS`. "sgd" (momentum 0.9), "adam" and "cross-entropy" (Adam) take gradient steps on everything; the
        others solve the last layer while Adam moves the rest.
    batch_size, epochs : int
    rate : float
        Of the optimiser; falls to zero like a cosine.
    penalty : float
        ``beta`` of a ridge, ``lambda`` of a proximal layer, process noise of a Kalman layer; of the others none.
    order : str
        Of the two updates, for the layers that are solved.
    one_hot_scale : float
        Of the targets of classes.
    seed : int
        Of initial weights and batches.
    """

    layer: str
    batch_size: int
    epochs: int
    rate: float
    penalty: float
    order: Order
    one_hot_scale: float
    seed: int

    def fit(self, data: LearningData) -> Self:
        """Train; ``trainer`` is then the fitted trainer."""
        layers: dict[str, Any] = {
            "ridge": lambda: cfiv.Ridge(beta=self.penalty),
            "proximal": lambda: cfiv.Proximal(lam=self.penalty),
            "kalman": lambda: cfiv.Kalman(process_noise=self.penalty, observation_noise=1.0),
            "adaptive": cfiv.Adaptive,
        }
        optimizer = partial(torch.optim.SGD, momentum=0.9) if self.layer == "sgd" else torch.optim.Adam
        torch.manual_seed(self.seed)
        self.trainer = cfiv.LastLayerTrainer(
            data.backbone(),
            layers.get(self.layer, cfiv.Gradient)(),
            optimizer=partial(optimizer, lr=self.rate),
            order=self.order,
            learning_rate_schedule="cosine",
            task=data.task,
            one_hot_scale=self.one_hot_scale,
            loss="cross-entropy" if self.layer == "cross-entropy" else "squared",
            batch_size=self.batch_size,
            device="cpu",
            random_state=self.seed,
        )
        self.examples = data.examples
        self.trainer.fit(data.examples, epochs=self.epochs)
        return self


def last_layer(
    *,
    layer: str,
    batch_size: int,
    epochs: int,
    rate: BySize,
    penalty: BySize = 0.0,
    order: Order | Mapping[str, Order] = "solve-first",
    one_hot_scale: float = 1.0,
    seed: int,
) -> TrainedModule:
    """A :class:`TrainedModule`, whose rate, penalty and order may depend on the batch size.

    Raises
    ------
    ParameterError
        If the layer is unknown, or one of them has no value for the batch size.
    """
    check_choice("layer", layer, LAYERS)
    given = {"rate": rate, "penalty": penalty, "order": order}
    chosen = {name: _at(name, value, batch_size) for name, value in given.items()}
    return TrainedModule(layer=layer, batch_size=batch_size, epochs=epochs, one_hot_scale=one_hot_scale, seed=seed, **chosen)


def dfiv_on_images(
    *,
    penalty: BySize,
    layer: str,
    report: Literal["refit", "current", "last"],
    batch_size: int,
    seed: int,
) -> cfiv.DFIV:
    """DFIV for images with one split, as in the papers, and a ridge or a proximal last layer in all its solves.

    ``report="last"`` takes the very last solves of training; "refit" and "current" are those of :class:`cfiv.DFIV`. A proximal
    layer has the default ridge beside it.

    Raises
    ------
    ParameterError
        If the layer is unknown, or the penalty has no value for the batch size.
    """
    check_choice("layer", layer, ("ridge", "proximal"))
    size = _at("penalty", penalty, batch_size)
    pull = size if layer == "proximal" else 0.0
    ridges: dict[str, Any] = {} if layer == "proximal" else {"ridge1": size, "ridge2": size}
    return cfiv.DFIV(
        lambda1=pull,
        lambda2=pull,
        lambda12=pull,
        batch_size=batch_size,
        swap=False,
        report="refit" if report == "refit" else "current",
        training=cfiv.Training(rest=0.0) if report == "last" else None,
        device="cpu",
        progress=False,
        random_state=seed,
        **ridges,
    )


def refit(fit: Fit) -> float:
    """A metric: the error after one more solve of the last layer, on all training examples."""
    model = copy.copy(fit.model)
    model.trainer = copy.deepcopy(fit.model.trainer).refit(model.examples, beta=REFIT)
    return float(fit.truth.error(model))


def _at(name: str, value: Any, batch_size: int) -> Any:
    """A value, or that of a batch size."""
    if not isinstance(value, Mapping):
        return value
    if str(batch_size) not in value:
        raise ParameterError(f"{name} has no value for batches of {batch_size}: it has {', '.join(value)}")
    return value[str(batch_size)]
