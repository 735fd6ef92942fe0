#!/usr/bin/env bash
# dowhy 0.14: with two instruments or more, `iv.instrumental_variable` is two-stage least squares without a constant in either stage,
# so that the estimate depends on the origin of the outcome and the treatment; with one instrument it is a ratio of covariances, which
# does not. A second valid instrument turns a good estimate into a wrong one, without a word. Besides, control_value and
# treatment_value, which scale the effect of backdoor.linear_regression, are ignored: from 0 to 10 the effect is that from 0 to 1.
#
# Seen with 5,000 rows, an effect of 2 and a mean outcome of 7: 2.024 with the first of two randomized binary instruments, 2.008 with the
# second, 5.322 with both (2SLS with a constant: 2.016, in linearmodels 7.1 as by hand). With outcome and treatment centred: 2.016.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check dowhy==0.14 linearmodels==7.1 pandas==3.1.1 numpy==2.4.6
env/bin/python - <<'PYTHON'
import logging
import warnings

import numpy as np
import pandas as pd
from dowhy import CausalModel
from linearmodels.iv import IV2SLS

logging.disable(logging.INFO)
warnings.simplefilter("ignore", FutureWarning)
generator = np.random.default_rng(0)
n = 5000
z1, z2 = (generator.random((2, n)) < 0.5).astype(float)
u, e = generator.normal(size=(2, n))
t = z1 + z2 + u
table = pd.DataFrame({"y": 5 + 2 * t + u + e, "t": t, "z1": z1, "z2": z2})


def effect(data, instruments, method="iv.instrumental_variable", **options):
    roles = {"instruments": instruments} if method.startswith("iv.") else {"common_causes": instruments}
    model = CausalModel(data, treatment="t", outcome="y", **roles)
    estimand = model.identify_effect(proceed_when_unidentifiable=True)
    return float(model.estimate_effect(estimand, method_name=method, **options).value)


def two_stages(data, constant=True):
    columns = [np.ones(n)] if constant else []
    z, x = np.column_stack([*columns, data.z1, data.z2]), np.column_stack([*columns, data.t])
    projected = z @ np.linalg.lstsq(z, x, rcond=None)[0]
    return float(np.linalg.lstsq(projected, data.y.to_numpy(), rcond=None)[0][-1])


first, second, both = (effect(table, names) for names in (["z1"], ["z2"], ["z1", "z2"]))
reference = float(IV2SLS(table.y, np.ones((n, 1)), table.t, table[["z1", "z2"]]).fit().params["t"])
centred = effect(table.assign(y=table.y - table.y.mean(), t=table.t - table.t.mean()), ["z1", "z2"])
print(f"dowhy, z1: {first:.4f}; z2: {second:.4f}; both: {both:.4f}; both, outcome and treatment centred: {centred:.4f}")
print(f"2SLS by hand: {two_stages(table):.4f}, without a constant {two_stages(table, constant=False):.4f}; linearmodels {reference:.4f}")
assert np.isclose(two_stages(table), reference, rtol=1e-6)
assert np.isclose(both, two_stages(table, constant=False), rtol=1e-4)
assert max(abs(first - 2), abs(second - 2), abs(reference - 2)) < 0.1 and both > 5

ten = {"control_value": 0, "treatment_value": 10}
scaled = {method: effect(table, ["z1"], method, **ten) / effect(table, ["z1"], method)
          for method in ("iv.instrumental_variable", "backdoor.linear_regression")}
print("effect of 0 to 10, relative to that of 0 to 1:", {method: round(ratio, 6) for method, ratio in scaled.items()})
assert scaled["iv.instrumental_variable"] == 1 and np.isclose(scaled["backdoor.linear_regression"], 10)
PYTHON
