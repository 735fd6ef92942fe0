"""What the trainer does with arrays and tables: what IVData does with the same, or the numbers of their plain form."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cfiv import DataError, Gradient, IVData, LastLayerTrainer, Proximal, TrainingWarning
from cfiv.runtime.draws import seeded

R = np.random.default_rng(0)
X, Y, W = R.integers(-5, 6, (24, 2)).astype(float), R.integers(-5, 6, (24, 1)).astype(float), R.integers(1, 4, 24).astype(float)
TABLE = pd.DataFrame(X, columns=["a", "b"])


def made(seed: int = 0) -> nn.Sequential:
    with seeded(seed, torch.device("cpu")):
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fitted(data: object) -> LastLayerTrainer:
    return LastLayerTrainer(made(), Proximal(0.5), batch_size=8).fit(data, epochs=2)


def masked(values: np.ndarray[Any, Any], *hidden: int) -> np.ma.MaskedArray[Any, Any]:
    mask = np.zeros(values.shape, dtype=bool)
    mask.flat[list(hidden)] = True
    return np.ma.MaskedArray(values, mask)


FORMS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "big-endian": lambda a: a.astype(">f8"),
    "long doubles": lambda a: a.astype(np.longdouble),
    "Fortran order": np.asfortranarray,
    "negative strides": lambda a: a[::-1].copy()[::-1],
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
    "nothing masked": masked,
    "nested lists": lambda a: a.tolist(),
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "objects": lambda a: a.astype(object),
    "tensor": torch.from_numpy,
    "tensor on a graph": lambda a: 1.0 * torch.from_numpy(a).requires_grad_(),
    "parameter": lambda a: nn.Parameter(torch.from_numpy(a)),
    "pandas": lambda a: pd.DataFrame(a) if a.ndim == 2 else pd.Series(a),
    "polars": lambda a: pl.DataFrame(a) if a.ndim == 2 else pl.Series(a),
}


@pytest.mark.law
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_same_numbers_in_any_form_train_the_same_module(form: Callable[[object], object]) -> None:
    plain = fitted((X, Y, W))
    trainer = fitted((form(X), form(Y), form(W)))
    assert torch.equal(flat(trainer.module), flat(plain.module))
    assert trainer.evaluate((form(X), form(Y))).loss == plain.evaluate((X, Y)).loss
    np.testing.assert_array_equal(np.asarray(torch.as_tensor(trainer.predict(form(X)))), plain.predict(X))
    assert torch.equal(flat(trainer.refit((form(X), form(Y), form(W))).module), flat(plain.refit((X, Y, W)).module))


@pytest.mark.law
@pytest.mark.parametrize("last_layer", [Proximal(0.5), Gradient()], ids=repr)
def test_examples_of_weight_zero_are_as_if_they_were_not_there(last_layer: Proximal | Gradient) -> None:
    """A batch of two often holds nothing else."""
    weights = np.where(np.arange(24) % 3, 0.0, W)
    kept = weights > 0

    def end(*data: object) -> Tensor:
        trainer = LastLayerTrainer(made(), last_layer, batch_size=2)
        return flat(trainer.fit(data, epochs=3, validation=data).refit(data).module)

    assert torch.equal(end(X, Y, weights), end(X[kept], Y[kept], weights[kept]))


@pytest.mark.contract
def test_a_batch_without_weight_is_refused_with_what_to_do() -> None:
    batches = [(X[:8], Y[:8], W[:8]), (X[8:], Y[8:], 0 * W[8:])]
    with pytest.raises(DataError, match="got 0: leave rows of weight zero out, or make batches larger"):
        LastLayerTrainer(made(), Proximal(0.5)).fit(batches, epochs=1)


@pytest.mark.law
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i8", ">i2", "?"])
def test_whole_targets_and_weights_of_any_width_are_numbers(kind: str) -> None:
    targets, weights = (np.abs(part) % (2 if kind == "?" else 100) for part in (Y, W))
    weights[0] = 1.0
    whole = fitted((X, targets.astype(kind), weights.astype(kind)))
    assert torch.equal(flat(whole.module), flat(fitted((X, targets, weights)).module))


@pytest.mark.law
def test_integers_stay_integers_for_embeddings_and_truth_values_become_numbers() -> None:
    with seeded(0, torch.device("cpu")):
        module = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 1))
    for kind in (np.int64, np.int32, np.uint16, np.uint32, np.uint64, ">i4"):
        trainer = LastLayerTrainer(module, Proximal(0.5)).fit((np.abs(X).astype(kind) % 5, Y), steps=1)
        assert trainer.predict(np.abs(X).astype(kind) % 5).shape == (24, 1)
    above = X > 0
    assert torch.equal(flat(fitted((above, Y)).module), flat(fitted((above.astype(float), Y)).module))
    assert torch.equal(flat(fitted((torch.from_numpy(above), Y)).module), flat(fitted((above.astype(float), Y)).module))


@pytest.mark.law
def test_a_graph_that_inputs_hang_on_is_left_alone() -> None:
    leaf = torch.from_numpy(X).requires_grad_()
    fitted((leaf * 2.0, torch.from_numpy(Y)))
    assert leaf.grad is None


class Modulus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.real, x.imag], dim=1)


@pytest.mark.law
def test_complex_inputs_are_for_modules_that_take_them() -> None:
    both = X[:, :1] + 1j * X[:, 1:]
    module = nn.Sequential(Modulus(), *made())
    trainer = LastLayerTrainer(module, Proximal(0.5), batch_size=8).fit((both, Y), epochs=2)
    assert torch.equal(flat(trainer.module), flat(fitted((X, Y)).module))
    with pytest.raises(DataError, match=r"does not take inputs of shape \(2, 2\) and type torch.complex128"):
        fitted((X + 0j, Y))
    for targets in (Y + 0j, torch.from_numpy(Y + 0j)):
        with pytest.raises(DataError, match=r"targets (must be real numbers, got torch.complex128|holds complex numbers)"):
            fitted((X, targets))


def holed(values: np.ndarray[Any, Any], hole: float) -> np.ndarray[Any, Any]:
    out = values.copy()
    out.flat[3] = hole
    return out


BAD: dict[str, tuple[Callable[[np.ndarray[Any, Any]], Any], str]] = {
    "masked": (lambda a: masked(a, 0, 3), "must have no masked values, got 2: drop or fill those rows"),
    "nan": (lambda a: holed(a, np.nan), "must be finite, got 1 values that are infinite or missing"),
    "infinite": (lambda a: holed(a, -np.inf), "must be finite, got 1 values that are infinite or missing"),
    "nan in a tensor": (lambda a: torch.from_numpy(holed(a, np.nan)), "must be finite, got 1 values"),
    "nan in a table": (lambda a: pd.DataFrame(holed(a, np.nan)), "must be finite, got 1 values"),
    "null of polars": (lambda a: pl.DataFrame({"a": [None, *a.flat[1:].tolist()]}), "must be finite"),
    "text": (lambda a: a.astype(str), r"holds text .* where numbers are needed"),
    "objects": (
        lambda a: np.array([object()] * len(a)),
        r"holds values of type object|must be numeric, got dtype object|where numbers",
    ),
    "dates": (lambda a: a.astype("M8[D]"), r"holds dates .* where numbers are needed"),
    "categories": (lambda a: pd.Series(list("ab" * 12), dtype="category"), "holds categories"),
    "ragged lists": (lambda a: [[1.0], [1.0, 2.0]] * 12, "makes no array"),
    "a sparse tensor": (lambda a: torch.from_numpy(a).to_sparse(), "must be a dense tensor"),
    "a nested tensor": (
        lambda a: torch.nested.nested_tensor([torch.ones(2)] * 24, layout=torch.jagged),
        "must be a dense tensor",
    ),
    "a number": (lambda a: 1.0, "at least one, got shapes|makes no array|must have at least one row"),
    "nothing": (lambda a: a[:0], "at least one"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("role", ["inputs", "targets", "row weights"])
def test_what_ivdata_refuses_the_trainer_refuses(name: str, role: str) -> None:
    make, message = BAD[name]
    trainer, place = fitted((X, Y)), ["inputs", "targets", "row weights"].index(role)
    before = flat(trainer.module)
    parts: list[Any] = [X, Y, W]
    parts[place] = make(parts[place])
    calls: list[Callable[[], object]] = [
        lambda: trainer.fit(tuple(parts), steps=1),
        lambda: trainer.evaluate(tuple(parts)),
        lambda: trainer.refit(tuple(parts)),
    ]
    if role == "inputs":
        calls.append(lambda: trainer.predict(parts[0]))
    for call in calls:
        with pytest.raises(DataError, match=f"{message}|row weights must have shape" if role == "row weights" else message):
            call()
    assert torch.equal(flat(trainer.module), before)
    if role == "inputs" and "tensor" not in name:
        with pytest.raises(DataError):
            IVData(treatment=parts[0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-W, r"row weights must be finite and >= 0"),
        (0 * W, r"positive sum, got 0"),
        (W[:-1], r"must have shape \(24,\)"),
        (np.stack([W, W], axis=1), r"must have shape \(24,\)"),
        (W + 0j, "row weights holds complex numbers"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted((X, Y, weights))


def test_tables_pair_their_rows_by_labels_or_not_at_all() -> None:
    y = pd.Series(Y[:, 0])
    assert torch.equal(flat(fitted((TABLE, y)).module), flat(fitted((X, Y)).module))
    shuffled = y.sample(frac=1.0, random_state=0)
    for data in ((TABLE, shuffled), (TABLE.iloc[5:], y.iloc[:-5]), (TABLE, y.to_frame(), pd.Series(W).iloc[::-1])):
        with pytest.raises(DataError, match=r"must have the same index, got other labels or another order: align them"):
            fitted(data)
    fitted((TABLE, shuffled.to_numpy()))  # which has no labels


def test_columns_of_a_table_keep_their_places() -> None:
    trainer = fitted((TABLE, Y))
    swapped = TABLE[["b", "a"]]
    for call in (trainer.predict, lambda x: trainer.evaluate((x, Y)), lambda x: trainer.refit((x, Y))):
        with pytest.raises(DataError, match=r"the columns of training, \['a', 'b'\], got \['b', 'a'\]"):
            call(swapped)
    np.testing.assert_array_equal(trainer.predict(swapped[["a", "b"]]), trainer.predict(X))
    fitted((X, Y)).predict(swapped)  # trained on what has no names


@pytest.mark.law
def test_a_tuple_of_arrays_is_no_loader_and_batches_are_one() -> None:
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    ends = [LastLayerTrainer(made(), Proximal(0.5)).fit(data, epochs=2).module for data in (batches, tuple(batches))]
    assert torch.equal(flat(ends[0]), flat(ends[1]))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    assert torch.equal(flat(ends[0]), flat(LastLayerTrainer(made(), Proximal(0.5)).fit(loader, epochs=2).module))
    numpys = [(a.numpy().astype(">f8"), b.numpy()) for a, b in batches]
    assert torch.equal(flat(ends[0]), flat(LastLayerTrainer(made(), Proximal(0.5)).fit(numpys, epochs=2).module))
    for data in (TABLE, X, torch.from_numpy(X), {"x": X, "y": Y}, "x", IVData(outcome=Y, treatment=X)):
        with pytest.raises(DataError, match=r"data must be \(inputs, targets\[, row weights\]\) or a loader of such batches"):
            fitted(data)
    for batch in ((TABLE, pd.Series(Y[:, 0]).iloc[::-1]), (masked(X, 0), Y)):
        with pytest.raises(DataError, match=r"same index|masked"):
            fitted([batch])


class Sign(nn.Module):
    """In which a missing value is as good as a negative one."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).double()


