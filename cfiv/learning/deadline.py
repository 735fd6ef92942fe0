"""When training has to stop, finished or not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from cfiv.checks import check_number
from cfiv.runtime.processes import here

#: Seconds from some moment on. Tests put their own in its place.
clock = time.monotonic


@dataclass(frozen=True)
class Deadline:
    """A moment; None never comes.

    Parameters
    ----------
    moment : float or None
        By :data:`clock`.
    """

    moment: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now."""
        return cls(None if seconds is None else clock() + seconds)

    def passed(self) -> bool:
        """Whether it is over; of several processes the first one's clock counts."""
        return self.moment is not None and here().first_says(clock() >= self.moment)


NEVER = Deadline()


def check_max_seconds(seconds: Any) -> None:
    """Raise a ParameterError unless it is a number > 0, or None: in no time there is nothing to report."""
    if seconds is not None:
        check_number("max_seconds", seconds, above=0.0, alternative="or None to train to the end")
