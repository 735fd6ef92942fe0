"""A run on disk: everything that it takes to continue with the very same numbers, in a file that holds nothing executable.

See :mod:`cfiv.tensor_file` for how it lies there. The file takes the place of the one before only once it is whole, so a kill
at any moment leaves one that can be continued, and two processes may run the same run beside one another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cfiv.errors import ModelFileError, ParameterError
from cfiv.file_values import fields
from cfiv.runtime.module_state import tensors_of
from cfiv.runtime.processes import here
from cfiv.tensor_file import TensorFile, nested, short

#: Runs of another version are not continued.
FORMAT_VERSION = 4
RUN_FILE = TensorFile(
    key="cfiv-run",
    version=FORMAT_VERSION,
    digested=2,
    noun="checkpoint",
    remedy="give another file, or delete it",
    otherwise="use another optimizer or module",
    unsavable=ParameterError,
)
R = TypeVar("R")


@dataclass(frozen=True)
class RunFile:
    """Where a run is saved, after how many steps each time, and what it is a run of."""

    path: Path
    every: int
    configuration: Mapping[str, Any]

    def write(self, values: Mapping[str, Any]) -> None:
        """:func:`write_run`; of several processes the first one does, and the others wait."""
        processes = here()
        if processes.first:
            write_run(self.path, values, configuration=self.configuration)
        processes.first_says(True)

    def read(self, restore: Callable[[dict[str, Any]], R]) -> R | None:
        """What ``restore`` makes of :func:`read_run`; None where there is no file yet.

        What it raises because of values that it does not expect becomes a ModelFileError about this file.
        """
        if not self.path.exists():
            return None
        values = read_run(self.path, configuration=self.configuration)
        with RUN_FILE.reading(self.path):
            return restore(values)


def write_run(path: Path, values: Mapping[str, Any], *, configuration: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors, numbers, text and None, with the configuration that they belong to.

    Raises
    ------
    ParameterError
        If there is anything else among the values.
    OutputError
        If the place cannot be written to.
    """
    RUN_FILE.write(path, {"configuration": configuration, "values": values})


def read_run(path: Path, *, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`write_run` wrote, of the same configuration.

    Raises
    ------
    ModelFileError
        If the file is no run, of another model or configuration (the message names what differs), or cannot be read.
    """
    version, header, tensors = RUN_FILE.read(path)
    with RUN_FILE.reading(path):
        if version != FORMAT_VERSION:
            raise ModelFileError(
                f"the checkpoint '{path}' has format {version}, this cfiv continues {FORMAT_VERSION}: delete it, or go on "
                "with the cfiv that wrote it"
            )
        found = fields(nested(header, tensors), "configuration", "values")
        there, here = found["configuration"], json.loads(json.dumps(configuration))
        different = [
            f"{key} was {short(repr(there.get(key)))}, is {short(repr(here.get(key)))}"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        if different:
            raise ModelFileError(
                f"the checkpoint '{path}' belongs to another model or configuration ({'; '.join(different)}): give the same, "
                "or another checkpoint file"
            )
        values: dict[str, Any] = found["values"]
        return values


def draws_of(device: torch.device) -> list[Tensor]:
    """States of the generators that a module draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore_draws(draws: list[Tensor], device: torch.device) -> None:
    """Return to those states; that of another kind of device has no meaning here."""
    torch.set_rng_state(draws[0])
    if device.type == "cuda" and len(draws) > 1:
        torch.cuda.set_rng_state(draws[1], device)


def described(module: nn.Module) -> dict[str, Any]:
    """What tells one module from another in a configuration: its layers, and its tensors' names, shapes and types."""
    return {
        "module": without_addresses(module),
        "tensors": {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors_of(module).items()},
    }


def without_addresses(value: object) -> str:
    """Its repr, the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
