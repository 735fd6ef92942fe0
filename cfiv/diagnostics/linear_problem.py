"""The linear instrumental-variable problem as the tests need it: rows weighted, exogenous columns partialled out once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import linalg

from cfiv.data import Array, IVData
from cfiv.errors import DataError, quoted
from cfiv.estimators.fixed_effects import Absorbed, within
from cfiv.estimators.linear_columns import (
    IRRELEVANT,
    Exogenous,
    check_number_of_instruments,
    independent_columns,
    plain_data,
    warn_of_offsets,
)
from cfiv.estimators.linear_inference import scaled_outcome
from cfiv.estimators.linear_regression import Covariance, group_counts
from cfiv.numerics.score_covariance import Kernel, autocorrelated, chosen_bandwidth, clustered_ways, sums_within

#: What a fit leaves of a column, relative to its length, below which the fit counts as exact.
EXACT = 1e-10
#: Smallest eigenvalue of a covariance relative to its largest, below which it cannot be inverted.
SINGULAR = 1e-12
#: Share of the rows that covariates may take before statistics that count rows leave those out.
LARGE_SHARE = 0.1
SINGULAR_REASON = (
    "the covariance of the instruments' moments is singular, as where an instrument concerns one row or cluster only; "
    "covariance='unadjusted' does without it"
)


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """``Y = T b + X c + e`` with ``E[Z' e] = 0`` and ``E[X' e] = 0``, after partialling out.

    Rows are multiplied by the roots of their weights (scaled to a mean of one), and outcome, treatment and instruments replaced
    by what ``[1, X]`` leaves of them. By the theorem of Frisch, Waugh and Lovell every statistic of the coefficients on
    treatment and instruments is the same.

    Parameters
    ----------
    outcome : array (n,)
    treatment : array (n, k)
    instruments : array (n, q)
        An orthonormal basis ``Q`` of what is left of the instruments: ``Q' Q = I``.
    exogenous : int
        Columns partialled out: covariates, and the constant where there is one.
    covariance : Covariance
        With the bandwidth of a kernel.
    clusters : array (n,), (n, 2) or None
        Whole numbers from 0.
    absorbed : Absorbed or None
        Fixed effects, which are counted among the columns partialled out.
    data : IVData
        The arrays before partialling out, in plain numbers.
    intercept : bool
    powers : array (k,) of int
        A coefficient in the user's units is ``2^powers`` times that of ``treatment``: zeros, unless numbers are huge or tiny.
    """

    outcome: Array
    treatment: Array
    instruments: Array
    exogenous: int
    covariance: Covariance
    clusters: Array | None
    absorbed: Absorbed | None
    data: IVData = field(repr=False)
    intercept: bool
    powers: Array = field(repr=False)

    @classmethod
    def from_data(cls, data: IVData, *, intercept: bool, covariance: Covariance) -> LinearProblem:
        """Weight, check for collinear columns, and partial out by one QR factorisation.

        Raises
        ------
        DataError
            For images, too few rows or instruments, collinear columns, and treatments that the first stage fits exactly.
        ParameterError
            If the covariance and the clusters do not go together.
        """
        assert data.names is not None
        if data.treatment.ndim > 2:
            raise DataError(
                f"diagnostics are of linear regression on treatment columns, got arrays of shape {data.treatment.shape[1:]}: "
                "diagnose numbers computed from them, in IVData(treatment=array of shape (n, k))"
            )
        data, absorbed = within(data)
        covariance.check(data)
        n, k, q = len(data), data.treatment.shape[1], data.instruments.shape[1]
        check_number_of_instruments(data)
        data, powers = plain_data(data)
        assert data.names is not None
        covariates = data.names.get("covariates", ())
        exogenous = Exogenous.of(data.covariates, covariates, weights=data.weights, rows=n, intercept=intercept)
        p = len(exogenous.names)
        taken = p + (0 if absorbed is None else absorbed.rank - 1)
        if n <= taken + q + k:
            raise DataError(
                f"diagnostics need more rows than the {taken + q + k} columns (constant, covariates, fixed effects, "
                f"instruments and treatments), got {n}: use more rows or fewer columns"
            )
        columns = independent_columns(exogenous, data.treatment, data.names["treatment"], role="treatment")
        used = independent_columns(exogenous, data.instruments, data.names["instruments"], role="instrument")
        instruments = used.basis[:, p:]
        scaled = scaled_outcome(data.outcome, exogenous)
        warn_of_offsets(scaled, data.names["outcome"])
        root, own = exogenous.root, columns.basis[:, :p]
        treatment = _residual(own, root[:, None] * (data.treatment - columns.scaled.centres[p:]))
        outcome = _residual(own, root * (data.outcome - scaled.centres[0]))
        noise = _residual(instruments, treatment)
        exact = np.linalg.norm(noise, axis=0) <= EXACT * np.linalg.norm(treatment, axis=0)
        if exact.any():
            fitted = [name for name, flag in zip(data.names["treatment"], exact, strict=True) if flag]
            raise DataError(
                f"the instruments and covariates determine the treatment {quoted(fitted)} exactly, so it is exogenous itself "
                "and needs no instruments: make it a covariate"
            )
        rounding = 16 * np.finfo(np.float64).eps * scaled.lengths[0]
        if np.linalg.norm(_residual(columns.basis, scaled.values[:, 0])) <= max(EXACT, rounding):
            raise DataError(
                "the outcome is an exact linear function of treatment and covariates, so there are no errors to test: "
                "check that it was not computed from them"
            )
        if covariance.kind == "kernel" and covariance.bandwidth is None:
            left = _residual(instruments, np.column_stack([treatment, outcome]))
            covariance = replace(covariance, bandwidth=_bandwidth(instruments, left, covariance.kernel))
        return cls(
            outcome,
            treatment,
            instruments,
            taken,
            covariance,
            clusters=data.clusters,
            absorbed=absorbed,
            data=data,
            intercept=intercept,
            powers=powers,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, treatments and instruments: ``n, k, q``."""
        return len(self.outcome), self.treatment.shape[1], self.instruments.shape[1]

    @property
    def dof(self) -> int:
        """Residual degrees of freedom of the first stage, ``n - p - q``."""
        return self.shape[0] - self.exogenous - self.shape[2]

    @property
    def n_clusters(self) -> int:
        """Number of clusters, the least of two kinds; of rows where there are none."""
        return self.shape[0] if self.clusters is None else min(group_counts(self.clusters))

    @property
    def treatment_names(self) -> tuple[str, ...]:
        """Names of the treatment columns."""
        assert self.data.names is not None
        return tuple(self.data.names["treatment"])

    @cached_property
    def strength(self) -> float:
        """Smallest eigenvalue of ``(T' (I - QQ') T)^-1 T' Q Q' T``: explained over unexplained, 0 where one is unidentified.

        It is ``r^2 / (1 - r^2)`` of the smallest partial canonical correlation ``r`` of treatments and instruments.
        """
        scaled = self.treatment / np.linalg.norm(self.treatment, axis=0)
        _, triangle = np.linalg.qr(self.noise(scaled))
        explained = linalg.solve_triangular(triangle, (self.instruments.T @ scaled).T, trans="T")
        return float(np.linalg.svd(explained, compute_uv=False)[-1] ** 2)

    @property
    def undividable(self) -> str | None:
        """Why the rows cannot be divided into parts that have nothing to do with one another; None where they can."""
        if self.absorbed is not None:
            return "fixed effects tie the errors of a group's rows together, so that rows cannot be divided at random"
        if self.covariance.kind == "kernel":
            return "rows that depend on one another in time cannot be divided at random"
        if self.clusters is not None and self.clusters.ndim > 1:
            return "rows cannot be divided into parts that share clusters of neither kind"
        return None

    @property
    def unidentified(self) -> str | None:
        """Why two-stage least squares has no unique solution in these rows; None where it has one."""
        if self.strength <= IRRELEVANT**2:
            return "the instruments do not move every treatment in these rows, so two-stage least squares has no solution"
        return None

    @cached_property
    def singular(self) -> str | None:
        """Why the covariance of the instruments' moments cannot be inverted, for any hypothesis; None where it can."""
        if self.covariance.kind == "unadjusted":
            return None
        if self.covariance.kind == "clustered" and self.n_clusters <= self.shape[2]:
            return f"it needs more clusters than the {self.shape[2]} instruments, got {self.n_clusters}"
        columns = np.column_stack([self.treatment, self.outcome])
        noise = self.noise(columns / np.linalg.norm(columns, axis=0))
        total = sum(self.moment_covariance(column, column) for column in noise.T)
        return None if is_invertible(np.asarray(total)) else SINGULAR_REASON

    @property
    def moment_correction(self) -> float:
        """Small-sample factor of the covariance of moments.

        ``n / (n - p - q)``, times ``G / (G - 1) * (n - 1) / n`` with G clusters: Stata's convention, HC1 without clusters. With
        clusters, ``p`` leaves out columns and fixed effects that concern one cluster only (:attr:`nested`).
        """
        n, g = self.shape[0], self.n_clusters
        factor = n / self.scores_dof
        return factor * g / (g - 1) * (n - 1) / n if self.covariance.kind == "clustered" else factor

    @property
    def scores_dof(self) -> int:
        """``n - p - q``, without what is :attr:`nested`."""
        return self.dof + self.nested

    @cached_property
    def nested(self) -> int:
        """Columns partialled out that concern one cluster only, such as indicators of its units; 0 without clusters.

        Their scores are zero within that cluster, so that they take nothing from sums over clusters: estimates and tests are
        those of data with the units' means taken out, which count none of them.
        """
        if self.covariance.kind != "clustered" or self.clusters is None:
            return 0
        count = 0 if self.absorbed is None else self.absorbed.rank - 1 - self.absorbed.added_rank
        if self.data.covariates is None or self.absorbed is not None:
            return count
        kinds = self.clusters.reshape(len(self.clusters), -1)
        for column in self.data.covariates.T:
            labels = kinds[column != 0]
            count += bool(len(labels)) and bool((labels == labels[0]).all(axis=0).any())
        return count

    def count_absorbed(self, *, homoskedastic: bool) -> int:
        """Rows that exogenous columns absorb, as dummies of many units do; 0 where they are at most ``LARGE_SHARE`` of all.

        Errors estimated by an average over all rows are too small by that share. Where scores are summed within clusters,
        columns that concern one cluster are not counted: they take nothing from those sums.

        Parameters
        ----------
        homoskedastic : bool
            Whether the statistic is, whatever the problem's covariance.
        """
        count = self.exogenous - (0 if homoskedastic else self.nested)
        return count if count > LARGE_SHARE * self.shape[0] else 0

    def discount_absorbed(self, *, homoskedastic: bool) -> tuple[float, str]:
        """What to multiply a statistic with that counts all rows, and what its reading says of it; one and nothing mostly."""
        n, absorbed = self.shape[0], self.count_absorbed(homoskedastic=homoskedastic)
        if not absorbed:
            return 1.0, ""
        return 1.0 - absorbed / n, f" (counting {n - absorbed} rows, since covariates absorb {absorbed} of {n})"

    @property
    def wald_dof(self) -> int:
        """Denominator degrees of freedom of Wald tests in F form: ``n - p - q``, or ``G - 1`` with clusters."""
        return self.n_clusters - 1 if self.covariance.kind == "clustered" else self.dof

    def noise(self, columns: Array) -> Array:
        """What the instruments leave of partialled-out columns: residuals of their reduced forms."""
        return _residual(self.instruments, columns)

    def moment_covariance(self, left: Array, right: Array) -> Array:
        """Covariance of ``Q' u`` and ``Q' v`` for residuals ``u`` and ``v``, shape (q, q), with the small-sample factor.

        ``u' v / (n - p - q) I`` unadjusted; ``sum_i Q_i Q_i' u_i v_i`` robust; sums over clusters of products of the clusters'
        scores when clustered; weighted sums of products of scores of rows near one another with a kernel.
        """
        if self.covariance.kind == "unadjusted":
            return np.asarray(left @ right / self.dof * np.eye(self.shape[2]))
        one, other = (self.instruments * residual[:, None] for residual in (left, right))
        if self.covariance.kind == "kernel":
            assert self.covariance.bandwidth is not None
            total = autocorrelated(one, other=other, kernel=self.covariance.kernel, bandwidth=self.covariance.bandwidth)
        elif self.clusters is not None:
            total = clustered_ways(one, list(self.clusters.reshape(len(one), -1).T), lambda _: 1.0, other=other)
        else:
            total = one.T @ other
        return np.asarray(total * self.moment_correction)


