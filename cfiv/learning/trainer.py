"""The last-layer trainer: any torch module that ends in a linear map, trained with its last layer in closed form."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfiv.errors import NotFittedError, ParameterError
from cfiv.files import check_place
from cfiv.learning.devices import resolve_device
from cfiv.learning.draws import Draws, watched
from cfiv.learning.evaluation import Evaluation, evaluation, placed, predictions, refitted
from cfiv.learning.last_layer import ClosedForm, Gradient, Memory, OptimizerFactory, Proximal
from cfiv.learning.last_linear_map import LastLinearMap, in_mode, last_linear_map, trainable
from cfiv.learning.networks import check_kept
from cfiv.learning.run_file import RunFile, described, without_addresses
from cfiv.learning.supervised import Loss, Recipe, TrainerState
from cfiv.learning.supervised_data import Source, as_tensor, source
from cfiv.learning.supervised_loop import Plan, train
from cfiv.learning.surroundings import ordinary_torch
from cfiv.learning.tasks import Classification, Regression, Task
from cfiv.learning.training import Order, Schedule, Training

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
        Trained in place; from one tensor (n, ...) to one tensor. Its last linear map is a Linear, or a 1x1 convolution, for
        which every point of the grid is a row of the solve, so the resolution may change between batches. A bias is the weight
        of a constant feature, and is penalised like the others. The module's own last layer is the first W_prev.
    last_layer : Ridge, Proximal, Kalman, MovingAverage or Gradient
        From :mod:`cfiv.learning.last_layer`, and from :mod:`cfiv`. Proximal(lam=1.0) by default.
    last_module : str, optional
        Dotted name of the last linear map, where the last one that runs is not meant.
    optimizer : callable, optional
        From parameters to an optimiser of the backbone; ``partial(torch.optim.Adam, lr=1e-3)`` by default.
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
    random_state : int
        Source of the batches' order, of the module's own draws, such as dropout, and of those of loaders that would draw from
        torch's global generator, which is left alone.

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
        random_state: int = 0,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ParameterError(f"module must be a torch module, got {type(module).__name__}")
        self.module = module
        self.last_layer: ClosedForm | Gradient = Proximal(lam=1.0) if last_layer is None else last_layer
        solved = callable(getattr(self.last_layer, "update", None)) and not isinstance(self.last_layer, type | dict | set)
        if not isinstance(self.last_layer, Gradient) and not solved:
            raise ParameterError(
                f"last_layer must be Ridge, Proximal, Kalman, MovingAverage or Gradient, got {type(last_layer).__name__}"
            )
        for name, value, choices in (
            ("order", order, ("solve-first", "backbone-first")),
            ("task", task, ("regression", "classification")),
            ("loss", loss, ("squared", "cross-entropy")),
        ):
            if value not in choices:
                raise ParameterError(f"{name} must be one of {choices}, got {value!r}")
        if loss == "cross-entropy" and not (isinstance(self.last_layer, Gradient) and task == "classification"):
            raise ParameterError(
                "loss='cross-entropy' has no closed form: use last_layer=Gradient() and task='classification', or another loss"
            )
        if lambda_schedule != 1.0 and not isinstance(self.last_layer, Proximal):
            raise ParameterError(f"lambda_schedule is for Proximal, got {type(self.last_layer).__name__}: leave it out")
        self.last_module, self.optimizer, self.order, self.loss = last_module, optimizer, order, loss
        self._backbone_optimizer = ADAM if optimizer is None else optimizer
        self.task: Task = Classification(one_hot_scale) if task == "classification" else Regression()
        self.lambda_schedule, self.learning_rate_schedule = lambda_schedule, learning_rate_schedule
        self.batch_size, self.mixed_precision, self.random_state = batch_size, mixed_precision, random_state
        self.device = device
        if callable(lambda_schedule):
            self._lambda_factor = _factor(lambda_schedule)
        elif 0.0 <= lambda_schedule <= 1.0:
            self._lambda_factor = Training(lambda_start=lambda_schedule).lambda_factor
        else:
            raise ParameterError(f"lambda_schedule must be callable, or between 0 and 1, got {lambda_schedule!r}")
        if callable(learning_rate_schedule):
            self._rate_factor = _factor(learning_rate_schedule)
        else:
            self._rate_factor = Training(learning_rate_schedule=learning_rate_schedule).rate_factor

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
        data : tuple of arrays or tensors, or loader
            (inputs, targets) or (inputs, targets, row weights) of all examples; or a DataLoader, or anything that can be passed
            over again and again, of such batches. The weights of an example hold for all of its rows.
        epochs, steps : int
            One of them.
        checkpoint : path, optional
            A file that is written after every ``every`` steps and at the end. Where it exists, the run continues from it, with
            the very same numbers as if it had never stopped, whatever the module's weights are now: always with arrays; with a
            DataLoader whose order and augmentation torch draws, without a generator or with the loader's own, and which
            otherwise yields the same batches in every pass. Batches of the pass that was left are drawn again and passed over.
            On cuda, up to kernels that do not give the same numbers twice.
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
            If the module has no last linear map that can be solved.
        DataError
            For targets or labels that do not fit, or a loader that yields nothing.
        ModelFileError
            For a checkpoint of another model or configuration.
        DivergenceError
            If the very first step has no finite loss.

        Warns
        -----
        TrainingWarning
            Where a loss was not finite or training was interrupted: it stops there, with the last good state.
        """
        device = resolve_device(self.device)
        with self._surroundings(device):
            batches = source(data, size=self.batch_size, seed=self.random_state)
            total = _steps(batches, epochs=epochs, steps=steps)
            _check_count("every", 1000 if every is None else every)
            trainable(self.module).to(device)
            with Draws(self.random_state, device).here(self.module, other_code=True):
                probe = placed(batches.first().rows(slice(2)), self.module).inputs
                head = last_linear_map(self.module, probe, name=self.last_module)
            self.last_linear_map_ = head  # for whoever watches the steps
            self._history: list[tuple[int, float]] = []
            state = TrainerState(head, self._optimiser(head), Memory(head.weights))
            file = None
            if checkpoint is not None:
                check_place(Path(checkpoint))
                check_kept(self.module, "module")
                file = RunFile(Path(checkpoint), every or 1000, self._configuration(batches, state, total))
            plan = Plan(
                steps=total,
                seed=self.random_state,
                device=device,
                place=lambda batch: placed(batch, self.module),
                recipe=self._recipe,
                rate_factor=self._rate_factor,
                on_step=on_step,
                checkpoint=file,
            )
            draws = Draws(self.random_state, device).here(self.module)
            with draws, in_mode(self.module, training=True):
                self._history, self.ended_ = train(batches, state, plan, stacklevel=2)
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
    def predict(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]: ...

    def predict(self, inputs: Tensor | npt.NDArray[Any]) -> Tensor | npt.NDArray[Any]:
        """The module's output in evaluation mode, or the classes with the largest outputs.

        Parameters
        ----------
        inputs : Tensor or array (n, ...)
            Of any resolution that the module takes. It runs on at most ``evaluation.CHUNK`` examples at once.

        Returns
        -------
        Tensor or array
            Whichever was given; a tensor on the device of ``inputs``.
        """
        head = self._fitted()
        with self._surroundings(head.layer.weight.device):
            given = as_tensor(inputs)
            said = predictions(head, self.task, given).to(given.device)
        return said if isinstance(inputs, Tensor) else said.numpy()

    def evaluate(self, data: Any) -> Evaluation:
        """Losses and shares over all examples of data of the kind that ``fit`` takes, in evaluation mode."""
        head = self._fitted()
        device = head.layer.weight.device
        draws = Draws(self.random_state, device).here(self.module, other_code=True)  # loaders draw, be it only a seed
        with self._surroundings(device), draws:
            return evaluation(head, self.task, source(data, size=None, seed=0).epoch(0))

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
        device = head.layer.weight.device
        with self._surroundings(device), Draws(self.random_state, device).here(self.module, other_code=True):
            head.write(refitted(head, self.task, source(data, size=None, seed=0).epoch(0), beta=beta))
        return self

    def _surroundings(self, device: torch.device) -> AbstractContextManager[None]:
        """Whatever the caller has set in torch; a module in float64 may make tensors of the default dtype that fit it."""
        floats = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        return ordinary_torch(device=device, floats=floats)

    def _fitted(self) -> LastLinearMap:
        if not hasattr(self, "last_linear_map_"):
            raise NotFittedError("this LastLayerTrainer is not fitted yet: call fit(data, epochs=...) first")
        return self.last_linear_map_

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
        return make(parameters) if parameters else None

    def _configuration(self, batches: Source, state: TrainerState, steps: int) -> dict[str, Any]:
        """What has to be the same for a run to go on. Functions are compared by what they give at eleven places."""
        return {
            **described(self.module),
            "last_module": state.head.name,
            "last_layer": without_addresses(self.last_layer),
            "optimizer": without_addresses(state.optimiser),
            "order": self.order,
            "task": repr(self.task),
            "loss": self.loss,
            "lambda_schedule": [self._lambda_factor(tenth, 10) for tenth in range(11)],
            "learning_rate_schedule": [self._rate_factor(tenth, 10) for tenth in range(11)],
            "mixed_precision": self.mixed_precision,
            "random_state": self.random_state,
            "data": batches.description,
            "steps": steps,
        }


def _factor(schedule: Callable[[float], float]) -> Callable[[int, int], float]:
    """From the steps done, and all of them, to a checked factor."""

    def factor(done: int, steps: int) -> float:
        with watched():
            value = float(schedule(done / steps))
        if not 0.0 <= value < math.inf:
            raise ParameterError(f"a schedule must give factors that are finite and >= 0, got {value} at {done / steps:g}")
        return value

    return factor


def _steps(batches: Source, *, epochs: int | None, steps: int | None) -> int:
    """How many steps a fit takes."""
    if steps is not None and epochs is None:
        _check_count("steps", steps)
        return steps
    if epochs is None or steps is not None:
        raise ParameterError(f"give either epochs or steps, got epochs={epochs!r} and steps={steps!r}")
    _check_count("epochs", epochs)
    if batches.steps_per_epoch is None:
        raise ParameterError("the loader has no length, so a number of epochs is no number of steps: give steps= instead")
    return max(1, epochs * batches.steps_per_epoch)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(f"{name} must be a whole number >= 1, got {value!r}")
