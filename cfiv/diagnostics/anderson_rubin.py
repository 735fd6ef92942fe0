"""What do the data say of the effect, however weak the instruments? The Anderson-Rubin test and its confidence sets."""

from __future__ import annotations

import numpy as np
from scipy import stats

from cfiv.arrays import numeric_array
from cfiv.data import Array
from cfiv.diagnostics.inversion import Intervals, quadratic_set, ratio_set
from cfiv.diagnostics.linear_problem import SINGULAR_REASON, LinearProblem, is_invertible
from cfiv.diagnostics.results import ConfidenceSet, Diagnostic, TestResult, Unavailable, conclude
from cfiv.errors import DataError
from cfiv.estimators.fitted_regression import OUT_OF_RANGE, in_units


def anderson_rubin(problem: LinearProblem, coefficients: Array | None = None, *, significance: float) -> Diagnostic:
    """Test that the treatments have given coefficients, valid however weak the instruments are.

    ``AR(b) = g' S^-1 g / q`` with ``g = Q' (Y - T b)`` and ``S`` the covariance of ``g`` at the residuals of ``Y - T b`` on
    instruments and covariates: the F test that the instruments do not predict ``Y - T b``. F(q, n - p - q), or F(q, G - 1) with
    G clusters.

    Parameters
    ----------
    problem : LinearProblem
    coefficients : array (k,), optional
        By default zeros: no effect.
    significance : float
        One minus the level, for the reading.

    Notes
    -----
    Robust covariances need many rows (clusters) for each instrument: with few, the test rejects too often, and sets may be
    empty for no other reason.

    References
    ----------
    Anderson and Rubin, "Estimation of the parameters of a single equation in a complete system of stochastic equations",
    *Annals of Mathematical Statistics* 20, 1949. Robust: Stock and Wright, "GMM with weak identification", *Econometrica* 68,
    2000.
    """
    name = "Anderson-Rubin"
    if problem.singular:
        return Unavailable(name, problem.singular)
    _, k, q = problem.shape
    values = np.zeros(k) if coefficients is None else numeric_array("coefficients", coefficients).astype(np.float64)
    if values.shape != (k,):
        raise DataError(f"coefficients must be one number a treatment, shape ({k},), got shape {values.shape}")
    left = problem.outcome - problem.treatment @ np.ldexp(values, -problem.powers)
    moments, noise = problem.instruments.T @ left, problem.noise(left)
    covariance = problem.moment_covariance(noise, noise)
    if not is_invertible(covariance):
        return Unavailable(name, SINGULAR_REASON)
    statistic = float(moments @ np.linalg.solve(covariance, moments)) / q
    p_value = float(stats.f.sf(statistic, q, problem.wald_dof))
    effect = "no effect" if not values.any() else "an effect of " + ", ".join(f"{value:g}" for value in values)
    return TestResult(
        name,
        f"{effect} ({', '.join(problem.treatment_names)}), and valid instruments",
        statistic,
        f"F({q}, {problem.wald_dof})",
        p_value,
        conclude(
            p_value,
            significance=significance,
            rejected=f"the hypothesis of {effect} is rejected, however weak the instruments are",
            kept=f"the hypothesis of {effect} is not rejected",
        ),
    )


