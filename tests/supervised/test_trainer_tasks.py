"""What the trainer takes: operators on any grid, classes, and every way in which a module or data may not fit."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfiv import (
    Adaptive,
    DataError,
    DivergenceError,
    Gradient,
    Kalman,
    LastLayerTrainer,
    MovingAverage,
    NotFittedError,
    ParameterError,
    Proximal,
    Ridge,
    TrainingWarning,
)
from cfiv.runtime.draws import seeded
from cfiv.supervised.last_linear_map import find_last_linear_map

SAME = 1e-10
SGD = partial(torch.optim.SGD, lr=0.05)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(*layers: Callable[[], nn.Module]) -> nn.Sequential:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(*(layer() for layer in layers)).double()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([torch.zeros(0), *(p.detach().flatten() for p in module.parameters())])


@pytest.mark.law
@pytest.mark.parametrize("layer", [Proximal(0.3, beta=0.01), Kalman(0.2, observation_noise=1.0), Gradient(SGD)], ids=repr)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_1x1_convolution_is_a_linear_layer_on_the_points_of_the_grid(dimensions: int, layer: Proximal) -> None:
    """A pointwise backbone, so that the same examples can be given point by point."""
    convolution, grid = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1], (4, 3, 2)[:dimensions]
    pointwise = made(lambda: convolution(2, 5, 1), nn.Tanh, lambda: convolution(5, 3, 1))
    linear = made(lambda: nn.Linear(2, 5), nn.Tanh, lambda: nn.Linear(5, 3))
    with torch.no_grad():
        for to, source in zip(linear.parameters(), pointwise.parameters(), strict=True):
            to.copy_(source.reshape(to.shape))
    x, y, w = draws(6, 2, *grid), draws(6, 3, *grid, seed=1), draws(6, seed=2).abs()
    rows = [part.movedim(1, -1).flatten(end_dim=-2) for part in (x, y)]
    points = len(rows[0]) // 6
    LastLayerTrainer(pointwise, layer, optimizer=SGD, batch_size=None).fit((x, y, w), steps=4)
    LastLayerTrainer(linear, layer, optimizer=SGD, batch_size=None).fit((*rows, w.repeat_interleave(points)), steps=4)
    torch.testing.assert_close(flat(pointwise), flat(linear), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_an_operator_trained_on_one_grid_is_tested_and_trained_on_another() -> None:
    def functions(points: int) -> tuple[Tensor, Tensor]:
        grid = torch.arange(points, dtype=torch.float64) / points
        amplitude = 1 + draws(64, 1).abs()
        u = amplitude * torch.sin(2 * torch.pi * grid)
        return u[:, None], u.square()[:, None]

    module = made(lambda: nn.Conv1d(1, 32, 1), nn.Tanh, lambda: nn.Conv1d(32, 1, 1))
    trainer = LastLayerTrainer(module, Proximal(0.1, beta=1e-6), optimizer=partial(torch.optim.Adam, lr=1e-2), batch_size=16)
    trainer.fit(functions(32), epochs=40)
    assert trainer.predict(functions(128)[0]).shape == (64, 1, 128)
    for points in (32, 128):
        assert trainer.evaluate(functions(points)).relative_l2 < 0.1
    x, y = functions(128)
    error = (trainer.predict(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    assert trainer.evaluate((x, y)).relative_l2 == pytest.approx(float(error.mean()), rel=1e-12)
    mixed = [functions(32), functions(64)]
    losses = trainer.fit(mixed, epochs=2).history_["loss"]
    assert (losses < 0.1).all()


class ChannelsLast(nn.Module):
    """A head that works on (points, n, d) and a result of shape (n, points * k)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.last(self.act(self.first(x.permute(2, 0, 1))))
        return rows.permute(1, 0, 2).flatten(start_dim=1)


@pytest.mark.law
def test_targets_and_weights_follow_a_permuted_and_reshaped_output() -> None:
    with seeded(0, torch.device("cpu")):
        module = ChannelsLast().double()
    twin = made(lambda: nn.Linear(2, 6), nn.Tanh, lambda: nn.Linear(6, 3))
    x, y, w = draws(8, 2, 4), draws(8, 12, seed=1), draws(8, seed=2).abs()
    LastLayerTrainer(module, Ridge(0.1), optimizer=SGD, batch_size=None).fit((x, y, w), steps=3)
    data = x.movedim(1, -1).flatten(end_dim=-2), y.reshape(-1, 3), w.repeat_interleave(4)
    LastLayerTrainer(twin, Ridge(0.1), optimizer=SGD, batch_size=None).fit(data, steps=3)
    torch.testing.assert_close(flat(module), flat(twin), rtol=SAME, atol=SAME)


