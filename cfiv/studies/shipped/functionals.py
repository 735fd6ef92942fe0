"""Designs of the literature on debiased functionals: what is asked is the average derivative, or an effect, of a curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from cfiv.checks import check_choice, check_number, check_whole

Array = npt.NDArray[np.float64]
Rows = Callable[[pd.DataFrame], Array]
#: Curves of :func:`normal_treatment`.
CURVES: Mapping[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "2dpoly": lambda t: -1.5 * t + 0.9 * t**2,
    "sigmoid": lambda t: 2 / (1 + np.exp(-2 * t)),
    "sin": np.sin,
}


def normal_treatment(*, n: int, curve: str, strength: float, seed: int) -> tuple[pd.DataFrame, Rows]:
    """``y = h(t) + u + .1 e``, ``t = strength z + (1 - strength) u + .1 v``.

    All normal, ``z`` and ``u`` of variance 4, ``e`` and ``v`` of one.

    Parameters
    ----------
    n : int
    curve : {"abs", "2dpoly", "sigmoid", "sin"}
    strength : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    table, truth
        Columns ``y, t, z``; ``truth(rows)`` is ``h``.

    References
    ----------
    Bennett, Kallus, Mao, Newey, Syrgkanis and Uehara, "Inference on strongly identified functionals of weakly identified
    functions" (arXiv 2208.08291), main design.
    """
    check_whole("n", n, least=1)
    check_number("strength", strength, least=0.0, most=1.0)
    check_choice("curve", curve, tuple(CURVES))
    z, u, v, e = np.random.default_rng(seed).normal(size=(4, n))
    t = strength * 2 * z + (1 - strength) * 2 * u + 0.1 * v
    h = CURVES[curve]
    return pd.DataFrame({"y": h(t) + 2 * u + 0.1 * e, "t": t, "z": 2 * z}), lambda rows: h(rows["t"].to_numpy())


def two_treatments(*, n: int, covariates: int, correlation: float, seed: int) -> tuple[pd.DataFrame, Rows]:
    """``y = t1 + 1 / (1 + exp(-t2)) + log(1 + x1) + k(v) + e``: two treatments, and covariates that instruments go with.

    Parameters
    ----------
    n : int
    covariates : int
        ``d``, of ``v``, on (0, 1): ``x2``, ``x3``, ...
    correlation : float
        ``c``, of ``v`` with the instruments.
    seed : int

    Returns
    -------
    table, truth
        Columns ``y, t1, t2, z1, z2, x1, x2, ...``; the average derivative by ``t1`` is one.

    References
    ----------
    Chen, Chen and Tamer, "Efficient estimation of average derivatives in NPIV models: simulation comparisons of neural network
    estimators", *Journal of Econometrics* 2023 (arXiv 2110.06763), second Monte Carlo design.
    """
    check_whole("n", n, least=1)
    check_whole("covariates", covariates, least=0)
    check_number("correlation", correlation, least=0.0, most=1.0)
    generator = np.random.default_rng(seed)
    x1 = generator.uniform(size=n)
    u1, u2, e1, e2, e3 = generator.normal(size=(5, n))
    z1, z2 = norm.cdf(u1), norm.cdf(u2)
    e = (e1 + e2 + e3) / 3 * np.sqrt((z1**2 + x1**2 + z2**2) / 3)
    columns = {"t1": z1 + 0.5 * e2 + e, "t2": norm.cdf(u2 + 0.5 * e3), "z1": z1, "z2": z2, "x1": x1}
    if covariates:
        mixing = np.random.RandomState(9999).randn(covariates, covariates)
        spread = np.eye(covariates) + mixing.T @ mixing
        scale = np.sqrt(np.diag(spread))
        root = np.linalg.cholesky(spread / np.outer(scale, scale))
        own = generator.normal(size=(n, covariates)) @ root.T
        v = norm.cdf(np.sqrt(1 - correlation**2) * own + correlation * (z1 + x1 + z2)[:, None])
        columns |= {f"x{j + 2}": v[:, j] for j in range(covariates)}
    table = pd.DataFrame(columns)
    h = _of_two_treatments(covariates)
    return table.assign(y=h(table) + e), h


def _of_two_treatments(covariates: int) -> Rows:
    def h(rows: pd.DataFrame) -> Array:
        value = rows["t1"] + 1 / (1 + np.exp(-rows["t2"])) + np.log1p(rows["x1"])
        if covariates:
            v = rows[[f"x{j + 2}" for j in range(covariates)]].to_numpy()
            value = value + 5 * v[:, 0] ** 3 + v[:, 1] * np.maximum(0.5, v.max(axis=1)) + 0.5 * np.exp(-v[:, -1])
        return np.asarray(value, dtype=np.float64)

    return h


def many_treatments(*, n: int, treatments: int, seed: int) -> tuple[pd.DataFrame, Rows]:
    """``y = t1 + exp(-sum_{j > 1} t_j^2 / 2) + sum_j u_j / sqrt(k)``, each ``t_j`` with an instrument of correlation .8.

    Parameters
    ----------
    n, treatments, seed : int
        ``k`` treatments, of correlation .5 with their errors.

    Returns
    -------
    table, truth
        Columns ``y, t1, ..., z1, ...``; the average derivative by ``t1`` is one.

    References
    ----------
    Bakhitov, "Penalized GMM framework for inference on functionals of nonparametric instrumental variable estimators" (arXiv
    2603.29889), the first design of its simulations.
    """
    check_whole("n", n, least=1)
    check_whole("treatments", treatments, least=2)
    z, u, rest = np.random.default_rng(seed).normal(size=(3, n, treatments))
    t = 0.8 * z + 0.5 * u + np.sqrt(1 - 0.8**2 - 0.5**2) * rest
    names = [f"t{j + 1}" for j in range(treatments)]
    table = pd.DataFrame(t, columns=names).assign(**{f"z{j + 1}": z[:, j] for j in range(treatments)})

    def h(rows: pd.DataFrame) -> Array:
        values: Array = rows[names].to_numpy(dtype=np.float64)
        return np.asarray(values[:, 0] + np.exp(-0.5 * (values[:, 1:] ** 2).sum(axis=1)))

    return table.assign(y=h(table) + u.sum(axis=1) / np.sqrt(treatments)), h
