"""From a fit in scaled columns to coefficients and their covariance in the user's columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cfiv.data import Array
from cfiv.estimators.fitted_regression import Coefficients, FittedRegression
from cfiv.estimators.linear_columns import Columns, Exogenous
from cfiv.estimators.linear_results import LeastSquaresResults
from cfiv.estimators.small_sample import SmallSample
from cfiv.numerics import score_covariance
from cfiv.numerics.linear_iv import LinearFit, covariance_root, least_squares
from cfiv.numerics.scaled_columns import ScaledColumns, ranges

if TYPE_CHECKING:
    from cfiv.estimators.fixed_effects import Absorbed
    from cfiv.estimators.linear_regression import Covariance

#: Distance of a vector of ones from a span, relative to its length, below which it lies in it (linearmodels' tolerance).
IN_SPAN = 1.5e-8


def scaled_outcome(outcome: Array, exogenous: Exogenous) -> ScaledColumns:
    """The outcome (n,) as one column, centred where there is a constant."""
    return ScaledColumns.of(outcome[:, None], root=exogenous.root, centred=exogenous.centred)


def least_squares_results(
    outcome: Array,
    *,
    columns: Columns,
    exogenous: Exogenous,
    names: tuple[str, ...],
    covariance: Covariance,
    clusters: Array | None,
    absorbed: Absorbed | None,
) -> LeastSquaresResults:
    """Least squares of an outcome (n,) on independent columns that are called ``names``."""
    scaled = scaled_outcome(outcome, exogenous)
    fit = least_squares(scaled.values[:, 0], basis=columns.basis, triangle=columns.triangle)
    return LeastSquaresResults(
        fitted_regression(
            fit,
            outcome=scaled,
            columns=columns,
            exogenous=exogenous,
            names=names,
            covariance=covariance,
            clusters=clusters,
            absorbed=absorbed,
        )
    )


def fitted_regression(
    fit: LinearFit,
    *,
    outcome: ScaledColumns,
    columns: Columns,
    exogenous: Exogenous,
    names: tuple[str, ...],
    covariance: Covariance,
    clusters: Array | None,
    absorbed: Absorbed | None,
) -> FittedRegression:
    """Coefficients of columns ``D`` in the user's units, the root of their covariance, and residuals."""
    scale, centre = float(outcome.scales[0]), float(outcome.centres[0])
    bandwidth = None
    if covariance.kind == "kernel":
        bandwidth = _bandwidth(fit, columns.scaled, exogenous, covariance)
    n, k = fit.basis.shape
    small = covariance.small_sample(absorbed, rows=n, coefficients=k, clusters=clusters)
    scores = _score_covariance(fit, covariance, clusters, bandwidth, small)
    if absorbed is not None and len(small.groups) > 1:
        # Sums of residuals within groups are zero, so that the constant's variance would be that of their intersections, less
        # than zero: it counts as known.
        scores[0], scores[:, 0] = 0.0, 0.0
    coefficients = coefficients_of(
        fit, scores, outcome=outcome, columns=columns.scaled, constant=exogenous.constant, names=names
    )
    config: dict[str, Any] = {"debiased": bool(small.convention)}
    if covariance.kind == "kernel":
        config |= {"kernel": covariance.kernel, "bandwidth": bandwidth}
    if covariance.kind == "clustered":
        config["clusters"] = clusters
    root = exogenous.root
    constant_spanned = exogenous.centred or spans(columns.basis, root)
    plain = scale * outcome.values[:, 0] / root
    mean = float(root**2 @ plain / (root @ root)) if constant_spanned else 0.0
    single = np.flatnonzero(np.equal(*ranges(exogenous.columns)))
    return FittedRegression(
        coefficients=coefficients,
        residuals=scale * fit.residuals / root,
        outcome=plain - mean,
        centre=centre + mean,
        effects=np.zeros(n) if absorbed is None else np.ldexp(absorbed.outcome, -outcome.exponents[0]),
        power=int(outcome.exponents[0]),
        root_weights=root,
        has_constant=constant_spanned,
        constant_column=int(single[0]) if len(single) else None,
        cov_type=covariance.kind,
        cov_config=config,
        small_sample=small,
        absorbed=0 if absorbed is None else absorbed.rank - 1,
    )


def coefficients_of(
    fit: LinearFit,
    scores: Array,
    *,
    outcome: ScaledColumns,
    columns: ScaledColumns,
    constant: Array | None,
    names: tuple[str, ...],
) -> Coefficients:
    """In the user's units, with the root of their covariance, for one (k, k) of the scores ``P' e``.

    A column that was centred moves its centre to the constant: with ``sum_i a_i x_i = 1``,

        y = m_y + sum_j b_j s_y (x_j - m_j) / s_j
          = sum_j (b_j s_y / s_j) x_j + (m_y - sum_j b_j s_y m_j / s_j) sum_i a_i x_i.
    """
    scale, centre = float(outcome.scales[0]), float(outcome.centres[0])
    back = np.diag(scale / columns.scales)
    one = np.zeros(len(columns.scales))
    if constant is not None:
        one[: len(constant)] = constant
        back -= np.outer(one, scale * columns.centres / columns.scales)
    return Coefficients(
        names,
        back @ fit.coefficients + one * centre,
        back @ covariance_root(fit.spread, scores),
        outcome.exponents[0] - columns.exponents,
    )


def _score_covariance(
    fit: LinearFit, covariance: Covariance, clusters: Array | None, bandwidth: int | None, small: SmallSample
) -> Array:
    """Of ``P' e``, (k, k), with its factor for small samples."""
    n, factor = len(fit.basis), small.factor
    if covariance.kind == "unadjusted":
        return np.asarray(factor * (fit.residuals @ fit.residuals) / n * fit.homoskedastic)
    scores = fit.basis * fit.residuals[:, None]
    if covariance.kind == "clustered":
        assert clusters is not None
        return factor * score_covariance.clustered_ways(scores, list(clusters.reshape(n, -1).T), small.of_groups)
    if bandwidth is not None:
        return factor * score_covariance.autocorrelated(scores, kernel=covariance.kernel, bandwidth=bandwidth)
    return factor * score_covariance.robust(scores)


def _bandwidth(fit: LinearFit, scaled: ScaledColumns, exogenous: Exogenous, covariance: Covariance) -> int:
    """As given, or chosen from the sum of the regressors' scores, in the user's units and without the constant's."""
    if covariance.bandwidth is not None:
        return int(covariance.bandwidth)
    powers = scaled.exponents - int(scaled.exponents.max())
    predicted = fit.basis @ fit.predicted * scaled.scales + exogenous.root[:, None] * scaled.centres
    predicted = np.ldexp(predicted, powers)
    if predicted.shape[1] > 1 and spans(fit.basis, np.ones(len(predicted))):
        # With indicators of all categories for a constant, that of the rarest, as linearmodels has it.
        least = np.argmin(predicted.var(axis=0) / np.abs(predicted).max(axis=0))
        predicted = np.delete(predicted, least, axis=1)
    return score_covariance.chosen_bandwidth(predicted.sum(axis=1) * fit.residuals, covariance.kernel)


def spans(basis: Array, vector: Array) -> bool:
    """Whether a vector (n,), such as that of ones, lies in the span of an orthonormal basis (n, k), k < n."""
    left = vector - basis @ (basis.T @ vector)
    return bool(np.linalg.norm(left) <= IN_SPAN * np.linalg.norm(vector))
