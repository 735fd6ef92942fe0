"""Two-stage and ordinary least squares in orthonormal bases, so that nothing is squared before it must be.

With ``A = [E, T]`` the weighted regressors, ``Q_A R_A`` their QR factorisation and ``[Q_E, Q_Z]`` an orthonormal basis of the
exogenous columns ``E`` and the instruments, two-stage least squares is

    b = R_A^-1 g,    g_E = Q_E' y,    g_T = argmin |Q_Z' y - W g_T|,    W = Q_Z' Q_T,

and its residuals are ``e = y - Q_A g``, without the cancellation of large coefficients of nearly collinear columns.
The singular values of ``W`` are the partial canonical correlations of treatments and instruments. Least squares has ``W = I``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Coefficients of columns of length one, and what their covariance is made of.

    Parameters
    ----------
    coefficients : array (k,)
        ``b``.
    residuals : array (n,)
        ``e``, of the structural equation, times the root weights.
    basis : array (n, k)
        ``P``: orthonormal, of the regressors as instruments and exogenous columns predict them. ``P' e = 0``.
    spread : array (k, k)
        ``H``, triangular by blocks: ``b = H P' y``, and the covariance of ``b`` is ``H S H'`` for one ``S`` of ``P' e``.
    """

    coefficients: Array
    residuals: Array
    basis: Array
    spread: Array

    @property
    def condition(self) -> float:
        """Two-norm condition number of the predicted regressors, each in the unit in which the regressor has length one."""
        values = np.linalg.svd(self.spread, compute_uv=False)
        return float(values[0] / values[-1])

    def loose(self) -> Array:
        """The direction (k,), of length one, in which the coefficients are determined least."""
        return np.asarray(np.linalg.svd(self.spread)[0][:, 0])


def correlations(regressors: Array, instruments: Array) -> tuple[Array, Array]:
    """Partial canonical correlations (k,), descending, of orthonormal ``Q_T`` (n, k) and ``Q_Z`` (n, q >= k), and directions.

    Directions are rows of a (k, k) matrix, in the basis ``Q_T``.
    """
    _, values, directions = np.linalg.svd(instruments.T @ regressors, full_matrices=False)
    return values, directions


def least_squares(outcome: Array, *, basis: Array, triangle: Array) -> LinearFit:
    """Of ``y`` (n,) on columns with the QR factorisation ``basis`` (n, k) times ``triangle`` (k, k), which has full rank."""
    coordinates = basis.T @ outcome
    residuals = outcome - basis @ coordinates
    correction = basis.T @ residuals  # what rounding left
    residuals = residuals - basis @ correction
    spread = linalg.solve_triangular(triangle, np.eye(len(triangle)))
    coefficients = linalg.solve_triangular(triangle, coordinates + correction)
    return LinearFit(coefficients, residuals, basis, spread)


def two_stage_least_squares(
    outcome: Array, *, regressors: Array, triangle: Array, instruments: Array, exogenous: int
) -> LinearFit:
    """Of ``y`` (n,) on ``[E, T]`` with instruments ``[E, Z]``.

    Parameters
    ----------
    outcome : array (n,)
    regressors : array (n, k)
        ``Q_A``, whose first ``exogenous`` columns are a basis of ``E``.
    triangle : array (k, k)
        ``R_A``, of full rank.
    instruments : array (n, q)
        ``Q_Z``: an orthonormal basis of what ``E`` leaves of the instruments.
    exogenous : int

    Returns
    -------
    LinearFit

    Notes
    -----
    O(n (k + q) k). One step of refinement, at the cost of a second pass, takes out what rounding left in ``P' e``.
    """
    own, endogenous = regressors[:, :exogenous], regressors[:, exogenous:]
    left, right = np.linalg.qr(instruments.T @ endogenous)
    predicted = instruments @ left
    basis = np.concatenate([own, predicted], axis=1)
    coordinates, residuals = np.zeros(regressors.shape[1]), outcome
    for _ in range(2):
        step = np.concatenate([own.T @ residuals, linalg.solve_triangular(right, predicted.T @ residuals)])
        coordinates, residuals = coordinates + step, residuals - regressors @ step
    spread = np.eye(len(triangle))
    spread[exogenous:, exogenous:] = linalg.solve_triangular(right, np.eye(len(right)))
    spread = linalg.solve_triangular(triangle, spread)
    return LinearFit(linalg.solve_triangular(triangle, coordinates), residuals, basis, spread)


def covariance_root(spread: Array, scores: Array) -> Array:
    """``L`` (k, k) with ``H S H' = L L'``, for a positive semidefinite covariance ``S`` (k, k) of the scores.

    Directions to which rounding gives a negative variance get none.
    """
    values, vectors = np.linalg.eigh((scores + scores.T) / 2)
    return np.asarray(spread @ (vectors * np.sqrt(np.maximum(values, 0.0))))
