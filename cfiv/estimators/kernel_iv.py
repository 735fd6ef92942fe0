"""Kernel instrumental variable regression, nonparametric and in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfiv.checks import check_choice, check_flag, check_number, check_random_state, check_whole
from cfiv.data import Array, IVData
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.closed_form_trust import closed_form_trust
from cfiv.estimators.components import KernelComponent
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.kernel_bandwidths import (
    Bandwidths,
    bandwidth_records,
    check_bandwidths,
    found_bandwidths,
    resolve_bandwidths,
)
from cfiv.estimators.kernel_inputs import KernelInputs, KernelReducedForm
from cfiv.estimators.kernel_penalties import Penalty, penalty_table, penalty_values, warn_of_ends
from cfiv.estimators.kernel_plan import KernelPlan, automatic_landmarks
from cfiv.estimators.nesting import LearnedFunction
from cfiv.estimators.units import check_units
from cfiv.learning.samples import fold_groups, split_rows
from cfiv.numerics.kernel_two_stage import KernelTwoStage, Validation
from cfiv.numerics.landmarks import Features, LinedFeatures
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


class KernelIV(StructuralEstimator):
    """Kernel instrumental variable regression: ``h`` is a line and a curve in the space of a product of Gaussian kernels.

    With ``x`` the treatment and the covariates, ``z`` the instruments and the covariates, and kernels that are the inner
    products of features ``psi(x)`` and ``phi(z)``, stage 1 learns the conditional mean of ``psi(X)`` given ``Z``, and stage 2
    regresses the outcome on it:

        V = argmin  mean |psi(X) - V' phi(Z)|^2 + ridge1 |V|^2
        h = argmin  mean (Y - <h, V' phi(Z)>)^2 + ridge2 |h|^2.

    Both are closed forms. Beside the features, ``psi`` and ``phi`` have the columns themselves, which are (almost) not
    penalised: a large ``ridge2`` leaves two-stage least squares. The rows are cross-fitted: those of a fold are predicted by
    the stage 1 of all other folds, so that stage 2 can use every row and no curve is predicted by itself. Both penalties, and
    whether there is a curve at all, are chosen on rows that their stage was not fitted to.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing, clusters
        Roles, as in :class:`cfiv.DFIV`; folds, too, hold whole groups of ``clusters``. An IVData of images is taken as flat
        vectors. ``0 +`` in a formula leaves the outcome uncentred, and the line without a constant.
    linear : bool
        Whether there is a line beside the curve. With a split and for images there is none.
    bandwidths : mapping, "median" or None
        None finds one a column: small where a function turns, large where it is straight or does not care, so that columns that
        do not matter fade (:mod:`cfiv.numerics.relevance`), and then one factor for those of h by the held-out loss. With more
        than three columns of treatments and covariates it starts from each column by itself, too. "median", and always for
        images: each column's median distance between two rows. A mapping gives them in the user's units under the keys
        "treatment", "instruments", "covariates" and "first_stage_covariates" (of stage 1; left out, they are those of
        "covariates"): one number, or one a column of the role; other roles have their median distances. An image is one input
        and has one bandwidth.
    ridge1, ridge2 : float, sequence of float or None
        Penalties of V and of h, on the *mean* loss: the paper's lambda and xi. Of a sequence the best is chosen; None is 50
        values from 1e-10 to 1 and, for ``ridge2`` with a line, the line alone, unless a curve is better by more than chance.
        However many, they cost one factorisation a fold. The outcome is standardised, so that neither depends on units.
    landmarks : int, "auto" or None
        Rows that functions are sums of kernels at (Nyström), drawn from ``random_state``. "auto" is all of up to 500 rows, then
        500, or 8 times the root of the rows if that is more, and at most 1200. None is all of them: exact to rounding.
    folds : int
        Folds of the cross-fitting, at least 2.
    split : float, optional
        No folds and no line, but the paper's Algorithm 1: stage 1 on this share of the rows, stage 2 on the others; see
        :meth:`original`.
    validation : {"control", "treatment", "instruments"}, optional
        The loss that chooses ``ridge2`` on held-out rows: ``(Y - h(T, X) - rho' v)^2`` at the best rho, v being what stage 1
        leaves of the treatments and of their normal scores; ``(Y - h(T, X))^2`` as in the paper; or ``(Y - E[h | Z, X])^2``,
        for which at least 3 folds are needed. None is "control", and "treatment" with a split and for images.
    random_state : int, Generator or None
        Source of the folds, the landmarks, and the rows that bandwidths are found on; the same int gives the same numbers, bit
        for bit on one machine.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    penalties_ : DataFrame
        ``stage, penalty, loss, chosen``: each penalty tried and its held-out loss, in stage 2 in units of the outcome's
        variance.
    bandwidths_ : dict
        The bandwidths used, one list a role.
    trust_ : Trust
        What the fit knows of its worth, as of :class:`cfiv.DFIV`: of images nothing, with a ``split`` no held-out losses.

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
    WorthlessFitWarning
        If ``trust_`` has reasons why the estimate should not be believed.

    Notes
    -----
    Where treatments and covariates have more than three columns, the features psi of the curve are their departures from the
    line, and stage 1 predicts them by the columns and phi, or by phi alone if that is better on held-out rows.

    Kernel matrices are never made: their Cholesky factors have a few columns, k, at most the landmarks. A fit costs
    O(n k^2 + folds^2 k^3) and holds 3 n k numbers, then about (26 + 5 folds) k^2. Far from all training rows ``h`` goes to its
    line, or without one to the mean outcome. Row weights enter the means of both stages, not the median distances.

    The three losses: "treatment" sees all of h, but leans towards the confounder. With weak instruments and strong confounding
    it is drawn far to what a regression would say, or to no effect. "instruments" does not, but is blind to whatever in ``h``
    the instruments do not move: it tends to penalties that are far too small. "control" is neither, as far as the error is
    linear in v. That assumption chooses among solutions of stage 2 and enters nothing else. ``score`` on held-out rows compares
    them.
    :mod:`cfiv.numerics.kernel_cross_fitting` has the algebra.

    References
    ----------
    Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019: Algorithm 1, and the validation of appendix
    A.5. The line, the found bandwidths, cross-fitting and the other validations are ours.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=300, rho=0.5, seed=0)
    >>> model = KernelIV("sales ~ time + emotion + [price ~ fuel]", random_state=0).fit(train.frame)
    >>> model.dose_response([15.0, 20.0, 25.0]).columns.tolist()
    ['price', 'estimate', 'supported']
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
        linear: bool = True,
        bandwidths: Bandwidths | None = None,
        ridge1: Penalty = None,
        ridge2: Penalty = None,
        landmarks: int | Literal["auto"] | None = "auto",
        folds: int = 5,
        split: float | None = None,
        validation: Validation | None = None,
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
        self.linear = linear
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
        ``(Y - h(T, X))^2`` on the first; no line, every row of the first half a landmark, and median distances for bandwidths.
        (They searched each penalty with an optimiser, here it is a grid.)
        """
        paper = {"linear": False, "bandwidths": "median", "landmarks": None, "split": 0.5, "validation": "treatment"}
        return cls(formula, **{**paper, **overrides})

    def _check_parameters(self) -> None:
        for name in ("ridge1", "ridge2"):
            penalty_values(name, getattr(self, name))
        check_whole("folds", self.folds, least=2)
        split = self.split
        if split is not None:
            check_number("split", split, above=0.0, below=1.0, alternative="or None for cross-fitting")
        check_flag("linear", self.linear)
        if self.validation is not None:
            check_choice("validation", self.validation, ("control", "treatment", "instruments"))
        unseen = self.validation == "control" and split is not None
        if unseen or (self.validation == "instruments" and (split is not None or self.folds < 3)):
            got = f"folds={self.folds}" if split is None else f"split={split:g}"
            raise ParameterError(
                f"validation={self.validation!r} needs rows that neither stage has seen, and {got} leaves none: cross-fit "
                "with folds >= 3, or use validation='treatment'"
            )
        if self.landmarks is not None and self.landmarks != "auto":
            check_whole("landmarks", self.landmarks, least=1, alternative="'auto', or None for all rows")
        check_random_state(self.random_state)
        if self.bandwidths is not None:
            check_bandwidths(self.bandwidths)

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        assert data.names is not None
        check_units(data)
        median_generator, row_generator, landmark_generator = np.random.default_rng(self.random_state).spawn(3)
        inputs = KernelInputs.of(data, centred=intercept)
        given = self.bandwidths if isinstance(self.bandwidths, Mapping) else {}
        bandwidths = resolve_bandwidths(given, inputs.by_role(), data.names, median_generator)
        searched = self.bandwidths is None and not inputs.image
        if searched:
            bandwidths = found_bandwidths(inputs, bandwidths, median_generator)
        plan = self._plan(inputs, data.clusters, row_generator, landmark_generator)
        families = plan.families
        if searched:
            bandwidths, families = plan.widened(bandwidths)
        self.bandwidths_ = bandwidths
        psi, phi = (plan.features(role, bandwidths) for role in ("treatment", "instruments"))
        return self._answer(data, plan, phi, psi, plan.stages(phi, psi, families))

    def _answer(self, data: IVData, plan: KernelPlan, phi: Features, psi: Features, stages: KernelTwoStage) -> Estimate:
        assert data.names is not None
        inputs = plan.inputs
        choices = {"ridge1": stages.stage1, "ridge2": stages.stage2}
        self.penalties_ = penalty_table(choices)
        warn_of_ends(choices, lined=isinstance(psi, LinedFeatures))
        chosen = {name: choice.chosen for name, choice in choices.items()}
        if stages.family == "line":
            chosen["ridge2"] = math.inf
        facts = {
            "Answer": f"a {stages.family}",
            "Samples": f"{self.folds} folds" if self.split is None else f"one split at {self.split:g}",
            "Landmarks": "all rows" if plan.landmarks is None else plan.landmarks,
            "Rank of the kernels": f"{len(psi)} (treatment), {len(phi)} (instruments)",
            **{f"Chosen {name}": f"{value:.3g}" for name, value in chosen.items()},
            "Held-out stage-1 loss": f"{float(stages.stage1.losses.min()):.4g}",
            "Held-out stage-2 loss": f"{float(stages.stage2.losses.min()):.4g} of the outcome variance",
            "Bandwidths": bandwidth_records(self.bandwidths_, data.names),
        }
        component, *components = (
            KernelComponent(psi.expansion(u), inputs.outcome_scale) for u in (stages.structural, *stages.without)
        )
        reduced_form, *reduced_forms = (
            KernelReducedForm(phi.expansion(weights), inputs.outcome_scale)
            for weights in (stages.first_stage @ stages.structural, *stages.unseen)
        )
        unseen = [
            LearnedFunction(h, predict, rows.numpy())
            for h, predict, rows in zip(components, reduced_forms, plan.parts, strict=False)
        ]
        trust = closed_form_trust(data, component, is_line=stages.family == "line", unseen=unseen)
        searched = {name: (chosen[name],) for name, choice in choices.items() if len(choice.penalties) > 1}
        return Estimate((component,), reduced_form, facts, pd.DataFrame(), searched, trust=trust)

    def _plan(
        self,
        inputs: KernelInputs,
        clusters: Array | None,
        row_generator: np.random.Generator,
        landmark_generator: np.random.Generator,
    ) -> KernelPlan:
        parts = self._parts(len(inputs), row_generator, clusters)
        candidates = torch.cat(tuple(parts)) if self.split is None else parts[0]
        landmarks = self._landmarks(len(candidates))
        if landmarks is not None:
            candidates = candidates[torch.from_numpy(landmark_generator.choice(len(candidates), landmarks, replace=False))]
        return KernelPlan(
            inputs=inputs,
            parts=parts,
            landmark_rows=candidates,
            landmarks=landmarks,
            folds=None if self.split is not None else int(self.folds),
            lined=self.linear and self.split is None and not inputs.image,
            penalties={
                f"stage{stage}_penalties": torch.tensor(penalty_values(name, getattr(self, name)), dtype=torch.float64)
                for stage, name in ((1, "ridge1"), (2, "ridge2"))
            },
            validation=self.validation or ("treatment" if self.split is not None or inputs.image else "control"),
            fallback=self.ridge2 is None,
        )

    def _parts(self, rows: int, generator: np.random.Generator, clusters: Array | None) -> tuple[Tensor, ...]:
        """The folds, or sample 1 and sample 2."""
        if self.split is not None:
            return split_rows(rows, share=float(self.split), generator=generator, clusters=clusters)
        if clusters is not None:
            return fold_groups(clusters, folds=int(self.folds), generator=generator)
        if rows < self.folds:
            raise DataError(f"{rows} rows are too few for {self.folds} folds: give at least one row a fold, or fewer folds")
        return torch.from_numpy(generator.permutation(rows)).tensor_split(int(self.folds))

    def _landmarks(self, candidates: int) -> int | None:
        """How many of the rows that they are drawn from; None is all."""
        if self.landmarks == "auto":
            enough = automatic_landmarks(candidates)
            return enough if enough < candidates else None
        if self.landmarks is None:
            return None
        if self.landmarks > candidates:
            raise ParameterError(
                f"landmarks must be at most the {candidates} rows that they are drawn from, got {self.landmarks}: use "
                "fewer, or None for all of them"
            )
        return int(self.landmarks)
