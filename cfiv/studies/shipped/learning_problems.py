"""Designs whose truth is a test set: what trained modules with a linear last layer are compared on.

Each is ``(*, seed) -> (LearningData, HeldOutExamples)``. With ``tuning=True`` the test examples are the last fifth
of those to train on, so that settings can be chosen without the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfiv.datasets import burgers as burgers_equation
from cfiv.datasets import cifar as cifar_images
from cfiv.datasets import darcy as darcy_equation
from cfiv.datasets import digits as digit_images
from cfiv.datasets import gratings as grating_images
from cfiv.errors import MissingPackageError
from cfiv.studies.identity import seed_of

if TYPE_CHECKING:
    from cfiv.datasets.function_pairs import FunctionPairs
    from cfiv.datasets.labelled_images import ImageClassification, LabelledImages
    from cfiv.supervised.trainer import LastLayerTrainer

Examples = tuple[Tensor, ...]
Measure = Callable[["LastLayerTrainer", Examples], float]


@dataclass(frozen=True, eq=False)
class LearningData:
    """What a method learns from.

    Parameters
    ----------
    examples : tuple of tensors
        Inputs, targets and, for operators, a weight an example.
    backbone : callable
        A module with a linear last layer, drawn from torch's global generator.
    task : {"regression", "classification"}
    """

    examples: Examples
    backbone: Callable[[], nn.Module]
    task: Literal["regression", "classification"] = "regression"


@dataclass(frozen=True, eq=False)
class HeldOutExamples:
    """What a trained module is measured on.

    Parameters
    ----------
    examples : tuple of tensors
    measure : callable
        From a trainer and examples to the number to be small.
    """

    examples: Examples
    measure: Measure

    def error(self, model: Any) -> float:
        """The measure of ``model.trainer``."""
        return self.measure(model.trainer, self.examples)


Learning = tuple[LearningData, HeldOutExamples]


def burgers(n: int = 1000, *, points: int = 256, tuning: bool = False, seed: int) -> Learning:
    """Burgers' equation, initial function to solution; a Fourier neural operator of width 64 with 32 modes; relative L2 error.

    Needs the extra ``cfiv[operators]``. 200 functions for the test.
    """
    pairs = burgers_equation.simulate(n, points=points, seed=seed)
    train, test = _functions(pairs, burgers_equation.simulate(200, points=points, seed=seed_of("test", seed)))
    return _design(train, test, partial(_operator, modes=(32,), width=64), _relative, tuning=tuning)


def darcy(n: int = 300, *, points: int = 32, tuning: bool = False, seed: int) -> Learning:
    """Darcy flow, permeability to pressure; an operator of width 24 with 12 x 12 modes; relative L2 error.

    Needs the extra ``cfiv[operators]``. 100 fields for the test.
    """
    pairs = darcy_equation.simulate(n, points=points, seed=seed)
    train, test = _functions(pairs, darcy_equation.simulate(100, points=points, seed=seed_of("test", seed)))
    return _design(train, test, partial(_operator, modes=(12, 12), width=24), _relative, tuning=tuning)


def digits(*, tuning: bool = False, seed: int) -> Learning:
    """scikit-learn's digits in an order of the seed; a residual network of width 16; share of wrong classes."""
    train, test = _images(digit_images.load(), seed)
    backbone = partial(residual_network, channels=1, width=16, classes=10)
    return _design(train, test, backbone, _wrong, tuning=tuning, task="classification")


def cifar(folder: str, *, tuning: bool = False, seed: int) -> Learning:
    """CIFAR-10 from the folder of its archive; a residual network of width 32; share of wrong classes."""
    train, test = _images(cifar_images.load(folder), seed)
    backbone = partial(residual_network, channels=3, width=32, classes=10)
    return _design(train, test, backbone, _wrong, tuning=tuning, task="classification")


def gratings(n: int = 10_000, *, classes: int = 10, tuning: bool = False, seed: int) -> Learning:
    """Simulated colour images of 32 x 32 pixels; a residual network of width 16 at half of that; share of wrong classes.

    2000 images for the test; 10, 100 or 1000 classes. The best classifier is wrong at .046, .089 and .130 of the images.
    """
    train, test = _images(grating_images.simulate(n, classes=classes, seed=seed), seed)
    backbone = partial(residual_network, channels=3, width=16, classes=classes, stride=2)
    return _design(train, test, backbone, _wrong, tuning=tuning, task="classification")


