"""Reports: everything is written, nothing in a name is taken for markup, and figures show what the tables say."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfiv.errors import OutputError, ParameterError, StudyError
from cfiv.studies import Design, Estimate, Fit, Method, Report, Study, score
from cfiv.studies.ledger import Ledger
from tests.studies import problems

HOSTILE = ("<b>&", '"quoted"', "_hidden", "a $x_$ b", "100% \\frac{", "a" * 80, "a|b")
FILES = ["results.csv", "report.md", "report.tex", "report.html"]


def study(ledger: Path, outcome: Callable[[Mapping[str, Any], int], Mapping[str, Any]], **changes: Any) -> Study:
    """A study with rows as an outcome gives them, without a fit."""
    settings: dict[str, Any] = {
        "designs": {"line": Design(problems.line, n=[10, 100])},
        "methods": {"one": problems.Slope(), "two": problems.Slope()},
        "replications": 8,
    }
    made = Study("s", ledger=ledger, **{**settings, **changes})
    with Ledger.writing(ledger) as opened:
        opened.describe({key: made.configuration(cell) for key, cell in made.cells.items()}, versions={})
        for key, cell in made.cells.items():
            for replication in range(made.replications):
                found = {"status": "done", "seconds": 1.0, **outcome(cell.labels, replication)}
                opened.add(key, replication, found, **made.seeds(cell, replication))
    return made


def power(at: Mapping[str, Any], replication: int) -> dict[str, Any]:
    return {"values": {"error": (1.0 + replication) / at.get("n", 1)}}


def failing(at: Mapping[str, Any], replication: int) -> dict[str, Any]:
    return {"status": "failed", "reason": "the method raised <E>: &", "seconds": None}


def labels(ax: Any) -> list[str]:
    return [text.get_text().replace(r"\$", "$") for text in ax.get_xticklabels()]


@pytest.mark.contract
@pytest.mark.parametrize(
    ("changes", "outcome", "figures"),
    [
        ({}, power, ["error_by_method", "error_against_n"]),
        ({"designs": {"line": problems.line}}, power, ["error_by_method"]),
        (
            {"designs": {"line": problems.line}, "methods": {"one": problems.Slope()}, "replications": 1},
            power,
            ["error_by_method"],
        ),
        ({"methods": {name: problems.Slope() for name in HOSTILE}}, power, ["error_by_method", "error_against_n"]),
        (
            {"designs": {name: Design(problems.line, n=[10, 100]) for name in HOSTILE}},
            power,
            ["error_by_method", "error_against_n"],
        ),
        ({"methods": {f"method {i}": problems.Slope() for i in range(12)}}, power, ["error_by_method", "error_against_n"]),
        (
            {"methods": {"m": Method(problems.Slope(), ridge=[[1, 2], (3,), problems.Slope, None])}},
            power,
            ["error_by_method", "error_against_n"],
        ),
        ({}, failing, []),
        (
            {},
            lambda at, i: failing(at, i) if at["method"] == "one" or i % 3 else power(at, i),
            ["error_by_method", "error_against_n"],
        ),
        ({}, lambda at, i: failing(at, i) if i else power(at, i), ["error_by_method", "error_against_n"]),
        (
            {"metrics": {"score": score}},
            lambda at, i: failing(at, i) if i else {"values": {"score": 1.0}},
            ["score_by_method", "score_against_n"],
        ),
        ({}, lambda at, i: {"values": {"error": 0.0}}, ["error_by_method", "error_against_n"]),
        ({}, lambda at, i: {"values": {"error": float(i - 3)}}, ["error_by_method", "error_against_n"]),
        ({"metrics": {"../<m>": score}}, lambda at, i: {"values": {"../<m>": -1.0 - i}}, ["m_by_method", "m_against_n"]),
    ],
    ids=[
        "plain",
        "one cell",
        "one replication",
        "hostile methods",
        "hostile designs",
        "12 methods",
        "objects",
        "all failed",
        "some failed",
        "most failed",
        "most failed to score",
        "zero",
        "negative",
        "hostile metric",
    ],
)
def test_everything_is_written_whatever_the_study(tmp_path: Path, changes: Any, outcome: Any, figures: list[str]) -> None:
    made = study(tmp_path / "s.sqlite", outcome, **changes)
    report = made.report()
    written = report.write(tmp_path / "out")
    assert [path.name for path in written] == FILES + [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    for path in written:
        content = path.read_bytes()
        assert content
        assert path.suffix != ".png" or content.startswith(b"\x89PNG")
        assert path.suffix != ".svg" or b"</svg>" in content
    page = (tmp_path / "out" / "report.html").read_text()
    tags = set(re.findall(r"<([a-z0-9]+)", page))
    assert tags <= set("html head meta title style body h1 h2 p table thead tbody tr th td img ul li code".split())  # noqa: SIM905
    assert page.count('<img alt="') == page.count('src="data:image/png;base64,') == page.count("src=") == len(figures)
    assert "http" not in re.sub(r'base64,[^"]*', "", page)  # in an image these letters come up by chance
    rows = pd.read_csv(tmp_path / "out" / "results.csv", dtype={"method": str, "design": str})
    assert rows["method"].tolist() == made.results()["method"].tolist()
    for text in (str(report), report.to_markdown(), report._repr_html_()):
        assert text


@pytest.mark.contract
def test_names_are_text_in_html_and_in_latex(tmp_path: Path) -> None:
    report = study(tmp_path / "s.sqlite", failing, methods={name: problems.Slope() for name in HOSTILE}).report()
    page = report.to_html()
    assert "&lt;b&gt;&amp;" in page
    assert "the method raised &lt;E&gt;: &amp;" in page
    latex = report.to_latex()
    assert r"\textless{}b\textgreater{}\&" in latex
    assert r"100\% \textbackslash{}frac\{" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1


@pytest.mark.law
def test_figures_have_a_panel_a_cell_a_box_a_method_and_a_dot_a_replication(tmp_path: Path) -> None:
    methods = {"one": problems.Slope(), "two": Method(problems.Slope(), ridge=[1.0, 2.0])}
    designs = {"line": Design(problems.line, n=[10, 100], slope=[1.0, 2.0, 3.0])}
    report = study(tmp_path / "s.sqlite", power, methods=methods, designs=designs).report()
    panels = report.box_plot().axes
    assert [ax.get_title(loc="left") for ax in panels] == [f"n {n}, slope {slope}" for n in (10, 100) for slope in (1, 2, 3)]
    names = ["one", "two, ridge 1", "two, ridge 2"]
    assert [labels(ax) for ax in panels[3:]] == [names] * 3  # the lowest ones
    for ax in panels:
        dots = [collection.get_offsets() for collection in ax.collections]
        assert [len(of) for of in dots] == [8, 8, 8]
    assert panels[0].get_yscale() == "log"
    medians = [line.get_ydata()[0] for line in panels[0].lines[5::6]]
    assert medians == report.table().loc[10].loc[1.0]["median"].tolist()
    lines = report.convergence().axes
    assert len(lines) == 3
    tables = report.slopes()
    assert (tables["slope"].round(12) == -1.0).all()
    assert tables.index.names == ["slope", "method", "ridge"]
    assert "slope (axis)" in report.to_markdown()
    for ax in lines:
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"{name} (-1.00)" for name in names]
        for line in ax.lines:
            assert line.get_xdata().tolist() == [10, 100]
            assert line.get_ydata().tolist() == [0.45, 0.045]


@pytest.mark.law
def test_in_figures_too_failures_are_infinitely_wrong(tmp_path: Path) -> None:
    def outcome(at: Mapping[str, Any], replication: int) -> dict[str, Any]:
        return failing(at, replication) if at["method"] == "two" and replication < 5 else power(at, replication)

    ax = study(tmp_path / "s.sqlite", outcome).report().box_plot().axes[0]
    one, two = (line.get_ydata()[0] for line in ax.lines[5::6])
    low, high = ax.get_ylim()
    assert low < one < high < two
    assert [text.get_text() for text in ax.texts] == ["5 failed"]


@pytest.mark.law
def test_what_is_far_above_all_others_does_not_press_them_into_one_line_and_is_said_at_the_top(tmp_path: Path) -> None:
    def outcome(at: Mapping[str, Any], replication: int) -> dict[str, Any]:
        diverged = at["n"] == 100 and at["method"] in ("diverges", "diverges too")
        return {"values": {"error": (4.56e9 if diverged else 2.0) + replication}}

    names = ("one", "two", "three", "diverges", "diverges too")
    report = study(tmp_path / "s.sqlite", outcome, methods=dict.fromkeys(names, problems.Slope())).report()
    (lines,) = report.convergence().axes
    assert lines.get_ylim()[0] < 5.5 < lines.get_ylim()[1] < 100.0
    said = [(text.get_text(), text.xy[0], text.get_position()[1]) for text in lines.texts]
    assert said == [("4.56e+09", 100, 0.0), ("4.56e+09", 100, -8.0)]
    assert lines.lines[3].get_ydata().tolist() == report.table().loc[(slice(None), "diverges"), "median"].tolist()
    boxes = report.box_plot().axes
    assert boxes[0].get_ylim()[1] < 100.0
    assert [[text.get_text() for text in ax.texts] for ax in boxes] == [[], ["8 above", "8 above"]]


@pytest.mark.law
def test_a_failure_lowers_a_score_rather_than_raising_it(tmp_path: Path) -> None:
    def outcome(at: Mapping[str, Any], replication: int) -> dict[str, Any]:
        bad = at["method"] == "two" and replication < 5
        return failing(at, replication) if bad else {"values": {"score": float(replication)}}

    report = study(tmp_path / "s.sqlite", outcome, metrics={"score": score}).report()
    table = report.table()
    assert table.loc[(10, "one"), "median"] == 3.5
    assert table.loc[(10, "two"), "median"] == -np.inf


@pytest.mark.law
def test_no_two_lines_of_a_panel_look_alike(tmp_path: Path) -> None:
    methods = {f"method {i}": problems.Slope() for i in range(24)}
    (ax,) = study(tmp_path / "s.sqlite", power, methods=methods).report().convergence().axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}
    assert len(looks) == 24


@pytest.mark.law
def test_designs_without_an_axis_have_no_panel_of_figures_along_it(tmp_path: Path) -> None:
    designs = {"line": Design(problems.line, n=[10, 100]), "one size": Design(problems.line, n=50)}
    report = study(tmp_path / "s.sqlite", power, designs=designs).report()
    (ax,) = report.convergence().axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "100"]
    assert len(report.box_plot().axes) == 3
    assert (tmp_path / "out" / "error_against_n.png") in report.write(tmp_path / "out")


@pytest.mark.law
def test_methods_with_many_settings_have_a_panel_each_whose_legend_names_the_settings(tmp_path: Path) -> None:
    methods = {
        "one": Method(problems.Slope(), ridge=[0.5 * i for i in range(8)]),
        "two": Method(problems.Slope(), ridge=list(range(6))),
        "three": problems.Slope(),
    }
    panels = study(tmp_path / "s.sqlite", power, methods=methods).report().convergence().axes
    assert [ax.get_title(loc="left") for ax in panels] == ["one", "two", "three"]
    said = [[text.get_text().split(" (")[0] for text in ax.get_legend().get_texts()] for ax in panels]
    assert said == [[f"ridge {0.5 * i:g}" for i in range(8)], [f"ridge {i}" for i in range(6)], ["three"]]


@pytest.mark.law
def test_an_estimates_table_has_bias_and_coverage(tmp_path: Path) -> None:
    def estimate(fit: Fit) -> Estimate:
        raise NotImplementedError

    def outcome(at: Mapping[str, Any], i: int) -> dict[str, Any]:
        return {"values": {"e": i - 3.5, "e_truth": 1.0, "e_lower": i - 5.5, "e_upper": i - 1.5}}

    report = study(tmp_path / "s.sqlite", outcome, metrics={"e": estimate}).report()
    row = report.table().loc[(10, "one")]
    assert (row["bias"], row["coverage"]) == (-1.0, 0.5)
    written = [path.name for path in report.write(tmp_path / "out")]
    assert written == ["results.csv", "report.md", "report.tex", "report.html", "coverage.png", "coverage.svg"]


@pytest.mark.law
def test_a_coverage_is_of_those_that_have_an_interval_and_an_end_that_is_missing_is_no_limit(tmp_path: Path) -> None:
    ends = {
        "both": lambda i: {"e_lower": i - 5.5, "e_upper": i - 1.5},
        "some": lambda i: {"e_lower": i - 5.5, "e_upper": i - 1.5} if i < 4 else {},
        "lower": lambda i: {"e_lower": i - 5.5},
        "upper": lambda i: {"e_upper": i - 1.5},
        "none": lambda i: {},
    }

    def outcome(at: Mapping[str, Any], i: int) -> dict[str, Any]:
        return {"values": {"e": i - 3.5, "e_truth": 1.0, **ends[at["method"]](i)}}

    def coverage(*methods: str) -> pd.DataFrame:
        path = tmp_path / f"{'-'.join(methods)}.sqlite"
        made = study(path, outcome, designs={"line": problems.line}, metrics={"e": problems.zero}, methods=slopes(*methods))
        return made.report().table()

    table = coverage(*ends)
    # Of lower i - 5.5 and upper i - 1.5, i = 0 ... 7, those that enclose 1: i >= 2.5 and i <= 6.5.
    assert table["coverage"].fillna(-1.0).tolist() == [4 / 8, 1 / 4, 7 / 8, 5 / 8, -1.0]
    assert table["intervals"].fillna(0).tolist() == [8, 4, 8, 8, 0]
    assert table.loc["some", "coverage_mc_error"] == pytest.approx(np.sqrt(0.25 * 0.75 / 4))
    assert "intervals" not in coverage("both")  # where all have one
    assert "coverage" not in coverage("none")


@pytest.mark.law
def test_where_a_metric_does_not_apply_a_method_is_in_no_table_or_figure_of_it_and_a_failure_is(tmp_path: Path) -> None:
    def outcome(at: Mapping[str, Any], i: int) -> dict[str, Any]:
        if at["method"] == "fails" or (i == 0 and at["method"] == "curve"):
            return failing(at, i)
        return {"values": {"error": 1.0 + i, **({} if at["method"] == "curve" else {"other": 2.0 + i})}}

    methods = slopes("line", "curve", "fails")
    report = study(
        tmp_path / "s.sqlite", outcome, metrics=dict.fromkeys(("error", "other"), problems.zero), methods=methods
    ).report()
    assert report.table("error").loc[10].index.tolist() == ["line", "curve", "fails"]
    other = report.table("other").loc[10]
    assert other["median"].to_dict() == {"line": 5.5, "fails": np.inf}
    assert labels(report.box_plot("other").axes[0]) == ["line", "fails"]
    assert len(report.convergence("other").axes[0].lines) == 2


def test_a_metric_that_applies_to_no_method_is_said_where_it_is_asked_for_and_else_left_out(tmp_path: Path) -> None:
    metrics = dict.fromkeys(("error", "other"), problems.zero)
    report = study(tmp_path / "s.sqlite", power, metrics=metrics).report()
    assert "other" not in report.to_markdown()
    assert len(report.write(tmp_path / "out")) == len(FILES) + 4  # of the two figures of the error
    for use in (report.table, report.box_plot, report.convergence):
        with pytest.raises(StudyError, match="the metric 'other' applies to none of the methods: leave it out"):
            use("other")


@pytest.mark.law
def test_methods_whose_names_read_alike_with_what_varies_keep_boxes_and_lines_of_their_own(tmp_path: Path) -> None:
    def outcome(at: Mapping[str, Any], i: int) -> dict[str, Any]:
        return {"values": {"error": 100.0 if at["method"] == "K, ridge 1" else 1.0}}

    methods = {"K": Method(problems.Slope(), ridge=[1, 2]), "K, ridge 1": problems.Slope(ridge=3.0)}
    report = study(tmp_path / "s.sqlite", outcome, methods=methods).report()
    ax = report.box_plot().axes[0]
    assert labels(ax) == ["K, ridge 1", "K, ridge 2", "K, ridge 1 (2)"]
    assert [line.get_ydata()[0] for line in ax.lines[5::6]] == [1.0, 1.0, 100.0]
    assert [line.get_ydata()[0] for line in report.convergence().axes[0].lines] == [1.0, 1.0, 100.0]


@pytest.mark.law
def test_slopes_are_of_rows_that_have_a_logarithm(tmp_path: Path) -> None:
    designs = {"line": Design(problems.line, n=[0, 10, 100, 1000])}
    methods = {"one": Method(problems.Slope(), ridge=[1, 10]), "two": problems.Slope()}
    outcome = lambda at, i: {"values": {"error": 1.0 if at["n"] == 0 else 1.0 / at["n"]}}  # noqa: E731
    report = study(tmp_path / "s.sqlite", outcome, designs=designs, methods=methods).report()
    assert report.slopes()["slope"].to_numpy() == pytest.approx([-1.0] * 3)
    assert report.slopes(along="ridge").index.get_level_values("method").unique().tolist() == ["one"]
    for along in ("rho", "method"):
        with pytest.raises(ParameterError, match=f"'{along}' must be an axis of numbers"):
            report.slopes(along=along)


def slopes(*names: str) -> dict[str, problems.Slope]:
    return {name: problems.Slope() for name in names}


def test_without_results_a_report_says_to_run_the_study(tmp_path: Path) -> None:
    for made in (
        study(tmp_path / "zero.sqlite", power, replications=0),
        Study("s", designs={"d": problems.line}, methods={"m": problems.Slope()}, ledger=tmp_path / "none.sqlite"),
    ):
        report = made.report()
        assert str(report) == "s: nothing has finished yet"
        assert "nothing has finished yet" in report._repr_html_()
        for use in (
            report.table,
            report.to_markdown,
            report.to_html,
            report.box_plot,
            lambda r=report: r.write(tmp_path / "out"),
        ):
            with pytest.raises(StudyError, match="the study 's' has no results yet: run it first"):
                use()
        assert list(made.results().columns[-4:]) == ["seconds", "cpu_seconds", "memory_mb", "reason"]
        assert made.status()["done"].sum() == 0
        assert made.failures().empty


def test_what_cannot_be_shown_or_written_is_refused(tmp_path: Path) -> None:
    report = study(tmp_path / "s.sqlite", power).report()
    with pytest.raises(ParameterError, match="the study has no metric 'errors': it has error"):
        report.table("errors")
    with pytest.raises(ParameterError, match="'rho' must be an axis of numbers, such as n: the study has design, n, method"):
        report.convergence(along="rho")
    with pytest.raises(OutputError, match=r"cannot be written .*: choose a folder that exists and is writable"):
        report.write("/proc/out")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written .*: choose a folder"):
        report.write(tmp_path / "file")


def test_a_report_can_be_made_of_exported_results(tmp_path: Path) -> None:
    made = study(tmp_path / "s.sqlite", power)
    made.results().to_csv(tmp_path / "r.csv", index=False)
    again = Report(pd.read_csv(tmp_path / "r.csv"), name="s", axes=["design", "n", "method"], metrics=["error"])
    assert str(again) == str(made.report())
