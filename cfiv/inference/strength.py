"""How strongly the instruments move the basis: where they hardly do, intervals may hold less often than they promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from scipy import stats

from cfiv.data import Array
from cfiv.file_values import fields, number, whole

#: Concentration an instrument from which on the worst case has a bias of 10 %, and the level at which one wants to be sure.
CONCENTRATION, SURE = 10.0, 0.95
#: A canonical correlation that is one to rounding: of a column that both bases have.
SHARED = 1.0 - 1e-10


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Canonical correlations of structural and instrument columns, but for those that both have.

    Parameters
    ----------
    leading : float
        Of the direction that the instruments move most; of several treatments the k-th, with as many treatments.
    least : float
        ``s``, of the direction that they move least.
    rows : int
        ``n``.
    instruments : int
        ``q``: rank of the instrument columns, without those that the basis has too.

    Notes
    -----
    In simulations with splines (n = 1000 and 5000, correlations of errors up to .9) bands kept their level with F statistics of
    .4 for the direction moved least, as long as the leading one was moved strongly: they are wide there. Where the leading one
    was weak they did not, down to 79 % for 95. So that is what decides.
    """

    leading: float
    least: float
    rows: int
    instruments: int

    @classmethod
    def of(cls, correlations: Array, *, rows: int, instruments: int, treatments: int) -> Self | None:
        """From all canonical correlations (p,), descending; None where the bases share all columns.

        Parameters
        ----------
        correlations : array (p,)
        rows : int
        instruments : int
            Rank of all instrument columns.
        treatments : int
            How many there are.
        """
        own = correlations[correlations <= SHARED]
        if not len(own):
            return None
        shared = len(correlations) - len(own)
        leading = float(own[min(treatments, len(own)) - 1])
        return cls(leading=leading, least=float(own[-1]), rows=rows, instruments=instruments - shared)

    @property
    def leading_f(self) -> float:
        """``n s^2 / ((1 - s^2) q)`` of the leading direction: its first-stage F, but for degrees of freedom."""
        return self._f_statistic(self.leading)

    @property
    def least_f(self) -> float:
        """The same of the direction moved least."""
        return self._f_statistic(self.least)

    @property
    def critical_value(self) -> float:
        """What ``leading_f`` has to exceed: at 5 % there is then a concentration of more than ten an instrument.

        It is the one that the effective F of :func:`cfiv.diagnose` is held against, 23.1 for one instrument.
        """
        return float(stats.ncx2.ppf(SURE, self.instruments, CONCENTRATION * self.instruments) / self.instruments)

    @property
    def is_weak(self) -> bool:
        """Whether even the leading direction is hardly moved, so that intervals may hold less often than they say."""
        return self.leading_f <= self.critical_value

    def __str__(self) -> str:
        if self.leading == self.least:
            return f"canonical correlation {self.least:.3g}, F-type {self.least_f:.3g}"
        return (
            f"canonical correlations {self.leading:.3g} to {self.least:.3g}, F-type {self.leading_f:.3g} to {self.least_f:.3g}"
        )

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return dict(vars(self))

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """From the values of a file."""
        fields(values, "leading", "least", "rows", "instruments")
        leading, least = number(values["leading"]), number(values["least"])
        if not 0 < least <= leading < 1:
            raise ValueError(f"canonical correlations of {leading} and {least}")
        rows, instruments = whole(values["rows"], 1, 2**62), whole(values["instruments"], 1, 2**62)
        return cls(leading=leading, least=least, rows=rows, instruments=instruments)

    def _f_statistic(self, correlation: float) -> float:
        explained = correlation**2
        return self.rows * explained / ((1 - explained) * self.instruments)
