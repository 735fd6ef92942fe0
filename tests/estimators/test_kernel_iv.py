"""KernelIV beyond the contract: the paper's algorithm on tables, its choices, its memory, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import solve
from scipy.spatial.distance import cdist

import cfiv
from cfiv import DataError, IVData, KernelIV, ParameterError
from cfiv.errors import PenaltyRangeWarning, TooLargeError
from cfiv.estimators import kernel_memory
from cfiv.learning.samples import split_rows

FORMULA = "y ~ x + [t ~ z]"
#: What the issue asks, relative to the largest prediction.
TRANSCRIBED = 1e-8
BANDWIDTHS = {"treatment": 0.8, "instruments": [0.5], "covariates": [0.7]}


def table(n: int = 121, seed: int = 0) -> pd.DataFrame:
    z, x, u, noise = np.random.default_rng(seed).normal(size=(4, n))
    t = z + 0.3 * x + 0.5 * u
    return pd.DataFrame({"y": 50 + 10 * np.sin(t) + 5 * x + 5 * u + 0.1 * noise, "t": t, "z": z, "x": x})


#: Nothing but the Gaussian kernel of the paper, with its bandwidths, on all rows.
PLAIN: dict[str, Any] = {"linear": False, "bandwidths": "median", "landmarks": None}


def model(**arguments: Any) -> KernelIV:
    return KernelIV(FORMULA, **{"random_state": 0, **arguments})


def plain(**arguments: Any) -> KernelIV:
    return model(**{**PLAIN, "validation": "treatment", **arguments})


def split(rows: int, seed: int, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The documented source of the split: the second stream of three."""
    first, second = split_rows(rows, share=share, generator=np.random.default_rng(seed).spawn(3)[1])
    return first.numpy(), second.numpy()


def transcribed(frame: pd.DataFrame, first: np.ndarray, second: np.ndarray, *, lam: float, xi: float) -> np.ndarray:
    """Algorithm 1 at every row, outcome standardised, with numpy and scipy alone."""

    def kernel(one: np.ndarray, other: np.ndarray, width: tuple[float, float]) -> np.ndarray:
        return np.exp(-cdist(one / width, other / width, "sqeuclidean") / 2)

    x, z, y = frame[["t", "x"]].to_numpy(), frame[["z", "x"]].to_numpy(), frame["y"].to_numpy()
    wide_x, wide_z = (0.8, 0.7), (0.5, 0.7)
    n, m = len(first), len(second)
    k_xx, k_zz = kernel(x[first], x[first], wide_x), kernel(z[first], z[first], wide_z)
    w = k_xx @ solve(k_zz + n * lam * np.eye(n), kernel(z[first], z[second], wide_z))
    alpha = solve(w @ w.T + m * xi * k_xx, w @ ((y[second] - y.mean()) / y.std()))
    return y.mean() + y.std() * (kernel(x, x[first], wide_x) @ alpha)


@pytest.mark.oracle
@pytest.mark.parametrize("share", [0.5, 0.4])
def test_with_a_split_it_is_the_papers_algorithm(share: float) -> None:
    frame, penalties = table(), {"ridge1": 1e-3, "ridge2": 1e-4}
    fitted = KernelIV.original(FORMULA, random_state=0, bandwidths=BANDWIDTHS, split=share, **penalties).fit(frame)
    first, second = split(len(frame), 0, share)
    expected = transcribed(frame, first, second, lam=1e-3, xi=1e-4)
    np.testing.assert_allclose(fitted.predict(frame), expected, rtol=0, atol=TRANSCRIBED * np.abs(expected).max())


@pytest.mark.law
def test_every_row_is_used_and_none_by_its_own_first_stage() -> None:
    """Moving one outcome moves h; moving the outcomes of a fold does not move what judges stage 1."""
    frame, moved = table(), table()
    moved.loc[5, "y"] += 1.0
    one, other = plain().fit(frame), plain().fit(moved)
    assert not np.allclose(one.predict(frame), other.predict(frame), rtol=1e-6)
    losses = [fitted.penalties_.loc[fitted.penalties_["stage"] == 1, "loss"] for fitted in (one, other)]
    np.testing.assert_array_equal(*losses)


