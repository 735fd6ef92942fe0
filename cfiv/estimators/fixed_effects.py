"""Absorbed fixed effects: the columns of a linear problem without the means of groups, and how many parameters those were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cfiv.data import Array, IVData
from cfiv.errors import DataError, quoted
from cfiv.estimators.small_sample import Convention
from cfiv.numerics.fixed_effects import FixedEffects
from cfiv.numerics.scaled_columns import plain_numbers

#: What fixed effects leave of a column, relative to its deviations from its mean, below which they determine it.
ABSORBED = 1e-9


@dataclass(frozen=True, eq=False)
class Absorbed:
    """What fixed effects have taken out of a linear problem.

    Parameters
    ----------
    names : tuple of str
        Of the kinds.
    sizes : tuple of int
        Groups of each, without those of a single row.
    rank : int
        Parameters, the constant included.
    nested : tuple of bool
        Whether the groups of each lie within clusters.
    added_rank : int
        Parameters that the kinds which are not nested add to those which are, or to the constant where none is.
    kept : array (all rows,) of bool
        Rows that are in no group by themselves: the others say nothing of coefficients, and are left out.
    outcome : array (n,)
        What was taken from the outcome, but for its mean; in the user's units.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    rank: int
    nested: tuple[bool, ...]
    added_rank: int
    kept: Array = field(repr=False)
    outcome: Array = field(repr=False)

    def counted(self, convention: Convention, *, clustered: bool) -> int:
        """Parameters besides the constant in a small-sample factor.

        All of them for True. With clusters, "fixest" and "stata" leave out groups that lie within clusters; "fixest" takes each
        kind for one less than its groups, which is too many where kinds have more in common than the constant.
        """
        if convention is True or not clustered:
            nested: tuple[bool, ...] = (False,) * len(self.sizes)
        else:
            nested = self.nested
        if convention == "fixest":
            return sum(size - 1 for size, within in zip(self.sizes, nested, strict=True) if not within)
        return self.added_rank if any(nested) else self.rank - 1

    def describe(self) -> str:
        """The kinds and their sizes, and what was left out, for the summary."""
        kinds = ", ".join(f"{name} ({size:,})" for name, size in zip(self.names, self.sizes, strict=True))
        alone = int((~self.kept).sum())
        return kinds + (f"; rows left out as their group's only one: {alone:,}" if alone else "")


def within(data: IVData) -> tuple[IVData, Absorbed | None]:
    """The data once fixed effects are taken out of outcome, treatment, instruments and covariates, about their old means.

    Columns keep their weighted means, so that a constant beside them is the level at the average fixed effect, as in Stata's
    ``areg`` and ``xtreg``. Rows that are a group by themselves are left out, again and again until there are none.

    Returns
    -------
    IVData
        Without fixed effects; the data as given where there are none.
    Absorbed or None

    Raises
    ------
    DataError
        If no rows are left, or fixed effects determine a column, with its name.
    SingularError
        As :class:`cfiv.numerics.fixed_effects.FixedEffects`.
    """
    if data.fixed_effects is None:
        return data, None
    assert data.names is not None
    if data.treatment.ndim > 2:
        raise DataError(f"fixed effects are of treatment columns, got arrays of shape {data.treatment.shape[1:]}: flatten them")
    kept = ~_alone(data.fixed_effects)
    if kept.sum() < 2:
        raise DataError(
            f"every row is the only one of some group of {quoted(data.names['fixed_effects'])}, so fixed effects leave "
            "nothing: use groups with several rows"
        )
    weights = np.ones(int(kept.sum())) if data.weights is None else data.weights[kept]
    kinds = [_without_empty(codes) for codes in data.fixed_effects[kept].T]
    effects = FixedEffects(kinds, weights=weights)
    roles = [role for role in ("outcome", "treatment", "instruments", "covariates") if getattr(data, role) is not None]
    given = [getattr(data, role)[kept].reshape(len(weights), -1) for role in roles]
    plain, exponents = plain_numbers(np.concatenate(given, axis=1, dtype=np.float64))
    rows = np.ascontiguousarray(plain.T)  # along which numpy is several times as fast
    left = np.ascontiguousarray(effects.residual(rows.T).T)
    means = (rows @ weights / weights.sum())[:, None]
    _check_left(data, roles, given, rows - means, left)
    left += means
    left = np.ldexp(left, exponents[:, None]) if exponents.any() else left
    parts = np.split(left.T, np.cumsum([part.shape[1] for part in given])[:-1], axis=1)
    columns: dict[str, Any] = dict(zip(roles, parts, strict=True))
    outcome = columns.pop("outcome")[:, 0]
    clusters = None if data.clusters is None else data.clusters[kept]
    names = {role: own for role, own in data.names.items() if role != "fixed_effects"}
    made = IVData(outcome=outcome, **columns, weights=None if data.weights is None else weights, clusters=clusters, names=names)
    nested = tuple(clusters is not None and _lie_within(codes, clusters) for codes in kinds)
    rank, inner = effects.rank(range(len(kinds))), [i for i, flag in enumerate(nested) if flag]
    absorbed = Absorbed(
        names=tuple(data.names["fixed_effects"]),
        sizes=effects.sizes,
        rank=rank,
        nested=nested,
        added_rank=rank - (effects.rank(inner) if inner else 1),
        kept=kept,
        outcome=given[0][:, 0] - outcome,
    )
    return made, absorbed


def _alone(kinds: Array) -> Array:
    """Rows (n,) that are the only one of a group of some kind (n, m), once others of that sort are left out."""
    alone = np.zeros(len(kinds), dtype=bool)
    while True:
        found = alone.copy()
        for codes in kinds.T:
            found |= np.bincount(codes[~alone], minlength=int(codes.max()) + 1)[codes] <= 1
        if (found == alone).all():
            return alone
        alone = found


def _without_empty(codes: Array) -> Array:
    """Numbers of groups (n,), those counted that have rows."""
    return (np.cumsum(np.bincount(codes) > 0) - 1)[codes]


def _lie_within(codes: Array, clusters: Array) -> bool:
    """Whether the rows of each group have one cluster, of some kind."""
    for labels in clusters.reshape(len(clusters), -1).T:
        first = np.zeros(int(codes.max()) + 1, dtype=labels.dtype)
        first[codes] = labels
        if (first[codes] == labels).all():
            return True
    return False


def _check_left(data: IVData, roles: Sequence[str], given: Sequence[Array], deviations: Array, left: Array) -> None:
    """Raise where fixed effects leave nothing of a column but rounding."""
    assert data.names is not None
    names = [(role, name) for role, columns in zip(roles, given, strict=True) for name in data.names[role][: columns.shape[1]]]
    gone = np.linalg.norm(left, axis=1) <= ABSORBED * np.linalg.norm(deviations, axis=1)
    found = [name for (role, name), flag in zip(names, gone, strict=True) if flag]
    if found:
        raise DataError(
            f"{quoted(found)} {'does' if len(found) == 1 else 'do'} not vary within the fixed effects "
            f"{quoted(data.names['fixed_effects'])}, which take up all of it: drop {'it' if len(found) == 1 else 'them'}, or "
            "these fixed effects"
        )
