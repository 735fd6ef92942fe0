"""Inference on learned structural functions: what they leave over goes to splines by two-stage least squares, cross-fitted.

With splines ``s(t, x)`` (n, p), their instruments and the projection ``P`` on these, ``h_k`` learned from the rows outside fold
``k``, ``w_k`` the fold's share of the rows and ``k(i)`` the fold of row ``i``,

    c_k = (S' P S)^-1 S' P h_k,         a_k = h_k - c_k' s,
    b   = (S' P S)^-1 S' P [Y_i - a_k(i)(T_i, X_i)],
    h   = sum_k w_k a_k + b' s.

``a_k`` is what the learned function is beyond the splines: if it is nothing, ``h`` is two-stage least squares of all rows in
the splines, to rounding. No row's error enters the function that is taken off it, so that ``b`` has the sandwich covariance of
any two-stage least squares; what ``a`` varies by adds the jackknife over folds, for a linear functional ``l`` of ``h``

    Var l(h) = l(s)' Cov(b) l(s) + (K - 1) / K sum_k [l(a_k) - sum_j w_j l(a_j)]^2.

The splines have no penalty, whose bias no sandwich counts. Averages over rows, whose bias the learned function takes away by
itself, are of as many as balance bias and noise; curves of more, until their noise is ``NOISIER`` times that or they are twice
as many (:func:`cfiv.numerics.sieve_choice.noisier`). Averages have half the instruments, of which many bias them towards least
squares.

References
----------
Chernozhukov, Chetverikov, Demirer, Duflo, Hansen, Newey, Robins, "Double/debiased machine learning for treatment and structural
parameters", *Econometrics Journal* 21, 2018, for cross-fitting; Chen and Christensen, *Quantitative Economics* 9, 2018, for
two-stage least squares in splines. Their combination, and the jackknife, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from torch import nn

from cfiv.data import Array, IVData
from cfiv.errors import ParameterError
from cfiv.estimators.corrected import CorrectedBasis, CorrectedComponent
from cfiv.estimators.cross_fitting import CrossFit, cross_fit
from cfiv.estimators.dfiv import DFIV
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.sieve_columns import SieveColumns, SplineOptions
from cfiv.estimators.units import Standardiser
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.fitted_rows import FittedRows
from cfiv.inference.joint_fit import joint_fit
from cfiv.inference.overidentification import SpareMoments
from cfiv.inference.row_blocks import RowBlocks, blocks_of
from cfiv.inference.scaling import Scaling
from cfiv.inference.two_stage import Outcome, TwoStage
from cfiv.numerics.sieve_basis import SieveBasis
from cfiv.numerics.sieve_choice import ROWS_A_COLUMN, choose_size, noisier
from cfiv.numerics.sieve_iv import SieveFit, fit_basis

FOLDS = 5
#: Times the noise of the size that balances bias and noise.
NOISIER = 2.5
#: Segments of instruments for one of the treatment, of averages.
AVERAGE_INSTRUMENTS = 2
#: Segments of the splines beyond which learned functions are taken off before sizes are compared: the first that rows bear.
REFERENCE_SEGMENTS = (8, 4, 2, 1)
#: Multipliers by which sizes are compared.
DRAWS = 1000
#: Rows for each spline column of the covariates: of more, covariates are straight lines.
ROWS_A_COVARIATE_COLUMN = 25


@dataclass(frozen=True, eq=False)
class CorrectedFit:
    """The corrected estimate and its law.

    Parameters
    ----------
    component : CorrectedComponent
    fit : BasisFit
        Of its splines and learned functions.
    stage : TwoStage
        Of the splines.
    leverage : float
        The largest of a row, in the splines.
    spare : SpareMoments
        Of the instruments of the splines.
    """

    component: CorrectedComponent
    fit: BasisFit
    stage: TwoStage
    leverage: float
    spare: SpareMoments


@dataclass(frozen=True, eq=False)
class Corrected:
    """Two corrected estimates of the same learned functions.

    Parameters
    ----------
    curve, average : CorrectedFit
        For single points and curves, and for averages over rows; the same where splines are few for both.
    contradicted : bool
        Whether larger sizes than the one that was chosen have another curve, by more than noise.
    straight : bool
        Whether the instruments tell no more than lines apart.
    """

    curve: CorrectedFit
    average: CorrectedFit
    contradicted: bool
    straight: bool


def correct(rows: FittedRows, model: StructuralEstimator, *, intercept: bool, undersmooth: bool, seed: int) -> Corrected:
    """Fit the estimator to the rows outside each fold, and splines to what is left over.

    Parameters
    ----------
    rows : FittedRows
    model : StructuralEstimator
        As it is configured; it is not changed.
    intercept : bool
        Of its formula.
    undersmooth : bool
        Whether splines of curves are more than balance bias and noise.
    seed : int
        Of the folds, the fits and the multipliers that compare sizes.

    Raises
    ------
    ParameterError
        For images.
    DataError
        For too few rows, and instruments that do not move even straight lines.
    """
    data = rows.data
    if data.treatment.ndim > 2:
        raise ParameterError(
            f"{type(model).__name__} of images has no intervals: instruments move few of the ways in which pictures differ, "
            "and the others are shrunk on purpose; ask for the effect of a number that the picture shows, as a treatment column"
        )
    size_generator, fold_generator = np.random.default_rng(seed).spawn(2)
    groups = next(iter(rows.groups.values()), data.clusters)
    crossed = cross_fit(model, data, intercept=intercept, groups=groups, folds=FOLDS, generator=fold_generator)
    scale = Standardiser.fit(data.outcome[:, None], data.weights)
    columns = _columns(data, scale.apply(data.outcome), straight=_not_learned(model))
    sizes = _Sizes.of(columns, crossed, scale.apply(crossed.values), undersmooth=undersmooth, generator=size_generator)
    curve = _corrected(rows, crossed, sizes.curve)
    average = curve if sizes.average is sizes.curve else _corrected(rows, crossed, sizes.average)
    return Corrected(curve, average, contradicted=sizes.contradicted, straight=sizes.straight)


def _corrected(rows: FittedRows, crossed: CrossFit, splines: SieveBasis) -> CorrectedFit:
    """In given splines."""
    data = rows.data
    (block,) = blocks_of(data, (splines,), instrumented=True)
    outcome = Outcome.of(data.outcome, root=block.root, centred=True)
    stage = TwoStage.of(block, outcome)
    rows.check_groups(len(stage.coordinates))
    learned = _scaled(crossed.values, outcome)
    projections = stage.spread @ _products(stage.predictor, block, learned)  # (F' P F)^-1 F' P h_k
    left = replace(outcome, values=outcome.values - _beyond(stage, block, crossed, learned, projections))
    stage = TwoStage.of(block, left)
    joint = joint_fit(
        [stage],
        [block],
        left,
        covariance=rows.covariance,
        clusters=list(rows.groups.values()),
        small=rows.small_sample(None, coefficients=len(stage.coordinates)),
    )
    weights = np.bincount(crossed.folds, weights=block.root**2, minlength=len(crossed.functions)) / len(data)
    apart = np.sqrt((FOLDS - 1) / FOLDS) * (np.eye(FOLDS) - weights[:, None])
    fit = _with_learned(joint.fits[0], projections, apart, weights, outcome)
    component = CorrectedComponent(CorrectedBasis(splines, crossed.functions), fit.estimate(np.eye(fit.size)))
    between = _products(stage.spare, block, learned) @ apart
    spare = replace(joint.spare, covariance=joint.spare.covariance + between @ between.T)
    return CorrectedFit(component, fit, stage, joint.leverage, spare)


@dataclass(frozen=True, eq=False)
class _Sizes:
    """Splines of the two estimates, and what is known of them."""

    curve: SieveBasis
    average: SieveBasis
    contradicted: bool = False
    straight: bool = False

    @classmethod
    def of(
        cls,
        columns: SieveColumns,
        crossed: CrossFit,
        learned: Array,
        *,
        undersmooth: bool,
        generator: np.random.Generator,
    ) -> Self:
        """As many as the outcome calls for, and more; lines where instruments tell nothing else apart.

        Asked of the outcome less what learned functions have beyond splines of many segments, such as products of treatments
        and covariates, which would be noise to splines.
        """
        straight = columns.straight("treatment", "instruments").basis(1)
        if not any(columns.curved["treatment"]):
            return cls(straight, straight)
        reference = _reference(columns)
        if reference is None:
            return cls(straight, straight, straight=True)
        outcome = columns.rows.outcome - _left(reference, columns, crossed, learned)
        columns = replace(columns, rows=replace(columns.rows, outcome=outcome))
        fit, _, choice = choose_size(
            columns.basis, columns.rows, columns.points(), variables=columns.variables, draws=DRAWS, generator=generator
        )
        if choice is None:
            return cls(straight, straight, straight=True)
        segments, contradicted = choice.segments[choice.chosen], choice.contradicted(choice.chosen)
        fewer = fit_basis(columns.with_instrument_segments(AVERAGE_INSTRUMENTS * segments).basis(segments), columns.rows)
        average = fewer.basis if fewer.determined else fit.basis
        if undersmooth:
            fit = noisier(columns.basis, columns.rows, columns.points(), start=fit, segments=segments, ratio=NOISIER)
        return cls(fit.basis, average, contradicted=contradicted)


def _not_learned(model: StructuralEstimator) -> tuple[str, ...]:
    """Roles of which the user's networks make nothing but what goes in: there the estimate is a line by choice."""
    fits = getattr(model, "fits_", None)
    if not isinstance(model, DFIV) or not fits:
        return ()
    networks = {"treatment": fits[0].networks.treatment, "covariates": fits[0].networks.covariate}
    straight = [role for role, network in networks.items() if isinstance(network, nn.Identity)]
    return (*straight, "instruments") if "treatment" in straight else ()


