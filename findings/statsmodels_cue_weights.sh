#!/usr/bin/env bash
# statsmodels 0.15.0: continuously updated GMM, IVGMM(...).fit(maxiter="cue"), ignores `weights_method` and `wargs` in the estimate and
# the J statistic, which are always those of heteroskedastic moments less their grand mean, and uses them for the standard errors, so
# that one result mixes the two. With "iid" the estimate should be limited-information maximum likelihood, and with "hac" allow for
# autocorrelation; both are those of "cov", without a word.
#
# Seen with 400 rows and three instruments: slope 2.0110 and J 1.9714 for cov, iid and hac (standard errors .2584, .2057, .2633).
# Homoskedastic continuous updating by hand, and LIML in linearmodels 7.1, have 2.0983 and J 2.2104.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 linearmodels==7.1 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import numpy as np
from linearmodels.iv import IVGMMCUE, IVLIML
from scipy.optimize import minimize
from statsmodels.sandbox.regression.gmm import IVGMM

generator = np.random.default_rng(0)
n = 400
z = generator.normal(size=(n, 3))
u, w = generator.normal(size=(2, n))
t = z @ [0.3, 0.2, 0.1] + u + 0.3 * w
y = 1 + 2 * t + 0.5 * w + u * (1 + 0.5 * np.abs(z[:, 0])) + generator.normal(size=n)
x, instruments = np.column_stack([np.ones(n), w, t]), np.column_stack([np.ones(n), w, z])


def updated(kind):
    """The slope and J of continuous updating by hand, with homoskedastic or heteroskedastic moments, not centred."""

    def objective(beta):
        rest = y - x @ beta
        moments = instruments * rest[:, None]
        weights = instruments.T @ instruments * (rest @ rest) / n**2 if kind == "iid" else moments.T @ moments / n
        mean = moments.mean(axis=0)
        return float(n * mean @ np.linalg.solve(weights, mean))

    start = np.linalg.lstsq(instruments @ np.linalg.lstsq(instruments, x, rcond=None)[0], y, rcond=None)[0]
    found = minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 10000})
    return float(found.x[2]), float(found.fun)


seen = {}
for name, options in {
    "cov": {}, "iid": {"weights_method": "iid"}, "hac": {"weights_method": "hac", "wargs": {"maxlag": 5}},
    "cov, not centred": {"wargs": {"centered": False}},
}.items():
    fit = IVGMM(y, x, instruments).fit(maxiter="cue", optim_args={"disp": 0, "gtol": 1e-8}, **options)
    seen[name] = float(fit.params[2]), float(fit.jtest()[0]), float(fit.bse[2])
    print(f"statsmodels, {name}: slope {seen[name][0]:.4f}, J {seen[name][1]:.4f}, standard error {seen[name][2]:.4f}")
    assert np.allclose(seen[name][:2], seen["cov"][:2], atol=1e-6)
liml = float(IVLIML(y, x[:, :2], t, z).fit().params.iloc[2])
robust = float(IVGMMCUE(y, x[:, :2], t, z).fit().params.iloc[2])
hand = {kind: updated(kind) for kind in ("iid", "cov")}
print(f"by hand, iid: slope {hand['iid'][0]:.4f}, J {hand['iid'][1]:.4f}; linearmodels LIML {liml:.4f}")
print(f"by hand, not centred: slope {hand['cov'][0]:.4f}, J {hand['cov'][1]:.4f}; linearmodels continuously updated {robust:.4f}")
assert abs(hand["iid"][0] - liml) < 1e-4 and abs(hand["cov"][0] - robust) < 1e-3
assert abs(seen["iid"][0] - liml) > 0.05
assert abs(seen["cov"][2] - seen["iid"][2]) > 0.03 and abs(seen["cov"][2] - seen["hac"][2]) > 1e-3
assert abs(seen["cov, not centred"][0] - hand["cov"][0]) > 1e-4
PYTHON
