"""Who a replication is: the seeds that follow from its coordinates, and the hash of all that its numbers depend on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

#: Hyper-parameters that change no number, or that a study sets itself.
WITHOUT_EFFECT = ("progress", "random_state")


def seed_of(*coordinates: Any) -> int:
    """A seed from coordinates alone, below 2^32: the first four bytes of a hash of them."""
    return int.from_bytes(_digest(description(coordinates), size=4), "big")


def configuration_hash(configuration: Any) -> str:
    """32 hexadecimal digits that change whenever :func:`description` of the configuration does."""
    return _digest(configuration, size=16).hex()


def description(value: Any, depth: int = 0) -> Any:
    """What a value is, as JSON, the same in every process.

    Functions and classes are their name; those outside cfiv also the digest of their source, with a function's defaults and a
    class's bases, so that a changed one counts as another. What they call or read elsewhere in their module is not followed.
    Estimators are their class and ``get_params()``, other objects their class and attributes.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > 12:
        return type(value).__qualname__
    deeper = functools.partial(description, depth=depth + 1)
    if isinstance(value, np.generic):
        return deeper(value.item())
    if isinstance(value, Mapping):
        return {str(key): deeper(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [deeper(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((deeper(item) for item in value), key=json.dumps)
    if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series)):
        return _of_array(value)
    if isinstance(value, functools.partial):
        return {"partial": deeper(value.func), "args": deeper(value.args), "keywords": deeper(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": deeper(value.__self__), **_source(value.__func__)}
    if isinstance(value, types.FunctionType):
        closure = [deeper(cell.cell_contents) for cell in value.__closure__ or () if _filled(cell)]
        return {"function": _name(value), "closure": closure, **_source(value), **_defaults(value, deeper)}
    if isinstance(value, type):
        bases = [deeper(base) for base in value.__bases__ if not _is_known(base)]
        return {"name": _name(value), **_source(value), **({"bases": bases} if bases else {})}
    if isinstance(value, types.BuiltinFunctionType):
        return {"name": _name(value)}
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "numpy"):
        return _of_array(value.detach().cpu().numpy())
    return {"object": deeper(type(value)), "state": deeper(_state(value))}


def modules_in(described: Any) -> Iterator[str]:
    """Modules that a person wrote, or another package's, of which a :func:`description` has functions or classes."""
    if isinstance(described, Mapping):
        name = described.get("function", described.get("name"))
        if "source" in described and isinstance(name, str):
            yield name.split(":")[0]
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            yield from modules_in(part)


def file_digest(module: str) -> str | None:
    """The digest of a module's file as it is now; None where there is none. Does not import it, but what it is in.

    None of the main program's either: what is defined there is sent to other processes itself, not its name.
    """
    if module == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):  # whoever imports it will say so
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    try:
        return hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def _state(value: Any) -> Any:
    if hasattr(value, "get_params"):
        return {name: part for name, part in sorted(value.get_params(deep=False).items()) if name not in WITHOUT_EFFECT}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    attributes = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        attributes |= {name: getattr(value, name) for name in names if hasattr(value, name)}
    return dict(sorted(attributes.items())) if attributes else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _of_array(value: Any) -> dict[str, Any]:
    if isinstance(value, pd.DataFrame):
        return {"table": {str(name): _of_array(value[name]) for name in value.columns}, "index": _of_array(value.index)}
    array = np.ascontiguousarray(value)
    data = repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
    return {"array": f"{array.dtype} {array.shape}", "digest": hashlib.blake2b(data, digest_size=16).hexdigest()}


def _name(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a function that refers to itself, before it has a name
        return False
    return True


def _is_known(value: Any) -> bool:
    """Whether the ledger has the version of where it is from, so that its name is enough."""
    return str(value.__module__).split(".")[0] in ("cfiv", "builtins", "torch", "numpy", "sklearn")


def _defaults(value: types.FunctionType, deeper: Callable[[Any], Any]) -> dict[str, Any]:
    """What a function's arguments are where they are not given: its source does not say, of ``lambda seed, k=k: ...``."""
    defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
    return {} if _is_known(value) or not defaults else {"defaults": deeper(defaults)}


def _source(value: Any) -> dict[str, Any]:
    """The digest of what a person wrote; that of the compiled code where there is no file to read it from."""
    if _is_known(value):
        return {}
    try:
        text = textwrap.dedent(inspect.getsource(value)).encode()
    except (OSError, TypeError):
        text = _code(value)
    return {"source": hashlib.blake2b(text, digest_size=16).hexdigest()}


def _code(value: Any) -> bytes:
    if isinstance(value, types.CodeType):
        parts = [_code(part) if isinstance(part, types.CodeType) else _ordered(part) for part in value.co_consts]
        own: bytes = value.co_code + repr((value.co_names, parts)).encode()
        return own
    code = getattr(value, "__code__", None)
    if code is not None:
        return _code(code)
    return b"".join(_code(part) for _, part in sorted(vars(value).items()) if hasattr(part, "__code__"))


def _ordered(constant: Any) -> Any:
    """A constant as it is; of a set, whose order is another in every process, a list."""
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def _digest(value: Any, *, size: int) -> bytes:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=size).digest()