def _columns(data: IVData, outcome: Array, *, straight: tuple[str, ...]) -> SieveColumns:
    """With a standardised outcome; covariates are straight lines where their splines would be many for the rows."""
    columns = SieveColumns.of(
        data,
        outcome=outcome,
        plain=None if data.frame is None else frozenset(map(str, data.frame.columns)),
        options=SplineOptions(structure="additive", degree=3, instrument_degree=4, instrument_segments=None, knots="uniform"),
    )
    smallest = columns.basis(1)
    many = ROWS_A_COVARIATE_COLUMN * (smallest.width - smallest.size) > len(data)
    return columns.straight(*straight, *(("covariates",) if many else ()))


def _reference(columns: SieveColumns) -> SieveFit | None:
    """In as many segments as the rows bear."""
    for segments in REFERENCE_SEGMENTS:
        basis = columns.basis(segments)
        if ROWS_A_COLUMN * basis.instrument_width <= len(columns.rows):
            fit = fit_basis(basis, columns.rows)
            # Instrument columns that depend on one another, as of intervals without a row, leave projections to rounding.
            if fit.determined and fit.instrument_rank == basis.instrument_width:
                return fit
    return None


def _left(fit: SieveFit, columns: SieveColumns, crossed: CrossFit, learned: Array) -> Array:
    """What is beyond the splines of a fit in the function that has not seen a row, (n,)."""
    products = np.zeros((fit.basis.instrument_width, learned.shape[1]))
    for block, _, instruments in columns.rows.columns(fit.basis):
        products += instruments.T @ (columns.rows.weights[block, None] * learned[block])
    projections = (fit.influence.T @ products).T[crossed.folds]
    left = learned[np.arange(len(learned)), crossed.folds]
    for block, structural, _ in columns.rows.columns(fit.basis):
        left[block] -= (structural * projections[block]).sum(axis=1)
    return left


