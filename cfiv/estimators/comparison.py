"""Fitted models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd

from cfiv.errors import ParameterError
from cfiv.estimators.estimator import StructuralEstimator


class HasError(Protocol):
    """A truth to be judged by, such as the one that ``demand.simulate`` returns."""

    def error(self, model: Any) -> float:
        """Mean squared error of a model against the truth."""
        ...


def compare(models: Mapping[str, StructuralEstimator], *, data: Any = None, truth: HasError | None = None) -> pd.DataFrame:
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
    DataFrame
        Index ``model``; columns ``estimator, rows, seconds`` (of the fit) and, where asked for, ``score`` and ``error``.

    Raises
    ------
    ParameterError, NotFittedError
        For an empty mapping, something that is not an estimator, or one that has not been fitted.
    """
    if not models:
        raise ParameterError("there is nothing to compare: give at least one fitted model, as compare({'2SLS': model})")
    records = []
    for name, model in models.items():
        if not isinstance(model, StructuralEstimator):
            raise ParameterError(f"{name!r} must be a fitted cfiv estimator, got {type(model).__name__}")
        model.summary()  # raises where it has not been fitted
        record = {"model": name, "estimator": type(model).__name__, "rows": model.n_rows_, "seconds": model.fit_seconds_}
        if data is not None:
            record["score"] = model.score(data)
        if truth is not None:
            record["error"] = truth.error(model)
        records.append(record)
    return pd.DataFrame(records).set_index("model")
