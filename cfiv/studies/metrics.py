"""Metrics: what a simulation study measures of a fitted method. A metric is any function of a :class:`Fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from cfiv.checks import check_flag, check_number, check_whole
from cfiv.errors import NotApplicableError, ParameterError, StudyError, UnsupportedTreatmentWarning, silence
from cfiv.inference.infer import check_estimator, infer
from cfiv.inference.inference import Inference
from cfiv.inference.simultaneous import check_draws, check_level


@dataclass(frozen=True, eq=False)
class Fit:
    """One fitted replication, as metrics see it.

    Parameters
    ----------
    model : object with ``predict``
    data : table, IVData, or whatever the design returns
        What the model was fitted to.
    truth : object with ``error(model)``
        What the design knows; a true function or array comes as a :class:`PointwiseTruth`.
    another : callable
        ``another() -> (data, truth)`` draws again from the same cell of the design, with a seed of its own: held-out rows.
    """

    model: Any
    data: Any
    truth: Any
    another: Callable[[], tuple[Any, Any]]
    _inferences: dict[tuple[tuple[str, Any], ...], Inference] = field(default_factory=dict, repr=False)

    def infer(self, **options: Any) -> Inference:
        """:func:`cfiv.infer` of the model and its data, once for all metrics that ask for the same.

        Raises
        ------
        NotApplicableError
            If the model has no intervals.
        """
        try:
            check_estimator(type(self.model))
        except ParameterError as error:
            raise NotApplicableError(str(error)) from None
        key = tuple(sorted(options.items()))
        if key not in self._inferences:
            self._inferences[key] = infer(self.data, self.model, **options)
        return self._inferences[key]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a metric returns of a number that is estimated and known, for bias, variance and coverage.

    Parameters
    ----------
    estimate, truth : float
    lower, upper : float, optional
        Ends of a confidence interval; reports then show its coverage. With one end alone it has no other.
    """

    estimate: float
    truth: float
    lower: float | None = None
    upper: float | None = None


#: Steps of a true derivative, as a share of the treatment's range.
STEP = 1e-4
Metric = Callable[[Fit], float | Estimate]
#: The columns that an Estimate of a metric ``m`` fills: ``m, m_truth, m_lower, m_upper``.
SUFFIXES = {"estimate": "", "truth": "_truth", "lower": "_lower", "upper": "_upper"}


def error(fit: Fit) -> float:
    """Mean squared error against the truth, in squared units of the outcome: ``truth.error(model)``."""
    return float(fit.truth.error(fit.model))


def score(fit: Fit) -> float:
    """``model.score`` on rows drawn anew: what can be known without the truth. Higher is better."""
    return float(fit.model.score(fit.another()[0]))


