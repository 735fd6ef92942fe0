"""Whose effect is it? Compliers of a treatment and an instrument with two values each: how many they are, and who."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cfiv.data import Array
from cfiv.diagnostics.linear_problem import LinearProblem, cluster_sums
from cfiv.diagnostics.results import TestResult, Unavailable

NAME = "Share of compliers"
#: Newton's steps of the logit, which doubles its digits in each, and the size of the last.
STEPS, ENOUGH = 40, 1e-10
#: Rows whose instrument has a probability within this of zero or one count for a hundred others, or more.
RARE = 0.01


@dataclass(frozen=True, repr=False, kw_only=True)
class Compliers:
    """Those whose treatment follows the instrument, in a population where nobody's goes against it.

    Parameters
    ----------
    share : TestResult
        How large a share of the rows they are, beside the hypothesis that there are none.
    always_takers, never_takers : float
        Shares of the rows with the higher, and with the lower treatment whatever the instrument.
    table : DataFrame
        One row a covariate: its mean over ``all`` rows and over ``compliers``, the ``std_error`` of the latter, their
        ``difference`` and its ``p_value``.
    """

    share: TestResult
    always_takers: float
    never_takers: float
    table: pd.DataFrame

    def __repr__(self) -> str:
        return f"<Compliers: {100 * self.share.statistic:.3g} % of the rows, with the means of {len(self.table)} covariates>"


def compliers(problem: LinearProblem, *, significance: float) -> Compliers | Unavailable:
    """How many compliers there are, and the means of their covariates, by Abadie's kappa.

    With the treatment ``D`` and the instrument ``Z`` as 0 and 1, and ``p(X) = P(Z = 1 | X)`` a logit in the covariates,

        kappa = 1 - D (1 - Z) / (1 - p(X)) - (1 - D) Z / p(X),
        P(complier) = E[kappa],    E[X | complier] = E[kappa X] / E[kappa],

    where the weights ``(1 - Z) / (1 - p)`` and ``Z / p`` are scaled to a mean of one. Standard errors are robust, or clustered,
    and count that ``p`` is estimated.

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level, for the reading.

    Returns
    -------
    Compliers, or Unavailable
        With the reason, unless there are one treatment and one instrument of two values each, and covariates that leave the
        instrument open.

    References
    ----------
    Imbens and Angrist, "Identification and estimation of local average treatment effects", *Econometrica* 62, 1994. Abadie,
    "Semiparametric instrumental variable estimation of treatment response models", *Journal of Econometrics* 113, 2003,
    theorem 3.1. Słoczyński, Uysal and Wooldridge, "Abadie's kappa and weighting estimators of the local average treatment
    effect", *Journal of Business & Economic Statistics*, 2024, for the scaled weights.
    """
    data = problem.data
    reason = _why_not(problem)
    if reason:
        return Unavailable(NAME, reason)
    assert data.names is not None
    treatment, instrument = (columns[:, 0] == columns.max() for columns in (data.treatment, data.instruments))
    covariates = np.empty((len(data), 0)) if data.covariates is None else data.covariates
    weights = np.ones(len(data)) if data.weights is None else data.weights / data.weights.mean()
    found = _means(treatment, instrument, covariates, weights)
    if found is None:
        return Unavailable(
            NAME, "the covariates tell the instrument of some rows for sure, so that these have nothing beside them"
        )
    falls = found.parts[0, 0] < 0  # a higher instrument then lowers the treatment
    if falls:
        found = _means(treatment, ~instrument, covariates, weights)
        assert found is not None
    return _described(problem, found, significance, falls)


@dataclass(frozen=True, eq=False)
class _Means:
    """Parts of the averages ``(1, E X)`` that are those of compliers, always-takers and never-takers, and their influences.

    Parameters
    ----------
    overall : array (1 + p,)
    parts : array (3, 1 + p)
    influences, centred : array (n, 1 + p)
        Of the compliers' part, and of the overall averages.
    rare : int
        Rows whose instrument is all but told by the covariates.
    """

    overall: Array
    parts: Array
    influences: Array
    centred: Array
    rare: int


def _means(treatment: Array, instrument: Array, covariates: Array, weights: Array) -> _Means | None:
    """None where covariates separate the values of the instrument."""
    columns = np.column_stack([np.ones(len(covariates)), covariates])
    scale = np.sqrt(np.average((columns - columns.mean(axis=0)) ** 2, axis=0))
    regressors = np.column_stack([columns[:, 0], (columns[:, 1:] - columns[:, 1:].mean(axis=0)) / scale[1:]])
    p = _logit(instrument, regressors, weights)
    if p is None:
        return None
    information = (regressors * (weights * p * (1 - p))[:, None]).T @ regressors / len(p)
    of_p = weights[:, None] * regressors * (instrument - p)[:, None] @ np.linalg.inv(information)
    overall = np.average(columns, axis=0, weights=weights)
    parts, influences = [], []
    for stayed, inverse, slope in (
        (treatment & ~instrument, ~instrument / (1 - p), ~instrument * p / (1 - p)),
        (~treatment & instrument, instrument / p, instrument * (p - 1) / p),
    ):
        taken = columns * stayed[:, None]
        total = float(np.mean(weights * inverse))
        part = (weights * inverse) @ taken / len(p) / total
        own = (weights * inverse)[:, None] * (taken - part) / total
        through_p = regressors.T @ ((weights * slope)[:, None] * (taken - part)) / len(p) / total
        parts.append(part)
        influences.append(own + of_p @ through_p)
    centred = weights[:, None] * (columns - overall)
    rare = int((np.minimum(p, 1 - p) < RARE).sum())
    return _Means(overall, np.stack([overall - sum(parts), *parts]), centred - sum(influences), centred, rare)


def _logit(instrument: Array, regressors: Array, weights: Array) -> Array | None:
    """Probabilities that the instrument is 1, by Newton's method; None where it finds none inside (0, 1)."""
    coefficients = np.zeros(regressors.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(regressors @ coefficients, -500, 500)))
        roots = np.sqrt(weights * p * (1 - p))
        if roots.min(initial=1.0, where=weights > 0) < 1e-6:
            return None
        step = np.linalg.lstsq(roots[:, None] * regressors, weights * (instrument - p) / roots, rcond=None)[0]
        if np.abs(step).max() < ENOUGH:
            return np.asarray(p)
        coefficients += step
    return None


