"""Kernel instrumental variable regression, nonparametric and in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfiv.checks import check_choice, check_number, check_random_state, check_whole
from cfiv.data import Array, IVData
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.components import KernelComponent
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.kernel_bandwidths import (
    Bandwidths,
    bandwidth_records,
    check_bandwidths,
    column_bandwidths,
    resolve_bandwidths,
)
from cfiv.estimators.kernel_inputs import KernelInputs, KernelReducedForm
from cfiv.estimators.kernel_memory import features_that_fit
from cfiv.estimators.kernel_penalties import Penalty, penalty_table, penalty_values, warn_of_ends
from cfiv.estimators.units import check_units
from cfiv.learning.samples import fold_groups, split_rows
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Validation, fit_across_folds, fit_two_samples
from cfiv.numerics.landmarks import KernelFeatures
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


class KernelIV(StructuralEstimator):
    """Kernel instrumental variable regression: ``h`` in the function space of a product of Gaussian kernels.

    With ``x`` the treatment and the covariates, ``z`` the instruments and the covariates, and kernels that are the inner
    products of features ``psi(x)`` and ``phi(z)``, stage 1 learns the conditional mean of ``psi(X)`` given ``Z``, and stage 2
    regresses the outcome on it:

        V = argmin  mean |psi(X) - V' phi(Z)|^2 + ridge1 |V|^2
        h = argmin  mean (Y - <h, V' phi(Z)>)^2 + ridge2 |h|^2.

    Both are closed forms. The rows are cross-fitted: those of a fold are predicted by the stage 1 of all other folds, so that
    stage 2 can use every row and none is predicted by itself. Both penalties are chosen on rows that their stage was not fitted
    to.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing, clusters
        Roles, as in :class:`cfiv.DFIV`; folds, too, hold whole groups of ``clusters``. An IVData of images is taken as flat
        vectors. ``0 +`` in a formula leaves the outcome uncentred.
    bandwidths : mapping, optional
        Bandwidths in the user's units under the keys "treatment", "instruments" and "covariates": one number, or one a column
        of the role. Columns of roles that are not given have their median distance between two rows; an image is one input and
        has one bandwidth.
    ridge1, ridge2 : float, sequence of float or None
        Penalties of V and of h, on the *mean* loss: the paper's lambda and xi. Of a sequence the best is chosen; None is 50
        values from 1e-10 to 1. However many, they cost one factorisation a fold. The outcome is standardised, so that neither
        depends on units.
    landmarks : int, optional
        Rows that functions are sums of kernels at (Nyström), drawn from ``random_state``. None is all of them: exact to
        rounding.
    folds : int
        Folds of the cross-fitting, at least 2.
    split : float, optional
        No folds, but the paper's Algorithm 1: stage 1 on this share of the rows, stage 2 on the others; see :meth:`original`.
    validation : {"treatment", "instruments"}
        The loss that chooses ``ridge2`` on held-out rows: ``(Y - h(T, X))^2`` as in the paper, or ``(Y - E[h | Z, X])^2``, for
        which at least 3 folds are needed.
    random_state : int, Generator or None
        Source of the folds, the landmarks, and the rows that a median of very many is taken of; the same int gives the same
        numbers, bit for bit on one machine.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    penalties_ : DataFrame
        ``stage, penalty, loss, chosen``: each penalty tried and its held-out loss, in stage 2 in units of the outcome's
        variance.
    bandwidths_ : dict
        The bandwidths used, one list a role.

    Raises
    ------
    ParameterError
        For penalties, bandwidths, landmarks, folds or a split out of range.
    DataError
        If all rows are equal in one input, which leaves it without a bandwidth, or there are too few rows for the folds.
    TooLargeError
        If the matrices would not fit in memory, with a number of landmarks that would, or there is not enough for the rows.

    Warns
    -----
    PenaltyRangeWarning
        If the best penalty is the smallest or the largest of several and the loss still falls there.

    Notes
    -----
    Kernel matrices are never made: their Cholesky factors have a few columns, k (some 1,100 for 5,000 rows in three dimensions;
    n where inputs are many or bandwidths small). A fit costs O(n k^2 + folds^2 k^3) and holds 3 n k numbers, then about
    (26 + 5 folds) k^2. Far from all training rows ``h`` goes to the mean outcome. Row weights enter the means of both stages,
    not the median distances.

    ``validation="instruments"`` is free of the confounder, but blind to whatever in ``h`` the instruments do not move: it tends
    to penalties that are too small. The paper's loss leans towards the confounder, but only in choosing among solutions of
    stage 2: with weak instruments and strong confounding its choice is drawn far to what a regression would say. Neither wins
    everywhere: at fresh instruments the second had the higher loss for a confounded sine curve and the lower on the demand
    design, for weak and strong confounding. ``score`` on held-out rows tells which to use.
    :mod:`cfiv.numerics.kernel_two_stage` has the algebra.

    References
    ----------
    Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019: Algorithm 1, and the validation of appendix
    A.5. Cross-fitting and the other validation are ours.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=300, rho=0.5, seed=0)
    >>> model = KernelIV("sales ~ time + emotion + [price ~ fuel]", random_state=0).fit(train.frame)
    >>> model.dose_response([15.0, 20.0, 25.0]).columns.tolist()
    ['price', 'estimate']
    """

    _SMALLER = "use the Nyström version with fewer landmarks, such as landmarks=1000, or fit fewer rows"

    def __init__(
        self,
        formula: str | None = None,
        *,
        outcome: str | None = None,
        treatment: Names | None = None,
        instruments: Names | None = None,
        covariates: Names | None = None,
        weights: str | None = None,
        missing: Missing = "drop",
        clusters: str | None = None,
        bandwidths: Bandwidths | None = None,
        ridge1: Penalty = None,
        ridge2: Penalty = None,
        landmarks: int | None = None,
        folds: int = 5,
        split: float | None = None,
        validation: Validation = "treatment",
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.formula = formula
        self.outcome = outcome
        self.treatment = treatment
        self.instruments = instruments
        self.covariates = covariates
        self.weights = weights
        self.missing = missing
        self.clusters = clusters
        self.bandwidths = bandwidths
        self.ridge1 = ridge1
        self.ridge2 = ridge2
        self.landmarks = landmarks
        self.folds = folds
        self.split = split
        self.validation = validation
        self.random_state = random_state

    penalties_: pd.DataFrame
    bandwidths_: dict[str, list[float]]

    @classmethod
    def original(cls, formula: str | None = None, **overrides: Any) -> Self:
        """Algorithm 1 of Singh et al. 2019 as its authors ran it; any argument may be overridden.

        Stage 1 on one half of the rows, stage 2 on the other; ``ridge1`` by stage 1's loss on the second half, ``ridge2`` by
        ``(Y - h(T, X))^2`` on the first. (They searched each penalty with an optimiser, here it is a grid.)
        """
        return cls(formula, **{"split": 0.5, **overrides})

    def _check_parameters(self) -> None:
        for name in ("ridge1", "ridge2"):
            penalty_values(name, getattr(self, name))
        check_whole("folds", self.folds, least=2)
        split = self.split
        if split is not None:
            check_number("split", split, above=0.0, below=1.0, alternative="or None for cross-fitting")
        check_choice("validation", self.validation, ("treatment", "instruments"))
        if self.validation == "instruments" and (split is not None or self.folds < 3):
            got = f"folds={self.folds}" if split is None else f"split={split:g}"
            raise ParameterError(
                f"validation='instruments' needs rows that neither stage has seen, and {got} leaves none: cross-fit "
                "with folds >= 3, or use validation='treatment'"
            )
        if self.landmarks is not None:
            check_whole("landmarks", self.landmarks, least=1, alternative="or None for all rows")
        check_random_state(self.random_state)
        if self.bandwidths is not None:
            check_bandwidths(self.bandwidths)

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        assert data.names is not None
        check_units(data)
        median_generator, row_generator, landmark_generator = np.random.default_rng(self.random_state).spawn(3)
        inputs = KernelInputs.of(data, centred=intercept)
        self.bandwidths_ = resolve_bandwidths(self.bandwidths or {}, inputs.by_role(), data.names, median_generator)
        parts = self._parts(len(inputs), row_generator, data.clusters)
        landmarks = self._landmark_rows(parts, landmark_generator)
        psi = self._features("treatment", inputs.treatments[landmarks])
        phi = self._features("instruments", inputs.instruments[landmarks])
        stages = self._stages(inputs, parts, phi, psi)
        choices = {"ridge1": stages.stage1, "ridge2": stages.stage2}
        self.penalties_ = penalty_table(choices)
        warn_of_ends(choices)
        facts = {
            "Samples": f"{self.folds} folds" if self.split is None else f"one split at {self.split:g}",
            "Landmarks": "all rows" if self.landmarks is None else int(self.landmarks),
            "Rank of the kernels": f"{len(psi)} (treatment), {len(phi)} (instruments)",
            **{f"Chosen {name}": f"{choice.chosen:.3g}" for name, choice in choices.items()},
            "Held-out stage-1 loss": f"{float(stages.stage1.losses.min()):.4g}",
            "Held-out stage-2 loss": f"{float(stages.stage2.losses.min()):.4g} of the outcome variance",
            "Bandwidths": bandwidth_records(self.bandwidths_, data.names),
        }
        component = KernelComponent(psi.expansion(stages.structural), inputs.outcome_scale)
        reduced_form = KernelReducedForm(phi.expansion(stages.first_stage @ stages.structural), inputs.outcome_scale)
        chosen = {name: (choice.chosen,) for name, choice in choices.items() if len(choice.penalties) > 1}
        return Estimate((component,), reduced_form, facts, pd.DataFrame(), chosen)

    def _parts(self, rows: int, generator: np.random.Generator, clusters: Array | None) -> tuple[Tensor, ...]:
        """The folds, or sample 1 and sample 2."""
        if self.split is not None:
            return split_rows(rows, share=float(self.split), generator=generator, clusters=clusters)
        if clusters is not None:
            return fold_groups(clusters, folds=int(self.folds), generator=generator)
        if rows < self.folds:
            raise DataError(f"{rows} rows are too few for {self.folds} folds: give at least one row a fold, or fewer folds")
        return torch.from_numpy(generator.permutation(rows)).tensor_split(int(self.folds))

    def _landmark_rows(self, parts: Sequence[Tensor], generator: np.random.Generator) -> Tensor:
        """Of sample 1 where there are two, of all rows where there are folds; without ``landmarks`` each of them."""
        candidates = torch.cat(tuple(parts)) if self.split is None else parts[0]
        if self.landmarks is None:
            return candidates
        if self.landmarks > len(candidates):
            raise ParameterError(
                f"landmarks must be at most the {len(candidates)} rows that they are drawn from, got {self.landmarks}: use "
                "fewer, or None for all of them"
            )
        return candidates[torch.from_numpy(generator.choice(len(candidates), int(self.landmarks), replace=False))]

    def _features(self, role: str, landmarks: Tensor) -> KernelFeatures:
        """Features of a role and the covariates."""
        bandwidths = column_bandwidths(self.bandwidths_, role, width=landmarks.shape[1])
        return features_that_fit(
            landmarks=landmarks, bandwidths=bandwidths, role=role, folds=self.folds if self.split is None else None
        )

    def _stages(
        self, inputs: KernelInputs, parts: Sequence[Tensor], phi: KernelFeatures, psi: KernelFeatures
    ) -> KernelTwoStage:
        penalties = {
            f"stage{stage}_penalties": torch.tensor(penalty_values(name, getattr(self, name)), dtype=torch.float64)
            for stage, name in ((1, "ridge1"), (2, "ridge2"))
        }
        if self.split is not None:
            first, second = parts
            sample1 = inputs.moments(first, of=first, phi=phi, psi=psi, structural=True)
            sample2 = inputs.moments(second, of=second, phi=phi, psi=psi, structural=False)
            return fit_two_samples(sample1=sample1, sample2=sample2, **penalties)
        everything, structural = torch.cat(tuple(parts)), self.validation == "treatment"
        folds = [inputs.moments(part, of=everything, phi=phi, psi=psi, structural=structural) for part in parts]
        return fit_across_folds(folds, **penalties)