def clouds(rows: int = 90) -> tuple[Tensor, Tensor]:
    labels = torch.arange(rows) % 3
    return draws(rows, 2) + 4 * F.one_hot(labels, 3).double()[:, :2], labels


@pytest.mark.law
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_classification_is_regression_on_scaled_one_hot_targets(scale: float) -> None:
    x, labels = clouds()
    fitted = []
    for task, y in (("classification", labels), ("regression", scale * F.one_hot(labels, 3).double())):
        module = made(lambda: nn.Linear(2, 8), nn.ReLU, lambda: nn.Linear(8, 3))
        trainer = LastLayerTrainer(module, Proximal(0.2), task=task, one_hot_scale=scale, optimizer=SGD, batch_size=30)
        fitted.append(trainer.fit((x, y), epochs=3))
    assert torch.equal(flat(fitted[0].module), flat(fitted[1].module))
    said = fitted[0].predict(x)
    assert torch.equal(said, fitted[1].predict(x).argmax(dim=1))
    evaluated = fitted[0].evaluate((x, labels))
    assert evaluated.accuracy == pytest.approx(float((said == labels).double().mean()))
    assert evaluated.accuracy > 0.9
    assert evaluated.loss == pytest.approx(fitted[1].evaluate((x, scale * F.one_hot(labels, 3))).loss)


@pytest.mark.law
def test_labels_of_every_point_of_a_grid_are_classes_of_rows() -> None:
    module = made(lambda: nn.Conv2d(1, 8, 1), nn.ReLU, lambda: nn.Conv2d(8, 2, 1))
    x = draws(10, 1, 5, 4)
    labels = (x[:, 0] > 0).long()
    trainer = LastLayerTrainer(module, Ridge(1e-3), task="classification", batch_size=None).fit((x, labels), steps=20)
    assert trainer.predict(x).shape == labels.shape
    assert trainer.evaluate((x, labels)).accuracy == pytest.approx(float((trainer.predict(x) == labels).double().mean()))
    assert trainer.evaluate((x, labels)).accuracy > 0.9


@pytest.mark.oracle
def test_cross_entropy_is_that_of_torch() -> None:
    x, labels = clouds()
    module, twin = (made(lambda: nn.Linear(2, 3)) for _ in range(2))
    trainer = LastLayerTrainer(module, Gradient(SGD), task="classification", loss="cross-entropy", batch_size=None)
    trainer.fit((x, labels, torch.ones(90)), steps=5)
    plain = SGD(twin.parameters())
    for _ in range(5):
        plain.zero_grad()
        F.cross_entropy(twin(x), labels).backward()
        plain.step()
    torch.testing.assert_close(flat(module), flat(twin), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_a_named_layer_is_taken_and_a_flattened_output_is_not_a_change() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.spare = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.spare(x)
            flat: Tensor = self.head(x)[:, 0]
            with torch.no_grad():
                self.spare(x)
            return flat

    with pytest.raises(ParameterError, match=r"'spare' runs 2 times in one forward pass"):
        find_last_linear_map(Unused(), torch.zeros(2, 4))
    found = find_last_linear_map(Unused(), torch.zeros(2, 4), name="head")
    assert (found.name, found.targets) == ("head", 1)
    trainer = LastLayerTrainer(Unused().double(), Ridge(0.1), last_module="head", batch_size=None)
    x = draws(20, 4)
    assert trainer.fit((x, x.sum(dim=1)), steps=2).predict(x).shape == (20,)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).tanh())
        return out


