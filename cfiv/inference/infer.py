"""``cfiv.infer``: data and a fitted estimator in, intervals and bands for any question out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cfiv.checks import check_choice, check_flag, check_whole, shown
from cfiv.errors import NotFittedError, ParameterError
from cfiv.estimators.dfiv import DFIV
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.kernel_iv import KernelIV
from cfiv.estimators.least_squares import LeastSquares
from cfiv.estimators.liml import LIML
from cfiv.estimators.sieve_iv import SieveIV
from cfiv.estimators.small_sample import SmallSample
from cfiv.estimators.structural import StructuralFunction
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.corrected import FOLDS, correct
from cfiv.inference.doubts import (
    ABSORBED,
    TOO_SMALL,
    doubts_of_agreement,
    doubts_of_clusters,
    doubts_of_learned,
    doubts_of_strength,
    is_too_small,
    notes_of_outcome,
    notes_of_size,
)
from cfiv.inference.estimates import Averages, Law
from cfiv.inference.fitted_rows import FittedRows
from cfiv.inference.functionals import Asker
from cfiv.inference.inference import Inference
from cfiv.inference.joint_fit import joint_fit
from cfiv.inference.linear_in_basis import bases_of, choice_of, undersmoothed
from cfiv.inference.overidentification import Overidentification, SpareMoments
from cfiv.inference.row_blocks import blocks_of
from cfiv.inference.seen import Seen
from cfiv.inference.simultaneous import DRAWS, Multipliers, check_draws, check_level
from cfiv.inference.strength import Strength
from cfiv.inference.two_stage import Outcome, TwoStage
from cfiv.memory import within_memory
from cfiv.numerics.sieve_iv import RESOLVED
from cfiv.runtime.surroundings import ordinary_torch

#: Estimators whose function the outcomes make: intervals are of it corrected.
LEARNED = (DFIV, KernelIV)
#: Why some estimators have no intervals, and what to use.
WITHOUT = {
    "NetworkRegression": (
        "its features were learned from the same rows, and it takes treatments for exogenous: use SieveIV, or LeastSquares "
        "with splines, such as [bs(t, df=5) ~ z]"
    ),
    **dict.fromkeys(
        ("DeepIV", "AGMM"), "it is here to be compared with: use SieveIV, or DFIV, which is corrected before it has bands"
    ),
}


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

        u = (F' P F)^-1 F' P Y,        f^ = P f,    e = Y - f' u,
        V = (F' P F)^-1 [sum_i f^_i f^_i' e_i^2] (F' P F)^-1

    (White's covariance; summed within clusters, or homoskedastic), and a functional ``l' u`` has the variance ``l' V l``. Of
    :class:`cfiv.LIML` ``kappa P - (kappa - 1) I`` stands in the place of ``P`` but in ``f^``.

    A function that outcomes have taught, of :class:`cfiv.DFIV` or :class:`cfiv.KernelIV`, is corrected first: what the
    functions of other rows leave over goes to splines, without a penalty, of which the above then holds
    (``cfiv.inference.corrected``). The estimates are of the corrected function.

    Bands hold for all estimates of one question at once: their critical value is the quantile of the largest absolute t
    statistic over them, by Gaussian multipliers.

    Parameters
    ----------
    data : table, path or IVData
        The rows that the estimator was fitted to; a path of a Parquet file or folder, as for ``fit``.
    model : estimator
        Fitted: :class:`cfiv.SieveIV`; :class:`cfiv.TwoStageLeastSquares`, :class:`cfiv.LIML` or :class:`cfiv.LeastSquares`,
        with any formula; or :class:`cfiv.DFIV` or :class:`cfiv.KernelIV`, which are fitted five times more, to the rows outside
        each fold. Roles, weights, fixed effects and ``debiased`` are its own.
    covariance : {"robust", "unadjusted", "clustered"}, optional
        By default the estimator's, or clustered where clusters are given.
    clusters : str or two of them, optional
        Columns of labels of groups with correlated errors, of one kind or two; by default the estimator's. Of arrays one kind,
        as ``IVData(clusters=...)``.
    level : float
        Of confidence, of intervals and of bands.
    undersmooth : bool
        Of a :class:`cfiv.SieveIV` that chose its segments from the data: whether estimates and intervals are of a larger
        basis, with four times the noise or twice the functions of the treatment. The estimator's own curve balances bias and
        noise, and no interval counts the bias. False takes that curve, with the narrower band of Chen, Christensen and
        Kankanala, which may hold far less often than it says. Likewise of curves of learned functions. Notes say which it is.
    draws : int
        Of the multipliers, at least 100.
    random_state : int
        Of the multipliers; of learned functions also of the folds and the fits. No global generator is used or changed.

    Returns
    -------
    Inference

    Raises
    ------
    ParameterError
        For :class:`cfiv.NetworkRegression` and images, with the reason and what to use instead; for a level, draws or a
        covariance out of range, and clusters that nothing would use.
    NotFittedError
        If the estimator has not been fitted.
    DataError
        For other rows or columns than those of the fit, too few rows for folds, as few clusters as functions in the basis or
        fewer, and instruments that do not move the whole basis.

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
    function = _fitted(model)
    with within_memory("infer", "fit fewer rows, or a smaller basis"), ordinary_torch():
        rows = FittedRows.of(data, model, covariance=covariance, clusters=clusters)
        ask = _learned if isinstance(model, LEARNED) else _in_fixed_basis
        answer = ask(data, rows, model, undersmooth=undersmooth, seed=seed)
        function, small = answer.function, answer.small
        treatments = function.encoder.raw(rows.raw)[list(function.encoder.treatment_names)]
        seen = Seen.of(treatments, leverage=answer.leverage)
        averaged, own = (function, answer.fits) if answer.averages is None else answer.averages
        # Of rows on disk the columns are there already; those that fixed effects were taken out of are others.
        inputs = (rows.data.treatment, rows.data.covariates) if rows.absorbed is None else None
        average = Asker(averaged, bases_of(averaged), own, seen, len(rows)).derivatives(rows.raw, inputs=inputs)
    strength = Strength.of(
        answer.stage.correlations,
        rows=len(rows) - (0 if rows.absorbed is None else rows.absorbed.rank - 1),
        instruments=answer.stage.instruments,
        treatments=treatments.shape[1],
    )
    multipliers = Multipliers(
        level=float(level),
        draws=draws,
        seed=seed,
        df=small.t_dof,
        allowance=answer.allowance,
    )
    overidentification = Overidentification.of(answer.spare)
    weak = doubts_of_strength(model, strength) or doubts_of_clusters(model, rows)
    doubts = (*weak, *doubts_of_agreement(overidentification), *answer.doubts)
    return Inference(
        function=function,
        law=Law(answer.fits, multipliers, bool(doubts)),
        averages=None if answer.averages is None else Averages(averaged, Law(own, multipliers, bool(doubts))),
        average=average,
        seen=seen,
        strength=strength,
        overidentification=overidentification,
        covariance=rows.describe(small),
        rows=len(rows),
        notes=(
            *[ABSORBED] * (rows.absorbed is not None),
            *answer.notes,
            *notes_of_outcome(model.structural_function_),
            *doubts,
        ),
    )


@dataclass(frozen=True, eq=False)
class _Answer:
    """The function that intervals are of, the law of its coefficients, and what is to be said of it.

    Parameters
    ----------
    function : StructuralFunction
    fits : tuple of BasisFit
    stage : TwoStage
        Of the basis that instruments have to move.
    small : SmallSample
    leverage : float
        The largest of a row in it.
    spare : SpareMoments
        Of its instruments.
    notes, doubts : tuple of str
    allowance : float
        That a band owes to a size which the data chose.
    averages : StructuralFunction and tuple of BasisFit, or None
        The function that averages over rows are of, where it is another.
    """

    function: StructuralFunction
    fits: tuple[BasisFit, ...]
    stage: TwoStage
    small: SmallSample
    leverage: float
    spare: SpareMoments
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    allowance: float = 0.0
    averages: tuple[StructuralFunction, tuple[BasisFit, ...]] | None = None


def _in_fixed_basis(data: Any, rows: FittedRows, model: StructuralEstimator, *, undersmooth: bool, seed: int) -> _Answer:
    """Of an estimator that is linear in a basis which its outcomes did not make."""
    fitted = model.structural_function_
    function = undersmoothed(fitted) if undersmooth else fitted
    blocks = blocks_of(rows.data, bases_of(function), instrumented=not isinstance(model, LeastSquares))
    outcome = Outcome.of(rows.data.outcome, root=blocks[0].root, centred=bool(blocks[0].structural.constant.any()))
    excess = model.results_.excess if isinstance(model, LIML) else 0.0
    resolved = RESOLVED if isinstance(model, SieveIV) else 0.0
    stages = [TwoStage.of(block, outcome, excess=excess, resolved=resolved) for block in blocks]
    rows.check_groups(len(stages[0].coordinates))
    clustered = list(rows.groups.values())
    small = rows.small_sample(getattr(model, "debiased", None), coefficients=len(stages[0].coordinates))
    joint = joint_fit(
        stages,
        blocks,
        outcome,
        covariance=rows.covariance,
        clusters=clustered,
        small=small,
        known_constant=rows.absorbed is not None and len(clustered) > 1,
    )
    rows.check_same(joint.fits[0], blocks[0].basis, function.components[0], model)
    leverage = joint.leverage
    if rows.absorbed is not None:  # which was of columns that vary less than those that are asked of
        asked = blocks[0].basis.structural_columns(*function.encoder.inputs(rows.raw))
        leverage = float(joint.fits[0].leverage(asked, rows=len(rows)).max())
    choice = choice_of(function)
    too_small = is_too_small(model, choice_of(fitted), data, undersmooth=undersmooth, seed=seed)
    return _Answer(
        function=function,
        fits=joint.fits,
        stage=stages[0],
        small=small,
        leverage=leverage,
        spare=joint.spare,
        notes=notes_of_size(model, choice_of(fitted), undersmooth=undersmooth),
        doubts=(TOO_SMALL,) if too_small else (),
        allowance=0.0 if choice is None else choice.allowance,
    )


def _learned(data: Any, rows: FittedRows, model: StructuralEstimator, *, undersmooth: bool, seed: int) -> _Answer:
    """Of an estimator whose function the outcomes have made: corrected by splines, see :mod:`cfiv.inference.corrected`."""
    own = model.structural_function_
    rows.check_reference(data, model)
    found = correct(rows, model, intercept=own.encoder.intercept, undersmooth=undersmooth, seed=seed)
    curve, average = (
        replace(own, components=(fit.component,), shares=(), facts={})  # which are of the model's own curve
        for fit in (found.curve, found.average)
    )
    widths = [fit.component.basis.splines.width for fit in (found.curve, found.average)]
    name = type(model).__name__
    return _Answer(
        function=curve,
        fits=(found.curve.fit,),
        stage=found.average.stage,
        small=rows.small_sample(None, coefficients=found.curve.fit.size),
        leverage=found.curve.leverage,
        spare=found.curve.spare,
        notes=(
            f"estimates are {name} corrected by two-stage least squares in splines ({widths[0]} columns for curves, "
            f"{widths[1]} for averages), cross-fitted in {FOLDS} folds; the model's own curve has no intervals",
        ),
        doubts=doubts_of_learned(model, found, rows.data.treatment),
        averages=None if found.average is found.curve else (average, (found.average.fit,)),
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
