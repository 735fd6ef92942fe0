"""Model files of formats 1 and 2, without a digest, as the values that today's hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def values_of_old(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a format-3 file of the same model would hold.

    In these formats tensors had names by their place, ``component0/treatment/layers.0.weight``, which the header did not
    mention, and tables of what transforms learned were marked ``pairs`` and ``array``.
    """
    owned = {name: tensor.clone() for name, tensor in tensors.items()}
    encoder = dict(header["encoder"])
    if encoder["kind"] == "array":
        encoder["reference"] = owned["reference"].numpy() if "reference" in owned else None
        encoder.setdefault("pixels", None)  # not in files written before they were remembered
        encoder["columns"] = {}
    else:
        encoder["roles"] = {"intercept": True, "weights": None, "clusters": None} | encoder["roles"]
        encoder["parts"] = {role: None if part is None else _part(part) for role, part in encoder["parts"].items()}
        encoder["reference"] = [
            {"name": column["name"], "categories": column["categories"], "values": owned[f"reference/{i}"].numpy()}
            for i, column in enumerate(encoder["reference"])
        ]
    components = [_component(values, f"component{i}/", owned) for i, values in enumerate(header["components"])]
    return {name: header[name] for name in ("estimator", "outcome", "facts")} | {"encoder": encoder, "components": components}


def _component(values: Mapping[str, Any], place: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    def scale(name: str) -> dict[str, Any]:
        return {what: tensors[f"{place}{name}/{what}"].numpy() for what in ("mean", "scale")}

    if values["kind"] == "linear":
        return {**values, **{role: tensors[f"{place}{role}"].numpy() for role in ("treatment", "covariates")}}
    if values["kind"] == "kernel":
        outcome = {what: np.asarray(float(values[f"outcome_{what}"])) for what in ("mean", "scale")}
        parts = {name: tensors[f"{place}{name}"] for name in ("points", "bandwidths", "coefficients")}
        return {"kind": "kernel", **parts, "outcome_scale": outcome}
    networks = {}
    for role in ("treatment", "covariate"):
        description, before = values["networks"].get(role), f"{place}{role}/"
        state = {name.removeprefix(before): tensor for name, tensor in tensors.items() if name.startswith(before)}
        whole = {"description": description, "state": {"tensors": state, "extra": {}}}
        networks[role] = None if description is None else whole
    scales = {name: scale(name) for name in ("outcome_scale", "treatment_scale", "covariate_scale")}
    return {**values, "networks": networks, "structural": tensors[f"{place}structural"], **scales}


def _part(values: Mapping[str, Any]) -> dict[str, Any]:
    # They were all coded beside a constant, and beside nothing else.
    return {**values, "transform_state": _learned(values["transform_state"]), "intercept": True, "beside": None}


def _learned(value: Any) -> Any:
    if isinstance(value, dict):
        if "array" in value:
            return np.array(value["array"])
        return {_learned(key): _learned(part) for key, part in value["pairs"]}
    return [_learned(part) for part in value] if isinstance(value, list) else value
