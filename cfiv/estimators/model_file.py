"""Model files: numbers and names, nothing that can run; see :mod:`cfiv.tensor_file` for how they lie in the file.

The header holds the library's version, estimator, outcome, facts, the encoder and the components. All of it is compared with
what a model of that kind would have written before anything is used: a digest can be computed anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfiv.errors import ModelFileError
from cfiv.estimators.old_model_files import values_of_old
from cfiv.estimators.saved_components import component_from_values, component_to_values
from cfiv.estimators.saved_encoders import encoder_from_values, encoder_to_values, inputs_of
from cfiv.estimators.structural import StructuralFunction
from cfiv.file_values import fields, listed, scalar, text
from cfiv.learning.networks import seeded
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.tables.encoding import TableEncoder
from cfiv.tensor_file import TensorFile, nested

FORMAT_VERSION = 3
MODEL_FILE = TensorFile(
    key="cfiv",
    version=FORMAT_VERSION,
    digested=3,
    noun="model file",
    remedy="save it again",
    otherwise="leave out what it belongs to, or compute that column first",
)


def write_model(function: StructuralFunction, path: str | os.PathLike[str]) -> None:
    """Write a structural function; the file appears at ``path`` only once it is whole.

    Raises
    ------
    ModelFileError
        If there is something in it that no file can hold.
    OutputError
        If the folder is missing or cannot be written to.
    """
    values = {
        "estimator": function.estimator,
        "outcome": function.outcome,
        "facts": function.facts,
        "encoder": encoder_to_values(function.encoder),
        "components": [component_to_values(component) for component in function.components],
    }
    MODEL_FILE.write(Path(path), values)


def read_model(path: str | os.PathLike[str], *, networks: Mapping[str, Any]) -> StructuralFunction:
    """Read what :func:`write_model` wrote; see :func:`cfiv.load`."""
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
        fields(values, "estimator", "outcome", "facts", "encoder", "components")
        encoder = encoder_from_values(values["encoder"])
        inputs = inputs_of(encoder)
        with seeded(0, torch.device("cpu")):  # factories draw weights before they get the file's
            components = tuple(component_from_values(part, inputs, networks) for part in listed(values["components"]))
            function = StructuralFunction(
                estimator=text(values["estimator"]),
                components=components,
                encoder=encoder,
                outcome=scalar(values["outcome"]),
                facts=_facts(values["facts"]),
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


def _check_answers(function: StructuralFunction, *, finite: bool) -> None:
    """Raise unless it has an answer, a finite one, at a row of training, or at an array of zeros, or of their darkest pixel."""
    encoder = function.encoder
    if isinstance(encoder, TableEncoder):
        answers = function.predict(encoder.reference.iloc[:1])
    else:
        grey = 0.0 if encoder.pixels is None else encoder.pixels[0]
        treatment = np.full((1, *encoder.treatment_shape), grey)
        answers = function.predict(treatment=treatment, covariates=None if encoder.reference is None else encoder.reference[:1])
    if answers.shape != (1,) or (finite and not np.isfinite(answers).all()):
        raise ValueError(f"asked for one value, it answers {answers}")
