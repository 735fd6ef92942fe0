"""LIML and Fuller's estimator against linearmodels' IVLIML, its theorems, and its errors with many weak instruments."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pandas as pd
import pytest
from linearmodels.iv import IVLIML

import cfiv
from cfiv import LIML, DataError, LeastSquares, ParameterError, TwoStageLeastSquares
from cfiv.errors import CfivError
from tests.diagnostics.problems import SAME, table
from tests.estimators.test_linear_digits import KEPT, SCALINGS, digits, scaled

FORMULAS = ["y ~ x + [t ~ z + q]", "y ~ x + C(region) + [t + s ~ z + q + r + z:x]", "y ~ 0 + x + [t ~ z + q]"]
COVARIANCES: list[dict[str, Any]] = [
    {"covariance": "unadjusted"},
    {"covariance": "robust", "debiased": True},
    {"covariance": "clustered", "clusters": "group"},
    {"covariance": "kernel"},
]
#: Every formula with every covariance, half of them weighted, a third of each constant.
CASES = [
    pytest.param(
        formula, options, "w" if (i + j) % 2 else None, (0, 1, 4.0)[(i + j) % 3], id=f"{formula}-{options['covariance']}"
    )
    for i, formula in enumerate(FORMULAS)
    for j, options in enumerate(COVARIANCES)
]
TESTS = ["sargan", "basmann", "basmann_f", "anderson_rubin", "wooldridge_overid", "wooldridge_score", "wooldridge_regression"]


def fits(formula: str, options: dict[str, Any], weights: str | None, fuller: float) -> tuple[LIML, Any]:
    """Of cfiv and of linearmodels."""
    frame = table()
    written = formula if "0 +" in formula else formula.replace("~", "~ 1 +", 1)
    theirs = {"cov_type": options["covariance"], "debiased": options.get("debiased", False)}
    if "clusters" in options:
        theirs["clusters"] = frame[options["clusters"]]
    model = IVLIML.from_formula(written, frame, weights=frame[weights] if weights else None, fuller=fuller)
    return LIML(formula, weights=weights, fuller=fuller, **options).fit(frame), model.fit(**theirs)


@pytest.mark.oracle
@pytest.mark.parametrize(("formula", "options", "weights", "fuller"), CASES)
def test_every_statistic_is_that_of_linearmodels(
    formula: str, options: dict[str, Any], weights: str | None, fuller: float
) -> None:
    model, theirs = fits(formula, options, weights, fuller)
    ours = model.results_
    assert ours.kappa - 1 == pytest.approx(theirs.kappa - 1, rel=1e-7, abs=1e-12)
    for name in ("params", "std_errors", "pvalues"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name)[ours.params.index], rtol=SAME, atol=1e-12)
    np.testing.assert_allclose(ours.cov, theirs.cov.loc[ours.cov.index, ours.cov.columns], rtol=SAME, atol=1e-14)
    assert ours.rsquared == pytest.approx(theirs.rsquared, rel=SAME)
    assert ours.cov_config.get("bandwidth") == theirs.cov_config.get("bandwidth")
    for name in TESTS:
        assert getattr(ours, name).stat == pytest.approx(float(np.squeeze(getattr(theirs, name).stat)), rel=1e-6), name


@pytest.mark.law
def test_as_many_instruments_as_treatments_make_it_two_stage_least_squares_to_the_last_digit() -> None:
    for formula in ("y ~ x + [t ~ z]", "y ~ x + [t + s ~ z + q]"):
        liml, two_stage = (kind(formula).fit(table()) for kind in (LIML, TwoStageLeastSquares))
        assert liml.results_.kappa == 1.0
        pd.testing.assert_frame_equal(liml.coefficients_, two_stage.coefficients_, check_exact=True)


@pytest.mark.law
def test_it_minimises_the_anderson_rubin_statistic() -> None:
    frame, formula = table(), "y ~ x + [t ~ z + q + r]"
    estimate = float(LIML(formula).fit(frame).coefficients_.loc["t", "coefficient"])

    def statistic(effect: float) -> float:
        rest = frame["y"] - effect * frame["t"]
        fits = [np.column_stack([np.ones(len(frame)), frame[columns]]) for columns in (["x"], ["x", "z", "q", "r"])]
        few, all_ = (np.sum((rest - design @ np.linalg.lstsq(design, rest, rcond=None)[0]) ** 2) for design in fits)
        return float(few / all_)

    found = cfiv.LIML(formula).fit(frame).results_.kappa
    assert statistic(estimate) == pytest.approx(found, rel=1e-12)
    assert all(statistic(estimate + step) > found for step in (-1e-3, 1e-3, -1.0, 1.0))


@pytest.mark.law
def test_it_does_not_ask_which_variable_is_the_outcome() -> None:
    frame = table()
    forward = LIML("y ~ x + [t ~ z + q + r]").fit(frame).coefficients_.loc["t", "coefficient"]
    backward = LIML("t ~ x + [y ~ z + q + r]").fit(frame).coefficients_.loc["y", "coefficient"]
    assert forward * backward == pytest.approx(1.0, rel=1e-10)


def exact(frame: pd.DataFrame) -> tuple[list[Any], list[Any]]:
    """Coefficients of ``y ~ x + [t ~ z + q]`` and White's errors, by the textbook's formulas with 60 digits."""
    n = len(frame)
    with mpmath.workdps(60):
        units = {name: mpmath.mpf(2) ** int(np.frexp(frame[name].abs().max())[1]) for name in "ytxzq"}

        def columns(names: str) -> Any:
            return [[mpmath.mpf(float(value)) / units[name] for value in frame[name]] for name in names]

        def left(design: Any, of: Any) -> Any:
            return of - design * (mpmath.inverse(design.T * design) * (design.T * of))

        ones = [[mpmath.mpf(1)] * n]
        design, instruments = mpmath.matrix(ones + columns("xt")).T, mpmath.matrix(ones + columns("xzq")).T
        endogenous = mpmath.matrix(columns("yt")).T
        few, all_ = left(mpmath.matrix(ones + columns("x")).T, endogenous), left(instruments, endogenous)
        pencil = mpmath.inverse(all_.T * all_) * (few.T * few)
        trace, determinant = pencil[0, 0] + pencil[1, 1], mpmath.det(pencil)
        kappa = (trace - mpmath.sqrt(trace**2 - 4 * determinant)) / 2
        unpredicted = left(instruments, design)
        bread = mpmath.inverse((design - kappa * unpredicted).T * design)
        b = bread * ((design - kappa * unpredicted).T * endogenous[:, 0])
        e, predicted = endogenous[:, 0] - design * b, design - unpredicted
        scores = mpmath.matrix([[predicted[i, j] * e[i] for j in range(3)] for i in range(n)])
        variance = bread * (scores.T * scores) * bread
        back = [units["y"] / unit for unit in (1, units["x"], units["t"])]
        return [b[i] * u for i, u in enumerate(back)], [mpmath.sqrt(variance[i, i]) * u for i, u in enumerate(back)]


@pytest.mark.oracle
@pytest.mark.parametrize("name", SCALINGS)
def test_units_and_offsets_cost_no_digits(name: str) -> None:
    frame = scaled(name)
    found = LIML("y ~ x + [t ~ z + q]").fit(frame).coefficients_
    coefficients, errors = exact(frame)
    assert digits(found["coefficient"], coefficients) >= KEPT
    assert digits(found["std_error"], errors) >= KEPT


@pytest.mark.oracle
@pytest.mark.parametrize("options", COVARIANCES[:3], ids=lambda options: options["covariance"])
@pytest.mark.parametrize("fuller", [0.0, 1.0])
def test_infer_has_its_estimates_and_its_own_standard_errors(options: dict[str, Any], fuller: float) -> None:
    model, theirs = fits("y ~ x + [t + s ~ z + q + r + z:x]", options, "w", fuller)
    found = cfiv.infer(table(), model, draws=100).effect(treatment_from={"t": 0, "s": 0}, treatment_to={"t": 1, "s": 0}).table
    assert found["estimate"][0] == pytest.approx(theirs.params["t"], rel=SAME)
    assert found["std_error"][0] == pytest.approx(theirs.std_errors["t"], rel=SAME)


def many_weak(n: int, seed: int) -> pd.DataFrame:
    """Thirty instruments with a first-stage F of about three; the effect is 1, and least squares has about 1.7."""
    generator = np.random.default_rng(seed)
    z, u = generator.normal(size=(n, 30)), generator.normal(size=n)
    t = z.sum(axis=1) * np.sqrt(2.0 / n) + u
    frame = pd.DataFrame(z, columns=[f"z{i}" for i in range(30)])
    return frame.assign(t=t, y=t + 0.8 * u + 0.6 * generator.normal(size=n))


@pytest.mark.statistical
def test_many_weak_instruments_draw_two_stage_least_squares_towards_least_squares_and_liml_not() -> None:
    formula = "y ~ [t ~ " + " + ".join(f"z{i}" for i in range(30)) + "]"
    models = {
        "OLS": LeastSquares(formula),
        "2SLS": TwoStageLeastSquares(formula),
        "LIML": LIML(formula),
        "Fuller": LIML(formula, fuller=1),
    }
    found = pd.DataFrame(
        [
            {name: model.fit(frame).coefficients_.loc["t", "coefficient"] for name, model in models.items()}
            for frame in (many_weak(300, seed) for seed in range(16))
        ]
    )
    errors = (found.median() - 1).abs()
    assert errors["OLS"] > 0.6
    assert errors["2SLS"] > 0.15
    assert errors[["LIML", "Fuller"]].max() < 0.1  # medians of 16 estimates with an error of .13 each
    assert np.mean((found["Fuller"] - 1) ** 2) < np.mean((found["2SLS"] - 1) ** 2)


@pytest.mark.law
def test_a_perfect_fit_is_found() -> None:
    frame = table(50).assign(y=lambda f: 1 + 2 * f["t"])
    found = LIML("y ~ x + [t ~ z + q]").fit(frame).coefficients_["coefficient"]
    np.testing.assert_allclose(found, [1.0, 0.0, 2.0], atol=1e-12)


@pytest.mark.contract
def test_diagnose_takes_its_roles_and_covariance() -> None:
    frame = table()
    options: Any = {"covariance": "clustered", "clusters": "group"}
    found, expected = (
        cfiv.diagnose(frame, kind("y ~ x + [t ~ z + q]", **options)).table for kind in (LIML, TwoStageLeastSquares)
    )
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.contract
def test_a_saved_model_predicts_the_same_and_its_summary_has_kappa(tmp_path: Any) -> None:
    frame, formula = table(), "y ~ x + [t ~ z + q]"
    model = LIML(formula, fuller=1).fit(frame)
    path = tmp_path / "model.safetensors"
    model.save(path)
    np.testing.assert_array_equal(cfiv.load(path).predict(frame), model.predict(frame))
    assert f"Kappa            {model.results_.kappa:.6g}" in str(cfiv.load(path).summary())
    assert repr(model.results_).startswith("LIML, Fuller 1, kappa ")


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: LIML("y ~ x + [t ~ z + q]", fuller=-1).fit(table()), ParameterError, "fuller must be"),
        (lambda: LIML("y ~ x + [t ~ z + q]", fuller="1").fit(table()), ParameterError, "fuller must be"),  # type: ignore[arg-type]
        (lambda: LIML("y ~ x + [t + s ~ z]").fit(table()), DataError, "at least as many instruments as treatments"),
        (lambda: LIML("y ~ x + [t ~ z + q + r]").fit(table(6)), DataError, "predict some combination"),
    ],
)
def test_what_has_no_liml_is_refused_in_words(make: Any, kind: type, words: str) -> None:
    with pytest.raises(CfivError, match=words) as caught:
        make()
    assert isinstance(caught.value, kind)
