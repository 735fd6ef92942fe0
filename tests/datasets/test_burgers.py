"""Burgers: the solutions are the exact ones of Cole and Hopf, and the initial functions have the spectrum that is stated."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cfiv.datasets import burgers
from cfiv.datasets.burgers_equation import _Squares, evolve
from cfiv.errors import DataError, ParameterError

#: The initial functions' modes end at 2048: this grid holds all of them, and the square of any.
FINE = 8192


def relative_errors(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)


def potential(u0: np.ndarray) -> np.ndarray:
    """The periodic antiderivative of functions of mean zero."""
    k = np.fft.rfftfreq(u0.shape[1], 1 / u0.shape[1])
    return np.fft.irfft(np.fft.rfft(u0, axis=1) / np.where(k == 0, np.inf, 2j * np.pi * np.maximum(k, 1)), axis=1)


def cole_hopf(u0: np.ndarray, viscosity: float, time: float) -> np.ndarray:
    """u = -2 nu phi_x / phi, where phi, at first exp(-U0 / (2 nu)), obeys the heat equation; in Fourier space, on u0's grid."""
    n = u0.shape[1]
    wave = 2j * np.pi * np.fft.rfftfreq(n, 1 / n)
    heat = np.fft.rfft(np.exp(-potential(u0) / (2 * viscosity)), axis=1)
    heat = heat * np.exp(viscosity * (wave**2).real * time)
    return -2 * viscosity * np.fft.irfft(wave * heat, n, axis=1) / np.fft.irfft(heat, n, axis=1)


def heat_kernel(u0: np.ndarray, x: float, viscosity: float, time: float) -> np.ndarray:
    """The same as a ratio of integrals over the line, all weights positive: good at small viscosities as well."""
    n, reach = u0.shape[1], 6  # 6 periods: beyond, the kernel at nu = 0.01 and time 1 is nothing
    y = np.arange(-reach * n, reach * n) / n
    exponent = -np.tile(potential(u0), 2 * reach) / (2 * viscosity) - (x - y) ** 2 / (4 * viscosity * time)
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return (weights * np.tile(u0, 2 * reach)).sum(axis=1) / weights.sum(axis=1)