class Pair(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, self.last(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Tanh()), r"no linear last layer: no torch.nn.Linear and no 1x1 convolution runs"),
        (nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Conv1d(2, 2, 3, padding=1)), r"no linear last layer"),
        (nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2), nn.ReLU()), r"found is '1' \(Linear\).*: '2' \(ReLU\) comes after it"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)), r"'1' \(Softmax\) comes after it; end the module with the linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"'1' \(BatchNorm1d\) comes after it"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), r"'1' \(Dropout\) comes after it"),
        (Residual(), r"'last' \(Linear\).*: an operation in its forward method comes after it"),
        (Tied(), r"weights of the last linear layer 'last' are shared with another layer"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), r"shared with another layer or computed from other"),
        (Pair(), r"'last' \(Linear\), but the module returns a tuple"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_module_whose_last_layer_cannot_be_solved_is_refused(module: nn.Module, message: str) -> None:
    before = flat(module)
    with pytest.raises(ParameterError, match=message):
        LastLayerTrainer(module, batch_size=None).fit((draws(5, 2).float(), draws(5, 2).float()), steps=1)
    assert torch.equal(flat(module), before)


X, Y = draws(20, 2), draws(20, 2, seed=1)
LABELS = torch.arange(20) % 2


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X, Y[:, :1]), {}, r"targets must have the shape of the module's output, \(10, 2\), got \(10, 1\): give"),
        ((X, draws(20, 3)), {}, r"got \(10, 3\)"),
        ((X, Y[:10]), {}, r"same number of rows, at least one, got shapes \(20, 2\) and \(10, 2\)"),
        ((X, Y, draws(19).abs()), {}, r"row weights must have shape \(20,\), one an example, got \(19,\)"),
        ((X, Y, -torch.ones(20)), {}, r"row weights must be finite and >= 0"),
        ((X, LABELS + 1), {"task": "classification"}, r"labels must be between 0 and 1, .*last layer '2', got 2"),
        ((X, LABELS - 1), {"task": "classification"}, r"labels must be between 0 and 1, .*, got -1"),
        ((X, LABELS.double()), {"task": "classification"}, r"labels must be whole numbers.*float64"),
        ([], {}, r"the list given yields no batch"),
        (iter([(X, Y)]), {}, r"can be passed over only once: give a DataLoader"),
        ([X, LABELS, LABELS, LABELS], {}, r"a batch must be \(inputs, targets\) or .*, got 4 parts"),
        ("table.csv", {}, r"data must be \(inputs, targets\[, row weights\]\) or a loader of such batches, got str"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: object, options: dict[str, object], message: str) -> None:
    module = made(lambda: nn.Linear(2, 4), nn.Tanh, lambda: nn.Linear(4, 2))
    with pytest.raises(DataError, match=message):
        LastLayerTrainer(module, Ridge(0.1), batch_size=10, **options).fit(data, steps=2)


