"""How far learned functions may depart from the smooth model: as far as rows that neither has seen speak for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfiv.data import Array, IVData
from cfiv.estimators.components import Component
from cfiv.estimators.smooth_model import SmoothModel
from cfiv.estimators.trust import HeldOut, Trust
from cfiv.learning.samples import CHECK_ROWS

#: ``(instruments, covariates) -> array (n,)``.
ReducedForm = Callable[[Array, Array | None], Array]
#: Rows that functions are compared on, each treatment with each row of covariates.
PAIRS = 300
#: Standard errors that the share must lie above zero for learned features to count at all.
CLEARLY = 3.0


@dataclass(frozen=True, eq=False)
class LearnedFunction:
    """A function of some rows, and other rows, which it has not seen; of learned features, which only the features have seen.

    Parameters
    ----------
    component : Component
        ``h``.
    reduced_form : callable
        ``(instruments, covariates) -> array (n,)``: its ``E[h(T, X) | Z, X]``.
    unseen : array of int
        Row numbers, the first ``CHECK_ROWS`` in random order: these it is weighed on.
    """

    component: Component
    reduced_form: ReducedForm
    unseen: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What rows not seen say of an increment ``d`` to a function ``h_0``: the coefficient ``s`` of ``d`` in ``Y - h_0 - s d``.

        s = sum_i g_i (Y_i - h_0(T_i, X_i)) / sum_i g_i d(T_i, X_i),    g = E[d(T, X) | Z, X],

    an instrumental variable regression with one instrument, the predicted increment. ``h_0`` and both last layers of what was
    learned are solved on other rows, so that no confounder enters but through what features remember of these rows' treatments:
    s is 1 where ``h_0 + d`` is the structural function, 0 where ``h_0`` is, whatever the increment looks like.

    Parameters
    ----------
    share : float
        ``s``.
    std_error : float
        Robust; rows of a cluster count as one.
    improves : bool
        Whether ``(Y - h_0 - min(s, 1) d)^2`` is lower than ``(Y - h_0)^2`` besides.
    increment, smooth : array (n,)
        ``E[d | Z, X]``, and ``Y - E[. | Z, X]`` of the smooth model, on these rows.
    rivals : HeldOut
        The same of a constant and of the line.
    """

    share: float
    std_error: float
    improves: bool
    increment: Array
    smooth: Array
    rivals: HeldOut

    @property
    def losses(self) -> dict[str, float]:
        """Of the answer and its rivals, for :class:`Trust`."""
        answer = self.smooth - self.weight * self.increment
        return {**self.rivals.losses(answer), "smooth_loss": self.rivals.loss(self.smooth)}

    @property
    def weight(self) -> float:
        """Of the increment in the answer, between 0 and 1: zero unless the data speak for it clearly."""
        clear = self.improves and self.share > CLEARLY * self.std_error
        return min(1.0, self.share) if clear else 0.0


@dataclass(frozen=True, eq=False)
class Nest:
    """The structural function found: the smooth model, the learned functions, or a mixture ``(1 - w) smooth + w learned``.

    Parameters
    ----------
    components : tuple of Component
    shares : tuple of float
        What each counts for; none where all count alike.
    reduced_form : callable
        ``(instruments, covariates) -> array (n,)``.
    smooth : SmoothModel or None
        None where there is none.
    evidence : Evidence or None
        None where learned functions were not, or could not be, weighed.
    weight : float
        Of learned functions in the answer.
    """

    components: tuple[Component, ...]
    shares: tuple[float, ...]
    reduced_form: ReducedForm
    smooth: SmoothModel | None = None
    evidence: Evidence | None = None
    weight: float = 1.0

    @classmethod
    def alone(cls, learned: tuple[Component, ...], reduced_form: ReducedForm, smooth: SmoothModel | None) -> Nest:
        """What was learned, weighed against nothing."""
        return cls(learned, (), reduced_form, smooth, weight=1.0)

    @classmethod
    def of(
        cls,
        data: IVData,
        smooth: SmoothModel,
        functions: Sequence[LearnedFunction],
        *,
        learned: tuple[Component, ...],
        reduced_form: ReducedForm,
    ) -> Nest:
        """By the evidence of rows not seen."""
        evidence = weigh(data, smooth, functions)
        weight = evidence.weight
        if weight == 1.0:
            return cls(learned, (), reduced_form, smooth, evidence, weight)
        if weight == 0.0:
            return cls((smooth.component(),), (), smooth.reduced_form(), smooth, evidence, weight)
        shares = (1.0 - weight, *(weight / len(learned) for _ in learned))
        mixture = Mixture(smooth.reduced_form(), reduced_form, weight)
        return cls((smooth.component(), *learned), shares, mixture, smooth, evidence, weight)

    def trust(self, data: IVData, learned: Sequence[Component]) -> Trust:
        """What is known of the answer's worth."""
        base = None if self.smooth is None else self.smooth.component()
        noise = disagreement(data, learned, base=base, weight=self.weight) if self.weight else 0.0
        if self.smooth is None:
            return Trust(learned_share=1.0, noise=noise, identified=data.treatment.ndim > 2)
        losses: dict[str, Any] = {} if self.evidence is None else self.evidence.losses
        return Trust(
            **losses,
            learned_share=self.weight,
            line=self.weight == 0.0 and self.smooth.is_line,
            strength=self.smooth.strength(),
            # Functions on swapped samples share rows, and may err alike: not less than the smooth model's.
            noise=float(np.fmax(noise, self.smooth.noise())),
        )

    def facts(self) -> dict[str, Any]:
        """For the summary."""
        if self.smooth is None or self.evidence is None:
            return {}
        share, error = self.evidence.share, self.evidence.std_error
        return {
            "Smooth model": self.smooth.describe(),
            "Share that was learned": f"{self.weight:.3g} (rows not seen say {share:.3g} +- {error:.2g})",
        }


