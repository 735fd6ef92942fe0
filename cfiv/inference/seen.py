"""What an inference keeps of where training was, beside the support of the structural function.

That knows the columns that a formula makes. Columns that stop at the ends of a range, as of ``bs(t, extrapolation="clip")``,
look seen beyond it: hence the ranges of treatments as they came. And it knows treatments at like covariates, but not whether a
basis of many functions is asked far from all rows: hence the leverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from cfiv.data import Array
from cfiv.estimators.support import TREATMENT_MARGIN
from cfiv.file_values import fields, number, numbers, texts
from cfiv.tables.columns import column_numbers

#: Order statistics of each treatment that are kept, evenly spread from the least to the greatest, for the ticks of figures.
KEPT = 201
#: Rounding of a leverage that is the largest of training.
ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True, eq=False)
class Seen:
    """Treatments of training by their range, and the largest leverage of a training row.

    Parameters
    ----------
    columns : tuple of k str
        Treatments that are numbers, as they came.
    quantiles : array (m, k)
        Evenly spread order statistics of each, ascending.
    leverage : float
        The largest ``f' (F' F / n)^-1 f`` over the rows of training.
    """

    columns: tuple[str, ...]
    quantiles: Array
    leverage: float

    @classmethod
    def of(cls, treatments: pd.DataFrame, *, leverage: float) -> Self:
        """Of the treatments of training, and the largest leverage there."""
        columns = tuple(str(name) for name in treatments.columns if is_numeric(treatments[name]))
        kept = np.unique(np.linspace(0, len(treatments) - 1, min(KEPT, len(treatments))).round().astype(np.int64))
        values = [np.partition(treatments[name].to_numpy(dtype=np.float64), kept)[kept] for name in columns]
        return cls(columns, np.stack(values, axis=1) if values else np.zeros((len(kept), 0)), leverage)

    def span(self, column: str) -> tuple[float, float]:
        """Least and greatest value of a treatment."""
        values = self.quantiles[:, self.columns.index(column)]
        return float(values[0]), float(values[-1])

    def within(self, treatments: pd.DataFrame) -> Array:
        """Whether each row (m,) of treatments, as they came, lies in or near the range of every one that is a number."""
        inside = np.ones(len(treatments), dtype=bool)
        for name in self.columns:
            least, greatest = self.span(name)
            margin = TREATMENT_MARGIN * (greatest - least)
            inside &= column_numbers(name, treatments[name]).between(least - margin, greatest + margin).to_numpy()
        return inside

    def supports(self, leverage: Any) -> Any:
        """Whether leverages are no larger than that of some training row."""
        return leverage <= self.leverage * ROUNDING

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return dict(vars(self))

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """From the values of a file."""
        fields(values, "columns", "quantiles", "leverage")
        columns = texts(values["columns"])
        quantiles = numbers(values["quantiles"], (len(values["quantiles"]), len(columns)))
        if len(quantiles) < 1 or (np.diff(quantiles, axis=0) < 0).any():
            raise ValueError("order statistics that do not ascend")
        return cls(columns, quantiles, number(values["leverage"]))


def is_numeric(column: pd.Series[Any]) -> bool:
    """Whether a raw column holds numbers, and no categories."""
    return not isinstance(column.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(column.dtype)
