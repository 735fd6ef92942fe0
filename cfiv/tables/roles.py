"""Roles: which columns are outcome, treatment, instruments and covariates, by formula or by name.

``"sales ~ time + emotion + [price ~ fuel]"`` reads: the outcome ``sales`` depends on the covariates ``time`` and ``emotion``
and on the treatment ``price``, for which ``fuel`` is the instrument. formulaic parses it; the assignment of roles is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, TypeAlias

from cfiv.checks import several
from cfiv.errors import FormulaError, FormulaWarning, warn
from cfiv.tables.formula import Part
from cfiv.tables.grammar import UNREADABLE, read_formula, reason, split_fixed_effects
from cfiv.tables.terms import term_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

#: Names of columns as people have them: one, or several in an order.
Names: TypeAlias = "str | Sequence[str] | pd.Index[Any] | pd.Series[Any] | np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Roles:
    """Which columns, or transforms of columns, play which role.

    Parameters
    ----------
    outcome, treatment, instruments : str
        One formula part each, such as ``"sales"``, ``"poly(price, 2)"``, ``"fuel + fuel:time"``; constants are implied.
    covariates : str or None
        The exogenous part; it enters both stages by itself.
    weights : str or None
        The name of a column of row weights.
    clusters : tuple of str
        Names of columns, none to two, that label groups of rows with correlated errors.
    fixed_effects : tuple of str
        Names of columns that label groups of rows with a constant of their own each.
    intercept : bool
        False where there are no fixed effects and the formula says ``0 +`` or ``- 1``. Then one of its categories has a column
        for each level, and linear estimators have no constant; learned features carry one all the same.
    """

    outcome: str
    treatment: str
    instruments: str
    covariates: str | None = None
    weights: str | None = None
    intercept: bool = True
    clusters: tuple[str, ...] = ()
    fixed_effects: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The formula of each role that there is, read once."""
        texts = {"outcome": self.outcome, "treatment": self.treatment, "instruments": self.instruments}
        if self.covariates is not None:
            texts["covariates"] = self.covariates
        return {role: Part(text) for role, text in texts.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Raw columns of all roles."""
        named = [name for names in self.named.values() for name in names]
        return tuple(dict.fromkeys([*(name for part in self.parts.values() for name in part.variables), *named]))

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """Raw columns that the structural function needs: those of treatments, then of covariates."""
        parts = [self.parts[role] for role in ("treatment", "covariates") if role in self.parts]
        return tuple(dict.fromkeys(name for part in parts for name in part.variables))

    @property
    def treatment_columns(self) -> tuple[str, ...]:
        """Those of them that are the treatment, which ``effect`` and ``dose_response`` set."""
        covariates = self.parts["covariates"].variables if self.covariates is not None else ()
        return tuple(name for name in self.parts["treatment"].variables if name not in covariates)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns whose values are labels and no numbers: those in ``C(...)``, clusters and fixed effects."""
        names = dict.fromkeys(name for part in self.parts.values() for name in sorted(part.categories))
        return tuple(dict.fromkeys((*names, *self.clusters, *self.fixed_effects)))

    @property
    def named(self) -> dict[str, tuple[str, ...]]:
        """Columns of the roles that are no formula, by role."""
        weights = () if self.weights is None else (self.weights,)
        return {"weights": weights, "clusters": self.clusters, "fixed_effects": self.fixed_effects}

    @classmethod
    def from_formula(cls, formula: str, *, weights: str | None = None, clusters: tuple[str, ...] = ()) -> Roles:
        """Read ``outcome ~ covariates + [treatment ~ instruments] | fixed effects``.

        Raises
        ------
        FormulaError
            If it cannot be parsed, has no or empty brackets, or calls what formulas may not call.

        Warns
        -----
        FormulaWarning
            Of terms that vanish by the conventions of formulas, such as ``t**2``.
        """
        hint = "write 'outcome ~ covariates + [treatment ~ instruments]'"
        if not isinstance(formula, str):
            raise FormulaError(f"a formula is text, got {type(formula).__name__}: {hint}")
        formula, fixed_effects = split_fixed_effects(formula)
        reserved = re.search(r"`[01]`|(?<![\w.])Intercept(?![\w.])", formula)
        if reserved:
            raise FormulaError(
                f"the formula {formula!r} uses {reserved.group()!r}, which stands for the constant: rename that column"
            )
        try:
            parsed, vanishing = read_formula(formula)
            left, right = parsed.lhs, parsed.rhs
        except FormulaError as error:
            raise FormulaError(f"the formula {formula[:200]!r} cannot be read: {error}") from None
        except UNREADABLE as error:
            why = "it needs an outcome and a '~'" if isinstance(error, AttributeError) else reason(error)
            raise FormulaError(f"the formula {formula[:200]!r} cannot be read: {why}; {hint}") from None
        if not getattr(right, "deps", None):
            raise FormulaError(
                f"the formula {formula!r} names no instruments: {hint}, for LeastSquares too, which leaves them unused"
            )
        if len(left) != 1:
            raise FormulaError(f"the formula {formula!r} must have one outcome, got {len(left)}: {hint}")
        # formulaic puts a placeholder "<term>_hat" among the covariates for each term before the inner "~".
        endogenous = [term for stage in right.deps for term in stage.lhs]
        placeholders = {f"{term}_hat" for term in endogenous}
        for name in placeholders:
            if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", formula):
                raise FormulaError(
                    f"the formula {formula!r} uses the reserved name {name!r}: rename that column, or give names instead"
                )
        if any(len(term.factors) > 1 and placeholders & {factor.expr for factor in term.factors} for term in right.root):
            raise FormulaError(
                f"the formula {formula!r} multiplies the brackets by a term: put the products inside, as in "
                "'[price + price:time ~ fuel + fuel:time]'"
            )
        exogenous = [term_text(term) for term in right.root if not placeholders & {factor.expr for factor in term.factors}]
        treatment = [term_text(term) for term in endogenous if str(term) != "1"]
        instruments = list(dict.fromkeys(term_text(term) for stage in right.deps for term in stage.rhs if str(term) != "1"))
        covariates = [term for term in exogenous if term != "1"]
        _check_distinct(endogenous, [term for term in endogenous if str(term) != "1" and term in right.root])
        if not treatment or not instruments:
            raise FormulaError(f"the brackets of {formula!r} need a treatment and an instrument: {hint}")
        if vanishing:
            warn(
                f"in {formula[:200]!r} terms vanish, since * and : and ** make interactions and - takes terms away in "
                f"formulas: {'; '.join(vanishing[:5])}",
                FormulaWarning,
            )
        return cls(
            outcome=term_text(next(iter(left))),
            treatment=" + ".join(treatment),
            instruments=" + ".join(instruments),
            covariates=" + ".join(covariates) or None,
            weights=weights,
            intercept="1" in exogenous or bool(fixed_effects),
            clusters=clusters,
            fixed_effects=fixed_effects,
        )

    @classmethod
    def from_names(
        cls,
        *,
        outcome: str | None,
        treatment: Names | None,
        instruments: Names | None,
        covariates: Names | None = None,
        weights: str | None = None,
        clusters: tuple[str, ...] = (),
        fixed_effects: Names | None = None,
    ) -> Roles:
        """Roles from plain column names, which may hold any character but a backtick."""
        named: dict[str, list[str]] = {}
        for role, given in (
            ("outcome", outcome),
            ("treatment", treatment),
            ("instruments", instruments),
            ("covariates", covariates),
        ):
            names = column_names(role, given)
            if not names and role != "covariates":
                raise FormulaError(f"no {role} named: give a formula, or {role}={'...' if role == 'outcome' else '[...]'}")
            reserved = [name for name in names if name in ("0", "1", "Intercept")]
            if reserved:
                raise FormulaError(
                    f"{role} has a column named {reserved[0]!r}, which stands for the constant: rename that column"
                )
            named[role] = names
        _check_distinct(named["treatment"], [name for name in named["treatment"] if name in named["covariates"]])
        absorbed = column_names("fixed_effects", fixed_effects)
        if len(set(absorbed)) < len(absorbed):
            raise FormulaError(f"fixed_effects={shortened(absorbed)} names a column twice: name each once")
        parts = {role: " + ".join(f"`{name}`" for name in names) for role, names in named.items()}
        return cls(
            outcome=parts["outcome"],
            treatment=parts["treatment"],
            instruments=parts["instruments"],
            covariates=parts["covariates"] or None,
            weights=weights,
            clusters=clusters,
            fixed_effects=tuple(absorbed),
        )


def read_roles(
    formula: str | None,
    *,
    outcome: str | None = None,
    treatment: Names | None = None,
    instruments: Names | None = None,
    covariates: Names | None = None,
    weights: str | None = None,
    clusters: str | Sequence[str] | None = None,
    fixed_effects: Names | None = None,
) -> Roles | None:
    """By a formula or by names, as estimators are given them; None where none is named, since arrays have their own.

    Raises
    ------
    FormulaError
        For both of them, weights or clusters that are no name or come without roles, and as :class:`Roles` has it.
    """
    names = {"outcome": outcome, "treatment": treatment, "instruments": instruments, "covariates": covariates}
    named = [role for role, value in names.items() if value is not None]
    if formula is not None and named:
        raise FormulaError(f"give either a formula or column names, got the formula {formula!r} and {', '.join(named)}")
    if formula is not None and fixed_effects is not None:
        raise FormulaError(
            f"give fixed effects in the formula, after a bar, got fixed_effects={shortened(fixed_effects)} beside it: "
            "'outcome ~ x + [treatment ~ instruments] | firm + year'"
        )
    if weights is not None and not isinstance(weights, str):
        raise FormulaError(
            f"weights must be the name of one column, got {shortened(weights)}: combine several into one column of the "
            "table, or give IVData(weights=...) with arrays"
        )
    groups = cluster_names(clusters)
    for role, column in (("weights", weights), ("clusters", clusters), ("fixed_effects", fixed_effects)):
        if column is not None and formula is None and not named:
            raise FormulaError(
                f"{role}={column!r} names a column, but no other role is named: name all roles, or give IVData({role}=...)"
            )
    if formula is not None:
        return Roles.from_formula(formula, weights=weights, clusters=groups)
    if not named:
        return None
    return Roles.from_names(
        outcome=outcome,
        treatment=treatment,
        instruments=instruments,
        covariates=covariates,
        weights=weights,
        clusters=groups,
        fixed_effects=fixed_effects,
    )


def cluster_names(given: Any) -> tuple[str, ...]:
    """Names of the columns that label clusters: none, one or two.

    Raises
    ------
    FormulaError
    """
    names = () if given is None else several(given)
    if len(names) > 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise FormulaError(
            f"clusters must be the name of a column, or two of them, got {shortened(given)}: combine several into one column "
            "of the table, or give IVData(clusters=...) with arrays"
        )
    return names


def column_names(role: str, given: Any) -> list[str]:
    """The names in text, a list, a tuple, an array, an Index or a Series of it; none in None.

    Raises
    ------
    FormulaError
        If it is anything else, or holds anything else.
    """
    listed = getattr(given, "tolist", getattr(given, "to_list", None))
    names = list(given) if isinstance(given, (list, tuple)) else [] if given is None else listed() if listed else given
    names = names if isinstance(names, list) else [names]
    if any(not isinstance(name, str) or not name or "`" in name for name in names):
        raise FormulaError(
            f"{role} must be column names (text without backticks, one or a list of them), got {shortened(given)}; arrays of "
            f"values go into IVData({role}=...)"
        )
    return names


def _check_distinct(treatment: Sequence[object], among_covariates: Sequence[object]) -> None:
    """Raise where some treatments, not all, are covariates too: they would count as exogenous and as endogenous at once."""
    if among_covariates and len(among_covariates) < len(treatment):
        raise FormulaError(
            f"{str(among_covariates[0])!r} is both treatment and covariate: a covariate is exogenous, a treatment is not, so "
            "give it one of the two roles"
        )
