"""1000 Burgers solutions on 256 points, on one core (the solver starts no threads)."""

import numpy as np

from cfiv.datasets import burgers

FUNCTIONS, POINTS, BOUND = 1000, 256, 30.0


def test_a_thousand_solutions_take_at_most_thirty_seconds(benchmark) -> None:
    # Measured: 6 s on a cloud machine. A bound of five times that still sees steps or modes that became too many.
    pairs = benchmark.pedantic(burgers.simulate, args=(FUNCTIONS,), kwargs={"points": POINTS}, rounds=2)
    assert pairs.outputs.shape == (FUNCTIONS, POINTS)
    assert np.isfinite(pairs.outputs).all()
    if benchmark.stats is not None:
        assert min(benchmark.stats.stats.data) <= BOUND
