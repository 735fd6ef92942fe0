"""``cfiv.diagnose``: roles in, every diagnostic out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cfiv.checks import check_choice, check_number, check_whole
from cfiv.data import IVData
from cfiv.diagnostics.anderson_rubin import anderson_rubin, anderson_rubin_sets
from cfiv.diagnostics.compliers import compliers
from cfiv.diagnostics.curves import covariates
from cfiv.diagnostics.endogeneity import endogeneity
from cfiv.diagnostics.first_stage import conditional_f, effective_f, partial_f
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.linearity import is_strong, linearity
from cfiv.diagnostics.overidentification import hansen_j, sargan
from cfiv.diagnostics.rank import cragg_donald, kleibergen_paap
from cfiv.diagnostics.report import Diagnostics
from cfiv.errors import ParameterError
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.linear_regression import Covariance, CovarianceKind
from cfiv.numerics.score_covariance import Kernel
from cfiv.rendering import joined
from cfiv.tables.columns import Missing
from cfiv.tables.encoder import Encoder
from cfiv.tables.encoding import encode
from cfiv.tables.roles import Roles, read_roles


def diagnose(
    data: Any,
    roles: str | StructuralEstimator | None = None,
    *,
    weights: str | None = None,
    missing: Missing = "drop",
    covariance: CovarianceKind | None = None,
    clusters: str | Sequence[str] | None = None,
    kernel: Kernel | None = None,
    bandwidth: int | None = None,
    level: float = 0.95,
    random_state: int = 0,
) -> Diagnostics:
    """Test what linear instrumental-variable regression assumes of these data, and whether a nonlinear estimator is needed.

    The model tested is ``Y = T b + X c + e`` on the columns that the roles make: are the instruments strong (partial, effective
    and conditional F, Cragg-Donald, Kleibergen-Paap), do they agree (Sargan, Hansen), are they needed (Wu-Hausman, Durbin,
    Wooldridge), what is the effect however weak they are (Anderson-Rubin), whose is it (compliers, where treatment and
    instrument have two values), and is a linear model adequate at all (residual prediction)?

    Parameters
    ----------
    data : table or IVData
        As for ``fit``.
    roles : str, estimator or None
        A formula ``"outcome ~ covariates + [treatment ~ instruments]"``; or an estimator, fitted or not, whose roles, weights,
        clusters and ``missing`` are used and which is not changed; or None where ``data`` is an IVData of arrays.
    weights, clusters : str, optional; clusters also two of them
        Columns of row weights, and of labels of groups with correlated errors, of one kind or two; for a formula. Of arrays
        they are ``IVData(weights=..., clusters=...)``.
    missing : {"drop", "raise"}
        What to do with rows with gaps; for a formula.
    covariance : {"robust", "unadjusted", "clustered", "kernel"}, optional
        What the errors may be, in every test that has a choice; by default the estimator's own where it has one, else clustered
        where there are clusters, else robust. Sargan, Wu-Hausman, Durbin, Cragg-Donald and the conditional F
        are homoskedastic whatever is chosen.
    kernel : {"bartlett", "parzen", "qs"}, optional
        Weights of the autocovariances with ``covariance="kernel"``, for rows in the order of time; the estimator's own, or
        Bartlett's.
    bandwidth : int, optional
        Its lags; the estimator's own, or the largest that the rule of Newey and West (1994) has for one of the moments.
    level : float
        Confidence level of the sets; readings take tests at one minus it.
    random_state : int
        Of the residual prediction test. No global generator is used or changed.

    Returns
    -------
    Diagnostics
        The results as attributes, and as ``.table``.

    Raises
    ------
    ParameterError
        For an unknown covariance, a level outside (0, 1), roles that are no formula and no estimator, or weights, clusters and
        ``missing`` beside an estimator that has its own.
    DataError, FormulaError
        For bad roles, fewer instruments than treatments, constant or collinear columns, images, or too few rows.

    Warns
    -----
    MissingRowsWarning
        With the number of rows dropped.

    Notes
    -----
    Diagnostics are for judging a design, not for choosing among designs: inference after such a choice is not what it says.
    Nearly all of the time goes to the two residual prediction tests: seconds for thousands of rows, a minute for hundreds of
    thousands.

    References
    ----------
    Andrews, Stock and Sun, "Weak instruments in instrumental variables regression: theory and practice", *Annual Review of
    Economics* 11, 2019. Each test's own is with its function in :mod:`cfiv.diagnostics`.

    Examples
    --------
    >>> from cfiv.datasets import card1995
    >>> result = diagnose(card1995.load(), card1995.FORMULA, covariance="unadjusted")
    >>> round(result.partial_f[0].statistic, 2), str(result.anderson_rubin_set)
    (13.26, '[0.0248, 0.2848]')
    """
    _check(covariance, level, random_state)
    encoder, arrays = _encode(data, roles, weights=weights, missing=missing, clusters=clusters)
    arrays = arrays.with_positive_weight()
    arrays.check_fittable()
    chosen = _covariance(covariance or _default_covariance(roles, arrays), roles, kernel=kernel, bandwidth=bandwidth)
    problem = LinearProblem.from_data(arrays, intercept=encoder.intercept, covariance=chosen)
    significance = round(1.0 - level, 12)
    lm, wald_f = kleibergen_paap(problem, significance=significance)
    strong = is_strong(problem, significance)
    linear, curved = linearity(
        problem, covariates(arrays, encoder), significance=significance, random_state=int(random_state), strong=strong
    )
    exogeneity = endogeneity(problem, significance=significance, strong=strong)
    return Diagnostics(
        facts=_facts(problem, level),
        partial_f=partial_f(problem, significance=significance),
        conditional_f=conditional_f(problem, significance=significance),
        effective_f=effective_f(problem, significance=significance),
        cragg_donald=cragg_donald(problem),
        kleibergen_paap_f=wald_f,
        kleibergen_paap_lm=lm,
        sargan=sargan(problem, significance=significance),
        hansen_j=hansen_j(problem, significance=significance),
        wu_hausman=exogeneity["wu_hausman"],
        durbin=exogeneity["durbin"],
        wooldridge=exogeneity["wooldridge"],
        anderson_rubin=anderson_rubin(problem, significance=significance),
        anderson_rubin_sets=anderson_rubin_sets(problem, level=level),
        compliers=compliers(problem, significance=significance),
        residual_prediction=linear,
        residual_prediction_curves=curved,
    )


def _check(covariance: CovarianceKind | None, level: Any, random_state: Any) -> None:
    if covariance is not None:
        check_choice("covariance", covariance, ("robust", "unadjusted", "clustered", "kernel"), alternative="or None")
    check_number("level", level, above=0.0, below=1.0, alternative="such as 0.95")
    check_whole("random_state", random_state, least=0)


def _default_covariance(roles: str | StructuralEstimator | None, arrays: IVData) -> CovarianceKind:
    """Clustered where there are clusters; else that of a linear estimator, or robust."""
    own: CovarianceKind | None = getattr(roles, "covariance", None)
    if arrays.clusters is not None:
        return "clustered"
    return "robust" if own is None or own == "clustered" else own


def _covariance(
    kind: CovarianceKind, roles: str | StructuralEstimator | None, *, kernel: Kernel | None, bandwidth: int | None
) -> Covariance:
    """With the kernel and bandwidth given, or the estimator's."""
    if kind == "kernel":
        kernel = kernel or getattr(roles, "kernel", None)
        bandwidth = getattr(roles, "bandwidth", None) if bandwidth is None else bandwidth
    return Covariance(kind, kernel=kernel or "bartlett", bandwidth=bandwidth)


