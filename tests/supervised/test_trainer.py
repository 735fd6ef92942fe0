"""The last-layer trainer: what a step is, what the last layers are, and what the module is afterwards."""

import copy
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import cfiv
from cfiv import Adaptive, Gradient, Kalman, LastLayerTrainer, MovingAverage, Proximal, Ridge
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.numerics.kalman import kalman_update
from cfiv.numerics.least_squares import solve_step, with_intercept
from cfiv.runtime.draws import seeded
from cfiv.supervised.examples import Examples
from cfiv.supervised.last_linear_map import find_last_linear_map
from cfiv.supervised.step import Recipe, TrainerState, step
from cfiv.supervised.tasks import Regression

#: Two float64 routes to one gradient.
GRADIENT = 1e-8
#: Two float64 routes to one solve.
SAME = 1e-10
SGD = partial(torch.optim.SGD, lr=0.1)


def network(seed: int = 0, *, outputs: int = 2, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with seeded(seed, torch.device("cpu")):
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs, bias=bias)).to(dtype)


def examples(rows: int = 40, *, seed: int = 0, outputs: int = 2, weighted: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    y = torch.stack([x.prod(dim=1), x.square().sum(dim=1)], dim=1)[:, :outputs] + 0.1 * noise
    return (x, y, torch.rand(rows, generator=generator, dtype=torch.float64)) if weighted else (x, y)


def batch_of(parts: tuple[Tensor, ...]) -> Examples:
    return Examples(inputs=parts[0], targets=parts[1], weights=parts[2] if len(parts) == 3 else None)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.gradient
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layer", [Ridge(0.1), Proximal(0.5), Proximal(0.5, beta=0.1)], ids=repr)
def test_a_step_descends_the_gradient_through_the_solve(layer: Ridge | Proximal, weighted: bool) -> None:
    """Of the minimised objective, penalties and all, though the step differentiates at weights held fixed."""
    module, batch = network(), batch_of(examples(weighted=weighted))
    twin = copy.deepcopy(module)
    lam, previous = getattr(layer, "lam", 0.0), find_last_linear_map(module, batch.inputs).weights
    phi = with_intercept(twin[:2](batch.inputs))
    solved = solve_step(
        features=phi, targets=batch.targets, ridge=layer.beta, proximal=lam, previous=previous, weights=batch.weights
    )
    squares = (batch.targets - phi @ solved).square().sum(dim=1)
    w = torch.ones_like(squares) if batch.weights is None else batch.weights
    objective = w @ squares / w.sum() + layer.beta * solved.square().sum() + lam * (solved - previous).square().sum()
    objective.backward()

    trainer = LastLayerTrainer(module, layer, optimizer=partial(torch.optim.SGD, lr=1.0), batch_size=None)
    before = [p.detach().clone() for p in module[0].parameters()]
    trainer.fit((batch.inputs, batch.targets) if batch.weights is None else examples(weighted=True), steps=1)
    for old, new, through in zip(before, module[0].parameters(), twin[0].parameters(), strict=True):
        torch.testing.assert_close(old - new, through.grad, rtol=GRADIENT, atol=GRADIENT)


@pytest.mark.law
def test_full_batch_ridge_is_alternating_minimisation() -> None:
    """Exact solves by QR with one gradient step of the backbone between them, written out."""
    module, (x, y) = network(), examples()
    twin, beta, rate = copy.deepcopy(module), 0.05, 0.1
    trainer = LastLayerTrainer(module, Ridge(beta), optimizer=partial(torch.optim.SGD, lr=rate), batch_size=None)
    trainer.fit((x, y), steps=25)
    losses = []
    for _ in range(25):
        phi = with_intercept(twin[:2](x))
        augmented = torch.cat([phi.detach(), (beta * len(x)) ** 0.5 * torch.eye(6, dtype=torch.float64)])
        w = torch.linalg.lstsq(augmented, torch.cat([y, torch.zeros(6, 2, dtype=torch.float64)])).solution
        loss = (y - phi @ w).square().sum(dim=1).mean()
        gradients = torch.autograd.grad(loss, list(twin[0].parameters()))
        with torch.no_grad():
            for p, g in zip(twin[0].parameters(), gradients, strict=True):
                p -= rate * g
        losses.append(float(loss.detach()))
    torch.testing.assert_close(flat(module[0]), flat(twin[0]), rtol=SAME, atol=SAME)
    torch.testing.assert_close(trainer.last_linear_map_.weights, w, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(trainer.history_["loss"], losses, rtol=SAME)


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ["solve-first", "backbone-first"])
def test_kalman_with_reset_is_proximal_with_the_sum_form_penalty(order: str, weighted: bool) -> None:
    data, fitted = examples(60, weighted=weighted), []
    for layer in (Kalman(0.3, observation_noise=2.0, reset=True), Proximal(2.0**2 / 0.3**2 / 20)):
        module = network()
        fitted.append(LastLayerTrainer(module, layer, optimizer=SGD, order=order, batch_size=20).fit(data, epochs=5))
    torch.testing.assert_close(flat(fitted[0].module), flat(fitted[1].module), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_kalman_without_reset_is_recursive_least_squares() -> None:
    """Row after row with the gain written out, which is also ridge on all rows so far, pulled to the prior mean."""
    x, y = examples(60)
    phi, mean, p = with_intercept(x), torch.ones(4, 2, dtype=torch.float64), 9.0 * torch.eye(4, dtype=torch.float64)
    layer, memory = Kalman(0.0, observation_noise=0.5, prior=3.0), Memory(mean)
    for rows in torch.arange(60).split(15):
        memory = layer.update(memory, features=phi[rows], targets=y[rows], weights=None)
    for row, target in zip(phi, y, strict=True):
        gain = p @ row / (0.25 + row @ p @ row)
        mean = mean + gain[:, None] * (target - row @ mean)
        p = p - torch.outer(gain, row @ p)
    torch.testing.assert_close(memory.weights, mean, rtol=SAME, atol=SAME)
    torch.testing.assert_close(memory.more[0] @ memory.more[0].mT, p, rtol=SAME, atol=SAME)
    together = solve_step(features=phi, targets=y, proximal=0.25 / 9 / 60, previous=torch.ones(4, 2, dtype=torch.float64))
    torch.testing.assert_close(memory.weights, together, rtol=SAME, atol=SAME)


@pytest.mark.law
def test_the_kalman_walk_is_the_textbook_filter() -> None:
    """Covariance form with a process noise: predict, gain, correct."""
    (x, y), q, s = examples(30), 0.2, 0.7
    phi, identity = with_intercept(x), torch.eye(4, dtype=torch.float64)
    mean, p, w, root = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64), None, None
    w = mean
    for rows in torch.arange(30).split(10):
        a = phi[rows]
        p = p + q**2 * identity
        gain = torch.linalg.solve(a @ p @ a.mT + s**2 * torch.eye(10, dtype=torch.float64), a @ p).mT
        mean, p = mean + gain @ (y[rows] - a @ mean), p - gain @ a @ p
        w, root = kalman_update(features=a, targets=y[rows], mean=w, root=root, process_noise=q, observation_noise=s)
    torch.testing.assert_close(w, mean, rtol=SAME, atol=SAME)
    assert root is not None
    torch.testing.assert_close(root @ root.mT, p, rtol=SAME, atol=SAME)


@pytest.mark.law
def test_a_moving_average_without_decay_is_ridge_and_with_decay_weighs_the_past() -> None:
    (x, y), memory = examples(60), Memory(torch.zeros(4, 2, dtype=torch.float64))
    phi = with_intercept(x)
    first, second = torch.arange(60).split(30)
    for decay in (0.0, 0.5):
        layer = MovingAverage(decay, beta=0.01)
        now = layer.update(memory, features=phi[first], targets=y[first], weights=None)
        now = layer.update(now, features=phi[second], targets=y[second], weights=None)
        w = torch.cat([torch.full((30,), decay), torch.ones(30)]).double()
        torch.testing.assert_close(
            now.weights, solve_step(features=phi, targets=y, ridge=0.01, weights=w), rtol=SAME, atol=SAME
        )


@pytest.mark.law
def test_an_infinite_lambda_freezes_the_last_layer_and_none_is_ridge() -> None:
    module, data = network(), examples()
    before, backbone = flat(module[2]), flat(module[0])
    LastLayerTrainer(module, Proximal(1e14), optimizer=SGD, batch_size=10).fit(data, epochs=3)
    torch.testing.assert_close(flat(module[2]), before, rtol=SAME, atol=SAME)
    assert not torch.equal(flat(module[0]), backbone)
    ends = []
    for layer in (Proximal(0.0, beta=0.1), Ridge(0.1)):
        ends.append(flat(LastLayerTrainer(network(), layer, batch_size=10).fit(data, epochs=3).module))
    assert torch.equal(*ends)


@pytest.mark.law
def test_backbone_first_steps_at_the_previous_weights_and_solves_at_the_new_features() -> None:
    module, (x, y) = network(), examples()
    twin, previous = copy.deepcopy(module), find_last_linear_map(module, x).weights
    LastLayerTrainer(module, Proximal(0.5), optimizer=SGD, order="backbone-first", batch_size=None).fit((x, y), steps=1)
    loss = (y - twin(x)).square().sum(dim=1).mean()
    gradients = torch.autograd.grad(loss, list(twin[0].parameters()))
    with torch.no_grad():
        for p, g in zip(twin[0].parameters(), gradients, strict=True):
            p -= 0.1 * g
        w = solve_step(features=with_intercept(twin[:2](x)), targets=y, proximal=0.5, previous=previous)
    torch.testing.assert_close(flat(module[0]), flat(twin[0]), rtol=SAME, atol=SAME)
    torch.testing.assert_close(find_last_linear_map(module, x).weights, w, rtol=SAME, atol=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.Adam, lr=0.01)], ids=["SGD", "Adam"])
