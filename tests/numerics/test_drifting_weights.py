"""Weights that drift, seen through noise that is measured: what it equals, what it does not depend on, what it tends to."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cfiv.errors import SingularError
from cfiv.numerics.drifting_weights import ASTRAY, FAR, HELD, RELEASE, Track, score_noise, track_weights
from cfiv.numerics.kalman import kalman_update
from cfiv.numerics.least_squares import solve_step

#: Float64 solves of well-conditioned systems of a few columns.
SAME = 1e-9
TRUTH = torch.tensor([[1.0, 0.0], [2.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)


def batch(seed: int, *, rows: int = 20, noise: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return {
        "features": features,
        "targets": features @ TRUTH + noise * torch.randn(rows, 2, generator=generator, dtype=torch.float64),
    }


def track(batches: list[dict[str, Tensor]], *, start: Tensor | None) -> Track:
    """After these batches, one after another."""
    state: Track | Tensor | None = start
    for given in batches:
        state = track_weights(state, **given)
    assert isinstance(state, Track)
    return state


@pytest.mark.law
def test_without_a_past_the_first_batch_is_solved() -> None:
    torch.testing.assert_close(track([batch(0)], start=None).mean, solve_step(**batch(0)), rtol=1e-6, atol=1e-6)


@pytest.mark.oracle
def test_a_step_is_that_of_the_kalman_filter_with_the_noise_and_drift_that_were_found() -> None:
    before, given = track([batch(0), batch(1)], start=0.1 * TRUTH), batch(2)
    noise, drift = float((before.log_noise / 2).exp()), float(before.log_drift.exp())
    least = float(3 * (given["features"].mT @ given["targets"]).square().sum() / given["features"].square().sum() ** 2)
    expected, _ = kalman_update(
        **given,
        mean=before.mean,
        root=noise * torch.linalg.cholesky(torch.linalg.inv(before.information)),
        process_noise=drift * (max(float(before.mean.square().sum()), least) / 6) ** 0.5,
        observation_noise=noise,
    )
    torch.testing.assert_close(track_weights(before, **given).mean, expected, rtol=SAME, atol=SAME)


@pytest.mark.law
@pytest.mark.parametrize("start", [None, 0.1 * TRUTH], ids=["solved", "tracked"])
def test_units_of_features_and_targets_change_weights_as_they_change_least_squares(start: Tensor | None) -> None:
    batches = [batch(seed) for seed in range(5)]
    scaled = [{"features": 100.0 * each["features"], "targets": 1e-3 * each["targets"]} for each in batches]
    found = track(batches, start=start).mean
    other = track(scaled, start=None if start is None else 1e-5 * start).mean
    torch.testing.assert_close(other, 1e-5 * found, rtol=SAME, atol=0.0)


@pytest.mark.law
def test_row_weights_count_by_their_ratios() -> None:
    w = torch.rand(20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    once, more = ([{**batch(seed), "weights": c * w} for seed in range(3)] for c in (1.0, 8.0))
    torch.testing.assert_close(track(more, start=TRUTH).mean, track(once, start=TRUTH).mean, rtol=SAME, atol=SAME)
    alike = [{**batch(seed), "weights": torch.full((20,), 3.0)} for seed in range(3)]
    plain = [batch(seed) for seed in range(3)]
    torch.testing.assert_close(track(alike, start=TRUTH).mean, track(plain, start=TRUTH).mean, rtol=SAME, atol=SAME)


def noise_of(features: Tensor, residual: Tensor) -> Tensor:
    """As least squares sees it."""
    gram = features.mT @ features
    return score_noise(phi=features, residual=residual, root=torch.linalg.cholesky(gram), gram=gram)


@pytest.mark.law
def test_independent_rows_have_the_noise_that_they_were_drawn_with() -> None:
    features = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 0.3 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.stack([noise_of(f, e) for f, e in zip(features.split(100), noise.split(100), strict=True)])
    assert float(found.mean()) == pytest.approx(0.09, rel=0.05)  # of 200 batches with 18 degrees of freedom: 2.4 %


@pytest.mark.law
def test_rows_that_only_repeat_their_neighbours_are_seen_to_be_no_more_than_they_were() -> None:
    """Seven times the rows, each of which has seven times the noise."""
    given = batch(0)
    residual = given["targets"] - given["features"] @ TRUTH
    repeated = noise_of(given["features"].repeat_interleave(7, dim=0), residual.repeat_interleave(7, dim=0))
    torch.testing.assert_close(repeated, 7.0 * noise_of(given["features"], residual), rtol=SAME, atol=0.0)


@pytest.mark.law
def test_where_a_batch_has_many_rows_a_feature_it_is_solved_whatever_the_weights_were() -> None:
    many = batch(0, rows=30)
    torch.testing.assert_close(track([many], start=5.0 * TRUTH).mean, solve_step(**many), rtol=1e-6, atol=1e-6)
    few = batch(0, rows=29)
    assert (track([few], start=5.0 * TRUTH).mean - solve_step(**few)).norm() > 1.0


@pytest.mark.law
def test_what_all_parts_of_a_batch_agree_upon_is_no_noise() -> None:
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(4, 1)
    assert float(noise_of(features, features @ TRUTH)) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.law
def test_huge_noise_moves_weights_little_and_none_moves_them_all_the_way() -> None:
    def moved(noise: float) -> float:
        """Beside what the batch's own least squares would."""
        given, before = batch(9, noise=noise), track([batch(seed, noise=noise) for seed in range(9)], start=TRUTH)
        start = before.mean + 1.0
        after = track_weights(replace(before, mean=start), **given).mean
        return float((after - start).norm() / (solve_step(**given) - start).norm())

    assert moved(30.0) < 0.4
    assert moved(1e-6) == pytest.approx(1.0, abs=0.01)


