"""Sieve two-stage least squares: against its formulas written down plainly, against npiv, and the law of its choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfiv.numerics import sieve_iv
from cfiv.numerics.sieve_basis import SieveBasis
from cfiv.numerics.sieve_choice import SieveChoice, choose_size
from cfiv.numerics.sieve_iv import SieveFit, SieveRows, fit_basis, score_covariance
from cfiv.numerics.splines import Spline
from tests.numerics.sieve_designs import DESIGNS

#: Sums of products square the condition numbers of bases of B-splines, which are some tens.
ROUNDING = 1e-10
#: Of npiv's numbers, which come by generalised inverses.
OTHER = 1e-8
#: Numbers of moderndid 0.2.0, a numpy port of R's npiv: ``npiv(y, x, w, x_eval=points, j_x_segments=segments,
#: k_w_segments=instrument_segments)`` on the designs of ``sieve_designs.py``, seed 7.
NPIV = json.loads((Path(__file__).parent / "npiv.json").read_text())


def rows(name: str = "sine", n: int = 400, *, seed: int = 0, **changes: Any) -> SieveRows:
    y, x, w = DESIGNS[name](n, seed=seed)
    parts = {"outcome": y, "treatments": x[:, None], "instruments": w[:, None], "covariates": None, "weights": np.ones(n)}
    return SieveRows(**(parts | changes))


def splines(columns: np.ndarray, degree: int, segments: int) -> tuple[Spline, ...]:
    return tuple(Spline.of(column, degree=degree, segments=segments, knots="uniform") for column in columns.T)


def basis(data: SieveRows, segments: int, instrument_segments: int | None = None) -> SieveBasis:
    pieces = 4 * segments if instrument_segments is None else instrument_segments
    return SieveBasis(
        treatments=splines(data.treatments, 3, segments), instruments=splines(data.instruments, 4, pieces), covariates=()
    )


def errors(columns: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(((columns @ covariance) * columns).sum(axis=1)))


def pair(products: bool) -> tuple[SieveBasis, np.ndarray, np.ndarray]:
    """Bases of two treatments, a curved and two straight covariates; with values of both."""
    generator = np.random.default_rng(0)
    t, x = generator.normal(size=(60, 2)), generator.normal(size=(60, 3))
    covariates = (*splines(x[:, :1], 3, 2), *(Spline.straight(column) for column in x[:, 1:].T))
    return SieveBasis(splines(t, 3, 2), splines(t[:, :1], 4, 8), covariates, products), t, x


@pytest.mark.oracle
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_coefficients_and_their_covariance_are_those_of_the_formulas_written_down(segments: int, weighted: bool) -> None:
    weights = np.random.default_rng(1).uniform(0.2, 3.0, 400) if weighted else np.ones(400)
    data = rows(weights=weights)
    fit = fit_basis(basis(data, segments), data)
    f = fit.basis.structural_columns(data.treatments, None)
    phi = fit.basis.instrument_columns(data.instruments, None)
    root = np.sqrt(weights)[:, None]
    predicted = root * phi @ np.linalg.lstsq(root * phi, root * f)[0]
    expected = np.linalg.lstsq(predicted, root[:, 0] * data.outcome)[0]
    np.testing.assert_allclose(f @ fit.coefficients, f @ expected, rtol=0, atol=ROUNDING)
    scores = (root * predicted) * (data.outcome - f @ expected)[:, None]
    bread = np.linalg.inv(predicted.T @ predicted)
    plain = errors(f, bread @ scores.T @ scores @ bread)
    np.testing.assert_allclose(errors(f, score_covariance([fit], data)), plain, rtol=ROUNDING * 10)
    np.testing.assert_allclose(phi @ fit.reduced, predicted @ expected / root[:, 0], rtol=0, atol=ROUNDING)
    whole = np.linalg.qr(root * phi)[0].T @ np.linalg.qr(root * f)[0]
    assert fit.correlation == pytest.approx(np.linalg.svd(whole)[1].min(), rel=ROUNDING)


@pytest.mark.oracle
@pytest.mark.parametrize("name", NPIV)
def test_curve_slope_and_their_errors_are_those_of_npiv(name: str) -> None:
    theirs = NPIV[name]
    data = rows(name, theirs["rows"], seed=7)
    fit = fit_basis(basis(data, theirs["segments"], theirs["instrument_segments"]), data)
    points, covariance = np.array(theirs["points"])[:, None], score_covariance([fit], data)
    curve, slope = fit.basis.structural_columns(points, None), fit.basis.structural_derivative(points, None, 0)
    np.testing.assert_allclose(curve @ fit.coefficients, theirs["curve"], rtol=OTHER)
    np.testing.assert_allclose(slope @ fit.coefficients, theirs["slope"], rtol=OTHER)
    np.testing.assert_allclose(errors(curve, covariance), theirs["curve_error"], rtol=OTHER)
    np.testing.assert_allclose(errors(slope, covariance), theirs["slope_error"], rtol=OTHER)


@pytest.mark.law
def test_scores_add_up_to_nothing_for_instruments_are_orthogonal_to_residuals() -> None:
    data = rows()
    fit = fit_basis(basis(data, 2), data)
    one_group = score_covariance([fit], rows(clusters=np.zeros(400, dtype=np.int64)))
    np.testing.assert_allclose(one_group, 0.0, atol=ROUNDING * score_covariance([fit], data).max())


@pytest.mark.law
def test_rows_in_groups_of_one_are_rows_and_twins_in_a_group_count_as_one_row_of_twice_the_score() -> None:
    data = rows()
    fits = [fit_basis(basis(data, segments), data) for segments in (1, 2)]
    plain = score_covariance(fits, data)
    np.testing.assert_allclose(score_covariance(fits, rows(clusters=np.arange(400)[::-1])), plain, rtol=1e-9, atol=1e-15)
    twice = {role: np.concatenate([getattr(data, role)] * 2) for role in ("outcome", "treatments", "instruments", "weights")}
    twins = SieveRows(**twice, covariates=None, clusters=np.tile(np.arange(400), 2))
    np.testing.assert_allclose(score_covariance(fits, twins), 4 * plain, rtol=1e-9, atol=1e-15)


@pytest.mark.law
def test_blocks_of_rows_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(clusters=np.arange(400) // 3)
    whole = fit_basis(basis(data, 2), data)
    covariance = score_covariance([whole], data)
    monkeypatch.setattr(sieve_iv, "BLOCK", 1000)
    parts = fit_basis(basis(data, 2), data)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=ROUNDING)
    np.testing.assert_allclose(score_covariance([whole], data), covariance, rtol=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("products", [False, True])
def test_a_grid_has_what_the_columns_say_of_every_pair(products: bool) -> None:
    bases, t, x = pair(products)
    coefficients = np.random.default_rng(1).normal(size=bases.width)
    grid = bases.grid(coefficients, t[:7], x[:5])
    for b in range(7):
        expected = bases.structural_columns(np.tile(t[b], (5, 1)), x[:5]) @ coefficients
        np.testing.assert_allclose(grid[b], expected, rtol=1e-11)
    assert bases.instrument_columns(t[:, :1], x).shape == (60, bases.instrument_width)


@pytest.mark.law
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("column", [0, 1])
def test_the_derivative_of_the_basis_is_that_of_one_treatment_with_all_else_held(products: bool, column: int) -> None:
    bases, t, x = pair(products)
    step = np.zeros(2)
    step[column] = 1e-6
    t = 0.9 * t  # inside: at an end the curvature stops, and a quotient sees half of it
    quotient = (bases.structural_columns(t + step, x) - bases.structural_columns(t - step, x)) / 2e-6
    np.testing.assert_allclose(bases.structural_derivative(t, x, column), quotient, atol=1e-7)


@pytest.mark.law
def test_products_hold_sums_and_every_interaction_with_a_straight_covariate() -> None:
    (sums, _, _), (products, _, _) = pair(False), pair(True)
    assert products.width == (1 + 2 * 4) * (1 + 4) * (1 + 2)
    generator = np.random.default_rng(1)
    t, x = generator.normal(size=(1000, 2)), generator.normal(size=(1000, 3))
    both, wanted = products.structural_columns(t, x), np.column_stack([sums.structural_columns(t, x), t[:, 0] * x[:, 1]])
    np.testing.assert_allclose(both @ np.linalg.lstsq(both, wanted)[0], wanted, atol=1e-8)


def chosen(data: SieveRows, *, draws: int = 1000, seed: int = 0) -> tuple[SieveFit, SieveFit, SieveChoice]:
    points = (np.linspace(data.treatments.min(), data.treatments.max(), 50)[:, None], None)
    make: Callable[[int], SieveBasis] = lambda segments: basis(data, segments)  # noqa: E731
    generator = np.random.default_rng(seed)
    fit, larger, choice = choose_size(make, data, points, variables=1, draws=draws, generator=generator)
    assert choice is not None
    return fit, larger, choice


@pytest.mark.law
@pytest.mark.parametrize("name", DESIGNS)
def test_the_size_is_the_smallest_that_no_larger_one_contradicts_and_no_larger_than_the_second_largest(name: str) -> None:
    fit, larger, choice = chosen(rows(name, 2000))
    agreeing = [i for i, contrast in enumerate(choice.contrasts) if contrast <= 1.1 * choice.threshold]
    assert choice.chosen == min(agreeing[0], len(choice.sizes) - 2)
    assert fit.basis.size == choice.sizes[choice.chosen]
    assert choice.segments == tuple(2**i for i in range(len(choice.sizes)))
    costs = [j * np.sqrt(np.log(j)) / s for j, s in zip(choice.sizes, choice.correlations, strict=True)]
    assert max(costs) <= 10 * np.sqrt(2000)
    assert fit.basis in choice.bases
    assert choice.allowance == max(0.0, np.log(np.log(fit.basis.size))) * choice.threshold
    assert larger.basis.size == choice.sizes[choice.larger]
    data, points = rows(name, 2000), np.linspace(fit.basis.treatments[0].low, fit.basis.treatments[0].high, 50)[:, None]

    def noise(segments: int) -> float:
        own = fit_basis(basis(data, segments), data)
        deviations = errors(own.basis.structural_columns(points, None), score_covariance([own], data))
        return float(np.sqrt((deviations**2).mean()))

    least = 4 * noise(choice.segments[choice.chosen])
    sizes = zip(choice.segments, choice.sizes, strict=True)
    assert choice.larger == [size >= 2 * fit.basis.size or noise(many) >= least for many, size in sizes].index(True)
    assert choice.small_bias
    assert [choice.contradicted(i) for i in range(len(choice.sizes))] == [i not in agreeing for i in range(len(choice.sizes))]


@pytest.mark.law
def test_an_undersmoothed_size_has_independent_instrument_columns_or_is_none() -> None:
    data = rows("sine", 300)
    far = np.concatenate([data.instruments[:-1], [[20.0]]])  # all but one row in a few of the intervals
    fit, larger, choice = chosen(replace(data, instruments=far))
    assert larger.basis.size >= fit.basis.size
    assert choice.larger == choice.chosen or larger.instrument_rank == larger.basis.instrument_width
    assert choice.larger < len(choice.sizes) - 1


@pytest.mark.statistical
def test_the_threshold_is_the_quantile_that_multipliers_of_rows_give() -> None:
    data, draws = rows("kink", 300), 4000
    _, _, choice = chosen(data, draws=draws)
    fits = [fit_basis(basis(data, segments), data) for segments in choice.segments]
    points = np.linspace(data.treatments.min(), data.treatments.max(), 50)[:, None]
    weights = np.random.default_rng(5).normal(size=(draws, 300))
    influences = []
    for fit in fits:
        residuals = data.outcome - fit.basis.structural_columns(data.treatments, None) @ fit.coefficients
        scores = residuals[:, None] * (fit.basis.instrument_columns(data.instruments, None) @ fit.influence)
        influences.append(scores @ fit.basis.structural_columns(points, None).T)
    largest = np.zeros(draws)
    for i, small in enumerate(influences):
        for large in influences[i + 1 :]:
            spread = np.sqrt(((small - large) ** 2).sum(axis=0))
            largest = np.maximum(largest, (np.abs(weights @ (small - large)) / spread).max(axis=1))
    size = choice.sizes[-1]
    expected = np.quantile(largest, 1 - min(0.5, np.sqrt(np.log(size) / size)))
    # The standard error of a quantile of 4000 draws with a standard deviation of half is .01; four of each of two.
    assert choice.threshold == pytest.approx(expected, abs=0.06)
