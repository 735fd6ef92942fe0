"""Are instruments needed? Tests that the treatments are exogenous."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from cfiv.diagnostics.linear_problem import EXACT, SINGULAR_REASON, LinearProblem
from cfiv.diagnostics.results import Diagnostic, TestResult, Unavailable, conclude
from cfiv.errors import IllConditionedWarning, SingularError
from cfiv.estimators.linear_regression import linear_regression

NULL = "the treatments are exogenous, so least squares is consistent"
#: Name in the table, attribute of the results.
TESTS = {
    "wu_hausman": ("Wu-Hausman", "wu_hausman"),
    "durbin": ("Durbin", "durbin"),
    "wooldridge": ("Wooldridge regression", "wooldridge_regression"),
}


def endogeneity(problem: LinearProblem, *, significance: float, strong: bool = True) -> dict[str, Diagnostic]:
    """Wu-Hausman and Durbin, homoskedastic, and Wooldridge's regression test, under the problem's covariance.

    Each adds the first-stage residuals ``v`` to the least-squares regression, ``Y = T b + X c + v g + u``, and tests ``g = 0``:
    Wu-Hausman by an F test, F(k, n - p - 2k); Durbin by its score form, chi2(k); Wooldridge by a Wald test with the robust or
    clustered covariance, chi2(k). The last two count all rows; where covariates absorb a large share of them, they are smaller
    by that share (:meth:`LinearProblem.absorbed`).

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level, for the readings.
    strong : bool
        Whether the instruments are; where they are weak the readings say that little is seen.

    Returns
    -------
    dict
        ``wu_hausman``, ``durbin`` and ``wooldridge``: a TestResult each, or Unavailable where treatments are not identified,
        first-stage residuals of several are collinear, or treatments and first-stage residuals leave nothing of the outcome.

    Notes
    -----
    They compare least squares with two-stage least squares, so they need strong and valid instruments: a large p-value with
    weak ones says little.

    References
    ----------
    Wooldridge, *Econometric Analysis of Cross Section and Panel Data*, 2nd ed., section 6.3.1. Hausman, "Specification tests in
    econometrics", *Econometrica* 46, 1978.
    """
    reason = problem.unidentified or _untestable(problem)
    if reason:
        return {key: Unavailable(name, reason) for key, (name, _) in TESTS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # of coefficients, which are not used
        regression = linear_regression(
            problem.data, instrumented=True, intercept=problem.intercept, covariance=problem.covariance
        )
    found: dict[str, Diagnostic] = {}
    for key, (name, attribute) in TESTS.items():
        try:
            found[key] = _result(name, _called(getattr(regression.results, attribute)), problem, significance, strong)
        except SingularError:
            found[key] = Unavailable(name, SINGULAR_REASON)
    return found


def _untestable(problem: LinearProblem) -> str | None:
    """Why first-stage residuals cannot be added to least squares, or nothing is left to test them with."""
    columns = np.column_stack([problem.treatment, problem.noise(problem.treatment)])
    basis, triangle = np.linalg.qr(columns / np.linalg.norm(columns, axis=0))
    if np.linalg.svd(triangle, compute_uv=False)[-1] <= EXACT:
        return "what the instruments leave of one treatment is a combination of what they leave of others"
    left = problem.outcome - basis @ (basis.T @ problem.outcome)
    if np.linalg.norm(left) <= EXACT * np.linalg.norm(problem.outcome):
        return "treatments and first-stage residuals leave nothing of the outcome, so there are no errors to test with"
    return None


def _called(test: Callable[[], Any] | Any) -> Any:
    """Tests are properties, and methods where a subset of the treatments can be tested."""
    return test() if callable(test) else test


def _result(name: str, test: Any, problem: LinearProblem, significance: float, strong: bool) -> TestResult:
    statistic, p_value = float(test.stat), float(test.pval)
    distribution = f"chi2({test.df})" if test.df_denom is None else f"F({test.df}, {test.df_denom})"
    factor, note = problem.discount_absorbed(homoskedastic=name == TESTS["durbin"][0])
    if test.df_denom is not None:  # an F counts coefficients by itself, but for those that were absorbed
        note = ""
        if problem.absorbed is not None:
            dof = test.df_denom - (problem.absorbed.rank - 1)
            statistic *= dof / test.df_denom
            p_value, distribution = float(stats.f.sf(statistic, test.df, dof)), f"F({test.df}, {dof})"
    elif note:
        statistic *= factor
        p_value = float(stats.chi2.sf(statistic, test.df))
    one = problem.shape[1] == 1
    reading = conclude(
        p_value,
        significance=significance,
        rejected=f"least squares and two-stage least squares differ: {'the' if one else 'a'} treatment is endogenous, the "
        "linear model is wrong, or an instrument is invalid",
        kept="least squares and two-stage least squares do not differ by more than noise"
        + ("" if strong else ", which says little with instruments this weak"),
        note=note,
    )
    return TestResult(name, NULL, statistic, distribution, p_value, reading)
