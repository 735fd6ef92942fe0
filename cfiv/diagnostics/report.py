"""Diagnostics: all tests of one problem, as attributes and as one table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pandas as pd

from cfiv.diagnostics.compliers import Compliers
from cfiv.diagnostics.results import ConfidenceSet, Diagnostic, TestResult, Unavailable
from cfiv.rendering import Grid, Rendered, shown, shown_p, to_latex

#: Characters a line of ``str(diagnostics)``.
WIDTH = 96
TITLE = "Diagnostics of the linear instrumental-variable model"
#: Columns of the table as they are headed where it is read.
HEADINGS = {
    "test": "Test",
    "statistic": "Statistic",
    "distribution": "Distribution",
    "p_value": "p-value",
    "critical_value": "Critical",
    "set": "Set",
    "reading": "Reading",
}


@dataclass(frozen=True, repr=False)
class Diagnostics(Rendered):
    """Tests of what linear instrumental-variable regression assumes; :func:`cfiv.diagnose` makes it.

    Prints as text, and as HTML in a notebook. An attribute is an ``Unavailable`` with its reason where a test is not defined.

    Attributes
    ----------
    facts : tuple of (name, value)
        Of the data: rows, roles, covariance, level.
    partial_f, conditional_f : tuple of TestResult
        Strength of the instruments, one a treatment; ``conditional_f`` only where there are several treatments.
    effective_f : TestResult
        Montiel Olea and Pflueger's, with critical values; for one treatment.
    cragg_donald, kleibergen_paap_f, kleibergen_paap_lm : TestResult
        Strength and rank of the whole first stage.
    sargan, hansen_j : TestResult
        Over-identifying restrictions: homoskedastic, and under the chosen covariance.
    wu_hausman, durbin, wooldridge : TestResult
        Endogeneity: homoskedastic twice, and under the chosen covariance.
    anderson_rubin : TestResult
        No effect at all, valid with weak instruments.
    anderson_rubin_sets : tuple of ConfidenceSet
        One a treatment.
    compliers : Compliers
        How many they are, and the means of their covariates; for one treatment and one instrument, of two values each.
    residual_prediction : TestResult
        Whether the linear model is adequate: the gate before nonlinear estimators. Its reading says what is not linear, the
        covariates, the treatment's effect, or both, as far as that can be told.
    residual_prediction_curves : TestResult
        The same test of a model in which the covariates enter as curves and in pairs.
    """

    facts: tuple[tuple[str, str], ...]
    partial_f: tuple[Diagnostic, ...]
    conditional_f: tuple[Diagnostic, ...]
    effective_f: Diagnostic
    cragg_donald: Diagnostic
    kleibergen_paap_f: Diagnostic
    kleibergen_paap_lm: Diagnostic
    sargan: Diagnostic
    hansen_j: Diagnostic
    wu_hausman: Diagnostic
    durbin: Diagnostic
    wooldridge: Diagnostic
    anderson_rubin: Diagnostic
    anderson_rubin_sets: tuple[ConfidenceSet | Unavailable, ...]
    compliers: Compliers | Unavailable
    residual_prediction: Diagnostic
    residual_prediction_curves: Diagnostic

    @property
    def anderson_rubin_set(self) -> ConfidenceSet | Unavailable:
        """The first treatment's set; the only one where there is one treatment."""
        return self.anderson_rubin_sets[0]

    @property
    def sections(self) -> tuple[tuple[str, tuple[Diagnostic | ConfidenceSet, ...]], ...]:
        """What is asked, and the diagnostics that answer it, in the table's order."""
        strength = (self.effective_f, self.cragg_donald, self.kleibergen_paap_f, self.kleibergen_paap_lm)
        share = self.compliers.share if isinstance(self.compliers, Compliers) else self.compliers
        return (
            ("Are the instruments strong?", (*self.partial_f, *self.conditional_f, *strength)),
            ("Do the instruments agree?", (self.sargan, self.hansen_j)),
            ("Are instruments needed?", (self.wu_hausman, self.durbin, self.wooldridge)),
            ("What is the effect, however weak the instruments?", (self.anderson_rubin, *self.anderson_rubin_sets)),
            ("Whose effect is it?", (share,)),
            ("Is the linear model adequate?", (self.residual_prediction, self.residual_prediction_curves)),
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row a test: ``question, test, statistic, distribution, p_value, critical_value, set, reading``.

        Numbers that a row does not have are NaN, texts empty; ``reading`` then says why. ``set`` is a confidence set as text.
        """
        records = [{"question": title, **_record(result)} for title, results in self.sections for result in results]
        table = pd.DataFrame(records)
        numbers = ["statistic", "p_value", "critical_value"]
        return table.assign(**{name: table[name].astype(float) for name in numbers})

    def to_latex(self) -> str:
        """The table without its readings, too long for a page, as a tabular with the rules of the booktabs package."""
        return to_latex(self._grid(readings=False))

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.facts)
        lines = [TITLE, "=" * len(TITLE)]
        for name, value in self.facts:
            lines += textwrap.wrap(f"{name:<{width}}  {value}", WIDTH, subsequent_indent=" " * (width + 2))
        labels = [result.name for _, results in self.sections for result in results]
        first = max(24, *(len(label) for label in labels)) + 2
        tests = [result for _, results in self.sections for result in results if isinstance(result, TestResult)]
        second = max(24, *(len(test.distribution) + 1 for test in tests))
        heading = f"{'Test':<{first}}{'Statistic':>11}  {'Distribution':<{second}}{'p-value':>9}{'Critical':>10}"
        lines += ["", heading, "-" * len(heading)]
        for i, (question, results) in enumerate(self.sections):
            lines += [*([""] if i else []), question]
            for result in results:
                lines += [_line(result, first=first, second=second).rstrip()]
                lines += textwrap.wrap(result.reading, WIDTH, initial_indent="    ", subsequent_indent="    ")
        return "\n".join(lines)

    def _grids(self) -> tuple[Grid, ...]:
        return Grid((TITLE, ""), (self.facts,), "ll"), self._grid(readings=True)

    def _grid(self, *, readings: bool) -> Grid:
        """The table as it is read, with the reasons for what is blank: in the readings, or beneath where those are left out."""
        table = self.table.rename(columns=HEADINGS)[list(HEADINGS.values())]
        if readings:
            return Grid.of(table, index=False)
        results = [result for _, section in self.sections for result in section]
        absent: dict[str, list[str]] = {}
        for result in results:
            if isinstance(result, Unavailable):
                absent.setdefault(result.reason, []).append(result.name)
        notes = [f"Not available: {', '.join(names)} ({reason})." for reason, names in absent.items()]
        plain = [result.name for result in results if isinstance(result, TestResult) and result.p_value is None]
        if plain:
            notes.append(f"Without a p-value: {', '.join(plain)}, whose distributions are not known but for critical values.")
        return Grid.of(table.drop(columns=HEADINGS["reading"]), index=False, notes=tuple(notes))


def _record(result: Diagnostic | ConfidenceSet) -> dict[str, str | float | None]:
    """A result as a row of the table."""
    empty: dict[str, str | float | None] = {"statistic": None, "distribution": "", "p_value": None, "critical_value": None}
    record = {"test": result.name, **empty, "set": "", "reading": result.reading}
    if isinstance(result, TestResult):
        record |= {name: getattr(result, name) for name in empty}
    elif isinstance(result, ConfidenceSet):
        record["set"] = str(result)
    return record


def _line(result: Diagnostic | ConfidenceSet, *, first: int, second: int) -> str:
    """A result as a line of text, without its reading; the widths are of its name and its distribution."""
    name = f"  {result.name:<{first - 2}}"
    if isinstance(result, Unavailable):
        return name
    if isinstance(result, ConfidenceSet):
        return f"{name}  {result}"
    critical = "" if result.critical_value is None else shown(result.critical_value)
    return f"{name}{shown(result.statistic):>11}  {result.distribution:<{second}}{shown_p(result.p_value):>9}{critical:>10}"
