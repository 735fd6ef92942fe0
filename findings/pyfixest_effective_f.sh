#!/usr/bin/env bash
# pyfixest 0.60.0: the effective F of `IV_Diag` (Montiel Olea and Pflueger 2013), the statistic for weak instruments that need not be
# homoskedastic, depends on the origin of the instruments. Its weights are the raw cross products Z'Z of the instruments; the
# definition has those of their residuals on the covariates, the constant among them. With two instruments or more, one of which is
# counted from elsewhere (a year, a temperature in kelvin), another number comes out, while the estimates and the first-stage F stay.
# The same call writes "hetero" into a fit with iid standard errors, so that its summary names an inference that it does not show.
#
# Seen with 1,000 rows and z2 shifted by 0, 1, 5, 100: effective F 9.41, 7.24, 1.54, .67; by hand 9.42 each time, and so in pyfixest
# once w and the constant are taken out of the instruments beforehand. The robust first-stage F is 7.23 each time, as by hand.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check \
  pyfixest==0.60.0 formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import contextlib
import io

import numpy as np
import pandas as pd
import pyfixest

generator = np.random.default_rng(0)
n = 1000
w, z1, z2, u, e = generator.normal(size=(5, n))
z2 += 0.5 * z1
t = 0.2 * z1 + 0.05 * z2 + 0.5 * w + u * (1 + 0.7 * np.abs(z1))
table = pd.DataFrame({"y": 2 * t + w + u + e, "t": t, "w": w, "z1": z1, "z2": z2})


def by_hand(data):
    controls = np.column_stack([np.ones(n), data.w])
    both = data[["z1", "z2", "t"]].to_numpy()
    both = both - controls @ np.linalg.lstsq(controls, both, rcond=None)[0]
    z, t = both[:, :2], both[:, 2]
    inverse = np.linalg.inv(z.T @ z)
    pi = inverse @ z.T @ t
    scores = z * (t - z @ pi)[:, None]
    covariance = inverse @ scores.T @ scores @ inverse * n / (n - 4)  # HC1 with constant, w, z1, z2
    return float(pi @ z.T @ z @ pi / np.trace(covariance @ z.T @ z)), float(pi @ np.linalg.inv(covariance) @ pi / 2)


def diagnosed(data, instruments="z1 + z2", vcov="hetero"):
    fit = pyfixest.feols(f"y ~ w | t ~ {instruments}", data, vcov=vcov)
    fit.first_stage()
    fit.IV_Diag()
    return fit


seen = {}
for shift in (0, 1, 5, 100):
    moved = table.assign(z2=table.z2 + shift)
    fit = diagnosed(moved)
    seen[shift] = float(fit._eff_F)
    effective, first = by_hand(moved)
    print(f"z2 + {shift}: effective F {seen[shift]:.4f}, by hand {effective:.4f}; first-stage F {fit._f_stat_1st_stage:.4f}, "
          f"by hand {first:.4f}; slope {fit.coef()['t']:.4f}")
    assert np.isclose(effective, by_hand(table)[0], rtol=1e-6)
    assert np.isclose(fit._f_stat_1st_stage, first, rtol=1e-4)
assert max(seen.values()) > 8 * min(seen.values())
assert seen[100] < 1 < by_hand(table)[0]

# Both definitions agree where instruments are residuals themselves.
controls = np.column_stack([np.ones(n), w])
inside = table[["z1", "z2"]] - controls @ np.linalg.lstsq(controls, table[["z1", "z2"]].to_numpy(), rcond=None)[0]
partialled = float(diagnosed(table.assign(**inside))._eff_F)
print(f"instruments that are residuals on w and the constant: {partialled:.4f}")
assert np.isclose(partialled, by_hand(table)[0], rtol=1e-4)

fit = pyfixest.feols("y ~ w | t ~ z1 + z2", table, vcov="iid")
errors, words = fit.se().to_numpy().copy(), []
for step in (lambda: None, fit.IV_Diag):
    step()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        fit.summary()
    words.append(next(line.split(":")[1].strip() for line in said.getvalue().splitlines() if line.startswith("Inference")))
print("the summary's inference before and after IV_Diag:", words, "standard errors the same:", np.allclose(errors, fit.se()))
assert words == ["iid", "hetero"] and np.allclose(errors, fit.se().to_numpy())
PYTHON
