"""A run that is killed goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from cfiv import Adaptive, Gradient, Kalman, LastLayerTrainer, MovingAverage, ParameterError, Proximal, Ridge, TrainingWarning
from cfiv.errors import ModelFileError, OutputError
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.run_file import read_run, write_run
from cfiv.runtime.draws import seeded

ADAM = partial(torch.optim.AdamW, lr=1e-2)
MOMENTUM = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)


def module(width: int = 8) -> nn.Module:
    """With all that has a state or draws: batch normalisation and dropout."""
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(
            nn.Linear(3, width),
            nn.BatchNorm1d(width),
            nn.Tanh(),
            nn.Dropout(0.2),
            nn.Linear(width, 4),
            nn.Tanh(),
            nn.Linear(4, 1),
        )


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    return x, x.prod(dim=1, keepdim=True)


def tensors(trainer: LastLayerTrainer) -> dict[str, Tensor]:
    return dict(trainer.module.state_dict())


def same(one: LastLayerTrainer, other: LastLayerTrainer) -> None:
    pd.testing.assert_frame_equal(one.history_, other.history_, check_exact=True)
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


class Killed(BaseException):
    """Nobody catches it."""


def kill_at(last: int) -> object:
    def on_step(step: int, loss: float) -> None:
        if step == last:
            raise Killed

    return on_step


LAYERS = [
    (Adaptive(), ADAM),
    (Ridge(0.1), ADAM),
    (Proximal(0.5, beta=1e-3), MOMENTUM),
    (Kalman(0.1, observation_noise=1.0), ADAM),
    (MovingAverage(0.9, beta=1e-3), ADAM),
    (Gradient(), ADAM),
    (Gradient(), MOMENTUM),
]


@pytest.mark.law
@pytest.mark.parametrize(("layer", "optimizer"), LAYERS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("killed", [7, 10, 23])  # in the second pass; at the end of one; later
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, layer: ClosedForm | Gradient, optimizer: object, killed: int
) -> None:
    def trainer() -> LastLayerTrainer:
        return LastLayerTrainer(
            module(), layer, optimizer=optimizer, batch_size=13, learning_rate_schedule="cosine", order="backbone-first"
        )

    undisturbed = trainer().fit(data(), steps=30)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        trainer().fit(data(), steps=30, checkpoint=file, every=5, on_step=kill_at(killed))
    resumed = trainer()
    steps: list[int] = []
    resumed.fit(data(), steps=30, checkpoint=file, every=5, on_step=lambda step, loss: steps.append(step))
    # Whoever watches step 10 does so before it is saved.
    assert steps[0] == (killed - 1) // 5 * 5 + 1
    same(undisturbed, resumed)
    same(undisturbed, trainer().fit(data(), steps=30, checkpoint=file))  # it is over already


@pytest.mark.law
@pytest.mark.parametrize("own", [False, True], ids=["global generator", "generator of its own"])
def test_a_shuffled_loader_goes_on_bit_for_bit(tmp_path: Path, own: bool) -> None:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(3) if own else None
        return DataLoader(TensorDataset(*data()), batch_size=13, shuffle=True, generator=generator)

    undisturbed = LastLayerTrainer(module()).fit(loader(), epochs=4)
    file = tmp_path / "run"
    for killed in (9, 17):
        with pytest.raises(Killed):
            LastLayerTrainer(module()).fit(loader(), epochs=4, checkpoint=file, every=4, on_step=kill_at(killed))
    same(undisturbed, LastLayerTrainer(module()).fit(loader(), epochs=4, checkpoint=file, every=4))


PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.supervised.test_trainer_checkpoints import data, module
from cfiv import Kalman, LastLayerTrainer

def on_step(step, loss):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

trainer = LastLayerTrainer(module(), Kalman(0.1, observation_noise=1.0), batch_size=13)
trainer.fit(data(), steps=40, checkpoint=sys.argv[1], every=3, on_step=on_step)
"""


