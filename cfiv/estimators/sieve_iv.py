"""Sieve instrumental variables: nonparametric two-stage least squares in B-splines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from cfiv.checks import check_choice, check_random_state, check_whole
from cfiv.data import Array, IVData
from cfiv.errors import DataError
from cfiv.estimators.components import SieveComponent
from cfiv.estimators.estimator import Estimate, StructuralEstimator, warn_of_learned_constant
from cfiv.estimators.sieve_columns import INSTRUMENT_SEGMENTS, SieveColumns, SplineOptions, Structure
from cfiv.estimators.units import Standardiser, check_units
from cfiv.numerics.sieve_basis import SieveBasis, in_blocks
from cfiv.numerics.sieve_choice import TOLERANCE, SieveChoice, choose_size
from cfiv.numerics.sieve_iv import SieveFit, fit_basis
from cfiv.numerics.splines import Knots
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names

#: Segments that may be asked for.
MOST_SEGMENTS = 1000


class SieveIV(StructuralEstimator):
    """Sieve instrumental variables: ``h`` in B-splines, by two-stage least squares on B-splines of the instruments.

    With structural columns ``f(t, x)`` (n, p), instrument columns ``phi(z, x)`` (n, q) and row weights ``w``

        h(t, x) = c' f(t, x),    c = (F' P F)^-1 F' P Y,    P = W Phi (Phi' W Phi)^- Phi' W,

    a closed form without a penalty: what regularises is the number of segments. It is given, or chosen from the data.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`. Columns that are named plainly become splines; terms that the formula makes, such as
        ``C(region)``, ``poly(x, 2)`` or ``t:x``, enter as they are written. Covariates of few distinct values are straight
        lines, and so are those whose curve the formula writes out by hand, as an age and its square.
    clusters : str, optional
        A column of groups of rows whose errors may be correlated: they share their multipliers in the choice.
    structure : {"additive", "tensor", "linear"}
        ``h(t, x) = s(t) + g(x)`` with splines of each covariate; ``s`` and ``g`` multiplied, so that effects vary with
        covariates; or covariates as straight lines. Several treatments are always added up.
    segments : "auto" or int
        Polynomial pieces of the splines of treatments and covariates; "auto" doubles them from 1 and takes the smallest number
        whose curve differs from those of larger ones by no more than noise.
    degree, instrument_degree : int
        Of the polynomials, from 1 (straight) to 10.
    instrument_segments : int, optional
        Pieces of the splines of instruments; None is four times ``segments``.
    knots : {"uniform", "quantiles"}
        Where pieces meet: equally spaced over the range of training, or at quantiles there.
    draws : int
        Of Gaussian multipliers, by which "auto" judges differences.
    random_state : int, Generator or None
        Source of the multipliers; the same int gives the same numbers, bit for bit on one machine.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    segments_ : int
        Used.
    sizes_ : DataFrame
        The sizes compared, one row each: ``segments, columns`` (J), ``correlation`` (the smallest canonical correlation ``s_J``
        of the two bases), ``contrast`` (the largest difference to a larger size, in standard deviations), ``chosen``.

    Raises
    ------
    ParameterError
        For segments, degrees or draws out of range.
    DataError
        If there are fewer rows than instrument columns, or the columns do not determine ``c``: a treatment of few values, or
        instruments that take fewer values than the structural columns need.

    Warns
    -----
    FormulaWarning
        For a formula that takes the constant away: splines carry one.

    Notes
    -----
    Covariates are instruments for themselves: their columns are the same in both bases. Beyond the treatments and covariates
    of training ``h`` goes on along its tangents: it is not known there.

    The choice is the rule of Chen, Christensen and Kankanala (:mod:`cfiv.numerics.sieve_choice`). It compares curves over the
    range of each treatment at 50 points, the other columns at their medians (with "tensor", covariates at their quartiles as
    well), and tries no size that has more than one instrument column for four rows.

    **Intervals need a larger size than estimates.** The rule balances bias and noise, and its allowance for bias may be far too
    small. :func:`cfiv.infer` therefore estimates with more functions; see ``docs/estimators/sieve_iv.md``.

    A fit costs O(n (p + q)^2) for each size and holds blocks of rows: a million rows are no matter. The estimate of a given
    size is consistent only if sizes grow with n, and intervals around it are those of its own basis.

    References
    ----------
    Newey, Powell, "Instrumental Variable Estimation of Nonparametric Models", Econometrica 71 (2003). Chen, Christensen,
    "Optimal Sup-norm Rates and Uniform Inference on Nonlinear Functionals of Nonparametric IV Regression", Quantitative
    Economics 9 (2018). Chen, Christensen, Kankanala, "Adaptive Estimation and Uniform Confidence Bands for Nonparametric
    Structural Functions and Elasticities", Review of Economic Studies (arXiv 2107.11869).

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=1000, rho=0.5, seed=0)
    >>> model = SieveIV("sales ~ time + emotion + [price ~ fuel]", random_state=0).fit(train.frame)
    >>> model.dose_response([15.0, 20.0, 25.0]).columns.tolist()
    ['price', 'estimate', 'supported']
    """

    _SMALLER = "fit fewer rows, or use fewer segments"

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
        clusters: str | None = None,
        structure: Structure = "additive",
        segments: int | Literal["auto"] = "auto",
        degree: int = 3,
        instrument_degree: int = 4,
        instrument_segments: int | None = None,
        knots: Knots = "uniform",
        draws: int = 1000,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.formula = formula
        self.outcome = outcome
        self.treatment = treatment
        self.instruments = instruments
        self.covariates = covariates
        self.weights = weights
        self.missing = missing
        self.clusters = clusters
        self.structure = structure
        self.segments = segments
        self.degree = degree
        self.instrument_degree = instrument_degree
        self.instrument_segments = instrument_segments
        self.knots = knots
        self.draws = draws
        self.random_state = random_state

    segments_: int
    sizes_: pd.DataFrame

    def _check_parameters(self) -> None:
        check_choice("structure", self.structure, ("additive", "tensor", "linear"))
        if not (isinstance(self.segments, str) and self.segments == "auto"):
            check_whole("segments", self.segments, least=1, most=MOST_SEGMENTS, alternative="or 'auto'")
        check_whole("degree", self.degree, least=1, most=10)
        check_whole("instrument_degree", self.instrument_degree, least=1, most=10)
        if self.instrument_segments is not None:
            check_whole(
                "instrument_segments",
                self.instrument_segments,
                least=1,
                most=MOST_SEGMENTS,
                alternative=f"or None for {INSTRUMENT_SEGMENTS} times the segments",
            )
        check_choice("knots", self.knots, ("uniform", "quantiles"))
        check_whole("draws", self.draws, least=100, most=1_000_000)
        check_random_state(self.random_state)

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        assert data.names is not None
        check_units(data)
        if not intercept:
            warn_of_learned_constant(self)
        columns, scale = self._columns(data)
        fit, larger, choice = self._fits_and_choice(columns)
        if not fit.determined:
            raise columns.refusal(fit)
        self.segments_ = int(self.segments) if choice is None else choice.segments[choice.chosen]
        records = _records(fit, choice, segments=self.segments_)
        self.sizes_ = pd.DataFrame(records)
        own, wider = (SieveComponent(part.basis, _in_units(part.coefficients, scale)) for part in (fit, larger))
        component = replace(own, choice=choice, undersmoothed=None if larger is fit else wider)
        reduced_form = SieveReducedForm(fit.basis, _in_units(fit.reduced, scale))
        return Estimate((component,), reduced_form, _facts(fit, choice, records), pd.DataFrame())

    def compare_larger(self, data: Any, generator: np.random.Generator) -> SieveChoice | None:
        """The segments given, the first size, beside twice, four times, ... as many; None where there is no solution.

        Parameters
        ----------
        data : table or IVData
            The rows of training.
        generator : Generator
            Of the multipliers.
        """
        return self._compare(
            self._columns(self.encode(data)[1].with_positive_weight())[0], generator, least=int(self.segments)
        )[2]

    def _columns(self, data: IVData) -> tuple[SieveColumns, Standardiser]:
        """The columns of the roles, with a standardised outcome, and its scale."""
        scale = Standardiser.fit(data.outcome[:, None], data.weights)
        columns = SieveColumns.of(
            data,
            outcome=scale.apply(data.outcome),
            plain=None if self._roles() is None or data.frame is None else frozenset(map(str, data.frame.columns)),
            options=SplineOptions(
                structure=self.structure,
                degree=int(self.degree),
                instrument_degree=int(self.instrument_degree),
                instrument_segments=None if self.instrument_segments is None else int(self.instrument_segments),
                knots=self.knots,
            ),
        )
        return columns, scale

    def _fits_and_choice(self, columns: SieveColumns) -> tuple[SieveFit, SieveFit, SieveChoice | None]:
        """Of the segments given, or of those that the data choose, and of more that bands need."""
        smallest, rows = columns.basis(1 if self.segments == "auto" else int(self.segments)), columns.rows
        if smallest.instrument_width >= len(rows):
            raise DataError(
                f"SieveIV needs more rows than its {smallest.instrument_width} instrument columns, got {len(rows)} rows: use "
                "fewer instruments, covariates or segments, or structure='linear'"
            )
        if self.segments != "auto":
            given = fit_basis(smallest, rows)
            return given, given, None
        return self._compare(columns, np.random.default_rng(self.random_state), least=1)

    def _compare(
        self, columns: SieveColumns, generator: np.random.Generator, *, least: int
    ) -> tuple[SieveFit, SieveFit, SieveChoice | None]:
        return choose_size(
            columns.basis,
            columns.rows,
            columns.points(),
            variables=columns.variables,
            draws=int(self.draws),
            generator=generator,
            least=least,
        )


@dataclass(frozen=True, eq=False)
class SieveReducedForm:
    """``E[h | Z, X] = reduced' phi`` in the outcome's units."""

    basis: SieveBasis
    reduced: Array

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        """Shape (n,), at instruments (n, k) and covariates (n, c)."""
        return in_blocks(self.basis.instrument_columns, self.reduced, instruments, covariates)


def _in_units(coefficients: Array, scale: Standardiser) -> Array:
    """Of a standardised outcome, in the outcome's units; the first column of both bases is the constant."""
    scaled = coefficients * scale.scale
    scaled[0] += scale.mean[0]
    return np.asarray(scaled)


def _records(fit: SieveFit, choice: SieveChoice | None, *, segments: int) -> list[dict[str, Any]]:
    """One a size compared."""
    if choice is None:
        return [{"segments": segments, "columns": fit.basis.size, "correlation": fit.correlation, "chosen": True}]
    return [
        {"segments": many, "columns": size, "correlation": correlation, "contrast": contrast, "chosen": i == choice.chosen}
        for i, (many, size, correlation, contrast) in enumerate(
            zip(choice.segments, choice.sizes, choice.correlations, choice.contrasts, strict=True)
        )
    ]


def _facts(fit: SieveFit, choice: SieveChoice | None, records: list[dict[str, Any]]) -> dict[str, Any]:
    """For the summary."""
    facts: dict[str, Any] = {
        "Structural columns": fit.basis.width,
        "Instrument columns": fit.basis.instrument_width,
        "Smallest canonical correlation": f"{fit.correlation:.3g}",
    }
    if choice is not None:
        facts |= {
            "Contrasts allowed": f"{TOLERANCE * choice.threshold:.3g}",
            "Segments for intervals": choice.segments[choice.larger],
        }
    return facts | {"Sizes": records}