@pytest.mark.law
@pytest.mark.parametrize(("rows", "bounded"), [(24, True), (20, False)])
def test_where_batches_determine_the_weights_what_came_before_counts_as_few_rows(rows: int, bounded: bool) -> None:
    """However much noise there was: it would hold them for good."""
    before = track([batch(seed, rows=rows, noise=100.0) for seed in range(60)], start=None)
    given = batch(60, rows=rows, noise=100.0)
    gram = given["features"].mT @ given["features"]
    held = torch.linalg.eigvalsh(track_weights(before, **given).information - gram)
    few = HELD * float(gram.trace()) / rows
    assert (float(held.max()) <= few * (1.0 + SAME)) is bounded


@pytest.mark.law
def test_on_features_that_stay_weights_come_near_least_squares_on_all_rows() -> None:
    batches = [batch(seed, rows=10, noise=1.0) for seed in range(400)]
    everything = {name: torch.cat([each[name] for each in batches]) for name in ("features", "targets")}
    best = solve_step(**everything)
    alone = torch.stack([solve_step(**each) - best for each in batches]).square().sum(dim=(1, 2)).mean().sqrt()
    tracked = torch.stack([track(batches[: 100 + at], start=None).mean - best for at in range(0, 300, 30)])
    assert float(tracked.square().sum(dim=(1, 2)).mean().sqrt()) < 0.3 * float(alone)


@pytest.mark.law
def test_directions_that_no_batch_shows_keep_their_weights() -> None:
    batches = [{**given, "features": torch.cat([given["features"], torch.zeros(20, 1)], 1)} for given in map(batch, range(5))]
    start = torch.cat([0.1 * TRUTH, torch.full((1, 2), 7.0)])
    found = track(batches, start=start).mean
    assert torch.equal(found[3], start[3])


