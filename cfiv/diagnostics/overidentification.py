"""Do the instruments agree? Tests of the over-identifying restrictions ``E[Z' e] = 0``."""

from __future__ import annotations

import numpy as np
from scipy import stats

from cfiv.data import Array
from cfiv.diagnostics.linear_problem import SINGULAR_REASON, LinearProblem, is_invertible
from cfiv.diagnostics.results import Diagnostic, TestResult, Unavailable, conclude

NULL = "the instruments are valid and the model is linear: E[Z' e] = 0 at one coefficient vector"


def sargan(problem: LinearProblem, *, significance: float) -> Diagnostic:
    """Sargan's test: ``n |Q' e|^2 / e' e`` at the two-stage least-squares residuals ``e``; chi2(q - k), homoskedastic.

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level, for the reading.

    Returns
    -------
    TestResult or Unavailable
        Unavailable where there are as many instruments as treatments, or treatments are not identified.

    Notes
    -----
    The statistic of linearmodels' ``IVResults.sargan``, from the arrays that are partialled out already; but where covariates
    absorb a large share of the rows, ``n`` counts the others only (:meth:`LinearProblem.absorbed`).

    References
    ----------
    Sargan, "The estimation of economic relationships using instrumental variables", *Econometrica* 26, 1958.
    """
    name = "Sargan"
    reason = _exactly_identified(problem) or problem.unidentified
    if reason:
        return Unavailable(name, reason)
    residuals = problem.outcome - problem.treatment @ two_stage_least_squares(problem)
    moments = problem.instruments.T @ residuals
    return _result(
        name, len(residuals) * float(moments @ moments / (residuals @ residuals)), problem, significance, homoskedastic=True
    )


def hansen_j(problem: LinearProblem, *, significance: float) -> Diagnostic:
    """Hansen's J of efficient two-step GMM, ``g' S^-1 g`` at its minimum; chi2(q - k), robust or clustered.

    ``g = Q' (Y - T b)`` and ``S`` is the covariance of ``g`` at the two-stage least-squares residuals, without a small-sample
    factor.

    Returns
    -------
    TestResult or Unavailable
        Unavailable as Sargan's, for too few clusters, and for the unadjusted covariance, under which it is Sargan's.

    Notes
    -----
    Equal to linearmodels' ``IVGMM(...).fit().j_stat``, which has the exogenous columns' moments too: those are fitted exactly.
    Without them, clusters must outnumber the instruments only. Where covariates absorb a large share of the rows, it is
    smaller by that share, as Sargan's.

    References
    ----------
    Hansen, "Large sample properties of generalized method of moments estimators", *Econometrica* 50, 1982.
    """
    name = "Hansen J"
    reason = _exactly_identified(problem) or problem.unidentified or problem.singular
    if reason is None and problem.covariance.kind == "unadjusted":
        reason = "under the unadjusted covariance it is Sargan's test"
    if reason:
        return Unavailable(name, reason)
    first = problem.outcome - problem.treatment @ two_stage_least_squares(problem)
    covariance = problem.moment_covariance(first, first) / problem.moment_correction
    if not is_invertible(covariance):
        return Unavailable(name, SINGULAR_REASON)
    # S^-1 as a change of variables: minimise |L^-1 (Q'Y - Q'T b)|^2 with S = L L'.
    values, vectors = np.linalg.eigh(covariance)
    whitener = vectors.T / np.sqrt(values)[:, None]
    outcome, treatment = (whitener @ (problem.instruments.T @ part) for part in (problem.outcome, problem.treatment))
    left = outcome - treatment @ np.linalg.lstsq(treatment, outcome, rcond=None)[0]
    return _result(name, float(left @ left), problem, significance, homoskedastic=False)


def two_stage_least_squares(problem: LinearProblem) -> Array:
    """Coefficients of the treatments, (k,): least squares of ``Q' Y`` on ``Q' T``."""
    fitted = problem.instruments.T @ problem.treatment
    scale = np.linalg.norm(fitted, axis=0)
    solution = np.linalg.lstsq(fitted / scale, problem.instruments.T @ problem.outcome, rcond=None)[0] / scale
    return np.asarray(solution)


def _exactly_identified(problem: LinearProblem) -> str | None:
    _, k, q = problem.shape
    return f"exactly identified, {q} instrument{'s' * (q > 1)} for {k} treatment{'s' * (k > 1)}" if q == k else None


def _result(name: str, statistic: float, problem: LinearProblem, significance: float, *, homoskedastic: bool) -> TestResult:
    _, k, q = problem.shape
    factor, note = problem.discount_absorbed(homoskedastic=homoskedastic)
    statistic *= factor
    p_value = float(stats.chi2.sf(statistic, q - k))
    reading = conclude(
        p_value,
        significance=significance,
        rejected="the instruments contradict one another: one is invalid, effects are not linear, or they differ between "
        "those whom the instruments move",
        kept="the instruments do not contradict one another; all could still be invalid alike",
        note=note,
    )
    return TestResult(name, NULL, statistic, f"chi2({q - k})", p_value, reading)
