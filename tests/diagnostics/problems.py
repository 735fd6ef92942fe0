"""Tables and arrays that several tests of diagnostics share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from linearmodels.iv import IV2SLS

from cfiv import TwoStageLeastSquares
from cfiv.diagnostics.linear_problem import LinearProblem
from cfiv.estimators.linear_regression import Covariance

#: Two programs' roundings in well-conditioned problems.
SAME = 1e-8
SIGNIFICANCE = 0.05

FORMULAS = [
    "y ~ [t ~ z]",
    "y ~ x + [t ~ z]",
    "y ~ x + [t ~ z + q + r]",
    "y ~ x + C(region) + [t + s ~ z + q + r]",
    "y ~ x + [t + s ~ z + q]",
    "y ~ 0 + x + [t ~ z + q]",
    "y ~ 0 + [t ~ z + q]",
]
COVARIANCES = ["unadjusted", "robust", "clustered"]


def table(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """Confounded, heteroskedastic, correlated within 40 groups; the effects are 2 of t, -1 of s, 0.5 of x."""
    generator = np.random.default_rng(seed)
    z, q, r, x, u, v = generator.normal(size=(6, n))
    group = generator.integers(0, 40, n)
    shared = generator.normal(size=40)[group]
    noise = np.abs(1.0 + 0.5 * z)
    t = 0.6 * z + 0.3 * r + 0.3 * x + u * noise + 0.5 * shared
    s = 0.5 * q - 0.5 * z + v
    y = 1.0 + 2.0 * t - s + 0.5 * x + u + v * generator.normal(size=n) + shared
    frame = pd.DataFrame({"y": y, "t": t, "s": s, "z": z, "q": q, "r": r, "x": x, "w": generator.uniform(0.2, 3.0, n)})
    return frame.assign(group=group, region=generator.choice(list("abc"), n))


def problem(formula: str, frame: pd.DataFrame, *, covariance: Any = "unadjusted", weights: str | None = None) -> LinearProblem:
    clusters = "group" if covariance == "clustered" else None
    _, data = TwoStageLeastSquares(formula, weights=weights, clusters=clusters).encode(frame)
    return LinearProblem.from_data(data, intercept="0 +" not in formula, covariance=Covariance(covariance))


def reference(
    formula: str, frame: pd.DataFrame, *, covariance: str = "unadjusted", weights: str | None = None, debiased: bool = False
) -> Any:
    """linearmodels' own fit, by its own formula interface."""
    written = formula if "0 +" in formula else formula.replace("~", "~ 1 +", 1)  # linearmodels has no implied constant
    model = IV2SLS.from_formula(written, frame, weights=frame[weights] if weights else None)
    options = {"clusters": frame["group"]} if covariance == "clustered" else {}
    return model.fit(cov_type=covariance, debiased=debiased, **options)
