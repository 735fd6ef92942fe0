"""Where the fits of an estimator are saved on their way: a folder with one file a fit, and what they are fits of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cfiv.checks import check_repeatable, check_whole
from cfiv.data import ROLES, Array
from cfiv.errors import OutputError
from cfiv.files import unwritable
from cfiv.learning.run_file import RunFile, described, without_addresses
from cfiv.learning.samples import Sample
from cfiv.learning.solving import describe_layer
from cfiv.runtime.digest import digest
from cfiv.tables.roles import column_names

#: Hyper-parameters that change no step.
WITHOUT_EFFECT = ("progress", "max_seconds")


@dataclass(frozen=True)
class SavedRuns:
    """Files of the fits of one estimator to one sample.

    Parameters
    ----------
    folder : Path
    every : int
        Steps between two writes.
    configuration : mapping
        Of the estimator.
    """

    folder: Path
    every: int
    configuration: Mapping[str, Any]

    @classmethod
    def of(cls, estimator: Any, folder: str | os.PathLike[str] | None, every: int) -> SavedRuns | None:
        """Make the folder, unless it is there; None where there is to be none.

        Raises
        ------
        ParameterError
            If ``every`` is no whole number >= 1, or the seed is not one that a second call would draw the same numbers from.
        OutputError
            If the folder cannot be made.
        """
        if folder is None:
            return None
        check_whole("every", every, least=1)
        check_repeatable(estimator.random_state)
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(unwritable(place, error)) from error
        parameters = {
            name: _described(name, value)
            for name, value in sorted(estimator.get_params(deep=False).items())
            if name not in WITHOUT_EFFECT
        }
        return cls(place, every, {"estimator": type(estimator).__name__, **parameters, "torch": torch.__version__})

    def file(self, name: str, *, sample: Sample, networks: Sequence[nn.Module], clusters: Array | None = None) -> RunFile:
        """That of one fit, which knows the sample, its groups, and the networks that it belongs to."""
        parts = [sample.outcome, sample.treatment, sample.instruments, sample.covariates, sample.weights]
        about = {
            "fit": name,
            "data": digest(parts if clusters is None else [*parts, torch.from_numpy(clusters)]),
            "networks": [described(module) for module in networks],
        }
        return RunFile(self.folder / f"{name}.safetensors", self.every, {**self.configuration, **about})


def _described(parameter: str, value: object) -> str:
    """A hyper-parameter as text. Names in an Index, an array or a Series count as the list of them, which leaves none out."""
    if parameter == "last_layer":
        layers = value if isinstance(value, tuple | list) else (value,)
        return ", ".join(describe_layer(layer) for layer in layers)
    if parameter in ROLES and not (value is None or isinstance(value, (str, list, tuple))):
        value = column_names(parameter, value)
    return without_addresses(value.item() if isinstance(value, np.generic) else value)
