"""Wald tests, and how a test of the linear estimators is reported. Names are linearmodels'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy import linalg, stats

from cfiv.data import Array
from cfiv.errors import ParameterError, SingularError, nearest, quoted

#: Smallest singular value of a covariance's root, relative to its rows, below which it cannot be inverted.
SINGULAR = 1e-8


@dataclass(frozen=True, kw_only=True)
class WaldTest:
    """A statistic, its distribution under the null, and its p-value.

    Parameters
    ----------
    stat : float
    df : int
        Of chi2, or the numerator's of F.
    df_denom : int or None
        The denominator's, where the statistic is an F; None where it is a chi2.
    null : str
        What is tested.
    name : str
    note : str
        What to know of the number, where there is something.
    """

    stat: float
    df: int
    df_denom: int | None
    null: str
    name: str
    note: str = ""

    @classmethod
    def of(cls, estimates: Array, root: Array, *, name: str, null: str, df_denom: int | None = None) -> Self:
        """``g' V^-1 g`` for estimates ``g`` (m,) with ``V = L L'``, ``L`` (m, k) the ``root``; over m where there is an F.

        Raises
        ------
        SingularError
            If the covariance cannot be inverted.
        """
        lengths = np.linalg.norm(root, axis=1)
        if (lengths == 0).any():
            raise SingularError(f"{name}: a variance is zero, as of a perfect fit, so there is nothing to test")
        triangle = np.linalg.qr((root / lengths[:, None]).T, mode="r")
        if len(triangle) < len(estimates) or np.linalg.svd(triangle, compute_uv=False)[-1] <= SINGULAR:
            raise SingularError(f"{name}: the covariance of the {len(estimates)} estimates is singular; test fewer at once")
        left = linalg.solve_triangular(triangle, estimates / lengths, trans="T")
        statistic = float(left @ left)
        return cls(
            stat=statistic if df_denom is None else statistic / len(estimates),
            df=len(estimates),
            df_denom=df_denom,
            null=null,
            name=name,
        )

    @property
    def dist(self) -> Any:
        """The distribution under the null, of scipy."""
        return stats.chi2(self.df) if self.df_denom is None else stats.f(self.df, self.df_denom)

    @property
    def dist_name(self) -> str:
        """``chi2(df)`` or ``F(df,df_denom)``."""
        return f"chi2({self.df})" if self.df_denom is None else f"F({self.df},{self.df_denom})"

    @property
    def pval(self) -> float:
        """P-value."""
        return float(self.dist.sf(self.stat))

    @property
    def critical_values(self) -> dict[str, float]:
        """At 10, 5 and 1 %."""
        return dict(zip(("10%", "5%", "1%"), map(float, self.dist.ppf([0.9, 0.95, 0.99])), strict=True))

    def __str__(self) -> str:
        lines = [self.name, f"H0: {self.null}", f"Statistic: {self.stat:.4f}", f"P-value: {self.pval:.4f}"]
        return "\n".join([*lines, f"Distributed: {self.dist_name}", *[f"Note: {self.note}"] * bool(self.note)])


def read_numbers(name: str, values: Any) -> Array:
    """An argument as an array of float64; a ``ParameterError`` that names it where it is none."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} must be finite numbers, got {values!r}") from error


def has_labels(values: Any) -> bool:
    """Whether a Series or DataFrame of pandas names its numbers, by something else than their position."""
    labels = getattr(values, "columns" if isinstance(values, pd.DataFrame) else "index", None)
    return isinstance(labels, pd.Index) and not labels.equals(pd.RangeIndex(len(labels)))


def by_name(weights: Any, names: Sequence[str]) -> Any:
    """Weights with names as rows in the order of ``names``, 0 where none is given; others as they are.

    Raises
    ------
    ParameterError
        For a name that is not among them.
    """
    if isinstance(weights, Mapping):
        weights = pd.Series(dict(weights), dtype=object)
    elif not has_labels(weights):
        return weights
    table = weights if isinstance(weights, pd.DataFrame) else weights.to_frame().T
    for label in table.columns:
        if label not in names:
            raise ParameterError(f"weights name {label!r}, which is no coefficient: {nearest(str(label), names)}")
    if not table.columns.is_unique:
        raise ParameterError(f"weights must name a coefficient once, got {quoted(list(table.columns))}")
    return table.reindex(columns=list(names), fill_value=0.0).to_numpy()


def read_restrictions(formula: Any, names: Sequence[str]) -> tuple[Array, Array]:
    """Restrictions and their values from formulaic's notation, one or several; ``a = b = 0`` stands for two."""
    from formulaic.errors import FormulaicError
    from formulaic.utils.constraints import LinearConstraints

    if not isinstance(formula, (str, list, Mapping)):
        raise ParameterError(f"formula must be text such as 'x = 0, t = 2', a list of such or a mapping, got {formula!r}")
    if isinstance(formula, str) and "`" not in formula:
        formula = formula.split(",")
    if isinstance(formula, list):
        # Backticks may hold equations' signs, as in bs(x, df=4).
        chains = [[text] if "`" in str(text) else str(text).split("=") for text in formula]
        formula = [f"{side} = {chain[-1]}" for chain in chains for side in chain[:-1]] + [c[0] for c in chains if len(c) == 1]
    try:
        found = LinearConstraints.from_spec(formula, list(names))
    except (FormulaicError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise ParameterError(f"formula={formula!r} is no restriction of {', '.join(names)}: {error}") from error
    return np.asarray(found.constraint_matrix, dtype=np.float64), np.asarray(found.constraint_values, dtype=np.float64)