def _scaled(values: Array, outcome: Outcome) -> Array:
    """In the units of ``outcome``, unweighted."""
    centre, scale, exponent = outcome.units
    return np.asarray((np.ldexp(values, -int(exponent)) - centre) / scale)


def _products(predictor: Array, block: RowBlocks, columns: Array) -> Array:
    """Sums over rows of ``(Phi predictor)' g`` (m, K), of instrument columns and columns g (n, K) at the rows."""
    products = np.zeros((predictor.shape[1], columns.shape[1]))
    for rows in block.slices():
        instruments = block.scaled("instruments", rows) @ predictor
        products += instruments.T @ (block.root[rows, None] * columns[rows])
    return products


def _beyond(stage: TwoStage, block: RowBlocks, crossed: CrossFit, learned: Array, projections: Array) -> Array:
    """Weighted ``a_k(i)`` of each row (n,)."""
    own = block.root * learned[np.arange(len(learned)), crossed.folds]
    scales = block.structural.scales / stage.structural.scales
    for rows in block.slices():
        own[rows] -= (block.scaled("structural", rows) * scales * projections.T[crossed.folds[rows]]).sum(axis=1)
    return own


def _with_learned(fit: BasisFit, projections: Array, apart: Array, weights: Array, outcome: Outcome) -> BasisFit:
    """The fit of the splines beside the learned functions, which are known up to what they differ by between folds."""
    folds = len(weights)
    centre, scale, exponent = outcome.units
    own, ones = fit.scaling, np.ones(folds)
    scaling = Scaling(
        np.concatenate([own.exponents, np.full(folds, int(exponent))]),
        np.concatenate([own.centres, centre * ones]),
        np.concatenate([own.scales, scale * ones]),
        np.concatenate([own.constant, np.zeros(folds)]),
    )
    root = np.block([[fit.root, -projections @ apart], [np.zeros((folds, fit.root.shape[1])), apart]])
    coefficients = np.concatenate([fit.coefficients - projections @ weights, weights])
    return BasisFit(scaling, coefficients, root, fit.triangle, fit.outcome)
