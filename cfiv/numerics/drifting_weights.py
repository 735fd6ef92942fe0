"""A last layer without a penalty to set: weights that drift with their features, seen through the noise of batches."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from cfiv.errors import SingularError
from cfiv.numerics.inputs import row_weights

#: How far weights are first taken to drift in a step of training, as a share of their own size, and the least of that share.
DRIFT, LEAST_DRIFT = 0.1, 1e-6
#: From so many rows a feature the first batch is solved, whatever the weights were, and the drift may begin higher: at rows a
#: feature over this number, which is also the most. Features that learn from weights that chase few rows make them chase more.
ROWS = 10
#: Where a batch has ``DETERMINED`` rows a feature, what earlier batches said is worth at most ``HELD`` of them: a burst of
#: noise would otherwise end the drift for good, and features would learn beside weights that stand still.
DETERMINED, HELD = 8, 16
#: Where squared errors were more than ``FAR`` times those of no weights on most of about ``ASTRAY`` batches, weights are shrunk
#: by the ridge that this calls for, let go by the factor ``RELEASE`` a batch. Weights of a solve can be so large that each step
#: of the features throws them out, and features hardly learn beside such weights. Noise alone makes no errors so large.
FAR, ASTRAY, RELEASE = 4.0, 100, 0.99
#: How much the logarithm of that share grows where two corrections after one another are the same, and falls where opposite.
LEARNING = 0.1
#: Batches over which the noise is averaged.
BATCHES = 20
#: Parts of a batch whose scores are compared. Neighbouring rows, since those of one example are no independent witnesses.
PARTS = 4
#: No pull is less than this share of the mean eigenvalue of the Gram matrix, so that solves keep their digits.
LEAST_PULL = 1e-10
#: What is taken for rounding of features, times the root of the rows: squares of the unit of their type, shares of that mean.
ROUNDING = 2e4
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is known after a batch, all float64, with the leading axes of the features.

    Parameters
    ----------
    mean : Tensor (..., d, k)
        W.
    information : Tensor (..., d, d)
        A, the inverse of the covariance of W in units of the noise.
    step : Tensor (..., d, k)
        The last correction of W.
    log_noise, log_drift, batches : Tensor (...)
        Logarithms of ``s^2`` and of the drift as a share of the weights, and how many batches there were.
    outcome, astray, ridge : Tensor (...)
        Mean square of the targets, the share of batches on which the weights before did far worse than none, and b.
    """

    mean: Tensor
    information: Tensor
    step: Tensor
    log_noise: Tensor
    log_drift: Tensor
    batches: Tensor
    outcome: Tensor
    astray: Tensor
    ridge: Tensor


