"""The demand design against an independent transcription of its published form."""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from cfiv.datasets import demand
from cfiv.errors import DataError, ParameterError


def psi(t: float) -> float:
    return 2 * ((t - 5) ** 4 / 600 + exp(-4 * (t - 5) ** 2) + t / 10 - 2)


def h(p: float, t: float, s: float) -> float:
    return 100 + (10 + p) * s * psi(t) - 2 * p


@pytest.mark.oracle
@pytest.mark.parametrize(("n", "rho", "seed"), [(1, 0.5, 0), (7, 0.0, 3), (50, -0.9, 1), (50, 1.0, 2)])
def test_rows_are_those_of_the_published_design_drawn_in_its_order(n: int, rho: float, seed: int) -> None:
    # Hartford et al. 2017, section 5.1; the order of the draws is that of the code of Xu et al. 2021.
    draw = np.random.default_rng(seed)
    s, t = draw.choice(list(range(1, 8)), n), draw.uniform(0, 10, n)
    c, v, noise = draw.normal(0, 1, n), draw.normal(0, 1, n), draw.normal(0, 1, n)
    price = [25 + (c[i] + 3) * psi(t[i]) + v[i] for i in range(n)]
    sales = [h(price[i], t[i], s[i]) + rho * v[i] + (1 - rho**2) ** 0.5 * noise[i] for i in range(n)]
    expected = pd.DataFrame({"sales": sales, "price": price, "time": t, "emotion": s, "fuel": c})
    data, _ = demand.simulate(n, rho=rho, seed=seed)
    # A few roundings of products in another order.
    pd.testing.assert_frame_equal(data.frame, expected, rtol=1e-12, check_dtype=False)


def test_roles_and_frame_are_the_same_numbers() -> None:
    data, _ = demand.simulate(20)
    frame = data.frame
    assert frame is not None
    for role, columns in (data.names or {}).items():
        np.testing.assert_array_equal(getattr(data, role).reshape(20, -1), frame[list(columns)])


def test_the_grid_is_the_published_2800_points() -> None:
    _, truth = demand.simulate(10)
    points = {(p, t, s) for p in np.linspace(10, 25, 20) for t in np.linspace(0, 10, 20) for s in range(1, 8)}
    assert len(truth.grid) == 2800
    assert set(truth.grid[["price", "time", "emotion"]].itertuples(index=False, name=None)) == points
    np.testing.assert_allclose(truth.grid["structural"], [h(*row[:3]) for row in truth.grid.to_numpy()], rtol=1e-12)


class Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        return np.full(len(rows), self.value)


class Itself:
    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        assert "structural" not in rows  # the truth must not reach a model
        return demand.structural(rows)


@pytest.mark.oracle
def test_the_best_constant_has_the_known_error() -> None:
    # 32644: the variance of h over the 2800 points of the published design, computed apart from this code.
    _, truth = demand.simulate(10)
    assert truth.error(Constant(truth.grid["structural"].mean())) == pytest.approx(32644, abs=0.5)


@pytest.mark.law
def test_the_error_of_the_truth_is_zero_and_of_a_shifted_truth_the_square_of_the_shift() -> None:
    _, truth = demand.simulate(10)
    assert truth.error(Itself()) == 0.0
    grid = truth.grid["structural"].to_numpy()
    assert truth.error(Constant(3.0)) == pytest.approx(np.mean((grid - 3.0) ** 2), rel=1e-12)
    np.testing.assert_array_equal(truth(truth.grid), grid)


@pytest.mark.parametrize(
    ("predict", "says"),
    [
        (lambda rows: pd.Series(demand.structural(rows), index=rows.index)[::-1], "same row labels in another order"),
        (lambda rows: np.ma.masked_less(demand.structural(rows), 0.0), "predictions must have no masked values, got [0-9]+"),
        (lambda rows: np.full(len(rows), np.nan), "predictions must be finite, got 2800 values"),
        (lambda rows: ["3"] * len(rows), r"predictions holds text \('3' in row 0\)"),
        (lambda rows: demand.structural(rows)[:, None], "one number a row"),
    ],
    ids=["other labels", "masked", "nan", "text", "column"],
)
def test_an_error_is_of_finite_numbers_that_stand_beside_their_rows(predict: Any, says: str) -> None:
    _, truth = demand.simulate(10)
    model = type("Model", (), {"predict": staticmethod(predict)})()
    with pytest.raises(DataError, match=says):
        truth.error(model)


@pytest.mark.parametrize("container", [dict, pl.DataFrame])
def test_the_truth_takes_any_table(container: Any) -> None:
    _, truth = demand.simulate(10)
    np.testing.assert_array_equal(truth(container(truth.grid.to_dict("list"))), truth.grid["structural"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"price": pd.Timestamp("2020-01-01")}, "price holds dates"),
        ({"time": np.nan}, "time must be finite"),
        ({"emotion": "1"}, "emotion holds text"),
    ],
)
def test_rows_without_numbers_have_no_structural_value(change: dict[str, Any], says: str) -> None:
    _, truth = demand.simulate(10)
    with pytest.raises(DataError, match=says):
        truth(truth.grid.assign(**change))
    with pytest.raises(DataError, match=r"the columns 'price', 'time', 'emotion', got a table without 'price'"):
        truth(truth.grid.drop(columns="price"))


