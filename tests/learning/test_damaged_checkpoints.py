"""Checkpoints that were changed: refused before anything of them is used, whatever their digest says."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from cfiv import Adaptive, Gradient, Kalman, LastLayerTrainer, MovingAverage, Proximal, Ridge
from cfiv.errors import ModelFileError
from cfiv.learning.run_file import FORMAT_VERSION, RUN_FILE
from cfiv.learning.saved_state import check_generator, check_optimiser
from cfiv.runtime.draws import seeded
from cfiv.tensor_file import _content, nested

CPU = torch.device("cpu")


def module() -> nn.Module:
    with seeded(0, CPU):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return x, x.prod(dim=1, keepdim=True)


class KilledError(BaseException):
    """Nobody catches it."""


def kill(step: int, loss: float) -> None:
    if step == 5:
        raise KilledError


LAYERS: dict[str, tuple[Any, Any]] = {
    "adaptive, Adam": (Adaptive(), torch.optim.Adam),
    "ridge, Adam": (Ridge(0.1), torch.optim.Adam),
    "proximal, momentum": (Proximal(0.5), partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "Kalman, Adafactor": (Kalman(0.1, observation_noise=1.0), torch.optim.Adafactor),
    "moving average, RMSprop": (MovingAverage(0.9, beta=1e-3), torch.optim.RMSprop),
    "gradient, AdamW": (Gradient(), partial(torch.optim.AdamW, lr=0.01, amsgrad=True)),
}


def trainer(which: str = "ridge, Adam") -> LastLayerTrainer:
    layer, optimizer = LAYERS[which]
    return LastLayerTrainer(module(), layer, optimizer=optimizer, batch_size=13)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run"


def stopped(file: Path, which: str) -> None:
    with pytest.raises(KilledError):
        trainer(which).fit(data(), steps=8, checkpoint=file, every=2, on_step=kill)


def refusal(fit: Callable[[], object]) -> str:
    try:
        fit()
    except ModelFileError as error:
        return str(error)
    return "it was taken"


def values_in(file: Path) -> dict[str, Any]:
    _, header, tensors = RUN_FILE.read(file)
    return nested(header, tensors)


def change(file: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    """Alter values, and write them as a run would: with a digest that is right."""
    found = values_in(file)
    alter(found["values"])
    RUN_FILE.write(file, found)


def first_state(values: dict[str, Any]) -> dict[str, Any]:
    return next(iter(values["optimiser"]["state"].values()))


def group(values: dict[str, Any]) -> dict[str, Any]:
    return values["optimiser"]["param_groups"][0]


def words(left: int, following: int) -> Callable[[dict[str, Any]], object]:
    """A generator that would read beyond its words."""

    def alter(values: dict[str, Any]) -> None:
        state = values["draws"][0].numpy()
        state[8:24] = np.frombuffer(struct.pack("<iiQ", left, 1, following), np.uint8)

    return alter


ALTERATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing left": lambda v: v.clear(),
    "more": lambda v: v.update(more=1),
    "no weights": lambda v: v["module"].popitem(),
    "weights of another shape": lambda v: v["module"]["tensors"].update(
        {"0.weight": v["module"]["tensors"]["0.weight"].mT.clone()}
    ),
    "weights of another type": lambda v: v["module"]["tensors"].update(
        {"0.weight": v["module"]["tensors"]["0.weight"].double()}
    ),
    "weights that are not finite": lambda v: v["module"]["tensors"]["0.weight"].fill_(torch.nan),
    "a variance that is negative": lambda v: v["module"]["tensors"]["1.running_var"].fill_(-1.0),
    "weights that are a number": lambda v: v["module"]["tensors"].update({"0.weight": 1.0}),
    "no optimiser": lambda v: v.update(optimiser=None),
    "an optimiser of more parameters": lambda v: v["optimiser"]["state"].update({7: first_state(v)}),
    "an optimiser of other shapes": lambda v: first_state(v).update({n: t[..., None] for n, t in first_state(v).items()}),
    "an optimiser that keeps less": lambda v: first_state(v).popitem(),
    "an optimiser of no number": lambda v: first_state(v).update(dict.fromkeys(first_state(v), "x")),
    "other options": lambda v: group(v).update(weight_decay=3.0),
    "options of another kind": lambda v: group(v).update(betas=5, momentum="x"),
    "another rate": lambda v: group(v).update(lr=-1.0),
    "no rate": lambda v: group(v).pop("lr"),
    "other parameters": lambda v: group(v).update(params=[0, 1, 2, 99]),
    "weights of the last layer of another shape": lambda v: v["memory"].__setitem__(0, torch.ones(5, 2, dtype=torch.float64)),
    "a last layer that remembers more": lambda v: v["memory"].append(torch.ones(2, dtype=torch.float64)),
    "a pass too far": lambda v: v["position"].__setitem__(0, 10**9),
    "batches by the billion": lambda v: v["position"].__setitem__(1, 10**9),
    "a negative place": lambda v: v["position"].__setitem__(1, -1),
    "a generator of a loader that has none": lambda v: v["position"].__setitem__(2, torch.zeros(5056, dtype=torch.uint8)),
    "no generator": lambda v: v["draws"].clear(),
    "a generator that is no state": lambda v: v["draws"][0].fill_(255),
    "a short generator": lambda v: v["draws"].__setitem__(0, v["draws"][0][:100].clone()),
    "a generator that goes on beyond its end": words(624, 624),
    "a generator that goes on far beyond its end": words(600, 10**6),
    "losses for other steps": lambda v: v.update(losses=v["losses"][:-1].clone()),
    "more steps than asked for": lambda v: v.update({n: torch.cat([v[n]] * 5) for n in ("epochs", "losses")}),
    "no steps": lambda v: v.update({n: v[n][:0].clone() for n in ("epochs", "losses")}),
    "passes in another order": lambda v: v["epochs"].copy_(v["epochs"].flip(0)),
    "losses that are not finite": lambda v: v["losses"].fill_(torch.inf),
    "a step less": lambda v: v.update(done=3),
    "steps that are text": lambda v: v.update(done="4"),
    "validation of nothing": lambda v: v.update(validation={"losses": [], "best": None, "kept": None, "risen": 0}),
}


@pytest.mark.parametrize("which", LAYERS)
def test_values_that_this_run_would_not_have_written_are_refused_and_nothing_is_touched(which: str, file: Path) -> None:
    stopped(file, which)
    content = file.read_bytes()
    for name, alter in ALTERATIONS.items():
        file.write_bytes(content)
        change(file, alter)
        if file.read_bytes() == content:
            continue
        resumed = trainer(which)
        before = copy.deepcopy(resumed.module.state_dict())
        assert refusal(lambda resumed=resumed: resumed.fit(data(), steps=8, checkpoint=file)).startswith(
            f"the checkpoint '{file}' was not written by cfiv, or was changed since"
        ), name
        assert all(torch.equal(value, before[key]) for key, value in resumed.module.state_dict().items())


def kept(values: dict[str, Any]) -> list[Any]:
    return values["validation"]["kept"]


VALIDATION_ALTERATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "none": lambda v: v.update(validation=None),
    "more": lambda v: v["validation"].update(more=1),
    "a loss less": lambda v: v["validation"]["losses"].pop(),
    "losses that are not finite": lambda v: v["validation"]["losses"].__setitem__(0, float("nan")),
    "losses that are text": lambda v: v["validation"]["losses"].__setitem__(0, "x"),
    "nothing kept": lambda v: v["validation"].update(kept=None),
    "nothing best": lambda v: v["validation"].update(best=None),
    "a state after another step": lambda v: kept(v).__setitem__(0, 3),
    "a state of a later step": lambda v: kept(v).__setitem__(0, 8),
    "a state less": lambda v: kept(v).pop(),
    "errors of other examples": lambda v: kept(v).__setitem__(1, torch.ones(3, dtype=torch.float64)),
    "best errors of other examples": lambda v: v["validation"]["best"].__setitem__(1, torch.ones(3, dtype=torch.float64)),
    "weights that are not finite": lambda v: kept(v)[2]["tensors"]["0.weight"].fill_(torch.nan),
    "risen too often": lambda v: v["validation"].update(risen=10**9),
    "risen by half": lambda v: v["validation"].update(risen=0.5),
}


def test_a_validation_that_this_run_would_not_have_written_is_refused_and_nothing_is_touched(file: Path) -> None:
    def fit(**options: Any) -> LastLayerTrainer:
        return made.fit(data(), steps=8, validation=data(), checks=4, checkpoint=file, every=2, **options)

    made = trainer()
    with pytest.raises(KilledError):
        fit(on_step=kill)
    content = file.read_bytes()
    for name, alter in VALIDATION_ALTERATIONS.items():
        file.write_bytes(content)
        change(file, alter)
        made = trainer()
        assert "was changed since" in refusal(fit), name
        assert all(torch.equal(value, module().state_dict()[key]) for key, value in made.module.state_dict().items())


@pytest.mark.law
def test_every_flipped_bit_of_a_checkpoint_is_noticed(file: Path) -> None:
    stopped(file, "ridge, Adam")
    content = bytearray(file.read_bytes())
    generator = np.random.default_rng(0)
    for place in [*range(8), *generator.integers(8, len(content), 60)]:
        if chr(content[place]) == " ":  # the end of a header may be padded
            continue
        bit = 1 << int(generator.integers(8))
        content[place] ^= bit
        file.write_bytes(content)
        with pytest.raises(ModelFileError):
            trainer().fit(data(), steps=8, checkpoint=file)
        content[place] ^= bit


def test_a_checkpoint_of_the_format_before_is_refused_in_words(file: Path) -> None:
    stopped(file, "ridge, Adam")
    header = values_in(file)
    old = replace(RUN_FILE, version=FORMAT_VERSION - 1)
    old.write(file, header)
    with pytest.raises(
        ModelFileError, match=rf"has format {FORMAT_VERSION - 1}, this cfiv continues {FORMAT_VERSION}: delete it"
    ):
        trainer().fit(data(), steps=8, checkpoint=file)


@pytest.mark.law
def test_a_checkpoint_that_another_process_replaces_while_it_is_read_is_read_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(file, "ridge, Adam")

    def replaced(name: str) -> bytes:
        content = _content(name)
        Path(name).write_bytes(content[:50])
        return content

    with monkeypatch.context() as patch:
        patch.setattr("cfiv.tensor_file._content", replaced)
        resumed = trainer().fit(data(), steps=8, checkpoint=file)
    pd.testing.assert_frame_equal(resumed.history_, trainer().fit(data(), steps=8).history_, check_exact=True)


# States of generators and optimisers


@pytest.mark.law
def test_every_state_that_a_generator_comes_to_is_taken() -> None:
    generator = torch.Generator().manual_seed(2**40)
    for draws in (0, 1, 1, 621, 1, 1, 1, 700):
        torch.rand(draws, generator=generator)
        check_generator(generator.get_state(), CPU)
    torch.randn(1, generator=generator)  # keeps half of a pair
    torch.randn(40, generator=generator, dtype=torch.float64)
    state = generator.get_state()
    assert check_generator(state, CPU) is state


@pytest.mark.law
@pytest.mark.parametrize("name", [name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)])
def test_what_any_optimiser_keeps_is_taken_back(name: str, file: Path) -> None:
    kind = getattr(torch.optim, name)
    if name in ("Optimizer", "LBFGS", "SparseAdam"):  # abstract; not for batches; not for dense gradients
        return
    weights = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2, 2))]
    optimiser = kind(weights, lr=0.01)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.5)
        optimiser.step()
    RUN_FILE.write(file, {"values": optimiser.state_dict()})
    fresh = kind(weights, lr=0.01)
    fresh.load_state_dict(check_optimiser(values_in(file)["values"], fresh))
    for kept, before in zip(fresh.state_dict()["state"].values(), optimiser.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(kept[key], value) for key, value in before.items() if isinstance(value, Tensor))
    assert json.dumps(fresh.state_dict()["param_groups"]) == json.dumps(optimiser.state_dict()["param_groups"])
