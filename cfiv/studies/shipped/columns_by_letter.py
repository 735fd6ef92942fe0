"""Methods whose formula the table itself gives: outcome y, treatments t..., instruments z..., covariates x..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cfiv.estimators import registry
from cfiv.estimators.estimator import StructuralEstimator


@dataclass(kw_only=True)
class ColumnsByLetter:
    """An estimator of cfiv's that takes every column in the role that its first letter says.

    Parameters
    ----------
    name : str
        In files: "2sls", "kernel-iv", "dfiv".
    treatment : str, optional
        What stands between the brackets of the formula, where columns as they are will not do.
    arguments : dict
        Of the estimator.
    """

    name: str
    treatment: str | None
    arguments: dict[str, Any]

    def fit(self, data: pd.DataFrame) -> StructuralEstimator:
        """Write the formula and fit."""
        of_letter = {letter: " + ".join(name for name in data.columns if str(name).startswith(letter)) for letter in "tzx"}
        treatment = self.treatment or f"{of_letter['t']} ~ {of_letter['z']}"
        covariates = f"{of_letter['x']} + " if of_letter["x"] else ""
        return registry.estimator(self.name).make(f"y ~ {covariates}[{treatment}]", **self.arguments).fit(data)


def columns_by_letter(*, name: str, treatment: str | None = None, seed: int) -> ColumnsByLetter:
    """A :class:`ColumnsByLetter` with the estimator's defaults.

    Raises
    ------
    ParameterError
        If there is no such estimator.
    """
    settings = {"random_state": seed, "progress": False}
    registered = registry.estimator(name)
    return ColumnsByLetter(
        name=name,
        treatment=treatment,
        arguments={argument: value for argument, value in settings.items() if registered.takes(argument)},
    )
