"""Where treatments were seen: what is marked, what is warned of, what is kept, and that ordinary rows are left alone."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import IVData, KernelIV, LeastSquares, TwoStageLeastSquares
from cfiv.arrays import Array
from cfiv.datasets import demand
from cfiv.errors import ModelFileError, ParameterError, UnsupportedTreatmentWarning
from cfiv.estimators.saved_components import component_to_values
from cfiv.estimators.structural import MODEL_FILE
from cfiv.estimators.support import Support
from cfiv.estimators.support_cells import CELLS, Ends
from cfiv.tensor_file import DAMAGE

#: Of fresh rows from where training came from, marked at most, from 1000 rows of training on, and of fewer.
MARKED, MARKED_BY_FEW = 0.01, 0.02
Draw = Callable[[np.random.Generator, int], "tuple[Array, Array | None]"]


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def support_of(treatment: Array, covariates: Array | None) -> Support:
    support = Support.of(IVData(treatment=treatment, covariates=covariates))
    assert support is not None
    return support


def fitted(n: int = 5000) -> TwoStageLeastSquares:
    return TwoStageLeastSquares(demand.FORMULA).fit(demand.simulate(n, seed=0)[0].frame)


def rows(prices: Any, times: Any = 2.5) -> pd.DataFrame:
    prices = np.atleast_1d(prices)
    return pd.DataFrame({"price": prices, "time": np.broadcast_to(times, prices.shape), "emotion": 4.0})


# What is marked


@pytest.mark.statistical
@pytest.mark.parametrize("n", [2000, 5000, 50_000])
def test_at_time_5_low_prices_are_marked_although_they_were_seen_at_other_times(n: int) -> None:
    data, _ = demand.simulate(n, seed=1)
    support = support_of(data.treatment, data.covariates)
    emotions = np.arange(1.0, 8.0)

    def seen(price: float, time: float) -> float:
        at = np.stack([np.full(7, time), emotions], axis=1)
        return float(support.covers(np.full((7, 1), price), at).mean())

    assert data.treatment.min() < 10
    assert seen(10.0, 5.0) == seen(12.0, 5.0) == 0
    assert seen(12.0, 2.5) == seen(15.0, 2.5) == seen(20.0, 5.0) == seen(22.0, 5.0) == 1


def linear(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
    x = generator.normal(size=(n, 50))
    return 3 * x[:, :1] + generator.normal(size=(n, 1)), x


def binary(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
    x = generator.normal(size=(n, 3))
    return (generator.uniform(size=(n, 1)) < 1 / (1 + np.exp(-2 * x[:, :1]))).astype(float), x


def products(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
    x, t = generator.normal(size=(n, 2)), generator.normal(size=(n, 1))
    return np.concatenate([t, t**2, t * x], axis=1), x


def spread(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
    x = generator.normal(size=(n, 2))
    return x[:, :1] * generator.normal(size=(n, 1)), x


DRAWS: dict[str, Draw] = {
    "demand": lambda g, n: (lambda data: (data.treatment, data.covariates))(demand.simulate(n, seed=int(g.integers(2**30)))[0]),
    "no covariates": lambda g, n: (g.normal(size=(n, 1)), None),
    "50 covariates that do not matter": lambda g, n: (g.normal(size=(n, 1)), g.normal(size=(n, 50))),
    "50 covariates of which one does": linear,
    "Cauchy": lambda g, n: (g.standard_cauchy((n, 1)), g.standard_cauchy((n, 5))),
    "lognormal": lambda g, n: (np.exp(2 * g.normal(size=(n, 1))), np.exp(2 * g.normal(size=(n, 3)))),
    "two values": binary,
    "categories": lambda g, n: (np.eye(5)[g.integers(0, 5, n)][:, 1:], g.normal(size=(n, 2))),
    "products": products,
    "a spread that varies": spread,
}


@pytest.mark.statistical
@pytest.mark.parametrize("n", [200, 1000, 3000])
@pytest.mark.parametrize("name", DRAWS)
def test_fresh_rows_from_where_training_came_from_are_hardly_ever_marked(name: str, n: int) -> None:
    draw, marked = DRAWS[name], []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        support = support_of(*draw(generator, n))
        marked.append(1 - support.covers(*draw(generator, 4000)).mean())
    assert np.mean(marked) <= (MARKED if n >= 1000 else MARKED_BY_FEW)


@pytest.mark.law
@pytest.mark.parametrize("n", [2, 30, 400, 3000])
@pytest.mark.parametrize("name", DRAWS)
def test_no_row_of_training_is_marked(name: str, n: int) -> None:
    treatment, covariates = DRAWS[name](np.random.default_rng(0), n)
    assert support_of(treatment, covariates).covers(treatment, covariates).all()


@pytest.mark.law
@pytest.mark.parametrize("unit", [1e-200, 1e3, 1e200])
def test_what_is_marked_does_not_depend_on_units(unit: float) -> None:
    (t, x), (other_t, other_x) = (linear(np.random.default_rng(seed), 1000) for seed in (0, 1))
    other_t = 1.5 * other_t
    power = 2.0 ** np.round(np.log2(unit))  # exact
    marked = support_of(power * t, x / power).covers(power * other_t, other_x / power)
    np.testing.assert_array_equal(marked, support_of(t, x).covers(other_t, other_x))
    assert 0 < marked.mean() < 1


def test_covariates_far_from_all_that_were_seen_are_marked_whatever_the_treatment() -> None:
    model = fitted()
    assert model.supported(rows([20.0, 20.0], [9.9, 2.5])).tolist() == [True, True]
    assert model.supported(rows([20.0, 20.0], [99.0, -30.0])).tolist() == [False, False]


def test_a_category_of_treatment_that_some_group_never_had_is_marked_there() -> None:
    generator = np.random.default_rng(0)
    group, z = generator.integers(0, 2, 1000), generator.normal(size=1000)
    drug = np.where(group == 1, "none", generator.choice(["none", "low", "high"], 1000))
    y = generator.normal(size=1000)
    frame = pd.DataFrame({"y": y, "drug": drug, "group": group, "z": z, "w": z**2 + y})
    model = LeastSquares("y ~ group + [C(drug) ~ z + w]").fit(frame)
    asked = pd.DataFrame({"drug": ["low", "high", "none"] * 2, "group": [0, 0, 0, 1, 1, 1]})
    assert model.supported(asked).tolist() == [True, True, True, False, False, True]


# What is warned of


def test_another_unit_is_warned_of_with_both_ranges() -> None:
    model, (fresh, _) = fitted(), demand.simulate(50, seed=2)
    assert fresh.frame is not None
    cents = fresh.frame.assign(price=100 * fresh.frame["price"])
    with pytest.warns(
        UnsupportedTreatmentWarning, match=r"^50 of 50 rows .*'price' is [\d.]+ to \d+ there, and was [\d.]+ to [\d.]+ in"
    ):
        model.predict(cents)
    with pytest.warns(UnsupportedTreatmentWarning, match=r"300 of 300 rows at treatment_from are .*'price' is 1500 there"):
        model.effect(demand.simulate(300, seed=2)[0].frame, treatment_from=1500, treatment_to=20)
    with pytest.warns(UnsupportedTreatmentWarning, match=r"2 of 2 points of the grid are .*'price' is 1500 to 2000 there"):
        assert not model.dose_response([1500.0, 2000.0])["supported"].any()


def test_covariates_in_another_unit_are_warned_of() -> None:
    with pytest.warns(UnsupportedTreatmentWarning, match="'time' is 75 there, and was "):
        fitted().predict(rows(20.0, 75.0))


def test_treatments_that_were_not_seen_at_such_covariates_are_warned_of_as_that() -> None:
    with pytest.warns(UnsupportedTreatmentWarning, match="such treatments were seen, but not at such covariates"):
        fitted().predict(rows([10.0, 11.0, 12.0], 5.0))


def test_one_row_far_away_among_many_is_warned_of_and_a_few_that_are_near_are_not() -> None:
    model, ordinary = fitted(), np.full(1000, 15.0)
    with no_warning():
        model.predict(rows(np.where(np.arange(1000) < 40, 30.0, ordinary)))
    assert model.supported(rows([30.0, 15.0])).tolist() == [False, True]
    with pytest.warns(UnsupportedTreatmentWarning, match="^50 of 1000 rows"):
        model.predict(rows(np.where(np.arange(1000) < 50, 30.0, ordinary)))
    with pytest.warns(UnsupportedTreatmentWarning, match="^1 of 1000 rows"):
        model.predict(rows(np.where(np.arange(1000) < 1, 1500.0, ordinary)))


@pytest.mark.statistical
def test_no_test_set_from_where_training_came_from_is_warned_of() -> None:
    model = fitted(1000)
    for seed in range(100, 130):
        with no_warning():
            model.predict(demand.simulate(300, seed=seed)[0].frame)


def test_the_warning_points_at_the_line_that_asked() -> None:
    with pytest.warns(UnsupportedTreatmentWarning) as caught:
        fitted().predict(rows(500.0))
    assert caught[0].filename == __file__


def test_the_truth_of_a_design_asks_beyond_without_a_warning() -> None:
    _, truth = demand.simulate(10, seed=0)
    with no_warning():
        truth.error(fitted())


# Tables


@pytest.mark.law
def test_a_point_of_a_dose_response_is_supported_where_half_of_its_rows_are() -> None:
    model, grid = fitted(), np.array([0.0, 8.0, 12.0, 20.0, 25.0, 30.0, 45.0])
    averaged = demand.simulate(400, seed=5)[0].frame
    assert averaged is not None
    with pytest.warns(UnsupportedTreatmentWarning):
        table = model.dose_response(grid, averaged)
    shares = [model.supported(averaged.assign(price=price)).mean() for price in grid]
    assert table["supported"].tolist() == [share >= 0.5 for share in shares]
    assert table["supported"].dtype == bool
    assert 0 < table["supported"].mean() < 1


@pytest.mark.law
def test_treatments_made_of_covariates_are_marked_as_rows_are() -> None:
    data, _ = demand.simulate(3000, seed=0)
    model = TwoStageLeastSquares("sales ~ time + [price + price:time ~ fuel + fuel:time]").fit(data.frame)
    averaged = demand.simulate(200, seed=5)[0].frame
    assert averaged is not None
    with pytest.warns(UnsupportedTreatmentWarning):
        table = model.dose_response([10.0, 20.0, 40.0], averaged)
    shares = [model.supported(averaged.assign(price=price)).mean() for price in (10.0, 20.0, 40.0)]
    assert table["supported"].tolist() == [share >= 0.5 for share in shares] == [True, True, False]


# What is kept


@pytest.mark.law
def test_what_was_seen_comes_back_from_a_file_and_a_pickle(tmp_path: Path) -> None:
    model, asked = fitted(), demand.test_grid()
    model.save(tmp_path / "model")
    for again in (cfiv.load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.supported(asked), model.supported(asked))
        assert str(again.summary()) == str(model.summary())
    assert "Treatments seen price 3.89 to 27.96" in " ".join(str(model.summary()).split())


@pytest.mark.law
def test_it_keeps_neither_rows_nor_more_numbers_than_cells_need() -> None:
    x = np.random.default_rng(0).normal(size=(60_000, 3))
    support = support_of(x.sum(axis=1, keepdims=True) + np.random.default_rng(1).normal(size=(60_000, 1)), x)
    assert 100 < len(support.cells) < 2 * CELLS
    sizes = [np.size(value) for value in (*vars(support).values(), *vars(support.cells).values())]
    assert sum(sizes) < 8 * len(support.cells)


def test_images_have_no_support_and_say_so(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(40, 1))
    images = np.clip(z[:, :, None] + generator.normal(size=(40, 3, 3)), 0, 1)
    data = IVData(outcome=generator.normal(size=40), treatment=images, instruments=z)
    model = KernelIV(ridge1=0.1, ridge2=0.1, random_state=0).fit(data)
    model.save(tmp_path / "model")
    for function in (model.structural_function_, cfiv.load(tmp_path / "model")):
        with no_warning():
            assert list(function.dose_response(images[:2])) == ["treatment", "estimate"]
        assert "not known (of images" in str(function.summary())
        with pytest.raises(ParameterError, match="it is not known where training has seen treatments"):
            function.supported(IVData(treatment=images))


@pytest.mark.law
def test_a_file_of_format_3_is_read_and_marks_nothing(tmp_path: Path) -> None:
    model, place = fitted(), tmp_path / "model"
    replace(MODEL_FILE, version=3).write(
        place,
        {
            "estimator": "TwoStageLeastSquares",
            "outcome": "sales",
            "facts": {},
            "encoder": model.structural_function_.encoder.to_values(),
            "components": [component_to_values(component) for component in model.structural_function_.components],
        },
    )
    function = cfiv.load(place)
    with no_warning():
        far = function.predict(rows(1500.0))
        function.effect(rows(1.0), treatment_from=1500, treatment_to=2000)
        assert list(function.dose_response([1500.0])) == ["price", "estimate"]
    with pytest.warns(UnsupportedTreatmentWarning):
        np.testing.assert_array_equal(far, model.predict(rows(1500.0)))
    function.save(place)
    assert cfiv.load(place).support is None


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("slack"),
        lambda v: v.update(names=["price"]),
        lambda v: v.update(least=v["least"][:1]),
        lambda v: v.update(lower=v["lower"][:, :0]),
        lambda v: v.update(upper=np.full_like(v["upper"], np.nan)),
        lambda v: v["cells"].update(column=[5, *v["cells"]["column"][1:]]),
        lambda v: v["cells"].update(below=[0, *v["cells"]["below"][1:]]),
        lambda v: v["cells"].update(above=[10**6, *v["cells"]["above"][1:]]),
        lambda v: v["cells"].update(threshold=v["cells"]["threshold"][1:]),
    ],
)
def test_what_a_file_says_of_support_is_checked(change: Callable[[dict[str, Any]], object]) -> None:
    data, _ = demand.simulate(500, seed=0)
    values = support_of(data.treatment, data.covariates).to_values()
    values["names"] = list(values["names"])
    assert len(values["cells"]["column"]) > 1
    Support.from_values(values, treatments=1, covariates=2)
    change(values)
    with pytest.raises(DAMAGE):
        Support.from_values(values, treatments=1, covariates=2)


# Parts


@pytest.mark.law
def test_ends_of_cells_are_those_of_their_sorted_rows() -> None:
    generator = np.random.default_rng(0)
    values, places = generator.integers(0, 9, (60, 2)).astype(float), generator.integers(0, 5, 60)
    ends = Ends.of(values, places, 5)
    for place in range(5):
        ordered = np.sort(values[places == place], axis=0)
        found = [getattr(ends, name)[place] for name in ("least", "second", "last_but_one", "greatest")]
        np.testing.assert_array_equal(found, ordered[[0, 1, -2, -1]])


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    model = fitted(200)
    values = replace(model.structural_function_.support, slack=float("nan"))  # type: ignore[type-var]
    replace(model.structural_function_, support=values).save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="was not written by cfiv, or was changed since"):
        cfiv.load(tmp_path / "model")
