"""DFIV: deep feature instrumental variable regression with proximal closed-form last layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cfiv.checks import check_choice, check_flag, check_instance, check_number, check_random_state, refusal
from cfiv.data import Array, IVData
from cfiv.errors import DivergenceError, WeakIdentificationWarning, warn
from cfiv.estimators.budget import check_fits, check_training_steps, number_of_fits, training_batch, training_steps
from cfiv.estimators.components import NetworkComponent
from cfiv.estimators.estimator import Estimate, StructuralEstimator, warn_of_learned_constant
from cfiv.estimators.nesting import LearnedFunction, Nest
from cfiv.estimators.parameters import learning_rates, per_network, several
from cfiv.estimators.planned_members import PlannedMember, fit_members
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.estimators.smooth_model import SmoothModel
from cfiv.estimators.standardised import StandardisedData, count_distinct
from cfiv.estimators.units import check_units
from cfiv.learning import networks as nets
from cfiv.learning import original_networks
from cfiv.learning.build import NetworkSpec, build
from cfiv.learning.deadline import Deadline, check_max_seconds
from cfiv.learning.dfiv_fit import fit_dfiv, refit_elsewhere
from cfiv.learning.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.learning.dfiv_step import LastLayers, PerNetwork
from cfiv.learning.last_layer import ClosedForm, Proximal
from cfiv.learning.networks import Networks
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import Sample, Split, check_batch_size, hold_out, in_place, split_rows
from cfiv.learning.solving import check_last_layer
from cfiv.learning.training import Report, Training
from cfiv.numerics.two_stage import Structure
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.draws import Draws
from cfiv.runtime.module_state import cast
from cfiv.runtime.processes import here
from cfiv.runtime.threads import suitable_threads
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names
from cfiv.terminal import progress_bar

#: What "auto" stands for on images.
IMAGE_UNPREDICTED_PENALTY = 1.0


class DFIV(StructuralEstimator):
    """Deep feature instrumental variable regression, with last layers solved in closed form at every step.

    Estimates ``h`` in ``Y = h(T, X) + e``, ``E[e | Z, X] = 0`` as ``h(t, x) = u' f(psi(t), xi(x))`` with learned treatment
    features ``psi`` and covariate features ``xi``. Stage 1 predicts ``psi(T)`` from learned features ``phi(Z, X)``; stage 2
    regresses the outcome on ``f`` at those predictions. Each regression is a closed form with penalties on the *mean* squared
    error

        V = argmin  mean_1 |psi(T) - V' [phi, 1]|^2 + ridge1 |V|^2 + lambda |V - V_prev|^2
        u = argmin  mean_2 (Y - u' f)^2             + ridge2 |u|^2 + lambda2 |u - u_prev|^2
                    + gamma mean_1 (u' (f(psi(T)) - f(V' [phi, 1])))^2,

    with ``lambda`` first ``lambda1``, then ``lambda12``, and ``gamma`` for images; so only the features are trained by
    gradients, on minibatches. The rows are split in two samples, one a stage; then the samples swap roles and the two
    structural functions are averaged.

    Parameters
    ----------
    formula : str, optional
        ``"outcome ~ covariates + [treatment ~ instruments]"``. Covariates enter both stages by themselves.
    outcome, treatment, instruments, covariates : str or sequence, Index, array or Series of str, optional
        Column names instead of a formula. With neither, ``fit`` takes an IVData of arrays or images.
    weights : str, optional
        A column of row weights >= 0.
    missing : {"drop", "raise"}
        What to do with rows that have gaps in any column used.
    clusters : str, optional
        A column that labels groups of rows, such as those of one firm or school. No group is parted by the split into samples,
        nor by what is held out: rows that resemble one another on both sides would make held-out losses too small.
    treatment_network, instrument_network, covariate_network : None, factory or Module
        ``psi``, ``phi`` (on instruments and covariates together) and ``xi``. None chooses by shape; a factory maps the input
        width (or image shape) to a module; a module is copied and re-initialised from ``random_state``. Images (n, rows,
        columns) or (n, channels, rows, columns) reach ``psi`` in that shape, standardised by one mean and scale for all pixels.
    structure : {"product", "additive"}
        ``f = [psi, 1] (x) [xi, 1]``, where effects vary with the covariates, or ``f = [psi, xi, 1]``.
    lambda1, lambda2, lambda12 : float
        Proximal penalties of V in stage 1, of u, and of V in stage 2, where they stand at the end of training (they rise to
        it).
    ridge1, ridge2 : float
        Ridge penalties of V and u in training. Those of the final V and u are chosen by held-out losses among
        ``training.refit_ridges``, unless that is empty.
    last_layer : None, a last layer or three of them
        How V in stage 1, V in stage 2 and u are solved on every batch: one layer for all or a tuple of three, from
        :mod:`cfiv.learning.last_layer` or any class with such an ``update``. None is ``Proximal`` with the penalties above;
        with another, ``lambda1``, ``lambda2`` and ``lambda12`` have no say. The pull of a ``Proximal``, or of any layer
        that goes by ``memory.pull``, rises to its value.
    unpredicted_penalty : float or "auto"
        ``gamma`` >= 0, the weight of the variance of ``h(T, X)`` that instruments and covariates leave unpredicted, against the
        squared error of stage 2; without unit. "auto" is 1 for images, in which much varies that no instrument moves and of
        which the data say nothing, and 0 for columns.
    batch_size : int, "auto" or None
        Rows of each sample a step; "auto" is a tenth of the table, between 128 and 1,024 (128 images), or the whole sample
        where that is smaller; None is full batches.
    steps : int or "auto"
        Steps of training, each with one batch of either sample; "auto" is 500 up to 5,000 rows, and ``500 (n / 5000)^0.6`` for
        more.
    learning_rate : "auto", float or (float, float, float)
        Peak rate of Adam, of all networks or of treatment, instrument and covariate network. "auto" is 0.04, and 0.003 for a
        network whose input is an image: wide layers need small steps.
    weight_decay : float or (float, float, float)
        Decoupled weight decay, likewise.
    standardise : bool
        Compute on outcome, treatment, instruments and covariates of mean zero and unit variance; results are in the user's
        units either way. Penalties and rates are meant for True.
    swap : bool
        Fit again with the samples swapped and average.
    fits : int or "auto"
        How many splits to fit and average (each swapped, with ``swap``); "auto" is four up to 2,500 rows, where a single fit
        swings with its split, two at 5,000, one from 10,000 on, and one of images.
    nested : bool
        Look for ``h`` among nested models: a line, smooth curves and products with the covariates, and on top of them what the
        learned features add, as far as held-out rows speak for each; see Notes. False gives what was learned, whatever it is
        worth. Images, and treatments that the instruments do not move even linearly, have no smooth model.
    report : {"refit", "current"}
        Whether the final u and V are solved on all rows of their samples, at the state that held-out losses prefer; or are
        those that the minibatches left at the end of training. For "current" the features rest for the last three tenths of the
        steps (see ``training.rest``), where the solves go ever smaller parts of the way; held-out rows are kept from training
        all the same, but only to report a loss.
    training : Training, optional
        Options that rarely change.
    device : str
        "auto" is cuda where there is one, else cpu. Solves are in float64 on it.
    progress : bool
        Show a progress bar.
    max_seconds : float, optional
        Training stops after the step in which so many seconds are over since it began, and the best state so far is taken, as
        after Ctrl-C; the summary says so. Last layers and the nested models come after that. The numbers then depend on the
        machine.
    random_state : int, Generator or None
        Source of splits, initial weights and batches; the same int gives the same numbers, bit for bit on one machine.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    history_ : DataFrame
        One row a check: ``fit, swapped, step, stage1_loss, stage2_loss`` (with ``gamma`` times the unpredicted variance),
        ``stage1_heldout_loss`` (on sample 2, each treatment feature in units of its variance; nan where nothing is held out,
        and with "current"), ``heldout_loss`` (in units of the outcome's variance), ``refit_ridge, kept``.
    fits_ : list of TwoStageFit
        The fits behind the average.
    trust_ : Trust
        What the fit knows of its worth: ``trusted``, the ``reasons`` against it in words, and the numbers behind them.

    Raises
    ------
    ParameterError, DataError, FormulaError
        By ``fit``, with what was got and what to do.
    DivergenceError
        If training diverges before any usable state.

    Warns
    -----
    WeakIdentificationWarning
        If the instruments take fewer distinct values than the treatment does and its features need.
    TrainingWarning
        If training diverged or was interrupted; the best state so far is kept and usable.
    WorthlessFitWarning
        If ``trust_`` has reasons why the estimate should not be believed.

    Notes
    -----
    With the smooth model ``h_0`` of :mod:`cfiv.numerics.penalised_iv`, which may be a line, and ``d`` what learned functions
    add to it, the answer is ``h_0 + w d``: on rows whose outcomes neither has seen ``Y - h_0`` is regressed on ``d`` with the
    instrument ``E[d | Z, X]``, and ``w`` is the coefficient, at most 1; or 0, unless it lies three standard errors above zero.

    ``lambda1 = lambda2 = lambda12 = 0`` with ``batch_size=None`` is the original DFIV; see :meth:`original`.

    References
    ----------
    Xu, Chen, Srinivasan, de Freitas, Doucet, Gretton, "Learning Deep Features in Instrumental Variable Regression", ICLR 2021.
    Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization", arXiv 2510.04606. Rising penalties, swapped
    samples, the stopping rule, the unpredicted penalty, the nested models and the defaults are ours, chosen by held-out losses
    but for steps, rows a batch and fits (:mod:`cfiv.estimators.budget`).

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=500, rho=0.5, seed=0)
    >>> model = DFIV("sales ~ time + emotion + [price ~ fuel]", steps=50, progress=False, random_state=0).fit(train.frame)
    >>> model.dose_response([15.0, 20.0, 25.0]).columns.tolist()
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
        lambda1: float = 2.0,
        lambda2: float = 2.0,
        lambda12: float = 2.0,
        ridge1: float = 1e-3,
        ridge2: float = 1e-3,
        last_layer: ClosedForm | Sequence[ClosedForm] | None = None,
        unpredicted_penalty: float | Literal["auto"] = "auto",
        batch_size: int | str | None = "auto",
        steps: int | Literal["auto"] = "auto",
        learning_rate: float | PerNetwork | Literal["auto"] = "auto",
        weight_decay: float | PerNetwork = 0.0,
        standardise: bool = True,
        swap: bool = True,
        fits: int | Literal["auto"] = "auto",
        nested: bool = True,
        report: Report = "refit",
        training: Training | None = None,
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
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.lambda12 = lambda12
        self.ridge1 = ridge1
        self.ridge2 = ridge2
        self.last_layer = last_layer
        self.unpredicted_penalty = unpredicted_penalty
        self.batch_size = batch_size
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.swap = swap
        self.fits = fits
        self.nested = nested
        self.report = report
        self.training = training
        self.device = device
        self.progress = progress
        self.max_seconds = max_seconds
        self.random_state = random_state

    fits_: list[TwoStageFit]

    @classmethod
    def original(cls, formula: str | None = None, **overrides: Any) -> Self:
        """DFIV as Xu et al. 2021 configured it for the demand design; any argument may be overridden.

        Ridge 0.1 in both stages, no proximal term, full batches, 50/50 split used once, Adam at 1e-3 for 100 rounds of 20
        stage-1 steps, 20 covariate steps and one stage-2 step, weight decay on the covariate network, ReLU networks with batch
        normalisation, nothing standardised. Its weight decay of 0.1 sits beside a loss that is *summed* over the rows; beside
        our mean that is 0.1 / 2500 for the 5000 rows of the demand design.
        """
        arguments: dict[str, Any] = {
            "treatment_network": original_networks.original_treatment_network,
            "instrument_network": original_networks.original_instrument_network,
            "covariate_network": original_networks.original_covariate_network,
            "lambda1": 0.0,
            "lambda2": 0.0,
            "lambda12": 0.0,
            "ridge1": 0.1,
            "ridge2": 0.1,
            "unpredicted_penalty": 0.0,
            "batch_size": None,
            "steps": 100,
            "learning_rate": 1e-3,
            "weight_decay": (0.0, 0.0, 4e-5),
            "standardise": False,
            "swap": False,
            "fits": 1,
            "nested": False,
            "training": Training(
                stage1_steps=20,
                covariate_steps=20,
                learning_rate_schedule="constant",
                decoupled_weight_decay=False,
                rest=0.0,
                holdout=0.0,
                refit_ridges=(),
            ),
        }
        return cls(formula, **{**arguments, **overrides})

    @classmethod
    def original_image(cls, **overrides: Any) -> Self:
        """DFIV as Xu et al. 2021 configured it for dSprites; any argument may be overridden.

        As :meth:`original`, with networks of spectrally normalised layers for images of 64 x 64 pixels, no covariates, and
        weight decay 0.1 of both networks beside losses summed over 2500 rows each, half of 5000.

        Such layers hold code of torch's that a model file does not: what was saved is loaded with ``cfiv.load(path,
        networks={"treatment": original_image_treatment_network})`` from :mod:`cfiv.learning.original_networks`. For the same
        reason such a fit cannot be pickled.

        References
        ----------
        Xu et al. 2021, section 5.2 and the authors' program for the layers and penalties.
        """
        arguments: dict[str, Any] = {
            "treatment_network": original_networks.original_image_treatment_network,
            "instrument_network": original_networks.original_image_instrument_network,
            "weight_decay": (4e-5, 4e-5, 0.0),
        }
        return cls.original(**{**arguments, **overrides})

    def _check_parameters(self) -> None:
        check_training_steps(self.steps)
        check_max_seconds(self.max_seconds)
        check_fits(self.fits)
        check_choice("structure", self.structure, ("product", "additive"))
        check_choice("report", self.report, ("refit", "current"))
        for flag in ("standardise", "swap", "nested", "progress"):
            check_flag(flag, getattr(self, flag))
        check_instance("training", self.training, (Training, NoneType), "a cfiv.Training or None")
        check_random_state(self.random_state)
        for name in ("lambda1", "lambda2", "lambda12", "ridge1", "ridge2"):
            check_number(name, getattr(self, name), least=0.0)
        self._last_layers()
        self._unpredicted_penalty()
        self._learning_rate()
        self._weight_decay()
        resolve_device(self.device)
        check_batch_size(self.batch_size)

    def fit(
        self,
        data: Any,
        y: None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int = 100,
    ) -> Self:
        """Estimate the structural function, or continue where a killed fit stopped.

        Parameters
        ----------
        data : table, path or IVData
            As every estimator takes it.
        y : None
            As every estimator takes it.
        checkpoint : path, optional
            A folder, made where it does not exist, with a file for each of the fits that are averaged. A fit that has a file
            there goes on from it, with the very same numbers as if it had never stopped; on cuda, up to kernels that do not
            give the same numbers twice. Needs a whole number as ``random_state``.
        every : int
            Steps after which the file of the fit under way is replaced; also at the fit's end.

        Returns
        -------
        self
            With the attributes that every estimator has after a fit.

        Raises
        ------
        DataError, FormulaError, ParameterError
            For bad data, roles or hyper-parameters, before anything is computed.
        ModelFileError
            If the folder holds fits of other data, another model or another configuration.
        OutputError
            If it cannot be written to.
        TooLargeError
            If there is not enough memory.
        """
        return self._fit(data, y, lambda: {"runs": SavedRuns.of(self, checkpoint, every)})

    def _estimate(self, data: IVData, *, intercept: bool, runs: SavedRuns | None = None) -> Estimate:
        fits = number_of_fits(self.fits, rows=len(data), images=data.treatment.ndim > 2)
        (estimate,) = self._train(data, [None], [self.random_state], fits=fits, intercept=intercept, runs=runs)
        return estimate

    def _estimate_parts(
        self, data: IVData, parts: Sequence[Array], seeds: Sequence[int], *, intercept: bool
    ) -> Sequence[Estimate]:
        """All side by side, one split each where the data may say how many; standardised with the rows of all of them."""
        fits = 1 if self.fits == "auto" else int(self.fits)
        return self._train(data, parts, seeds, fits=fits, intercept=intercept)

    def _train(
        self,
        data: IVData,
        parts: Sequence[Array | None],
        seeds: Sequence[Any],
        *,
        fits: int,
        intercept: bool,
        runs: SavedRuns | None = None,
    ) -> list[Estimate]:
        """One estimate of each part of the rows (None: all), averaged over so many splits."""
        check_units(data)
        if not intercept:
            warn_of_learned_constant(self)
        problem = StandardisedData.prepare(
            data, device=resolve_device(self.device), double=self._options().double, standardise=self.standardise
        )
        members, generators = [], []
        for number, (part, seed) in enumerate(zip(parts, seeds, strict=True)):
            *own, last = np.random.default_rng(seed).spawn(fits * len(self._swaps()) + 1)
            members += self._members(problem, own[:fits], part=part, number=number)
            generators.append(last)
        _warn_if_weak(problem, members[0].networks[0])
        rows = max(len(data) if part is None else len(part) for part in parts)
        steps, deadline = training_steps(self.steps, rows=rows), Deadline.after(self.max_seconds)
        with progress_bar(steps * len(members), description="DFIV", unit="step", shown=self.progress and here().first) as bar:

            def fit(together: list[PlannedMember], name: str) -> list[TwoStageFit | DivergenceError]:
                sample, networks = problem.sample, together[0].networks
                file = None if runs is None else runs.file(name, sample=sample, networks=networks, clusters=problem.clusters)
                return self._fit_members(problem, together, steps, bar.update, deadline, file)

            fitted, interrupted = fit_members(members, fit, deadline)
        problem.release()
        estimates = []
        for number, (part, generator) in enumerate(zip(parts, generators, strict=True)):
            own_fits = [(member, one) for member, one in fitted if member.part == number]
            if not own_fits:
                raise DivergenceError(
                    f"nothing was learned of part {number + 1} of {len(parts)} of the rows: training diverged, was "
                    "interrupted, or its time was over; give more max_seconds, or a lower learning_rate"
                )
            estimates.append(self._answer(data, problem, own_fits, generator, part=part, steps=steps, interrupted=interrupted))
        return estimates

    def _answer(
        self,
        data: IVData,
        problem: StandardisedData,
        fitted: Sequence[tuple[PlannedMember, TwoStageFit]],
        generator: np.random.Generator,
        *,
        part: Array | None,
        steps: int,
        interrupted: bool,
    ) -> Estimate:
        """What was learned of a part of the rows, among the nested models."""
        self.fits_ = [_on_cpu(one) for _, one in fitted]
        history = [{"fit": member.fit, "swapped": member.swapped, **record} for member, one in fitted for record in one.history]
        learned = tuple(_component(problem, one) for one in self.fits_)
        facts = self._facts(problem.sample, steps=steps, interrupted=interrupted)
        data = data if part is None else data.take(part)
        nest = self._nest(data, problem, learned, [member.split for member, _ in fitted], generator, part=part)
        return Estimate(
            nest.components,
            nest.reduced_form,
            {**facts, **nest.facts()},
            pd.DataFrame(history),
            self._chosen(),
            interrupted,
            nest.shares,
            nest.trust(data, learned),
        )

    def _nest(
        self,
        data: IVData,
        problem: StandardisedData,
        learned: tuple[NetworkComponent, ...],
        splits: Sequence[Split],
        generator: np.random.Generator,
        *,
        part: Array | None,
    ) -> Nest:
        """The learned functions and the smooth model that they are weighed against."""
        together = problem.reduced_form(self.fits_)
        smooth = SmoothModel.fit(data, generator, products=self.structure == "product")
        if smooth is None or not self.nested or self._options().split is None:
            return Nest.alone(learned, together, smooth)
        functions, penalty = [], self._unpredicted_penalty(problem.sample)
        for fitted, split in zip(self.fits_, splits, strict=True):
            elsewhere = refit_elsewhere(fitted, problem.sample, split, unpredicted_penalty=penalty)
            unseen = split.stage1.cpu().numpy()
            unseen = unseen if part is None else np.searchsorted(part, unseen)
            functions.append(LearnedFunction(_component(problem, elsewhere), problem.reduced_form([elsewhere]), unseen))
            problem.release()
        return Nest.of(data, smooth, functions, learned=learned, reduced_form=together)

    def _swaps(self) -> tuple[bool, ...]:
        """Whether the samples have swapped roles, of the functions of one split."""
        return (False, True) if self.swap and self._options().split is not None else (False,)

    def _members(
        self, problem: StandardisedData, generators: Sequence[np.random.Generator], *, part: Array | None, number: int
    ) -> list[PlannedMember]:
        """Every function to be averaged of a part: its rows, networks and random numbers; of each split a generator."""
        members, options, swaps = [], self._options(), self._swaps()
        rows, images = len(problem.sample) if part is None else len(part), problem.sample.treatment.ndim > 2
        for fit, generator in enumerate(generators):
            split_generator, *own = generator.spawn(1 + len(swaps))
            first, second = self._split(problem, split_generator, part)
            for swapped, fit_generator in zip(swaps, own, strict=True):
                holdout_generator, batch_generator, network_generator = fit_generator.spawn(3)
                stage1, sample2 = (second, first) if swapped else (first, second)
                share, clusters = options.holdout, problem.clusters
                split = hold_out(stage1, sample2, share=share, generator=holdout_generator, clusters=clusters)
                draws = Draws(int(network_generator.integers(2**62)), problem.device)
                with draws.here(other_code=True):
                    networks = self._networks(problem)
                size = training_batch(
                    self.batch_size,
                    rows=rows,
                    fits=number_of_fits(self.fits, rows=rows, images=images),
                    smallest_sample=min(len(split.stage1), len(split.stage2)),
                    images=images,
                )
                members.append(PlannedMember(fit, swapped, split, size, networks, batch_generator, draws, number))
        return members

    def _fit_members(
        self,
        problem: StandardisedData,
        members: list[PlannedMember],
        steps: int,
        on_step: Callable[..., object],
        deadline: Deadline,
        file: RunFile | None,
    ) -> list[TwoStageFit | DivergenceError]:
        task = DFIVProblem(
            sample=problem.sample,
            splits=tuple(member.split for member in members),
            structure=self.structure,
            layers=self._last_layers(),
            ridge1=float(self.ridge1),
            ridge2=float(self.ridge2),
            unpredicted_penalty=self._unpredicted_penalty(problem.sample),
            steps=steps,
            batch_size=members[0].batch_size,
            learning_rate=self._learning_rate(problem.sample),
            weight_decay=self._weight_decay(),
            report=self.report,
            training=self._options(),
        )
        modules = members[0].networks
        with members[0].draws.here(*modules), suitable_threads(modules):
            return fit_dfiv(
                task,
                [Networks.of(member.networks) for member in members],
                generators=[member.batches for member in members],
                on_step=lambda: on_step(len(members)),
                deadline=deadline,
                file=file,
            )

    def _networks(self, problem: StandardisedData) -> list[nn.Module]:
        sample = problem.sample
        treatment = build(
            self.treatment_network, shape=sample.treatment.shape[1:], default=nets.treatment_network, role="treatment"
        )
        instrument = build(
            self.instrument_network, shape=sample.instruments.shape[1:], default=nets.instrument_network, role="instrument"
        )
        covariate = None
        if sample.covariates is not None:
            covariate = build(
                self.covariate_network, shape=sample.covariates.shape[1:], default=nets.covariate_network, role="covariate"
            )
        networks = [problem.on_stored(treatment), instrument, *([] if covariate is None else [covariate])]
        return [cast(network, sample.outcome.dtype, device=problem.device) for network in networks]

    def _split(self, problem: StandardisedData, generator: np.random.Generator, part: Array | None) -> tuple[Tensor, Tensor]:
        """Row numbers of both samples, among those of a part."""
        share, clusters = self._options().split, problem.clusters
        rows = len(problem.sample) if part is None else len(part)
        if share is None:
            # Not as they lie, since checks look at the first rows of a large sample.
            everything = in_place(torch.from_numpy(generator.permutation(rows)))
            samples = everything, everything
        else:
            clusters = clusters if part is None or clusters is None else clusters[part]
            samples = split_rows(rows, share=share, generator=generator, clusters=clusters)
        if part is None:
            return samples
        first, second = (torch.from_numpy(part)[sample] for sample in samples)
        return first, second

    def _options(self) -> Training:
        return Training() if self.training is None else self.training

    def _last_layers(self) -> LastLayers:
        """V in both stages and u as they stand at the end of training."""
        given = self.last_layer
        if given is None:
            return LastLayers(
                v1=Proximal(self.lambda1, beta=self.ridge1),
                v12=Proximal(self.lambda12, beta=self.ridge1),
                u=Proximal(self.lambda2, beta=self.ridge2),
            )
        layers = tuple(given) if isinstance(given, tuple | list) else (given, given, given)
        if len(layers) != 3:
            raise refusal("last_layer", "one layer, or three: of V in stage 1, of V in stage 2, and of u", given)
        for layer in layers:
            check_last_layer(layer)
        return LastLayers(*layers)

    def _unpredicted_penalty(self, sample: Sample | None = None) -> float:
        """``gamma``; ``sample`` shows what "auto" has to look at."""
        given = self.unpredicted_penalty
        if isinstance(given, str) and given == "auto":
            return IMAGE_UNPREDICTED_PENALTY if sample is not None and sample.treatment.ndim > 2 else 0.0
        return check_number("unpredicted_penalty", given, least=0.0, alternative="or 'auto'")

    def _learning_rate(self, sample: Sample | None = None) -> PerNetwork:
        """Peak rates; ``sample`` shows what "auto" has to look at."""
        return learning_rates(self.learning_rate, images=sample is not None and sample.treatment.ndim > 2)

    def _weight_decay(self) -> PerNetwork:
        return per_network("weight_decay", self.weight_decay)

    def _chosen(self) -> dict[str, tuple[float, ...]]:
        """The ridges of the final V and u, where held-out losses chose them."""
        options = self._options()
        if self.report == "current" or not options.refit_ridges or not options.holdout:
            return {}
        return {
            "ridge1": tuple(fitted.first_stage_ridge for fitted in self.fits_),
            "ridge2": tuple(fitted.refit_ridge for fitted in self.fits_),
        }

    def _facts(self, sample: Sample, *, steps: int, interrupted: bool) -> dict[str, Any]:
        heldout = [fitted.heldout_loss for fitted in self.fits_]
        ends = sorted({str(fitted.ended) for fitted in self.fits_} | ({"interrupted"} if interrupted else set()))
        unpredicted = self._unpredicted_penalty(sample)
        layers = {"Last layers in training": ", ".join(map(repr, vars(self._last_layers()).values()))}
        if self.last_layer is None:
            layers = {
                "Proximal penalties": _listed(self, "lambda1", "lambda2", "lambda12"),
                "Ridge penalties": _listed(self, "ridge1", "ridge2"),
            }
        return {
            "Functions averaged": len(self.fits_),
            "Held-out stage-2 loss": f"{float(np.mean(heldout)):.4g}{' of the outcome variance' if self.standardise else ''}"
            if np.isfinite(heldout).all()
            else "not held out",
            "Training": f"{steps} steps, {' and '.join(ends)}",
            **layers,
            **({"Unpredicted penalty": f"{unpredicted:g}"} if unpredicted else {}),
            **{f"Final {name}": f"{several(values)} (by held-out loss)" for name, values in self._chosen().items()},
            "Last layers": "refitted on whole samples"
            if self.report == "refit" or self.steps == 0
            else "as training left them",
        }


