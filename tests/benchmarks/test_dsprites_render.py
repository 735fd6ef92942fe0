"""10,000 hearts drawn, on one core (the renderer starts no threads)."""

import numpy as np

from cfiv.datasets.dsprites import LATENTS, render

PICTURES, BOUND = 10_000, 5.0


def test_ten_thousand_pictures_take_at_most_five_seconds(benchmark) -> None:
    draw = np.random.default_rng(0)
    latents = np.column_stack([draw.integers(0, size, PICTURES) for size in LATENTS.values()])
    images = benchmark.pedantic(render, args=(latents,), rounds=3, warmup_rounds=1)
    assert images.shape == (PICTURES, 64, 64)
    if benchmark.stats is not None:
        assert min(benchmark.stats.stats.data) <= BOUND
