"""KernelIV beyond the contract: the paper's algorithm on tables, its choices, its memory, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import solve
from scipy.spatial.distance import cdist

import cfiv
from cfiv import DataError, IVData, KernelIV, ParameterError
from cfiv.estimators import kernel_iv
from cfiv.learning.samples import split_rows

FORMULA = "y ~ x + [t ~ z]"
#: Issue 3: relative to the largest prediction.
TRANSCRIBED = 1e-8
BANDWIDTHS = {"treatment": 0.8, "instruments": [0.5], "covariates": [0.7]}


def table(n: int = 121, seed: int = 0) -> pd.DataFrame:
    z, x, u, noise = np.random.default_rng(seed).normal(size=(4, n))
    t = z + 0.3 * x + 0.5 * u
    return pd.DataFrame({"y": 50 + 10 * np.sin(t) + 5 * x + 5 * u + 0.1 * noise, "t": t, "z": z, "x": x})


def model(**arguments: Any) -> KernelIV:
    return KernelIV(FORMULA, **{"random_state": 0, **arguments})


def split(rows: int, seed: int, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The documented source of the split: the first stream of the first fit's."""
    _, generator = np.random.default_rng(seed).spawn(2)
    first, second = split_rows(rows, share=share, generator=generator.spawn(3)[0])
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
def test_without_swapping_it_is_the_papers_algorithm(share: float) -> None:
    frame, penalties = table(), {"stage1_ridge": 1e-3, "stage2_ridge": 1e-4}
    fitted = model(bandwidths=BANDWIDTHS, swap=False, split=share, **penalties).fit(frame)
    first, second = split(len(frame), 0, share)
    expected = transcribed(frame, first, second, lam=1e-3, xi=1e-4)
    np.testing.assert_allclose(fitted.predict(frame), expected, rtol=0, atol=TRANSCRIBED * np.abs(expected).max())


@pytest.mark.oracle
def test_swapping_averages_the_algorithm_over_both_roles_of_the_samples() -> None:
    frame = table()
    fitted = model(bandwidths=BANDWIDTHS, stage1_ridge=1e-3, stage2_ridge=1e-4).fit(frame)
    first, second = split(len(frame), 0)
    both = [transcribed(frame, one, two, lam=1e-3, xi=1e-4) for one, two in ((first, second), (second, first))]
    expected = np.mean(both, axis=0)
    np.testing.assert_allclose(fitted.predict(frame), expected, rtol=0, atol=TRANSCRIBED * np.abs(expected).max())