def some_series(n: int, modes: int = 40, seed: int = 0) -> np.ndarray:
    """Smoother functions than those of the design, of mean zero and size 1."""
    draw = np.random.default_rng(seed)
    k = np.arange(1, modes + 1)
    series = np.zeros((n, modes + 1), dtype=complex)
    series[:, 1:] = (draw.normal(size=(n, modes)) + 1j * draw.normal(size=(n, modes))) * 0.5 / k**3
    return series


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [0, 1])
def test_at_1024_points_the_solution_is_that_of_cole_and_hopf(seed: int) -> None:
    exact = cole_hopf(burgers.simulate(20, points=FINE, seed=seed, time=0.0).inputs, viscosity=0.1, time=1.0)
    pairs = burgers.simulate(20, points=1024, seed=seed)
    # Measured: at most 4e-11 in 1000 functions.
    assert relative_errors(pairs.outputs, exact[:, :: FINE // 1024]).max() < 1e-10


@pytest.mark.oracle
@pytest.mark.parametrize(("viscosity", "time"), [(1.0, 1.0), (0.1, 0.01), (0.05, 3.0), (0.1, 1e-4)])
def test_so_it_is_at_other_viscosities_and_times(viscosity: float, time: float) -> None:
    exact = cole_hopf(burgers.simulate(4, points=FINE, time=0.0).inputs, viscosity=viscosity, time=time)
    pairs = burgers.simulate(4, points=256, viscosity=viscosity, time=time)
    assert relative_errors(pairs.outputs, exact[:, :: FINE // 256]).max() < 1e-9


@pytest.mark.oracle
def test_so_it_is_where_fronts_are_steep() -> None:
    u0 = burgers.simulate(3, points=FINE, time=0.0).inputs
    exact = np.column_stack([heat_kernel(u0, j / 16, viscosity=0.01, time=1.0) for j in range(16)])
    pairs = burgers.simulate(3, points=16, viscosity=0.01)
    assert relative_errors(pairs.outputs, exact).max() < 1e-9


@pytest.mark.oracle
def test_a_solution_in_closed_form_is_met_to_ten_digits() -> None:
    # phi = 2 + cos(2 pi x) exp(-4 pi^2 nu t) obeys the heat equation.
    x, nu, time = np.arange(128) / 128, 0.1, 0.7

    def solution(t: float) -> np.ndarray:
        decay = np.exp(-4 * np.pi**2 * nu * t)
        return 4 * np.pi * nu * decay * np.sin(2 * np.pi * x) / (2 + decay * np.cos(2 * np.pi * x))

    series = evolve(np.fft.rfft(solution(0.0), norm="forward")[None, :-1], viscosity=nu, time=time)
    found = np.fft.irfft(series[:, :64], 128, axis=1, norm="forward")
    assert relative_errors(found, solution(time)[None]).max() < 1e-10


@pytest.mark.law
def test_twice_the_steps_have_a_sixteenth_of_the_error() -> None:
    coarse, middle, fine = (evolve(some_series(5), viscosity=0.1, time=0.5, modes=40, steps=s) for s in (40, 80, 640))
    ratios = np.linalg.norm(coarse - fine, axis=1) / np.linalg.norm(middle - fine, axis=1)
    # 16 in the limit of small steps.
    assert ((ratios > 12) & (ratios < 24)).all()


@pytest.mark.oracle
@pytest.mark.parametrize("modes", [1, 2, 7, 8, 31])
def test_the_square_has_no_aliasing(modes: int) -> None:
    draw = np.random.default_rng(0)
    series = draw.normal(size=(1, modes + 1)) + 1j * draw.normal(size=(1, modes + 1))
    series[:, 0] = series[:, 0].real
    # The coefficients of a product are the convolution of both sides, -M to M.
    both = np.concatenate([series[0, :0:-1].conj(), series[0]])
    square = np.convolve(both, both)[2 * modes : 3 * modes + 1]
    np.testing.assert_allclose(_Squares(modes)(series)[0], -1j * np.pi * np.arange(modes + 1) * square, rtol=1e-12, atol=1e-11)


@pytest.mark.law
def test_more_modes_change_nothing() -> None:
    few, many = (evolve(some_series(5), viscosity=0.1, time=0.5, modes=modes, steps=100) for modes in (48, 96))
    np.testing.assert_allclose(many[:, :49], few, rtol=0, atol=1e-13)
    assert abs(many[:, 49:]).max() < 1e-13


@pytest.mark.law
def test_the_mean_is_kept_and_carries_the_solution_along() -> None:
    series, mean, time = some_series(5), 0.7, 0.6
    carried = series.copy()
    carried[:, 0] = mean
    still, moved = (evolve(given, viscosity=0.1, time=time, modes=48) for given in (series, carried))
    np.testing.assert_allclose(moved[:, 0], mean, rtol=1e-14)
    np.testing.assert_allclose(still[:, 0], 0, atol=1e-16)
    shift = np.exp(-2j * np.pi * np.arange(49) * mean * time)
    # A moving frame adds an advection that is stepped and not exact.
    np.testing.assert_allclose(moved[:, 1:], (still * shift)[:, 1:], rtol=0, atol=1e-8 * abs(still).max())


@pytest.mark.law
def test_a_shifted_function_has_the_shifted_solution_and_a_reflected_one_the_reflected() -> None:
    series = some_series(5)
    shift = np.exp(-2j * np.pi * np.arange(41) * 0.137)
    solution, shifted, reflected = (
        evolve(given, viscosity=0.1, time=0.4, modes=40, steps=60) for given in (series, series * shift, -series.conj())
    )
    np.testing.assert_allclose(shifted, solution * shift, rtol=0, atol=1e-14)
    np.testing.assert_allclose(reflected, -solution.conj(), rtol=0, atol=1e-14)


@pytest.mark.law
def test_energy_and_largest_value_decrease() -> None:
    start = burgers.simulate(20, points=256, time=0.0).inputs
    for time in (0.05, 0.5):
        later = burgers.simulate(20, points=256, time=time).outputs
        assert (np.linalg.norm(later, axis=1) < np.linalg.norm(start, axis=1)).all()
        assert (abs(later).max(axis=1) < abs(start).max(axis=1)).all()
        start = later


@pytest.mark.law
def test_a_coarse_grid_has_values_of_the_fine_one() -> None:
    fine = burgers.simulate(4, points=256)
    for points in (64, 32):
        coarse, every = burgers.simulate(4, points=points), 256 // points
        np.testing.assert_array_equal(coarse.grid, fine.grid[::every])
        np.testing.assert_allclose(coarse.inputs, fine.inputs[:, ::every], rtol=0, atol=1e-14)
        np.testing.assert_allclose(coarse.outputs, fine.outputs[:, ::every], rtol=0, atol=1e-15)


@pytest.mark.law
def test_a_grid_of_any_size_has_the_values_of_the_series() -> None:
    series = burgers._drawn(2, np.random.default_rng(0))
    for points in (2, 15, 4097):
        places = np.arange(points)[[0, 1, points // 2]] / points
        waves = np.exp(2j * np.pi * np.outer(np.arange(1, 2049), places))
        np.testing.assert_allclose(
            burgers._values(series, points)[:, [0, 1, points // 2]], 2 * (series[:, 1:] @ waves).real, atol=1e-12
        )


@pytest.mark.law
def test_the_first_functions_are_the_same_whatever_their_number_and_blocks_do_not_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = burgers.simulate(7, points=32)
    monkeypatch.setattr(burgers, "BLOCK", 3)
    for n in (2, 7):
        some = burgers.simulate(n, points=32)
        np.testing.assert_array_equal(some.inputs, whole.inputs[:n])
        np.testing.assert_allclose(some.outputs, whole.outputs[:n], rtol=0, atol=1e-15)


def test_another_seed_draws_other_functions_and_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    one, again, other = (burgers.simulate(2, points=8, seed=seed, time=0.0).inputs for seed in (1, 1, 2))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.testing.assert_array_equal(one, again)
    assert abs(one - other).min() > 0


@pytest.mark.oracle
def test_initial_functions_are_the_stated_series_of_the_stated_draws() -> None:
    x, draw = np.arange(5) / 5, np.random.default_rng(4)
    found = burgers.simulate(2, points=5, seed=4, time=0.0).inputs
    for row in range(2):
        xi, eta = draw.standard_normal((2048, 2)).T
        expected = np.zeros(5)
        for k in range(1, 2049):
            s = 25 / ((2 * np.pi * k) ** 2 + 25)
            expected += s * np.sqrt(2) * (xi[k - 1] * np.cos(2 * np.pi * k * x) + eta[k - 1] * np.sin(2 * np.pi * k * x))
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


@pytest.mark.statistical
def test_every_mode_of_the_initial_functions_has_the_stated_energy() -> None:
    n, points = 200, 4096
    coefficients = np.fft.rfft(burgers.simulate(n, points=points, time=0.0).inputs, axis=1, norm="forward")[:, 1:2048]
    # On the orthonormal functions sqrt(2) cos and sqrt(2) sin the variance is the operator's eigenvalue.
    eigenvalues = 625 * ((2 * np.pi * np.arange(1, 2048)) ** 2 + 25) ** -2.0
    xi, eta = np.sqrt(2 / eigenvalues) * coefficients.real, -np.sqrt(2 / eigenvalues) * coefficients.imag
    # A mode's energy over n functions is chi-squared with 2 n degrees; their distribution functions are uniform over modes.
    energies = stats.chi2(2 * n).cdf((xi**2 + eta**2).sum(axis=0))
    assert stats.kstest(energies, "uniform").pvalue > 1e-4
    # Of 2047 modes 2.05 lie outside of the central 99.9 per cent; more than 11 once in 100,000 draws.
    assert np.count_nonzero(abs(energies - 0.5) > 0.4995) <= 11
    # The largest modes, which make most of the function, each by itself (a chance of 1e-5 at either end).
    assert ((energies[:8] > 1e-5) & (energies[:8] < 1 - 1e-5)).all()
    assert stats.kstest(np.concatenate([xi.ravel(), eta.ravel()])[::41], "norm").pvalue > 1e-4
    # Cosines and sines, and neighbouring modes, are independent: correlations of 409,400 pairs, five standard errors.
    for a, b in ((xi, eta), (xi[:, :-1], xi[:, 1:]), (xi[:, :-1], eta[:, 1:]), (xi[:-1], xi[1:])):
        assert abs(np.mean(a * b)) * np.sqrt(a.size) < 5


@pytest.mark.law
def test_initial_functions_have_mean_zero_and_at_time_zero_are_the_solution() -> None:
    pairs = burgers.simulate(3, points=4096, time=0.0)
    np.testing.assert_allclose(pairs.inputs.mean(axis=1), 0, atol=2e-7)  # mode 4096 - 2048 is the highest that is drawn
    np.testing.assert_array_equal(pairs.outputs, pairs.inputs)
    assert pairs.inputs.dtype == pairs.outputs.dtype == pairs.grid.dtype == np.float64
    assert len(pairs) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"n": 2.0}, "n must be a whole number >= 1, got 2.0"),
        ({"points": 1}, "points must be a whole number >= 2, got 1"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"viscosity": 1e-4}, "viscosity must be between 0.001 and 10, got 0.0001: with less, fronts are too steep"),
        ({"viscosity": float("nan"), "time": 0.0}, "viscosity must be between 0.001 and 10, got nan"),
        ({"viscosity": "0.1"}, "got '0.1'"),
        ({"time": -1.0}, "time must be between 0 and 10, got -1.0"),
        ({"time": float("inf")}, "time must be between 0 and 10, got inf"),
        ({"time": True}, "time must be between 0 and 10, got True"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(says)):
        burgers.simulate(**{"n": 2, "points": 8, **arguments})


@pytest.mark.parametrize(
    ("initial", "arguments", "says"),
    [
        (np.ones(3), {}, "initial must be coefficients of shape (n, K + 1), a row a function, got shape (3,)"),
        (np.full((2, 3), np.nan), {}, "initial must be finite"),
        (some_series(2), {"viscosity": 0.01, "modes": 8, "steps": 400}, "are not resolved: give more than 8 modes"),
        (1e4 * some_series(2), {"steps": 5}, "the solution grew beyond all bounds: give more than 128 modes and 5 steps"),
    ],
)
def test_what_cannot_be_solved_is_told(initial: np.ndarray, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        evolve(initial, **{"viscosity": 0.1, "time": 1.0, **arguments})
