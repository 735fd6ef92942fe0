"""Covariances of the linear estimators against linearmodels and statsmodels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from linearmodels.iv import IV2SLS

from cfiv import IVData, LeastSquares, TwoStageLeastSquares
from cfiv.errors import FewClustersWarning

#: Two programs' roundings in well-conditioned problems.
SAME = 1e-8


def table(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """Linear, confounded by ``u``, errors correlated within 20 groups and from row to row."""
    generator = np.random.default_rng(seed)
    z, q, x, u, v = generator.normal(size=(5, n))
    group = generator.integers(0, 20, n)
    shock = generator.normal(size=20)[group] + np.convolve(v, [1.0, 0.6, 0.3], mode="same")
    t = z + 0.3 * x + u
    frame = pd.DataFrame({"y": 1 + 2 * t + 0.5 * x + u + shock, "t": t, "z": z, "q": q, "x": x, "group": group})
    return frame.assign(w=generator.uniform(0.2, 3.0, n), label=[f"g{code}" for code in group])


COVARIANCES = [
    ({"covariance": "clustered", "clusters": "group"}, {"cov_type": "clustered"}),
    ({"covariance": "clustered", "clusters": "group", "debiased": True}, {"cov_type": "clustered", "debiased": True}),
    ({"covariance": "kernel"}, {"cov_type": "kernel"}),
    (
        {"covariance": "kernel", "kernel": "parzen", "bandwidth": 5},
        {"cov_type": "kernel", "kernel": "parzen", "bandwidth": 5},
    ),
    ({"covariance": "robust", "debiased": True}, {"cov_type": "robust", "debiased": True}),
    ({"covariance": "unadjusted", "debiased": True}, {"cov_type": "unadjusted", "debiased": True}),
]


@pytest.mark.oracle
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize(("ours", "theirs"), COVARIANCES, ids=lambda value: "-".join(map(str, value.values())))
@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
def test_every_covariance_is_that_of_linearmodels(
    kind: type, ours: dict[str, Any], theirs: dict[str, Any], weights: str | None
) -> None:
    frame = table()
    formula = "y ~ 1 + x + [t ~ z + q]" if kind is TwoStageLeastSquares else "y ~ 1 + x + t"
    clusters = {"clusters": frame["group"]} if "clusters" in ours else {}
    reference = IV2SLS.from_formula(formula, frame, weights=frame[weights] if weights else None).fit(**theirs, **clusters)
    table_ = kind("y ~ x + [t ~ z + q]", weights=weights, **ours).fit(frame).coefficients_
    assert table_.index.tolist() == ["Intercept", "x", "t"]
    for column, values in (
        ("coefficient", reference.params),
        ("std_error", reference.std_errors),
        ("t", reference.tstats),
        ("p_value", reference.pvalues),
    ):
        np.testing.assert_allclose(table_[column], values, rtol=SAME, atol=SAME)


@pytest.mark.oracle
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize(("covariance", "theirs"), [("robust", "HC1"), ("unadjusted", "nonrobust")])
def test_least_squares_is_that_of_statsmodels(covariance: Any, theirs: str, weights: str | None) -> None:
    frame = table()
    design = sm.add_constant(frame[["x", "t"]])
    reference = sm.WLS(frame["y"], design, weights=frame[weights] if weights else 1.0).fit(cov_type=theirs)
    ours = LeastSquares("y ~ x + [t ~ z]", weights=weights, covariance=covariance, debiased=True).fit(frame).coefficients_
    np.testing.assert_allclose(ours["coefficient"], reference.params, rtol=SAME)
    np.testing.assert_allclose(ours["std_error"], reference.bse, rtol=SAME)


@pytest.mark.law
def test_clusters_are_labels_and_follow_their_rows_through_gaps_and_zero_weights() -> None:
    frame = table()
    kept = frame.drop(index=[3, 50, 120, 121, 7, 8]).reset_index(drop=True)
    gaps = frame.assign(x=frame["x"].where(~frame.index.isin([3, 50])), n=(~frame.index.isin([120, 121])).astype(float))
    gaps["label"] = gaps["label"].where(~gaps.index.isin([7, 8]))
    expected = TwoStageLeastSquares("y ~ x + [t ~ z]", clusters="group", covariance="clustered").fit(kept).coefficients_
    with pytest.warns(match="dropped 4 of 300 rows"):
        model = TwoStageLeastSquares("y ~ x + [t ~ z]", clusters="label", covariance="clustered", weights="n").fit(gaps)
    np.testing.assert_allclose(model.coefficients_, expected, rtol=SAME, atol=SAME)
    arrays = IVData(outcome=kept.y, treatment=kept.t, instruments=kept.z, covariates=kept.x, clusters=kept.label)
    of_arrays = TwoStageLeastSquares(covariance="clustered").fit(arrays).coefficients_
    np.testing.assert_allclose(of_arrays, expected.loc[["Intercept", "x", "t"]], rtol=SAME, atol=SAME)


@pytest.mark.law
def test_ignoring_groups_understates_the_uncertainty_of_what_varies_by_group() -> None:
    frame = table(2000).assign(x=lambda f: np.sin(f["group"]))
    robust = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(frame).coefficients_["std_error"]
    clustered = TwoStageLeastSquares("y ~ x + [t ~ z]", clusters="group", covariance="clustered").fit(frame).coefficients_
    assert clustered["std_error"]["x"] > 3 * robust["x"]


@pytest.mark.law
def test_the_bias_of_least_squares_is_the_covariance_of_treatment_and_error_over_the_treatments_variance() -> None:
    frame = table(2000)
    error = frame["y"] - 1 - 2 * frame["t"] - 0.5 * frame["x"]
    design = np.column_stack([np.ones(2000), frame["x"]])
    residual = frame["t"] - design @ np.linalg.lstsq(design, frame["t"], rcond=None)[0]
    model = LeastSquares("y ~ x + [t ~ z]").fit(frame)
    bias = float(residual @ error / (residual @ residual))
    assert model.coefficients_["coefficient"]["t"] - 2 == pytest.approx(bias, rel=SAME)
    assert bias > 0.3


@pytest.mark.law
@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + [poly(t, 3) ~ poly(z, 4)]",
        "y ~ bs(x, df=4, extrapolation='clip') + [bs(t, df=5, extrapolation='clip') ~ bs(z, df=6, extrapolation='clip')]",
        "y ~ center(x) + [scale(t) + scale(t):x ~ scale(z) + scale(z):x]",
    ],
)
def test_bases_keep_the_knots_and_scales_of_training(kind: type, formula: str) -> None:
    frame = table()
    model = kind(formula).fit(frame)
    whole = model.predict(frame)
    np.testing.assert_allclose(whole, frame["y"] - model.results_.resids, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(model.predict(frame[17:20]), whole[17:20], rtol=SAME, atol=SAME)


@pytest.mark.law
def test_columns_of_arrays_that_share_a_name_stay_apart() -> None:
    frame = table()
    roles = {"outcome": frame["y"], "treatment": frame["t"], "instruments": frame["z"], "covariates": frame[["x", "w"]]}
    plain = TwoStageLeastSquares().fit(IVData(**roles)).coefficients_
    names = {"treatment": ["a"], "instruments": ["a"], "covariates": ["Intercept", "a_"]}
    named = TwoStageLeastSquares().fit(IVData(**roles, names=names | {"covariates": ["a", "a_"]})).coefficients_
    assert named.index.tolist() == ["Intercept", "a", "a_", "a__"]
    np.testing.assert_array_equal(named, plain)
    assert TwoStageLeastSquares().fit(IVData(**roles, names=names)).coefficients_.index[1] == "Intercept_"


@pytest.mark.law
def test_whole_number_weights_are_repeated_rows_for_estimates_and_clustered_errors_only() -> None:
    frame = table().assign(w=lambda f: np.arange(len(f)) % 4, group=lambda f: np.arange(len(f)) % 30)
    repeated = frame.loc[frame.index.repeat(frame["w"])]
    for covariance, same in (("clustered", True), ("robust", False)):
        options = {"covariance": covariance, "clusters": "group" if same else None}
        weighted = TwoStageLeastSquares("y ~ x + [t ~ z]", weights="w", **options).fit(frame).coefficients_
        plain = TwoStageLeastSquares("y ~ x + [t ~ z]", **options).fit(repeated).coefficients_
        np.testing.assert_allclose(weighted["coefficient"], plain["coefficient"], rtol=SAME)
        assert np.allclose(weighted["std_error"], plain["std_error"], rtol=SAME, atol=0) == same


@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
def test_few_clusters_are_named(kind: type) -> None:
    frame = table().assign(few=lambda f: f["group"] % 4)
    with pytest.warns(FewClustersWarning, match="there are 4 clusters"):
        kind("y ~ x + [t ~ z]", clusters="few", covariance="clustered").fit(frame)
