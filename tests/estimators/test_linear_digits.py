"""Digits of the linear estimators: against exact arithmetic, whatever the columns' units and offsets; and what they refuse."""

from __future__ import annotations

import math
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv import DataError, IVData, LeastSquares, TwoStageLeastSquares
from cfiv.errors import IllConditionedWarning
from tests.diagnostics.problems import problem
from tests.numerics.nist import PROBLEMS

#: Digits of the worst number that well-conditioned columns must keep, of almost 16.
KEPT = 13.0
#: Correct digits of the worst coefficient and standard error, a digit below the least in 30 orders of the rows. QR of columns
#: that are scaled, but not centred, has 10.4, 9.2, 12.2, 9.2, 7.4, 5.4 and 6.8 of coefficients; of standard errors 11.5 for
#: Longley and as many as here for the others.
NIST = {
    "Longley": (11.8, 13.0),
    "Wampler1": (8.0, None),
    "Wampler2": (11.3, None),
    "Wampler3": (8.0, 12.0),
    "Wampler4": (6.4, 12.0),
    "Wampler5": (4.4, 12.0),
    "Filip": (6.0, 6.3),
}
#: NIST's certified standard deviations of Longley's estimates, the constant first.
LONGLEY = [
    890420.383607373, 84.9149257747669, 0.0334910077722432, 0.488399681651699, 0.214274163161675, 0.226073200069370,
    455.478499142212,
]  # fmt: skip


def table(n: int = 40, seed: int = 3) -> pd.DataFrame:
    """Well-conditioned: the effects are 2 of t and 0.5 of x."""
    generator = np.random.default_rng(seed)
    z, q, x, u, v = generator.normal(size=(5, n))
    t = z + 0.5 * q + 0.3 * x + u
    frame = pd.DataFrame({"y": 1 + 2 * t + 0.5 * x + u + 0.5 * v, "t": t, "x": x, "z": z, "q": q})
    return frame.assign(w=generator.uniform(0.3, 2.0, n), g=np.arange(n) % 8)


def exact(
    frame: pd.DataFrame, *, instrumented: bool, covariance: str, weighted: bool = False, constant: bool = True
) -> tuple[list[Any], list[Any]]:
    """Coefficients and standard errors by the textbook's formulas, with 60 digits in units of order one."""
    n = len(frame)
    with mpmath.workdps(60):
        weights = [mpmath.mpf(float(w)) for w in (frame["w"] if weighted else np.ones(n))]
        root = [mpmath.sqrt(w * n / mpmath.fsum(weights)) for w in weights]
        units = {name: mpmath.mpf(2) ** int(np.frexp(frame[name].abs().max())[1]) for name in "ytxzq"}

        def columns(names: str) -> Any:
            parts = [
                [r * mpmath.mpf(float(value)) / units[name] for r, value in zip(root, frame[name], strict=True)]
                for name in names
            ]
            return mpmath.matrix([*([root] if constant else []), *parts]).T

        design, outcome = columns("xt"), columns("y")[:, int(constant)]
        exogenous = columns("xzq") if instrumented else design
        fitted = exogenous * (mpmath.inverse(exogenous.T * exogenous) * (exogenous.T * design))
        bread = mpmath.inverse(fitted.T * design)
        b = bread * (fitted.T * outcome)
        e = outcome - design * b
        if covariance == "unadjusted":
            meat = fitted.T * fitted * ((e.T * e)[0] / n)
        else:
            scores = mpmath.matrix([[fitted[i, j] * e[i] for j in range(design.cols)] for i in range(n)])
            if covariance == "clustered":
                codes = frame["g"].tolist()
                scores = mpmath.matrix([[int(code == group) for code in codes] for group in range(8)]) * scores
            meat = scores.T * scores
        variance = bread * meat * bread
        back = [units["y"] / unit for unit in [*([mpmath.mpf(1)] if constant else []), units["x"], units["t"]]]
        return [b[i] * u for i, u in enumerate(back)], [mpmath.sqrt(variance[i, i]) * u for i, u in enumerate(back)]


