"""Replications in the process of the tests, for what a study does with outcomes: a fitting process takes seconds to start."""

from collections.abc import Mapping
from typing import Any

from cfiv.studies.process import _unpacked
from cfiv.studies.replication import Surroundings, replicate


class InThisProcess:
    """Answers as :class:`cfiv.studies.process.FittingProcesses`, and leaves what belongs to the process alone.

    For ``jobs=1``: a replication records its warnings, which Python does for a whole process, with all of its threads.
    """

    def answer(self, job: bytes, seeds: Mapping[str, int], *, time_limit: float | None) -> dict[str, Any]:
        surroundings = Surroundings.now()
        try:
            return replicate(_unpacked(job, set()), **seeds)
        finally:
            surroundings.restore()
