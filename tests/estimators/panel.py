"""A small unbalanced panel with an endogenous treatment, and what pyfixest says of it."""

import numpy as np
import pandas as pd


def panel(*, firms: int = 60, years: int = 8, rows: int = 160, seed: int = 7) -> pd.DataFrame:
    """``y = 1.5 t - x + firm + year + e`` with e in t, rows missing at random (some firms have one row), regions of firms."""
    generator = np.random.default_rng(seed)
    cells = np.sort(generator.choice(firms * years, rows, replace=False))
    firm, year = cells // years, cells % years
    of_firm, of_year = generator.normal(size=firms), generator.normal(size=years)
    error = generator.normal(size=rows)
    z = generator.normal(size=rows) + of_firm[firm]
    x = generator.normal(size=rows) + of_year[year]
    t = z + 0.5 * x + of_firm[firm] + of_year[year] + error
    y = 1.5 * t - x + 2 * of_firm[firm] + of_year[year] + error + generator.normal(size=rows) * (1 + 0.5 * np.abs(x))
    weight = generator.uniform(0.5, 2.0, size=rows)
    table = {"y": y, "t": t, "z": z, "x": x, "firm": firm, "year": 2000 + year, "region": firm % 13, "weight": weight}
    return pd.DataFrame(table)
