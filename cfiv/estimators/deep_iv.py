"""DeepIV: a density of the treatment, and a network that explains the outcome through draws from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.checks import check_whole
from cfiv.data import IVData
from cfiv.errors import DataError, DivergenceError
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.gradient_training import TrainedFunction, check_descending, estimate_by_gradients, train_members
from cfiv.estimators.planned_members import PlannedMember, build_networks
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.standardised import StandardisedData
from cfiv.learning.gradient_steps import GradientFit, Objective
from cfiv.learning.run_file import RunFile
from cfiv.networks.build import NetworkSpec
from cfiv.networks.feature_maps import evaluate
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.mixture_density import mixture_width
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.deep_iv import DensityObjective, SampledObjective, conditional_mean, mixture_parameters
from cfiv.objectives.dfiv_step import PerNetwork
from cfiv.objectives.structural_networks import structural_layer
from cfiv.runtime.module_state import cast
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


class DeepIV(StructuralEstimator):
    """Deep instrumental variables: ``h(t, x) = u' f(psi(t), xi(x))``, by a density of the treatment.

    Stage 1 fits a mixture of normal distributions ``p(t | Z, X)``, whose parameters are ``V' [phi(Z, X), 1]``, by maximum
    likelihood. Stage 2 minimises ``mean (Y - E[h(T, X) | Z, X])^2``, with the conditional mean over that density: each gradient
    is that of

        mean (Y - mean_a h(t_a, X)) (Y - mean_b h(t_b, X))

    over two independent sets of ``draws`` from it, which is unbiased. All layers take gradient steps; none is solved.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing, clusters
        Roles, as in :class:`cfiv.DFIV`. Treatments are columns: of images no density is modelled, and they are refused.
    treatment_network, covariate_network, structure
        ``psi``, ``xi`` and ``f``, as in :class:`cfiv.DFIV`, so that estimators differ in how they learn and not in what.
    instrument_network
        ``phi``, as in :class:`cfiv.DFIV`.
    components : int
        Normal distributions in a mixture; within one the columns of the treatment are independent.
    draws : int
        In each of the two sets, for every row of a batch.
    batch_size : int, "auto" or None
        Rows a step; "auto" is 128, or all where there are fewer; None is full batches.
    steps : int
        Of each of the two stages.
    learning_rate, weight_decay, standardise
        As in :class:`cfiv.DFIV`; the second of three rates or decays is that of stage 1.
    holdout : float
        Share of the rows that the gradients do not see. Of either stage the state is kept that early stopping chooses by its
        loss on them: minus the log density, and the squared error of stage 2.
    fits : int
        How many fits, which differ in held-out rows, initial weights and batches, to average.
    device, progress, random_state
        As in :class:`cfiv.DFIV`.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    history_ : DataFrame
        One row a check: ``fit, stage, step, loss, heldout_loss, kept``.

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
    Hartford, Lewis, Leyton-Brown, Taddy, "Deep IV: A Flexible Approach for Counterfactual Prediction", ICML 2017. The networks,
    the averaging of fits and the choice of the state are ours.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.5, seed=0)
    >>> model = DeepIV("sales ~ time + emotion + [price ~ fuel]", steps=50, progress=False, random_state=0)
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
        components: int = 10,
        draws: int = 4,
        batch_size: int | str | None = "auto",
        steps: int = 1000,
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
        self.components = components
        self.draws = draws
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
        check_whole("components", self.components, least=1)
        check_whole("draws", self.draws, least=1)

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
        if data.treatment.ndim > 2:
            raise DataError(
                f"DeepIV models the density of treatment columns, got arrays of shape {data.treatment.shape[1:]}: use DFIV or "
                "AGMM, which predict features of them"
            )
        facts = {"Density": f"mixture of {self.components} normal distributions", "Draws": f"twice {self.draws} a row and step"}
        return estimate_by_gradients(self, data, intercept=intercept, runs=runs, stages=2, auto_batch=128, facts=facts)

    def _networks(self, problem: StandardisedData) -> list[nn.Module]:
        """``[phi, V, psi, xi, u]``."""
        sample = problem.sample
        (phi,) = build_networks(problem, instrument=self.instrument_network)
        cast(phi, sample.outcome.dtype, device=problem.device)
        features = with_intercept(evaluate(phi, sample.instruments[:1])).shape[1]
        layer = nn.Linear(features, mixture_width(self.components, columns=sample.treatment.shape[1]), bias=False)
        structural = build_networks(problem, treatment=self.treatment_network, covariate=self.covariate_network)
        return [phi, layer, *structural, structural_layer(structural, sample, structure=self.structure)]

    def _train(
        self,
        problem: StandardisedData,
        together: Sequence[PlannedMember],
        *,
        on_step: Callable[[], object],
        file: Callable[..., RunFile | None],
    ) -> list[TrainedFunction | DivergenceError]:
        sample = problem.sample

        def stage(
            number: int, there: Sequence[PlannedMember], objective: Objective, networks: slice, rates_of: tuple[int, ...]
        ) -> list[GradientFit | DivergenceError]:
            its = file(f"-stage{number}")
            return train_members(
                self, sample, there, objective, networks=networks, rates_of=rates_of, on_step=on_step, file=its
            )

        densities = stage(1, together, DensityObjective(sample), slice(2), (1, 1))
        if any(isinstance(density, GradientFit) and density.ended == "interrupted" for density in densities):
            raise KeyboardInterrupt  # there is no structural function yet
        usable = [(member, one) for member, one in zip(together, densities, strict=True) if isinstance(one, GradientFit)]
        if not usable:
            return [one for one in densities if isinstance(one, DivergenceError)]
        parameters = torch.stack([mixture_parameters(density.networks, sample.instruments) for _, density in usable])
        objective = SampledObjective(sample, parameters, int(self.draws), self.structure)
        places = (0, 2, 0) if sample.covariates is not None else (0, 0)
        functions = iter(stage(2, [member for member, _ in usable], objective, slice(2, None), places))
        return [
            one
            if isinstance(one, DivergenceError)
            else _joined(one, next(functions), columns=sample.treatment.shape[1], structure=self.structure)
            for one in densities
        ]


def _joined(
    density: GradientFit, function: GradientFit | DivergenceError, *, columns: int, structure: Structure
) -> TrainedFunction | DivergenceError:
    """Both stages of a member."""
    if isinstance(function, DivergenceError):
        return function
    density, function = density.cpu(), function.cpu()
    history = [{"stage": number, **record} for number, one in ((1, density), (2, function)) for record in one.history]
    explained = _Explained(density.networks, function.networks, columns, structure)
    return TrainedFunction(function.networks, explained, function.heldout_loss, history, function.ended)


@dataclass(frozen=True)
class _Explained:
    """``E[h(T, X) | Z, X]`` over the density of stage 1."""

    density: Sequence[nn.Module]
    structural: Sequence[nn.Module]
    columns: int
    structure: Structure

    def predicted_outcome(self, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
        """In standard units, shape (n, 1); ``instruments`` includes the covariates."""
        parameters = mixture_parameters(self.density, instruments)
        return conditional_mean(
            self.structural, parameters, columns=self.columns, covariates=covariates, structure=self.structure
        )
