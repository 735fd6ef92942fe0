#!/usr/bin/env bash
# linearmodels 7.1: what the first-stage table calls `f.stat` depends on the covariance. By default (robust, not debiased) it is
# a Wald statistic with a chi2 distribution, about q times the F of q instruments; with an unadjusted covariance it is referred
# to F(q, n - k), yet without debiased=True it is n / (n - k) times that F. The rule of thumb "above 10" means another thing each time.
#
# Seen with 400 rows and 3 instruments: unadjusted and debiased 25.2887, F(3,396), the textbook's F; unadjusted 25.5441, F(3,396);
# robust 67.1027, chi2(3), of which a third is 22.3676.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  linearmodels==7.1 statsmodels==0.15.0 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import numpy as np
import pandas as pd
from linearmodels.iv import IV2SLS

generator = np.random.default_rng(0)
n, q = 400, 3
z = generator.normal(size=(n, q))
u = generator.normal(size=n)
t = z @ [0.3, 0.2, 0.1] + u
data = pd.DataFrame({"y": 2 * t + u, "t": t, "constant": 1.0})
instruments = pd.DataFrame(z, columns=["z1", "z2", "z3"])

# The F of all instruments by two regressions.
design = np.column_stack([np.ones(n), z])
rest = t - design @ np.linalg.lstsq(design, t, rcond=None)[0]
textbook = ((t - t.mean()) @ (t - t.mean()) - rest @ rest) / q / (rest @ rest / (n - q - 1))
print(f"by hand: F = {textbook:.4f}")

seen = {}
for covariance in ("unadjusted", "robust"):
    for debiased in (True, False):
        fit = IV2SLS(data.y, data[["constant"]], data[["t"]], instruments).fit(cov_type=covariance, debiased=debiased)
        row = fit.first_stage.diagnostics.loc["t"]
        seen[covariance, debiased] = float(row["f.stat"]), str(row["f.dist"])
        print(f"{covariance}, debiased={debiased}: f.stat = {row['f.stat']:.4f}, {row['f.dist']}")

assert np.isclose(seen["unadjusted", True][0], textbook) and seen["unadjusted", True][1] == "F(3,396)"
assert np.isclose(seen["unadjusted", False][0], textbook * n / (n - q - 1)) and seen["unadjusted", False][1] == "F(3,396)"
assert seen["robust", False][1] == "chi2(3)" and np.isclose(seen["robust", False][0], 67.1027, atol=1e-3)
assert 0.8 < seen["robust", False][0] / q / textbook < 1.2
PYTHON