def test_predictions_with_the_labels_of_the_grid_are_judged() -> None:
    _, truth = demand.simulate(10)
    model = type("Model", (), {"predict": staticmethod(lambda rows: pd.Series(demand.structural(rows), index=rows.index))})()
    assert truth.error(model) == 0.0


@pytest.mark.law
def test_the_effect_of_a_price_is_what_the_docstring_says() -> None:
    rows = demand.test_grid()
    effect = demand.structural(rows.assign(price=15.0)) - demand.structural(rows.assign(price=10.0))
    expected = 5.0 * (rows["emotion"] * [psi(t) for t in rows["time"]] - 2)
    np.testing.assert_allclose(effect, expected, rtol=1e-9)


def test_the_same_seed_draws_the_same_rows_and_another_seed_others() -> None:
    one, again, other = (demand.simulate(20, seed=seed)[0].frame for seed in (1, 1, 2))
    assert one is not None
    assert one.equals(again)
    assert not one.equals(other)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    demand.simulate(20)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@pytest.mark.statistical
def test_rho_is_the_correlation_of_the_two_errors_and_the_outcome_s_error_has_unit_variance() -> None:
    data, truth = demand.simulate(20_000, rho=0.5, seed=0)
    frame = data.frame
    assert frame is not None
    error = frame["sales"] - truth(frame)
    v = frame["price"] - 25 - (frame["fuel"] + 3) * [psi(t) for t in frame["time"]]
    # Standard errors at n = 20000: 0.0053 for the correlation, 0.01 for the variance; five of each.
    assert np.corrcoef(error, v)[0, 1] == pytest.approx(0.5, abs=0.027)
    assert error.var() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, ["n must be a whole number >= 1", "got 0"]),
        ({"n": 2.5}, ["n must be a whole number >= 1", "got 2.5"]),
        ({"n": True}, ["n must be a whole number >= 1", "got True"]),
        ({"rho": 1.5}, ["rho must be between -1 and 1", "got 1.5"]),
        ({"rho": float("nan")}, ["rho must be between -1 and 1", "got nan"]),
    ],
)
def test_a_bad_size_or_correlation_is_refused(arguments: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ParameterError) as caught:
        demand.simulate(**arguments)
    assert [part for part in says if part not in str(caught.value)] == []


@pytest.mark.law
def test_strength_and_scale_change_price_and_error_alone() -> None:
    (plain, _), (changed, truth) = (
        demand.simulate(500, rho=0.7, seed=3, instrument_strength=strength, error_scale=scale)
        for strength, scale in ((1.0, 1.0), (0.25, 20.0))
    )
    one, other = plain.frame, changed.frame
    assert one is not None
    assert other is not None
    pd.testing.assert_frame_equal(one[["time", "emotion", "fuel"]], other[["time", "emotion", "fuel"]])
    season = demand.seasonality(one["time"].to_numpy())
    np.testing.assert_allclose(one["price"] - other["price"], 0.75 * one["fuel"] * season, atol=1e-12)
    error, larger = (frame["sales"] - truth(frame) for frame in (one, other))
    np.testing.assert_allclose(20 * error, larger, atol=1e-9)


@pytest.mark.law
def test_the_published_design_is_strength_and_scale_one() -> None:
    pd.testing.assert_frame_equal(
        demand.simulate(50, seed=1)[0].frame, demand.simulate(50, seed=1, instrument_strength=1.0, error_scale=1.0)[0].frame
    )


@pytest.mark.statistical
def test_the_confounding_bias_is_the_mean_error_given_price_and_time() -> None:
    data, truth = demand.simulate(200_000, rho=0.8, seed=0, error_scale=10.0, instrument_strength=0.5)
    frame = data.frame
    assert frame is not None
    bias = demand.confounding_bias(frame, rho=0.8, error_scale=10.0, instrument_strength=0.5)
    error = (frame["sales"] - truth(frame)).to_numpy()
    # The best predictor of the error: its remainder is orthogonal to it, within four standard errors.
    products = (error - bias) * bias
    assert abs(products.mean()) < 4 * products.std() / len(frame) ** 0.5
    assert np.mean(demand.confounding_bias(truth.grid, rho=1.0) ** 2) == pytest.approx(5.7, abs=0.05)


@pytest.mark.parametrize("name", ["instrument_strength", "error_scale"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "x", True, None])
def test_impossible_strengths_and_scales_are_refused(name: str, value: float) -> None:
    with pytest.raises(ParameterError, match=f"{name} must be finite and >= 0, got {value!r}"):
        demand.simulate(10, **{name: value})
