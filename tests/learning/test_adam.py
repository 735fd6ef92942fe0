"""Our Adam against torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cfiv
from cfiv.learning.adam import Adam

#: Relative to the largest parameter after 60 steps, in units in the last place: sums in another order.
ROUNDING = 500
SHAPES = [(4, 70), (3, 5, 6), (), (1,), (33,)]
KINDS = pytest.mark.parametrize(("decoupled", "kind"), [(False, torch.optim.Adam), (True, torch.optim.AdamW)])


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype, generator=draws)) for shape in SHAPES]


def gradients(moved: list[nn.Parameter], step: int) -> None:
    """Others at every step; of one parameter none in the first ten."""
    draws = torch.Generator().manual_seed(step)
    for place, parameter in enumerate(moved):
        drawn = torch.randn(parameter.shape, dtype=parameter.dtype, generator=draws)
        parameter.grad = None if place == 1 and step < 10 else drawn


def trained(make: Callable[[Any], Any], dtype: torch.dtype) -> list[Tensor]:
    """After 60 steps at rates and with decays that differ by group, and a schedule."""
    moved = parameters(dtype)
    groups = [{"params": moved[:2], "lr": 0.1, "weight_decay": 0.01}, {"params": moved[2:], "lr": 0.02}]
    optimiser = make(groups)
    peaks = [group["lr"] for group in optimiser.param_groups]
    for step in range(60):
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * (1 - step / 60)
        gradients(moved, step)
        optimiser.step()
        optimiser.zero_grad()
    return [parameter.detach() for parameter in moved]


@pytest.mark.oracle
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_step_is_bit_for_bit_that_of_torchs_fused_one(decoupled: bool, kind: Any, dtype: torch.dtype) -> None:
    ours = trained(partial(Adam, decoupled=decoupled, weight_decay=0.1), dtype)
    for own, theirs in zip(ours, trained(partial(kind, fused=True, weight_decay=0.1), dtype), strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.oracle
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_it_is_torchs_plain_one_to_rounding_of_complex_numbers_too(decoupled: bool, kind: Any, dtype: torch.dtype) -> None:
    ours = trained(partial(Adam, decoupled=decoupled, weight_decay=0.1), dtype)
    for own, theirs in zip(ours, trained(partial(kind, foreach=False, weight_decay=0.1), dtype), strict=True):
        assert float((own - theirs).abs().max()) <= ROUNDING * torch.finfo(dtype).eps * float(theirs.abs().max())


@pytest.mark.oracle
def test_numbers_are_paired_by_their_place_however_they_lie_in_memory() -> None:
    """Those of a gradient, or of a parameter, that is a transpose or a part of a tensor; torch's fused one pairs others."""
    lying: dict[str, Callable[[Tensor], Tensor]] = {
        "straight": lambda values: values.clone(),
        "transposed": lambda values: values.mT.contiguous().mT,
        "part": lambda values: torch.cat([values, values], dim=1)[:, : values.shape[1]],
    }
    draws = torch.Generator().manual_seed(0)
    first, steps = torch.randn(6, 4, generator=draws), torch.randn(5, 6, 4, generator=draws)
    found = []
    for of_parameter in lying.values():
        for of_gradient in lying.values():
            parameter = nn.Parameter(of_parameter(first))
            optimiser = Adam([parameter], lr=0.1)
            for gradient in steps:
                parameter.grad = of_gradient(gradient)
                optimiser.step()
            found.append(parameter.detach())
    plain = nn.Parameter(first.clone())
    theirs = torch.optim.Adam([plain], lr=0.1, fused=True)
    for gradient in steps:
        plain.grad = gradient.clone()
        theirs.step()
    assert all(torch.equal(each, plain) for each in found)


@pytest.mark.law
def test_a_parameter_that_is_the_conjugate_of_its_memory_moves_as_any_other() -> None:
    values = torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    lazy, plain = nn.Parameter(values.clone().conj()), nn.Parameter(values.conj().resolve_conj())
    assert lazy.is_conj()
    for parameter in (lazy, plain):
        optimiser = Adam([parameter], lr=0.1)
        for step in range(3):
            gradients([parameter], step)
            optimiser.step()
    assert torch.equal(lazy, plain)
    assert not torch.equal(plain, values.conj())


@pytest.mark.law
def test_a_saved_one_goes_on_as_if_it_had_never_stopped() -> None:
    moved = parameters(torch.float32)
    optimiser = Adam(moved, lr=0.1, weight_decay=0.1, decoupled=True)
    for step in range(5):
        gradients(moved, step)
        optimiser.step()
    saved, again = copy.deepcopy(optimiser.state_dict()), copy.deepcopy(moved)
    other = Adam(again)
    other.load_state_dict(saved)
    for step in range(5, 20):  # the second parameter has its first gradient after the load
        for each, one in ((moved, optimiser), (again, other)):
            gradients(each, step)
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))
    assert saved["state"][0]["step"] == 5


@pytest.mark.contract
def test_sparse_gradients_are_refused_with_what_to_do() -> None:
    module = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(3, 1))
    data = torch.arange(5)[:, None], torch.ones(5, 1)
    with pytest.raises(
        cfiv.ParameterError, match=r"the Adam optimizer cannot take a step here .*sparse gradients.*: use another"
    ):
        cfiv.LastLayerTrainer(module, batch_size=5).fit(data, steps=1)
