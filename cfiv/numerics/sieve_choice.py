"""How many segments: the rule of Chen, Christensen and Kankanala, and what their uniform band needs of it.

Sizes double: 1, 2, 4, ... segments, while ``J sqrt(log J) max((.1 log n)^4, 1 / s_J) <= 10 sqrt(n)``. Two of them disagree by
``sup_x |h_J(x) - h_J2(x)| / sigma_{J,J2}(x)``; what that would be without any bias is drawn with Gaussian multipliers,
``D*_J(x) = f_J(x)' sum_i g_i s_i``, the same ``g`` for all sizes. ``theta*`` is the (1 - a) quantile of its largest over all
pairs, ``a = min(1/2, sqrt(log J_max / J_max))``, and the size chosen is the smallest that disagrees with none larger by more
than ``1.1 theta*``, and at most the second largest.

That size balances bias and noise, which is why the band around it has an allowance for its bias. Where instruments tell fine
functions apart exponentially badly (Gaussian copulas do) the allowance is too small. A larger size, whose bias is small beside
its noise, needs none: the smallest with ``NOISIER`` times the noise or twice as many functions (ours) is kept for bands.

References
----------
Chen, Christensen, Kankanala, "Adaptive Estimation and Uniform Confidence Bands for Nonparametric Structural Functions and
Elasticities", Review of Economic Studies (arXiv 2107.11869).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cfiv.numerics.sieve_basis import SieveBasis
from cfiv.numerics.sieve_iv import SieveFit, SieveRows, fit_basis, score_covariance
from cfiv.numerics.splines import Array

#: Times theta* that sizes may disagree by.
TOLERANCE = 1.1
#: Times the functions of the size chosen that an undersmoothed one has at most.
UNDERSMOOTHING = 2
#: Times the noise of the size chosen that is enough for an undersmoothed one.
NOISIER = 4.0
#: Rows for each instrument column that a size needs, or its first stage would repeat the treatment (ours, for small n).
ROWS_A_COLUMN = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class SieveChoice:
    """Sizes that were compared, and what a band needs of them.

    Parameters
    ----------
    segments, sizes : tuple of m int
        Segments of each size and its J, ascending.
    correlations : tuple of m float
        ``s_J``.
    contrasts : tuple of m float
        The largest disagreement of each size with a larger one; 0 for the largest.
    threshold : float
        ``theta*``; 0 where there is one size, which can disagree with none.
    chosen, larger : int
        Positions of the size chosen, and of the undersmoothed one: the smallest with ``NOISIER`` times its noise or twice as
        many functions, else the largest, of those whose instrument columns are independent in the rows; the same where there is
        none.
    small_bias : bool
        Whether the undersmoothed size is one of those, and not only the largest.
    bases : tuple of SieveBasis
        Of the sizes that a band around the size chosen is a supremum over, with that size: all but the two largest, or all if
        the second largest was chosen.
    """

    segments: tuple[int, ...]
    sizes: tuple[int, ...]
    correlations: tuple[float, ...]
    contrasts: tuple[float, ...]
    threshold: float
    chosen: int
    larger: int
    small_bias: bool
    bases: tuple[SieveBasis, ...]

    @property
    def allowance(self) -> float:
        """``A theta*``, ``A = max(0, log log J)``: what a band around the size chosen adds to its critical value for bias."""
        return max(0.0, math.log(math.log(self.sizes[self.chosen]))) * self.threshold

    def contradicted(self, size: int) -> bool:
        """Whether larger sizes disagree with the one at a position by more than noise."""
        return self.contrasts[size] > TOLERANCE * self.threshold


def choose_size(
    make: Callable[[int], SieveBasis],
    rows: SieveRows,
    points: tuple[Array, Array | None],
    *,
    variables: int,
    draws: int,
    generator: np.random.Generator,
    least: int = 1,
) -> tuple[SieveFit, SieveFit, SieveChoice | None]:
    """Fit sizes and choose one.

    Parameters
    ----------
    make : callable
        From a number of segments to bases.
    rows : SieveRows
    points : arrays (m, d) and (m, c) or None
        Treatments and covariates at which sizes are compared.
    variables : int
        How many variables have splines: sizes go up to n^(1 / log2(2 variables)).
    draws : int
    generator : Generator
    least : int
        Segments of the smallest size.

    Returns
    -------
    fit, larger : SieveFit
        Of the size chosen, and of the undersmoothed one.
    choice : SieveChoice or None
        None where the smallest size has no solution.
    """
    found = list(_within_reach(make, rows, variables=variables, least=least))
    if not found[0][1].determined:
        return found[0][1], found[0][1], None
    segments, fits = [many for many, _ in found], [fit for _, fit in found]
    covariance = score_covariance(fits, rows)
    contrasts, threshold = _contrasts(fits, covariance, points, draws, generator)
    agreeing = [i for i, contrast in enumerate(contrasts) if contrast <= TOLERANCE * threshold]
    second = max(0, len(fits) - 2)
    chosen = min(agreeing[0], second)
    # Instrument columns that nearly depend on one another, as of intervals with a row or none, leave a band to rounding.
    sound = [i for i, fit in enumerate(fits) if i > chosen and fit.instrument_rank == fit.basis.instrument_width]
    aim, functions = NOISIER * _noise(fits[chosen], rows, points), UNDERSMOOTHING * fits[chosen].basis.size
    enough = [i for i in sound if fits[i].basis.size >= functions or _noise(fits[i], rows, points) >= aim]
    larger = enough[0] if enough else max([chosen, *sound])
    kept = fits if chosen == second else fits[:second]
    choice = SieveChoice(
        segments=tuple(segments),
        sizes=tuple(fit.basis.size for fit in fits),
        correlations=tuple(fit.correlation for fit in fits),
        contrasts=tuple(contrasts),
        threshold=threshold,
        chosen=chosen,
        larger=larger,
        small_bias=bool(enough),
        bases=tuple(fit.basis for fit in kept),
    )
    return fits[chosen], fits[larger], choice


def noisier(
    make: Callable[[int], SieveBasis],
    rows: SieveRows,
    points: tuple[Array, Array | None],
    *,
    start: SieveFit,
    segments: int,
    ratio: float,
) -> SieveFit:
    """The smallest size whose curve has ``ratio`` times the noise of a given one, with at most twice its functions.

    At a size that balances bias and noise the bias is about one standard deviation. Larger sizes have no more of it, and at
    2.5 times the noise it costs an interval of 95 % some three points at most.

    Parameters
    ----------
    make, rows, points
        As for :func:`choose_size`.
    start : SieveFit
        With ``segments``.
    ratio : float
        Of the root mean squares over the points of the standard deviations.
    """
    aim, fit, best = ratio * _noise(start, rows, points), start, start
    while True:
        segments += max(1, segments // 4)
        basis = make(segments)
        if basis.width == fit.basis.width or ROWS_A_COLUMN * basis.instrument_width > len(rows):
            return best
        if basis.size > UNDERSMOOTHING * start.basis.size:
            return best
        fit = fit_basis(basis, rows)
        if fit.determined and fit.instrument_rank == basis.instrument_width:
            best = fit
            if _noise(fit, rows, points) >= aim:
                return best


def _noise(fit: SieveFit, rows: SieveRows, points: tuple[Array, Array | None]) -> float:
    """Of its curve: root mean square over points of standard deviations."""
    deviations = _deviations(fit.basis.structural_columns(*points), score_covariance([fit], rows))
    return float(np.sqrt(np.mean(deviations**2)))


def _within_reach(
    make: Callable[[int], SieveBasis], rows: SieveRows, *, variables: int, least: int
) -> Iterator[tuple[int, SieveFit]]:
    """Segments and fits of the sizes that the rows bear; at least the smallest."""
    n, width = len(rows), 0
    for power in range(max(int(math.log2(n) / math.log2(2 * variables)), 3)):
        segments = least * 2**power
        basis = make(segments)
        if basis.width == width or (power and ROWS_A_COLUMN * basis.instrument_width > n):
            return  # no column is a curve, or the rows are too few
        width = basis.width
        fit = fit_basis(basis, rows)
        size, correlation = basis.size, fit.correlation
        cost = size * math.sqrt(math.log(size)) * max((0.1 * math.log(n)) ** 4, 1 / correlation if correlation else math.inf)
        if power and cost > 10 * math.sqrt(n):
            return
        yield segments, fit


def _contrasts(
    fits: Sequence[SieveFit],
    covariance: Array,
    points: tuple[Array, Array | None],
    draws: int,
    generator: np.random.Generator,
) -> tuple[list[float], float]:
    """The largest contrast of each size with larger ones, and theta*."""
    changes = _draws(covariance, draws, generator)
    columns = [fit.basis.structural_columns(*points) for fit in fits]
    ends = np.cumsum([0, *(fit.basis.width for fit in fits)])
    curves = [own @ fit.coefficients for own, fit in zip(columns, fits, strict=True)]
    drawn = [changes[:, ends[i] : ends[i + 1]] @ own.T for i, own in enumerate(columns)]
    largest, worst = np.zeros(draws), [0.0] * len(fits)
    for i in range(len(fits)):
        for j in range(i + 1, len(fits)):
            both = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in (i, j)])
            spread = _deviations(np.concatenate([columns[i], -columns[j]], axis=1), covariance[np.ix_(both, both)])
            worst[i] = max(worst[i], float(_largest(curves[i] - curves[j], spread)))
            np.maximum(largest, _largest(drawn[i] - drawn[j], spread), out=largest)
    size = fits[-1].basis.size
    level = 1 - min(0.5, math.sqrt(math.log(size) / size))
    return worst, float(np.quantile(largest, level)) if len(fits) > 1 else 0.0


def _draws(covariance: Array, draws: int, generator: np.random.Generator) -> Array:
    """Normal with a covariance (P, P), shape (draws, P): what multipliers of rows make of their scores."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((generator.standard_normal((draws, len(values))) * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _deviations(rows: Array, covariance: Array) -> Array:
    """Standard deviations of ``rows @ c``, shape (m,)."""
    return np.asarray(np.sqrt(np.maximum(((rows @ covariance) * rows).sum(axis=1), 0.0)))


def _largest(values: Array, deviations: Array) -> Array:
    """The largest ``|value| / deviation`` over points, the last axis; a point without a deviation has no say."""
    scale = np.where(deviations > 0, 1 / np.where(deviations > 0, deviations, 1.0), 0.0)
    return np.asarray((np.abs(values) * scale).max(axis=-1))
