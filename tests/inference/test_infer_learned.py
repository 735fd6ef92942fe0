"""Intervals of learned functions: they are corrected by two-stage least squares in splines, cross-fitted."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cfiv
from cfiv.errors import DataError, DivergenceError, ParameterError
from cfiv.estimators.cross_fitting import cross_fit
from cfiv.inference.corrected import FOLDS
from cfiv.learning.deadline import Deadline

#: Sums in another order.
ROUNDING = 1e-8
CHEAP = {"steps": 5, "fits": 1, "progress": False, "random_state": 0}


def table(n: int = 400, *, seed: int = 0, values: int | None = None) -> pd.DataFrame:
    """``y = t + t^2 / 2 + x + e``, the error correlated with ``t``; an instrument of few values where these are given."""
    generator = np.random.default_rng(seed)
    z, x, u, e = generator.normal(size=(4, n))
    if values is not None:
        z = generator.integers(values, size=n).astype(float)
    t = z + 0.5 * x + u
    return pd.DataFrame({"y": t + t**2 / 2 + x + u + e, "t": t, "z": z, "x": x, "g": np.arange(n) // 8})


def identity(**overrides: object) -> cfiv.DFIV:
    """DFIV that learns nothing of the treatment."""
    given = {"treatment_network": nn.Identity(), "covariate_network": nn.Identity(), "structure": "additive", "nested": False}
    given["training"] = cfiv.Training(double=True)  # or float32 would round what is beyond the splines
    return cfiv.DFIV("y ~ x + [t ~ z]", **{**given, **CHEAP, **overrides})


@pytest.mark.law
@pytest.mark.parametrize("covariance", ["robust", "unadjusted"])
def test_features_that_nothing_learns_have_the_intervals_of_two_stage_least_squares(covariance: str) -> None:
    data = table()
    learned = cfiv.infer(data, identity().fit(data), covariance=covariance)
    linear = cfiv.infer(data, cfiv.TwoStageLeastSquares("y ~ x + [t ~ z]").fit(data), covariance=covariance)
    for one, other in (
        (learned.effect(treatment_from=0, treatment_to=1), linear.effect(treatment_from=0, treatment_to=1)),
        (learned.average_derivative(), linear.average_derivative()),
        (learned.dose_response([-1.0, 0.0, 2.0]), linear.dose_response([-1.0, 0.0, 2.0])),
        (learned.predict(data.head(7)), linear.predict(data.head(7))),
    ):
        np.testing.assert_allclose(one.values, other.values, rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_allclose(one.std_errors, other.std_errors, rtol=ROUNDING)


@pytest.mark.law
def test_where_instruments_take_two_values_the_splines_are_lines_and_it_is_said() -> None:
    data = table(values=2)
    model = cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0).fit(data)
    inference = cfiv.infer(data, model)
    assert inference.law.doubtful
    assert any("no more than straight lines" in note for note in inference.notes)


@pytest.mark.law
def test_of_a_treatment_of_two_values_a_line_is_no_doubt() -> None:
    data = table().assign(t=lambda f: (f["t"] > 0).astype(float))
    inference = cfiv.infer(data, cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0).fit(data))
    assert not inference.law.doubtful
    assert not any("straight lines" in note for note in inference.notes)


@pytest.mark.law
def test_a_covariate_and_its_square_leave_coefficients_determined() -> None:
    data = table().assign(square=lambda f: f["x"] ** 2)
    inference = cfiv.infer(data, cfiv.KernelIV("y ~ x + square + [t ~ z]", random_state=0).fit(data))
    assert [spline.width for spline in inference.function.components[0].basis.splines.covariates] == [1, 1]


@pytest.mark.oracle
@pytest.mark.parametrize("weighted", [False, True])
def test_estimates_and_errors_are_those_of_their_formulas(weighted: bool) -> None:
    data = table(n=300).assign(w=np.random.default_rng(1).uniform(0.2, 3.0, size=300))
    model = cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0, weights="w" if weighted else None).fit(data)
    inference = cfiv.infer(data, model)
    basis = inference.function.components[0].basis
    weights = data["w"].to_numpy() / data["w"].mean() if weighted else np.ones(300)
    t, x, z = (data[[name]].to_numpy() for name in "txz")
    generator = np.random.default_rng(0).spawn(2)[1]
    rows = model.encode(data)[1].with_positive_weight()
    crossed = cross_fit(model, rows, intercept=True, groups=None, folds=FOLDS, generator=generator)

    s, phi = basis.splines.structural_columns(t, x), basis.splines.instrument_columns(z, x)
    weighting = weights[:, None]
    fitted = phi @ np.linalg.lstsq(phi * np.sqrt(weighting), s * np.sqrt(weighting), rcond=None)[0]
    solve = np.linalg.pinv(fitted.T @ (weighting * s)) @ (fitted * weighting).T
    functions = np.stack([function.evaluate(t, x) for function in crossed.functions], axis=1)
    projections = solve @ functions
    own = functions[np.arange(300), crossed.folds] - (s * projections.T[crossed.folds]).sum(axis=1)
    outcome = data["y"].to_numpy() - own
    b = solve @ outcome
    scores = solve * (outcome - s @ b)
    shares = np.bincount(crossed.folds, weights=weights) / 300

    grid = np.array([-1.0, 0.5, 2.0])
    points = [np.column_stack([np.full(300, value), x[:, 0]]) for value in grid]
    on_splines = np.stack([basis.splines.structural_columns(p[:, :1], p[:, 1:]).mean(axis=0) for p in points])
    on_functions = np.stack([[f.evaluate(p[:, :1], p[:, 1:]).mean() for f in crossed.functions] for p in points])
    beyond = on_functions - on_splines @ projections
    centre = beyond @ shares
    spread = (FOLDS - 1) / FOLDS * ((beyond - centre[:, None]) ** 2).sum(axis=1)
    variances = ((on_splines @ scores) ** 2).sum(axis=1) + spread
    found = inference.dose_response(grid, data)
    np.testing.assert_allclose(found.values, centre + on_splines @ b, rtol=1e-6)
    np.testing.assert_allclose(found.std_errors, np.sqrt(variances), rtol=1e-6)


@pytest.mark.contract
@pytest.mark.parametrize("model", [identity(nested=True), cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0)])
def test_a_saved_inference_answers_as_it_did(model: cfiv.DFIV | cfiv.KernelIV, tmp_path: object) -> None:
    data = table()
    inference = cfiv.infer(data, model.fit(data))
    inference.save(f"{tmp_path}/one.cfiv")
    loaded = cfiv.Inference.load(f"{tmp_path}/one.cfiv")
    for ask in (
        lambda one: one.dose_response([0.0, 1.0]),
        lambda one: one.effect(treatment_from=0, treatment_to=1),
        lambda one: one.average_derivative(),
        lambda one: one.predict(data.head(3)),
        lambda one: one.functional(lambda h: h(data.head(5)).mean()),
    ):
        pd.testing.assert_frame_equal(ask(inference).table, ask(loaded).table, check_exact=True)
    assert str(loaded) == str(inference)


@pytest.mark.contract
def test_inference_leaves_the_model_as_it_was_and_gives_the_same_numbers_twice() -> None:
    data = table()
    model = cfiv.DFIV("y ~ x + [t ~ z]", **CHEAP).fit(data)
    before, parameters = model.predict(data), model.get_params()
    first, second = (cfiv.infer(data, model, random_state=3).dose_response([0.0, 1.0]).table for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert (model.predict(data) == before).all()
    assert all(model.get_params()[name] is value for name, value in parameters.items())


@pytest.mark.law
def test_groups_are_never_parted_by_the_folds() -> None:
    data = table()
    model = cfiv.KernelIV("y ~ x + [t ~ z]", clusters="g", random_state=0).fit(data)
    rows = model.encode(data)[1]
    crossed = cross_fit(model, rows, intercept=True, groups=rows.clusters, folds=FOLDS, generator=np.random.default_rng(0))
    assert (pd.Series(crossed.folds).groupby(data["g"]).nunique() == 1).all()
    assert cfiv.infer(data, model).covariance.startswith("clustered by g (50)")


@pytest.mark.contract
def test_what_intervals_cannot_be_had_of_is_refused_and_says_why() -> None:
    data = table()
    model = cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0).fit(data)
    with pytest.raises(DataError, match="are not the 400"):
        cfiv.infer(data.head(300), model)
    with pytest.raises(DataError, match="are not the 400"):
        cfiv.infer(data.assign(t=data["t"] + 1), model)
    few = data.head(20)
    with pytest.raises(DataError, match="leave too few"):
        cfiv.infer(few, cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0).fit(few))
    generator = np.random.default_rng(0)
    images = cfiv.IVData(outcome=data["y"], treatment=generator.normal(size=(400, 4, 4)), instruments=data[["z"]].to_numpy())
    with pytest.raises(ParameterError, match="of images has no intervals"):
        cfiv.infer(images, cfiv.KernelIV(random_state=0).fit(images))


@pytest.mark.contract
def test_curves_and_averages_of_learned_functions_have_no_known_covariance() -> None:
    data = table()
    inference = cfiv.infer(data, cfiv.KernelIV("y ~ x + [t ~ z]", random_state=0).fit(data))
    effect = inference.effect(treatment_from=0, treatment_to=1)
    assert len(effect.beside(inference.average_derivative())) == 2
    with pytest.raises(ParameterError, match="curves among themselves"):
        effect.beside(inference.dose_response([0.0, 1.0]))


@pytest.mark.statistical
@pytest.mark.slow
def test_intervals_hold_where_the_design_calls_for_what_is_learned() -> None:
    held = []
    for seed in range(40):
        data = table(n=500, seed=seed)
        inference = cfiv.infer(data, cfiv.KernelIV("y ~ x + [t ~ z]", random_state=seed).fit(data))
        row = inference.average_derivative(data).table.iloc[0]
        held.append(row["lower"] <= 1 + data["t"].mean() <= row["upper"])
    assert np.mean(held) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 40)


class Bent(nn.Module):
    """Networks of a user's own class train one after another, until the time is over."""

    def __init__(self, _shape: object) -> None:
        super().__init__()
        self.map = nn.Linear(1, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.map(rows))


@pytest.mark.contract
def test_folds_that_time_does_not_suffice_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(200)
    model = cfiv.DFIV("y ~ [t ~ z]", treatment_network=Bent, steps=1, fits=1, random_state=0, progress=False).fit(data)
    model.set_params(max_seconds=60)
    monkeypatch.setattr(Deadline, "passed", lambda _: True)
    with pytest.raises(DivergenceError, match=r"nothing was learned of part 2 of 5.*give more max_seconds"):
        cfiv.infer(data, model)
