"""Are all treatments identified together? Rank tests of the first stage ``T = Z Pi + X c + v``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from cfiv.diagnostics.linear_problem import SINGULAR_REASON, LinearProblem
from cfiv.diagnostics.results import CriticalValue, Diagnostic, TestResult, Unavailable, conclude

#: Stock and Yogo (2005), table 5.2: one treatment, 1 to 10 instruments; the 5 % Wald test of 2SLS has a size of at most 10 %.
STOCK_YOGO_SIZE_10 = (16.38, 19.93, 22.30, 24.58, 26.87, 29.18, 31.50, 33.84, 36.19, 38.54)


def cragg_donald(problem: LinearProblem) -> TestResult:
    """Cragg-Donald F: ``(n - p - q) / q * r^2 / (1 - r^2)``, ``r`` the smallest partial canonical correlation.

    The smallest eigenvalue of the first stage's F matrix; homoskedastic. It is held against the critical value of Stock and
    Yogo (10 % maximal size of the 5 % Wald test) where there is one treatment and at most 10 instruments.

    References
    ----------
    Cragg and Donald, "Testing identifiability and specification in instrumental variable models", *Econometric Theory* 9, 1993.
    Stock and Yogo, "Testing for weak instruments in linear IV regression", 2005, table 5.2.
    """
    _, k, q = problem.shape
    statistic = problem.dof / q * problem.strength
    critical = STOCK_YOGO_SIZE_10[q - 1] if k == 1 and q <= len(STOCK_YOGO_SIZE_10) else None
    if critical is None:
        reading = "Larger is stronger; Stock and Yogo's table is not given here for this number of treatments and instruments."
    else:
        verdict = "exceeds" if statistic > critical else "does not exceed"
        reading = (
            f"It {verdict} Stock and Yogo's {critical:g}, above which a 5 % Wald test rejects at most 10 % of true nulls "
            "(homoskedastic errors)."
        )
    values = () if critical is None else (CriticalValue(critical, "size of the 5 % Wald test above 10 % rejected at 5 %"),)
    return TestResult(
        "Cragg-Donald F",
        "the 5 % Wald test of two-stage least squares may reject more than 10 % of true nulls",
        statistic,
        "",
        None,
        reading,
        critical,
        values,
    )


def kleibergen_paap(problem: LinearProblem, *, significance: float) -> tuple[Diagnostic, Diagnostic]:
    """Kleibergen-Paap rk tests that the first stage has not its full rank: the LM statistic and the Wald F.

    The LM statistic is chi2(q - k + 1) where a treatment is not identified (Anderson's canonical correlation statistic when
    unadjusted); where covariates absorb a large share of the rows, it is smaller by that share. The Wald F is the robust
    counterpart of the Cragg-Donald F, and has neither a distribution nor critical values of its own. linearmodels computes
    both.

    References
    ----------
    Kleibergen and Paap, "Generalized reduced rank tests using the singular value decomposition", *Journal of Econometrics* 133,
    2006.
    """
    from linearmodels.iv.common import kleibergen_paap as rk_lm
    from linearmodels.iv.common import kleibergen_paap_f as rk_wald_f

    n, k, q = problem.shape
    config: dict[str, Any] = {"clusters": problem.clusters} if problem.covariance.kind == "clustered" else {}
    if problem.covariance.kind == "kernel":
        config = {"kernel": problem.covariance.kernel, "bandwidth": problem.covariance.bandwidth}
    two_ways = problem.clusters is not None and problem.clusters.ndim > 1
    scaled = problem.treatment / np.linalg.norm(problem.treatment, axis=0)

    def compute(statistic: Callable[..., Any]) -> Any:
        """What linearmodels says of the partialled-out arrays; None where the covariance is singular."""
        if problem.singular or two_ways:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # it warns where it takes a generalised inverse
            try:
                return statistic(scaled, problem.instruments, np.empty((n, 0)), problem.covariance.kind, config)
            except UserWarning:
                return None

    what = "the treatment" if k == 1 else "every treatment"
    null = f"the instruments do not identify {what} (reduced rank)"
    reason = problem.singular or ("it is not computed for two kinds of clusters" if two_ways else SINGULAR_REASON)
    lm, wald_f = compute(rk_lm), compute(rk_wald_f)
    found: list[Diagnostic] = [Unavailable("Kleibergen-Paap LM", reason), Unavailable("Kleibergen-Paap F", reason)]
    if lm is not None and hasattr(lm, "df"):  # linearmodels' own kind of unavailable has none
        factor, note = problem.discount_absorbed(homoskedastic=False)
        statistic = float(lm.stat) * factor
        p_value = float(stats.chi2.sf(statistic, q - k + 1)) if note else float(lm.pval)
        reading = conclude(
            p_value,
            significance=significance,
            rejected=f"the instruments identify {what}; this does not say how strongly",
            kept=f"there is no sign that the instruments identify {what}",
            note=note,
        )
        distribution = f"chi2({q - k + 1})"
        found[0] = TestResult("Kleibergen-Paap LM", null, statistic, distribution, p_value, reading)
    if wald_f is not None and np.isfinite(wald_f):
        # linearmodels does not know how many columns were partialled out.
        corrected = float(wald_f) * problem.scores_dof / (n - q)
        reading = "The Cragg-Donald F under the chosen covariance; it has no critical values of its own."
        found[1] = TestResult("Kleibergen-Paap F", null, corrected, "", None, reading)
    return found[0], found[1]
