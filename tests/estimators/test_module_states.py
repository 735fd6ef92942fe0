"""Networks whose state is more than real tensors: complex numbers, buffers of every kind, what a part keeps besides."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cfiv
from cfiv import IVData
from cfiv.runtime.module_state import cast, put, state_of

pytestmark = pytest.mark.contract

KINDS: dict[str, Callable[..., Any]] = {
    "DFIV": lambda **given: cfiv.DFIV(**{"steps": 4, "progress": False, "random_state": 0, "swap": False, **given}),
    "NetworkRegression": lambda **given: cfiv.NetworkRegression(**{"steps": 4, "progress": False, "random_state": 0, **given}),
}
#: The same sums from another place in memory.
ROUNDING = 1e-12


def data(n: int = 80, *, channels: bool = True, points: int = 12) -> IVData:
    """Random curves as treatments, whose mean matters, moved by an instrument and by a confounder."""
    r = np.random.default_rng(0)
    z, u = r.normal(size=(2, n))
    grid = np.linspace(0, 1, points)
    curves = (z + u)[:, None] * np.sin(np.pi * grid) + 0.3 * r.normal(size=(n, points))
    y = curves.mean(axis=1) + u + 0.1 * r.normal(size=n)
    return IVData(outcome=y, treatment=curves[:, None] if channels else curves, instruments=z)


class Spectral(nn.Module):
    """A filter of frequencies with complex weights, and their absolute values; real features of a curve's spectrum."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, dtype=dtype))
        self.register_buffer("phase", torch.polar(torch.ones(4), torch.arange(4.0)).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x.flatten(1))[:, :4] * self.filter * self.phase
        return torch.cat([spectrum.real, spectrum.imag], dim=1)


