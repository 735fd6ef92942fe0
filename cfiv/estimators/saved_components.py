"""Components as nested values of a model file, and back: compared with what the file's encoder and networks call for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.errors import ModelFileError
from cfiv.estimators.components import (
    Component,
    KernelComponent,
    LinearComponent,
    NetworkComponent,
    SieveComponent,
    SmoothComponent,
)
from cfiv.estimators.corrected import CorrectedBasis, CorrectedComponent, MeanComponent
from cfiv.estimators.saved_sieves import choice_from_values, choice_to_values, sieve_from_values, sieve_to_values
from cfiv.estimators.saved_smooth import smooth_from_values, smooth_to_values
from cfiv.estimators.units import Standardiser
from cfiv.file_values import choice, fields, flag, listed, number, numbers, tensor_of, text
from cfiv.networks.architecture import bounded, describe, rebuild
from cfiv.networks.build import copied, made_ready
from cfiv.networks.feature_maps import evaluate
from cfiv.numerics.kernels import KernelExpansion, Line
from cfiv.numerics.two_stage import structural_features
from cfiv.runtime.module_state import cast, extra_of, misfit, put, tensors_of
from cfiv.tensor_file import DAMAGE

#: Numbers of one treatment, and of one layer's output for it, beyond which a file is not believed.
LARGEST = 2**28


@dataclass(frozen=True)
class Inputs:
    """What a structural function is asked at.

    Parameters
    ----------
    treatment : tuple of int
        Shape of one treatment.
    covariates : int
        Number of covariate columns.
    """

    treatment: tuple[int, ...]
    covariates: int

    @property
    def width(self) -> int:
        """Numbers of one treatment, flat, with its covariates."""
        return math.prod(self.treatment) + self.covariates

    def of(self, role: str) -> tuple[int, ...]:
        """The shape of one input of a network, as factories were given it in training."""
        return self.treatment if role == "treatment" else (self.covariates,)


def component_to_values(component: Component) -> dict[str, Any]:
    """All that :func:`component_from_values` needs but the code of networks of one's own."""
    if isinstance(component, LinearComponent):
        return {
            "kind": "linear",
            "constant": float(component.constant),
            "treatment": component.treatment,
            "covariates": component.covariates,
        }
    if isinstance(component, KernelComponent):
        expansion = component.expansion
        return {
            "kind": "kernel",
            "points": expansion.points,
            "bandwidths": expansion.bandwidths,
            "coefficients": expansion.coefficients,
            "line": None if expansion.line is None else dict(vars(expansion.line)),
            "outcome_scale": _scale_to_values(component.outcome_scale),
        }
    if isinstance(component, SieveComponent):
        return {
            "kind": "sieve",
            "basis": sieve_to_values(component.basis),
            "coefficients": component.coefficients,
            "choice": None if component.choice is None else choice_to_values(component.choice),
            "undersmoothed": None if component.undersmoothed is None else component_to_values(component.undersmoothed),
        }
    if isinstance(component, SmoothComponent):
        return {
            "kind": "smooth",
            "basis": smooth_to_values(component.basis),
            "coefficients": component.coefficients,
            "outcome_scale": _scale_to_values(component.outcome_scale),
        }
    if isinstance(component, NetworkComponent):
        networks = {"treatment": component.treatment_network, "covariate": component.covariate_network}
        return {
            "kind": "network",
            "structure": component.structure,
            "double": component.double,
            "structural": component.structural,
            "networks": {role: None if network is None else _network_to_values(network) for role, network in networks.items()},
            "outcome_scale": _scale_to_values(component.outcome_scale),
            "treatment_scale": _scale_to_values(component.treatment_scale),
            "covariate_scale": _scale_to_values(component.covariate_scale),
        }
    if isinstance(component, CorrectedComponent):
        return {
            "kind": "corrected",
            "splines": sieve_to_values(component.basis.splines),
            "functions": [
                {"components": [component_to_values(part) for part in function.components], "shares": list(function.shares)}
                for function in component.basis.functions
            ],
            "coefficients": component.coefficients,
        }
    raise ModelFileError(f"components of type {type(component).__name__} cannot be saved")


