"""Whether a fit is worth anything, as far as the data can tell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cfiv.data import Array
from cfiv.numerics.penalised_iv import standard_errors

#: F of the excluded instruments below which they are weak.
WEAK = 10.0
#: Share of the treatment's part of ``h`` that may be sampling noise: a slope of 2.6 standard errors.
NOISY = 0.15
#: What a line finds in what the function leaves, in units of what the treatment does to it.
LEFT = 0.5
#: Standard errors by which a held-out loss must lie above another's.
CLEARLY = 2.0


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What a fit knows about itself; every number is nan where it has no meaning.

    Parameters
    ----------
    heldout_loss, smooth_loss, line_loss : float
        Mean of ``(Y - E[h(T, X) | Z, X])^2`` on rows that the functions have not seen, in units of that of a constant: of the
        answer, of the smooth model and of the line.
    above_constant, above_line : float
        By how many standard errors of the paired difference the answer's loss lies above that of a constant, and of the line.
    learned_share : float
        Of learned features in the answer, from 0 (the smooth model) to 1.
    line : bool
        Whether the answer is a line.
    identified : bool
        False where linear instruments do not move all treatments, each in a way of its own beside the covariates.
    strength : float
        F of the excluded instruments for the treatment that they move least.
    noise : float
        Of what the treatment does to ``h`` over the rows, the share that is sampling noise: from the covariance of the smooth
        model's coefficients, or from how far functions differ that were learned from swapped samples, or without each fold. Of
        a line that is one number, ``1 / t^2``; of a curve it is about its bends and what differs between rows, and not about
        the average effect.
    left : float
        How large, over the rows, the line in the treatment is that two-stage least squares finds in ``Y - h(T, X)``, less
        three standard errors and at least 0, in units of what the treatment does to ``h``. Of the truth it is 0.
    """

    heldout_loss: float = math.nan
    smooth_loss: float = math.nan
    line_loss: float = math.nan
    above_constant: float = math.nan
    above_line: float = math.nan
    learned_share: float = math.nan
    line: bool = False
    identified: bool = True
    strength: float = math.nan
    noise: float = math.nan
    left: float = math.nan

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the fit should not be believed; empty where nothing speaks against it."""
        found = []
        if not self.identified:
            found.append("the instruments do not move each treatment in a way of its own, or there are as many columns as rows")
        if math.isnan(self.strength) and not math.isnan(self.line_loss):
            found.append(
                "how strong the instruments are cannot be told: the columns leave too few observations, or clusters are few"
            )
        if self.strength < WEAK:
            found.append(f"the instruments hardly move the treatment (F = {self.strength:.2g}, below {WEAK:g})")
        if self.noise > NOISY:
            better = "" if self.strength < WEAK else "; the average effect may be known far better: cfiv.infer"
            share = _part_of("its square" if self.line else "its variation over the rows", self.noise)
            found.append(
                f"the line in the treatment is not told from a flat one ({share} may be sampling noise, more than {NOISY:.0%})"
                if self.line
                else f"the shape of what the treatment does, its bends and differences between rows, may be sampling noise "
                f"({share}, more than {NOISY:.0%}){better}"
            )
        if self.left > LEFT:
            found.append(
                "what it leaves of the outcome moves with the instruments (a line in the treatment through that is "
                f"{min(self.left, 99.0):.2g} times as large as what it says the treatment does, or more)"
            )
        if self.above_constant > CLEARLY:
            found.append(f"on rows not seen it predicts worse than a constant (loss {self.heldout_loss:.3g} of the variance)")
        if self.above_line > CLEARLY:
            losses = f"loss {self.heldout_loss:.4g}, the line's {self.line_loss:.4g}"
            found.append(f"on rows not seen it predicts worse than a line ({losses})")
        return tuple(found)

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the fit; not that all is well, which no data can tell."""
        return not self.reasons

    def __str__(self) -> str:
        return "nothing speaks against it" if self.trusted else "not to be believed: " + "; ".join(self.reasons)


def _part_of(whole: str, share: float) -> str:
    """A share of something as a percentage, and as a multiple where it is more than all of it."""
    if share < 1.05:
        return f"{min(share, 1.0):.0%} of {whole}"
    return f"{'more than 99' if share > 99.0 else f'as much as {share:.2g}'} times {whole}"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """``Y - E[. | Z, X]`` on rows not seen, arrays (n,): of the rivals of an answer.

    Parameters
    ----------
    constant, line : array (n,)
    weights : array (n,)
    groups : array (n,) of int
        From 0; alike for the same row, which several functions may not have seen, and for rows of a cluster.
    """

    constant: Array
    line: Array
    weights: Array
    groups: Array

    def loss(self, errors: Array) -> float:
        """Mean square, in units of a constant's; nan where a constant leaves nothing."""
        unit = float(np.average(self.constant**2, weights=self.weights))
        return float(np.average(errors**2, weights=self.weights)) / unit if unit else math.nan

    def losses(self, answer: Array) -> dict[str, float]:
        """Of an answer with such errors and of the line, and how the answer compares, for :class:`Trust`."""
        return {
            "heldout_loss": self.loss(answer),
            "line_loss": self.loss(self.line),
            "above_constant": standard_errors(answer**2 - self.constant**2, self.weights, self.groups),
            "above_line": standard_errors(answer**2 - self.line**2, self.weights, self.groups),
        }
