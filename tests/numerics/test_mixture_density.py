"""Mixtures of normal distributions: densities, draws and points against what they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cfiv.numerics.mixture_density import LEAST_SCALE, Mixture, mixture_width, spread_normals


def mixtures(rows: int = 3, *, components: int = 4, columns: int = 2, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.randn(rows, mixture_width(components, columns=columns), generator=generator, dtype=torch.float64)
    return Mixture.of(parameters, columns=columns)


@pytest.mark.law
def test_a_density_integrates_to_one_and_has_the_mean_of_its_nodes() -> None:
    mixture = mixtures(1, columns=1)
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    density = (
        Mixture(**{name: part.expand(len(grid), *part.shape[1:]) for name, part in vars(mixture).items()})
        .log_density(grid[:, None])
        .exp()
    )
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-9)
    points, shares = mixture.nodes(spread_normals(8, columns=1))
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
    for power in (1, 2):
        moment = float((shares * points[..., 0] ** power).sum())
        assert moment == pytest.approx(float(torch.trapezoid(density * grid**power, grid)), abs=1e-9)


@pytest.mark.oracle
def test_a_density_is_that_of_torchs_own_mixtures() -> None:
    mixture = mixtures()
    values = torch.zeros(3, 2, dtype=torch.float64)
    parts = torch.distributions.Independent(torch.distributions.Normal(mixture.means, mixture.scales), 1)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=mixture.log_shares), parts)
    torch.testing.assert_close(mixture.log_density(values), theirs.log_prob(values), rtol=1e-12, atol=1e-12)


@pytest.mark.statistical
def test_draws_have_the_means_and_variances_of_their_mixture() -> None:
    mixture, count = mixtures(), 200_000
    generator = np.random.default_rng(0)
    drawn = mixture.draw(
        uniforms=torch.from_numpy(generator.random((3, count))), normals=torch.from_numpy(generator.normal(size=(3, count, 2)))
    )
    points, shares = mixture.nodes(spread_normals(8, columns=2))
    mean = (shares[..., None] * points).sum(dim=1)
    variance = (shares[..., None] * points.square()).sum(dim=1) - mean.square()
    noise = 5 * variance.sqrt() / math.sqrt(count)  # five standard errors
    assert bool(((drawn.mean(dim=1) - mean).abs() < noise).all())
    torch.testing.assert_close(drawn.var(dim=1), variance, rtol=0.05, atol=0.0)


@pytest.mark.law
def test_no_parameters_make_a_scale_of_zero() -> None:
    mixture = Mixture.of(torch.full((1, mixture_width(2, columns=1)), -1e4), columns=1)
    assert bool((mixture.scales >= LEAST_SCALE).all())
    assert bool(mixture.log_density(torch.zeros(1, 1)).isfinite().all())


@pytest.mark.law
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_points_for_normal_numbers_have_mean_zero_and_unit_variance_in_every_column(columns: int) -> None:
    points = spread_normals(8, columns=columns)
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(columns, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(points.square().mean(dim=0), torch.ones(columns, dtype=torch.float64), rtol=0, atol=1e-12)
