"""The trainer on neuraloperator's FNO as it is: the layer found, its rows, other resolutions, checkpoints."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import cfiv
from cfiv.datasets import burgers, darcy
from cfiv.datasets.function_pairs import FunctionPairs

neuralop = pytest.importorskip("neuralop.models", reason="needs cfiv[operators]")

STRIDES = {"1-D": (16,), "2-D": (6, 6)}


def operator(modes: tuple[int, ...] = (16,), *, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return neuralop.FNO(n_modes=modes, in_channels=1, out_channels=1, hidden_channels=12, n_layers=2)


def examples(pairs: FunctionPairs) -> tuple[Tensor, Tensor]:
    """Functions as images of one channel, of a size near one."""
    x = torch.tensor(pairs.inputs, dtype=torch.float32)[:, None]
    y = torch.tensor(pairs.outputs, dtype=torch.float32)[:, None]
    return (x - x.mean()) / x.std(), y / y.std()


def trainer(module: torch.nn.Module, layer: cfiv.Proximal | None = None) -> cfiv.LastLayerTrainer:
    return cfiv.LastLayerTrainer(
        module, layer or cfiv.Proximal(lam=0.01), optimizer=partial(torch.optim.Adam, lr=3e-3), batch_size=20, device="cpu"
    )


@pytest.mark.law
@pytest.mark.parametrize("kind", STRIDES)
def test_its_projection_is_found_and_every_point_of_the_grid_is_a_row_of_the_solve(kind: str) -> None:
    simulated = burgers.simulate(20, points=32) if kind == "1-D" else darcy.simulate(20, points=12)
    x, y = examples(simulated)
    module = operator(STRIDES[kind])
    seen: list[Tensor] = []
    module.projection.fcs[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    model = trainer(module, cfiv.Ridge(beta=1e-4)).fit((x, y), steps=1)
    assert model.last_linear_map_.name == "projection.fcs.1"
    # The solved weights are in the module itself, and are those of all grid points of all functions.
    phi = seen[-1].movedim(1, -1).flatten(end_dim=-2).double()  # earlier ones looked for the layer
    phi = torch.cat([phi, torch.ones(len(phi), 1, dtype=torch.float64)], dim=1)
    order = torch.from_numpy(np.random.default_rng([0, 0]).permutation(20))
    target = y[order].movedim(1, -1).flatten(end_dim=-2).double()
    gram = phi.T @ phi / len(phi) + 1e-4 * torch.eye(phi.shape[1])
    torch.testing.assert_close(
        model.last_linear_map_.weights, torch.linalg.solve(gram, phi.T @ target / len(phi)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.statistical
def test_it_learns_burgers_on_64_points_and_is_as_good_on_256() -> None:
    fine, other = burgers.simulate(100, points=256, seed=0), burgers.simulate(50, points=256, seed=1)
    x, y = examples(fine)
    model = trainer(operator()).fit((x[..., ::4], y[..., ::4]), epochs=20)
    scale = torch.tensor(fine.outputs, dtype=torch.float32).std()
    inside = torch.tensor(fine.inputs, dtype=torch.float32)
    unseen = (torch.tensor(other.inputs, dtype=torch.float32)[:, None] - inside.mean()) / inside.std()
    truth = torch.tensor(other.outputs, dtype=torch.float32)[:, None] / scale
    coarse, fine_error = (model.evaluate((unseen[..., ::step], truth[..., ::step])).relative_l2 for step in (4, 1))
    assert coarse < 0.15
    assert fine_error == pytest.approx(coarse, abs=0.02)


@pytest.mark.gradient
def test_its_gradient_with_the_solved_layer_held_is_the_gradient_through_the_solve() -> None:
    x, y = (part.double() for part in examples(burgers.simulate(6, points=32)))
    module = operator().double()
    for parameter in module.parameters():  # double() passes over complex ones
        parameter.data = parameter.data.to(torch.complex128 if parameter.is_complex() else torch.float64)
    parameters = [parameter for name, parameter in module.named_parameters() if not name.startswith("projection.fcs.1")]

    def minimised() -> Tensor:
        captured: list[Tensor] = []
        handle = module.projection.fcs[-1].register_forward_pre_hook(lambda _, given: captured.append(given[0]))
        module(x)
        handle.remove()
        phi = captured[0].movedim(1, -1).flatten(end_dim=-2)
        phi = torch.cat([phi, torch.ones(len(phi), 1, dtype=phi.dtype)], dim=1)
        target = y.movedim(1, -1).flatten(end_dim=-2)
        w = torch.linalg.solve(
            phi.T @ phi / len(phi) + 0.1 * torch.eye(phi.shape[1], dtype=phi.dtype), phi.T @ target / len(phi)
        )
        return (target - phi @ w).square().mean() + 0.1 * w.square().sum()

    through = torch.autograd.grad(minimised(), parameters)
    taken: list[Tensor] = []

    class Observed(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            taken.extend(parameter.grad.clone() for parameter in self.param_groups[0]["params"])

    model = cfiv.LastLayerTrainer(
        module, cfiv.Ridge(beta=0.1), optimizer=partial(Observed, lr=1.0), batch_size=None, device="cpu"
    )
    model.fit((x, y), steps=1)
    for held, solved in zip(taken, through, strict=True):
        torch.testing.assert_close(held, solved, rtol=1e-8, atol=1e-10)


@pytest.mark.law
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    data = examples(burgers.simulate(40, points=32))
    undisturbed = trainer(operator()).fit(data, steps=12)
    file = tmp_path / "run"

    class KilledError(Exception):
        pass

    def kill(step: int, _: float) -> None:
        if step == 9:
            raise KilledError

    with pytest.raises(KilledError):
        trainer(operator()).fit(data, steps=12, checkpoint=file, every=4, on_step=kill)
    resumed = trainer(operator(seed=1)).fit(data, steps=12, checkpoint=file, every=4)
    assert resumed.history_.equals(undisturbed.history_)
    for name, value in undisturbed.module.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed.module.state_dict()[name])
