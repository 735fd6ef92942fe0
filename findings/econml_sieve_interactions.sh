#!/usr/bin/env bash
# econml 0.17.0: SieveTSLS is not two-stage least squares once the effect depends on features X. Its second stage has the products of X
# and the fitted treatment, where two-stage least squares has the fitted values of the products (the "forbidden regression"), so it is
# only consistent if the first stage's sieve holds E[T | X, Z] exactly; least squares on the same regressors with the same instruments
# (X and Z crossed, as in the first stage of econml) needs no such thing. It is a silent error in the slope of the effect, not a small one.
#
# Seen with 20,000 rows and effects 0, 1, 2 at x = -1, 0, 1, all bases linear, E[T | X, Z] quadratic in x, seeds 0 to 3: effects of about
# -.93, 1.03, 2.99; by 2SLS in linearmodels 7.1, and by hand, .02, 1.02, 2.01. With a quadratic basis of x econml gives that too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  econml==0.17.0 linearmodels==7.1 scikit-learn==1.9.1 pandas==3.1.1 numpy==2.4.6
env/bin/python - <<'PYTHON'
import numpy as np
from econml.iv.sieve import DPolynomialFeatures, SieveTSLS
from linearmodels.iv import IV2SLS
from sklearn.preprocessing import PolynomialFeatures

n, points = 20000, np.array([-1.0, 0.0, 1.0])
truth = 1 + points


def drawn(seed):
    x, z, u, e = np.random.default_rng(seed).normal(size=(4, n))
    t = 0.5 * z * (1 + x**2) + 0.5 * x**2 + u
    return x, z, t, (1 + x) * t + x + 2 * u + e


def sieve(x, z, t, y, degree):
    model = SieveTSLS(
        t_featurizer=PolynomialFeatures(1), dt_featurizer=DPolynomialFeatures(1),
        x_featurizer=PolynomialFeatures(degree), z_featurizer=PolynomialFeatures(1),
    )
    model.fit(y, t[:, None], X=x[:, None], Z=z[:, None])
    return model.effect(points[:, None]).ravel()


def effects(coefficients):
    return coefficients[2] + coefficients[3] * points


found = {name: [] for name in ("econml", "econml, x quadratic", "linearmodels")}
for seed in range(4):
    x, z, t, y = drawn(seed)
    regressors, instruments = (np.column_stack([np.ones(n), x, variable, x * variable]) for variable in (t, z))
    exact = effects(np.linalg.solve(instruments.T @ regressors, instruments.T @ y))
    fitted = instruments @ np.linalg.lstsq(instruments, t, rcond=None)[0]
    forbidden = effects(np.linalg.lstsq(np.column_stack([np.ones(n), x, fitted, x * fitted]), y, rcond=None)[0])
    reference = IV2SLS(y, regressors[:, :2], regressors[:, 2:], instruments[:, 2:]).fit().params.to_numpy()
    found["econml"].append(sieve(x, z, t, y, 1))
    found["econml, x quadratic"].append(sieve(x, z, t, y, 2))
    found["linearmodels"].append(effects(reference))
    assert np.allclose(effects(reference), exact, atol=1e-6)
    assert np.allclose(found["econml"][-1], forbidden, atol=1e-6)
print(f"truth at x = -1, 0, 1: {truth}")
for name, values in found.items():
    print(f"{name}: on average {np.mean(values, axis=0).round(3)}, from {np.min(values, axis=0).round(3)} to {np.max(values, axis=0).round(3)}")
away = {name: np.abs(np.array(values) - truth)[:, [0, 2]] for name, values in found.items()}
assert away["linearmodels"].max() < 0.1 and away["econml, x quadratic"].max() < 0.15
assert away["econml"].min() > 0.7
PYTHON