@dataclass(frozen=True)
class Mixture:
    """``(1 - w) smooth + w learned``, of reduced forms."""

    smooth: ReducedForm
    learned: ReducedForm
    weight: float

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        """Shape (n,), at instruments (n, k) and covariates (n, c)."""
        smooth, learned = self.smooth(instruments, covariates), self.learned(instruments, covariates)
        return np.asarray((1.0 - self.weight) * smooth + self.weight * learned)


def weigh(data: IVData, smooth: SmoothModel, learned: Sequence[LearnedFunction]) -> Evidence:
    """The evidence for what learned functions add to the smooth model, on the rows that each has not seen.

    Parameters
    ----------
    data : IVData
    smooth : SmoothModel
        Fitted to all rows; each learned function is compared with its fit to the others.
    learned : sequence of LearnedFunction
        Each with rows of its own that it has not seen.
    """
    parts = [_increments(data, smooth, function) for function in learned]
    rows, increment, predicted, residual, weights, constant, line, base = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    strength = float((weights * predicted * increment).sum())
    share = float((weights * predicted * residual).sum()) / strength if strength else 0.0
    groups = rows if data.clusters is None else np.unique(data.clusters, return_inverse=True)[1][rows]
    scores = np.bincount(groups, weights=weights * predicted * (residual - share * increment))
    error = math.sqrt(float((scores**2).sum())) / abs(strength) if strength else math.inf
    after = residual - min(share, 1.0) * increment
    return Evidence(
        share=share,
        std_error=error,
        improves=float((weights * after**2).sum()) < float((weights * residual**2).sum()),
        increment=predicted,
        smooth=base,
        rivals=HeldOut(constant, line, weights, groups),
    )


def disagreement(data: IVData, functions: Sequence[Component], *, base: Component | None = None, weight: float = 1.0) -> float:
    """Of what treatments do to ``(1 - w) base + w mean_k f_k``, the share that is noise, by how far the ``f_k`` differ.

    :func:`spread` of ``(1 - w) base + w f_k``, as half of the variance of one of them: all functions are of the same rows, so
    that many of them count as two. nan of one function. Only the ``f_k`` count where ``w`` is 1.
    """
    if len(functions) < 2:
        return math.nan
    centred = treatment_parts(data, functions)
    if base is not None and weight < 1.0:
        centred = weight * centred + (1.0 - weight) * treatment_parts(data, [base])
    return spread(centred, times=1 / (2 * (len(functions) - 1)))


def spread(parts: Array, *, times: float) -> float:
    """``times sum_k mean (a_k - a)^2 / mean a^2`` for the rows ``a_k`` of ``parts`` and their mean ``a``."""
    unit = float(np.abs(parts).max()) or 1.0  # in which no square vanishes or overflows
    parts = parts / unit
    mean = parts.mean(axis=0)
    signal = float((mean**2).mean())
    return times * float(((parts - mean) ** 2).mean(axis=1).sum()) / signal if signal else math.inf


def treatment_parts(data: IVData, functions: Sequence[Component]) -> Array:
    """``h(t, x) - mean_j h(t_j, x)`` of each function at up to ``PAIRS`` rows, shape (functions, rows)."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(PAIRS, len(data))).astype(int))
    covariates = None if data.covariates is None else data.covariates[rows]
    if data.treatment.ndim > 2 or covariates is None:
        own = [function.evaluate(data.treatment[rows], covariates) for function in functions]
        return np.stack([values - values.mean() for values in own])
    crossed = [function.cross(data.treatment[rows], covariates) for function in functions]
    return np.stack([np.diag(values) - values.mean(axis=0) for values in crossed])


def _increments(data: IVData, smooth: SmoothModel, function: LearnedFunction) -> tuple[Array, ...]:
    """Of rows that it has not seen: numbers, ``d``, ``E[d | Z, X]``, ``Y - h_0``, weights; ``Y`` less reduced forms.

    In units of the outcome's standard deviation, so that no square leaves float64.
    """
    rows, base = function.unseen[:CHECK_ROWS], smooth.without(function.unseen)
    treatments, instruments = data.treatment[rows], data.instruments[rows]
    covariates = None if data.covariates is None else data.covariates[rows]
    before = base.component().evaluate(treatments, covariates)
    increment = function.component.evaluate(treatments, covariates) - before
    reduced, line = base.reduced_form()(instruments, covariates), base.line().reduced_form()(instruments, covariates)
    predicted = function.reduced_form(instruments, covariates) - reduced
    weights = np.ones(len(rows)) if data.weights is None else data.weights[rows] / data.weights.mean()
    outcome = data.outcome[rows]
    data.release()
    mean = base.outcome_mean()
    unit = float(smooth.outcome_scale.scale[0])
    parts = (increment, predicted, outcome - before), (outcome - mean, outcome - line, outcome - reduced)
    (d, g, residual), others = (tuple(part / unit for part in own) for own in parts)
    return rows, d, g, residual, weights, *others
