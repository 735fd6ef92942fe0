"""The columns of an IVData as splines: which become curves, with which knots, and where curves are compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cfiv.data import Array, IVData
from cfiv.errors import DataError, quoted
from cfiv.numerics.sieve_basis import SieveBasis
from cfiv.numerics.sieve_iv import RESOLVED, SieveFit, SieveRows
from cfiv.numerics.splines import Knots, Spline, side_by_side, with_constant

Structure = Literal["additive", "tensor", "linear"]

#: Covariates of no more distinct values are straight lines.
FEW_VALUES = 10
#: Points along each treatment at which curves are compared.
POINTS = 50
#: Rows, evenly spread, that tell whether splines of covariates depend on one another.
ROWS_LOOKED_AT = 10_000
#: Weight in a combination of columns of length one, below which one of them has no part in it.
NO_PART = 1e-4
#: Instrument segments for one of the treatment, where they are not given.
INSTRUMENT_SEGMENTS = 4


@dataclass(frozen=True, kw_only=True)
class SplineOptions:
    """How columns become splines; :class:`cfiv.SieveIV` explains each."""

    structure: Structure
    degree: int
    instrument_degree: int
    instrument_segments: int | None
    knots: Knots


@dataclass(frozen=True, eq=False, kw_only=True)
class SieveColumns:
    """Rows in their roles, and how their columns become splines.

    Parameters
    ----------
    rows : SieveRows
    names : mapping from role to column names
    curved : dict from role to one bool a column
        Whether it is a curve rather than a straight line; the roles are "treatment", "instruments" and "covariates".
    options : SplineOptions
    """

    rows: SieveRows
    names: Mapping[str, tuple[str, ...]]
    curved: dict[str, tuple[bool, ...]]
    options: SplineOptions

    @classmethod
    def of(cls, data: IVData, *, outcome: Array, plain: Collection[str] | None, options: SplineOptions) -> SieveColumns:
        """Of data with a standardised ``outcome`` (n,); columns named in ``plain`` become curves, all where it is None.

        Raises
        ------
        DataError
            For images, and covariates that do not vary.
        """
        assert data.names is not None
        if data.treatment.ndim > 2:
            raise DataError(f"SieveIV takes treatment columns, got arrays of shape {data.treatment.shape[1:]}: flatten them")
        names = {role: tuple(data.names.get(role, ())) for role in ("treatment", "instruments", "covariates")}
        curved = {role: tuple(plain is None or name in plain for name in own) for role, own in names.items()}
        covariates = None if data.covariates is None else data.covariates.astype(np.float64, copy=False)
        if covariates is not None:
            counts = [len(np.unique(column)) for column in covariates.T]
            constant = [name for name, count in zip(names["covariates"], counts, strict=True) if count == 1]
            if constant:
                raise DataError(f"covariates {quoted(constant)} is constant over {len(data)} rows: drop it")
            own = zip(curved["covariates"], counts, strict=True)
            curves = tuple(curve and count > FEW_VALUES and options.structure != "linear" for curve, count in own)
            curved["covariates"] = _unless_dependent(covariates, curves, degree=options.degree)
        rows = SieveRows(
            outcome=outcome,
            treatments=data.treatment.astype(np.float64, copy=False),
            instruments=data.instruments.astype(np.float64, copy=False),
            covariates=covariates,
            weights=np.ones(len(data)) if data.weights is None else data.weights / data.weights.mean(),
            clusters=data.clusters,
        )
        return cls(rows=rows, names=names, curved=curved, options=options)

    @property
    def variables(self) -> int:
        """How many variables the curve of the treatments has, at least one."""
        roles = ("treatment", "covariates") if self.options.structure == "tensor" else ("treatment",)
        return max(1, sum(sum(self.curved[role]) for role in roles))

    def basis(self, segments: int) -> SieveBasis:
        """With so many segments."""
        rows, options = self.rows, self.options
        pieces = INSTRUMENT_SEGMENTS * segments if options.instrument_segments is None else options.instrument_segments
        own = {"degree": options.degree, "segments": segments}
        return SieveBasis(
            treatments=self._splines("treatment", rows.treatments, **own),
            instruments=self._splines("instruments", rows.instruments, degree=options.instrument_degree, segments=pieces),
            covariates=() if rows.covariates is None else self._splines("covariates", rows.covariates, **own),
            products=options.structure == "tensor",
        )

    def straight(self, *roles: str) -> SieveColumns:
        """The same with a line of every column of some roles."""
        return replace(self, curved=self.curved | {role: (False,) * len(self.curved[role]) for role in roles})

    def with_instrument_segments(self, segments: int) -> SieveColumns:
        """The same with so many segments of the instruments."""
        return replace(self, options=replace(self.options, instrument_segments=segments))

    def points(self) -> tuple[Array, Array | None]:
        """Treatments and covariates at which curves are compared: along each treatment, the other columns at their medians.

        With products the covariates are at their quartiles as well, all at the same.
        """
        treatments, covariates = self.rows.treatments, self.rows.covariates
        middle, lows, highs = np.median(treatments, axis=0), treatments.min(axis=0), treatments.max(axis=0)
        along = []
        for j, (low, high) in enumerate(zip(lows, highs, strict=True)):
            line = np.tile(middle, (POINTS, 1))
            line[:, j] = np.linspace(low, high, POINTS)
            along.append(line)
        points = np.concatenate(along)
        if covariates is None:
            return points, None
        levels = np.quantile(covariates, [0.25, 0.5, 0.75] if self.options.structure == "tensor" else [0.5], axis=0)
        return np.tile(points, (len(levels), 1)), np.repeat(levels, len(points), axis=0)

    def refusal(self, fit: SieveFit) -> DataError:
        """The error that says why the columns do not determine the coefficients."""
        basis, rows = fit.basis, self.rows
        if fit.rank < basis.width:
            few = self._of_few_values("treatment", rows.treatments, basis.treatments)
            return DataError(
                f"the splines of treatments and covariates have {basis.width} columns, of which {fit.rank} are independent in "
                f"these rows{few}: use fewer segments, a lower degree or knots='quantiles', or write a column of few values as "
                "C(column)"
            )
        if fit.instrument_rank < basis.width:
            few = self._of_few_values("instruments", rows.instruments, basis.instruments)
            return DataError(
                f"the structural function has {basis.width} columns, and the instruments and covariates tell "
                f"{fit.instrument_rank} functions apart in these rows{few}: give instruments that take more values, use fewer "
                "segments or a lower degree, or fit TwoStageLeastSquares"
            )
        return DataError(
            f"the instruments do not move all of the {basis.width} columns of the structural function in these rows: give "
            "instruments that do, use fewer segments or a lower degree, or fit TwoStageLeastSquares"
        )

    def _splines(self, role: str, columns: Array, *, degree: int, segments: int) -> tuple[Spline, ...]:
        return tuple(
            Spline.of(column, degree=degree, segments=segments, knots=self.options.knots) if curved else Spline.straight(column)
            for column, curved in zip(columns.T, self.curved[role], strict=True)
        )

    def _of_few_values(self, role: str, columns: Array, splines: tuple[Spline, ...]) -> str:
        """The columns of a role that have fewer values than their splines have columns beside a constant."""
        counts = {name: len(np.unique(column)) for name, column in zip(self.names[role], columns.T, strict=True)}
        few = [
            f"{name!r} takes {counts[name]} values"
            for name, spline in zip(counts, splines, strict=True)
            if counts[name] <= spline.width
        ]
        return f" ({', '.join(few)})" if few else ""


def _unless_dependent(covariates: Array, curved: tuple[bool, ...], *, degree: int) -> tuple[bool, ...]:
    """Whether each covariate (n, c) is a curve: not where its splines depend on other covariates, as of an age and its square.

    The curve was then written out by hand, and is taken as it was written: each of these columns is a straight line.
    """
    splines = tuple(
        Spline.of(column, degree=degree, segments=1, knots="uniform") if curve else Spline.straight(column)
        for column, curve in zip(covariates.T, curved, strict=True)
    )
    columns = with_constant(side_by_side(splines, covariates[:: max(1, len(covariates) // ROWS_LOOKED_AT)]))
    lengths = np.linalg.norm(columns, axis=0)
    triangle = np.linalg.qr(columns / np.where(lengths > 0, lengths, 1.0), mode="r")
    _, singular, right = np.linalg.svd(triangle, full_matrices=False)
    combinations = right[singular**2 <= RESOLVED * singular[0] ** 2]
    has_part = (np.abs(combinations) > NO_PART).any(axis=0)
    ends = np.cumsum([1] + [spline.width for spline in splines])
    return tuple(curve and not has_part[start:end].any() for curve, start, end in zip(curved, ends[:-1], ends[1:], strict=True))