@pytest.mark.law
@pytest.mark.slow
def test_kill_9_in_the_middle_changes_no_bit(tmp_path: Path) -> None:
    file, program = tmp_path / "run", textwrap.dedent(PROGRAM).format(root=str(Path(__file__).parents[2]))
    ended = subprocess.run(
        [sys.executable, "-c", program, str(file), "20"], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == -signal.SIGKILL
    assert file.exists()

    def trainer() -> LastLayerTrainer:
        return LastLayerTrainer(module(), Kalman(0.1, observation_noise=1.0), batch_size=13)

    steps: list[int] = []
    resumed = trainer().fit(data(), steps=40, checkpoint=file, every=3, on_step=lambda step, loss: steps.append(step))
    assert steps[0] == 19
    same(trainer().fit(data(), steps=40), resumed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": module(9)}, r"another model or configuration \(module was .*tensors was "),
        ({"last_layer": Proximal(2.0)}, r"last_layer was 'Adaptive\(\)', is 'Proximal\(lam=2.0"),
        ({"optimizer": MOMENTUM}, r"optimizer was .*Adam .*is .*SGD"),
        ({"order": "backbone-first"}, r"order was 'solve-first', is 'backbone-first'"),
        ({"random_state": 1}, r"random_state was 0, is 1"),
        ({"batch_size": 10}, r"data was 'arrays .* in batches of 13', is 'arrays .* in batches of 10'"),
        ({"learning_rate_schedule": lambda share: 1 - share}, r"learning_rate_schedule was \[1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_model_or_configuration_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file, options = tmp_path / "run", {"module": module(), "batch_size": 13}
    LastLayerTrainer(**options).fit(data(), steps=2, checkpoint=file)
    other = LastLayerTrainer(**(options | change))
    before = {name: value.clone() for name, value in tensors(other).items()}
    with pytest.raises(ModelFileError, match=message):
        other.fit(data(), steps=2, checkpoint=file)
    assert all(torch.equal(value, before[name]) for name, value in tensors(other).items())
    with pytest.raises(ModelFileError, match=r"steps was 2, is 3"):
        LastLayerTrainer(module(), batch_size=13).fit(data(), steps=3, checkpoint=file)


def test_files_that_are_no_checkpoints_and_places_that_take_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_bytes(b"something else")
    with pytest.raises(ModelFileError, match=r"is not a whole checkpoint"):
        LastLayerTrainer(module()).fit(data(), steps=2, checkpoint=file)
    with pytest.raises(OutputError, match=r"cannot be written"):
        LastLayerTrainer(module()).fit(data(), steps=2, checkpoint=tmp_path / "missing" / "run")
    with pytest.raises(ParameterError, match=r"every must be a whole number >= 1, got 0"):
        LastLayerTrainer(module()).fit(data(), steps=2, checkpoint=file, every=0)


@pytest.mark.law
def test_whatever_an_optimiser_keeps_comes_back_as_it_was(tmp_path: Path) -> None:
    values = {
        "state": {0: {"step": torch.tensor(3.0), "z": torch.tensor([1 + 2j, 3]), "none": None}, 1: {}},
        "param_groups": [{"lr": 0.1, "nested": [[1, 2], "text"], "big": float("inf")}],
        "view": torch.arange(6.0).reshape(2, 3).mT,
    }
    write_run(tmp_path / "run", values, configuration={"a": 1})
    back = read_run(tmp_path / "run", configuration={"a": 1})
    assert back["param_groups"] == values["param_groups"]
    assert torch.equal(back["view"], values["view"])
    assert back["state"][0]["none"] is None
    assert back["state"][1] == {}
    assert torch.equal(back["state"][0]["z"], values["state"][0]["z"])
    with pytest.raises(ParameterError, match=r"holds tensors, numbers and text, got a set"):
        write_run(tmp_path / "run", {"bad": {1}}, configuration={})


class Fourier(nn.Module):
    """An operator with a complex parameter, which keeps its lowest frequencies on every grid, and two pointwise maps."""

    def __init__(self) -> None:
        super().__init__()
        self.spectral = nn.Parameter(
            torch.randn(6, 6, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) / 6
        )
        with seeded(0, torch.device("cpu")):
            self.lift, self.project = nn.Conv1d(1, 6, 1), nn.Conv1d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        kept = torch.einsum("ncf,cdf->ndf", torch.fft.rfft(x)[..., :4], self.spectral)
        out: Tensor = self.project(torch.tanh(x + torch.fft.irfft(kept, n=x.shape[-1])))
        return out


@pytest.mark.law
def test_an_operator_with_complex_parameters_learns_goes_on_and_changes_its_grid(tmp_path: Path) -> None:
    def pairs(points: int) -> tuple[Tensor, Tensor]:
        """A shift by a quarter of the circle, which no pointwise map can do."""
        grid = 2 * torch.pi * torch.arange(points) / points
        a, b = torch.randn(2, 60, 1, 1, generator=torch.Generator().manual_seed(1))
        return a * torch.sin(grid) + b * torch.cos(2 * grid), a * torch.cos(grid) - b * torch.cos(2 * grid)

    def trainer() -> LastLayerTrainer:
        return LastLayerTrainer(Fourier(), Proximal(0.1, beta=1e-5), optimizer=ADAM, batch_size=20)

    file = tmp_path / "run"
    with pytest.raises(Killed):
        trainer().fit(pairs(16), steps=150, checkpoint=file, every=40, on_step=kill_at(100))
    resumed = trainer().fit(pairs(16), steps=150, checkpoint=file, every=40)
    same(trainer().fit(pairs(16), steps=150), resumed)
    coarse, fine = (resumed.evaluate(pairs(points)).relative_l2 for points in (16, 64))
    assert coarse < 0.2
    assert fine == pytest.approx(coarse, abs=0.05)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Ruinous(torch.optim.SGD):
        """Its fourth step, of all that it has taken, leaves nothing finite."""

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            super().step()
            (parameter, *_) = self.param_groups[0]["params"]
            taken = self.state[parameter].setdefault("taken", torch.zeros(()))
            taken += 1
            if taken == 4:
                parameter.data.fill_(torch.nan)

    file = tmp_path / "run"
    for _ in range(2):  # the second continues after step 2
        trainer, steps = LastLayerTrainer(module(), Ridge(0.1), optimizer=partial(Ruinous, lr=0.01)), list[int]()
        with pytest.warns(TrainingWarning, match=r"training stopped at step 4 of 8: it left parameters that are not finite"):
            trainer.fit(data(), steps=8, checkpoint=file, every=2, on_step=lambda step, loss, steps=steps: steps.append(step))
        assert all(torch.isfinite(value).all() for value in tensors(trainer).values())
    assert steps == [3]


def refused(fitting: Callable[[Path], object], other: Callable[[Path], object], message: str, file: Path) -> None:
    fitting(file)
    written = file.read_bytes()
    with pytest.raises(ModelFileError, match=message):
        other(file)
    assert file.read_bytes() == written
    fitting(file)  # which is over already, and still the same


X, Y = data()
W = X[:, 0].abs()
OTHER_DATA = {
    "other targets": ((X, Y), (X, -5 * Y)),
    "one value": ((X, Y), (X, torch.where(torch.arange(70)[:, None] == 69, 0.0, Y))),
    "other inputs": ((X, Y), (2 * X, Y)),
    "other weights": ((X, Y, W), (X, Y, W + 1)),
    "no weights": ((X, Y, W), (X, Y)),
    "another order": ((X, Y), (X.flip(0), Y.flip(0))),
    "another type": ((X, Y), (X.double(), Y.double())),
    "another shape": ((X, Y), (X, Y[:, 0])),
}


@pytest.mark.law
@pytest.mark.parametrize(("one", "other"), OTHER_DATA.values(), ids=OTHER_DATA)
@pytest.mark.parametrize("form", ["arrays", "loader", "list of batches", "custom loader"])
def test_a_checkpoint_knows_its_data(tmp_path: Path, one: tuple[Tensor, ...], other: tuple[Tensor, ...], form: str) -> None:
    class Own:
        """Of which nothing is known but what it yields first."""

        def __init__(self, parts: tuple[Tensor, ...]) -> None:
            self.parts = parts

        def __iter__(self) -> object:
            return iter([self.parts])

    forms = {
        "arrays": lambda parts: parts,
        "loader": lambda parts: DataLoader(TensorDataset(*parts), batch_size=13, shuffle=True),
        "list of batches": lambda parts: list(zip(*(part.split(13) for part in parts), strict=True)),
        "custom loader": Own,
    }

    def fit(parts: tuple[Tensor, ...], file: Path) -> object:
        return LastLayerTrainer(module(), batch_size=13).fit(forms[form](parts), steps=3, checkpoint=file)

    refused(lambda file: fit(one, file), lambda file: fit(other, file), r"data was '", tmp_path / "run")


LOADER = {"batch_size": 13, "shuffle": True}


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (LOADER, {**LOADER, "shuffle": False}, r"data was .* by RandomSampler', is .* by SequentialSampler'"),
        (LOADER, {**LOADER, "batch_size": 14}, r"data was .* of 13 of 70 examples .*is .* of 14 of 70 examples"),
        (LOADER, {**LOADER, "drop_last": True}, r"data was 'DataLoader of 6 batches .*is 'DataLoader of 5 batches"),
    ],
)
def test_a_checkpoint_knows_its_loader(tmp_path: Path, one: dict[str, object], other: dict[str, object], message: str) -> None:
    def fit(options: dict[str, object], file: Path) -> object:
        loader = DataLoader(TensorDataset(X, Y), **options)  # type: ignore[arg-type]
        return LastLayerTrainer(module()).fit(loader, steps=3, checkpoint=file)

    refused(lambda file: fit(one, file), lambda file: fit(other, file), message, tmp_path / "run")


@pytest.mark.law
def test_a_checkpoint_knows_the_data_of_a_part_of_a_data_set(tmp_path: Path) -> None:
    def fit(scale: float, rows: range, file: Path) -> object:
        loader = DataLoader(Subset(TensorDataset(X, scale * Y), rows), batch_size=10)
        return LastLayerTrainer(module()).fit(loader, steps=3, checkpoint=file)

    last = torch.ones(70).index_fill(0, torch.tensor([69]), 2.0)[:, None]
    refused(lambda f: fit(1.0, range(60), f), lambda f: fit(1.0, range(10, 70), f), r"values of the data was", tmp_path / "a")
    refused(lambda f: fit(1.0, range(60), f), lambda f: fit(last, range(60), f), r"values of the data was", tmp_path / "b")


@pytest.mark.law
@pytest.mark.parametrize("own", [False, True], ids=["global generator", "generator of its own"])
def test_one_loader_goes_on_in_the_same_process_and_looking_at_it_changes_no_number(tmp_path: Path, own: bool) -> None:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(3) if own else None
        return DataLoader(TensorDataset(X, Y), batch_size=13, shuffle=True, generator=generator)

    one, file = loader(), tmp_path / "run"
    with pytest.raises(Killed):
        LastLayerTrainer(module()).fit(one, epochs=3, checkpoint=file, every=4, on_step=kill_at(9))
    resumed = LastLayerTrainer(module()).fit(one, epochs=3, checkpoint=file, every=4)
    same(LastLayerTrainer(module()).fit(loader(), epochs=3), resumed)


class Own:
    """A last layer that does not show what it holds."""

    def __init__(self, share: float) -> None:
        self.share = share

    def update(self, memory: Memory, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        return Memory(self.share * memory.weights)


def frozen() -> nn.Module:
    made = module()
    made[0].requires_grad_(False)  # type: ignore[index]
    return made


@pytest.mark.law
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"last_layer": Own(0.5)}, {"last_layer": Own(0.6)}, r"last_layer was .*'share': 0.5.*is .*'share': 0.6"),
        ({"last_layer": Proximal(1.0)}, {"last_layer": Proximal(1.0, beta=0.5)}, r"last_layer was .*beta=0.0.*beta=0.5"),
        ({}, {"module": frozen()}, r"trained was \['0.weight', .*is \['1.weight'"),
        (
            {"learning_rate_schedule": lambda share: 1.0},
            {"learning_rate_schedule": lambda share: 0.5 if 0.51 < share < 0.59 else 1.0},
            r"schedules was",
        ),
        (
            {"optimizer": partial(torch.optim.AdamW, lr=1e-2)},
            {"optimizer": partial(torch.optim.AdamW, lr=2e-2)},
            "optimizer was",
        ),
        ({"mixed_precision": False}, {"mixed_precision": True}, "mixed_precision was False, is True"),
        (
            {"last_layer": Gradient(MOMENTUM)},
            {"last_layer": Gradient(partial(torch.optim.SGD, lr=1e-2, momentum=0.8))},
            r"last_layer was .*momentum=0.9.*momentum=0.8",
        ),
    ],
)
def test_a_checkpoint_knows_what_the_plain_words_of_its_parts_leave_out(
    tmp_path: Path, one: dict[str, object], other: dict[str, object], message: str
) -> None:
    def fit(options: dict[str, object], file: Path) -> object:
        return LastLayerTrainer(**{"module": module(), "batch_size": 13, **options}).fit(data(), steps=20, checkpoint=file)  # type: ignore[arg-type]

    refused(lambda file: fit(one, file), lambda file: fit(other, file), message, tmp_path / "run")


@pytest.mark.law
def test_a_run_goes_on_whatever_type_its_seed_and_numbers_have_and_from_any_weights(tmp_path: Path) -> None:
    def trainer(seed: int, lam: float, given: nn.Module) -> LastLayerTrainer:
        return LastLayerTrainer(given, Proximal(lam), batch_size=13, random_state=seed)

    file = tmp_path / "run"
    with pytest.raises(Killed):
        trainer(0, 1.0, module()).fit(data(), steps=20, checkpoint=file, every=4, on_step=kill_at(9))
    other = module()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3.0)
    resumed = trainer(np.int64(0), np.float64(1), other).fit(data(), steps=np.int64(20), checkpoint=str(file))
    same(trainer(0, 1, module()).fit(data(), steps=20), resumed)
