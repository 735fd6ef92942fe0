"""Group means: what stands for fixed effects where a function of the treatment is learned, and nothing can be absorbed.

Of ``Y = h(T, X) + a_g + e`` with an effect ``a_g`` of each group. Means taken out of the treatment would not take ``a_g`` out
of a nonlinear ``h``, so the means of the exogenous columns join the covariates instead: ``h(T, X) + m(mean_g X, mean_g Z)``, a
correlated random effect: what ``a_g`` has to do with instruments and covariates it must have by these means. Of linear models
the estimates are those of absorbed fixed effects of one kind. Means of an endogenous treatment stay out: they hold its errors.

References
----------
Mundlak, "On the pooling of time series and cross section data", *Econometrica* 46, 1978. Joshi and Wooldridge, "Correlated
random effects models with endogenous explanatory variables and unbalanced panels", *Annals of Economics and Statistics* 134,
2019. Wooldridge, "Two-way fixed effects, the two-way Mundlak regression, and difference-in-differences estimators", 2021, for
two kinds.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cfiv.arrays import Array
from cfiv.errors import DataError, quoted
from cfiv.file_values import fields, listed, numbers, text, texts
from cfiv.tables.columns import level_codes, seen_levels
from cfiv.tables.saved_parts import learned_to_values, level_from_value

#: Variation within groups, relative to that of a column, that is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """Means of columns over the training rows of each group, of one kind.

    Parameters
    ----------
    group : str
        The raw column that labels the groups.
    labels : tuple
        Of the groups.
    columns : tuple of k str
        What the means are called as covariates.
    values : array (groups, k)
    """

    group: str
    labels: tuple[Hashable, ...]
    columns: tuple[str, ...]
    values: Array = field(repr=False)

    @classmethod
    def of(cls, frame: pd.DataFrame, group: str, columns: Mapping[str, tuple[Sequence[str], Array]]) -> GroupMeans:
        """Of the columns of some roles: their names and values (n, columns) by role.

        A covariate that does not vary within groups is its own mean, and none is added for it.

        Raises
        ------
        DataError
            Where each row is a group, or a treatment or an instrument does not vary within groups.
        """
        labels = seen_levels(frame[group], group)
        codes = level_codes(frame[group], group, labels)
        counts = np.bincount(codes)
        if counts.max() < 2:
            raise DataError(f"every row is the only one of its {group!r}, so nothing can be told from its effect: drop it")
        names, found = [], []
        for role, (own, values) in columns.items():
            for name, column in zip(own, values.T, strict=True):
                means = np.bincount(codes, column) / counts
                if np.linalg.norm(column - means[codes]) <= ROUNDING * np.linalg.norm(column - column.mean()):
                    if role != "covariates":
                        raise DataError(
                            f"{quoted([name])} does not vary within the fixed effects {group!r}, so that it cannot be told "
                            "from them: drop it, or these fixed effects"
                        )
                    continue
                names.append(f"mean of {name} by {group}")
                found.append(means)
        return cls(group, labels, tuple(names), np.stack(found, axis=1))

    def at(self, frame: pd.DataFrame) -> Array:
        """The means (n, k) of the groups of rows; raises a DataError for groups that training did not see."""
        return np.asarray(self.values[level_codes(frame[self.group], self.group, self.labels)])

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {**vars(self), "labels": learned_to_values(self.labels)}

    @classmethod
    def from_values(cls, values: Any) -> GroupMeans:
        """From the values of a file.

        Raises
        ------
        Exception
            One of :data:`cfiv.tensor_file.DAMAGE`, for anything else.
        """
        fields(values, "group", "labels", "columns", "values")
        group, columns = text(values["group"]), texts(values["columns"])
        labels = tuple(level_from_value(label, group) for label in listed(values["labels"]))
        if len(set(labels)) < len(labels):
            raise ValueError(f"a group of {group!r} twice")
        return cls(group, labels, columns, numbers(values["values"], (len(labels), len(columns))))
