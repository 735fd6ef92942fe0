"""Two-stage least squares with penalties in both stages, each chosen by losses on rows that the fit has not seen.

With structural columns ``F`` (n, p), instrument columns ``Phi`` (n, q), mean over rows ``E_n``, and diagonal penalties ``K_j``
of stage 1 (two a structural column, on curves and on products among the instruments) and ``L`` of stage 2,

    V_j = argmin  E_n (F_j - V_j' Phi)^2 + |K_j^(1/2) V_j|^2,
    u   = (V' E_n[Phi F'] + L)^-1 V' E_n[Phi Y].

where of columns that treatments have a part in ``V_j' Phi`` is taken without what exogenous columns explain of it. The moments
of stage 2 have the actual columns, ``E_n[V' Phi (Y - u' F)] = L u``, so that whatever stage 1 shrinks away costs precision, but
biases nothing; with no penalties it is two-stage least squares. A penalty of infinity leaves its columns out.

Curves of covariates predict treatments only where stage 2 has them as well. Else they would be instruments: a bend in what a
covariate does to the outcome would be taken for an effect of the treatment that bends with it. For the same reason predictions
are taken without them: what ``L`` shrinks away of such a curve must not be made up for by the treatment.

``K`` minimises the error of stage 1 on other folds: on curves without products, then on products beside these. With one penalty
for both, hundreds of products that are noise would flatten the curves of instruments. ``L`` minimises ``(Y - u' F)^2`` there:
this loss leans towards the confounder, but chooses among solutions of stage 2 only, and is told apart from noise far better
than one in which the outcome is predicted from instruments alone. Both leave the line, for which nothing is penalised, only
where that lowers the loss by more than ``CLEARLY`` standard errors of the paired difference. In stage 2 it must be lower, too,
once lines are taken out of the errors: a slope that chance moves towards the confounder is no evidence of a curve.

What is expected of ``u' F`` given all of ``Phi`` is a regression of its own, :meth:`Penalties.projected`, whose two penalties
minimise its error on other folds: answers are judged by it. Curves of many covariates, for which stage 1 has no penalty, would
otherwise make good ones look worthless.

References
----------
Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019, for the two held-out losses. Eilers and Marx,
"Flexible Smoothing with B-splines and Penalties", Statistical Science 1996. The moments with actual columns, penalties two a
column of stage 1, and the rule that favours the line are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cfiv.numerics.smooth_basis import Part
from cfiv.numerics.splines import Array

#: Candidates, on the mean squared error of standardised columns.
FIRST_STAGE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, math.inf)
SECOND_STAGE = (*(10.0 ** (k / 2) for k in range(-16, 5)), math.inf)
#: Penalties on curves and on products, and those that leave lines alone.
Pair = tuple[float, float]
LINEAR: Pair = (math.inf, math.inf)
#: Standard errors by which a departure from the line must lower a loss.
CLEARLY = 1.5
#: And besides, once lines are taken out of the errors.
BEYOND_LINES = 1.0
#: Of the diagonal of a moment matrix, so that columns may depend on one another.
JITTER = 1e-10


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over weighted rows of ``[Phi, F, Y]`` with one another.

    Parameters
    ----------
    products : array (q + p + 1, q + p + 1)
    weight : float
    instruments : int
        q.
    """

    products: Array
    weight: float
    instruments: int

    @classmethod
    def of(cls, instruments: Array, structural: Array, outcome: Array, weights: Array) -> Moments:
        """Of some rows."""
        together = np.concatenate([instruments, structural, outcome[:, None]], axis=1)
        return cls((together * weights[:, None]).T @ together, float(weights.sum()), instruments.shape[1])

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.products + other.products, self.weight + other.weight, self.instruments)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.products - other.products, self.weight - other.weight, self.instruments)

    @property
    def gram(self) -> Array:
        """``E_n[Phi Phi']``."""
        q = self.instruments
        return np.asarray(self.products[:q, :q] / self.weight)

    @property
    def cross(self) -> Array:
        """``E_n[Phi F']``."""
        q = self.instruments
        return np.asarray(self.products[:q, q:-1] / self.weight)

    @property
    def reduced(self) -> Array:
        """``E_n[Phi Y]``."""
        return np.asarray(self.products[: self.instruments, -1] / self.weight)

    @property
    def structural(self) -> Array:
        """``E_n[F F']``."""
        q = self.instruments
        return np.asarray(self.products[q:-1, q:-1] / self.weight)

    @property
    def right(self) -> Array:
        """``E_n[F Y]``."""
        return np.asarray(self.products[self.instruments : -1, -1] / self.weight)


