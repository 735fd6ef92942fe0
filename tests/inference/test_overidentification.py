"""Do the instruments agree with one another, beside a basis that may bend or was learned?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import Inference, KernelIV, LeastSquares, SieveIV, TwoStageLeastSquares
from cfiv.errors import FewClustersWarning
from cfiv.inference.inference_file import INFERENCE_FILE, inference_to_values
from cfiv.inference.overidentification import CONTRADICTED, Overidentification, SpareMoments
from tests.inference.problems import CURVE, LINE, SAME, reference, table, two_ways


def two_instruments(n: int, seed: int, *, confounded: float) -> pd.DataFrame:
    """A sine of the treatment; the second instrument is correlated with the error so much."""
    z, own, u, e = np.random.default_rng(seed).normal(size=(4, n))
    second = np.sqrt(1 - confounded**2) * own + confounded * u
    t = 0.7 * z + 0.7 * second + 0.5 * u + 0.5 * e
    return pd.DataFrame({"y": np.sin(t) + u, "t": t, "z": z, "second": second})


@pytest.mark.oracle
@pytest.mark.parametrize("weights", [None, "w"])
def test_of_two_stage_least_squares_it_is_the_score_test_of_linearmodels_or_sargans(weights: str | None) -> None:
    frame = table()
    model = TwoStageLeastSquares(LINE, weights=weights).fit(frame)
    expected = reference(frame, weights=weights, debiased=False)
    for covariance, oracle in (("robust", expected.wooldridge_overid), ("unadjusted", expected.sargan)):
        found = cfiv.infer(frame, model, covariance=covariance).overidentification
        assert found is not None
        assert found.df == 2
        np.testing.assert_allclose(found.statistic, oracle.stat, rtol=SAME)
        np.testing.assert_allclose(found.p_value, oracle.pval, rtol=1e-8)


@pytest.mark.oracle
def test_with_clusters_scores_are_summed_within_them() -> None:
    frame = two_ways()
    found = cfiv.infer(frame, TwoStageLeastSquares(LINE).fit(frame), clusters="group").overidentification
    ones = np.ones(len(frame))
    basis = np.column_stack([ones, frame[["x", "t"]]])
    instruments = np.column_stack([ones, frame[["x", "z", "q", "r"]]])
    projected = instruments @ np.linalg.lstsq(instruments, basis, rcond=None)[0]
    e = frame["y"] - basis @ np.linalg.lstsq(projected, frame["y"], rcond=None)[0]
    extra = instruments[:, 3:] - projected @ np.linalg.lstsq(projected, instruments[:, 3:], rcond=None)[0]
    scores = pd.DataFrame(extra * e.to_numpy()[:, None])
    sums = scores.groupby(frame["group"].to_numpy()).sum().to_numpy()
    moment, covariance = scores.sum().to_numpy(), sums.T @ sums
    statistic = float(moment @ np.linalg.solve(covariance, moment))
    assert found is not None
    assert found.statistic == pytest.approx(statistic, rel=1e-8)


@pytest.mark.law
def test_the_statistic_is_that_of_any_other_choice_of_the_same_moments() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(50, 4)) + 0.3
    mixed = scores @ generator.normal(size=(4, 4)) * [1e-6, 1.0, 1.0, 1e6]
    one, other = (Overidentification.of(SpareMoments(s.sum(axis=0), s.T @ s, 50)) for s in (scores, mixed))
    assert one is not None
    assert other is not None
    assert one.statistic == pytest.approx(other.statistic, rel=1e-6)
    assert one.df == other.df == 4


@pytest.mark.contract
def test_there_is_none_where_the_basis_needs_all_instruments_or_groups_are_too_few() -> None:
    frame = table()
    exact = cfiv.infer(frame, TwoStageLeastSquares("y ~ x + [t ~ z]").fit(frame))
    assert exact.overidentification is None
    assert "Overidentification" not in str(exact)
    assert cfiv.infer(frame, LeastSquares("y ~ x + [t ~ z]").fit(frame)).overidentification is None
    few = SpareMoments(np.ones(3), np.ones((3, 3)), 50)
    assert Overidentification.of(few) is None
    for least in (0.0, -1.0):  # of two kinds of groups a variance may be negative
        assert Overidentification.of(SpareMoments(np.ones(2), np.diag([1.0, least]), 50)) is None


@pytest.mark.contract
def test_there_is_none_of_so_few_groups_that_nothing_would_be_contradicted_nor_of_liml() -> None:
    frame = table()
    parts = {groups: frame.assign(part=np.arange(len(frame)) % groups) for groups in (9, 10)}
    few, enough = (TwoStageLeastSquares(LINE).fit(part) for part in parts.values())
    with pytest.warns(FewClustersWarning):  # 1 % of chi2(2) is 9.2, and the statistic is at most the number of groups
        assert cfiv.infer(parts[9], few, clusters="part").overidentification is None
    found = cfiv.infer(parts[10], enough, clusters="part").overidentification
    assert found is not None
    assert found.df == 2
    assert cfiv.infer(frame, cfiv.LIML(LINE).fit(frame)).overidentification is None


@pytest.mark.statistical
def test_instruments_that_agree_are_rarely_said_to_contradict_one_another() -> None:
    """60 draws at 5 %: nine or more of them come by chance once in 350 times."""
    rejected = 0
    for seed in range(60):
        frame = two_instruments(400, seed, confounded=0.0)
        model = TwoStageLeastSquares("y ~ [bs(t, df=4) ~ bs(z, df=4) + bs(second, df=4)]").fit(frame)
        found = cfiv.infer(frame, model, draws=100).overidentification
        assert found is not None
        assert found.df == 4
        rejected += found.p_value < 0.05
    assert rejected <= 8


@pytest.mark.statistical
@pytest.mark.parametrize("make", [SieveIV, KernelIV])
def test_a_confounded_instrument_beside_a_valid_one_is_seen_around_curves(make: type) -> None:
    for confounded in (0.0, 0.6):
        frame = two_instruments(400, 1, confounded=confounded)
        settings = {"random_state": 0} if make is KernelIV else {}
        inference = cfiv.infer(frame, make("y ~ [t ~ z + second]", **settings).fit(frame), random_state=0)
        found = inference.overidentification
        assert found is not None
        assert found.is_contradicted is (confounded > 0)
        assert found.is_contradicted is (found.p_value < CONTRADICTED)
        said = any("contradict one another" in note for note in inference.notes)
        assert said is (confounded > 0)
        assert inference.law.doubtful >= said
        assert str(found) in str(inference)


@pytest.mark.law
def test_it_is_saved_and_files_of_before_it_are_read(tmp_path: Path) -> None:
    frame = table()
    inference = cfiv.infer(frame, TwoStageLeastSquares(CURVE).fit(frame))
    inference.save(tmp_path / "new")
    assert inference.overidentification is not None
    assert Inference.load(tmp_path / "new").overidentification == inference.overidentification
    old = inference_to_values(inference)
    del old["overidentification"]
    INFERENCE_FILE.write(tmp_path / "old", old)
    read = Inference.load(tmp_path / "old")
    assert read.overidentification is None
    pd.testing.assert_frame_equal(read.average_derivative().table, inference.average_derivative().table, check_exact=True)
    with pytest.raises(ValueError, match="statistic of -1"):
        Overidentification.from_values({"statistic": -1.0, "df": 2})