@pytest.mark.law
def test_a_grid_chooses_what_one_fit_a_penalty_would() -> None:
    frame, grid = table(), [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    whole = model(swap=False, stage1_ridge=grid, stage2_ridge=grid).fit(frame)
    chosen = whole.penalties_[whole.penalties_["chosen"]].set_index("stage")["penalty"]

    def loss(stage: int, **penalties: float) -> float:
        found = model(swap=False, **penalties).fit(frame).penalties_.set_index("stage")["loss"]
        return float(found[stage])

    first = [loss(1, stage1_ridge=lam, stage2_ridge=1.0) for lam in grid]
    second = [loss(2, stage1_ridge=chosen[1], stage2_ridge=xi) for xi in grid]
    assert chosen[1] == grid[int(np.argmin(first))]
    assert chosen[2] == grid[int(np.argmin(second))]
    by_stage = whole.penalties_.groupby("stage")["loss"].apply(list)
    np.testing.assert_allclose(by_stage[1], first, rtol=TRANSCRIBED)
    np.testing.assert_allclose(by_stage[2], second, rtol=TRANSCRIBED)
    alone = model(swap=False, stage1_ridge=chosen[1], stage2_ridge=chosen[2]).fit(frame)
    np.testing.assert_array_equal(alone.predict(frame), whole.predict(frame))


@pytest.mark.law
def test_nystroem_with_every_row_of_sample_1_is_exact() -> None:
    frame = table(120)
    exact, nystroem = model().fit(frame).predict(frame), model(landmarks=60).fit(frame).predict(frame)
    np.testing.assert_allclose(nystroem, exact, rtol=0, atol=TRANSCRIBED * np.abs(exact).max())


def test_a_third_of_the_landmarks_comes_near_and_depends_on_the_seed_alone() -> None:
    frame = table(600)
    exact = model().fit(frame)
    few = [model(landmarks=100).fit(frame).predict(frame) for _ in range(2)]
    np.testing.assert_array_equal(*few)
    assert np.std(few[0] - exact.predict(frame)) < 0.05 * np.std(exact.predict(frame))


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


def test_without_a_constant_the_function_goes_to_zero_far_away_and_else_to_the_mean() -> None:
    frame, far = table(), table().assign(t=1e6)
    np.testing.assert_allclose(model().fit(frame).predict(far), frame["y"].mean())
    np.testing.assert_array_equal(KernelIV("y ~ 0 + x + [t ~ z]", random_state=0).fit(frame).predict(far), 0.0)


def test_bandwidths_are_reported_in_the_users_units_and_may_be_given_by_role() -> None:
    frame = table()
    found = model().fit(frame).bandwidths_
    distances = np.abs(frame["t"].to_numpy()[:, None] - frame["t"].to_numpy())[np.triu_indices(len(frame), 1)]
    assert found["treatment"] == [pytest.approx(np.median(distances), rel=1e-12)]
    given = model(bandwidths={"treatment": 2.0}).fit(frame)
    assert given.bandwidths_ == {**found, "treatment": [2.0]}
    same = model(bandwidths=found).fit(frame)
    np.testing.assert_array_equal(same.predict(frame), model().fit(frame).predict(frame))
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
    flat = KernelIV(random_state=0, bandwidths={"treatment": width * 64}).fit(IVData(treatment=images.reshape(-1, 64), **roles))
    expected = flat.predict(treatment=images.reshape(-1, 64), covariates=frame["x"])
    np.testing.assert_array_equal(pictures.predict(treatment=images, covariates=frame["x"]), expected)
    assert pictures.score(IVData(treatment=images, **roles)) > 0.5
    pictures.save(tmp_path / "model")
    loaded = cfiv.load(tmp_path / "model").predict(treatment=images, covariates=frame["x"])
    np.testing.assert_array_equal(loaded, expected)


def test_several_fits_are_averaged_and_tell_their_penalties() -> None:
    fitted = model(fits=2).fit(table())
    assert len(fitted.structural_function_.components) == 4
    chosen = fitted.penalties_[fitted.penalties_["chosen"]]
    assert chosen.groupby(["fit", "swapped", "stage"]).size().tolist() == [1] * 8


# Refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stage1_ridge": 0.0}, r"stage1_ridge must be a finite number > 0, several of them, or None for a grid, got 0\.0"),
        ({"stage2_ridge": [1.0, -1.0]}, r"stage2_ridge must be .* got \[1\.0, -1\.0\]"),
        ({"stage2_ridge": []}, r"stage2_ridge must be .* got \[\]"),
        ({"stage1_ridge": "auto"}, "stage1_ridge must be .* got 'auto'"),
        ({"landmarks": 0}, "landmarks must be a whole number >= 1, or None for all rows of sample 1, got 0"),
        ({"landmarks": 61}, "landmarks must be at most the 60 rows of the sample they are drawn from, got 61: use fewer"),
        ({"split": 1.0}, r"split must be between 0 and 1, got 1\.0"),
        ({"fits": 0}, "fits must be a whole number >= 1, got 0"),
        ({"swap": "yes"}, "swap must be True or False, got 'yes'"),
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


def test_matrices_that_do_not_fit_are_refused_with_their_size_and_a_number_of_landmarks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_iv, "available_memory", lambda: 200 * 1024)
    says = r"kernel matrices of 61 x 61 need 0\.000499 GiB in all, but 0\.000191 GiB are free: .*such as landmarks=26"
    with pytest.raises(ParameterError, match=says):
        model().fit(table())
    assert np.isfinite(model(landmarks=26).fit(table()).predict(table())).all()


def test_the_machine_says_how_much_memory_is_free() -> None:
    free = kernel_iv.available_memory()
    assert free is None or free > 2**20


# Accuracy on the demand design (slow: minutes)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(("n", "seeds", "bound"), [(1000, 10, 3.79), (5000, 10, 3.51)])
def test_errors_on_the_demand_design_are_below_the_papers_upper_quartile(n: int, seeds: int, bound: float) -> None:
    from cfiv.datasets import demand

    for rho in (0.1, 0.5, 0.9) if n == 1000 else (0.5,):
        errors = []
        for seed in range(seeds):
            data, truth = demand.simulate(n, rho=rho, seed=seed)
            errors.append(np.log10(truth.error(KernelIV(demand.FORMULA, random_state=seed).fit(data.frame))))
        print(
            f"\ndemand n={n} rho={rho}: median log10 error {np.median(errors):.3f} over {seeds} seeds, worst {max(errors):.3f}"
        )
        assert np.median(errors) <= bound