def digits(got: Any, expected: list[Any]) -> float:
    """Correct digits of the worst number."""
    errors = [abs(mpmath.mpf(float(value)) / other - 1) for value, other in zip(got, expected, strict=True)]
    return 17.0 if max(errors) == 0 else float(-mpmath.log10(max(errors)))


SCALINGS: dict[str, dict[str, tuple[float, float]]] = {
    "as it is": {},
    "treatment + 1e6": {"t": (1e6, 1.0)},
    "treatment + 1e8": {"t": (1e8, 1.0)},
    "covariate + 1e7": {"x": (1e7, 1.0)},
    "instrument + 1e8": {"z": (1e8, 1.0)},
    "outcome + 1e8": {"y": (1e8, 1.0)},
    "treatment * 1e9": {"t": (0.0, 1e9)},
    "treatment * 1e-9": {"t": (0.0, 1e-9)},
    "covariate * 1e9, instrument * 1e-9": {"x": (0.0, 1e9), "z": (0.0, 1e-9)},
    "outcome * 1e-9": {"y": (0.0, 1e-9)},
    "all + 1e8, * 1e-9": dict.fromkeys("ytxzq", (1e8, 1e-9)),
    "all + 1e7, * 1e9": dict.fromkeys("ytxzq", (1e7, 1e9)),
    "outcome * 1e-300": {"y": (0.0, 1e-300)},
    "outcome * 1e160": {"y": (0.0, 1e160)},
    "outcome * 1e-200": {"y": (0.0, 1e-200)},
    "treatment * 1e-300": {"t": (0.0, 1e-300)},
    "treatment * 1e160, covariate * 1e-200": {"t": (0.0, 1e160), "x": (0.0, 1e-200)},
    "instruments * 1e300 and 1e-300": {"z": (0.0, 1e300), "q": (0.0, 1e-300)},
}


def scaled(name: str) -> pd.DataFrame:
    frame = table()
    return frame.assign(**{column: (frame[column] + shift) * scale for column, (shift, scale) in SCALINGS[name].items()})


@pytest.mark.oracle
@pytest.mark.parametrize("covariance", ["robust", "unadjusted", "clustered"])
@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", SCALINGS)
def test_units_and_offsets_cost_no_digits(name: str, kind: type, covariance: Any) -> None:
    frame, weighted = scaled(name), covariance != "unadjusted"
    clusters = {"clusters": "g"} if covariance == "clustered" else {}
    with pytest.warns(cfiv.errors.FewClustersWarning) if clusters else nullcontext():
        model = kind("y ~ x + [t ~ z + q]", covariance=covariance, weights="w" if weighted else None, **clusters).fit(frame)
    instrumented = kind is TwoStageLeastSquares
    coefficients, errors = exact(frame, instrumented=instrumented, covariance=covariance, weighted=weighted)
    found = model.coefficients_
    assert digits(found["coefficient"], coefficients) >= KEPT
    assert digits(found["std_error"], errors) >= KEPT
    assert digits(found["t"], [b / s for b, s in zip(coefficients, errors, strict=True)]) >= KEPT


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_without_a_constant_nothing_is_centred(kind: type, offset: float) -> None:
    frame = table().assign(t=lambda f: f["t"] + offset)
    found = kind("y ~ 0 + x + [t ~ z + q]").fit(frame).coefficients_
    instrumented = kind is TwoStageLeastSquares
    coefficients, errors = exact(frame, instrumented=instrumented, covariance="robust", constant=False)
    lost = math.log10(max(1.0, offset)) if instrumented else 0.0  # the instruments move a millionth of the treatment only
    assert digits(found["coefficient"], coefficients) >= KEPT - lost
    assert digits(found["std_error"], errors) >= KEPT - lost


