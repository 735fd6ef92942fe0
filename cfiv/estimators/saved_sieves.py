"""Splines, bases and choices of sieve instrumental variables as nested values of a model file, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from cfiv.file_values import fields, flag, listed, number, whole
from cfiv.numerics.sieve_basis import SieveBasis
from cfiv.numerics.sieve_choice import SieveChoice
from cfiv.numerics.splines import Spline

#: Degrees, segments and columns beyond which a file is not believed.
MOST = 2**20


def sieve_to_values(basis: SieveBasis) -> dict[str, Any]:
    """All that :func:`sieve_from_values` needs."""
    roles = ("treatments", "instruments", "covariates")
    return {
        **{role: [spline_to_values(spline) for spline in getattr(basis, role)] for role in roles},
        "products": basis.products,
    }


def sieve_from_values(values: Any, *, treatments: int, covariates: int) -> SieveBasis:
    """Bases for so many columns.

    Raises
    ------
    Exception
        One of :data:`cfiv.tensor_file.DAMAGE`, for values that make none.
    """
    fields(values, "treatments", "instruments", "covariates", "products")
    basis = SieveBasis(
        treatments=_splines(values["treatments"], treatments),
        instruments=_splines(values["instruments"], None),
        covariates=_splines(values["covariates"], covariates),
        products=flag(values["products"]),
    )
    if not basis.instruments or max(basis.width, basis.instrument_width) > MOST:
        raise ValueError(
            f"bases of {basis.width} and {basis.instrument_width} columns, of {len(basis.instruments)} instruments"
        )
    return basis


def choice_to_values(choice: SieveChoice) -> dict[str, Any]:
    """All that :func:`choice_from_values` needs."""
    return {**vars(choice), "bases": [sieve_to_values(basis) for basis in choice.bases]}


def choice_from_values(values: Any, *, treatments: int, covariates: int) -> SieveChoice:
    """A choice among bases for so many columns; raises as :func:`sieve_from_values`."""
    fields(values, *SieveChoice.__dataclass_fields__)
    count = len(listed(values["segments"]))
    bases = tuple(sieve_from_values(basis, treatments=treatments, covariates=covariates) for basis in listed(values["bases"]))
    if not 1 <= len(bases) <= count:
        raise ValueError(f"{len(bases)} bases of {count} sizes")
    return SieveChoice(
        segments=_wholes(values["segments"], count),
        sizes=_wholes(values["sizes"], count),
        correlations=_positive(values["correlations"], count),
        contrasts=_positive(values["contrasts"], count),
        threshold=_positive([values["threshold"]], 1)[0],
        chosen=whole(values["chosen"], 0, count - 1),
        larger=whole(values["larger"], 0, count - 1),
        small_bias=flag(values["small_bias"]),
        bases=bases,
    )


def spline_to_values(spline: Spline) -> dict[str, Any]:
    """All that :func:`spline_from_values` needs."""
    return {"low": spline.low, "high": spline.high, "inner": [float(knot) for knot in spline.inner], "degree": spline.degree}


def _splines(values: Any, count: int | None) -> tuple[Spline, ...]:
    return tuple(spline_from_values(spline) for spline in listed(values, count=count))


def spline_from_values(values: Any) -> Spline:
    """A spline whose knots are in order."""
    fields(values, "low", "high", "inner", "degree")
    low, high = number(values["low"]), number(values["high"])
    inner = np.array([number(knot) for knot in listed(values["inner"])])
    if not low < high or not (np.diff([0.0, *inner, 1.0]) > 0).all():
        raise ValueError("the knots of a spline are not in order")
    return Spline(low=low, high=high, inner=inner, degree=whole(values["degree"], 1, MOST))


def _wholes(values: Any, count: int) -> tuple[int, ...]:
    return tuple(whole(value, 1, MOST) for value in listed(values, count=count))


def _positive(values: Any, count: int) -> tuple[float, ...]:
    found = tuple(number(value) for value in listed(values, count=count))
    if min(found) < 0:
        raise ValueError(f"expected numbers >= 0, got {min(found)}")
    return found
