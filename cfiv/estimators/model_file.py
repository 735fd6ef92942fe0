"""Model files: safetensors with a JSON header. They hold numbers and names, nothing that can run.

Layout of the header, under the metadata key ``cfiv``: format version, library version, estimator, outcome, facts, the
encoder, and one entry a component. Tensors are named ``<component>/<what>/<parameter>``; complex numbers would have to be
viewed as real.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import cfiv
from cfiv.errors import CfivError, ModelFileError
from cfiv.estimators.components import Component, KernelComponent, LinearComponent, NetworkComponent
from cfiv.estimators.standardise import Standardiser
from cfiv.estimators.structural import ArrayEncoder, StructuralFunction
from cfiv.files import replacing
from cfiv.learning.architecture import describe, rebuild
from cfiv.learning.networks import seeded
from cfiv.numerics.kernels import KernelExpansion
from cfiv.tables.encoding import TableEncoder
from cfiv.tables.levels import plain_level
from cfiv.tables.parts import PartState
from cfiv.tables.roles import Roles

#: Raised whenever an older library could not read what a newer one writes.
FORMAT_VERSION = 3

KERNEL_TENSORS = ("points", "bandwidths", "coefficients")


def write_model(function: StructuralFunction, path: str | os.PathLike[str]) -> None:
    """Write a structural function; the file appears at ``path`` only once it is whole.

    Raises
    ------
    OutputError
        If the folder is missing or cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT_VERSION,
        "cfiv": cfiv.__version__,
        "estimator": function.estimator,
        "outcome": function.outcome,
        "facts": dict(function.facts),
        "encoder": _encoder_to_data(function.encoder, tensors),
        "components": [_component_to_data(c, f"component{i}", tensors) for i, c in enumerate(function.components)],
    }
    # One copy each: networks may share or view memory.
    whole = save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, {"cfiv": json.dumps(header)})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(whole)


