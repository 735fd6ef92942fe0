"""Regression with learned features that ignores the confounder: DFIV's network without its instruments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfiv.checks import check_choice, check_flag, check_number, check_random_state, check_whole
from cfiv.data import IVData
from cfiv.errors import DivergenceError, TrainingWarning, warn
from cfiv.estimators.estimator import Estimate, StructuralEstimator, warn_of_learned_constant
from cfiv.estimators.parameters import learning_rates, per_network
from cfiv.estimators.standardised import StandardisedData
from cfiv.estimators.units import check_units
from cfiv.learning import networks as nets
from cfiv.learning.dfiv_step import PerNetwork
from cfiv.learning.last_layer import Proximal
from cfiv.learning.networks import NetworkSpec
from cfiv.learning.regression import (
    Features,
    InstrumentFeatures,
    RegressionFit,
    RegressionProblem,
    StructuralFeatures,
    fit_regression,
)
from cfiv.learning.samples import Sample, batch_rows, check_batch_size, split_rows
from cfiv.learning.training import Training
from cfiv.numerics.two_stage import Structure
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.draws import Draws
from cfiv.runtime.module_state import cast
from cfiv.runtime.threads import suitable_threads
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
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`, so that the same formula serves every estimator. The instruments do not enter the
        estimate; rows with gaps in them are dropped all the same, so that estimates compare on the same rows.
    treatment_network, covariate_network, structure
        ``psi``, ``xi`` and ``f``, as in :class:`cfiv.DFIV`.
    instrument_network
        Features of ``E[h(T, X) | Z, X]``, which is regressed on instruments and covariates after training, for ``score``.
    proximal, ridge : float
        Penalties of u in training, on the *mean* squared error of a standardised outcome; ``proximal`` rises to its value. The
        ridge of the final u is chosen by held-out loss.
    batch_size, steps, learning_rate, weight_decay, standardise
        As in :class:`cfiv.DFIV`; of three rates or decays the second is that of ``instrument_network``.
    holdout : float
        Share of the rows that the gradients do not see, for early stopping and the choice of the ridge; u is refitted on all.
    fits : int
        How many fits, which differ in held-out rows, initial weights and batches, to average.
    device, progress, random_state
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
    ['price', 'estimate']
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
        treatment_network: NetworkSpec = None,
        instrument_network: NetworkSpec = None,
        covariate_network: NetworkSpec = None,
        structure: Structure = "product",
        proximal: float = 2.0,
        ridge: float = 1e-3,
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
        self.treatment_network = treatment_network
        self.instrument_network = instrument_network
        self.covariate_network = covariate_network
        self.structure = structure
        self.proximal = proximal
        self.ridge = ridge
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

    fits_: list[RegressionFit]

    def _check_parameters(self) -> None:
        check_whole("steps", self.steps, least=0)
        check_whole("fits", self.fits, least=1)
        check_choice("structure", self.structure, ("product", "additive"))
        check_number("proximal", self.proximal, least=0.0)
        check_number("ridge", self.ridge, least=0.0)
        check_number("holdout", self.holdout, least=0.0, most=0.9)
        for flag in ("standardise", "progress"):
            check_flag(flag, getattr(self, flag))
        check_random_state(self.random_state)
        learning_rates(self.learning_rate, images=False)
        per_network("weight_decay", self.weight_decay)
        resolve_device(self.device)
        check_batch_size(self.batch_size)

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        check_units(data)
        if not intercept:
            warn_of_learned_constant(self)
        problem = StandardisedData.prepare(data, device=resolve_device(self.device), double=False, standardise=self.standardise)
        *generators, last = np.random.default_rng(self.random_state).spawn(self.fits + 1)
        with progress_bar(self.steps * (self.fits + 1), description="Network", unit="step", shown=self.progress) as bar:
            fits, interrupted = self._fit_all(problem, generators, bar.update)
            reduced_form, again = self._fit_reduced_form(problem, fits, last, bar.update, train=not interrupted)
        self.fits_ = fits
        components = tuple(
            problem.component(
                treatment=fitted.features.treatment,
                covariate=fitted.features.covariate,
                structural=fitted.weights,
                structure=self.structure,
            )
            for fitted in fits
            if isinstance(fitted.features, StructuralFeatures)
        )
        history = pd.DataFrame([{"fit": i, **record} for i, fitted in enumerate(fits) for record in fitted.history])
        return Estimate(
            components,
            problem.reduced_form([_Explained(reduced_form)]),
            self._facts(),
            history,
            {"ridge": tuple(fitted.refit_ridge for fitted in fits)} if self.holdout else {},
            interrupted or again,
        )

    def _fit_all(
        self, problem: StandardisedData, generators: Sequence[np.random.Generator], on_step: Callable[[], object]
    ) -> tuple[list[RegressionFit], bool]:
        """The fits to average, and whether Ctrl-C ended them early."""
        fits: list[RegressionFit] = []
        for generator in generators:
            try:
                fits.append(self._fit_once(problem, problem.sample, self._structural, generator, on_step))
            except (KeyboardInterrupt, DivergenceError) as error:
                if not fits:
                    raise
                warn(f"a fit is left out of the average: {_reason(error)}", TrainingWarning)
                if isinstance(error, KeyboardInterrupt):
                    return fits, True
            if fits[-1].ended == "interrupted":
                return fits, True
        return fits, False

    def _fit_reduced_form(
        self,
        problem: StandardisedData,
        fits: Sequence[RegressionFit],
        generator: np.random.Generator,
        on_step: Callable[[], object],
        *,
        train: bool,
    ) -> tuple[RegressionFit, bool]:
        """What instruments and covariates explain of the fitted function, and whether Ctrl-C ended its training early."""
        predicted = torch.stack([fitted.predict(_on_cpu(problem.sample)) for fitted in fits]).mean(dim=0)
        outcome = predicted.to(problem.sample.outcome)
        explained = replace(problem.sample, outcome=outcome, treatment=outcome)  # in place of images, which would be copied
        explain = partial(self._fit_once, problem, explained, self._instrument, generator, on_step)
        try:
            fitted = explain(steps=None if train else 0)
        except (KeyboardInterrupt, DivergenceError) as error:
            warn(f"the features for score are left untrained: {_reason(error)}", TrainingWarning)
            return explain(steps=0), isinstance(error, KeyboardInterrupt)
        return fitted, fitted.ended == "interrupted"

    def _fit_once(
        self,
        problem: StandardisedData,
        sample: Sample,
        make: Callable[[StandardisedData], Features],
        generator: np.random.Generator,
        on_step: Callable[[], object],
        *,
        steps: int | None = None,
    ) -> RegressionFit:
        """One regression of a sample's outcome; ``steps`` other than the estimator's where given."""
        split_generator, batch_generator, network_generator = generator.spawn(3)
        heldout, train = None, sample
        if min(round(self.holdout * len(sample)), len(sample) - round(self.holdout * len(sample))) >= 2:
            held, kept = split_rows(len(sample), share=float(self.holdout), generator=split_generator)
            heldout, train = sample.rows(held), sample.rows(kept)
        draws = Draws(int(network_generator.integers(2**62)), problem.device)
        with draws.here(other_code=True):
            features = make(problem)
        for network in features.networks:
            cast(network, sample.outcome.dtype, device=problem.device)
        rates = learning_rates(self.learning_rate, images=sample.treatment.ndim > 2)
        decays = per_network("weight_decay", self.weight_decay)
        places = (1,) if isinstance(features, InstrumentFeatures) else (0, 2)
        task = RegressionProblem(
            train=train,
            heldout=heldout,
            layer=Proximal(float(self.proximal), beta=float(self.ridge)),
            steps=int(self.steps) if steps is None else steps,
            batch_size=batch_rows(self.batch_size, smallest_sample=len(train)),
            learning_rates=tuple(rates[place] for place in places[: len(features.networks)]),
            weight_decays=tuple(decays[place] for place in places[: len(features.networks)]),
            training=Training(),
        )
        with draws.here(*features.networks), suitable_threads(features.networks):
            fitted = fit_regression(task, features, generator=batch_generator, on_step=on_step)
        for network in fitted.features.networks:
            network.cpu().requires_grad_(False)
        return replace(fitted, weights=fitted.weights.cpu())

    def _structural(self, problem: StandardisedData) -> StructuralFeatures:
        sample = problem.sample
        covariate = None
        treatment = nets.build(
            self.treatment_network, shape=sample.treatment.shape[1:], default=nets.treatment_network, role="treatment"
        )
        if sample.covariates is not None:
            covariate = nets.build(
                self.covariate_network, shape=sample.covariates.shape[1:], default=nets.covariate_network, role="covariate"
            )
        return StructuralFeatures(problem.on_stored(treatment), covariate, self.structure)

    def _instrument(self, problem: StandardisedData) -> InstrumentFeatures:
        shape = problem.sample.instruments.shape[1:]
        network = nets.build(self.instrument_network, shape=shape, default=nets.instrument_network, role="instrument")
        return InstrumentFeatures(network)

    def _facts(self) -> dict[str, Any]:
        heldout = [fitted.heldout_loss for fitted in self.fits_]
        unit = " of the outcome variance" if self.standardise else ""
        return {
            "Functions averaged": len(self.fits_),
            "Held-out loss": f"{float(np.mean(heldout)):.4g}{unit}" if np.isfinite(heldout).all() else "not held out",
            "Training": f"{self.steps} steps, {' and '.join(sorted({fitted.ended for fitted in self.fits_}))}",
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
        return self.fitted.predict(Sample(nothing, nothing, instruments, covariates))


def _reason(error: BaseException) -> str:
    return "training was interrupted" if isinstance(error, KeyboardInterrupt) else str(error)


def _on_cpu(sample: Sample) -> Sample:
    return Sample(*(None if part is None else part.cpu() for part in vars(sample).values()))  # type: ignore[arg-type]
