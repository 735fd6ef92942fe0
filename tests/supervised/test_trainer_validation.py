"""Validation data: which state a trainer leaves, when it stops, and that looking changes nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cfiv import DataError, Kalman, LastLayerTrainer, ParameterError, Ridge, TrainingWarning
from cfiv.errors import ModelFileError
from cfiv.learning.early_stopping import standard_errors_above_zero
from cfiv.runtime.draws import seeded

ADAM = partial(torch.optim.Adam, lr=1e-2)


def module(outputs: int = 1) -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(nn.Linear(3, 30), nn.BatchNorm1d(30), nn.Dropout(0.1), nn.Tanh(), nn.Linear(30, outputs))


def examples(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Little to learn and much noise, so that a large network on few rows overfits."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    return x, x[:, :1] + torch.randn(rows, 1, generator=generator)


TRAIN, HELD = examples(60, 1), examples(200, 2)


def trainer(**options: Any) -> LastLayerTrainer:
    return LastLayerTrainer(module(), **{"last_layer": Ridge(1e-3), "optimizer": ADAM, "batch_size": 30, **options})


def tensors(trained: LastLayerTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained.module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Watched:
    """The states, and squared errors on the validation data, after all steps."""

    def __init__(self, **fit: Any) -> None:
        self.trainer, self.states, self.errors = trainer(), list[dict[str, Tensor]](), list[Tensor]()
        self.trainer.fit(TRAIN, on_step=self.look, **fit)

    def look(self, step: int, loss: float) -> None:
        self.states.append(tensors(self.trainer))
        self.errors.append((self.trainer.predict(HELD[0]).double() - HELD[1].double()).square()[:, 0])


@pytest.mark.law
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 3.0])
def test_the_latest_state_whose_validation_loss_is_not_significantly_above_the_lowest_is_left(tolerance: float) -> None:
    run = Watched(steps=60, validation=HELD, checks=12, tolerance=tolerance, patience=99)
    checked = range(5, 61, 5)
    errors = {step: run.errors[step - 1] for step in checked}
    history = run.trainer.history_.set_index("step")["validation_loss"]
    assert history.dropna().index.tolist() == list(checked)
    np.testing.assert_allclose(history.dropna(), [float(errors[step].mean()) for step in checked], rtol=1e-12)
    best, kept = 5, 5
    for step in checked:
        best = step if errors[step].mean() < errors[best].mean() else best
        kept = step if standard_errors_above_zero(errors[step] - errors[best]) <= tolerance else kept
    assert kept < 60 or tolerance > 1
    assert same(tensors(run.trainer), run.states[kept - 1])
    assert run.trainer.ended_ == "finished"
    assert run.trainer.evaluate(HELD).loss == pytest.approx(history[kept], rel=1e-12)


@pytest.mark.law
def test_validation_changes_no_training_number_before_it_stops_the_training() -> None:
    plain = trainer().fit(TRAIN, steps=200)
    assert list(plain.history_) == ["step", "epoch", "loss"]
    stopped = trainer().fit(TRAIN, steps=200, validation=HELD, checks=40, patience=3)
    assert stopped.ended_ == "stopped early"
    steps = len(stopped.history_)
    assert 15 <= steps < 200
    pd.testing.assert_frame_equal(stopped.history_[["step", "epoch", "loss"]], plain.history_[:steps], check_exact=True)
    assert stopped.evaluate(HELD).loss < plain.evaluate(HELD).loss


@pytest.mark.law
def test_it_stops_after_as_many_clear_rises_in_a_row_as_patience_says() -> None:
    run = Watched(steps=200, validation=HELD, checks=40, patience=3)
    checked = range(5, len(run.states) + 1, 5)
    best, risen = run.errors[4], 0
    for step in checked:
        assert risen < 3
        now = run.errors[step - 1]
        best = now if now.mean() < best.mean() else best
        risen = risen + 1 if standard_errors_above_zero(now - best) > 2 else 0
    assert risen == 3


class Killed(BaseException):
    """Nobody catches it."""


@pytest.mark.law
@pytest.mark.parametrize("layer", [Ridge(1e-3), Kalman(0.1, observation_noise=1.0)], ids=repr)
@pytest.mark.parametrize("killed", [[3], [22], [13, 20, 31]])
def test_a_killed_run_with_validation_data_goes_on_bit_for_bit(tmp_path: Path, layer: Any, killed: list[int]) -> None:
    def fit(*, stop: int | None = None, **fit: Any) -> LastLayerTrainer:
        def on_step(step: int, loss: float) -> None:
            if step == stop:
                raise Killed

        return trainer(last_layer=layer).fit(TRAIN, steps=200, validation=HELD, checks=40, patience=4, on_step=on_step, **fit)

    undisturbed, file = fit(), tmp_path / "run"
    assert undisturbed.ended_ == "stopped early"
    for stop in killed:
        with pytest.raises(Killed):
            fit(stop=stop, checkpoint=file, every=6)
    for _ in range(2):  # the second time it is over already
        resumed = fit(checkpoint=file, every=6)
        assert resumed.ended_ == "stopped early"
        pd.testing.assert_frame_equal(resumed.history_, undisturbed.history_, check_exact=True)
        assert same(tensors(resumed), tensors(undisturbed))


def test_a_checkpoint_knows_its_validation(tmp_path: Path) -> None:
    file = tmp_path / "run"
    trainer().fit(TRAIN, steps=4, validation=HELD, checkpoint=file)
    for change in ({"validation": examples(200, 3)}, {"validation": None}, {"checks": 3}, {"tolerance": 2}, {"patience": 3}):
        with pytest.raises(ModelFileError, match=r"another model or configuration \(validation was "):
            trainer().fit(TRAIN, **{"steps": 4, "validation": HELD, "checkpoint": file, **change})  # type: ignore[arg-type]


@pytest.mark.law
@pytest.mark.parametrize("own", [False, True], ids=["global generator", "generator of its own"])
def test_a_loader_of_validation_data_may_shuffle_and_share_a_generator_with_that_of_training(own: bool) -> None:
    """One pass of it is kept: differences are those of the same examples, and the order of training is what it was."""

    def fit(*, validated: bool) -> tuple[LastLayerTrainer, DataLoader[Any]]:
        generator = torch.Generator().manual_seed(3) if own else None
        loaders = [DataLoader(TensorDataset(*data), batch_size=23, shuffle=True, generator=generator) for data in (TRAIN, HELD)]
        given = {"validation": loaders[1], "patience": 99, "tolerance": float("inf")} if validated else {}
        return trainer().fit(loaders[0], steps=20, **given), loaders[1]

    (plain, _), (validated, loader) = fit(validated=False), fit(validated=True)
    assert same(tensors(plain), tensors(validated))
    assert validated.history_["validation_loss"].iloc[-1] == pytest.approx(validated.evaluate(loader).loss, rel=1e-6)


@pytest.mark.law
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_validation_loss_of_weighted_examples_on_a_grid_is_the_loss_of_evaluate(task: str) -> None:
    class Pointwise(nn.Module):
        """Channels first inside, last outside; with grids of any size."""

        def __init__(self) -> None:
            super().__init__()
            with seeded(0, torch.device("cpu")):
                self.lift, self.project = nn.Conv1d(1, 5, 1), nn.Conv1d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.project(torch.tanh(self.lift(x.movedim(-1, 1)))).movedim(1, -1)
            return out

    def pairs(points: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(10, points, 1, generator=generator)
        y = (x[..., 0] > 0).long() if task == "classification" else torch.cat([x.square(), x], dim=2)
        return x, y, torch.rand(10, generator=generator)

    held = [pairs(6, 1), pairs(9, 2)]
    fitted = LastLayerTrainer(Pointwise(), Ridge(0.1), task=task).fit(  # type: ignore[arg-type]
        pairs(7, 0), steps=5, validation=held, tolerance=float("inf")
    )
    assert fitted.history_["validation_loss"].iloc[-1] == pytest.approx(fitted.evaluate(held).loss, rel=1e-12)


def test_an_interrupted_fit_leaves_the_state_that_validation_keeps_and_before_a_check_what_it_had_reached() -> None:
    def fit(stop: int) -> LastLayerTrainer:
        def on_step(step: int, loss: float) -> None:
            if step == stop:
                raise KeyboardInterrupt

        return trainer().fit(TRAIN, steps=20, validation=HELD, checks=4, on_step=on_step)

    with pytest.warns(TrainingWarning, match=r"interrupted at step 7 of 20; the state of step 5 is kept and usable"):
        kept = fit(7)
    assert kept.ended_ == "interrupted"
    assert kept.evaluate(HELD).loss == pytest.approx(kept.history_["validation_loss"][4], rel=1e-12)
    with pytest.warns(TrainingWarning, match=r"interrupted at step 3 of 20; what it had reached is kept and usable"):
        assert fit(3).history_["validation_loss"].isna().all()


def test_a_fit_that_diverges_leaves_the_state_that_validation_keeps() -> None:
    batches = [TRAIN] * 5 + [(TRAIN[0], TRAIN[1] * torch.nan)]
    fitted = trainer()
    with pytest.warns(TrainingWarning, match=r"stopped at step 6 of 12: .*; the state of step 4 is kept and usable; lower"):
        fitted.fit(batches, steps=12, validation=HELD, checks=6, tolerance=float("inf"))
    assert fitted.ended_ == "diverged"
    assert fitted.evaluate(HELD).loss == pytest.approx(fitted.history_["validation_loss"][3], rel=1e-12)


def test_a_run_that_goes_on_and_diverges_at_once_leaves_the_state_that_validation_keeps(tmp_path: Path) -> None:
    def fit(last: float, **fit: Any) -> LastLayerTrainer:
        """Nothing is known of the loader but its first batch."""

        class Batches:
            def __iter__(self) -> Any:
                return iter([TRAIN] * 4 + [(TRAIN[0], TRAIN[1] * last)])

        rule = {"validation": HELD, "checks": 4, "tolerance": float("inf")}
        return trainer().fit(Batches(), steps=8, checkpoint=tmp_path / "run", every=4, **rule, **fit)

    def on_step(step: int, loss: float) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(1.0, on_step=on_step)
    with pytest.warns(TrainingWarning, match=r"stopped at step 5 of 8: .*; the state of step 4 is kept and usable; lower"):
        fitted = fit(float("nan"))
    assert fitted.ended_ == "diverged"
    assert fitted.evaluate(HELD).loss == pytest.approx(fitted.history_["validation_loss"][3], rel=1e-12)


@pytest.mark.parametrize(
    ("fit", "error", "message"),
    [
        ({"validation": 3}, DataError, r"data must be \(inputs, targets"),
        ({"validation": (HELD[0][:, :2], HELD[1])}, DataError, r"does not take inputs of shape \(200, 2\)"),
        ({"validation": (HELD[0], HELD[1].repeat(1, 2))}, DataError, r"targets must have the shape of the module's output"),
        ({"validation": (HELD[0], HELD[1] * torch.nan)}, DataError, "targets"),
        ({"validation": []}, DataError, "yields no batch"),
        ({"validation": HELD, "checks": 0}, ParameterError, "checks must be a whole number >= 1, got 0"),
        ({"validation": HELD, "patience": 1.5}, ParameterError, "patience must be a whole number >= 1, got 1.5"),
        ({"validation": HELD, "tolerance": -1}, ParameterError, "tolerance must be .*, got -1"),
    ],
)
def test_bad_validation_is_refused_before_training(fit: dict[str, Any], error: type[Exception], message: str) -> None:
    fresh = trainer()
    with pytest.raises(error, match=message):
        fresh.fit(TRAIN, steps=2, **fit)
    assert same(tensors(fresh), dict(module().state_dict()))


def test_tables_of_validation_have_the_columns_of_training() -> None:
    table = pd.DataFrame(TRAIN[0].numpy(), columns=list("abc"))
    with pytest.raises(DataError, match=r"must have the columns of training, \['a', 'b', 'c'\], got \['c', 'b', 'a'\]"):
        trainer().fit((table, TRAIN[1]), steps=2, validation=(table[list("cba")], TRAIN[1]))
