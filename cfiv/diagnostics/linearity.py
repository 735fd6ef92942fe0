"""Is the linear model adequate, and if not, what is not linear: covariates, the treatment's effect, or both?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cfiv.diagnostics.adequacy import Sample, residual_prediction
from cfiv.diagnostics.curvature import FEW, CurvedModel, curved_covariates, curved_treatment
from cfiv.diagnostics.curves import Variable, numbers
from cfiv.diagnostics.first_stage import effective_f, partial_f
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.rank import kleibergen_paap
from cfiv.diagnostics.results import Diagnostic, TestResult, Unavailable, conclude
from cfiv.errors import quoted

NAME = "Residual prediction, curves"
#: Divisions for the question whether covariates alone predict residuals, which is asked only where both tests reject.
DIVISIONS_ALONE = 5
#: Cragg-Donald F of a treatment's curve below which it says nothing of the covariates.
STRONG_CURVE = 3.0


def linearity(
    problem: LinearProblem, variables: Sequence[Variable], *, significance: float, random_state: int, strong: bool
) -> tuple[Diagnostic, Diagnostic]:
    """Residual prediction of the linear model, and of the one in which the covariates enter as curves and in pairs.

    ====================================  =====================================================
    rejected                              reading of the first
    ====================================  =====================================================
    the first alone, a curve is needed,   covariates enter nonlinearly
    beside a curve of the treatment too
    the first alone otherwise             which it is cannot be told
    both                                  the treatment's effect is not linear; covariates are not either where they need a
                                          curve beside a curve of the treatment
    ====================================  =====================================================

    Parameters
    ----------
    problem : LinearProblem
    variables : sequence of Variable
        The covariates, as the user has them.
    significance : float
        One minus the level, for the readings.
    random_state : int
        Of the divisions and forests; those of both tests are the same.
    strong : bool
        Whether the instruments are.

    Returns
    -------
    linear, curved : TestResult or Unavailable
        See :func:`cfiv.diagnostics.adequacy.residual_prediction`.
    """
    first = residual_prediction(problem, significance=significance, random_state=random_state, strong=strong)
    if isinstance(first, Unavailable):
        return first, Unavailable(NAME, first.reason)
    model = curved_covariates(problem, variables)
    if isinstance(model, str):
        second: Diagnostic = Unavailable(NAME, model)
    else:
        sample = Sample.of(problem).standardised()
        predict = partial(residual_prediction, model.problem, significance=significance, random_state=random_state)
        second = predict(predictors=sample.exogenous[:, sample.constants :])
        second = _curved_reading(replace(second, name=NAME), model, significance)
    if first.rejects(significance):
        why = _what(problem, model, second, significance=significance, random_state=random_state)
        first = replace(first, reading=conclude(0.0, significance=significance, rejected=why, kept=""))
    elif isinstance(second, TestResult) and second.rejects(significance):
        why = "nothing in this test speaks against the linear model, but the next one does, with curves of the covariates"
        first = replace(first, reading=conclude(1.0, significance=significance, rejected="", kept=why))
    return first, second


def is_strong(problem: LinearProblem, significance: float) -> bool:
    """Whether the instruments are: by the effective F; for several treatments by the rank test, since there is none."""
    gauge = effective_f(problem)
    if not isinstance(gauge, TestResult):
        gauge = kleibergen_paap(problem, significance=significance)[0]
    return isinstance(gauge, TestResult) and gauge.rejects(significance)


def _curved_reading(result: Diagnostic, model: CurvedModel, significance: float) -> Diagnostic:
    """With what the second test says by itself."""
    if isinstance(result, Unavailable):
        return result
    assert result.p_value is not None
    every = "" if model.all_pairs else "some "
    many = f"{model.added} column{'s' * (model.added > 1)}"
    reading = conclude(
        result.p_value,
        significance=significance,
        rejected=f"the model is rejected where the covariates enter as curves and in {every}pairs too ({many} more)",
        kept=f"nothing speaks against a linear effect where the covariates enter as curves and in {every}pairs ({many} more)"
        + (
            ""
            if is_strong(model.problem, significance)
            else ", but beside so many the instruments are weak, and it says little"
        ),
    )
    null = "E[e | Z, X] = 0 for some effect linear in the treatment and some curves of the covariates and products of two"
    return replace(result, null=null, reading=reading)


def _what(
    problem: LinearProblem, model: CurvedModel | str, second: Diagnostic, *, significance: float, random_state: int
) -> str:
    """What is wrong with a linear model that is rejected."""
    rejected = "the linear model is rejected"
    if not problem.intercept:
        return f"{rejected}, for which a missing constant is enough: put it back and test again before more is read in it"
    moved = [test for test in partial_f(problem, significance=significance) if isinstance(test, TestResult)]
    if not all(test.rejects(significance) for test in moved):
        return (
            f"{rejected}, and instruments that show no sign of moving the treatment cannot tell why: an invalid instrument is "
            "enough, and so is a covariate that enters nonlinearly"
        )
    if problem.data.covariates is None:
        return f"{rejected}: {_effect(problem)}"
    if isinstance(model, str) or isinstance(second, Unavailable):
        reason = second.reason if isinstance(second, Unavailable) else model
        return f"{rejected}, and it cannot be told ({reason}) whether covariates enter nonlinearly, or {_effect(problem)}"
    if second.rejects(significance):
        rejected += ", with curves of the covariates too"
        if _covariates_predict(model, significance=significance, random_state=random_state):
            return (
                f"{rejected}, and covariates alone predict what those leave: it cannot be told, but by more "
                f"flexible terms in the formula, whether they enter in ways that these curves miss, or {_effect(problem)}"
            )
        return f"{rejected}: {_effect(problem)}; {_besides(model, significance)}"
    rejected += ", but no longer with curves of the covariates"
    bent = curved_treatment(model)
    curved = model.needed(significance=significance)
    # What a curve of the treatment would explain as well is no evidence of one of the covariates.
    if not curved or (bent is not None and not model.needed(bent, significance=significance)):
        return f"{rejected}, of which none is needed for sure: whether they or the treatment enter nonlinearly cannot be told"
    speaks = "nothing speaks" if is_strong(model.problem, significance) else "instruments this weak say hardly anything"
    return (
        f"{rejected}: {_entering(curved)} ({model.advice(curved)} in the formula), and {speaks} against a linear effect of "
        f"{quoted(problem.treatment_names)}"
    )


def _covariates_predict(model: CurvedModel, *, significance: float, random_state: int) -> bool:
    """Whether covariates without instruments predict residuals of the curved model: then its curves are not enough.

    With enough of them they cannot, linear effect or not, for ``E[e | X]`` is a curve of the covariates.
    """
    covariates = model.linear.data.covariates
    assert covariates is not None
    sample = Sample.of(model.linear).standardised()
    alone = sample.exogenous[:, sample.constants : sample.constants + covariates.shape[1]]
    result = residual_prediction(
        model.problem, significance=significance, random_state=random_state, predictors=alone, divisions=DIVISIONS_ALONE
    )
    return isinstance(result, TestResult) and result.rejects(significance)


def _effect(problem: LinearProblem) -> str:
    """The treatment's part, and what to do about it."""
    data, covariates = problem.data, problem.data.covariates is not None
    names, one = quoted(problem.treatment_names), problem.shape[1] == 1
    invalid = "unless an instrument is invalid, which would look the same"
    if all(variable.distinct <= 2 for variable in numbers(problem.treatment_names, data.treatment)):
        values = f"{names} {'has' if one else 'have'} two values, through which there is always a line, so its effect differs"
        with_covariates = "with the covariates, for which DFIV would do, or " if covariates else ""
        return f"{values} {with_covariates}among those whom the instruments move, {invalid}"
    differs = " or differs with the covariates" if covariates else ""
    return f"the effect of {names} is not linear{differs}: a nonlinear estimator such as DFIV is needed, {invalid}"


def _besides(model: CurvedModel, significance: float) -> str:
    """Whether covariates enter nonlinearly beside a curve of the treatment."""
    problem = curved_treatment(model)
    if problem is None or problem.dof / problem.shape[2] * problem.strength < STRONG_CURVE:
        return "whether covariates enter nonlinearly as well cannot be told"
    curved = model.needed(problem, significance=significance)
    if not curved:
        return "nothing says that covariates enter nonlinearly as well"
    return f"{_entering(curved)} as well"


def _entering(groups: Sequence[str]) -> str:
    return f"{quoted(groups, FEW)} {'enters' if len(groups) == 1 else 'enter'} nonlinearly"