def test_a_missing_value_in_a_later_batch_ends_training_even_where_the_module_would_hide_it() -> None:
    bad = X.copy()
    bad[0] = np.nan

    class Batches:
        def __iter__(self) -> Iterator[tuple[object, object]]:
            return iter([(X, Y), (X, Y), (bad, Y)])

    trainer = LastLayerTrainer(nn.Sequential(Sign(), *made()), Proximal(0.5))
    with pytest.warns(TrainingWarning, match=r"stopped at step 3 of 4: inputs are not finite; the last state"):
        trainer.fit(Batches(), steps=4)
    with pytest.raises(DataError, match=r"inputs must be finite, got 2 values"):
        trainer.evaluate(Batches())


def test_numbers_beyond_the_modules_floats_are_refused() -> None:
    """Infinite inputs would be ones behind a hyperbolic tangent."""
    module = made().float()
    trainer = LastLayerTrainer(module, Proximal(0.5)).fit((X, Y), steps=1)
    before, huge = flat(module), np.where(np.arange(24)[:, None] == 20, 1e300, X)
    for call in (trainer.predict, lambda x: trainer.evaluate((x, Y)), lambda x: trainer.fit((x, Y), steps=5)):
        with pytest.raises(
            DataError, match=r"inputs must be within torch.float32, .* got 1e\+300: bring them to another scale"
        ):
            call(huge)
    for call in (lambda y: trainer.evaluate((X, y)), lambda y: trainer.fit((X, y), steps=5)):
        with pytest.raises(DataError, match=r"targets must be within torch.float32, .* got 1e\+300"):
            call(np.where(np.arange(24)[:, None] == 20, 1e300, Y))
    assert torch.equal(flat(module), before)


def test_outputs_that_are_not_finite_are_refused() -> None:
    trainer = LastLayerTrainer(made(), Proximal(0.5)).fit((X, Y), steps=1)
    with torch.no_grad():
        trainer.module[2].weight.fill_(1e308)
    for call in (trainer.predict, lambda x: trainer.evaluate((x, Y))):
        with pytest.raises(DataError, match=r"outputs must be finite, got some that are infinite or missing"):
            call(X)


@pytest.mark.parametrize("factor", [1e-300, 1e-60, 1e-44])
def test_values_and_weights_that_float32_has_no_digits_for_are_refused(factor: float) -> None:
    def refused(data: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            LastLayerTrainer(made().float(), Proximal(0.5), batch_size=8).fit(data, epochs=1)

    refused((factor * X, Y), "inputs must not all be smaller than 1e-31")
    refused((X, factor * Y), "targets must not all be smaller than 1e-31")
    refused((X * [1.0, factor], Y), "inputs must not all be smaller than 1e-31")
    refused([(factor * X, Y), (X, Y)], "inputs must not all be smaller than 1e-31")
    refused((X, Y, factor * W), "row weights must be of an ordinary size")
    refused((X, Y, 1e200 * W), "row weights must be of an ordinary size")
