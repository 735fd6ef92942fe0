"""DFIV: deep feature instrumental variable regression with proximal closed-form last layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np

from cfiv.data import Array, IVData
from cfiv.estimators.budget import number_of_fits
from cfiv.estimators.dfiv_answer import answer
from cfiv.estimators.dfiv_learning import learn_parts
from cfiv.estimators.dfiv_settings import check_dfiv
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.original_settings import ORIGINAL, ORIGINAL_IMAGE
from cfiv.estimators.saved_runs import SavedRuns
from cfiv.learning.last_layer import ClosedForm
from cfiv.learning.training import Report, Training
from cfiv.networks.build import NetworkSpec
from cfiv.numerics.two_stage import Structure
from cfiv.objectives.dfiv_problem import TwoStageFit
from cfiv.objectives.dfiv_step import PerNetwork
from cfiv.tables.columns import Missing
from cfiv.tables.roles import Names


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
        network whose input is an image: wide layers need small steps; of more than 500 steps, times ``sqrt(500 / steps)``.
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
        return cls(formula, **{**ORIGINAL, **overrides})

    @classmethod
    def original_image(cls, **overrides: Any) -> Self:
        """DFIV as Xu et al. 2021 configured it for dSprites; any argument may be overridden.

        As :meth:`original`, with networks of spectrally normalised layers for images of 64 x 64 pixels, no covariates, and
        weight decay 0.1 of both networks beside losses summed over 2500 rows each, half of 5000.

        Such layers hold code of torch's that a model file does not: what was saved is loaded with ``cfiv.load(path,
        networks={"treatment": original_image_treatment_network})`` from :mod:`cfiv.networks.original_networks`. For the same
        reason such a fit cannot be pickled.

        References
        ----------
        Xu et al. 2021, section 5.2 and the authors' program for the layers and penalties.
        """
        return cls(**{**ORIGINAL_IMAGE, **overrides})

    def _check_parameters(self) -> None:
        check_dfiv(self)

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
        (learned,) = learn_parts(self, data, [None], [self.random_state], fits=fits, intercept=intercept, runs=runs)
        self.fits_ = learned.fits
        return answer(self, data, learned)

    def _estimate_parts(
        self, data: IVData, parts: Sequence[Array], seeds: Sequence[int], *, intercept: bool
    ) -> Sequence[Estimate]:
        """All side by side, one split each where the data may say how many; standardised with the rows of all of them."""
        fits = 1 if self.fits == "auto" else int(self.fits)
        learned = learn_parts(self, data, parts, seeds, fits=fits, intercept=intercept)
        self.fits_ = learned[-1].fits
        return [answer(self, data, each) for each in learned]