def moving(seed: int, *, rows: int = 40) -> dict[str, Tensor]:
    """Two features that differ by little, and have moved by more than that since the batch before."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    features = torch.stack([one, one + 1e-3 * other], dim=1)
    shift = 1e-2 * torch.randn(2, 2, generator=generator, dtype=torch.float64)
    return {"features": features @ (torch.eye(2, dtype=torch.float64) + shift), "targets": (one + other)[:, None]}


@pytest.mark.law
def test_weights_that_keep_doing_worse_than_none_are_shrunk_until_they_do_better() -> None:
    batches = [moving(seed) for seed in range(ASTRAY + 30)]

    def errors(of: slice) -> float:
        """Of the weights before each batch, over those of none; the median."""
        places = range(len(batches))[of]
        found = [
            float((batches[at]["targets"] - batches[at]["features"] @ states[at - 1].mean).square().sum())
            / float(batches[at]["targets"].square().sum())
            for at in places
        ]
        return sorted(found)[len(found) // 2]

    states: list[Track] = []
    for given in batches:
        states.append(track_weights(states[-1] if states else None, **given))
    assert errors(slice(10, 50)) > 10.0
    assert errors(slice(ASTRAY, None)) < 1.0
    assert float(states[-1].mean.norm()) < 0.1 * float(states[50].mean.norm())


@pytest.mark.law
@pytest.mark.parametrize("rows", [1, 4, 32])
def test_noise_alone_and_rare_targets_call_for_no_ridge(rows: int) -> None:
    """Weights do worse than none on half of such batches, or on all that are zero. A signal that comes later is followed."""
    batches = [batch(seed, rows=rows, noise=1.0) for seed in range(600)]
    noise = [{**given, "targets": given["targets"] - given["features"] @ TRUTH} for given in batches]
    rare = [{**given, "targets": (given["targets"] > 4.0).double()} for given in batches]
    for before in (noise, rare):
        last = track(before, start=torch.zeros(3, 2, dtype=torch.float64))
        assert float(last.ridge) == 0.0
        assert float(last.astray) < 0.2
        for given in (batch(s, rows=max(8, rows), noise=0.1) for s in range(1000, 1400)):
            last = track_weights(last, **given)
        assert float((last.mean - TRUTH).norm()) < 0.5 * float(TRUTH.norm())


@pytest.mark.oracle
@pytest.mark.parametrize("known", [0.0, 5.0], ids=["of the batch", "of those before"])
def test_the_ridge_is_rows_of_a_filter_on_which_all_weights_should_be_zero(known: float) -> None:
    found, given = track([batch(0), batch(1)], start=0.1 * TRUTH), batch(2)
    far = replace(found, mean=3.0 * TRUTH.flip(0), astray=torch.tensor(0.9), ridge=torch.tensor(known, dtype=torch.float64))
    excess = (given["targets"] - given["features"] @ far.mean).square().sum() - given["targets"].square().sum()
    assert float(excess) > (FAR - 1.0) * float(given["targets"].square().sum())
    ridge = max(float(excess / (20 * far.mean.square().sum())), RELEASE * known)
    noise, drift = float((far.log_noise / 2).exp()), float(far.log_drift.exp())
    expected, _ = kalman_update(
        features=torch.cat([given["features"], (20 * ridge) ** 0.5 * torch.eye(3, dtype=torch.float64)]),
        targets=torch.cat([given["targets"], torch.zeros(3, 2, dtype=torch.float64)]),
        mean=far.mean,
        root=noise * torch.linalg.cholesky(torch.linalg.inv(far.information)),
        process_noise=drift * (float(far.mean.square().sum()) / 6) ** 0.5,
        observation_noise=noise,
    )
    after = track_weights(far, **given)
    assert float(after.ridge) == pytest.approx(ridge, rel=SAME)
    torch.testing.assert_close(after.mean, expected, rtol=SAME, atol=SAME)


@pytest.mark.gradient
def test_gradients_reach_targets_with_the_gain_held_fixed() -> None:
    given = batch(0)
    live = given["targets"].clone().requires_grad_()
    after = track_weights(0.1 * TRUTH, features=given["features"], targets=live)
    (gradient,) = torch.autograd.grad(after.mean.sum(), [live])
    gain = torch.linalg.solve(after.information, given["features"].mT)
    torch.testing.assert_close(gradient, gain.sum(dim=0)[:, None].expand(20, 2), rtol=SAME, atol=SAME)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows_and_collinear_or_exact_ones_have_an_answer(rows: int) -> None:
    for noise in (0.0, 1.0):
        given = [batch(seed, rows=rows, noise=noise) for seed in range(30)]
        twice = [{**each, "features": torch.cat([each["features"]] * 2, dim=1)} for each in given]
        for start in (None, torch.zeros(6, 2, dtype=torch.float64)):
            assert bool(torch.isfinite(track(twice, start=start).mean).all())


def test_targets_that_begin_with_zeros_leave_weights_of_zero_where_they_are() -> None:
    none, some = {**batch(0, rows=4), "targets": torch.zeros(4, 2)}, [batch(seed, rows=4) for seed in range(1, 40)]
    first = track([none], start=torch.zeros(3, 2, dtype=torch.float64))
    assert not first.mean.any()
    assert float((track([none, *some], start=torch.zeros(3, 2, dtype=torch.float64)).mean - TRUTH).norm()) < 1.0


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(SingularError, match="the features have become infinite"):
        track([{"features": torch.full((5, 3), torch.nan), "targets": torch.ones(5, 2)}], start=TRUTH)


@pytest.mark.law
def test_what_features_show_by_rounding_alone_is_not_fitted() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.layer_norm(torch.randn(500, 8, generator=generator), (8,))  # which add up to zero, and rounding
    given = {
        "features": torch.cat([rows, torch.ones(500, 1)], dim=1),
        "targets": rows[:, :1] + torch.randn(500, 1, generator=generator),
    }
    sums = torch.cat([torch.ones(8), torch.zeros(1)]).double()[:, None] / 8**0.5
    for start in (None, torch.zeros(9, 1, dtype=torch.float64)):
        weights = track([given, given], start=start).mean
        assert float((sums.mT @ weights).abs()) < 20.0
        # In all other directions it is the least squares.
        phi, y = given["features"].double(), given["targets"].double()
        expected = torch.linalg.lstsq(phi, y, driver="gelsd", rcond=1e-5).solution
        error = (phi @ (weights - expected)).square().mean()
        assert float(error) < 1e-4