def _encode(
    data: Any,
    roles: str | StructuralEstimator | None,
    *,
    weights: str | None,
    missing: Missing,
    clusters: str | Sequence[str] | None,
) -> tuple[Encoder, IVData]:
    read = _roles(roles, weights=weights, missing=missing, clusters=clusters)
    missing = roles.missing if isinstance(roles, StructuralEstimator) else missing
    return encode(data, read, reader="diagnose", missing=missing)


def _roles(
    roles: str | StructuralEstimator | None,
    *,
    weights: str | None,
    missing: Missing,
    clusters: str | Sequence[str] | None,
) -> Roles | None:
    """By a formula, or those of an estimator, with weights and clusters that it does not name itself."""
    if roles is None or isinstance(roles, str):
        return read_roles(roles, weights=weights, clusters=clusters)
    if not isinstance(roles, StructuralEstimator):
        kind = roles.__name__ if isinstance(roles, type) else type(roles).__name__
        raise ParameterError(
            "roles must be a formula 'outcome ~ covariates + [treatment ~ instruments]', a cfiv estimator (an object, not its "
            f"class), or None with an IVData of arrays, got {kind}"
        )
    for name, given, own in (("weights", weights, roles.weights), ("clusters", clusters, roles.clusters)):
        if isinstance(given, (str, list, tuple)) and own is not None and given != own:
            raise ParameterError(f"{name}={given!r} is given, but the estimator has {name}={own!r}: leave it out")
    if missing != "drop" and missing != roles.missing:
        raise ParameterError(f"missing={missing!r} is given, but the estimator has missing={roles.missing!r}: leave it out")
    return read_roles(
        roles.formula,
        outcome=roles.outcome,
        treatment=roles.treatment,
        instruments=roles.instruments,
        covariates=roles.covariates,
        weights=roles.weights if weights is None else weights,
        clusters=roles.clusters if clusters is None else clusters,
        fixed_effects=getattr(roles, "fixed_effects", None),
    )


def _facts(problem: LinearProblem, level: float) -> tuple[tuple[str, str], ...]:
    names = problem.data.names
    assert names is not None
    lines = [("Rows", f"{problem.shape[0]:,}"), ("Outcome", names["outcome"][0])]
    lines += [(role.capitalize(), joined(names.get(role, ()))) for role in ("treatment", "instruments", "covariates")]
    if not problem.intercept:
        lines.append(("Constant", "none"))
    if "weights" in names:
        lines.append(("Weights", names["weights"][0]))
    if problem.absorbed is not None:
        lines.append(("Fixed effects", problem.absorbed.describe()))
    covariance: str = problem.covariance.kind
    if problem.clusters is not None:
        covariance += f" by {' and '.join(names['clusters'])}, {problem.n_clusters:,} clusters"
    elif problem.covariance.kind == "kernel":
        covariance += f" ({problem.covariance.kernel}, bandwidth {problem.covariance.bandwidth})"
    return (*lines, ("Covariance", covariance), ("Level", f"{100 * level:g} %"))