@pytest.mark.law
@pytest.mark.parametrize("arguments", [{"split": 0.5}, {}, {"validation": "instruments"}, {"validation": "control"}], ids=str)
def test_a_grid_chooses_what_one_fit_a_penalty_would(arguments: dict[str, Any]) -> None:
    frame, grid = table(), [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    whole = plain(ridge1=grid, ridge2=grid, **arguments).fit(frame)
    chosen = whole.penalties_[whole.penalties_["chosen"]].set_index("stage")["penalty"]

    def loss(stage: int, **penalties: float) -> float:
        found = plain(**penalties, **arguments).fit(frame).penalties_.set_index("stage")["loss"]
        return float(found[stage])

    first = [loss(1, ridge1=lam, ridge2=1.0) for lam in grid]
    second = [loss(2, ridge1=chosen[1], ridge2=xi) for xi in grid]
    assert chosen[1] == grid[int(np.argmin(first))]
    assert chosen[2] == grid[int(np.argmin(second))]
    by_stage = whole.penalties_.groupby("stage")["loss"].apply(list)
    np.testing.assert_allclose(by_stage[1], first, rtol=TRANSCRIBED)
    np.testing.assert_allclose(by_stage[2], second, rtol=TRANSCRIBED)
    alone = plain(ridge1=chosen[1], ridge2=chosen[2], **arguments).fit(frame)
    np.testing.assert_array_equal(alone.predict(frame), whole.predict(frame))


@pytest.mark.law
@pytest.mark.parametrize(("arguments", "rows"), [({}, 120), ({"split": 0.5}, 60)], ids=str)
def test_nystroem_with_every_row_a_landmark_is_exact(arguments: dict[str, Any], rows: int) -> None:
    frame = table(120)
    exact = model(**arguments).fit(frame).predict(frame)
    nystroem = model(landmarks=rows, **arguments).fit(frame).predict(frame)
    np.testing.assert_allclose(nystroem, exact, rtol=0, atol=TRANSCRIBED * np.abs(exact).max())


def test_a_sixth_of_the_landmarks_comes_near_and_depends_on_the_seed_alone() -> None:
    frame = table(600)
    exact = model().fit(frame)
    few = [model(landmarks=100).fit(frame).predict(frame) for _ in range(2)]
    np.testing.assert_array_equal(*few)
    assert np.std(few[0] - exact.predict(frame)) < 0.05 * np.std(exact.predict(frame))


@pytest.mark.law
@pytest.mark.parametrize("arguments", [{}, {"split": 0.5}], ids=str)
def test_whole_weights_of_a_fixed_partition_are_what_the_losses_are_weighted_by(arguments: dict[str, Any]) -> None:
    """Scaling all weights changes nothing; a weight that is nearly zero takes its row out of both stages."""
    frame = table().assign(w=1.0)
    scaled = model(weights="w", **arguments).fit(frame.assign(w=7.0))
    np.testing.assert_allclose(scaled.predict(frame), model(**arguments).fit(frame).predict(frame), rtol=TRANSCRIBED)
    penalties = {"ridge1": 1e-3, "ridge2": 1e-3, "bandwidths": BANDWIDTHS}
    light = frame.assign(w=np.where(np.arange(len(frame)) < 5, 1e-14, 1.0))
    wild = light.assign(y=np.where(np.arange(len(frame)) < 5, 90.0, light["y"]))
    one, other = (model(weights="w", **penalties, **arguments).fit(given).predict(frame) for given in (light, wild))
    np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.law
def test_units_of_every_column_do_not_matter() -> None:
    frame = table()
    other = frame.assign(y=1000 - 3 * frame["y"], t=frame["t"] * 1e3 + 7, z=-frame["z"] / 16, x=frame["x"] + 1e4)
    expected = 1000 - 3 * model().fit(frame).predict(frame)
    np.testing.assert_allclose(model().fit(other).predict(other), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.law
def test_rows_of_weight_zero_are_no_rows_but_for_the_split() -> None:
    frame = table().assign(w=1.0)
    padded = pd.concat([frame, frame[:7].assign(w=0.0, y=1e6, t=1e6)])
    np.testing.assert_array_equal(model(weights="w").fit(padded).predict(frame), model(weights="w").fit(frame).predict(frame))


@pytest.mark.filterwarnings("ignore::cfiv.errors.UnsupportedTreatmentWarning")
def test_without_a_line_the_function_goes_to_the_mean_far_away_and_without_a_constant_to_zero() -> None:
    frame, far = table(), table().assign(t=1e6)
    np.testing.assert_allclose(plain().fit(frame).predict(far), frame["y"].mean())
    np.testing.assert_array_equal(KernelIV("y ~ 0 + x + [t ~ z]", random_state=0, **PLAIN).fit(frame).predict(far), 0.0)


def test_bandwidths_are_reported_in_the_users_units_and_may_be_given_by_role() -> None:
    frame = table()
    found = plain().fit(frame).bandwidths_
    distances = np.abs(frame["t"].to_numpy()[:, None] - frame["t"].to_numpy())[np.triu_indices(len(frame), 1)]
    assert found["treatment"] == [pytest.approx(np.median(distances), rel=1e-12)]
    given = plain(bandwidths={"treatment": 2.0}).fit(frame)
    assert given.bandwidths_ == {**found, "treatment": [2.0]}
    same = plain(bandwidths=found).fit(frame)
    np.testing.assert_array_equal(same.predict(frame), plain().fit(frame).predict(frame))
    assert "bandwidth" in str(given.summary())


@pytest.mark.law
def test_images_are_flat_vectors_with_one_bandwidth(tmp_path: Path) -> None:
    frame = table()
    pattern = np.random.default_rng(1).normal(size=(8, 8))
    images = np.tanh(frame["t"].to_numpy()[:, None, None] * pattern)
    roles = {"outcome": frame["y"], "instruments": frame["z"], "covariates": frame["x"]}
    pictures = KernelIV(random_state=0).fit(IVData(treatment=images, **roles))
    width = pictures.bandwidths_["treatment"]
    assert len(width) == 1
    flat = KernelIV(random_state=0, **{**PLAIN, "bandwidths": {"treatment": width * 64}}, validation="treatment").fit(
        IVData(treatment=images.reshape(-1, 64), **roles)
    )
    expected = flat.predict(treatment=images.reshape(-1, 64), covariates=frame["x"])
    np.testing.assert_array_equal(pictures.predict(treatment=images, covariates=frame["x"]), expected)
    assert pictures.score(IVData(treatment=images, **roles)) > 0.5
    pictures.save(tmp_path / "model")
    loaded = cfiv.load(tmp_path / "model").predict(treatment=images, covariates=frame["x"])
    np.testing.assert_array_equal(loaded, expected)


# Ends of a path


def test_the_best_of_several_penalties_at_an_end_is_warned_of_where_the_loss_still_falls() -> None:
    frame = table()
    says = r"best ridge1 is the smallest of 3, 0\.1, and the held-out loss is still falling there, by \d\d?% a tenfold change: "
    with pytest.warns(PenaltyRangeWarning, match=says + "give smaller values of ridge1") as caught:
        plain(ridge1=[0.1, 1.0, 10.0], ridge2=1e-3).fit(frame)
    assert caught[0].filename == __file__  # the warning points at the user's line
    says = (
        "the best ridge2 is the largest of 2, 1e-06.*give larger values of ridge2, and see whether the instruments say anything"
    )
    with pytest.warns(PenaltyRangeWarning, match=says):
        plain(ridge1=1e-3, ridge2=[1e-7, 1e-6]).fit(frame)


def test_no_end_is_warned_of_where_it_does_not_matter() -> None:
    """A single value, an outcome without noise at the smallest default, an outcome of noise at the largest."""
    frame = table()
    model(ridge1=10.0, ridge2=10.0).fit(frame)
    noiseless = plain().fit(frame.assign(t=frame["z"], y=np.sin(frame["z"])))
    chosen = noiseless.penalties_[noiseless.penalties_["chosen"]].set_index("stage")["penalty"]
    assert chosen[2] < 1e-8
    plain().fit(frame.assign(y=np.random.default_rng(1).normal(size=len(frame))))


@pytest.mark.law
def test_a_number_may_be_an_array_without_a_dimension() -> None:
    plain = model(ridge1=1e-3, ridge2=1e-3, bandwidths={"treatment": 0.8}).fit(table())
    array = model(ridge1=np.array(1e-3), ridge2=np.array([1e-3]), bandwidths={"treatment": np.array(0.8)}).fit(table())
    np.testing.assert_array_equal(array.predict(table()), plain.predict(table()))


# Refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"ridge1": 0.0}, r"ridge1 must be a finite number >= 1e-12, several of them, or None for 50 values from .* got 0\.0"),
        ({"ridge2": [1.0, -1.0]}, r"ridge2 must be .* got \[1\.0, -1\.0\]"),
        ({"ridge2": []}, r"ridge2 must be .* got \[\]"),
        ({"ridge1": "auto"}, "ridge1 must be .* got 'auto'"),
        ({"landmarks": 0}, "landmarks must be a whole number >= 1, 'auto', or None for all rows, got 0"),
        ({"landmarks": 121}, "landmarks must be at most the 120 rows that they are drawn from, got 121: use fewer"),
        ({"landmarks": 61, "split": 0.5}, "landmarks must be at most the 60 rows"),
        ({"split": 1.0}, r"split must be > 0 and < 1, or None for cross-fitting, got 1\.0"),
        ({"folds": 1}, "folds must be a whole number >= 2, got 1"),
        ({"validation": "truth"}, "validation must be one of 'control', 'treatment', 'instruments', got 'truth'"),
        ({"validation": "instruments", "folds": 2}, "needs rows that neither stage has seen, and folds=2 leaves none"),
        ({"validation": "instruments", "split": 0.5}, r"and split=0\.5 leaves none: cross-fit with folds >= 3, or use"),
        (
            {"validation": "control", "split": 0.5},
            r"'control' needs rows that neither stage has seen, and split=0\.5 leaves none",
        ),
        ({"linear": 1}, "linear must be True or False, got 1"),
        ({"bandwidths": "mean"}, "bandwidths must be a mapping with keys among .*, 'median', or None to find them, got 'mean'"),
        ({"random_state": -1}, "random_state must be a whole number >= 0, a numpy Generator or None, got -1"),
        ({"bandwidths": 1.0}, r"bandwidths must be a mapping with keys among 'treatment', .* got 1\.0"),
        ({"bandwidths": {"price": 1.0}}, "bandwidths must be a mapping with keys among"),
        ({"bandwidths": {"treatment": 0.0}}, r"bandwidths\['treatment'\] must be finite and > 0, got 0\.0"),
        ({"bandwidths": {"treatment": []}}, r"bandwidths\['treatment'\] must be one number or one for each of the 1 inputs"),
        ({"bandwidths": {"treatment": [1.0, 2.0]}}, r"bandwidths\['treatment'\] must be .* the 1 inputs, got \[1\.0, 2\.0\]"),
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        model(**arguments).fit(table(120))


def test_bandwidths_of_covariates_need_covariates() -> None:
    with pytest.raises(ParameterError, match="bandwidths are given for covariates, but there are none: leave them out"):
        KernelIV("y ~ [t ~ z]", bandwidths={"covariates": 1.0}).fit(table())


def test_an_input_with_all_points_equal_has_no_bandwidth() -> None:
    with pytest.raises(DataError, match=r"covariates 'x' is the same in all 121 rows.*bandwidth, is zero: drop it, or give"):
        model().fit(table().assign(x=1.0))


def test_too_few_rows_for_the_folds_are_refused() -> None:
    with pytest.raises(DataError, match="4 rows are too few for 5 folds: give at least one row a fold, or fewer folds"):
        model().fit(table(4))


def test_matrices_that_do_not_fit_are_refused_with_a_number_of_landmarks_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(400)
    monkeypatch.setattr(kernel_memory, "available_memory", lambda: 300 * 1024)
    says = (
        r"the kernel matrix of 400 points has a numerical rank above 27 \(treatment\), the most that fits in the 0\.000286 GiB "
    )
    with pytest.raises(
        TooLargeError, match=says + "that are free: use the Nyström version with fewer landmarks, such as .*=13"
    ):
        plain().fit(frame)
    assert np.isfinite(plain(landmarks=13).fit(frame).predict(frame)).all()


def test_the_machine_says_how_much_memory_is_free() -> None:
    free = kernel_memory.available_memory()
    assert free is None or free > 2**20


@pytest.mark.law
@pytest.mark.parametrize("options", [{}, {"folds": 2}, {"validation": "instruments"}], ids=str)
def test_one_row_may_outweigh_all_others(options: dict[str, Any]) -> None:
    """The moments of the other folds are no difference of two large sums, which left matrices that were not positive."""
    frame = table().assign(w=lambda rows: np.where(rows.index == 0, 1e12, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PenaltyRangeWarning)
        fitted = model(weights="w", **options).fit(frame)
    assert fitted.predict(frame[:1])[0] == pytest.approx(frame["y"][0], rel=1e-3)
