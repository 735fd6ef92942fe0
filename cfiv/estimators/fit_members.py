"""Members that are averaged, fitted: which of them train together, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from cfiv.errors import DivergenceError, TrainingWarning, warn
from cfiv.estimators.planned_members import PlannedMember
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.standardised import StandardisedData
from cfiv.learning.deadline import NEVER, Deadline
from cfiv.learning.run_file import RunFile
from cfiv.networks.stacked_networks import can_be_stacked
from cfiv.runtime.processes import here

#: Members that train side by side at most: more take as long as one after another.
TOGETHER = 16
F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)


class Train(Protocol[F_co]):
    """What an estimator does with members that train together."""

    def __call__(
        self, together: Sequence[PlannedMember], *, on_step: Callable[[], object], file: Callable[..., RunFile | None]
    ) -> Sequence[F_co | DivergenceError]:
        """What comes of each; ``file()`` is where they are saved, ``file(stage)`` where a stage of them is."""
        ...


def group_members(members: Sequence[PlannedMember]) -> Iterator[list[PlannedMember]]:
    """Members that train together: all with plain networks and equal batches, at most ``TOGETHER``; others one by one."""
    sizes = {(len(m.split.stage1), len(m.split.stage2)) if m.batch_size is None else m.batch_size for m in members}
    alike = zip(*(member.networks for member in members), strict=True)
    together = len(sizes) == 1 and all(can_be_stacked(networks) for networks in alike)
    size = TOGETHER if together else 1
    for start in range(0, len(members), size):
        yield list(members[start : start + size])


def fit_members(
    problem: StandardisedData,
    members: Sequence[PlannedMember],
    train: Train[F],
    *,
    runs: SavedRuns | None,
    on_step: Callable[[int], object],
    deadline: Deadline = NEVER,
) -> tuple[list[tuple[PlannedMember, F]], bool]:
    """Fit all members, group by group, until one is interrupted or the time is over; those that diverged are left out.

    Parameters
    ----------
    problem : StandardisedData
    members : sequence of PlannedMember
    train : Train
        What becomes of members that train together.
    runs : SavedRuns or None
        Where they are saved on their way.
    on_step : callable
        Called after every step, with the number of members that took it.
    deadline : Deadline, optional
        No group but the first is begun after it.

    Returns
    -------
    fitted : list of (PlannedMember, fit)
        At least one.
    interrupted : bool

    Raises
    ------
    DivergenceError
        If the first diverged before any usable state.
    KeyboardInterrupt
        If training was interrupted before the first step.

    Warns
    -----
    TrainingWarning
        Where one is left out.
    """
    outcomes: list[F | DivergenceError] = []
    interrupted = False
    for number, together in enumerate(group_members(members), start=1):
        try:
            outcomes += _fit_together(problem, together, train, runs=runs, name=f"fits-{number}", on_step=on_step)
        except KeyboardInterrupt:
            if not outcomes or here().count > 1:
                raise
            interrupted = True
            what = f"training was interrupted before the first step of fit {len(outcomes) + 1}"
            warn(f"{what}; what was fitted before is kept and usable", TrainingWarning)
        interrupted = interrupted or any(getattr(outcome, "ended", None) == "interrupted" for outcome in outcomes)
        if interrupted or deadline.passed():
            break
    if isinstance(outcomes[0], DivergenceError):
        raise outcomes[0]
    for outcome in outcomes:
        if isinstance(outcome, DivergenceError):
            warn(f"a fit is left out of the average: {outcome}", TrainingWarning)
    pairs = zip(members, outcomes, strict=False)
    return [(member, outcome) for member, outcome in pairs if not isinstance(outcome, DivergenceError)], interrupted


def _fit_together(
    problem: StandardisedData,
    together: Sequence[PlannedMember],
    train: Train[F],
    *,
    runs: SavedRuns | None,
    name: str,
    on_step: Callable[[int], object],
) -> Sequence[F | DivergenceError]:
    networks = together[0].networks

    def file(stage: str = "") -> RunFile | None:
        if runs is None:
            return None
        return runs.file(f"{name}{stage}", sample=problem.sample, networks=networks, clusters=problem.clusters)

    with together[0].drawing():
        return train(together, on_step=lambda: on_step(len(together)), file=file)
