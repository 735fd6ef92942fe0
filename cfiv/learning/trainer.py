"""The last-layer trainer: any torch module that ends in a linear map, trained with its last layer in closed form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfiv.checks import (
    check_callable,
    check_choice,
    check_file_name,
    check_flag,
    check_instance,
    check_number,
    check_random_state,
    check_repeatable,
    check_whole,
    fresh_seed,
    refusal,
    shown,
)
from cfiv.errors import DataError, NotFittedError, ParameterError
from cfiv.files import check_place
from cfiv.learning.evaluation import Evaluation, check_width, evaluation, placed, predictions, refitted
from cfiv.learning.last_layer import ClosedForm, Gradient, Memory, Proximal
from cfiv.learning.last_linear_map import LastLinearMap, in_mode, last_linear_map, trainable
from cfiv.learning.networks import check_kept
from cfiv.learning.optimisers import OptimizerFactory, check_optimizer, made_optimiser
from cfiv.learning.run_file import RunFile, described, without_addresses
from cfiv.learning.samples import check_batch_size
from cfiv.learning.schedules import lambda_factor, places, rate_factor
from cfiv.learning.supervised import Loss, Recipe, TrainerState
from cfiv.learning.supervised_data import ArraySource, Examples, Source, source
from cfiv.learning.supervised_loop import Plan, train
from cfiv.learning.tasks import Classification, Regression, Task
from cfiv.learning.training import Order, Schedule
from cfiv.memory import within_memory
from cfiv.runtime.arrays import as_tensor, columns_of
from cfiv.runtime.devices import resolve_device
from cfiv.runtime.digest import digest
from cfiv.runtime.draws import Draws
from cfiv.runtime.surroundings import ordinary_torch

if TYPE_CHECKING:
    import pandas as pd

ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=1e-3)


class LastLayerTrainer:
    """Train the backbone by gradients and solve the last layer on every batch.

    For the features ``phi`` of the backbone, the rows of a batch, and penalties on the *mean* squared error,

        W = argmin_W  sum_i w_i |y_i - W' phi_i|^2  +  beta |W|^2  +  lam |W - W_prev|^2,       sum_i w_i = 1,

    or whatever else ``last_layer`` solves. The backbone descends the same mean squared error, without penalties, at W held
    fixed, which by the envelope theorem is the gradient of the minimised objective. The solves run in float64.

    Parameters
    ----------
    module : Module
        Trained in place; from one tensor (n, ...) to one tensor that begins with the n examples. Axes of length one do not
        count: a single output may have the shape (n,) or (n, 1), and so may its targets. Its last linear map is a Linear, or a
        1x1 convolution, for which every point of the grid is a row of the solve, so the resolution may change between batches.
        A bias is the weight of a constant feature, and is penalised like the others. The module's own last layer is the first
        W_prev.
    last_layer : Ridge, Proximal, Kalman, MovingAverage or Gradient
        From :mod:`cfiv.learning.last_layer`, and from :mod:`cfiv`. Proximal(lam=1.0) by default.
    last_module : str, optional
        Dotted name of the last linear map, where the last one that runs is not meant.
    optimizer : callable, optional
        From parameters to an optimiser of the backbone, of all of them and no others; ``partial(torch.optim.Adam, lr=1e-3)`` by
        default. One that needs a closure, such as LBFGS, is refused: a step has one loss.
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
        For arrays: examples of a batch; "auto" is 128, or all where there are fewer; None is all. Every pass leaves out its
        ragged tail.
    mixed_precision : bool
        Run the module under bfloat16 autocast while training. Features come in float32 to the loss, in float64 to the solve.
    device : str
        "auto" is cuda where there is one. The module is moved there by ``fit``, and stays there.
    random_state : int, Generator or None
        Source of the batches' order, of the module's own draws, such as dropout, and of those of loaders that would draw from
        torch's global generator, which is left alone: a whole number below 2^64 for the same numbers in every call of ``fit``,
        a numpy Generator for the next ones that it gives, None for others every time.

    Attributes
    ----------
    history_ : DataFrame
        One row a step: ``step``, ``epoch``, ``loss`` on the batch at the weights of the gradient, before the backbone moved.
    ended_ : {"finished", "interrupted", "diverged"}
    last_linear_map_ : LastLinearMap

    References
    ----------
    Galashov et al., arXiv 2510.04606: equation 9 (solve first), algorithm 1 (backbone first), theorems 1 and 2, appendix A.
    Hui and Belkin, arXiv 2006.07322 (classes). Starting from the module's own last layer is our choice.

    Examples
    --------
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
        self.module = module
        self.last_layer: ClosedForm | Gradient = Proximal(lam=1.0) if last_layer is None else last_layer
        solved = callable(getattr(self.last_layer, "update", None)) and not isinstance(self.last_layer, type | dict | set)
        if not isinstance(self.last_layer, Gradient) and not solved:
            raise refusal("last_layer", "Ridge, Proximal, Kalman, MovingAverage or Gradient", last_layer, kind=True)
        check_choice("order", order, ("solve-first", "backbone-first"))
        check_choice("task", task, ("regression", "classification"))
        check_choice("loss", loss, ("squared", "cross-entropy"))
        check_flag("mixed_precision", mixed_precision)
        check_instance("last_module", last_module, (str, NoneType), "the dotted name of a layer, or None")
        check_batch_size(batch_size)
        check_random_state(random_state, most=2**64 - 1)
        if optimizer is not None:
            check_optimizer(optimizer)
        if loss == "cross-entropy" and not (isinstance(self.last_layer, Gradient) and task == "classification"):
            raise ParameterError(
                "loss='cross-entropy' has no closed form: use last_layer=Gradient() and task='classification', or another loss"
            )
        self._lambda_factor, self._rate_factor = lambda_factor(lambda_schedule), rate_factor(learning_rate_schedule)
        if (callable(lambda_schedule) or lambda_schedule != 1.0) and not isinstance(self.last_layer, Proximal):
            raise ParameterError(f"lambda_schedule is for Proximal, got {type(self.last_layer).__name__}: leave it out")
        self.last_module, self.optimizer, self.order, self.loss = last_module, optimizer, order, loss
        self._backbone_optimizer = ADAM if optimizer is None else optimizer
        classes = Classification(one_hot_scale)  # checked in any case
        self.task: Task = classes if task == "classification" else Regression()
        self.lambda_schedule, self.learning_rate_schedule = lambda_schedule, learning_rate_schedule
        self.batch_size, self.mixed_precision, self.random_state = batch_size, mixed_precision, random_state
        self.device = device
        resolve_device(device)

    def fit(
        self,
        data: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | None = None,
        on_step: Callable[[int, float], object] | None = None,
    ) -> LastLayerTrainer:
        """Train for so many passes or steps, or continue the run that a checkpoint holds.

        Without one every call begins a new run, with a fresh optimiser and nothing remembered, from the module as it is.

        Parameters
        ----------
        data : tuple of arrays, tensors or tables, or loader
            (inputs, targets) or (inputs, targets, row weights) of all examples; or a DataLoader, or anything that can be passed
            over again and again, of such batches. The weights of an example hold for all of its rows. Arrays are what
            :class:`cfiv.IVData` takes: finite real numbers, nothing masked, tables with equal indices. Whole numbers stay
            whole, for embeddings, and complex inputs are for modules that take them.
        epochs, steps : int
            One of them.
        checkpoint : path, optional
            A file that is written after every ``every`` steps and at the end. Where it exists, the run continues from it, with
            the very same numbers as if it had never stopped, whatever the module's weights are now: always with arrays; with a
            DataLoader whose order and augmentation torch draws, without a generator or with the loader's own, and which
            otherwise yields the same batches in every pass. Batches of the pass that was left are drawn again and passed over.
            On cuda, up to kernels that do not give the same numbers twice. Needs a whole number as ``random_state``. Other data
            are refused: arrays, lists of batches, and DataLoaders of a TensorDataset or of a Subset of one, for any value that
            differs; other loaders for another kind, length, batch size or order, or another first batch. So is another module,
            last layer, optimiser, schedule or torch, another set of trained parameters, or another number of steps; the
            module's code and its weights are not compared.
        every : int, optional
            1000 by default.
        on_step : callable, optional
            Called with the step's number and loss. It may predict and evaluate; what it draws changes no number of the run.

        Returns
        -------
        LastLayerTrainer
            Itself.

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
        every = check_whole("every", 1000 if every is None else every, least=1)
        if on_step is not None:
            check_callable("on_step", on_step, "a callable of the step and its loss, or None")
        place = None if checkpoint is None else check_file_name("checkpoint", checkpoint)
        if place is not None and place.is_dir():
            raise refusal("checkpoint", "the name of a file", checkpoint, why="this is a folder, so name a file in it")
        seed = fresh_seed(self.random_state) if place is None else check_repeatable(self.random_state)
        device = resolve_device(self.device)
        with self._within_memory("fit"), self._surroundings(device):
            batches = source(data, size=self.batch_size, seed=seed, finite=False)
            total = _steps(batches, epochs=epochs, steps=steps)
            if isinstance(batches, ArraySource):
                check_width(batches.everything, self.module)
            trainable(self.module).to(device)
            with Draws(seed, device).here(self.module, other_code=True):
                first = batches.first()
                head = last_linear_map(self.module, placed(first.rows(slice(3)), self.module).inputs, name=self.last_module)
                self._check_schedules(total)
            state = TrainerState(head, self._optimiser(head), Memory(head.weights))
            file = None
            if place is not None:
                check_place(place)
                check_kept(self.module, "module")
                file = RunFile(place, every, self._configuration(batches, first, state, total))
            self.last_linear_map_ = head  # for whoever watches the steps
            self._history: list[tuple[int, float]] = []
            self._seed, self._columns = seed, batches.columns
            plan = Plan(
                steps=total,
                seed=seed,
                device=device,
                place=lambda batch: placed(batch, self.module),
                recipe=self._recipe,
                rate_factor=self._rate_factor,
                on_step=on_step,
                checkpoint=file,
            )
            with Draws(seed, device).here(self.module), in_mode(self.module, training=True):
                self._history, self.ended_ = train(batches, state, plan)
        return self

    @property
    def history_(self) -> pd.DataFrame:
        """One row a step."""
        import pandas as pd

        self._fitted()
        records = [(step, epoch + 1, loss) for step, (epoch, loss) in enumerate(self._history, start=1)]
        return pd.DataFrame(records, columns=["step", "epoch", "loss"])

    @overload
    def predict(self, inputs: Tensor) -> Tensor: ...

    @overload
    def predict(self, inputs: Any) -> npt.NDArray[Any]: ...

    def predict(self, inputs: Any) -> Tensor | npt.NDArray[Any]:
        """The module's output in evaluation mode, or the classes with the largest outputs.

        Parameters
        ----------
        inputs : Tensor, array or table (n, ...)
            Of any resolution that the module takes. It runs on at most ``evaluation.CHUNK`` examples at once.

        Returns
        -------
        Tensor or array
            A tensor, on the device of ``inputs``, where those are one; else an array.

        Raises
        ------
        DataError
            For inputs that are no finite numbers, or that the module does not take.
        """
        head = self._fitted()
        self._check_columns(columns_of(inputs))
        with self._within_memory("predict"), self._surroundings(head.layer.weight.device):
            given = as_tensor("inputs", inputs)
            if given.ndim == 0 or len(given) == 0:
                raise DataError(f"inputs must have at least one row, got shape {tuple(given.shape)}")
            said = predictions(head, self.task, given).to(given.device)
        if isinstance(inputs, Tensor):
            return said
        return (said.float() if said.dtype == torch.bfloat16 else said).numpy()  # numpy has no bfloat16

    def evaluate(self, data: Any) -> Evaluation:
        """Losses and shares over all examples of data of the kind that ``fit`` takes, in evaluation mode.

        Raises
        ------
        DataError
            For data that ``fit`` would refuse, and where the module's outputs are not finite.
        """
        head = self._fitted()
        with self._as_in_fit("evaluate", head):
            return evaluation(head, self.task, self._every_batch(data))

    def refit(self, data: Any, *, beta: float = 0.0) -> LastLayerTrainer:
        """Solve the last layer once more, on all rows of the data together, with features in evaluation mode; ours.

        Parameters
        ----------
        data
            As for ``fit``.
        beta : float
            Ridge on the mean squared error.
        """
        head = self._fitted()
        check_number("beta", beta, least=0.0)
        with self._as_in_fit("refit", head):
            head.write(refitted(head, self.task, self._every_batch(data), beta=beta))
        return self

    @contextmanager
    def _as_in_fit(self, method: str, head: LastLinearMap) -> Iterator[None]:
        device = head.layer.weight.device
        draws = Draws(self._seed, device).here(self.module, other_code=True)  # loaders draw, be it only a seed
        with self._within_memory(method), self._surroundings(device), draws:
            yield

    def _within_memory(self, method: str) -> AbstractContextManager[None]:
        return within_memory(f"LastLayerTrainer.{method}", "choose a smaller batch_size or module, or give fewer rows")

    def _surroundings(self, device: torch.device) -> AbstractContextManager[None]:
        """Whatever the caller has set in torch; a module in float64 may make tensors of the default dtype that fit it."""
        floats = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        return ordinary_torch(device=device, floats=floats)

    def _fitted(self) -> LastLinearMap:
        if not hasattr(self, "last_linear_map_"):
            raise NotFittedError("this LastLayerTrainer is not fitted yet: call fit(data, epochs=...) first")
        return self.last_linear_map_

    def _every_batch(self, data: Any) -> Iterator[Examples]:
        batches = source(data, size=None, seed=self._seed)
        self._check_columns(batches.columns)
        return batches.epoch(0)

    def _check_columns(self, columns: tuple[str, ...] | None) -> None:
        """Refuse a table with other columns than training had, or in another order."""
        if None not in (columns, self._columns) and columns != self._columns:
            raise DataError(f"inputs must have the columns of training, {list(self._columns or ())}, got {list(columns or ())}")

    def _check_schedules(self, steps: int) -> None:
        """Refuse schedules that give no factors before the first step, and not in the middle."""
        for done in places(steps):
            self._lambda_factor(done, steps)
            self._rate_factor(done, steps)

    def _recipe(self, done: int, steps: int) -> Recipe:
        layer = self.last_layer
        if isinstance(layer, Proximal):
            layer = replace(layer, lam=layer.lam * self._lambda_factor(done, steps))
        return Recipe(layer, self.order, self.task, self.loss, self.mixed_precision)

    def _optimiser(self, head: LastLinearMap) -> torch.optim.Optimizer | None:
        """Of the backbone, or of everything; None where nothing learns."""
        if isinstance(self.last_layer, Gradient):
            parameters = [p for p in self.module.parameters() if p.requires_grad]
            own = self.last_layer.optimizer
            make = own if own is not None else self._backbone_optimizer
        else:
            parameters, make = head.backbone(), self._backbone_optimizer
        return made_optimiser(make, parameters) if parameters else None

    def _configuration(self, batches: Source, first: Examples, state: TrainerState, steps: int) -> dict[str, Any]:
        """What has to be the same for a run to go on. Schedules are compared by their factors."""
        factors = [[factor(done, steps) for done in places(steps)] for factor in (self._lambda_factor, self._rate_factor)]
        layer = without_addresses(self.last_layer)
        if type(self.last_layer).__repr__ is object.__repr__:  # a layer of the user's own that does not say what it holds
            layer = f"{layer} {without_addresses(vars(self.last_layer))}"
        return {
            **described(self.module),
            "trained": [name for name, parameter in self.module.named_parameters() if parameter.requires_grad],
            "last_module": state.head.name,
            "last_layer": layer,
            "optimizer": without_addresses(state.optimiser),
            "order": self.order,
            "task": repr(self.task),
            "loss": self.loss,
            "lambda_schedule": [self._lambda_factor(tenth, 10) for tenth in range(11)],
            "learning_rate_schedule": [self._rate_factor(tenth, 10) for tenth in range(11)],
            "schedules": digest([torch.tensor(factors, dtype=torch.float64)]),
            "mixed_precision": bool(self.mixed_precision),
            "random_state": check_repeatable(self.random_state),
            "data": batches.description,
            "values of the data": batches.contents(first),
            "steps": steps,
            "torch": torch.__version__,
        }


def _steps(batches: Source, *, epochs: int | None, steps: int | None) -> int:
    """How many steps a fit takes."""
    if steps is not None and epochs is None:
        return check_whole("steps", steps, least=1)
    if epochs is None or steps is not None:
        raise ParameterError(f"give either epochs or steps, got epochs={shown(epochs)} and steps={shown(steps)}")
    epochs = check_whole("epochs", epochs, least=1)
    if batches.steps_per_epoch is None:
        raise ParameterError("the loader has no length, so a number of epochs is no number of steps: give steps= instead")
    return max(1, epochs * batches.steps_per_epoch)