class Keeping(nn.Module):
    """A layer that keeps, besides tensors, how often it was trained; its features depend on it."""

    def __init__(self, inputs: Any, kept: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(int(np.prod(inputs)), 2)
        self.steps, self.kept = 0, kept
        self.register_buffer("mean", torch.zeros(1), persistent=False)
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("latest", None)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer(x.flatten(1))
        if self.training:
            self.steps += 1
            self.mean = 0.9 * self.mean + 0.1 * features.detach().mean()
            self.seen += 1
            self.latest = features.detach()[:3].double()
        latest = 0.0 if self.latest is None else self.latest.mean().to(features.dtype)
        return torch.cat([features, (features - self.mean) * (1 + 0.1 * self.steps) + latest], dim=1)

    def get_extra_state(self) -> Any:
        return {"steps": self.steps, "kept": self.kept}

    def set_extra_state(self, state: Any) -> None:
        self.steps, self.kept = state["steps"], state["kept"]


FACTORIES: dict[str, Callable[[Any], nn.Module]] = {
    "complex weights": lambda shape: Spectral(),
    "wide complex weights": lambda shape: Spectral(torch.complex128),
    "an extra state": Keeping,
    "tensors in an extra state": lambda shape: Keeping(shape, kept=[torch.tensor([1.0, 2.0]), "a", None, {"b": 1.5}]),
    "half precision": lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).half(),
    "lazy": lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d()),
    "parametrised": lambda shape: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 2))),
    "shared layers": lambda shape: nn.Sequential(nn.Flatten(), layer := nn.Linear(12, 12), nn.Tanh(), layer),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return KINDS[request.param]


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("kind", ["DFIV", "DFIV in float64", "NetworkRegression"])
def test_networks_of_every_state_are_fitted_saved_and_loaded(
    kind: str, factory: Callable[[Any], nn.Module], tmp_path: Path
) -> None:
    sample, make = data(), KINDS[kind.split()[0]]
    options: dict[str, Any] = {"treatment_network": factory}
    if "float64" in kind:
        options["training"] = cfiv.Training(double=True)
    model = make(**options).fit(sample)
    predicted = model.predict(treatment=sample.treatment)
    assert np.isfinite(predicted).all()
    assert predicted.std() > 0
    model.save(tmp_path / "model.cfiv")
    loaded = cfiv.load(tmp_path / "model.cfiv", networks={"treatment": factory})
    np.testing.assert_allclose(loaded.predict(treatment=sample.treatment), predicted, rtol=ROUNDING)
    again = make(**options).fit(sample)
    np.testing.assert_array_equal(again.predict(treatment=sample.treatment), predicted)


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_fits_of_networks_of_every_state_go_on_where_they_stopped(factory: Callable[[Any], nn.Module], tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    class Stopping(nn.Module):
        """Fails once, in training."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            left[0] -= self.training
            if left[0] == 0:
                raise StoppedError
            return self.network(x)

    def model() -> Any:
        return KINDS["DFIV"](steps=8, treatment_network=stopping)

    def stopping(shape: Any) -> nn.Module:
        return Stopping(factory(shape))

    left, sample = [1000], data()
    whole = model().fit(sample).predict(treatment=sample.treatment)
    left[0] = 6
    with pytest.raises(StoppedError):
        model().fit(sample, checkpoint=tmp_path, every=2)
    left[0] = 1000
    continued = model().fit(sample, checkpoint=tmp_path, every=2)
    assert 990 < left[0] < 1000
    np.testing.assert_array_equal(continued.predict(treatment=sample.treatment), whole)


def test_imaginary_parts_learn(make: Callable[..., Any]) -> None:
    sample = data()
    given = Spectral()
    before = given.filter.detach().clone()
    fitted = make(treatment_network=given, standardise=False).fit(sample)
    learned = fitted.structural_function_.components[0].treatment_network.filter
    assert learned.dtype == torch.complex64
    assert (learned.imag != before.imag).all()
    assert (learned.real != before.real).all()
    assert torch.equal(given.filter, before)  # it was copied


def test_the_trainer_goes_on_with_complex_weights_and_what_parts_keep(tmp_path: Path) -> None:
    sample = data()
    x, y = torch.tensor(sample.treatment, dtype=torch.float32), torch.tensor(sample.outcome, dtype=torch.float32)[:, None]

    def module() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(Spectral(), Keeping(8), nn.Linear(4, 1))

    def trainer() -> cfiv.LastLayerTrainer:
        return cfiv.LastLayerTrainer(module(), batch_size=20)

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise ConnectionError

    whole = trainer().fit((x, y), steps=9)
    with pytest.raises(ConnectionError):
        trainer().fit((x, y), steps=9, checkpoint=tmp_path / "run", every=3, on_step=stop)
    continued = trainer().fit((x, y), steps=9, checkpoint=tmp_path / "run", every=3)
    assert continued.module[1].steps == whole.module[1].steps
    for one, other in zip(
        state_of(continued.module)["tensors"].values(), state_of(whole.module)["tensors"].values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:training was interrupted:cfiv.errors.TrainingWarning")
def test_a_step_of_the_trainer_that_was_interrupted_leaves_nothing_in_any_part_of_the_state() -> None:
    class Interrupting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left[0] -= self.training
            if left[0] == 0:
                raise KeyboardInterrupt
            return x

    left = [4]
    x, y = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.ones(40, 1)
    network = nn.Sequential(Keeping(12), Interrupting(), nn.Linear(4, 1))
    trainer = cfiv.LastLayerTrainer(network, batch_size=10).fit((x, y), steps=9)
    assert trainer.ended_ == "interrupted"
    assert network[0].steps == int(network[0].seen) == 3


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (
            lambda shape: Keeping(shape, kept=threading.Thread),
            "treatment_network keeps an extra state in 'Keeping' that cannot",
        ),
        (
            lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(12, 2), Complex()),
            r"real features, got torch.complex64: take .real",
        ),
        (
            lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(12, 2), Sign()),
            r"real features, got torch.bool: convert it with",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).to("meta"), "is on the meta device"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), None),
    ],
    ids=["an extra state of code", "complex features", "truth values", "meta", "plain"],
)
def test_what_could_not_be_used_or_saved_is_refused_before_training(
    make: Callable[..., Any], network: Any, says: str | None
) -> None:
    model = make(treatment_network=network)
    if says is None:
        model.fit(data())
        return
    with pytest.raises(cfiv.ParameterError, match=says):
        model.fit(data())
    assert not hasattr(model, "structural_function_")


def test_a_module_that_cannot_be_copied_is_refused_in_words(make: Callable[..., Any]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network.lock = threading.Lock()
    with pytest.raises(
        cfiv.ParameterError, match=r"treatment_network cannot be copied \(cannot pickle '_thread.lock' object\)"
    ):
        make(treatment_network=lambda shape: network).fit(data())


def test_the_trainer_refuses_what_a_checkpoint_could_not_hold_before_it_begins(tmp_path: Path) -> None:
    x, y = torch.ones(20, 12), torch.ones(20, 1)
    network = nn.Sequential(Keeping(12, kept=threading.Thread), nn.Linear(4, 1))
    with pytest.raises(cfiv.ParameterError, match="the module keeps an extra state in '0' that cannot be saved"):
        cfiv.LastLayerTrainer(network).fit((x, y), steps=1, checkpoint=tmp_path / "run")
    with pytest.raises(cfiv.ParameterError, match="the module is on the meta device"):
        cfiv.LastLayerTrainer(nn.Linear(12, 1, device="meta")).fit((x, y), steps=1)


def test_a_network_with_hooks_is_loaded_with_its_code_or_not_at_all(tmp_path: Path) -> None:
    def hooked(shape: Any) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        network[1].register_forward_hook(lambda module, given, output: output.sin())
        return network

    model = KINDS["DFIV"](treatment_network=hooked).fit(data())
    model.save(tmp_path / "model.cfiv")
    with pytest.raises(cfiv.errors.ModelFileError, match="whose code it does not hold"):
        cfiv.load(tmp_path / "model.cfiv")
    loaded = cfiv.load(tmp_path / "model.cfiv", networks={"treatment": hooked})
    given = data().treatment
    np.testing.assert_allclose(loaded.predict(treatment=given), model.predict(treatment=given), rtol=ROUNDING)


def test_frozen_weights_stay_as_they_are() -> None:
    frozen = Spectral().requires_grad_(False)
    network = nn.Sequential(frozen, nn.Linear(8, 2))
    fitted = KINDS["DFIV"](treatment_network=network).fit(data()).structural_function_.components[0].treatment_network
    assert torch.equal(fitted[0].filter, frozen.filter)


@pytest.mark.law
def test_a_state_is_taken_and_put_back_whole() -> None:
    one = nn.Sequential(Spectral(), Keeping(8), nn.BatchNorm1d(4))
    other = copy.deepcopy(one)
    one(torch.randn(9, 12, generator=torch.Generator().manual_seed(0)))
    state = state_of(one)
    put(other, state)
    one(torch.ones(9, 12))  # a state is a copy
    assert other[1].steps == 1
    assert set(state["tensors"]) == set(state_of(other)["tensors"])
    for name, value in state_of(other)["tensors"].items():
        assert torch.equal(value, state["tensors"][name])


@pytest.mark.law
def test_numbers_are_cast_by_their_kind() -> None:
    module = nn.Sequential(Spectral(), Keeping(12), nn.BatchNorm1d(4))
    before = {name: value.dtype for name, value in state_of(module)["tensors"].items()}
    values = state_of(cast(module, torch.float64))["tensors"]
    wide = {torch.complex64: torch.complex128, torch.float32: torch.float64}
    assert {name: value.dtype for name, value in values.items()} == {n: wide.get(d, d) for n, d in before.items()}
    assert {name: v.dtype for name, v in state_of(cast(module, torch.float32))["tensors"].items()} == before


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x)


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 0


# Neural operators


def operator(shape: Any) -> nn.Module:
    """Features of curves (n, points) or (n, channels, points): means over the grid of an operator's output."""
    from neuralop.models import FNO

    as_channels = nn.Unflatten(1, (1, -1)) if isinstance(shape, int) else nn.Identity()
    return nn.Sequential(
        as_channels,
        FNO(n_modes=(4,), in_channels=1, out_channels=3, hidden_channels=4, n_layers=1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


@pytest.mark.parametrize("channels", [True, False], ids=["(n, 1, points)", "(n, points)"])
def test_an_operator_is_a_treatment_network_of_curves(make: Callable[..., Any], channels: bool, tmp_path: Path) -> None:
    pytest.importorskip("neuralop.models", reason="needs cfiv[operators]")
    sample = data(channels=channels)
    options = {"treatment_network": operator}
    model = make(**options).fit(sample)
    predicted = model.predict(treatment=sample.treatment)
    assert predicted.std() > 0
    model.save(tmp_path / "model.cfiv")
    loaded = cfiv.load(tmp_path / "model.cfiv", networks={"treatment": operator})
    np.testing.assert_allclose(loaded.predict(treatment=sample.treatment), predicted, rtol=ROUNDING)
    if isinstance(model, cfiv.DFIV):
        saved = make(**options).fit(sample, checkpoint=tmp_path / "run", every=2)
        again = make(**options).fit(sample, checkpoint=tmp_path / "run", every=2)
        for one in (saved, again):
            np.testing.assert_array_equal(one.predict(treatment=sample.treatment), predicted)
