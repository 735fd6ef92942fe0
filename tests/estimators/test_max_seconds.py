"""Training within a given time, on a clock of the test's own: the best so far is kept, and said to be that."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from cfiv import DFIV, LastLayerTrainer, NetworkRegression
from cfiv.datasets import demand
from cfiv.errors import ParameterError
from cfiv.learning import deadline

pytestmark = pytest.mark.contract

FORMULA = demand.FORMULA
KINDS: tuple[Any, ...] = (DFIV, NetworkRegression)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes with every look at the clock, of which there is one a step."""
    monkeypatch.setattr(deadline, "clock", map(float, count()).__next__)


def fitted(kind: Callable[..., Any], **arguments: Any) -> Any:
    train, _ = demand.simulate(200, seed=0)
    return kind(FORMULA, **({"steps": 40, "progress": False, "random_state": 0} | arguments)).fit(train.frame)


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_stops_in_time_with_the_best_so_far_and_says_so(kind: Any) -> None:
    model = fitted(kind, max_seconds=7)
    assert model.history_["step"].max() <= 7
    assert "out of time" in str(model.summary())
    assert not model.interrupted_
    assert np.isfinite(model.predict(demand.simulate(20, seed=1)[0].frame)).all()


@pytest.mark.usefixtures("looks")
def test_functions_that_time_has_not_come_to_are_left_out() -> None:
    def drawing(width: int) -> torch.nn.Module:  # such networks train one after another
        return torch.nn.Sequential(torch.nn.Linear(width, 4), torch.nn.Dropout(0.1))

    model = fitted(DFIV, max_seconds=45, fits=2, treatment_network=drawing, nested=False)
    assert [one.ended for one in model.fits_] == ["finished", "out of time"]


@pytest.mark.parametrize("kind", KINDS)
def test_time_enough_changes_no_number(kind: Any) -> None:
    rows = demand.simulate(20, seed=1)[0].frame
    plenty, endless = (fitted(kind, steps=5, max_seconds=seconds).predict(rows) for seconds in (1e9, None))
    np.testing.assert_array_equal(plenty, endless)


@pytest.mark.usefixtures("looks")
def test_a_trainer_stops_in_time_and_says_so() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    trainer = LastLayerTrainer(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)))
    trainer.fit((x, x[:, :1]), steps=20, max_seconds=5)
    assert trainer.ended_ == "out of time"
    assert len(trainer.history_) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0, -1.0, "1", float("nan")])
def test_no_time_is_refused(kind: Any, seconds: Any) -> None:
    with pytest.raises(ParameterError, match="max_seconds must be finite and > 0, or None to train to the end, got"):
        fitted(kind, max_seconds=seconds)
