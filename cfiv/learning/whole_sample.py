"""Whole samples through fixed networks, a chunk at a time: refits, predictions and held-out errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cfiv.learning.networks import Networks, evaluate
from cfiv.learning.samples import Sample
from cfiv.numerics.least_squares import solve, with_intercept
from cfiv.numerics.moments import Moments, accumulate, moments, solve_moments
from cfiv.numerics.two_stage import Structure, Unpredicted, penalised_rows, structural_features, unpredicted_features

#: Rows whose features are held at once, and values of their treatments: fewer rows of images.
CHUNK, CHUNK_VALUES = 8192, 4_000_000
#: Rows of a sample that a check during training looks at; a held-out loss needs no more.
CHECK_ROWS = 20_000
#: Feature values (rows x columns) up to which a refit uses QR rather than moments: some 400 MB of float64 with its copies.
QR_VALUES = 10_000_000


def with_treatment_features(sample: Sample, network: nn.Module, index: Tensor | None = None) -> Sample:
    """The sample, or its rows of an ``index``, with ``psi(T)`` in the place of T, which all of this module's stages ask for.

    An image goes through its network once, however many solves and losses need its features. In evaluation mode and without
    gradients; treatments (n, ...) become (n, m), in the dtype of the network.
    """
    features = torch.cat([evaluate(network, chunk.treatment) for chunk in chunks(sample, index)])
    others = replace(sample, treatment=sample.outcome)  # of images no second copy is made
    return replace(others if index is None else others.rows(index), treatment=features)


def refit_last_layers(
    stage1: Sample,
    stage2: Sample,
    networks: Networks,
    *,
    structure: Structure,
    first_stage_ridge: float,
    ridge: float,
    unpredicted_penalty: float,
) -> tuple[Tensor, Tensor]:
    """V on all rows of sample 1, then u on all rows of sample 2, features fixed.

    Parameters
    ----------
    stage1 : Sample
        With treatment features.
    stage2 : Sample
        Its treatment is not looked at.
    networks : Networks
    structure : {"product", "additive"}
    first_stage_ridge, ridge : float
        Penalties >= 0 of V and u, on the mean squared error.
    unpredicted_penalty : float
        ``gamma`` >= 0, see :mod:`cfiv.numerics.two_stage`.

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
        lambda chunk: chunk.treatment,
        first_stage_ridge,
    )
    if not unpredicted_penalty:
        structural = refit(
            stage2, lambda chunk: _structural(chunk, networks, first, structure), lambda chunk: chunk.outcome, ridge
        )
        return first, structural
    if (len(stage1) + len(stage2)) * _structural(stage2.rows(slice(0, 1)), networks, first, structure).shape[1] > QR_VALUES:
        total = second_stage_moments(
            stage1, stage2, networks, first, structure=structure, unpredicted_penalty=unpredicted_penalty
        )
        return first, solve_moments(total, ridge=ridge).weights
    features, targets = penalised_rows(
        features_stage2=torch.cat([_structural(chunk, networks, first, structure) for chunk in chunks(stage2)]),
        outcome_stage2=stage2.outcome.double(),
        weights_stage2=stage2.weights,
        unpredicted_stage1=Unpredicted(
            torch.cat([_unpredicted(chunk, networks, first, structure) for chunk in chunks(stage1)]),
            unpredicted_penalty,
            stage1.weights,
        ),
    )
    return first, solve(features=features, targets=targets, ridge=ridge).weights


