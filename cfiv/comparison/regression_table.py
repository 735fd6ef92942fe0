"""The regression table of a paper: a column a model, errors in brackets beneath estimates, facts at the foot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cfiv.comparison.column import label_of
from cfiv.rendering import Grid, shown

#: Rows of the foot, by the columns of :attr:`Comparison.table`, and what they are called.
FOOT = {
    "outcome": "Outcome",
    "estimator": "Estimator",
    "first_stage_f": "First-stage F",
    "j": "J (p-value)",
    "ar_set": "AR set, 95 %",
    "fixed_effects": "Fixed effects",
    "standard_errors": "Standard errors",
    "debiased": "Debiased",
    "clusters": "Clusters",
    "omitted": "Further terms",
    "rows": "Observations",
    "seconds": "Seconds",
    "penalties": "Penalties",
    "corrected": "Corrected by",
    "trusted": "Trusted",
    "score": "Held-out score",
    "error": "Squared error",
}
#: Rows that a paper has no place for; they are there where they are asked for.
UNASKED = ("seconds", "penalties")
#: What abbreviations stand for, where a row with one is there.
MEANINGS = {
    "j": "J: Hansen's, where errors are unadjusted Sargan's.",
    "ar_set": "AR set: Anderson and Rubin's{which}, valid however weak the instruments.",
}
#: Which set that is, where the table shows effects of other changes and not the coefficient.
WHICH = ", of the treatment's coefficient"
#: Levels of one, two and three stars, as most journals have them that print any.
STARS = (0.1, 0.05, 0.01)
#: Decimals beyond which numbers are written with an exponent.
DECIMALS = 8
ROLES = ("effect", "treatment", "covariate", "constant")


@dataclass(frozen=True)
class Layout:
    """What a regression table shows.

    Parameters
    ----------
    terms : mapping from a term to its label, or None
        In this order; None for all.
    stars : tuple of float
        Levels, descending: one star below the first.
    digits : int
        Significant digits of standard errors; estimates have as many decimals.
    foot : tuple of str
        Rows of the foot.
    absent : tuple of (model, fact, reason)
    """

    terms: Mapping[str, str] | None
    stars: tuple[float, ...]
    digits: int
    foot: tuple[str, ...]
    absent: tuple[tuple[str, str, str], ...]


def regression_table(table: pd.DataFrame, estimates: pd.DataFrame, layout: Layout) -> Grid:
    """A grid of a column a model.

    Parameters
    ----------
    table : DataFrame
        One row a model: facts.
    estimates : DataFrame
        ``model, term, role, estimate, std_error, p_value``.
    layout : Layout
    """
    models = [str(name) for name in table.index]
    labels = _terms(estimates) if layout.terms is None else layout.terms
    seen = estimates[estimates["term"].isin(list(labels))]
    body = [row for term, label in labels.items() for row in _rows_of(term, label, models, seen, layout)]
    facts = table.assign(omitted=_omitted(models, estimates, seen))
    notes = [f"Outcome: {table['outcome'].iloc[0]}."] if facts["outcome"].nunique() == 1 else []
    names = [name for name in layout.foot if name in facts and (facts[name].notna() & (facts[name] != "")).any()]
    names = [name for name in names if name != "outcome" or not notes]
    foot = [(FOOT[name], *(_fact(name, facts.loc[model]) for model in table.index)) for name in names]
    notes = [" ".join([*notes, *_legend(seen)]), _stars(layout) if len(seen) else ""]
    which = "" if (seen["role"] == "treatment").any() else WHICH
    notes += [" ".join(MEANINGS[name].format(which=which) for name in names if name in MEANINGS), *_reasons(layout, models)]
    blocks = tuple(tuple(block) for block in (body, foot) if block)
    return Grid(("", *models), blocks, "l" + "c" * len(models), notes=tuple(note for note in notes if note))


def _omitted(models: Sequence[str], estimates: pd.DataFrame, seen: pd.DataFrame) -> list[float]:
    """Coefficients of each model that are not shown, where some are."""
    if not (seen["role"] != "effect").any():
        return [math.nan] * len(models)
    left = estimates["model"].value_counts().sub(seen["model"].value_counts(), fill_value=0)
    return [float(left.get(name, 0)) or math.nan for name in models]


def _terms(estimates: pd.DataFrame) -> dict[str, str]:
    """All terms: effects, treatments, covariates, constants; of one role in the order in which models have them."""
    order = estimates.assign(rank=estimates["role"].map(ROLES.index)).sort_values("rank", kind="stable")
    return {str(term): str(term) for term in order["term"]}


def _rows_of(term: str, label: str, models: Sequence[str], estimates: pd.DataFrame, layout: Layout) -> list[tuple[str, ...]]:
    """The row of a term's estimates, and that of their errors where there are any."""
    columns = ("model", "estimate", "std_error", "p_value")
    found = {str(row[0]): row[1:] for row in estimates.loc[estimates["term"] == term, list(columns)].itertuples(index=False)}
    upper, lower = [label], [""]
    for model in models:
        value, error, p_value = found.get(model, (math.nan, math.nan, math.nan))
        estimate, beneath = _at_precision(value, error=error, digits=layout.digits)
        upper.append(estimate + "*" * sum(p_value < level for level in layout.stars))
        lower.append(f"({beneath})" if beneath else "")
    return [tuple(upper), tuple(lower)] if any(lower) else [tuple(upper)]


def _at_precision(estimate: float, *, error: float, digits: int) -> tuple[str, str]:
    """An estimate and its error with the same decimals, as many as make the error's significant digits."""
    if not error > 0 or not math.isfinite(error):
        return shown(float(estimate)), "" if error != error else shown(float(error))
    decimals = max(0, digits - 1 - math.floor(math.log10(error)))
    if decimals > DECIMALS or max(abs(estimate), error) >= 10**DECIMALS:
        return f"{estimate:.{digits}g}", f"{error:.{digits}g}"
    return f"{estimate:,.{decimals}f}", f"{error:,.{decimals}f}"


def _fact(name: str, facts: pd.Series) -> str:
    value = facts[name]
    if not isinstance(value, str) and pd.isna(value):
        return ""
    if name == "estimator":
        return label_of(value)
    if name == "j":
        return f"{shown(float(value))} ({facts['j_p_value']:.3f})"
    return f"{int(value):,}" if name in ("rows", "omitted") else shown(value)


def _legend(seen: pd.DataFrame) -> list[str]:
    """What brackets mean, and which models have no errors."""
    notes = ["Standard errors in brackets."] if seen["std_error"].notna().any() else []
    without = [str(name) for name, part in seen.groupby("model", sort=False) if part["std_error"].isna().all()]
    return [*notes, f"Without standard errors: {', '.join(without)}."] if without else notes


def _stars(layout: Layout) -> str:
    """What stars mean."""
    levels = [f"{'*' * (i + 1)} p < {level:g}" for i, level in enumerate(layout.stars)]
    return f"{', '.join(levels)}." if levels else ""


def _reasons(layout: Layout, models: Sequence[str]) -> list[str]:
    """Why there are blanks at the foot: one sentence for the models and the facts of one reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for model, fact, reason in layout.absent:
        if fact in layout.foot:
            where.setdefault((fact, reason), []).append(model)
    what: dict[tuple[str, str], list[str]] = {}
    for (fact, reason), blank in where.items():
        place = "" if len(blank) == len(models) else f" in {', '.join(blank)}"
        what.setdefault((place, reason), []).append(FOOT[fact].partition(" (")[0].partition(",")[0])
    return [f"No {' and '.join(facts)}{place}: {reason}." for (place, reason), facts in what.items()]
