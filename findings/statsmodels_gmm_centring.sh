#!/usr/bin/env bash
# statsmodels 0.15.0: two-step GMM (IVGMM, LinearIVGMM) depends on the units of the instruments. By default the moments are centred
# before the weights are computed, but what is subtracted is one number, the mean over all rows and all moments, in place of each
# moment's own mean. So the weights are those of neither the centred nor the uncentred moments, and an instrument in cents instead of
# euros gives another estimate and another J statistic.
#
# Seen with 400 rows, one treatment and three instruments, the first in units of 1, 1/100 and 100 (defaults): slope 2.0699, 2.1374,
# 1.8740; its standard error .251, .262, .318; J of 2 degrees of freedom 2.148, 1.534, 1.263. By hand, and in linearmodels 7.1 with
# center=True, the centred weights give 2.0700 and 2.158 each time; with wargs={"centered": False} units do not matter here either.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 linearmodels==7.1 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import numpy as np
from linearmodels.iv import IVGMM as Linearmodels
from statsmodels.sandbox.regression.gmm import IVGMM, LinearIVGMM

generator = np.random.default_rng(0)
n = 400
z = generator.normal(size=(n, 3))
u, w = generator.normal(size=(2, n))
t = z @ [0.3, 0.2, 0.1] + u + 0.3 * w
y = 1 + 2 * t + 0.5 * w + u * (1 + 0.5 * np.abs(z[:, 0])) + generator.normal(size=n)
x = np.column_stack([np.ones(n), w, t])


def solve(z, weights):
    return np.linalg.solve(x.T @ z @ weights @ z.T @ x, x.T @ z @ weights @ z.T @ y)


def by_hand(z, mean):
    """Slope and J of two-step GMM: 2SLS, then the inverse of the covariance of the moments about `mean`."""
    moments = z * (y - x @ solve(z, np.linalg.inv(z.T @ z)))[:, None]
    moments -= mean(moments)
    weights = np.linalg.inv(moments.T @ moments / n)
    found = solve(z, weights)
    g = z.T @ (y - x @ found) / n
    return float(found[2]), float(n * g @ weights @ g)


seen = {}
for unit in (1.0, 100.0, 0.01):
    scaled = z * [unit, 1, 1]
    design = np.column_stack([np.ones(n), w, scaled])
    for centred in (True, False):
        options = {} if centred else {"wargs": {"centered": False}}
        found = LinearIVGMM(y, x, design).fit(maxiter=2, **options)
        other = IVGMM(y, x, design).fit(maxiter=2, optim_args={"disp": 0, "gtol": 1e-9}, **options)
        assert np.allclose(found.params, other.params, atol=1e-4)
        reference = Linearmodels(y, x[:, :2], t, scaled, center=centred).fit()
        textbook = by_hand(design, lambda m: m.mean(axis=0) if centred else 0.0)
        assert np.allclose(textbook, (reference.params.iloc[2], reference.j_stat.stat), rtol=1e-5)
        seen[unit, centred] = ours = float(found.params[2]), float(found.jtest()[0])
        print(f"z1 * {unit:g}, centered={centred}: statsmodels slope {ours[0]:.4f} (se {found.bse[2]:.4f}), J {ours[1]:.3f}; "
              f"by hand {textbook[0]:.4f}, {textbook[1]:.3f}")
        # What is computed where "centred": moments less their grand mean.
        assert np.allclose(ours, by_hand(design, np.mean) if centred else textbook, rtol=1e-5)

slopes = [seen[unit, True][0] for unit in (1.0, 100.0, 0.01)]
assert max(slopes) - min(slopes) > 0.2
assert np.ptp([seen[unit, True][1] for unit in (1.0, 100.0, 0.01)]) > 0.8
assert np.ptp([seen[unit, False][0] for unit in (1.0, 100.0, 0.01)]) < 1e-6
PYTHON
