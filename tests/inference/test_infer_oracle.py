"""``cfiv.infer`` on two-stage least squares is linearmodels' own inference, whatever the question."""

from __future__ import annotations

import numpy as np
import pytest

import cfiv
from cfiv import IVData, LeastSquares, TwoStageLeastSquares
from tests.inference.problems import LINE, SAME, reference, table, two_ways

pytestmark = pytest.mark.oracle

COVARIANCES = {
    "robust": {"cov_type": "robust"},
    "unadjusted": {"cov_type": "unadjusted"},
    "group": {"cov_type": "clustered"},
    "group and year": {"cov_type": "clustered"},
}


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("kind", COVARIANCES)
def test_the_effect_of_a_unit_and_the_derivative_are_linearmodels_coefficient_and_error(
    kind: str, weights: str | None, debiased: bool
) -> None:
    frame = two_ways()
    options = dict(COVARIANCES[kind])
    clusters = None
    if options["cov_type"] == "clustered":
        clusters = kind.split(" and ")
        options["clusters"] = frame[clusters]  # type: ignore[assignment]
    expected = reference(frame, weights=weights, debiased=debiased, **options)
    model = TwoStageLeastSquares(LINE, weights=weights, debiased=debiased).fit(frame)
    inference = cfiv.infer(frame, model, covariance=options["cov_type"], clusters=clusters)
    interval = expected.conf_int().loc["t"]
    for answer in (inference.effect(treatment_from=0, treatment_to=1), inference.average_derivative()):
        row = answer.table.iloc[0]
        np.testing.assert_allclose(row["estimate"], expected.params["t"], rtol=SAME)
        np.testing.assert_allclose(row["std_error"], expected.std_errors["t"], rtol=SAME)
        np.testing.assert_allclose([row["lower"], row["upper"]], interval, rtol=SAME)
        np.testing.assert_allclose(answer.test().pval, expected.pvalues["t"], rtol=1e-7, atol=1e-300)  # far in a tail


def test_any_functional_has_the_variance_of_linearmodels_covariance() -> None:
    frame = table()
    expected = reference(frame, weights=None, debiased=False, cov_type="robust")
    inference = cfiv.infer(frame, TwoStageLeastSquares(LINE).fit(frame))
    rows = frame.head(7)
    columns = np.column_stack([np.ones(7), rows["x"], rows["t"]])
    covariance = columns @ expected.cov.to_numpy() @ columns.T
    for answer in (inference.predict(rows), inference.functional(lambda h: h(rows))):
        np.testing.assert_allclose(answer.values, columns @ expected.params, rtol=SAME)
        np.testing.assert_allclose(answer.covariance, covariance, rtol=1e-8)
        np.testing.assert_allclose(answer.std_errors, np.sqrt(np.diag(covariance)), rtol=SAME)


def test_a_joint_test_is_linearmodels_wald_test() -> None:
    frame = table()
    expected = reference(frame, weights=None, debiased=False, cov_type="robust")
    inference = cfiv.infer(frame, TwoStageLeastSquares(LINE).fit(frame))
    at = frame.head(1).assign(t=0.0)
    level = inference.predict(at.assign(x=0.0))
    both = inference.effect(treatment_from=0, treatment_to=1).beside(inference.predict(at.assign(x=1.0)) - level)
    wald = expected.wald_test(formula="t = 2, x = 0.5")
    found = both.test([2.0, 0.5])
    np.testing.assert_allclose([found.stat, found.pval], [wald.stat, wald.pval], rtol=1e-8)


def test_least_squares_and_data_in_arrays_have_the_results_of_the_estimator() -> None:
    frame = table()
    data = IVData(
        outcome=frame["y"], treatment=frame[["t", "s"]], instruments=frame[["z", "q"]], covariates=frame["x"],
        clusters=frame["group"],
    )  # fmt: skip
    for kind in (LeastSquares, TwoStageLeastSquares):
        model = kind(covariance="clustered", debiased=True).fit(data)
        found = cfiv.infer(data, model).average_derivative().table
        expected = model.coefficients_.iloc[-2:]
        assert found["treatment"].tolist() == ["treatment0", "treatment1"]
        for mine, theirs in (("estimate", "coefficient"), *((name, name) for name in ("std_error", "lower", "upper"))):
            np.testing.assert_allclose(found[mine], expected[theirs], rtol=SAME)
