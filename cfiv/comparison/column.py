"""What one model says in a comparison: its estimates with their errors, and what stands at the foot of its column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cfiv.data import Array
from cfiv.diagnostics.anderson_rubin import anderson_rubin_sets
from cfiv.diagnostics.first_stage import partial_f
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.overidentification import hansen_j, sargan
from cfiv.diagnostics.rank import kleibergen_paap
from cfiv.diagnostics.results import ConfidenceSet, TestResult, Unavailable
from cfiv.errors import CfivWarning, DataError, ParameterError, silence
from cfiv.estimators import registry
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.linear_estimator import LinearEstimator
from cfiv.estimators.parameters import several
from cfiv.estimators.structural import StructuralFunction
from cfiv.estimators.two_stage_results import TwoStageResults
from cfiv.inference.doubts import DOUBTED
from cfiv.inference.infer import LEARNED
from cfiv.inference.inference import Inference

#: Level of Anderson-Rubin sets.
LEVEL = 0.95
#: Columns of the estimates.
ESTIMATES = ("term", "role", "estimate", "std_error", "p_value")
#: A change of the treatment, from and to.
Change = tuple[Any, Any]


@dataclass(frozen=True, eq=False)
class Column:
    """One model.

    Parameters
    ----------
    facts : mapping
        A row of :attr:`Comparison.table`; what the model does not have is left out.
    estimates : DataFrame
        ``term, role, estimate, std_error, p_value``; errors are NaN where there are none.
    outcome : str
    absent : mapping from a fact to the reason
        Why a model with instruments does not have it.
    """

    facts: Mapping[str, Any]
    estimates: pd.DataFrame
    outcome: str
    absent: Mapping[str, str]


def read_column(model: StructuralEstimator | Inference, effects: Mapping[str, Change]) -> Column:
    """Coefficients, effects and facts of a fitted model, or of an inference on one.

    Parameters
    ----------
    model : estimator or Inference
    effects : mapping from a label to a change of the treatment
        Averaged over the rows that ``dose_response`` averages over.
    """
    if isinstance(model, Inference):
        kind, _, groups = model.covariance.partition(" by ")
        facts = {"estimator": model.function.estimator, "rows": model.rows, "standard_errors": kind, "clusters": groups}
        if model.function.estimator in {learned.__name__ for learned in LEARNED}:
            doubted = any(note.startswith(DOUBTED) for note in model.notes)
            facts |= {"corrected": "splines", "trusted": "no" if doubted else "yes"}
        found = [_of_inference(model, label, change) for label, change in effects.items()]
        return Column(facts | _described(model.function), _table(found), model.function.outcome, {})
    model.summary()  # raises where it has not been fitted
    function = model.structural_function_
    facts = {
        "estimator": type(model).__name__,
        "rows": model.n_rows_,
        "seconds": model.fit_seconds_,
        "penalties": "; ".join(f"{name} {several(values)}" for name, values in model.chosen_penalties_.items()),
    }
    trust = getattr(model, "trust_", None)
    if trust is not None:
        facts["trusted"] = "yes" if trust.trusted else "no"
    if not isinstance(model, LinearEstimator):
        rows = function.encoder.reference_rows
        means = {
            label: float(model.effect(rows, treatment_from=start, treatment_to=end).mean())
            for label, (start, end) in effects.items()
        }
        found = [(label, "effect", value, np.nan, np.nan) for label, value in means.items()]
        return Column(facts | _described(function), _table(found), function.outcome, {})
    found = [*_coefficients(model), *(_linear_effect(model, label, change) for label, change in effects.items())]
    results = model.results_
    tests, absent = _tests(model, results) if isinstance(results, TwoStageResults) else ({}, {})
    facts |= _covariance(model) | _described(function) | tests
    return Column(facts, _table(found), function.outcome, absent)


def label_of(estimator: str) -> str:
    """What tables call an estimator, by the name of its class."""
    labels = {registered.class_name: registered.label for registered in registry.estimators()}
    return labels.get(estimator, estimator)


def _coefficients(model: LinearEstimator) -> list[tuple[Any, ...]]:
    """Treatments first, the constant last."""
    results, (k,) = model.results_, model.structural_function_.encoder.shape[0]
    names = list(results.params.index)
    constant = names[: int(model.structural_function_.encoder.intercept)]
    roles = dict.fromkeys(names, "covariate") | dict.fromkeys(names[-k:], "treatment") | dict.fromkeys(constant, "constant")
    order = [*names[-k:], *(name for name in names if roles[name] == "covariate"), *constant]
    return [(name, roles[name], results.params[name], results.std_errors[name], results.pvalues[name]) for name in order]


def _linear_effect(model: LinearEstimator, label: str, change: Change) -> tuple[Any, ...]:
    """``mean_i [f(to, X_i) - f(from, X_i)]' b``, a combination of coefficients."""
    results, encoder = model.results_, model.structural_function_.encoder
    asked = encoder.at(encoder.reference_rows, {"treatment_to": change[1], "treatment_from": change[0]})
    to, start = (np.atleast_2d(part).mean(axis=0) for part in (asked.own if asked.same is None else asked.same))
    weights = np.zeros(len(results.params))
    weights[-len(to) :] = to - start
    found = results.combination(weights)
    estimate, error = float(found["estimate"].iloc[0]), float(found["std_error"].iloc[0])
    return label, "effect", estimate, error, float(results.two_sided(estimate / error)) if error > 0 else np.nan


