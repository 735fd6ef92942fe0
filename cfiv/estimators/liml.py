"""Limited information maximum likelihood and Fuller's estimator, for weak or many instruments."""

from __future__ import annotations

from collections.abc import Sequence

from cfiv.checks import check_number
from cfiv.estimators.linear_estimator import LinearEstimator
from cfiv.estimators.linear_regression import CovarianceKind
from cfiv.estimators.small_sample import Convention
from cfiv.estimators.two_stage_results import TwoStageResults
from cfiv.numerics.score_covariance import Kernel
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


class LIML(LinearEstimator):
    """Limited information maximum likelihood, and Fuller's: ``h(t, x) = c + a' t + b' x`` with little bias of many instruments.

    With ``D = [1, X, T]`` and ``M`` the projection off ``[1, X, Z]``, coefficients are those of the k-class,
    ``(D' (I - kappa M) D)^-1 D' (I - kappa M) Y`` (row-weighted where weights are named), and of LIML

        ``kappa = min_v |M_E [Y, T] v|^2 / |M [Y, T] v|^2``,   ``M_E`` the projection off ``[1, X]``,

    less ``fuller / (n - columns of [1, X, Z])``. Two-stage least squares has ``kappa = 1``; so has LIML with as many
    instruments as treatments. Two-stage least squares is drawn towards least squares by many weak instruments, LIML is not, at
    the price of now and then a far estimate: it has no finite moments. ``fuller=1`` has, and is nearly unbiased; ``fuller=4``
    has the smaller squared error.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.TwoStageLeastSquares`, with any formula.
    clusters, fixed_effects, covariance, debiased, kernel, bandwidth
        As in :class:`cfiv.TwoStageLeastSquares`. Scores are those of the treatments that the instruments predict, as in Stata
        and linearmodels; none of the covariances counts the noise that many instruments add (Bekker 1994).
    fuller : float
        Fuller's constant, at least 0, which is LIML.

    Attributes
    ----------
    results_ : TwoStageResults
        As of :class:`cfiv.TwoStageLeastSquares`, with ``kappa``.
    coefficients_ : DataFrame
        ``coefficient, std_error, t, p_value, lower, upper`` (95 %), one row a column.

    Raises
    ------
    ParameterError
        If ``fuller`` is negative, an option of the covariance is unknown, or clusters are given that it does not use.
    DataError
        As :class:`cfiv.TwoStageLeastSquares`; and if there are so many instruments, for the rows, that they predict exactly.

    Warns
    -----
    FewClustersWarning
        Below ten clusters.
    IllConditionedWarning
        Where fewer than six digits of coefficients can be trusted, with the names of the columns.

    See Also
    --------
    cfiv.diagnose : Whether instruments are weak, and Anderson and Rubin's set, which holds however weak they are.

    References
    ----------
    Anderson and Rubin, "Estimation of the parameters of a single equation in a complete system of stochastic equations",
    *Annals of Mathematical Statistics* 20, 1949. Fuller, "Some properties of a modification of the limited information
    estimator", *Econometrica* 45, 1977. The tests hold it against linearmodels' IVLIML and against Stata.

    Examples
    --------
    >>> from cfiv.datasets import card1995
    >>> formula = card1995.FORMULA.replace("nearc4", "nearc4 + nearc2")
    >>> model = LIML(formula, covariance="unadjusted").fit(card1995.load())
    >>> round(float(model.coefficients_.loc["educ", "coefficient"]), 4), round(model.results_.kappa, 4)
    (0.164, 1.0004)
    """

    _instrumented = True
    results_: TwoStageResults

    def __init__(
        self,
        formula: str | None = None,
        *,
        outcome: str | None = None,
        treatment: Names | None = None,
        instruments: Names | None = None,
        covariates: Names | None = None,
        weights: str | None = None,
        missing: Missing = "drop",
        clusters: str | Sequence[str] | None = None,
        fixed_effects: Names | None = None,
        covariance: CovarianceKind = "robust",
        debiased: Convention | None = None,
        kernel: Kernel = "bartlett",
        bandwidth: int | None = None,
        fuller: float = 0.0,
    ) -> None:
        super().__init__(
            formula,
            outcome=outcome,
            treatment=treatment,
            instruments=instruments,
            covariates=covariates,
            weights=weights,
            missing=missing,
            clusters=clusters,
            fixed_effects=fixed_effects,
            covariance=covariance,
            debiased=debiased,
            kernel=kernel,
            bandwidth=bandwidth,
        )
        self.fuller = fuller

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("fuller", self.fuller, least=0.0, alternative="such as 1, or 0 for LIML")
