"""``cfiv.compare``: fitted models in, how they fared and the regression table of a paper out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import pandas as pd

from cfiv.checks import check_whole, is_within, refusal
from cfiv.comparison.column import ESTIMATES, Change, check_model, read_column
from cfiv.comparison.regression_table import FOOT, STARS, UNASKED, Layout, regression_table
from cfiv.errors import ParameterError, nearest
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.inference.inference import Inference
from cfiv.rendering import Grid, Rendered, shown

#: In this order.
COLUMNS = ("estimator", "outcome", "rows", "seconds", "penalties", "corrected", "trusted")
INFERENCE = ("standard_errors", "debiased", "clusters", "fixed_effects", "first_stage_f", "j", "j_p_value", "ar_set")
JUDGED = ("score", "error")
#: The others are texts, empty where a model does not have them.
NUMBERS = ("rows", "seconds", "first_stage_f", "j", "j_p_value", "score", "error")


class HasError(Protocol):
    """A truth to be judged by, such as the one that ``demand.simulate`` returns."""

    def error(self, model: Any) -> float:
        """Mean squared error of a model against the truth."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Rendered):
    """Fitted models side by side; :func:`cfiv.compare` makes it.

    Prints as a regression table, in a notebook as HTML; ``to_markdown``, ``to_latex`` and ``to_html`` have it for a paper.

    Parameters
    ----------
    table : DataFrame
        One row a model: how it was fitted and how it fared.
    estimates : DataFrame
        One row a model and term: ``model, term, role, estimate, std_error, p_value``.
    layout : Layout
        What the regression table shows.
    """

    table: pd.DataFrame
    estimates: pd.DataFrame
    layout: Layout = field(repr=False)

    def _grids(self) -> tuple[Grid, ...]:
        return (regression_table(self.table, self.estimates, self.layout),)


def compare(
    models: Mapping[str, StructuralEstimator | Inference],
    *,
    effects: Mapping[str, Change] | Sequence[Change] | None = None,
    terms: Mapping[str, str] | Sequence[str] | None = None,
    stars: bool | Sequence[float] = False,
    digits: int = 3,
    foot: Sequence[str] | None = None,
    data: Any = None,
    truth: HasError | None = None,
) -> Comparison:
    """A column a fitted model: coefficients or effects with their standard errors, and what is known of each at the foot.

    Parameters
    ----------
    models : mapping from a name to a fitted estimator, or to an Inference on one
        An :class:`cfiv.Inference` stands for its model where effects are to have its errors, as those of a
        :class:`cfiv.SieveIV` or by clusters of two kinds; it has no coefficients. Those of DFIV and KernelIV are corrected by
        splines, and where trust in the model is lacking its column says so all the same.
    effects : sequence of (from, to), or mapping from a label to such pairs, optional
        Average effects of changes of the treatment, at the covariates that ``dose_response`` averages over. They take the place
        of the coefficients, unless ``terms`` names some.
    terms : sequence of coefficients, or mapping from a coefficient to its label, optional
        Those to show, in this order; by default all, treatments first. The foot counts those that are not shown.
    stars : bool or sequence of float
        Levels, one star below the first; True for .1, .05 and .01.
    digits : int
        Significant digits of standard errors; estimates have as many decimals.
    foot : sequence of str, optional
        Rows at the foot, of the columns of ``table``; by default what a paper reports, as far as any model has it: estimator,
        first-stage F, J, Anderson-Rubin set, fixed effects, standard errors, clusters, observations, trusted, score and error.
    data : table or IVData, optional
        Held-out rows for ``score``, the share of the outcome's variance that ``E[h | Z, X]`` explains.
    truth : object with ``error(model)``, optional
        Of a simulated design; ``error`` is the mean squared error against its structural function.

    Returns
    -------
    Comparison
        Whose ``table`` has the index ``model`` and, as far as a model has them, the columns ``estimator, outcome, rows,
        seconds`` (of the fit), ``penalties`` (those that the fit chose, of each function averaged), ``trusted`` ("yes" where
        nothing speaks against it, else "no"; see ``trust_`` of :class:`cfiv.DFIV`), ``corrected`` (of an inference on a learned
        function: by what, so that its effects are no longer the model's own), ``standard_errors, debiased, clusters,
        fixed_effects``, ``first_stage_f`` (the partial F of :func:`cfiv.diagnose`; of several treatments Kleibergen and
        Paap's), ``j, j_p_value, ar_set`` (95 %), all under the covariance of the fit, and, where asked for, ``score`` and
        ``error``.

    Raises
    ------
    ParameterError, NotFittedError
        For an empty mapping, something that is not an estimator, one that has not been fitted, a truth without ``error``, terms
        that no model has, and changes, stars or rows of the foot that cannot be read.

    Examples
    --------
    >>> from cfiv import LeastSquares, TwoStageLeastSquares
    >>> from cfiv.datasets import card1995
    >>> models = {"OLS": LeastSquares(card1995.FORMULA), "2SLS": TwoStageLeastSquares(card1995.FORMULA)}
    >>> fitted = {name: model.fit(card1995.load()) for name, model in models.items()}
    >>> print(compare(fitted, terms={"educ": "Schooling"}, foot=["first_stage_f", "rows"]))
                         OLS      2SLS
    ----------------------------------
    Schooling       0.07469    0.1315
                   (0.00364)  (0.0540)
    ----------------------------------
    First-stage F                14.14
    Observations       3,010     3,010
    ----------------------------------
    Outcome: lwage. Standard errors in brackets.
    """
    if not hasattr(models, "items") or len(models) == 0:
        words = "a mapping from names to fitted models, as compare({'2SLS': model})"
        raise refusal("models", words, models, kind=not hasattr(models, "items"))
    for name, model in models.items():
        check_model(name, model)
    if truth is not None and not callable(getattr(truth, "error", None)):
        raise ParameterError(f"truth must have a method error(model), as that of a simulated design has, got {truth!r}")
    if len(set(map(str, models))) < len(models):
        raise ParameterError(f"the models need names that differ as text, got {list(models)}: rename one of them")
    levels, rows = _levels(stars), _rows_at_the_foot(foot)
    check_whole("digits", digits, least=1, most=8)
    columns = {str(name): read_column(model, _changes(effects, model)) for name, model in models.items()}
    records = []
    for name, model in models.items():
        record = {"model": str(name), **columns[str(name)].facts, "outcome": columns[str(name)].outcome}
        judged = model.function if isinstance(model, Inference) else model
        if data is not None and isinstance(model, StructuralEstimator):
            record["score"] = model.score(data)
        if truth is not None:
            record["error"] = truth.error(judged)
        records.append(record)
    table = pd.DataFrame(records).set_index("model")
    table = table.fillna({name: "" for name in table if name not in NUMBERS})  # of those that do not have it
    estimates = pd.concat([column.estimates.assign(model=name) for name, column in columns.items()], ignore_index=True)
    absent = tuple((name, fact, reason) for name, column in columns.items() for fact, reason in column.absent.items())
    layout = Layout(_terms(terms, estimates), levels, digits, rows, absent)
    return Comparison(
        table[[name for name in (*COLUMNS, *INFERENCE, *JUDGED) if name in table]], estimates[["model", *ESTIMATES]], layout
    )