def _described(problem: LinearProblem, found: _Means, significance: float, falls: bool) -> Compliers:
    names, n = problem.data.names, len(problem.data)
    assert names is not None
    share, always, never = found.parts[:, 0]
    means = found.parts[0] / share
    own = (found.influences - means * found.influences[:, :1]) / share  # of the compliers' means
    errors, gaps = (_std_errors(problem, influences) for influences in (own, own - found.centred))
    error = float(_std_errors(problem, found.influences[:, :1])[0])
    p_value = float(2 * stats.norm.sf(share / error))
    difference = means - found.overall
    table = pd.DataFrame(
        {
            "all": found.overall,
            "compliers": means,
            "std_error": errors,
            "difference": difference,
            "p_value": 2 * stats.norm.sf(np.abs(difference) / np.where(gaps > 0, gaps, np.inf)),
        },
        index=pd.Index(["", *names.get("covariates", ())], name="covariate"),
    )[1:]
    reading = _reading(problem, (share, always, never), p_value < significance, falls)
    if found.rare:
        reading += f" {found.rare} of {n} rows weigh much, for covariates all but tell their instrument."
    test = TestResult(NAME, "the instrument moves nobody's treatment", float(share), "N(0, 1) / se", p_value, reading)
    return Compliers(share=test, always_takers=float(always), never_takers=float(never), table=table)


def _std_errors(problem: LinearProblem, influences: Array) -> Array:
    """Of means with these influences (n, m), robust or clustered."""
    sums = cluster_sums(influences, problem.clusters)
    return np.asarray(np.sqrt((sums**2).sum(axis=0)) / len(influences))


def _reading(problem: LinearProblem, shares: tuple[float, float, float], moved: bool, falls: bool) -> str:
    names = problem.data.names
    assert names is not None
    treatment, instrument = names["treatment"][0], names["instruments"][0]
    if not moved:
        return f"There is no sign that {instrument} moves {treatment}: nobody is known whose effect it would be."
    share, always, never = (f"{100 * part:.3g} %" for part in shares)
    way = "falls where" if falls else "rises with"
    weighed = "" if problem.data.covariates is None else ", weighed by how much the instrument varies beside their covariates"
    return (
        f"It is a local average: the effect of compliers, the {share} of rows whose {treatment} {way} {instrument}"
        f"{' rises' if falls else ''}, if nobody's goes the other way (monotonicity){weighed}. Whatever the instrument, "
        f"{always} have the higher {treatment} and {never} the lower; nothing is known of their effect."
    )


def _why_not(problem: LinearProblem) -> str:
    """Why shares of compliers are not defined, and whose effect it is then; nothing where they are."""
    _, k, q = problem.shape
    data = problem.data
    assert data.names is not None
    if k > 1:
        return "there are several treatments, and no single kind of complier"
    if problem.absorbed is not None:
        return (
            "fixed effects have been taken out of treatment and instruments, so that neither has two values; the effect is an "
            "average over those whom the instruments move within their groups, with more weight where they move more"
        )
    if len(np.unique(data.treatment)) > 2:
        return (
            f"{data.names['treatment'][0]} has more than two values; the effect is an average over rows and over steps of the "
            "treatment, with more weight where the instruments move more rows further"
        )
    if q > 1 or len(np.unique(data.instruments)) > 2:
        return (
            "the instruments have more than two values together; the effect is an average over those whom one step or another "
            "of them moves, if all steps move all rows the same way"
        )
    if problem.unidentified:
        return "the instrument does not move the treatment"
    return ""
