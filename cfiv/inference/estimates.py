"""Estimates: answers to one question about ``h``, with their joint covariance, intervals and band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfiv.data import Array
from cfiv.errors import ParameterError, SingularError
from cfiv.estimators.structural import StructuralFunction
from cfiv.estimators.wald import SINGULAR, WaldTest, read_numbers
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.functionals import Functionals
from cfiv.inference.simultaneous import NOTHING, Multipliers, check_level
from cfiv.rendering import HEADINGS, Grid, Rendered, shown, to_latex

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Of a table of estimates, beside where they are.
COLUMNS = ("estimate", "std_error", "lower", "upper", "band_lower", "band_upper", "critical_value", "supported")


@dataclass(frozen=True, eq=False, repr=False)
class Law:
    """The joint law of all coefficients of an inference, and how intervals are made of it.

    Parameters
    ----------
    fits : tuple of BasisFit
        Of the basis of the estimate, then of those of other sizes.
    multipliers : Multipliers
    doubtful : bool
        Whether weak instruments, or larger bases that disagree, speak against it: bands are then drawn dashed.
    """

    fits: tuple[BasisFit, ...]
    multipliers: Multipliers
    doubtful: bool


@dataclass(frozen=True, eq=False, repr=False)
class Averages:
    """The function that averages over rows are of, where it is not that of curves.

    Parameters
    ----------
    function : StructuralFunction
    law : Law
    """

    function: StructuralFunction
    law: Law


@dataclass(frozen=True, eq=False, repr=False)
class Estimates(Rendered):
    """Estimates of linear functionals of ``h``, such as effects; :class:`cfiv.Inference` makes them.

    Prints as its table. Estimates of the same inference may be subtracted, ``a - b``, and put side by side, ``a.beside(b)``:
    covariances between them are known.

    Parameters
    ----------
    question : str
        What was asked.
    points : DataFrame
        Where: a row for each estimate.
    functionals : Functionals
    law : Law
    outcome : str
    ticks : mapping from a treatment to values (m,)
        That training has seen, for figures.
    """

    question: str
    points: pd.DataFrame
    functionals: Functionals = field(repr=False)
    law: Law
    outcome: str
    ticks: dict[str, Array]

    def __len__(self) -> int:
        return len(self.functionals)

    @cached_property
    def values(self) -> Array:
        """The estimates (m,), in the outcome's units; derivatives in those by the treatment's."""
        return self.law.fits[0].estimate(self.functionals.values[0])

    @cached_property
    def std_errors(self) -> Array:
        """Standard errors, (m,)."""
        return self.law.fits[0].std_errors(self._roots[0])

    @property
    def covariance(self) -> Array:
        """Of the estimates, (m, m)."""
        return self.law.fits[0].in_units(self._roots[0] @ self._roots[0].T, power=2)

    @property
    def supported(self) -> Array:
        """Whether training has seen what each estimate, (m,), is about."""
        return self.functionals.supported

    @cached_property
    def critical_value(self) -> float:
        """Standard errors to both sides of all estimates at once, at the level of the inference."""
        return self.law.multipliers.simultaneous(self._roots, self.law.multipliers.level)

    @property
    def table(self) -> pd.DataFrame:
        """One row an estimate: where, ``estimate, std_error, lower, upper, supported``.

        Where there are several also the band that holds for all of them at once: ``band_lower, band_upper, critical_value``,
        before ``supported``.
        """
        band = {"critical_value": self.critical_value} if len(self) > 1 else {}
        return self.points.assign(
            estimate=self.values,
            std_error=self.std_errors,
            **self._ends(self.law.multipliers.level),
            **band,
            supported=self.supported,
        )

    def conf_int(self, level: float | None = None) -> pd.DataFrame:
        """``lower, upper`` of each estimate by itself, and ``band_lower, band_upper`` of all at once where there are several.

        Parameters
        ----------
        level : float, optional
            That of the inference by default.

        Raises
        ------
        ParameterError
            Unless it is between 0 and 1.
        """
        return pd.DataFrame(self._ends(self.law.multipliers.level if level is None else check_level(level)))

    def test(self, value: Any = 0.0) -> WaldTest:
        """Wald test that all estimates at once are these values.

        Parameters
        ----------
        value : number or array (m,)

        Returns
        -------
        WaldTest
            ``stat``, ``pval``; chi2 of the number of independent estimates, or F where the estimator is ``debiased``.

        Raises
        ------
        ParameterError
            Unless there is one number for all, or one for each; or where no function of the basis has these values, as of
            more points than functions.
        SingularError
            If nothing in the estimates is random.
        """
        given = read_numbers("value", value)
        if given.shape not in ((), (len(self),)) or not np.isfinite(given).all():
            raise ParameterError(f"value must be one number, or one for each of the {len(self)} estimates, got {value!r}")
        errors: Array = np.linalg.norm(self._roots[0], axis=1)
        largest = float(errors.max()) or 1.0
        errors = np.where(errors > NOTHING * largest, errors, largest)
        root = self._roots[0] / errors[:, None]  # each in its own unit, or the smallest would not count
        apart = np.ldexp(self.values - given, -int(self.law.fits[0].outcome[2])) / errors
        directions, lengths, _ = np.linalg.svd(root, full_matrices=False)
        kept = directions[:, lengths > SINGULAR]
        if not kept.shape[1]:
            raise SingularError(f"{self.question}: nothing in the estimates is random, so there is nothing to test")
        left = apart - kept @ (kept.T @ apart)
        if np.linalg.norm(left) > SINGULAR * max(float(np.linalg.norm(apart)), 1.0):
            raise ParameterError(
                f"no function of the basis has these values: the {len(self)} estimates depend on one another, and differ by "
                "what cannot be random; test fewer at once, or values that a function of the basis has"
            )
        return WaldTest.of(
            kept.T @ apart,
            kept.T @ root,
            df_denom=self.law.multipliers.df,
            name=f"Wald test of {self.question}",
            null="the estimates are zero" if not given.any() else "the estimates are the values given",
        )

    def __sub__(self, other: Estimates) -> Estimates:
        """Differences, one by one, or from a single one."""
        self._check_of_one_inference(other)
        if len(other) != len(self) and 1 not in (len(self), len(other)):
            raise ParameterError(f"as many estimates can be subtracted, or a single one, got {len(self)} and {len(other)}")
        rows = range(max(len(self), len(other)))
        first, second = (part.points.loc[[0] * len(rows) if len(part) == 1 else list(rows)] for part in (self, other))
        second = second.add_prefix("less ")
        points = pd.concat([first.reset_index(drop=True), second.reset_index(drop=True)], axis=1)
        question = f"{self.question} less {other.question}"
        return Estimates(question, points, self.functionals - other.functionals, self.law, self.outcome, self.ticks)

    def beside(self, other: Estimates) -> Estimates:
        """Both, to be tested jointly or to have one band.

        Raises
        ------
        ParameterError
            If the other is not of the same inference.
        """
        self._check_of_one_inference(other)
        both = [part.points.assign(question=part.question) for part in (self, other)]
        points = pd.concat(both, ignore_index=True)
        points = points[["question", *(name for name in points.columns if name != "question")]]
        question = f"{self.question} and {other.question}"
        return Estimates(question, points, self.functionals.beside(other.functionals), self.law, self.outcome, self.ticks)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A curve with its pointwise interval and its band; see :func:`cfiv.plots.confidence_band`.

        Raises
        ------
        ParameterError
            Unless the estimates are along one treatment or covariate.
        """
        from cfiv.plots import confidence_band

        counts = {"rows"} - set(self.ticks)  # of groups, unless a treatment is called so
        along = [str(name) for name, values in self.points.items() if _is_axis(values) and name not in counts]
        if len(along) != 1:
            raise ParameterError(
                f"a figure needs several estimates along one column, got {len(self)} along {along or 'none'}: keep the others "
                "fixed, as dose_response does"
            )
        return confidence_band(
            self.table, along=along[0], outcome=self.outcome, seen=self.ticks.get(along[0]), dashed=self.law.doubtful, ax=ax
        )

    @cached_property
    def _roots(self) -> list[Array]:
        return [fit.roots(values) for fit, values in zip(self.law.fits, self.functionals.values, strict=True)]

    def _ends(self, level: float) -> dict[str, Array]:
        multipliers = self.law.multipliers
        half = multipliers.pointwise(level) * self.std_errors
        ends = {"lower": self.values - half, "upper": self.values + half}
        if len(self) > 1:
            wider = self.critical_value if level == multipliers.level else multipliers.simultaneous(self._roots, level)
            ends |= {"band_lower": self.values - wider * self.std_errors, "band_upper": self.values + wider * self.std_errors}
        return ends

    def to_latex(self) -> str:
        r"""As a tabular with the rules of the booktabs package: headings in words, what the intervals are beneath."""
        table, notes = self.table, [f"Intervals of {100 * self.law.multipliers.level:g} %."]
        if len(self) > 1:
            notes.append(f"The band, of critical value {shown(self.critical_value)}, holds for all rows at once.")
        ends = {f"{name}_{end}": f"{name} {end}" for name in _changed(self.points) for end in ("from", "to")}
        labels = [ends.get(str(name), str(name)) for name in self.points]
        own = table.iloc[:, len(labels) :].drop(columns="critical_value", errors="ignore")
        own["supported"] = ["yes" if flag else "no" for flag in self.supported]
        own = own.rename(columns=HEADINGS)
        together = pd.concat([table.iloc[:, : len(labels)], own], axis=1).set_axis([*labels, *own.columns], axis=1)
        return to_latex(Grid.of(together, index=False, title=self._title, notes=tuple(notes)))

    @property
    def _title(self) -> str:
        return f"{self.question[:1].upper()}{self.question[1:]}, {100 * self.law.multipliers.level:g} %"

    def _grids(self) -> tuple[Grid, ...]:
        return (Grid.of(self.table, index=False, title=self._title),)

    def _check_of_one_inference(self, other: Any) -> None:
        if not isinstance(other, Estimates) or other.law is not self.law:
            raise ParameterError(
                "only estimates of the same inference have a known covariance between them, of learned functions those of "
                "curves among themselves and averages among themselves, got "
                f"{'others' if isinstance(other, Estimates) else type(other).__name__}: ask one inference for both"
            )


def _changed(points: pd.DataFrame) -> list[str]:
    """Names of treatments that are changed from one value to another: those of two columns."""
    names = [str(name).removesuffix("_from") for name in points if str(name).endswith("_from")]
    return [name for name in names if f"{name}_to" in points]


def _is_axis(values: pd.Series[Any]) -> bool:
    numeric = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    return bool(numeric and values.nunique() > 1)


def table_of(parts: Sequence[Estimates]) -> pd.DataFrame:
    """Tables one below the other, with the question of each first."""
    tables = [part.table.assign(question=part.question) for part in parts]
    table = pd.concat(tables, ignore_index=True)
    return table[["question", *(name for name in table.columns if name != "question")]]
