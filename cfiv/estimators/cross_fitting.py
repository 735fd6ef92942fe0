"""Cross-fitting: the structural functions of the rows outside each fold, for what must not have seen a row's own error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.base import clone

from cfiv.data import Array, IVData
from cfiv.errors import DataError, WorthlessFitWarning, silence
from cfiv.estimators.corrected import MeanComponent
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.learning.samples import fold_groups

#: Rows outside a fold below which nothing is fitted.
FEWEST_ROWS = 20


@dataclass(frozen=True, eq=False)
class CrossFit:
    """``h_k`` of the rows outside fold ``k``.

    Parameters
    ----------
    functions : tuple of K MeanComponent
    folds : array (n,) of int
        That of each row.
    values : array (n, K)
        ``h_k`` at all rows.
    """

    functions: tuple[MeanComponent, ...]
    folds: Array
    values: Array


def cross_fit(
    model: StructuralEstimator,
    data: IVData,
    *,
    intercept: bool,
    groups: Array | None,
    folds: int,
    generator: np.random.Generator,
) -> CrossFit:
    """Fit an estimator to the rows outside each fold, as it is configured but for "auto" averages over several splits.

    Parameters
    ----------
    model : StructuralEstimator
        It is not changed.
    data : IVData
        With positive weights.
    intercept : bool
        Of the formula.
    groups : array (n,) of int or None
        Rows of one group are in one fold.
    folds : int
    generator : Generator
        Of folds and fits.

    Raises
    ------
    DataError
        If there are fewer groups than folds, or hardly any rows outside one.
    """
    if len(data) * (folds - 1) // folds < FEWEST_ROWS:
        raise DataError(
            f"intervals fit the estimator to the rows outside each of {folds} folds, of which {len(data)} rows leave too few: "
            "give more rows, or use TwoStageLeastSquares"
        )
    fold = np.empty(len(data), dtype=np.int64)
    if groups is None:
        fold[generator.permutation(len(data))] = np.arange(len(data)) % folds
    else:
        for number, rows in enumerate(fold_groups(groups, folds=folds, generator=generator)):
            fold[rows.numpy()] = number
    seeds = [int(generator.integers(2**62)) for _ in range(folds)]
    with silence(WorthlessFitWarning):  # the fit to all rows has said it
        estimates = _quiet(model)._estimate_parts(
            replace(data, frame=None), [np.flatnonzero(fold != number) for number in range(folds)], seeds, intercept=intercept
        )
    functions = tuple(MeanComponent(estimate.components, estimate.shares) for estimate in estimates)
    values = np.stack([function.evaluate(data.treatment, data.covariates) for function in functions], axis=1)
    return CrossFit(functions, fold, values)


def _quiet(model: StructuralEstimator) -> StructuralEstimator:
    """The same estimator, not fitted, without a bar."""
    own: StructuralEstimator = clone(model)
    return own.set_params(progress=False) if "progress" in own.get_params(deep=False) else own