def anderson_rubin_sets(problem: LinearProblem, *, level: float) -> tuple[ConfidenceSet | Unavailable, ...]:
    """Confidence sets, one a treatment: the coefficients that the Anderson-Rubin test does not reject.

    For one treatment the test is inverted exactly. Unadjusted, ``AR(b) <= c`` is a quadratic inequality in ``b``; robust and
    clustered, the ends are eigenvalues of the quadratic matrix polynomial ``S(b) - g(b) g(b)' / (c q)``, and all are found.
    For several treatments and the unadjusted covariance, each coefficient's set is the shadow of the quadric
    ``min over the others of AR(b) <= c``, with q - k + 1 numerator degrees of freedom (Guggenberger et al.).

    Parameters
    ----------
    problem : LinearProblem
    level : float
        Of the sets, for instance 0.95.

    Returns
    -------
    tuple of ConfidenceSet or Unavailable
        In the order of the treatments. A set may be unbounded, the whole line or empty; Unavailable for several treatments
        unless unadjusted, and for too few clusters.

    References
    ----------
    Dufour and Taamouti, "Projection-based statistical inference in linear structural models with possibly weak instruments",
    *Econometrica* 73, 2005. Guggenberger, Kleibergen, Mavroeidis and Chen, "On the asymptotic sizes of subset Anderson-Rubin
    and Lagrange multiplier tests in linear instrumental variables regression", *Econometrica* 80, 2012.
    """
    _, k, q = problem.shape
    names = tuple(f"Anderson-Rubin set ({name})" for name in problem.treatment_names)
    if problem.singular:
        return tuple(Unavailable(name, problem.singular) for name in names)
    if problem.covariance.kind == "unadjusted":
        numerator = q - k + 1
        critical = float(stats.f.ppf(level, numerator, problem.dof)) * numerator / problem.dof
        return tuple(_set(name, level, _shadow(problem, j, critical)) for j, name in enumerate(names))
    if k > 1:
        reason = "for several treatments it is computed with covariance='unadjusted' only"
        return tuple(Unavailable(name, reason) for name in names)
    critical = float(stats.f.ppf(level, q, problem.wald_dof)) * q
    # In units in which outcome and treatment have length one, so that no end is lost to rounding.
    lengths = [float(np.linalg.norm(column)) for column in (problem.outcome, problem.treatment[:, 0])]
    parts = (problem.outcome / lengths[0], -problem.treatment[:, 0] / lengths[1])
    moments = [problem.instruments.T @ part for part in parts]
    noise = [problem.noise(part) for part in parts]
    cross = problem.moment_covariance(noise[0], noise[1])
    covariances = (
        problem.moment_covariance(noise[0], noise[0]),
        cross + cross.T,
        problem.moment_covariance(noise[1], noise[1]),
    )
    intervals = ratio_set(moments[0], moments[1], covariances, critical)
    unit = lengths[0] / lengths[1]
    return (_set(names[0], level, _scaled(intervals, unit, problem.powers[0])),)


def _set(name: str, level: float, intervals: Intervals | None) -> ConfidenceSet | Unavailable:
    return Unavailable(name, f"its ends {OUT_OF_RANGE}") if intervals is None else ConfidenceSet(name, level, intervals)


def _scaled(intervals: Intervals, unit: float, power: int) -> Intervals | None:
    """Ends times ``2^power unit``; None where float64 has no such numbers."""
    ends = np.array(intervals).reshape(-1, 2) * unit
    finite = np.isfinite(ends)
    numbers = in_units(np.where(finite, ends, 0.0), np.asarray(power))
    if numbers is None:
        return None
    return tuple((float(lower), float(upper)) for lower, upper in np.where(finite, numbers, ends))


def _shadow(problem: LinearProblem, j: int, critical: float) -> Intervals | None:
    """Values of coefficient j for which some values of the others satisfy ``|Q'u|^2 <= critical |(I - QQ')u|^2``."""
    order = [j, *(i for i in range(problem.shape[1]) if i != j)]
    columns = np.column_stack([problem.treatment[:, order], problem.outcome])
    lengths = np.linalg.norm(columns, axis=0)
    columns = columns / lengths
    explained, noise = problem.instruments.T @ columns, problem.noise(columns)
    form = explained.T @ explained - critical * noise.T @ noise  # of (b_j, b_others, -1)
    others = slice(1, problem.shape[1])
    within = form[others, others]
    if within.size:
        if np.linalg.eigvalsh(within)[0] <= 0:  # unbounded below in the others: every value of b_j will do
            return ((-np.inf, np.inf),)
        ends = [0, problem.shape[1]]
        form = form[np.ix_(ends, ends)] - form[ends, others] @ np.linalg.solve(within, form[others, ends])
    unit = lengths[-1] / lengths[0]
    intervals = quadratic_set(a=form[0, 0], b=-2 * form[0, 1], c=form[1, 1])
    return _scaled(intervals, unit, problem.powers[j])
