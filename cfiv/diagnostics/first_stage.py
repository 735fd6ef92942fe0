"""Are the instruments strong? F statistics of the first stage ``T = Z Pi + X c + v``, one treatment at a time."""

from __future__ import annotations

import numpy as np
from scipy import stats

from cfiv.data import Array
from cfiv.diagnostics.linear_problem import SINGULAR_REASON, LinearProblem, is_invertible
from cfiv.diagnostics.results import CriticalValue, Diagnostic, TestResult, Unavailable, conclude

#: Worst-case relative biases of two-stage least squares for which critical values of the effective F are given.
BIASES = (0.05, 0.10, 0.20, 0.30)
#: The one that readings use.
BIAS = 0.10


def partial_f(problem: LinearProblem, *, significance: float) -> tuple[Diagnostic, ...]:
    """F tests, one a treatment, that the instruments do not move it given the covariates.

    ``F_j = pi_j' V_j^-1 pi_j / q`` with ``V_j`` the covariance of the q first-stage coefficients: F(q, n - p - q)
    when unadjusted or robust (with HC1's factor), F(q, G - 1) with G clusters.

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level, for the readings.

    Returns
    -------
    tuple of TestResult
        In the order of the treatment columns.

    Notes
    -----
    With several treatments each F may be large while the treatments are not identified apart: see :func:`conditional_f`.
    """
    _, _, q = problem.shape
    if problem.singular:
        return tuple(Unavailable(f"Partial F ({name})", problem.singular) for name in problem.treatment_names)
    results: list[Diagnostic] = []
    coefficients, residuals = problem.instruments.T @ problem.treatment, problem.noise(problem.treatment)
    for j, name in enumerate(problem.treatment_names):
        covariance = problem.moment_covariance(residuals[:, j], residuals[:, j])
        if not is_invertible(covariance):
            results.append(Unavailable(f"Partial F ({name})", SINGULAR_REASON))
            continue
        statistic = float(coefficients[:, j] @ np.linalg.solve(covariance, coefficients[:, j])) / q
        p_value = float(stats.f.sf(statistic, q, problem.wald_dof))
        results.append(
            TestResult(
                f"Partial F ({name})",
                f"given the covariates, the instruments do not move {name}",
                statistic,
                f"F({q}, {problem.wald_dof})",
                p_value,
                conclude(
                    p_value,
                    significance=significance,
                    rejected=f"the instruments move {name}; whether strongly enough is for the tests below",
                    kept=f"there is no sign that the instruments move {name}",
                ),
            )
        )
    return tuple(results)


def conditional_f(problem: LinearProblem, *, significance: float) -> tuple[TestResult, ...]:
    """Conditional F of Sanderson and Windmeijer, one a treatment, where there are several; homoskedastic.

    With ``e_j = T_j - T_-j d_j``, ``d_j`` by two-stage least squares, ``F_j = (n - p - q) / (q - k + 1) * e_j' P e_j /
    e_j' (I - P) e_j``, ``P`` the projection on the instruments; F(q - k + 1, n - p - q) where treatment j is not identified
    apart from the others.

    Returns
    -------
    tuple of TestResult
        Empty for one treatment, whose partial F says the same.

    References
    ----------
    Sanderson and Windmeijer, "A weak instrument F-test in linear IV models with multiple endogenous variables", *Journal of
    Econometrics* 190, 2016, section 3.
    """
    _, k, q = problem.shape
    if k == 1:
        return ()
    numerator, results = q - k + 1, []
    treatment = problem.treatment / np.linalg.norm(problem.treatment, axis=0)
    fitted = problem.instruments.T @ treatment
    for j, name in enumerate(problem.treatment_names):
        others = np.delete(np.arange(k), j)
        weights = np.linalg.lstsq(fitted[:, others], fitted[:, j], rcond=None)[0]
        left = treatment[:, j] - treatment[:, others] @ weights
        explained = problem.instruments.T @ left
        unexplained = problem.noise(left)
        statistic = float(explained @ explained / numerator / (unexplained @ unexplained / problem.dof))
        p_value = float(stats.f.sf(statistic, numerator, problem.dof))
        results.append(
            TestResult(
                f"Conditional F ({name})",
                f"the instruments do not move {name} apart from the other treatments",
                statistic,
                f"F({numerator}, {problem.dof})",
                p_value,
                conclude(
                    p_value,
                    significance=significance,
                    rejected=f"the instruments move {name} apart from the other treatments, which does not say how strongly "
                    "(homoskedastic test)",
                    kept=f"there is no sign that the instruments move {name} apart from the other treatments",
                ),
            )
        )
    return tuple(results)


