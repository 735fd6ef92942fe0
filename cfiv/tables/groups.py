"""Groups of rows by which averages are taken: a column of their table, or labels beside them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cfiv.arrays import Array, as_array
from cfiv.data import IVData, read_table
from cfiv.errors import CfivWarning, DataError, warn
from cfiv.labels import check_same_rows, label_codes
from cfiv.tables.columns import require_columns
from cfiv.tables.stored import is_stored, read_labels

#: More groups than this, of fewer rows on average, are hardly what was meant.
MANY, FEW_ROWS = 20, 10


@dataclass(frozen=True, eq=False)
class Groups:
    """Disjoint groups that hold all rows.

    Parameters
    ----------
    name : str
        What they are by.
    labels : tuple
        One a group: categories in their order, others sorted; in the order of their first row where they cannot be compared.
    members : tuple of arrays of int
        The numbers of each group's rows.
    """

    name: str
    labels: tuple[Any, ...]
    members: tuple[Array, ...]

    @classmethod
    def of(cls, by: Any, rows: Any, *, count: int, kept: Array | None = None, beside: Collection[str] = ()) -> Groups:
        """Read ``by``, the name of a column of ``rows`` or one label for each of the ``count`` rows.

        Members are numbered among the rows that are ``kept``, a mask (count,), where some are left out. ``beside`` are names of
        columns that a table has beside the labels and the numbers of rows.

        Raises
        ------
        DataError
            If there is no such column, not one label a row, or another column of the table has its name.

        Warns
        -----
        CfivWarning
            Of many groups of few rows each.
        """
        name, labels = "group", by
        if isinstance(by, str):
            name, labels = by, read_labels(rows, by) if is_stored(rows) else _column(rows, by)
        else:
            check_same_rows({"the rows": rows.frame if isinstance(rows, IVData) else rows, "by": by})
            name = str(getattr(by, "name", None) or name)
        labels = labels if isinstance(labels, (pd.Series, list, tuple)) else np.atleast_1d(as_array("by", labels))
        if len(labels) != count:
            raise DataError(f"by must name a column, or label each of the {count} rows, got {len(labels)} labels")
        if kept is not None:
            labels = [labels[i] for i in np.flatnonzero(kept)] if isinstance(labels, (list, tuple)) else labels[kept]
        codes = label_codes("by", labels)
        if name in ("rows", *beside):
            raise DataError(f"groups by {name!r} would hide a column of the table that is called so: rename that column")
        values = labels.ravel().tolist() if isinstance(labels, np.ndarray) else list(labels)
        groups, count = int(codes.max()) + 1, len(codes)
        if groups > MANY and count < FEW_ROWS * groups:
            warn(
                f"by={name!r} makes {groups:,} groups of {count:,} rows, {count / groups:.2g} rows each, and averages of so "
                f"few say little: where it is a number cut it first, such as by=pandas.qcut(frame[{name!r}], 4)",
                CfivWarning,
            )
        found = [values[i] for i in np.unique(codes, return_index=True)[1]]
        order = _order(found, getattr(getattr(labels, "dtype", None), "categories", None))
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        return cls(name, tuple(found[i] for i in order), tuple(members[i] for i in order))

    def table(self) -> pd.DataFrame:
        """A row a group: its label and how many rows it has."""
        return pd.DataFrame({self.name: list(self.labels), "rows": [len(rows) for rows in self.members]})


def _column(rows: Any, name: str) -> Any:
    frame = read_table(rows)
    require_columns(frame, [name], needed_for="groups")
    return frame[name]


def _order(labels: list[Any], categories: Any) -> list[int]:
    if categories is not None:
        places = {label: place for place, label in enumerate(categories)}
        return sorted(range(len(labels)), key=lambda i: places[labels[i]])
    try:
        return sorted(range(len(labels)), key=lambda i: labels[i])
    except TypeError:
        return list(range(len(labels)))
