"""Both stages of kernel IV and their paths of penalties, against the paper's formulas and what defines them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cfiv.numerics import kernels
from cfiv.numerics.kernel_cross_fitting import fit_across_folds
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Moments, fit_two_samples, sample_moments
from cfiv.numerics.kernels import kernel_matrix
from cfiv.numerics.landmarks import KernelFeatures
from cfiv.numerics.ridge_path import PenaltyChoice, RidgePath, SquaredError

#: Rounding of sums of up to a few hundred numbers near one.
ROUNDING = 1e-13
#: What the issue asks of the agreement with the paper's formulas, relative to the largest value.
TRANSCRIBED = 1e-8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


class Problem:
    """Two samples of a confounded problem, and the paper's formulas written out."""

    def __init__(self, n: int = 40, m: int = 50, *, weighted: bool = False) -> None:
        z, u, noise = normal(n + m, seed=3), normal(n + m, seed=4), normal(n + m, seed=5)
        c = normal(n + m, seed=6)
        t = z + 0.5 * u + 0.3 * c
        self.y = (torch.sin(t) + 0.5 * c + u + 0.1 * noise)[:, None]
        self.x, self.z = torch.stack([t, c], dim=1), torch.stack([z, c], dim=1)
        self.bandwidths_x = torch.tensor([0.7, 0.5], dtype=torch.float64)
        self.bandwidths_z = torch.tensor([0.5, 0.6], dtype=torch.float64)
        self.first, self.second = torch.arange(n), torch.arange(n, n + m)
        self.w = normal(n + m, seed=7).abs() if weighted else None

    def features(self, landmarks: Tensor) -> tuple[KernelFeatures, KernelFeatures]:
        """``phi`` and ``psi``."""
        return (
            KernelFeatures.of_landmarks(self.z[landmarks], bandwidths=self.bandwidths_z),
            KernelFeatures.of_landmarks(self.x[landmarks], bandwidths=self.bandwidths_x),
        )

    def moments(
        self, rows: Tensor, phi: KernelFeatures, psi: KernelFeatures, *, total: float | None = None, structural: bool = True
    ) -> Moments:
        w = torch.ones(len(rows), dtype=torch.float64) if self.w is None else self.w[rows]
        return sample_moments(
            instruments=self.z[rows],
            treatments=self.x[rows],
            outcome=self.y[rows],
            weights=w / (float(w.sum()) if total is None else total),
            instrument_features=phi,
            treatment_features=psi,
            structural=structural,
        )

    def fit(self, lam: list[float], xi: list[float], landmarks: Tensor | None = None) -> tuple[KernelTwoStage, KernelFeatures]:
        phi, psi = self.features(self.first if landmarks is None else landmarks)
        sample1, sample2 = (self.moments(rows, phi, psi) for rows in (self.first, self.second))
        return fit_two_samples(sample1=sample1, sample2=sample2, **grids(lam, xi)), psi

    def transcribed(self, lam: float, xi: float, at: Tensor) -> tuple[Tensor, float, float]:
        """``h(at)`` of Algorithm 1 and both out-of-sample losses; penalties times n and m, as there."""
        n, m = len(self.first), len(self.second)
        x, z = self.x[self.first], self.z[self.first]
        x2, z2, y2 = self.x[self.second], self.z[self.second], self.y[self.second]
        k_xx = kernel_matrix(x, x, bandwidths=self.bandwidths_x)
        k_zz = kernel_matrix(z, z, bandwidths=self.bandwidths_z)
        gamma = torch.linalg.solve(
            k_zz + n * lam * torch.eye(n, dtype=torch.float64), kernel_matrix(z, z2, bandwidths=self.bandwidths_z)
        )
        w = k_xx @ gamma
        alpha = torch.linalg.solve(w @ w.mT + m * xi * k_xx, w @ y2)
        cross = kernel_matrix(x2, x, bandwidths=self.bandwidths_x) @ gamma
        loss1 = float((1.0 - 2.0 * cross.diagonal() + (gamma * (k_xx @ gamma)).sum(dim=0)).mean())
        loss2 = float((self.y[self.first] - k_xx @ alpha).square().mean())
        return (kernel_matrix(at, x, bandwidths=self.bandwidths_x) @ alpha)[:, 0], loss1, loss2


def grids(lam: list[float], xi: list[float]) -> dict[str, Tensor]:
    return {
        "stage1_penalties": torch.tensor(lam, dtype=torch.float64),
        "stage2_penalties": torch.tensor(xi, dtype=torch.float64),
    }


AT = normal(25, 2, seed=8)
GRID = [10.0**k for k in range(-6, 1)]


