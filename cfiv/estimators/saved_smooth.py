"""Bases of smooth models as nested values of a model file, and back; instruments are left out, which no prediction needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from cfiv.estimators.saved_sieves import spline_from_values, spline_to_values
from cfiv.file_values import fields, flag, listed, numbers
from cfiv.numerics.curves import Curve
from cfiv.numerics.smooth_basis import SmoothBasis


def smooth_to_values(basis: SmoothBasis) -> dict[str, Any]:
    """All that :func:`smooth_from_values` needs."""
    return {
        "treatments": [_curve_to_values(curve) for curve in basis.treatments],
        "covariates": [_curve_to_values(curve) for curve in basis.covariates],
        "products": basis.products,
    }


def smooth_from_values(values: Any, *, treatments: int, covariates: int) -> SmoothBasis:
    """A basis for so many columns, without instruments.

    Raises
    ------
    Exception
        One of :data:`cfiv.tensor_file.DAMAGE`, for values that make none.
    """
    fields(values, "treatments", "covariates", "products")
    return SmoothBasis(
        treatments=tuple(_curve(curve) for curve in listed(values["treatments"], count=treatments)),
        covariates=tuple(_curve(curve) for curve in listed(values["covariates"], count=covariates)),
        instruments=(),
        products=flag(values["products"]),
    )


def _curve_to_values(curve: Curve) -> dict[str, Any]:
    return {"spline": spline_to_values(curve.spline), "rotation": curve.rotation, "centre": curve.centre}


def _curve(values: Any) -> Curve:
    fields(values, "spline", "rotation", "centre")
    spline = spline_from_values(values["spline"])
    columns = np.shape(values["centre"])
    return Curve(spline, numbers(values["rotation"], (spline.width, *columns)), numbers(values["centre"], columns))
