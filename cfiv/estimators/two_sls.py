"""Two-stage least squares, the linear comparator with instruments."""

from __future__ import annotations

from cfiv.estimators.linear_estimator import LinearEstimator


class TwoStageLeastSquares(LinearEstimator):
    """Two-stage least squares: ``h(t, x) = c + a' t + b' x`` on the columns that the formula makes.

    With ``D = [1, X, T]`` and ``Q`` the projection on ``[1, X, Z]``, coefficients are ``(D' Q D)^-1 D' Q Y`` (row-weighted
    where weights are named). Nonlinear terms come from the formula, in treatment, instruments and covariates:
    ``sales ~ time + [poly(price, 2) + price:time ~ bs(fuel, df=4) + fuel:time]``. Their knots and scales are those of the
    training table, whatever rows are predicted.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`. A formula with ``0 +`` has no constant.
        A bar before names of columns, as in ``"y ~ x + [t ~ z] | firm + year"``, absorbs a constant for each of their labels:
        coefficients are those of regressions with all their indicators, and levels are at the average of these fixed effects.
        Rows that are a group by themselves are left out. Residuals and fitted values are then of the other rows.
    clusters : str or two of them, optional
        Columns that label groups of rows with correlated errors (``covariance="clustered"``), of one kind or two.
    fixed_effects : str or sequence of str, optional
        Columns of labels to absorb, where columns are named instead of a formula.
    covariance : {"robust", "unadjusted", "clustered", "kernel"}
        Of the coefficients: heteroskedasticity-robust (White); homoskedastic; robust to correlation within clusters; or robust
        to heteroskedasticity and autocorrelation (HAC), for rows that are in the order of time.
    debiased : {None, False, True, "fixest", "stata"}
        Factors of variances for small samples, and t instead of normal intervals. False has none. True: times ``n / (n - k)``,
        with G clusters also ``(n - 1) / n G / (G - 1)``, and t(n - k), as linearmodels, statsmodels and R's sandwich have it;
        k counts all fixed effects. "fixest" and "stata": the same factors, but t(G - 1) with clusters, the least G of two
        kinds, and fixed effects not counted whose groups lie within clusters; "fixest" counts each kind but the first as one
        less than its groups, "stata" exactly. None: "fixest" with fixed effects, else False.
    kernel : {"bartlett", "parzen", "qs"}
        Weights of the autocovariances in the kernel covariance; Bartlett's are those of Newey and West.
    bandwidth : int, optional
        Lags of the kernel covariance; by default chosen from the data (Newey and West 1994).

    Attributes
    ----------
    results_ : TwoStageResults
        What linearmodels reports, under its names: ``params``, ``std_errors``, ``cov``, ``conf_int()``, ``resids``,
        ``rsquared``, ``wald_test()``, ``sargan``, ``wu_hausman()`` and others; ``first_stage`` with ``diagnostics`` and
        ``individual``; and ``combination()``, estimates and standard errors of linear combinations of coefficients.
    coefficients_ : DataFrame
        ``coefficient, std_error, t, p_value, lower, upper`` (95 %), one row a column.

    Raises
    ------
    ParameterError
        If an option of the covariance is unknown, or clusters are given that it does not use.
    DataError
        If there are fewer instruments than treatments, columns are collinear, or the instruments do not move a treatment, with
        the names of the columns; or if float64 has no such coefficients in the columns' units.

    Warns
    -----
    FewClustersWarning
        Below ten clusters.
    IllConditionedWarning
        Where fewer than six digits of coefficients can be trusted, with the names of the columns.

    Notes
    -----
    Columns are centred, where a constant (or indicators of all categories) is among them, scaled to length one, and made
    orthonormal: neither units nor offsets cost digits, and rank does not depend on them. A column counts as a combination of
    others where a change in the twelfth digit of the numbers given could make it one.

    See Also
    --------
    cfiv.diagnose : Tests of what two-stage least squares assumes.
    cfiv.infer : Intervals and bands for effects, curves and derivatives.

    References
    ----------
    Wooldridge, *Econometric Analysis of Cross Section and Panel Data*, 2nd ed., chapter 5. The tests hold it against
    linearmodels' IV2SLS.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.5, seed=0)
    >>> model = TwoStageLeastSquares("sales ~ time + emotion + [price ~ fuel]").fit(train.frame)
    >>> model.coefficients_.index.tolist()
    ['Intercept', 'time', 'emotion', 'price']
    """

    _instrumented = True
