"""What replications say together: medians and quartiles, bias and coverage, and how surely they are known.

Monte Carlo standard errors: of a mean ``s / sqrt(R)``, of a standard deviation ``s / sqrt(2 (R - 1))`` (normal errors), of a
coverage ``sqrt(p (1 - p) / R)``, each over ``R`` replications; of a median half the distance between the order statistics that
enclose it with 95 % probability, divided by 1.96.

References
----------
Morris, White, Crowther, "Using simulation studies to evaluate statistical methods", Statistics in Medicine 38, 2019, table 6;
McKean, Schrader, Communications in Statistics - Simulation and Computation 13, 1984, for the median.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
Z = 1.959964


def distribution(results: pd.DataFrame, metric: str, by: Sequence[str], *, failed_as: float = np.inf) -> pd.DataFrame:
    """Median and quartiles of a metric over all replications of each cell.

    A failed replication counts as infinitely wrong: with medians of those that survived, a method that fails where it is hard
    would look better than one that does not.

    Parameters
    ----------
    results : DataFrame
        Of ``Study.results``.
    metric : str
        A column.
    by : sequence of str
        The columns that tell cells apart.
    failed_as : float
        What a failure counts as: ``inf`` for a metric that is to be small, ``-inf`` for one that is to be large.

    Returns
    -------
    DataFrame
        Indexed by ``by``: ``median, quartile_1, quartile_3, mc_error`` (of the median; infinite where it is), ``replications``
        and ``failed``.
    """
    return _by_cell(
        results,
        by,
        lambda cell: {
            **quartiles(cell[metric].where(cell["status"] == "done", failed_as).to_numpy(dtype=np.float64)),
            "replications": len(cell),
            "failed": int((cell["status"] == "failed").sum()),
        },
    )


def accuracy(results: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """Bias, standard deviation, root mean squared error and coverage of an :class:`Estimate`, each with its Monte Carlo error.

    Over the replications that did not fail, whose number is given; a coverage over those of them that have an interval.

    Returns
    -------
    DataFrame
        Indexed by ``by``: ``bias, bias_mc_error, sd, sd_mc_error, rmse`` and, with intervals, ``coverage, coverage_mc_error,
        intervals`` (their number); ``replications, failed``.
    """
    return _by_cell(results, by, lambda cell: _accuracy(cell, metric))


def _accuracy(cell: pd.DataFrame, metric: str) -> dict[str, float]:
    done = cell[cell["status"] == "done"]
    counts: dict[str, float] = {"replications": len(cell), "failed": len(cell) - len(done)}
    if done.empty:
        return counts
    errors = (done[metric] - done[f"{metric}_truth"]).to_numpy(dtype=np.float64)
    n = len(errors)
    sd = float(errors.std(ddof=1)) if n > 1 else np.nan
    found = {"bias": errors.mean(), "bias_mc_error": sd / np.sqrt(n), "sd": sd}
    found |= {"sd_mc_error": sd / np.sqrt(2 * (n - 1)) if n > 1 else np.nan, "rmse": float(np.sqrt(np.mean(errors**2)))}
    ends = done.reindex(columns=[f"{metric}_lower", f"{metric}_upper"]).to_numpy(dtype=np.float64)
    has_one = ~np.isnan(ends).all(axis=1)
    if has_one.any():
        lower, upper = ends[has_one].T
        truth = done[f"{metric}_truth"].to_numpy(dtype=np.float64)[has_one]
        covered = float((~(truth < lower) & ~(truth > upper)).mean())  # an end that is missing is no limit
        mc_error = float(np.sqrt(covered * (1.0 - covered) / has_one.sum()))
        found |= {"coverage": covered, "coverage_mc_error": mc_error, "intervals": int(has_one.sum())}
    return {**found, **counts}


def select_measured(results: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows that have a metric, and the failed ones of cells to which it applies.

    It does not apply to a cell where replications have finished and none has it. Where none has finished, nobody knows, and
    they count.
    """
    has, done = results[metric].notna(), results["status"] == "done"
    cell = results.groupby(list(by), sort=False, dropna=False).ngroup()
    applies = has.groupby(cell).transform("any") | ~done.groupby(cell).transform("any")
    return results[applies & (has | ~done)]


def slopes(results: pd.DataFrame, metric: str, by: Sequence[str], *, along: str = "n") -> pd.DataFrame:
    """How fast a metric falls: the least-squares slope of ``log metric`` on ``log n`` over single replications.

    Returns
    -------
    DataFrame
        Indexed by ``by``: ``slope``, ``std_error`` and the number of replications; without cells of one ``n`` only, and without
        failed replications and such whose error or ``n`` has no logarithm.
    """
    usable = results[(results["status"] == "done") & (results[metric] > 0.0) & (results[along] > 0.0)]
    rows = []
    for key, cell in usable.groupby(list(by), sort=False, dropna=False):
        x, y = np.log(cell[along].to_numpy(dtype=np.float64)), np.log(cell[metric].to_numpy(dtype=np.float64))
        centred = x - x.mean()
        if len(x) < 3 or not centred.any():
            continue
        slope = float(centred @ y / (centred @ centred))
        residuals = y - y.mean() - slope * centred
        std_error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / (centred @ centred)))
        rows.append((key, {"slope": slope, "std_error": std_error, "replications": len(x)}))
    return _table(rows, by, ["slope", "std_error", "replications"])


def _by_cell(results: pd.DataFrame, by: Sequence[str], of: Callable[[pd.DataFrame], Mapping[str, float]]) -> pd.DataFrame:
    groups = results.groupby(list(by), sort=False, dropna=False)
    return _table([(key, of(cell)) for key, cell in groups], by)


def _table(rows: Sequence[tuple[Any, Mapping[str, float]]], by: Sequence[str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Rows by their key; an axis may have the name of a column."""
    index = (
        pd.MultiIndex.from_tuples([key for key, _ in rows], names=list(by))
        if rows
        else pd.MultiIndex.from_arrays([[]] * len(by), names=list(by))
    )
    table = pd.DataFrame([row for _, row in rows], index=index, columns=list(columns) or None)
    return table.set_axis(index.get_level_values(0), axis=0) if len(by) == 1 else table


def quartiles(values: Array) -> dict[str, float]:
    """``median, quartile_1, quartile_3, mc_error`` of values that may be infinite."""
    ordered = np.sort(values)
    low, middle, high = (_quantile(ordered, q) for q in (0.25, 0.5, 0.75))
    return {"median": middle, "quartile_1": low, "quartile_3": high, "mc_error": median_mc_error(ordered)}


def _quantile(ordered: Array, q: float) -> float:
    """Linear between order statistics; infinite as soon as one that counts is."""
    place = q * (len(ordered) - 1)
    below, share = int(place), place - int(place)
    if share == 0.0 or np.isinf(ordered[below]):
        return float(ordered[below])
    if np.isinf(ordered[below + 1]):
        return float(ordered[below + 1])
    return float(ordered[below] + share * (ordered[below + 1] - ordered[below]))


def median_mc_error(ordered: Array) -> float:
    """McKean and Schrader's standard error of the median of sorted values; nan for fewer than five."""
    n = len(ordered)
    if n < 5:
        return float("nan")
    rank = max(1, round((n + 1) / 2 - Z * np.sqrt(n / 4)))
    if np.isinf(ordered[n - rank]) or np.isinf(ordered[rank - 1]):
        return float("inf")
    return float((ordered[n - rank] - ordered[rank - 1]) / (2 * Z))
