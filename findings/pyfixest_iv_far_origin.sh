#!/usr/bin/env bash
# pyfixest 0.60.0: the instrumental-variable estimate depends on the treatment's origin, since the normal equations are formed
# without centring. A treatment that is counted from far away (1e7 away, with a spread of one) gets another slope in its second
# digit; all that is said is scipy's warning of an ill-conditioned matrix. Farther away, and for exogenous regressors like a
# calendar year and its square, it ends in scipy's LinAlgError.
#
# Seen: slope 2.118 for t, 2.099 for t + 1e7, "A singular matrix detected" for t + 1e8 (the covariances of y and t with the
# instrument, which are centred, give 2.118 each time) and for year + I(year**2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  pyfixest==0.60.0 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import warnings

import numpy as np
import pandas as pd
import pyfixest

generator = np.random.default_rng(0)
n = 400
z, u, x = generator.normal(size=(3, n))
table = pd.DataFrame({"z": z, "t": z + u, "y": 2 * (z + u) + u + x, "year": generator.integers(2001, 2005, n)})


def slope(data, covariates="1"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = float(pyfixest.feols(f"y ~ {covariates} | t ~ z", data).coef()["t"])
        except np.linalg.LinAlgError as error:
            found = str(error)
    return found, sorted({warning.category.__name__ for warning in caught} & {"LinAlgWarning"})


def by_hand(data):
    return float(np.cov(data.y, data.z)[0, 1] / np.cov(data.t, data.z)[0, 1])


for shift in (0.0, 1e7, 1e8):
    moved = table.assign(t=table.t + shift)
    print(f"t + {shift:g}: pyfixest {slope(moved)}, by covariances {by_hand(moved):.4f}")
print("year and its square:", slope(table, "year + I(year**2)")[0])

assert abs(slope(table)[0] / by_hand(table) - 1) < 1e-8 and not slope(table)[1]
near, far = table.assign(t=table.t + 1e7), table.assign(t=table.t + 1e8)
assert max(abs(by_hand(moved) / by_hand(table) - 1) for moved in (near, far)) < 1e-6
assert abs(slope(near)[0] / by_hand(table) - 1) > 1e-4 and slope(near)[1] == ["LinAlgWarning"]
assert not isinstance(slope(far)[0], float) or abs(slope(far)[0] / by_hand(table) - 1) > 1e-2
assert "singular" in slope(table, "year + I(year**2)")[0]
PYTHON
