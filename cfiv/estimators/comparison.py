"""Fitted models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from cfiv.errors import ParameterError
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.parameters import several
from cfiv.rendering import to_html, to_latex, to_markdown, to_text

#: In this order.
COLUMNS = ("estimator", "rows", "seconds", "penalties", "trusted", "score", "error")


class HasError(Protocol):
    """A truth to be judged by, such as the one that ``demand.simulate`` returns."""

    def error(self, model: Any) -> float:
        """Mean squared error of a model against the truth."""
        ...


@dataclass(frozen=True, eq=False)
class Comparison:
    """A table of fitted models; prints as text, and as HTML in a notebook.

    Parameters
    ----------
    table : DataFrame
        One row a model; see :func:`compare`.
    """

    table: pd.DataFrame

    def to_markdown(self) -> str:
        """As a Markdown table."""
        return to_markdown(self.table)

    def to_latex(self) -> str:
        """As a LaTeX tabular with booktabs rules."""
        return to_latex(self.table)

    def __str__(self) -> str:
        return to_text(self.table)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return to_html(self.table)


def compare(models: Mapping[str, StructuralEstimator], *, data: Any = None, truth: HasError | None = None) -> Comparison:
    """One row a fitted model.

    Parameters
    ----------
    models : mapping from a name to a fitted estimator
    data : table or IVData, optional
        Held-out rows for ``score``, the share of the outcome's variance that ``E[h | Z, X]`` explains.
    truth : object with ``error(model)``, optional
        Of a simulated design; ``error`` is the mean squared error against its structural function.

    Returns
    -------
    Comparison
        Whose ``table`` has the index ``model`` and the columns ``estimator, rows, seconds`` (of the fit), ``penalties`` (those
        that the fit chose, of each function averaged), where a model knows of its worth ``trusted`` ("yes" where nothing speaks
        against it, else "no"; see ``trust_`` of :class:`cfiv.DFIV`) and, where asked for, ``score`` and ``error``.

    Raises
    ------
    ParameterError, NotFittedError
        For an empty mapping, something that is not an estimator, one that has not been fitted, or a truth without ``error``.

    Examples
    --------
    >>> from cfiv import LeastSquares, TwoStageLeastSquares
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, seed=0)
    >>> models = {"2SLS": TwoStageLeastSquares(demand.FORMULA), "OLS": LeastSquares(demand.FORMULA)}
    >>> compare({name: model.fit(train) for name, model in models.items()}, truth=truth).table.columns.tolist()
    ['estimator', 'rows', 'seconds', 'penalties', 'error']
    """
    if not hasattr(models, "items") or not models:
        raise ParameterError(
            f"there is nothing to compare, got {models!r}: give a mapping of fitted models, as compare({{'2SLS': model}})"
        )
    if truth is not None and not callable(getattr(truth, "error", None)):
        raise ParameterError(f"truth must have a method error(model), as that of a simulated design has, got {truth!r}")
    records = []
    for name, model in models.items():
        if not isinstance(model, StructuralEstimator):
            raise ParameterError(f"{name!r} must be a fitted cfiv estimator, got {type(model).__name__}")
        model.summary()  # raises where it has not been fitted
        record = {
            "model": name,
            "estimator": type(model).__name__,
            "rows": model.n_rows_,
            "seconds": model.fit_seconds_,
            "penalties": _listed(model.chosen_penalties_),
        }
        trust = getattr(model, "trust_", None)
        if trust is not None:
            record["trusted"] = "yes" if trust.trusted else "no"
        if data is not None:
            record["score"] = model.score(data)
        if truth is not None:
            record["error"] = truth.error(model)
        records.append(record)
    table = pd.DataFrame(records).set_index("model")
    if "trusted" in table:
        table = table.fillna({"trusted": ""})  # of those that do not know
    return Comparison(table[[name for name in COLUMNS if name in table]])


def _listed(penalties: Mapping[str, tuple[float, ...]]) -> str:
    """``ridge1 1e-05, 0.001; ridge2 1e-06``."""
    return "; ".join(f"{name} {several(values)}" for name, values in penalties.items())