def synthetic(n: int = 2000, *, tuning: bool = False, seed: int) -> Learning:
    """``y = sin(3 x_1) x_2 + |x_3| - x_4 x_5 + noise``, eight inputs uniform on (-1, 1), noise of standard deviation 0.1.

    A perceptron 8-64-64-1; squared error on 2000 examples without noise.
    """
    train, test = _rows(n=n, seed=seed, noise=0.1), _rows(n=2000, seed=seed_of("test", seed), noise=0.0)
    return _design(train, test, _perceptron, _squared, tuning=tuning)


def _design(
    train: Examples,
    test: Examples,
    backbone: Callable[[], nn.Module],
    measure: Measure,
    *,
    tuning: bool,
    task: Literal["regression", "classification"] = "regression",
) -> Learning:
    if tuning:
        cut = 4 * len(train[0]) // 5
        train, test = tuple(part[:cut] for part in train), tuple(part[cut:] for part in train)
    return LearningData(train, backbone, task), HeldOutExamples(test, measure)


def _functions(pairs: FunctionPairs, other: FunctionPairs) -> tuple[Examples, Examples]:
    """Functions as images of one channel in units of their standard deviation; a function weighs 1 over its mean square.

    So the weighted mean squared error is the mean of squared relative errors. Inputs that are all positive are centred.
    """
    inside, outside = pairs.inputs.std(), pairs.outputs.std()
    middle = 0.0 if pairs.inputs.min() < 0.0 else pairs.inputs.mean()

    def examples(pairs: FunctionPairs) -> Examples:
        x = torch.tensor((pairs.inputs - middle) / inside, dtype=torch.float32)[:, None]
        y = torch.tensor(pairs.outputs / outside, dtype=torch.float32)[:, None]
        return x, y, 1.0 / y.flatten(start_dim=1).square().mean(dim=1)

    return examples(pairs), examples(other)


def _images(data: ImageClassification, seed: int) -> tuple[Examples, Examples]:
    """Images between 0 and 1, those to train on in a random order."""

    def examples(part: LabelledImages, rows: npt.NDArray[np.int64]) -> Examples:
        return torch.tensor(part.images[rows], dtype=torch.float32) / data.brightest, torch.tensor(part.labels[rows])

    order = np.random.default_rng(seed).permutation(len(data.train))
    return examples(data.train, order), examples(data.test, np.arange(len(data.test)))


def _rows(*, n: int, seed: int, noise: float) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(n, 8, generator=generator) - 1.0
    y = (3.0 * x[:, 0]).sin() * x[:, 1] + x[:, 2].abs() - x[:, 3] * x[:, 4]
    return x, (y + noise * torch.randn(n, generator=generator))[:, None]


def _relative(trainer: LastLayerTrainer, examples: Examples) -> float:
    """Mean relative L2 error; every function counts the same, whatever it weighs in training."""
    return trainer.evaluate(examples[:2]).relative_l2


def _squared(trainer: LastLayerTrainer, examples: Examples) -> float:
    return trainer.evaluate(examples).loss


def _wrong(trainer: LastLayerTrainer, examples: Examples) -> float:
    return 1.0 - trainer.evaluate(examples).accuracy


def _operator(*, modes: tuple[int, ...], width: int) -> nn.Module:
    """neuraloperator's FNO, four layers."""
    try:
        from neuralop.models import FNO
    except ImportError:
        raise MissingPackageError(
            "Fourier neural operators need neuraloperator, which is not installed: pip install 'cfiv[operators]'"
        ) from None
    module: nn.Module = FNO(n_modes=modes, in_channels=1, out_channels=1, hidden_channels=width, n_layers=4)
    return module


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))


class _Residual(nn.Module):
    """``x + f(x)``, f two 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Same shape."""
        return torch.relu(images + self.inner(images))


def residual_network(*, channels: int, width: int, classes: int, stride: int = 1, features: int = 64) -> nn.Module:
    """Two residual blocks on images, the second at half the resolution, and a linear layer on what is left of 4 x 4 places.

    The blocks are on images of a ``stride``-th of the resolution; the last layer is one of so many ``features``.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1),
        nn.ReLU(),
        _Residual(width),
        nn.MaxPool2d(2),
        _Residual(width),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, features),
        nn.ReLU(),
        nn.Linear(features, classes),
    )
