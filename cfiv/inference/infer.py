"""``cfiv.infer``: data and a fitted estimator in, intervals and bands for any question out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfiv.checks import check_choice, check_flag, check_whole, shown
from cfiv.errors import NotFittedError, ParameterError
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.least_squares import LeastSquares
from cfiv.estimators.sieve_iv import SieveIV
from cfiv.estimators.structural import StructuralFunction
from cfiv.inference.estimates import Law
from cfiv.inference.fitted_rows import FittedRows
from cfiv.inference.functionals import Asker
from cfiv.inference.inference import Inference
from cfiv.inference.linear_in_basis import SizeChoice, bases_of, choice_of, undersmoothed
from cfiv.inference.row_blocks import blocks_of
from cfiv.inference.seen import Seen
from cfiv.inference.simultaneous import DRAWS, Multipliers, check_draws, check_level
from cfiv.inference.strength import Strength
from cfiv.inference.two_stage import Outcome, TwoStage, joint_fit
from cfiv.memory import within_memory

#: Why some estimators have no intervals, and what to use.
WITHOUT = {
    "DFIV": (
        "its features were learned from the same rows, and intervals that take them as given cover the truth in 13 to 39 % of "
        "samples instead of 95: use SieveIV, which finds curves too and has bands"
    ),
    "NetworkRegression": (
        "its features were learned from the same rows, and it takes treatments for exogenous: use SieveIV, or LeastSquares "
        "with splines, such as [bs(t, df=5) ~ z]"
    ),
    "KernelIV": (
        "its penalties pull the curve towards zero by more than its noise, so that intervals around it cover too seldom: use "
        "SieveIV, which finds curves too and has bands"
    ),
}

ABSORBED = "levels are at the average fixed effect, which counts as known; effects and derivatives do not depend on it"


def infer(
    data: Any,
    model: StructuralEstimator,
    *,
    covariance: str | None = None,
    clusters: str | Sequence[str] | None = None,
    level: float = 0.95,
    undersmooth: bool = True,
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
        Fitted: :class:`cfiv.SieveIV`, :class:`cfiv.TwoStageLeastSquares` or :class:`cfiv.LeastSquares`, with any formula.
        Roles, weights, fixed effects and ``debiased`` are its own.
    covariance : {"robust", "unadjusted", "clustered"}, optional
        By default the estimator's, or clustered where clusters are given.
    clusters : str or two of them, optional
        Columns of labels of groups with correlated errors, of one kind or two; by default the estimator's. Of arrays one kind,
        as ``IVData(clusters=...)``.
    level : float
        Of confidence, of intervals and of bands.
    undersmooth : bool
        Of a :class:`cfiv.SieveIV` that chose its segments from the data: whether estimates and intervals are of a basis with
        twice as many functions of the treatment. The estimator's own curve balances bias and noise, and no interval counts the
        bias. False takes that curve, with the narrower band of Chen, Christensen and Kankanala, which may hold far less often
        than it says. Notes say which it is.
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
    regression", *Quantitative Economics* 9, 2018, for bands by multipliers. Chen, Christensen and Kankanala, "Adaptive
    estimation and uniform confidence bands for nonparametric structural functions and elasticities", *Review of Economic
    Studies* (arXiv 2107.11869), for those around a size that the data chose.

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
    check_flag("undersmooth", undersmooth)
    fitted = _fitted(model)
    function = undersmoothed(fitted) if undersmooth else fitted
    with within_memory("infer", "fit fewer rows, or a smaller basis"):
        rows = FittedRows.of(data, model, covariance=covariance, clusters=clusters)
        bases = bases_of(function)
        blocks = blocks_of(rows.data, bases, instrumented=not isinstance(model, LeastSquares))
        outcome = Outcome.of(rows.data.outcome, root=blocks[0].root, centred=bool(blocks[0].structural.constant.any()))
        stages = [TwoStage.of(block, outcome) for block in blocks]
        rows.check_groups(len(stages[0].coordinates))
        small = rows.small_sample(getattr(model, "debiased", None), coefficients=len(stages[0].coordinates))
        clustered = list(rows.groups.values())
        joint = joint_fit(
            stages,
            blocks,
            outcome,
            covariance=rows.covariance,
            clusters=clustered,
            small=small,
            known_constant=rows.absorbed is not None and len(clustered) > 1,
        )
        rows.check_same(joint.fitted, function.components[0], model)
        treatments = function.encoder.raw(rows.raw)[list(function.encoder.treatment_names)]
        leverage = joint.leverage
        if rows.absorbed is not None:  # which was of columns that vary less than those that are asked of
            asked = bases[0].structural_columns(*function.encoder.inputs(rows.raw))
            leverage = float(joint.fits[0].leverage(asked, rows=len(rows)).max())
        seen = Seen.of(treatments, leverage=leverage)
        average = Asker(function, bases, joint.fits, seen, len(rows)).derivatives(rows.raw)
    strength = Strength.of(
        stages[0].correlations,
        rows=len(rows) - (0 if rows.absorbed is None else rows.absorbed.rank - 1),
        instruments=stages[0].instruments,
        treatments=treatments.shape[1],
    )
    choice = choice_of(function)
    multipliers = Multipliers(
        level=float(level),
        draws=draws,
        seed=seed,
        df=small.t_dof,
        allowance=0.0 if choice is None else choice.allowance,
    )
    too_small = _is_contradicted(model, choice_of(fitted), data, undersmooth=undersmooth, seed=seed)
    doubts = _doubts(model, strength, too_small=too_small)
    return Inference(
        function=function,
        law=Law(joint.fits, multipliers, bool(doubts)),
        average=average,
        seen=seen,
        strength=strength,
        covariance=rows.describe(small),
        rows=len(rows),
        notes=(*[ABSORBED] * (rows.absorbed is not None), *_notes(model, choice_of(fitted), undersmooth=undersmooth), *doubts),
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


def _notes(model: StructuralEstimator, choice: SizeChoice | None, *, undersmooth: bool) -> tuple[str, ...]:
    """What the estimates are of, where that is not what the estimator's name says."""
    if isinstance(model, LeastSquares):
        return ("least squares takes treatments for exogenous: its intervals are not of the structural function",)
    if choice is None:
        return ()
    chosen, larger = choice.sizes[choice.chosen], choice.sizes[choice.larger]
    if not undersmooth:
        return (f"of the {chosen} functions that the data chose, whose bias may be larger than the band allows for",)
    if choice.larger == choice.chosen:
        return (f"of {chosen} functions, and these rows do not bear more: the bias of the curve may not be small",)
    few = "" if larger >= 2 * chosen else f"; twice {chosen} are more than these rows bear, so its bias may not be small"
    return (f"estimates are of {larger} functions of the treatment, for small bias; the curve of {chosen} is the model's{few}",)


def _is_contradicted(model: StructuralEstimator, choice: SizeChoice | None, data: Any, *, undersmooth: bool, seed: int) -> bool:
    """Whether larger bases have another curve than that of the estimates, by more than noise."""
    if choice is not None:
        return choice.contradicted(choice.larger if undersmooth else choice.chosen)
    if not isinstance(model, SieveIV):
        return False
    compared = model.compare_larger(data, np.random.default_rng(seed))
    return compared is not None and compared.contradicted(0)


def _doubts(model: StructuralEstimator, strength: Strength | None, *, too_small: bool) -> tuple[str, ...]:
    """Why the intervals may hold less often than they say."""
    if isinstance(model, LeastSquares):
        return ()
    found = []
    if strength is not None and strength.is_weak:
        found.append(
            f"the instruments may be weak (F-type {strength.leading_f:.3g}, not above {strength.critical_value:.3g}): "
            "intervals and bands may hold less often than they say; cfiv.diagnose has an Anderson-Rubin set"
        )
    if too_small:
        found.append(
            "larger sizes have another curve, by more than noise: this basis is too small, and intervals and bands may hold "
            "less often than they say"
        )
    return tuple(found)
