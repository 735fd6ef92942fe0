"""Are instruments needed? Tests that the treatments are exogenous."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from cfiv.diagnostics.linear_problem import SINGULAR_REASON, LinearProblem
from cfiv.diagnostics.results import Diagnostic, TestResult, Unavailable, decided
from cfiv.errors import IllConditionedWarning, SingularError
from cfiv.estimators.linear_regression import linear_regression

NULL = "the treatments are exogenous, so least squares is consistent"
#: Name in the table, attribute of the results.
TESTS = {
    "wu_hausman": ("Wu-Hausman", "wu_hausman"),
    "durbin": ("Durbin", "durbin"),
    "wooldridge": ("Wooldridge regression", "wooldridge_regression"),
}


def endogeneity(problem: LinearProblem, *, significance: float) -> dict[str, Diagnostic]:
    """Wu-Hausman and Durbin, homoskedastic, and Wooldridge's regression test, under the problem's covariance.

    Each adds the first-stage residuals ``v`` to the least-squares regression, ``Y = T b + X c + v g + u``, and tests ``g = 0``:
    Wu-Hausman by an F test, F(k, n - p - 2k); Durbin by its score form, chi2(k); Wooldridge by a Wald test with the robust or
    clustered covariance, chi2(k).

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level, for the readings.

    Returns
    -------
    dict
        ``wu_hausman``, ``durbin`` and ``wooldridge``: a TestResult each, or Unavailable where treatments are not identified.

    Notes
    -----
    They compare least squares with two-stage least squares, so they need strong and valid instruments: a large p-value with
    weak ones says little.

    References
    ----------
    Wooldridge, *Econometric Analysis of Cross Section and Panel Data*, 2nd ed., section 6.3.1. Hausman, "Specification tests in
    econometrics", *Econometrica* 46, 1978.
    """
    if problem.unidentified:
        return {key: Unavailable(name, problem.unidentified) for key, (name, _) in TESTS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # of coefficients, which are not used
        regression = linear_regression(
            problem.data, instrumented=True, intercept=problem.intercept, covariance=problem.covariance
        )
    found: dict[str, Diagnostic] = {}
    for key, (name, attribute) in TESTS.items():
        try:
            found[key] = _result(name, _called(getattr(regression.results, attribute)), problem, significance)
        except SingularError:
            found[key] = Unavailable(name, SINGULAR_REASON)
    return found


def _called(test: Callable[[], Any] | Any) -> Any:
    """Tests are properties, and methods where a subset of the treatments can be tested."""
    return test() if callable(test) else test


def _result(name: str, test: Any, problem: LinearProblem, significance: float) -> TestResult:
    p_value = float(test.pval)
    distribution = f"chi2({test.df})" if test.df_denom is None else f"F({test.df}, {test.df_denom})"
    one = problem.shape[1] == 1
    reading = decided(
        p_value,
        significance=significance,
        rejected=f"least squares and two-stage least squares differ: the treatment{' is' if one else 's are'} endogenous, or "
        "the linear model is wrong",
        kept="least squares and two-stage least squares do not differ by more than noise",
    )
    return TestResult(name, NULL, float(test.stat), distribution, p_value, reading)
