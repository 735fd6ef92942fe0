"""Who a replication is: the seeds that follow from its coordinates, and the hash of all that its numbers depend on."""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from cfiv.errors import StudyError

#: Hyper-parameters that change no number, or that a study sets itself.
WITHOUT_EFFECT = ("progress", "random_state")
#: Packages whose versions every row has, so that of what is in them the name is enough.
VERSIONED = ("cfiv", "torch", "numpy", "scipy", "pandas", "sklearn", "linearmodels", "statsmodels")
#: What of a class is not its body.
NOT_BODY = ("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__")


def seed_of(*coordinates: Any) -> int:
    """A seed from coordinates alone, below 2^32: the first four bytes of a hash of them."""
    return int.from_bytes(_digest(description(coordinates), size=4), "big")


def configuration_hash(configuration: Any) -> str:
    """32 hexadecimal digits that change whenever :func:`description` of the configuration does."""
    return _digest(configuration, size=16).hex()


def description(value: Any) -> Any:
    """What a value is, as JSON, the same in every process.

    Functions and classes are their name; a person's own also the digest of their source, with a function's defaults and a
    class's bases, so that a changed one counts as another. What they call or read elsewhere in their module is not followed.
    Estimators are their class and ``get_params()``, without what a study sets itself where the value is one; arrays and tables
    are digests; other objects are what pickle would take them apart into.

    Raises
    ------
    StudyError
        If it has a part that pickle cannot take apart, such as a lock or an open file, or is nested too deeply.
    """
    try:
        return _described(value, ())
    except RecursionError:
        raise StudyError(
            f"a {type(value).__name__} of a design, a method or a metric is nested too deeply: give a function that makes it"
        ) from None


def _described(value: Any, around: tuple[int, ...]) -> Any:
    """The description of a part of what is ``around`` it, named by ids, outermost first."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in around:
        return {"around": len(around) - around.index(id(value))}

    def deeper(part: Any) -> Any:
        return _described(part, (*around, id(value)))

    simple = _of_simple(value, deeper)
    if simple is not None:
        return simple
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
    if hasattr(value, "get_params"):
        return {"object": deeper(type(value)), "state": _of_estimator(value, deeper, outermost=not around)}
    if dataclasses.is_dataclass(value):
        state = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"object": deeper(type(value)), "state": deeper(state)}
    if _is_network(value):
        return _of_network(value, deeper)
    return _taken_apart(value, deeper)


def _of_simple(value: Any, deeper: Callable[[Any], Any]) -> Any:
    """The description of what is data alone; None of everything else."""
    if isinstance(value, np.generic):
        return deeper(value.item())
    if isinstance(value, Mapping):
        return {str(key): deeper(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [deeper(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((deeper(item) for item in value), key=json.dumps)
    if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series, pd.Index)):
        return _of_array(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.blake2b(value, digest_size=16).hexdigest()}
    if isinstance(value, PurePath):  # which keeps its text once it has been shown
        return {"path": str(value)}
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if value is np.random.mtrand._rand:  # numpy's global one, whose state each replication sets
        return {"global": "numpy.random"}
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "numpy"):
        dense = value.detach().cpu().to_dense().resolve_conj().resolve_neg()
        wide = dense.float() if dense.dtype.itemsize < 4 and dense.dtype.is_floating_point else dense  # numpy has no bfloat16
        return {"tensor": str(value.dtype), **_of_array(wide.numpy())}
    return None


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


def _of_estimator(value: Any, deeper: Callable[[Any], Any], *, outermost: bool) -> dict[str, Any]:
    parameters = sorted(value.get_params(deep=False).items())
    draws_anew = _is_known(type(value))  # cfiv's estimators initialise a network that they are given
    return {
        name: _of_network(part, deeper, drawn_anew=True) if draws_anew and _is_network(part) else deeper(part)
        for name, part in parameters
        if not (outermost and name in WITHOUT_EFFECT)
    }


def _is_network(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _of_network(network: Any, deeper: Callable[[Any], Any], *, drawn_anew: bool = False) -> dict[str, Any]:
    """Layer by layer: its class, its attributes, its tensors, or their shapes alone where whoever has it draws them anew."""
    from cfiv.networks.build import can_be_drawn_anew

    layers: dict[str, Any] = {}
    for name, layer in network.named_modules():
        # What begins with _ is torch's own, and of recurrent layers it holds tensors once more.
        attributes = {
            key: part
            for key, part in sorted(vars(layer).items())
            if not key.startswith("_") or isinstance(part, (bool, int, float, str))
        }
        shapes_only = drawn_anew and can_be_drawn_anew(layer)
        weights = dict(layer.named_parameters(recurse=False))
        layers[name] = {
            "layer": deeper(type(layer)),
            "attributes": deeper(attributes),
            "weights": {key: f"{tuple(weight.shape)} {weight.dtype}" for key, weight in weights.items()}
            if shapes_only
            else deeper(weights),
            "buffers": deeper(dict(layer.named_buffers(recurse=False))),
        }
    return {"network": layers}


def _taken_apart(value: Any, deeper: Callable[[Any], Any]) -> dict[str, Any]:
    """An object as what makes it, from what, and its state: what pickle would write."""
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception as error:  # a lock's TypeError, or whatever a person's own __reduce__ raises
        raise StudyError(
            f"designs, methods and metrics are sent to other processes, and one cannot be pickled ({error}): give a function "
            "that makes it"
        ) from error
    if isinstance(reduced, str):  # a global's name
        wrapped = getattr(value, "__wrapped__", None)
        return {
            "name": f"{getattr(value, '__module__', None)}:{reduced}",
            **({} if wrapped is None else {"of": deeper(wrapped)}),
        }
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return {
        "object": deeper(type(value)),
        "made": [deeper(make), deeper(arguments)],
        "state": [deeper(_without_caches(part, type(value))) for part in parts],
        "items": [deeper(list(iterator)) for iterator in (items, pairs) if iterator is not None],
    }


def _without_caches(state: Any, kind: type) -> Any:
    """Attributes in the order of their names, but for those that are there only once somebody has asked for them."""
    if not isinstance(state, dict):
        return state
    cached = {name for base in kind.__mro__ for name, part in vars(base).items() if isinstance(part, functools.cached_property)}
    return {name: part for name, part in sorted(state.items(), key=lambda item: str(item[0])) if name not in cached}


def _of_array(value: Any) -> dict[str, Any]:
    if isinstance(value, pd.Series):
        value = value.to_frame()
    if isinstance(value, pd.DataFrame):
        columns = {str(name): _of_array(value.iloc[:, i].to_numpy()) for i, name in enumerate(value.columns)}
        return {"table": columns, "index": _of_array(value.index)}
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
    package = str(value.__module__).split(".")[0]
    return package in VERSIONED or _is_of_python(package)


@functools.cache
def _is_of_python(package: str) -> bool:
    """Whether a module is of Python's library, and no file of a person's with the name of one."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return package in sys.stdlib_module_names and (file is None or Path(file).is_relative_to(sysconfig.get_path("stdlib")))


