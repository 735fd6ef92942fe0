"""The DFIV step, and the fit around it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from cfiv.errors import DivergenceError, TrainingWarning
from cfiv.learning import networks as nets
from cfiv.learning import whole_sample
from cfiv.learning.samples import Sample, Split, hold_out
from cfiv.learning.training import Penalties, Report, Training
from cfiv.learning.two_stage import Batch, Networks, Optimisers, TwoStageState, optimisers, step
from cfiv.learning.two_stage_fit import Seen, TwoStageFit, TwoStageProblem, best_instrument_features, fit_two_stage
from cfiv.learning.whole_sample import refit_last_layers, with_treatment_features
from cfiv.numerics.two_stage import Structure
from cfiv.runtime.module_state import state_of

PENALTIES = Penalties(lambda1=1.0, lambda2=1.0, lambda12=1.0, ridge1=1e-3, ridge2=1e-3)
NONE = (0.0, 0.0, 0.0)
#: Two float64 routes to one solve.
SAME = 1e-9


def sample(rows: int = 200, *, seed: int = 0, dtype: torch.dtype = torch.float32, weighted: bool = False) -> Sample:
    """A confounded treatment with a quadratic effect, two covariates."""
    generator = torch.Generator().manual_seed(seed)
    z, x, v = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in (1, 2, 1))
    t = z + 0.5 * v
    y = t.square() * 0.3 + x[:, :1] - v
    w = torch.rand(rows, generator=generator, dtype=torch.float64) if weighted else None
    return Sample(y.to(dtype), t.to(dtype), torch.cat([z, x], 1).to(dtype), x.to(dtype), w)


def networks(seed: int = 0, dtype: torch.dtype = torch.float32) -> Networks:
    with nets.seeded(seed, torch.device("cpu")):
        made = Networks(nets.treatment_network((1,)), nets.FeatureNetwork(3, (16,), 4), nets.FeatureNetwork(2, (16,), 2))
    for module in made.modules():
        module.to(dtype)
    return made


def state(made: Networks, training: Training, *, rate: float = 1e-2) -> TwoStageState:
    return TwoStageState(made, optimisers(made, training=training, learning_rate=(rate, rate, rate), weight_decay=NONE))


def flat(module: nn.Module | None) -> torch.Tensor:
    assert module is not None
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fit(
    split: Split, *, made: Networks | None = None, on_step: Callable[[], object] = lambda: None, **changes: object
) -> TwoStageFit:
    problem = TwoStageProblem(
        split=split,
        structure="product",
        penalties=PENALTIES,
        steps=20,
        batch_size=32,
        learning_rate=(0.01, 0.01, 0.01),
        weight_decay=NONE,
        report="refit",
        training=Training(),
    )
    problem = replace(problem, **changes)
    return fit_two_stage(problem, made or networks(), generator=np.random.default_rng(0), on_step=on_step)


def held_out(rows: int = 200) -> Split:
    return hold_out(stage1=sample(rows, seed=1), sample2=sample(rows, seed=2), share=0.2, generator=np.random.default_rng(0))


@pytest.mark.law
@pytest.mark.parametrize(
    ("options", "moves"),
    [
        (Training(stage2_steps=0), (False, True, False)),
        (Training(stage1_steps=0), (True, False, True)),
        (Training(stage1_steps=0, stage2_steps=0, covariate_steps=1), (False, False, True)),
        (Training(stage1_steps=0, covariate_steps=1), (True, False, True)),
        (Training(), (True, True, True)),
        (Training(order="backbone-first"), (True, True, True)),
    ],
)
def test_each_kind_of_step_moves_its_own_network_only(options: Training, moves: tuple[bool, bool, bool]) -> None:
    made = networks()
    before = [flat(made.treatment), flat(made.instrument), flat(made.covariate)]
    step(Batch(sample(seed=1), sample(seed=2), PENALTIES), state(made, options), training=options, structure="product")
    after = [flat(made.treatment), flat(made.instrument), flat(made.covariate)]
    assert tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moves


@pytest.mark.law
def test_large_proximal_penalties_freeze_the_last_layers() -> None:
    made, training = networks(), Training()
    first, _ = step(
        Batch(sample(seed=1), sample(seed=2), PENALTIES), state(made, training), training=training, structure="product"
    )
    frozen = replace(PENALTIES, lambda1=1e9, lambda2=1e9, lambda12=1e9)
    second, _ = step(Batch(sample(seed=3), sample(seed=4), frozen), first, training=training, structure="product")
    assert first.structural is not None
    assert second.structural is not None
    assert second.first_stage is not None
    torch.testing.assert_close(second.structural, first.structural, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second.first_stage, first.first_stage, rtol=1e-6, atol=1e-6)


@pytest.mark.law
def test_a_backbone_first_step_descends_at_the_previous_weights_and_then_solves_with_the_new_features() -> None:
    """With one stage-2 step and V12 independent of the order, only the order of u tells the two apart."""
    options = Training(stage1_steps=0, order="backbone-first")
    made = networks(dtype=torch.float64)
    batch = Batch(sample(seed=1, dtype=torch.float64), sample(seed=2, dtype=torch.float64), PENALTIES)
    start, _ = step(batch, state(made, options, rate=0.0), training=options, structure="product")
    moving = optimisers(made, training=options, learning_rate=(1e-3, 1e-3, 1e-3), weight_decay=NONE)
    after, _ = step(batch, replace(start, optimisers=moving), training=options, structure="product")
    solving = Training(stage1_steps=0, stage2_steps=0)
    again, _ = step(batch, start, training=solving, structure="product")
    assert after.structural is not None
    assert again.structural is not None
    torch.testing.assert_close(after.structural, again.structural, rtol=SAME, atol=SAME)


SOLVING = Training(stage1_steps=0, stage2_steps=0)


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("structure", ["product", "additive"])
def test_a_first_step_solves_what_a_refit_of_its_batch_solves(structure: Structure, gamma: float, weighted: bool) -> None:
    """Without a past there is no proximal pull, and the ridges and the unpredicted penalty are the same."""
    stage1, stage2 = (sample(rows, seed=rows, dtype=torch.float64, weighted=weighted) for rows in (120, 90))
    made = networks(dtype=torch.float64)
    batch = Batch(stage1, stage2, replace(PENALTIES, unpredicted=gamma))
    solved, _ = step(batch, state(made, SOLVING), training=SOLVING, structure=structure)
    first, structural = refit_last_layers(
        with_treatment_features(stage1, made.treatment),
        stage2,
        made,
        structure=structure,
        first_stage_ridge=PENALTIES.ridge1,
        ridge=PENALTIES.ridge2,
        unpredicted_penalty=gamma,
    )
    torch.testing.assert_close(solved.first_stage, first, rtol=SAME, atol=SAME)
    torch.testing.assert_close(solved.structural, structural, rtol=SAME, atol=SAME)


@pytest.mark.gradient
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_a_step_moves_treatment_and_covariate_features_down_the_objective_it_minimises(gamma: float) -> None:
    made = networks(dtype=torch.float64)
    assert made.covariate is not None
    batch = Batch(
        *(sample(100, seed=s, dtype=torch.float64, weighted=True) for s in (1, 2)), replace(PENALTIES, unpredicted=gamma)
    )
    parameters = [*made.treatment.parameters(), *made.covariate.parameters()]
    start = [p.detach().clone() for p in parameters]

    def minimised(distance: float, direction: list[torch.Tensor]) -> float:
        with torch.no_grad():
            for p, origin, d in zip(parameters, start, direction, strict=True):
                p.copy_(origin + distance * d)
        solved, info = step(batch, state(made, SOLVING), training=SOLVING, structure="product")
        assert solved.structural is not None
        return float(info.stage2_loss + PENALTIES.ridge2 * solved.structural.square().sum())

    plain = Optimisers(
        torch.optim.SGD(made.treatment.parameters(), lr=1.0), None, torch.optim.SGD(made.covariate.parameters(), 1.0)
    )
    training = Training(stage1_steps=0)
    step(batch, TwoStageState(made, plain), training=training, structure="product")
    gradient = [origin - p.detach() for p, origin in zip(parameters, start, strict=True)]
    squared = float(sum(g.square().sum() for g in gradient))
    slope = (minimised(1e-5, gradient) - minimised(-1e-5, gradient)) / 2e-5
    # The finite difference's own error.
    assert slope == pytest.approx(squared, rel=1e-5)


@pytest.mark.law
def test_full_batch_training_lowers_both_losses() -> None:
    training = Training(holdout=0.0)
    result = fit(Split(sample(seed=1), sample(seed=2), None), training=training, steps=100, batch_size=None)
    first, last = result.history[0], result.history[-1]
    assert last["stage1_loss"] < first["stage1_loss"]
    assert last["stage2_loss"] < first["stage2_loss"]


@pytest.mark.law
def test_the_networks_returned_are_those_of_the_state_kept_in_evaluation_mode() -> None:
    seen: list[torch.Tensor] = []
    split = held_out()
    made = networks()
    result = fit(
        split,
        made=made,
        training=Training(checks=20, tolerance=0.0),
        learning_rate=(0.05, 0.05, 0.05),
        on_step=lambda: seen.append(flat(made.treatment)),
    )
    (kept,) = [record["step"] for record in result.history if record["kept"]]
    assert torch.equal(flat(result.networks.treatment), seen[kept - 1])
    assert not result.networks.treatment.training


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_a_refit_from_moments_over_chunks_is_the_refit_by_qr(
    monkeypatch: pytest.MonkeyPatch, gamma: float, weighted: bool
) -> None:
    stage1, stage2 = (sample(rows, seed=rows, dtype=torch.float64, weighted=weighted) for rows in (300, 250))
    made = networks(dtype=torch.float64)

    def refit() -> tuple[torch.Tensor, torch.Tensor]:
        return refit_last_layers(
            with_treatment_features(stage1, made.treatment),
            stage2,
            made,
            structure="product",
            first_stage_ridge=1e-4,
            ridge=1e-3,
            unpredicted_penalty=gamma,
        )

    whole = refit()
    monkeypatch.setattr(whole_sample, "QR_VALUES", 0)
    monkeypatch.setattr(whole_sample, "CHUNK", 37)
    chunked = refit()
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


@pytest.mark.law
def test_the_predicted_outcome_is_the_regression_that_stage_2_solved() -> None:
    """Refitting u on the same rows leaves residuals orthogonal to the constant."""
    rows, made = sample(300, dtype=torch.float64), networks(dtype=torch.float64)
    v, u = refit_last_layers(
        with_treatment_features(rows, made.treatment),
        rows,
        made,
        structure="product",
        first_stage_ridge=0.0,
        ridge=0.0,
        unpredicted_penalty=0.0,
    )
    done = TwoStageFit(made, v, u, "product", 0.0, 0.0, 0.0, [], "finished")
    residual = rows.outcome - done.predicted_outcome(instruments=rows.instruments, covariates=rows.covariates)
    assert abs(float(residual.mean())) < SAME


@pytest.mark.law
def test_current_reports_the_weights_that_training_left() -> None:
    split = Split(sample(seed=1), sample(seed=2), None)
    training = Training(holdout=0.0, rest=0.0)
    current = fit(split, training=training, report="current")
    refit = fit(split, training=training, report="refit")
    assert torch.equal(flat(current.networks.treatment), flat(refit.networks.treatment))
    assert not torch.equal(current.structural, refit.structural)
    assert np.isnan(current.refit_ridge)


@pytest.mark.law
def test_with_current_the_features_rest_at_the_end_and_the_last_state_is_reported() -> None:
    seen: list[torch.Tensor] = []
    made = networks()
    features = lambda: torch.cat([flat(module) for module in made.modules()])  # noqa: E731
    result = fit(
        held_out(),
        made=made,
        report="current",
        training=Training(rest=0.25, checks=4),
        on_step=lambda: seen.append(features()),
    )
    moves = [not torch.equal(before, after) for before, after in pairwise(seen)]
    assert moves == [True] * 14 + [False] * 5
    assert [record["kept"] for record in result.history] == [False, False, False, True]


@pytest.mark.law
def test_batch_statistics_rest_with_the_features() -> None:
    seen: list[torch.Tensor] = []
    made = networks()
    assert made.covariate is not None
    treatment, covariate = (nn.Sequential(net, nn.BatchNorm1d(w)) for net, w in ((made.treatment, 2), (made.covariate, 4)))
    normalised = Networks(treatment, made.instrument, covariate)
    means = lambda: torch.cat([network[1].running_mean.clone() for network in (treatment, covariate)])  # noqa: E731
    fit(held_out(), made=normalised, report="current", training=Training(rest=0.25), on_step=lambda: seen.append(means()))
    assert [not torch.equal(before, after) for before, after in pairwise(seen)] == [True] * 14 + [False] * 5


@pytest.mark.law
@pytest.mark.slow
def test_last_layers_that_settle_at_the_end_are_nearly_those_of_a_refit() -> None:
    """On features that never move, where what the last solve on 32 rows predicts is far from what the solve on all does."""
    split, other = Split(sample(2000, seed=1), sample(2000, seed=2), None), sample(3000, seed=3)

    def predicted(rest: float, report: Report) -> torch.Tensor:
        training = Training(holdout=0.0, rest=rest, refit_ridges=())
        fitted = fit(split, report=report, training=training, steps=400, learning_rate=NONE)
        return fitted.predicted_outcome(instruments=other.instruments, covariates=other.covariates)

    refit = predicted(0.0, "refit")
    settled, last = ((predicted(rest, "current") - refit).square().mean() for rest in (0.3, 0.0))
    assert settled < last / 4


@pytest.mark.law
def test_watching_the_steps_changes_no_number() -> None:
    seen: list[int] = []
    watched = fit(held_out(), on_step=lambda: seen.append(torch.rand(1) is None))
    with nets.seeded(7, torch.device("cpu")):
        alone = fit(held_out())
    assert len(seen) == 20
    assert torch.equal(watched.structural, alone.structural)


def test_a_diverging_fit_stops_with_the_last_good_state_and_names_the_step() -> None:
    def explode(made: Networks) -> None:
        with torch.no_grad():
            for p in made.treatment.parameters():
                p.fill_(float("nan"))

    split, made, calls = held_out(), networks(), []

    def on_step() -> None:
        calls.append(1)
        if len(calls) == 12:
            explode(made)

    with pytest.warns(TrainingWarning, match=r"training diverged at step 1[2-4] of 20 .*; the state of step \d+ is kept"):
        result = fit(split, made=made, training=Training(checks=10), on_step=on_step)
    assert result.ended == "diverged"
    assert torch.isfinite(result.structural).all()
    assert torch.isfinite(flat(result.networks.treatment)).all()


def test_a_fit_that_diverges_before_any_check_raises_with_a_remedy() -> None:
    split = held_out()
    poisoned = Split(split.stage1, replace(split.stage2, outcome=split.stage2.outcome * torch.nan), split.heldout)
    with pytest.raises(DivergenceError, match=r"diverged at step 1 of 20 before any usable state .*lower learning_rate"):
        fit(poisoned)


def test_an_interrupted_fit_keeps_the_best_state_so_far() -> None:
    calls: list[int] = []

    def on_step() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.warns(TrainingWarning, match=r"interrupted at step 7 of 20; the state of step \d+ is kept and usable"):
        result = fit(held_out(), on_step=on_step)
    assert result.ended == "interrupted"
    assert torch.isfinite(result.structural).all()


@pytest.mark.law
def test_covariate_features_with_steps_of_their_own_are_held_in_evaluation_mode_in_stage_2() -> None:
    made = networks()
    assert made.covariate is not None
    normalised = Networks(made.treatment, made.instrument, nn.Sequential(made.covariate, nn.BatchNorm1d(4)))
    modes: list[bool] = []
    assert normalised.covariate is not None
    normalised.covariate.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    options = Training(stage1_steps=0, covariate_steps=2)
    step(Batch(sample(seed=1), sample(seed=2), PENALTIES), state(normalised, options), training=options, structure="product")
    assert modes == [True, True, False]


def problem(split: Split) -> TwoStageProblem:
    return TwoStageProblem(split, "product", PENALTIES, 20, 32, NONE, NONE, "refit", Training())


def judged(
    made: Networks, split: Split, earlier: dict[str, torch.Tensor] | None
) -> tuple[dict[str, torch.Tensor] | None, torch.Tensor | None, float]:
    task = problem(split)
    return best_instrument_features(made, task, earlier, seen=Seen.by(made, task))


@pytest.mark.law
def test_instrument_features_that_predict_clearly_worse_in_sample_2_are_given_up_for_earlier_ones() -> None:
    split = held_out(2000)
    made = Networks(networks().treatment, nets.FeatureNetwork(3, (16,), 4, carry=False), networks().covariate)
    good, first, loss = judged(made, split, None)
    assert good is not None
    assert first is None  # nothing to go back to
    for parameter in made.instrument.parameters():  # features that say nothing of the treatment
        torch.nn.init.zeros_(parameter)
    kept, first, kept_loss = judged(made, split, good)
    assert kept is good
    assert first is not None
    assert kept_loss == loss
    assert all(torch.equal(value, good["tensors"][name]) for name, value in made.instrument.state_dict().items())


@pytest.mark.law
def test_instrument_features_that_predict_better_take_the_place_of_earlier_ones() -> None:
    split = held_out(2000)
    made = Networks(networks().treatment, nets.FeatureNetwork(3, (16,), 4, carry=False), networks().covariate)
    present = state_of(made.instrument)
    nothing = {"tensors": {name: torch.zeros_like(value) for name, value in present["tensors"].items()}, "extra": {}}
    best, first, _ = judged(made, split, nothing)
    assert first is None
    assert best is not None
    assert all(torch.equal(best["tensors"][name], value) for name, value in present["tensors"].items())


@pytest.mark.law
def test_without_held_out_rows_instrument_features_are_left_alone() -> None:
    split, made = Split(sample(seed=1), sample(seed=2), None), networks()
    before = flat(made.instrument)
    assert judged(made, split, {})[0] is None
    assert torch.equal(flat(made.instrument), before)
