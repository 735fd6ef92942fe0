#!/usr/bin/env bash
# dowhy 0.14: `frontdoor.two_stage_regression` counts the contrast of the treatment twice. The effect of a change from control_value to
# treatment_value is computed as the first stage's effect of that change on the mediator, times the second stage's effect of the same
# change, in the mediator, on the outcome. So in a linear model it grows with the square of the change: from 0 to 10 it is a hundred
# times, not ten times, that from 0 to 1, and a change down has the sign of a change up.
#
# Seen for a treatment that moves the mediator by .5, which moves the outcome by 2, 5,000 rows: .974 for 0 to 1, as by two regressions by
# hand; 3.895 for 1 to 3 (by hand 1.948), 97.38 for 0 to 10 (9.738), .974 for 1 to 0 (-.974).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check dowhy==0.14 networkx==3.6.1 pandas==3.1.1 numpy==2.4.6
env/bin/python - <<'PYTHON'
import logging
import warnings

import networkx
import numpy as np
import pandas as pd
from dowhy import CausalModel

logging.disable(logging.WARNING)
warnings.simplefilter("ignore", FutureWarning)
n = 5000
hidden, e1, e2, e3 = np.random.default_rng(0).normal(size=(4, n))
t = hidden + e1
m = 0.5 * t + e2
table = pd.DataFrame({"t": t, "m": m, "y": 2 * m + hidden + e3})
graph = networkx.DiGraph([("hidden", "t"), ("hidden", "y"), ("t", "m"), ("m", "y")])
model = CausalModel(table, treatment="t", outcome="y", graph=graph)
estimand = model.identify_effect(proceed_when_unidentifiable=True)
assert estimand.get_frontdoor_variables() == ["m"]


def seen(control, treatment):
    found = model.estimate_effect(
        estimand, method_name="frontdoor.two_stage_regression", control_value=control, treatment_value=treatment
    )
    return float(found.value)


one = np.ones(n)
first = float(np.linalg.lstsq(np.column_stack([t, one]), m, rcond=None)[0][0])
second = float(np.linalg.lstsq(np.column_stack([m, t, one]), table.y.to_numpy(), rcond=None)[0][0])
for control, treatment in ((0, 1), (1, 3), (0, 10), (1, 0)):
    change = treatment - control
    found = seen(control, treatment)
    print(f"from {control} to {treatment}: dowhy {found:.3f}; by hand {first * second * change:.3f}, truth {change}")
    assert np.isclose(found, first * second * change**2, rtol=1e-6)
    assert abs(first * second - 1) < 0.1
PYTHON
