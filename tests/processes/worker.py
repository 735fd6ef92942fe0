"""What each of several processes does, started by :func:`run`; tests do the same alone, and compare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cfiv
from cfiv import Adaptive, Gradient, Kalman, LastLayerTrainer, MovingAverage, Proximal, Ridge
from cfiv.datasets import demand
from cfiv.runtime.draws import seeded

ROOT = Path(__file__).parents[2]
STEPS = 6
FORMULA = "sales ~ time + emotion + [price ~ fuel]"
Fits = dict[str, dict[str, Tensor]]


def run(task: str, folder: Path, *, count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """A function of this module, by name, in each of several processes with the folder as its argument; as they have ended."""
    program = "import sys; from tests.processes.worker import work; work(*sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, task, str(folder), str(place), str(count)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in range(count)
    ]
    ended = [(worker, *worker.communicate()) for worker in workers]
    return [subprocess.CompletedProcess(worker.args, worker.returncode, out, err) for worker, out, err in ended]


def work(task: str, folder: str, place: str, count: str) -> None:
    """Join the others, do the task, and leave what it returns in a file of one's own."""
    place_file = Path(folder) / "place"
    dist.init_process_group("gloo", init_method=f"file://{place_file}", rank=int(place), world_size=int(count))
    with cfiv.several_processes() as here:
        assert (here.count, here.place, here.first) == (int(count), int(place), place == "0")
        torch.save(globals()[task](Path(folder)), Path(folder) / f"{task}-{place}.pt")
    dist.destroy_process_group()


def left(task: str, folder: Path, place: int = 0) -> Any:
    """What a process has left."""
    return torch.load(folder / f"{task}-{place}.pt")


def network(outputs: int = 2, *, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 4), nn.SiLU(), nn.Linear(4, outputs)).to(
            dtype
        )


