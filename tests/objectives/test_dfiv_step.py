"""The DFIV step of one member and of several, and the fit around it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfiv.errors import DivergenceError, ParameterError, TrainingWarning
from cfiv.learning import whole_sample
from cfiv.learning.last_layer import Memory, Proximal
from cfiv.learning.learner import Learner
from cfiv.learning.samples import Sample, Split, hold_out
from cfiv.learning.training import Report, Training
from cfiv.learning.whole_sample import refit_last_layers
from cfiv.networks import default_networks as nets
from cfiv.networks.feature_maps import Networks
from cfiv.networks.stacked_networks import member_network
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.dfiv_batches import Stage1Rows, Stage2Rows, TwoStageBatch
from cfiv.objectives.dfiv_fit import fit_dfiv
from cfiv.objectives.dfiv_judge import Judge
from cfiv.objectives.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.objectives.dfiv_step import DFIVState, LastLayers, Losses, MemberNetworks, StepOptions, step
from cfiv.runtime.draws import seeded

RIDGE = 1e-3
LAYERS = LastLayers(v1=Proximal(1.0, beta=RIDGE), v12=Proximal(1.0, beta=RIDGE), u=Proximal(1.0, beta=RIDGE))
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
    instruments = torch.cat([z, x], 1).to(dtype)
    return Sample(outcome=y.to(dtype), treatment=t.to(dtype), instruments=instruments, covariates=x.to(dtype), weights=w)


def networks(seed: int = 0, dtype: torch.dtype = torch.float32) -> Networks:
    with seeded(seed, torch.device("cpu")):
        made = Networks(nets.treatment_network((1,)), nets.FeatureNetwork(3, (16,), 4), nets.FeatureNetwork(2, (16,), 2))
    for module in made.modules():
        module.to(dtype)
    return made


def side_by_side(*members: Networks) -> MemberNetworks:
    return MemberNetworks(*(member_network(same) for same in zip(*(each.modules() for each in members), strict=True)))


def state(*members: Networks, training: Training, rate: float = 1e-2) -> DFIVState:
    return DFIVState.begin(side_by_side(*members), training=training, learning_rate=(rate,) * 3, weight_decay=NONE)


def batch(stage1: list[Sample], stage2: list[Sample]) -> TwoStageBatch:
    """Rows of both samples of every member, side by side."""

    def stacked(samples: list[Sample], *roles: str) -> dict[str, Any]:
        parts = {role: [getattr(each, role) for each in samples] for role in ("instruments", "covariates", "weights", *roles)}
        return {role: None if each[0] is None else torch.stack(each) for role, each in parts.items()}

    return TwoStageBatch(Stage1Rows(**stacked(stage1, "treatment")), Stage2Rows(**stacked(stage2, "outcome")))


def options(training: Training, structure: Structure = "product", gamma: float = 0.0) -> StepOptions:
    return StepOptions(training, structure, gamma)


def values(network: Any, member: int = 0) -> torch.Tensor:
    return flat(network.module(member))


def flat(module: nn.Module | None) -> torch.Tensor:
    assert module is not None
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def weights(memory: Memory | None) -> torch.Tensor:
    assert memory is not None
    return memory.weights


def together(stage1: Sample, stage2: Sample, heldout: int = 0) -> tuple[Sample, Split]:
    """Both samples in one table, the last rows of the second held out."""
    parts = {name: (one, vars(stage2)[name]) for name, one in vars(stage1).items() if one is not None}
    rows = Sample(**{name: torch.cat(both) for name, both in parts.items() if both[1] is not None})
    first, second = torch.arange(len(stage1)), torch.arange(len(stage1), len(stage1) + len(stage2))
    kept, last = second[: len(second) - heldout], second[len(second) - heldout :]
    return rows, Split(stage1=first, stage2=kept, heldout=last if heldout else None)


def problem(rows: Sample, *splits: Split, **changes: Any) -> DFIVProblem:
    plain = DFIVProblem(
        sample=rows,
        splits=splits,
        structure="product",
        layers=LAYERS,
        ridge1=RIDGE,
        ridge2=RIDGE,
        unpredicted_penalty=0.0,
        steps=20,
        batch_size=32,
        learning_rate=(0.01, 0.01, 0.01),
        weight_decay=NONE,
        report="refit",
        training=Training(),
    )
    return replace(plain, **changes)


def fit(
    rows: Sample,
    split: Split,
    *,
    made: Networks | None = None,
    on_step: Callable[[], object] = lambda: None,
    **changes: Any,
) -> TwoStageFit:
    (fitted,) = fit_dfiv(
        problem(rows, split, **changes), [made or networks()], generators=[np.random.default_rng(0)], on_step=on_step
    )
    if isinstance(fitted, DivergenceError):
        raise fitted
    return fitted


def held_out(rows: int = 200) -> tuple[Sample, Split]:
    table, split = together(sample(rows, seed=1), sample(rows, seed=2))
    return table, hold_out(stage1=split.stage1, sample2=split.stage2, share=0.2, generator=np.random.default_rng(0))


@pytest.mark.law
@pytest.mark.parametrize(
    ("training", "moves"),
    [
        (Training(stage2_steps=0), (False, True, False)),
        (Training(stage1_steps=0), (True, False, True)),
        (Training(stage1_steps=0, stage2_steps=0, covariate_steps=1), (False, False, True)),
        (Training(stage1_steps=0, covariate_steps=1), (True, False, True)),
        (Training(), (True, True, True)),
        (Training(order="backbone-first"), (True, True, True)),
    ],
)
def test_each_kind_of_step_moves_its_own_network_only(training: Training, moves: tuple[bool, bool, bool]) -> None:
    start = state(networks(), training=training)
    before = [values(network) for network in start.networks.those()]
    step(batch([sample(seed=1)], [sample(seed=2)]), start, layers=LAYERS, options=options(training))
    after = [values(network) for network in start.networks.those()]
    assert tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moves


@pytest.mark.law
def test_large_proximal_penalties_freeze_the_last_layers() -> None:
    training = Training()
    first, _ = step(
        batch([sample(seed=1)], [sample(seed=2)]),
        state(networks(), training=training),
        layers=LAYERS,
        options=options(training),
    )
    frozen = LastLayers(*(replace(layer, lam=1e9) for layer in (LAYERS.v1, LAYERS.v12, LAYERS.u)))
    second, _ = step(batch([sample(seed=3)], [sample(seed=4)]), first, layers=frozen, options=options(training))
    torch.testing.assert_close(weights(second.u), weights(first.u), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights(second.v), weights(first.v), rtol=1e-6, atol=1e-6)


@pytest.mark.law
def test_a_backbone_first_step_descends_at_the_previous_weights_and_then_solves_with_the_new_features() -> None:
    """With one stage-2 step and V12 independent of the order, only the order of u tells the two apart."""
    training = Training(stage1_steps=0, order="backbone-first")
    made = networks(dtype=torch.float64)
    rows = batch([sample(seed=1, dtype=torch.float64)], [sample(seed=2, dtype=torch.float64)])
    start, _ = step(rows, state(made, training=training, rate=0.0), layers=LAYERS, options=options(training))
    start.psi.set_rate(0.0)
    for group in start.psi.optimiser.param_groups if start.psi.optimiser else ():
        group["lr"] = 1e-3
    after, _ = step(rows, start, layers=LAYERS, options=options(training))
    again, _ = step(rows, start, layers=LAYERS, options=options(Training(stage1_steps=0, stage2_steps=0)))
    torch.testing.assert_close(weights(after.u), weights(again.u), rtol=SAME, atol=SAME)


SOLVING = Training(stage1_steps=0, stage2_steps=0)


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("structure", ["product", "additive"])
def test_a_first_step_solves_what_a_refit_of_its_batch_solves(structure: Structure, gamma: float, weighted: bool) -> None:
    """Without a past there is no proximal pull, and the ridges and the unpredicted penalty are the same."""
    stage1, stage2 = (sample(rows, seed=rows, dtype=torch.float64, weighted=weighted) for rows in (120, 90))
    made = networks(dtype=torch.float64)
    solved, _ = step(
        batch([stage1], [stage2]),
        state(made, training=SOLVING),
        layers=LAYERS,
        options=options(SOLVING, structure, gamma),
    )
    both, split = together(stage1, stage2)
    first, structural = refit_last_layers(
        both,
        made,
        stage1=split.stage1,
        stage2=split.stage2,
        structure=structure,
        first_stage_ridge=RIDGE,
        ridge=RIDGE,
        unpredicted_penalty=gamma,
    )
    torch.testing.assert_close(weights(solved.v)[0], first, rtol=SAME, atol=SAME)
    torch.testing.assert_close(weights(solved.u)[0], structural, rtol=SAME, atol=SAME)


@pytest.mark.gradient
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_a_step_moves_treatment_and_covariate_features_down_the_objective_it_minimises(gamma: float) -> None:
    rows = batch(*([sample(100, seed=s, dtype=torch.float64, weighted=True)] for s in (1, 2)))
    begun = state(networks(dtype=torch.float64), training=SOLVING)
    moved = [begun.networks.treatment, begun.networks.covariate]
    start = [network.state(0) for network in moved if network is not None]

    def put(distance: float, direction: list[torch.Tensor]) -> None:
        for network, origin, d in zip(moved, start, direction, strict=True):
            assert network is not None
            network.put(0, origin + distance * d)

    def minimised(distance: float, direction: list[torch.Tensor]) -> float:
        put(distance, direction)
        solved, losses = step(rows, begun, layers=LAYERS, options=options(SOLVING, gamma=gamma))
        return float(losses.stage2 + RIDGE * weights(solved.u).square().sum())

    plain = torch.optim.SGD([p for network in moved if network is not None for p in network.parameters], lr=1.0)
    learning = replace(begun, psi=Learner(tuple(network for network in moved if network is not None), plain))
    step(rows, learning, layers=LAYERS, options=options(Training(stage1_steps=0), gamma=gamma))
    gradient = [origin - network.state(0) for network, origin in zip(moved, start, strict=True) if network is not None]
    squared = float(sum(g.square().sum() for g in gradient))
    slope = (minimised(1e-5, gradient) - minimised(-1e-5, gradient)) / 2e-5
    # The finite difference's own error.
    assert slope == pytest.approx(squared, rel=1e-5)


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("structure", ["product", "additive"])
@pytest.mark.parametrize(
    "training",
    [
        Training(),
        Training(order="backbone-first"),
        Training(covariate_steps=2),
        Training(stage1_steps=0),
        Training(stage2_steps=2),
    ],
    ids=["default", "backbone first", "covariates apart", "no stage 1", "two steps of stage 2"],
)
def test_members_side_by_side_are_each_alone(training: Training, structure: Structure, gamma: float, weighted: bool) -> None:
    members = [networks(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    again = [networks(seed, dtype=torch.float64) for seed in (1, 2, 3)]
    given = options(training, structure, gamma)

    def rows(member: int, number: int) -> list[Sample]:
        return [sample(60, seed=100 * member + 2 * number + s, dtype=torch.float64, weighted=weighted) for s in (0, 1)]

    stacked = state(*members, training=training)
    alone = [state(each, training=training) for each in again]
    for number in range(3):
        stage1, stage2 = zip(*(rows(member, number) for member in range(3)), strict=True)
        stacked, losses = step(batch(list(stage1), list(stage2)), stacked, layers=LAYERS, options=given)
        for member in range(3):
            alone[member], own = step(batch([stage1[member]], [stage2[member]]), alone[member], layers=LAYERS, options=given)
            torch.testing.assert_close(losses.stage2[member], own.stage2[0], rtol=SAME, atol=SAME)
            torch.testing.assert_close(weights(stacked.u)[member], weights(alone[member].u)[0], rtol=SAME, atol=SAME)
            for one, other in zip(stacked.networks.those(), alone[member].networks.those(), strict=True):
                torch.testing.assert_close(one.state(member), other.state(0), rtol=SAME, atol=SAME)


@pytest.mark.law
def test_a_member_with_features_that_are_not_finite_leaves_the_others_alone() -> None:
    training = Training()

    def after(poisoned: bool) -> tuple[DFIVState, Losses]:
        begun = state(networks(1), networks(2), training=training)
        if poisoned:
            begun.networks.treatment.put(1, torch.full_like(begun.networks.treatment.state(1), torch.nan))
        for number in range(2):
            rows = batch(*([sample(60, seed=10 * number + s + place) for place in (0, 5)] for s in (1, 2)))
            begun, losses = step(rows, begun, layers=LAYERS, options=options(training))
        return begun, losses

    (good, losses), (bad, bad_losses) = after(False), after(True)
    assert torch.equal(bad.networks.instrument.state(0), good.networks.instrument.state(0))
    assert torch.equal(weights(bad.u)[0], weights(good.u)[0])
    assert torch.equal(bad_losses.stage2[0], losses.stage2[0])
    assert not bool(bad_losses.stage2[1].isfinite())


def test_a_last_layer_that_hides_its_targets_from_gradients_is_refused_in_stage_2() -> None:
    class Detached:
        def update(self, memory: Memory | None, *, targets: torch.Tensor, **given: Any) -> Memory:
            return Proximal(1.0, beta=RIDGE).update(memory, targets=targets.detach(), **given)

    layers = replace(LAYERS, v12=Detached())
    with pytest.raises(ParameterError, match=r"last_layer must give weights that are differentiable in its targets"):
        step(
            batch([sample(seed=1)], [sample(seed=2)]),
            state(networks(), training=Training()),
            layers=layers,
            options=options(Training()),
        )


@pytest.mark.law
def test_full_batch_training_lowers_both_losses() -> None:
    # Two steps of phi for each of psi, or stage 1 runs after what psi has become.
    training = Training(stage1_steps=2, holdout=0.0, checks=20)
    result = fit(*together(sample(seed=1), sample(seed=2)), training=training, steps=100, batch_size=None)
    first, last = result.history[0], result.history[-1]
    assert last["stage1_loss"] < first["stage1_loss"]
    assert last["stage2_loss"] < first["stage2_loss"]


@pytest.mark.law
def test_the_networks_returned_are_those_of_the_state_kept_in_evaluation_mode() -> None:
    """A network of any kind is trained as it is, so that it can be watched."""
    seen: list[torch.Tensor] = []
    rows, split = held_out()
    made = networks()
    made = replace(made, treatment=nn.Sequential(made.treatment, nn.Dropout(0.0)))
    result = fit(
        rows,
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
    made, (both, split) = networks(dtype=torch.float64), together(stage1, stage2)

    def refit() -> tuple[torch.Tensor, torch.Tensor]:
        return refit_last_layers(
            both,
            made,
            stage1=split.stage1,
            stage2=split.stage2,
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
        rows,
        made,
        stage1=torch.arange(300),
        stage2=torch.arange(300),
        structure="product",
        first_stage_ridge=0.0,
        ridge=0.0,
        unpredicted_penalty=0.0,
    )
    done = TwoStageFit(
        networks=made,
        first_stage=v,
        structural=u,
        structure="product",
        heldout_loss=0.0,
        first_stage_ridge=0.0,
        refit_ridge=0.0,
        history=[],
        ended="finished",
    )
    residual = rows.outcome - done.predicted_outcome(instruments=rows.instruments, covariates=rows.covariates)
    assert abs(float(residual.mean())) < SAME


@pytest.mark.law
def test_current_reports_the_weights_that_training_left() -> None:
    rows, split = together(sample(seed=1), sample(seed=2))
    training = Training(holdout=0.0, rest=0.0)
    current = fit(rows, split, training=training, report="current")
    refit = fit(rows, split, training=training, report="refit")
    assert torch.equal(flat(current.networks.treatment), flat(refit.networks.treatment))
    assert not torch.equal(current.structural, refit.structural)
    assert np.isnan(current.refit_ridge)


@pytest.mark.law
def test_with_current_the_features_rest_at_the_end_and_the_last_state_is_reported() -> None:
    seen: list[torch.Tensor] = []
    made = networks()
    made = Networks.of([nn.Sequential(module, nn.Dropout(0.0)) for module in made.modules()])
    features = lambda: torch.cat([flat(module) for module in made.modules()])  # noqa: E731
    result = fit(
        *held_out(),
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
    fit(*held_out(), made=normalised, report="current", training=Training(rest=0.25), on_step=lambda: seen.append(means()))
    assert [not torch.equal(before, after) for before, after in pairwise(seen)] == [True] * 14 + [False] * 5


@pytest.mark.law
@pytest.mark.slow
def test_last_layers_that_settle_at_the_end_are_nearly_those_of_a_refit() -> None:
    """On features that never move, where what the last solve on 32 rows predicts is far from what the solve on all does."""
    (rows, split), other = together(sample(2000, seed=1), sample(2000, seed=2)), sample(3000, seed=3)

    def predicted(rest: float, report: Report) -> torch.Tensor:
        training = Training(holdout=0.0, rest=rest, refit_ridges=())
        fitted = fit(rows, split, report=report, training=training, steps=400, learning_rate=NONE)
        return fitted.predicted_outcome(instruments=other.instruments, covariates=other.covariates)

    refit = predicted(0.0, "refit")
    settled, last = ((predicted(rest, "current") - refit).square().mean() for rest in (0.3, 0.0))
    assert settled < last / 4


@pytest.mark.law
def test_watching_the_steps_changes_no_number() -> None:
    seen: list[int] = []
    watched = fit(*held_out(), on_step=lambda: seen.append(torch.rand(1) is None))
    with seeded(7, torch.device("cpu")):
        alone = fit(*held_out())
    assert len(seen) == 20
    assert torch.equal(watched.structural, alone.structural)


def test_a_diverging_fit_stops_with_the_last_good_state_and_names_the_step() -> None:
    def explode(made: Networks) -> None:
        with torch.no_grad():
            for p in made.treatment.parameters():
                p.fill_(float("nan"))

    made, calls = networks(), []
    made = replace(made, treatment=nn.Sequential(made.treatment, nn.Dropout(0.0)))

    def on_step() -> None:
        calls.append(1)
        if len(calls) == 12:
            explode(made)

    with pytest.warns(TrainingWarning, match=r"training diverged at step 1[2-4] of 20 .*; the state of step \d+ is kept"):
        result = fit(*held_out(), made=made, training=Training(checks=10), on_step=on_step)
    assert result.ended == "diverged"
    assert torch.isfinite(result.structural).all()
    assert torch.isfinite(flat(result.networks.treatment)).all()


def test_a_fit_that_diverges_before_any_check_raises_with_a_remedy() -> None:
    rows, split = held_out()
    with pytest.raises(DivergenceError, match=r"diverged at step 1 of 20 before any usable state .*lower learning_rate"):
        fit(replace(rows, outcome=rows.outcome * torch.nan), split, training=Training(checks=20))


@pytest.mark.law
def test_a_member_that_diverges_ends_alone_and_the_others_are_what_they_are_without_it() -> None:
    rows, split = held_out()
    poisoned = replace(rows, outcome=torch.cat([rows.outcome, rows.outcome * torch.nan]))
    everything = replace(rows.rows(torch.arange(len(rows)).repeat(2)), outcome=poisoned.outcome)
    other = Split(**{name: None if part is None else part + len(rows) for name, part in vars(split).items()})

    def fitted(*splits: Split) -> list[TwoStageFit | DivergenceError]:
        made = [networks(seed) for seed in range(len(splits))]
        generators = [np.random.default_rng(seed) for seed in range(len(splits))]
        return fit_dfiv(problem(everything, *splits), made, generators=generators, on_step=lambda: None)

    good, error, third = fitted(split, other, split)
    assert isinstance(good, TwoStageFit)
    assert isinstance(third, TwoStageFit)
    assert isinstance(error, DivergenceError)
    assert good.ended == third.ended == "finished"
    expected = fitted(split, split, split)[0]
    assert isinstance(expected, TwoStageFit)
    assert torch.equal(good.structural, expected.structural)


def test_an_interrupted_fit_keeps_the_best_state_so_far() -> None:
    calls: list[int] = []

    def on_step() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.warns(TrainingWarning, match=r"interrupted at step 7 of 20; the state of step \d+ is kept and usable"):
        result = fit(*held_out(), on_step=on_step)
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
    training = Training(stage1_steps=0, covariate_steps=2)
    step(
        batch([sample(seed=1)], [sample(seed=2)]),
        state(normalised, training=training),
        layers=LAYERS,
        options=options(training),
    )
    assert modes == [True, True, False]


def judged(made: Networks, rows: Sample, split: Split) -> tuple[MemberNetworks, Judge]:
    network = side_by_side(made)
    return network, Judge(problem(rows, split), network, 0)


def uncarried() -> Networks:
    return Networks(networks().treatment, nets.FeatureNetwork(3, (16,), 4, carry=False), networks().covariate)


@pytest.mark.law
def test_instrument_features_that_predict_clearly_worse_in_sample_2_are_given_up_for_earlier_ones() -> None:
    network, judge = judged(uncarried(), *held_out(2000))
    first, loss = judge.best_instrument_features()
    assert first is None  # nothing to go back to
    good = network.instrument.state(0)
    network.instrument.put(0, torch.zeros_like(good))  # features that say nothing of the treatment
    judge.forget()
    first, kept_loss = judge.best_instrument_features()
    assert torch.equal(judge.best_state, good)
    assert first is not None
    assert kept_loss == pytest.approx(loss, rel=1e-6)
    assert torch.equal(network.instrument.state(0), good)


@pytest.mark.law
def test_instrument_features_that_predict_better_take_the_place_of_earlier_ones() -> None:
    network, judge = judged(uncarried(), *held_out(2000))
    present = network.instrument.state(0)
    judge.best_state = torch.zeros_like(present)
    first, _ = judge.best_instrument_features()
    assert first is None
    assert torch.equal(judge.best_state, present)


@pytest.mark.law
def test_without_held_out_rows_instrument_features_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("nothing is given up")

    monkeypatch.setattr(Judge, "best_instrument_features", never)
    result = fit(*together(sample(seed=1), sample(seed=2)))
    assert all(np.isnan(record["stage1_heldout_loss"]) for record in result.history)
