"""Cross-fitted kernel IV with a line beside the curve, row by row; and bandwidths by relevance."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cfiv.numerics.kernel_cross_fitting import fit_across_folds
from cfiv.numerics.kernel_first_stage import FirstStage, Layout
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Moments, sample_moments
from cfiv.numerics.landmarks import KernelFeatures, LineColumns, LinedFeatures
from cfiv.numerics.relevance import MANY, RelevantFit, relevant_fit

#: Relative to the largest value: the same normal equations, solved in another basis.
SOLVED = 1e-7
ROWS, FOLDS = 90, 3
PENALTIES = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)


class Problem:
    """Standardised columns, in a design whose first stage is a line or is none, and likewise its truth."""

    def __init__(
        self, *, curved: bool, rows: int = ROWS, truth: Callable[[Tensor], Tensor] = torch.sin, departures: bool = False
    ) -> None:
        z, x, u, e = torch.from_numpy(np.random.default_rng(0).normal(size=(4, rows)))
        t = (2 * torch.sin(2 * z) if curved else z) + 0.3 * x + 0.3 * u
        y = truth(t) + x + u + 0.3 * e
        t, x, z, y = ((c - c.mean()) / c.std(correction=0) for c in (t, x, z, y))
        self.t, self.y = torch.stack([t, x], dim=1), y[:, None]
        self.z, self.controls = torch.stack([z, x], dim=1), torch.stack([t, torch.tanh(t)], dim=1)
        self.parts = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tensor_split(FOLDS)
        columns = LineColumns(
            centre=torch.zeros(2, dtype=torch.float64), scale=torch.ones(2, dtype=torch.float64), constant=True
        )
        wide = torch.ones(2, dtype=torch.float64)
        phi, psi = (
            LinedFeatures(columns, KernelFeatures.of_landmarks(points[:20], bandwidths=wide)) for points in (self.z, self.t)
        )
        if departures:
            psi = psi.departures(self.t, weights=torch.ones(rows, dtype=torch.float64))
        self.layout = Layout(instruments=3, treatments=3, constant=True, controls=2, penalty=1 / rows, departures=departures)
        self.phi, self.psi, self.psi_features = phi(self.z), psi(self.t), psi
        self.moments = [self._moments(part, phi, psi) for part in self.parts]

    def _moments(self, rows: Tensor, phi: LinedFeatures, psi: LinedFeatures) -> Moments:
        return sample_moments(
            instruments=self.z[rows],
            treatments=self.t[rows],
            outcome=self.y[rows],
            weights=torch.full((len(rows),), 1 / len(self.y), dtype=torch.float64),
            instrument_features=phi,
            treatment_features=psi,
            structural=True,
            controls=self.controls[rows],
        )

    def first(self) -> FirstStage:
        return FirstStage.choose(self.moments, PENALTIES, self.layout)


def ridge(features: Tensor, targets: Tensor, penalties: Tensor) -> Tensor:
    """Weights with penalties beside the sum over rows."""
    return torch.linalg.solve(features.mT @ features + torch.diag(penalties), features.mT @ targets)


@pytest.mark.oracle
@pytest.mark.parametrize("curved", [False, True])
def test_a_line_is_predicted_by_two_stage_least_squares_or_by_curves_regressed_on_once_more(curved: bool) -> None:
    problem = Problem(curved=curved)
    first, n = problem.first(), len(problem.y)
    assert math.isinf(first.of_line) is not curved
    line = problem.psi[:, :3]
    if not curved:
        linear = problem.phi[:, :3]
        expected = linear @ ridge(linear, line, torch.ones(3, dtype=torch.float64))
    else:
        predicted = torch.zeros_like(line)
        for part in problem.parts:
            rest = torch.tensor(sorted(set(range(n)) - set(part.tolist())))
            each = torch.full((problem.phi.shape[1],), first.of_line * len(rest), dtype=torch.float64)
            each[:3] = len(rest) / n
            predicted[part] = problem.phi[part] @ ridge(problem.phi[rest], line[rest], each)
        expected = predicted @ torch.linalg.lstsq(predicted, line).solution
    found = torch.zeros_like(line)
    for k, part in enumerate(problem.parts):
        found[part] = problem.phi[part] @ first.lined(first.outside(k))[:, :3]
    torch.testing.assert_close(found, expected, rtol=0, atol=SOLVED * float(expected.abs().max()))


@pytest.mark.oracle
@pytest.mark.parametrize("curved", [False, True])
def test_a_fold_is_predicted_by_the_rows_outside_it_and_outside_the_one_that_is_held_out(curved: bool) -> None:
    problem = Problem(curved=curved)
    first, n = problem.first(), len(problem.y)
    seen = []
    for j, k, v in first.pairs():
        rest = torch.tensor(sorted(set(range(n)) - set(problem.parts[j].tolist()) - set(problem.parts[k].tolist())))
        each = torch.full((problem.phi.shape[1],), first.choice.chosen * len(rest), dtype=torch.float64)
        each[:3] = len(rest) / n
        expected = ridge(problem.phi[rest], problem.psi[rest][:, 3:], each)
        torch.testing.assert_close(v[:, 3:], expected, rtol=0, atol=SOLVED * float(expected.abs().max()))
        seen.append((j, k))
    assert sorted(seen) == [(j, k) for j in range(FOLDS) for k in range(FOLDS) if j != k]


@pytest.mark.law
def test_departures_from_a_line_have_no_line_left_and_are_the_same_functions() -> None:
    problem = Problem(curved=False)
    columns = problem.psi_features.columns
    weights = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64)
    departures = problem.psi_features.departures(problem.t, weights=weights)
    values = departures(problem.t)
    assert departures.line is not None
    gram = values.mT @ (weights[:, None] / weights.sum() * values)
    # Of least squares with a penalty of 1/n.
    torch.testing.assert_close(gram[:3, 3:], departures.line / ROWS, rtol=0, atol=SOLVED)
    torch.testing.assert_close(values[:, 3:] + columns(problem.t) @ departures.line, problem.psi[:, 3:], rtol=0, atol=SOLVED)
    u = torch.linspace(-1.0, 1.0, values.shape[1], dtype=torch.float64)
    torch.testing.assert_close(departures.expansion(u)(problem.t), values @ u, rtol=0, atol=SOLVED)


@pytest.mark.oracle
@pytest.mark.parametrize("curved", [False, True])
def test_departures_are_predicted_by_curves_alone_where_that_is_better_on_held_out_rows(curved: bool) -> None:
    problem = Problem(curved=curved, departures=True)
    first, n = problem.first(), len(problem.y)

    def losses(columns: list[int], lined: int) -> Tensor:
        found = torch.zeros_like(PENALTIES)
        for part in problem.parts:
            rest = torch.tensor(sorted(set(range(n)) - set(part.tolist())))
            for i, penalty in enumerate(PENALTIES.tolist()):
                each = torch.full((len(columns),), penalty * len(rest), dtype=torch.float64)
                each[:lined] = len(rest) / n
                v = ridge(problem.phi[rest][:, columns], problem.psi[rest][:, 3:], each)
                found[i] += (problem.psi[part][:, 3:] - problem.phi[part][:, columns] @ v).square().sum() / n
        return found

    everything = list(range(problem.phi.shape[1]))
    with_line, alone = losses(everything, 3), losses([0, *everything[3:]], 1)
    assert first.alone is bool(alone.min() < with_line.min())
    torch.testing.assert_close(first.choice.losses, alone if first.alone else with_line, rtol=SOLVED, atol=0)
    assert not first.outside(0)[1:3, 3:-2].any() or not first.alone


@pytest.mark.oracle
@pytest.mark.parametrize("curved", [False, True])
def test_the_loss_with_controls_is_that_of_held_out_residuals_beside_what_stage_1_leaves(curved: bool) -> None:
    problem = Problem(curved=curved)
    fitted = fit_across_folds(
        problem.moments,
        stage1_penalties=PENALTIES,
        stage2_penalties=PENALTIES,
        layout=problem.layout,
        families=["line and curve"],
    )
    first, n = problem.first(), len(problem.y)
    of_pairs = {(j, k): v for j, k, v in first.pairs()}
    losses = torch.zeros_like(PENALTIES)
    for k, part in enumerate(problem.parts):
        rest = [j for j in range(FOLDS) if j != k]
        predicted = torch.cat([problem.phi[problem.parts[j]] @ of_pairs[j, k] for j in rest])
        outcome = torch.cat([problem.y[problem.parts[j]] for j in rest])
        v = problem.controls[part] - problem.phi[part] @ first.outside(k)[:, -problem.controls.shape[1] :]
        for i, xi in enumerate(PENALTIES.tolist()):
            each = torch.full((predicted.shape[1],), n * xi, dtype=torch.float64)
            each[:3] = 1.0
            residual = problem.y[part] - problem.psi[part] @ ridge(predicted, outcome, each)
            rho = ridge(v, residual, torch.ones(2, dtype=torch.float64))
            losses[i] += ((residual - v @ rho).square().sum() + rho.square().sum()) / n
    torch.testing.assert_close(fitted.stage2.losses, losses, rtol=SOLVED, atol=0)


@pytest.mark.law
def test_the_answer_is_the_line_where_no_curve_is_better_by_more_than_chance() -> None:
    """Two-stage least squares, with one row's worth of a penalty."""

    def fitted(problem: Problem) -> KernelTwoStage:
        return fit_across_folds(
            problem.moments,
            stage1_penalties=PENALTIES,
            stage2_penalties=PENALTIES,
            layout=problem.layout,
            fallback=True,
        )

    assert fitted(Problem(curved=False, rows=400, truth=lambda t: torch.sin(2 * t))).family != "line"
    problem = Problem(curved=False, truth=lambda t: 2 * t)
    line = fitted(problem)
    assert line.family == "line"
    assert not line.structural[3:].any()
    linear = problem.phi[:, :3]
    predicted = linear @ ridge(linear, problem.psi[:, :3], torch.ones(3, dtype=torch.float64))
    expected = ridge(predicted, problem.y, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(line.structural[:3, None], expected, rtol=SOLVED, atol=SOLVED)


@pytest.mark.law
def test_columns_that_do_not_matter_get_wide_bandwidths_whatever_their_units() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 6)))
    target = torch.sin(3 * points[:, :1]) + points[:, 1:2]

    def found(unit: float) -> Tensor:
        columns = LineColumns(
            centre=torch.zeros(6, dtype=torch.float64), scale=torch.full((6,), unit, dtype=torch.float64), constant=True
        )
        fit = relevant_fit(
            unit * points,
            targets=target / target.std(),
            weights=torch.ones(400, dtype=torch.float64),
            medians=torch.full((6,), 0.95 * unit, dtype=torch.float64),
            columns=columns,
            generator=np.random.default_rng(0),
            leading=1,
        )
        return fit.bandwidths / unit

    bandwidths = found(1.0)
    assert float(bandwidths[0]) < 1.0
    assert float(bandwidths[1:].min()) > 10 * float(bandwidths[0]), "a straight line needs no curve either"
    torch.testing.assert_close(found(1000.0), bandwidths, rtol=1e-6, atol=0)


