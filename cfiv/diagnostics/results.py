"""What a diagnostic returns: a test, a confidence set, or the reason why there is neither."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CriticalValue:
    """A value that a statistic is held against, and what exceeding it would show."""

    value: float
    meaning: str


@dataclass(frozen=True)
class TestResult:
    """A statistic and what it says.

    Parameters
    ----------
    name : str
        The test's name in the field.
    null : str
        The null hypothesis in words.
    statistic : float
    distribution : str
        Of the statistic under the null, such as ``"F(2, 3004)"`` or ``"chi2(1)"``; empty where none is known.
    p_value : float or None
        None for statistics that are only compared with critical values.
    reading : str
        One sentence: what the result means at the level that was asked for.
    critical_value : float or None
        The value that the reading compares the statistic with, where that is not a quantile of ``distribution``.
    critical_values : tuple of CriticalValue
        All values that are tabulated for the statistic.
    """

    __test__ = False  # for pytest: no test case, whatever its name begins with

    name: str
    null: str
    statistic: float
    distribution: str
    p_value: float | None
    reading: str
    critical_value: float | None = None
    critical_values: tuple[CriticalValue, ...] = ()

    def rejects(self, significance: float = 0.05) -> bool:
        """Whether the null is rejected: by the p-value, or by the critical value where there is no p-value."""
        if self.p_value is not None:
            return self.p_value < significance
        return self.critical_value is not None and self.statistic > self.critical_value


@dataclass(frozen=True)
class Unavailable:
    """A diagnostic that these data or options do not have, and why."""

    name: str
    reason: str

    @property
    def reading(self) -> str:
        """The reason, as a sentence of the table."""
        return f"Not available: {self.reason}."


@dataclass(frozen=True)
class ConfidenceSet:
    """A closed subset of the real line: the values of one coefficient that a test does not reject.

    Parameters
    ----------
    name : str
        What it is a set of.
    level : float
        Its confidence level.
    intervals : tuple of (lower, upper)
        Disjoint and in ascending order; infinite ends where it is unbounded, no interval where it is empty.

    Examples
    --------
    >>> weak = ConfidenceSet("price", 0.95, ((-float("inf"), -0.4), (1.2, float("inf"))))
    >>> str(weak), weak.is_bounded, weak.contains(0.0)
    ('(-inf, -0.4] and [1.2, inf)', False, False)
    """

    name: str
    level: float
    intervals: tuple[tuple[float, float], ...] = field(default=())

    def contains(self, value: float) -> bool:
        """Whether a value of the coefficient is in the set."""
        return any(lower <= value <= upper for lower, upper in self.intervals)

    @property
    def is_empty(self) -> bool:
        """Whether the test rejects every value."""
        return not self.intervals

    @property
    def is_bounded(self) -> bool:
        """Whether the set lies between two finite numbers; the empty set does."""
        return all(math.isfinite(end) for interval in self.intervals for end in interval)

    @property
    def is_whole_line(self) -> bool:
        """Whether the test rejects no value."""
        return self.intervals == ((-math.inf, math.inf),)

    @property
    def length(self) -> float:
        """Total length; infinite where the set is unbounded."""
        return math.fsum(upper - lower for lower, upper in self.intervals)

    @property
    def reading(self) -> str:
        """One sentence: what the shape of the set means."""
        share = f"{100 * self.level:g} %"
        if self.is_empty:
            return f"Empty: at {share} no value of the coefficient fits, so the linear model or an instrument is wrong."
        if self.is_whole_line:
            return f"The whole line: at {share} the instruments tell nothing about the coefficient."
        if not self.is_bounded:
            return f"Unbounded: at {share} the instruments are too weak to bound the coefficient."
        zero = "holds" if self.contains(0.0) else "leaves out"
        return f"Bounded at {share}, however weak the instruments are; it {zero} zero."

    def __str__(self) -> str:
        if self.is_empty:
            return "empty"
        return " and ".join(
            f"{'(' if lower == -math.inf else '['}{lower:.4g}, {upper:.4g}{')' if upper == math.inf else ']'}"
            for lower, upper in self.intervals
        )


Diagnostic = TestResult | Unavailable


def conclude(p_value: float, *, significance: float, rejected: str, kept: str, note: str = "") -> str:
    """The reading of a test: one of two clauses, with the significance level it was taken at, and a note on the statistic."""
    return f"At {100 * significance:g} %, {rejected if p_value < significance else kept}{note}."
