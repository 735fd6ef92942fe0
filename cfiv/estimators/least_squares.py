"""Least squares, which ignores the confounder: what a plain regression would have said."""

from __future__ import annotations

from cfiv.estimators.linear_estimator import LinearEstimator


class LeastSquares(LinearEstimator):
    """Least squares without instruments: ``E[Y | T, X] = c + a' t + b' x``, taken for the structural function.

    ``(D' D)^-1 D' Y`` with ``D = [1, X, T]`` (row-weighted where weights are named). It estimates the structural function only
    where the treatment is exogenous; otherwise its coefficients tend to ``a + Cov(T, e) / Var(T)`` (one treatment, covariates
    partialled out), and the distance to an instrumented estimate shows what ignoring the confounder costs.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`, so that the same formula serves every estimator. The instruments do not enter the
        coefficients; rows with gaps in them are dropped all the same, so that estimates compare on the same rows, and
        ``score`` predicts the treatment from them. Bases come from the formula: ``[bs(price, df=5) ~ bs(fuel, df=5)]``.
    clusters, fixed_effects, covariance, debiased, kernel, bandwidth
        As in :class:`cfiv.TwoStageLeastSquares`.

    Attributes
    ----------
    results_ : LeastSquaresResults
        What linearmodels reports, under its names: ``params``, ``std_errors``, ``cov``, ``conf_int()``, ``resids``,
        ``rsquared``, ``wald_test()`` and others; and ``combination()``, linear combinations of coefficients with their
        standard errors.
    coefficients_ : DataFrame
        ``coefficient, std_error, t, p_value, lower, upper`` (95 %), one row a column. The intervals cover the projection of the
        outcome, not the structural effect.

    Raises
    ------
    ParameterError
        If an option of the covariance is unknown, or clusters are given that it does not use.
    DataError
        If columns are collinear, with their names, or float64 has no such coefficients in the columns' units.

    Warns
    -----
    FewClustersWarning
        Below ten clusters.
    IllConditionedWarning
        Where fewer than six digits of coefficients can be trusted, with the names of the columns.

    References
    ----------
    Angrist and Pischke, *Mostly Harmless Econometrics*, chapter 3, for the bias.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.9, seed=0)
    >>> model = LeastSquares("sales ~ time + emotion + [price ~ fuel]").fit(train.frame)
    >>> model.coefficients_.index.tolist()
    ['Intercept', 'time', 'emotion', 'price']
    """

    _instrumented = False
