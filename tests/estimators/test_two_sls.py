"""Two-stage least squares against linearmodels' own formula interface, and its structural function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from linearmodels.iv import IV2SLS

from cfiv import IVData, TwoStageLeastSquares

#: Two programs' roundings in well-conditioned problems.
SAME = 1e-8


def table(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """Linear, confounded by ``u``: the effects are 2 of t, -1 of s, 0.5 of x."""
    generator = np.random.default_rng(seed)
    z, q, x, u, v = generator.normal(size=(5, n))
    t = z + 0.3 * x + u
    s = q - 0.5 * z + v
    y = 1.0 + 2.0 * t - s + 0.5 * x + u + v * generator.normal(size=n)
    frame = pd.DataFrame({"y": y, "t": t, "s": s, "z": z, "q": q, "x": x, "w": generator.uniform(0.2, 3.0, n)})
    return frame.assign(region=generator.choice(list("abc"), n))


FORMULAS = [
    "y ~ [t ~ z]",
    "y ~ x + [t ~ z]",
    "y ~ x + [t ~ z + q]",
    "y ~ x + [t + s ~ z + q]",
    "y ~ 0 + x + [t ~ z]",
    "y ~ 0 + [t ~ z]",
    "y ~ x + C(region) + [t + t:x ~ z + z:x]",
]


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", ["robust", "unadjusted"])
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_coefficients_and_standard_errors_are_those_of_linearmodels(formula: str, weights: str | None, covariance: Any) -> None:
    frame = table()
    written = formula if "0 +" in formula else formula.replace("~", "~ 1 +", 1)  # linearmodels has no implied constant
    reference = IV2SLS.from_formula(written, frame, weights=frame[weights] if weights else None).fit(cov_type=covariance)
    ours = TwoStageLeastSquares(formula, weights=weights, covariance=covariance).fit(frame).coefficients_
    for column, theirs in (
        ("coefficient", reference.params),
        ("std_error", reference.std_errors),
        ("p_value", reference.pvalues),
    ):
        np.testing.assert_allclose(ours[column], theirs[ours.index], rtol=SAME, atol=SAME)
    np.testing.assert_allclose(ours[["lower", "upper"]], reference.conf_int().loc[ours.index], rtol=SAME)


@pytest.mark.law
def test_integer_weights_are_repeated_rows() -> None:
    frame = table().assign(count=np.arange(300) % 4)  # among them zeros
    repeated = frame.loc[frame.index.repeat(frame["count"])]
    weighted = TwoStageLeastSquares("y ~ x + [t ~ z]", weights="count").fit(frame)
    plain = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(repeated)
    np.testing.assert_allclose(weighted.coefficients_["coefficient"], plain.coefficients_["coefficient"], rtol=SAME, atol=SAME)
    assert weighted.score(frame) == pytest.approx(plain.score(repeated), rel=SAME)


@pytest.mark.law
def test_only_the_ratios_of_weights_matter() -> None:
    one, other = (
        TwoStageLeastSquares("y ~ x + [t ~ z]", weights="w").fit(f) for f in (table(), table().assign(w=table()["w"] * 7))
    )
    np.testing.assert_allclose(one.coefficients_, other.coefficients_, rtol=SAME, atol=SAME)


@pytest.mark.law
@pytest.mark.parametrize("formula", FORMULAS)
def test_predictions_are_the_regressors_times_the_coefficients(formula: str) -> None:
    frame = table()
    model = TwoStageLeastSquares(formula).fit(frame)
    # linearmodels' residuals are those of the structural equation: y - h.
    np.testing.assert_allclose(frame["y"] - model.predict(frame), model.results_.resids, rtol=SAME, atol=SAME)


@pytest.mark.law
def test_the_effect_of_a_linear_treatment_is_its_coefficient_times_the_difference() -> None:
    frame = table()
    model = TwoStageLeastSquares("y ~ x + [t + t:x ~ z + z:x]").fit(frame)
    slope = model.coefficients_["coefficient"]
    expected = 3.0 * (slope["t"] + slope["t:x"] * frame["x"])
    np.testing.assert_allclose(model.effect(frame, treatment_from=-1.0, treatment_to=2.0), expected, rtol=SAME, atol=SAME)


@pytest.mark.law
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_score_is_the_variance_explained_by_regressors_at_predicted_treatments(formula: str) -> None:
    train, held_out = table(), table(100, seed=1)
    model = TwoStageLeastSquares(formula).fit(train)
    coefficients = model.coefficients_["coefficient"]
    # Second stage by hand: regress the treatments on everything exogenous, then put the fit in the treatments' place.
    encoder = model.structural_function_.encoder
    frames = [encoder.observations(frame) for frame in (train, held_out)]
    one = 0 if "0 +" in formula else 1

    def exogenous(data: IVData) -> np.ndarray:
        return np.column_stack([np.ones((len(data), one)), *([] if data.covariates is None else [data.covariates])])

    first = [np.column_stack([exogenous(data), data.instruments]) for data in frames]
    fitted = first[1] @ np.linalg.lstsq(first[0], frames[0].treatment, rcond=None)[0]
    explained = np.column_stack([exogenous(frames[1]), fitted]) @ coefficients
    outcome = frames[1].outcome
    expected = 1 - ((outcome - explained) ** 2).mean() / outcome.var()
    assert model.score(held_out) == pytest.approx(expected, rel=SAME)


@pytest.mark.law
@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_units_of_outcome_treatment_and_covariates_pass_through(scale: float) -> None:
    frame = table()
    original = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(frame).predict(frame)
    for column, factor in (("y", scale), ("t", 1.0), ("x", 1.0), ("z", 1.0)):
        scaled = frame.assign(**{column: frame[column] * scale})
        predicted = TwoStageLeastSquares("y ~ x + [t ~ z]").fit(scaled).predict(scaled)
        np.testing.assert_allclose(predicted, factor * original, rtol=SAME, atol=SAME * scale)


@pytest.mark.statistical
def test_the_confounded_effect_is_recovered_where_least_squares_misses_it() -> None:
    frame = table(5000)
    model = TwoStageLeastSquares("y ~ x + [t + s ~ z + q]", covariance="unadjusted").fit(frame)
    truth = pd.Series({"Intercept": 1.0, "x": 0.5, "t": 2.0, "s": -1.0})
    errors = (model.coefficients_["coefficient"] - truth) / model.coefficients_["std_error"]
    assert (errors.abs() < 4.0).all()  # four standard errors: one seed in 4000 would fail for each coefficient
    least_squares = np.linalg.lstsq(np.column_stack([np.ones(5000), frame[["x", "t", "s"]]]), frame["y"], rcond=None)[0]
    assert abs(least_squares[2] - 2.0) > 0.2


def test_the_coefficient_table_names_columns_also_where_roles_share_a_name() -> None:
    generator = np.random.default_rng(0)
    t, z, x = generator.normal(size=(3, 50))
    names = {"outcome": ["y"], "treatment": ["v"], "instruments": ["v"], "covariates": ["v"]}
    data = IVData(outcome=t + x, treatment=t + z, instruments=z, covariates=x, names=names)
    assert TwoStageLeastSquares().fit(data).coefficients_.index.tolist() == ["Intercept", "v", "v_"]
