"""Card (1995): the data are those of the published study, and so are the estimates. Table 3 and Wooldridge, example 15.4."""

from __future__ import annotations

import numpy as np
import pytest

import cfiv
from cfiv.datasets import card1995


def test_the_sample_is_the_published_one() -> None:
    data = card1995.load()
    assert data.shape == (3010, 34)
    assert data[["lwage", "educ", "nearc4", "exper", "expersq", "black"]].notna().all().all()
    assert set(data["nearc4"]) == {0, 1}
    # Log of the hourly wage in cents, and potential experience squared.
    np.testing.assert_allclose(np.exp(data["lwage"]), data["wage"], rtol=1e-4)
    np.testing.assert_array_equal(data["exper"] ** 2, data["expersq"])


@pytest.mark.oracle
def test_two_stage_least_squares_gives_the_published_return_to_schooling() -> None:
    # Published: 0.132 (0.055) with homoskedastic standard errors; schooling's first-stage coefficient is 0.320 (0.088).
    model = cfiv.TwoStageLeastSquares(card1995.FORMULA, covariance="unadjusted").fit(card1995.load())
    schooling = model.coefficients_.loc["educ"]
    assert round(schooling["coefficient"], 3) == 0.132
    assert round(schooling["std_error"], 3) == 0.055
    first_stage = model.results_.first_stage.individual["educ"]
    assert round(first_stage.params["nearc4"], 3) == 0.320
    assert round(first_stage.std_errors["nearc4"], 3) == 0.088


@pytest.mark.oracle
def test_least_squares_gives_the_published_return_that_ignores_ability() -> None:
    # Published: 0.075 (0.003). Least squares is two-stage least squares with the treatment for its own instrument.
    data = card1995.load()
    controls = card1995.FORMULA.split("~")[1].split("+ [")[0]
    model = cfiv.TwoStageLeastSquares(f"lwage ~ {controls} + [educ ~ schooling]", covariance="unadjusted")
    schooling = model.fit(data.assign(schooling=data["educ"])).coefficients_.loc["educ"]
    assert round(schooling["coefficient"], 3) == 0.075
    assert round(schooling["std_error"], 3) == 0.003


def test_loading_twice_gives_tables_that_do_not_share_numbers() -> None:
    first = card1995.load()
    first["educ"] = 0
    assert card1995.load()["educ"].std() > 0