def _defaults(value: types.FunctionType, deeper: Callable[[Any], Any]) -> dict[str, Any]:
    """What a function's arguments are where they are not given: its source does not say, of ``lambda seed, k=k: ...``."""
    defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
    return {} if _is_known(value) or not defaults else {"defaults": deeper(defaults)}


def _source(value: Any) -> dict[str, Any]:
    """The digest of what a person wrote; that of the compiled code where there is no file to read it from.

    Of a lambda it is always that of the code: the source that Python finds is that of whole lines, with what stands beside it,
    and ends where a line of it could be the last.
    """
    if _is_known(value):
        return {}
    try:
        text = _code(value) if value.__name__ == "<lambda>" else textwrap.dedent(inspect.getsource(value)).encode()
    except (OSError, TypeError):
        text = _code(value)
    return {"source": hashlib.blake2b(text, digest_size=16).hexdigest()}


def _code(value: Any) -> bytes:
    """What a function compiles to, or the body of a class."""
    code = value if isinstance(value, types.CodeType) else getattr(value, "__code__", None)
    if code is not None:
        parts = [_code(part) if isinstance(part, types.CodeType) else _ordered(part) for part in code.co_consts]
        own: bytes = code.co_code + repr((code.co_names, code.co_varnames, parts)).encode()
        return own
    body = []
    for name, part in sorted(vars(value).items()):
        functions = [getattr(part, of, None) for of in ("__func__", "fget", "fset", "func")]  # of class methods, properties
        found = [_code(function) for function in (part, *functions) if hasattr(function, "__code__")]
        body.append((name, found or ("" if name in NOT_BODY else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part)))))
    return repr(body).encode()


def _ordered(constant: Any) -> Any:
    """A constant as it is; of a set, whose order is another in every process, a list."""
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def _digest(value: Any, *, size: int) -> bytes:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=size).digest()