def track_weights(before: Track | Tensor | None, *, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Track:
    """Predict and correct, with the ratio of drift to noise from the data.

    With rows scaled by the square roots of their weights (mean one), G = Phi'Phi, and the residual ``E = Y - Phi W_prev``,

        A = (max(1, drift^2) A_prev^-1 + q I)^-1 + G + n b I,        W = W_prev + A^-1 (Phi'E - n b W_prev),
        q = (drift^2 / s^2) max(|W_prev|^2, d |Phi'Y|^2 / (tr G)^2) / dk.

    That is the Kalman filter of weights whose steps have variance ``q s^2``, seen in noise of variance ``s^2``: directions that
    batches determine well are followed, those that they hardly show keep what earlier batches said. Weights that drift by more
    than their own size are forgotten in all directions alike. Of batches with DETERMINED rows a feature, ``1 / q`` is at most
    ``HELD tr G / n``, what HELD rows for each feature are worth.

    The noise is that of the *score* ``Phi'E``: of its parts over PARTS runs of neighbouring rows, in excess of their mean, so
    that what they agree upon is no noise, and rows that belong together count as what they are. It is a geometric mean over
    about BATCHES batches. The drift is larger where corrections after one another point the same way, so that the filter lags,
    and smaller where the next batch takes back what the last one did: its logarithm moves by LEARNING times their cosine in
    the metric of A. On features that stay it falls, and W tends to the least squares of all rows.

    The ridge b is 0 but where the features move so much between batches that the weights do far worse than none, with
    ``|E|^2 > FAR |Y|^2`` (of the batch, and of batches on average). Features that are off by independent errors of variance b
    add ``n b |W|^2`` to squared errors, so such a batch says ``b = (|E|^2 - |Y|^2) / (n |W_prev|^2)``, a few times the largest
    eigenvalue of ``G / n`` at most. It counts where most of the last batches were such (ASTRAY), and fades (RELEASE).

    Directions in which features vary by their rounding alone, such as the sum of what a LayerNorm gives, say nothing: the score
    there is that of noise, and weights that fitted it would be thrown out by the next step of the features. In place of
    ``Phi'E`` stands ``G (G + r I)^-1 Phi'E``, with r of ROUNDING squares of the rounding unit over the root of n, as noise
    falls with rows, in mean eigenvalues of G; of features in float64 it is ``Phi'E``.

    Parameters
    ----------
    before : Track, Tensor (..., d, k) or None
        What it gave for the batch before; or weights to begin with, of which nothing is known; or None for no past at all: the
        first batch is then solved, as it is where there are ROWS rows a feature.
    features : Tensor (..., n, d)
    targets : Tensor (..., n, k)
        Gradients flow from the mean to them, the gain ``A^-1`` held fixed; not to the features.
    weights : Tensor (..., n), optional

    Raises
    ------
    SingularError
        If the features are not finite; with leading axes, if those of any problem are.
    DataError
        If a row weight is negative or not finite, or their sum is not positive.

    Notes
    -----
    O(n d^2 + d^3), beside a proximal step two factorisations and one solve of d columns more. Features times c give weights
    over c, targets times c weights times c.

    References
    ----------
    Galashov et al., arXiv 2510.04606, appendix A, has the filter. How drift and noise are found is ours.
    """
    phi, y = features.detach().double(), targets.double()
    (rows, d), k = phi.shape[-2:], y.shape[-1]
    if weights is not None:
        w = row_weights(weights, like=phi)
        root = (w * (rows / w.sum(dim=-1, keepdim=True))).sqrt()[..., None]
        phi, y = phi * root, y * root
    gram = phi.mT @ phi
    identity = torch.eye(d, dtype=phi.dtype, device=phi.device)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1).clamp_min(TINY)
    past, mean = (before, before.mean) if isinstance(before, Track) else (None, before if rows < ROWS * d else None)
    most = max(DRIFT, rows / (ROWS * d))
    residual = y if mean is None else y - phi @ mean
    outcome = y.detach().square().mean(dim=(-2, -1))
    astray, ridge = torch.zeros_like(trace), torch.zeros_like(trace)
    if past is not None:
        astray, ridge = _errors_of_features(past, outcome=outcome, residual=residual.detach())
        outcome = past.outcome + (outcome - past.outcome) / (past.batches + 1.0).clamp_max(ASTRAY)
    size = d * (phi.mT @ y.detach()).square().sum(dim=(-2, -1)) / trace**2
    size = (size if mean is None else torch.maximum(mean.detach().square().sum(dim=(-2, -1)), size)) / (d * k)
    if past is None:
        noise = score_noise(phi=phi, residual=residual.detach(), root=identity.expand_as(gram), gram=gram)
        log_noise, log_drift = noise.clamp_min(TINY).log(), torch.full_like(trace, log(most))
        batches = torch.ones_like(trace)
    else:
        log_noise, log_drift, batches = past.log_noise, past.log_drift, past.batches + 1.0
    ratio = ((2.0 * log_drift - log_noise).exp() * size).clamp_max(d / (LEAST_PULL * trace))
    if rows >= DETERMINED * d:
        ratio = torch.maximum(ratio, rows / (HELD * trace))
    ratio = ratio[..., None, None]
    if past is not None:
        forgotten = (2.0 * log_drift).exp().clamp_min(1.0)[..., None, None]
        known = torch.cholesky_solve(past.information, _cholesky(forgotten * identity + ratio * past.information))
        known = (known + known.mT) / 2
    else:
        known = identity * (LEAST_PULL * trace[..., None, None] / d if mean is None else 1.0 / ratio.clamp_min(1e-100))
    pull, score = rows * ridge[..., None, None], phi.mT @ residual
    rounding = ROUNDING * torch.finfo(features.dtype).eps ** 2 / rows**0.5
    if rounding > torch.finfo(torch.float64).eps:
        root, failure = torch.linalg.cholesky_ex(gram + rounding * trace[..., None, None] / d * identity)
        # Where that fails the score stays as it is. Nothing is read of a device to know.
        score = torch.where((failure > 0)[..., None, None], score, gram @ torch.cholesky_solve(score, root))
    information = known + gram + pull * identity
    root = _cholesky(information)
    step = torch.cholesky_solve(score if mean is None else score - pull * mean, root)
    noise = score_noise(phi=phi, residual=residual.detach(), root=root, gram=gram)
    noise = torch.maximum(noise, LEAST_PULL * size * trace / d).clamp_min(TINY)
    log_noise = log_noise + (noise.log() - log_noise) / batches.clamp_max(BATCHES)
    if past is not None:
        log_drift = log_drift + LEARNING * _cosine(first=step.detach(), second=past.step, metric=information)
    return Track(
        mean=step if mean is None else mean + step,
        information=information,
        step=step.detach() if mean is not None else torch.zeros_like(step),
        log_noise=log_noise,
        log_drift=log_drift.clamp(log(LEAST_DRIFT), log(most)),
        batches=batches,
        outcome=outcome,
        astray=astray,
        ridge=ridge,
    )


