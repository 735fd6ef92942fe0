"""A default fit, both samples swapped, against the original configuration of DFIV on the same data in the same run."""

import time

from cfiv import DFIV
from cfiv.datasets import demand

BOUND = 0.5


def seconds(model: DFIV, frame: object) -> float:
    started = time.perf_counter()
    model.fit(frame)
    return time.perf_counter() - started


def test_a_default_fit_takes_at_most_half_the_time_of_the_original_configuration(benchmark) -> None:
    data, _ = demand.simulate(n=5000, rho=0.5, seed=0)
    seconds(DFIV(demand.FORMULA, steps=20, progress=False, random_state=0), data.frame)
    original = seconds(DFIV.original(demand.FORMULA, progress=False, random_state=0), data.frame)
    default = benchmark.pedantic(seconds, args=(DFIV(demand.FORMULA, progress=False, random_state=0), data.frame), rounds=3)
    times = benchmark.stats.stats.data if benchmark.stats is not None else [default]
    benchmark.extra_info["ratio to the original configuration"] = min(times) / original
    assert min(times) <= BOUND * original