@dataclass(frozen=True, eq=False, kw_only=True)
class Penalties:
    """Of both stages.

    Parameters
    ----------
    instrument_parts, structural_parts : array of Part
        What each column belongs to.
    shared : int
        How many columns come first in both: the constant and the lines of covariates.
    first : array (p, 2)
        ``K`` of each structural column: on curves of the instruments, and on their products; nan where it instruments itself.
    second : mapping from Part to float
        ``L``.
    projection, line_projection : pair of float
        Of curves and of products among instrument columns, where ``u' F`` is predicted from them; of the line beside it.
    """

    instrument_parts: Array
    structural_parts: Array
    shared: int
    first: Array
    second: Mapping[Part, float]
    projection: Pair = LINEAR
    line_projection: Pair = LINEAR

    @classmethod
    def of_line(cls, *, instrument_parts: Array, structural_parts: Array, shared: int, moved: Array) -> Penalties:
        """Nothing but the line, by linear instruments; ``moved`` (p,) says which structural columns these must predict."""
        return cls(
            instrument_parts=instrument_parts,
            structural_parts=structural_parts,
            shared=shared,
            first=np.repeat(np.where(moved, math.inf, np.nan)[:, None], 2, axis=1),
            second={part: math.inf for part in Part if part is not Part.LINE and (structural_parts == part).any()},
        )

    @property
    def is_line(self) -> bool:
        """Whether nothing but the line is left."""
        return all(math.isinf(value) for value in self.second.values())

    def line(self) -> Penalties:
        """The same without anything that departs from the line."""
        return replace(self, second=dict.fromkeys(self.second, math.inf), projection=self.line_projection)

    def having(self, part: Part, penalty: float) -> Penalties:
        """With another ``L`` of a part."""
        return replace(self, second={**self.second, part: penalty})

    def first_stage(self, moments: Moments) -> Array:
        """V, shape (q, p), without what exogenous columns explain of predicted ones."""
        weights = _solved(moments.gram, moments.cross, np.zeros(moments.instruments))
        moved = self.moved
        for pair in np.unique(self.first[moved], axis=0):
            columns = (self.first == pair).all(axis=1)
            weights[:, columns] = self.predicted(moments, columns, pair)
        own = np.where(self.exogenous, 0.0, math.inf)
        weights[:, moved] -= _solved(moments.gram, moments.gram @ weights[:, moved], own)
        return weights

    def projected(self, moments: Moments, coefficients: Array) -> Array:
        """Of ``E[u' F | Phi]``, shape (q,).

        Columns that instrument themselves are taken as they are. Of the others ``u' F`` is predicted as one, from all
        instrument columns: what stage 1 may not use is no instrument, but part of what is expected.
        """
        moved, own = self.moved, np.where(self.exogenous, 0.0, math.inf)
        shared = _solved(moments.gram, (moments.cross[:, ~moved] @ coefficients[~moved])[:, None], own)
        departures = self._of_instruments(self.projection)
        added = _solved(moments.gram, (moments.cross[:, moved] @ coefficients[moved])[:, None], departures)
        return np.asarray(shared + added)[:, 0]

    def second_stage(self, moments: Moments, first_stage: Array) -> Array:
        """u, shape (p,); zero where columns are left out."""
        return self.solved(first_stage.T @ moments.cross, first_stage.T @ moments.reduced)

    def solved(self, square: Array, right: Array) -> Array:
        """u, of ``V' E_n[Phi F']`` and ``V' E_n[Phi Y]``."""
        return _solved(square, right[:, None], self.diagonal)[:, 0]

    @property
    def diagonal(self) -> Array:
        """``L`` of each structural column (p,)."""
        diagonal = np.zeros(len(self.structural_parts))
        for part, penalty in self.second.items():
            diagonal[self.structural_parts == part] = penalty
        return diagonal

    @property
    def moved(self) -> Array:
        """Which structural columns (p,) instruments must predict."""
        return np.asarray(~np.isnan(self.first[:, 0]))

    @property
    def sides(self) -> tuple[int, ...]:
        """Of a pair of penalties, those that have instrument columns."""
        return (0, 1) if (self.instrument_parts == Part.PRODUCTS).any() else (0,)

    @property
    def exogenous(self) -> Array:
        """Which instrument columns (q,) are columns of stage 2: the constant, covariates, and their curves if it has them."""
        own = np.zeros(len(self.instrument_parts), dtype=bool)
        own[: self.shared] = True
        curves = self.second.get(Part.COVARIATE_CURVES, math.inf)
        return np.asarray(own | ((self.instrument_parts == Part.COVARIATE_CURVES) & math.isfinite(curves)))

    def predicted(self, moments: Moments, columns: Array, pair: Pair | Array) -> Array:
        """``V_j`` of some structural columns, with penalties on curves of the instruments and on their products."""
        diagonal = self._of_instruments(pair)
        diagonal[self.instrument_parts == Part.COVARIATE_CURVES] = math.inf
        diagonal[self.exogenous] = 0.0
        return _solved(moments.gram, moments.cross[:, columns], diagonal)

    def _of_instruments(self, pair: Pair | Array) -> Array:
        """Of each instrument column (q,), for penalties on curves and on products."""
        parts, (curves, products) = self.instrument_parts, pair
        return np.where(parts == Part.LINE, 0.0, np.where(parts == Part.PRODUCTS, products, curves))


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of the rows that penalties are chosen on.

    Parameters
    ----------
    instruments : array (n, q)
    structural : array (n, p)
    outcome : array (n,)
    weights : array (n,)
        With mean one.
    folds : tuple of array of int
        Row numbers.
    groups : array (n,) of int, optional
        Whole numbers from 0, alike for rows whose errors may be correlated.
    """

    instruments: Array
    structural: Array
    outcome: Array
    weights: Array
    folds: tuple[Array, ...]
    groups: Array | None = None

    def moments(self, rows: Array) -> Moments:
        """Of some rows."""
        return Moments.of(self.instruments[rows], self.structural[rows], self.outcome[rows], self.weights[rows])


def choose_penalties(rows: Rows, line: Penalties) -> Penalties:
    """Whether covariates are curves, for linear instruments; then ``K`` of each kind, and ``L`` of each part in turn, twice.

    Parameters
    ----------
    rows : Rows
    line : Penalties
        Those that leave a line.

    Notes
    -----
    O(n (p + q)^2) once; a candidate costs O(folds (q^2 p + p^3)).
    """
    held = [rows.moments(fold) for fold in rows.folds]
    total = sum(held[1:], start=held[0])
    seen = [total - one for one in held]
    parts, penalties = list(line.second), line
    curves = Part.COVARIATE_CURVES
    if curves in parts:
        penalties = penalties.having(curves, _Choice(rows, penalties, seen, held).best(penalties.second, curves))
    penalties = replace(penalties, first=_first_penalties(rows, penalties, seen=seen, held=held))
    choice = _Choice(rows, penalties, seen, held)
    for _ in range(2):
        for part in parts:
            if part is not curves or math.isfinite(penalties.second[part]):
                penalties = penalties.having(part, choice.best(penalties.second, part, finite=part is curves))
    of_line, own = (_projection(each, seen=seen, held=held) for each in (penalties.line(), penalties))
    return replace(penalties, projection=own, line_projection=of_line)


def _projection(penalties: Penalties, *, seen: Sequence[Moments], held: Sequence[Moments]) -> Pair:
    """The penalties by which what treatments add to ``h`` is predicted best on other folds."""
    coefficients = [
        np.where(penalties.moved, penalties.second_stage(others, penalties.first_stage(others)), 0.0) for others in seen
    ]

    def loss(pair: Pair) -> float:
        given, total = replace(penalties, projection=pair), 0.0
        for others, own, u in zip(seen, held, coefficients, strict=True):
            weights = given.projected(others, u)
            total += own.weight * float(weights @ (own.gram @ weights - 2.0 * own.cross @ u))
        return total

    chosen = LINEAR
    for side in penalties.sides:
        pairs = [_paired(chosen, side, penalty) for penalty in FIRST_STAGE]
        chosen = pairs[int(np.argmin([loss(pair) for pair in pairs]))]
    return chosen


def _first_penalties(rows: Rows, penalties: Penalties, *, seen: Sequence[Moments], held: Sequence[Moments]) -> Array:
    """A pair for each structural column that instruments must predict: first on curves alone, then on products beside them.

    Lines among the columns leave linear instruments reluctantly.
    """
    moved = penalties.moved
    chosen = np.array(penalties.first)
    for side in penalties.sides:
        losses = np.full((len(FIRST_STAGE), len(moved)), math.inf)
        for pair in np.unique(chosen[moved], axis=0):
            columns = (chosen == pair).all(axis=1)
            losses[:, columns] = _first_losses(penalties, columns, pair, side, seen=seen, held=held)
        before = chosen.copy()
        chosen[moved, side] = np.array(FIRST_STAGE)[losses.argmin(axis=0)][moved]
        for column in np.flatnonzero(moved & (penalties.structural_parts == Part.LINE) & np.isfinite(chosen[:, side])):
            alone = np.arange(len(moved)) == column
            gain = np.empty(len(rows.outcome))
            for fold, others in zip(rows.folds, seen, strict=True):
                without, beside = (penalties.predicted(others, alone, each[column])[:, 0] for each in (before, chosen))
                target, phi = rows.structural[fold, column], rows.instruments[fold]
                gain[fold] = (target - phi @ without) ** 2 - (target - phi @ beside) ** 2
            if standard_errors(gain, rows.weights, rows.groups) <= CLEARLY:
                chosen[column, side] = math.inf
    return chosen


def _first_losses(
    penalties: Penalties, columns: Array, pair: Array, side: int, *, seen: Sequence[Moments], held: Sequence[Moments]
) -> Array:
    """Of some columns on other folds (candidates, columns), for each candidate on one side of a pair."""
    losses = np.zeros((len(FIRST_STAGE), int(columns.sum())))
    for others, own in zip(seen, held, strict=True):
        gram, cross, square = (
            own.gram * own.weight,
            own.cross[:, columns] * own.weight,
            np.diag(own.structural)[columns] * own.weight,
        )
        for number, penalty in enumerate(FIRST_STAGE):
            weights = penalties.predicted(others, columns, _paired(pair, side, penalty))
            losses[number] += square + ((gram @ weights - 2.0 * cross) * weights).sum(axis=0)
    return losses


def _paired(pair: Pair | Array, side: int, penalty: float) -> Pair:
    """With another penalty on one side."""
    curves, products = pair
    return (penalty, float(products)) if side == 0 else (float(curves), penalty)


class _Choice:
    """The penalties of stage 2, for given ones of stage 1."""

    def __init__(self, rows: Rows, penalties: Penalties, seen: Sequence[Moments], held: Sequence[Moments]) -> None:
        self._rows, self._penalties, self._held = rows, penalties, held
        first_stages = [penalties.first_stage(moments) for moments in seen]
        self._systems = [(v.T @ moments.cross, v.T @ moments.reduced) for v, moments in zip(first_stages, seen, strict=True)]

    def best(self, second: Mapping[Part, float], part: Part, *, finite: bool = False) -> float:
        """Of one part, the others being given; infinity unless the loss is clearly lower, or it has to be finite."""
        candidates = SECOND_STAGE[:-1] if finite else SECOND_STAGE
        losses = [self._loss({**second, part: penalty}) for penalty in candidates]
        best = float(candidates[int(np.argmin(losses))])
        if finite or math.isinf(best):
            return best
        return best if self._is_clearly_better({**second, part: best}, {**second, part: math.inf}) else math.inf

    def _is_clearly_better(self, departure: Mapping[Part, float], rival: Mapping[Part, float]) -> bool:
        """Whether its loss is lower, and is so too once lines are taken out of both errors.

        A departure has another slope, too: where instruments are weak, chance alone moves that by much, and it lowers the loss
        whenever it moves towards a regression's.
        """
        rows, errors = self._rows, np.stack([self._errors(rival), self._errors(departure)], axis=1)
        return all(
            standard_errors(each[:, 0] ** 2 - each[:, 1] ** 2, rows.weights, rows.groups) > enough
            for each, enough in ((errors, CLEARLY), (self._beyond_lines(errors), BEYOND_LINES))
        )

    def _beyond_lines(self, errors: Array) -> Array:
        """Of errors (n, k) what lines of treatments and covariates leave in each fold; nothing where they leave no row."""
        rows, left = self._rows, np.zeros_like(errors)
        lines = rows.structural[:, self._penalties.structural_parts == Part.LINE]
        root = np.sqrt(rows.weights)[:, None]
        for fold in rows.folds:
            slopes, _, rank, _ = np.linalg.lstsq(lines[fold] * root[fold], errors[fold] * root[fold], rcond=None)
            if rank < len(fold):
                left[fold] = errors[fold] - lines[fold] @ slopes
        return left

    def _solutions(self, second: Mapping[Part, float]) -> list[Array]:
        penalties = replace(self._penalties, second=second)
        return [penalties.solved(square, right) for square, right in self._systems]

    def _loss(self, second: Mapping[Part, float]) -> float:
        """Up to a constant."""
        loss = 0.0
        for u, own in zip(self._solutions(second), self._held, strict=True):
            loss += float(u @ own.structural @ u - 2.0 * u @ own.right) * own.weight
        return loss

    def _errors(self, second: Mapping[Part, float]) -> Array:
        """``Y - u' F`` of each row (n,), by the u of the other folds."""
        errors = np.empty(len(self._rows.outcome))
        for u, fold in zip(self._solutions(second), self._rows.folds, strict=True):
            errors[fold] = self._rows.outcome[fold] - self._rows.structural[fold] @ u
        return errors


def standard_errors(differences: Array, weights: Array, groups: Array | None = None) -> float:
    """By how many of its standard errors a weighted mean (n,) lies above zero; 0 of differences that are all zero.

    ``groups`` are whole numbers from 0, alike for differences that depend on one another.
    """
    mean = float(np.average(differences, weights=weights))
    scores: Array = weights * (differences - mean)
    if groups is not None:
        scores = np.bincount(groups, weights=scores)
    error = math.sqrt(float((scores**2).sum())) / float(weights.sum())
    return mean / error if error else 0.0


def _solved(gram: Array, right: Array, diagonal: Array) -> Array:
    """``(G + diagonal)^-1 R``, with zeros where the diagonal is infinite."""
    kept = np.isfinite(diagonal)
    everything = bool(kept.all())
    own = gram.copy() if everything else gram[np.ix_(kept, kept)]
    on_diagonal = np.einsum("ii->i", own)  # a view, however own lies in memory
    scale = np.abs(on_diagonal)
    on_diagonal += diagonal[kept] + JITTER * np.where(scale > 0, scale, 1.0)
    if everything:
        return np.asarray(np.linalg.solve(own, right))
    solved = np.zeros(right.shape)
    solved[kept] = np.linalg.solve(own, right[kept])
    return solved