@pytest.mark.oracle
@pytest.mark.parametrize("xi", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("lam", [1e-5, 1e-3, 1e-1])
def test_both_stages_are_the_papers_formulas(lam: float, xi: float) -> None:
    problem = Problem()
    fitted, psi = problem.fit([lam], [xi])
    expected, loss1, loss2 = problem.transcribed(lam, xi, AT)
    torch.testing.assert_close(psi.expansion(fitted.structural)(AT), expected, rtol=0, atol=TRANSCRIBED * expected.abs().max())
    assert float(fitted.stage1.losses) == pytest.approx(loss1, rel=TRANSCRIBED)
    assert float(fitted.stage2.losses) == pytest.approx(loss2, rel=TRANSCRIBED)


@pytest.mark.oracle
def test_a_path_has_the_losses_and_the_choice_of_one_solve_a_penalty() -> None:
    problem = Problem()
    fitted, _ = problem.fit(GRID, GRID)
    losses1 = [problem.transcribed(lam, 1.0, AT)[1] for lam in GRID]
    np.testing.assert_allclose(fitted.stage1.losses, losses1, rtol=TRANSCRIBED)
    assert fitted.stage1.chosen == pytest.approx(GRID[int(np.argmin(losses1))])
    losses2 = [problem.transcribed(fitted.stage1.chosen, xi, AT)[2] for xi in GRID]
    np.testing.assert_allclose(fitted.stage2.losses, losses2, rtol=TRANSCRIBED)
    assert fitted.stage2.chosen == pytest.approx(GRID[int(np.argmin(losses2))])
    assert GRID[0] < fitted.stage1.chosen < GRID[-1]  # or the choice would say little


@pytest.mark.law
@pytest.mark.parametrize("weighted", [False, True], ids=["equal weights", "row weights"])
def test_both_stages_minimise_their_penalised_means(weighted: bool) -> None:
    problem, lam, xi = Problem(weighted=weighted), 1e-3, 1e-2
    fitted, _ = problem.fit([lam], [xi])
    phi, psi = problem.features(problem.first)
    v, u = fitted.first_stage.clone().requires_grad_(), fitted.structural.clone().requires_grad_()

    def mean(rows: Tensor, squares: Tensor) -> Tensor:
        w = torch.ones(len(rows), dtype=torch.float64) if problem.w is None else problem.w[rows]
        return (w * squares).sum() / w.sum()

    one, two = problem.first, problem.second
    stage1 = mean(one, (psi(problem.x[one]) - phi(problem.z[one]) @ v).square().sum(dim=1)) + lam * v.square().sum()
    predicted = phi(problem.z[two]) @ fitted.first_stage @ u
    stage2 = mean(two, (problem.y[two, 0] - predicted).square()) + xi * u.square().sum()
    for objective, solution in ((stage1, v), (stage2, u)):
        (gradient,) = torch.autograd.grad(objective, solution)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-11)


@pytest.mark.law
def test_whole_weights_are_repeated_rows() -> None:
    once, repeated = Problem(), Problem()
    once.w = torch.cat([torch.tensor([2.0, 1.0, 3.0]).double().repeat(30)])
    counts = once.w.long()
    repeated.first, repeated.second = (rows.repeat_interleave(counts[rows]) for rows in (once.first, once.second))
    for_weights, psi = once.fit([1e-3], [1e-2], landmarks=once.first)
    for_rows, psi_rows = repeated.fit([1e-3], [1e-2], landmarks=once.first)
    torch.testing.assert_close(psi(AT) @ for_weights.structural, psi_rows(AT) @ for_rows.structural, rtol=0, atol=1e-10)


@pytest.mark.law
def test_with_every_point_a_landmark_in_any_order_nothing_is_approximated() -> None:
    problem = Problem()
    exact, psi = problem.fit(GRID, GRID)
    shuffled = problem.first[torch.from_numpy(np.random.default_rng(0).permutation(len(problem.first)))]
    nystrom, psi_nystrom = problem.fit(GRID, GRID, landmarks=shuffled)
    assert (nystrom.stage1.chosen, nystrom.stage2.chosen) == (exact.stage1.chosen, exact.stage2.chosen)
    expected = psi.expansion(exact.structural)(AT)
    torch.testing.assert_close(psi_nystrom.expansion(nystrom.structural)(AT), expected, rtol=0, atol=TRANSCRIBED)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal weights", "row weights"])
