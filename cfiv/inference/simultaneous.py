"""Critical values of bands: the distribution of the largest of many correlated t statistics, by Gaussian multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import stats

from cfiv.checks import check_number, check_whole
from cfiv.data import Array
from cfiv.errors import ParameterError
from cfiv.file_values import fields, number, whole

#: Draws below which a quantile in the tail is a matter of luck; and by default: the 95 % quantile is then known to 1 %.
FEWEST_DRAWS, DRAWS = 100, 10_000
#: Products of draws and points that are held at once.
BLOCK = 2**23
#: A standard error this small beside the largest is rounding: of a difference that is zero for all coefficients.
NOTHING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """How intervals and bands are made of standard errors.

    Parameters
    ----------
    level : float
        Of confidence, between 0 and 1.
    draws : int
        Of the multipliers, for bands.
    seed : int
        They are the same for all questions, so that bands that are asked one after the other agree.
    df : int or None
        Degrees of freedom of t; None for the normal distribution.
    allowance : float
        What a band's critical value has besides, in standard errors, where the data chose the size of the basis.
    """

    level: float
    draws: int
    seed: int
    df: int | None = None
    allowance: float = 0.0

    def pointwise(self, level: float) -> float:
        """The critical value of one interval."""
        distribution: Any = stats.norm() if self.df is None else stats.t(self.df)
        return float(distribution.ppf(0.5 + level / 2))

    def simultaneous(self, roots: Sequence[Array], level: float) -> float:
        """The quantile of ``max_j |L_j g| / |L_j|`` over the points of all sizes, ``g ~ N(0, I)``, plus the allowance.

        Parameters
        ----------
        roots : sequence of arrays (m, K)
            One a size of the basis; ``L_j`` are rows, whose lengths are standard errors.
        level : float

        Notes
        -----
        Multipliers on rows, ``sum_i g_i S_i`` of scores ``S_i``, have this very law given the data, clustered ones likewise.
        """
        rows = np.concatenate(roots)
        errors = np.linalg.norm(rows, axis=1)
        moving = errors > NOTHING * errors.max(initial=0.0)
        if not moving.any():
            return self.pointwise(level)
        directions = rows[moving] / errors[moving, None]
        generator = np.random.default_rng(self.seed)
        multipliers = generator.standard_normal((self.draws, directions.shape[1]))
        largest = np.zeros(self.draws)
        step = max(1, BLOCK // self.draws)
        for start in range(0, len(directions), step):
            block = np.abs(multipliers @ directions[start : start + step].T).max(axis=1)
            np.maximum(largest, block, out=largest)
        if self.df is not None:
            largest = largest / np.sqrt(generator.chisquare(self.df, self.draws) / self.df)
        return float(np.quantile(largest, level)) + self.allowance

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return dict(vars(self))

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """From the values of a file."""
        fields(values, "level", "draws", "seed", "df", "allowance")
        df = None if values["df"] is None else whole(values["df"], 1, 2**62)
        level, allowance = number(values["level"]), number(values["allowance"])
        if not 0 < level < 1 or allowance < 0:
            raise ValueError(f"a level of {level} and an allowance of {allowance}")
        draws, seed = whole(values["draws"], FEWEST_DRAWS, 2**62), whole(values["seed"], 0, 2**62)
        return cls(level=level, draws=draws, seed=seed, df=df, allowance=allowance)


def check_level(level: Any) -> float:
    """A level of confidence as a share.

    Raises
    ------
    ParameterError
        Unless it is between 0 and 1; a percentage is told what it would be.
    """
    advice = "such as 0.95"
    if isinstance(level, (int, float, np.integer, np.floating)) and 1 < level < 100:
        advice = f"such as {level / 100:g} for {level:g} %"
    return check_number("level", level, above=0.0, below=1.0, alternative=advice)


def check_draws(draws: Any) -> int:
    """A number of draws.

    Raises
    ------
    ParameterError
        Below ``FEWEST_DRAWS``.
    """
    try:
        return check_whole("draws", draws, least=FEWEST_DRAWS)
    except ParameterError as error:
        raise ParameterError(f"{error}: quantiles of fewer are a matter of luck") from None
