"""Estimators of rows that lie on disk: the numbers are those of the table in memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.errors import DataError, ParameterError

#: Rounding of sums in another order, in well-conditioned problems.
SAME = 1e-10
ROWS = 2000


def simulated(seed: int = 0) -> pd.DataFrame:
    """Linear, confounded by ``v``; errors are heteroskedastic and correlated within groups."""
    generator = np.random.default_rng(seed)
    z, q, x, v, u = generator.normal(size=(5, ROWS))
    group = generator.integers(0, 60, ROWS)
    v += generator.normal(size=60)[group]
    t = 20 + z + 0.5 * q + 0.3 * x + v
    y = 1.0 + 2.0 * t + 0.5 * x + v + u * (1 + x**2)
    frame = pd.DataFrame({"y": y, "t": t, "z": z, "q": q, "x": x + 3, "w": generator.integers(1, 5, ROWS), "group": group})
    frame["pair"] = generator.integers(0, 40, ROWS)
    return frame.assign(region=generator.choice(list("dbca"), ROWS))


FORMULAS = (
    "y ~ x + [t ~ z + q]",
    "y ~ 0 + x + [t ~ z]",
    "y ~ 0 + C(region) + [t ~ z + q]",
    "y ~ C(region) + x + [t + t:x ~ z + q + z:x]",
    "y ~ bs(x, df=4) + [np.log(t**2) ~ z + I(z**2)]",
)
COVARIANCES: tuple[dict[str, Any], ...] = (
    {},
    {"covariance": "unadjusted", "debiased": True},
    {"covariance": "clustered", "clusters": "group", "debiased": True},
    {"covariance": "clustered", "clusters": "group"},
)


BLOCKWISE = ("linear_blocks", "standardised", "structural", "units")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("tables.stored", "tables.table_sources", "tables.parts", *(f"estimators.{name}" for name in BLOCKWISE)):
        monkeypatch.setattr(f"cfiv.{room}.BLOCK_ROWS", 300)
    monkeypatch.setattr("cfiv.learning.samples.WINDOW", 256)
    monkeypatch.setattr("cfiv.learning.samples.RUN", 16)
    monkeypatch.setattr("cfiv.learning.samples.CHECK_ROWS", 200)
    monkeypatch.setattr("cfiv.estimators.smooth_model.BASIS_ROWS", 700)
    monkeypatch.setattr("cfiv.inference.row_blocks.MAPPED_BLOCK", 3000)
    monkeypatch.setattr("cfiv.inference.functionals.BLOCK", 3000)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return simulated()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for i in range(3):  # contiguous, so that rows are in the order of the table
        frame[i * ROWS // 3 : (i + 1) * ROWS // 3].to_parquet(folder / f"{i}.parquet", row_group_size=250)
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [cfiv.TwoStageLeastSquares, cfiv.LeastSquares])
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("options", COVARIANCES)
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_linear_fit_is_that_of_the_table(
    kind: Any, formula: str, options: dict[str, Any], weights: str | None, frame: pd.DataFrame, place: Path
) -> None:
    ours, theirs = (kind(formula, weights=weights, **options).fit(data).results_ for data in (place, frame))
    np.testing.assert_allclose(ours.table, theirs.table, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(ours.cov, theirs.cov, rtol=SAME, atol=SAME * np.abs(theirs.cov).to_numpy().max())
    for name in ("rsquared", "rsquared_adj", "resid_ss", "total_ss", "s2"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=SAME)
    assert ours.f_statistic.stat == pytest.approx(theirs.f_statistic.stat, rel=1e-8)  # of a solve with the covariance
    scale = np.abs(frame["y"]).max()
    for name in ("resids", "wresids", "fitted_values"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=SAME, atol=SAME * scale)
    assert (ours.nobs, ours.has_constant, ours.method) == (theirs.nobs, theirs.has_constant, theirs.method)


@pytest.mark.oracle
def test_first_stage_and_tests_of_a_fit_are_those_of_the_table(frame: pd.DataFrame, place: Path) -> None:
    ours, theirs = (cfiv.TwoStageLeastSquares("y ~ x + [t ~ z + q]").fit(data).results_ for data in (place, frame))
    for name in ("sargan", "basmann", "wooldridge_overid", "wooldridge_score"):
        assert getattr(ours, name).stat == pytest.approx(getattr(theirs, name).stat, rel=1e-8)
    assert ours.wu_hausman().stat == pytest.approx(theirs.wu_hausman().stat, rel=1e-8)
    numbers = ["rsquared", "partial.rsquared", "shea.rsquared", "f.stat"]
    expected = theirs.first_stage.diagnostics[numbers].astype(float)
    np.testing.assert_allclose(ours.first_stage.diagnostics[numbers].astype(float), expected, rtol=1e-8)


@pytest.mark.oracle
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("clusters", [None, "group", ("group", "pair")])
@pytest.mark.parametrize("formula", FORMULAS[:1] + FORMULAS[3:])
def test_inference_is_that_of_the_table(
    formula: str, clusters: Any, weights: str | None, frame: pd.DataFrame, place: Path
) -> None:
    model = cfiv.TwoStageLeastSquares(formula, weights=weights)
    ours, theirs = (cfiv.infer(data, model.fit(data), clusters=clusters) for data in (place, frame))
    for question in (
        lambda found: found.effect(treatment_from=19.0, treatment_to=21.0),
        lambda found: found.average_derivative(),
        lambda found: found.dose_response([18.5, 20.0, 21.5]),
    ):
        pd.testing.assert_frame_equal(question(ours).table, question(theirs).table, rtol=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize("options", [{}, {"segments": 2}, {"weights": "w", "clusters": "group"}])
def test_a_sieve_and_its_bands_are_those_of_the_table(options: dict[str, Any], frame: pd.DataFrame, place: Path) -> None:
    model = cfiv.SieveIV("y ~ x + [t ~ z]", random_state=0, **options)
    answers = []
    for data in (place, frame):
        fitted = model.fit(data)
        answers.append((fitted.predict(frame), cfiv.infer(data, fitted).dose_response([18.5, 20.0, 21.5]).table))
    np.testing.assert_allclose(answers[0][0], answers[1][0], rtol=SAME)
    pd.testing.assert_frame_equal(answers[0][1], answers[1][1], rtol=1e-8)


@pytest.mark.law
def test_scores_saved_models_and_pickles_of_a_fit_to_a_file(frame: pd.DataFrame, place: Path, tmp_path: Path) -> None:
    model = cfiv.TwoStageLeastSquares("y ~ x + C(region) + [t ~ z]").fit(place)
    assert model.score(place) == pytest.approx(model.score(frame), rel=SAME)
    model.save(tmp_path / "model.safetensors")
    expected = model.predict(frame)
    np.testing.assert_array_equal(cfiv.load(tmp_path / "model.safetensors").predict(frame), expected)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(frame), expected)
    assert again.results_.first_stage.diagnostics.equals(model.results_.first_stage.diagnostics)


@pytest.mark.law
def test_arrays_mapped_by_the_user_are_fitted_in_blocks_too(frame: pd.DataFrame, tmp_path: Path) -> None:
    arrays = {}
    for role, names in {"outcome": "y", "treatment": "t", "instruments": ["z", "q"], "covariates": ["x"]}.items():
        np.save(tmp_path / role, frame[names].to_numpy())
        arrays[role] = np.load(tmp_path / f"{role}.npy", mmap_mode="r")
    ours = cfiv.TwoStageLeastSquares().fit(cfiv.IVData(**arrays)).results_.table
    theirs = cfiv.TwoStageLeastSquares("y ~ x + [t ~ z + q]").fit(frame).results_.table
    np.testing.assert_allclose(ours, theirs, rtol=SAME)


@pytest.mark.contract
def test_what_rows_on_disk_do_not_have_is_refused(frame: pd.DataFrame, place: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"covariance='kernel' needs the scores of all rows at once"):
        cfiv.TwoStageLeastSquares("y ~ x + [t ~ z]", covariance="kernel").fit(place)
    left = frame[["t"]].assign(one=1.0)
    still = frame["z"] - left.to_numpy() @ np.linalg.lstsq(left, frame["z"], rcond=None)[0]
    frame.assign(double=2 * frame["x"] + 1, still=still).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'double' is a linear combination of 'x' and the constant"):
        cfiv.TwoStageLeastSquares("y ~ x + double + [t ~ z]").fit(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the instruments do not move the treatment 't'"):
        cfiv.TwoStageLeastSquares("y ~ [t ~ still]").fit(tmp_path / "t.parquet")
    fitted = cfiv.TwoStageLeastSquares("y ~ x + [t ~ z]").fit(place)
    with pytest.raises(DataError, match="groups need column 'regoin', which the table does not have: did you mean 'region'"):
        fitted.effect(str(place), treatment_from=19.0, treatment_to=21.0, by="regoin")
    with pytest.raises(DataError, match="rows are not the 2000"):
        cfiv.infer(frame[:1500], fitted)


@pytest.mark.law
@pytest.mark.parametrize("kind", [cfiv.DFIV, cfiv.NetworkRegression])
def test_mapped_images_give_the_numbers_of_those_in_memory(kind: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images, z = generator.normal(size=(60, 1, 8, 8)).astype(np.float32), generator.normal(size=(60, 2))
    np.save(tmp_path / "images.npy", images)
    answers = []
    for treatment in (images, np.load(tmp_path / "images.npy", mmap_mode="r")):
        data = cfiv.IVData(outcome=z[:, 0] + images[:, 0, 0, 0], treatment=treatment, instruments=z)
        model = kind(steps=3, fits=1, batch_size=10, progress=False, random_state=0, device="cpu").fit(data)
        answers.append(model.predict(treatment=images))
    np.testing.assert_array_equal(*answers)


LEARNERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (cfiv.DFIV, {}),
    (cfiv.DFIV, {"nested": False, "unpredicted_penalty": 0.5, "structure": "additive", "standardise": False}),
    (cfiv.NetworkRegression, {}),
)
TRAINED = {"steps": 20, "fits": 1, "batch_size": 50, "progress": False, "random_state": 0, "device": "cpu"}


@pytest.mark.law
@pytest.mark.parametrize(
    ("formula", "roles"),
    [("y ~ x + [t ~ z + q]", {"weights": "w", "clusters": "group"}), ("y ~ x + C(region) + [t + t:x ~ z + q + z:x]", {})],
)
@pytest.mark.parametrize(("kind", "options"), LEARNERS)
def test_networks_trained_on_a_folder_are_bit_for_bit_those_of_the_table(
    kind: Any, options: dict[str, Any], formula: str, roles: dict[str, Any], frame: pd.DataFrame, place: Path
) -> None:
    ours, theirs = (kind(formula, **options, **roles, **TRAINED).fit(data) for data in (place, frame))
    np.testing.assert_array_equal(ours.predict(frame), theirs.predict(frame))
    pd.testing.assert_frame_equal(ours.history_, theirs.history_, check_exact=True)
    assert ours.score(place) == theirs.score(frame)


@pytest.mark.law
def test_a_kernel_fit_to_a_folder_is_that_of_the_table(frame: pd.DataFrame, place: Path) -> None:
    model = cfiv.KernelIV("y ~ x + [t ~ z]", landmarks=60, random_state=0)
    ours, theirs = (model.fit(data).predict(frame) for data in (place, frame))
    np.testing.assert_allclose(ours, theirs, rtol=SAME)


@pytest.mark.law
def test_a_fit_to_a_folder_goes_on_where_it_was_killed(
    place: Path, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def model(**changes: Any) -> cfiv.DFIV:
        return cfiv.DFIV("y ~ x + [t ~ z + q]", **{**TRAINED, **changes})

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("cfiv.objectives.dfiv_fit.refit_last_layers", killed)
        with pytest.raises(KilledError):
            model().fit(place, checkpoint=tmp_path, every=10)
    continued = model().fit(place, checkpoint=tmp_path, every=10)
    np.testing.assert_array_equal(continued.predict(frame), model().fit(place).predict(frame))


@pytest.mark.law
@pytest.mark.parametrize("formula", ["y ~ x + C(region) + [t ~ z]", "y ~ x + [t + t:x ~ z + z:x]"])
@pytest.mark.parametrize("kind", [cfiv.TwoStageLeastSquares, cfiv.DFIV, cfiv.KernelIV, cfiv.SieveIV])
def test_predictions_at_a_folder_are_those_at_the_table(kind: Any, formula: str, frame: pd.DataFrame, place: Path) -> None:
    if kind is cfiv.SieveIV and "t:x" in formula:
        formula = "y ~ x + [t ~ z]"
    model = kind(formula, **({**TRAINED} if kind is cfiv.DFIV else {})).fit(frame)
    treatments = {"treatment_from": 19.0, "treatment_to": 21.0}
    np.testing.assert_allclose(model.predict(place), model.predict(frame), rtol=SAME)
    np.testing.assert_array_equal(model.supported(str(place)), model.supported(frame))
    np.testing.assert_allclose(model.effect(place, **treatments), model.effect(frame, **treatments), rtol=SAME)
    pd.testing.assert_frame_equal(model.dose_response([19.0, 21.0], place), model.dose_response([19.0, 21.0], frame), rtol=SAME)


@pytest.mark.contract
def test_predictions_at_files_that_do_not_resemble_training_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    model, path = cfiv.TwoStageLeastSquares("y ~ x + C(region) + [t ~ z]").fit(frame), tmp_path / "t.parquet"

    def refused(table: pd.DataFrame, words: str) -> None:
        table.to_parquet(path)
        with pytest.raises(DataError, match=words):
            model.predict(path)

    refused(frame.drop(columns="x"), "predictions need column 'x'")
    refused(frame.assign(x=frame["x"].where(frame["x"] > 2)), r"rows have gaps \(x: ")
    refused(frame.assign(region="west"), "category that training did not see")
    refused(frame.assign(x="much"), "column 'x' holds text")
    frame.drop(columns=["t", "y", "z"]).to_parquet(path)
    effects = model.effect(path, treatment_from=19.0, treatment_to=21.0)
    assert np.ptp(effects) < 1e-9


@pytest.mark.law
@pytest.mark.filterwarnings("ignore::cfiv.errors.MissingRowsWarning")
def test_averages_over_a_folder_with_gaps_are_those_over_the_table(frame: pd.DataFrame, tmp_path: Path) -> None:
    present = {name: frame[name] < frame[name].quantile(0.9) for name in ("x", "q")}
    holed = frame.assign(x=frame["x"].where(present["x"]), region=pd.Categorical(frame["region"].where(present["q"])))
    tmp_path.joinpath("rows").mkdir()
    for i, part in enumerate(np.array_split(np.arange(ROWS), 3)):
        holed.iloc[part].to_parquet(tmp_path / "rows" / f"{i}.parquet", row_group_size=250)
    model = cfiv.TwoStageLeastSquares("y ~ x + C(region) + [t + t:x ~ z + q + z:x]").fit(frame)
    each = {"treatment_from": {"t": np.linspace(19, 21, ROWS)}, "treatment_to": 22.0}
    for by in ("region", frame["z"].to_numpy() > 0):
        expected = model.effect(holed, **each, by=by)
        pd.testing.assert_frame_equal(model.effect(tmp_path / "rows", **each, by=by), expected, rtol=1e-12)
    curve = model.dose_response([19.0, 21.0], holed)
    pd.testing.assert_frame_equal(model.dose_response([19.0, 21.0], tmp_path / "rows"), curve, rtol=1e-12)
    with pytest.raises(DataError, match=r"rows have gaps \(x: .*\): predictions need complete rows, so drop or fill them$"):
        model.predict(tmp_path / "rows")
