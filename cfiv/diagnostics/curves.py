"""Curves of variables: the columns that a linear model lacks for them to enter nonlinearly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import linalg

from cfiv.data import Array, IVData
from cfiv.tables.encoder import Encoder

#: What the columns before leave of a column, relative to its length, below which it adds nothing.
ADDS_NOTHING = 1e-5


@dataclass(frozen=True, eq=False)
class Variable:
    """A column as the user has it, whatever terms the formula makes of it.

    Parameters
    ----------
    name : str
    columns : array (n, m)
        The one column of a number; indicators of all categories but one.
    category : bool
    """

    name: str
    columns: Array
    category: bool = False

    @cached_property
    def distinct(self) -> int:
        """Different values; of categories two, since their indicators leave nothing to bend."""
        return 2 if self.category else len(np.unique(self.columns))

    def curve(self, most: int) -> Array:
        """Columns whose combinations, with a constant, are curves of the variable: splines as of ``bs(x, df=most)``.

        Parameters
        ----------
        most : int
            Degrees of freedom, the straight line's among them. Cubic with knots at quantiles, of a lower degree below three;
            an indicator of each value where there are at most ``most + 1`` values.

        Returns
        -------
        array (n, c)
            No column where there are two values or fewer.
        """
        from sklearn.preprocessing import SplineTransformer

        values = self.columns[:, 0]
        if self.distinct <= 2:
            return np.empty((len(values), 0))
        distinct = np.unique(values)
        if len(distinct) <= most + 1:
            return centre(np.asarray(values[:, None] == distinct[1:], dtype=np.float64))
        share = (values - distinct[0]) / (distinct[-1] - distinct[0])
        degree = min(3, most)
        knots = np.unique(np.quantile(share, np.linspace(0.0, 1.0, most - degree + 2)))
        return centre(np.asarray(SplineTransformer(degree=degree, knots=knots[:, None]).fit_transform(share[:, None])))

    def width(self, most: int) -> int:
        """Columns of its curve but for a constant, or its own."""
        return self.extra(most) + int(self.columns.shape[1])

    def extra(self, most: int) -> int:
        """How many columns ``curve(most)`` has besides the straight line and the constant, at most."""
        return 0 if self.distinct <= 2 else max(min(most, self.distinct - 1) - 1, 0)


def numbers(names: Sequence[str], columns: Array) -> tuple[Variable, ...]:
    """A variable for each column."""
    return tuple(Variable(name, columns[:, [j]].astype(np.float64)) for j, name in enumerate(names))


def covariates(data: IVData, encoder: Encoder) -> tuple[Variable, ...]:
    """The covariates: columns of the table where a formula made the data, else of the array."""
    if data.covariates is None:
        return ()
    return tuple(
        Variable(str(name), centre(np.column_stack([column == level for level in column.cat.categories[1:]])), category=True)
        if isinstance(column.dtype, pd.CategoricalDtype)
        else Variable(str(name), column.to_numpy(dtype=np.float64)[:, None])
        for name, column in encoder.covariate_table(data).items()
    )


def product(one: Variable, other: Variable, most: int = 1) -> Array:
    """Products of the curves (or columns) of two variables about their means, without those that vanish, (n, c)."""
    left, right = (
        variable.curve(most) if most > 1 and variable.distinct > 2 else centre(variable.columns) for variable in (one, other)
    )
    columns = left[:, :, None] * right[:, None, :]
    flat = columns.reshape(len(columns), -1)
    return np.asarray(flat[:, (flat != flat[0]).any(axis=0)])


def pairs(variables: Sequence[Variable]) -> list[tuple[Variable, Variable]]:
    """Every two variables, those of which both are numbers of many values first."""
    return sorted(combinations(variables, 2), key=lambda pair: sum(variable.distinct <= 2 for variable in pair))


@dataclass(frozen=True, eq=False)
class Curves:
    """Columns that a model lacks, none a combination of the others and of those that it has.

    Parameters
    ----------
    columns : array (n, c)
        In no particular scale.
    groups : mapping from a part's name to its columns
    """

    columns: Array
    groups: dict[str, slice]

    @classmethod
    def beyond(cls, base: Array, parts: Iterable[tuple[str, Array]], weights: Array) -> Curves:
        """What named parts add to the columns ``base`` (n, p), and to the parts before them, in weighted rows."""
        root = np.sqrt(weights)[:, None]
        basis = np.linalg.qr(_unit(root * base))[0]
        kept: list[Array] = [np.empty((len(base), 0))]
        groups: dict[str, slice] = {}
        for name, columns in parts:
            if not columns.shape[1]:
                continue
            left = _unit(root * columns)
            for _ in range(2):  # so that nothing but rounding of the basis is left
                left = left - basis @ (basis.T @ left)
            orthonormal, triangle, order = linalg.qr(left, mode="economic", pivoting=True)
            rank = int((np.abs(np.diag(triangle)) > ADDS_NOTHING).sum())
            if rank:
                start = sum(part.shape[1] for part in kept)
                groups[name] = slice(start, start + rank)
                kept.append(columns[:, np.sort(order[:rank])])
                basis = np.column_stack([basis, orthonormal[:, :rank]])
        return cls(np.concatenate(kept, axis=1), groups)


def centre(columns: Array) -> Array:
    """Columns about their means, the largest deviation one, so that products neither overflow nor repeat their factors."""
    left = columns - columns.mean(axis=0, dtype=np.float64)
    largest = np.abs(left).max(axis=0)
    return np.asarray(left / np.where(largest > 0, largest, 1.0))


def _unit(columns: Array) -> Array:
    lengths = np.linalg.norm(columns, axis=0)
    return np.asarray(columns / np.where(lengths > 0, lengths, 1.0))
