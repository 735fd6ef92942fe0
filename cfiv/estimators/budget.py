"""How many functions to learn, for how long, and on how many rows at a time, where the data are to say so.

Functions learned from other splits of the rows cost little beside one another and err apart: where rows are few, averaging
four of them takes away up to half of the error. Up to 5,000 rows 500 steps are enough, and more of them learn noise; from there
on the steps grow with n^0.6. A batch is a tenth of the rows, shared by the fits, between 128 and 1,024. The choices were made
by errors at fresh draws of the demand design with small and with large noise, at 200 to 100,000 rows, on seeds 0 to 6.

Longer runs take smaller steps, with rates that fall like the root of their number: at the rate of a short run the treatment
features learn the noise of batches, and grow until the proximal penalties weigh nothing beside them. Held-out losses say so at
1,000,000 rows (seed 710 of the same design); at 100,000 (700 to 702) they do not tell rates apart.
"""

from __future__ import annotations

import math
from typing import Literal

from cfiv.checks import check_whole
from cfiv.learning.samples import batch_rows

STEPS, ROWS, GROWTH, MOST_STEPS = 500, 5_000, 0.6, 20_000
LEAST_BATCH, MOST_BATCH, SHARE = 128, 1_024, 10
MOST_FITS, FITTED_ROWS = 4, 10_000


def check_fits(fits: object) -> None:
    """Raise a ParameterError unless it is a whole number >= 1 or "auto"."""
    if not (isinstance(fits, str) and fits == "auto"):
        check_whole("fits", fits, least=1, alternative="or 'auto'")


def number_of_fits(fits: int | Literal["auto"], *, rows: int, images: bool) -> int:
    """How many splits are fitted."""
    if fits == "auto":
        return 1 if images else min(MOST_FITS, max(1, round(FITTED_ROWS / rows)))
    return int(fits)


def check_training_steps(steps: object) -> None:
    """Raise a ParameterError unless it is a whole number >= 0 or "auto"."""
    if not (isinstance(steps, str) and steps == "auto"):
        check_whole("steps", steps, least=0, alternative="or 'auto'")


def training_steps(steps: int | Literal["auto"], *, rows: int) -> int:
    """The number of steps for a table of so many rows."""
    if steps == "auto":
        longer: float = max(1.0, rows / ROWS) ** GROWTH
        return min(MOST_STEPS, round(STEPS * longer))
    return int(steps)


def rate_of_long_runs(steps: int) -> float:
    """The factor of "auto" rates for so many steps: 1 up to 500, ``sqrt(500 / steps)`` beyond."""
    return math.sqrt(STEPS / max(STEPS, steps))


def training_batch(batch_size: int | str | None, *, rows: int, fits: int, smallest_sample: int, images: bool) -> int | None:
    """The rows of a batch, None for all; "auto" looks at the table, but for images, which are seen 128 at a time.

    Raises
    ------
    ParameterError
        If it is no such number, or exceeds the smallest sample.
    """
    auto = LEAST_BATCH if images else min(MOST_BATCH, max(LEAST_BATCH, rows // (SHARE * fits)))
    return batch_rows(batch_size, smallest_sample=smallest_sample, auto=auto)
