"""Cells of rows with like covariates, and how far ranges within them are to be widened for fresh rows to lie inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfiv.arrays import Array
from cfiv.file_values import fields, listed, numbers, whole

#: Cells at most, rows of each at least, and splits on the way to one at most.
CELLS, CELL_ROWS, DEPTH = 512, 20, 20
#: With more columns of treatments there is one cell: a flat image is as long as its pixels.
MANY_TREATMENTS = 16
#: The share of rows that a widened range may leave outside.
OUTSIDE = 0.004


@dataclass(frozen=True, eq=False)
class Cells:
    """The leaves of a binary tree on covariates; a single cell where there is nothing to split.

    Parameters
    ----------
    column : array (nodes,) of whole numbers
        Which covariate a node compares; -1 in leaves.
    threshold : array (nodes,)
        Rows up to it go on at ``below``, others at ``above``.
    below, above : array (nodes,) of whole numbers
        Later nodes; -1 in leaves.
    """

    column: Array
    threshold: Array
    below: Array
    above: Array

    @classmethod
    def grow(cls, treatments: Array, covariates: Array) -> Cells:
        """A regression tree of the ranks of the treatments (n, k) on the covariates (n, p), which draws nothing."""
        if not covariates.shape[1] or treatments.shape[1] > MANY_TREATMENTS or len(treatments) < 2 * CELL_ROWS:
            nothing = np.full(1, -1, dtype=np.int64)
            return cls(nothing, np.zeros(1), nothing, nothing)
        from scipy.stats import rankdata
        from sklearn.tree import DecisionTreeRegressor

        # The tree is in float32: shares of the range, and thresholds back in the user's units.
        low, width = covariates.min(axis=0), np.ptp(covariates, axis=0)
        shares = (covariates - low) / np.where(width > 0, width, 1.0)
        tree = DecisionTreeRegressor(max_leaf_nodes=CELLS, min_samples_leaf=CELL_ROWS, max_depth=DEPTH, random_state=0)
        grown = tree.fit(shares, rankdata(treatments, axis=0) / len(treatments)).tree_
        inner = grown.children_left >= 0
        column = np.where(inner, grown.feature, -1).astype(np.int64)
        threshold = np.where(inner, low[column] + grown.threshold * width[column], 0.0)
        return cls(column, threshold, grown.children_left.astype(np.int64), grown.children_right.astype(np.int64))

    def __len__(self) -> int:
        return len(self.column)

    def of(self, covariates: Array) -> Array:
        """The leaf of each row, as the number of its node, shape (n,)."""
        nodes = np.zeros(len(covariates), dtype=np.int64)
        under_way = np.arange(len(covariates))
        while True:
            under_way = under_way[self.column[nodes[under_way]] >= 0]
            if not len(under_way):
                return nodes
            at = nodes[under_way]
            up_to = covariates[under_way, self.column[at]] <= self.threshold[at]
            nodes[under_way] = np.where(up_to, self.below[at], self.above[at])

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {name: values if name == "threshold" else values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_values(cls, values: Any, *, covariates: int) -> Cells:
        """From the values of a file; every way ends in a leaf.

        Raises
        ------
        Exception
            One of :data:`cfiv.tensor_file.DAMAGE`, for anything that is no tree on so many covariates.
        """
        fields(values, "column", "threshold", "below", "above")
        column = [whole(at, -1, covariates - 1) for at in listed(values["column"])]
        count = whole(len(column), 1, 2 * CELLS - 1)
        ends = [
            [
                whole(node, -1 if at < 0 else i + 1, -1 if at < 0 else count - 1)
                for i, (at, node) in enumerate(zip(column, nodes, strict=True))
            ]
            for nodes in (listed(values[side], count=count) for side in ("below", "above"))
        ]
        return cls(np.array(column), numbers(values["threshold"], (count,)), *map(np.array, ends))


@dataclass(frozen=True, eq=False)
class Ends:
    """The two least and the two greatest values of each column in each cell, all equal in a cell with one row.

    Parameters
    ----------
    least, second, last_but_one, greatest : array (nodes, columns)
        Any numbers at nodes without rows.
    """

    least: Array
    second: Array
    last_but_one: Array
    greatest: Array

    @classmethod
    def of(cls, values: Array, places: Array, count: int) -> Ends:
        """Of rows (n, columns), and the nodes (n,) of ``count`` that they are in."""
        ordered = np.sort(places)
        start, stop = (np.searchsorted(ordered, np.arange(count), side=side) for side in ("left", "right"))
        at = np.stack([start, np.minimum(start + 1, stop - 1), np.maximum(stop - 2, start), stop - 1])
        at = np.clip(at, 0, len(values) - 1)  # where there are none
        columns = [values[_sorted_within(places, column), j][at] for j, column in enumerate(values.T)]
        return cls(*np.stack(columns, axis=-1)) if columns else cls(*np.zeros((4, count, 0)))

    def margin(self, values: Array, places: Array, *, narrowest: Array, at_least: float) -> float:
        """By what share of their widths ranges are to be widened for ``1 - OUTSIDE`` of some of their rows to lie inside.

        Each row is compared with the range of the other rows of its cell.

        Parameters
        ----------
        values : array (m, columns)
        places : array (m,)
            The nodes that they are in.
        narrowest : array (columns,)
            What a range's width counts as at least.
        at_least : float
            The answer for many rows that lie inside without further ado.
        """
        least, second, last_but_one, greatest = (end[places] for end in vars(self).values())
        tiny = np.maximum(narrowest, np.finfo(np.float64).tiny)
        above = np.where(values == greatest, (greatest - last_but_one) / np.maximum(last_but_one - least, tiny), 0.0)
        below = np.where(values == least, (second - least) / np.maximum(greatest - second, tiny), 0.0)
        beyond = np.sort(np.maximum(above, below).max(axis=1, initial=0.0))
        enough = math.ceil((1.0 - OUTSIDE) * (len(beyond) + 1))
        # Too few rows do not show it; extremes grow with the logarithm of the number of rows, or faster.
        fewer = max(1.0, 1.0 / (OUTSIDE * (len(beyond) + 1)))
        return (1.0 + math.log(fewer)) * max(at_least, float(beyond[min(enough, len(beyond)) - 1]))


def _sorted_within(places: Array, column: Array) -> Array:
    """Numbers of rows in the order of their nodes and, within, of a column: as ``lexsort``, in a third of its time."""
    order = np.argsort(column)
    return np.asarray(order[np.argsort(places[order].astype(np.int16), kind="stable")])
