"""Darcy: the solver against closed forms and laws of the flow, the permeabilities against their measure."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.fft import dstn, idstn

from cfiv.datasets import darcy
from cfiv.datasets.darcy_equation import solve
from cfiv.errors import DataError, ParameterError


def centres(points: int) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(points) + 0.5) / points
    return x[:, None], x[None, :]


def poisson_series(points: int, terms: int = 400) -> np.ndarray:
    """-Laplace u = 1: sums of 16 / (pi^4 k l (k^2 + l^2)) sin(k pi x) sin(l pi y) over odd k and l, at the centres of cells."""
    k = np.arange(1, 2 * terms, 2)
    waves = np.sin(np.pi * np.outer(centres(points)[0], k))
    return waves @ (16 / (np.pi**4 * np.outer(k, k) * (k[:, None] ** 2 + k**2))) @ waves.T


def jumping(points: int, seed: int = 0) -> np.ndarray:
    return darcy.simulate(1, points=points, seed=seed).inputs[0]


@pytest.mark.oracle
def test_a_smooth_permeability_has_the_manufactured_solution_to_second_order() -> None:
    # u = sin(pi x) sin(2 pi y), a = exp(x) (2 + y): f = -a_x u_x - a_y u_y - a Laplace u.
    errors = []
    for points in (16, 32, 64):
        x, y = centres(points)
        a, u = np.exp(x) * (2 + y), np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        u_x, u_y = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y), 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        f = -a * u_x - np.exp(x) * u_y + 5 * np.pi**2 * a * u
        errors.append(abs(solve(a, source=f) - u).max())
    # 4 in the limit of small cells.
    ratios = np.divide(errors[:-1], errors[1:])
    assert ((ratios > 3.7) & (ratios < 4.3)).all()
    assert errors[-1] < 2e-3


@pytest.mark.oracle
def test_a_constant_permeability_has_the_series_of_the_poisson_equation_to_second_order() -> None:
    errors = [abs(7.0 * solve(np.full((points, points), 7.0)) - poisson_series(points)).max() for points in (16, 32, 64)]
    ratios = np.divide(errors[:-1], errors[1:])
    assert ((ratios > 3.5) & (ratios < 4.3)).all()
    assert errors[-1] < 1e-4  # of 0.0737 in the middle


@pytest.mark.oracle
@pytest.mark.parametrize("points", [1, 2, 5, 32])
def test_the_equations_of_a_constant_permeability_are_those_that_sines_solve(points: int) -> None:
    # A wall half a cell away is a cell of the opposite sign beyond it: sines at the centres are the eigenvectors.
    eigenvalues = (2 * points * np.sin(np.pi * np.arange(1, points + 1) / (2 * points))) ** 2
    source = np.random.default_rng(0).normal(size=(points, points))
    expected = idstn(dstn(source, type=2) / (eigenvalues[:, None] + eigenvalues), type=2) / 3.0
    np.testing.assert_allclose(solve(np.full((points, points), 3.0), source=source), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.law
def test_what_springs_up_in_a_cell_leaves_through_its_faces() -> None:
    a = jumping(24)
    u = solve(a)
    # Half a cell on either side of a face, one behind the other: resistances 1 / (2 a) add up.
    down = np.diff(u, axis=0) / (1 / (2 * a[:-1]) + 1 / (2 * a[1:]))
    right = np.diff(u, axis=1) / (1 / (2 * a[:, :-1]) + 1 / (2 * a[:, 1:]))
    inner = down[:-1, 1:-1] - down[1:, 1:-1] + right[1:-1, :-1] - right[1:-1, 1:]
    np.testing.assert_allclose(inner, 1 / 24**2, rtol=1e-9)


@pytest.mark.law
@pytest.mark.parametrize("seed", [0, 1])
def test_turning_or_reflecting_the_permeability_turns_or_reflects_the_pressure(seed: int) -> None:
    a = jumping(24, seed)
    u = solve(a)
    for change in (np.transpose, np.rot90, np.flipud, np.fliplr):
        np.testing.assert_allclose(solve(change(a)), change(u), rtol=1e-11)


@pytest.mark.law
def test_pressure_is_linear_in_the_source_and_falls_as_the_permeability_grows() -> None:
    a, draw = jumping(24), np.random.default_rng(0)
    f, g = draw.normal(size=(2, 24, 24))
    np.testing.assert_allclose(solve(a, source=f + 2 * g), solve(a, source=f) + 2 * solve(a, source=g), atol=1e-14)
    np.testing.assert_allclose(solve(10 * a), solve(a) / 10, rtol=1e-12)
    # The work of the flow, the integral of f u, falls with a: it lies between those of a = 12 and a = 3 throughout.
    least, work, most = (solve(given).mean() for given in (np.full((24, 24), 12.0), a, np.full((24, 24), 3.0)))
    assert least < work < most


@pytest.mark.law
def test_pressure_is_positive_largest_where_the_source_is_and_all_of_the_source_leaves_through_the_walls() -> None:
    a = jumping(32)
    u = solve(a)
    assert u.min() > 0
    through_walls = sum((2 * a[edge] * u[edge]).sum() for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]))
    assert through_walls == pytest.approx(1.0, rel=1e-11)
    source = np.zeros((32, 32))
    source[10, 20] = 1.0
    u = solve(a, source=source)
    assert u.min() >= 0
    assert np.unravel_index(u.argmax(), u.shape) == (10, 20)


@pytest.mark.law
def test_finer_cells_with_the_same_jumps_approach_one_solution() -> None:
    a = jumping(32)
    # A cell of the coarse grid is 3 x 3 or 9 x 9 of the finer, with the same centre.
    coarse, middle, fine = (solve(np.kron(a, np.ones((m, m))))[m // 2 :: m, m // 2 :: m] for m in (1, 3, 9))
    far, near = (np.linalg.norm(u - fine) / np.linalg.norm(fine) for u in (coarse, middle))
    assert far < 0.02
    assert near < far / 3  # at least first order


@pytest.mark.law
def test_grids_that_share_centres_have_the_same_permeability_there() -> None:
    coarse, fine = (darcy.simulate(3, points=points, seed=2) for points in (10, 30))
    np.testing.assert_allclose(coarse.grid, fine.grid[1::3], rtol=1e-14)
    np.testing.assert_array_equal(coarse.inputs, fine.inputs[:, 1::3, 1::3])


@pytest.mark.law
def test_the_outputs_solve_the_equation_of_the_inputs_and_the_first_are_the_same_whatever_their_number() -> None:
    five, two = darcy.simulate(5, points=12), darcy.simulate(2, points=12)
    for a, u in zip(five.inputs, five.outputs, strict=True):
        np.testing.assert_array_equal(solve(a), u)
    np.testing.assert_array_equal(two.inputs, five.inputs[:2])
    np.testing.assert_array_equal(two.outputs, five.outputs[:2])
    assert set(np.unique(five.inputs)) == {3.0, 12.0}
    assert not np.array_equal(darcy.simulate(2, points=12, seed=1).inputs, two.inputs)


@pytest.mark.law
def test_a_field_has_the_cosines_of_its_draw() -> None:
    grid = (np.arange(7) + 0.5) / 7
    field = darcy._field(np.random.default_rng(3), grid)
    xi = np.random.default_rng(3).standard_normal((128, 128))
    expected = np.zeros((7, 7))
    for k in range(128):
        for m in range(128):
            if k or m:
                size = xi[k, m] * np.sqrt((1 + (k > 0)) * (1 + (m > 0))) / (np.pi**2 * (k**2 + m**2) + 9)
                expected += size * np.outer(np.cos(np.pi * k * grid), np.cos(np.pi * m * grid))
    np.testing.assert_allclose(field, expected, atol=1e-13)


@pytest.mark.statistical
def test_fields_have_the_variance_of_their_measure_at_every_place() -> None:
    n, grid = 1000, np.array([0.0, 0.21, 0.5, 0.9])
    draw = np.random.default_rng(0)
    fields = np.stack([darcy._field(draw, grid) for _ in range(n)])
    k = np.arange(darcy.MODES)
    eigenvalues = (np.pi**2 * (k[:, None] ** 2 + k**2) + 9.0) ** -2.0
    eigenvalues[0, 0] = 0.0
    squares = np.where(k == 0, 1.0, 2.0) * np.cos(np.pi * np.outer(grid, k)) ** 2
    variance = squares @ eigenvalues @ squares.T
    # n variance-ratios are chi-squared with n degrees: 16 places, each within a chance of 1e-5 at either end.
    tails = stats.chi2(n).cdf((fields**2).sum(axis=0) / variance)
    assert ((tails > 1e-5) & (tails < 1 - 1e-5)).all()


@pytest.mark.statistical
def test_at_every_place_either_permeability_is_as_likely() -> None:
    n = 400
    high = (darcy.simulate(n, points=3).inputs == 12).sum(axis=0)
    # Binomial (400, 1/2): within 50 of 200 but once in a million draws, and 9 places.
    assert (abs(high - n / 2) < 50).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"points": 1}, "points must be a whole number >= 2, got 1"),
        ({"points": 8.0}, "points must be a whole number >= 2, got 8.0"),
        ({"seed": None}, "seed must be a whole number >= 0, got None"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(says)):
        darcy.simulate(**{"n": 1, "points": 4, **arguments})


@pytest.mark.parametrize(
    ("permeability", "source", "says"),
    [
        (np.ones((3, 4)), 1.0, "permeability must be square, (points, points), got shape (3, 4)"),
        (np.ones((2, 3, 3)), 1.0, "got shape (2, 3, 3)"),
        (np.zeros((0, 0)), 1.0, "got shape (0, 0)"),
        (np.array([[1.0, 0.0], [1.0, 1.0]]), 1.0, "permeability must be positive, got values from 0 to 1"),
        (np.full((2, 2), np.nan), 1.0, "permeability must be finite, got 4 values"),
        (np.ones((3, 3)), np.ones(3), "source must be a number or have the permeability's shape (3, 3), got shape (3,)"),
        (np.ones((2, 2)), np.inf, "source must be finite"),
    ],
)
def test_what_cannot_be_solved_is_told(permeability: np.ndarray, source: Any, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        solve(permeability, source=source)