def test_moments_do_not_depend_on_blocks_and_add_up_over_parts(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(weighted=weighted)
    phi, psi = problem.features(problem.first)
    everything = torch.cat([problem.first, problem.second])
    total = float(len(everything)) if problem.w is None else float(problem.w.sum())
    whole = problem.moments(everything, phi, psi)
    monkeypatch.setattr(kernels, "BLOCK", 130)
    one, two = (problem.moments(rows, phi, psi, total=total) for rows in (problem.first, problem.second))
    for name in ("first_stage", "reduced_form", "structural"):
        parts, expected = getattr(one, name) + getattr(two, name), getattr(whole, name)
        assert (parts.square, parts.weight) == pytest.approx((expected.square, expected.weight), rel=ROUNDING)
        for part in ("gram", "right"):
            torch.testing.assert_close(getattr(parts, part), getattr(expected, part), rtol=0, atol=1e-10)


# Cross-fitting


class CrossFit:
    """Cross-fitting written out with kernel matrices of the paper's form, folds of one problem."""

    def __init__(self, folds: int) -> None:
        self.problem = Problem()
        self.rows = torch.arange(90).tensor_split(folds)
        self.psi_kernel = kernel_matrix(self.problem.x, self.problem.x, bandwidths=self.problem.bandwidths_x)
        self.phi_kernel = kernel_matrix(self.problem.z, self.problem.z, bandwidths=self.problem.bandwidths_z)

    def outside(self, *folds: int) -> Tensor:
        return torch.cat([rows for j, rows in enumerate(self.rows) if j not in folds])

    def gamma(self, of: Tensor, at: Tensor, lam: float) -> Tensor:
        """Weights of the rows of all (n, m): the prediction at ``at`` of ``psi`` by stage 1 on ``of``."""
        penalised = self.phi_kernel[of][:, of] + len(of) * lam * torch.eye(len(of), dtype=torch.float64)
        weights = torch.zeros(90, len(at), dtype=torch.float64)
        weights[of] = torch.linalg.solve(penalised, self.phi_kernel[of][:, at])
        return weights

    def stage1_loss(self, lam: float) -> float:
        total = 0.0
        for k, rows in enumerate(self.rows):
            gamma = self.gamma(self.outside(k), rows, lam)
            total += float(
                (1 - 2 * (self.psi_kernel[rows].mT * gamma).sum(0) + (gamma * (self.psi_kernel @ gamma)).sum(0)).sum()
            )
        return total / 90

    def alpha(self, gammas: list[Tensor], rows: list[Tensor], xi: float) -> Tensor:
        """Stage 2 with all 90 rows for landmarks, its penalty beside the sum over these rows."""
        w, y = self.psi_kernel @ torch.cat(gammas, dim=1), self.problem.y[torch.cat(rows)]
        # Dual: h = sum_i c_i prediction_i, so nothing singular is solved.
        predictions = torch.cat(gammas, dim=1)
        dual = torch.linalg.solve(predictions.mT @ w + 90 * xi * torch.eye(w.shape[1], dtype=torch.float64), y)
        return predictions @ dual

    def stage2_loss(self, lam: float, xi: float, *, structural: bool) -> float:
        total = 0.0
        for k, rows in enumerate(self.rows):
            others = [j for j in range(len(self.rows)) if j != k]
            outside = [self.outside(j) if len(self.rows) == 2 else self.outside(j, k) for j in others]
            gammas = [self.gamma(of, self.rows[j], lam) for j, of in zip(others, outside, strict=True)]
            h = self.psi_kernel @ self.alpha(gammas, [self.rows[j] for j in others], xi)
            predicted = h[rows] if structural else self.gamma(self.outside(k), rows, lam).mT @ h
            total += float((self.problem.y[rows] - predicted).square().sum())
        return total / 90

    def h(self, lam: float, xi: float, at: Tensor) -> Tensor:
        gammas = [self.gamma(self.outside(k), rows, lam) for k, rows in enumerate(self.rows)]
        kernel = kernel_matrix(at, self.problem.x, bandwidths=self.problem.bandwidths_x)
        return (kernel @ self.alpha(gammas, list(self.rows), xi))[:, 0]


@pytest.mark.oracle
@pytest.mark.parametrize(("folds", "structural"), [(2, True), (3, True), (3, False), (5, False)])
def test_cross_fitting_is_the_papers_formulas_on_folds_with_no_row_predicted_by_itself(folds: int, structural: bool) -> None:
    direct, grid = CrossFit(folds), [1e-4, 1e-3, 1e-2, 1e-1]
    phi, psi = direct.problem.features(torch.arange(90))
    parts = [direct.problem.moments(rows, phi, psi, total=90.0, structural=structural) for rows in direct.rows]
    fitted = fit_across_folds(parts, **grids(grid, grid))
    losses1 = [direct.stage1_loss(lam) for lam in grid]
    np.testing.assert_allclose(fitted.stage1.losses, losses1, rtol=TRANSCRIBED)
    lam = grid[int(np.argmin(losses1))]
    losses2 = [direct.stage2_loss(lam, xi, structural=structural) for xi in grid]
    np.testing.assert_allclose(fitted.stage2.losses, losses2, rtol=TRANSCRIBED)
    expected = direct.h(lam, grid[int(np.argmin(losses2))], AT)
    torch.testing.assert_close(psi.expansion(fitted.structural)(AT), expected, rtol=0, atol=TRANSCRIBED * expected.abs().max())


# Paths


@pytest.mark.law
def test_a_ridge_path_solves_the_penalised_normal_equations_and_has_the_losses_of_its_solutions() -> None:
    features, targets = normal(30, 6), normal(30, 2, seed=1)
    others, answers = normal(20, 6, seed=2), normal(20, 2, seed=3)
    half = SquaredError(
        gram=features.mT @ features / 60,
        right=features.mT @ targets / 60,
        square=float(targets.square().sum() / 60),
        weight=0.5,
    )
    path, penalties = RidgePath.factor(half), torch.logspace(-4, 1, 6, dtype=torch.float64)
    other = SquaredError(
        gram=others.mT @ others / 20, right=others.mT @ answers / 20, square=float(answers.square().sum() / 20)
    )
    for penalty, loss in zip(penalties.tolist(), path.losses(other.through(path.basis), penalties).tolist(), strict=True):
        w = path.weights(penalty)
        torch.testing.assert_close(features.mT @ (targets - features @ w) / 30, penalty * w, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(half.minimiser(penalty), w, rtol=1e-10, atol=ROUNDING)
        assert loss == pytest.approx(float((answers - others @ w).square().sum() / 20), rel=1e-12)


class Leading:
    """A regression on two columns with a penalty of their own and four others, row by row."""

    own = 0.05

    def __init__(self) -> None:
        self.features, self.targets = normal(30, 6), normal(30, 2, seed=1)
        square = self.targets.square().mean(dim=0)
        self.square = square
        self.sample = SquaredError(
            gram=self.features.mT @ self.features / 30,
            right=self.features.mT @ self.targets / 30,
            square=float(square.sum()),
        )
        self.path = RidgePath.factor(self.sample, leading=2, own=self.own)


@pytest.mark.law
def test_leading_features_have_a_penalty_of_their_own_and_are_all_that_an_infinite_one_leaves() -> None:
    problem = Leading()
    for penalty in (1e-3, 0.1, 10.0):
        w, each = problem.path.weights(penalty), torch.tensor([problem.own] * 2 + [penalty] * 4, dtype=torch.float64)
        residuals = problem.targets - problem.features @ w
        torch.testing.assert_close(problem.features.mT @ residuals / 30, each[:, None] * w, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(problem.sample.minimiser(each), w, rtol=1e-10, atol=ROUNDING)
        torch.testing.assert_close(
            problem.path.paths(torch.tensor([penalty], dtype=torch.float64)), w[:, :1], rtol=0, atol=ROUNDING
        )
    line = problem.path.weights(float("inf"))
    expected = problem.sample.columns(torch.arange(2)).minimiser(problem.own)
    torch.testing.assert_close(line, torch.cat([expected, torch.zeros(4, 2).double()]), rtol=0, atol=ROUNDING)


@pytest.mark.oracle
def test_the_evidence_of_a_penalty_is_the_normal_likelihood_of_the_rows() -> None:
    """Of rows with the covariance ``1 + F F' / (rows mu)``, the leading features' beside it, and the scale profiled out."""
    problem, penalties = Leading(), torch.tensor([1e-3, 1e-1, 1.0], dtype=torch.float64)
    leading, others = problem.features[:, :2], problem.features[:, 2:]
    direct = []
    for penalty in penalties.tolist():
        known = torch.eye(30).double() + leading @ leading.mT / (30 * problem.own)
        covariance = known + others @ others.mT / (30 * penalty)
        forms = (problem.targets * torch.linalg.solve(covariance, problem.targets)).sum(dim=0) / 30
        direct.append(float(28 * forms.log().sum() + 2 * (torch.logdet(covariance) - torch.logdet(known))))
    found = problem.path.evidence(square=problem.square, rows=30, penalties=penalties)
    np.testing.assert_allclose(found, direct, rtol=1e-10)


def test_the_slope_at_an_end_is_a_share_of_the_loss_a_decade_in_whatever_order() -> None:
    def slope(penalties: list[float], losses: list[float]) -> float:
        return PenaltyChoice(penalties=torch.tensor(penalties).double(), losses=torch.tensor(losses).double()).slope()

    assert slope([1e-2, 1e-1, 1.0], [2.0, 1.0, 3.0]) == 0.0
    assert slope([1e-2, 1.0, 1e-4], [2.0, 1.0, 3.0]) == pytest.approx(0.5)
    assert slope([1e-4, 1e-3], [1.0, 1.2]) == pytest.approx(0.2)
    assert slope([1.0], [2.0]) == slope([1.0, 1.0], [2.0, 2.0]) == 0.0
