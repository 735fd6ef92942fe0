"""How strongly the instruments move the basis: where they hardly do, intervals are wide and may still promise too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from cfiv.data import Array
from cfiv.file_values import fields, number, whole

#: The F statistic of the weakest direction below which instruments count as weak (Staiger and Stock's rule of thumb).
STRONG = 10.0
#: A canonical correlation that is one to rounding: of a column that both bases have.
SHARED = 1.0 - 1e-10


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Of the direction of the basis that the instruments move least.

    Parameters
    ----------
    correlation : float
        ``s``, the smallest canonical correlation of structural and instrument columns, both with what they share.
    rows : int
    instruments : int
        ``q``: rank of the instrument columns beyond those that both share.
    """

    correlation: float
    rows: int
    instruments: int

    @classmethod
    def of(cls, correlations: Array, *, rows: int, instruments: int) -> Self | None:
        """From canonical correlations (p,) and the rank of the instrument columns; None where all columns are shared."""
        shared = int((correlations > SHARED).sum())
        if shared == len(correlations):
            return None
        return cls(correlation=float(correlations.min()), rows=rows, instruments=instruments - shared)

    @property
    def f_statistic(self) -> float:
        """``n s^2 / ((1 - s^2) q)``: the F of a regression of that direction on the instruments, but for degrees of freedom."""
        explained = self.correlation**2
        return self.rows * explained / ((1 - explained) * self.instruments)

    @property
    def is_weak(self) -> bool:
        """Whether the F statistic is below ``STRONG``."""
        return self.f_statistic < STRONG

    def __str__(self) -> str:
        return f"smallest canonical correlation {self.correlation:.3g}, F-type {self.f_statistic:.3g}"

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return dict(vars(self))

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """From the values of a file."""
        fields(values, "correlation", "rows", "instruments")
        correlation = number(values["correlation"])
        if not 0 < correlation <= 1:
            raise ValueError(f"a correlation of {correlation}")
        return cls(
            correlation=correlation, rows=whole(values["rows"], 1, 2**62), instruments=whole(values["instruments"], 1, 2**62)
        )