@pytest.mark.law
@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
def test_indicators_of_all_categories_are_a_constant(kind: type) -> None:
    frame = table().assign(**{f"s{i}": lambda f, i=i: (f["g"] % 3 == i).astype(float) for i in range(3)})
    shifted = frame.assign(t=lambda f: f["t"] + 1e8, y=lambda f: f["y"] + 1e8, x=lambda f: 1e7 - f["x"])
    plain = kind("y ~ 0 + s0 + s1 + s2 + x + [t ~ z + q]").fit(frame).coefficients_
    found = kind("y ~ 0 + s0 + s1 + s2 + x + [t ~ z + q]").fit(shifted).coefficients_
    explicit = kind("y ~ s1 + s2 + x + [t ~ z + q]").fit(shifted).coefficients_
    # The shift by 1e8 leaves eight digits of the columns themselves.
    assert found["coefficient"]["t"] == pytest.approx(plain["coefficient"]["t"], rel=1e-7)
    for column in ("coefficient", "std_error"):
        assert found[column]["t"] == pytest.approx(explicit[column]["t"], rel=1e-13)
        assert found[column]["s0"] == pytest.approx(explicit[column]["Intercept"], rel=1e-13)


def exact_regression(certified: Any) -> tuple[list[float], list[float]]:
    """Coefficients and standard errors of least squares with a constant, the constant first, by rational arithmetic."""
    rows = [[Fraction(1), *row] for row in certified.features]
    size, targets = len(rows[0]), certified.targets
    system = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)]
        + [sum(row[i] * target for row, target in zip(rows, targets, strict=True))]
        + [Fraction(int(i == j)) for j in range(size)]
        for i in range(size)
    ]
    for i in range(size):
        system[i] = [value / system[i][i] for value in system[i]]
        for other in set(range(size)) - {i}:
            factor = system[other][i]
            system[other] = [a - factor * b for a, b in zip(system[other], system[i], strict=True)]
    b = [row[size] for row in system]
    squares = sum(
        (target - sum(p * c for p, c in zip(row, b, strict=True))) ** 2 for row, target in zip(rows, targets, strict=True)
    )
    variances = [squares / (len(rows) - size) * system[i][size + 1 + i] for i in range(size)]
    return [float(value) for value in b], [math.sqrt(value) for value in variances]


@pytest.mark.oracle
@pytest.mark.parametrize("name", PROBLEMS)
def test_nists_data_keep_the_digits_of_a_scaled_qr(name: str) -> None:
    certified = PROBLEMS[name]
    features = np.array([[float(value) for value in row] for row in certified.features])
    targets = np.array([float(value) for value in certified.targets])
    coefficients, errors = exact_regression(certified)
    if name == "Longley":
        np.testing.assert_allclose(errors, LONGLEY, rtol=1e-14)
    data = IVData(outcome=targets, treatment=features, instruments=features)
    found = LeastSquares(covariance="unadjusted", debiased=True).fit(data).coefficients_
    of_coefficients, of_errors = NIST[name]
    assert digits(found["coefficient"], [mpmath.mpf(value) for value in coefficients]) >= of_coefficients
    if of_errors is None:
        assert errors == [0.0] * len(errors)
        assert (found["std_error"] < 1e-9).all()
    else:
        assert digits(found["std_error"], [mpmath.mpf(value) for value in errors]) >= of_errors


@pytest.mark.law
@pytest.mark.parametrize("scale", [1e-300, 1e307])
def test_only_ratios_of_weights_matter_also_where_they_are_far_from_one(scale: float) -> None:
    frame = table()
    for kind in (TwoStageLeastSquares, LeastSquares):
        one, other = (
            kind("y ~ x + [t ~ z + q]", weights="w").fit(f).coefficients_ for f in (frame, frame.assign(w=frame["w"] * scale))
        )
        np.testing.assert_allclose(one[["coefficient", "std_error", "t"]], other[["coefficient", "std_error", "t"]], rtol=1e-13)


@pytest.mark.law
def test_polynomials_of_years_have_full_rank() -> None:
    frame = table(400).assign(year=lambda f: 2001 + np.arange(400) % 4)
    centred = frame.assign(year=frame["year"] - 2002)
    for formula in ("y ~ year + I(year**2) + [t ~ z]", "y ~ year + I(year**2) + I(year**3) + [t ~ z]"):
        plain, shifted = (TwoStageLeastSquares(formula).fit(f).coefficients_ for f in (frame, centred))
        np.testing.assert_allclose(plain.loc["t"].iloc[:3], shifted.loc["t"].iloc[:3], rtol=1e-8)
        strengths = [problem(formula, f).strength for f in (frame, centred)]
        assert strengths[0] == pytest.approx(strengths[1], rel=1e-8)


