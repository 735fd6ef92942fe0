"""Accuracy on the dSprites designs, against published and measured figures.

`make test ARGS='tests/estimators/test_dsprites_accuracy.py -s'` prints what was reached; the studies `dsprites` and
`dsprites_batches` have more seeds, the original configuration, and every batch size.
"""

import statistics
from typing import Any

import pytest

from cfiv import DFIV, Training
from cfiv.datasets import dsprites

pytestmark = [pytest.mark.statistical, pytest.mark.slow]

#: The median of the DFIV poster (Xu et al. 2021) at n = 5000 is 2.01, of the authors' code on these pictures 2.48; at n = 10000
#: the poster has 1.21.
GOOD, NEVER_ABOVE, GOOD_FROM_10000 = 1.9, 4.0, 1.2
RIDGE = {"lambda1": 0.0, "lambda2": 0.0, "lambda12": 0.0, "training": Training(rest=0.0)}


def errors(n: int, seeds: int, function: str = "original", **options: Any) -> list[float]:
    reached = []
    for seed in range(seeds):
        data, truth = dsprites.simulate(n, seed=seed, function=function)
        reached.append(truth.error(DFIV(progress=False, random_state=seed, **options).fit(data)))
    print(f"\ndSprites, {function} function, n={n}, {options}, seeds 0-{seeds - 1}: {[round(error, 2) for error in reached]}")
    return reached


def test_default_settings_beat_the_published_median_on_5000_rows_and_have_no_bad_seed() -> None:
    reached = errors(5000, 4)
    assert statistics.median(reached) <= GOOD
    assert max(reached) <= NEVER_ABOVE


def test_default_settings_beat_the_published_median_on_10000_rows() -> None:
    assert statistics.median(errors(10000, 2)) <= GOOD_FROM_10000


def test_small_batches_without_a_refit_need_the_proximal_pull() -> None:
    options = {"function": "second", "batch_size": 64, "report": "current", "swap": False}
    assert statistics.median(errors(10000, 2, **options)) <= statistics.median(errors(10000, 2, **options, **RIDGE)) / 2
