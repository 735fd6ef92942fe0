"""Curves and the tests of whether they are needed: against formulaic's splines, and against regressions one at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from formulaic import model_matrix
from scipy import stats

from cfiv.diagnostics.curvature import CurvedModel, curved_covariates, score_tests
from cfiv.diagnostics.curves import Curves, Variable, covariates, numbers, pairs
from cfiv.estimators.two_sls import TwoStageLeastSquares
from tests.diagnostics.problems import COVARIANCES, SAME, problem, table


def residual(columns: np.ndarray, *, on: np.ndarray) -> np.ndarray:
    return np.asarray(columns - on @ np.linalg.lstsq(on, columns, rcond=None)[0])


@pytest.mark.oracle
@pytest.mark.parametrize("df", [3, 4, 6])
def test_curves_are_the_splines_of_formulaic(df: int) -> None:
    frame = table()
    theirs = np.column_stack([np.ones(300), model_matrix(f"bs(x, df={df}) - 1", frame).to_numpy()])
    ours = Variable("x", frame[["x"]].to_numpy()).curve(df)
    assert np.linalg.matrix_rank(np.column_stack([np.ones(300), ours])) == df + 1
    assert np.abs(residual(ours, on=theirs)).max() < 1e-10


@pytest.mark.law
def test_few_values_get_a_column_each_and_two_none() -> None:
    values = np.random.default_rng(0).integers(0, 4, (100, 1)).astype(float)
    curve = Variable("x", values).curve(6)
    assert np.linalg.matrix_rank(np.column_stack([np.ones(100), curve])) == 4
    assert Variable("x", values // 2).curve(6).shape == (100, 0)
    assert [Variable("x", values).extra(df) for df in (6, 3, 2)] == [2, 2, 1]


@pytest.mark.law
def test_what_the_model_has_already_is_not_added() -> None:
    x = np.random.default_rng(0).normal(size=(200, 1))
    weights = np.random.default_rng(1).uniform(0.1, 2.0, 200)
    base = np.column_stack([np.ones(200), x, x**2])
    curves = Curves.beyond(base, [("x", x ** np.arange(1, 5)), ("again", 3 * x**4 - x)], weights)
    assert curves.groups == {"x": slice(0, 2)}
    assert np.linalg.matrix_rank(np.column_stack([base, curves.columns])) == 5


@pytest.mark.law
def test_covariates_are_the_columns_that_the_user_has() -> None:
    encoder, data = TwoStageLeastSquares("y ~ x + I(x**2):w + C(region) + [t ~ z]").encode(table())
    found = covariates(data, encoder)
    assert [(one.name, one.category, one.columns.shape[1]) for one in found] == [
        ("x", False, 1),
        ("region", True, 2),
        ("w", False, 1),
    ]
    assert [f"{one.name}:{other.name}" for one, other in pairs(found)] == ["x:w", "x:region", "region:w"]


@pytest.mark.law
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_score_tests_are_those_of_the_model_without_the_group(covariance: str, weights: str | None) -> None:
    """Two-stage least squares once more without the group, and the sums of its residuals times what is new in the group."""
    found = problem("y ~ x + q + r + s + [t ~ z]", table(), covariance=covariance, weights=weights)
    groups = {"one": slice(0, 1), "two": slice(1, 3)}
    p_values = score_tests(found, groups, after=2)
    root = np.ones(300) if found.data.weights is None else np.sqrt(found.data.weights)
    exogenous = np.column_stack([np.ones(300), found.data.covariates]) * root[:, None]
    instruments = np.column_stack([exogenous, root * found.data.instruments[:, 0]])
    treatment, outcome = root * found.data.treatment[:, 0], root * found.data.outcome
    fitted = treatment - residual(treatment, on=instruments)
    for name, columns in {"one": [2], "two": [3, 4]}.items():
        kept = [j for j in range(5) if j not in columns]
        regressors, first = (np.column_stack([exogenous[:, kept], part]) for part in (treatment, fitted))
        errors = outcome - regressors @ np.linalg.lstsq(first, outcome, rcond=None)[0]
        new = residual(exogenous[:, columns], on=first)
        scores = new * errors[:, None]
        if covariance == "clustered":
            assert found.clusters is not None
            scores = np.array([scores[found.clusters == g].sum(axis=0) for g in range(40)])
        spread = new.T @ new * np.mean(errors**2) if covariance == "unadjusted" else scores.T @ scores
        moments = new.T @ errors
        expected = stats.chi2.sf(moments @ np.linalg.solve(spread, moments), len(columns))
        assert p_values[name] == pytest.approx(expected, rel=SAME)


@pytest.mark.statistical
def test_curves_that_are_not_needed_are_asked_for_at_most_at_the_level() -> None:
    wrong = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        z, x, w, u = generator.normal(size=(4, 200))
        t = z + 0.5 * x + u
        frame = pd.DataFrame({"y": t + x + u * np.abs(0.5 + x), "t": t, "z": z, "x": x, "w": w})
        found = problem("y ~ x + w + [t ~ z]", frame, covariance="robust")
        assert found.data.covariates is not None
        model = curved_covariates(found, numbers(("x", "w"), found.data.covariates))
        assert isinstance(model, CurvedModel)
        wrong += bool(model.needed(significance=0.05))
    assert wrong <= 8, wrong  # 60 at 5 %: more than 8 has probability 0.002
