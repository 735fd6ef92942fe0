"""One file for nested values and tensors: safetensors with a JSON header and a digest of both; nothing in it can run.

The header holds dicts, lists, numbers, text and None as they are. What JSON has not stands as an object with one of these keys:

    $tensor   the name of a tensor, with its ``strides`` where it does not lie row by row, and ``complex`` where two real
              numbers of its last axis are one
    $array    the same, of a numpy array
    $pairs    a dict whose keys are not all text, as a list of pairs
    $float    nan, inf or -inf

The digest is over the header, in the order that it has, and over every tensor's name, type, shape and bytes, so that a file
that was damaged is never used. A file is read once, into memory: another process may replace it meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import cfiv
from cfiv.errors import CfivError, ModelFileError
from cfiv.files import replacing

#: Bytes of a header, as safetensors reads them at most; and how deeply values may be nested.
HEADER_BYTES, DEPTH = 100_000_000, 100
#: What reads files of other kinds, for the end of a message.
READ_BY = {"cfiv": ", or read it with cfiv.load", "cfiv-inference": ", or read it with cfiv.Inference.load"}
#: Bits of the largest whole number.
WHOLE_BITS = 4096
#: What reading values that are not those expected may raise, in python, numpy, pandas and torch.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A kind of file, with its words.

    Parameters
    ----------
    key : str
        Of the header among the metadata of safetensors.
    version : int
        Raised whenever an older library could not read what a newer one writes.
    digested : int
        The first version with a digest.
    noun : str
        What messages call it.
    remedy : str
        What to do about a file that cannot be used.
    otherwise : str
        What to do about values that it cannot hold.
    unsavable : type
        Of the error for these.
    """

    key: str
    version: int
    digested: int
    noun: str
    remedy: str
    otherwise: str
    unsavable: type[CfivError] = ModelFileError

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        """Write values under text keys; the file appears at ``path`` only once it is whole.

        Raises
        ------
        CfivError
            Of the kind ``unsavable``, for values other than the module says, or a header that could not be read again.
        OutputError
            If the place cannot be written to.
        """
        tensors: dict[str, Tensor] = {}
        try:
            plain = {name: _plain(value, name, tensors, 1) for name, value in values.items()}
            header = {"format": self.version, "cfiv": cfiv.__version__, **plain}
            signed = {**header, "digest": digest(header, tensors)}
            text = json.dumps(signed, allow_nan=False)
            whole = save(tensors, {self.key: text})
        except UnsavableError as error:
            raise self.unsavable(f"a {self.noun} holds tensors, numbers and text, got {error}: {self.otherwise}") from None
        except (KeyError, SafetensorError) as error:
            raise self.unsavable(
                f"a {self.noun} cannot hold all of the tensors ({type(error).__name__}: {error}): {self.otherwise}"
            ) from error
        if int.from_bytes(whole[:8], "little") > HEADER_BYTES:
            raise self.unsavable(
                f"a {self.noun} holds up to {HEADER_BYTES:,} bytes of text and numbers, got {len(text):,}: {self.otherwise}"
            )
        with replacing(path) as temporary:
            temporary.write_bytes(whole)

    def read(self, path: str | os.PathLike[str]) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        """The version, the values as they stand in the header, and the tensors by name; :func:`nested` puts them together.

        Raises
        ------
        ModelFileError
            If the file is missing, damaged, foreign, or of a newer version.
        """
        name = os.fspath(path)
        with self.reading(path):
            content = _content(name)
            tensors = load(content)  # looks first whether sizes and offsets are those of the file
            start = 8 + int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8:start])["__metadata__"]
            others = [key for key in metadata if key.startswith("cfiv")]
            if self.key not in metadata and others:
                raise ModelFileError(
                    f"{name!r} is no {self.noun}, but another file of cfiv ({others[0]!r}): name the {self.noun}"
                    f"{READ_BY.get(others[0], '')}"
                )
            header: dict[str, Any] = json.loads(metadata[self.key])
            version = header["format"]
            if type(version) is not int or version < 1:
                raise TypeError(f"format {short(version)}")
            if version > self.version:
                writer = f"cfiv {short(header['cfiv'])}"
                raise ModelFileError(
                    f"the {self.noun} {name!r} has format {version} of {writer}, and this cfiv {cfiv.__version__} reads up to "
                    f"format {self.version}: install {writer} or newer"
                )
            if version >= self.digested or "digest" in header:
                signed = header.pop("digest")
                if signed != digest(header, tensors):
                    raise ValueError("its digest is that of other content")
        return version, {part: value for part, value in header.items() if part not in ("format", "cfiv")}, tensors

    @contextmanager
    def reading(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """A ModelFileError about this file in the place of whatever values other than those expected lead to."""
        name = os.fspath(path)
        try:
            yield
        except ModelFileError:
            raise
        except FileNotFoundError:
            raise ModelFileError(f"there is no {self.noun} {name!r}: check the path") from None
        except OSError as error:
            raise ModelFileError(f"the {self.noun} {name!r} cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ModelFileError(
                f"{name!r} is not a whole {self.noun} ({error}): it is truncated or another kind of file; {self.remedy}"
            ) from None
        except DAMAGE as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelFileError(
                f"the {self.noun} {name!r} was not written by cfiv, or was changed since ({short(reason)}): {self.remedy}"
            ) from error


class UnsavableError(TypeError):
    """A value that no file can hold: what, and where."""


def check_savable(value: Any) -> None:
    """Raise an UnsavableError unless files can hold a value: tensors, numbers, text, None, and lists and dicts of them."""
    _plain(value, "value", {}, 1)


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of a header as JSON, and of all tensors by name."""
    hashed = hashlib.blake2b(json.dumps(header).encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def nested(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Values as they were written, each tensor in memory of its own, laid out as it was; tuples come back as lists.

    Raises
    ------
    Exception
        One of ``DAMAGE``, for anything else than what is written; within :meth:`TensorFile.reading`.
    """
    left = dict(tensors)
    found = {name: _nested(value, left, 1) for name, value in values.items()}
    if left:
        raise ValueError(f"nothing says what {len(left)} tensors are, {min(left)!r} among them")
    return found


def owned(tensor: Tensor) -> Tensor:
    """The tensor with the same layout in memory of its own, as one that comes from a file.

    Products round otherwise where memory begins or lies otherwise.
    """
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() and tensor.data_ptr() % 64 == 0
    return tensor if alone and not tensor.requires_grad else tensor.detach().clone()


def _plain(value: Any, place: str, tensors: dict[str, Tensor], depth: int) -> Any:
    if depth > DEPTH:
        raise UnsavableError(f"values nested more than {DEPTH} deep at {short(place)}")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        return {"$tensor": _kept(value, place, tensors)} | _layout(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        tensor = _of_array(value, place)
        return {"$array": _kept(tensor, place, tensors)} | _layout(tensor)
    if isinstance(value, Mapping):
        parts = {key: _plain(part, f"{place}/{key}", tensors, depth + 1) for key, part in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in parts):
            return parts
        return {"$pairs": [[_plain(key, f"{place}/{key}", tensors, DEPTH), part] for key, part in parts.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{place}/{i}", tensors, depth + 1) for i, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if value is None or isinstance(value, (bool, float, str)) or (isinstance(value, int) and value.bit_length() <= WHOLE_BITS):
        return value
    raise UnsavableError(f"a {type(value).__name__} at {short(place)}")


def _of_array(array: np.ndarray[Any, Any], place: str) -> Tensor:
    """With its layout, in the machine's byte order."""
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except TypeError:
        raise UnsavableError(f"an array of {array.dtype} at {short(place)}") from None


def _bare(tensor: Tensor) -> Tensor:
    """Without what safetensors has not: complex numbers and views that negate."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _kept(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    """The name under which a copy is kept: for reading by people, not by programs."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UnsavableError(f"a tensor that is not dense at {short(place)}")
    plain = re.sub(r"[^\w/.-]", "_", place, flags=re.ASCII)[:200]
    name = plain if plain not in tensors else f"{plain}-{len(tensors)}"
    # A copy each: safetensors refuses memory that two tensors share.
    tensors[name] = _bare(tensor).cpu().clone(memory_format=torch.contiguous_format)
    return name


def _layout(tensor: Tensor) -> dict[str, Any]:
    """How a copy of it lies in memory, where that is not row by row."""
    bare = _bare(tensor)
    strides = torch.empty_like(bare, device="meta").stride()
    plain = not bare.numel() or strides == torch.empty(bare.shape, device="meta").stride()
    return ({} if plain else {"strides": list(strides)}) | ({"complex": True} if tensor.is_complex() else {})


def _nested(value: Any, tensors: dict[Any, Tensor], depth: int) -> Any:
    if depth > DEPTH:
        raise ValueError(f"values are nested more than {DEPTH} deep")
    if isinstance(value, list):
        return [_nested(part, tensors, depth + 1) for part in value]
    if not isinstance(value, dict):
        return value
    mark: str
    content: Any
    mark, content = next(iter(value.items()), ("", None))
    options = {name: option for name, option in value.items() if name != mark}
    if not mark.startswith("$"):
        return {name: _nested(part, tensors, depth + 1) for name, part in value.items()}
    if mark in ("$tensor", "$array") and set(options) <= {"strides", "complex"}:
        tensor = _laid_out(tensors.pop(content), options.get("strides"))
        tensor = torch.view_as_complex(tensor) if "complex" in options else tensor
        return tensor if mark == "$tensor" else tensor.numpy()
    if mark == "$pairs" and not options:
        found = {_nested(key, tensors, DEPTH): _nested(part, tensors, depth + 1) for key, part in content}
        if len(found) < len(content):
            raise ValueError("a key is there twice")
        return found
    if mark == "$float" and not options and content in ("nan", "inf", "-inf"):
        return float(content)
    raise ValueError(f"an unknown mark {short(mark)}")


def _laid_out(tensor: Tensor, strides: list[int] | None) -> Tensor:
    """A copy that lies in memory as the one that was written: each number at a place of its own, and none between them."""
    if strides is None:
        return tensor.clone()
    dense, expected = 1, True
    for stride, size in sorted(zip(strides, tensor.shape, strict=True)):
        expected &= type(stride) is int and 0 <= stride < 2**62 and (size <= 1 or stride == dense)
        dense *= size
    if not expected or not dense:
        raise ValueError(f"strides {short(strides)} of shape {tuple(tensor.shape)}")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _content(name: str) -> bytes:
    """The whole file as it is now; what replaces or cuts it afterwards changes nothing."""
    status = os.stat(name)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe would be waited for without end
        raise OSError("it is not a regular file")
    with open(name, "rb") as file:
        return file.read(status.st_size)


def short(value: object) -> str:
    """For a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