def examples(*, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """With row weights."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = draw(70, 3)
    return x, torch.stack([x.prod(dim=1), x.square().sum(dim=1)], dim=1) + 0.1 * draw(70, 2), draw(70).abs()


class Grid(nn.Module):
    """Complex weights, and features along the second axis of a layer that has the points of a grid first."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([[1.0 + 0.5j, -0.3j], [0.2, 1.0 - 0.1j]], dtype=torch.complex128))
        with seeded(0, torch.device("cpu")):
            self.last = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:  # (n, g, 2) -> (n, g)
        z = torch.tanh(torch.view_as_real(x.to(torch.complex128) @ self.mix).flatten(start_dim=2))
        return self.last(z.transpose(0, 1)).transpose(0, 1)[..., 0]


def trainers() -> dict[str, tuple[Callable[[], LastLayerTrainer], Callable[[], Any]]]:
    """Modules to train, and their data, by what is peculiar to them."""
    x, y, w = examples()
    labels = (x[:, 0] > 0).long()
    grids = torch.randn(30, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def trainer(layer: Any, module: Callable[[], nn.Module] = network, **options: Any) -> Callable[[], LastLayerTrainer]:
        return lambda: LastLayerTrainer(module(), layer, **{"batch_size": 21, **options})

    def loader() -> DataLoader[Any]:  # the last batch of a pass has one example
        return DataLoader(TensorDataset(x[:41], y[:41]), batch_size=8, shuffle=True)

    return {
        "few rows of unequal weight": (trainer(Proximal(0.5), batch_size=3), lambda: (x, y, w)),
        "adaptive": (trainer(Adaptive()), lambda: (x, y, w)),
        "adaptive, rows many times the features": (trainer(Adaptive(), batch_size=65), lambda: (x, y)),
        "backbone first": (trainer(Ridge(0.1), order="backbone-first"), lambda: (x, y)),
        "Kalman": (trainer(Kalman(0.1, observation_noise=1.0)), lambda: (x, y)),
        "moving average": (trainer(MovingAverage(0.5, beta=1e-3)), lambda: (x, y, w)),
        "gradient": (trainer(Gradient()), lambda: (x, y, w)),
        "cross-entropy": (trainer(Gradient(), task="classification", loss="cross-entropy"), lambda: (x, labels)),
        "a loader": (trainer(Proximal(0.5)), loader),
        "grids": (trainer(Proximal(0.5), Grid, batch_size=7), lambda: (grids, grids.prod(dim=2))),
    }


def fit_trainers(folder: Path) -> Fits:
    fits: Fits = {}
    for name, (trainer, data) in trainers().items():
        fitted = trainer().fit(data(), steps=STEPS, validation=data() if name == "grids" else None, checks=2)
        fits[name] = {**fitted.module.state_dict(), "losses": torch.tensor(fitted.history_["loss"])}
    return fits


def unstackable() -> nn.Module:
    """Of networks that do not train side by side as one product."""
    return nn.Sequential(nn.Linear(1, 6), nn.LayerNorm(6), nn.Tanh())


def fit_estimators(folder: Path) -> Fits:
    frame = demand.simulate(n=120, rho=0.5, seed=0)[0].frame
    options: dict[str, Any] = {"random_state": 0, "fits": 1, "batch_size": 25}
    training = cfiv.Training(double=True, checks=2)
    dfiv = partial(cfiv.DFIV, FORMULA, steps=STEPS, nested=False, training=training, **options)
    models = {
        "DFIV": dfiv(),
        "DFIV that penalises what is unpredicted": dfiv(unpredicted_penalty=0.1, swap=False),
        "DFIV with another network": dfiv(treatment_network=lambda shape: unstackable(), swap=False),
        "NetworkRegression, in single precision": cfiv.NetworkRegression(FORMULA, steps=STEPS, **options),
    }
    at = np.array([15.0, 20.0, 25.0])
    return {
        name: {"h": torch.tensor(model.fit(frame).dose_response(at)["estimate"].to_numpy())} for name, model in models.items()
    }


def refusals(folder: Path) -> dict[str, str]:
    """What fits say that several processes cannot share."""
    place, (x, y, _) = dist.get_rank(), examples()

    def trained(data: Any = (x, y), *layers: nn.Module, **options: Any) -> None:
        module = nn.Sequential(*layers, *network())
        LastLayerTrainer(module, Proximal(0.5), **options).fit(data, steps=1)

    fits: dict[str, Callable[[], object]] = {
        "batch normalisation": lambda: trained((x, y), nn.BatchNorm1d(3, dtype=torch.float64)),
        "dropout": lambda: trained((x, y), nn.Dropout(0.5)),
        "other data": lambda: trained((x + place, y)),
        "no seed": lambda: trained(random_state=None),
        "other weights": lambda: trained((x, y), nn.Linear(3, 3, dtype=torch.float64).requires_grad_(place > 0)),
        "other rows in an estimator": lambda: cfiv.NetworkRegression(FORMULA, steps=1, random_state=0).fit(
            demand.simulate(n=60, rho=0.5, seed=place)[0].frame
        ),
        "another step of a checkpoint": lambda: LastLayerTrainer(network(), Ridge(0.1), random_state=0).fit(
            (x, y), steps=2, checkpoint=folder / f"of-{place}.safetensors", every=1
        ),
    }
    if place == 0:
        with_one = LastLayerTrainer(network(), Ridge(0.1), random_state=0)
        thread = threading.Thread(  # outside the block's thread it fits alone
            target=lambda: with_one.fit((x, y), steps=2, max_seconds=1e-9, checkpoint=folder / "of-0.safetensors", every=1)
        )
        thread.start()
        thread.join()
    said = {}
    for name, fit in fits.items():
        try:
            fit()
        except cfiv.CfivError as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


class Dies(nn.Module):
    """Kills its process in a pass in training mode, by its number, where the folder has a file that says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.passes = folder, 0

    def __repr__(self) -> str:
        return "Dies()"

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        order = self.folder / "die"
        if order.exists() and order.read_text() == f"{dist.get_rank()} {self.passes}":
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def long_trainer(folder: Path) -> dict[str, Tensor]:
    """With a checkpoint every second step; progress that the first process alone sees."""
    steps: list[int] = []
    trainer = LastLayerTrainer(nn.Sequential(Dies(folder), *network()), Proximal(0.5), batch_size=21)
    trainer.fit(
        examples(), steps=9, checkpoint=folder / "trainer.safetensors", every=2, on_step=lambda step, loss: steps.append(step)
    )
    assert bool(steps) == (dist.get_rank() == 0)
    return trainer.module.state_dict()


def long_dfiv(folder: Path) -> dict[str, Tensor]:
    """The same of DFIV."""
    frame = demand.simulate(n=120, rho=0.5, seed=0)[0].frame
    model = cfiv.DFIV(
        FORMULA,
        treatment_network=lambda shape: nn.Sequential(Dies(folder), unstackable()),
        steps=9,
        fits=1,
        swap=False,
        nested=False,
        batch_size=25,
        random_state=0,
    )
    model.fit(frame, checkpoint=folder / "dfiv", every=2)
    (fitted,) = model.fits_
    return {"u": fitted.structural, "V": fitted.first_stage, **fitted.networks.treatment.state_dict()}


def two_hundred_steps(folder: Path) -> Fits:
    """In float32."""
    fits: Fits = {}
    for name, layer in {
        "proximal": Proximal(0.5),
        "Kalman": Kalman(0.1, observation_noise=1.0),
        "gradient": Gradient(),
    }.items():
        trainer = LastLayerTrainer(network(dtype=torch.float32), layer, batch_size=21)
        fits[name] = dict(trainer.fit(examples(dtype=torch.float32), steps=200).module.state_dict())
    return fits
