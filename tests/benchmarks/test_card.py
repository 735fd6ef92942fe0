"""Fits and steps of the trainer on a card against the processor of the same machine: ``make bench``, or run this file.

    python tests/benchmarks/test_card.py            # the first card against the processor
    python tests/benchmarks/test_card.py cpu cpu    # the same twice: shows that it runs

Each line has the median time of REPEATS on either device, after one that is not counted, and their ratio.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cfiv
from cfiv import Adaptive, Gradient, LastLayerTrainer, Proximal
from cfiv.datasets import demand

REPEATS = 3
FORMULA = "sales ~ time + emotion + [price ~ fuel]"


def name_of(device: str) -> str:
    """The card's name, or that of the processor with its threads."""
    if device == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(torch.device(device))


def dfiv(device: str, *, rows: int, batch: int, steps: int) -> Callable[[], object]:
    """The demand design, with default networks."""
    frame = demand.simulate(n=rows, rho=0.5, seed=0)[0].frame
    model = cfiv.DFIV(
        FORMULA, steps=steps, batch_size=batch, fits=1, nested=False, random_state=0, progress=False, device=device
    )
    return lambda: model.fit(frame)


def residual_network(outputs: int) -> nn.Module:
    """Of images 3 x 32 x 32, with group normalisation."""

    def block(inputs: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )

    return nn.Sequential(
        block(3, 64), block(64, 128), block(128, 256), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, outputs)
    )


def images(device: str, layer: Any, *, batch: int, steps: int) -> Callable[[], object]:
    """Ten classes of noise: the time of a step does not depend on what it learns."""
    torch.manual_seed(0)
    x, labels = torch.randn(2 * batch, 3, 32, 32), torch.randint(10, (2 * batch,))
    trainer = LastLayerTrainer(residual_network(10), layer, task="classification", batch_size=batch, device=device)
    return lambda: trainer.fit((x, labels), steps=steps)


def tasks(device: str, *, steps: int) -> dict[str, Callable[[], object]]:
    """What is timed, by its name."""
    return {
        f"DFIV, 5,000 rows, batches of 128, {steps} steps": dfiv(device, rows=5000, batch=128, steps=steps),
        f"DFIV, 50,000 rows, batches of 8,192, {steps} steps": dfiv(device, rows=50_000, batch=8192, steps=steps),
        f"images, 128 a batch, Adaptive, {steps} steps": images(device, Adaptive(), batch=128, steps=steps),
        f"images, 128 a batch, Proximal, {steps} steps": images(device, Proximal(0.5), batch=128, steps=steps),
        f"images, 128 a batch, Gradient, {steps} steps": images(device, Gradient(), batch=128, steps=steps),
    }


def seconds(task: Callable[[], object], device: str) -> float:
    """Of one call, until the device has done it."""
    started = time.perf_counter()
    task()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def compare(card: str, processor: str, *, steps: int, repeats: int = REPEATS) -> dict[str, tuple[float, float]]:
    """Median seconds of every task on either device, printed."""
    print(f"\ncard: {name_of(card)}\nprocessor: {name_of(processor)}\ntorch {torch.__version__}")
    found = {}
    for name in tasks("cpu", steps=steps):
        medians = []
        for device in (card, processor):
            task = tasks(device, steps=steps)[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", cfiv.CfivWarning)
                task()
                medians.append(statistics.median(seconds(task, device) for _ in range(repeats)))
        found[name] = (medians[0], medians[1])
        print(
            f"{name}: {medians[0]:.2f} s on the card, {medians[1]:.2f} s on the processor, ratio {medians[1] / medians[0]:.1f}"
        )
    return found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_large_batches_of_images_are_faster_on_a_card() -> None:
    found = compare("cuda", "cpu", steps=20)
    assert all(card < processor for name, (card, processor) in found.items() if name.startswith("images"))


if __name__ == "__main__":
    card, processor = (sys.argv[1:] + ["cuda", "cpu"][len(sys.argv) - 1 :])[:2]
    compare(card, processor, steps=20)
