"""What is to be known of intervals before relying on them: notes, and doubts, which speak against them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cfiv.data import Array
from cfiv.diagnostics.first_stage import effective_f
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.diagnostics.results import Unavailable
from cfiv.errors import DataError
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.estimators.least_squares import LeastSquares
from cfiv.estimators.linear_regression import Covariance
from cfiv.estimators.sieve_iv import SieveIV
from cfiv.estimators.structural import OUTSIDE, StructuralFunction
from cfiv.estimators.trust import Trust
from cfiv.inference.corrected import Corrected
from cfiv.inference.fitted_rows import FittedRows
from cfiv.inference.linear_in_basis import SizeChoice
from cfiv.inference.overidentification import Overidentification
from cfiv.inference.strength import Strength
from cfiv.mapped import is_mapped

TOO_SMALL = (
    "larger sizes have another curve, by more than noise: this basis is too small, and intervals and bands may hold less often "
    "than they say"
)
#: What a note begins with where the learned function itself should not be believed.
DOUBTED = "the model's own estimate is "
ABSORBED = "levels are at the average fixed effect, which counts as known; effects and derivatives do not depend on it"


def notes_of_size(model: StructuralEstimator, choice: SizeChoice | None, *, undersmooth: bool) -> tuple[str, ...]:
    """What the estimates are of, where that is not what the estimator's name says."""
    if isinstance(model, LeastSquares):
        return ("least squares takes treatments for exogenous: its intervals are not of the structural function",)
    if choice is None:
        return ()
    chosen, larger = choice.sizes[choice.chosen], choice.sizes[choice.larger]
    if not undersmooth:
        return (f"of the {chosen} functions that the data chose, whose bias may be larger than the band allows for",)
    if choice.larger == choice.chosen:
        return (f"of {chosen} functions, and these rows do not bear more: the bias of the curve may not be small",)
    few = "" if choice.small_bias else "; these rows do not bear more, so its bias may not be small"
    return (f"estimates are of {larger} functions of the treatment, for small bias; the curve of {chosen} is the model's{few}",)


def notes_of_outcome(function: StructuralFunction) -> tuple[str, ...]:
    """What is said of an outcome with two values."""
    return (f"predicted outside: {function.facts[OUTSIDE]}",) if OUTSIDE in function.facts else ()


def doubts_of_learned(model: StructuralEstimator, found: Corrected, treatments: Array) -> tuple[str, ...]:
    """What the model says against itself, and what its correction by splines cannot tell."""
    trust: Trust | None = getattr(model, "trust_", None)
    doubts = [] if trust is None or trust.trusted else [f"{DOUBTED}{trust}"]
    if found.straight and any(len(np.unique(column)) > 2 for column in treatments.T):  # of two values there is no more
        doubts.append(
            "the instruments tell no more than straight lines apart: whatever bends is as it was learned, and not in the errors"
        )
    if found.contradicted:
        doubts.append(TOO_SMALL)
    return tuple(doubts)


def is_too_small(model: StructuralEstimator, choice: SizeChoice | None, data: Any, *, undersmooth: bool, seed: int) -> bool:
    """Whether larger bases have another curve than that of the estimates, by more than noise."""
    if choice is not None:
        return choice.contradicted(choice.larger if undersmooth else choice.chosen)
    if not isinstance(model, SieveIV):
        return False
    compared = model.compare_larger(data, np.random.default_rng(seed))
    return compared is not None and compared.contradicted(0)


def doubts_of_strength(model: StructuralEstimator, strength: Strength | None) -> tuple[str, ...]:
    """What weak instruments do to intervals."""
    if isinstance(model, LeastSquares) or strength is None or not strength.is_weak:
        return ()
    return (
        f"the instruments may be weak (F-type {strength.leading_f:.3g}, not above {strength.critical_value:.3g}): "
        "intervals and bands may hold less often than they say; cfiv.diagnose has an Anderson-Rubin set",
    )


def doubts_of_clusters(model: StructuralEstimator, rows: FittedRows) -> tuple[str, ...]:
    """What instruments that hardly differ within clusters do, of which rows alone would make many: the effective F says.

    Of one treatment, by a line in the instruments; of rows on disk it is not computed.
    """
    data = rows.data
    if isinstance(model, LeastSquares) or not rows.groups or data.treatment.shape[1:] != (1,) or is_mapped(data.treatment):
        return ()
    try:
        problem = LinearProblem.from_data(
            replace(data, clusters=rows.clusters, names=None, frame=None),
            intercept=model.structural_function_.encoder.intercept,
            covariance=Covariance("clustered"),
        )
    except DataError:
        return ()
    found = effective_f(problem)
    if isinstance(found, Unavailable) or found.critical_value is None or found.statistic > found.critical_value:
        return ()
    return (
        f"the instruments may be weak (effective F with clusters {found.statistic:.3g}, not above {found.critical_value:.3g}): "
        "intervals and bands may hold less often than they say; cfiv.diagnose has an Anderson-Rubin set",
    )


def doubts_of_agreement(test: Overidentification | None) -> tuple[str, ...]:
    """What it means that instruments contradict one another."""
    if test is None or not test.is_contradicted:
        return ()
    return (
        f"the instruments contradict one another ({test}): one of them is invalid, or the effect is not of the form of "
        "the basis, or differs between those whom they move",
    )
