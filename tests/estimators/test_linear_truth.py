"""Where the truth is a line and the data are noisy, two-stage least squares is right; DFIV must not be far off on average."""

import numpy as np
import pandas as pd
import pytest

from cfiv import DFIV

pytestmark = [pytest.mark.statistical, pytest.mark.slow]

FORMULA = "y ~ x + [t ~ z]"
SEEDS = 12


def linear(seed: int, n: int = 500) -> pd.DataFrame:
    """Slope 1; the instrument explains a tenth of the treatment's variance, the confounder a third."""
    z, x, u, first, second = np.random.default_rng(seed).normal(size=(5, n))
    t = 0.4 * z + 0.5 * x + 0.7 * u + 0.7 * first
    return pd.DataFrame({"y": t + x + u + 0.5 * second, "t": t, "x": x, "z": z})


def test_a_noisy_first_stage_does_not_pull_the_slope_to_zero() -> None:
    """Without a watch on the first stage the mean slope was 0.3: most of what it predicted was the noise of its own sample."""
    slopes = []
    for seed in range(SEEDS):
        frame = linear(seed)
        model = DFIV(FORMULA, random_state=seed, progress=False).fit(frame)
        slopes.append(model.effect(frame, treatment_from=-1, treatment_to=1).mean() / 2)
    standard_error = np.std(slopes, ddof=1) / np.sqrt(SEEDS)
    print(f"\nlinear truth, n=500: mean slope {np.mean(slopes):.2f} (standard error {standard_error:.2f}), truth 1")
    assert abs(np.mean(slopes) - 1) <= 3 * standard_error
    assert np.mean(slopes) >= 0.7