def read_model(path: str | os.PathLike[str], *, networks: Mapping[str, Any]) -> StructuralFunction:
    """Read what :func:`write_model` wrote; see :func:`cfiv.load`."""
    name = os.fspath(path)
    unknown = set(networks) - {"treatment", "covariate"}
    if unknown:
        raise ModelFileError(f"networks takes the keys 'treatment' and 'covariate', got {sorted(unknown)}")
    try:
        with safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata["cfiv"])
            if not isinstance(header["format"], int):
                raise TypeError(f"format {header['format']!r}")
            if header["format"] > FORMAT_VERSION:
                raise ModelFileError(
                    f"{name!r} has format {header['format']} of cfiv {header['cfiv']}, and this cfiv {cfiv.__version__} "
                    f"reads up to format {FORMAT_VERSION}: install cfiv {header['cfiv']} or newer"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        encoder = _encoder_from_data(header["encoder"], tensors)
        shapes = _input_shapes(encoder)
        with seeded(0, torch.device("cpu")):  # layers draw weights before they get the file's
            components = tuple(
                _component_from_data(data, f"component{i}", tensors, networks, shapes)
                for i, data in enumerate(header["components"])
            )
        return StructuralFunction(
            estimator=header["estimator"],
            components=components,
            encoder=encoder,
            outcome=header["outcome"],
            facts=header["facts"],
        )
    except FileNotFoundError:
        raise ModelFileError(f"there is no model file {name!r}: check the path") from None
    except SafetensorError as error:
        raise ModelFileError(
            f"{name!r} is not a whole model file ({error}): it is truncated or another kind of file; save it again"
        ) from None
    except OSError as error:
        raise ModelFileError(f"the model file {name!r} cannot be read: {error.strerror or error}") from error
    except CfivError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ModelFileError(
            f"{name!r} was not written by cfiv, or was changed since ({type(error).__name__}: {error})"
        ) from error


def _component_to_data(component: Component, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(component, LinearComponent):
        tensors[f"{place}/treatment"] = torch.from_numpy(component.treatment.copy())
        tensors[f"{place}/covariates"] = torch.from_numpy(component.covariates.copy())
        return {"kind": "linear", "constant": component.constant}
    if isinstance(component, KernelComponent):
        for name in KERNEL_TENSORS:
            tensors[f"{place}/{name}"] = getattr(component.expansion, name)
        outcome = component.outcome_scale
        return {"kind": "kernel", "outcome_mean": float(outcome.mean), "outcome_scale": float(outcome.scale)}
    if isinstance(component, NetworkComponent):
        tensors[f"{place}/structural"] = component.structural
        networks: dict[str, Any] = {}
        for role, network in (("treatment", component.treatment_network), ("covariate", component.covariate_network)):
            if network is not None:
                tensors.update({f"{place}/{role}/{key}": value for key, value in network.state_dict().items()})
                networks[role] = describe(network) or {"custom": f"{type(network).__module__}.{type(network).__qualname__}"}
        for name in ("outcome_scale", "treatment_scale", "covariate_scale"):
            standardiser: Standardiser = getattr(component, name)
            tensors[f"{place}/{name}/mean"] = torch.from_numpy(np.array(standardiser.mean))
            tensors[f"{place}/{name}/scale"] = torch.from_numpy(np.array(standardiser.scale))
        return {"kind": "network", "structure": component.structure, "double": component.double, "networks": networks}
    raise ModelFileError(f"components of type {type(component).__name__} cannot be saved")


def _component_from_data(
    data: Mapping[str, Any],
    place: str,
    tensors: Mapping[str, Tensor],
    given: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> Component:
    if data["kind"] == "linear":
        return LinearComponent(data["constant"], tensors[f"{place}/treatment"].numpy(), tensors[f"{place}/covariates"].numpy())
    if data["kind"] == "kernel":
        # Copies, whose place in memory does not depend on the file: sums run in the same order.
        points, bandwidths, coefficients = (tensors[f"{place}/{name}"].clone() for name in KERNEL_TENSORS)
        if not points.shape == (len(coefficients), len(bandwidths)):
            raise ValueError(f"{len(coefficients)} coefficients and {len(bandwidths)} bandwidths for {tuple(points.shape)}")
        outcome_scale = Standardiser(np.asarray(float(data["outcome_mean"])), np.asarray(float(data["outcome_scale"])))
        return KernelComponent(KernelExpansion(points, bandwidths, coefficients), outcome_scale)
    if data["kind"] != "network":
        raise ModelFileError(
            f"the file has a component of the unknown kind {data['kind']!r}: it was changed, or written by another cfiv"
        )

    def network(role: str) -> nn.Module | None:
        description = data["networks"].get(role)
        if description is None:
            return None
        weights = {
            key.removeprefix(f"{place}/{role}/"): value for key, value in tensors.items() if key.startswith(f"{place}/{role}/")
        }
        if "custom" in description:
            module = _custom(role, description["custom"], given, shapes[role])
        else:
            module = rebuild(description)
        # Before the weights come in: a float32 module would round those of a float64 one.
        module = module.to(torch.float64 if data["double"] else torch.float32)
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            if "custom" not in description:
                raise
            raise ModelFileError(
                f"the {role} network given does not fit the file's weights: {str(error).splitlines()[-1].strip()}; give the "
                "architecture that was trained"
            ) from error
        return module.eval().requires_grad_(False)

    def scale(name: str) -> Standardiser:
        return Standardiser(tensors[f"{place}/{name}/mean"].numpy(), tensors[f"{place}/{name}/scale"].numpy())

    treatment = network("treatment")
    assert treatment is not None
    return NetworkComponent(
        treatment_network=treatment,
        covariate_network=network("covariate"),
        structural=tensors[f"{place}/structural"],
        structure=data["structure"],
        outcome_scale=scale("outcome_scale"),
        treatment_scale=scale("treatment_scale"),
        covariate_scale=scale("covariate_scale"),
        double=data["double"],
    )


def _input_shapes(encoder: TableEncoder | ArrayEncoder) -> dict[str, tuple[int, ...]]:
    """The shape of one input of each network, as factories were given it in training."""
    if isinstance(encoder, ArrayEncoder):
        return {"treatment": encoder.treatment_shape, "covariate": (encoder.covariates,)}
    covariates = () if encoder.covariates is None else encoder.covariates.columns
    return {"treatment": (len(encoder.treatment.columns),), "covariate": (len(covariates),)}


def _custom(role: str, name: str, given: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """A network of the user's own, with weights still to come."""
    if role not in given:
        raise ModelFileError(
            f"the file's {role} network is a {name}, whose code it does not hold: give load(path, "
            f"networks={{{role!r}: factory}})"
        )
    specification = given[role]
    if isinstance(specification, nn.Module):
        return copy.deepcopy(specification)
    try:
        network = specification(shape[0] if len(shape) == 1 else shape) if callable(specification) else specification
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"networks[{role!r}] makes no network for inputs of shape {shape} ({type(error).__name__}: {error}): give the "
            f"{name} that was trained"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelFileError(
            f"networks[{role!r}] must be a module or a factory of one, got {type(network).__name__}: give the {name} that "
            "was trained"
        )
    return network


def _encoder_to_data(encoder: TableEncoder | ArrayEncoder, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(encoder, ArrayEncoder):
        if encoder.reference is not None:
            tensors["reference"] = torch.from_numpy(encoder.reference)
        pixels = None if encoder.pixels is None else list(encoder.pixels)
        return {
            "kind": "array",
            "treatment_shape": list(encoder.treatment_shape),
            "covariates": encoder.covariates,
            "pixels": pixels,
        }
    parts = {role: getattr(encoder, role) for role in ("outcome", "treatment", "instruments", "covariates")}
    categories = {name for part in parts.values() if part is not None for name in part.levels}
    reference: list[dict[str, Any]] = []
    for i, name in enumerate(encoder.reference.columns):
        column = encoder.reference[name]
        number = pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype)
        if number and name not in categories:  # as floats, which hold no whole number of more than 53 bits
            tensors[f"reference/{i}"] = torch.from_numpy(column.to_numpy(dtype=np.float64, copy=True))
            reference.append({"name": name, "categories": None})
        else:
            codes, distinct = pd.factorize(column.astype(object), sort=False)
            tensors[f"reference/{i}"] = torch.from_numpy(codes.astype(np.int64))
            reference.append({"name": name, "categories": [_json(plain_level(value, name)) for value in distinct]})
    return {
        "kind": "table",
        "roles": asdict(encoder.roles),
        "parts": {role: None if part is None else _part_to_data(part) for role, part in parts.items()},
        "treatment_columns": list(encoder.treatment_columns),
        "reference": reference,
    }


def _encoder_from_data(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TableEncoder | ArrayEncoder:
    if data["kind"] == "array":
        reference = tensors["reference"].numpy() if "reference" in tensors else None
        pixels = data.get("pixels")  # not in files written before it was remembered
        grey = None if pixels is None else (float(pixels[0]), float(pixels[1]))
        return ArrayEncoder(tuple(data["treatment_shape"]), data["covariates"], reference, grey)
    columns = {}
    for i, column in enumerate(data["reference"]):
        values = tensors[f"reference/{i}"].numpy()
        if column["categories"] is None:
            columns[column["name"]] = pd.Series(values)
        else:
            distinct = [_unjson(level) for level in column["categories"]]
            columns[column["name"]] = pd.Series([distinct[code] for code in values], dtype=object)
    parts = data["parts"]
    return TableEncoder(
        roles=Roles(**data["roles"]),
        outcome=_part_from_data(parts["outcome"]),
        treatment=_part_from_data(parts["treatment"]),
        instruments=_part_from_data(parts["instruments"]),
        covariates=None if parts["covariates"] is None else _part_from_data(parts["covariates"]),
        treatment_columns=tuple(data["treatment_columns"]),
        reference=pd.DataFrame(columns),
    )


def _part_to_data(part: PartState) -> dict[str, Any]:
    return {
        "formula": part.formula,
        "columns": list(part.columns),
        "transform_state": _json(dict(part.transform_state)),
        "levels": [[name, [_json(level) for level in levels]] for name, levels in part.levels.items()],
        "intercept": part.intercept,
        "beside": part.beside,
    }


def _part_from_data(data: Mapping[str, Any]) -> PartState:
    return PartState(
        formula=data["formula"],
        columns=tuple(data["columns"]),
        transform_state=_unjson(data["transform_state"]),
        levels={name: tuple(_unjson(level) for level in levels) for name, levels in data["levels"]},
        intercept=data.get("intercept", True),  # files of format 2 had all parts beside a constant alone
        beside=data.get("beside"),
    )


def _json(value: Any) -> Any:
    """What a transform learned, as JSON, floats exact. Dictionaries become lists of pairs, since their keys may be numbers."""
    if isinstance(value, dict):
        return {"pairs": [[_json(key), _json(item)] for key, item in value.items()]}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, pd.Interval):
        return {"interval": [value.left, value.right, value.closed]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ModelFileError(
        f"a formula term keeps state of type {type(value).__name__}, which cannot be saved: compute that column first"
    )


def _unjson(value: Any) -> Any:
    if isinstance(value, dict):
        if "array" in value:
            return np.array(value["array"])
        if "interval" in value:
            return pd.Interval(*value["interval"])
        return {_unjson(key): _unjson(item) for key, item in value["pairs"]}
    if isinstance(value, list):
        return [_unjson(item) for item in value]
    return value
