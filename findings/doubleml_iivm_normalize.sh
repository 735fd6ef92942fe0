#!/usr/bin/env bash
# doubleml 0.11.4: `normalize_ipw=True` of DoubleMLIIVM normalizes the inverse propensities of the instrument, P(Z = 1 | X), by the
# treatment: its factors are the averages of D / m and (1 - D) / (1 - m), where those of Z / m and (1 - Z) / (1 - m) are meant (its
# class for local quantiles, DoubleMLLPQ, takes those). Where D = 0 a row's propensity becomes 1 - (1 - m) * factor, which comes near
# zero or below it where many decline the treatment, though the instrument's overlap is fine. Nothing is said.
#
# Seen with 4,000 rows, an effect of 1, P(Z = 1 | X) between .1 and .9 and 60 % of those offered declining, seeds 0 to 3: .94, .96, .91,
# .95 (standard errors .08 to .09) without, and the same when normalized by Z; -1.42, 1.18, 1.00, -6.53 (.52, 1.69, .56, 8.04) with
# normalize_ipw=True, whose propensities go below zero.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  doubleml==0.11.4 scikit-learn==1.9.1 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import warnings

import numpy as np
from doubleml import DoubleMLData, DoubleMLIIVM
from sklearn.linear_model import LinearRegression, LogisticRegression

n = 4000


def drawn(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 2))
    z = (generator.random(n) < 1 / (1 + np.exp(-0.5 * x[:, 0]))).astype(int)
    complier = generator.random(n) < 0.4
    d = z * complier  # nobody gets it who is not offered it
    return x, d + x[:, 0] + 0.5 * complier + generator.normal(size=n), d, z


def estimated(x, y, d, z, normalize):
    np.random.seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = DoubleMLIIVM(
            DoubleMLData.from_arrays(x, y, d, z), LinearRegression(), LogisticRegression(), LogisticRegression(),
            normalize_ipw=normalize, subgroups={"always_takers": False, "never_takers": True},
        ).fit()
    assert not [warning for warning in caught if "propensit" in str(warning.message).lower()]
    return model


def by_hand(model, y, d, z, by):
    """Estimate and standard error from the same nuisance predictions, propensities normalized by `by` or not, and the least of them."""
    g0, g1, m, r0, r1 = (model.predictions[name][:, 0, 0] for name in ("ml_g0", "ml_g1", "ml_m", "ml_r0", "ml_r1"))
    if by is not None:
        m = np.where(by == 1, m * np.mean(by / m), 1 - (1 - m) * np.mean((1 - by) / (1 - m)))
    a = r1 - r0 + z * (d - r1) / m - (1 - z) * (d - r0) / (1 - m)
    b = g1 - g0 + z * (y - g1) / m - (1 - z) * (y - g0) / (1 - m)
    theta = b.mean() / a.mean()
    return float(theta), float(np.sqrt(np.mean((b - theta * a) ** 2) / n) / abs(a.mean())), float(m.min())


for seed in range(4):
    x, y, d, z = drawn(seed)
    plain, normalized = (estimated(x, y, d, z, normalize) for normalize in (False, True))
    hand, hand_z, hand_d = (by_hand(plain, y, d, z, by) for by in (None, z, d))
    print(f"seed {seed}: plain {plain.coef[0]:.3f} ({plain.se[0]:.3f}); normalize_ipw=True {normalized.coef[0]:.3f} "
          f"({normalized.se[0]:.3f}); by hand, by Z {hand_z[0]:.3f} ({hand_z[1]:.3f}), by D {hand_d[0]:.3f} ({hand_d[1]:.3f}); "
          f"least propensity plain {hand[2]:.3f}, by Z {hand_z[2]:.3f}, by D {hand_d[2]:.3f}")
    assert np.allclose((plain.coef[0], plain.se[0]), hand[:2], rtol=1e-6)
    assert np.allclose((normalized.coef[0], normalized.se[0]), hand_d[:2], rtol=1e-6)
    assert abs(hand_z[0] - hand[0]) < 0.01 and abs(hand[0] - 1) < 0.2 and hand_z[1] < 0.1
    assert hand_d[2] < 0 < 0.1 < hand_z[2] and normalized.se[0] > 5 * plain.se[0]
PYTHON