#: Of any metric: reports then count failures as infinitely low rather than infinitely high.
score.higher_is_better = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class AverageEffect:
    """``mean_i h(treatment_to, X_i) - h(treatment_from, X_i)`` over the rows that a method was fitted to.

    Needs a design with a table and with a truth that is a function of rows.

    Parameters
    ----------
    treatment : str
        The treatment's column.
    treatment_from, treatment_to : float

    Raises
    ------
    ParameterError
        If these are no finite numbers.
    """

    treatment: str
    _: KW_ONLY
    treatment_from: float
    treatment_to: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("treatment_from", self.treatment_from)
        check_number("treatment_to", self.treatment_to)

    def __call__(self, fit: Fit) -> Estimate:
        """Estimate and truth.

        Raises
        ------
        StudyError
            If the data are no table with that column.
        """
        rows = _table(fit.data, self.treatment)
        at_to, at_from = (rows.assign(**{self.treatment: float(t)}) for t in (self.treatment_to, self.treatment_from))
        with silence(UnsupportedTreatmentWarning):  # what is asked here is known
            effect = np.asarray(fit.model.predict(at_to)) - np.asarray(fit.model.predict(at_from))
        return Estimate(
            estimate=float(np.mean(effect)),
            truth=float(np.mean(fit.truth(at_to) - fit.truth(at_from))),
        )


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of a linear estimator with its confidence interval, beside its true value.

    Parameters
    ----------
    name : str
        As in ``model.coefficients_``, the table of :class:`cfiv.TwoStageLeastSquares` and :class:`cfiv.LeastSquares`.
    truth : float

    Raises
    ------
    ParameterError
        If the truth is no finite number.
    """

    name: str
    truth: float

    def __post_init__(self) -> None:
        """Check the number."""
        check_number("truth", self.truth)

    def __call__(self, fit: Fit) -> Estimate:
        """Estimate, truth and the ends of the 95 % interval.

        Raises
        ------
        NotApplicableError
            If the model has no coefficients at all.
        StudyError
            If it has, and none of that name.
        """
        table = getattr(fit.model, "coefficients_", None)
        if table is None:
            raise NotApplicableError(f"{type(fit.model).__name__} has no coefficients")
        if self.name not in table.index:
            raise StudyError(f"the model has no coefficient {self.name!r}: it has {', '.join(map(str, table.index))}")
        row = table.loc[self.name]
        return Estimate(
            estimate=float(row["coefficient"]), truth=self.truth, lower=float(row["lower"]), upper=float(row["upper"])
        )


@dataclass(frozen=True, kw_only=True)
class Band:
    """The uniform band of a dose response, or of ``h`` at fresh rows: whether it holds everywhere, or how wide it is.

    It holds everywhere where it holds at the treatment at which it is furthest from the truth, in standard errors. The metric
    is the estimate there with the ends of the band, so that its coverage is that of the whole band. Needs a design with a table
    and with a truth that is a function of rows.

    Parameters
    ----------
    treatment : str
        The treatment's column.
    grid_from, grid_to : float, optional
        Ends of the grid of evenly spaced treatments. Without them the band is that of ``h``, at the first rows of another draw
        whose treatments were seen.
    points : int
        Of the grid, or rows at most.
    width : bool
        Whether to measure half the width of the band, the median over the points, instead.
    pointwise : bool
        Whether to measure at what share of the points their own interval holds, instead.
    level, undersmooth, draws
        As of :func:`cfiv.infer`.

    Raises
    ------
    ParameterError
        If these are out of range, or one end of the grid is given without the other.
    """

    treatment: str
    grid_from: float | None = None
    grid_to: float | None = None
    points: int = 46
    width: bool = False
    pointwise: bool = False
    level: float = 0.95
    undersmooth: bool = True
    draws: int = 1000

    def __post_init__(self) -> None:
        """Check the numbers."""
        if (self.grid_from is None) != (self.grid_to is None):
            raise ParameterError("a grid is between two treatments: give grid_from and grid_to, or none of them")
        if self.grid_from is not None:
            check_number("grid_from", self.grid_from)
            check_number("grid_to", self.grid_to, above=self.grid_from)
        check_whole("points", self.points, least=2)
        check_flag("width", self.width)
        check_flag("pointwise", self.pointwise)
        _check_options(self)

    def __call__(self, fit: Fit) -> float | Estimate:
        """Estimate, truth and ends of the band where it is furthest off; or half its width, in the outcome's units.

        Raises
        ------
        NotApplicableError
            If the model has no intervals.
        StudyError
            If the data are no table with that column.
        """
        rows = _table(fit.data, self.treatment)
        inference = fit.infer(level=self.level, undersmooth=self.undersmooth, draws=self.draws)
        if self.grid_from is None or self.grid_to is None:
            data, h = fit.another()
            rows = _table(data, self.treatment)
            rows = rows[fit.model.supported(rows)].head(self.points)
            table, truth = inference.predict(rows).table, np.asarray(h(rows))
        else:
            table = inference.dose_response(np.linspace(self.grid_from, self.grid_to, self.points), rows).table
            truth = np.array([np.mean(fit.truth(rows.assign(**{self.treatment: t}))) for t in table[self.treatment]])
        if self.width:
            return float((table["band_upper"] - table["band_lower"]).median() / 2)
        if self.pointwise:
            return float(((table["lower"] <= truth) & (truth <= table["upper"])).mean())
        worst = int((np.abs(table["estimate"] - truth) / table["std_error"]).to_numpy().argmax())
        estimate, lower, upper = (float(table[name].iloc[worst]) for name in ("estimate", "band_lower", "band_upper"))
        return Estimate(estimate=estimate, truth=float(truth[worst]), lower=lower, upper=upper)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The interval of an average effect, or of the average derivative, over the rows that a method was fitted to.

    Needs a design with a table and with a truth that is a function of rows, whose derivative is a difference ``STEP`` apart.

    Parameters
    ----------
    treatment : str
        The treatment's column.
    treatment_from, treatment_to : float, optional
        Of the effect; the derivative where none is given.
    width : bool
        Whether to measure half the width of the interval instead.
    level, undersmooth, draws
        As of :func:`cfiv.infer`.

    Raises
    ------
    ParameterError
        If these are out of range, or one treatment is given without the other.
    """

    treatment: str
    treatment_from: float | None = None
    treatment_to: float | None = None
    width: bool = False
    level: float = 0.95
    undersmooth: bool = True
    draws: int = 1000

    def __post_init__(self) -> None:
        """Check the numbers."""
        if (self.treatment_from is None) != (self.treatment_to is None):
            raise ParameterError("an effect is between two treatments: give treatment_from and treatment_to, or none of them")
        if self.treatment_from is not None:
            check_number("treatment_from", self.treatment_from)
            check_number("treatment_to", self.treatment_to)
        check_flag("width", self.width)
        _check_options(self)

    def __call__(self, fit: Fit) -> float | Estimate:
        """Estimate, truth and ends of the interval; or half its width, in the effect's units.

        Raises
        ------
        NotApplicableError
            If the model has no intervals.
        StudyError
            If the data are no table with that column.
        """
        rows = _table(fit.data, self.treatment)
        inference = fit.infer(level=self.level, undersmooth=self.undersmooth, draws=self.draws)
        if self.treatment_from is None:
            apart = STEP * float(np.ptp(rows[self.treatment]))
            ends = [rows.assign(**{self.treatment: rows[self.treatment] + change}) for change in (apart / 2, -apart / 2)]
            table = inference.average_derivative(rows).table
            table = table[table["treatment"] == self.treatment]
        else:
            apart = 1.0
            asked = {"treatment_to": self.treatment_to, "treatment_from": self.treatment_from}
            ends = [rows.assign(**{self.treatment: t}) for t in asked.values()]
            table = inference.effect(**asked, rows=rows).table
        row = table.iloc[0]
        if self.width:
            return float(row["upper"] - row["lower"]) / 2
        truth = float(np.mean(fit.truth(ends[0]) - fit.truth(ends[1]))) / apart
        return Estimate(estimate=float(row["estimate"]), truth=truth, lower=float(row["lower"]), upper=float(row["upper"]))