def second_stage_moments(
    stage1: Sample,
    stage2: Sample,
    networks: Networks,
    first_stage: Tensor,
    *,
    structure: Structure,
    unpredicted_penalty: float,
) -> Moments:
    """Moments of ``f_2`` with the outcome as target, and ``gamma`` times those of ``f(T_1) - f_1`` with target zero.

    Parameters
    ----------
    stage1, stage2 : Sample
        Sample 1 with treatment features; it is looked at only where ``gamma > 0``.
    networks : Networks
    first_stage : Tensor (d + 1, m)
        V.
    structure : {"product", "additive"}
    unpredicted_penalty : float
        ``gamma`` >= 0.

    Returns
    -------
    Moments
        Whose ``ridge_path`` and ``solve_moments`` are u: the mass is that of sample 2, and ``gamma`` multiplies a *mean* over
        sample 1.
    """
    seen = accumulate(
        moments(features=_structural(chunk, networks, first_stage, structure), targets=chunk.outcome, weights=chunk.weights)
        for chunk in chunks(stage2)
    )
    if not unpredicted_penalty:
        return seen
    unseen = accumulate(
        moments(
            features=_unpredicted(chunk, networks, first_stage, structure),
            targets=torch.zeros_like(chunk.outcome),
            weights=chunk.weights,
        )
        for chunk in chunks(stage1)
    )
    return replace(seen, gram=seen.gram + unseen.gram * (unpredicted_penalty * seen.mass / unseen.mass))


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


def refit(
    sample: Sample,
    features: Callable[[Sample], Tensor],
    targets: Callable[[Sample], Tensor],
    ridge: float,
    *,
    index: Tensor | None = None,
) -> Tensor:
    """Least squares of targets (n, k) on features (n, d) of a sample, at a ridge on the mean squared error: (d, k), float64.

    Of its rows of an ``index`` where there is one.

    By QR where the features have up to ``QR_VALUES`` values, from moments over chunks of rows above that.
    """
    width = features(sample.rows(slice(0, 1))).shape[1]
    if (len(sample) if index is None else len(index)) * width > QR_VALUES:
        batches = (moments(features=features(c), targets=targets(c), weights=c.weights) for c in chunks(sample, index))
        return solve_moments(accumulate(batches), ridge=ridge).weights
    phi = torch.cat([features(chunk) for chunk in chunks(sample, index)])
    y = torch.cat([targets(chunk) for chunk in chunks(sample, index)])
    weights = sample.weights if index is None or sample.weights is None else sample.weights[index]
    return solve(features=phi, targets=y, ridge=ridge, weights=weights).weights


def _unpredicted(sample: Sample, networks: Networks, first_stage: Tensor, structure: Structure) -> Tensor:
    """What V leaves unpredicted of ``f`` in a sample with treatment features, float64, shape (n, p)."""
    return unpredicted_features(
        treatment_features=sample.treatment.double(),
        predicted_treatment_features=_predicted(sample, networks, first_stage),
        covariate_features=_covariate_features(sample, networks),
        structure=structure,
    )


def _covariate_features(sample: Sample, networks: Networks) -> Tensor | None:
    """``xi(X)``, or None where there are no covariates."""
    if networks.covariate is None or sample.covariates is None:
        return None
    return evaluate(networks.covariate, sample.covariates)


def _predicted(sample: Sample, networks: Networks, first_stage: Tensor) -> Tensor:
    """``V' [phi(Z), 1]``, float64, shape (n, m)."""
    return with_intercept(evaluate(networks.instrument, sample.instruments)).double() @ first_stage


def _structural(sample: Sample, networks: Networks, first_stage: Tensor, structure: Structure) -> Tensor:
    """``f`` at predicted treatment features, float64, shape (n, p)."""
    return structural_features(
        treatment_features=_predicted(sample, networks, first_stage),
        covariate_features=_covariate_features(sample, networks),
        structure=structure,
    )


def chunk_rows(shape: Sequence[int]) -> int:
    """How many treatments of this shape may be held with their features: fewer of images."""
    return max(1, min(CHUNK, CHUNK_VALUES // math.prod(shape)))


def chunks(sample: Sample, index: Tensor | None = None) -> Iterator[Sample]:
    """The sample in order, or its rows of an ``index``, as many at a time as :func:`chunk_rows` allows."""
    rows = chunk_rows(sample.treatment.shape[1:])
    for start in range(0, len(sample) if index is None else len(index), rows):
        part = slice(start, start + rows)
        yield sample.rows(part if index is None else index[part])
