"""Fits of which one knows beforehand whether they are worth anything, and whether they say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfiv.checks import check_choice, check_whole
from cfiv.datasets import demand
from cfiv.errors import NotApplicableError, UnsupportedTreatmentWarning, silence
from cfiv.studies.metrics import Fit
from cfiv.studies.shipped.curves import one_treatment, straight
from cfiv.studies.shipped.functionals import normal_treatment

Array = npt.NDArray[np.float64]
Rows = Callable[[pd.DataFrame], Array]
#: Columns of the demand design by the letters of their roles.
LETTERS = {"sales": "y", "price": "t", "fuel": "z", "time": "x1", "emotion": "x2"}
#: Rows whose treatments are crossed with their covariates where errors are measured.
CROSSED = 100


def _curve(curve: str) -> Callable[..., tuple[Any, Any]]:
    return lambda n, seed: one_treatment(n=n, curve=curve, seed=seed)


def _straight(strength: float) -> Callable[..., tuple[Any, Any]]:
    return lambda n, seed: straight(n=n, strength=strength, seed=seed)


def _demand(error_scale: float) -> Callable[..., tuple[Any, Any]]:
    return lambda n, seed: demand.simulate(n, error_scale=error_scale, seed=seed)


def _noise(*, n: int, seed: int) -> tuple[pd.DataFrame, Rows]:
    """An outcome that has to do with nothing."""
    data, _ = straight(n=n, strength=1.0, seed=seed)
    table = data.frame
    assert table is not None
    return table.assign(y=np.random.default_rng([seed, 1]).normal(size=n)), lambda rows: np.zeros(len(rows))


#: Samples by the names of :func:`sample`; ``(n=, seed=) -> data, truth``.
CASES: Mapping[str, Callable[..., tuple[Any, Any]]] = {
    "line": _straight(1.0),
    "line, weaker instrument": _straight(0.25),
    "irrelevant instrument": _straight(0.0),
    "noise": _noise,
    **{f"curve, {curve}": _curve(curve) for curve in ("line", "kink", "sine", "cusp")},
    "demand": _demand(1.0),
    "demand, error 50": _demand(50.0),
    "weak instrument, abs": lambda n, seed: normal_treatment(n=n, curve="abs", strength=0.2, seed=seed),
}


def sample(*, n: int, case: str, seed: int) -> tuple[pd.DataFrame, Rows]:
    """Draw from a design of the other shipped studies, with columns named by their roles.

    Parameters
    ----------
    n : int
    case : str
        A key of :data:`CASES`.
    seed : int

    Returns
    -------
    table, truth
        Columns ``y, t, z`` and ``x...``; ``truth(rows)`` is ``h``.
    """
    check_whole("n", n, least=1)
    check_choice("case", case, tuple(CASES))
    data, truth = CASES[case](n=n, seed=seed)
    table: pd.DataFrame = data if isinstance(data, pd.DataFrame) else data.frame
    names = {letter: name for name, letter in LETTERS.items()} if "sales" in table else {}
    return table.rename(columns=LETTERS), lambda rows: np.asarray(truth(rows.rename(columns=names)))


def flagged(fit: Fit) -> float:
    """A metric: 1 where ``trust_`` speaks against the fit, else 0."""
    trust = getattr(fit.model, "trust_", None)
    if trust is None:
        raise NotApplicableError(f"{type(fit.model).__name__} says nothing of its worth")
    return float(not trust.trusted)


def missed(fit: Fit) -> float:
    """A metric: of what the treatment does to ``h`` over the first ``CROSSED`` rows, the share that is missed.

    With ``a(i) = h(t_i, x_i) - mean_j h(t_j, x_i)``, the squared error of it over its square; 1 of a flat estimate.
    """
    rows = fit.data.head(CROSSED)
    n = len(rows)
    crossed = pd.concat([rows.assign(t=t) for t in rows["t"]], ignore_index=True)
    with silence(UnsupportedTreatmentWarning):  # what is asked here is known
        parts = [np.asarray(h(crossed)).reshape(n, n) for h in (fit.truth, fit.model.predict)]
    truth, estimate = (np.diag(part) - part.mean(axis=0) for part in parts)
    if not truth.any():
        raise NotApplicableError("the treatment does nothing, of which no share can be missed")
    return float(np.mean((estimate - truth) ** 2) / np.mean(truth**2))
