#!/usr/bin/env bash
# pyfixest 0.60.0: the first-stage F of an instrumental-variable fit with two-way clusters leaves the second cluster variable out,
# without a word, though the documentation has it adjusted to the covariance of the fit. So it depends on the order of the two names,
# while the standard errors of the fit do not.
#
# Seen for an instrument that differs between 20 states only, and 100 firms: clusters "firm+state" F 367.6, "state+firm" 8.95, which are
# those of one-way clusters by firm and by state; the first stage as a regression of its own with both clusters has 9.02 in either order
# (linearmodels 7.1, which takes no small-sample factor, 9.50). The rule of thumb "above 10" is passed or not by the order of names.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  pyfixest==0.60.0 linearmodels==7.1 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import warnings

import numpy as np
import pandas as pd
import pyfixest
from linearmodels.iv import IV2SLS

generator = np.random.default_rng(0)
n = 2000
state, firm = generator.integers(0, 20, n), generator.integers(0, 100, n)
z, shock = generator.normal(size=(2, 20))
u, e = generator.normal(size=(2, n))
t = z[state] + shock[state] + u
table = pd.DataFrame({"y": 2 * t + u + e, "t": t, "z": z[state], "state": state, "firm": firm})


def first_stage_f(clusters):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = pyfixest.feols("y ~ 1 | t ~ z", table, vcov={"CRV1": clusters})
        fit.first_stage()
    assert not [warning for warning in caught if "cluster" in str(warning.message).lower()]
    return float(fit._f_stat_1st_stage), float(fit.se()["t"])


def own_regression(clusters):
    return float(pyfixest.feols("t ~ z", table, vcov={"CRV1": clusters}).tstat()["z"]) ** 2


seen = {clusters: first_stage_f(clusters) for clusters in ("firm", "state", "firm+state", "state+firm")}
alone = {clusters: own_regression(clusters) for clusters in seen}
constant = table[["t"]].assign(constant=1.0)[["constant"]]
independent = IV2SLS(table.t, constant.assign(z=table.z), None, None).fit(cov_type="clustered", clusters=table[["firm", "state"]])
linearmodels = float(independent.tstats["z"]) ** 2
for clusters, (f, error) in seen.items():
    print(f"clusters {clusters}: first-stage F {f:.2f} (standard error of the slope {error:.4f}); by its own regression {alone[clusters]:.2f}")
print(f"linearmodels, both clusters, no small-sample factor: {linearmodels:.2f}")
assert np.isclose(seen["firm"][0], alone["firm"]) and np.isclose(seen["state"][0], alone["state"])
assert np.isclose(seen["firm+state"][0], seen["firm"][0]) and np.isclose(seen["state+firm"][0], seen["state"][0])
assert np.isclose(seen["firm+state"][1], seen["state+firm"][1]) and np.isclose(alone["firm+state"], alone["state+firm"])
assert np.isclose(alone["firm+state"], linearmodels, rtol=0.1)
assert seen["firm+state"][0] > 3 * alone["firm+state"]
PYTHON
