"""A structural function all of whose layers learn by gradients: ``h(t, x) = u' f(psi(t), xi(x))``, with u a layer as well.

Its networks are ``[psi, xi, u]``, or ``[psi, u]`` where there are no covariates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cfiv.learning.samples import Sample
from cfiv.networks.feature_maps import evaluate
from cfiv.networks.member_networks import MemberNetwork, Pass
from cfiv.numerics.two_stage import Structure, structural_features
from cfiv.runtime.module_state import cast


def learn_weights(layer: MemberNetwork, *, features: Tensor) -> Pass:
    """The weights (members, d, k) of linear layers on features (members, n, d), as leaves beside the features.

    They are what the layers make of the unit vectors.
    """
    identity = torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)
    return layer.learn(identity.expand(len(features), *identity.shape))


def learn_structural(
    networks: Sequence[MemberNetwork], *, treatment: Tensor, covariates: Tensor | None, structure: Structure
) -> tuple[Tensor, list[Pass]]:
    """``h`` at a batch, averaged over draws of its treatments, and the passes through the networks.

    Parameters
    ----------
    networks : sequence of MemberNetwork
    treatment : Tensor (members, parts, draws, n, ...)
        ``h`` is linear in ``psi``, which is averaged over the draws.
    covariates : Tensor (members, n, p), optional
    structure : {"product", "additive"}

    Returns
    -------
    h : Tensor (members, parts, n)
    passes : list of Pass
    """
    psi, *xi, u = networks
    passes = [psi.learn(treatment.flatten(1, 3))]
    averaged = passes[0].features.reshape(*treatment.shape[:4], -1).mean(dim=2)
    expanded = None
    if covariates is not None:
        passes.append(xi[0].learn(covariates))
        features = passes[1].features
        expanded = features[:, None].expand(*averaged.shape[:-1], features.shape[-1])
    f = structural_features(treatment_features=averaged, covariate_features=expanded, structure=structure)
    passes.append(learn_weights(u, features=f.flatten(1, 2)))
    return (f @ passes[-1].features[:, None])[..., 0], passes


def structural_layer(networks: Sequence[nn.Module], sample: Sample, *, structure: Structure) -> nn.Linear:
    """``u``, freshly drawn, for the features that ``psi`` and ``xi`` make of such a sample."""
    psi, *xi = (cast(network, sample.outcome.dtype, device=sample.outcome.device) for network in networks)
    row = sample.rows(slice(0, 1))
    f = structural_features(
        treatment_features=evaluate(psi, row.treatment),
        covariate_features=evaluate(xi[0], row.covariates) if xi and row.covariates is not None else None,
        structure=structure,
    )
    return nn.Linear(f.shape[1], 1, bias=False)


def structural_values(
    networks: Sequence[nn.Module], *, treatment_features: Tensor, covariates: Tensor | None, structure: Structure
) -> Tensor:
    """``h`` by one member's networks at ``psi`` (n, m), or its mean, shape (n, 1), float64; in evaluation mode."""
    _, *xi, _ = networks
    f = structural_features(
        treatment_features=treatment_features.double(),
        covariate_features=None if covariates is None else evaluate(xi[0], covariates),
        structure=structure,
    )
    return f @ structural_weights(networks)


def structural_weights(networks: Sequence[nn.Module]) -> Tensor:
    """``u`` (p, 1), float64."""
    layer = networks[-1]
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().double().mT
