"""``cfiv.infer``: what questions have in common, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import cfiv
from cfiv import DataError, Inference, IVData, LeastSquares, NotFittedError, ParameterError, TwoStageLeastSquares
from cfiv.errors import CfivError, CfivWarning, FewClustersWarning, MissingRowsWarning, ModelFileError, SingularError
from cfiv.inference import functionals, row_blocks
from cfiv.inference.estimates import Estimates
from cfiv.inference.linear_in_basis import FormulaBasis
from cfiv.inference.row_blocks import blocks_of
from cfiv.inference.simultaneous import Multipliers
from cfiv.inference.two_stage import Outcome, TwoStage
from tests.inference.problems import CURVE, LINE, table, two_ways
from tests.latex import assert_compilable

GRID = np.linspace(-2, 2, 9)
#: Sums in another order.
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return table()


@pytest.fixture(scope="module")
def curve(frame: pd.DataFrame) -> Inference:
    return cfiv.infer(frame, TwoStageLeastSquares(CURVE).fit(frame))


@pytest.mark.law
def test_estimates_are_those_of_the_model(frame: pd.DataFrame) -> None:
    for formula in (LINE, CURVE, "y ~ x + [t + t:x ~ z + z:x + q]", "y ~ 0 + x + [t ~ z]", "y ~ x + [t ~ C(region):z]"):
        model = TwoStageLeastSquares(formula).fit(frame)
        inference = cfiv.infer(frame, model)
        for mine, its in (
            (inference.predict(frame), model.predict(frame)),
            (inference.dose_response(GRID), model.dose_response(GRID)["estimate"]),
            (inference.dose_response(GRID, frame), model.dose_response(GRID, frame)["estimate"]),
            (
                inference.effect(treatment_from=0, treatment_to=frame["t"].clip(-2, 2), rows=frame),
                [model.effect(frame, treatment_from=0, treatment_to=frame["t"].clip(-2, 2)).mean()],
            ),
        ):
            np.testing.assert_allclose(mine.values, its, rtol=1e-9, atol=1e-9)


@pytest.mark.law
def test_effects_by_group_are_those_of_a_fit_to_each_group_where_everything_differs_by_group(frame: pd.DataFrame) -> None:
    formula = "y ~ C(region) + x:C(region) + [t:C(region) ~ z:C(region)]"
    inference = cfiv.infer(frame, TwoStageLeastSquares(formula).fit(frame))
    found = inference.effect(treatment_from=0, treatment_to=2, rows=frame, by="region")
    for name in ("estimate", "supported", "t_from"):
        with pytest.raises(DataError, match=f"groups by '{name}' would hide a column of the table"):
            inference.effect(treatment_from=0, treatment_to=2, rows=frame.assign(**{name: frame["region"]}), by=name)
    assert found.table["region"].tolist() == sorted(frame["region"].unique())
    for i, (region, own) in enumerate(frame.groupby("region")):
        alone = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(own)
        assert found.table["rows"][i] == len(own)
        assert found.values[i] == pytest.approx(2 * alone.coefficients_.loc["t", "coefficient"], rel=1e-8)
        assert found.std_errors[i] == pytest.approx(2 * alone.coefficients_.loc["t", "std_error"], rel=1e-8), region
        other = inference.effect(treatment_from=0, treatment_to=2, rows=own)
        assert (other.values[0], other.std_errors[0]) == pytest.approx((found.values[i], found.std_errors[i]), rel=1e-9)
    overall = inference.effect(treatment_from=0, treatment_to=2, rows=frame)
    assert np.average(found.values, weights=found.table["rows"]) == pytest.approx(overall.values[0])
    assert (found - overall).test().df == len(found) - 1


@pytest.mark.law
def test_groups_have_their_own_treatments_where_each_row_has(frame: pd.DataFrame, curve: Inference) -> None:
    to = frame["t"].clip(-2, 2)
    found = curve.effect(treatment_from=0, treatment_to=to, rows=frame, by=frame["region"])
    for i, (_, own) in enumerate(frame.groupby("region")):
        alone = curve.effect(treatment_from=0, treatment_to={"t": to.loc[own.index]}, rows=own)
        assert (found.values[i], found.std_errors[i]) == pytest.approx((alone.values[0], alone.std_errors[0]), rel=1e-9)
        assert found.supported[i] == alone.supported[0]
    assert (found.table["t_to"] == "by row").all()
    with pytest.raises(DataError, match="groups need column 'region'"):
        curve.effect(treatment_from=0, treatment_to=1, by="region")  # the rows that are kept have what predictions need


@pytest.mark.law
@pytest.mark.parametrize(
    "term", ["bs(t, df=5)", "poly(t, 3)", "np.exp(t / 4)", "t + I(t ** 2)", "bs(t, df=6, degree=2)", "t + t:x"]
)
def test_the_average_derivative_is_that_of_the_model(frame: pd.DataFrame, term: str) -> None:
    model = LeastSquares(f"y ~ x + [{term} ~ z]").fit(frame)
    least, greatest = frame["t"].min(), frame["t"].max()
    up, down = (frame.assign(t=(frame["t"] + step).clip(least, greatest)) for step in (1e-5, -1e-5))
    expected = ((model.predict(up) - model.predict(down)) / (up["t"] - down["t"])).mean()
    found = cfiv.infer(frame, model)
    for answer in (found.average_derivative(), found.average_derivative(frame)):
        np.testing.assert_allclose(answer.values, [expected], rtol=1e-6)  # of the differences to compare with
    moved = found.functional(lambda h: ((h(up) - h(down)) / (up["t"] - down["t"]).to_numpy()).mean())
    np.testing.assert_allclose(found.average_derivative().std_errors, moved.std_errors, rtol=1e-5)


@pytest.mark.law
def test_differences_and_joint_answers_are_functionals_themselves(frame: pd.DataFrame, curve: Inference) -> None:
    effect = curve.effect(treatment_from=-1, treatment_to=1)
    ends = curve.dose_response([-1.0, 1.0])
    difference = curve.dose_response([1.0]) - curve.dose_response([-1.0])
    np.testing.assert_allclose(difference.values, effect.values, rtol=ROUNDING)
    np.testing.assert_allclose(difference.std_errors, effect.std_errors, rtol=1e-9)
    np.testing.assert_allclose(ends.covariance, ends.covariance.T, rtol=ROUNDING)
    variance = ends.covariance[0, 0] + ends.covariance[1, 1] - 2 * ends.covariance[0, 1]
    np.testing.assert_allclose(effect.std_errors**2, [variance], rtol=1e-8)
    from_zero = curve.dose_response(GRID) - curve.dose_response([0.0])
    assert from_zero.values[4] == from_zero.std_errors[4] == 0
    assert np.isfinite(from_zero.critical_value)
    assert list(from_zero.points.columns) == ["t", "less t"]
    both = effect.beside(curve.average_derivative())
    assert both.table["question"].tolist() == ["effect", "average derivative"]
    assert both.test().df == 2


@pytest.mark.law
def test_a_joint_test_of_more_points_than_the_basis_has_functions_counts_those(curve: Inference) -> None:
    many = curve.dose_response(np.linspace(-2, 2, 30))
    few = curve.dose_response([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert few.test(few.values).stat == 0
    assert many.test().df == len({round(t, 9) for t in few.points["t"]}) == 5  # a constant and four splines
    np.testing.assert_allclose(many.test().stat, few.test().stat, rtol=1e-6)
    effect, derivative = curve.effect(treatment_from=0, treatment_to=1), curve.average_derivative()
    tiny = curve.effect(treatment_from=0, treatment_to=1e-9)
    assert effect.beside(derivative).beside(tiny).test().df == 3, "whatever their units"
    with pytest.raises(SingularError, match="nothing in the estimates is random"):
        (effect - effect).test()
    with pytest.raises(ParameterError, match="no function of the basis has these values"):
        many.test(np.arange(30) % 2)
    with pytest.raises(ParameterError, match="one for each of the 30"):
        many.test([1.0, 2.0])


@pytest.mark.statistical
def test_a_band_of_one_point_is_the_pointwise_interval_to_the_noise_of_the_draws(frame: pd.DataFrame) -> None:
    model = TwoStageLeastSquares(CURVE).fit(frame)
    for level in (0.5, 0.9, 0.95, 0.99):
        inference = cfiv.infer(frame, model, level=level, draws=40_000, random_state=1)
        found = inference.dose_response([0.5]).critical_value
        pointwise = stats.norm.ppf(0.5 + level / 2)
        noise = np.sqrt(level * (1 - level) / 40_000) / (2 * stats.norm.pdf(pointwise))
        assert abs(found - pointwise) < 4 * noise
    small = TwoStageLeastSquares(LINE, debiased=True).fit(frame.head(12))
    with_t = cfiv.infer(frame.head(12), small, draws=100_000).effect(treatment_from=0, treatment_to=1)
    assert abs(with_t.critical_value / stats.t.ppf(0.975, 12 - 3) - 1) < 0.02


@pytest.mark.law
def test_bands_hold_intervals_grow_with_points_and_level_and_repeat_with_the_seed(
    frame: pd.DataFrame, curve: Inference
) -> None:
    few, many = curve.dose_response([-1.0, 1.0]), curve.dose_response(GRID)
    table = many.table
    assert stats.norm.ppf(0.975) < few.critical_value < many.critical_value
    assert (table["band_lower"] < table["lower"]).all()
    assert (table["upper"] < table["band_upper"]).all()
    np.testing.assert_allclose(table["upper"] - table["estimate"], stats.norm.ppf(0.975) * table["std_error"], rtol=ROUNDING)
    wide, narrow = many.conf_int(0.99), many.conf_int(0.5)
    assert ((wide["band_lower"] < table["band_lower"]) & (table["band_lower"] < narrow["band_lower"])).all()
    pd.testing.assert_frame_equal(many.conf_int(), table[["lower", "upper", "band_lower", "band_upper"]])
    model = TwoStageLeastSquares(CURVE).fit(frame)
    assert cfiv.infer(frame, model).dose_response(GRID).critical_value == many.critical_value
    assert cfiv.infer(frame, model, random_state=1).dose_response(GRID).critical_value != many.critical_value


@pytest.mark.oracle
def test_the_critical_value_of_independent_points_is_sidaks() -> None:
    multipliers = Multipliers(level=0.95, draws=200_000, seed=0)
    sidak = stats.norm.ppf(0.5 + 0.95 ** (1 / 8) / 2)
    assert abs(multipliers.simultaneous([np.eye(8)], 0.95) - sidak) < 0.01
    assert multipliers.simultaneous([np.eye(8)[:3], np.eye(8)[3:]], 0.95) == multipliers.simultaneous([np.eye(8)], 0.95)
    wider = dataclasses.replace(multipliers, allowance=0.5)
    assert wider.simultaneous([np.eye(8)], 0.95) == multipliers.simultaneous([np.eye(8)], 0.95) + 0.5


@pytest.mark.slow
@pytest.mark.statistical
def test_intervals_and_bands_cover_a_linear_truth() -> None:
    """400 samples; a level of 95 % is within .95 +- .033 (three standard deviations), a band that of its own."""
    inside = np.zeros((400, 3))
    for seed in range(400):
        generator = np.random.default_rng(seed)
        z, x, u, noise = generator.normal(size=(4, 400))
        t = z + u
        y = 1 + t + x - u + np.sqrt(1 + z**2) * noise
        data = IVData(outcome=y, treatment=np.stack([t, t**2], axis=1), instruments=np.stack([z, z**2], axis=1), covariates=x)
        inference = cfiv.infer(data, TwoStageLeastSquares().fit(data), draws=500)
        grid = np.linspace(-2, 2, 21)
        band = inference.dose_response(np.stack([grid, grid**2], axis=1), data).table
        truth = 1 + grid + x.mean()
        derivative = inference.average_derivative().table.iloc[0]
        inside[seed] = (
            ((band["band_lower"] <= truth) & (truth <= band["band_upper"])).all(),
            ((band["lower"] <= truth) & (truth <= band["upper"])).mean(),
            derivative["lower"] <= 1 <= derivative["upper"],
        )
    coverage = inside.mean(axis=0)
    assert (np.abs(coverage - 0.95) < 0.033).all(), coverage


@pytest.mark.law
def test_points_beyond_the_treatments_of_training_are_marked(frame: pd.DataFrame) -> None:
    model = TwoStageLeastSquares("y ~ x + [t + I(t**2) ~ z + q + r]").fit(frame)
    inference = cfiv.infer(frame, model)
    least, greatest = frame["t"].min(), frame["t"].max()
    room = 0.2 * (greatest - least)  # support is of ranges that are a little widened
    found = inference.dose_response([least - room, 0.0, greatest + room], frame)
    assert found.supported.tolist() == [False, True, False]
    assert inference.predict(frame).supported.all(), "those of training are where training was"
    assert inference.average_derivative().supported.all()
    assert not inference.average_derivative(frame.assign(t=greatest + room)).supported.any()
    assert not inference.predict(frame.head(1).assign(x=100.0)).supported.any(), "by its leverage"
    assert not inference.effect(treatment_from=0, treatment_to=greatest + 1).supported.any()
    assert not inference.functional(lambda h: h(frame.assign(t=greatest + 1)).mean()).supported.any()


@pytest.mark.law
def test_supported_is_what_the_structural_function_says_where_no_leverage_is_larger_than_in_training() -> None:
    """Two groups with treatments of their own: each was seen, the treatments of one in the other were not."""
    generator = np.random.default_rng(0)
    x, z, u = generator.integers(0, 2, 1000), *generator.uniform(size=(2, 1000))
    frame = pd.DataFrame({"x": x, "z": z, "t": 3 * x + 0.7 * z + 0.3 * u, "y": u})
    model = TwoStageLeastSquares("y ~ C(x) + [t ~ z]").fit(frame)
    asked = pd.DataFrame({"x": [0, 0, 0, 1, 1, 1], "t": [0.5, 1.8, 3.5, 0.5, 1.8, 3.5]})
    inference = cfiv.infer(frame, model)
    seen = model.structural_function_.supported(asked)
    assert seen.tolist() == [True, False, False, False, False, True]
    assert inference.predict(asked).supported.tolist() == seen.tolist()
    for group, expected in ((0, [True, False, False]), (1, [False, False, True])):
        rows = frame[frame["x"] == group]
        assert inference.dose_response([0.5, 1.8, 3.5], rows).supported.tolist() == expected
        with pytest.warns(cfiv.errors.UnsupportedTreatmentWarning):
            assert model.dose_response([0.5, 1.8, 3.5], rows)["supported"].tolist() == expected
    everywhere = inference.dose_response([0.5, 1.8, 3.5])
    assert not everywhere.supported[1]


@pytest.mark.law
def test_columns_that_stop_at_the_ends_of_the_range_are_not_seen_beyond_it(frame: pd.DataFrame) -> None:
    model = TwoStageLeastSquares("y ~ [bs(t, df=4, extrapolation='clip') ~ bs(z, df=5)]").fit(frame)
    greatest = float(frame["t"].max())
    assert cfiv.infer(frame, model).dose_response([0.0, 2 * greatest]).supported.tolist() == [True, False]


@pytest.mark.law
def test_weak_instruments_are_said(frame: pd.DataFrame) -> None:
    generator = np.random.default_rng(0)
    z, u = generator.normal(size=(2, 1000))
    weak = pd.DataFrame({"z": z, "t": 0.05 * z + u, "y": u})
    said = cfiv.infer(weak, TwoStageLeastSquares("y ~ [t ~ z]").fit(weak))
    assert said.strength is not None
    assert said.strength.is_weak
    assert "the instruments may be weak" in str(said)
    strong = cfiv.infer(frame, TwoStageLeastSquares("y ~ x + s + [t ~ z + q + r]").fit(frame))
    assert strong.notes == ()
    assert "Note" not in str(strong)
    ignored = cfiv.infer(frame, LeastSquares(LINE).fit(frame))
    assert ignored.strength is None
    assert "not of the structural function" in str(ignored)


@pytest.mark.statistical
def test_what_cannot_be_trusted_is_refused_flagged_or_marked_in_every_one_of_100_samples() -> None:
    """An instrument of two values, one with a correlation of .05, and a treatment beyond those seen."""
    for seed in range(100):
        generator = np.random.default_rng(seed)
        z, u = generator.normal(size=(2, 1000))
        two = IVData(outcome=u, treatment=np.stack([z + u, (z + u) ** 2], axis=1), instruments=z > 0)
        with pytest.raises(DataError, match="at least as many instruments as treatments"):
            TwoStageLeastSquares().fit(two)
        t = 0.05 * z + np.sqrt(1 - 0.05**2) * u
        data = IVData(outcome=u, treatment=t, instruments=z)
        inference = cfiv.infer(data, TwoStageLeastSquares().fit(data), draws=100)
        assert inference.law.doubtful
        assert inference.notes
        answer = inference.dose_response([t.min() - 0.2 * np.ptp(t), 0.0, t.max() + 0.2 * np.ptp(t)])
        assert answer.supported.tolist() == [False, True, False]


@pytest.mark.law
def test_a_basis_that_the_instruments_do_not_move_has_no_band() -> None:
    """What a fit would refuse before: asked of the numbers themselves."""
    z, u = np.random.default_rng(0).normal(size=(2, 200))
    t = z + u
    data = IVData(outcome=u, treatment=np.stack([t, t**2, t**3], axis=1), instruments=np.stack([z, 2 * z, -z], axis=1))
    for instruments, words in ((data.instruments, "move 2 of the 4 functions"), (None, None)):
        given = IVData(outcome=u, treatment=data.treatment, instruments=data.treatment if instruments is None else instruments)
        (blocks,) = blocks_of(given, (FormulaBasis(True),), instrumented=True)
        outcome = Outcome.of(u, root=blocks.root, centred=True)
        if words is None:
            assert TwoStage.of(blocks, outcome).instruments == 4
        else:
            with pytest.raises(DataError, match=words):
                TwoStage.of(blocks, outcome)


@pytest.mark.law
def test_blocks_of_rows_make_no_difference(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TwoStageLeastSquares(CURVE, weights="w").fit(frame)
    for options in ({}, {"covariance": "unadjusted"}, {"clusters": ["group", "region2"]}):
        rows = frame.assign(region2=np.arange(300) % 20)
        whole = cfiv.infer(rows, model, **options)  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            patched.setattr(row_blocks, "BLOCK", 17 * 50)
            patched.setattr(functionals, "BLOCK", 7 * 30)
            parts = cfiv.infer(rows, model, **options)  # type: ignore[arg-type]
            answers = parts.dose_response(GRID), parts.average_derivative()
        for one, other in zip(answers, (whole.dose_response(GRID), whole.average_derivative()), strict=True):
            np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
            np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(parts.seen.leverage, whole.seen.leverage, rtol=1e-9)


@pytest.mark.oracle
def test_the_strength_of_one_line_is_its_first_stage_f(frame: pd.DataFrame) -> None:
    model = TwoStageLeastSquares(LINE, covariance="unadjusted").fit(frame)
    strength = cfiv.infer(frame, model).strength
    assert strength is not None
    expected = model.results_.first_stage.diagnostics["f.stat"].iloc[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(strength.least_f * (len(frame) - 5) / len(frame), expected, rtol=1e-9)
    assert strength.leading == strength.least
    report = cfiv.diagnose(frame, "y ~ [t ~ z]").effective_f
    alone = cfiv.infer(frame, TwoStageLeastSquares("y ~ [t ~ z]").fit(frame)).strength
    assert alone is not None
    np.testing.assert_allclose(alone.critical_value, report.critical_value, rtol=1e-6)  # type: ignore[union-attr]


@pytest.mark.law
def test_saved_and_loaded_it_answers_bit_for_bit_without_data(frame: pd.DataFrame, tmp_path: Path) -> None:
    data = IVData(outcome=frame["y"], treatment=frame[["t"]], instruments=frame[["z"]], covariates=frame[["x"]])
    rows = {"table": frame.head(5), "arrays": IVData(treatment=frame[["t"]].head(5), covariates=frame[["x"]].head(5))}
    made = {
        "table": cfiv.infer(frame, TwoStageLeastSquares(CURVE, debiased=True).fit(frame), clusters="group", level=0.9),
        "arrays": cfiv.infer(data, LeastSquares().fit(data)),
    }
    for name, inference in made.items():
        inference.save(tmp_path / name)
        same = Inference.load(tmp_path / name)
        assert str(same) == str(inference)
        for one, other in (
            (same.dose_response(GRID), inference.dose_response(GRID)),
            (same.effect(treatment_from=0, treatment_to=1), inference.effect(treatment_from=0, treatment_to=1)),
            (same.average_derivative(), inference.average_derivative()),
            (same.predict(rows[name]), inference.predict(rows[name])),
        ):
            pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
    kinds = frame.assign(kind=np.where(frame["t"] > 0, "high", "low"))
    made["categories"] = cfiv.infer(kinds, LeastSquares("y ~ x + [C(kind) ~ z]").fit(kinds))
    made["categories"].save(tmp_path / "categories")
    answers = [one.dose_response(["low", "high"]) for one in (made["categories"], Inference.load(tmp_path / "categories"))]
    pd.testing.assert_frame_equal(answers[0].table, answers[1].table, check_exact=True)
    whole = (tmp_path / "table").read_bytes()
    place = whole.index(b"multipliers")
    (tmp_path / "damaged").write_bytes(whole[:place] + b"M" + whole[place + 1 :])
    made["table"].function.save(tmp_path / "model")
    for path, words in (
        ("damaged", "changed since"),
        ("model", "is no inference file, but another file of cfiv.*or read it with cfiv.load"),
        ("none", "there is no inference file"),
    ):
        with pytest.raises(ModelFileError, match=words):
            Inference.load(tmp_path / path)
    with pytest.raises(ModelFileError):
        cfiv.load(tmp_path / "table")


@pytest.mark.contract
def test_every_answer_prints_writes_and_is_frozen(frame: pd.DataFrame, curve: Inference) -> None:
    answers: list[Estimates] = [
        curve.effect(treatment_from=0, treatment_to=1),
        curve.average_derivative(),
        curve.dose_response(GRID),
        curve.predict(frame.head(3)),
        curve.functional(lambda h: pd.Series([h(frame).mean(), h(frame.head(9)).mean()], index=["all", "few"])),
    ]
    assert answers[-1].table["functional"].tolist() == ["all", "few"]
    for answer in answers:
        table = answer.table
        band = ["band_lower", "band_upper", "critical_value"] * (len(answer) > 1)
        assert list(table.columns) == [*answer.points, "estimate", "std_error", "lower", "upper", *band, "supported"]
        assert np.isfinite(table.drop(columns=list(answer.points)).to_numpy(dtype=float)).all()
        for text in (str(answer), answer.to_markdown(), answer._repr_html_()):
            assert len(text.splitlines()) >= len(table) or "<td" in text
            for column in ("estimate", "upper"):
                assert column in text
        assert_compilable(answer.to_latex())
        assert repr(answer) == str(answer)
        with pytest.raises(dataclasses.FrozenInstanceError):
            answer.points = table  # type: ignore[misc]
    summary = curve.summary()
    assert str(summary) == str(curve) == repr(curve)
    assert len(str(curve).splitlines()) >= 8
    assert summary.lines[0] == ("Outcome", curve.function.outcome)
    assert [value for name, value in summary.lines if name == "Note"] == list(curve.notes)
    assert curve._repr_html_() == summary.to_html()
    assert_compilable(summary.to_latex())


@pytest.mark.law
def test_averages_leave_out_rows_with_gaps_as_the_fit_did(frame: pd.DataFrame, curve: Inference) -> None:
    gone = np.arange(len(frame)) % 50 == 7
    holed, kept = frame.assign(x=frame["x"].mask(gone)), frame[~gone]
    labels, to = np.arange(len(frame)) % 3, np.linspace(-1, 1, len(frame))
    questions: dict[str, Any] = {
        "effect": lambda rows, some: curve.effect(rows=rows, treatment_from=0, treatment_to=1),
        "by row": lambda rows, some: curve.effect(rows=rows, treatment_from=0, treatment_to={"t": to[some]}),
        "by group": lambda rows, some: curve.effect(rows=rows, treatment_from=0, treatment_to=1, by=labels[some]),
        "dose response": lambda rows, some: curve.dose_response(GRID, rows),
        "derivative": lambda rows, some: curve.average_derivative(rows),
    }
    for ask in questions.values():
        with pytest.warns(MissingRowsWarning, match=f"dropped {gone.sum()} of {len(frame)} rows") as caught:
            found = ask(holed, slice(None))
        assert len(caught) == 1
        pd.testing.assert_frame_equal(found.table, ask(kept, ~gone).table)
    with pytest.raises(DataError, match="have gaps in 'x'"):
        curve.predict(holed)
    strict = cfiv.infer(frame, TwoStageLeastSquares(CURVE, missing="raise").fit(frame))
    with pytest.raises(DataError, match="have gaps in 'x'"):
        strict.dose_response(GRID, holed)


@pytest.mark.contract
def test_headings_in_latex_are_words(frame: pd.DataFrame) -> None:
    named = frame.rename(columns={"t": "t_in"})
    curve = cfiv.infer(named, TwoStageLeastSquares("y ~ x + [t_in ~ z + q + r]").fit(named), level=0.9)
    effect, response = curve.effect(treatment_from=0, treatment_to=1), curve.dose_response([-50, 0.5])
    one = r"t\_in from & t\_in to & Estimate & Std. error & Lower & Upper & Supported \\"
    assert one in effect.to_latex().splitlines()
    assert r"\multicolumn{7}{l}{\footnotesize Intervals of 90 \%.} \\" in effect.to_latex()
    lines = response.to_latex().splitlines()
    assert r"t\_in & Estimate & Std. error & Lower & Upper & Band lower & Band upper & Supported \\" in lines
    assert [line.rsplit(" & ")[-1] for line in lines if line.startswith(("$-$50", "0.5"))] == [r"no \\", r"yes \\"]
    assert f"critical value {response.critical_value:.4g}, holds for all rows at once" in " ".join(lines)
    assert r"less t\_in from & less t\_in to & Estimate" in (effect - effect).to_latex()
    model = TwoStageLeastSquares(LINE).fit(frame)
    assert r"Column & Coefficient & Std. error & t & p-value & Lower & Upper \\" in model.summary().to_latex().splitlines()


@pytest.mark.law
def test_nothing_that_was_given_is_changed_and_no_global_generator_is_used(frame: pd.DataFrame) -> None:
    model = TwoStageLeastSquares(CURVE).fit(frame)
    before, attributes, state = frame.copy(), dict(vars(model)), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    cfiv.infer(frame, model).dose_response(GRID).critical_value
    pd.testing.assert_frame_equal(frame, before)
    assert vars(model) == attributes
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]  # noqa: NPY002


@pytest.mark.law
def test_covariances_are_those_asked_else_the_estimators(frame: pd.DataFrame) -> None:
    frame = two_ways()
    clustered = TwoStageLeastSquares(LINE, covariance="clustered", clusters="group").fit(frame)
    plain = TwoStageLeastSquares(LINE, covariance="unadjusted").fit(frame)

    def error(model: Any, **options: Any) -> float:
        return float(cfiv.infer(frame, model, **options).average_derivative().std_errors[0])

    assert error(plain) == error(clustered, covariance="unadjusted")
    assert error(clustered) == error(plain, clusters="group") == error(plain, clusters=["group"], covariance="clustered")
    assert error(plain, clusters=["group", "year"]) == pytest.approx(error(clustered, clusters=["year", "group"]), rel=1e-9)
    assert len({error(plain), error(plain, covariance="robust"), error(clustered), error(plain, clusters="year")}) == 4


def unfitted(frame: pd.DataFrame) -> Any:
    return TwoStageLeastSquares(LINE)


def fitted(frame: pd.DataFrame) -> Any:
    return TwoStageLeastSquares(LINE).fit(frame)


def interrupted(frame: pd.DataFrame) -> Any:
    model = fitted(frame)
    model.interrupted_ = True
    return model


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (fitted, {"level": 95}, ParameterError, ["level must be > 0 and < 1", "0.95 for 95 %", "got 95"]),
        (fitted, {"level": 1}, ParameterError, ["level", "got 1"]),
        (fitted, {"level": "high"}, ParameterError, ["level", "'high'"]),
        (fitted, {"undersmooth": 2.0}, ParameterError, ["undersmooth must be True or False, got 2.0"]),
        (fitted, {"draws": 99}, ParameterError, ["draws must be a whole number >= 100, got 99"]),
        (fitted, {"random_state": None}, ParameterError, ["random_state", "None"]),
        (fitted, {"covariance": "hac"}, ParameterError, ["covariance", "'hac'"]),
        (fitted, {"covariance": "clustered"}, ParameterError, ["needs groups of rows"]),
        (fitted, {"covariance": "robust", "clusters": "group"}, ParameterError, ["does not use them"]),
        (fitted, {"clusters": ["group", "region", "x"]}, ParameterError, ["or two of them"]),
        (fitted, {"clusters": ["group", "group"]}, ParameterError, ["or two of them"]),
        (fitted, {"clusters": "grup"}, DataError, ["'grup'", "did you mean 'group'"]),
        (fitted, {"clusters": "region"}, DataError, ["3 coefficients needs more clusters", "got 3 of 'region'"]),
        (unfitted, {}, NotFittedError, ["this TwoStageLeastSquares has not been fitted"]),
        (interrupted, {}, ParameterError, ["was interrupted"]),
        (lambda frame: TwoStageLeastSquares, {}, ParameterError, ["must be a fitted cfiv estimator"]),
        (lambda frame: LINE, {}, ParameterError, ["must be a fitted cfiv estimator", "fit one first"]),
        (lambda frame: fitted(frame).structural_function_, {}, ParameterError, ["does not know its instruments"]),
        (lambda frame: fitted(frame.head(200)), {}, DataError, ["the 300 rows are not the 200"]),
        (lambda frame: fitted(frame.assign(y=-frame["y"])), {}, DataError, ["the 300 rows are not the 300"]),
        (lambda frame: TwoStageLeastSquares("y ~ [t ~ z2]").fit(frame.assign(z2=frame["z"])), {}, DataError, ["'z2'"]),
        (lambda frame: cfiv.DFIV(LINE), {}, NotFittedError, ["this DFIV has not been fitted"]),
        (lambda frame: cfiv.NetworkRegression(LINE), {}, ParameterError, ["NetworkRegression has no intervals"]),
        (lambda frame: cfiv.DeepIV(LINE), {}, ParameterError, ["DeepIV has no intervals", "use SieveIV"]),
        (lambda frame: cfiv.AGMM(LINE), {}, ParameterError, ["AGMM has no intervals", "use SieveIV"]),
        (lambda frame: TwoStageLeastSquares(LINE, covariance="kernel").fit(frame), {}, ParameterError, ["'kernel'"]),
    ],
)
@pytest.mark.contract
def test_what_cannot_be_inferred_is_refused_with_what_to_do(
    frame: pd.DataFrame, make: Any, options: dict[str, Any], error: type[CfivError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        cfiv.infer(frame, make(frame), **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.contract
def test_rows_without_clusters_are_not_dropped_in_silence(frame: pd.DataFrame) -> None:
    model = fitted(frame)
    holed = frame.assign(group=frame["group"].where(frame.index > 4))
    with (
        pytest.warns(cfiv.errors.MissingRowsWarning),
        pytest.raises(DataError, match=r"5 of the 300 rows .* have gaps in the clusters 'group': give the fit clusters= too"),
    ):
        cfiv.infer(holed, model, clusters="group")
    few = frame.assign(group=frame["group"] % 5)
    with pytest.warns(FewClustersWarning):
        cfiv.infer(few, model, clusters="group")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda i, f: i.dose_response([0.0, 1.0]), ["a value for each of ['t', 's']"]),
        (lambda i, f: i.effect(treatment_from=0, treatment_to=1), ["must cover 't', 's'"]),
        (lambda i, f: i.predict(f.drop(columns="x")), ["need column 'x'"]),
        (lambda i, f: i.predict(f.assign(x=np.nan)), ["300 of 300 rows have gaps"]),
        (lambda i, f: i.average_derivative(f[["t", "s"]]), ["need column 'x'"]),
        (lambda i, f: i.effect(treatment_from=[0, 0], treatment_to=[1, 1], rows=f[["t"]]), ["need column 'x'"]),
        (lambda i, f: i.functional(lambda h: h(f).mean() ** 2), ["not linear in h"]),
        (lambda i, f: i.functional(lambda h: h(f).mean() + 1), ["not linear in h"]),
        (lambda i, f: i.functional(lambda h: "much"), ["must return a number"]),
        (lambda i, f: i.functional(3), ["a functional is a function of h"]),
        (lambda i, f: i.predict(f).conf_int(95), ["level must be > 0 and < 1, such as 0.95 for 95 %"]),
        (lambda i, f: i.predict(f) - cfiv.infer(f, fitted(f)).predict(f), ["the same inference"]),
        (lambda i, f: i.predict(f.head(3)) - i.predict(f.head(2)), ["got 3 and 2"]),
        (lambda i, f: i.predict(f).plot(), ["along one column"]),
        (lambda i, f: i.predict(f).test("zero"), ["value must be finite numbers"]),
    ],
)
@pytest.mark.contract
def test_questions_that_have_no_answer_are_refused(frame: pd.DataFrame, ask: Any, words: list[str]) -> None:
    inference = cfiv.infer(frame, TwoStageLeastSquares("y ~ x + [t + s ~ z + q + r]").fit(frame))
    with pytest.raises((ParameterError, DataError)) as caught:
        ask(inference, frame)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.law
def test_a_treatment_of_categories_has_effects_and_no_derivative(frame: pd.DataFrame) -> None:
    frame = frame.assign(kind=np.where(frame["t"] > 0, "high", "low"))
    inference = cfiv.infer(frame, LeastSquares("y ~ x + [C(kind) ~ z]").fit(frame))
    assert inference.effect(treatment_from="low", treatment_to="high").supported.all()
    with pytest.raises(ParameterError, match="needs a treatment that is a number"):
        inference.average_derivative()


@pytest.mark.law
@pytest.mark.parametrize(("outcome", "treatment"), [(1e200, 1e100), (1e-200, 1e-100), (1e150, 1e-150), (1e-290, 1.0)])
def test_no_unit_is_too_large_or_too_small(frame: pd.DataFrame, outcome: float, treatment: float) -> None:
    moved = frame.assign(y=outcome * frame["y"], t=treatment * frame["t"])
    one, other = (cfiv.infer(rows, TwoStageLeastSquares(LINE).fit(rows)) for rows in (frame, moved))
    first = one.effect(treatment_from=0, treatment_to=1)
    second = other.effect(treatment_from=0, treatment_to=treatment)
    np.testing.assert_allclose(second.values / outcome, first.values, rtol=1e-9)
    np.testing.assert_allclose(second.std_errors / outcome, first.std_errors, rtol=1e-9)
    np.testing.assert_allclose(second.test().stat, first.test().stat, rtol=1e-9)
    if outcome == 1e200:
        with pytest.raises(DataError, match="too large or too small"):
            second.covariance


@pytest.mark.law
def test_neither_units_nor_offsets_change_what_is_said(frame: pd.DataFrame) -> None:
    moved = frame.assign(t=1e-6 * frame["t"] + 3.0, y=1e9 * frame["y"] - 1e12)
    formula = "y ~ x + [bs(t, df=4) ~ bs(z, df=5) + q + r]"
    one, other = (cfiv.infer(rows, TwoStageLeastSquares(formula).fit(rows)) for rows in (frame, moved))
    effects = [
        one.effect(treatment_from=-1, treatment_to=1).table,
        other.effect(treatment_from=3.0 - 1e-6, treatment_to=3.0 + 1e-6).table,
    ]
    for name in ("estimate", "std_error", "lower"):
        np.testing.assert_allclose(1e9 * effects[0][name], effects[1][name], rtol=1e-6)  # of digits that the offset takes
    np.testing.assert_allclose(1e15 * one.average_derivative().values, other.average_derivative().values, rtol=1e-6)


@pytest.mark.law
def test_of_an_outcome_with_two_values_a_note_counts_predictions_outside_of_them(frame: pd.DataFrame, curve: Inference) -> None:
    binary = frame.assign(y=(frame["y"] > 0).astype(float))
    model = TwoStageLeastSquares(LINE).fit(binary)
    count = int((np.abs(model.predict(binary) - 0.5) > 0.5).sum())
    assert count > 0
    (note,) = cfiv.infer(binary, model).notes
    assert note.startswith(f"predicted outside: {count} of {len(frame)} rows of training")
    assert not any("outside" in note for note in curve.notes)


@pytest.mark.contract
def test_many_groups_of_few_rows_are_warned_of() -> None:
    model = cfiv.TwoStageLeastSquares(LINE).fit(table())
    rows = table().assign(every=range(len(table())))
    with pytest.warns(CfivWarning, match="1 rows each.*cut it first"):
        model.effect(rows, treatment_from=0.0, treatment_to=1.0, by="every")


@pytest.mark.contract
def test_instruments_that_hardly_differ_within_clusters_are_said_to_be_weak_there() -> None:
    r = np.random.default_rng(1)
    groups = np.repeat(np.arange(50), 60)
    z, own = r.normal(size=(2, 50))[:, groups]
    u, e = r.normal(size=(2, 3000))
    t = 0.35 * z + own + u
    frame = pd.DataFrame({"y": t + u + own + e, "t": t, "z": z, "group": groups})
    model = TwoStageLeastSquares("y ~ [t ~ z]").fit(frame)
    effective = cfiv.diagnose(frame, "y ~ [t ~ z]", clusters="group").effective_f.statistic
    (said,) = [note for note in cfiv.infer(frame, model, clusters="group").notes if "may be weak" in note]
    assert f"effective F with clusters {effective:.3g}, not above 23.1" in said
    assert not any("weak" in note for note in cfiv.infer(frame, model).notes)
    strong = frame.assign(t=3.0 * frame["z"] + frame["t"])
    model = TwoStageLeastSquares("y ~ [t ~ z]").fit(strong)
    assert not any("weak" in note for note in cfiv.infer(strong, model, clusters="group").notes)