def _of_inference(inference: Inference, label: str, change: Change) -> tuple[Any, ...]:
    answer = inference.effect(treatment_from=change[0], treatment_to=change[1])
    value, error = float(answer.values[0]), float(answer.std_errors[0])
    df = answer.law.multipliers.df
    law = stats.norm() if df is None else stats.t(df)
    return label, "effect", value, error, float(2 * law.sf(abs(value) / error)) if error > 0 else np.nan


def _covariance(model: LinearEstimator) -> dict[str, Any]:
    """How errors were computed, and by which groups."""
    kind = {"kernel": "HAC"}.get(model.results_.cov_type, model.results_.cov_type)
    convention = model.results_.small_sample.convention
    facts = {"standard_errors": kind} | ({"debiased": "yes" if convention is True else str(convention)} if convention else {})
    groups: Array | None = model.results_.cov_config.get("clusters")
    if groups is not None:
        counts = [f"{len(np.unique(codes)):,}" for codes in np.asarray(groups).reshape(len(groups), -1).T]
        name = dict(model.structural_function_.encoder.describe()).get("Clusters")
        facts["clusters"] = f"{name} ({', '.join(counts)})" if name else ", ".join(counts)
    return facts


def _described(function: StructuralFunction) -> dict[str, Any]:
    """What the encoder says of roles beside those of the model; a line "Fixed effects" of those that were absorbed."""
    roles = dict(function.encoder.describe())
    return {"fixed_effects": roles["Fixed effects"]} if "Fixed effects" in roles else {}


def _tests(model: LinearEstimator, results: TwoStageResults) -> tuple[dict[str, Any], dict[str, str]]:
    """First-stage F, J and Anderson-Rubin set, as :func:`cfiv.diagnose` has them, and why one is absent."""
    names = ("first_stage_f", "j", "ar_set")
    try:
        with silence(CfivWarning):  # the fit has said it
            intercept = model.structural_function_.encoder.intercept
            problem = LinearProblem.from_data(model.observed_, intercept=intercept, covariance=results.covariance)
    except DataError as error:
        return {}, dict.fromkeys(names, str(error).partition(":")[0])
    significance = round(1 - LEVEL, 12)
    homoskedastic = results.cov_type == "unadjusted"
    if problem.shape[1] == 1:
        (strength,) = partial_f(problem, significance=significance)
    else:  # each treatment may be moved, and they still not be told apart
        strength = kleibergen_paap(problem, significance=significance)[1]
    j = (sargan if homoskedastic else hansen_j)(problem, significance=significance)
    sets = anderson_rubin_sets(problem, level=LEVEL)
    found: dict[str, Any] = {}
    if isinstance(strength, TestResult):
        found["first_stage_f"] = strength.statistic
    if isinstance(j, TestResult):
        found |= {"j": j.statistic, "j_p_value": j.p_value}
    if not any(isinstance(part, Unavailable) for part in sets):
        found["ar_set"] = "; ".join(_set(part) for part in sets if isinstance(part, ConfidenceSet))
    answers = zip(names, (strength, j, sets[0]), strict=True)
    return found, {name: part.reason for name, part in answers if isinstance(part, Unavailable)}


def _set(found: ConfidenceSet) -> str:
    """Ends to three digits: columns of a page are narrow."""
    return str(ConfidenceSet(found.name, found.level, tuple((_rounded(a), _rounded(b)) for a, b in found.intervals)))


def _rounded(end: float) -> float:
    return float(f"{end:.3g}")


def _table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(ESTIMATES)).astype(dict.fromkeys(ESTIMATES[2:], float))


def check_model(name: str, model: object) -> None:
    """Raise unless it can be a column.

    Raises
    ------
    ParameterError
    """
    if not isinstance(model, (StructuralEstimator, Inference)):
        raise ParameterError(f"{name!r} must be a fitted cfiv estimator, or an Inference on one, got {type(model).__name__}")
