"""Every digit that Stata wrote into files which linearmodels and statsmodels ship: ivregress and ivreg2."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.sandbox.regression.tests import results_ivreg2_griliches as ivreg2

from cfiv import LIML, TwoStageLeastSquares
from cfiv.errors import FewClustersWarning
from tests.published import data

#: Stata wrote numbers with 7 to 13 digits; covariances are squares of errors.
WRITTEN = 1e-6
ESTIMATORS = {"2sls": TwoStageLeastSquares, "liml": LIML}
COVARIANCES: dict[str, dict[str, Any]] = {
    "unadjusted": {"covariance": "unadjusted"},
    "robust": {"covariance": "robust"},
    "cluster": {"covariance": "clustered", "clusters": "division"},
}


def written(name: str) -> tuple[dict[str, float], pd.DataFrame]:
    """Estimates and statistics, and covariances, in the file of ivregress's results on the census of housing."""
    text = (resources.files("linearmodels") / "tests/iv/results/stata-iv-housing-results.txt").read_text()
    part = text.split(f"!{name}!")[1].split("##########")[1]
    estimates, covariances = part.split("********* Variance *************")
    numbers = {key: float(value) for key, value in re.findall(r"^([A-Za-z]\w*|_cons)\t(\S+)$", estimates, flags=re.MULTILINE)}
    rows = [line.split("\t") for line in covariances.splitlines() if "\t" in line][1:]
    table = pd.DataFrame([[float(value) for value in row[1:]] for row in rows[1:]], columns=rows[0][1:])
    return numbers, table.set_index(table.columns)


@pytest.mark.oracle
@pytest.mark.parametrize("size", ["small", "asymptotic"])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.filterwarnings(f"ignore::{FewClustersWarning.__module__}.{FewClustersWarning.__name__}")
def test_ivregress(estimator: str, covariance: str, size: str) -> None:
    numbers, covariances = written(f"{estimator}-{covariance}-{size}")
    options = COVARIANCES[covariance] | {"debiased": size == "small"}
    results = ESTIMATORS[estimator]("rent ~ pcturban + [hsngval ~ faminc + C(region)]", **options).fit(data.states()).results_
    names = {"Intercept": "_cons", "pcturban": "pcturban", "hsngval": "hsngval"}
    for name, theirs in names.items():
        assert results.params[name] == pytest.approx(numbers[theirs], rel=WRITTEN)
    ours = results.cov.loc[list(names), list(names)]
    np.testing.assert_allclose(ours, covariances.loc[list(names.values()), list(names.values())], rtol=WRITTEN)
    assert results.kappa == pytest.approx(numbers["kappa"], rel=WRITTEN)
    assert results.rsquared == pytest.approx(numbers["r2"], rel=WRITTEN)
    assert results.resid_ss == pytest.approx(numbers["rss"], rel=WRITTEN)


GRILICHES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ivreg2": (ivreg2.results, {"covariance": "unadjusted"}),
    "ivreg2, robust": (ivreg2.results_robust, {"covariance": "robust"}),
    "ivreg2, small": (ivreg2.results_small, {"covariance": "unadjusted", "debiased": True}),
    "ivreg2, small robust": (ivreg2.results_small_robust, {"covariance": "robust", "debiased": True}),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", GRILICHES)
def test_ivreg2(name: str) -> None:
    theirs, options = GRILICHES[name]
    formula = "lw ~ expr + tenure + rns + smsa + C(year) + [s + iq ~ med + kww + age + mrt]"
    found = TwoStageLeastSquares(formula, **options).fit(data.young_wages()).coefficients_
    names = ["s", "iq", "expr", "tenure", "rns", "smsa"]
    reference = pd.DataFrame(theirs.params_table[:, :4], index=theirs.params_table_rownames).loc[names]
    np.testing.assert_allclose(found.loc[names, ["coefficient", "std_error", "t", "p_value"]], reference, rtol=1e-8, atol=1e-12)
