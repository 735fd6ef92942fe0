"""Accuracy of KernelIV on the demand design, against the quartiles of the paper's figure."""

import statistics

import numpy as np
import pytest

from cfiv import KernelIV
from cfiv.datasets import demand

pytestmark = [pytest.mark.statistical, pytest.mark.slow]

#: Upper quartiles of log10 of the test error, at any rho.
QUARTILE_1000, QUARTILE_5000 = 3.79, 3.51


def errors(n: int, rho: float, seeds: int) -> list[float]:
    reached = []
    for seed in range(seeds):
        data, truth = demand.simulate(n, rho=rho, seed=seed)
        reached.append(float(np.log10(truth.error(KernelIV(demand.FORMULA, random_state=seed).fit(data.frame)))))
    print(f"\ndemand n={n} rho={rho}: median log10 error {statistics.median(reached):.3f}, worst {max(reached):.3f}")
    return reached


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_errors_on_1000_rows_are_below_the_papers_upper_quartile_however_strong_the_confounding(rho: float) -> None:
    assert statistics.median(errors(1000, rho, 2)) <= QUARTILE_1000


def test_errors_on_5000_rows_are_below_the_papers_upper_quartile() -> None:
    assert statistics.median(errors(5000, 0.5, 2)) <= QUARTILE_5000
