"""The last-layer trainer: any torch module that ends in a linear map, trained with its last layer in closed form."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from cfiv.checks import (
    check_callable,
    check_file_name,
    check_instance,
    check_random_state,
    check_repeatable,
    check_whole,
    fresh_seed,
    refusal,
)
from cfiv.errors import ParameterError
from cfiv.files import check_place
from cfiv.learning.deadline import Deadline, check_max_seconds
from cfiv.learning.last_layer import Adaptive, ClosedForm, Gradient, Proximal
from cfiv.learning.optimisers import OptimizerFactory, check_optimizer
from cfiv.learning.run_file import RunFile
from cfiv.learning.samples import check_batch_size
from cfiv.learning.schedules import make_schedules
from cfiv.learning.training import Order, Schedule, Training
from cfiv.networks.build import check_kept, check_unscripted
from cfiv.networks.module_modes import in_mode, make_trainable
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.digest import digest
from cfiv.runtime.draws import Draws
from cfiv.runtime.module_state import tensors_of
from cfiv.runtime.processes import check_shareable, here
from cfiv.supervised.evaluation import check_width, place
from cfiv.supervised.last_linear_map import find_last_linear_map
from cfiv.supervised.run import Plan, SupervisedRun, describe_run
from cfiv.supervised.sources import ArraySource, count_steps, make_source
from cfiv.supervised.step import Loss, Recipe, TrainerState
from cfiv.supervised.tasks import Task, make_task
from cfiv.supervised.trained_module import TrainedModule, check_columns, surround
from cfiv.supervised.validation import Validation

if TYPE_CHECKING:
    import pandas as pd


class LastLayerTrainer(TrainedModule):
    """Train the backbone by gradients and solve the last layer on every batch.

    For the features ``phi`` of the backbone, the rows of a batch, and penalties on the *mean* squared error,

        W = argmin_W  sum_i w_i |y_i - W' phi_i|^2  +  beta |W|^2  +  lam |W - W_prev|^2,       sum_i w_i = 1,

    or whatever else ``last_layer`` solves. The backbone descends the same mean squared error, without penalties, at W held
    fixed, which by the envelope theorem is the gradient of the minimised objective. The solves run in float64.

    Parameters
    ----------
    module : Module
        Trained in place; from one tensor (n, ...) to one tensor that begins with the n examples. Axes of length one do not
        count: a single output may be (n,) or (n, 1), and so may its targets. Its last linear map is a Linear, or a 1x1
        convolution, for which every point of the grid is a row of the solve, so the resolution may change between batches. A
        bias is the weight of a constant feature, penalised like the others. The module's own last layer is the first W_prev.
    last_layer : Adaptive, Ridge, Proximal, Kalman, MovingAverage or Gradient
        From :mod:`cfiv.learning.last_layer`, and from :mod:`cfiv`. Adaptive() by default, which has nothing to set.
    last_module : str, optional
        Dotted name of the last linear map, where the last one that runs is not meant.
    optimizer : callable, optional
        From parameters to an optimiser of the backbone, of all of them and no others; by default one with the numbers of
        ``partial(torch.optim.Adam, lr=1e-3, fused=True)``. One that needs a closure, such as LBFGS, is refused: a step has one
        loss.
    order : {"solve-first", "backbone-first"}
        Whether the backbone steps at the weights solved on its own batch, or at the previous ones with the solve after it.
    task : {"regression", "classification"}
        Targets of the shape of the module's output, or labels 0 ... k - 1 that become one-hot targets.
    one_hot_scale : float
        Of those targets, M.
    loss : {"squared", "cross-entropy"}
        The latter for classification with :class:`Gradient` only, as a baseline.
    lambda_schedule : float or callable
        A callable from the share of the steps done, in [0, 1), to a factor of Proximal's ``lam``; or the factor at the start,
        from which it rises linearly to 1. Constant by default.
    learning_rate_schedule : {"constant", "cosine"} or callable
        Factor of the optimiser's rates, likewise. Cosine as in :class:`cfiv.Training`.
    batch_size : int, "auto" or None
        Of arrays; "auto" is 128, or all where there are fewer; None is all. Every pass leaves out its ragged tail.
    mixed_precision : bool
        Run the module under bfloat16 autocast while training. Features come in float32 to the loss, in float64 to the solve.
    device : str
        "auto" is cuda where there is one. The module is moved there by ``fit``, and stays there.
    random_state : int, Generator or None
        Source of the batches' order and of what the module and loaders would draw from torch's global generator, which is left
        alone: a whole number below 2^64 for the same numbers in every call of ``fit``, a numpy Generator for the next ones
        that it gives, None for others every time.

    Attributes
    ----------
    history_ : DataFrame
        One row a step: ``step``, ``epoch``, ``loss`` on the batch at the weights of the gradient, before the backbone moved;
        with validation data also ``validation_loss``, nan between checks.
    ended_ : {"finished", "stopped early", "diverged", "interrupted", "out of time"}
    last_linear_map_ : LastLinearMap

    References
    ----------
    Galashov et al., arXiv 2510.04606: equation 9 (solve first), algorithm 1 (backbone first), theorems 1 and 2, appendix A.
    Hui and Belkin, arXiv 2006.07322 (classes). Starting from the module's own last layer is our choice.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> y = x.prod(dim=1, keepdim=True)
    >>> module = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 1))
    >>> trainer = LastLayerTrainer(module, Proximal(lam=0.1, beta=1e-4), batch_size=50).fit((x, y), epochs=50)
    >>> bool(torch.equal(trainer.predict(x), module(x)))
    True
    """

    def __init__(
        self,
        module: nn.Module,
        last_layer: ClosedForm | Gradient | None = None,
        *,
        last_module: str | None = None,
        optimizer: OptimizerFactory | None = None,
        order: Order = "solve-first",
        task: Literal["regression", "classification"] = "regression",
        one_hot_scale: float = 1.0,
        loss: Loss = "squared",
        lambda_schedule: float | Callable[[float], float] = 1.0,
        learning_rate_schedule: Schedule | Callable[[float], float] = "constant",
        batch_size: int | Literal["auto"] | None = "auto",
        mixed_precision: bool = False,
        device: str = "auto",
        random_state: int | np.random.Generator | None = 0,
    ) -> None:
        check_instance("module", module, nn.Module, "a torch module")
        check_unscripted(module, "module")
        check_instance("last_module", last_module, (str, type(None)), "the dotted name of a layer, or None")
        check_batch_size(batch_size)
        check_random_state(random_state, most=2**64 - 1)
        if optimizer is not None:
            check_optimizer(optimizer)
        resolve_device(device)
        self.module, self.last_module, self.optimizer = module, last_module, optimizer
        self.last_layer: ClosedForm | Gradient = Adaptive() if last_layer is None else last_layer
        self.order, self.loss, self.mixed_precision = order, loss, mixed_precision
        self.task: Task = make_task(task, one_hot_scale=one_hot_scale)
        self._recipe().check()
        self.lambda_schedule, self.learning_rate_schedule = lambda_schedule, learning_rate_schedule
        self._schedules = make_schedules(lambda_schedule=lambda_schedule, learning_rate_schedule=learning_rate_schedule)
        if (callable(lambda_schedule) or lambda_schedule != 1.0) and not isinstance(self.last_layer, Proximal):
            raise ParameterError(f"lambda_schedule is for Proximal, got {type(self.last_layer).__name__}: leave it out")
        self.batch_size, self.device, self.random_state = batch_size, device, random_state

    def fit(
        self,
        data: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        validation: Any = None,
        checks: int = 20,
        tolerance: float = 1.0,
        patience: int = 6,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | None = None,
        on_step: Callable[[int, float], object] | None = None,
        max_seconds: float | None = None,
    ) -> LastLayerTrainer:
        """Train for so many passes or steps, or continue the run that a checkpoint holds.

        Without one every call begins a new run, with a fresh optimiser and nothing remembered, from the module as it is.

        Parameters
        ----------
        data : tuple of arrays, tensors or tables, or loader
            (inputs, targets) or (inputs, targets, row weights) of all examples; or a DataLoader, or anything that can be passed
            over again and again, of such batches. The weights of an example hold for all of its rows; arrays are taken without
            examples of weight zero. Arrays are what :class:`cfiv.IVData` takes: finite real numbers, nothing masked, tables
            with equal indices. Whole numbers stay whole, for embeddings, and complex inputs are for modules that take them.
        epochs, steps : int
            One of them.
        validation : optional
            Data of the same kind, which the gradients never see; one pass of a loader is kept in memory. The latest state whose
            squared errors there are not significantly above the lowest is what the module is left with.
        checks, tolerance, patience
            How often they are looked at, what is significant, and when training stops: as in :class:`cfiv.Training`.
        checkpoint : path, optional
            A file that is written after every ``every`` steps and at the end. Where it exists, the run continues from it, with
            the very same numbers as if it had never stopped, whatever the module's weights are now: always with arrays; with a
            DataLoader whose order and augmentation torch draws, without a generator or with the loader's own, and which
            otherwise yields the same batches in every pass. On cuda, up to kernels that do not give the same numbers twice.
            Needs a whole number as ``random_state``. Other data and another configuration are refused, as far as they are
            known; the module's code and its weights are not compared.
        every : int, optional
            1000 by default.
        on_step : callable, optional
            Called with the step's number and loss. It may predict and evaluate; what it draws changes no number of the run.
        max_seconds : float, optional
            Training stops after the step in which so many seconds are over, as it does after the last; ``ended_`` says so.

        Raises
        ------
        ParameterError
            If the module has no last linear map that can be solved, or moves the axis of the examples; for an optimiser that is
            none of these parameters or needs a closure, and any other argument out of its range.
        DataError
            For inputs that the module does not take, targets or labels that do not fit, values that are no finite numbers, or a
            loader that yields nothing.
        ModelFileError
            For a checkpoint of other data, another model or another configuration.
        DivergenceError
            If the very first step has no finite loss.
        TooLargeError
            If there is not enough memory.

        Warns
        -----
        TrainingWarning
            Where a loss was not finite or training was interrupted: it stops there, with the last good state.
        """
        check_max_seconds(max_seconds)
        deadline = Deadline.after(max_seconds)
        every = check_whole("every", 1000 if every is None else every, least=1)
        rule = Training(checks=checks, tolerance=tolerance, patience=patience)
        if on_step is not None:
            check_callable("on_step", on_step, "a callable of the step and its loss, or None")
        path = None if checkpoint is None else check_file_name("checkpoint", checkpoint)
        if path is not None and path.is_dir():
            raise refusal("checkpoint", "the name of a file", checkpoint, why="this is a folder, so name a file in it")
        seed = fresh_seed(self.random_state) if path is None else check_repeatable(self.random_state)
        device = resolve_device(self.device)
        with surround("fit", self.module, device=device):
            source = make_source(data, size=self.batch_size, seed=seed, finite=False)
            total = count_steps(source, epochs=epochs, steps=steps)
            if isinstance(source, ArraySource):
                check_width(source.everything, self.module)
            processes = here()
            if processes.count > 1:
                check_shareable(self.module)
            make_trainable(self.module).to(device)
            with Draws(seed, device).here(self.module, other_code=True):
                first = source.first()
                probe = place(first.rows(slice(3)), self.module).inputs
                head = find_last_linear_map(self.module, probe, name=self.last_module)
                shared = replace(head, processes=processes)
                if processes.count > 1:
                    begun = source.contents(first), total, seed, digest(tensors_of(self.module).values())
                    processes.check_alike("data, steps, seeds and the module's weights", source.description, *begun)
                self._schedules.check(total)
                judge = None
                if validation is not None:
                    held_out = make_source(validation, size=None, seed=seed)
                    check_columns(held_out.columns, training=source.columns)
                    judge = Validation(held_out.keep(), shared, self.task, rule=rule, steps=total, seed=seed)
            state = TrainerState.begin(shared, last_layer=self.last_layer, optimizer=self.optimizer)
            plan = Plan(
                recipe=self._recipe(),
                schedules=self._schedules,
                steps=total,
                seed=seed,
                on_step=on_step if processes.first else None,
                deadline=deadline,
            )
            file = None
            if path is not None:
                check_place(path)
                check_kept(self.module, "module")
                file = RunFile(path, every, describe_run(source, first, state, plan, judge))
            self.last_linear_map_, self._seed, self._columns = head, seed, source.columns  # for whoever watches the steps
            self._history: list[tuple[int, float]] = []
            self._validation_losses: dict[int, float] | None = None
            run = SupervisedRun(source, state, plan, file=file, validation=judge)
            with Draws(seed, device).here(self.module), in_mode(self.module, training=True):
                run.train()
            self._history, self.ended_ = run.history, run.ended
            self._validation_losses = None if judge is None else judge.losses
        return self

    @property
    def history_(self) -> pd.DataFrame:
        """One row a step."""
        import pandas as pd

        self._fitted()
        records = [(step, epoch + 1, loss) for step, (epoch, loss) in enumerate(self._history, start=1)]
        history = pd.DataFrame(records, columns=["step", "epoch", "loss"])
        if self._validation_losses is not None:
            history["validation_loss"] = history["step"].map(self._validation_losses).astype("float64")
        return history

    def _recipe(self) -> Recipe:
        return Recipe(self.last_layer, self.order, self.task, self.loss, self.mixed_precision)
