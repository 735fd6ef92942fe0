"""Random least-squares problems, and what it means that two solutions of one are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

#: Two float64 routes to one solution: rounding (2e-16) times the squared condition number of the random problems (up to 1e5).
SAME = 1e-10
#: An eigenvalue or singular value that is zero but for rounding (2e-16) perturbs its neighbours by that over their gap.
ERASED = 1e-8

LAW = settings(max_examples=40, derandomize=True, deadline=None)
METHODS = ["qr", "primal", "dual"]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_problem(*, n: int, d: int, k: int = 2, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The arguments of a solve: random features, targets, previous weights; row weights and penalties only by ``changes``."""
    problem = {"features": normal(n, d, seed=seed), "targets": normal(n, k, seed=seed + 1), "ridge": 0.0, "proximal": 0.0}
    return problem | {"previous": normal(d, k, seed=seed + 2), "weights": None} | changes


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Random problems with a unique solution: tall or wide, weighted or not, either penalty, both, or (if tall) none."""
    n, d, k = draw(st.integers(1, 24)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**20))
    weights = torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 3.0, n)) if draw(st.booleans()) else None
    proximal = draw(st.sampled_from([0.0, 0.3, 5.0]))
    unique = n >= 2 * d or proximal > 0
    ridge = draw(st.sampled_from([0.0, 0.1, 2.0] if unique else [0.1, 2.0]))
    previous = normal(d, k, seed=seed + 2) if draw(st.booleans()) else None
    return random_problem(n=n, d=d, k=k, seed=seed, ridge=ridge, proximal=proximal, previous=previous, weights=weights)


def assert_same(got: Tensor, expected: Tensor, tolerance: float = SAME) -> None:
    scale = max(float(expected.detach().abs().max()), torch.finfo(torch.float64).tiny)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=tolerance * scale)
