"""Two-stage least squares in given bases, and the joint covariance of the coefficients of one or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import linalg

from cfiv.data import Array
from cfiv.errors import DataError
from cfiv.estimators.fitted_regression import OUT_OF_RANGE
from cfiv.estimators.linear_columns import IRRELEVANT, Columns, Exogenous
from cfiv.estimators.linear_inference import scaled_outcome
from cfiv.file_values import fields, numbers
from cfiv.numerics.linear_iv import LinearFit, covariance_root, least_squares, two_stage_least_squares
from cfiv.numerics.scaled_columns import ScaledColumns
from cfiv.numerics.score_covariance import clustered_ways, robust

#: What a file holds of it.
SAVED = ("exponents", "centres", "scales", "constant", "coefficients", "root", "triangle", "outcome")


@dataclass(frozen=True, eq=False)
class RowFit:
    """Coefficients in one basis, with what its rows say of their covariance.

    Parameters
    ----------
    fit : LinearFit
    columns : Columns
        ``F``, the structural columns, weighted and scaled.
    constant : array (p,)
        The combination of structural columns that is one in every row; zeros where there is none.
    root : array (n,)
        Roots of the row weights, which have a mean of one.
    outcome : ScaledColumns
    correlations : array (p,)
        Canonical correlations of structural and instrument columns, descending; ones without instruments.
    instruments : int
        Rank of the instrument columns.
    """

    fit: LinearFit
    columns: Columns
    constant: Array
    root: Array
    outcome: ScaledColumns
    correlations: Array
    instruments: int

    @classmethod
    def of(cls, outcome: Array, *, structural: Array, instruments: Array | None, weights: Array | None) -> Self:
        """``(F' P F)^-1 F' P Y`` with ``P`` the projection on the instrument columns; ``P = I`` where they are None.

        Parameters
        ----------
        outcome : array (n,)
        structural : array (n, p)
            ``F``, independent columns.
        instruments : array (n, q) or None
            Columns that depend on those before them do not count.
        weights : array (n,) or None

        Raises
        ------
        DataError
            If there are fewer rows than columns, structural columns depend on one another, or the instruments do not move all
            of them.

        Notes
        -----
        O(n (p + q)^2), in orthonormal bases of columns that are centred, where they span a constant, and scaled.
        """
        n, p = structural.shape
        if n <= p:
            raise DataError(f"a basis of {p} functions needs more rows than that, got {n}: use a smaller basis")
        exogenous, columns = _factorised(structural, weights)
        if columns.dependent:
            raise DataError(
                f"{len(columns.dependent)} of the {p} functions of the basis are combinations of the others in these rows, so "
                "their coefficients, and intervals, are not determined: use a smaller basis"
            )
        scaled = scaled_outcome(outcome, exogenous)
        constant = np.zeros(p) if exogenous.constant is None else exogenous.constant
        if instruments is None:
            fit = least_squares(scaled.values[:, 0], basis=columns.basis, triangle=columns.triangle)
            return cls(fit, columns, constant, exogenous.root, scaled, np.ones(p), p)
        _, found = _factorised(instruments, weights)
        kept = np.delete(np.arange(found.triangle.shape[1]), [one.column for one in found.dependent])
        basis = found.basis @ np.linalg.qr(found.triangle[:, kept])[0]
        correlations = np.minimum(np.linalg.svd(basis.T @ columns.basis, compute_uv=False), 1.0)
        moved = int((correlations > IRRELEVANT).sum())
        if moved < p:
            raise DataError(
                f"the instruments move {moved} of the {p} functions of the basis, as where they take few values: the curve is "
                "not identified, and a band would mean nothing; use a smaller basis, or instruments with more values"
            )
        fit = two_stage_least_squares(
            scaled.values[:, 0], regressors=columns.basis, triangle=columns.triangle, instruments=basis, exogenous=0
        )
        return cls(fit, columns, constant, exogenous.root, scaled, correlations, basis.shape[1])

    @property
    def fitted_values(self) -> Array:
        """``F u`` at the rows, in the outcome's units."""
        outcome, root = self.outcome, self.root
        scaled = (outcome.values[:, 0] - self.fit.residuals) / root * outcome.scales[0] + outcome.centres[0]
        return np.asarray(np.ldexp(scaled, outcome.exponents[0]))


@dataclass(frozen=True, eq=False)
class BasisFit:
    """Coefficients of one basis and the root of their covariance, in numbers: what answers any linear functional of ``h``.

    Parameters
    ----------
    exponents, centres, scales, constant : array (p,)
        How columns were scaled, ``a_j = (2^-e_j f_j - m_j) / s_j``, and the combination of the ``2^-e_j f_j`` that is one.
    coefficients : array (p,)
        Of the scaled columns, in the outcome's scaled units.
    root : array (p, K)
        ``L``: covariances of coefficients are ``L L'``, and between two bases of one inference ``L_1 L_2'``.
    triangle : array (p, p)
        ``R`` of the weighted scaled columns ``Q R`` of training.
    outcome : array (3,)
        Centre, scale and exponent of the outcome.
    """

    exponents: Array
    centres: Array
    scales: Array
    constant: Array
    coefficients: Array
    root: Array
    triangle: Array
    outcome: Array

    @property
    def size(self) -> int:
        """Functions in the basis, ``p``."""
        return len(self.coefficients)

    def estimate(self, functionals: Array) -> Array:
        """``l' u`` (m,) of functionals (m, p): what each makes of the functions of the basis."""
        scaled, constants = self._scaled(functionals)
        return self._in_units(scaled @ self.coefficients * self.outcome[1] + constants * self.outcome[0])

    def roots(self, functionals: Array) -> Array:
        """Rows (m, K) whose products are the covariances of the estimates."""
        return self._in_units(self._scaled(functionals)[0] @ self.root * self.outcome[1])

    def leverage(self, columns: Array, *, rows: int) -> Array:
        """``f' (F' F / n)^-1 f`` at rows (m, p) of the basis; ``rows`` is n."""
        inner = linalg.solve_triangular(self.triangle, self._scaled(columns)[0].T, trans="T")
        return np.asarray(rows * np.square(inner).sum(axis=0))

    def to_values(self) -> dict[str, Any]:
        """All that :meth:`from_values` needs."""
        return {name: np.asarray(getattr(self, name), dtype=np.float64) for name in SAVED}

    @classmethod
    def from_values(cls, values: Any, *, size: int) -> Self:
        """From the values of a file, for a basis of so many functions."""
        fields(values, *SAVED)
        found = {name: numbers(values[name], (size,)) for name in SAVED[:5]}
        root = numbers(values["root"], (size, len(values["root"].T)))
        outcome = numbers(values["outcome"], (3,))
        if not (found["scales"] > 0).all():
            raise ValueError("a scale is not positive")
        whole = {"exponents": found["exponents"].astype(np.int64)}
        return cls(**found | whole, root=root, triangle=numbers(values["triangle"], (size, size)), outcome=outcome)

    def _scaled(self, functionals: Array) -> tuple[Array, Array]:
        """Of the scaled columns, (m, p), and of the constant function, (m,)."""
        plain = np.ldexp(functionals, -self.exponents)
        constants = plain @ self.constant
        return (plain - constants[:, None] * self.centres) / self.scales, constants

    def _in_units(self, scaled: Array) -> Array:
        with np.errstate(over="ignore"):
            found = np.ldexp(scaled, int(self.outcome[2]))
        if not np.isfinite(found).all():
            raise DataError(f"the estimates or their standard errors {OUT_OF_RANGE}")
        return np.asarray(found)


def joint_fits(fits: Sequence[RowFit], *, covariance: str, clusters: Sequence[Array], debiased: bool) -> tuple[BasisFit, ...]:
    """Fits of one outcome in several bases, with their joint covariance ``H S H'``, ``S`` that of all scores ``P_i e_i``.

    Parameters
    ----------
    fits : sequence of RowFit
        Of the same rows, the one that is asked first.
    covariance : {"robust", "unadjusted", "clustered"}
    clusters : sequence of arrays (n,)
        Codes of one or two kinds of groups.
    debiased : bool
        Times ``n / (n - p)``, with p the size of the first; clustered also times ``G / (G - 1) (n - 1) / n``.

    Notes
    -----
    Of two kinds of groups: the sum of both covariances less that of their intersections, of which directions with a negative
    variance, as few groups may have, get none.

    References
    ----------
    Cameron, Gelbach and Miller, "Robust inference with multiway clustering", *Journal of Business & Economic Statistics* 29,
    2011.
    """
    sizes = [fit.fit.basis.shape[1] for fit in fits]
    n = len(fits[0].root)
    basis = np.concatenate([fit.fit.basis for fit in fits], axis=1)
    residuals = np.stack([fit.fit.residuals for fit in fits], axis=1)
    if covariance == "unadjusted":
        variances = np.repeat(np.repeat(residuals.T @ residuals / n, sizes, axis=0), sizes, axis=1)
        total = (basis.T @ basis) * variances
    else:
        scores = basis * np.repeat(residuals, sizes, axis=1)
        total = clustered_ways(scores, clusters, debiased=debiased) if clusters else robust(scores)
    if debiased:
        total = total * n / (n - sizes[0])
    root = covariance_root(linalg.block_diag(*(fit.fit.spread for fit in fits)), total)
    parts = np.split(root, np.cumsum(sizes)[:-1])
    return tuple(_numbers(fit, part) for fit, part in zip(fits, parts, strict=True))


def _numbers(fit: RowFit, root: Array) -> BasisFit:
    scaled, outcome = fit.columns.scaled, fit.outcome
    return BasisFit(
        exponents=scaled.exponents,
        centres=scaled.centres,
        scales=scaled.scales,
        constant=fit.constant,
        coefficients=fit.fit.coefficients,
        root=root,
        triangle=fit.columns.triangle,
        outcome=np.array([outcome.centres[0], outcome.scales[0], outcome.exponents[0]], dtype=np.float64),
    )


def _factorised(columns: Array, weights: Array | None) -> tuple[Exogenous, Columns]:
    """Columns (n, p) scaled, centred where they span a constant, and their QR factorisation."""
    names = [f"function {i}" for i in range(columns.shape[1])]
    exogenous = Exogenous.of(columns, names, weights=weights, rows=len(columns), intercept=False)
    return exogenous, Columns.of(exogenous, np.zeros((len(columns), 0)))
