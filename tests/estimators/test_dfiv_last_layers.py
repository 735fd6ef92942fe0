"""DFIV with last layers that are given: which are asked, which are refused, and what is the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import cfiv
from cfiv import DFIV, Gradient, Kalman, ParameterError, Proximal, Ridge, Training
from cfiv.errors import ModelFileError
from cfiv.learning.last_layer import ClosedForm, Memory
from cfiv.learning.run_file import RunFile
from cfiv.numerics.least_squares import solve_step

STEPS = 12


def table() -> pd.DataFrame:
    z, x, u = np.random.default_rng(0).normal(size=(3, 160))
    return pd.DataFrame({"y": (z + u) ** 2 / 2 + u + x, "t": z + u, "z": z, "x": x})


def dfiv(**options: Any) -> DFIV:
    given = {
        "steps": STEPS,
        "fits": 1,
        "nested": False,
        "progress": False,
        "random_state": 0,
        "device": "cpu",
        "batch_size": 16,
        **options,
    }
    return DFIV("y ~ x + [t ~ z]", **given)


class Own:
    """A layer that owes nothing to those that exist."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        assert features.ndim == targets.ndim == 2
        assert not features.requires_grad
        assert bool((features[:, -1] == features[0, -1]).all())
        return Memory(solve_step(features=features, targets=targets, ridge=self.penalty, weights=weights))


class Watched(Own):
    """The same, with the number of columns of all targets."""

    def __init__(self, penalty: float, seen: list[tuple[int, bool]]) -> None:
        super().__init__(penalty)
        self.seen = seen

    def __repr__(self) -> str:
        return "Watched"

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        self.seen.append((targets.shape[1], targets.requires_grad))
        return super().update(memory, features=features, targets=targets, weights=weights)


def bits(model: DFIV) -> list[Tensor]:
    return [part for fitted in model.fits_ for part in (fitted.first_stage, fitted.structural)]


@pytest.mark.contract
def test_a_layer_of_ones_own_is_asked_for_all_three_solves_of_every_member_and_gives_what_the_same_layer_gives() -> None:
    seen: list[tuple[int, bool]] = []
    own = dfiv(last_layer=Watched(0.1, seen)).fit(table())
    widths = {own.fits_[0].first_stage.shape[1], 1}
    assert {width for width, _ in seen} == widths
    kinds = {kind: seen.count(kind) for kind in set(seen)}
    width = own.fits_[0].first_stage.shape[1]
    # Of two members: V for the gradient step of phi, V12 and u.
    assert kinds == {(width, False): 2 * STEPS, (width, True): 2 * STEPS, (1, False): 2 * STEPS}
    same = dfiv(last_layer=Ridge(0.1)).fit(table())
    np.testing.assert_allclose(own.predict(table()), same.predict(table()), rtol=1e-3, atol=1e-3)  # float32 features


@pytest.mark.contract
def test_a_layer_of_ones_own_is_told_how_strong_its_pull_is_to_be() -> None:
    class Pulled(Own):
        pulls: list[float] = []  # noqa: RUF012

        def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
            if memory is not None:
                self.pulls.append(memory.pull)
            return super().update(memory, features=features, targets=targets, weights=weights)

    training = Training(lambda_start=0.2)
    dfiv(last_layer=Pulled(0.1), training=training).fit(table())
    assert list(dict.fromkeys(Pulled.pulls)) == [training.lambda_factor(step, steps=STEPS) for step in range(1, STEPS)]


@pytest.mark.contract
@pytest.mark.parametrize("layer", [Ridge(0.1), Proximal(1.0, beta=0.1), Kalman(0.1, observation_noise=1.0, prior=1.0)])
@pytest.mark.parametrize("report", ["refit", "current"])
def test_layers_that_are_solved_train(layer: ClosedForm, report: Any) -> None:
    model = dfiv(last_layer=layer, report=report).fit(table())
    assert np.isfinite(model.predict(table())).all()
    assert repr(layer) in str(model.summary())


