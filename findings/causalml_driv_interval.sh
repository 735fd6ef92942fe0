#!/usr/bin/env bash
# causalml 0.18.0: the interval of `estimate_ate` of the DRIV learner does not shrink with the number of rows: its standard error is
# the root of the asymptotic variance (Froelich 2006), not divided by n, so it is the root of n times too wide, a hundred times at 10,000
# rows. And the assignment probabilities `pZ` that are handed to `estimate_ate` or `fit_predict` are ignored: fit_predict passes `seed`
# in their place, and estimate_ate passes nothing; `fit` by itself does use them.
#
# Seen with an effect of 1 for all: half the interval over 1.96 is 4.2 to 4.8 with 2,000 rows and 4.4 to 4.6 with 20,000, where the
# standard error of the Wald estimator is .17 and .055. With pZ of .1 and .9 for everyone fit_predict gives one and the same answer,
# 2.443, and so does estimate_ate, where fit and predict give 2.744 and 2.594.
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
from causalml.inference.iv import BaseDRIVRegressor  # noqa: E402
from sklearn.linear_model import LinearRegression  # noqa: E402


def drawn(n, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 2))
    z = (generator.random(n) < 0.5).astype(int)
    hidden = generator.normal(size=n)
    d = (hidden + z > 0.5).astype(int)
    return x, z, d, d + x[:, 0] + hidden + 0.5 * generator.normal(size=n)


def learner():
    return BaseDRIVRegressor(learner=LinearRegression(), control_name=0)


def wald_error(z, d, y):
    slope = y[z == 1].mean() - y[z == 0].mean()
    step = d[z == 1].mean() - d[z == 0].mean()
    rest = y - slope / step * d
    return float(np.sqrt(rest[z == 1].var() / (z == 1).sum() + rest[z == 0].var() / (z == 0).sum()) / step)


widths = {}
for n in (2000, 20000):
    for seed in range(3):
        x, z, d, y = drawn(n, seed)
        estimate, low, high = (float(number[0]) for number in learner().estimate_ate(x, z, d, y))
        widths[n, seed], error = (high - low) / 2 / 1.959964, wald_error(z, d, y)
        print(f"{n} rows, seed {seed}: estimate_ate {estimate:.2f}, interval {low:.2f} to {high:.2f}, standard error {widths[n, seed]:.2f}; "
              f"over the root of n {widths[n, seed] / n**0.5:.3f}; Wald {error:.3f}")
        assert 0.3 < widths[n, seed] / n**0.5 / error < 1.5
assert all(0.8 < widths[20000, seed] / widths[2000, seed] < 1.25 for seed in range(3))  # not 1 / 3.2

x, z, d, y = drawn(2000, 0)
ignored, averaged, used = [], [], []
for probability in (0.1, 0.9):
    chances = np.full(len(y), probability)
    ignored.append(float(learner().fit_predict(x, z, d, y, pZ=chances).mean()))
    averaged.append(float(learner().estimate_ate(x, z, d, y, pZ=chances)[0][0]))
    model = learner()
    model.fit(x, z, d, y, pZ=chances, seed=1)
    used.append(float(model.predict(x).mean()))
print("pZ of .1 and .9: fit_predict", ignored, "estimate_ate", averaged, "fit and predict", used)
assert ignored[0] == ignored[1] and averaged[0] == averaged[1] and abs(used[0] - used[1]) > 1e-3
PYTHON
