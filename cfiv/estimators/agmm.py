"""AGMM: a structural function against a critic of its moments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
from torch import nn

from cfiv.checks import check_number, check_whole
from cfiv.data import IVData
from cfiv.errors import DivergenceError
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.gradient_training import TrainedFunction, check_descending, estimate_by_gradients, train_members
from cfiv.estimators.planned_members import PlannedMember, build_networks
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.standardised import StandardisedData
from cfiv.learning.run_file import RunFile
from cfiv.networks.build import NetworkSpec
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.adversarial import CriticObjective, Explained
from cfiv.objectives.dfiv_step import PerNetwork
from cfiv.objectives.structural_networks import structural_layer
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


class AGMM(StructuralEstimator):
    """Adversarial generalised method of moments: ``h(t, x) = u' f(psi(t), xi(x))`` against a critic of its moments.

        min_h max_f  mean 2 f(Z, X) (Y - h(T, X)) - f(Z, X)^2 - critic_ridge |w|^2,        f = w' [phi(Z, X), 1]

    ``w`` is solved on every batch: it is the regression of the residual on the critic's features. These take gradient steps to
    explain what is left of the outcome, while ``psi``, ``xi`` and ``u`` take theirs so that nothing they explain is left. The
    regression is solved on either half of a batch, and ``h`` answers in each half to the critic of the other: what a regression
    explains of the very rows that it is solved on is noise and confounder as well.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing, clusters
        Roles, as in :class:`cfiv.DFIV`.
    treatment_network, covariate_network, structure
        ``psi``, ``xi`` and ``f``, as in :class:`cfiv.DFIV`, so that estimators differ in how they learn and not in what.
    instrument_network
        ``phi``, the critic's features.
    critic_ridge : float
        Penalty of ``w`` on the *mean* squared residual of a standardised outcome.
    batch_size : int, "auto" or None
        Rows a step, at least 2; "auto" is 512, or all where there are fewer; None is full batches.
    steps : int
        Of training; each is one of both players.
    learning_rate, weight_decay, standardise
        As in :class:`cfiv.DFIV`; the second of three rates or decays is that of the critic.
    holdout : float
        Share of the rows that the gradients do not see. The state is kept that early stopping chooses by
        ``(Y - E[h | Z, X])^2`` on them, with the conditional mean as the critic's features explain it.
    fits : int
        How many fits, which differ in held-out rows, initial weights and batches, to average.
    device, progress, random_state
        As in :class:`cfiv.DFIV`.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    history_ : DataFrame
        One row a check: ``fit, step, loss, heldout_loss, kept``; ``loss`` is the value of the game.

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
    Dikkala, Lewis, Mackey, Syrgkanis, "Minimax Estimation of Conditional Moment Models", NeurIPS 2020. The solved last layer of
    the critic, the networks, the averaging of fits and the choice of the state are ours.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.5, seed=0)
    >>> model = AGMM("sales ~ time + emotion + [price ~ fuel]", steps=50, progress=False, random_state=0)
    >>> model.fit(train.frame).dose_response([15.0, 20.0, 25.0]).columns.tolist()
    ['price', 'estimate', 'supported']
    """

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
        critic_ridge: float = 1e-2,
        batch_size: int | str | None = "auto",
        steps: int = 500,
        learning_rate: float | PerNetwork | Literal["auto"] = "auto",
        weight_decay: float | PerNetwork = 0.0,
        standardise: bool = True,
        holdout: float = 0.2,
        fits: int = 2,
        device: str = "auto",
        progress: bool = True,
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
        self.critic_ridge = critic_ridge
        self.batch_size = batch_size
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.holdout = holdout
        self.fits = fits
        self.device = device
        self.progress = progress
        self.random_state = random_state

    def _check_parameters(self) -> None:
        check_descending(self)
        check_number("critic_ridge", self.critic_ridge, above=0.0)
        if self.batch_size is not None and self.batch_size != "auto":
            check_whole("batch_size", self.batch_size, least=2, alternative="'auto', or None for full batches")

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
        facts = {"Critic": f"solved on halves of batches, ridge {self.critic_ridge:g}"}
        return estimate_by_gradients(self, data, intercept=intercept, runs=runs, stages=1, auto_batch=512, facts=facts)

    def _networks(self, problem: StandardisedData) -> list[nn.Module]:
        """``[phi, psi, xi, u]``."""
        structural = build_networks(problem, treatment=self.treatment_network, covariate=self.covariate_network)
        layer = structural_layer(structural, problem.sample, structure=self.structure)
        return [*build_networks(problem, instrument=self.instrument_network), *structural, layer]

    def _train(
        self,
        problem: StandardisedData,
        together: Sequence[PlannedMember],
        *,
        on_step: Callable[[], object],
        file: Callable[..., RunFile | None],
    ) -> list[TrainedFunction | DivergenceError]:
        sample, ridge = problem.sample, float(self.critic_ridge)
        rates_of = (1, 0, 2, 0) if sample.covariates is not None else (1, 0, 0)
        objective = CriticObjective(sample, ridge, self.structure)
        fitted = train_members(self, sample, together, objective, rates_of=rates_of, on_step=on_step, file=file())
        trained: list[TrainedFunction | DivergenceError] = []
        for member, one in zip(together, fitted, strict=True):
            if isinstance(one, DivergenceError):
                trained.append(one)
                continue
            rows = sample.rows(member.split.sample2)
            explained = Explained.of(one.networks, rows, ridge=ridge, structure=self.structure)
            kept = one.cpu()
            trained.append(TrainedFunction(kept.networks[1:], explained.cpu(), kept.heldout_loss, kept.history, kept.ended))
        return trained
