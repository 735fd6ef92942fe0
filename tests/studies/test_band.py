"""The metric of uniform bands, the figure of coverage, and the designs that it ships for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.errors import NotApplicableError, ParameterError, StudyError
from cfiv.studies import Band, Doubted, Estimate, Fit, Interval, Report
from cfiv.studies.shipped.confounded_curves import CURVES, confounded_curve
from cfiv.studies.study_file import read_study

GRID: dict[str, Any] = {"treatment": "t", "grid_from": -0.9, "grid_to": 0.9}


def fitted(seed: int = 0, model: Any = None, truth: Callable[[pd.DataFrame], Any] | None = None) -> Fit:
    data, own = confounded_curve(500, "sine", seed=seed)
    model = cfiv.SieveIV("y ~ [t ~ z]", random_state=0) if model is None else model
    return Fit(model.fit(data), data, own if truth is None else truth, lambda: (data, own))


@pytest.mark.oracle
@pytest.mark.parametrize("undersmooth", [True, False])
def test_the_metric_is_the_band_where_it_is_furthest_off_so_that_it_covers_where_the_band_does(undersmooth: bool) -> None:
    covered = set()
    for seed in range(6):
        fit = fitted(seed)
        found = Band(**GRID, points=19, undersmooth=undersmooth, level=0.8)(fit)
        assert isinstance(found, Estimate)
        inference = cfiv.infer(fit.data, fit.model, undersmooth=undersmooth, level=0.8, draws=1000)
        band = inference.dose_response(np.linspace(-0.9, 0.9, 19)).table
        truth = np.sin(np.pi * band["t"])
        holds = bool(band["band_lower"].le(truth).all() and band["band_upper"].ge(truth).all())
        assert holds == (found.lower <= found.truth <= found.upper)  # type: ignore[operator]
        assert found.estimate in band["estimate"].to_list()
        covered.add(holds)
        width = Band(**GRID, points=19, undersmooth=undersmooth, level=0.8, width=True)(fit)
        assert width == float(np.median(band["band_upper"] - band["band_lower"]) / 2)
    assert undersmooth or covered == {True, False}, "both are seen"


@pytest.mark.contract
def test_it_does_not_apply_to_what_has_no_intervals_and_says_what_it_needs() -> None:
    with pytest.raises(NotApplicableError, match="NetworkRegression has no intervals"):
        Band(**GRID)(fitted(model=cfiv.NetworkRegression("y ~ [t ~ z]", steps=1, progress=False)))
    with pytest.raises(StudyError, match="none called 'dose'"):
        Band(treatment="dose", grid_from=0.0, grid_to=1.0)(fitted())
    for wrong, words in (
        ({"grid_to": -1.0}, "grid_to must be finite and > -0.9"),
        ({"grid_to": None}, "give grid_from and grid_to, or none"),
        ({"points": 1}, "points must be a whole number >= 2"),
        ({"level": 95}, "level must be"),
        ({"draws": 9}, "draws must be"),
        ({"width": 2}, "width must be True or False"),
        ({"pointwise": 2}, "pointwise must be True or False"),
    ):
        with pytest.raises(ParameterError, match=words):
            Band(**{**GRID, **wrong})


@pytest.mark.statistical
@pytest.mark.parametrize("curve", CURVES)
def test_the_designs_have_the_correlations_that_they_name(curve: str) -> None:
    data, truth = confounded_curve(200_000, curve, correlation=0.6, confounding=0.3, variance=4.0, seed=0)
    errors = data["y"] - truth(data)
    assert errors.var() == pytest.approx(4.0, rel=0.02)
    assert np.corrcoef(errors, data["z"])[0, 1] == pytest.approx(0.0, abs=0.01)
    # Of a normal variable and the uniform transform of another, times sqrt(3 / pi); of two transforms, 6 / pi asin(r / 2).
    assert np.corrcoef(errors, data["t"])[0, 1] == pytest.approx(0.3 * np.sqrt(3 / np.pi), abs=0.01)
    assert np.corrcoef(data["t"], data["z"])[0, 1] == pytest.approx(6 / np.pi * np.arcsin(0.3), abs=0.01)


@pytest.mark.contract
def test_the_shipped_study_asks_for_both_bands() -> None:
    metrics = read_study("coverage_sieve").metrics
    assert [getattr(metric, "undersmooth", None) for metric in metrics.values()] == [True, False, True, False]


@pytest.mark.contract
def test_the_figure_of_coverage_has_the_shares_of_the_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"design": "d", "n": n, "method": "m", "replication": i, "status": "done", "reason": None, "seconds": 1.0}
        | {"band": 0.0, "band_truth": 0.5, "band_lower": -1.0, "band_upper": 1.0 if i < held else 0.4}
        for n, held in ((100, 6), (1000, 9))
        for i in range(10)
    ]
    report = Report(pd.DataFrame(rows), "s", ["design", "n", "method"], ["band"])
    figure = report.coverage()
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["n 100", "n 1,000"]
    (mark,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert list(mark.get_xdata()) == [0.6, 0.9] == report.table("band")["coverage"].tolist()
    assert (tmp_path / "coverage.png") in report.write(tmp_path)
    # A column of floats, since other cells have none of it.
    wide = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows).assign(design="e", strength=2.0)])
    (ax,) = Report(wide, "s", ["design", "n", "strength", "method"], ["band"]).coverage().axes
    assert [text.get_text() for text in ax.get_yticklabels()][1:3] == ["d, n 1,000", "e, n 100, strength 2"]
    bare = Report(pd.DataFrame(rows).drop(columns=["band_lower", "band_upper"]), "s", ["design", "n", "method"], ["band"])
    with pytest.raises(StudyError, match="nothing that was measured has intervals"):
        bare.coverage()


@pytest.mark.law
def test_pointwise_it_is_the_share_of_points_whose_own_interval_holds() -> None:
    fit = fitted()
    table = fit.infer(level=0.5, undersmooth=True, draws=1000).dose_response(np.linspace(-0.9, 0.9, 19), fit.data).table
    truth = fit.truth(table)
    share = float(((table["lower"] <= truth) & (truth <= table["upper"])).mean())
    assert Band(**GRID, points=19, level=0.5, pointwise=True)(fit) == share
    assert 0 < share < 1


@pytest.mark.law
def test_intervals_of_effects_and_derivatives_come_with_their_truth() -> None:
    fit = fitted()
    rows, inference = fit.data, fit.infer(level=0.9, undersmooth=True, draws=1000)
    effect = Interval(treatment="t", treatment_from=-0.5, treatment_to=0.5, level=0.9)(fit)
    row = inference.effect(treatment_from=-0.5, treatment_to=0.5, rows=rows).table.iloc[0]
    assert (effect.estimate, effect.lower, effect.upper) == (row["estimate"], row["lower"], row["upper"])
    assert effect.truth == pytest.approx(float(np.diff(fit.truth(pd.DataFrame({"t": [-0.5, 0.5]})))[0]))
    width = Interval(treatment="t", treatment_from=-0.5, treatment_to=0.5, level=0.9, width=True)(fit)
    assert width == (row["upper"] - row["lower"]) / 2
    derivative = Interval(treatment="t", level=0.9)(fit)
    assert derivative.estimate == inference.average_derivative(rows).values[0]
    step = 1e-6
    ends = [fit.truth(rows.assign(t=rows["t"] + change)).mean() for change in (step, -step)]
    assert derivative.truth == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)
    with pytest.raises(ParameterError, match="between two treatments"):
        Interval(treatment="t", treatment_from=0.0)


@pytest.mark.law
def test_a_doubt_is_one_where_something_speaks_against_the_intervals() -> None:
    assert Doubted()(fitted()) == 0.0
    few = cfiv.TwoStageLeastSquares("y ~ [t ~ z]")
    data, truth = confounded_curve(500, "sine", seed=0)
    weak = data.assign(z=np.random.default_rng(1).normal(size=500))
    assert Doubted()(Fit(few.fit(weak), weak, truth, lambda: (weak, truth))) == 1.0
    with pytest.raises(ParameterError, match="draws must be"):
        Doubted(draws=9)


@pytest.mark.law
def test_without_a_grid_the_band_is_that_of_the_function_at_rows_drawn_anew_whose_treatments_were_seen() -> None:
    fit = fitted()
    fresh, h = fit.another()
    fresh = fresh[fit.model.supported(fresh)].head(12)
    assert 2 <= len(fresh) < len(fit.data)
    table = fit.infer(level=0.5, undersmooth=True, draws=1000).predict(fresh).table
    share = float(((table["lower"] <= h(fresh)) & (h(fresh) <= table["upper"])).mean())
    assert Band(treatment="t", points=12, level=0.5, pointwise=True)(fit) == share
    found = Band(treatment="t", points=12, level=0.5)(fit)
    assert isinstance(found, Estimate)
    holds = bool(((table["band_lower"] <= h(fresh)) & (h(fresh) <= table["band_upper"])).all())
    assert holds == (found.lower <= found.truth <= found.upper)  # type: ignore[operator]
