"""The two stages of DeepIV: a density of the treatment, then a structural function averaged over draws from it.

Stage 1 is maximum likelihood of a mixture of normal distributions, whose parameters are ``V' [phi(Z, X), 1]``,

    max  mean log p(T | Z, X);

stage 2 minimises ``mean (Y - E[h(T, X) | Z, X])^2`` with the conditional mean over that density. The square of a mean over
draws is not unbiased for the square of the conditional mean, but a product of means over two independent sets of draws is,

    min  mean (Y - mean_a h(t_a, X)) (Y - mean_b h(t_b, X)),

and so is its gradient.

References
----------
Hartford, Lewis, Leyton-Brown, Taddy, "Deep IV: A Flexible Approach for Counterfactual Prediction", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.learning.gradient_steps import Batch, Judged, Learned
from cfiv.learning.last_layer import ClosedForm
from cfiv.learning.samples import Sample
from cfiv.learning.whole_sample import CHUNK
from cfiv.networks.feature_maps import evaluate
from cfiv.networks.member_networks import MemberNetwork, member_modules
from cfiv.numerics.last_layer import weighted_mean
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.mixture_density import Mixture, spread_normals
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.structural_networks import learn_structural, learn_weights, structural_values

#: Points that stand for each component of a mixture where a mean is taken over all of it, and not over draws.
NODES = 8


@dataclass(frozen=True)
class DensityObjective:
    """Stage 1, of networks ``[phi, V]``; see :class:`cfiv.learning.gradient_steps.Objective`.

    Parameters
    ----------
    sample : Sample
        All rows.
    """

    sample: Sample

    def noise(self, generator: np.random.Generator, rows: int) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def solved(self, networks: Sequence[MemberNetwork]) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """None."""
        return []

    def learn(self, networks: Sequence[MemberNetwork], batch: Batch) -> Learned:
        """Minus the mean log densities."""
        phi = networks[0].learn(batch.sample.instruments)
        features = with_intercept(phi.features)
        layer = learn_weights(networks[1], features=features)
        treatment = batch.sample.treatment
        density = Mixture.of(features @ layer.features, columns=treatment.shape[-1]).log_density(treatment)
        return Learned(-weighted_mean(density, weights=batch.sample.weights), [phi, layer])

    def judge(self, networks: Sequence[MemberNetwork], place: int, *, seen: Tensor, heldout: Tensor) -> Judged:
        """Minus the log density of each row."""
        rows = self.sample.rows(heldout)
        with member_modules(networks, place) as modules:
            parameters = mixture_parameters(modules, rows.instruments).double()
        density = Mixture.of(parameters, columns=rows.treatment.shape[1]).log_density(rows.treatment.double())
        return Judged(-density[None])


@dataclass(frozen=True)
class SampledObjective:
    """Stage 2 given a density of each member, of networks ``[psi, xi, u]``; see :mod:`cfiv.objectives.structural_networks`.

    Parameters
    ----------
    sample : Sample
        All rows.
    parameters : Tensor (members, n, parameters)
        Of the mixtures at all rows.
    draws : int
        In each of the two sets.
    structure : {"product", "additive"}
    """

    sample: Sample
    parameters: Tensor
    draws: int
    structure: Structure

    def noise(self, generator: np.random.Generator, rows: int) -> tuple[Tensor, ...]:
        """Uniform and standard normal numbers for the draws of every row."""
        shape, columns, dtype = (rows, 2 * self.draws), self.sample.treatment.shape[1], self.parameters.dtype
        uniforms, normals = generator.random(shape), generator.standard_normal((*shape, columns))
        return torch.from_numpy(uniforms).to(dtype), torch.from_numpy(normals).to(dtype)

    def solved(self, networks: Sequence[MemberNetwork]) -> list[tuple[ClosedForm, tuple[int, int]]]:
        """None."""
        return []

    def learn(self, networks: Sequence[MemberNetwork], batch: Batch) -> Learned:
        """The means of products of two residuals."""
        members = torch.arange(len(batch.rows), device=batch.rows.device)[:, None]
        mixture = Mixture.of(self.parameters[members, batch.rows], columns=self.sample.treatment.shape[1])
        uniforms, normals = batch.noise
        drawn = mixture.draw(uniforms=uniforms, normals=normals)
        h, passes = learn_structural(
            networks,
            treatment=drawn.reshape(*batch.rows.shape, 2, self.draws, -1).permute(0, 2, 3, 1, 4),
            covariates=batch.sample.covariates,
            structure=self.structure,
        )
        residuals = batch.sample.outcome[..., 0][:, None] - h
        return Learned(weighted_mean(residuals.prod(dim=1), weights=batch.sample.weights), passes)

    def judge(self, networks: Sequence[MemberNetwork], place: int, *, seen: Tensor, heldout: Tensor) -> Judged:
        """``(Y - E[h | Z, X])^2`` of each row."""
        rows = self.sample.rows(heldout)
        with member_modules(networks, place) as modules:
            mean = conditional_mean(
                modules,
                self.parameters[place, heldout],
                columns=rows.treatment.shape[1],
                covariates=rows.covariates,
                structure=self.structure,
            )
        return Judged((rows.outcome.double() - mean)[:, 0].square()[None])


def mixture_parameters(networks: Sequence[nn.Module], instruments: Tensor) -> Tensor:
    """What networks ``[phi, V]`` make of rows of instruments with covariates: (n, parameters)."""
    phi, layer = networks
    return torch.cat([evaluate(layer, with_intercept(evaluate(phi, chunk))) for chunk in torch.split(instruments, CHUNK)])


def conditional_mean(
    networks: Sequence[nn.Module], parameters: Tensor, *, columns: int, covariates: Tensor | None, structure: Structure
) -> Tensor:
    """``E[h(T, X) | Z, X]`` of networks ``[psi, xi, u]``, by ``NODES`` points a component: (n, 1), float64.

    Parameters
    ----------
    networks : sequence of Module
    parameters : Tensor (n, parameters)
        Of the mixture at each row.
    columns : int
        Of the treatment.
    covariates : Tensor (n, p), optional
    structure : {"product", "additive"}
    """
    normals, means = spread_normals(NODES, columns=columns).to(parameters), []
    for start in range(0, len(parameters), CHUNK // NODES):
        part = slice(start, start + CHUNK // NODES)
        points, shares = Mixture.of(parameters[part], columns=columns).nodes(normals)
        psi = evaluate(networks[0], points.flatten(0, 1)).reshape(*points.shape[:2], -1)
        averaged = (shares[..., None] * psi).sum(dim=1)
        x = None if covariates is None else covariates[part]
        means.append(structural_values(networks, treatment_features=averaged, covariates=x, structure=structure))
    return torch.cat(means)