@pytest.mark.law
def test_the_default_is_three_proximal_layers_bit_for_bit() -> None:
    given = dfiv(last_layer=(Proximal(2.0, beta=1e-3),) * 3).fit(table())
    assert all(torch.equal(one, other) for one, other in zip(bits(given), bits(dfiv().fit(table())), strict=True))
    assert given.history_.equals(dfiv().fit(table()).history_)


@pytest.mark.parametrize(
    "layer",
    [
        Gradient(),
        Ridge,
        object(),
        "ridge",
        {"V": Ridge(0.1)},
        (Ridge(0.1), Ridge(0.1)),
        (Ridge(0.1), Ridge(0.1), Gradient()),
        (),
    ],
    ids=["gradient", "a class", "an object", "text", "a dict", "two", "three with a gradient", "none"],
)
def test_what_is_no_layer_or_not_three_is_refused_before_anything_is_computed(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something is computed")

    monkeypatch.setattr(DFIV, "_estimate", never)
    with pytest.raises(ParameterError, match=r"^last_layer must be "):
        dfiv(last_layer=layer).fit(table())


class Detached(Own):
    """Hides its targets from gradients."""

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        return super().update(memory, features=features, targets=targets.detach(), weights=weights)


def test_a_layer_that_hides_its_targets_is_refused_for_v_in_stage_2_alone() -> None:
    with pytest.raises(ParameterError, match=r"^last_layer must give weights that are differentiable in its targets"):
        dfiv(last_layer=Detached(0.1)).fit(table())
    assert np.isfinite(dfiv(last_layer=(Detached(0.1), Own(0.1), Detached(0.1))).fit(table()).predict(table())).all()


class KilledError(BaseException):
    """Nobody catches it."""


@pytest.mark.law
@pytest.mark.parametrize("writes", [1, 5, STEPS])
@pytest.mark.parametrize(
    "layer",
    [Own(0.1), Kalman(0.1, observation_noise=1.0), (Own(0.1), Proximal(1.0), Ridge(0.1))],
    ids=["own", "Kalman", "three"],
)
def test_a_killed_fit_goes_on_bit_for_bit_and_not_with_another_layer(
    layer: Any, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, done = RunFile.write, [0]

    def counted(self: RunFile, values: Any) -> None:
        write(self, values)
        done[0] += 1
        if done[0] == writes:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunFile, "write", counted)
        with pytest.raises(KilledError):
            dfiv(last_layer=layer).fit(table(), checkpoint=tmp_path, every=1)
    for other in (Own(0.2), Ridge(0.1), None):
        with pytest.raises(ModelFileError, match=r"last_layer was"):
            dfiv(last_layer=other).fit(table(), checkpoint=tmp_path)
    resumed, undisturbed = dfiv(last_layer=layer).fit(table(), checkpoint=tmp_path), dfiv(last_layer=layer).fit(table())
    assert all(torch.equal(one, other) for one, other in zip(bits(resumed), bits(undisturbed), strict=True))
    assert resumed.history_.equals(undisturbed.history_)


class Failing(Own):
    """Cannot solve from its hundredth batch on."""

    def __init__(self, penalty: float, after: int) -> None:
        super().__init__(penalty)
        self.left = after

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        self.left -= 1
        singular = features * 0 if self.left < 0 else features
        return Memory(solve_step(features=singular, targets=targets, ridge=0.0 if self.left < 0 else self.penalty))


def test_a_layer_of_ones_own_whose_system_is_singular_ends_training_with_what_is_kept() -> None:
    with pytest.warns(cfiv.TrainingWarning, match=r"diverged at step 11 of 12 .*singular.*is kept and usable"):
        model = dfiv(last_layer=(Own(0.1), Own(0.1), Failing(0.1, 2 * 10))).fit(table())
    assert np.isfinite(model.predict(table())).all()
