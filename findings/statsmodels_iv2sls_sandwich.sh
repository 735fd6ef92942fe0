#!/usr/bin/env bash
# statsmodels 0.15.0: `get_robustcov_results` of IV2SLS, with "cluster" or "HAC", gives standard errors of no estimator, without a
# word: the bread is that of 2SLS, (X'Pz X)^-1, and the meat is made of X * residual, of the endogenous treatment itself, where the
# scores of 2SLS are those of its projection, Pz X * residual. Residuals go with the treatment (which is why there is an instrument),
# so X * residual has a mean other than zero, and its sums grow with the size of the clusters. The docstring of `fit` only says that
# results other than estimates and covariance were not tested.
#
# Seen with 40 clusters of 50 rows and no dependence in them: clustered standard error of the slope 1.138 and HAC .411, where the
# formula, and linearmodels 7.1, have .0774 and .0822, about the unadjusted one (.0837).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 linearmodels==7.1 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import warnings

import numpy as np
from linearmodels.iv import IV2SLS as Linearmodels
from statsmodels.sandbox.regression.gmm import IV2SLS

generator = np.random.default_rng(0)
n, groups, lags = 2000, np.arange(2000) // 50, 3
z, u, e = generator.normal(size=(3, n))
t = 0.4 * z + u
y = 2 * t + u + e
x, instruments = np.column_stack([np.ones(n), t]), np.column_stack([np.ones(n), z])

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fit = IV2SLS(y, x, instruments).fit()
    seen = {
        "cluster": fit.get_robustcov_results("cluster", groups=groups, use_correction=False).bse[1],
        "HAC": fit.get_robustcov_results("HAC", maxlags=lags).bse[1],
    }
print("warnings:", [str(warning.message) for warning in caught])

projected = instruments @ np.linalg.lstsq(instruments, x, rcond=None)[0]
bread = np.linalg.inv(projected.T @ projected)


def by_hand(regressors):
    """Standard errors of the slope from scores of these regressors, by clusters and by Bartlett weights."""
    scores = regressors * fit.resid[:, None]
    sums = np.stack([scores[groups == group].sum(axis=0) for group in np.unique(groups)])
    meats = {"cluster": sums.T @ sums, "HAC": scores.T @ scores}
    for lag in range(1, lags + 1):
        product = scores[lag:].T @ scores[:-lag]
        meats["HAC"] = meats["HAC"] + (1 - lag / (lags + 1)) * (product + product.T)
    return {name: float(np.sqrt((bread @ meat @ bread)[1, 1])) for name, meat in meats.items()}


right, wrong = by_hand(projected), by_hand(x)
model = Linearmodels(y, np.ones((n, 1)), t, z)
reference = {
    "cluster": float(model.fit(cov_type="clustered", clusters=groups).std_errors.iloc[1]),
    "HAC": float(model.fit(cov_type="kernel", kernel="bartlett", bandwidth=lags).std_errors.iloc[1]),
}
print(f"unadjusted: {fit.bse[1]:.4f}")
for name in seen:
    print(f"{name}: statsmodels {seen[name]:.4f}, linearmodels {reference[name]:.4f}, by hand {right[name]:.4f}; "
          f"by hand with the treatment in place of its projection {wrong[name]:.4f}")
    assert np.isclose(right[name], reference[name], rtol=1e-6)
    assert np.isclose(wrong[name], seen[name], rtol=1e-6)
    assert seen[name] > 4 * right[name]
assert not caught
PYTHON
