"""The columns of a linear model, each in its own unit and made orthonormal; refused with their names where they are dependent.

Here, and nowhere else, rank is judged: for the linear estimators and for diagnostics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfiv.data import Array, IVData
from cfiv.errors import DataError, IllConditionedWarning, quoted, warn
from cfiv.numerics.dependence import NOTICEABLE, Dependence, dependences
from cfiv.numerics.linear_iv import LinearFit, correlations
from cfiv.numerics.scaled_columns import ScaledColumns, constant_in_span, plain_numbers

#: What the constant is called in messages.
CONSTANT = "the constant"

#: Below this many trustworthy digits there is a warning.
TRUSTED_DIGITS = 6.0

#: Partial correlation of instruments and treatments that is rounding: below it no combination of treatments is moved.
IRRELEVANT = 1e-10

#: A column whose offset is so many times its variation is constant, to the last digit or two.
EXACT = 2.0**50


@dataclass(frozen=True, eq=False)
class Exogenous:
    """The columns that regressors and instruments share: ``E = [1, X]``, and how their rows are weighted.

    Parameters
    ----------
    columns : array (n, p)
        Possibly without any column.
    names : tuple of p str
    root : array (n,)
        Roots of the row weights, which are scaled to a mean of one.
    constant : array (p,) or None
        The combination of columns that is one in every row, in the numbers of ``ScaledColumns``; None where there is none.
        Where there is one, the other columns and all treatments and instruments are centred.
    """

    columns: Array
    names: tuple[str, ...]
    root: Array
    constant: Array | None

    @classmethod
    def of(
        cls, covariates: Array | None, names: Sequence[str], *, weights: Array | None, rows: int, intercept: bool
    ) -> Exogenous:
        """``[1, X]``, or ``X`` where there is no ``intercept``."""
        columns = exogenous_columns(covariates, rows=rows, intercept=intercept)
        root = row_roots(weights, rows=rows)
        return cls(columns, (*[CONSTANT] * intercept, *names), root, constant_in_span(columns))

    @property
    def centred(self) -> bool:
        """Whether a constant lies in the span of the columns."""
        return self.constant is not None


@dataclass(frozen=True, eq=False)
class Columns:
    """``root * [E, C]`` for treatments or instruments ``C``, scaled, and its QR factorisation.

    Parameters
    ----------
    scaled : ScaledColumns (n, p + k)
    basis : array (n, p + k)
        ``Q``, whose first p columns are a basis of ``E``.
    triangle : array (p + k, p + k)
        ``R``; of fewer rows where the data have fewer.
    dependent : tuple of Dependence
        Columns that depend on those before them; then the factorisation is of all of them all the same.
    """

    scaled: ScaledColumns
    basis: Array
    triangle: Array
    dependent: tuple[Dependence, ...]

    @classmethod
    def of(cls, exogenous: Exogenous, columns: Array) -> Columns:
        """Scale and factorise."""
        centred: Array | bool = False
        if exogenous.constant is not None:  # the columns that make the constant up stay as they are
            centred = np.concatenate([exogenous.constant == 0, np.ones(columns.shape[1], dtype=bool)])
        both = np.concatenate([exogenous.columns, columns], axis=1)
        return cls.factorised(ScaledColumns.of(both, root=exogenous.root, centred=centred))

    @classmethod
    def factorised(cls, scaled: ScaledColumns) -> Columns:
        """Of columns that are scaled already."""
        basis, triangle = np.linalg.qr(scaled.values)
        return cls(scaled, basis, triangle, dependences(triangle, scaled.lengths))


@dataclass(frozen=True, eq=False)
class ProblemColumns:
    """All columns of a linear regression in memory, scaled and factorised.

    Parameters
    ----------
    exogenous : Exogenous
    treatments, instruments : Columns
    endogenous : ScaledColumns (n, k)
        The treatments by themselves.
    outcome : ScaledColumns (n, 1)
        Centred where there is a constant.
    """

    exogenous: Exogenous
    treatments: Columns
    instruments: Columns
    endogenous: ScaledColumns
    outcome: ScaledColumns

    @classmethod
    def of(cls, data: IVData, *, intercept: bool) -> ProblemColumns:
        """Of the rows of data."""
        assert data.names is not None
        names, rows = data.names.get("covariates", ()), len(data)
        exogenous = Exogenous.of(data.covariates, names, weights=data.weights, rows=rows, intercept=intercept)
        endogenous, outcome = (
            ScaledColumns.of(part, root=exogenous.root, centred=exogenous.centred)
            for part in (data.treatment, data.outcome[:, None])
        )
        return cls(
            exogenous, Columns.of(exogenous, data.treatment), Columns.of(exogenous, data.instruments), endogenous, outcome
        )


def row_roots(weights: Array | None, *, rows: int) -> Array:
    """Roots of the row weights, scaled to a mean of one, shape (rows,)."""
    if weights is None:
        return np.broadcast_to(1.0, rows)
    shares = weights / weights.max()
    return np.asarray(np.sqrt(shares / shares.mean()))


def exogenous_columns(covariates: Array | None, *, rows: int, intercept: bool) -> Array:
    """``[1, X]``, shape (rows, columns), possibly with no columns."""
    ones = np.ones((rows, int(intercept)))
    return ones if covariates is None else np.concatenate([ones, covariates], axis=1)


def plain_data(data: IVData) -> tuple[IVData, Array]:
    """The data, columns of huge or tiny numbers times a power of two; and powers (k,) of two of the treatments' coefficients.

    A coefficient in the user's units is ``2^power`` times the one of the data returned, which are those given where no column
    needs another unit.
    """
    roles = ("outcome", "treatment", "instruments", "covariates")
    given = {role: None if (array := getattr(data, role)) is None else array.reshape(len(data), -1) for role in roles}
    scaled = {role: None if array is None else plain_numbers(array) for role, array in given.items()}
    powers = {role: np.zeros(0, dtype=int) if found is None else found[1] for role, found in scaled.items()}
    own = powers["outcome"] - powers["treatment"]
    if not any(found.any() for found in powers.values()):
        return data, own
    arrays: dict[str, Any] = {role: None if found is None else found[0] for role, found in scaled.items()}
    return IVData(**arrays, weights=data.weights, clusters=data.clusters, frame=data.frame, names=data.names), own


def independent_columns(exogenous: Exogenous, columns: Array, names: Sequence[str], *, role: str) -> Columns:
    """Treatments or instruments (the ``role``) beside the exogenous columns, which must be independent.

    Raises
    ------
    DataError
        With the names of dependent columns and of those that they depend on.

    Warns
    -----
    IllConditionedWarning
        Where an offset leaves few digits of a column's variation.
    """
    found = Columns.of(exogenous, columns)
    check_independent(found, exogenous, names, role=role)
    return found


def check_independent(found: Columns, exogenous: Exogenous, names: Sequence[str], *, role: str) -> None:
    """:func:`independent_columns` of columns that are factorised already."""
    every = (*exogenous.names, *(f"{name} ({role})" if name in exogenous.names else name for name in names))
    if found.dependent:
        raise DataError(_said(found, every))
    warn_of_offsets(found.scaled, every)


def check_number_of_instruments(data: IVData) -> None:
    """Raise unless there are as many instruments as treatments, or more.

    Raises
    ------
    DataError
        With the names of both.
    """
    assert data.names is not None
    instruments, treatments = data.names["instruments"], data.names["treatment"]
    if len(instruments) < len(treatments):
        raise DataError(
            f"two-stage least squares needs at least as many instruments as treatments, got {len(instruments)} "
            f"({quoted(instruments)}) for {len(treatments)} ({quoted(treatments)}): add instruments or transforms of them, or "
            "drop treatment columns"
        )


def check_relevance(treatments: Columns, instruments: Columns, exogenous: Exogenous, names: Sequence[str]) -> None:
    """Raise unless the instruments move every treatment, and every combination of them, in these rows.

    Raises
    ------
    DataError
        With the treatments that are not moved.
    """
    p = len(exogenous.names)
    values, directions = correlations(treatments.basis[:, p:], instruments.basis[:, p:])
    if values[-1] > IRRELEVANT:
        return
    # The direction, from the orthonormal basis to the treatments themselves.
    weights = np.abs(np.linalg.solve(treatments.triangle[p:, p:], directions[-1]))
    involved = [name for name, weight in zip(names, weights, strict=True) if weight > NOTICEABLE * weights.max()]
    what = (
        f"the treatment {quoted(involved)}" if len(involved) == 1 else f"one combination of the treatments {quoted(involved)}"
    )
    raise DataError(
        f"the instruments do not move {what}, given the covariates, in these rows: their partial correlation is "
        f"{values[-1]:.0e}, so no effect is identified; give instruments that do, or drop treatment columns"
    )


def warn_of_offsets(scaled: ScaledColumns, names: Sequence[str]) -> None:
    """Warn of columns whose variation float64 holds with few digits, since it is small beside their offset.

    Warns
    -----
    IllConditionedWarning
    """
    digits = -np.log10(np.finfo(np.float64).eps * scaled.lengths)
    few = [name for name, held in zip(names, digits, strict=True) if held < TRUSTED_DIGITS]
    if few:
        warn(
            f"float64 holds {math.floor(digits.min())} digits of the variation of {quoted(few)}, small as it is beside the "
            "offset, and no more digits of the estimates can be trusted: subtract the offset before the numbers are stored",
            IllConditionedWarning,
        )


def warn_of_condition(fit: LinearFit, names: Sequence[str]) -> None:
    """Warn where the columns are so nearly dependent that few digits of their coefficients can be trusted.

    Parameters
    ----------
    fit : LinearFit
    names : sequence of k str

    Warns
    -----
    IllConditionedWarning
    """
    digits = -math.log10(np.finfo(np.float64).eps * fit.condition)
    if digits >= TRUSTED_DIGITS:
        return
    share = np.abs(fit.loose())
    involved = [name for name, part in zip(names, share, strict=True) if part > 0.05 * share.max()]
    warn(
        f"about {max(math.floor(digits), 0)} digits of the coefficients of {quoted(involved)} can be trusted: they are nearly "
        f"collinear (condition number {fit.condition:.1e}), so drop one of them or write them in another basis, such as poly()",
        IllConditionedWarning,
    )


def _said(found: Columns, names: Sequence[str]) -> str:
    """The message about dependent columns."""
    culprits = quoted([names[dependence.column] for dependence in found.dependent])
    scaled, shift = found.scaled, found.scaled.centres / found.scaled.scales
    partners: set[int] = set()
    constant = False
    for dependence in found.dependent:
        parts = np.abs(dependence.terms)
        partners |= {int(i) for i in np.flatnonzero(parts > NOTICEABLE * max(1.0, parts.max(initial=0.0)))}
        offsets = np.append(shift[dependence.column], -dependence.terms * shift)
        constant = constant or bool(abs(offsets.sum()) > NOTICEABLE * max(1.0, np.abs(offsets).max()))
    constant = constant or any(names[i] == CONSTANT for i in partners)
    others = [
        names[i] for i in sorted(partners - {dependence.column for dependence in found.dependent}) if names[i] != CONSTANT
    ]
    listed = " and ".join([quoted(others)] * bool(others) + [CONSTANT] * constant)
    if not listed:
        return f"{culprits} {'is' if len(found.dependent) == 1 else 'are'} zero in every row: drop it"
    if len(found.dependent) > 1:
        return f"{culprits} are linear combinations of other columns, of {listed}: drop them"
    column = found.dependent[0].column
    text = f"{culprits} is a linear combination of {listed}"
    if not others and scaled.lengths[column] < EXACT and scaled.values[:, column].any():
        return f"{text}, as far as float64 can tell from its digits: subtract its offset before it is stored, or drop it"
    return f"{text}: drop {'it' if not others else 'one of them'}"