def _bandwidth(instruments: Array, noise: Array, kernel: Kernel) -> int:
    """The largest that Newey and West's rule has for a moment: an instrument (n, q) times what instruments leave (n, m)."""
    return max(chosen_bandwidth(one * other, kernel) for one in instruments.T for other in noise.T)


def is_invertible(covariance: Array) -> bool:
    """Whether a symmetric positive semidefinite matrix (q, q) is invertible to working precision."""
    values = np.linalg.eigvalsh(covariance)
    return bool(values[0] > SINGULAR * values[-1])


def cluster_sums(scores: Array, clusters: Array | None) -> Array:
    """Sums of rows (n, ...) within clusters, (G, ...); the rows themselves where there are no clusters."""
    return scores if clusters is None else sums_within(scores, clusters)


def of_order_one(columns: Array, weights: Array, *, centred: bool) -> Array:
    """Columns (n, ...) over their weighted root mean square, where ``centred`` about their mean; zeros stay zeros."""
    left = columns - np.average(columns, axis=0, weights=weights) * centred
    scale = np.sqrt(np.average(left**2, axis=0, weights=weights))
    return np.asarray(left / np.where(scale > 0, scale, 1.0))


def _residual(orthonormal: Array, columns: Array) -> Array:
    """``columns`` minus their least-squares fit on orthonormal columns; twice, so that nothing but rounding is left of it."""
    once = columns - orthonormal @ (orthonormal.T @ columns)
    return np.asarray(once - orthonormal @ (orthonormal.T @ once))
