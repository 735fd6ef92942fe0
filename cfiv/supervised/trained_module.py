"""A module that was trained: what it predicts, how good that is, and its last layer solved once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, overload

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfiv.checks import check_number
from cfiv.errors import DataError, NotFittedError
from cfiv.memory import within_memory
from cfiv.runtime.arrays import as_tensor, columns_of
from cfiv.runtime.draws import Draws
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.supervised.evaluation import Evaluation, evaluate, predict, refit
from cfiv.supervised.last_linear_map import LastLinearMap
from cfiv.supervised.sources import Source, make_source
from cfiv.supervised.tasks import Task


class TrainedModule:
    """What can be done with a module that ``fit`` of a subclass has trained.

    Attributes
    ----------
    last_linear_map_ : LastLinearMap
    task : Task
    """

    task: Task
    last_linear_map_: LastLinearMap
    #: Of what loaders draw, and of the inputs, where those in training were a table.
    _seed: int
    _columns: tuple[str, ...] | None

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
            On the device of ``inputs``, where those are a tensor.

        Raises
        ------
        DataError
            For inputs that are no finite numbers, or that the module does not take.
        """
        head = self._fitted()
        check_columns(columns_of(inputs), training=self._columns)
        with surround("predict", head.module, device=head.device):
            given = as_tensor("inputs", inputs)
            if given.ndim == 0 or len(given) == 0:
                raise DataError(f"inputs must have at least one row, got shape {tuple(given.shape)}")
            predicted = predict(head, self.task, given).to(given.device)
        if isinstance(inputs, Tensor):
            return predicted
        return (predicted.float() if predicted.dtype == torch.bfloat16 else predicted).numpy()  # numpy has no bfloat16

    def evaluate(self, data: Any) -> Evaluation:
        """Losses and shares over all examples of data of the kind that ``fit`` takes, in evaluation mode.

        Raises
        ------
        DataError
            For data that ``fit`` would refuse, and where the module's outputs are not finite.
        """
        with self._as_in_fit("evaluate") as head:
            return evaluate(head, self.task, self._read(data).epoch(0))

    def refit(self, data: Any, *, beta: float = 0.0) -> Self:
        """Solve the last layer once more, on all rows of the data together, with features in evaluation mode; ours.

        Parameters
        ----------
        data
            As for ``fit``.
        beta : float
            Ridge on the mean squared error.
        """
        check_number("beta", beta, least=0.0)
        with self._as_in_fit("refit") as head:
            head.write(refit(head, self.task, self._read(data).epoch(0), beta=beta))
        return self

    def _fitted(self) -> LastLinearMap:
        if not hasattr(self, "last_linear_map_"):
            raise NotFittedError("this LastLayerTrainer is not fitted yet: call fit(data, epochs=...) first")
        return self.last_linear_map_

    def _read(self, data: Any) -> Source:
        """Data of the kind of those in training, in full batches where they are arrays."""
        source = make_source(data, size=None, seed=self._seed)
        check_columns(source.columns, training=self._columns)
        return source

    @contextmanager
    def _as_in_fit(self, method: str) -> Iterator[LastLinearMap]:
        head = self._fitted()
        draws = Draws(self._seed, head.device).here(head.module, other_code=True)  # loaders draw, be it only a seed
        with surround(method, head.module, device=head.device), draws:
            yield head


def check_columns(columns: tuple[str, ...] | None, *, training: tuple[str, ...] | None) -> None:
    """Refuse a table with other columns than training had, or in another order."""
    if None not in (columns, training) and columns != training:
        raise DataError(f"inputs must have the columns of training, {list(training or ())}, got {list(columns or ())}")


@contextmanager
def surround(method: str, module: nn.Module, *, device: torch.device) -> Iterator[None]:
    """Whatever the caller has set in torch; a module in float64 may make tensors of the default dtype that fit it."""
    floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    with (
        within_memory(f"LastLayerTrainer.{method}", "choose a smaller batch_size or module, or give fewer rows"),
        ordinary_torch(device=device, floats=floats),
    ):
        yield