def relevant_fit_of(columns: int, *, rows: int = 800, leading: int = 1) -> RelevantFit:
    """Of ``sin(2 x0) + x1`` and noise, in standard normal columns."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(rows, columns)))
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(rows, 1)))
    target = torch.sin(2 * points[:, :1]) + points[:, 1:2] + noise
    line = LineColumns(
        centre=torch.zeros(columns, dtype=torch.float64), scale=torch.ones(columns, dtype=torch.float64), constant=True
    )
    return relevant_fit(
        points,
        targets=target / target.std(),
        weights=torch.ones(rows, dtype=torch.float64),
        medians=torch.full((columns,), 0.95, dtype=torch.float64),
        columns=line,
        generator=np.random.default_rng(0),
        leading=leading,
    )


@pytest.mark.law
def test_one_of_many_columns_along_which_a_function_bends_is_found() -> None:
    """With equal shares all rows are strangers, and the search never left them."""
    fit = relevant_fit_of(200)
    assert int(fit.bandwidths.argmin()) == 0
    assert float(fit.bandwidths[1:].min()) > 3 * float(fit.bandwidths[0])
    x = torch.zeros(50, 200, dtype=torch.float64)
    x[:, 0] = torch.linspace(-2.0, 2.0, 50, dtype=torch.float64)
    curve = fit.departure()(x)
    assert float(torch.corrcoef(torch.stack([curve, torch.sin(2 * x[:, 0])]))[0, 1]) > 0.7


@pytest.mark.contract
def test_of_few_columns_none_is_looked_at_by_itself() -> None:
    torch.testing.assert_close(
        relevant_fit_of(MANY, leading=1).bandwidths, relevant_fit_of(MANY, leading=MANY).bandwidths, rtol=0, atol=0
    )
