"""Tables that several tests of inference share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from linearmodels.iv import IV2SLS

from tests.diagnostics.problems import table as table

#: Two programs' roundings in well-conditioned problems.
SAME = 1e-10
LINE = "y ~ x + [t ~ z + q + r]"
CURVE = "y ~ x + [bs(t, df=4) ~ bs(z, df=5) + q + r]"


def reference(frame: pd.DataFrame, *, weights: str | None, debiased: bool, **options: Any) -> Any:
    """linearmodels' fit of ``LINE``."""
    written = LINE.replace("~", "~ 1 +", 1)  # it has no implied constant
    model = IV2SLS.from_formula(written, frame, weights=frame[weights] if weights else None)
    return model.fit(debiased=debiased, **options)


def two_ways(n: int = 400, seed: int = 0) -> pd.DataFrame:
    """``table`` with errors that are correlated within groups of two kinds, 40 and 30 of them."""
    generator = np.random.default_rng(seed)
    frame = table(n, seed)
    year = generator.integers(0, 30, n)
    shock = generator.normal(size=30)[year]
    return frame.assign(year=year, y=frame["y"] + shock, t=frame["t"] + 0.3 * shock)