def _component(problem: StandardisedData, fitted: TwoStageFit) -> NetworkComponent:
    """``h`` of one fit, in the user's units."""
    return problem.component(
        treatment=fitted.networks.treatment,
        covariate=fitted.networks.covariate,
        structural=fitted.structural,
        structure=fitted.structure,
    )


def _on_cpu(fitted: TwoStageFit) -> TwoStageFit:
    """The fit on the cpu, where results live, and its networks frozen."""
    for module in fitted.networks.modules():
        module.cpu().requires_grad_(False)
    return replace(fitted, first_stage=fitted.first_stage.cpu(), structural=fitted.structural.cpu())


def _listed(model: DFIV, *names: str) -> str:
    return ", ".join(f"{name} {getattr(model, name):g}" for name in names)


def _warn_if_weak(problem: StandardisedData, treatment: nn.Module) -> None:
    """Warn where the instruments take too few values for the features, and for the values of the treatment as well."""
    features = nets.evaluate(treatment, problem.sample.treatment[:2]).shape[1]
    instruments = count_distinct(problem.excluded, most=features + 1)
    if instruments > features:
        return
    treatments = count_distinct(problem.sample.treatment, most=features + 1)
    # A function on two values has two numbers, however many features it is written in.
    if instruments >= treatments:
        return
    needs = (
        f"{features} treatment features and a constant need at least {features + 1}"
        if treatments > features
        else f"the treatment takes {treatments}"
    )
    warn(
        f"the instruments take {instruments} distinct values, but {needs}: without strong covariates the data identify only "
        "part of the curve, and its shape between is a guess; use a simpler treatment_network (torch.nn.Identity() is linear) "
        "or richer instruments",
        WeakIdentificationWarning,
    )
