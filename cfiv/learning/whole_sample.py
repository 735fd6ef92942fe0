"""Whole samples through fixed networks, a chunk at a time: refits, predictions and held-out errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cfiv.learning.networks import evaluate
from cfiv.learning.samples import Sample
from cfiv.learning.two_stage import Networks
from cfiv.numerics.least_squares import solve, with_intercept
from cfiv.numerics.moments import Moments, accumulate, moments, solve_moments
from cfiv.numerics.two_stage import Structure, structural_features

#: Rows whose features are held at once.
CHUNK = 8192
#: Rows of a sample that a check during training looks at; a held-out loss needs no more.
CHECK_ROWS = 20_000
#: Feature values (rows x columns) up to which a refit uses QR rather than moments: some 400 MB of float64 with its copies.
QR_VALUES = 10_000_000


def refit_last_layers(
    stage1: Sample,
    stage2: Sample,
    networks: Networks,
    *,
    structure: Structure,
    first_stage_ridge: float,
    ridge: float,
) -> tuple[Tensor, Tensor]:
    """V on all rows of sample 1, then u on all rows of sample 2, features fixed.

    Parameters
    ----------
    stage1, stage2 : Sample
    networks : Networks
    structure : {"product", "additive"}
    first_stage_ridge, ridge : float
        Penalties >= 0 of V and u, on the mean squared error.

    Returns
    -------
    first_stage : Tensor (d + 1, m), float64
    structural : Tensor (p, 1), float64

    Notes
    -----
    By QR where a sample's features have up to ``QR_VALUES`` values; above that from moments added up over chunks of rows, in
    memory that does not grow with the rows.
    """
    first = refit(
        stage1,
        lambda chunk: with_intercept(evaluate(networks.instrument, chunk.instruments)),
        lambda chunk: evaluate(networks.treatment, chunk.treatment),
        first_stage_ridge,
    )
    structural = refit(stage2, lambda chunk: _structural(chunk, networks, first, structure), lambda chunk: chunk.outcome, ridge)
    return first, structural


def first_stage_moments(sample: Sample, networks: Networks) -> Moments:
    """Moments of ``[phi(Z), 1]`` with targets ``psi(T)``."""
    return accumulate(
        moments(
            features=with_intercept(evaluate(networks.instrument, chunk.instruments)),
            targets=evaluate(networks.treatment, chunk.treatment),
            weights=chunk.weights,
        )
        for chunk in chunks(sample)
    )


def first_stage_errors(sample: Sample, networks: Networks, candidates: Tensor) -> Tensor:
    """Squared stage-1 errors (r, n) of several V (r, d + 1, m) on rows that they were not solved on.

    Summed over the treatment features, each in units of its variance in the sample, so that features of any scale count alike
    and losses compare while the features change; scaled so that their plain mean is the weighted mean.
    """
    errors, features = [], []
    for chunk in chunks(sample):
        phi = with_intercept(evaluate(networks.instrument, chunk.instruments)).double()
        features.append(evaluate(networks.treatment, chunk.treatment).double())
        errors.append((features[-1] - phi @ candidates).square())
    variance = torch.cat(features).var(dim=0, correction=0)
    total = (torch.cat(errors, dim=1) / variance.clamp_min(torch.finfo(variance.dtype).tiny))[..., variance > 0].sum(dim=2)
    return total if sample.weights is None else total * (sample.weights / sample.weights.mean())


def second_stage_moments(sample: Sample, networks: Networks, first_stage: Tensor, structure: Structure) -> Moments:
    """Moments of ``f`` at predicted treatment features, with the outcome as target."""
    return accumulate(
        moments(features=_structural(chunk, networks, first_stage, structure), targets=chunk.outcome, weights=chunk.weights)
        for chunk in chunks(sample)
    )


def squared_errors(sample: Sample, networks: Networks, first_stage: Tensor, candidates: Tensor, structure: Structure) -> Tensor:
    """Squared stage-2 errors (r, n) of several u (r, p, 1), scaled so that their plain mean is the weighted mean."""
    predicted = torch.cat(
        [_structural(chunk, networks, first_stage, structure) @ candidates for chunk in chunks(sample)], dim=1
    )
    errors = (sample.outcome - predicted)[..., 0].square()
    return errors if sample.weights is None else errors * (sample.weights / sample.weights.mean())


def predicted_outcome(
    networks: Networks,
    *,
    first_stage: Tensor,
    structural: Tensor,
    structure: Structure,
    instruments: Tensor,
    covariates: Tensor | None,
) -> Tensor:
    """``E[h(T, X) | Z, X]`` as the two stages estimate it: ``u' f(V' [phi(Z), 1], xi(X))``.

    Parameters
    ----------
    networks : Networks
    first_stage, structural : Tensor
        V (d + 1, m) and u (p, 1), float64.
    structure : {"product", "additive"}
    instruments : Tensor (n, q + p)
        Instruments and covariates.
    covariates : Tensor (n, p), optional

    Returns
    -------
    Tensor (n, 1), float64
    """
    nothing = instruments.new_zeros(instruments.shape[0], 1)
    sample = Sample(nothing, nothing, instruments, covariates)
    return torch.cat([_structural(chunk, networks, first_stage, structure) @ structural for chunk in chunks(sample)])


def refit(sample: Sample, features: Callable[[Sample], Tensor], targets: Callable[[Sample], Tensor], ridge: float) -> Tensor:
    """Least squares of targets (n, k) on features (n, d) of a sample, at a ridge on the mean squared error: (d, k), float64.

    By QR where the features have up to ``QR_VALUES`` values, from moments over chunks of rows above that.
    """
    width = features(sample.rows(slice(0, 1))).shape[1]
    if len(sample) * width > QR_VALUES:
        batches = (moments(features=features(c), targets=targets(c), weights=c.weights) for c in chunks(sample))
        return solve_moments(accumulate(batches), ridge=ridge).weights
    phi = torch.cat([features(chunk) for chunk in chunks(sample)])
    y = torch.cat([targets(chunk) for chunk in chunks(sample)])
    return solve(features=phi, targets=y, ridge=ridge, weights=sample.weights).weights


def _structural(sample: Sample, networks: Networks, first_stage: Tensor, structure: Structure) -> Tensor:
    """``f`` at predicted treatment features, float64, shape (n, p)."""
    predicted = with_intercept(evaluate(networks.instrument, sample.instruments)).double() @ first_stage
    covariates = networks.covariate_features(sample.covariates, fixed=True)
    return structural_features(treatment_features=predicted, covariate_features=covariates, structure=structure)


def chunks(sample: Sample) -> Iterator[Sample]:
    """The sample, ``CHUNK`` rows at a time, in order."""
    for start in range(0, len(sample), CHUNK):
        yield sample.rows(slice(start, start + CHUNK))