DEPENDENT = [
    ("y ~ x + I(2 * x + 3) + [t ~ z]", "'I(2 * x + 3)' is a linear combination of 'x' and the constant: drop one of them"),
    ("y ~ big + I(2 * big - 1) + [t ~ z]", "'I(2 * big - 1)' is a linear combination of 'big'"),
    ("y ~ x + nearly + [t ~ z]", "'nearly' is a linear combination of 'x': drop one of them"),
    ("y ~ s0 + s1 + s2 + [t ~ z]", "'s2' is a linear combination of 's0', 's1' and the constant"),
    ("y ~ one + [t ~ z]", "'one' is a linear combination of the constant: drop it"),
    ("y ~ 0 + one + s0 + s1 + s2 + [t ~ z]", "'s2' is a linear combination of 's0', 's1' and the constant"),
    ("y ~ zero + [t ~ z]", "'zero' is zero in every row: drop it"),
    (
        "y ~ far + [t ~ z]",
        "'far' is a linear combination of the constant, as far as float64 can tell from its digits: subtract",
    ),
    ("y ~ x + [t + I(t - x) ~ z + q]", "'I(t - x)' is a linear combination of 'x', 't'"),
    (
        "y ~ x + I(1e200 * x) + I(x - 1) + [t ~ z]",
        "'I(1e+200 * x)', 'I(x - 1)' are linear combinations of other columns, of 'x' and",
    ),
]


def awkward() -> pd.DataFrame:
    frame = table(60)
    dummies = {f"s{i}": (frame["g"] % 3 == i).astype(float) for i in range(3)}
    noise = frame["q"].to_numpy()
    return frame.assign(
        big=1e8 + frame["x"], nearly=frame["x"] + 1e-13 * noise, one=4.0, zero=0.0, far=1e13 + frame["x"], **dummies
    )


@pytest.mark.parametrize(("formula", "words"), DEPENDENT)
def test_dependent_columns_are_refused_with_their_names_by_estimators_and_diagnose(formula: str, words: str) -> None:
    frame = awkward()
    for refused in (
        lambda: TwoStageLeastSquares(formula).fit(frame),
        lambda: LeastSquares(formula).fit(frame),
        lambda: cfiv.diagnose(frame, formula),
    ):
        with pytest.raises(DataError) as caught:
            refused()
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("y ~ x + [t ~ z + I(1 - z)]", "'I(1 - z)' is a linear combination of 'z' and the constant"),
        ("y ~ x + [t ~ z + x]", "'x (instrument)' is a linear combination of 'x': drop one of them"),
        ("y ~ x + [t ~ z + x3]", "'x3' is a linear combination of 'x' and the constant"),
    ],
)
def test_dependent_instruments_are_refused_by_two_stage_least_squares_only(formula: str, words: str) -> None:
    frame = awkward().assign(x3=lambda f: 3 * f["x"] - 1)
    for refused in (lambda: TwoStageLeastSquares(formula).fit(frame), lambda: cfiv.diagnose(frame, formula)):
        with pytest.raises(DataError) as caught:
            refused()
        assert words in str(caught.value)
    least_squares = LeastSquares(formula).fit(frame)
    independent = LeastSquares("y ~ x + [t ~ z]").fit(frame)
    np.testing.assert_allclose(least_squares.coefficients_, independent.coefficients_, rtol=1e-13)
    if "1 - z" in formula:
        assert least_squares.score(frame) == pytest.approx(independent.score(frame), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_instruments_that_do_not_move_a_treatment_are_refused_with_its_name(scale: float) -> None:
    frame = table(200)

    def unrelated(name: str, *to: str) -> np.ndarray:
        design = np.column_stack([np.ones(200), frame[["x", *to]]])
        return np.asarray(frame[name] - design @ np.linalg.lstsq(design, frame[name], rcond=None)[0])

    frame = frame.assign(a=scale * unrelated("z", "t"), s=lambda f: f["q"] + f["y"])
    with pytest.raises(DataError, match=r"do not move the treatment 't', given the covariates.*partial correlation"):
        TwoStageLeastSquares("y ~ x + [t ~ a]").fit(frame)
    both = frame.assign(a=unrelated("z", "t", "s"), b=frame["q"])
    with pytest.raises(DataError, match=r"do not move one combination of the treatments 't', 's'"):
        TwoStageLeastSquares("y ~ x + [t + s ~ a + b]").fit(both)


@pytest.mark.parametrize("kind", [TwoStageLeastSquares, LeastSquares], ids=lambda kind: kind.__name__)
def test_few_digits_are_said_with_the_names_of_the_columns(kind: type) -> None:
    frame = table(200).assign(
        near=lambda f: f["x"] + 1e-10 * f["q"], far=lambda f: f["t"] + 1e11, outcome=lambda f: f["y"] + 2e11
    )
    with pytest.warns(
        IllConditionedWarning, match=r"about 5 digits of the coefficients of 'x', 'near' can be trusted"
    ) as caught:
        kind("y ~ x + near + [t ~ z]").fit(frame)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(IllConditionedWarning, match="float64 holds 4 digits of the variation of 'far'"):
        kind("y ~ x + [far ~ z]").fit(frame)
    with pytest.warns(IllConditionedWarning, match="float64 holds 4 digits of the variation of 'outcome'") as caught:
        kind("outcome ~ x + [t ~ z]").fit(frame)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": 1e-200, "t": 1e200}, "of 't' are too large or too small for float64"),
        ({"y": 1e200, "t": 1e-200}, "of 't' are too large or too small for float64"),
        ({"x": 1e-308, "y": 1e10}, "of 'x' are too large"),
    ],
)
def test_coefficients_that_no_float_holds_are_refused(changes: dict[str, float], words: str) -> None:
    frame = table()
    frame = frame.assign(**{name: frame[name] * scale for name, scale in changes.items()})
    for kind in (TwoStageLeastSquares, LeastSquares):
        with pytest.raises(DataError, match=words):
            kind("y ~ x + [t ~ z]").fit(frame)


