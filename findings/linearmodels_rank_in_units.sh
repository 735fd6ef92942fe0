#!/usr/bin/env bash
# linearmodels 7.1: whether regressors "have full column rank" depends on their units and origin, since the rank of the raw matrix
# is judged relative to its largest singular value, and the normal equations are formed without centring. A calendar year beside
# its square is refused although both are far from collinear with the constant; a treatment that is shifted by 1e7 is refused, and
# one that is shifted by 1e6 keeps some four digits of its coefficient, without a warning.
#
# Seen: ValueError "regressors [exog endog] do not have full column rank" for year and year squared (centred: fitted); the same for
# t + 1e7. t + 1e6 moves the coefficient 2.08 by 6e-5 of itself, t + 1e4 by 2e-9.
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
n = 400
z, u = generator.normal(size=(2, n))
t = z + u
data = pd.DataFrame({"y": 2 * t + u, "t": t, "z": z, "constant": 1.0})
year = generator.integers(2001, 2005, n).astype(float)


def slope(treatment, **covariates):
    exogenous = data[["constant"]].assign(**covariates)
    try:
        return IV2SLS(data.y, exogenous, treatment.to_frame("t"), data[["z"]]).fit().params["t"]
    except ValueError as error:
        return str(error)


squares = slope(data.t, year=year, square=year**2)
centred = slope(data.t, year=year - 2002, square=(year - 2002) ** 2)
print("year and its square:", squares)
print("the same, centred:", centred)
assert isinstance(squares, str) and "full column rank" in squares
assert isinstance(centred, float)

plain = slope(data.t)
far = slope(data.t + 1e7)
print(f"t: {plain}; t + 1e7: {far}")
assert isinstance(far, str) and "full column rank" in far
moved = {shift: abs(slope(data.t + shift) / plain - 1) for shift in (1e4, 1e6)}
print("relative change of the slope where t is shifted:", moved)
assert moved[1e4] < 1e-6 < moved[1e6]
PYTHON
