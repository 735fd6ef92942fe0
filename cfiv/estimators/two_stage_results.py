"""What came of two-stage least squares or LIML, and linearmodels' tests, which it computes on orthonormal columns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfiv.data import Array
from cfiv.errors import DataError, ParameterError, SingularError, nearest
from cfiv.estimators.first_stage import COUNTS_ROWS, FirstStage
from cfiv.estimators.linear_blocks import LinearBlocks
from cfiv.estimators.linear_columns import ProblemColumns
from cfiv.estimators.linear_results import LinearResults
from cfiv.estimators.wald import WaldTest

if TYPE_CHECKING:
    from cfiv.estimators.fixed_effects import Absorbed
    from cfiv.estimators.linear_regression import Covariance

OVERIDENTIFIED = "the instruments are valid: E[Z' e] = 0 at one coefficient vector"
EXOGENOUS = "the treatments are exogenous"

#: Share of the rows that exogenous columns may take before a statistic that counts all rows says so.
LARGE_SHARE = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class TwoStageResults(LinearResults):
    """Two-stage least squares or LIML, with linearmodels' names: coefficients, first stage, and tests of what is assumed.

    Parameters
    ----------
    columns : ProblemColumns or LinearBlocks
        Those of rows on disk come into memory once what needs them all is asked for: the first stage, and tests of instruments
        and of exogeneity.
    treatment_names, instrument_names : tuple of str
    treatment_columns : array (n, k)
        In the user's units.
    fuller : float or None
        Fuller's constant; None for two-stage least squares.
    covariance : Covariance
    clusters : array (n,), (n, 2) or None
    absorbed : Absorbed or None
    excess : float
        ``kappa - 1`` of the fit, 0 for two-stage least squares.

    Notes
    -----
    The tests are of the residuals of the fit, except those that are of LIML whatever the fit. They do not see in which basis
    columns are given, so they are computed in a well-conditioned one. Tests of over-identification raise a DataError where
    there are as many instruments as treatments; with absorbed fixed effects all do, since :func:`cfiv.diagnose` has them.
    """

    columns: ProblemColumns | LinearBlocks = field(repr=False)
    treatment_names: tuple[str, ...]
    instrument_names: tuple[str, ...]
    treatment_columns: Array = field(repr=False)
    fuller: float | None
    covariance: Covariance = field(repr=False)
    clusters: Array | None = field(repr=False)
    absorbed: Absorbed | None = field(repr=False)
    excess: float

    @property
    def method(self) -> str:
        """How the coefficients were estimated."""
        if self.fuller is None:
            return "two-stage least squares"
        return f"LIML{f', Fuller {self.fuller:g}' if self.fuller else ''}, kappa {self.kappa:.6g}"

    @property
    def kappa(self) -> float:
        """Of the k-class estimator: 1 for two-stage least squares."""
        return 1.0 + self.excess

    @cached_property
    def first_stage(self) -> FirstStage:
        """Regressions of each treatment on exogenous columns and instruments."""
        columns = self._in_memory
        return FirstStage(
            columns.exogenous,
            columns.treatments,
            columns.instruments,
            self.treatment_names,
            self.fitted.coefficients.names[: len(columns.exogenous.names)],
            self.instrument_names,
            self.treatment_columns,
            replace(self.covariance, bandwidth=self.cov_config.get("bandwidth")),
            self.clusters,
            self.absorbed,
        )

    @property
    def sargan(self) -> WaldTest:
        """Sargan's test of over-identification, ``n |P e|^2 / |e|^2``, chi2(q - k), homoskedastic.

        It counts all n rows, also those that indicators of many categories take up; :attr:`basmann` does not.
        """
        return self._overidentification("sargan", "Sargan's test of over-identification", counts_rows=True)

    @property
    def basmann(self) -> WaldTest:
        """Basmann's test of over-identification: ``s (n - p - q) / (n - s)`` of Sargan's ``s``, chi2(q - k), homoskedastic."""
        return self._overidentification("basmann", "Basmann's test of over-identification")

    @property
    def basmann_f(self) -> WaldTest:
        """Basmann's F test of over-identification, F(q - k, n - p - q), from the kappa of LIML."""
        return self._overidentification("basmann_f", "Basmann's F test of over-identification")

    @property
    def anderson_rubin(self) -> WaldTest:
        """Anderson and Rubin's likelihood-ratio test of over-identification, ``n log(kappa)`` of LIML, chi2(q - k)."""
        return self._overidentification("anderson_rubin", "Anderson-Rubin test of over-identification", counts_rows=True)

    @property
    def wooldridge_overid(self) -> WaldTest:
        """Wooldridge's score test of over-identification, robust to heteroskedasticity, chi2(q - k)."""
        return self._overidentification("wooldridge_overid", "Wooldridge's score test of over-identification")

    def durbin(self, variables: str | list[str] | None = None) -> WaldTest:
        """Durbin's test that treatments are exogenous, chi2 of their number, homoskedastic.

        It counts all n rows, also those that indicators of many categories take up; :meth:`wu_hausman` does not.

        Parameters
        ----------
        variables : str or list of str, optional
            Treatments to test; all by default.
        """
        return self._exogeneity("durbin", "Durbin's test of exogeneity", self._tested(variables), counts_rows=True)

    def wu_hausman(self, variables: str | list[str] | None = None) -> WaldTest:
        """Wu and Hausman's test that treatments are exogenous, F(their number, n - p - k - their number), homoskedastic."""
        return self._exogeneity("wu_hausman", "Wu-Hausman test of exogeneity", self._tested(variables))

    @property
    def wooldridge_score(self) -> WaldTest:
        """Wooldridge's score test that the treatments are exogenous, robust to heteroskedasticity, chi2(k)."""
        return self._exogeneity("wooldridge_score", "Wooldridge's score test of exogeneity")

    @property
    def wooldridge_regression(self) -> WaldTest:
        """Wooldridge's regression test that the treatments are exogenous, under the covariance of the fit, chi2(k)."""
        return self._exogeneity("wooldridge_regression", "Wooldridge's regression test of exogeneity")

    def _overidentification(self, attribute: str, name: str, *, counts_rows: bool = False) -> WaldTest:
        q, k = len(self.instrument_names), len(self.treatment_names)
        if q == k:
            raise DataError(
                f"{name} needs more instruments than treatments, got {q} for {k}: there are no restrictions to test"
            )
        return self._test(getattr(self._orthonormal, attribute), name, OVERIDENTIFIED, counts_rows)

    def _exogeneity(self, attribute: str, name: str, tested: Any = None, *, counts_rows: bool = False) -> WaldTest:
        regression = self._orthonormal
        try:
            found = getattr(regression, attribute)
            return self._test(found(tested) if callable(found) else found, name, EXOGENOUS, counts_rows)
        except np.linalg.LinAlgError as error:
            raise SingularError(f"{name}: the covariance is singular ({error}); use covariance='unadjusted'") from error
        except ValueError as error:  # linearmodels judges rank once more, of the treatments beside all instruments
            raise SingularError(
                f"{name}: what the instruments leave of one treatment is a combination of what they leave of others, or "
                "nothing, so that not all of them can be tested: name those to test"
            ) from error

    def _test(self, found: Any, name: str, null: str, counts_rows: bool) -> WaldTest:
        taken, note = self.df_model - len(self.treatment_names), ""
        if counts_rows and taken > LARGE_SHARE * self.nobs:
            factor = 1 - taken / self.nobs
            note = f"it counts all {self.nobs} rows, though exogenous columns take up {taken}: times {factor:.2f} it would not"
        return WaldTest(
            stat=float(np.squeeze(found.stat)), df=int(found.df), df_denom=found.df_denom, null=null, name=name, note=note
        )

    def _tested(self, variables: Any) -> list[str] | None:
        if variables is None:
            return None
        names = [variables] if isinstance(variables, str) else list(variables)
        for name in names:
            if name not in self.treatment_names:
                raise ParameterError(f"there is no treatment {name!r}: {nearest(str(name), self.treatment_names)}")
        return names

    @cached_property
    def _in_memory(self) -> ProblemColumns:
        return self.columns if isinstance(self.columns, ProblemColumns) else self.columns.in_memory()

    @cached_property
    def _orthonormal(self) -> Any:
        """linearmodels' fit of the same problem, its columns partialled out, orthonormal or of length one, times root n."""
        from linearmodels.iv import IVLIML

        if self.absorbed is not None:
            raise DataError(f"linearmodels' test {COUNTS_ROWS}")
        p, root, columns = len(self._in_memory.exogenous.names), self.fitted.root_weights, self._in_memory
        unit = np.sqrt(self.nobs) / root[:, None]
        treatments = columns.treatments.basis[:, p:] @ columns.treatments.triangle[p:, p:]
        parts = (
            (columns.treatments.basis[:, :p], self.fitted.coefficients.names[:p]),
            (treatments / np.linalg.norm(treatments, axis=0), self.treatment_names),
            (columns.instruments.basis[:, p:], [f"instrument {i}" for i in range(len(self.instrument_names))]),
        )
        frames = [pd.DataFrame(unit * columns, columns=list(names)) if len(names) else None for columns, names in parts]
        outcome = self.fitted.outcome / np.sqrt(np.mean(np.square(self._weighted(self.fitted.outcome))))
        model = IVLIML(
            pd.Series(outcome, name="outcome"), *frames, weights=pd.Series(root**2, name="weights"), kappa=self.kappa
        )
        return model.fit(cov_type=self.cov_type, **self.cov_config)
