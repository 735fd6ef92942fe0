"""Curves as lines and departures, and two-stage least squares with penalties: formulas, and that lines stay lines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from cfiv.numerics.curves import Curve
from cfiv.numerics.penalised_iv import FIRST_STAGE, LINEAR, Moments, Pair, Penalties, Rows, choose_penalties, standard_errors
from cfiv.numerics.smooth_basis import Part, SmoothBasis
from tests.numerics.sieve_designs import DESIGNS


def curve(segments: int = 6, n: int = 200) -> tuple[Curve, np.ndarray]:
    x = np.random.default_rng(0).normal(50.0, 4.0, n)
    return Curve.of(x, weights=np.ones(n), segments=segments), x


def rows(n: int = 400, *, seed: int = 0, covariates: int = 2) -> tuple[Rows, SmoothBasis]:
    generator = np.random.default_rng(seed)
    x, z, v = generator.normal(size=(n, covariates)), generator.normal(size=(n, 1)), generator.normal(size=(n, 1))
    t = z + v + 0.3 * x[:, :1]
    y = t[:, 0] + x.sum(axis=1) + v[:, 0] + generator.normal(size=n)
    weights = generator.uniform(0.5, 1.5, n)
    basis = SmoothBasis.of(t, x, z, weights=weights, products=True)
    folds = tuple(np.array_split(generator.permutation(n), 5))
    return Rows(basis.instrument_columns(z, x), basis.structural_columns(t, x), y, weights, folds), basis


def penalties(basis: SmoothBasis, *, first: Pair = LINEAR, second: float = math.inf) -> Penalties:
    return Penalties(
        instrument_parts=basis.instrument_parts,
        structural_parts=basis.structural_parts,
        shared=basis.shared,
        first=np.where(basis.moved[:, None], first, np.nan),
        second={part: second for part in Part if part is not Part.LINE},
    )


@pytest.mark.oracle
def test_the_penalty_of_departures_is_the_integral_of_the_squared_second_derivative() -> None:
    made, _ = curve()
    coefficients = np.random.default_rng(1).normal(size=made.width - 1)
    low, high, h = made.spline.low, made.spline.high, 1e-3 * (made.spline.high - made.spline.low)

    def second(share: float) -> float:
        at = low + share * (high - low) + h * np.array([-1.0, 0.0, 1.0])
        values = made.columns(at)[:, 1:] @ coefficients
        return float((values[0] - 2 * values[1] + values[2]) / (h / (high - low)) ** 2)

    integral = quad(lambda share: second(share) ** 2, 2e-3, 1 - 2e-3, points=list(made.spline.inner), limit=400)[0]
    assert integral == pytest.approx(float((coefficients**2).sum()), rel=0.03)


@pytest.mark.law
def test_a_curve_holds_its_line_standardised_and_means_of_zero() -> None:
    made, x = curve()
    columns = made.columns(x)
    np.testing.assert_allclose(columns[:, 0], (x - x.mean()) / x.std(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-9)
    beyond = made.columns(np.array([200.0, 300.0, 400.0]))
    np.testing.assert_allclose(beyond[0] - 2 * beyond[1] + beyond[2], 0, atol=1e-8)


@pytest.mark.parametrize("values", [np.zeros(50), np.tile([0.0, 1.0], 25), np.tile([1.0, 2.0, 5.0], 20)])
def test_columns_of_few_values_are_lines(values: np.ndarray) -> None:
    made = Curve.of(values, weights=np.ones(len(values)), segments=8)
    assert made.width == 1
    assert np.isfinite(made.columns(values)).all()


@pytest.mark.oracle
def test_without_anything_but_lines_it_is_two_stage_least_squares() -> None:
    data, basis = rows()
    line, root = penalties(basis), np.sqrt(data.weights)[:, None]
    moments = data.moments(np.arange(len(data.outcome)))
    solved = line.second_stage(moments, line.first_stage(moments))
    f = data.structural[:, basis.structural_parts == Part.LINE] * root
    phi = data.instruments[:, basis.instrument_parts == Part.LINE] * root
    predicted = phi @ np.linalg.lstsq(phi, f)[0]
    expected = np.linalg.lstsq(predicted, data.outcome * root[:, 0])[0]
    np.testing.assert_allclose(solved[basis.structural_parts == Part.LINE], expected, rtol=0, atol=1e-8)
    assert not solved[basis.structural_parts != Part.LINE].any()


@pytest.mark.oracle
def test_both_stages_solve_their_equations() -> None:
    data, basis = rows()
    given, n = penalties(basis, first=(0.1, 0.5), second=0.01), len(data.outcome)
    moments = data.moments(np.arange(n))
    v = given.first_stage(moments)
    u = given.second_stage(moments, v)
    mean = data.weights / data.weights.sum()
    shrunk = np.where(basis.instrument_parts == Part.PRODUCTS, 0.5, 0.1)
    shrunk[given.exogenous | (basis.instrument_parts == Part.LINE)] = 0.0
    for column in np.flatnonzero(basis.moved):
        one = given.predicted(moments, np.arange(len(v.T)) == column, (0.1, 0.5))[:, 0]
        residual = data.structural[:, column] - data.instruments @ one
        np.testing.assert_allclose((data.instruments * mean[:, None]).T @ residual, shrunk * one, atol=1e-8)
    predictions, own = data.instruments @ v[:, basis.moved], data.instruments[:, given.exogenous]
    np.testing.assert_allclose((own * mean[:, None]).T @ predictions, 0, atol=1e-8)
    residual = data.outcome - data.structural @ u
    np.testing.assert_allclose(((data.instruments @ v) * mean[:, None]).T @ residual, given.diagonal * u, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.parametrize("second", [math.inf, 0.01])
def test_what_is_expected_of_h_is_its_own_exogenous_part_and_a_ridge_regression_of_the_rest(second: float) -> None:
    data, basis = rows()
    given = replace(penalties(basis, first=(0.1, 0.1), second=second), projection=(0.1, 0.5))
    moments = data.moments(np.arange(len(data.outcome)))
    u = given.second_stage(moments, given.first_stage(moments))
    found = data.instruments @ given.projected(moments, u)
    moved, root = basis.moved, np.sqrt(data.weights / data.weights.sum())[:, None]
    shrunk = np.where(basis.instrument_parts == Part.LINE, 0.0, np.where(basis.instrument_parts == Part.PRODUCTS, 0.5, 0.1))
    phi = np.concatenate([data.instruments * root, np.diag(np.sqrt(shrunk))])
    target = np.concatenate([(data.structural[:, moved] @ u[moved]) * root[:, 0], np.zeros(len(basis.instrument_parts))])
    expected = data.instruments @ np.linalg.lstsq(phi, target)[0] + data.structural[:, ~moved] @ u[~moved]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.law
def test_moments_of_parts_add_up_and_can_be_taken_away() -> None:
    data, _ = rows()
    everything, part = np.arange(400), np.arange(0, 400, 3)
    rest = np.setdiff1d(everything, part)
    taken: Moments = data.moments(everything) - data.moments(part)
    np.testing.assert_allclose(taken.products, data.moments(rest).products, rtol=1e-9, atol=1e-8)


@pytest.mark.statistical
@pytest.mark.parametrize("design", ["line", "sine", "kink"])
def test_a_line_stays_a_line_and_a_curve_becomes_one(design: str) -> None:
    chosen = []
    for seed in range(10):
        y, t, z = DESIGNS[design](1000, seed=100 + seed)
        basis = SmoothBasis.of(t[:, None], np.zeros((1000, 0)), z[:, None], weights=np.ones(1000), products=True)
        folds = tuple(np.array_split(np.random.default_rng(seed).permutation(1000), 5))
        data = Rows(
            basis.instrument_columns(z[:, None], None), basis.structural_columns(t[:, None], None), y, np.ones(1000), folds
        )
        parts = {"instrument_parts": basis.instrument_parts, "structural_parts": basis.structural_parts}
        chosen.append(choose_penalties(data, Penalties.of_line(moved=basis.moved, shared=basis.shared, **parts)).is_line)
    assert sum(chosen) >= 7 if design == "line" else sum(chosen) <= 3


@pytest.mark.law
def test_the_line_beside_a_curve_has_a_projection_of_its_own_and_a_line_that_of_itself() -> None:
    given = replace(penalties(rows()[1], second=0.01), projection=(0.1, 0.2), line_projection=(10.0, 1.0))
    assert given.line().is_line
    assert given.line().projection == (10.0, 1.0)
    assert given.line().line().projection == (10.0, 1.0)
    data, basis = rows()
    found = choose_penalties(data, penalties(basis))
    assert found.is_line
    assert found.projection == found.line_projection


@pytest.mark.statistical
def test_a_slope_that_weak_instruments_leave_to_chance_is_no_evidence_of_a_curve() -> None:
    """Any departure moves such a slope, and half of those moves go towards the confounder, where the loss is lower."""
    lines = []
    for seed in range(20):
        z, x, u, e = np.random.default_rng(seed).normal(size=(4, 400, 1))
        t = 0.12 * z + u
        basis = SmoothBasis.of(t, x, z, weights=np.ones(400), products=True)
        folds = tuple(np.array_split(np.arange(400), 5))
        columns = basis.instrument_columns(z, x), basis.structural_columns(t, x)
        data = Rows(*columns, (t + x + u + e)[:, 0], np.ones(400), folds)
        parts = {"instrument_parts": basis.instrument_parts, "structural_parts": basis.structural_parts}
        lines.append(choose_penalties(data, Penalties.of_line(moved=basis.moved, shared=basis.shared, **parts)).is_line)
    assert sum(lines) >= 18, "by the loss alone it is half of them"


@pytest.mark.law
def test_standard_errors_count_groups_once() -> None:
    generator = np.random.default_rng(0)
    differences, weights = generator.normal(1.0, 1.0, 200), np.ones(200)
    alone = standard_errors(differences, weights)
    doubled = standard_errors(np.tile(differences, 2), np.tile(weights, 2), np.tile(np.arange(200), 2))
    assert doubled == pytest.approx(alone)
    assert standard_errors(np.zeros(5), np.ones(5)) == 0.0


@pytest.mark.statistical
def test_a_bend_in_what_a_covariate_does_is_not_taken_for_an_effect_of_the_treatment() -> None:
    """The treatment bends with the covariate, which the instrument hardly adds to."""
    effects = []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        x, v, e = generator.normal(size=(3, 1000))
        z = generator.integers(0, 2, 1000).astype(float)
        t, y = 0.5 * z + x**2 + v, x**2 + v + e  # no effect; x^2 does all
        basis = SmoothBasis.of(t[:, None], x[:, None], z[:, None], weights=np.ones(1000), products=True)
        folds = tuple(np.array_split(generator.permutation(1000), 5))
        data = Rows(
            basis.instrument_columns(z[:, None], x[:, None]),
            basis.structural_columns(t[:, None], x[:, None]),
            y,
            np.ones(1000),
            folds,
        )
        parts = {"instrument_parts": basis.instrument_parts, "structural_parts": basis.structural_parts}
        chosen = choose_penalties(data, Penalties.of_line(moved=basis.moved, shared=basis.shared, **parts))
        moments = data.moments(np.arange(1000))
        u = chosen.second_stage(moments, chosen.first_stage(moments))
        effects.append(u[basis.shared] / t.std())
    assert abs(np.median(effects)) < 0.25, "by the bend it would be one"


@pytest.mark.law
def test_each_penalty_of_stage_1_has_the_least_loss_that_of_products_beside_that_of_curves() -> None:
    data, basis = rows(seed=3)
    found, moved = choose_penalties(data, penalties(basis)), basis.moved
    held = [data.moments(fold) for fold in data.folds]
    total = sum(held[1:], start=held[0])

    def loss(column: int, pair: Pair) -> float:
        alone, lost = np.arange(len(moved)) == column, 0.0
        for own in held:
            one = found.predicted(total - own, alone, pair)[:, 0]
            lost += own.weight * float(one @ own.gram @ one - 2 * one @ own.cross[:, column])
        return lost

    for column in np.flatnonzero(moved & (basis.structural_parts != Part.LINE)):
        curves, products = found.first[column]
        assert loss(int(column), (curves, math.inf)) == min(loss(int(column), (each, math.inf)) for each in FIRST_STAGE)
        assert loss(int(column), (curves, products)) == min(loss(int(column), (curves, each)) for each in FIRST_STAGE)