def test_a_loader_that_dries_up_is_refused() -> None:
    class Once:
        passes = 0

        def __iter__(self) -> object:
            self.passes += 1
            return iter([(X, Y)] if self.passes <= 2 else [])

    with pytest.raises(DataError, match=r"the loader yielded 0 batches in pass 2, at least 1 expected"):
        LastLayerTrainer(made(lambda: nn.Linear(2, 2)), Ridge(0.1)).fit(Once(), steps=3)
    with pytest.raises(ParameterError, match=r"the loader has no length, .*: give steps= instead"):
        LastLayerTrainer(made(lambda: nn.Linear(2, 2)), Ridge(0.1)).fit(Once(), epochs=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: Ridge(-1.0), r"beta must be finite and >= 0, got -1.0"),
        (lambda m: Proximal(float("nan")), r"lam must be finite and >= 0, got nan"),
        (lambda m: Kalman(1.0, observation_noise=0.0), r"observation_noise must be finite and > 0, got 0.0"),
        (lambda m: Kalman(0.0, observation_noise=1.0), r"process_noise must be > 0 with reset=True or without a prior, got 0"),
        (lambda m: MovingAverage(1.0, beta=0.1), r"decay must be >= 0 and < 1, got 1.0"),
        (lambda m: LastLayerTrainer("net"), r"module must be a torch module, got str"),
        (lambda m: LastLayerTrainer(m, 0.5), r"last_layer must be Adaptive, Ridge, Proximal, .*, got float"),
        (lambda m: LastLayerTrainer(m, Ridge), r"last_layer must be Adaptive, Ridge, Proximal, .*, got the class Ridge"),
        (lambda m: LastLayerTrainer(m, order="first"), r"order must be 'solve-first' or 'backbone-first', got 'first'"),
        (lambda m: LastLayerTrainer(m, loss="cross-entropy"), r"loss='cross-entropy' has no closed form"),
        (lambda m: LastLayerTrainer(m, task="classification", one_hot_scale=0), r"one_hot_scale must be finite and > 0"),
        (lambda m: LastLayerTrainer(m, Ridge(1.0), lambda_schedule=0.1), r"lambda_schedule is for Proximal, got Ridge"),
        (
            lambda m: LastLayerTrainer(m, lambda_schedule=2.0),
            r"lambda_schedule must be between 0 and 1, or a callable, got 2.0",
        ),
        (
            lambda m: LastLayerTrainer(m, Proximal(1.0), lambda_schedule=lambda s: -s).fit((X, Y), steps=200),
            r"schedule must give factors",
        ),
        (lambda m: LastLayerTrainer(m, batch_size=21).fit((X, Y), steps=1), r"batch_size=21 exceeds the 20 rows"),
        (lambda m: LastLayerTrainer(m).fit((X, Y)), r"give either epochs or steps, got epochs=None and steps=None"),
        (lambda m: LastLayerTrainer(m, batch_size=5).fit((X, Y), epochs=0), r"epochs must be a whole number >= 1, got 0"),
        (lambda m: LastLayerTrainer(m, batch_size=5, last_module="0.x").fit((X, Y), steps=1), r"use one of \['0', '2'\]"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[nn.Module], object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(made(lambda: nn.Linear(2, 4), nn.Tanh, lambda: nn.Linear(4, 2)))


def test_predictions_need_a_fit() -> None:
    with pytest.raises(NotFittedError, match=r"not fitted yet: call fit\(data, epochs=...\) first"):
        LastLayerTrainer(nn.Linear(2, 2)).predict(X)


@pytest.mark.parametrize(
    "layer", [Adaptive(), Ridge(0.1), Kalman(0.5, observation_noise=1.0), MovingAverage(0.5, beta=0.1), Gradient(SGD)], ids=repr
)
@pytest.mark.parametrize("order", ["solve-first", "backbone-first"])
def test_a_loss_that_turns_nan_stops_at_its_step_with_the_last_good_state(order: str, layer: Ridge) -> None:
    """One bad batch: the state kept is the one before the step before, whose loss is the last that was finite."""
    batches = [(X, Y)] * 3 + [(X, Y * torch.nan)] + [(X, Y)]
    module, good = (made(lambda: nn.Linear(2, 4), nn.Tanh, lambda: nn.Linear(4, 2)) for _ in range(2))
    trainer = LastLayerTrainer(module, layer, optimizer=SGD, order=order)
    match = r"training stopped at step 4 of 5: .*; the last state with a finite loss is kept"
    with pytest.warns(TrainingWarning, match=match) as caught:
        trainer.fit(batches, steps=5)
    assert caught[0].filename == __file__
    assert trainer.ended_ == "diverged"
    assert trainer.history_["step"].tolist() == [1, 2, 3]
    LastLayerTrainer(good, layer, optimizer=SGD, order=order).fit(batches[:3], steps=2)
    torch.testing.assert_close(flat(module), flat(good), rtol=SAME, atol=SAME)
    assert torch.isfinite(trainer.predict(X)).all()


def test_a_step_that_ruins_the_parameters_is_undone() -> None:
    module = made(lambda: nn.Linear(2, 4), nn.Tanh, lambda: nn.Linear(4, 2))
    wild = partial(torch.optim.SGD, lr=float("inf"))
    for steps in (1, 5):
        with pytest.warns(TrainingWarning, match=rf"training stopped at step {min(steps, 2)} of {steps}"):
            LastLayerTrainer(module, Ridge(0.1), optimizer=wild, batch_size=None).fit((X, Y), steps=steps)
        assert torch.isfinite(flat(module)).all()


def test_a_first_loss_that_is_nan_raises_and_changes_nothing() -> None:
    module = made(lambda: nn.Linear(2, 4), nn.Tanh, lambda: nn.Linear(4, 2))
    before = flat(module)
    with pytest.raises(DivergenceError, match=r"training stopped at step 1 of 5: features or targets are not finite; lower"):
        LastLayerTrainer(module, Ridge(0.1)).fit([(X, Y * torch.nan)], steps=5)
    assert torch.equal(flat(module), before)


def test_an_interrupted_fit_keeps_what_it_has_reached() -> None:
    module = made(lambda: nn.Linear(2, 4), nn.Tanh, lambda: nn.Linear(4, 2))

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    trainer = LastLayerTrainer(module, Ridge(0.1), batch_size=5)
    with pytest.warns(TrainingWarning, match=r"interrupted at step 3 of 8; what it had reached is kept and usable"):
        trainer.fit((X, Y), steps=8, on_step=stop)
    assert trainer.ended_ == "interrupted"
    assert len(trainer.history_) == 3
    assert np.isfinite(trainer.evaluate((X, Y)).loss)
    assert re.match("tensor", repr(trainer.predict(X)))
