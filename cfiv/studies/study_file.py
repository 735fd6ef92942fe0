"""Studies as TOML files, and those that ship with cfiv."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from cfiv.checks import check_file_name
from cfiv.errors import CfivError, ParameterError, StudyFileError, nearest
from cfiv.estimators import registry
from cfiv.estimators.estimator import StructuralEstimator
from cfiv.studies.design import Design, name_of
from cfiv.studies.method import Method, make_estimator
from cfiv.studies.metrics import KNOWN, AverageEffect, Band, Coefficient, Doubted, Interval, Metric
from cfiv.studies.study import Study, check_setting
from cfiv.studies.study_text import Source, read_text

#: Designs by the names that files use.
DESIGNS = {"demand": "cfiv.datasets.demand:simulate", "dsprites": "cfiv.datasets.dsprites:simulate"}
#: Metrics that take parameters.
PARAMETRIC: Mapping[str, Callable[..., Metric]] = {
    "average-effect": AverageEffect,
    "coefficient": Coefficient,
    "band": Band,
    "interval": Interval,
    "doubted": Doubted,
}
#: Keys of a file beside its tables, and the types of their values.
SETTINGS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "replications": int,
    "seed": int,
    "time_limit": (int, float),
    "threads": int,
    "ledger": str,
}
TABLES = ("designs", "methods", "metrics")


def read_study(path: str | os.PathLike[str]) -> Study:
    """The study that a TOML file describes.

    Parameters
    ----------
    path : path
        Of a file as ``cfiv study init`` writes it, with or without its ``.toml``, or the name of a shipped study
        (:func:`shipped`). The file's folder is added to ``sys.path``, for functions of one's own named ``"module:function"``.

    Returns
    -------
    Study
        Its ledger is beside the file, by default of the file's name; that of a shipped study is in the folder of the call.

    Raises
    ------
    StudyFileError
        If the file cannot be read, is larger or more deeply nested than a study is, or has an unknown key or value. The message
        names the key and its line, and the nearest known name.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ParameterError(f"a study is read from a file by its name, got {type(path).__name__}: give its path")
    place = Path(path)
    try:
        if not place.is_file() and Path(f"{path}.toml").is_file():
            place = Path(f"{path}.toml")
    except OSError as error:
        raise StudyFileError(f"'{path}' cannot be read as text: {error}") from error
    if not place.exists() and str(path) in shipped():
        return _study(shipped_text(str(path)), Path(f"{path}.toml"))
    try:
        text = read_text(place)
    except FileNotFoundError:
        hint = nearest(str(path), shipped())
        raise StudyFileError(f"there is no file '{path}', and no study of that name ships with cfiv: {hint}") from None
    folder = str(place.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return _study(text, place)


def shipped() -> list[str]:
    """The names of the studies that ship with cfiv."""
    folder = resources.files("cfiv.studies") / "shipped"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def shipped_text(name: str) -> str:
    """The file of a shipped study.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    if name not in shipped():
        raise ParameterError(f"no study {name!r} ships with cfiv: {nearest(name, shipped())}")
    return (resources.files("cfiv.studies") / "shipped" / f"{name}.toml").read_text(encoding="utf-8")


def _study(text: str, place: Path) -> Study:
    source = Source(text, place)
    content = source.content()
    for key, value in content.items():
        with source.at(key):
            if key in TABLES:
                _check_table(value)
            elif key not in SETTINGS:
                raise ParameterError(f"is unknown: {nearest(key, [*SETTINGS, *TABLES])}")
            elif not isinstance(value, SETTINGS[key]) or isinstance(value, bool):
                raise ParameterError(f"must be {_type_name(SETTINGS[key])}, got {value!r}")
            elif key == "ledger":
                check_file_name("ledger", value)
            else:
                check_setting(key, value)
    for table in ("designs", "methods"):
        if not content.get(table):
            raise StudyFileError(f"'{place}' has no {table}: a study needs at least one, [{table}.NAME]")
    parts: dict[str, dict[str, Any]] = {}
    for table, read in (("designs", _design), ("methods", _method), ("metrics", _metric)):
        parts[table] = {}
        for name, entry in content.get(table, {}).items():
            with source.at(table, name):
                _check_table(entry)
                parts[table][name] = read(source, name, dict(entry))
    settings = {key: value for key, value in content.items() if key in SETTINGS}
    if "name" not in settings:
        with source.at("name"):
            settings["name"] = _checked_name(place.stem)
    settings["ledger"] = place.parent / settings.get("ledger", f"{place.stem}.sqlite")
    try:
        return Study(designs=parts["designs"], methods=parts["methods"], metrics=parts["metrics"] or None, **settings)
    except CfivError as error:
        raise StudyFileError(f"'{place}': {error}") from error


def _checked_name(stem: str) -> str:
    """A file's name as the name of its study."""
    try:
        check_setting("name", stem)
    except ParameterError as error:
        raise ParameterError(f"{error} from the file: set name = ... in it, above the first table") from None
    return stem


def _design(source: Source, name: str, entry: dict[str, Any]) -> Design:
    function = _found(source, ("designs", name, "design"), entry.pop("design", name), DESIGNS, "design")
    _check_taken(source, ("designs", name), function, entry, without=("seed",))
    return Design(function, **entry)


def _method(source: Source, name: str, entry: dict[str, Any]) -> Method:
    given = entry.pop("estimator", name)
    preset, varied = entry.pop("preset", None), entry.pop("vary", {})
    known = {registered.name: f"{registered.module}:{registered.class_name}" for registered in registry.estimators()}
    make = _found(source, ("methods", name, "estimator"), given, known, "estimator")
    if preset is not None:
        with source.at("methods", name, "preset"):
            make = _preset(make, preset)
    with source.at("methods", name, "vary"):
        _check_table(varied)
        for key, values in varied.items():
            if not isinstance(values, list):
                raise ParameterError(f"{key} must be a list of values, got {values!r}")
        both = next((key for key in varied if key in entry), None)
        if both is not None:
            raise ParameterError(f"{both} is given beside vary as well: leave one of the two out")
    if not isinstance(make, type) and preset is None:  # a function of a seed
        _check_taken(source, ("methods", name), make, entry, without=("seed",))
        _check_taken(source, ("methods", name, "vary"), make, varied, without=("seed",))
        return Method(make, **{key: [value] if isinstance(value, list) else value for key, value in entry.items()}, **varied)
    signature = make if preset is None else make.__self__
    _check_taken(source, ("methods", name), signature, entry, without=("random_state",))
    _check_taken(source, ("methods", name, "vary"), signature, varied, without=("random_state",))
    if not hasattr(signature, "fit"):
        raise ParameterError(
            f"{signature.__name__} cannot be fitted: a method is a class with fit(data), or a function of a seed"
        )
    quiet = {"progress": False} if "progress" in inspect.signature(signature).parameters else {}
    try:
        model = make(**{**quiet, **entry})
    except CfivError:
        raise
    except Exception as error:  # a person's own class may raise anything
        raise ParameterError(f"{signature.__name__} cannot be made: it raised {type(error).__name__}: {error}") from error
    method = Method(model, **varied)
    with source.at("methods", name, *(["vary"] if varied else [])):
        for cell in method.cells():
            try:
                fresh = make_estimator(model, cell, seed=0)
            except CfivError:
                raise
            except Exception as error:
                reason = f"{signature.__name__} cannot be set to {cell}: it raised {type(error).__name__}: {error}"
                raise ParameterError(reason) from error
            if isinstance(fresh, StructuralEstimator):
                fresh.check()
    return method


def _metric(source: Source, name: str, entry: dict[str, Any]) -> Metric:
    kind = entry.pop("metric", name)
    if isinstance(kind, str) and kind in PARAMETRIC:
        metric = PARAMETRIC[kind]
        _check_taken(source, ("metrics", name), metric, entry)
        taken = inspect.signature(metric).parameters
        missing = [key for key, one in taken.items() if one.default is one.empty and key not in entry]
        if missing:
            raise ParameterError(f"{kind} needs {missing[0]!r} as well")
        return metric(**entry)
    if entry:
        raise ParameterError(f"{kind} takes no parameters, got {next(iter(entry))!r}: leave it out")
    places = {name: f"cfiv.studies.metrics:{function.__name__}" for name, function in KNOWN.items()}
    found: Metric = _found(source, ("metrics", name, "metric"), kind, places, "metric", others=PARAMETRIC)
    return found


def _found(
    source: Source,
    keys: tuple[str, ...],
    given: Any,
    known: Mapping[str, str],
    what: str,
    others: Mapping[str, Any] | None = None,
) -> Any:
    """A function or class by its known name, or as ``module:name``."""
    with source.at(*keys):
        if not isinstance(given, str):
            raise ParameterError(f"must be a name, got {given!r}")
        if ":" not in given and given not in known:
            hint = nearest(given, [*known, *(others or ())])
            raise ParameterError(f"there is no {what} {given!r}: {hint} (One of your own is 'module:name'.)")
        module, _, attribute = known.get(given, given).partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), attribute]) or module.endswith(".py"):
            raise ParameterError(f"must be 'module:name', such as 'my_module:my_{what}' for my_module.py, got {given!r}")
        imported = _imported(module) if given in known else _imported_beside(source.place, module)
        found = getattr(imported, attribute, None)
        if found is None:
            names = [name for name in vars(sys.modules[module]) if not name.startswith("_")]
            raise ParameterError(f"the module {module!r} has no {attribute!r}: {nearest(attribute, names)}")
        if not callable(found):
            raise ParameterError(f"{given!r} must be a function or a class, got {found!r}")
        return found


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            first = module.split(".")[0]
            raise ParameterError(f"there is no module {error.name!r}: put {first}.py beside the study file") from error
        raise ParameterError(f"the module {module!r} needs {error.name!r}, which is not installed") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a person's module may raise anything, SystemExit too
        raise ParameterError(f"the module {module!r} cannot be imported: it raised {type(error).__name__}: {error}") from error