def component_from_values(values: Any, inputs: Inputs, given: Mapping[str, Any]) -> Component:
    """A component for such inputs.

    Parameters
    ----------
    values : dict
    inputs : Inputs
        Of the file's encoder.
    given : mapping
        Factories or modules of networks of one's own, by role.

    Raises
    ------
    ModelFileError
        If a network of one's own is needed, or what was given does not fit.
    Exception
        One of :data:`cfiv.tensor_file.DAMAGE`, for values that do not fit the inputs or one another.
    """
    kind = values["kind"]
    if kind == "linear":
        fields(values, "kind", "constant", "treatment", "covariates")
        (columns,) = inputs.treatment
        covariates = numbers(values["covariates"], (inputs.covariates,))
        return LinearComponent(number(values["constant"]), numbers(values["treatment"], (columns,)), covariates)
    if kind == "kernel":
        values = {"line": None, **values}  # not in files of before there were lines
        fields(values, "kind", "points", "bandwidths", "coefficients", "line", "outcome_scale")
        rows = len(values["points"])
        expansion = KernelExpansion(
            points=tensor_of(values["points"], (rows, inputs.width), torch.float64),
            bandwidths=tensor_of(values["bandwidths"], (inputs.width,), torch.float64),
            coefficients=tensor_of(values["coefficients"], (rows,), torch.float64),
            line=None if values["line"] is None else _line_from_values(values["line"], inputs.width),
        )
        if not bool((expansion.bandwidths > 0).all()):
            raise ValueError("a bandwidth is not positive")
        return KernelComponent(expansion, _scale_from_values(values["outcome_scale"], ()))
    if kind == "sieve":
        return _sieve_component(values, inputs)
    if kind == "smooth":
        fields(values, "kind", "basis", "coefficients", "outcome_scale")
        (columns,) = inputs.treatment
        smooth = smooth_from_values(values["basis"], treatments=columns, covariates=inputs.covariates)
        coefficients = numbers(values["coefficients"], (len(smooth.structural_parts),))
        return SmoothComponent(smooth, coefficients, _scale_from_values(values["outcome_scale"], (1,)))
    if kind == "corrected":
        return _corrected_component(values, inputs, given)
    choice(kind, ("network",))
    return _network_component(values, inputs, given)


def _line_from_values(values: Any, width: int) -> Line:
    fields(values, "constant", "slopes", "centre")
    shapes: dict[str, tuple[int, ...]] = {"constant": (), "slopes": (width,), "centre": (width,)}
    return Line(**{name: tensor_of(values[name], shape, torch.float64) for name, shape in shapes.items()})


def _sieve_component(values: Any, inputs: Inputs) -> SieveComponent:
    fields(values, "kind", "basis", "coefficients", "choice", "undersmoothed")
    choice(values["kind"], ("sieve",))
    (columns,) = inputs.treatment
    basis = sieve_from_values(values["basis"], treatments=columns, covariates=inputs.covariates)
    chosen, wider = values["choice"], values["undersmoothed"]
    return SieveComponent(
        basis,
        numbers(values["coefficients"], (basis.width,)),
        None if chosen is None else choice_from_values(chosen, treatments=columns, covariates=inputs.covariates),
        None if wider is None else _sieve_component(wider, inputs),
    )


def _corrected_component(values: Any, inputs: Inputs, given: Mapping[str, Any]) -> CorrectedComponent:
    fields(values, "kind", "splines", "functions", "coefficients")
    (columns,) = inputs.treatment
    splines = sieve_from_values(values["splines"], treatments=columns, covariates=inputs.covariates)
    functions = tuple(_mean_component(one, inputs, given) for one in listed(values["functions"]))
    coefficients = numbers(values["coefficients"], (splines.width + len(functions),))
    return CorrectedComponent(CorrectedBasis(splines, functions), coefficients)


def _mean_component(values: Any, inputs: Inputs, given: Mapping[str, Any]) -> MeanComponent:
    fields(values, "components", "shares")
    components = tuple(component_from_values(one, inputs, given) for one in listed(values["components"]))
    shares = tuple(number(share) for share in listed(values["shares"]))
    if not components or len(shares) not in (0, len(components)):
        raise ValueError(f"{len(shares)} shares of {len(components)} components")
    return MeanComponent(components, shares)


def _network_component(values: dict[str, Any], inputs: Inputs, given: Mapping[str, Any]) -> NetworkComponent:
    scales = ("outcome_scale", "treatment_scale", "covariate_scale")
    fields(values, "kind", "structure", "double", "structural", "networks", *scales)
    structure, double = choice(values["structure"], ("product", "additive")), flag(values["double"])
    fields(values["networks"], "treatment", "covariate")
    if (values["networks"]["covariate"] is None) != (inputs.covariates == 0):
        raise ValueError(f"a covariate network for {inputs.covariates} covariates")
    networks: dict[str, nn.Module] = {}
    features: dict[str, Tensor] = {}
    for role, described in values["networks"].items():
        if described is not None:
            networks[role], features[role] = _network(role, described, inputs.of(role), given, double=double)
    together = structural_features(
        treatment_features=features["treatment"], covariate_features=features.get("covariate"), structure=structure
    )
    columns = inputs.treatment if len(inputs.treatment) == 1 else ()
    return NetworkComponent(
        treatment_network=networks["treatment"],
        covariate_network=networks.get("covariate"),
        structural=tensor_of(values["structural"], (together.shape[1], 1), torch.float64),
        structure=structure,
        outcome_scale=_scale_from_values(values["outcome_scale"], (1,)),
        treatment_scale=_scale_from_values(values["treatment_scale"], columns),
        covariate_scale=_scale_from_values(values["covariate_scale"], (inputs.covariates,)),
        double=double,
    )


