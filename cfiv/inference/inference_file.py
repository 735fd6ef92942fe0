"""Inference files: what an inference holds as nested values, and back, compared with one another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from cfiv.estimators.model_file import function_from_values
from cfiv.estimators.structural import StructuralFunction
from cfiv.file_values import fields, flag, listed, numbers, text, texts, whole
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.estimates import Averages, Law
from cfiv.inference.functionals import Functionals
from cfiv.inference.linear_in_basis import bases_of
from cfiv.inference.overidentification import Overidentification
from cfiv.inference.seen import Seen
from cfiv.inference.simultaneous import Multipliers
from cfiv.inference.strength import Strength
from cfiv.runtime.surroundings import ordinary_torch
from cfiv.tensor_file import TensorFile, nested

if TYPE_CHECKING:
    from cfiv.inference.inference import Inference

INFERENCE_FILE = TensorFile(
    key="cfiv-inference",
    version=1,
    digested=1,
    noun="inference file",
    remedy="save it again",
    otherwise="leave out what it belongs to",
)
#: What a file holds of it, besides its parts.
FACTS = ("covariance", "rows", "notes")


def inference_to_values(inference: Inference) -> dict[str, Any]:
    """All that :func:`read_inference` needs."""
    return {
        "function": inference.function.to_values(),
        "fits": [fit.to_values() for fit in inference.law.fits],
        "averages": None
        if inference.averages is None
        else {
            "function": inference.averages.function.to_values(),
            "fits": [fit.to_values() for fit in inference.averages.law.fits],
        },
        "multipliers": inference.law.multipliers.to_values(),
        "doubtful": inference.law.doubtful,
        "average": {"values": list(inference.average.values), "supported": inference.average.supported.tolist()},
        "seen": inference.seen.to_values(),
        "strength": None if inference.strength is None else inference.strength.to_values(),
        "overidentification": None if inference.overidentification is None else inference.overidentification.to_values(),
        **{name: getattr(inference, name) for name in FACTS},
    }


def read_inference(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parts of an inference, by name.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, or of a newer version.
    """
    with ordinary_torch():
        _, header, tensors = INFERENCE_FILE.read(path)
        with INFERENCE_FILE.reading(path):
            return _parts(nested(header, tensors))


def _parts(values: Any) -> dict[str, Any]:
    parts = ("function", "fits", "averages", "multipliers", "doubtful", "average", "seen", "strength", "overidentification")
    # Of files of before there were learned functions, and the test.
    values = {"averages": None, "overidentification": None, **values}
    fields(values, *parts, *FACTS)
    multipliers, doubtful = Multipliers.from_values(values["multipliers"]), flag(values["doubtful"])
    function, fits = _function_and_fits(values)
    averages = None
    if values["averages"] is not None:
        own = _function_and_fits(fields(values["averages"], "function", "fits"))
        averages = Averages(own[0], Law(own[1], multipliers, doubtful))
    seen = Seen.from_values(values["seen"])
    average = fields(values["average"], "values", "supported")
    supported = [flag(one) for one in listed(average["supported"], count=len(seen.columns))]
    sizes = [fit.size for fit in (fits if averages is None else averages.law.fits)]
    means = listed(average["values"], count=len(sizes))
    test = values["overidentification"]
    strength = None if values["strength"] is None else Strength.from_values(values["strength"])
    return {
        "function": function,
        "law": Law(fits, multipliers, doubtful),
        "averages": averages,
        "average": Functionals(
            tuple(numbers(mean, (len(seen.columns), size)) for mean, size in zip(means, sizes, strict=True)),
            np.array(supported, dtype=bool),
        ),
        "seen": seen,
        "strength": strength,
        "overidentification": None if test is None else Overidentification.from_values(test),
        "covariance": text(values["covariance"]),
        "rows": whole(values["rows"], 1, 2**62),
        "notes": texts(values["notes"]),
    }


def _function_and_fits(values: Any) -> tuple[StructuralFunction, tuple[BasisFit, ...]]:
    """A function and the fits in its bases."""
    function = function_from_values(values["function"], {})
    example = function.encoder.inputs(function.encoder.example())
    sizes = [basis.structural_columns(*example).shape[1] for basis in bases_of(function)]
    fits = listed(values["fits"], count=len(sizes))
    return function, tuple(BasisFit.from_values(fit, size=size) for fit, size in zip(fits, sizes, strict=True))
