"""A module that was trained: what it predicts, how good that is, and its last layer solved once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfiv.errors import DataError
from cfiv.learning.evaluation import Evaluation, evaluate, predict, refit
from cfiv.learning.last_linear_map import LastLinearMap
from cfiv.learning.supervised_data import Source, make_source
from cfiv.learning.tasks import Task
from cfiv.memory import within_memory
from cfiv.runtime.arrays import as_tensor, columns_of
from cfiv.runtime.draws import Draws
from cfiv.runtime.surroundings import ordinary_torch


class TrainedModule:
    """A module, and what has to be known of its training.

    Parameters
    ----------
    head : LastLinearMap
    task : Task
    seed : int
        Of what loaders draw.
    columns : tuple of str or None
        Of the inputs, where they were a table.
    """

    def __init__(self, head: LastLinearMap, task: Task, *, seed: int, columns: tuple[str, ...] | None) -> None:
        self._head, self._task, self._seed, self._columns = head, task, seed, columns

    def predict(self, inputs: Any) -> Tensor | npt.NDArray[Any]:
        """See :meth:`cfiv.LastLayerTrainer.predict`."""
        self._check_columns(columns_of(inputs))
        with surround("predict", self._head.module, device=self._device):
            given = as_tensor("inputs", inputs)
            if given.ndim == 0 or len(given) == 0:
                raise DataError(f"inputs must have at least one row, got shape {tuple(given.shape)}")
            predicted = predict(self._head, self._task, given).to(given.device)
        if isinstance(inputs, Tensor):
            return predicted
        return (predicted.float() if predicted.dtype == torch.bfloat16 else predicted).numpy()  # numpy has no bfloat16

    def evaluate(self, data: Any) -> Evaluation:
        """See :meth:`cfiv.LastLayerTrainer.evaluate`."""
        with self._as_in_fit("evaluate"):
            return evaluate(self._head, self._task, self.read(data).epoch(0))

    def refit(self, data: Any, *, beta: float) -> None:
        """See :meth:`cfiv.LastLayerTrainer.refit`."""
        with self._as_in_fit("refit"):
            self._head.write(refit(self._head, self._task, self.read(data).epoch(0), beta=beta))

    def read(self, data: Any) -> Source:
        """Data of the kind of those in training, in full batches where they are arrays."""
        source = make_source(data, size=None, seed=self._seed)
        self._check_columns(source.columns)
        return source

    def _check_columns(self, columns: tuple[str, ...] | None) -> None:
        """Refuse a table with other columns than training had, or in another order."""
        if None not in (columns, self._columns) and columns != self._columns:
            raise DataError(f"inputs must have the columns of training, {list(self._columns or ())}, got {list(columns or ())}")

    @property
    def _device(self) -> torch.device:
        return self._head.layer.weight.device

    @contextmanager
    def _as_in_fit(self, method: str) -> Iterator[None]:
        draws = Draws(self._seed, self._device).here(self._head.module, other_code=True)  # loaders draw, be it only a seed
        with surround(method, self._head.module, device=self._device), draws:
            yield


@contextmanager
def surround(method: str, module: nn.Module, *, device: torch.device) -> Iterator[None]:
    """Whatever the caller has set in torch; a module in float64 may make tensors of the default dtype that fit it."""
    floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    with (
        within_memory(f"LastLayerTrainer.{method}", "choose a smaller batch_size or module, or give fewer rows"),
        ordinary_torch(device=device, floats=floats),
    ):
        yield