def test_gradient_is_plain_training_of_everything(optimizer: cfiv.learning.last_layer.OptimizerFactory) -> None:
    module, (x, y, w) = network(), examples(weighted=True)
    twin = copy.deepcopy(module)
    LastLayerTrainer(module, Gradient(optimizer), batch_size=None).fit((x, y, w), steps=10)
    plain = optimizer(twin.parameters())
    for _ in range(10):
        plain.zero_grad()
        ((y - twin(x)).square().sum(dim=1) @ w / w.sum()).backward()
        plain.step()
    torch.testing.assert_close(flat(module), flat(twin), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_lambda_rises_from_its_start_or_follows_a_function() -> None:
    class Seen(Proximal):
        lams: list[float] = []  # noqa: RUF012

        def update(self, memory: Memory, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
            self.lams.append(self.lam * memory.pull)
            return super().update(memory, features=features, targets=targets, weights=weights)

    for schedule in (0.5, lambda share: 0.5 + 0.5 * share):
        Seen.lams.clear()
        LastLayerTrainer(network(), Seen(2.0), lambda_schedule=schedule, batch_size=None).fit(examples(), steps=4)
        assert Seen.lams == [1.0, 1.25, 1.5, 1.75]


@pytest.mark.law
@pytest.mark.parametrize(
    "layer",
    [Adaptive(), Ridge(0.1), Proximal(0.5), Kalman(0.5, observation_noise=1.0), MovingAverage(0.5, beta=0.1), Gradient()],
    ids=repr,
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_modules_own_output_is_the_prediction(layer: ClosedForm | Gradient, bias: bool) -> None:
    module, data = network(bias=bias, dtype=torch.float32), tuple(part.numpy() for part in examples())
    trainer = LastLayerTrainer(module, layer, batch_size=10).fit(data, epochs=3)
    x = torch.as_tensor(data[0], dtype=torch.float32)
    assert torch.equal(trainer.predict(x), module(x))
    assert isinstance(trainer.predict(data[0]), np.ndarray)
    assert module.training  # as it was
    loss = (data[1] - module(x).detach().numpy()) ** 2
    assert trainer.evaluate(data).loss == pytest.approx(loss.sum(axis=1).mean(), rel=1e-6)


@pytest.mark.law
def test_a_step_leaves_its_batch_and_the_state_it_was_given_alone() -> None:
    module, batch = network(), batch_of(examples())
    head = find_last_linear_map(module, batch.inputs)
    state, inputs = TrainerState(head, None, Memory(head.weights)), batch.inputs.clone()
    memory = state.memory.weights.clone()
    new, loss = step(batch, state, recipe=Recipe(Ridge(0.1), "solve-first", Regression(), "squared", False))
    assert torch.equal(state.memory.weights, memory)
    assert torch.equal(batch.inputs, inputs)
    assert not torch.equal(new.memory.weights, memory)
    assert loss < float((batch.targets - batch.targets.mean(dim=0)).square().sum(dim=1).mean())


@pytest.mark.law
def test_whole_weights_are_repetitions_of_rows() -> None:
    x, y = examples(30)
    w = torch.arange(30) % 3
    ends = []
    for data in ((x, y, w.double()), (x.repeat_interleave(w, dim=0), y.repeat_interleave(w, dim=0))):
        ends.append(flat(LastLayerTrainer(network(), Proximal(0.5, beta=0.1), batch_size=None).fit(data, steps=5).module))
    torch.testing.assert_close(*ends, rtol=SAME, atol=SAME)


@pytest.mark.law
def test_a_loader_in_order_is_the_same_as_its_batches_and_leaves_the_generators_alone() -> None:
    x, y = examples()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    first = LastLayerTrainer(network(), Proximal(0.5)).fit(loader, epochs=2)
    second = LastLayerTrainer(network(), Proximal(0.5)).fit(list(zip(x.split(10), y.split(10), strict=True)), epochs=2)
    assert torch.equal(flat(first.module), flat(second.module))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.evaluate(loader).loss == pytest.approx(first.evaluate((x, y)).loss, rel=1e-12)


@pytest.mark.law
def test_watching_and_evaluating_changes_no_number() -> None:
    data, ends = examples(), []
    for watch in (False, True):
        module = nn.Sequential(network()[:2], nn.Dropout(0.3), network()[2])
        trainer = LastLayerTrainer(module, Proximal(0.5), batch_size=10)

        def look(step: int, loss: float, watch: bool = watch, trainer: LastLayerTrainer = trainer) -> None:
            if watch:
                torch.rand(3)
                trainer.evaluate(DataLoader(TensorDataset(*data), batch_size=7, shuffle=True))

        ends.append(flat(trainer.fit(data, epochs=2, on_step=look).module))
        assert trainer.evaluate(data).loss == trainer.evaluate(data).loss
    assert torch.equal(*ends)


@pytest.mark.law
def test_mixed_precision_keeps_the_solve_in_float64() -> None:
    """Its weights are those of a float64 solve of the features that bfloat16 leaves."""
    module, (x, y) = network(dtype=torch.float32).requires_grad_(False), examples()
    twin = copy.deepcopy(module)
    trainer = LastLayerTrainer(module, Ridge(0.1), mixed_precision=True, batch_size=None, device="cpu").fit((x, y), steps=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        phi = twin[:2](x.float())
    assert phi.dtype == torch.bfloat16
    expected = solve_step(features=with_intercept(phi.float()), targets=y.float(), ridge=0.1)
    torch.testing.assert_close(trainer.last_linear_map_.weights, expected, rtol=1e-6, atol=1e-6)  # stored in float32


@pytest.mark.law
def test_rates_follow_their_schedule() -> None:
    """A factor of zero rests the backbone while the last layer is solved; cosine is what it is elsewhere."""
    module, rates = network(), []
    before = flat(module[0])
    LastLayerTrainer(module, Proximal(0.5), learning_rate_schedule=lambda share: 0.0, batch_size=10).fit(examples(), steps=5)
    assert torch.equal(flat(module[0]), before)

    class Seen(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    optimizer = partial(Seen, lr=0.3)
    LastLayerTrainer(module, optimizer=optimizer, learning_rate_schedule="cosine", batch_size=10).fit(examples(), steps=20)
    np.testing.assert_allclose(rates, [0.3 * cfiv.Training().rate_factor(done, steps=20) for done in range(20)])


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True])
def test_a_refit_is_ridge_on_all_rows_with_features_in_evaluation_mode(weighted: bool) -> None:
    module = nn.Sequential(network()[0], nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), network()[2]).double()
    data = examples(300, weighted=weighted)  # more than run at once
    trainer = LastLayerTrainer(module, Proximal(0.5), batch_size=50).fit(data, epochs=2).refit(data, beta=0.1)
    module.eval()
    expected = solve_step(
        features=with_intercept(module[:4](data[0])), targets=data[1], ridge=0.1, weights=data[2] if weighted else None
    )
    torch.testing.assert_close(trainer.last_linear_map_.weights, expected.detach(), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_evaluation_weighs_rows_like_their_repetitions() -> None:
    x, y = examples(30)
    w = torch.arange(30) % 3
    trainer = LastLayerTrainer(network(), Ridge(0.1)).fit((x, y), steps=1)
    weighted = trainer.evaluate((x, y, w.double()))
    repeated = trainer.evaluate((x.repeat_interleave(w, dim=0), y.repeat_interleave(w, dim=0)))
    assert weighted.loss == pytest.approx(repeated.loss, rel=SAME)
    assert weighted.relative_l2 == pytest.approx(repeated.relative_l2, rel=SAME)


@pytest.mark.law
def test_layers_that_are_lazy_are_found_once_their_width_is_known() -> None:
    module = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(2))
    trainer = LastLayerTrainer(module, Ridge(0.1)).fit(examples(), steps=2)
    assert trainer.last_linear_map_.name == "2"
    assert torch.isfinite(trainer.predict(examples()[0])).all()


@pytest.mark.law
def test_a_trainer_that_was_pickled_predicts_and_goes_on_training_as_before() -> None:
    data = examples()
    trainer = LastLayerTrainer(network(), Proximal(0.5), batch_size=10).fit(data, steps=4, validation=data)
    other = pickle.loads(pickle.dumps(trainer))
    assert torch.equal(other.predict(data[0]), trainer.predict(data[0]))
    pd.testing.assert_frame_equal(other.history_, trainer.history_)
    assert torch.equal(flat(other.fit(data, steps=3).module), flat(trainer.fit(data, steps=3).module))


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(4))
def test_the_default_last_layer_may_stand_behind_a_layer_norm(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 4, generator=generator)
    y = x[:, :1] * x[:, 1:2] + 0.3 * torch.randn(1000, 1, generator=generator)
    losses = []
    for last_layer in (None, cfiv.Ridge(1e-6)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1))
        losses.append(cfiv.LastLayerTrainer(module, last_layer).fit((x, y), steps=20).evaluate((x, y)).loss)
    assert losses[0] < 1.15 * losses[1]
