"""Model files: numbers and names, nothing that can run; see :mod:`cfiv.tensor_file` for how they lie in the file.

The header holds the library's version, estimator, outcome, facts, the encoder and the components. All of it is compared with
what a model of that kind would have written before anything is used: a digest can be computed anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cfiv.errors import ModelFileError, UnsupportedTreatmentWarning, silence
from cfiv.estimators.old_model_files import values_of_old
from cfiv.estimators.saved_components import Inputs, component_from_values
from cfiv.estimators.structural import MODEL_FILE, StructuralFunction
from cfiv.estimators.support import Support
from cfiv.file_values import choice, fields, listed, number, scalar, text
from cfiv.runtime.draws import seeded
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.tables.array_encoder import ArrayEncoder
from cfiv.tables.encoder import Encoder
from cfiv.tables.table_encoder import TableEncoder
from cfiv.tensor_file import nested

#: What reads an encoder, by the kind that the file says.
ENCODERS: Mapping[str, Any] = {encoder.kind: encoder.from_values for encoder in (ArrayEncoder, TableEncoder)}


def load(path: str | os.PathLike[str], *, networks: Mapping[str, Any] | None = None) -> StructuralFunction:
    """Read a model file written by ``save``.

    Parameters
    ----------
    path : path
    networks : mapping, optional
        For models with networks that are not cfiv's own: ``{"treatment": factory or module, "covariate": ...}`` of the same
        architecture; a file holds weights, not code.

    Returns
    -------
    StructuralFunction
        Whose predictions equal those of the one saved, bit for bit on the same machine.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged in any bit, foreign, from a newer version, or needs ``networks``.
    """
    networks = networks or {}
    if not isinstance(networks, Mapping):
        raise ModelFileError(
            f"networks must be a mapping such as {{'treatment': factory}}, got {type(networks).__name__}: name the role"
        )
    unknown = set(networks) - {"treatment", "covariate"}
    if unknown:
        raise ModelFileError(f"networks takes the keys 'treatment' and 'covariate', got {sorted(unknown)}")
    with ordinary_torch():
        return _read(path, networks)


def _read(path: str | os.PathLike[str], networks: Mapping[str, Any]) -> StructuralFunction:
    version, header, tensors = MODEL_FILE.read(path)
    with MODEL_FILE.reading(path):
        values = values_of_old(header, tensors) if version < 3 else nested(header, tensors)
        del tensors
        if version < 4:
            values |= {"support": None, "shares": []}
        return function_from_values(values, networks)


def function_from_values(values: Any, networks: Mapping[str, Any]) -> StructuralFunction:
    """A structural function from the values of a file, once it has an answer.

    Raises
    ------
    ModelFileError
        If ``networks`` are needed, or do not fit.
    Exception
        One of :data:`cfiv.tensor_file.DAMAGE`, for anything else.
    """
    fields(values, "estimator", "outcome", "facts", "encoder", "components", "support", "shares")
    encoder: Encoder = ENCODERS[choice(values["encoder"]["kind"], tuple(ENCODERS))](values["encoder"])
    inputs = Inputs(*encoder.shape)
    with seeded(0, torch.device("cpu")):  # factories draw weights before they get the file's
        components = tuple(component_from_values(part, inputs, networks) for part in listed(values["components"]))
        function = StructuralFunction(
            estimator=text(values["estimator"]),
            components=components,
            encoder=encoder,
            outcome=scalar(values["outcome"]),
            facts=_facts(values["facts"]),
            support=_support(values["support"], inputs),
            shares=_shares(values["shares"], len(components)),
        )
        _check_answers(function, finite=not networks)
    return function


def _facts(values: Any) -> dict[str, Any]:
    """Numbers and texts, and tables of them."""
    facts: dict[str, Any] = {}
    for name, value in fields(values, *values).items():
        if isinstance(value, list):
            facts[text(name)] = [{text(key): scalar(cell) for key, cell in dict.items(record)} for record in value]
        else:
            facts[text(name)] = scalar(value)
    return facts


def _shares(values: Any, components: int) -> tuple[float, ...]:
    """None, or one >= 0 a component."""
    shares = tuple(number(value) for value in listed(values))
    if shares and (len(shares) != components or min(shares) < 0):
        raise ValueError(f"{components} components, and shares {shares}")
    return shares


def _support(values: Any, inputs: Inputs) -> Support | None:
    if values is None:
        return None
    (treatments,) = inputs.treatment
    return Support.from_values(values, treatments=treatments, covariates=inputs.covariates)


def _check_answers(function: StructuralFunction, *, finite: bool) -> None:
    """Raise unless it has an answer, a finite one, at a row of training, or at an array of zeros, or of their darkest pixel."""
    with silence(UnsupportedTreatmentWarning):
        answers = function.predict(function.encoder.example())
    if answers.shape != (1,) or (finite and not np.isfinite(answers).all()):
        raise ValueError(f"asked for one value, it answers {answers}")
