#!/usr/bin/env bash
# dowhy 0.14: `iv.regression_discontinuity` estimates no jump at the threshold. It "transforms the problem to an instrumental variables
# problem" with the running variable itself as the instrument, cov(y, r) / cov(t, r) within the bandwidth, so whatever else makes the
# outcome rise with r is counted as the treatment's effect; the threshold only says where the window lies. The textbook's estimator
# fits a line on each side (as instrumental variables: the side is the instrument, r a covariate).
#
# Seen for a treatment given where r >= 0, r uniform on (-1, 1), slope 2 on both sides, 5,000 rows, and no effect: 2.67 with bandwidth 1,
# 1.31 with .5, .19 with .1; a line on each side gives -.02, -.05, .01, and so does rdrobust 2.1.1. With an effect of 1, 3.67, 2.31, 1.19.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check dowhy==0.14 rdrobust==2.1.1 numpy==2.4.6
env/bin/python - <<'PYTHON'
import logging
import warnings

import numpy as np
import pandas as pd
from dowhy import CausalModel
from rdrobust import rdrobust

logging.disable(logging.INFO)
warnings.simplefilter("ignore", FutureWarning)
generator = np.random.default_rng(0)
n = 5000
r, e = generator.uniform(-1, 1, n), generator.normal(size=n)
t = (r >= 0).astype(float)


def dowhy(effect, bandwidth):
    table = pd.DataFrame({"y": effect * t + 2 * r + 0.3 * e, "t": t, "r": r})
    model = CausalModel(table, treatment="t", outcome="y", instruments=["r"])
    estimand = model.identify_effect(proceed_when_unidentifiable=True)
    parameters = {"rd_variable_name": "r", "rd_threshold_value": 0.0, "rd_bandwidth": bandwidth}
    return float(model.estimate_effect(estimand, method_name="iv.regression_discontinuity", method_params=parameters).value)


def lines(effect, bandwidth):
    """The jump between two lines, one on each side, by least squares; and what dowhy computes."""
    inside = np.abs(r) <= bandwidth
    x, y = r[inside], (effect * t + 2 * r + 0.3 * e)[inside]
    side = t[inside]
    jump = np.linalg.lstsq(np.column_stack([side, np.ones(len(x)), x, side * x]), y, rcond=None)[0][0]
    return float(jump), float(np.cov(y, x)[0, 1] / np.cov(side, x)[0, 1])


for effect in (0.0, 1.0):
    for bandwidth in (1.0, 0.5, 0.1):
        seen, (jump, ratio) = dowhy(effect, bandwidth), lines(effect, bandwidth)
        other = rdrobust(effect * t + 2 * r + 0.3 * e, r, c=0, h=bandwidth, kernel="uniform")
        other = float(np.asarray(other.coef).ravel()[0])
        print(f"effect {effect:g}, bandwidth {bandwidth}: dowhy {seen:.3f}; jump of two lines {jump:.3f}, rdrobust {other:.3f}")
        assert np.isclose(seen, ratio, rtol=1e-6) and np.isclose(jump, other, atol=1e-6)
        assert abs(jump - effect) < 0.15 and seen - effect > bandwidth
PYTHON
