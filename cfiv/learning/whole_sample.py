"""Whole samples through fixed networks, a chunk at a time: refits, predictions and held-out errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cfiv.learning.samples import Sample
from cfiv.networks.feature_maps import Networks, evaluate
from cfiv.numerics.least_squares import solve, with_intercept
from cfiv.numerics.moments import Moments, accumulate, moments, solve_moments
from cfiv.numerics.two_stage import Structure, Unpredicted, penalised_rows, structural_features, unpredicted_features

#: Rows whose features are held at once, and values of their treatments: fewer rows of images.
CHUNK, CHUNK_VALUES = 8192, 4_000_000
#: Feature values (rows x columns) up to which a refit uses QR rather than moments: some 400 MB of float64 with its copies.
QR_VALUES = 10_000_000


def refit_last_layers(
    sample: Sample,
    networks: Networks,
    *,
    stage1: Tensor,
    stage2: Tensor,
    structure: Structure,
    first_stage_ridge: float,
    ridge: float,
    unpredicted_penalty: float,
) -> tuple[Tensor, Tensor]:
    """V on some rows of a sample, then u on others, features fixed.

    Parameters
    ----------
    sample : Sample
    networks : Networks
    stage1, stage2 : Tensor of int
        Numbers of the rows of V, and of those of u, whose treatments are not looked at.
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
    By QR where a stage's features have up to ``QR_VALUES`` values; above that from moments added up over chunks of rows, in
    memory that does not grow with the rows.
    """
    first = refit(
        sample,
        lambda chunk: with_intercept(evaluate(networks.instrument, chunk.instruments)),
        lambda chunk: evaluate(networks.treatment, chunk.treatment),
        first_stage_ridge,
        index=stage1,
    )
    second_stage = replace(sample, treatment=sample.outcome)  # of images nothing is copied

    def predicted(chunk: Sample) -> Tensor:
        return _structural(chunk, networks, first, structure)

    def unpredicted(chunk: Sample) -> Tensor:
        return _unpredicted(chunk, networks, first, structure)

    if not unpredicted_penalty:
        return first, refit(second_stage, predicted, lambda chunk: chunk.outcome, ridge, index=stage2)
    if (len(stage1) + len(stage2)) * predicted(second_stage.rows(stage2[:1])).shape[1] > QR_VALUES:
        seen = _summed(second_stage, predicted, lambda chunk: chunk.outcome, index=stage2)
        unseen = _summed(sample, unpredicted, lambda chunk: torch.zeros_like(chunk.outcome), index=stage1)
        total = replace(seen, gram=seen.gram + unseen.gram * (unpredicted_penalty * seen.mass / unseen.mass))
        return first, solve_moments(total, ridge=ridge).weights
    weights_stage1, weights_stage2 = (None if sample.weights is None else sample.weights[rows] for rows in (stage1, stage2))
    features, targets = penalised_rows(
        features_stage2=torch.cat([predicted(chunk) for chunk in chunks(second_stage, stage2)]),
        outcome_stage2=sample.outcome[stage2].double(),
        weights_stage2=weights_stage2,
        unpredicted_stage1=Unpredicted(
            torch.cat([unpredicted(chunk) for chunk in chunks(sample, stage1)]), unpredicted_penalty, weights_stage1
        ),
    )
    return first, solve(features=features, targets=targets, ridge=ridge).weights


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
    sample = Sample(outcome=nothing, treatment=nothing, instruments=instruments, covariates=covariates)
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
        return solve_moments(_summed(sample, features, targets, index=index), ridge=ridge).weights
    phi = torch.cat([features(chunk) for chunk in chunks(sample, index)])
    y = torch.cat([targets(chunk) for chunk in chunks(sample, index)])
    weights = sample.weights if index is None or sample.weights is None else sample.weights[index]
    return solve(features=phi, targets=y, ridge=ridge, weights=weights).weights


def _summed(
    sample: Sample, features: Callable[[Sample], Tensor], targets: Callable[[Sample], Tensor], *, index: Tensor | None
) -> Moments:
    """Moments, a chunk of rows at a time."""
    parts = chunks(sample, index)
    return accumulate(moments(features=features(c), targets=targets(c), weights=c.weights) for c in parts)


def _unpredicted(sample: Sample, networks: Networks, first_stage: Tensor, structure: Structure) -> Tensor:
    """What V leaves unpredicted of ``f``, float64, shape (n, p)."""
    return unpredicted_features(
        treatment_features=evaluate(networks.treatment, sample.treatment).double(),
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