def effective_f(problem: LinearProblem, *, significance: float = 0.05) -> Diagnostic:
    """Effective F of Montiel Olea and Pflueger, for one treatment, under any of the covariances.

    ``F_eff = |Q' T|^2 / tr(W)`` with orthonormal instruments ``Q`` and ``W`` the covariance of ``Q' T``; equal to the partial F
    where that is unadjusted or there is one instrument. Weak instruments are those whose Nagar bias may exceed a share ``tau``
    of the worst case. Critical values at 5 % are the *simplified, conservative* ones, ``c = x_0.95 / K``, with ``x_0.95`` the
    quantile of a noncentral chi-square with ``K`` degrees of freedom and noncentrality ``K / tau`` (Patnaik's two moments), and
    ``K = tr(W)^2 (1 + 2 / tau) / (tr(W'W) + 2 / tau tr(W) max eigenvalue(W))``.

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level at which the reading calls instruments irrelevant.

    Returns
    -------
    TestResult
        Whose critical value and p-value are those for ``tau = 10 %``; values for 5, 10, 20 and 30 % are in
        ``critical_values``. With several treatments an Unavailable. The reading calls instruments strong above the value for
        10 %, weak below that for 30 %, and says that they may be weak between. It calls them irrelevant, or as good as, where
        the partial F finds no sign of them: exactly where the Anderson-Rubin set of one minus ``significance`` has no bounds.

    Notes
    -----
    The critical values that maximise the bias over the coefficient are at most these. Significance is 5 % whatever the level of
    the other tests, as published.

    References
    ----------
    Montiel Olea and Pflueger, "A robust test for weak instruments", *Journal of Business & Economic Statistics* 31, 2013,
    sections 3 and 4. Unbounded sets: Dufour, "Some impossibility theorems in econometrics with applications to structural and
    dynamic models", *Econometrica* 65, 1997.
    """
    name = "Effective F"
    if problem.shape[1] > 1:
        return Unavailable(name, "it is defined for one treatment; see the conditional F of each")
    if problem.singular:
        return Unavailable(name, problem.singular)
    moments, noise = problem.instruments.T @ problem.treatment[:, 0], problem.noise(problem.treatment[:, 0])
    covariance = problem.moment_covariance(noise, noise)
    statistic = float(moments @ moments / np.trace(covariance))
    values = tuple(
        CriticalValue(effective_f_critical(covariance, bias=bias), f"worst-case bias above {100 * bias:g} % rejected at 5 %")
        for bias in BIASES
    )
    critical = values[BIASES.index(BIAS)].value
    k_eff = _effective_dof(covariance, BIAS)
    return TestResult(
        name,
        f"the worst-case bias of two-stage least squares exceeds {100 * BIAS:g} %",
        statistic,
        f"chi2({k_eff:.3g}, nc {k_eff / BIAS:.3g}) / {k_eff:.3g}",
        float(stats.ncx2.sf(k_eff * statistic, k_eff, k_eff / BIAS)),
        _strength(problem, statistic, {bias: value.value for bias, value in zip(BIASES, values, strict=True)}, significance),
        critical,
        values,
    )


def _strength(problem: LinearProblem, statistic: float, critical: dict[float, float], significance: float) -> str:
    """The reading of an effective F beside its critical values."""

    def held_against(bias: float) -> str:
        verdict = "exceeds" if statistic > critical[bias] else "does not exceed"
        return f"It {verdict} {critical[bias]:.4g}, the 5 % critical value for a worst-case bias of {100 * bias:g} %"

    if statistic > critical[BIAS]:
        return f"{held_against(BIAS)}, so the instruments are not weak."
    verb, bias = ("may be", BIAS) if statistic > critical[BIASES[-1]] else ("are", BIASES[-1])
    moved = partial_f(problem, significance=significance)[0]
    if isinstance(moved, TestResult) and not moved.rejects(significance):
        return (
            f"{held_against(bias)}, and there is no sign that the instruments move the treatment: they are irrelevant, or as "
            "good as, so that a two-stage estimate says nothing and the Anderson-Rubin set has no bounds."
        )
    return f"{held_against(bias)}, so the instruments {verb} weak: prefer the Anderson-Rubin set to standard errors."


def effective_f_critical(covariance: Array, *, bias: float, significance: float = 0.05) -> float:
    """Simplified critical value of the effective F; see :func:`effective_f`.

    Parameters
    ----------
    covariance : array (q, q)
        Of the first-stage coefficients on orthonormal instruments; only its shape matters, not its scale.
    bias : float
        The share ``tau`` of the worst-case bias.
    significance : float
    """
    k_eff = _effective_dof(covariance, bias)
    return float(stats.ncx2.isf(significance, k_eff, k_eff / bias)) / k_eff


def _effective_dof(covariance: Array, bias: float) -> float:
    trace = float(np.trace(covariance))
    largest = float(np.linalg.eigvalsh(covariance)[-1])
    squares = float((covariance * covariance).sum())
    return trace**2 * (1 + 2 / bias) / (squares + 2 / bias * trace * largest)
