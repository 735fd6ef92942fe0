"""What a variance is multiplied by in small samples, and the degrees of freedom of its t, by the names of programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: False: nothing. True: as linearmodels' ``debiased`` and R's ``sandwich``. The others as these programs have it.
Convention = bool | Literal["fixest", "stata"]
NAMES = ("fixest", "stata")


@dataclass(frozen=True, kw_only=True)
class SmallSample:
    """Factors of variances.

    Parameters
    ----------
    convention : {False, True, "fixest", "stata"}
    rows : int
        ``n``.
    parameters : int
        ``k``: coefficients, and fixed effects as far as the convention counts them.
    groups : tuple of int
        Clusters of each kind; empty unless the covariance is clustered.
    """

    convention: Convention
    rows: int
    parameters: int
    groups: tuple[int, ...] = ()

    @property
    def factor(self) -> float:
        """``n / (n - k)``; one without a convention."""
        return self.rows / (self.rows - self.parameters) if self.convention else 1.0

    def of_groups(self, groups: int) -> float:
        """What sums over so many clusters are multiplied by besides: ``G / (G - 1) (n - 1) / n``.

        ``G`` is the number of the clusters that are summed over; for "fixest" and "stata" the least of both kinds, also for
        their intersections.
        """
        if not self.convention:
            return 1.0
        count = groups if self.convention is True else min(self.groups)
        return count / (count - 1) * (self.rows - 1) / self.rows

    @property
    def described(self) -> str:
        """For the end of a line on the covariance."""
        if not self.convention:
            return ""
        return ", debiased" if self.convention is True else f", debiased as {self.convention}"

    @property
    def t_dof(self) -> int | None:
        """Degrees of freedom of t: ``n - k``, or for "fixest" and "stata" ``G - 1`` with clusters; None for the normal."""
        if not self.convention:
            return None
        return min(self.groups) - 1 if self.groups and self.convention is not True else self.rows - self.parameters
