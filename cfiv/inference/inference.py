"""Inference: what one fit says of how sure it is, for any question about ``h``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from cfiv.arrays import Array
from cfiv.errors import ParameterError
from cfiv.estimators.structural import StructuralFunction
from cfiv.estimators.summary import Summary
from cfiv.inference.estimates import COLUMNS, Averages, Estimates, Law
from cfiv.inference.functionals import Asker, Functionals, any_functional
from cfiv.inference.inference_file import INFERENCE_FILE, inference_to_values, read_inference
from cfiv.inference.linear_in_basis import bases_of
from cfiv.inference.overidentification import Overidentification
from cfiv.inference.seen import Seen
from cfiv.inference.strength import Strength
from cfiv.tables.groups import Groups


@dataclass(frozen=True, eq=False, repr=False)
class Inference:
    """Intervals and bands for ``h``, its effects, averages and derivatives; :func:`cfiv.infer` makes it.

    All estimates are linear functionals ``l' u`` of the coefficients of one basis, with variance ``l' V l``. It holds numbers,
    no data but the up to 2000 rows that the structural function averages over: saved and loaded, it has intervals for another
    grid, effect or average.

    Parameters
    ----------
    function : StructuralFunction
        The estimate: that of the model, or the same in a larger basis (``undersmooth``).
    law : Law
        The joint law of its coefficients, level and multipliers.
    average : Functionals
        Average derivatives over all rows of training.
    seen : Seen
    strength : Strength or None
        Of the instruments; None where the estimator uses none.
    covariance : str
        Which, and by what.
    rows : int
        Of training, with a positive weight.
    notes : tuple of str
        What to know before relying on it.
    averages : Averages or None
        What effects, average derivatives and functionals are of; None where it is ``function``.
    overidentification : Overidentification or None
        Whether instruments contradict one another; None where there are no more of them than the basis needs.
    """

    function: StructuralFunction
    law: Law
    average: Functionals = field(repr=False)
    seen: Seen
    strength: Strength | None
    covariance: str
    rows: int
    notes: tuple[str, ...]
    averages: Averages | None = None
    overidentification: Overidentification | None = None

    def effect(self, *, treatment_from: Any, treatment_to: Any, rows: Any = None, by: Any = None) -> Estimates:
        """``mean_i [h(treatment_to, X_i) - h(treatment_from, X_i)]`` over rows.

        Parameters
        ----------
        treatment_from, treatment_to
            As in :meth:`cfiv.StructuralFunction.effect`: one for all rows, or one for each.
        rows : table or IVData, optional
            By default those that ``dose_response`` averages over. The interval is conditional on them: it holds for the
            average over these very rows, and does not count how far they are from those of a population.
        by : str or labels (n,), optional
            A column of ``rows``, or one label a row: the average is then over the rows of each label. Of ``groups`` and the
            effect of all, ``(groups - all).test()`` tests that groups do not differ.

        Returns
        -------
        Estimates
            One, or one a group, with its label and how many ``rows`` it has.

        Raises
        ------
        ParameterError, DataError
            Where a treatment is not covered, and as in :meth:`predict`.

        Warns
        -----
        MissingRowsWarning
            With the number of rows with gaps, left out of the average where the fit left such rows out.
        """
        encoder = self.function.encoder
        rows = encoder.reference_rows if rows is None else rows
        both = {"treatment_to": treatment_to, "treatment_from": treatment_from}
        asked = encoder.at(rows, both, averaged=True)
        raw = [encoder.treatments_asked(name, value, rows=rows, count=asked.given) for name, value in both.items()]
        groups = None
        if by is not None:
            changed = [f"{name}_{end}" for name in encoder.treatment_names for end in ("from", "to")]
            groups = Groups.of(by, rows, count=asked.given, kept=asked.kept, beside=[*changed, *COLUMNS])
        members = [np.arange(asked.rows)] if groups is None else groups.members
        within = [self.seen.within(table if asked.kept is None or len(table) == 1 else table[asked.kept]) for table in raw]
        found = []
        for part, own in zip(asked.in_groups(members), members, strict=True):
            inside = np.array([bool(seen.all() if len(seen) == 1 else seen[own].all()) for seen in within])
            both_ends = self._average_asker.at_treatments(part, inside)
            found.append(both_ends.one(0) - both_ends.one(1))
        points = pd.DataFrame(index=range(1)) if groups is None else groups.table()
        ends = {
            f"{name}_{end}": table[name].iloc[0] if len(table) == 1 else "by row"
            for name in encoder.treatment_names
            for end, table in (("from", raw[1]), ("to", raw[0]))
        }
        question = "effect" if groups is None else f"effect by {groups.name}"
        found_together = reduce(Functionals.beside, found)
        return self._averaged(question, points.assign(**ends), found_together, outcome=f"effect on {self.function.outcome}")

    def average_derivative(self, rows: Any = None) -> Estimates:
        """``mean_i dh(T_i, X_i) / dt`` over rows, for each treatment that is a number.

        Parameters
        ----------
        rows : table or IVData, optional
            By default all rows of training, unweighted. The interval is conditional on them.

        Returns
        -------
        Estimates
            One a treatment, in the outcome's units by the treatment's.

        Raises
        ------
        ParameterError
            If no treatment is a number.
        DataError
            As in :meth:`predict`.

        Warns
        -----
        MissingRowsWarning
            With the number of rows with gaps, left out of the average where the fit left such rows out.
        """
        if not self.seen.columns:
            raise ParameterError("a derivative needs a treatment that is a number, got categories only: ask for an effect")
        found = self.average if rows is None else self._average_asker.derivatives(self.function.encoder.complete(rows))
        return self._averaged("average derivative", pd.DataFrame({"treatment": list(self.seen.columns)}), found)

    def dose_response(self, grid: Any, rows: Any = None) -> Estimates:
        """``mean_i h(t, X_i)`` for each t of a grid; see :meth:`cfiv.StructuralFunction.dose_response`.

        Parameters
        ----------
        grid : sequence, table or array (m, ...)
        rows : table or IVData, optional
            Rows to average over; the intervals are conditional on them.

        Returns
        -------
        Estimates
            In the grid's order.

        Raises
        ------
        ParameterError, DataError
            Where the grid has other columns or shapes than the treatments of training, and as in :meth:`predict`.

        Warns
        -----
        MissingRowsWarning
            With the number of rows with gaps, left out of the average where the fit left such rows out.
        """
        table, asked = self.function.encoder.grid(grid, rows)
        return self._estimates("dose response", table, self._asker.at_treatments(asked, self.seen.within(table)))

    def predict(self, rows: Any) -> Estimates:
        """``h`` at the treatments and covariates of each row: intervals for the function, not for outcomes.

        Parameters
        ----------
        rows : table or IVData

        Returns
        -------
        Estimates
            One a row.

        Raises
        ------
        DataError
            For missing columns, gaps, infinities, unseen categories, or shapes other than in training.
        """
        return self._estimates("structural function", self.function.encoder.raw(rows), self._asker.at_rows(rows))

    def functional(self, f: Callable[[Callable[[Any], Array]], Any]) -> Estimates:
        """Any other linear functional of ``h``.

        Parameters
        ----------
        f : callable
            Takes ``h``, a function from rows (a table or IVData) to values (n,), and returns a number, or several in an array
            or a Series with labels. It must be linear in ``h``, and is called with each function of the basis.

        Returns
        -------
        Estimates

        Raises
        ------
        ParameterError
            If it is not linear in ``h``, or returns no numbers.

        Examples
        --------
        >>> import cfiv
        >>> from cfiv.datasets import demand
        >>> train, _ = demand.simulate(n=500, seed=0)
        >>> model = cfiv.TwoStageLeastSquares("sales ~ time + [price ~ fuel]").fit(train.frame)
        >>> low = train.frame[train.frame["time"] < 5]
        >>> answer = cfiv.infer(train.frame, model).functional(lambda h: h(low.assign(price=20)).mean() - h(low).mean())
        >>> answer.table.columns.tolist()
        ['functional', 'estimate', 'std_error', 'lower', 'upper', 'supported']
        """
        if not callable(f):
            raise ParameterError(f"a functional is a function of h that returns a number, got {type(f).__name__}")
        asker = self._average_asker
        given, found = any_functional(asker, f, asker.function.predict)
        labels = given.index if isinstance(given, pd.Series) else range(len(found))
        estimates = self._averaged("functional", pd.DataFrame({"functional": list(labels)}), found)
        expected = np.atleast_1d(np.asarray(given, dtype=np.float64))
        rounding = 1e-6 * (np.abs(expected) + estimates.std_errors)
        if (np.abs(estimates.values - expected) > rounding).any():
            raise ParameterError(
                f"the functional is not linear in h: it makes {expected[0]:g} of the estimate, and {estimates.values[0]:g} by "
                "the functions of its basis; only averages, differences and other weighted sums of values of h have intervals"
            )
        return estimates

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an inference file, of numbers like a model file; see :meth:`load`.

        Raises
        ------
        OutputError
            If the place cannot be written to. An existing file is replaced only once the new one is whole.
        """
        INFERENCE_FILE.write(Path(path), inference_to_values(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an inference file.

        Returns
        -------
        Inference
            Whose answers equal those of the one saved, bit for bit on the same machine.

        Raises
        ------
        ModelFileError
            If the file is missing, damaged in any bit, foreign, or from a newer version.
        """
        return cls(**read_inference(path))

    def summary(self) -> Summary:
        """What the answers rest on, as it prints: rows, covariance, instruments, level and notes; a table in a notebook."""
        multipliers = self.law.multipliers
        lines = [
            ("Outcome", self.function.outcome),
            ("Rows", f"{self.rows:,}"),
            ("Basis", f"{self.law.fits[0].size} functions"),
            ("Covariance", self.covariance),
            *([] if self.strength is None else [("Instruments", str(self.strength))]),
            *([] if self.overidentification is None else [("Overidentification", str(self.overidentification))]),
            *((f"Seen {name}", "{:.4g} to {:.4g}".format(*self.seen.span(name))) for name in self.seen.columns),
            ("Level", f"{100 * multipliers.level:g} %, bands from {multipliers.draws:,} draws"),
            *(("Note", note) for note in self.notes),
        ]
        return Summary(f"Inference on {self.function.estimator}", tuple(lines), {})

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.summary().to_html()

    @property
    def _asker(self) -> Asker:
        return Asker(self.function, bases_of(self.function), self.law.fits, self.seen, self.rows)

    @property
    def _average_asker(self) -> Asker:
        if self.averages is None:
            return self._asker
        function, law = self.averages.function, self.averages.law
        return Asker(function, bases_of(function), law.fits, self.seen, self.rows)

    def _averaged(
        self, question: str, points: pd.DataFrame, functionals: Functionals, *, outcome: str | None = None
    ) -> Estimates:
        law = self.law if self.averages is None else self.averages.law
        return self._estimates(question, points, functionals, law=law, outcome=outcome)

    def _estimates(
        self,
        question: str,
        points: pd.DataFrame,
        functionals: Functionals,
        *,
        law: Law | None = None,
        outcome: str | None = None,
    ) -> Estimates:
        ticks = {name: self.seen.quantiles[:, i] for i, name in enumerate(self.seen.columns)}
        return Estimates(question, points, functionals, law or self.law, outcome or self.function.outcome, ticks)
