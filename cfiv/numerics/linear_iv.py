"""k-class and ordinary least squares in orthonormal bases, so that nothing is squared before it must be.

With ``A = [E, T]`` the weighted regressors, ``Q_A R_A`` their QR factorisation and ``[Q_E, Q_Z]`` an orthonormal basis of the
exogenous columns ``E`` and the instruments, the k-class estimator ``b`` with ``A' (I - kappa M) (y - A b) = 0``, ``M`` the
projection off ``[E, Z]``, is

    b = R_A^-1 g,    g_E = Q_E' y,    (kappa W' W - (kappa - 1) I) g_T = kappa W' Q_Z' y - (kappa - 1) Q_T' y,    W = Q_Z' Q_T,

and its residuals are ``e = y - Q_A g``, without the cancellation of large coefficients of nearly collinear columns.
Two-stage least squares has ``kappa = 1``, and so ``g_T = argmin |Q_Z' y - W g_T|``; LIML has the least ``kappa`` at which the
matrix of ``[y, T]`` in the place of ``T`` is singular. The singular values of ``W`` are the partial canonical correlations of
treatments and instruments. Least squares has ``W = I``.
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
        ``P``: orthonormal, of the regressors as instruments and exogenous columns predict them.
    spread : array (k, k)
        ``H``: the covariance of ``b`` is ``H S H'`` for one ``S`` of ``P' e``.
    predicted : array (k, k)
        ``C``: the regressors as predicted are ``P C``.
    homoskedastic : array (k, k)
        ``S`` where all errors have variance one, ``(C H)^-1``: the identity but for LIML.
    excess : float
        ``kappa - 1``.
    """

    coefficients: Array
    residuals: Array
    basis: Array
    spread: Array
    predicted: Array
    homoskedastic: Array
    excess: float = 0.0

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
    return LinearFit(coefficients, residuals, basis, spread, triangle, np.eye(len(triangle)))


def k_class(
    outcome: Array, *, regressors: Array, triangle: Array, instruments: Array, exogenous: int, excess: float = 0.0
) -> LinearFit:
    """Of ``y`` (n,) on ``[E, T]`` with instruments ``[E, Z]``: two-stage least squares, or LIML and its kin.

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
    excess : float
        ``kappa - 1``: 0 of two-stage least squares, :func:`liml_excess` of LIML.

    Returns
    -------
    LinearFit

    Notes
    -----
    O(n (k + q) k). One step of refinement, at the cost of a second pass, takes out what rounding left in the normal equations.
    With ``W = U V`` (QR) they are ``V' G V g_T = V' (kappa U' Q_Z' y) - (kappa - 1) Q_T' y``, ``G = kappa I - (kappa - 1)
    (V V')^-1``. The covariance, as in Stata and linearmodels, takes the scores of the regressors that the instruments predict.
    """
    own, endogenous = regressors[:, :exogenous], regressors[:, exogenous:]
    left, right = np.linalg.qr(instruments.T @ endogenous)
    predicted = instruments @ left
    back = linalg.solve_triangular(right, np.eye(len(right)))
    weight = (1 + excess) * np.eye(len(right)) - excess * (back.T @ back)
    spread, homoskedastic = np.eye(len(triangle)), np.eye(len(triangle))
    spread[exogenous:, exogenous:] = np.linalg.solve(weight, back.T).T
    homoskedastic[exogenous:, exogenous:] = weight
    coordinates, residuals = np.zeros(regressors.shape[1]), outcome
    for _ in range(2):
        scores = predicted.T @ residuals
        if excess:
            scores = (1 + excess) * scores - excess * (back.T @ (endogenous.T @ residuals))
        step = np.concatenate([own.T @ residuals, linalg.solve_triangular(right, np.linalg.solve(weight, scores))])
        coordinates, residuals = coordinates + step, residuals - regressors @ step
    return LinearFit(
        coefficients=linalg.solve_triangular(triangle, coordinates),
        residuals=residuals,
        basis=np.concatenate([own, predicted], axis=1),
        spread=linalg.solve_triangular(triangle, spread),
        predicted=np.concatenate([triangle[:exogenous], right @ triangle[exogenous:]]),
        homoskedastic=homoskedastic,
        excess=excess,
    )


def liml_excess(outcome: Array, *, regressors: Array, instruments: Array, exogenous: int) -> float:
    """``kappa - 1`` of LIML, with the parts of :func:`k_class`; infinite where instruments predict some combination exactly.

    ``kappa = min_v |M_E [y, T] v|^2 / |M [y, T] v|^2``, ``M_E`` the projection off ``E``. With ``O`` an orthonormal basis of
    ``M_E [y, T]`` it is ``1 / (1 - s^2)``, ``s`` the least singular value of ``Q_Z' O``: zero, and so ``kappa = 1``, for as
    many instruments as treatments.

    Reference: Anderson and Rubin, "Estimation of the parameters of a single equation in a complete system of stochastic
    equations", *Annals of Mathematical Statistics* 20, 1949.
    """
    endogenous = regressors[:, exogenous:]
    if instruments.shape[1] == endogenous.shape[1]:
        return 0.0
    left = outcome - regressors @ (regressors.T @ outcome)
    left = left - regressors @ (regressors.T @ left)
    length = float(np.linalg.norm(left))
    if length == 0:  # a perfect fit
        return 0.0
    basis = np.concatenate([endogenous, left[:, None] / length], axis=1)
    least = float(np.linalg.svd(instruments.T @ basis, compute_uv=False)[-1]) ** 2
    return least / (1 - least) if least < 1 else np.inf


def covariance_root(spread: Array, scores: Array) -> Array:
    """``L = H S^(1/2)`` (k, k), for a positive semidefinite covariance ``S`` (k, k) of the scores.

    The symmetric root, so that rounding does not choose signs or an order of columns, and with them the draws of a band.
    Directions to which rounding gives a negative variance get none.
    """
    values, vectors = np.linalg.eigh((scores + scores.T) / 2)
    return np.asarray(spread @ (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
