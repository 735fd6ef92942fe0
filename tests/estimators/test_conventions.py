"""Small-sample factors by name: False and True are linearmodels', statsmodels' and gretl's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from linearmodels.iv import IV2SLS, AbsorbingLS
from linearmodels.panel import PanelOLS
from scipy import stats

from cfiv import LeastSquares, ParameterError, TwoStageLeastSquares
from tests.estimators.panel import panel

#: Two programs' roundings in well-conditioned problems; linearmodels' AbsorbingLS stops at about this.
SAME = 1e-8
PLAIN, ABSORBED = "y ~ x + [t ~ z]", "y ~ x + [t ~ z] | firm + year"
UNADJUSTED: dict[str, Any] = {"covariance": "unadjusted"}
BY_FIRM: dict[str, Any] = {"covariance": "clustered", "clusters": "firm"}
DEBIASED: dict[str, Any] = {"debiased": True}

pytestmark = pytest.mark.filterwarnings("ignore::cfiv.errors.FewClustersWarning")


def ours(estimator: type, formula: str = PLAIN, **options: Any) -> list[float]:
    """Standard error and p-value of t."""
    results = estimator(formula, **options).fit(panel()).results_
    return [results.std_errors["t"], results.pvalues["t"]]


@pytest.mark.oracle
@pytest.mark.parametrize("debiased", [False, True])
def test_two_kinds_of_clusters_are_those_of_linearmodels(debiased: bool) -> None:
    frame, clusters = panel(), ["firm", "year"]
    theirs = IV2SLS(frame["y"], sm.add_constant(frame[["x"]]), frame["t"], frame["z"])
    theirs = theirs.fit(cov_type="clustered", clusters=frame[clusters], debiased=debiased)
    found = ours(TwoStageLeastSquares, covariance="clustered", clusters=clusters, debiased=debiased)
    np.testing.assert_allclose(found, [theirs.std_errors["t"], theirs.pvalues["t"]], rtol=SAME)


@pytest.mark.oracle
def test_two_kinds_of_clusters_one_and_hac_are_those_of_statsmodels() -> None:
    frame = panel()
    design = sm.add_constant(frame[["x", "t"]])
    for clusters in ("firm", ["firm", "year"]):
        theirs = sm.OLS(frame["y"], design).fit(cov_type="cluster", cov_kwds={"groups": frame[clusters].to_numpy()})
        found = ours(LeastSquares, covariance="clustered", clusters=clusters, debiased=True)
        assert found[0] == pytest.approx(theirs.bse["t"], rel=SAME)
    theirs = sm.OLS(frame["y"], design).fit(cov_type="HAC", cov_kwds={"maxlags": 4, "use_correction": True})
    found = ours(LeastSquares, covariance="kernel", bandwidth=4, debiased=True)
    assert found[0] == pytest.approx(theirs.bse["t"], rel=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", ["unadjusted", "robust"])
@pytest.mark.parametrize("debiased", [False, True])
def test_absorbed_fixed_effects_are_those_of_linearmodels(covariance: str, debiased: bool) -> None:
    frame = panel()
    frame = frame[frame.groupby("firm")["firm"].transform("size") > 1].reset_index(drop=True)
    effects = frame[["firm", "year"]].astype("category")
    theirs = AbsorbingLS(frame["y"], frame[["x", "t"]], absorb=effects).fit(cov_type=covariance, debiased=debiased)
    found = ours(LeastSquares, ABSORBED, covariance=covariance, debiased=debiased)
    np.testing.assert_allclose(found, [theirs.std_errors["t"], theirs.pvalues["t"]], rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("clusters", ["firm", ["firm", "year"]], ids=str)
def test_clusters_and_fixed_effects_are_those_of_linearmodels_with_group_debias(clusters: Any) -> None:
    frame = panel()
    frame = frame[frame.groupby("firm")["firm"].transform("size") > 1].set_index(["firm", "year"])
    theirs = PanelOLS(frame["y"], frame[["x", "t"]], entity_effects=True, time_effects=True).fit(
        cov_type="clustered", cluster_entity=True, cluster_time=clusters != "firm", group_debias=True
    )
    found = ours(LeastSquares, ABSORBED, covariance="clustered", clusters=clusters, debiased=True)
    np.testing.assert_allclose(found, [theirs.std_errors["t"], theirs.pvalues["t"]], rtol=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("estimator", "options", "error"),
    [
        (TwoStageLeastSquares, UNADJUSTED | DEBIASED, 0.079177503206),  # tsls
        (TwoStageLeastSquares, UNADJUSTED, 0.0784317016259),  # tsls --no-df-corr
        (TwoStageLeastSquares, {}, 0.0814092152834),  # tsls --robust
        (TwoStageLeastSquares, DEBIASED, 0.0821833298332),  # set hc_version 1, then tsls --robust
        (
            TwoStageLeastSquares,
            {"covariance": "clustered", "clusters": "firm", "debiased": True},
            0.105850608836,
        ),  # --cluster=firm
        (LeastSquares, {}, 0.0664570802486),  # ols --robust
        (LeastSquares, DEBIASED, 0.0670890159893),  # set hc_version 1, then ols --robust
        (LeastSquares, BY_FIRM | DEBIASED, 0.0721644283415),  # --cluster=firm
    ],
    ids=str,
)
def test_errors_are_those_of_gretl(estimator: type, options: dict[str, Any], error: float) -> None:
    """Of gretl 2022c (Debian 12), ``tsls y const x t ; const x z`` and ``ols y const x t`` on the panel as a CSV file."""
    assert ours(estimator, **options)[0] == pytest.approx(error, rel=1e-11)


@pytest.mark.law
def test_names_of_programs_take_t_with_the_clusters_less_one_and_the_least_of_two_kinds() -> None:
    kind: dict[str, Any] = {"covariance": "clustered", "clusters": ["firm", "year"]}
    for name in ("fixest", "stata"):
        results = TwoStageLeastSquares(PLAIN, debiased=name, **kind).fit(panel()).results_
        assert results.pvalues["t"] == pytest.approx(2 * stats.t(7).sf(abs(results.tstats["t"])), rel=SAME)
        np.testing.assert_allclose(
            results.std_errors,
            TwoStageLeastSquares(PLAIN, **kind).fit(panel()).results_.std_errors * np.sqrt(159 / 157 * 8 / 7),
            rtol=SAME,
        )
        assert results.f_statistic.df_denom == 7
        assert f"debiased as {name}" in repr(results)


@pytest.mark.law
def test_without_clusters_and_fixed_effects_the_names_are_one_convention() -> None:
    for covariance in ("unadjusted", "robust", "kernel"):
        expected = ours(TwoStageLeastSquares, covariance=covariance, debiased=True)
        for name in ("fixest", "stata"):
            np.testing.assert_array_equal(ours(TwoStageLeastSquares, covariance=covariance, debiased=name), expected)


@pytest.mark.contract
def test_an_unknown_convention_is_refused_with_those_there_are() -> None:
    with pytest.raises(ParameterError, match=r"debiased must be .*'fixest'.*'stata'.*True, False or None, got 'sas'"):
        TwoStageLeastSquares(PLAIN, debiased="sas").fit(panel())
