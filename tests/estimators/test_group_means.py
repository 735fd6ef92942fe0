"""Fixed effects of estimators that learn a function: the means of groups as covariates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import DFIV, IVData, KernelIV, LeastSquares, NetworkRegression, SieveIV, TwoStageLeastSquares
from cfiv.errors import DataError, ParameterError
from tests.estimators.panel import panel

FORMULA = "y ~ x + [t ~ z] | firm"
#: Small fits of the estimators that learn, for what does not depend on how well they do.
LEARNERS = [
    SieveIV(FORMULA, segments=1),
    KernelIV(FORMULA, landmarks=20, random_state=0),
    DFIV(FORMULA, steps=5, random_state=0, progress=False),
    NetworkRegression(FORMULA, steps=5, random_state=0, progress=False),
]


def name_of(estimator: object) -> str:
    return type(estimator).__name__


def curved_panel(seed: int, *, firms: int = 150, years: int = 8) -> pd.DataFrame:
    """``y = sin(t) + 2 a + e``: the effect ``a`` of a firm moves its instruments, and so its treatments; e is in t."""
    generator = np.random.default_rng(seed)
    firm = np.repeat(np.arange(firms), years)
    effect = generator.normal(size=firms)[firm]
    z, error, noise = generator.normal(size=(3, len(firm)))
    z = z + effect
    t = z + 0.5 * error + 0.5 * noise
    return pd.DataFrame({"y": np.sin(t) + 2 * effect + error, "t": t, "z": z, "firm": [f"{i:03d}" for i in firm]})


@pytest.mark.law
def test_of_a_linear_model_the_means_give_the_estimates_of_absorbed_effects_also_where_groups_are_of_all_sizes() -> None:
    frame = panel()
    for learner, linear in ((KernelIV, TwoStageLeastSquares), (NetworkRegression, LeastSquares)):
        _, arrays = learner(FORMULA).encode(frame)
        alone = frame.groupby("firm")["firm"].transform("size").to_numpy() == 1  # absorbed effects leave these rows out
        rows = IVData(**{role: getattr(arrays, role) for role in ("outcome", "treatment", "instruments", "covariates")})
        found = linear().fit(rows).results_.params.iloc[-1]
        assert alone.any()
        assert found == pytest.approx(linear(FORMULA).fit(frame).results_.params["t"], rel=1e-9)


@pytest.mark.law
def test_a_treatment_that_is_endogenous_has_no_means_and_a_covariate_that_does_not_vary_within_is_its_own() -> None:
    frame = panel().assign(size=lambda rows: np.sqrt(rows["firm"]))
    _, arrays = SieveIV("y ~ x + size + [t ~ z] | firm").encode(frame)
    assert arrays.names["covariates"] == ("x", "size", "mean of z by firm", "mean of x by firm")
    np.testing.assert_allclose(arrays.covariates[:, 2], frame.groupby("firm")["z"].transform("mean"), rtol=1e-12)
    _, arrays = NetworkRegression("y ~ x + [t ~ z] | firm + year").encode(frame)
    expected = tuple(f"mean of {name} by {group}" for group in ("firm", "year") for name in ("t", "x"))
    assert arrays.names["covariates"] == ("x", *expected)


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [SieveIV, KernelIV])
def test_a_curve_is_found_where_the_effects_of_firms_move_the_instruments(estimator: type) -> None:
    frame, grid = curved_panel(0), np.linspace(-2, 2, 17)
    errors = []
    for formula in ("y ~ [t ~ z] | firm", "y ~ [t ~ z]"):
        curve = estimator(formula).fit(frame).dose_response(grid)["estimate"].to_numpy()
        off = curve - np.sin(grid)
        errors.append(np.sqrt(((off - off.mean()) ** 2).mean()))
    assert errors[0] < 0.3
    assert 3 * errors[0] < errors[1]


@pytest.mark.contract
@pytest.mark.parametrize("estimator", LEARNERS, ids=name_of)
def test_rows_of_known_groups_are_asked_and_a_file_knows_them_too(estimator: cfiv.DFIV, tmp_path: Path) -> None:
    frame = panel().assign(firm=lambda rows: "f" + rows["firm"].astype(str))
    model = estimator.fit(frame)
    rows = frame[["x", "t", "firm"]]
    ask = {"treatment_from": 0.0, "treatment_to": 1.0}
    model.save(tmp_path / "model.st")
    loaded = cfiv.load(tmp_path / "model.st")
    np.testing.assert_array_equal(loaded.predict(rows), model.predict(rows))
    np.testing.assert_array_equal(loaded.effect(rows.drop(columns="t"), **ask), model.effect(rows, **ask))
    pd.testing.assert_frame_equal(loaded.dose_response([0.0, 1.0]), model.dose_response([0.0, 1.0]))
    assert loaded.text_columns == ("firm",)
    assert "of x by firm, on which alone they may depend" in " ".join(str(model.summary()).split())
    with pytest.raises(DataError, match="'firm' has 1 category that training did not see"):
        model.predict(rows.assign(firm="another"))
    with pytest.raises(DataError, match="need column 'firm'"):
        model.predict(rows.drop(columns="firm"))


@pytest.mark.contract
@pytest.mark.parametrize("estimator", LEARNERS[:2], ids=name_of)
def test_infer_takes_the_means_for_covariates(estimator: cfiv.SieveIV) -> None:
    frame = curved_panel(1)
    model = estimator.set_params(formula="y ~ [t ~ z] | firm").fit(frame)
    inference = cfiv.infer(frame, model, clusters="firm", draws=200)
    found = inference.effect(treatment_from=-1.0, treatment_to=1.0)
    assert "firm" in str(inference)
    assert float(found.table["std_error"].iloc[0]) > 0


@pytest.mark.contract
def test_what_has_no_effects_that_could_be_told_is_refused() -> None:
    frame = panel().assign(row=range(160), size=lambda rows: np.sqrt(rows["firm"]))
    with pytest.raises(DataError, match="every row is the only one of its 'row'"):
        SieveIV("y ~ x + [t ~ z] | row").fit(frame)
    with pytest.raises(DataError, match="'size' does not vary within the fixed effects 'firm'"):
        SieveIV("y ~ x + [t ~ size] | firm").fit(frame)
    arrays = IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], fixed_effects=frame["firm"])
    with pytest.raises(ParameterError, match="fit a table"):
        SieveIV().fit(arrays)