def _changes(effects: Any, model: StructuralEstimator | Inference) -> dict[str, Change]:
    """Changes of the treatment by their labels."""
    if effects is None:
        return {}
    pairs = list(effects.items()) if isinstance(effects, Mapping) else [(None, change) for change in effects]
    for _, change in pairs:
        if isinstance(change, (str, Mapping)) or not hasattr(change, "__len__") or len(change) != 2:
            raise ParameterError(f"effects are pairs of treatments, from and to, such as [(10, 15)], got {change!r}")
    function = model.function if isinstance(model, Inference) else getattr(model, "structural_function_", None)
    treatment = "" if function is None else ", ".join(function.encoder.treatment_names)
    return {
        f"{treatment} {shown(start)} to {shown(end)}" if label is None else str(label): (start, end)
        for label, (start, end) in pairs
    }


def _terms(terms: Any, estimates: pd.DataFrame) -> dict[str, str] | None:
    """Labels of what is shown: effects that were asked for, then coefficients; None for all coefficients."""
    effects = {str(term): str(term) for term in estimates.loc[estimates["role"] == "effect", "term"]}
    if terms is None:
        return effects or None
    named = [terms] if isinstance(terms, str) else terms
    given = dict(named) if isinstance(named, Mapping) else {name: name for name in named}
    known = list(dict.fromkeys(estimates["term"]))
    for term in given:
        if term not in known:
            raise ParameterError(f"no model has a coefficient {term!r}: {nearest(str(term), known)}")
    return effects | {str(term): str(label) for term, label in given.items()}


def _levels(stars: Any) -> tuple[float, ...]:
    if stars is True or stars is False or stars is None:
        return STARS if stars else ()
    levels = tuple(stars) if isinstance(stars, Sequence) and not isinstance(stars, str) else (stars,)
    ordered = len(levels) <= 3 and all(is_within(level, above=0.0, below=1.0) for level in levels)
    if not ordered or any(a <= b for a, b in pairwise(levels)):
        raise ParameterError(f"stars must be True, False, or one to three levels that fall, such as (0.1, 0.05), got {stars!r}")
    return levels


def _rows_at_the_foot(foot: Any) -> tuple[str, ...]:
    if foot is None:
        return tuple(name for name in FOOT if name not in UNASKED)
    names = (foot,) if isinstance(foot, str) else tuple(foot)
    for name in names:
        if name not in FOOT:
            raise ParameterError(f"there is no row {name!r} at the foot: {nearest(str(name), list(FOOT))}")
    return names
