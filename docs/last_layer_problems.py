"""What docs/last_layers.py learns: data, a backbone, and how far a trained module is from right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import cfiv
from cfiv.datasets import burgers, cifar, darcy, digits
from cfiv.datasets.function_pairs import FunctionPairs
from cfiv.datasets.labelled_images import ImageClassification, LabelledImages

Examples = tuple[Tensor, ...]
ELSEWHERE = 10_000  # seeds of tests begin here


@dataclass(frozen=True)
class Problem:
    """A task of learning.

    Parameters
    ----------
    data : callable
        Examples (inputs, targets[, row weights]) to train on, and others to test on.
    module : callable
        A backbone with a linear last layer; drawn from torch's global generator.
    measure : callable
        From a fitted trainer and examples to the number to be small.
    name : str
        Of that number.
    batch_sizes : tuple of int
    tuning_epochs, epochs : int
        Of a fit that chooses a setting, and of one that counts.
    task : {"regression", "classification"}
    many_rows : bool
        Whether a batch has many more rows than the last layer has features.
    """

    data: Callable[[], tuple[Examples, Examples]]
    module: Callable[[], nn.Module]
    measure: Callable[[cfiv.LastLayerTrainer, Examples], float]
    name: str
    batch_sizes: tuple[int, ...]
    tuning_epochs: int
    epochs: int
    task: Literal["regression", "classification"] = "regression"
    many_rows: bool = False


def functions(pairs: FunctionPairs, other: FunctionPairs) -> tuple[Examples, Examples]:
    """Functions as images of one channel in units of their standard deviation; a function weighs 1 over its mean square.

    So the weighted mean squared error is the mean of squared relative errors.
    """
    inside, outside = pairs.inputs.std(), pairs.outputs.std()
    middle = 0.0 if pairs.inputs.min() < 0 else pairs.inputs.mean()

    def examples(pairs: FunctionPairs) -> Examples:
        x = torch.tensor((pairs.inputs - middle) / inside, dtype=torch.float32)[:, None]
        y = torch.tensor(pairs.outputs / outside, dtype=torch.float32)[:, None]
        return x, y, 1.0 / y.flatten(start_dim=1).square().mean(dim=1)

    return examples(pairs), examples(other)


def operator(*, modes: tuple[int, ...], width: int) -> nn.Module:
    """neuraloperator's FNO, four layers."""
    from neuralop.models import FNO

    return FNO(n_modes=modes, in_channels=1, out_channels=1, hidden_channels=width, n_layers=4)


class Residual(nn.Module):
    """``x + f(x)``, f two 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Same shape."""
        return torch.relu(images + self.inner(images))


def residual_network(*, channels: int, width: int, classes: int) -> nn.Module:
    """Two residual blocks on images, the second at half the resolution, and a linear layer on what is left of 4 x 4 places."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        Residual(width),
        nn.MaxPool2d(2),
        Residual(width),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def images(data: ImageClassification) -> tuple[Examples, Examples]:
    """Images between 0 and 1, those to train on in an order drawn once."""
    order = np.random.default_rng(0).permutation(len(data.train))

    def examples(part: LabelledImages, rows: npt.NDArray[np.int64]) -> Examples:
        return torch.tensor(part.images[rows], dtype=torch.float32) / data.brightest, torch.tensor(part.labels[rows])

    return examples(data.train, order), examples(data.test, np.arange(len(data.test)))


def synthetic() -> tuple[Examples, Examples]:
    """``y = sin(3 x_1) x_2 + |x_3| - x_4 x_5 + noise``, eight inputs uniform on (-1, 1), noise of standard deviation 0.1."""

    def examples(n: int, seed: int, noise: float) -> Examples:
        generator = torch.Generator().manual_seed(seed)
        x = 2.0 * torch.rand(n, 8, generator=generator) - 1.0
        y = (3.0 * x[:, 0]).sin() * x[:, 1] + x[:, 2].abs() - x[:, 3] * x[:, 4]
        return x, (y + noise * torch.randn(n, generator=generator))[:, None]

    return examples(2000, 0, 0.1), examples(2000, ELSEWHERE, 0.0)


def perceptron() -> nn.Module:
    """8-64-64-1."""
    return nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))


def relative(trainer: cfiv.LastLayerTrainer, examples: Examples) -> float:
    """Mean relative L2 error; every function counts the same, whatever it weighs in training."""
    return trainer.evaluate(examples[:2]).relative_l2


def squared(trainer: cfiv.LastLayerTrainer, examples: Examples) -> float:
    """Mean squared error."""
    return trainer.evaluate(examples).loss


def wrong(trainer: cfiv.LastLayerTrainer, examples: Examples) -> float:
    """Share of wrong classes."""
    return 1.0 - trainer.evaluate(examples).accuracy


def problems(cifar_folder: str | None = None) -> dict[str, Problem]:
    """By name; CIFAR-10 only where a person has it."""
    known = {
        "burgers": Problem(
            lambda: functions(burgers.simulate(1000, seed=0), burgers.simulate(200, seed=ELSEWHERE)),
            lambda: operator(modes=(32,), width=64),
            relative,
            "relative L2 error",
            (5, 20, 100),
            tuning_epochs=4,
            epochs=15,
            many_rows=True,
        ),
        "darcy": Problem(
            lambda: functions(darcy.simulate(300, points=32, seed=0), darcy.simulate(100, points=32, seed=ELSEWHERE)),
            lambda: operator(modes=(12, 12), width=24),
            relative,
            "relative L2 error",
            (5, 20, 100),
            tuning_epochs=6,
            epochs=20,
            many_rows=True,
        ),
        "digits": Problem(
            lambda: images(digits.load()),
            lambda: residual_network(channels=1, width=16, classes=10),
            wrong,
            "share of wrong digits",
            (16, 64, 256),
            tuning_epochs=6,
            epochs=20,
            task="classification",
        ),
        "synthetic": Problem(synthetic, perceptron, squared, "squared error", (32, 128, 512), tuning_epochs=50, epochs=200),
    }
    if cifar_folder is not None:
        known["cifar"] = Problem(
            lambda: images(cifar.load(cifar_folder)),
            lambda: residual_network(channels=3, width=32, classes=10),
            wrong,
            "share of wrong images",
            (32, 128, 512),
            tuning_epochs=1,
            epochs=5,
            task="classification",
        )
    return known
