#!/usr/bin/env bash
# causalml 0.18.0: the DRIV learner, which "estimates endogenous treatment effects for compliers", estimates a confounded difference
# between treated and untreated. It divides one noisy pseudo-outcome, that of the outcome, by the other, that of the treatment, row by
# row, and fits their ratio with the square of the latter as weights. With a constant effect that is sum(dr * w) / sum(w^2), the
# regression of the one on the other, and the noise of both holds the same confounder; the moment condition that it cites, of
# Chernozhukov et al. (2018), is the ratio of their means. So no number of rows helps, though the instrument is randomized, half and half.
#
# Seen with 20,000 rows, an effect of 1 for all, seeds 0 to 2: DRIV 2.41, 2.42, 2.40; treated less untreated, without an instrument, 2.40,
# 2.42, 2.41; the ratio of means (Wald) 1.05, 1.09, .92, and 2SLS by causalml's own IVRegressor 1.07, 1.07, .94 (standard error .04).
# With 2,000 rows DRIV has 2.36 to 2.44.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  causalml==0.18.0 scikit-learn==1.9.1 statsmodels==0.15.0 pandas==3.1.1 numpy==2.4.6
env/bin/python - <<'PYTHON'
import warnings

import numpy as np

warnings.simplefilter("ignore")
from causalml.inference.iv import BaseDRIVRegressor, IVRegressor  # noqa: E402
from sklearn.linear_model import LinearRegression  # noqa: E402


def drawn(n, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 2))
    z = (generator.random(n) < 0.5).astype(int)
    hidden = generator.normal(size=n)
    d = (hidden + z > 0.5).astype(int)  # monotone: nobody is kept from it by z
    return x, z, d, d + x[:, 0] + hidden + 0.5 * generator.normal(size=n)


def means(by, values):
    return float(values[by == 1].mean() - values[by == 0].mean())


for n in (2000, 20000):
    for seed in range(3):
        x, z, d, y = drawn(n, seed)
        model = BaseDRIVRegressor(learner=LinearRegression(), control_name=0)
        model.fit(x, z, d, y, pZ=np.full(n, 0.5), seed=1)
        driv = float(model.predict(x).mean())
        stages = IVRegressor()
        stages.fit(x, d, y, z)
        two_stages, error = (float(number) for number in stages.predict())
        wald, naive = means(z, y) / means(z, d), means(d, y)
        print(f"{n} rows, seed {seed}: DRIV {driv:.3f}; treated less untreated {naive:.3f}; Wald {wald:.3f}; "
              f"causalml's 2SLS {two_stages:.3f} ({error:.3f})")
        assert abs(driv - naive) < 0.1 and driv > 2.2
        assert abs(two_stages - 1) < 4 * error < 0.8 and abs(wald - 1) < 0.5
PYTHON
