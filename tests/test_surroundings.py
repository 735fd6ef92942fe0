"""What a program has set in torch, and other threads of it, change no number; and are left as they were."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import cfiv
from cfiv.estimators.structural import StructuralFunction
from cfiv.learning.last_layer import Memory
from cfiv.runtime.draws import MAY_DRAW, Draws, may_draw, run
from cfiv.runtime.threads import SMALL_NETWORK, suitable_threads
from cfiv.tables.grammar import ONE_READER

pytestmark = pytest.mark.contract

CPU = torch.device("cpu")
FORMULA = "y ~ x + [t ~ z]"
#: Sums of float64 from another place in memory: in threads, once in some thousand fits, a mean was another in its last digit.
ROUNDING = 1e-12
GENERATOR = torch.default_generator


def table(n: int = 60) -> pd.DataFrame:
    r = np.random.default_rng(0)
    frame = pd.DataFrame(r.normal(size=(n, 4)), columns=["z", "x", "u", "noise"])
    frame["t"] = frame["z"] + frame["u"]
    return frame.assign(y=np.sin(frame["t"]) + frame["x"] + frame["u"] + 0.1 * frame["noise"])


class Dropping(nn.Module):
    """A layer of a user's own that draws in training."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(torch.tanh(self.first(x)), 0.2, self.training)
        return self.last(hidden)


KINDS: dict[str, Callable[..., Any]] = {
    "TwoStageLeastSquares": lambda seed: cfiv.TwoStageLeastSquares(FORMULA),
    "LIML": lambda seed: cfiv.LIML(FORMULA, fuller=1),
    "LeastSquares": lambda seed: cfiv.LeastSquares(FORMULA),
    "KernelIV": lambda seed: cfiv.KernelIV(FORMULA, ridge1=1e-3, ridge2=1e-3, landmarks=20, random_state=seed),
    "SieveIV": lambda seed: cfiv.SieveIV(FORMULA, random_state=seed),
    "DFIV": lambda seed: cfiv.DFIV(FORMULA, steps=3, progress=False, random_state=seed),
    "DFIV that draws": lambda seed: cfiv.DFIV(
        FORMULA, steps=3, treatment_network=Dropping, swap=False, progress=False, random_state=seed
    ),
    "NetworkRegression": lambda seed: cfiv.NetworkRegression(FORMULA, steps=3, progress=False, random_state=seed),
    "DeepIV": lambda seed: cfiv.DeepIV(FORMULA, steps=3, progress=False, random_state=seed),
    "AGMM": lambda seed: cfiv.AGMM(FORMULA, steps=3, progress=False, random_state=seed),
}


def x_and_y() -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return x, x.prod(dim=1, keepdim=True)


def module(seed: int = 0, **kinds: Any) -> nn.Module:
    with Draws(seed, CPU).here(other_code=True):
        return nn.Sequential(nn.Linear(3, 8, **kinds), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1, **kinds))


def of_an_estimator(kind: str, seed: int, folder: Path | None = None) -> list[np.ndarray]:
    """All that one asks of it."""
    data = table()
    model = KINDS[kind](seed).fit(data)
    asked: list[np.ndarray] = [
        model.predict(data[:9]),
        model.effect(data[:9], treatment_from=0.0, treatment_to=1.0),
        model.dose_response([0.0, 1.0])["estimate"].to_numpy(),
        np.array([model.score(data)]),
    ]
    if folder is not None:
        place = folder / f"{kind}-{seed}-{threading.get_ident()}.cfiv"
        model.save(place)
        networks = {"treatment": Dropping} if "draws" in kind else None
        asked.append(cfiv.load(place, networks=networks).predict(data[:9]))
    return asked


def of_the_trainer(seed: int, data: Any = None) -> list[np.ndarray]:
    given = x_and_y() if data is None else data
    trainer = cfiv.LastLayerTrainer(module(seed), cfiv.Proximal(0.5, beta=1e-3), batch_size=10, random_state=seed)
    trainer.fit(given, steps=6)
    said = [trainer.predict(x_and_y()[0]), torch.tensor(trainer.evaluate(given).loss)]
    said.append(trainer.refit(given, beta=1e-3).predict(x_and_y()[0]))
    return [value.numpy() for value in said]


