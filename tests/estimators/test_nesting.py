"""DFIV among nested models: the line where nothing speaks for more, what was learned where rows not seen speak for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cfiv
from cfiv import DFIV, IVData
from cfiv.datasets import demand
from cfiv.errors import ParameterError, WorthlessFitWarning
from cfiv.estimators.budget import number_of_fits, rate_of_long_runs, training_batch, training_steps
from cfiv.estimators.components import NetworkComponent, SmoothComponent
from cfiv.estimators.nesting import LearnedFunction, disagreement, weigh
from cfiv.estimators.smooth_model import SmoothModel
from cfiv.estimators.standardised import StandardisedData
from cfiv.estimators.trust import Trust
from cfiv.learning.samples import Split
from cfiv.numerics.smooth_basis import MOST_PRODUCTS, SmoothBasis
from cfiv.objectives.dfiv_fit import refit_elsewhere
from cfiv.studies.shipped.many_covariates import many_covariates


def straight(n: int, *, seed: int, strength: float = 1.0, effect: float = 1.0, covariates: int = 1) -> IVData:
    """``y = effect t + x + u + e``, ``t = strength z + u``."""
    generator = np.random.default_rng(seed)
    z, u, e = generator.normal(size=(3, n))
    x = generator.normal(size=(n, covariates))
    t = strength * z + u
    return IVData(outcome=effect * t + x[:, 0] + u + e, treatment=t[:, None], instruments=z[:, None], covariates=x)


def beside_many_covariates(**design: Any) -> tuple[IVData, Any]:
    """Arrays of the design of many covariates, and ``h`` at its rows."""
    rows, truth = many_covariates(**design)
    x = rows[[f"x{j + 1}" for j in range(design["covariates"])]].to_numpy()
    data = IVData(outcome=rows["y"], treatment=rows["t"], instruments=rows["z"], covariates=x)
    data.check_fittable()
    return data, truth(rows)


def smooth(data: IVData, *, products: bool = True) -> SmoothModel:
    data.check_fittable()
    model = SmoothModel.fit(data, np.random.default_rng(0), products=products)
    assert model is not None
    return model


def quick(**changes: Any) -> DFIV:
    return DFIV(progress=False, **({"steps": 20, "fits": 1, "random_state": 0} | changes))


class Shifted:
    """A function that adds a multiple of a curve in the treatment, or of its prediction, to another."""

    def __init__(self, model: SmoothModel, slope: float) -> None:
        self.model, self.slope = model, slope

    def evaluate(self, treatment: np.ndarray, covariates: np.ndarray | None) -> np.ndarray:
        return self.model.component().evaluate(treatment, covariates) + self.slope * np.sin(2 * treatment[:, 0])

    def cross(self, treatments: np.ndarray, covariates: np.ndarray | None) -> np.ndarray:
        return np.asarray(self.model.component().cross(treatments, covariates) + self.slope * np.sin(2 * treatments[:, :1]))


def bent(n: int, *, seed: int, bend: float) -> IVData:
    data = straight(n, seed=seed, strength=2.0)
    outcome = data.outcome + bend * np.sin(2 * data.treatment[:, 0])
    return IVData(outcome=outcome, treatment=data.treatment, instruments=data.instruments, covariates=data.covariates)


def evidence(data: IVData, slope: float) -> Any:
    """For an increment of a sine beside a line; its prediction given z, u being normal, is a sine of z as well."""
    line = smooth(data).line()
    unseen = np.arange(len(data)) % 2 == 0
    rows = np.random.default_rng(1).permutation(np.flatnonzero(unseen))

    def reduced(instruments: np.ndarray, covariates: np.ndarray | None) -> np.ndarray:
        predicted = np.exp(-2.0) * np.sin(4 * instruments[:, 0])
        return np.asarray(line.without(rows).reduced_form()(instruments, covariates) + slope * predicted)

    return weigh(data, line, [LearnedFunction(Shifted(line.without(rows), slope), reduced, rows)])


# The evidence


@pytest.mark.statistical
@pytest.mark.parametrize("bend", [0.0, 1.0, 3.0])
def test_the_share_is_that_of_the_increment_in_the_truth_whatever_its_confounding(bend: float) -> None:
    found = [evidence(bent(4000, seed=seed, bend=bend), slope=3.0) for seed in range(20)]
    mean = np.mean([one.share for one in found])
    error = np.std([one.share for one in found]) / math.sqrt(20)
    assert abs(mean - bend / 3.0) < 4 * error + 0.02
    inside = np.mean([abs(one.share - bend / 3.0) < 2 * one.std_error for one in found])
    assert inside >= 0.8


def test_an_increment_that_nothing_speaks_for_has_no_weight_and_one_that_is_the_truth_has_all() -> None:
    assert evidence(bent(4000, seed=0, bend=0.0), slope=3.0).weight == 0.0
    assert evidence(bent(4000, seed=0, bend=3.0), slope=3.0).weight == pytest.approx(1.0, abs=0.2)
    assert evidence(bent(4000, seed=0, bend=3.0), slope=-3.0).weight == 0.0


@pytest.mark.law
def test_functions_that_agree_are_without_noise_and_opposite_ones_are_nothing_else() -> None:
    data = straight(500, seed=0)
    model = smooth(data)
    assert disagreement(data, [model.component(), model.component()]) == pytest.approx(0.0)
    assert disagreement(data, [Shifted(model, 5.0), Shifted(model, -5.0)]) > 0.2
    assert math.isnan(disagreement(data, [model.component()]))


@pytest.mark.law
def test_of_functions_of_the_same_rows_many_that_vary_as_two_do_have_their_noise() -> None:
    data = straight(500, seed=0)
    model = smooth(data)
    two = [Shifted(model, slope) for slope in (5.0, -5.0)]
    eight = [Shifted(model, math.sqrt(7 / 4) * slope) for slope in (5.0, -5.0) * 4]  # of the same variance, by n - 1
    assert disagreement(data, eight) == pytest.approx(disagreement(data, two))


@pytest.mark.law
def test_functions_that_count_for_little_bring_little_noise() -> None:
    data = straight(500, seed=0)
    model = smooth(data)
    base, learned = model.component(), [Shifted(model, 5.0), Shifted(model, -5.0)]
    alone = disagreement(data, learned)
    assert disagreement(data, learned, base=base, weight=1.0) == alone
    # The mean of both is the base, whatever they count for: a tenth of them has a hundredth of the noise.
    assert disagreement(data, learned, base=base, weight=0.1) == pytest.approx(alone / 100)


# The smooth model


@pytest.mark.law
def test_the_smooth_model_is_the_same_in_other_units_and_with_weights_for_repeated_rows() -> None:
    data = straight(300, seed=0, covariates=2)
    changed = IVData(
        outcome=5 - 3 * data.outcome,
        treatment=1e3 * data.treatment + 7,
        instruments=-data.instruments / 40,
        covariates=data.covariates,
    )
    before, after = smooth(data).component(), smooth(changed).component()
    expected = 5 - 3 * before.evaluate(data.treatment, data.covariates)
    np.testing.assert_allclose(after.evaluate(changed.treatment, data.covariates), expected, rtol=0, atol=1e-6)


@pytest.mark.law
def test_without_rows_is_the_fit_to_the_others() -> None:
    data = straight(300, seed=0)
    model, rows = smooth(data), np.arange(0, 300, 4)
    again = model.without(rows)
    kept = np.setdiff1d(np.arange(300), rows)
    moments = model._moments(kept)
    np.testing.assert_allclose(again.moments.products, moments.products, rtol=1e-8, atol=1e-8)
    assert again.penalties is model.penalties


def test_crossing_treatments_with_covariates_evaluates_every_pair() -> None:
    data = straight(200, seed=0, covariates=3)
    component = smooth(data).component()
    crossed = component.cross(data.treatment[:7], data.covariates)
    for t, values in zip(data.treatment[:7], crossed, strict=True):
        np.testing.assert_allclose(values, component.evaluate(np.tile(t, (200, 1)), data.covariates), atol=1e-9)


@pytest.mark.statistical
def test_a_curve_is_found_beside_many_covariates_whatever_the_folds() -> None:
    """With one penalty for it and 200 products in stage 1 it was lost with some folds and kept with others."""
    data, h = beside_many_covariates(n=3000, covariates=200, truth="sine", seed=0)
    for folds in range(2):
        model = SmoothModel.fit(data, np.random.default_rng([0, folds]), products=True)
        assert model is not None
        errors = [one.component().evaluate(data.treatment, data.covariates) - h for one in (model, model.line())]
        assert np.mean(errors[0] ** 2) < 0.5 * np.mean(errors[1] ** 2)


@pytest.mark.statistical
def test_effects_that_vary_are_found_with_as_many_products_as_a_twentieth_of_the_rows() -> None:
    data, h = beside_many_covariates(n=1000, covariates=50, truth="effects vary, curved covariates", seed=1)
    model = smooth(data)
    errors = [one.component().evaluate(data.treatment, data.covariates) - h for one in (model, model.line())]
    assert "products" in model.describe()
    assert np.mean(errors[0] ** 2) < 0.6 * np.mean(errors[1] ** 2)


def test_products_beyond_what_memory_and_time_bear_are_left_out() -> None:
    generator = np.random.default_rng(0)
    t, z, x = (generator.normal(size=(20, k)) for k in (1, 1, MOST_PRODUCTS + 1))
    assert SmoothBasis.of(t, x[:, 1:], z, weights=np.ones(20), products=True).products
    assert not SmoothBasis.of(t, x, z, weights=np.ones(20), products=True).products


def test_images_and_instruments_that_move_nothing_have_no_smooth_model() -> None:
    generator = np.random.default_rng(0)
    images = IVData(outcome=np.ones(4), treatment=np.zeros((4, 5, 5)), instruments=np.ones((4, 1)))
    assert SmoothModel.fit(images, generator, products=True) is None
    data = straight(200, seed=0)
    two = np.concatenate([data.treatment, data.treatment**2], axis=1)
    assert (
        SmoothModel.fit(IVData(outcome=data.outcome, treatment=two, instruments=data.instruments), generator, products=True)
        is None
    )
    same = np.concatenate([data.instruments, 2 * data.instruments], axis=1)
    assert SmoothModel.fit(IVData(outcome=data.outcome, treatment=two, instruments=same), generator, products=True) is None


def test_more_columns_than_rows_and_constant_columns_are_borne() -> None:
    generator = np.random.default_rng(0)
    data = straight(60, seed=0)
    for x in (generator.normal(size=(60, 80)), np.concatenate([np.ones((60, 1)), data.covariates], axis=1)):
        wide = IVData(outcome=data.outcome, treatment=data.treatment, instruments=data.instruments, covariates=x)
        model = quick().fit(wide)
        assert np.isfinite(model.predict(treatment=data.treatment, covariates=x)).all()


# DFIV


@pytest.mark.statistical
def test_a_linear_truth_gives_a_line_and_about_the_effect_of_two_stage_least_squares() -> None:
    errors, lines = [], 0
    for seed in range(4):
        data = straight(600, seed=seed)
        model = quick(random_state=seed).fit(data)
        lines += model.trust_.line
        errors.append(float(model.effect(data, treatment_from=0.0, treatment_to=1.0).mean()) - 1.0)
    assert lines >= 3
    assert np.sqrt(np.mean(np.square(errors))) < 0.12


def test_where_the_smooth_model_is_poor_what_was_learned_prevails_and_without_nesting_it_is_all() -> None:
    train, truth = demand.simulate(1000, seed=0)
    nested = DFIV(demand.FORMULA, steps=150, fits=1, progress=False, random_state=0).fit(train.frame)
    alone = DFIV(demand.FORMULA, steps=150, fits=1, progress=False, random_state=0, nested=False).fit(train.frame)
    assert nested.trust_.learned_share > 0.5
    kinds = [type(component) for component in nested.structural_function_.components]
    assert kinds in ([SmoothComponent, NetworkComponent, NetworkComponent], [NetworkComponent, NetworkComponent])
    assert [type(component) for component in alone.structural_function_.components] == [NetworkComponent, NetworkComponent]
    assert truth.error(nested) < 3 * truth.error(alone)


@pytest.mark.parametrize("share", ["smooth", "mixture"])
def test_a_model_file_holds_the_smooth_model_and_what_each_part_counts_for(share: str, tmp_path: Path) -> None:
    if share == "smooth":
        data = straight(300, seed=0, covariates=2)
        model = quick().fit(data)
        function, rows = model.structural_function_, data
    else:
        train, _ = demand.simulate(600, seed=0)
        model = DFIV(demand.FORMULA, steps=100, fits=1, progress=False, random_state=0).fit(train.frame)
        function, rows = model.structural_function_, train.frame
        assert len(function.shares) == len(function.components) == 3
        assert sum(function.shares) == pytest.approx(1.0)
    model.save(tmp_path / "model.cfiv")
    loaded = cfiv.load(tmp_path / "model.cfiv")
    assert loaded.shares == function.shares
    np.testing.assert_array_equal(loaded.predict(rows), model.predict(rows))
    assert loaded.facts["Trust"] == str(model.trust_)


def test_the_same_seed_gives_the_same_numbers() -> None:
    data = straight(300, seed=0)
    first, second = (quick(random_state=3).fit(data).predict(data) for _ in range(2))
    np.testing.assert_array_equal(first, second)


# What it says of itself


@pytest.mark.statistical
@pytest.mark.parametrize("case", ["irrelevant instrument", "noise"])
def test_worthless_fits_are_flagged(case: str) -> None:
    flagged = 0
    for seed in range(10):
        strength, effect = (0.0, 1.0) if case == "irrelevant instrument" else (1.0, 0.0)
        data = straight(400, seed=seed, strength=strength, effect=effect)
        flagged += not quick(random_state=seed).fit(data).trust_.trusted
    assert flagged >= 9


@pytest.mark.statistical
def test_good_fits_are_not() -> None:
    assert all(quick(random_state=seed).fit(straight(500, seed=seed)).trust_.trusted for seed in range(6))


@pytest.mark.statistical
def test_a_good_fit_with_many_covariates_is_not_flagged_and_predicts_better_than_the_line() -> None:
    """Three of 20 matter. By regressions on all columns without a penalty such fits predict no better than the line."""
    for seed in range(2):
        generator = np.random.default_rng(seed)
        z, u, e = generator.normal(size=(3, 800))
        x = generator.normal(size=(800, 20))
        outcome = z + 2 * u + np.sin(2 * x[:, 0]) + x[:, 1] ** 2 / 2 + np.abs(x[:, 2]) + e
        data = IVData(outcome=outcome, treatment=z + u, instruments=z, covariates=x)
        trust = quick(random_state=seed).fit(data).trust_
        assert trust.trusted
        assert not trust.line
        assert trust.above_line < -2.0


def test_a_worthless_fit_warns_with_its_reasons() -> None:
    with pytest.warns(WorthlessFitWarning, match=r"hardly move the treatment \(F = .*below 10"):
        model = quick().fit(straight(300, seed=1, strength=0.0))
    assert "Trust" in str(model.summary())


@pytest.mark.law
def test_nothing_is_promised_of_an_average_effect_by_weak_instruments() -> None:
    assert "known far better" not in str(Trust(strength=3.0, noise=0.5))
    assert "known far better" in str(Trust(strength=100.0, noise=0.5))


@pytest.mark.law
@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"strength": 3.0}, "hardly move"),
        ({"noise": 0.5}, "the average effect may be known far better"),
        ({"noise": 0.5, "line": True}, "not told from a flat one (50% of its square may be sampling noise"),
        ({"noise": 1.02, "line": True}, "(100% of its square may be"),
        ({"noise": 2.57, "line": True}, "(as much as 2.6 times its square may be sampling noise, more than 15%)"),
        ({"noise": 2.57}, "may be sampling noise (as much as 2.6 times its variation over the rows, more than 15%)"),
        ({"noise": math.inf}, "(more than 99 times its variation over the rows,"),
        ({"above_constant": 3.0}, "worse than a constant"),
        ({"above_line": 3.0}, "worse than a line"),
        ({"left": 2.0}, "moves with the instruments"),
    ],
)
def test_each_reason_has_its_words_and_no_number_none(found: dict[str, Any], words: str) -> None:
    assert words in str(Trust(**found))
    assert Trust().trusted
    assert str(Trust()) == "nothing speaks against it"


# The budget


@pytest.mark.law
def test_the_budget_grows_with_the_rows() -> None:
    sizes = (100, 1000, 5000, 20_000, 100_000, 1_000_000)
    steps = [training_steps("auto", rows=n) for n in sizes]
    assert steps == sorted(steps)
    assert steps[:3] == [500, 500, 500]
    fits = [number_of_fits("auto", rows=n, images=False) for n in sizes]
    assert fits == [4, 4, 2, 1, 1, 1]
    batches = [
        training_batch("auto", rows=n, fits=f, smallest_sample=n // 2, images=False) for n, f in zip(sizes, fits, strict=True)
    ]
    assert batches == [50, 128, 250, 1024, 1024, 1024]
    assert training_batch("auto", rows=5000, fits=1, smallest_sample=2500, images=True) == 128


def test_long_runs_take_smaller_steps() -> None:
    assert [rate_of_long_runs(steps) for steps in (0, 100, 500, 2000, 50_000)] == [1.0, 1.0, 1.0, 0.5, 0.1]
    train, _ = demand.simulate(n=200, rho=0.5, seed=0)
    short = {"batch_size": 16, "fits": 1, "swap": False, "nested": False, "progress": False, "random_state": 0}
    rates = ("auto", 0.04 * math.sqrt(500 / 600))
    fits = [DFIV(demand.FORMULA, steps=600, learning_rate=rate, **short).fit(train).predict(train) for rate in rates]
    np.testing.assert_array_equal(*fits)


@pytest.mark.parametrize("name", ["steps", "fits"])
def test_words_other_than_auto_are_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name} .*or 'auto'"):
        quick(**{name: "many"}).fit(straight(100, seed=0))


def test_a_comparison_says_which_fits_may_be_believed() -> None:
    models = {
        "good": quick().fit(straight(400, seed=0)),
        "worthless": quick().fit(straight(400, seed=0, strength=0.0)),
    }
    assert cfiv.compare(models).table["trusted"].to_dict() == {"good": "yes", "worthless": "no"}
    plain = {"2SLS": cfiv.TwoStageLeastSquares().fit(straight(400, seed=0))}
    assert "trusted" not in cfiv.compare(plain).table
    assert cfiv.compare(models | plain).table["trusted"].to_dict()["2SLS"] == ""


@pytest.mark.law
def test_a_generator_is_the_source_of_the_same_draws_as_its_seed() -> None:
    train, _ = demand.simulate(300, seed=0)
    fits = [
        DFIV(demand.FORMULA, steps=40, fits=1, progress=False, random_state=source).fit(train.frame).predict(train.frame)
        for source in (5, np.random.default_rng(5))
    ]
    np.testing.assert_array_equal(*fits)


def repeated(data: IVData, times: int, **more: Any) -> IVData:
    parts = {
        role: np.repeat(getattr(data, role), times, axis=0) for role in ("outcome", "treatment", "instruments", "covariates")
    }
    return IVData(**parts, **more)


@pytest.mark.law
def test_repeated_rows_of_a_cluster_are_no_news() -> None:
    """But for the factor that small samples have in linear models: of rows and columns."""
    data = straight(60, seed=0)
    once = smooth(repeated(data, 1, clusters=np.arange(60)))
    many = smooth(repeated(data, 10, clusters=np.repeat(np.arange(60), 10)))
    many = replace(many, penalties=once.penalties, basis=once.basis)
    many = replace(many, moments=many._moments(np.arange(600)))
    kept = int(np.isfinite(once.penalties.diagonal).sum())
    factors = [rows / (rows - kept) for rows in (60, 600)]
    assert many.noise() / factors[1] == pytest.approx(once.noise() / factors[0], rel=1e-6)
    assert many.strength() == pytest.approx(once.strength(), rel=1e-6)
    assert smooth(data).strength() == pytest.approx(once.strength(), rel=0.5)


@pytest.mark.oracle
@pytest.mark.parametrize("second", [0.0, 1.0])
def test_strength_is_that_of_the_weakest_direction_of_several_treatments(second: float) -> None:
    z, u = np.random.default_rng(0).normal(size=(2, 2000, 2))
    t = np.stack([z[:, 0] + u[:, 0], z[:, 0] + second * z[:, 1] + u[:, 1]], axis=1)
    data = IVData(outcome=t.sum(axis=1) + u.sum(axis=1), treatment=t, instruments=z)
    found = smooth(data).strength()
    assert found > 100 if second else found < 10


def test_where_columns_reach_the_rows_no_strength_is_claimed() -> None:
    for seed in range(3):
        with_noise = straight(40, seed=seed, strength=0.0, covariates=38)
        trust = quick(random_state=seed).fit(with_noise).trust_
        assert not trust.trusted
        assert not trust.strength > 10


def test_one_value_far_from_all_others_is_borne() -> None:
    data = straight(200, seed=0)
    far = data.treatment.copy()
    far[7] = 1e120
    model = quick().fit(IVData(outcome=data.outcome, treatment=far, instruments=data.instruments, covariates=data.covariates))
    assert np.isfinite(model.predict(treatment=data.treatment, covariates=data.covariates)).all()


@pytest.mark.statistical
def test_a_line_predicts_from_instruments_as_two_stage_least_squares_does() -> None:
    for seed in range(4):
        data, fresh = straight(80, seed=seed), straight(2000, seed=100 + seed)
        model = quick(random_state=seed).fit(data)
        if model.trust_.line:
            assert model.score(fresh) == pytest.approx(cfiv.TwoStageLeastSquares().fit(data).score(fresh), abs=0.05)


@pytest.mark.law
def test_functions_solved_elsewhere_bear_the_users_unpredicted_penalty() -> None:
    drawn = straight(200, seed=0)
    data = IVData(outcome=drawn.outcome, treatment=drawn.treatment, instruments=drawn.instruments)
    fitted = quick(nested=False, swap=False).fit(data).fits_[0]
    data.check_fittable()
    problem = StandardisedData.prepare(data, device=torch.device("cpu"), double=False, standardise=True)
    split = Split(stage1=torch.arange(100), stage2=torch.arange(100, 200), heldout=None)
    sizes = []
    for penalty in (0.0, 1.0, 1e6):
        elsewhere = refit_elsewhere(fitted, problem.sample, split, unpredicted_penalty=penalty)
        sizes.append(float(elsewhere.structural[:-1].norm()))
    assert sizes[0] > sizes[1] > 100 * sizes[2]
