"""The one loop: how often it calls whom, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cfiv.learning import deadline
from cfiv.learning.deadline import Deadline
from cfiv.learning.loop import drive


class Counting:
    """A run that takes note, and may be interrupted within a step."""

    def __init__(self, *, over_after: int | None = None, interrupt_in: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.over_after, self.interrupt_in, self.done = over_after, interrupt_in, 0

    def over(self) -> bool:
        return self.done == self.over_after

    def step(self, number: int) -> None:
        if number == self.interrupt_in:
            raise KeyboardInterrupt
        self.done = number
        self.calls.append(("step", number))

    def look(self, number: int) -> None:
        self.calls.append(("look", number))

    def cut(self, number: int, *, ended: str, during: int) -> None:
        self.calls.append((ended, number))
        self.during = during

    def saved(self) -> dict[str, Any]:
        return {"there": self.done}

    def restore(self, values: dict[str, Any], *, done: int) -> None:
        assert values == {"there": done}
        self.done = done
        self.calls.append(("restore", done))


class Kept:
    """Stands for a file."""

    def __init__(self, every: int, found: dict[str, Any] | None = None) -> None:
        self.every, self.found, self.path, self.written = every, found, Path("run"), list[dict[str, Any]]()

    def read(self, restored: Any) -> Any:
        return None if self.found is None else restored(self.found)

    def write(self, values: dict[str, Any]) -> None:
        self.written.append(values)


def driven(run: Counting, steps: int = 5, file: Any = None) -> list[int]:
    shown: list[int] = []
    drive(run, steps=steps, on_step=lambda: shown.append(run.done), file=file)
    return shown


@pytest.mark.contract
def test_every_step_is_shown_before_it_is_judged() -> None:
    run = Counting()
    assert driven(run) == [1, 2, 3, 4, 5]
    assert run.calls == [(what, number) for number in range(1, 6) for what in ("step", "look")]


@pytest.mark.contract
def test_a_run_that_is_over_takes_no_further_step_and_is_written() -> None:
    run, file = Counting(over_after=3), Kept(every=100)
    assert driven(run, file=file) == [1, 2, 3]
    assert file.written == [{"done": 3, "there": 3}]


@pytest.mark.contract
def test_a_run_is_written_every_so_often_and_at_its_end() -> None:
    file = Kept(every=2)
    driven(Counting(), file=file)
    assert [values["done"] for values in file.written] == [2, 4, 5]


@pytest.mark.contract
@pytest.mark.parametrize("done", [2, 5])
def test_a_continued_run_shows_the_steps_behind_it_at_once_and_takes_the_others(done: int) -> None:
    run = Counting()
    assert driven(run, file=Kept(2, {"done": done, "there": done})) == [done] * done + list(range(done + 1, 6))
    assert run.calls[0] == ("restore", done)
    assert [number for what, number in run.calls if what == "step"] == list(range(done + 1, 6))


@pytest.mark.contract
@pytest.mark.parametrize("done", [0, 6, -1, "3", 2.5, None, True])
def test_steps_that_a_run_cannot_have_behind_it_are_damage(done: Any) -> None:
    run = Counting()
    with pytest.raises((ValueError, TypeError)):
        driven(run, file=Kept(2, {"done": done, "there": done}))
    assert run.calls == []


@pytest.mark.contract
def test_ctrl_c_before_the_first_step_is_done_raises() -> None:
    run = Counting(interrupt_in=1)
    with pytest.raises(KeyboardInterrupt):
        driven(run)
    assert run.calls == []


@pytest.mark.contract
def test_ctrl_c_within_a_later_step_ends_the_run_after_the_last_whole_one() -> None:
    run, file = Counting(interrupt_in=4), Kept(every=100)
    assert driven(run, file=file) == [1, 2, 3]
    assert run.calls[-1] == ("interrupted", 3)
    assert run.during == 4
    assert file.written == []  # what is there goes on from the step before


@pytest.mark.contract
def test_ctrl_c_while_a_step_is_shown_counts_that_step() -> None:
    run = Counting()

    def on_step() -> None:
        if run.done == 2:
            raise KeyboardInterrupt

    drive(run, steps=5, on_step=on_step)
    assert run.calls[-1] == ("interrupted", 2)


@pytest.mark.contract
@pytest.mark.parametrize(("seconds", "steps"), [(0.5, 1), (2.0, 2), (2.5, 3), (99.0, 5), (None, 5)])
def test_a_run_ends_after_the_step_in_which_its_time_is_over(
    seconds: float | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = Counting(), Kept(every=100)
    monkeypatch.setattr(deadline, "clock", lambda: float(run.done))  # a second a step
    drive(run, steps=5, file=file, deadline=Deadline.after(seconds))
    assert run.done == steps
    assert (run.calls[-1] == ("out of time", steps)) == (steps < 5)
    assert len(file.written) == (steps == 5)
