"""A run on disk: everything that it takes to continue with the very same numbers, in a file that holds nothing executable.

Safetensors with a JSON header: tensors by name, and beside them the shape of the nested values that they came from. The file
takes the place of the one before only once it is whole, so a kill at any moment leaves one that can be continued.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cfiv.errors import ModelFileError, ParameterError
from cfiv.files import replacing
from cfiv.learning.module_state import tensors_of

#: Raised whenever an older library could not continue what a newer one wrote.
FORMAT_VERSION = 2


@dataclass(frozen=True)
class RunFile:
    """Where a run is saved, after how many steps each time, and what it is a run of."""

    path: Path
    every: int
    configuration: Mapping[str, Any]

    def write(self, values: Mapping[str, Any]) -> None:
        """:func:`write_run`."""
        write_run(self.path, values, configuration=self.configuration)

    def read(self) -> dict[str, Any] | None:
        """:func:`read_run`; None where there is no file yet."""
        return read_run(self.path, configuration=self.configuration) if self.path.exists() else None


def write_run(path: Path, values: Mapping[str, Any], *, configuration: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors, numbers, text and None, with the configuration that they belong to.

    Raises
    ------
    ParameterError
        If there is anything else among the values.
    OutputError
        If the place cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    header = {"format": FORMAT_VERSION, "configuration": configuration, "values": plain(values, tensors)}
    whole = save(tensors, {"cfiv-run": json.dumps(header)})
    with replacing(path) as temporary:
        temporary.write_bytes(whole)


def read_run(path: Path, *, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`write_run` wrote, of the same configuration.

    Raises
    ------
    ModelFileError
        If the file is no run, of another model or configuration (the message names what differs), or cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["cfiv-run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT_VERSION:
            raise ModelFileError(f"the checkpoint '{path}' has format {header['format']}, this cfiv continues {FORMAT_VERSION}")
        there, here = header["configuration"], json.loads(json.dumps(configuration))
        different = [
            f"{key} was {_short(there.get(key))}, is {_short(here.get(key))}"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        if different:
            raise ModelFileError(
                f"the checkpoint '{path}' belongs to another model or configuration ({'; '.join(different)}): give the same, "
                "or another checkpoint file"
            )
        values: dict[str, Any] = nested(header["values"], tensors)
        return values
    except SafetensorError as error:
        raise ModelFileError(f"'{path}' is not a whole checkpoint ({error}): give another file, or delete it") from None
    except OSError as error:
        raise ModelFileError(f"the checkpoint '{path}' cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"'{path}' is not a checkpoint of a training run: give another file") from error


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


def plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON in which tensors are names; dicts are lists of pairs, since their keys may be numbers."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        # Copies: safetensors refuses memory that two tensors share, and complex numbers of some widths.
        bare = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        copy = bare.detach().cpu().clone()
        tensors[name] = copy.contiguous()
        return {"tensor": name, "complex": value.is_complex(), "strides": copy.stride()}
    if isinstance(value, Mapping):
        return {"items": [[key, plain(part, tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return [plain(part, tensors) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ParameterError(
        f"a file holds tensors, numbers and text, got a {type(value).__name__}: use another optimizer or module"
    )


def nested(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of :func:`plain`."""
    if isinstance(value, list):
        return [nested(part, tensors) for part in value]
    if isinstance(value, dict):
        if "items" in value:
            return {key: nested(part, tensors) for key, part in value["items"]}
        tensor = tensors[value["tensor"]]
        # As it lay in memory: a product with the same numbers in another layout rounds otherwise.
        laid_out = torch.empty_strided(tensor.shape, value["strides"], dtype=tensor.dtype).copy_(tensor)
        return torch.view_as_complex(laid_out) if value["complex"] else laid_out
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
