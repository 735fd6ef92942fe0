"""Kernels, bandwidths, features of landmarks, and both stages of kernel IV, against what defines them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cfiv.numerics import kernels
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Moments, RidgePath, kernel_two_stage, sample_moments
from cfiv.numerics.kernels import KernelExpansion, KernelFeatures, kernel_matrix, median_bandwidth

#: Rounding of sums of up to a few hundred numbers near one.
ROUNDING = 1e-13
#: What issue 3 asks of the agreement with the paper's formulas, relative to the largest value.
TRANSCRIBED = 1e-8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# The kernel


@pytest.mark.law
@pytest.mark.parametrize("columns", [1, 3, kernels.NARROW + 1], ids=["one column", "narrow", "wide"])
def test_a_kernel_is_the_product_of_one_gaussian_an_input(columns: int) -> None:
    one, other, bandwidths = normal(5, columns), normal(4, columns, seed=1), 2.0 + normal(columns, seed=2).abs()
    product = torch.ones(5, 4, dtype=torch.float64)
    for j in range(columns):
        product *= torch.exp(-((one[:, None, j] - other[None, :, j]) ** 2) / (2 * bandwidths[j] ** 2))
    torch.testing.assert_close(kernel_matrix(one, other, bandwidths), product, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.law
@pytest.mark.parametrize("columns", [2, kernels.NARROW + 1], ids=["narrow", "wide"])
def test_a_kernel_does_not_see_a_shift_of_its_inputs(columns: int) -> None:
    points, bandwidths = normal(6, columns), torch.full((columns,), 3.0, dtype=torch.float64)
    moved = points.mul(2**20).round().div(2**20) + 1024.0  # exact in float64
    at_rest = moved - 1024.0
    torch.testing.assert_close(
        kernel_matrix(moved, moved, bandwidths), kernel_matrix(at_rest, at_rest, bandwidths), rtol=0, atol=ROUNDING
    )


def test_an_expansion_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    expansion = KernelExpansion(normal(7, 2), torch.ones(2, dtype=torch.float64), normal(7, seed=1))
    at = normal(20, 2, seed=2)
    whole = expansion(at)
    torch.testing.assert_close(whole, kernel_matrix(at, expansion.points, expansion.bandwidths) @ expansion.coefficients)
    monkeypatch.setattr(kernels, "BLOCK", 21)
    torch.testing.assert_close(expansion(at), whole, rtol=ROUNDING, atol=ROUNDING)


# Bandwidths


@pytest.mark.law
def test_a_bandwidth_is_the_median_distance_between_two_rows_of_an_input() -> None:
    for points in (normal(41, 1), normal(41, 5)):
        distances = [float((points[i] - points[k]).norm()) for i in range(41) for k in range(i)]
        assert median_bandwidth(points, generator=generator()) == pytest.approx(np.median(distances), rel=ROUNDING)


def test_a_bandwidth_scales_with_its_input_and_of_many_rows_is_near_that_of_all() -> None:
    points = normal(20_000, 1)
    found = median_bandwidth(points, generator=generator())
    assert found == median_bandwidth(points, generator=generator())
    assert median_bandwidth(4 * points, generator=generator()) == 4 * found
    # The median of |N(0, 2)|; the bound is five standard errors of a U-statistic of MEDIAN_ROWS rows.
    assert found == pytest.approx(0.954, abs=0.08)


@pytest.mark.parametrize("share", [0.02, 1e-4], ids=["rare", "in no draw"])
def test_a_rare_category_has_the_distance_to_it_for_a_bandwidth(share: float) -> None:
    category = torch.zeros(10_000, 1, dtype=torch.float64)
    category[: round(share * 10_000)] = 3.0
    assert median_bandwidth(category, generator=generator()) == 3.0


def test_equal_points_have_no_bandwidth() -> None:
    assert median_bandwidth(torch.ones(50, 2), generator=generator()) == 0.0
    assert median_bandwidth(torch.ones(5000, 1), generator=generator()) == 0.0
    assert median_bandwidth(torch.ones(1, 1), generator=generator()) == 0.0


# Landmarks


@pytest.mark.law
def test_features_have_the_kernel_for_an_inner_product_wherever_one_point_is_a_landmark() -> None:
    landmarks, others, bandwidths = normal(40, 2), normal(30, 2, seed=1), torch.full((2,), 0.5, dtype=torch.float64)
    features = KernelFeatures.of_landmarks(landmarks, bandwidths)
    torch.testing.assert_close(
        features(others) @ features(landmarks).mT, kernel_matrix(others, landmarks, bandwidths), rtol=0, atol=1e-10
    )


def test_landmarks_that_repeat_are_one() -> None:
    landmarks, bandwidths = normal(10, 2), torch.ones(2, dtype=torch.float64)
    twice = KernelFeatures.of_landmarks(torch.cat([landmarks, landmarks]), bandwidths)
    assert len(twice) == 10
    once = KernelFeatures.of_landmarks(landmarks, bandwidths)
    at = normal(6, 2, seed=1)
    torch.testing.assert_close(twice(at) @ twice(at).mT, once(at) @ once(at).mT, rtol=0, atol=1e-10)


# Both stages


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

    def moments(self, landmarks: Tensor | None = None) -> tuple[Moments, Moments, KernelFeatures, KernelFeatures]:
        chosen = self.first if landmarks is None else landmarks
        phi = KernelFeatures.of_landmarks(self.z[chosen], self.bandwidths_z)
        psi = KernelFeatures.of_landmarks(self.x[chosen], self.bandwidths_x)
        sample1, sample2 = (
            sample_moments(
                instruments=self.z[rows],
                treatments=self.x[rows],
                outcome=self.y[rows],
                instrument_features=phi,
                treatment_features=psi,
                weights=None if self.w is None else self.w[rows],
            )
            for rows in (self.first, self.second)
        )
        return sample1, sample2, phi, psi

    def fit(self, lam: list[float], xi: list[float], landmarks: Tensor | None = None) -> tuple[KernelTwoStage, KernelFeatures]:
        sample1, sample2, _, psi = self.moments(landmarks)
        penalties = {
            "stage1_penalties": torch.tensor(lam, dtype=torch.float64),
            "stage2_penalties": torch.tensor(xi, dtype=torch.float64),
        }
        return kernel_two_stage(sample1=sample1, sample2=sample2, **penalties), psi

    def transcribed(self, lam: float, xi: float, at: Tensor) -> tuple[Tensor, float, float]:
        """``h(at)`` of Algorithm 1 and both out-of-sample losses; penalties times n and m, as there."""
        n, m = len(self.first), len(self.second)
        x, z = self.x[self.first], self.z[self.first]
        x2, z2, y2 = self.x[self.second], self.z[self.second], self.y[self.second]
        k_xx, k_zz = kernel_matrix(x, x, self.bandwidths_x), kernel_matrix(z, z, self.bandwidths_z)
        gamma = torch.linalg.solve(k_zz + n * lam * torch.eye(n, dtype=torch.float64), kernel_matrix(z, z2, self.bandwidths_z))
        w = k_xx @ gamma
        alpha = torch.linalg.solve(w @ w.mT + m * xi * k_xx, w @ y2)
        cross = kernel_matrix(x2, x, self.bandwidths_x) @ gamma
        loss1 = float((1.0 - 2.0 * cross.diagonal() + (gamma * (k_xx @ gamma)).sum(dim=0)).mean())
        loss2 = float((self.y[self.first] - k_xx @ alpha).square().mean())
        return (kernel_matrix(at, x, self.bandwidths_x) @ alpha)[:, 0], loss1, loss2


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
    _, _, phi, psi = problem.moments()
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
    shuffled = problem.first[torch.from_numpy(generator().permutation(len(problem.first)))]
    nystrom, psi_nystrom = problem.fit(GRID, GRID, landmarks=shuffled)
    assert (nystrom.stage1.chosen, nystrom.stage2.chosen) == (exact.stage1.chosen, exact.stage2.chosen)
    expected = psi.expansion(exact.structural)(AT)
    torch.testing.assert_close(psi_nystrom.expansion(nystrom.structural)(AT), expected, rtol=0, atol=TRANSCRIBED)


def test_moments_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Problem(weighted=True).moments()[1]
    monkeypatch.setattr(kernels, "BLOCK", 130)
    blocks = Problem(weighted=True).moments()[1]
    for name in ("instrument", "treatment", "cross", "instrument_outcome", "treatment_outcome"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name), rtol=0, atol=1e-10)


@pytest.mark.law
def test_a_ridge_path_solves_the_penalised_normal_equations_and_has_the_losses_of_its_solutions() -> None:
    features, targets = normal(30, 6), normal(30, 2, seed=1)
    others, answers = normal(20, 6, seed=2), normal(20, 2, seed=3)
    path = RidgePath.factor(gram=features.mT @ features / 30, right=features.mT @ targets / 30)
    penalties = torch.logspace(-4, 1, 6, dtype=torch.float64)
    losses = path.losses(
        gram=others.mT @ others / 20,
        right=others.mT @ answers / 20,
        square=float(answers.square().sum() / 20),
        penalties=penalties,
    )
    for penalty, loss in zip(penalties.tolist(), losses.tolist(), strict=True):
        w = path.weights(penalty)
        torch.testing.assert_close(features.mT @ (targets - features @ w) / 30, penalty * w, rtol=0, atol=ROUNDING)
        assert loss == pytest.approx(float((answers - others @ w).square().sum() / 20), rel=1e-12)
