"""Components: what each answers for all pairs of treatments and covariates is what it answers for the pairs one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfiv.estimators.components import TOGETHER, Component, KernelComponent, LinearComponent, NetworkComponent, SieveComponent
from cfiv.estimators.units import Standardiser
from cfiv.learning.whole_sample import CHUNK
from cfiv.numerics.kernels import KernelExpansion, Line
from cfiv.numerics.sieve_basis import SieveBasis
from cfiv.numerics.splines import Spline
from cfiv.numerics.two_stage import Structure

#: Sums of the same float64 numbers in another order.
ROUNDING = 1e-12
SCALE = Standardiser(np.asarray(3.0), np.asarray(2.0))


class Counting(nn.Module):
    """A layer that counts the rows that it is given."""

    def __init__(self, columns: int, features: int) -> None:
        super().__init__()
        torch.manual_seed(columns)
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(columns, features), nn.Tanh()).double()
        self.rows = 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.rows += len(inputs)
        return self.layer(inputs)


def network(structure: Structure, *, covariates: bool = True, treatment: int = 2) -> NetworkComponent:
    width = {"product": 4 * 6, "additive": 3 + 6}[structure] if covariates else 4
    structural = torch.randn(width, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = Counting(2, 5) if covariates else None
    return NetworkComponent(Counting(treatment, 3), given, structural, structure, SCALE, SCALE, SCALE, double=True)


def kernel(columns: int, *, lined: bool = False) -> KernelComponent:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(9, columns, dtype=torch.float64, generator=generator)
    coefficients = torch.randn(9, dtype=torch.float64, generator=generator)
    bandwidths = torch.linspace(0.5, 2.0, columns).double()
    line = Line(constant=torch.tensor(0.5).double(), slopes=bandwidths - 1, centre=3 * bandwidths) if lined else None
    expansion = KernelExpansion(points=points, bandwidths=bandwidths, coefficients=coefficients, line=line)
    return KernelComponent(expansion, SCALE)


def sieve(*, products: bool, covariates: int = 2) -> SieveComponent:
    values = np.random.default_rng(2).normal(size=(30, 4))
    curves = [Spline.of(column, degree=3, segments=2, knots="uniform") for column in values.T]
    lines = (curves[2], Spline.straight(values[:, 3]))[:covariates]
    basis = SieveBasis(treatments=(curves[0], curves[1]), instruments=(curves[0],), covariates=lines, products=products)
    return SieveComponent(basis, np.random.default_rng(3).normal(size=basis.width))


TREATMENTS = np.random.default_rng(0).normal(size=(7, 2))
COVARIATES = np.random.default_rng(1).normal(size=(5, 2))
IMAGES = np.random.default_rng(2).normal(size=(3, 2, 2))


@pytest.mark.law
@pytest.mark.parametrize(
    ("component", "treatments", "covariates"),
    [
        pytest.param(LinearComponent(1.0, np.array([2.0, 3.0]), np.array([4.0, 5.0])), TREATMENTS, COVARIATES, id="linear"),
        pytest.param(LinearComponent(1.0, np.array([2.0, 3.0]), np.array([])), TREATMENTS, None, id="linear, alone"),
        pytest.param(kernel(4), TREATMENTS, COVARIATES, id="kernel"),
        pytest.param(kernel(4, lined=True), TREATMENTS, COVARIATES, id="kernel and line"),
        pytest.param(kernel(2, lined=True), TREATMENTS, None, id="kernel and line, alone"),
        pytest.param(kernel(6), IMAGES, COVARIATES, id="kernel of images"),
        pytest.param(kernel(2), TREATMENTS, None, id="kernel, alone"),
        pytest.param(sieve(products=False), TREATMENTS, COVARIATES, id="sieve"),
        pytest.param(sieve(products=True), TREATMENTS, COVARIATES, id="products of sieves"),
        pytest.param(sieve(products=True, covariates=0), TREATMENTS, None, id="sieve, alone"),
        pytest.param(network("product"), TREATMENTS, COVARIATES, id="product"),
        pytest.param(network("additive"), TREATMENTS, COVARIATES, id="sum"),
        pytest.param(network("product", covariates=False), TREATMENTS, None, id="network, alone"),
        pytest.param(network("product", treatment=4), IMAGES, COVARIATES, id="network of images"),
    ],
)
def test_all_pairs_at_once_are_the_pairs_one_by_one(component: Component, treatments: Any, covariates: Any) -> None:
    rows = 1 if covariates is None else len(covariates)
    each = [component.evaluate(np.stack([treatment] * rows), covariates) for treatment in treatments]
    together = component.cross(treatments, covariates)
    assert together.shape == (len(treatments), rows)
    np.testing.assert_allclose(together, each, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.contract
def test_a_network_sees_each_row_once_however_many_treatments_there_are() -> None:
    component = network("product")
    component.cross(np.repeat(TREATMENTS, 20, axis=0), np.repeat(COVARIATES, CHUNK // 2, axis=0))
    psi, xi = component.treatment_network, component.covariate_network
    assert isinstance(psi, Counting)
    assert isinstance(xi, Counting)
    assert (psi.rows, xi.rows) == (-(-140 // TOGETHER) * TOGETHER, 5 * (CHUNK // 2))