def _errors_of_features(past: Track, *, outcome: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The share of batches on which the weights before did far worse than none, and the ridge that calls for, shapes (...).

    ``outcome`` (...) is the mean square of the batch's targets.
    """
    error, columns = residual.square().mean(dim=(-2, -1)), residual.shape[-1]
    far = error > FAR * torch.maximum(outcome, past.outcome)
    astray = past.astray + (far.double() - past.astray) / ASTRAY
    ridge = columns * (error - outcome) / past.mean.detach().square().sum(dim=(-2, -1)).clamp_min(TINY)
    faded = RELEASE * past.ridge
    return astray, torch.where(far & (astray > 0.5), torch.maximum(ridge, faded), faded)


def score_noise(*, phi: Tensor, residual: Tensor, root: Tensor, gram: Tensor) -> Tensor:
    """``s^2``: by how much parts of the correction ``A^-1 Phi'E`` differ, over what it would be with noise of variance one.

        s^2 = |Phi'E - what its parts agree upon|^2 / (k tr A^-1 G),      lengths in the metric of A^-1,       A = root root'

    Of independent rows with noise of variance ``s^2`` it is about that; shape (...).
    """
    rows = phi.shape[-2]
    parts = min(PARTS, rows)
    each = rows // parts
    kept = slice(None, parts * each)
    by_part = [values[..., kept, :].reshape(*values.shape[:-2], parts, each, values.shape[-1]) for values in (phi, residual)]
    scores = by_part[0].mT @ by_part[1]
    if parts > 1:
        scores = (scores - scores.mean(dim=-3, keepdim=True)) * (parts / (parts - 1)) ** 0.5
    scores = scores.movedim(-3, -2).flatten(start_dim=-2)
    white: Tensor = torch.linalg.solve_triangular(root, scores, upper=False)
    seen = white.square().sum(dim=(-2, -1)) * (rows / (parts * each))
    gain = torch.cholesky_solve(gram, root).diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return seen / (gain * residual.shape[-1]).clamp_min(TINY)


def _cosine(*, first: Tensor, second: Tensor, metric: Tensor) -> Tensor:
    """Of the angle between matrices (..., d, k); 0 where one of them is 0."""
    one, other = metric @ first, metric @ second
    lengths = (first * one).sum(dim=(-2, -1)).clamp_min(0.0).sqrt() * (second * other).sum(dim=(-2, -1)).clamp_min(0.0).sqrt()
    cosine: Tensor = torch.where(lengths > 0, (first * other).sum(dim=(-2, -1)) / lengths, 0.0)
    return cosine.clamp(-1.0, 1.0)


def _cholesky(symmetric: Tensor) -> Tensor:
    factor: Tensor
    factor, failure = torch.linalg.cholesky_ex(symmetric)
    if bool(failure.any()):
        raise SingularError(
            "the last layer's system is not positive: the features have become infinite, not a number or too large"
        )
    return factor
