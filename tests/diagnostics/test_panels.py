"""``diagnose`` of panels and of rows in the order of time: fixed effects, units within clusters, two kinds of clusters, HAC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import TwoStageLeastSquares
from cfiv.diagnostics.results import Diagnostic
from tests.estimators.panel import panel

#: Two computations' roundings in well-conditioned problems.
SAME = 1e-8
TESTS = (
    *("effective_f", "cragg_donald", "kleibergen_paap_f", "kleibergen_paap_lm", "sargan", "hansen_j", "wu_hausman"),
    *("durbin", "wooldridge", "anderson_rubin", "partial_f"),
)

pytestmark = pytest.mark.filterwarnings("ignore::cfiv.errors.FewClustersWarning")


def rows() -> pd.DataFrame:
    """Without firms of a single row, with a second instrument."""
    frame = panel(rows=240).assign(q=lambda one: one["z"] ** 2)
    return frame[frame.groupby("firm")["firm"].transform("size") > 1].reset_index(drop=True)


def numbers(result: Diagnostic | tuple[Diagnostic, ...]) -> list[float]:
    one = result[0] if isinstance(result, tuple) else result
    return [getattr(one, "statistic", np.nan), getattr(one, "p_value", None) or np.nan]


def assert_same(one: Any, other: Any) -> None:
    for name in TESTS:
        np.testing.assert_allclose(numbers(getattr(one, name)), numbers(getattr(other, name)), rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(one.anderson_rubin_sets[0].intervals, other.anderson_rubin_sets[0].intervals, rtol=SAME)


@pytest.mark.law
@pytest.mark.parametrize("clusters", [None, "firm", ["firm", "year"]], ids=str)
@pytest.mark.parametrize("weights", [None, "weight"])
def test_absorbed_fixed_effects_are_indicators_in_every_test(clusters: Any, weights: str | None) -> None:
    options = {"clusters": clusters, "weights": weights}
    absorbed = cfiv.diagnose(rows(), "y ~ x + [t ~ z + q] | firm + year", **options)
    plain = cfiv.diagnose(rows(), "y ~ x + C(firm) + C(year) + [t ~ z + q]", **options)
    assert_same(absorbed, plain)
    assert "fixed effects tie the errors" in absorbed.residual_prediction.reason  # type: ignore[union-attr]
    assert "firm (" in str(absorbed)


@pytest.mark.law
def test_indicators_of_units_within_clusters_do_not_shrink_f_nor_widen_the_set() -> None:
    """Two periods: as with the units' means taken out by hand, which counts none of them."""
    frame = panel(firms=100, years=2, rows=200)
    means = frame.groupby("firm")[["y", "t", "z", "x"]].transform("mean")
    within = frame.assign(**(frame[["y", "t", "z", "x"]] - means))
    by_hand = cfiv.diagnose(within, "y ~ x + [t ~ z]", clusters="firm")
    for formula in ("y ~ x + C(firm) + [t ~ z]", "y ~ x + [t ~ z] | firm"):
        found = cfiv.diagnose(frame, formula, clusters="firm")
        for name in ("partial_f", "effective_f", "anderson_rubin"):
            np.testing.assert_allclose(numbers(getattr(found, name)), numbers(getattr(by_hand, name)), rtol=SAME)
        np.testing.assert_allclose(found.anderson_rubin_sets[0].intervals, by_hand.anderson_rubin_sets[0].intervals, rtol=SAME)


@pytest.mark.law
@pytest.mark.parametrize(
    "options",
    [
        {"covariance": "kernel", "bandwidth": 4},
        {"covariance": "kernel", "bandwidth": 4, "kernel": "parzen"},
        {"covariance": "clustered", "clusters": ["firm", "year"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("effects", ["", " | firm"])
def test_the_first_stage_is_that_of_the_estimator_and_the_set_inverts_the_test(effects: str, options: dict[str, Any]) -> None:
    frame, formula = rows(), "y ~ x + [t ~ z]" + effects
    model = TwoStageLeastSquares(formula, **options).fit(frame)
    given = cfiv.diagnose(frame, formula, **options)
    asked = cfiv.diagnose(frame, model)
    stage = model.results_.first_stage.diagnostics.loc["t"]
    assert numbers(given.partial_f) == pytest.approx([stage["f.stat"], stage["f.pval"]], rel=SAME)
    assert_same(given, asked)
    (ends,) = given.anderson_rubin_sets[0].intervals  # type: ignore[union-attr]
    for end in ends:  # the outcome less what the end says: no effect is left, on the edge
        moved = frame.assign(y=frame["y"] - end * frame["t"])
        assert numbers(cfiv.diagnose(moved, formula, **options).anderson_rubin)[1] == pytest.approx(0.05, rel=1e-6)


@pytest.mark.contract
def test_a_kernel_chooses_its_bandwidth_and_says_it() -> None:
    found = cfiv.diagnose(rows(), "y ~ x + [t ~ z + q]", covariance="kernel")
    assert "kernel (bartlett, bandwidth " in str(found)
    assert "in time cannot be divided" in found.residual_prediction.reason  # type: ignore[union-attr]
