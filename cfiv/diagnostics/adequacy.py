"""Is the linear model adequate at all? The gate before nonlinear estimators: a residual prediction test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from scipy import stats

from cfiv.data import Array
from cfiv.diagnostics.linear_problem import LinearProblem, cluster_sums, of_order_one
from cfiv.diagnostics.results import Diagnostic, TestResult, Unavailable, conclude

#: Random divisions of the rows whose p-values are combined.
DIVISIONS = 10
#: Predictions are clipped at this quantile of their absolute values, so that no row dominates.
CLIP_QUANTILE = 0.9
#: The variance is at least this share of the mean squared residual.
VARIANCE_FLOOR = 0.05
#: Trees of a forest. With large leaves, 50 found as much as 100 did (600 rows, quadratic effects, 1 and 15 covariates).
TREES = 50
#: Rows that the test needs for each column of the model.
ROWS_A_COLUMN = 10
#: Rows a tree is grown on at most: bounds the time for large tables.
TREE_ROWS = 5000


class Learner(Protocol):
    """A regression of scikit-learn's kind."""

    def fit(self, X: Array, y: Array, sample_weight: Array | None = None) -> Any:
        """Learn ``E[y | X]``."""
        ...

    def predict(self, X: Array) -> Array:
        """Evaluate it."""
        ...


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of the problem, not weighted and not partialled out.

    Parameters
    ----------
    outcome : array (n,)
    regressors : array (n, p + k)
        ``[1, X, T]``.
    exogenous : array (n, p + q)
        ``[1, X, Z]``.
    weights : array (n,)
        With a mean of one.
    clusters : array (n,) or None
    constants : int
        How many of the first columns are the constant: 1 or 0.
    """

    outcome: Array
    regressors: Array
    exogenous: Array
    weights: Array
    clusters: Array | None
    constants: int

    @classmethod
    def of(cls, problem: LinearProblem) -> Sample:
        """All rows of a problem."""
        data, n = problem.data, problem.shape[0]
        common = [np.ones((n, int(problem.intercept)))] + ([] if data.covariates is None else [data.covariates])
        weights = np.ones(n) if data.weights is None else data.weights / data.weights.mean()
        return cls(
            data.outcome,
            np.concatenate([*common, data.treatment], axis=1).astype(np.float64),
            np.concatenate([*common, data.instruments], axis=1).astype(np.float64),
            weights,
            problem.clusters,
            int(problem.intercept),
        )

    def standardised(self) -> Sample:
        """The same rows in units of order one, about zero where there is a constant.

        The statistic does not see it, but forests do: they round to float32, and take differences below 1e-7 for none.
        """
        c = self.constants
        outcome, *columns = (
            of_order_one(part, self.weights, centred=bool(c))
            for part in (self.outcome, self.regressors[:, c:], self.exogenous[:, c:])
        )
        regressors, exogenous = (np.concatenate([np.ones((len(outcome), c)), part], axis=1) for part in columns)
        return replace(self, outcome=outcome, regressors=regressors, exogenous=exogenous)

    def rows(self, mask: Array) -> Sample:
        """A part of the rows."""
        clusters = None if self.clusters is None else np.unique(self.clusters[mask], return_inverse=True)[1]
        parts = (self.outcome[mask], self.regressors[mask], self.exogenous[mask], self.weights[mask])
        return Sample(*parts, clusters, self.constants)

    def two_stage_least_squares(self) -> tuple[Array, Array]:
        """Residuals (n,) in the outcome's units, and the root-weighted regressors at their first-stage fit (n, p + k)."""
        root = np.sqrt(self.weights)[:, None]
        exogenous = root * self.exogenous
        scale = np.linalg.norm(exogenous, axis=0)
        exogenous = exogenous / np.where(scale > 0, scale, 1.0)
        fitted = exogenous @ np.linalg.lstsq(exogenous, root * self.regressors, rcond=None)[0]
        scale = np.linalg.norm(fitted, axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        coefficients = np.linalg.lstsq(fitted / scale, root[:, 0] * self.outcome, rcond=None)[0] / scale
        return self.outcome - self.regressors @ coefficients, fitted


def residual_prediction(
    problem: LinearProblem,
    *,
    significance: float,
    random_state: int,
    strong: bool = True,
    predictors: Array | None = None,
    divisions: int | None = None,
) -> Diagnostic:
    """Residual prediction test: can anything in ``(Z, X)`` predict the residuals of two-stage least squares?

    The null is ``E[Y - T b - X c | Z, X] = 0`` for some ``b, c``: errors *mean-independent* of instruments and covariates.
    That is more than the absence of correlation, and testable with as many instruments as treatments. A rejection says that
    the linear model fails: h is not linear in the given columns (of treatment or covariates), *or* an instrument acts on the
    outcome in another way. It cannot tell which; :func:`cfiv.diagnostics.linearity.linearity` tells treatment from covariates.

    On ``DIVISIONS`` random divisions of the rows (of whole clusters), a random forest learns the residuals of one part from
    ``(Z, X)``, and its clipped predictions ``w`` on the other part are held against the residuals there: :func:`statistic`.

    Parameters
    ----------
    problem : LinearProblem
    significance : float
        One minus the level, for the reading.
    random_state : int
        Of the divisions and the forests.
    strong : bool
        Whether the instruments are. Where they are weak, nearly any slope leaves residuals that they cannot predict, and the
        reading says that the test sees little.
    predictors : array (n, m), optional
        What the forest learns from, in units of order one; by default instruments and covariates.
    divisions : int, optional
        Other than ``DIVISIONS``.

    Returns
    -------
    TestResult or Unavailable
        ``statistic`` is the median over divisions. ``p_value`` is twice the median of the one-sided p-values, at most one,
        which keeps its level whatever their dependence. Unavailable where treatments are not identified, with fewer than 10
        rows (clusters) for each column, or where instruments and covariates take no more values than there are coefficients.

    Notes
    -----
    The variance is that of the problem's covariance; with weights, predictions and moments are weighted, and an unadjusted
    covariance takes the error variance as inverse to the weights. Cost: ``DIVISIONS`` forests of ``TREES`` trees, each grown
    on at most ``TREE_ROWS`` rows, on one thread.

    References
    ----------
    Scheidegger, Londschien and Bühlmann, "Machine-learning-powered specification testing in linear instrumental variable
    models", 2025, arXiv:2506.12771. Combined p-values: Meinshausen, Meier and Bühlmann, "p-values for high-dimensional
    regression", *Journal of the American Statistical Association* 104, 2009.
    """
    from sklearn.ensemble import RandomForestRegressor

    name = "Residual prediction"
    sample, (n, k, q) = Sample.of(problem).standardised(), problem.shape
    columns, units = problem.exogenous + k + q, problem.n_clusters
    reason = problem.undividable or problem.unidentified
    if reason is None and (n < ROWS_A_COLUMN * columns or units < 20):
        needed = "20 clusters" if units < 20 <= n else f"{max(ROWS_A_COLUMN * columns, 20)} rows for its two halves"
        reason = f"it needs at least {needed}, got {units if units < 20 <= n else n}"
    reason = reason or _saturated(sample)
    if reason:
        return Unavailable(name, reason)
    generator = np.random.default_rng(random_state)
    statistics = []
    divisions = DIVISIONS if divisions is None else divisions
    for _ in range(divisions):
        learning = divide(n, problem.clusters, generator)
        forest = RandomForestRegressor(
            n_estimators=TREES,
            min_samples_leaf=max(5, min(20, int(learning.sum()) // 20)),
            max_samples=min(1.0, TREE_ROWS / int(learning.sum())),
            random_state=int(generator.integers(2**31)),
            n_jobs=1,
        )
        robust = problem.covariance.kind != "unadjusted"
        statistics.append(statistic(sample, learning, forest, robust=robust, predictors=predictors))
    p_value = float(min(1.0, 2 * np.median(stats.norm.sf(statistics))))
    return TestResult(
        name,
        "E[e | Z, X] = 0 for some linear structural function (well-specified linear model with valid instruments)",
        float(np.median(statistics)),
        f"N(0, 1), median of {divisions}",
        p_value,
        conclude(
            p_value,
            significance=significance,
            rejected="the linear model is rejected",
            kept="nothing speaks against the linear model: two-stage least squares may be enough"
            if strong
            else "nothing speaks against the linear model, but with instruments this weak hardly anything could",
        ),
    )


def _saturated(sample: Sample) -> str | None:
    """Why the residuals have a mean of zero at every value of instruments and covariates, whatever the truth."""
    most = sample.regressors.shape[1]
    values: set[bytes] = set()
    for row in sample.exogenous + 0.0:  # of a continuous one, a few rows tell
        values.add(row.tobytes())
        if len(values) > most:
            return None
    return (
        f"instruments and covariates take {len(values)} values together and the model has {most} coefficients, so that it fits "
        "each value's mean and nothing could speak against it"
    )


def divide(n: int, clusters: Array | None, generator: np.random.Generator) -> Array:
    """Which rows are learned from: a random share ``min(1/2, e / log n)`` of the rows, or of the clusters; (n,) bool."""
    units = n if clusters is None else int(clusters.max()) + 1
    mask = np.zeros(units, dtype=bool)
    mask[: int(units * min(0.5, np.e / np.log(units)))] = True
    generator.shuffle(mask)
    return mask if clusters is None else mask[clusters]


def statistic(sample: Sample, learning: Array, learner: Learner, *, robust: bool, predictors: Array | None = None) -> float:
    """The test statistic of one division, asymptotically N(0, 1) under the null and large where it fails.

    ``sum_i v_i w_i e_i / sqrt(n s^2)`` over the rows not learned from, with row weights ``v``, two-stage least-squares
    residuals ``e`` of those rows and clipped predictions ``w``. ``s^2`` is the mean of squared scores
    ``v_i (w_i - a' D_i) e_i`` less their squared mean, where ``a`` accounts for the estimated coefficients (``D_i`` are the
    regressors at their first-stage fit); the same of cluster sums with clusters; ``mean(v (w - a' D)^2) mean(v e^2)`` unless
    ``robust``.

    Parameters
    ----------
    sample : Sample
    learning : array (n,) bool
        Rows to learn from.
    learner : Learner
    robust : bool
    predictors : array (n, m), optional
        What the learner sees; by default instruments and covariates.
    """
    first, second = sample.rows(learning), sample.rows(~learning)
    seen = sample.exogenous[:, sample.constants :] if predictors is None else predictors
    weighted = bool((sample.weights != sample.weights[0]).any())
    learner.fit(seen[learning], first.two_stage_least_squares()[0], *([first.weights] * weighted))
    size = np.quantile(np.abs(learner.predict(seen[learning])), CLIP_QUANTILE)
    predicted = learner.predict(seen[~learning])
    clipped = np.clip(predicted / size, -1.0, 1.0) if size > 0 else np.sign(predicted)
    residuals, fitted = second.two_stage_least_squares()
    root = np.sqrt(second.weights)
    # In root-weighted rows, as least squares sees them.
    errors, instrument = root * residuals, root * clipped
    scale = np.linalg.norm(fitted, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    slopes = np.linalg.pinv(fitted / scale).T @ ((root[:, None] * second.regressors / scale).T @ instrument)
    adjusted = instrument - slopes
    if robust:
        scores, centre = adjusted * errors, np.mean(instrument * errors)
        variance = np.sum(cluster_sums(scores - centre, second.clusters) ** 2) / len(scores)
    else:
        variance = np.mean(adjusted**2) * np.mean(errors**2)
    variance = max(variance, VARIANCE_FLOOR * np.mean(errors**2))
    return float(instrument @ errors / np.sqrt(len(errors) * variance))
