"""A study's report: its tables, its figures, and the page that has them all."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from cfiv.errors import OutputError, ParameterError, StudyError
from cfiv.files import replacing, unwritable, write_table_file
from cfiv.rendering import to_html, to_latex, to_markdown, to_text
from cfiv.studies import coverage_figure, figures, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Dots per inch of pictures.
DPI = 150
#: Axes along which reports draw errors, where a study has them.
ALONG = ("n", "batch_size")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd } th { border-bottom: 2px solid #222 }
img { max-width: 100% } pre { overflow-x: auto; background: #f6f6f6; padding: .6rem; font-size: 13px }
"""


@dataclass(frozen=True, eq=False)
class Report:
    """Tables and figures of replications; prints as text, and as HTML in a notebook.

    Parameters
    ----------
    results : DataFrame
        Of ``Study.results``, or read from a file that ``cfiv study export`` wrote.
    name : str
        Of the study.
    axes : sequence of str
        The columns that tell cells apart: ``design``, its axes, ``method``, its axes.
    metrics : sequence of str
        Columns of what was measured; of an Estimate ``m``, that are also columns ``m_truth`` and maybe ``m_lower, m_upper``.
    rewards : sequence of str
        The metrics that are to be large.
    """

    results: pd.DataFrame
    name: str
    axes: Sequence[str]
    metrics: Sequence[str]
    rewards: Sequence[str] = ()

    def table(self, metric: str | None = None) -> pd.DataFrame:
        """One row a cell: median and quartiles of a metric (see :func:`summary.distribution`), or bias, standard deviation and
        coverage of an Estimate (see :func:`summary.accuracy`), with Monte Carlo standard errors; and median seconds of a fit.
        Without methods to which the metric does not apply.

        Raises
        ------
        ParameterError
            If the study has no such metric.
        StudyError
            If there are no results yet, or the metric applies to no method.
        """
        metric = self._metric(metric)
        by, measured = self._telling(), self._measured(metric)
        if self._is_estimate(metric):
            table = summary.accuracy(measured, metric, by)
        else:
            table = summary.distribution(measured, metric, by, failed_as=self._failed_as(metric))
        seconds = measured.groupby(by, sort=False, dropna=False)["seconds"].median()
        table = table.assign(seconds=seconds.reindex(table.index))
        if "intervals" in table and not (table["intervals"] < table["replications"] - table["failed"]).any():
            table = table.drop(columns="intervals")
        return table.drop(columns="failed") if not table["failed"].any() else table

    def slopes(self, metric: str | None = None, *, along: str = "n") -> pd.DataFrame:
        """One row a method and a design's cell: the slope of log metric against log n (see :func:`summary.slopes`).

        Raises
        ------
        ParameterError
            If the study has no such axis, or it has no numbers.
        """
        metric = self._metric(metric)
        self._check_axis(along)
        return summary.slopes(self.results, metric, [name for name in self._telling() if name != along], along=along)

    def box_plot(self, metric: str | None = None, *, log: bool | None = None) -> Figure:
        """A panel a cell of the designs, a box a method (see ``figures.box_plot``): the form of the KIV and DFIV papers."""
        metric = self._metric(metric)
        return figures.box_plot(self._measured(metric), metric, axes=self.axes, log=log, failed_as=self._failed_as(metric))

    def convergence(self, metric: str | None = None, *, along: str = "n") -> Figure:
        """Median and quartiles of a metric against n (or another axis), with the slopes (see ``figures.convergence``).

        Methods without that axis are not in it.

        Raises
        ------
        ParameterError
            If the study has no such axis, or it has no numbers.
        """
        metric = self._metric(metric)
        self._check_axis(along)
        measured = self._measured(metric)
        return figures.convergence(measured, metric, axes=self.axes, along=along, failed_as=self._failed_as(metric))

    def coverage(self) -> Figure:
        """How often the intervals of all Estimates held, a line a cell (see ``coverage_figure.coverage``).

        Raises
        ------
        StudyError
            If there are no results yet, or no intervals.
        """
        self._metric(None)
        if not self._with_intervals():
            raise StudyError("nothing that was measured has intervals: a metric returns an Estimate with lower and upper")
        return coverage_figure.coverage(self.results, self._with_intervals(), self._telling())

    def to_markdown(self) -> str:
        """All tables."""
        return "\n\n".join(f"## {title}\n\n{to_markdown(table)}" for title, table in self._tables())

    def to_latex(self) -> str:
        """All tables, as tabulars with booktabs rules, each under a comment that names it."""
        return "\n\n".join(f"% {title}\n{to_latex(table)}" for title, table in self._tables())

    def to_html(self) -> str:
        """A page that needs nothing else: tables, figures and failures."""
        return self._page({title: _drawn(figure, "png") for title, figure in self._figures()})

    def _page(self, pictures: Mapping[str, bytes]) -> str:
        tables = "".join(f"<h2>{escape(title)}</h2>{to_html(table)}" for title, table in self._tables())
        drawn = "".join(
            f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for title, png in pictures.items()
        )
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.name)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{escape(self.name)}</h1><p>{escape(self._counts())}</p>"
            f"{tables}{drawn}{self._failures()}</body></html>"
        )

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write everything into a folder, made where there is none.

        Returns
        -------
        list of Path
            ``results.csv``, ``report.md``, ``report.tex``, ``report.html``, and each figure as PNG and SVG.

        Raises
        ------
        OutputError
            If the place cannot be written to.
        StudyError
            If there are no results yet.
        """
        place = Path(folder)
        drawn = {title: {kind: _drawn(figure, kind) for kind in ("png", "svg")} for title, figure in self._figures()}
        contents = {
            "report.md": f"# {self.name}\n\n{self._counts()}\n\n{self.to_markdown()}\n".encode(),
            "report.tex": f"{self.to_latex()}\n".encode(),
            "report.html": self._page({title: kinds["png"] for title, kinds in drawn.items()}).encode(),
        }
        for name, kinds in zip(_file_names(drawn), drawn.values(), strict=True):
            contents |= {f"{name}.{kind}": content for kind, content in kinds.items()}
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(unwritable(place, error)) from error
        write_table_file(self.results, place / "results.csv")
        for name, content in contents.items():
            with replacing(place / name) as temporary:
                temporary.write_bytes(content)
        return [place / name for name in ("results.csv", *contents)]

    def __str__(self) -> str:
        if self.results.empty:
            return f"{self.name}: nothing has finished yet"
        tables = "\n\n".join(f"{title}\n{to_text(table)}" for title, table in self._tables())
        return f"{self.name}: {self._counts()}\n\n{tables}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        if self.results.empty:
            return f"<p>{escape(str(self))}</p>"
        return "".join(f"<h4>{escape(title)}</h4>{to_html(table)}" for title, table in self._tables())

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        self._metric(None)
        tables = []
        for metric in self.metrics:
            if summary.select_measured(self.results, metric, self._telling()).empty:
                continue
            tables.append((metric, _flat(self.table(metric))))
            if (
                self._varies("n")
                and self._drawable(metric)
                and metric not in self.rewards
                and not (slopes := self.slopes(metric)).empty
            ):
                tables.append((f"{metric} against n, slope of the logarithms", _flat(slopes)))
        return tables

    def _figures(self) -> list[tuple[str, Figure]]:
        drawn = []
        lines = [axis for axis in ALONG if self._varies(axis)]
        for metric in filter(self._drawable, self.metrics):
            if "batch_size" not in lines:  # a box for each would be too many
                drawn.append((f"{metric} by method", self.box_plot(metric)))
            for along in lines:
                drawn.append((f"{metric} against {along.replace('_', ' ')}", self.convergence(metric, along=along)))
        return [*drawn, ("coverage", self.coverage())] if self._with_intervals() else drawn

    def _with_intervals(self) -> list[str]:
        return [name for name in self.metrics if f"{name}_lower" in self.results or f"{name}_upper" in self.results]

    def _failed_as(self, metric: str) -> float:
        return -np.inf if metric in self.rewards else np.inf

    def _drawable(self, metric: str) -> bool:
        return not self._is_estimate(metric) and bool(self.results[metric].notna().any())

    def _varies(self, axis: str) -> bool:
        return axis in self.axes and self.results[axis].nunique() > 1 and is_numeric_dtype(self.results[axis])

    def _is_estimate(self, metric: str) -> bool:
        return f"{metric}_truth" in self.results

    def _metric(self, metric: str | None) -> str:
        if self.results.empty:
            raise StudyError(f"the study {self.name!r} has no results yet: run it first")
        if metric is not None and metric not in self.metrics:
            raise ParameterError(f"the study has no metric {metric!r}: it has {', '.join(self.metrics)}")
        return self.metrics[0] if metric is None else metric

    def _measured(self, metric: str) -> pd.DataFrame:
        """The rows of the methods to which a metric applies."""
        measured = summary.select_measured(self.results, metric, self._telling())
        if measured.empty:
            raise StudyError(f"the metric {metric!r} applies to none of the methods: leave it out, or add one that has it")
        return measured

    def _check_axis(self, along: str) -> None:
        if along not in self.axes or not is_numeric_dtype(self.results[along]):
            raise ParameterError(f"{along!r} must be an axis of numbers, such as n: the study has {', '.join(self.axes)}")

    def _telling(self) -> list[str]:
        """The columns that tell cells apart, without a design that is the only one."""
        return [name for name in self.axes if name != "design" or self.results["design"].nunique() > 1]

    def _counts(self) -> str:
        failed = int((self.results["status"] == "failed").sum())
        cells = len(self.results.groupby(list(self.axes), dropna=False)) if len(self.results) else 0
        return f"{len(self.results):,} replications of {cells} cells" + (f", {failed:,} failed" if failed else "")

    def _failures(self) -> str:
        reasons = self.results.loc[self.results["status"] == "failed", "reason"].value_counts()
        if reasons.empty:
            return ""
        items = "".join(f"<li>{count} x <code>{escape(str(reason))}</code></li>" for reason, count in reasons.head(20).items())
        return f"<h2>failures</h2><ul>{items}</ul>"


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """The first level of the index alone as index, which is how tables are rendered."""
    flat = table.rename_axis([f"{name} (axis)" if name in table.columns else name for name in table.index.names]).reset_index()
    return flat.set_index(flat.columns[0])


def _drawn(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI)
    return buffer.getvalue()


def _file_names(titles: Iterable[str]) -> list[str]:
    """Names of files for titles, each another and without what folders or shells would take for something else."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r"[^\w.-]+", "_", title).strip("_.") or "figure"
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names
