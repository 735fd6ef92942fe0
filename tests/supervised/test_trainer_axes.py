"""Axes: whatever shape a module gives its output, examples stay examples; what cannot be told apart is refused."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cfiv
from cfiv import DataError, LastLayerTrainer, ParameterError, Proximal
from cfiv.runtime.draws import seeded
from cfiv.supervised import evaluation


class Reshaped(nn.Module):
    """A small network whose output goes through a function of shapes alone."""

    def __init__(self, reshape: Callable[[Tensor], Tensor], outputs: int = 1, before: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.reshape, self.before = reshape, before
        with seeded(0, torch.device("cpu")):
            self.first, self.last = nn.Linear(3, 5), nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.tanh(self.first(x))
        return self.reshape(self.last(features if self.before is None else self.before(features)))


X = torch.randn(33, 3, generator=torch.Generator().manual_seed(0))
Y = torch.stack([X.prod(dim=1), X.sum(dim=1)], dim=1)
KEPT = {
    "as it is": lambda out: out,
    "squeeze(-1)": lambda out: out.squeeze(-1),
    "squeeze()": lambda out: out.squeeze(),
    "[:, 0]": lambda out: out[:, 0],
    "unsqueeze(-1)": lambda out: out.unsqueeze(-1),
    "unsqueeze(1)": lambda out: out.unsqueeze(1),
}


def fitted(module: nn.Module, data: object, **options: object) -> LastLayerTrainer:
    return LastLayerTrainer(module, Proximal(0.5), batch_size=11, **options).fit(data, epochs=2)  # type: ignore[arg-type]


def same(one: evaluation.Evaluation, other: evaluation.Evaluation) -> bool:
    """Also where one has no such number."""
    return np.array_equal([*vars(one).values()], [*vars(other).values()], equal_nan=True)


@pytest.mark.law
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("axis", [False, True], ids=["targets (n,)", "targets (n, 1)"])
def test_one_output_is_one_output_in_any_shape(name: str, axis: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never (n,) against (n, 1): the loss would be that of n x n pairs. Chunks of 32 leave one row over."""
    monkeypatch.setattr(evaluation, "CHUNK", 32)
    targets = Y[:, :1] if axis else Y[:, 0]
    plain, other = fitted(Reshaped(KEPT["as it is"]), (X, Y[:, :1])), fitted(Reshaped(KEPT[name]), (X, targets))
    for one, two in zip(plain.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(one, two)
    said = other.predict(X)
    assert said.shape == other.module(X).shape
    assert torch.equal(said.flatten(), plain.predict(X).flatten())
    assert same(other.evaluate((X, targets)), plain.evaluate((X, Y[:, :1])))
    assert other.evaluate((X, targets)).loss == pytest.approx(float((said.flatten() - Y[:, 0]).square().mean()))
    assert other.predict(X[:1]).shape == (1, *said.shape[1:])
    weights = torch.arange(33.0)
    assert same(other.evaluate((X, targets, weights)), plain.evaluate((X, Y[:, :1], weights)))


@pytest.mark.law
@pytest.mark.parametrize("layer", [Proximal(0.5), cfiv.Gradient()], ids=repr)
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_last_batch_of_one_example_is_a_batch(outputs: int, layer: Proximal) -> None:
    ends = []
    for reshape in (KEPT["as it is"], KEPT["squeeze()"]):
        module, loader = Reshaped(reshape, outputs), DataLoader(TensorDataset(X, Y[:, :outputs], X[:, 0].abs()), batch_size=16)
        ends.append(LastLayerTrainer(module, layer).fit(loader, epochs=2))
    for one, two in zip(ends[0].module.parameters(), ends[1].module.parameters(), strict=True):
        assert torch.equal(one, two)
    assert same(ends[0].evaluate(loader), ends[1].evaluate(loader))


@pytest.mark.law
def test_features_that_lose_the_axis_of_one_example_get_it_back() -> None:
    """As pooled images do that are squeezed before the last layer."""
    squeezed, plain = Reshaped(KEPT["as it is"], 2, before=torch.squeeze), Reshaped(KEPT["as it is"], 2)
    trainers = [fitted(module, (X, Y)) for module in (squeezed, plain)]
    assert same(trainers[0].evaluate((X[:1], Y[:1])), trainers[1].evaluate((X[:1], Y[:1])))
    assert trainers[0].predict(X[:1]).shape == (1, 2)


@pytest.mark.law
@pytest.mark.parametrize("name", ["as it is", "squeeze()"])
def test_labels_may_be_a_column(name: str) -> None:
    labels = (Y[:, 0] > 0).long()
    trainers = [
        fitted(Reshaped(KEPT[name], 2), (X, given), task="classification")
        for given in (labels, labels[:, None], labels[:, None].numpy())
    ]
    assert trainers[0].predict(X).shape == (33,)
    assert trainers[0].predict(X[:1]).shape == (1,)
    assert len({trainer.evaluate((X, labels)).loss for trainer in trainers}) == 1
    assert trainers[0].evaluate((X, labels[:, None])).accuracy == trainers[0].evaluate((X, labels)).accuracy


REFUSED = {
    "flattens the batch": (Reshaped(torch.flatten, 2), (X, Y), r"output has shape \(4,\) for 2 examples: keep their axis"),
    "swaps the batch": (Reshaped(lambda out: out.mT, 2), (X, Y), r"output has shape \(2, 3\) for 3 examples: keep their axis"),
    "puts it second": (Reshaped(lambda out: out[None], 2), (X, Y), r"output has shape \(1, 2, 2\) for 2 examples"),
    "takes it for channels": (nn.Conv1d(2, 2, 1), (X[:2], X[:2]), r"does not take inputs of shape \(3, 3\)"),
    "means over it": (nn.Sequential(Reshaped(lambda out: out - out.mean(0), 2)), (X, Y), r"comes after it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_move_the_examples_are_refused_before_training(name: str) -> None:
    module, data, message = REFUSED[name]
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises((ParameterError, DataError), match=message):
        LastLayerTrainer(module, Proximal(0.5)).fit(data, steps=1)
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


@pytest.mark.law
def test_as_many_examples_as_points_or_channels_are_still_examples() -> None:
    """Targets transposed have the same shape, so that only the order tells: rows belong to rows."""
    module = nn.Conv1d(4, 4, 1)
    x = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = module(x)
    twin = nn.Conv1d(4, 4, 1)
    trainer = LastLayerTrainer(twin, cfiv.Ridge(0.0), batch_size=None).fit((x, y), steps=1)
    assert trainer.evaluate((x, y)).loss < 1e-9
    torch.testing.assert_close(twin.weight, module.weight, rtol=1e-4, atol=1e-5)


def test_labels_of_a_grid_in_another_order_are_refused() -> None:
    module, x = nn.Conv2d(1, 2, 1), torch.randn(6, 1, 5, 4)
    labels = (x[:, 0] > 0).long()
    trainer = LastLayerTrainer(module, Proximal(0.5), task="classification").fit((x, labels), steps=1)
    assert same(trainer.evaluate((x, labels.flatten(start_dim=1))), trainer.evaluate((x, labels)))
    with pytest.raises(DataError, match=r"labels must have shape \(6, 5, 4\), one for each row, got \(6, 4, 5\): bring axes"):
        trainer.evaluate((x, labels.mT))


def test_batch_normalisation_of_one_example_is_refused_in_words() -> None:
    module, loader = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        DataLoader(TensorDataset(X, Y), batch_size=16),
    )
    with pytest.raises(
        DataError, match=r"shape \(1, 3\) .*more than 1 value per channel.*: leave out batches of one .*drop_last"
    ):
        LastLayerTrainer(module, Proximal(0.5)).fit(loader, epochs=1)


@pytest.mark.law
@pytest.mark.parametrize("kind", [cfiv.DFIV, cfiv.NetworkRegression])
def test_a_network_that_squeezes_predicts_one_row_as_it_does_among_others(kind: type) -> None:
    r = np.random.default_rng(0)
    d = pd.DataFrame({"z": r.normal(size=60), "x": r.normal(size=60)})
    d["t"] = d.z + r.normal(size=60)
    d["y"] = d.t + d.x + r.normal(size=60)
    network = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), Squeeze())
    options = {"treatment_network": network, "covariate_network": network, "steps": 2, "progress": False, "random_state": 0}
    model = kind("y ~ x + [t ~ z]", **options).fit(d)
    many = model.predict(d[:3])
    assert model.predict(d[:1]) == pytest.approx(many[:1], rel=1e-5)
    batches_of_one = kind(
        "y ~ x + [t ~ z]", batch_size=1, instrument_network=nn.Sequential(nn.Linear(2, 3), Squeeze()), **options
    )
    assert np.isfinite(batches_of_one.fit(d).predict(d[:1])).all()


class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze()


class Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("kind", [cfiv.DFIV, cfiv.NetworkRegression])
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Linear(1, 1), Squeeze()), r"got output shape \(2,\) for 2 rows: keep an axis for its features"),
        (nn.Sequential(nn.Linear(1, 2), Swap()), r"got output shape \(2, 5\) for 5 rows: give one row of features"),
        (Two(), r"it gives a tuple and not a tensor of features"),
    ],
)
def test_a_network_without_rows_or_features_is_refused(kind: type, network: nn.Module, message: str) -> None:
    rows = {"y": [0.0, 1.0, 3.0, 2.0] * 6, "t": [0.0, 1.0, 2.0] * 8, "z": [0.0, 1.0, 1.0, 3.0] * 6}
    with pytest.raises(ParameterError, match=message):
        kind("y ~ [t ~ z]", treatment_network=network, steps=1, progress=False).fit(rows)
