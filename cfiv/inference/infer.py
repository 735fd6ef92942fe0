"""``cfiv.infer``: data and a fitted estimator in, intervals and bands for any question out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfiv.checks import check_choice, check_whole, shown
from cfiv.data import Array, IVData, read_table
from cfiv.errors import DataError, NotFittedError, ParameterError
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.least_squares import LeastSquares
from cfiv.estimators.linear_regression import warn_of_few_clusters
from cfiv.estimators.structural import StructuralFunction
from cfiv.inference.estimates import Law
from cfiv.inference.functionals import Asker
from cfiv.inference.inference import Inference
from cfiv.inference.linear_in_basis import allowance_of, bases_of
from cfiv.inference.row_blocks import blocks_of
from cfiv.inference.seen import Seen
from cfiv.inference.simultaneous import DRAWS, Multipliers, check_draws, check_level
from cfiv.inference.strength import Strength
from cfiv.inference.two_stage import Outcome, TwoStage, joint_fit
from cfiv.labels import label_codes
from cfiv.memory import within_memory
from cfiv.tables.columns import require_columns
from cfiv.tables.table_encoder import TableEncoder

#: Why some estimators have no intervals, and what to use.
WITHOUT = {
    "DFIV": (
        "its features were learned from the same rows, and intervals that take them as given cover the truth in 13 to 39 % of "
        "samples instead of 95: use TwoStageLeastSquares with splines, such as [bs(t, df=5) ~ bs(z, df=8)]"
    ),
    "NetworkRegression": (
        "its features were learned from the same rows, and it takes treatments for exogenous: use TwoStageLeastSquares with "
        "splines, such as [bs(t, df=5) ~ bs(z, df=8)]"
    ),
    "KernelIV": (
        "its penalties pull the curve towards zero by more than its noise, so that intervals around it cover too seldom: use "
        "TwoStageLeastSquares with splines, such as [bs(t, df=5) ~ bs(z, df=8)]"
    ),
}
#: How far the fitted values of the data may be from those of the estimator, relative to their variation.
SAME_ROWS = 1e-6


def infer(
    data: Any,
    model: StructuralEstimator,
    *,
    covariance: str | None = None,
    clusters: str | Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    random_state: int = 0,
) -> Inference:
    """How sure an estimate is: intervals and bands for any question about the structural function.

    For an estimator ``h(t, x) = f(t, x)' u`` in a fixed basis with instruments ``phi`` and the projection ``P`` on them,

        ``u = (F' P F)^-1 F' P Y``,   ``V = (F' P F)^-1 [sum_i f^_i f^_i' e_i^2] (F' P F)^-1``,   ``f^ = P f``, ``e = Y - f' u``

    (White's covariance; summed within clusters, or homoskedastic), and a functional ``l' u`` has the variance ``l' V l``.
    Bands hold for all estimates of one question at once: their critical value is the quantile of the largest absolute t
    statistic over them, by Gaussian multipliers.

    Parameters
    ----------
    data : table or IVData
        The rows that the estimator was fitted to.
    model : estimator
        Fitted: :class:`cfiv.TwoStageLeastSquares` or :class:`cfiv.LeastSquares`, with any formula. Roles, weights and
        ``debiased`` are its own.
    covariance : {"robust", "unadjusted", "clustered"}, optional
        By default the estimator's, or clustered where clusters are given.
    clusters : str or two of them, optional
        Columns of labels of groups with correlated errors, of one kind or two; by default the estimator's. Of arrays one kind,
        as ``IVData(clusters=...)``.
    level : float
        Of confidence, of intervals and of bands.
    draws : int
        Of the multipliers, at least 100.
    random_state : int
        Of the multipliers. No global generator is used or changed.

    Returns
    -------
    Inference

    Raises
    ------
    ParameterError
        For an estimator that is not linear in a fixed basis, with the reason and what to use instead; for a level, draws or a
        covariance out of range, and clusters that nothing would use.
    NotFittedError
        If the estimator has not been fitted.
    DataError
        For other rows or columns than those of the fit, as few clusters as functions in the basis or fewer, and instruments
        that do not move the whole basis.

    Warns
    -----
    FewClustersWarning
        Below ten clusters.

    Notes
    -----
    Intervals are about the basis: where ``h`` is not of its form, they cover the function that two-stage least squares tends
    to, which bends as little as the basis does. Averages over rows are conditional on these rows.

    References
    ----------
    Chen and Christensen, "Optimal sup-norm rates and uniform inference on nonlinear functionals of nonparametric IV
    regression", *Quantitative Economics* 9, 2018, for bands by multipliers.

    Examples
    --------
    >>> import cfiv
    >>> from cfiv.datasets import demand
    >>> train, _ = demand.simulate(n=500, rho=0.5, seed=0)
    >>> model = cfiv.TwoStageLeastSquares("sales ~ time + [price ~ fuel]").fit(train.frame)
    >>> inference = infer(train.frame, model)
    >>> inference.effect(treatment_from=15, treatment_to=20).table.columns.tolist()
    ['price_from', 'price_to', 'estimate', 'std_error', 'lower', 'upper', 'supported']
    """
    check_level(level)
    draws = check_draws(draws)
    seed = check_whole("random_state", random_state, least=0)
    if covariance is not None:
        check_choice("covariance", covariance, ("robust", "unadjusted", "clustered"), alternative="or None")
    function = _fitted(model)
    with within_memory("infer", "fit fewer rows, or a smaller basis"):
        rows, kind, groups = _rows(data, model, function, covariance=covariance, clusters=clusters)
        bases = bases_of(function)
        instrumented = not isinstance(model, LeastSquares)
        blocks = blocks_of(rows, bases, instrumented=instrumented)
        outcome = Outcome.of(rows.outcome, root=blocks[0].root, centred=bool(blocks[0].structural.constant.any()))
        stages = [TwoStage.of(block, outcome) for block in blocks]
        _check_groups(groups, size=len(stages[0].coordinates))
        debiased = bool(getattr(model, "debiased", False))
        joint = joint_fit(stages, blocks, outcome, covariance=kind, clusters=list(groups.values()), debiased=debiased)
        _check_same_rows(joint.fitted, function, rows, model)
        seen = _seen(rows, function, joint.leverage)
        asker = Asker(function.encoder, bases, joint.fits, seen, len(rows))
        average = asker.derivatives(rows if rows.frame is None else rows.frame)
    strength = Strength.of(
        stages[0].correlations,
        rows=len(rows),
        instruments=stages[0].instruments,
        treatments=len(function.encoder.treatment_names),
    )
    multipliers = Multipliers(
        level=float(level),
        draws=draws,
        seed=seed,
        df=len(rows) - joint.fits[0].size if debiased else None,
        allowance=allowance_of(function),
    )
    return Inference(
        function=function,
        law=Law(joint.fits, multipliers, strength is not None and strength.is_weak),
        average=average,
        seen=seen,
        strength=strength,
        covariance=_described(kind, groups, debiased=debiased),
        rows=len(rows),
        notes=_notes(model, strength),
    )


def check_estimator(kind: type) -> None:
    """Raise unless an estimator of this class is linear in a fixed basis.

    Raises
    ------
    ParameterError
        With the reason, and what to use instead.
    """
    for name in (base.__name__ for base in kind.__mro__):
        if name in WITHOUT:
            raise ParameterError(f"{name} has no intervals: {WITHOUT[name]}")


def _fitted(model: Any) -> StructuralFunction:
    """The structural function of a fitted estimator that is linear in a fixed basis."""
    if isinstance(model, StructuralFunction):
        raise ParameterError(
            "a structural function does not know its instruments, so nothing can be said of its errors: give the fitted "
            "estimator, or save its inference beside it, with infer(data, model).save(path)"
        )
    if not isinstance(model, StructuralEstimator):
        raise ParameterError(f"model must be a fitted cfiv estimator, got {shown(model)}: fit one first")
    check_estimator(type(model))
    function: StructuralFunction | None = getattr(model, "structural_function_", None)
    if function is None:
        raise NotFittedError(f"this {type(model).__name__} has not been fitted: call fit(data) first")
    if model.interrupted_:
        raise ParameterError(f"this {type(model).__name__} was interrupted, and half a fit has no law: fit it to its end")
    return function


def _rows(
    data: Any, model: StructuralEstimator, function: StructuralFunction, *, covariance: str | None, clusters: Any
) -> tuple[IVData, str, dict[str, Array]]:
    """The rows of the fit, the kind of covariance, and codes of groups by the names of their columns."""
    table = isinstance(function.encoder, TableEncoder)
    own = getattr(model, "clusters", None)
    names = _names(own if clusters is None else clusters)
    if clusters is not None and not table:
        raise ParameterError(
            "clusters= names columns of a table, and the estimator was fitted to arrays: give IVData(clusters=...)"
        )
    if names:
        require_columns(read_table(data), names, needed_for="clusters")
    rows = function.encoder.observations(data, missing=model.missing, labels=names if table else ())
    rows.check_observed("inference")
    rows = rows.with_positive_weight()
    if table:
        assert rows.frame is not None
        groups = {name: label_codes(f"clusters {name!r}", rows.frame[name]) for name in names}
    else:
        groups = {} if rows.clusters is None else {"clusters": rows.clusters}
    return rows, *_covariance(covariance, model, groups, given=clusters is not None)


def _names(clusters: Any) -> tuple[str, ...]:
    names = () if clusters is None else (clusters,) if isinstance(clusters, str) else tuple(clusters)
    if len(names) > 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ParameterError(f"clusters must be the name of a column, or two of them, got {shown(clusters)}")
    return names


def _covariance(covariance: str | None, model: Any, groups: dict[str, Array], *, given: bool) -> tuple[str, dict[str, Array]]:
    """As asked; else clustered where there are groups, else the estimator's."""
    own = getattr(model, "covariance", "robust")
    if covariance is None:
        if not groups and own == "kernel":
            raise ParameterError(
                "the estimator's covariance='kernel' is not available in infer: give covariance='robust', or clusters="
            )
        covariance = "clustered" if groups else own
    if covariance != "clustered":
        if given:
            raise ParameterError(
                f"clusters are given, but covariance={covariance!r} does not use them: set covariance='clustered' or leave "
                "them out"
            )
        return covariance, {}
    if not groups:
        raise ParameterError("covariance='clustered' needs groups of rows, got none: give clusters='column'")
    return covariance, groups


def _check_groups(groups: dict[str, Array], *, size: int) -> None:
    """Raise where clusters are too few for a covariance of so many coefficients; warn where they are few."""
    for name, codes in groups.items():
        count = len(np.unique(codes))
        if count <= size:
            raise DataError(
                f"a clustered covariance of {size} coefficients needs more clusters than that, got {count} of {name!r}: some "
                "combinations would seem to have no error at all; use finer clusters, or a smaller basis"
            )
        warn_of_few_clusters(codes)


def _check_same_rows(fitted: Array, function: StructuralFunction, rows: IVData, model: StructuralEstimator) -> None:
    """Raise unless the coefficients of these rows are the estimator's."""
    same = len(rows) == model.n_rows_
    if same:
        expected = function.components[0].evaluate(rows.treatment, rows.covariates)
        same = bool(np.abs(fitted - expected).max() <= SAME_ROWS * np.ptp(rows.outcome))
    if not same:
        raise DataError(
            f"the {len(rows)} rows are not the {model.n_rows_} that this {type(model).__name__} was fitted to, of which its "
            "errors are: give the same data, with the same gaps and weights, or fit it to these"
        )


def _seen(rows: IVData, function: StructuralFunction, leverage: float) -> Seen:
    encoder = function.encoder
    raw = encoder.raw(rows if rows.frame is None else rows.frame)
    return Seen.of(raw[list(encoder.treatment_names)], leverage=leverage)


def _described(kind: str, groups: dict[str, Array], *, debiased: bool) -> str:
    named = " and ".join(f"{name} ({len(np.unique(codes)):,})" for name, codes in groups.items())
    return f"{kind}{' by ' * bool(named)}{named}{', debiased' * debiased}"


def _notes(model: StructuralEstimator, strength: Strength | None) -> tuple[str, ...]:
    if isinstance(model, LeastSquares):
        return ("least squares takes treatments for exogenous: its intervals are not of the structural function",)
    if strength is not None and strength.is_weak:
        return (
            f"the instruments may be weak (F-type {strength.leading_f:.3g}, not above {strength.critical_value:.3g}): "
            "intervals and bands may hold less often than they say; cfiv.diagnose has an Anderson-Rubin set",
        )
    return ()
