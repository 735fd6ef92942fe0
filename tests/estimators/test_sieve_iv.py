"""SieveIV: laws of its estimates, errors that fall with n, what it refuses, and what a model file keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import DataError, IVData, ParameterError, SieveIV
from cfiv.errors import UnsupportedTreatmentWarning
from cfiv.estimators.components import SieveComponent
from cfiv.estimators.saved_components import Inputs, component_from_values, component_to_values
from cfiv.tensor_file import DAMAGE
from tests.numerics.sieve_designs import DESIGNS, sine

#: Sums in another order, of columns whose condition number is some hundreds.
ROUNDING = 1e-9
GRID = np.linspace(-0.9, 0.9, 37)


def table(n: int = 600, seed: int = 0) -> pd.DataFrame:
    """A curved effect of ``t`` that ``u`` confounds, covariates ``x, q`` and of few values ``d, shop``, row weights ``n``."""
    generator = np.random.default_rng(seed)
    z, x, q, u = generator.uniform(-1, 1, size=(4, n))
    t = z + 0.3 * x + 0.4 * u
    d = generator.integers(0, 2, n)
    y = np.sin(2 * t) + x**2 + 0.5 * d + u + 0.1 * generator.normal(size=n)
    shop = generator.choice(["a", "b", "c"], n)
    return pd.DataFrame({"y": y, "t": t, "z": z, "x": x, "q": q, "d": d, "shop": shop, "n": generator.integers(1, 4, n)})


def drawn(n: int, *, seed: int, name: str = "sine") -> IVData:
    y, x, w = DESIGNS[name](n, seed=seed)
    return IVData(outcome=y, treatment=x, instruments=w)


def component(model: SieveIV) -> SieveComponent:
    (found,) = model.structural_function_.components
    assert isinstance(found, SieveComponent)
    return found


def curve(model: SieveIV, points: np.ndarray = GRID) -> np.ndarray:
    return np.asarray(model.predict(treatment=points))


@pytest.mark.law
@pytest.mark.parametrize("segments", ["auto", 3])
def test_a_linear_function_of_the_treatment_added_to_the_outcome_is_added_to_h(segments: Any) -> None:
    data = drawn(800, seed=0)
    more = IVData(outcome=data.outcome + 5 - 3 * data.treatment[:, 0], treatment=data.treatment, instruments=data.instruments)
    plain, added = (SieveIV(segments=segments, random_state=0).fit(given) for given in (data, more))
    assert plain.segments_ == added.segments_
    np.testing.assert_allclose(curve(added), curve(plain) + 5 - 3 * GRID, atol=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("segments", ["auto", 3])
def test_the_order_of_rows_has_no_say(segments: Any) -> None:
    frame = table()
    formula = "y ~ x + C(shop) + [t ~ z]"
    first = SieveIV(formula, segments=segments, random_state=0).fit(frame)
    other = SieveIV(formula, segments=segments, random_state=0).fit(frame.sample(frac=1, random_state=1))
    assert first.segments_ == other.segments_
    np.testing.assert_allclose(other.predict(frame), first.predict(frame), atol=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("structure", ["additive", "tensor", "linear"])
def test_whole_weights_are_repeated_rows(structure: Any) -> None:
    frame, arguments = table(300), {"segments": 2, "structure": structure}
    weighted = SieveIV("y ~ x + d + [t ~ z]", weights="n", **arguments).fit(frame)
    repeated = SieveIV("y ~ x + d + [t ~ z]", **arguments).fit(frame.loc[frame.index.repeat(frame["n"])])
    np.testing.assert_allclose(repeated.predict(frame), weighted.predict(frame), atol=ROUNDING)


@pytest.mark.law
def test_with_straight_lines_for_all_it_is_two_stage_least_squares() -> None:
    frame = table()
    sieve = SieveIV("y ~ x + d + [t ~ z]", segments=1, degree=1, instrument_degree=1, instrument_segments=1).fit(frame)
    plain = cfiv.TwoStageLeastSquares("y ~ x + d + [t ~ z]").fit(frame)
    np.testing.assert_allclose(sieve.predict(frame), plain.predict(frame), atol=ROUNDING)
    far = frame.assign(t=frame["t"] + 10)
    with pytest.warns(UnsupportedTreatmentWarning):
        np.testing.assert_allclose(sieve.predict(far), plain.predict(far), atol=ROUNDING * 100)
    assert sieve.score(frame) == pytest.approx(plain.score(frame), abs=ROUNDING)


@pytest.mark.law
def test_terms_that_a_formula_makes_enter_as_written_and_plain_columns_as_splines() -> None:
    frame = table()
    written = SieveIV("y ~ center(x) + C(shop) + [I(t) + t:x ~ I(z) + z:x]", segments=2).fit(frame)
    plain = cfiv.TwoStageLeastSquares("y ~ x + C(shop) + [t + t:x ~ z + z:x]").fit(frame)
    np.testing.assert_allclose(written.predict(frame), plain.predict(frame), atol=ROUNDING)
    bases = component(
        SieveIV("y ~ x + q + d + log(q + 2) + [t + t:x ~ z + w]", segments=2).fit(frame.assign(w=frame["q"] ** 2))
    )
    assert [spline.width for spline in bases.basis.treatments] == [4, 1]
    assert [spline.width for spline in bases.basis.covariates] == [4, 4, 1, 1]  # d has two values
    assert [spline.width for spline in bases.basis.instruments] == [11, 11]


@pytest.mark.law
@pytest.mark.parametrize("square", ["s", "I(q**2)"])
def test_a_covariate_and_its_square_are_taken_as_written(square: str) -> None:
    frame = table().assign(s=lambda f: 3 - 2 * f["q"] ** 2)
    model = SieveIV(f"y ~ x + q + {square} + [t ~ z]", segments=1).fit(frame)
    assert [spline.width for spline in component(model).basis.covariates] == [3, 1, 1]  # x is a curve all the same
    splines = "bs(t, df=3) ~ bs(z, knots=[-.5, 0, .5], degree=4)"
    plain = cfiv.TwoStageLeastSquares(f"y ~ bs(x, df=3) + q + {square} + [{splines}]").fit(frame)
    np.testing.assert_allclose(model.predict(frame), plain.predict(frame), atol=0.01)  # its knots are rounded
    found, expected = (cfiv.infer(frame, m).average_derivative() for m in (model, plain))
    np.testing.assert_allclose(found.std_errors, expected.std_errors, rtol=0.01)


@pytest.mark.law
def test_without_a_curve_there_is_one_size() -> None:
    model = SieveIV("y ~ d + [I(t) ~ z]", random_state=0).fit(table())
    assert model.sizes_[["segments", "columns", "contrast"]].to_numpy().tolist() == [[1, 2, 0]]


@pytest.mark.law
def test_beyond_the_rows_of_training_it_goes_straight_on() -> None:
    model = SieveIV(segments=4).fit(drawn(800, seed=0))
    high = component(model).basis.treatments[0].high
    with pytest.warns(UnsupportedTreatmentWarning):
        beyond = curve(model, high + np.array([0.0, 1e-3, 1.0, 2.0, 10.0]))
    slopes = np.diff(beyond) / [1e-3, 0.999, 1.0, 8.0]
    np.testing.assert_allclose(slopes, slopes[-1], rtol=1e-8)


@pytest.mark.law
def test_effects_vary_with_covariates_as_products_and_not_as_sums() -> None:
    frame = table(2000)
    frame["y"] += 2 * frame["t"] * frame["x"]
    effects = {}
    for structure in ("additive", "tensor"):
        model = SieveIV("y ~ x + [t ~ z]", structure=structure, segments=1).fit(frame)  # type: ignore[arg-type]
        effects[structure] = model.effect(frame, treatment_from=-0.3, treatment_to=0.3)
    assert np.ptp(effects["additive"]) < ROUNDING
    slope = np.polyfit(frame["x"], effects["tensor"], 1)[0]
    assert slope == pytest.approx(2 * 0.6, abs=0.3)


@pytest.mark.law
def test_rows_of_one_cluster_share_their_multipliers() -> None:
    frame = table(900).assign(g=lambda f: f.index // 30)
    formula, arguments = "y ~ [t ~ z]", {"random_state": 0}
    plain = SieveIV(formula, **arguments).fit(frame)
    clustered = SieveIV(formula, clusters="g", **arguments).fit(frame)
    own = SieveIV(formula, clusters="g", **arguments).fit(frame.assign(g=frame.index))
    assert own.sizes_["contrast"].to_numpy() == pytest.approx(plain.sizes_["contrast"].to_numpy(), rel=1e-6)
    assert not np.allclose(clustered.sizes_["contrast"], plain.sizes_["contrast"], rtol=1e-3)
    assert clustered.sizes_["correlation"].equals(plain.sizes_["correlation"])


@pytest.mark.statistical
def test_the_error_of_a_sine_falls_with_the_rows_and_a_line_gets_the_smallest_size() -> None:
    medians = []
    for n in (1000, 16_000):
        models = [SieveIV(random_state=0).fit(drawn(n, seed=seed)) for seed in range(8)]
        medians.append(np.median([((curve(model) - sine(GRID)) ** 2).mean() for model in models]))
    assert medians[0] > 3 * medians[1]  # measured: .0059 and .0011 in the medians of 20
    assert medians[1] < 0.002
    sizes = [SieveIV(random_state=0).fit(drawn(1000, seed=seed, name="line")).segments_ for seed in range(20)]
    assert np.mean(np.array(sizes) == 1) >= 0.9


@pytest.mark.statistical
def test_two_treatments_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    z, w, u, v = generator.uniform(-1, 1, size=(4, 4000))
    t, s = z + 0.3 * u, w + 0.3 * v
    frame = pd.DataFrame({"y": np.sin(2 * t) + s**2 + u - v, "t": t, "s": s, "z": z, "w": w})
    model = SieveIV("y ~ [t + s ~ z + w]", random_state=0).fit(frame)
    effect = model.effect(frame, treatment_from=[0.0, 0.0], treatment_to=[0.7, 0.0])
    np.testing.assert_allclose(effect, np.sin(1.4), atol=0.15)
    effect = model.effect(frame, treatment_from=[0.0, 0.0], treatment_to=[0.0, 0.8])
    np.testing.assert_allclose(effect, 0.64, atol=0.15)


@pytest.mark.contract
def test_it_says_what_it_compared_and_what_it_took() -> None:
    model = SieveIV(random_state=0).fit(drawn(2000, seed=0))
    choice = component(model).choice
    assert choice is not None
    assert model.sizes_.columns.tolist() == ["segments", "columns", "correlation", "contrast", "chosen"]
    assert model.sizes_.loc[model.sizes_["chosen"], "segments"].tolist() == [model.segments_]
    assert model.sizes_["correlation"].tolist() == list(choice.correlations)
    assert (model.sizes_["columns"] == model.sizes_["segments"] + 3).all()
    text = str(model.summary())
    for part in ("Structural columns", "Instrument columns", "Smallest canonical correlation", "Contrasts allowed", "Sizes"):
        assert part in text
    wider = component(model).undersmoothed
    assert wider is not None
    assert wider.basis.size == choice.sizes[choice.larger] > component(model).basis.size
    assert f"Segments for intervals          {choice.segments[choice.larger]}" in text
    same = SieveIV(segments=choice.segments[choice.larger]).fit(drawn(2000, seed=0))
    np.testing.assert_array_equal(component(same).coefficients, wider.coefficients)
    fixed = SieveIV(segments=3, instrument_segments=5).fit(drawn(2000, seed=0))
    assert component(fixed).choice is component(fixed).undersmoothed is None
    assert (component(fixed).basis.width, component(fixed).basis.instrument_width) == (6, 9)
    assert fixed.sizes_[["segments", "columns", "chosen"]].to_numpy().tolist() == [[3, 6, True]]


REFUSED: list[tuple[dict[str, Any], Callable[[pd.DataFrame], pd.DataFrame], list[str]]] = [
    (
        {},
        lambda f: f.assign(t=(f["t"] > 0).astype(float)),
        ["have 4 columns, of which 2 are independent", "'t' takes 2 values", "C(column)"],
    ),
    (
        {"segments": 2},
        lambda f: f.assign(z=(f["z"] > 0).astype(float)),
        ["has 5 columns, and the instruments and covariates tell 2 functions apart", "'z' takes 2 values", "more values"],
    ),
    ({}, lambda f: f.assign(z=f["z"].round(0)), ["has 4 columns", "tell 3 functions apart", "'z' takes 3 values"]),
    ({}, lambda f: f[:8], ["needs more rows than its 8 instrument columns, got 8 rows"]),
    ({"formula": "y ~ x + [t ~ z]"}, lambda f: f.assign(x=1.0), ["covariates 'x' is constant over 600 rows: drop it"]),
    (
        {"formula": "y ~ x + q + [t ~ z]"},
        lambda f: f.assign(q=2 * f["x"] + 1),
        ["have 6 columns, of which 5 are independent in these rows: use fewer segments"],
    ),
]


@pytest.mark.contract
@pytest.mark.parametrize(("arguments", "change", "says"), REFUSED)
def test_columns_that_do_not_determine_the_curve_are_refused(
    arguments: dict[str, Any], change: Callable[[pd.DataFrame], pd.DataFrame], says: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        SieveIV(**({"formula": "y ~ [t ~ z]"} | arguments)).fit(change(table()))
    assert [part for part in says if part not in str(caught.value)] == []


@pytest.mark.contract
def test_an_instrument_of_two_values_is_refused_in_every_draw() -> None:
    for seed in range(100):
        y, x, w = DESIGNS["sine"](300, seed=seed)
        for segments in ("auto", 2):
            with pytest.raises(DataError, match="tell 2 functions apart in these rows"):
                SieveIV(segments=segments).fit(IVData(outcome=y, treatment=x, instruments=w > 0))  # type: ignore[arg-type]


@pytest.mark.contract
def test_a_treatment_of_two_values_is_taken_as_a_category() -> None:
    frame = table().assign(t=lambda f: (f["t"] > 0).astype(float))
    sieve = SieveIV("y ~ [C(t) ~ z]", segments=1).fit(frame)
    plain = cfiv.TwoStageLeastSquares("y ~ [C(t) ~ bs(z, knots=[-.5, 0, .5], degree=4)]").fit(frame)
    effect = sieve.effect(frame, treatment_from=0, treatment_to=1)
    assert effect[0] == pytest.approx(plain.effect(frame, treatment_from=0, treatment_to=1)[0], abs=0.02)


@pytest.mark.contract
def test_images_are_refused() -> None:
    data = drawn(50, seed=0)
    with pytest.raises(DataError, match=r"SieveIV takes treatment columns, got arrays of shape \(2, 2\): flatten them"):
        SieveIV().fit(
            IVData(
                outcome=data.outcome, treatment=np.random.default_rng(0).normal(size=(50, 2, 2)), instruments=data.instruments
            )
        )


@pytest.mark.contract
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"segments": 0}, "segments must be a whole number between 1 and 1000, or 'auto', got 0"),
        ({"segments": "many"}, "segments must be a whole number between 1 and 1000, or 'auto', got 'many'"),
        ({"degree": 0}, "degree must be a whole number between 1 and 10, got 0"),
        ({"instrument_degree": 2.5}, "instrument_degree must be a whole number between 1 and 10, got 2.5"),
        ({"instrument_segments": 0}, "instrument_segments must be a whole number between 1 and 1000, or None for 4 times"),
        ({"structure": "product"}, "structure must be one of 'additive', 'tensor', 'linear', got 'product'"),
        ({"knots": "random"}, "knots must be 'uniform' or 'quantiles', got 'random'"),
        ({"draws": 99}, "draws must be a whole number between 100 and 1000000, got 99"),
        ({"random_state": -1}, "random_state must be a whole number >= 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        SieveIV(**arguments).fit(drawn(50, seed=0))
    assert says in str(caught.value)


@pytest.mark.contract
def test_a_model_file_keeps_the_bases_and_the_choice(tmp_path: Path) -> None:
    model = SieveIV("y ~ x + d + [t ~ z]", knots="quantiles", random_state=0).fit(table())
    model.save(tmp_path / "model")
    (loaded,) = cfiv.load(tmp_path / "model").components
    assert isinstance(loaded, SieveComponent)
    own = component(model)
    assert loaded.choice is not None
    assert own.choice is not None
    assert loaded.choice.allowance == own.choice.allowance
    assert vars(loaded.choice) | {"bases": None} == vars(own.choice) | {"bases": None}
    frame = table(40, seed=1)
    assert own.undersmoothed is not None
    assert loaded.undersmoothed is not None
    np.testing.assert_array_equal(loaded.undersmoothed.coefficients, own.undersmoothed.coefficients)
    bases = [(part.basis, part.undersmoothed.basis, *part.choice.bases) for part in (own, loaded)]
    for mine, theirs in zip(*bases, strict=True):
        arrays = frame[["t"]].to_numpy(), frame[["x", "d"]].to_numpy()
        np.testing.assert_array_equal(theirs.structural_columns(*arrays), mine.structural_columns(*arrays))
        np.testing.assert_array_equal(theirs.structural_derivative(*arrays, 0), mine.structural_derivative(*arrays, 0))
        given = frame[["z"]].to_numpy(), arrays[1]
        np.testing.assert_array_equal(theirs.instrument_columns(*given), mine.instrument_columns(*given))


def _changed(values: Any, path: list[Any], new: Any) -> Any:
    if not path:
        return new
    if isinstance(values, dict):
        return values | {path[0]: _changed(values[path[0]], path[1:], new)}
    parts = list(values)
    parts[path[0]] = _changed(parts[path[0]], path[1:], new)
    return parts


@pytest.mark.contract
@pytest.mark.parametrize(
    ("path", "new"),
    [
        (["coefficients"], np.zeros(3)),
        (["basis", "treatments"], []),
        (["basis", "instruments"], []),
        (["basis", "products"], 1),
        (["basis", "treatments", 0, "degree"], 0),
        (["basis", "treatments", 0, "high"], -1e9),
        (["basis", "treatments", 0, "inner"], [0.5, 0.5]),
        (["basis", "treatments", 0, "inner"], [1.0]),
        (["basis", "treatments", 0, "low"], float("nan")),
        (["choice", "segments"], [1]),
        (["choice", "threshold"], -1.0),
        (["choice", "larger"], -1),
        (["undersmoothed", "coefficients"], np.zeros(3)),
        (["undersmoothed", "kind"], "linear"),
        (["choice", "chosen"], 99),
        (["choice", "bases"], []),
        (["choice", "correlations", 0], -0.5),
    ],
)
def test_a_file_whose_values_make_no_sieve_is_not_believed(path: list[Any], new: Any) -> None:
    values: Any = component_to_values(component(SieveIV("y ~ x + [t ~ z]", random_state=0).fit(table())))
    values["choice"] |= {name: list(values["choice"][name]) for name in ("segments", "sizes", "correlations", "contrasts")}
    assert component_from_values(values, Inputs((1,), 1), {}).evaluate(np.zeros((1, 1)), np.zeros((1, 1))).shape == (1,)
    with pytest.raises(DAMAGE):
        component_from_values(_changed(values, path, new), Inputs((1,), 1), {})
