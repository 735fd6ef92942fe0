"""Regression with learned features that ignores the confounder: DFIV's network without its instruments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cfiv.checks import check_number
from cfiv.data import IVData
from cfiv.errors import DivergenceError, TrainingWarning, warn
from cfiv.estimators.estimator import Estimate, StructuralEstimator, warn_of_learned_constant
from cfiv.estimators.fit_members import fit_members
from cfiv.estimators.gradient_training import check_descending, train_members, training_facts
from cfiv.estimators.planned_members import PlannedMember, build_networks, in_all_rows, plan_member
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.standardised import StandardisedData
from cfiv.estimators.units import check_units
from cfiv.learning.deadline import Deadline, check_max_seconds
from cfiv.learning.last_layer import ClosedForm, Proximal
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample, batch_rows
from cfiv.learning.solving import check_last_layer
from cfiv.learning.training import Training
from cfiv.networks.build import NetworkSpec
from cfiv.networks.shared_network import shared_network
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.dfiv_step import PerNetwork
from cfiv.objectives.regression import Features, RegressionFit, RegressionObjective, Role, solve_regression
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.processes import here
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names
from cfiv.terminal import progress_bar


class NetworkRegression(StructuralEstimator):
    """Regression on the features of DFIV without instruments: ``E[Y | T, X] = u' f(psi(T), xi(X))``.

    The last layer is solved on every minibatch,

        u = argmin_u  mean (Y - u' f)^2 + ridge |u|^2 + proximal |u - u_prev|^2,

    and only ``psi`` and ``xi`` take gradient steps. It is the best that prediction can do, and estimates the structural
    function only where the treatment is exogenous: its error beside DFIV's is what ignoring the confounder costs.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing, clusters
        Roles, as in :class:`cfiv.DFIV`, so that the same formula serves every estimator. The instruments do not enter the
        estimate; rows with gaps in them are dropped all the same, so that estimates compare on the same rows.
    treatment_network, covariate_network, structure
        ``psi``, ``xi`` and ``f``, as in :class:`cfiv.DFIV`.
    instrument_network
        Features of ``E[h(T, X) | Z, X]``, which is regressed on instruments and covariates after training, for ``score``.
    proximal, ridge : float
        Penalties of u in training, on the *mean* squared error of a standardised outcome; ``proximal`` rises to its value. The
        ridge of the final u is chosen by held-out loss.
    last_layer : a last layer, optional
        How u is solved on every batch instead, as in :class:`cfiv.DFIV`.
    batch_size : int, "auto" or None
        Rows a step; "auto" is 128, or all where there are fewer; None is full batches.
    steps : int
        Of training.
    learning_rate, weight_decay, standardise
        As in :class:`cfiv.DFIV`; of three rates or decays the second is that of ``instrument_network``.
    holdout : float
        Share of the rows that the gradients do not see, for early stopping and the choice of the ridge; u is refitted on all.
    fits : int
        How many fits, which differ in held-out rows, initial weights and batches, to average.
    device, progress, max_seconds, random_state
        As in :class:`cfiv.DFIV`.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    history_ : DataFrame
        One row a check: ``fit, step, loss, heldout_loss`` (in units of the outcome's variance), ``refit_ridge, kept``.
    fits_ : list of RegressionFit

    Raises
    ------
    ParameterError, DataError, FormulaError
        By ``fit``, with what was got and what to do.
    DivergenceError
        If training diverges before any usable state.

    Warns
    -----
    TrainingWarning
        If training diverged or was interrupted; the best state so far is kept and usable.

    References
    ----------
    Galashov et al., arXiv 2510.04606, for the solved last layer.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.9, seed=0)
    >>> model = NetworkRegression("sales ~ time + emotion + [price ~ fuel]", steps=50, progress=False, random_state=0)
    >>> model.fit(train.frame).dose_response([15.0, 20.0, 25.0]).columns.tolist()
    ['price', 'estimate', 'supported']
    """

    _means_of = ("treatment", "covariates")  # it takes treatments for exogenous
    _SMALLER = "fit fewer rows, or choose a smaller batch_size or smaller networks"

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
        treatment_network: NetworkSpec = None,
        instrument_network: NetworkSpec = None,
        covariate_network: NetworkSpec = None,
        structure: Structure = "product",
        proximal: float = 2.0,
        ridge: float = 1e-3,
        last_layer: ClosedForm | None = None,
        batch_size: int | str | None = "auto",
        steps: int = 500,
        learning_rate: float | PerNetwork | Literal["auto"] = "auto",
        weight_decay: float | PerNetwork = 0.0,
        standardise: bool = True,
        holdout: float = 0.2,
        fits: int = 2,
        device: str = "auto",
        progress: bool = True,
        max_seconds: float | None = None,
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
        self.treatment_network = treatment_network
        self.instrument_network = instrument_network
        self.covariate_network = covariate_network
        self.structure = structure
        self.proximal = proximal
        self.ridge = ridge
        self.last_layer = last_layer
        self.batch_size = batch_size
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.holdout = holdout
        self.fits = fits
        self.device = device
        self.progress = progress
        self.max_seconds = max_seconds
        self.random_state = random_state

    fits_: list[RegressionFit]

    def _check_parameters(self) -> None:
        check_descending(self)
        check_max_seconds(self.max_seconds)
        check_number("proximal", self.proximal, least=0.0)
        check_number("ridge", self.ridge, least=0.0)
        if self.last_layer is not None:
            check_last_layer(self.last_layer)

    def fit(
        self,
        data: Any,
        y: None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int = 100,
    ) -> Self:
        """Estimate the structural function, or continue where a killed fit stopped; as :meth:`cfiv.DFIV.fit`."""
        return self._fit(data, y, lambda: {"runs": SavedRuns.of(self, checkpoint, every)})

    def _estimate(self, data: IVData, *, intercept: bool, runs: SavedRuns | None = None) -> Estimate:
        check_units(data)
        if not intercept:
            warn_of_learned_constant(self)
        problem = StandardisedData.prepare(data, device=resolve_device(self.device), double=False, standardise=self.standardise)
        *generators, last = np.random.default_rng(self.random_state).spawn(self.fits + 1)
        members = [self._plan(problem, number, generator) for number, generator in enumerate(generators)]
        explaining, deadline = self._plan(problem, self.fits, last, explains=True), Deadline.after(self.max_seconds)
        with progress_bar(
            self.steps * (self.fits + 1), description="Network", unit="step", shown=self.progress and here().first
        ) as bar:
            train = partial(self._train, problem.sample, deadline=deadline)
            fitted, interrupted = fit_members(problem, members, train, runs=runs, on_step=bar.update, deadline=deadline)
            self.fits_, cut = [one.cpu() for _, one in fitted], interrupted or deadline.passed()
            explained = self._explain(
                problem.sample, explaining, bar.update, deadline, runs=None if cut else runs, train=not cut
            )
        late = explained.ended == "out of time" or (cut and not interrupted)
        history = [{"fit": member.fit, **record} for member, one in fitted for record in one.history]
        components = tuple(
            problem.component(
                treatment=one.networks[0],
                covariate=one.networks[1] if len(one.networks) > 1 else None,
                structural=one.weights,
                structure=self.structure,
            )
            for one in self.fits_
        )
        return Estimate(
            components,
            problem.reduced_form([_Explained(explained)]),
            {**self._facts(), **({"Training for score": "out of time"} if late else {})},
            pd.DataFrame(history),
            {"ridge": tuple(one.refit_ridge for one in self.fits_)} if self.holdout else {},
            interrupted or explained.ended == "interrupted",
        )

    def _plan(
        self, problem: StandardisedData, number: int, generator: np.random.Generator, *, explains: bool = False
    ) -> PlannedMember:
        """A fit of the outcome, or, after them, of what instruments and covariates explain of the functions fitted."""

        def networks() -> list[nn.Module]:
            if explains:
                return build_networks(problem, instrument=self.instrument_network)
            return build_networks(problem, treatment=self.treatment_network, covariate=self.covariate_network)

        rows, batch = in_all_rows(problem, holdout=self.holdout), partial(batch_rows, self.batch_size)
        return plan_member(problem, number, generator, rows=rows, batch=batch, networks=networks)

    def _train(
        self,
        sample: Sample,
        together: Sequence[PlannedMember],
        *,
        on_step: Callable[[], object],
        file: Callable[..., RunFile | None],
        deadline: Deadline,
        steps: int | None = None,
        explains: bool = False,
    ) -> list[RegressionFit | DivergenceError]:
        """Regressions of a sample's outcome; ``steps`` other than the estimator's where given."""
        roles: tuple[Role, ...] = ("treatment",) if len(together[0].networks) == 1 else ("treatment", "covariates")
        rates_of: tuple[int, ...] = (0, 2)[: len(roles)]
        if explains:
            roles, rates_of = ("instruments",), (1,)
        objective = RegressionObjective(
            sample=sample,
            features=Features(roles, self.structure),
            layer=Proximal(self.proximal, beta=self.ridge) if self.last_layer is None else self.last_layer,
            ridge=float(self.ridge),
            ridges=Training().refit_ridges,
        )
        fitted = train_members(
            self,
            sample,
            together,
            objective,
            rates_of=rates_of,
            on_step=on_step,
            file=file(),
            steps=steps,
            deadline=deadline,
            network=shared_network,
        )
        return [
            one if isinstance(one, DivergenceError) else solve_regression(objective, one, member.split)
            for one, member in zip(fitted, together, strict=True)
        ]

    def _explain(
        self,
        sample: Sample,
        member: PlannedMember,
        on_step: Callable[..., object],
        deadline: Deadline,
        *,
        runs: SavedRuns | None,
        train: bool,
    ) -> RegressionFit:
        """What instruments and covariates explain of the functions fitted."""
        predicted = torch.stack([one.predict(sample.cpu()) for one in self.fits_]).mean(dim=0)
        outcome = predicted.to(sample.outcome)
        explained = replace(sample, outcome=outcome, treatment=outcome)  # in place of images, which would be copied
        file = None if runs is None else runs.file("explained", sample=explained, networks=member.networks)
        train_one = partial(self._train, explained, [member], on_step=lambda: on_step(1), deadline=deadline, explains=True)

        def fit(file: RunFile | None, steps: int | None) -> RegressionFit | DivergenceError:
            with member.drawing():
                return train_one(file=lambda: file, steps=steps)[0]

        try:
            fitted = fit(file, None if train else 0)
        except KeyboardInterrupt:
            warn("the features for score are left untrained: training was interrupted", TrainingWarning)
            fitted = fit(None, 0)
            assert isinstance(fitted, RegressionFit)
            fitted = replace(fitted, ended="interrupted")
        if isinstance(fitted, DivergenceError):
            warn(f"the features for score are left untrained: {fitted}", TrainingWarning)
            fitted = fit(None, 0)
            assert isinstance(fitted, RegressionFit)
        return fitted.cpu()

    def _facts(self) -> dict[str, Any]:
        return {
            **training_facts(self, self.fits_),
            "Penalties": f"proximal {self.proximal:g}, ridge {self.ridge:g}",
            "Confounding": "ignored: the instruments are not used",
        }


@dataclass(frozen=True)
class _Explained:
    """What instruments and covariates explain of the fitted function."""

    fitted: RegressionFit

    def predicted_outcome(self, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
        """``E[h | Z, X]`` in standard units, shape (n, 1)."""
        nothing = instruments.new_zeros(len(instruments), 1)
        rows = Sample(outcome=nothing, treatment=nothing, instruments=instruments, covariates=covariates)
        return self.fitted.predict(rows)