@dataclass(frozen=True, kw_only=True)
class Doubted:
    """Whether :func:`cfiv.infer` notes something that speaks against its intervals and bands: 1 or 0.

    Parameters
    ----------
    level, undersmooth, draws
        As of :func:`cfiv.infer`.

    Raises
    ------
    ParameterError
        If these are out of range.
    """

    level: float = 0.95
    undersmooth: bool = True
    draws: int = 1000

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_options(self)

    def __call__(self, fit: Fit) -> float:
        """One where there is a doubt.

        Raises
        ------
        NotApplicableError
            If the model has no intervals.
        """
        return float(fit.infer(level=self.level, undersmooth=self.undersmooth, draws=self.draws).law.doubtful)


def _check_options(metric: Band | Interval | Doubted) -> None:
    """What :func:`cfiv.infer` is asked for."""
    check_flag("undersmooth", metric.undersmooth)
    check_level(metric.level)
    check_draws(metric.draws)


def _table(data: Any, treatment: str) -> Any:
    """Data of a design, as a table with that column."""
    rows = getattr(data, "frame", None)
    rows = data if rows is None else rows
    if treatment not in getattr(rows, "columns", ()):
        raise StudyError(f"effects and bands need a table with the treatment's column, got none called {treatment!r}")
    return rows


def measure(metrics: Mapping[str, Metric], fit: Fit) -> dict[str, float]:
    """The values of all metrics by column, without those that raise a NotApplicableError.

    Raises
    ------
    StudyError
        If one is not a finite number or an Estimate of such.
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        try:
            result = metric(fit)
        except NotApplicableError:
            continue
        if isinstance(result, Estimate):
            found = {name + suffix: getattr(result, part) for part, suffix in SUFFIXES.items()}
            values |= {column: value for column, value in found.items() if value is not None}
        else:
            values[name] = result
    for column, value in values.items():
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise StudyError(f"a metric must be a number or an Estimate, got {type(value).__name__} for {column!r}") from None
        if not np.isfinite(number):
            raise StudyError(f"the metric {column!r} is {number}")
        values[column] = number
    return values


#: By the names that study files use.
KNOWN: Mapping[str, Metric] = {"error": error, "score": score}