@pytest.mark.law
@pytest.mark.parametrize("name", ["all + 1e8, * 1e-9", "outcome * 1e160", "treatment * 1e160, covariate * 1e-200"])
def test_diagnose_and_score_do_not_see_units(name: str) -> None:
    plain, frame = table(), scaled(name)
    shifted = name.startswith("all")
    own, other = (cfiv.diagnose(f, "y ~ x + [t ~ z + q]", covariance="unadjusted") for f in (plain, frame))
    left, right = (found.table["statistic"].iloc[:-1].to_numpy(dtype=float) for found in (own, other))
    used = slice(None, None) if not shifted else own.table["test"].iloc[:-1] != "Anderson-Rubin"
    np.testing.assert_allclose(left[used], right[used], rtol=1e-6 if shifted else 1e-12)
    (_, of_outcome), (_, of_treatment) = (SCALINGS[name].get(column, (0.0, 1.0)) for column in "yt")
    ends = np.array(own.anderson_rubin_set.intervals) * of_outcome / of_treatment
    np.testing.assert_allclose(other.anderson_rubin_set.intervals, ends, rtol=1e-6 if shifted else 1e-12)
    scores = [TwoStageLeastSquares("y ~ x + [t ~ z + q]").fit(f).score(f) for f in (plain, frame)] if not shifted else [0, 0]
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)


@pytest.mark.law
def test_least_squares_takes_more_instruments_than_rows_and_predicts_the_treatment_from_as_many_as_there_are_rows() -> None:
    frame = table(12)
    wide = IVData(outcome=frame["y"], treatment=frame["t"], instruments=np.random.default_rng(0).normal(size=(12, 20)))
    model = LeastSquares().fit(wide)
    fitted = model.predict(treatment=frame["t"].to_numpy())
    expected = 1 - np.mean((frame["y"] - fitted) ** 2) / np.var(frame["y"])
    assert model.score(wide) == pytest.approx(expected, rel=1e-10)  # the first stage fits exactly
    with pytest.raises(DataError, match="as many rows as its first stage has coefficients, 21, got 12 rows"):
        TwoStageLeastSquares().fit(wide)