def _imported_beside(place: Path, module: str) -> Any:
    """A module of a person's own: that beside the file, where there is one."""
    found = _imported(module)
    beside = place.resolve().parent / f"{module.split('.')[0]}.py"
    file = getattr(sys.modules[module.split(".")[0]], "__file__", None)
    if beside.is_file() and (file is None or Path(file).resolve() != beside.resolve()):
        raise ParameterError(
            f"{beside.name} beside the study is not the {module!r} that Python has, which is {file or 'its own'}: give it "
            "another name, or read the two in programs of their own"
        )
    return found


def _preset(estimator: Any, preset: Any) -> Any:
    presets = [name for name in ("original", "original_image") if hasattr(estimator, name)]
    if preset not in presets:
        hint = nearest(str(preset), presets) if presets else "leave preset out"
        raise ParameterError(f"{getattr(estimator, '__name__', estimator)} has no preset {preset!r}: {hint}")
    return getattr(estimator, preset)


def _check_taken(
    source: Source, keys: tuple[str, ...], function: Any, given: Mapping[str, Any], *, without: tuple[str, ...] = ()
) -> None:
    """Whether a function has all parameters that are given; the study gives those ``without``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # what is compiled need not say
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    taken = [name for name in parameters if name not in without]
    for name in given:
        with source.at(*keys, name):
            if name in without:
                raise ParameterError("is set by the study, for every replication anew: leave it out")
            if name not in taken and name in SETTINGS:
                raise ParameterError("is a setting of the study, and those stand above the first table: move it there")
            if name not in taken:
                raise ParameterError(f"{name_of(function)} takes no {name!r}: {nearest(name, taken)}")


def _check_table(value: Any) -> None:
    if not isinstance(value, dict):
        raise ParameterError(f"must be a table of names, got {value!r}")


def _type_name(kind: type | tuple[type, ...]) -> str:
    return {str: "text", int: "a whole number"}.get(kind, "a number")  # type: ignore[arg-type]
