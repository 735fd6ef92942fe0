"""Two-stage least squares, or LIML with the ``kappa`` of the data, on columns that are orthonormal."""

from __future__ import annotations

import numpy as np

from cfiv.errors import DataError
from cfiv.estimators.linear_columns import Columns
from cfiv.numerics.linear_iv import LinearFit, k_class, liml_excess
from cfiv.numerics.scaled_columns import ScaledColumns


def instrumented_fit(
    outcome: ScaledColumns, *, treatments: Columns, instruments: Columns, exogenous: int, fuller: float | None, lost: int
) -> LinearFit:
    """Of one column on ``[E, T]`` with instruments ``[E, Z]``.

    Parameters
    ----------
    outcome : ScaledColumns
    treatments, instruments : Columns
        Independent, and the instruments move the treatments.
    exogenous : int
        Columns of ``E``.
    fuller : float or None
        None for two-stage least squares, 0 for LIML; more takes ``fuller / (n - p - q)`` from its ``kappa``.

    lost : int
        Degrees of freedom of the fixed effects that were taken out.

    Raises
    ------
    DataError
        Where there is no LIML: the instruments are so many, for the rows, that they predict some combination of outcome and
        treatments exactly.
    """
    n, width = len(instruments.basis) - lost, instruments.basis.shape[1]
    target, excluded = outcome.values[:, 0], instruments.basis[:, exogenous:]
    excess = 0.0
    if fuller is not None:
        excess = np.inf
        if n - width > treatments.basis.shape[1] - exogenous:
            excess = liml_excess(target, regressors=treatments.basis, instruments=excluded, exogenous=exogenous)
        if not np.isfinite(excess):
            raise DataError(
                f"the {width} exogenous columns and instruments predict some combination of outcome and treatments exactly, in "
                f"{n} rows, so that there is no LIML: use fewer instruments"
            )
        excess -= fuller / (n - width)
    try:
        return k_class(
            target,
            regressors=treatments.basis,
            triangle=treatments.triangle,
            instruments=excluded,
            exogenous=exogenous,
            excess=excess,
        )
    except np.linalg.LinAlgError as error:
        raise DataError(f"LIML has no finite coefficients in these rows (kappa {1 + excess:.6g}): give fuller=1") from error