def _network_to_values(network: nn.Module) -> dict[str, Any]:
    own = f"{type(network).__module__}.{type(network).__qualname__}"
    state = {"tensors": tensors_of(network, every_name=True), "extra": extra_of(network)}
    return {"description": describe(network) or {"custom": own}, "state": state}


def _network(
    role: str, values: Any, shape: tuple[int, ...], given: Mapping[str, Any], *, double: bool
) -> tuple[nn.Module, Tensor]:
    """A network with its weights, and no rows of its features."""
    fields(values, "description", "state")
    description, state, dtype = values["description"], values["state"], torch.float64 if double else torch.float32
    if math.prod(shape) > LARGEST:
        raise ValueError(f"inputs of shape {shape}")
    fields(state, "tensors", "extra")
    if "custom" in description:
        name = text(fields(description, "custom")["custom"])
        module = cast(_custom(role, name, given, shape), dtype).eval().requires_grad_(False)
        _load(module, state, role)
        try:
            return module, _features(module, torch.zeros(1, *shape, dtype=dtype))
        except DAMAGE as error:
            raise ModelFileError(
                f"networks[{role!r}] makes no features of inputs of shape {shape} ({type(error).__name__}: {error}): give the "
                f"{name} that was trained"
            ) from error
    # In no memory, until all sizes are known to be those of the file's tensors. It does not run there: for that torch imports a
    # library of symbolic mathematics, which takes a second and changes the caller's warnings filters.
    with torch.device("meta"):
        module = rebuild(description).to(dtype).eval()
    expected = module.state_dict()
    fields(state["extra"])
    fields(state["tensors"], *expected)
    for name, weights in expected.items():
        tensor_of(state["tensors"][name], weights.shape, weights.dtype)
        if name.rpartition(".")[2] == "running_var" and bool((state["tensors"][name] < 0).any()):
            raise ValueError(f"a negative variance in {name!r}")
    module.load_state_dict(state["tensors"], assign=True)
    with bounded(module, most=LARGEST):
        return module.requires_grad_(False), _features(module, torch.zeros(1, *shape, dtype=dtype))


def _load(module: nn.Module, state: Any, role: str) -> None:
    """Values into the memory that the module has made, which is laid out as it was in training."""
    wrong = misfit(module, state)
    if wrong is not None:
        raise ModelFileError(
            f"the {role} network given does not fit the file's weights: {wrong}; give the architecture that was trained"
        )
    put(module, state)
    for name, weights in tensors_of(module, every_name=True).items():
        if name in state["tensors"]:
            tensor_of(state["tensors"][name], weights.shape, weights.dtype, finite=False)


def _features(module: nn.Module, probe: Tensor) -> Tensor:
    features = evaluate(module, probe)
    if features.ndim != 2 or len(features) != 1:
        raise ValueError(f"features of shape {tuple(features.shape)} of one row")
    return features[:0]  # no rows: what becomes of them takes no memory, however wide


def _custom(role: str, name: str, given: Mapping[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """A network of the user's own, with weights still to come."""
    if role not in given:
        raise ModelFileError(
            f"the file's {role} network is a {name}, whose code it does not hold: give load(path, "
            f"networks={{{role!r}: factory}})"
        )
    specification = given[role]
    try:
        if isinstance(specification, nn.Module):
            return made_ready(copied(specification, role), shape)
        network = specification(shape[0] if len(shape) == 1 else shape) if callable(specification) else specification
        if isinstance(network, nn.Module):
            return made_ready(network, shape)
    except DAMAGE as error:
        raise ModelFileError(
            f"networks[{role!r}] makes no network for inputs of shape {shape} ({type(error).__name__}: {error}): give the "
            f"{name} that was trained"
        ) from error
    raise ModelFileError(
        f"networks[{role!r}] must be a module or a factory of one, got {type(network).__name__}: give the {name} that "
        "was trained"
    )


def _scale_to_values(scale: Standardiser) -> dict[str, Any]:
    return {"mean": np.asarray(scale.mean, dtype=np.float64), "scale": np.asarray(scale.scale, dtype=np.float64)}


def _scale_from_values(values: Any, columns: tuple[int, ...]) -> Standardiser:
    """Of columns, or of none in particular."""
    fields(values, "mean", "scale")
    mean, scale = (numbers(values[name], (), columns) for name in ("mean", "scale"))
    if mean.shape != scale.shape or not (scale > 0).all():
        raise ValueError("scales are not positive numbers, one for each mean")
    return Standardiser(mean, scale)
