"""Fits on a card are those of the processor, up to sums in another order, and what they leave is used anywhere."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cfiv
from cfiv import Adaptive, Gradient, Kalman, LastLayerTrainer, MovingAverage, Proximal, Ridge, TrainingWarning
from cfiv.datasets import demand
from cfiv.runtime.draws import seeded

FORMULA = "sales ~ time + emotion + [price ~ fuel]"
#: Of weights after a few steps of float64, whose sums a card takes in another order.
DOUBLE = 1e-7
#: Of curves, after a few steps.
CURVE = 1e-4


def module(dtype: torch.dtype = torch.float64) -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 2)).to(dtype)


def examples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = draw(200, 3)
    return x, torch.stack([x.prod(dim=1), x.square().sum(dim=1)], dim=1) + 0.1 * draw(200, 2), draw(200).abs()


def trained(device: str, layer: Any, *, steps: int = 20, **fit: Any) -> LastLayerTrainer:
    return LastLayerTrainer(module(), layer, batch_size=50, device=device).fit(examples(), steps=steps, **fit)


def weights(trainer: LastLayerTrainer) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in trainer.module.state_dict().items()}


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


LAYERS = [
    Adaptive(),
    Proximal(0.5, beta=1e-3),
    Ridge(0.1),
    Kalman(0.1, observation_noise=1.0),
    MovingAverage(0.5, beta=1e-3),
    Gradient(),
]


@pytest.mark.oracle
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_trainer_on_a_card_has_the_weights_of_the_processor(layer: Any) -> None:
    on_card = trained("cuda", layer)
    assert {value.device.type for value in on_card.module.state_dict().values()} == {"cuda"}
    assert_near(weights(trained("cpu", layer)), weights(on_card), DOUBLE)


@pytest.mark.contract
def test_predictions_come_back_to_where_the_inputs_are() -> None:
    trainer, (x, y, _) = trained("cuda", Ridge(0.1)), examples()
    assert trainer.predict(x).device.type == "cpu"
    assert trainer.predict(x.cuda()).device.type == "cuda"
    assert isinstance(trainer.predict(x.numpy()), np.ndarray)
    assert trainer.evaluate((x, y)).loss == pytest.approx(float((trainer.predict(x) - y).square().sum(dim=1).mean()))


@pytest.mark.law
@pytest.mark.parametrize(("before", "after"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_goes_on_on_any_device(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "run.safetensors"

    def stop(step: int, loss: float) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.warns(TrainingWarning, match="interrupted"):
        trained(before, Proximal(0.5), checkpoint=path, every=5, on_step=stop)
    going_on = trained(after, Proximal(0.5), checkpoint=path, every=5)
    assert len(going_on.history_) == 20
    assert_near(weights(trained(after, Proximal(0.5))), weights(going_on), DOUBLE)


def models(device: str) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": 20, "fits": 1, "random_state": 0, "device": device}
    return {
        "DFIV": cfiv.DFIV(FORMULA, nested=False, training=cfiv.Training(double=True), **options),
        "DFIV, penalised": cfiv.DFIV(
            FORMULA, nested=False, training=cfiv.Training(double=True), unpredicted_penalty=0.1, **options
        ),
        "NetworkRegression": cfiv.NetworkRegression(FORMULA, **options),
    }


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::cfiv.errors.CfivWarning")
@pytest.mark.parametrize("name", list(models("cpu")))
def test_an_estimator_on_a_card_has_the_curve_of_the_processor_and_is_loaded_there(tmp_path: Path, name: str) -> None:
    frame = demand.simulate(n=500, rho=0.5, seed=0)[0].frame
    at = [15.0, 20.0, 25.0]
    on_card, on_processor = models("cuda")[name].fit(frame), models("cpu")[name].fit(frame)
    curves = [model.dose_response(at)["estimate"].to_numpy() for model in (on_card, on_processor)]
    np.testing.assert_allclose(curves[0], curves[1], rtol=CURVE)
    on_card.save(tmp_path / "model")
    np.testing.assert_array_equal(cfiv.load(tmp_path / "model").dose_response(at)["estimate"].to_numpy(), curves[0])


def waits(steps: int) -> int:
    """How often a fit made the program wait for the card, which torch warns of where it is asked to."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trained("cuda", Proximal(0.5), steps=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


@pytest.mark.contract
def test_a_step_on_a_card_waits_for_it_no_more_often_than_it_reads_numbers() -> None:
    assert (waits(7) - waits(3)) / 4 <= 16  # 11 numbers, and what brings a batch there
