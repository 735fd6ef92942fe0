"""The rows that an estimator was fitted to, read again with groups, and what their errors are taken to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cfiv.checks import several, shown
from cfiv.data import Array, IVData, read_table
from cfiv.errors import DataError, ParameterError, quoted
from cfiv.estimators.components import Component
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.fixed_effects import Absorbed, within
from cfiv.estimators.linear_regression import Covariance, warn_of_few_clusters
from cfiv.estimators.small_sample import Convention, SmallSample
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.linear_in_basis import Basis
from cfiv.labels import label_codes
from cfiv.tables.columns import cluster_labels, require_columns
from cfiv.tables.stored import is_stored
from cfiv.tables.table_encoder import TableEncoder

#: How far fitted values of the rows may be from those of the estimator, relative to the range of the outcome.
SAME_ROWS = 1e-6
#: How many of the rows, evenly spread, they are compared at.
LOOKED_AT = 20_000


@dataclass(frozen=True, eq=False)
class FittedRows:
    """Rows with a positive weight.

    Parameters
    ----------
    data : IVData
        In their roles, as the estimator's encoder reads them.
    raw : table or IVData
        The same rows, for the encoder.
    covariance : {"robust", "unadjusted", "clustered"}
    groups : mapping from a name to codes (n,)
        One or two kinds, where clustered.
    absorbed : Absorbed or None
        Fixed effects that were taken out of ``data``, in which rows that are a group by themselves are not.
    """

    data: IVData
    raw: Any
    covariance: str
    groups: Mapping[str, Array]
    absorbed: Absorbed | None

    @classmethod
    def of(cls, data: Any, model: StructuralEstimator, *, covariance: str | None, clusters: Any) -> Self:
        """Of what ``infer`` was given, for a fitted estimator.

        Raises
        ------
        ParameterError
            For clusters that cannot be read or that nothing would use, and a covariance that is not available.
        DataError
            For rows that lack columns, or of which there are not as many as in the fit.
        """
        encoder = model.structural_function_.encoder
        table = isinstance(encoder, TableEncoder)
        if clusters is not None and not table:
            raise ParameterError(
                "clusters= names columns of a table, and the estimator was fitted to arrays: give IVData(clusters=...)"
            )
        names = _names(getattr(model, "clusters", None) if clusters is None else clusters)
        if names and not is_stored(data):
            require_columns(read_table(data), names, needed_for="clusters")
        rows = encoder.observations(data, missing=model.missing, labels=names)
        rows.check_observed("inference")
        rows = rows.with_positive_weight()
        if len(rows) != model.n_rows_:
            alike = len(encoder.observations(data, missing=model.missing).with_positive_weight()) == model.n_rows_
            raise _other_rows(rows, model, gaps_of=names if alike else ())
        if table:
            assert rows.frame is not None
            groups = {name: label_codes(f"clusters {name!r}", cluster_labels(rows.frame, (name,))) for name in names}
        else:
            groups = _kinds(rows.clusters)
        kind = _covariance(covariance, model, groups, given=clusters is not None)
        groups = groups if kind == "clustered" else {}
        raw = rows.frame if table else rows
        if rows.fixed_effects is None:
            return cls(rows, raw, kind, groups, None)
        assert rows.names is not None
        own = {role: names for role, names in rows.names.items() if role != "clusters"}
        left, absorbed = within(replace(rows, clusters=_stacked(groups), names=own, frame=None))
        assert absorbed is not None
        return cls(left, raw, kind, {name: codes[absorbed.kept] for name, codes in groups.items()}, absorbed)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def clusters(self) -> Array | None:
        """Codes (n, kinds) of the groups, None without."""
        return _stacked(self.groups)

    def check_groups(self, size: int) -> None:
        """Raise where clusters are too few for a covariance of so many coefficients; warn where they are few.

        Raises
        ------
        DataError

        Warns
        -----
        FewClustersWarning
        """
        for name, codes in self.groups.items():
            count = len(np.unique(codes))
            if count <= size:
                raise DataError(
                    f"a clustered covariance of {size} coefficients needs more clusters than that, got {count} of {name!r}: "
                    "some combinations would seem to have no error at all; use finer clusters, or a smaller basis"
                )
            warn_of_few_clusters(count)

    def check_same(self, fit: BasisFit, basis: Basis, component: Component, model: StructuralEstimator) -> None:
        """Raise unless a fit to these rows has the fitted values of the component of the estimator, at those ``LOOKED_AT``.

        Raises
        ------
        DataError
        """
        some = slice(None, None, -(-len(self) // LOOKED_AT))
        treatments, covariates = self.data.treatment[some], self.data.covariates
        covariates = None if covariates is None else covariates[some]
        fitted = fit.estimate(basis.structural_columns(treatments, covariates))
        expected = component.evaluate(treatments, covariates)
        self.data.release()
        if np.abs(fitted - expected).max() > SAME_ROWS * np.ptp(self.data.outcome):
            raise _other_rows(self.data, model)

    def check_reference(self, data: Any, model: StructuralEstimator) -> None:
        """Raise unless the rows that the estimator averages over are among these, where they were in the fit.

        Raises
        ------
        DataError
        """
        encoder = model.structural_function_.encoder
        given = model.encode(data)[0]
        (treatments, covariates), (t, x) = encoder.inputs(encoder.reference_rows), given.inputs(given.reference_rows)
        same = covariates is None or x is None or np.array_equal(covariates, x)
        if not np.array_equal(treatments, t) or not same:
            raise _other_rows(self.data, model)

    def small_sample(self, debiased: Convention | None, *, coefficients: int) -> SmallSample:
        """The factors of a covariance of so many coefficients."""
        kind = Covariance(self.covariance, debiased)  # type: ignore[arg-type]
        return kind.small_sample(self.absorbed, rows=len(self), coefficients=coefficients, clusters=self.clusters)

    def describe(self, small: SmallSample) -> str:
        """The covariance in words."""
        named = " and ".join(f"{name} ({len(np.unique(codes)):,})" for name, codes in self.groups.items())
        return f"{self.covariance}{' by ' * bool(named)}{named}{small.described}"


def _kinds(clusters: Array | None) -> dict[str, Array]:
    """Of arrays: one kind of clusters (n,), or two (n, 2)."""
    if clusters is None or clusters.ndim == 1:
        return {} if clusters is None else {"clusters": clusters}
    return {f"clusters {i}": codes for i, codes in enumerate(clusters.T)}


def _stacked(groups: Mapping[str, Array]) -> Array | None:
    return np.stack(list(groups.values()), axis=1) if groups else None


def _other_rows(rows: IVData, model: StructuralEstimator, *, gaps_of: Sequence[str] = ()) -> DataError:
    if gaps_of:
        return DataError(
            f"{model.n_rows_ - len(rows)} of the {model.n_rows_} rows that this {type(model).__name__} was fitted to have gaps "
            f"in the clusters {quoted(gaps_of)}: give the fit clusters= too, which then leaves those rows out, or fill the gaps"
        )
    return DataError(
        f"the {len(rows)} rows are not the {model.n_rows_} that this {type(model).__name__} was fitted to, of which its errors "
        "are: give the same data, with the same gaps and weights, or fit it to these"
    )


def _names(clusters: Any) -> tuple[str, ...]:
    names = () if clusters is None else several(clusters)
    if len(names) > 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ParameterError(f"clusters must be the name of a column, or two of them, got {shown(clusters)}")
    return names


def _covariance(covariance: str | None, model: Any, groups: Mapping[str, Array], *, given: bool) -> str:
    """As asked; else clustered where there are groups, else the estimator's."""
    own: str = getattr(model, "covariance", "robust")
    if covariance is None:
        covariance = "clustered" if groups else own
        if covariance == "kernel":
            raise ParameterError(
                "the estimator's covariance='kernel' is not available in infer: give covariance='robust', or clusters="
            )
    if covariance != "clustered" and given:
        raise ParameterError(
            f"clusters are given, but covariance={covariance!r} does not use them: set covariance='clustered' or leave them out"
        )
    if covariance == "clustered" and not groups:
        raise ParameterError("covariance='clustered' needs groups of rows, got none: give clusters='column'")
    return covariance
