"""Many covariates of which few matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.checks import check_choice, check_whole
from cfiv.errors import UnsupportedTreatmentWarning, silence
from cfiv.studies.metrics import Fit

Array = npt.NDArray[np.float64]


def _linear(x: Array) -> Array:
    """What three covariates add to the outcome."""
    return np.asarray(x[:, 0] - x[:, 1] + x[:, 2])


def _curved(x: Array) -> Array:
    return np.asarray(np.sin(2 * x[:, 0]) + x[:, 1] ** 2 / 2 + np.abs(x[:, 2]))


#: ``h`` of the treatment and the first three covariates.
TRUTHS: Mapping[str, Callable[[Array, Array], Array]] = {
    "one matters": lambda t, x: t + x[:, 0],
    "line": lambda t, x: t + _linear(x),
    "sine": lambda t, x: np.sin(t) + _linear(x),
    "line, curved covariates": lambda t, x: t + _curved(x),
    "effects vary, curved covariates": lambda t, x: (1 + x[:, 0]) * t + _curved(x),
}


def many_covariates(*, n: int, covariates: int, truth: str, seed: int) -> tuple[pd.DataFrame, Callable[[pd.DataFrame], Array]]:
    """``y = h(t, x1, x2, x3) + u + e``, ``t = z + (x1 + x2) / 2 + u``, all else independent and standard normal.

    Least squares finds an effect of 1.5 where two-stage least squares finds 1.

    Parameters
    ----------
    n : int
    covariates : int
        At least 3, of which three matter, or one.
    truth : str
        A key of :data:`TRUTHS`.
    seed : int

    Returns
    -------
    table, truth
        Columns ``y, t, z, x1, x2, ...``; ``truth(rows)`` is ``h``.
    """
    check_whole("n", n, least=1)
    check_whole("covariates", covariates, least=3)
    check_choice("truth", truth, tuple(TRUTHS))
    generator = np.random.default_rng(seed)
    z, u, e = generator.normal(size=(3, n))
    x = generator.normal(size=(n, covariates))
    t = z + (x[:, 0] + x[:, 1]) / 2 + u
    names = {f"x{j + 1}": x[:, j] for j in range(covariates)}

    def h(rows: pd.DataFrame) -> Array:
        return TRUTHS[truth](rows["t"].to_numpy(), rows[["x1", "x2", "x3"]].to_numpy())

    table = pd.DataFrame({"t": t, "z": z, **names})
    return table.assign(y=h(table) + u + e), h


def error_of_effects(fit: Fit) -> float:
    """A metric: the mean squared error of row by row effects of a treatment of 1 instead of 0, over the rows fitted to."""
    at_one, at_zero = (fit.data.assign(t=float(t)) for t in (1, 0))
    with silence(UnsupportedTreatmentWarning):  # what is asked here is known
        effects = fit.model.predict(at_one) - fit.model.predict(at_zero)
    return float(np.mean((effects - (fit.truth(at_one) - fit.truth(at_zero))) ** 2))
