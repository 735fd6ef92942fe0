"""Figures: what is drawn is what the table says. Nothing here looks at pixels."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import cfiv
from cfiv import plots
from cfiv.datasets import demand
from cfiv.errors import CfivError, DataError, ParameterError


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    """Two times by three prices, rows in no order and with an index that repeats."""
    rows = [(20.0, 5.0), (10.0, 0.0), (30.0, 0.0), (30.0, 5.0), (20.0, 0.0), (10.0, 5.0)]
    frame = pd.DataFrame(rows, columns=["price", "time"], index=[7] * 6)
    truth = frame["price"] * frame["time"]
    return frame.assign(truth=truth, DFIV=truth + 1.0, estimate=truth - 2.0)


def with_data(ax: Axes) -> list[Line2D]:
    """The lines that show rows, without those that only make a legend entry."""
    return [line for line in ax.get_lines() if len(line.get_xdata())]  # type: ignore[arg-type]


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata(), dtype=np.float64).tolist()]


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def expected(table: pd.DataFrame, column: str, x: str = "price") -> list[tuple[float, float]]:
    return list(table.sort_values(x)[[x, column]].itertuples(index=False, name=None))


def test_structural_curves_draw_each_slice_by_itself_in_the_order_of_the_treatment(table: pd.DataFrame) -> None:
    ax = plots.structural_curves(table, treatment="price", slice_by="time", truth="truth")
    drawn = [points(line) for line in with_data(ax)]
    slices = [table[table["time"] == time] for time in (0.0, 5.0)]
    assert drawn == [expected(rows, column) for rows in slices for column in ("estimate", "truth")]
    assert legend(ax) == ["time 0", "time 5", "truth"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("price", "estimate")


def test_the_truth_is_dashed_and_the_estimate_is_not(table: pd.DataFrame) -> None:
    estimate, truth = with_data(plots.structural_curves(table[table["time"] == 5.0], treatment="price", truth="truth"))
    assert not estimate.is_dashed()
    assert truth.is_dashed()


def test_slices_have_colours_of_their_own(table: pd.DataFrame) -> None:
    lines = with_data(plots.structural_curves(table, treatment="price", slice_by="time"))
    assert len({line.get_color() for line in lines}) == 2


def test_a_dose_response_table_is_drawn_as_it_comes() -> None:
    data, _ = demand.simulate(60, seed=0)
    response = cfiv.TwoStageLeastSquares(demand.FORMULA).fit(data).dose_response([10.0, 20.0, 15.0])
    (line,) = with_data(plots.structural_curves(response, treatment="price"))
    assert points(line) == expected(response, "estimate")


def test_structural_panels_draw_each_estimate_and_the_truth_in_each_panel(table: pd.DataFrame) -> None:
    axes = plots.structural_panels(
        table, treatment="price", estimates=["estimate", "DFIV"], panel_by="time", truth="truth", outcome="sales"
    )
    assert [ax.get_title() for ax in axes] == ["time 0", "time 5"]
    for ax, time in zip(axes, (0.0, 5.0), strict=True):
        rows = table[table["time"] == time]
        assert [points(line) for line in with_data(ax)] == [expected(rows, name) for name in ("estimate", "DFIV", "truth")]
        assert ax.get_xlabel() == "price"
    assert [ax.get_ylabel() for ax in axes] == ["sales", ""]
    assert legend(axes[0]) == ["estimate", "DFIV", "truth"]


def test_panels_share_a_vertical_scale_that_shows_every_line(table: pd.DataFrame) -> None:
    axes = plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time")
    assert axes[0].get_ylim() == axes[1].get_ylim()
    lowest, highest = axes[0].get_ylim()
    assert lowest <= table["DFIV"].min()
    assert highest >= table["DFIV"].max()


def test_observed_treatments_are_marked_in_their_panel_and_widen_no_axis(table: pd.DataFrame) -> None:
    observed = pd.DataFrame({"price": [12.0, 13.0, 900.0, 14.0], "time": [0.0, 0.0, 5.0, 9.0]})
    plain = plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time")
    marked = plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time", observed=observed)
    assert [list(with_data(ax)[-1].get_xdata()) for ax in marked] == [[12.0, 13.0], [900.0]]  # type: ignore[arg-type]
    assert [ax.get_xlim() for ax in marked] == [ax.get_xlim() for ax in plain]


def test_no_observed_rows_are_no_ticks(table: pd.DataFrame) -> None:
    axes = plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time", observed=table.iloc[:0])
    assert [len(with_data(ax)) for ax in axes] == [1, 1]


def test_figures_go_where_they_are_told(table: pd.DataFrame) -> None:
    first, second = Figure().subplots(1, 2)
    rows = table[table["time"] == 0.0]
    assert plots.structural_curves(rows, treatment="price", ax=first) is first
    assert plots.predicted_against_true(table, truth="truth", ax=first) is first
    drawn = plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time", axes=[first, second])
    assert drawn == [first, second]
    assert plt.get_fignums() == []


def test_drawing_leaves_the_table_as_it_was(table: pd.DataFrame) -> None:
    before = table.copy()
    plots.structural_curves(table, treatment="price", slice_by="time", truth="truth")
    plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time", observed=table)
    plots.predicted_against_true(table, truth="truth")
    pd.testing.assert_frame_equal(table, before)


def test_predicted_against_true_shows_every_row_the_line_of_equality_and_the_error(table: pd.DataFrame) -> None:
    ax = plots.predicted_against_true(table, truth="truth")
    rows, equality = with_data(ax)
    assert points(rows) == list(table[["truth", "estimate"]].itertuples(index=False, name=None))
    assert points(equality) == [(-2.0, -2.0), (150.0, 150.0)]
    assert ax.get_title() == "mean squared error 4, root 2, 6 rows"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("truth", "estimate")


def history(*, held_out: bool = True) -> pd.DataFrame:
    """Two runs of three checks, as DFIV writes them; the first keeps its second state, the other its last."""
    loss = [0.5, 0.2, 0.3, 0.6, 0.4, 0.1]
    return pd.DataFrame(
        {
            "fit": 0,
            "swapped": [False] * 3 + [True] * 3,
            "step": [10, 20, 30] * 2,
            "stage1_loss": 1.0,
            "stage2_loss": [0.4, 0.1, 0.05, 0.5, 0.3, 0.2],
            "heldout_loss": loss if held_out else np.nan,
            "refit_ridge": 1e-3,
            "kept": [False, True, False, False, False, True],
            "lambda_factor": 1.0,
        }
    )


def test_training_history_draws_both_losses_of_each_run_and_circles_the_state_kept() -> None:
    ax = plots.training_history(history())
    drawn = [points(line) for line in with_data(ax)]
    first, second = history().iloc[:3], history().iloc[3:]
    for rows, lines, kept in ((first, drawn[:3], (20.0, 0.2)), (second, drawn[3:], (30.0, 0.1))):
        assert lines == [expected(rows, "stage2_loss", "step"), expected(rows, "heldout_loss", "step"), [kept]]
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "stage-2 loss (share of the outcome's variance)")
    assert legend(ax) == ["samples as drawn", "samples swapped", "held-out rows", "training rows", "state kept"]


def test_training_history_without_held_out_rows_circles_the_state_kept_on_the_training_loss() -> None:
    ax = plots.training_history(history(held_out=False))
    drawn = [points(line) for line in with_data(ax)]
    assert [drawn[1], drawn[3]] == [[(20.0, 0.1)], [(30.0, 0.2)]]
    assert "held-out rows" not in legend(ax)


def test_the_history_of_a_fit_is_drawn_as_it_comes() -> None:
    data, _ = demand.simulate(200, seed=0)
    model = cfiv.DFIV(demand.FORMULA, steps=10, random_state=0, progress=False).fit(data)
    run = model.history_[(model.history_["fit"] == 0) & ~model.history_["swapped"].astype(bool)]
    line = with_data(plots.training_history(model.history_))[1]
    assert points(line) == list(run[["step", "heldout_loss"]].itertuples(index=False, name=None))


def test_a_missing_column_is_refused_with_the_nearest_name(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"need column 'prize', which the table does not have: did you mean 'price'\?"):
        plots.structural_curves(table, treatment="prize")
    with pytest.raises(DataError, match=r"need column 'structural', which .*: the table has 'price', 'time'"):
        plots.predicted_against_true(table)
    with pytest.raises(DataError, match=r"need column 'step'.*did you mean 'steps'\?"):
        plots.training_history(history().rename(columns={"step": "steps"}))


def test_several_rows_at_one_point_are_refused_since_a_line_through_them_would_zigzag(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"one row a point, got 2 rows at price 10: keep one value of the other covariates"):
        plots.structural_curves(table, treatment="price")
    twice = pd.concat([table, table.iloc[[0]]])
    with pytest.raises(DataError, match=r"got 2 rows at price 20 and time 5:"):
        plots.structural_panels(twice, treatment="price", estimates=["DFIV"], panel_by="time")


def test_numbers_that_cannot_be_drawn_are_refused(table: pd.DataFrame) -> None:
    gap = pd.array([1, 2, None, 4, 5, 6], dtype="Int64")
    with pytest.raises(DataError, match=r"column 'DFIV' must hold finite numbers to be drawn, got 6"):
        plots.predicted_against_true(table.assign(DFIV=np.inf), truth="truth", estimate="DFIV")
    with pytest.raises(DataError, match=r"column 'DFIV' must hold finite numbers to be drawn, got 1"):
        plots.predicted_against_true(table.assign(DFIV=gap), truth="truth", estimate="DFIV")
    with pytest.raises(DataError, match=r"column 'DFIV' must hold numbers to be drawn, got .*: convert it"):
        plots.predicted_against_true(table.assign(DFIV="1"), truth="truth", estimate="DFIV")


def test_tables_without_rows_or_with_repeated_names_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no rows"):
        plots.training_history(pd.DataFrame())
    with pytest.raises(DataError, match="column names must be unique"):
        plots.structural_curves(pd.concat([table, table], axis=1), treatment="price")
    with pytest.raises(DataError, match="pandas DataFrame, got dict"):
        plots.predicted_against_true({"structural": [1.0], "estimate": [1.0]})  # type: ignore[arg-type]


def test_more_slices_than_colours_are_refused() -> None:
    many = pd.DataFrame({"price": 1.0, "time": np.arange(7), "estimate": 0.0})
    with pytest.raises(DataError, match=r"column 'time' takes 7 values and a figure shows 6 lines at most: keep some"):
        plots.structural_curves(many, treatment="price", slice_by="time")


def test_panels_refuse_axes_and_estimates_that_do_not_fit(table: pd.DataFrame) -> None:
    with pytest.raises(ParameterError, match="one a panel, got 1 for 2 values of 'time'"):
        plots.structural_panels(table, treatment="price", estimates=["DFIV"], panel_by="time", axes=[Figure().subplots()])
    with pytest.raises(ParameterError, match="estimates must be a list of 1 to 6 columns, got 'DFIV'"):
        plots.structural_panels(table, treatment="price", estimates="DFIV", panel_by="time")


def test_without_matplotlib_the_message_names_the_extra(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ImportError, match=r"figures need matplotlib, which is not installed: pip install 'cfiv\[plot\]'"
    ) as caught:
        plots.predicted_against_true(table, truth="truth")
    assert isinstance(caught.value, CfivError)


@pytest.fixture
def band() -> pd.DataFrame:
    """Six points in no order, the two beyond 40 not supported."""
    x = np.array([30.0, 10.0, 50.0, 20.0, 60.0, 40.0])
    ends = {"lower": x - 1, "upper": x + 1, "band_lower": x - 2, "band_upper": x + 2}
    return pd.DataFrame({"price": x, "estimate": x, **ends, "supported": x <= 40})


def test_a_band_is_drawn_as_the_table_says_and_faint_where_nothing_was_seen(band: pd.DataFrame) -> None:
    ax = plots.confidence_band(band, along="price", outcome="sales", seen=[10.0, 40.0])
    seen, beyond, ticks = with_data(ax)
    assert points(seen) == [(x, x) for x in (10.0, 20.0, 30.0, 40.0)]
    assert points(beyond) == [(x, x) for x in (40.0, 50.0, 60.0)]
    assert (beyond.get_alpha() or 1) < (seen.get_alpha() or 1)
    assert np.asarray(ticks.get_xdata()).tolist() == [10.0, 40.0]
    assert legend(ax) == ["uniform band", "pointwise interval", "estimate", "beyond what was seen"]
    shaded = [area.get_paths()[0].vertices for area in ax.collections]
    heights = [float(np.ptp(area[area[:, 0] == 40.0, 1])) for area in shaded]
    assert heights == [4.0, 4.0, 2.0, 2.0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("price", "sales")


def test_a_band_that_cannot_be_trusted_is_two_dashed_lines(band: pd.DataFrame) -> None:
    ax = plots.confidence_band(band, along="price", dashed=True)
    lower, upper, *_ = with_data(ax)
    assert points(lower) == expected(band, "band_lower")
    assert points(upper) == expected(band, "band_upper")
    assert len(ax.collections) == 2, "of the pointwise interval alone"
    assert legend(ax)[0] == "uniform band, doubted"


def test_a_curve_without_a_band_or_one_all_beyond_is_drawn_too(band: pd.DataFrame) -> None:
    alone = plots.confidence_band(band.drop(columns=["band_lower", "band_upper"]).assign(supported=True), along="price")
    assert legend(alone) == ["pointwise interval", "estimate"]
    beyond = plots.confidence_band(band.assign(supported=False), along="price")
    assert legend(beyond) == ["beyond what was seen"]
    with pytest.raises(DataError, match="one row a point"):
        plots.confidence_band(pd.concat([band, band]), along="price")
    with pytest.raises(DataError, match="'upper'"):
        plots.confidence_band(band.drop(columns="upper"), along="price")


def test_inference_draws_its_own_curve() -> None:
    train, _ = demand.simulate(500, seed=0)
    model = cfiv.TwoStageLeastSquares(demand.FORMULA).fit(train)
    inference = cfiv.infer(train, model, draws=200)
    answer = inference.dose_response([10.0, 20.0, 40.0])
    ax = answer.plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("price", "sales")
    drawn = [points(line) for line in with_data(ax)]
    values = answer.table
    assert drawn[0] == expected(values.iloc[:2], "estimate")
    assert drawn[1] == expected(values.iloc[1:], "estimate")
    assert [x for x, _ in drawn[2]] == inference.seen.quantiles[:, 0].tolist()
    with pytest.raises(ParameterError, match="along one column"):
        inference.effect(treatment_from=15, treatment_to=20).plot()


# Where treatments were not seen


def test_parts_of_a_curve_that_are_not_supported_are_thin_and_dashed_and_the_others_are_not() -> None:
    frame = pd.DataFrame({"price": np.arange(6.0), "estimate": np.arange(6.0) ** 2})
    frame["supported"] = [False, True, True, True, False, False]
    seen, guessed = plots.structural_curves(frame, treatment="price").get_lines()
    assert [x for x, y in points(seen) if np.isfinite(y)] == [1, 2, 3]
    assert [x for x, y in points(guessed) if np.isfinite(y)] == [0, 1, 3, 4, 5]
    assert guessed.is_dashed()
    assert not seen.is_dashed()
    assert guessed.get_linewidth() < seen.get_linewidth()
    assert guessed.get_color() == seen.get_color()


def test_panels_mark_what_is_not_supported_in_every_estimate(table: pd.DataFrame) -> None:
    marked = table.assign(supported=table["time"] == 0.0)
    first, second = plots.structural_panels(marked, treatment="price", estimates=["DFIV", "estimate"], panel_by="time")
    assert [line.is_dashed() for line in first.get_lines()] == [False, False]
    assert [line.is_dashed() for line in second.get_lines()] == [False, True, False, True]
    assert legend(first) == ["DFIV", "estimate"]


def test_a_column_supported_must_say_true_or_false(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="'supported' must hold True and False, got float64"):
        plots.structural_curves(table.assign(supported=0.5), treatment="price", slice_by="time")