class Augmented(Dataset):
    def __init__(self, *, seeded: bool) -> None:
        self.seeded = seeded

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if self.seeded:
            torch.manual_seed(row)
        x, y = x_and_y()
        return x[row] + 0.1 * torch.randn(3), y[row]


def of_a_loader(seed: int, *, seeded: bool = False) -> list[np.ndarray]:
    return of_the_trainer(seed, DataLoader(Augmented(seeded=seeded), batch_size=10, shuffle=True))


PROGRAMS: dict[str, Callable[..., list[np.ndarray]]] = {
    **{kind: partial(of_an_estimator, kind) for kind in KINDS},
    "trainer": of_the_trainer,
    "trainer with a loader": of_a_loader,
}


@functools.cache
def undisturbed(program: str, seed: int) -> list[np.ndarray]:
    return PROGRAMS[program](seed)


def same(some: list[np.ndarray], others: list[np.ndarray], *, rounding: float = 0.0) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=rounding, atol=0.0)


@contextmanager
def put(setter: Callable[[Any], object], value: Any, back: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(back)


SETTINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled(False)": partial(torch.set_grad_enabled, False),
    "default dtype": lambda: put(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: put(torch.set_default_device, "meta", None),
    "a device's context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "flush denormals": lambda: put(torch.set_flush_denormal, True, False),
    "float32 products": lambda: put(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic algorithms": lambda: put(torch.use_deterministic_algorithms, True, False),
    "anomaly detection": lambda: put(torch.autograd.set_detect_anomaly, True, False),
}


def state() -> tuple[Any, ...]:
    """What a caller can have set, and the global generator."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        5e-309 * 0.5 == 0.0,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_num_threads(),
        torch.random.default_generator is GENERATOR,
        GENERATOR.get_state().tolist(),
    )


@contextmanager
def everything() -> Iterator[None]:
    """All settings at once."""
    with ExitStack() as stack:
        for setting in SETTINGS.values():
            stack.enter_context(setting())
        yield


@pytest.mark.parametrize(("kind", "setting"), [("DFIV", setting) for setting in SETTINGS] + [(kind, "all") for kind in KINDS])
def test_what_is_set_in_torch_changes_no_number_of_an_estimator_and_stays_set(kind: str, setting: str, tmp_path: Path) -> None:
    alone = undisturbed(kind, 1)
    with SETTINGS.get(setting, everything)():
        before = state()
        found = of_an_estimator(kind, 1, tmp_path)
        assert state() == before
    same(found[:-1], alone)
    np.testing.assert_allclose(found[-1], alone[0], rtol=ROUNDING)  # what was loaded


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("program", [of_the_trainer, of_a_loader], ids=["arrays", "loader"])
def test_what_is_set_in_torch_changes_no_number_of_the_trainer_and_stays_set(
    setting: str, program: Callable[[int], list[np.ndarray]]
) -> None:
    def fit() -> list[np.ndarray]:
        given = torch.device("cpu"), torch.float32
        trainer = cfiv.LastLayerTrainer(networks.pop(), cfiv.Proximal(0.5, beta=1e-3), batch_size=10, device="cpu")
        data = arrays if program is of_the_trainer else DataLoader(batches, batch_size=None)
        trainer.fit(data, steps=6)
        said = trainer.predict(arrays[0])
        assert (said.device, said.dtype) == given
        assert said.is_inference() is False
        return [said.numpy(), np.array([trainer.evaluate(data).loss]), trainer.refit(data).predict(arrays[0].numpy())]

    networks, arrays = [module(), module()], x_and_y()
    batches = [(arrays[0][i : i + 10], arrays[1][i : i + 10]) for i in range(0, 40, 10)]
    alone = fit()
    with SETTINGS[setting]():
        before = state()
        found = fit()
        assert state() == before
    same(found, alone)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_set_stays_set_where_a_fit_ends_by_an_exception(error: type[BaseException]) -> None:
    def factory(inputs: int) -> nn.Module:
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32
        raise error

    with torch.inference_mode(), SETTINGS["default dtype"](), SETTINGS["autocast"](), SETTINGS["flush denormals"]():
        before = state()
        with pytest.raises(error):
            cfiv.DFIV(FORMULA, treatment_network=factory, progress=False).fit(table())
        assert state() == before


def test_modules_and_data_made_in_inference_mode_are_trained_like_others() -> None:
    with torch.inference_mode():
        network, data = module(), tuple(part.clone() for part in x_and_y())
        estimator = cfiv.DFIV(steps=4, treatment_network=nn.Linear(1, 2), progress=False, random_state=0)
        frame = table()
        roles = {"outcome": "y", "treatment": "t", "instruments": "z"}
        arrays = cfiv.IVData(**{role: torch.tensor(frame[name].to_numpy()) for role, name in roles.items()})
        found = estimator.fit(arrays).predict(treatment=arrays.treatment)
    trained = cfiv.LastLayerTrainer(network, batch_size=10).fit(data, steps=5)
    expected = cfiv.LastLayerTrainer(module(), batch_size=10).fit(x_and_y(), steps=5)
    same([trained.predict(data[0]).numpy()], [expected.predict(x_and_y()[0]).numpy()])
    usual = cfiv.IVData(**{role: frame[name] for role, name in roles.items()})
    same([found], [estimator.fit(usual).predict(treatment=usual.treatment)])


def test_a_module_in_float64_keeps_the_default_dtype_that_its_own_tensors_need() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(3)  # of the default dtype

    with SETTINGS["default dtype"]():
        network = nn.Sequential(Centred(), module(dtype=torch.float64))
        trainer = cfiv.LastLayerTrainer(network, batch_size=10).fit(x_and_y(), steps=2)
        assert trainer.predict(x_and_y()[0]).dtype == torch.float64


@pytest.mark.parametrize("program", PROGRAMS)
def test_eight_fits_in_threads_give_the_numbers_of_each_alone_and_draw_nothing_of_the_programs(program: str) -> None:
    whole = PROGRAMS[program]
    alone = [undisturbed(program, seed) for seed in range(8)]
    torch.manual_seed(5)
    mine = torch.rand(200)
    torch.manual_seed(5)
    drawn: list[Tensor] = []
    with ThreadPoolExecutor(8) as pool:
        together = [pool.submit(whole, seed) for seed in range(8)]
        while len(drawn) < 200:  # the program's own draws, in the midst of it
            drawn.append(torch.rand(1))
            if not all(fit.done() for fit in together):
                time.sleep(1e-4)
    for fit, expected in zip(together, alone, strict=True):
        same(fit.result(), expected, rounding=ROUNDING)
    assert torch.equal(torch.cat(drawn), mine)
    assert state()[-2]


def test_one_thread_at_a_time_has_python_read_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that did ended in a SystemError now and then: CPython counts the depth of a syntax tree for all threads."""
    inside, most = 0, 0
    read = ast.parse

    def slowly(*args: Any, **options: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(1e-3)
        try:
            return read(*args, **options)
        finally:
            inside -= 1

    monkeypatch.setattr(ast, "parse", slowly)
    data = table()

    def fit(seed: int) -> Any:
        return cfiv.TwoStageLeastSquares("y ~ x + [np.exp(t) ~ np.exp(z)]").fit(data).predict(data[:3])

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(fit, range(4)))) == 4
    assert most == 1


def test_threads_that_fit_under_settings_of_their_own_do_not_disturb_one_another() -> None:
    def fit(setting: str) -> list[np.ndarray]:
        with SETTINGS[setting]():
            return of_an_estimator("DFIV", 1)

    alone = undisturbed("DFIV", 1)
    with SETTINGS["default dtype"](), ThreadPoolExecutor(4) as pool:
        for found in pool.map(fit, ["no_grad", "inference_mode", "autocast", "flush denormals"] * 2):
            same(found, alone, rounding=ROUNDING)
        assert torch.get_default_dtype() == torch.float64


def test_a_thread_that_begins_during_a_fit_computes_on_as_many_threads_as_the_program_said() -> None:
    def count() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    with put(torch.set_num_threads, 3, before):
        with suitable_threads([nn.Linear(2, 2)]):
            assert torch.get_num_threads() == 1
            assert count() == 3
        assert (torch.get_num_threads(), count()) == (3, 3)
        with suitable_threads([nn.Linear(2, SMALL_NETWORK)]):
            assert torch.get_num_threads() == 3


def draws_of_all_kinds() -> list[Tensor]:
    x = torch.ones(6, 8)
    q = torch.ones(1, 2, 6, 8)
    return [
        *(p.detach() for p in nn.Transformer(8, 2, 1, 1, 8, batch_first=True).parameters()),
        *(
            nn.init.trunc_normal_(torch.empty(4)),
            nn.init.orthogonal_(torch.empty(3, 3)),
            nn.init.sparse_(torch.empty(4, 4), 0.5),
        ),
        *(torch.rand(3), torch.randn(3, dtype=torch.complex64), torch.randint(9, (4,)), torch.randperm(7), torch.rand_like(x)),
        *(torch.normal(0.0, 1.0, (3,)), torch.multinomial(x, 3), torch.poisson(x), torch.bernoulli(x / 2)),
        *(torch.empty(3).exponential_(), torch.empty(3).cauchy_(), torch.empty(3, dtype=torch.int64).random_()),
        *(torch.distributions.Gamma(2.0, 1.0).sample((3,)), torch.distributions.Dirichlet(torch.ones(3)).sample()),
        *(torch.distributions.Binomial(10, torch.tensor(0.3)).sample((4,)), torch.distributions.Uniform(0.0, 1.0).sample((3,))),
        *(
            F.dropout(x, 0.3),
            F.alpha_dropout(x, 0.3, True),
            F.dropout1d(x[None], 0.3),
            F.feature_alpha_dropout(x[None], 0.3, True),
        ),
        *(F.rrelu(-x, training=True), F.gumbel_softmax(x), torch.native_dropout(x, 0.3, True)[0]),
        F.fractional_max_pool2d(torch.arange(64.0).reshape(1, 8, 8), 2, output_size=(3, 3)),
        *(nn.LSTM(8, 4, 2, dropout=0.4)(x)[0].detach(), nn.RNN(8, 4, 2, dropout=0.4)(x)[0].detach()),
        *(
            nn.MultiheadAttention(8, 2, dropout=0.4)(x, x, x)[0].detach(),
            F.scaled_dot_product_attention(q, q, q, dropout_p=0.4),
        ),
        *(
            torch.pca_lowrank(torch.arange(48.0).reshape(6, 8))[1],
            torch.ops.aten.bernoulli(x / 2),
            torch.tensor([torch.initial_seed()]),
        ),
    ]


def test_every_way_to_draw_has_the_stream_of_the_global_generator_and_leaves_that_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = [*draws_of_all_kinds(), torch.get_rng_state()]
    before = torch.get_rng_state()
    with Draws(3, CPU).here(other_code=True):
        found = [*draws_of_all_kinds(), torch.get_rng_state()]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_whatever_torch_says_is_random_is_watched() -> None:
    public = {name for place in (torch, F, Tensor) for name in dir(place) if callable(getattr(place, name))}
    random = {
        base
        for base, _, overload in (name.removeprefix("aten::").partition(".") for name in torch._C._dispatch_get_all_op_names())
        if base in public and torch.Tag.nondeterministic_seeded in _tags(base, overload)
    }
    assert len(random) > 30
    assert {name for name in random - MAY_DRAW if not name.startswith(("_", "miopen"))} == set()


def _tags(base: str, overload: str) -> Any:
    packet = getattr(torch.ops.aten, base, None)
    return getattr(packet, overload or "default").tags if packet is not None else ()


def test_what_code_says_to_the_global_generator_in_a_fit_it_says_to_the_fits_own() -> None:
    before = torch.get_rng_state()
    with Draws(1, CPU).here(other_code=True):
        torch.manual_seed(4)
        pinned = torch.rand(3)
        with torch.random.fork_rng():
            torch.manual_seed(9)
            torch.rand(5)
        following = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    stream = torch.rand(6, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.cat([pinned, following]), stream)
    same(of_a_loader(2, seeded=True), of_a_loader(2, seeded=True))


def test_a_layer_that_is_computed_again_for_its_gradient_draws_again_what_it_drew() -> None:
    class Recomputed(Dropping):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    data = table()
    for kind in (cfiv.DFIV, cfiv.NetworkRegression):
        options = {"steps": 3, "progress": False, "random_state": 0}
        plain, again = (kind(FORMULA, treatment_network=network, **options) for network in (Dropping, Recomputed))
        same([again.fit(data).predict(data)], [plain.fit(data).predict(data)])


def test_all_code_of_a_users_that_runs_in_the_trainer_draws_from_its_seed() -> None:
    class Shaken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(0.01 * torch.randn_like(parameter))
            return super().step(closure)

    class Drawn:
        def update(self, memory: Memory, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
            return Memory(memory.weights + 0.01 * torch.randn_like(memory.weights))

    def fit() -> list[np.ndarray]:
        factory = partial(Shaken, lr=1e-3)
        trainer = cfiv.LastLayerTrainer(
            module(), Drawn(), optimizer=factory, learning_rate_schedule=lambda done: float(torch.rand(())), batch_size=10
        )
        trainer.fit(x_and_y(), steps=5, on_step=lambda *_: torch.rand(3))
        return [trainer.predict(x_and_y()[0]).numpy()]

    before, alone = torch.get_rng_state(), fit()
    torch.rand(1)
    moved = torch.get_rng_state()
    same(fit(), alone)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(before, moved)


def test_an_interrupt_in_the_midst_of_a_layer_leaves_no_mode_behind() -> None:
    class Interrupting(Dropping):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise KeyboardInterrupt
            return super().forward(x)

    before = state()
    with pytest.raises(KeyboardInterrupt):
        cfiv.DFIV(FORMULA, treatment_network=Interrupting, progress=False).fit(table())
    assert state() == before
    assert torch.overrides._get_current_function_mode_stack() == []


def test_modules_that_torch_has_made_code_of_draw_from_their_seed_too() -> None:
    def draws(seed: int, network: nn.Module) -> list[np.ndarray]:
        with Draws(seed, CPU).here(network):
            return [run(network, torch.ones(50)).numpy() for _ in range(9)]

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(nn.Dropout(0.5))
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        for seed, found in enumerate(pool.map(draws, range(8), [scripted, nn.Dropout(0.5)] * 4)):
            same(found, draws(seed, nn.Dropout(0.5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_layers_that_are_known_to_draw_nothing_are_not_watched() -> None:
    quiet = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.0), nn.GRU(8, 8), nn.Flatten())
    parametrised = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    assert not any(map(may_draw, [quiet, parametrised, cfiv.networks.default_networks.image_network((32, 32))]))
    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    drawing = [
        nn.Dropout2d(),
        nn.AlphaDropout(0.1),
        nn.RReLU(),
        nn.LSTM(3, 3, 2, dropout=0.1),
        nn.TransformerEncoderLayer(4, 2),
    ]
    assert all(map(may_draw, [hooked, Dropping(2), nn.Sequential(quiet, Dropping(2)), *drawing]))


def test_every_estimator_is_tried() -> None:
    exported = {
        name for name in cfiv.__all__ if isinstance(kind := getattr(cfiv, name), type) and hasattr(kind, "dose_response")
    }
    assert exported - {StructuralFunction.__name__, cfiv.Inference.__name__} <= set(KINDS)
    assert all(inspect.signature(make).parameters for make in KINDS.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_while_another_thread_reads_a_formula_reads_its_own() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ONE_READER:
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends it, if it waits
        with ONE_READER:
            os._exit(0)
    done.set()
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
