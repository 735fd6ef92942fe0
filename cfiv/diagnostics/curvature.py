"""Models of the same data in which covariates, or treatments too, enter as curves; and tests of whether curves are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy import linalg, stats

from cfiv.data import ROLES, Array, IVData
from cfiv.diagnostics.adequacy import ROWS_A_COLUMN, Sample
from cfiv.diagnostics.curves import Curves, Variable, numbers, pairs, product
from cfiv.diagnostics.linear_problem import LinearProblem, cluster_sums, is_invertible
from cfiv.errors import DataError, quoted

#: Rows that a product of curves needs for each column: there are many of them, and each costs the test power.
ROWS_A_PRODUCT = 40
#: Columns of products of curves, and of all products, at most: the time of a test grows with their square.
MOST_TOGETHER, MOST_PRODUCTS = 50, 100
#: Degrees of freedom of a covariate's curve, as in ``bs(x, df=6)``; fewer where rows are few.
CURVE = 6
#: The same of a treatment's curve, and of an instrument's.
TREATMENT_CURVE, INSTRUMENT_CURVE = 3, 5
#: Names that a reading lists.
FEW = 4
#: Pairs of covariates that are looked at.
MOST_PAIRS = 2000


@dataclass(frozen=True, eq=False)
class CurvedModel:
    """``Y = T b + g(X) + e``, ``g`` a sum of curves of the covariates and of products of two.

    Parameters
    ----------
    problem : LinearProblem
        With the columns of curves after those of the formula.
    linear : LinearProblem
        The same data without them.
    groups : mapping from a covariate, or two as ``"x1:x2"``, to its columns among the added
    terms : mapping from a group to a term of a formula that makes such columns
    variables : tuple of Variable
    all_pairs : bool
        Whether there was room for the product of every two covariates.
    """

    problem: LinearProblem
    linear: LinearProblem
    groups: dict[str, slice]
    terms: dict[str, str]
    variables: tuple[Variable, ...]
    all_pairs: bool

    @property
    def added(self) -> int:
        """Columns that the linear model does not have."""
        return self.problem.exogenous - self.linear.exogenous

    def needed(self, problem: LinearProblem | None = None, *, significance: float) -> tuple[str, ...]:
        """The groups without which the model does not fit: Holm's tests of each, all at ``significance`` together.

        Parameters
        ----------
        problem : LinearProblem, optional
            Another with the same covariates, such as :func:`curved_treatment`'s.
        significance : float
        """
        p_values = score_tests(self.problem if problem is None else problem, self.groups, after=self.linear.exogenous)
        found: list[str] = []
        for left, name in zip(range(len(p_values), 0, -1), sorted(p_values, key=p_values.__getitem__), strict=True):
            if p_values[name] * left >= significance:
                break
            found.append(name)
        return tuple(name for name in self.groups if name in found)

    def advice(self, groups: Sequence[str]) -> str:
        """What to write for groups that are needed."""
        bends = [name for name in groups if name in {variable.name for variable in self.variables}]
        joint = [name for name in groups if name not in bends]
        written = [f"write {_several(self.terms, bends)} for the terms of {quoted(bends, FEW)}"] * bool(bends)
        return " and ".join([*written, *[f"add {_several(self.terms, joint)}"] * bool(joint)])


def curved_covariates(problem: LinearProblem, variables: Sequence[Variable]) -> CurvedModel | str:
    """The model in which each covariate is a curve, and two act together; or why there is none.

    The curves are as of ``bs(x, df=6)``, with fewer degrees of freedom where there would be less than ``ROWS_A_COLUMN`` rows
    for a column. Products of two come after: of curves where there are ``ROWS_A_PRODUCT`` rows for each of their columns, else
    of the variables themselves, as many as rows and ``MOST_PRODUCTS`` allow.
    """
    n, k, q = problem.shape
    if problem.data.covariates is None:
        return "there are no covariates"
    room = n // ROWS_A_COLUMN - problem.exogenous - k - q
    sizes = {most: sum(variable.extra(most) for variable in variables) for most in range(CURVE, 1, -1)}
    most = next((most for most, size in sizes.items() if size <= room), None)
    if most is None:
        return f"curves of the covariates need at least {n + ROWS_A_COLUMN * (sizes[2] - room)} rows, got {n}"
    parts = [(variable.name, variable.curve(most)) for variable in variables]
    terms = {variable.name: _curve_term(variable, CURVE) for variable in variables}
    room -= sizes[most]
    every = pairs(variables)
    together = _most_together(every, min(n // ROWS_A_PRODUCT, MOST_TOGETHER))
    room = min(room, MOST_PRODUCTS)
    taken = 0
    for one, other in islice(every, MOST_PAIRS):
        columns = product(one, other, together)
        if columns.shape[1] <= room:
            name = f"{one.name}:{other.name}"
            parts.append((name, columns))
            terms[name] = ":".join(_curve_term(part, together) if together > 2 else _term(part) for part in (one, other))
            room -= columns.shape[1]
            taken += 1
    added = Curves.beyond(_regressors(problem)[:, : problem.exogenous], parts, _weights(problem))
    if not added.groups:
        if taken < len(every):
            return f"products of the covariates need more rows, got {n}"
        return "the covariates enter in every way they can: none has a third value, or the formula has its curve"
    try:
        curved = _with_columns(problem, covariates=added.columns)
    except DataError as error:
        return f"with curves of the covariates {error}"
    return CurvedModel(curved, problem, added.groups, terms, tuple(variables), taken == len(every))


def curved_treatment(model: CurvedModel) -> LinearProblem | None:
    """The model in which treatments are curves as well, and differ in effect with the covariates.

    Its instruments are curves of the instruments and products with the covariates. None where there are too few rows or
    instruments, or no treatment has a third value.
    """
    problem, n = model.problem, model.problem.shape[0]
    data, weights, base = problem.data, _weights(problem), _regressors(problem)[:, : problem.exogenous]
    assert data.names is not None
    treatments, instruments = (numbers(data.names[role], getattr(data, role)) for role in ("treatment", "instruments"))
    numeric = [variable for variable in model.variables if not variable.category]
    sizes = ((treatments, TREATMENT_CURVE), (instruments, INSTRUMENT_CURVE))
    columns = problem.exogenous + sum(one.width(most) + len(numeric) for variables, most in sizes for one in variables)
    if not any(one.distinct > 2 for one in treatments) or n < ROWS_A_COLUMN * columns:
        return None

    def beyond(role: str, variables: Sequence[Variable], most: int) -> Array:
        parts = [(variable.name, variable.curve(most)) for variable in variables]
        parts += [(f"{one.name}:{other.name}", product(one, other)) for one in variables for other in numeric]
        return Curves.beyond(np.column_stack([base, getattr(data, role)]), parts, weights).columns

    bends, movers = beyond("treatment", treatments, TREATMENT_CURVE), beyond("instruments", instruments, INSTRUMENT_CURVE)
    if movers.shape[1] < bends.shape[1]:
        return None
    try:
        bent = _with_columns(problem, treatment=bends, instruments=movers)
    except DataError:  # what can be said without this model is said
        return None
    return bent if bent.unidentified is None else None


def score_tests(problem: LinearProblem, groups: dict[str, slice], *, after: int) -> dict[str, float]:
    """P-values of the hypotheses that a group of covariate columns has coefficients of zero, one a group.

    With the regressors ``D`` at their first-stage fit ``QR``, and ``U`` an orthonormal basis of the group's columns of
    ``R^-T``, the scores of the restricted model are ``(QU)_i e_i`` with its residuals ``e``, and ``c = U'Q'Y`` their sum:
    ``c' S^-1 c``, chi2 with as many degrees of freedom as columns. ``S`` is the sum of squared scores, of clusters' where there
    are clusters; ``e'e / n`` unadjusted. The score form keeps its level with the few rows at the end of a curve, where the Wald
    form rejects far too often.

    Parameters
    ----------
    problem : LinearProblem
    groups : mapping to slices
        Of the covariates' columns from ``after`` on.
    after : int

    References
    ----------
    Wooldridge, *Econometric Analysis of Cross Section and Panel Data*, 2nd ed., section 6.2.
    """
    sample = Sample.of(problem).standardised()
    residuals, fitted = sample.two_stage_least_squares()
    root = np.sqrt(sample.weights)
    scale = np.linalg.norm(fitted, axis=0)
    basis, triangle = np.linalg.qr(fitted / scale)
    regressors = root[:, None] * sample.regressors / scale
    sums = basis.T @ (root * sample.outcome)
    p_values = {}
    for name, columns in groups.items():
        chosen = np.eye(len(triangle))[:, after + columns.start : after + columns.stop]
        rotation = np.linalg.qr(linalg.solve_triangular(triangle, chosen, trans="T"))[0]
        moments = rotation.T @ sums
        restricted = root * residuals + regressors @ linalg.solve_triangular(triangle, rotation @ moments)
        if problem.covariance.kind == "unadjusted":
            covariance = np.eye(len(moments)) * np.mean(restricted**2)
        else:
            scores = cluster_sums(basis @ rotation * restricted[:, None], problem.clusters)
            covariance = scores.T @ scores
        # Of a group that concerns one row or cluster nothing can be said.
        known = is_invertible(covariance)
        p_values[name] = float(stats.chi2.sf(moments @ np.linalg.solve(covariance, moments), len(moments))) if known else 1.0
    return p_values


def _several(terms: dict[str, str], names: Sequence[str]) -> str:
    return ", ".join(terms[name] for name in names[:FEW]) + (", ..." if len(names) > FEW else "")


def _term(variable: Variable) -> str:
    name = variable.name if variable.name.isidentifier() else f"`{variable.name}`"
    return f"C({name})" if variable.category else name


def _curve_term(variable: Variable, df: int) -> str:
    if variable.distinct == 2:
        return _term(variable)
    return f"bs({_term(variable)}, df={df})" if variable.distinct > df + 1 else f"C({_term(variable)})"


def _most_together(every: Sequence[tuple[Variable, Variable]], room: int) -> int:
    """The degrees of freedom of curves whose products fit; one for the variables themselves."""
    for most in range(CURVE, 1, -1):
        if sum(one.width(most) * other.width(most) for one, other in every) <= room:
            return most
    return 1


def _with_columns(problem: LinearProblem, **added: Array) -> LinearProblem:
    """The same data with more columns in some roles."""
    data = problem.data
    assert data.names is not None
    wider = {role: np.concatenate([getattr(data, role), columns], axis=1) for role, columns in added.items()}
    names = {role: names for role, names in data.names.items() if role not in added}
    data = IVData(**{role: wider.get(role, getattr(data, role)) for role in ROLES}, names=names)
    return LinearProblem.from_data(data, intercept=problem.intercept, covariance=problem.covariance)


def _regressors(problem: LinearProblem) -> Array:
    return Sample.of(problem).regressors


def _weights(problem: LinearProblem) -> Array:
    return Sample.of(problem).weights
