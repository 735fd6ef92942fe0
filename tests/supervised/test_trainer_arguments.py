"""Arguments of the trainer: what works gives the numbers of its plain form, and the rest is refused before training."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfiv import DataError, Gradient, LastLayerTrainer, ParameterError, Proximal, Ridge
from cfiv.learning.last_layer import Memory
from cfiv.learning.run_file import without_addresses
from cfiv.runtime.draws import seeded

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X.prod(dim=1, keepdim=True)
ADAM = partial(torch.optim.Adam, lr=1e-3)


def made() -> nn.Sequential:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def ended(**options: object) -> Tensor:
    fit = {"epochs": 3} | {name: options.pop(name) for name in ("epochs", "steps", "every") if name in options}
    return flat(LastLayerTrainer(made(), **{"batch_size": 8, **options}).fit((X, Y), **fit).module)  # type: ignore[arg-type]


@pytest.mark.law
@pytest.mark.parametrize(
    "options",
    [
        {"random_state": np.int64(0)},
        {"random_state": np.uint8(0)},
        {"batch_size": np.int64(8)},
        {"epochs": np.int64(3)},
        {"epochs": None, "steps": np.uint16(9)},
        {"every": np.int64(5)},
        {"optimizer": partial(torch.optim.Adam, fused=True)},  # whose rate is ours
        {"mixed_precision": np.False_},
        {"lambda_schedule": np.float32(1.0)},
        {"lambda_schedule": lambda share: torch.tensor(1.0), "last_layer": Proximal(1.0)},
        {"learning_rate_schedule": lambda share: np.array(1)},
        {"device": torch.device("cpu")},
    ],
    ids=without_addresses,
)
def test_other_forms_of_the_same_argument_give_the_same_numbers(options: dict[str, object]) -> None:
    assert torch.equal(ended(**options), ended(last_layer=options.get("last_layer")))


@pytest.mark.law
def test_none_and_generators_are_sources_of_ever_new_numbers() -> None:
    assert not torch.equal(ended(random_state=None), ended(random_state=None))
    one, other = (np.random.default_rng(7) for _ in range(2))
    first = ended(random_state=one)
    assert torch.equal(first, ended(random_state=other))
    assert not torch.equal(first, ended(random_state=one))
    trainer = LastLayerTrainer(made(), random_state=one).fit((X, Y), steps=1)
    before = one.bit_generator.state
    trainer.evaluate((X, Y))
    trainer.refit((X, Y), beta=0.1)
    assert one.bit_generator.state == before


class Own:
    """A last layer of somebody's own, that gives what no layer of one output holds."""

    def update(self, memory: Memory, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        return Memory(memory.weights[:1])


class Bare(Own):
    """And one that does not know what it should give."""

    def update(self, memory: Memory, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        return memory.weights  # type: ignore[return-value]


def elsewhere(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(made().parameters())


@pytest.mark.contract
def test_modules_whose_last_layer_cannot_be_solved_are_refused_in_words() -> None:
    data = torch.ones(6, 1), torch.arange(6.0)[:, None]
    compiled = nn.Sequential(torch.compile(nn.Linear(1, 2), backend="eager"), nn.Linear(2, 1))
    with pytest.raises(ParameterError, match=r"the module is compiled, wholly or in part, .* give it as it was before"):
        LastLayerTrainer(compiled).fit(data, steps=1)
    complexes = nn.Linear(1, 1, dtype=torch.complex64)
    with pytest.raises(ParameterError, match=r"the last linear layer .* has complex weights: end the module with real ones"):
        LastLayerTrainer(complexes).fit((data[0].to(torch.complex64), data[1]), steps=1)


BAD = [
    ({"random_state": True}, "random_state must be a whole number between 0 and .*, a numpy Generator or None, got True"),
    ({"random_state": -1}, "random_state must be"),
    ({"random_state": 2**64}, "random_state must be a whole number between 0 and 18446744073709551615"),
    ({"random_state": np.random.RandomState(0)}, "random_state must be .*, got RandomState"),
    ({"optimizer": ADAM(made().parameters())}, r"optimizer must be a callable .* partial\(torch.optim.Adam, .*, got Adam: "),
    ({"optimizer": "adam"}, "optimizer must be a callable .* got str"),
    ({"optimizer": torch.optim.LBFGS}, "got LBFGS, which evaluates the loss by itself: use partial"),
    ({"optimizer": partial(torch.optim.Adam, lr=-1.0)}, "optimizer could not be called .*: Invalid learning rate"),
    ({"optimizer": partial(torch.optim.Adam, rate=1.0)}, "optimizer could not be called .*: .*'rate'"),
    ({"optimizer": lambda: None}, "optimizer could not be called"),
    ({"optimizer": lambda parameters: parameters}, "what optimizer makes must be a torch optimizer, got list"),
    ({"optimizer": lambda parameters: torch.optim.Adam}, "what optimizer makes must be a torch optimizer, got the class Adam"),
    ({"optimizer": elsewhere}, "optimizer must be of the parameters that it is given, got Adam of 0 of the 2 and of 4 others"),
    ({"optimizer": lambda p: torch.optim.Adam(p[:1])}, "got Adam of 1 of the 2 and of 0 others: .*requires_grad_"),
    ({"optimizer": torch.optim.SparseAdam}, "the SparseAdam optimizer cannot take a step here"),
    ({"epochs": True}, "epochs must be a whole number >= 1, got True"),
    ({"epochs": 2.5}, "epochs must be a whole number >= 1, got 2.5"),
    ({"epochs": "3"}, "epochs must be a whole number >= 1, got '3'"),
    ({"epochs": -1}, "epochs must be a whole number >= 1, got -1"),
    ({"epochs": None, "steps": 2.0}, "steps must be a whole number >= 1, got 2.0"),
    ({"steps": 3}, "give either epochs or steps, got epochs=2 and steps=3"),
    ({"every": 0}, "every must be a whole number >= 1, got 0"),
    ({"every": True}, "every must be a whole number >= 1, got True"),
    ({"on_step": 3}, "on_step must be a callable .*, got int"),
    ({"batch_size": -3}, "batch_size must be a whole number >= 1, 'auto', or None for full batches, got -3"),
    ({"batch_size": "all"}, "batch_size must be a whole number >= 1, 'auto', or None for full batches, got 'all'"),
    ({"one_hot_scale": "a"}, "one_hot_scale must be finite and > 0, got 'a'"),
    ({"one_hot_scale": True}, "one_hot_scale must be finite and > 0, got True"),
    ({"lambda_schedule": "a"}, "lambda_schedule must be between 0 and 1, or a callable, got 'a'"),
    ({"lambda_schedule": True}, "lambda_schedule must be between 0 and 1, or a callable, got True"),
    (
        {"lambda_schedule": lambda share: "1", "last_layer": Proximal(1.0)},
        "lambda_schedule must give factors that are finite and >= 0, got '1' at 0 of",
    ),
    (
        {"lambda_schedule": lambda share: float("nan") if share > 0.3 else 1.0, "last_layer": Proximal(1.0)},
        "lambda_schedule must give .* got nan at 0.5",
    ),
    ({"lambda_schedule": 0.5}, "lambda_schedule is for Proximal, got Adaptive"),
    ({"lambda_schedule": lambda share: 1.0, "last_layer": Ridge(1.0)}, "lambda_schedule is for Proximal, got Ridge"),
    (
        {"learning_rate_schedule": "linear"},
        "learning_rate_schedule must be 'constant' or 'cosine', or a callable, got 'linear'",
    ),
    ({"learning_rate_schedule": lambda: 1.0}, "learning_rate_schedule could not be called with a share of the steps"),
    ({"learning_rate_schedule": lambda share: True}, "learning_rate_schedule must give factors .* got True"),
    ({"learning_rate_schedule": lambda share: torch.ones(2)}, "learning_rate_schedule must give factors .* got tensor"),
    ({"device": "gpu0"}, "device 'gpu0' cannot be used here"),
    ({"device": None}, "device must be 'auto' or the name of a device, .* got NoneType"),
    ({"mixed_precision": "yes"}, "mixed_precision must be True or False, got 'yes'"),
    ({"last_module": 3}, "last_module must be the dotted name of a layer, or None, got int"),
    ({"order": np.array(["solve-first"])}, "order must be 'solve-first' or 'backbone-first', got array"),
    ({"checkpoint": 3}, "checkpoint must be the name of a file, got 3"),
    ({"checkpoint": ""}, "checkpoint must be the name of a file, got ''"),
    ({"checkpoint": "run", "random_state": None}, "checkpoint= needs a random_state that can be drawn from again, .* got None"),
    ({"checkpoint": "run", "random_state": np.random.default_rng(0)}, "checkpoint= needs a random_state .* got Generator"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(next(iter(options))) for options, _ in BAD])
def test_bad_arguments_are_refused_before_training(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, given = made(), dict(options)
    fit = {"epochs": 2} | {n: given.pop(n) for n in ("epochs", "steps", "every", "on_step", "checkpoint") if n in given}
    with pytest.raises(ParameterError, match=message):
        LastLayerTrainer(module, **{"batch_size": 16, **given}).fit((X, Y), **fit)  # type: ignore[arg-type]
    assert torch.equal(flat(module), flat(made()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda path: LastLayerTrainer(made()).fit((X, Y), steps=1, checkpoint=path),
            "got .*: this is a folder, so name a file",
        ),
        (
            lambda path: Gradient(ADAM(made().parameters())),
            "optimizer must be a callable .* got Adam: the parameters are known",
        ),
        (lambda path: Gradient(0.1), "optimizer must be a callable .* got float"),
        (lambda path: LastLayerTrainer(made(), Gradient(torch.optim.LBFGS)).fit((X, Y), steps=1), "got LBFGS, which evaluates"),
        (
            lambda path: LastLayerTrainer(made(), Own()).fit((X, Y), steps=1),
            r"must give weights of shape \(5, 1\), .* got \(1, 1\)",
        ),
        (lambda path: LastLayerTrainer(made(), Bare()).fit((X, Y), steps=1), "update gives must be a Memory, got Tensor"),
        (lambda path: LastLayerTrainer(made()).fit((X, Y), steps=1).refit((X, Y), beta="1"), "beta must be finite and >= 0"),
        (lambda path: LastLayerTrainer(nn.Linear), "module must be a torch module, got the class Linear"),
    ],
)
def test_other_bad_arguments_are_refused(call: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        call(tmp_path)


def test_inputs_that_the_module_does_not_take_are_refused_before_training() -> None:
    module = made()
    with pytest.raises(DataError, match=r"does not take inputs of shape \(2, 2\) and type torch.float32 \(mat1 and mat2"):
        LastLayerTrainer(module).fit((X[:, :2], Y), steps=1)
    with pytest.raises(DataError, match=r"of shape \(2, 3\) and type torch.int64 .*: most layers take floating-point inputs"):
        LastLayerTrainer(module).fit((X.long(), Y), steps=1)
    assert torch.equal(flat(module), flat(made()))
    trainer = LastLayerTrainer(module).fit((X, Y), steps=1)
    for inputs in (X[0], X[:, :2], X[:, None, :, None]):
        with pytest.raises(DataError, match=r"the Sequential given (does not take inputs of|makes an output of) shape"):
            trainer.predict(inputs)
