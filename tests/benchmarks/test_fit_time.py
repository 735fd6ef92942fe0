"""Default fits, both samples swapped, against the original configuration of DFIV on the same data in the same run."""

import time

from cfiv import DFIV
from cfiv.datasets import demand, dsprites
from cfiv.estimators import fit_members

BOUND = 0.5
#: Measured: 0.56.
SIDE_BY_SIDE = 2 / 3


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


def test_eight_functions_side_by_side_take_at_most_two_thirds_of_the_time_of_one_after_another(benchmark, monkeypatch) -> None:
    data, _ = demand.simulate(n=5000, rho=0.5, seed=0)
    model = DFIV(demand.FORMULA, fits=4, steps=200, progress=False, random_state=0)
    seconds(DFIV(demand.FORMULA, steps=20, progress=False, random_state=0), data.frame)
    with monkeypatch.context() as patch:
        patch.setattr(fit_members, "TOGETHER", 1)
        alone = seconds(model, data.frame)
    together = benchmark.pedantic(seconds, args=(model, data.frame), rounds=3)
    times = benchmark.stats.stats.data if benchmark.stats is not None else [together]
    benchmark.extra_info["ratio to one after another"] = min(times) / alone
    print(f"\nfits=4: side by side {min(times):.2f} s, one after another {alone:.2f} s")
    assert min(times) <= SIDE_BY_SIDE * alone


def test_a_default_fit_to_images_takes_no_longer_than_the_original_configuration(benchmark) -> None:
    data, _ = dsprites.simulate(5000, seed=0)
    # The original's hundred rounds are all alike: the time of fifteen of them, without what comes before the first.
    few, more = (seconds(DFIV.original_image(steps=steps, progress=False, random_state=0), data) for steps in (5, 20))
    original = 100 * (more - few) / 15
    default = benchmark.pedantic(seconds, args=(DFIV(progress=False, random_state=0), data), rounds=1)
    benchmark.extra_info["ratio to the original configuration"] = default / original
    print(f"\nimages: default {default:.0f} s, original configuration {original:.0f} s")
    assert default <= original
