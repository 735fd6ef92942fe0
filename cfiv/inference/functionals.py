"""Linear functionals of ``h``: what averages, effects and derivatives make of the functions of a basis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cfiv.data import Array
from cfiv.errors import DataError, ParameterError, UnsupportedTreatmentWarning, silence
from cfiv.estimators.structural import MOST, StructuralFunction
from cfiv.estimators.support import ROWS
from cfiv.inference.basis_fit import BasisFit
from cfiv.inference.linear_in_basis import Basis
from cfiv.inference.seen import Seen, is_numeric
from cfiv.tables.encoder import Counterfactuals

#: Numbers of a basis at rows that are held at once, 8 MB.
BLOCK = 2**20
#: Steps of a derivative, as shares of the treatment's range: for terms such as ``bs(price)``, polynomials between knots.
STEP = 2.0**-14
NODES = np.arange(-2.0, 3.0)


@dataclass(frozen=True, eq=False)
class Functionals:
    """m functionals.

    Parameters
    ----------
    values : tuple of arrays (m, p)
        What they make of each function of the basis, for the basis of the estimate and for those of other sizes.
    supported : array (m,) of bool
        Whether what they ask was seen in training.
    """

    values: tuple[Array, ...]
    supported: Array

    def __len__(self) -> int:
        return len(self.supported)

    def __sub__(self, other: Functionals) -> Functionals:
        differences = tuple(one - another for one, another in zip(self.values, other.values, strict=True))
        return Functionals(differences, self.supported & other.supported)

    def one(self, i: int) -> Functionals:
        """The i-th by itself."""
        return Functionals(tuple(values[[i]] for values in self.values), self.supported[[i]])

    def beside(self, other: Functionals) -> Functionals:
        """Both, one after the other."""
        values = tuple(np.concatenate(pair) for pair in zip(self.values, other.values, strict=True))
        return Functionals(values, np.concatenate([self.supported, other.supported]))


@dataclass(frozen=True, eq=False)
class Asker:
    """Makes functionals of rows that a structural function reads.

    Parameters
    ----------
    function : StructuralFunction
    bases : tuple of Basis
    fits : tuple of BasisFit
        In each of them; the first is that of leverages.
    seen : Seen
    rows : int
        Of training.
    """

    function: StructuralFunction
    bases: tuple[Basis, ...]
    fits: tuple[BasisFit, ...]
    seen: Seen
    rows: int

    def at_rows(self, rows: Any) -> Functionals:
        """``h`` at each row."""
        treatments, covariates = self.function.encoder.inputs(rows)
        values = tuple(basis.structural_columns(treatments, covariates) for basis in self.bases)
        seen = self._covered(self.function.encoder.raw(rows), treatments, covariates)
        return Functionals(values, seen & self.seen.supports(self.fits[0].leverage(values[0], rows=self.rows)))

    def at_treatments(self, asked: Counterfactuals, inside: Array) -> Functionals:
        """``mean_i h(t, X_i)`` at each treatment asked; ``inside`` (m,) says which lie in the range of training.

        A treatment is supported if it does, was seen at the covariates of half of the rows or more, and the mean leverage of
        the rows with it is at most the largest of training.
        """
        support = self.function.support
        places = None if support is None else support.places(asked.covariates, asked.rows)
        means, supported = [], inside.copy()
        for i, treatments in enumerate(_each(asked)):
            mean, leverage = self._mean(treatments, asked.covariates)
            means.append(mean)
            supported[i] &= self.seen.supports(leverage)
            if support is not None and places is not None:
                supported[i] &= support.at(places, treatments).mean() >= MOST
        return Functionals(tuple(np.stack(columns) for columns in zip(*means, strict=True)), supported)

    def derivatives(self, rows: Any, *, inputs: tuple[Array, Array | None] | None = None) -> Functionals:
        """``mean_i dh(T_i, X_i) / dt`` for each treatment that is a number; ``inputs`` are what the encoder makes of the rows.

        Whether such treatments were seen is asked of up to ``ROWS`` of the rows, evenly spread.
        """
        raw = self.function.encoder.raw(rows)
        treatments, covariates = self.function.encoder.inputs(rows) if inputs is None else inputs
        some = slice(None, None, -(-len(treatments) // ROWS))
        few = (np.array(treatments[some]), None if covariates is None else np.array(covariates[some]))
        leverage = self._mean(*few)[1]
        covered = self._covered(raw[some], *few)
        supported = bool(covered.mean() >= MOST and self.seen.supports(leverage))
        names = self.seen.columns
        means = [self._mean_derivative(raw, treatments, covariates, name) for name in names]
        values = [np.array([mean[i] for mean in means]).reshape(len(names), fit.size) for i, fit in enumerate(self.fits)]
        return Functionals(tuple(values), np.full(len(names), supported))

    def _covered(self, raw: pd.DataFrame, treatments: Array, covariates: Array | None) -> Array:
        """Whether training has seen the treatment of each row (n,) at such covariates."""
        support, inside = self.function.support, self.seen.within(raw)
        return inside if support is None else inside & support.covers(treatments, covariates)

    def _mean(self, treatments: Array, covariates: Array | None) -> tuple[list[Array], float]:
        """Of the functions of each basis over rows, and of the leverages in the first."""
        sums, leverage = [np.zeros(fit.size) for fit in self.fits], 0.0
        for rows in self._blocks(len(treatments)):
            given = None if covariates is None else covariates[rows]
            columns = [basis.structural_columns(treatments[rows], given) for basis in self.bases]
            sums = [total + part.sum(axis=0) for part, total in zip(columns, sums, strict=True)]
            leverage += float(self.fits[0].leverage(columns[0], rows=self.rows).sum())
        return [total / len(treatments) for total in sums], leverage / len(treatments)

    def _mean_derivative(self, raw: pd.DataFrame, treatments: Array, covariates: Array | None, name: str) -> list[Array]:
        """By the chain rule: of the encoder's columns with respect to the treatment as it came, and of the basis by those."""
        means = [np.zeros(fit.size) for fit in self.fits]
        for rows in self._blocks(len(treatments)):
            given = None if covariates is None else covariates[rows]
            slopes = self._slopes(raw.iloc[rows], treatments[rows], name)
            for mean, basis in zip(means, self.bases, strict=True):
                for column in np.flatnonzero(slopes.any(axis=0)):
                    own = basis.structural_derivative(treatments[rows], given, int(column))
                    mean += slopes[:, column] @ own / len(treatments)
        return means

    def _slopes(self, raw: pd.DataFrame, treatments: Array, name: str) -> Array:
        """Derivatives (n, k) of the encoder's treatment columns with respect to the treatment ``name`` as it came.

        Exact where those are the treatments themselves; else of the polynomial through five points a row, ``STEP`` of the
        treatment's range apart and within that range: exact for polynomials of degree four between knots, and beside a knot off
        by the bend there times the step.
        """
        names = list(self.function.encoder.treatment_names)
        if all(is_numeric(raw[one]) for one in names) and np.array_equal(treatments, raw[names].to_numpy(dtype=np.float64)):
            return np.broadcast_to(np.eye(len(names))[names.index(name)], treatments.shape)
        least, greatest = self.seen.span(name)
        values, step = raw[name].to_numpy(dtype=np.float64), STEP * (greatest - least)
        inside = (least <= values) & (values <= greatest)
        centres = np.where(inside, np.clip(values, least + 2 * step, greatest - 2 * step), values)
        powers = np.arange(5)
        place = (values - centres) / step
        slopes = powers[:, None] * place ** np.maximum(powers - 1, 0)[:, None]
        weights = np.linalg.solve(np.vander(NODES, increasing=True).T, slopes) / step
        found, raw = np.zeros(treatments.shape), raw.copy()
        for node, weight in zip(NODES, weights, strict=True):
            points = centres + node * step
            points = np.where(inside, np.clip(points, least, greatest), points)
            found += weight[:, None] * self.function.encoder.inputs(raw.assign(**{name: points}))[0]
        return found

    def _blocks(self, rows: int) -> Iterator[slice]:
        step = max(1, BLOCK // self.fits[0].size)
        for start in range(0, rows, step):
            yield slice(start, start + step)


def any_functional(asker: Asker, f: Any, fitted: Any) -> tuple[Any, Functionals]:
    """What a function ``f`` of ``h`` makes of the estimate and of each function of the basis.

    Parameters
    ----------
    asker : Asker
    f : callable
        Takes ``h``, a function of rows, and returns a number or several.
    fitted : callable
        The estimate, as such a function.

    Raises
    ------
    ParameterError, DataError
        Unless it returns numbers, always as many.
    """
    supported = []

    def watched(rows: Any) -> Array:
        supported.append(bool(asker.at_rows(rows).supported.mean() >= MOST))
        with silence(UnsupportedTreatmentWarning):  # supported says it
            return np.asarray(fitted(rows))

    given = f(watched)
    count = len(_numbers(given))

    def of(basis: Basis, j: int) -> Array:
        def one(rows: Any) -> Array:
            return basis.structural_columns(*asker.function.encoder.inputs(rows))[:, j]

        found = _numbers(f(one))
        if len(found) != count:
            raise ParameterError(f"the functional must return as many numbers for every h, got {count} and {len(found)}")
        return found

    values = tuple(
        np.stack([of(basis, j) for j in range(fit.size)], axis=1) for basis, fit in zip(asker.bases, asker.fits, strict=True)
    )
    return given, Functionals(values, np.full(count, all(supported)))


def _numbers(given: Any) -> Array:
    try:
        found = np.atleast_1d(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError):
        raise ParameterError(f"the functional must return a number, or several, got {type(given).__name__}") from None
    if found.ndim != 1 or not len(found):
        raise ParameterError(f"the functional must return a number, or several, got an array of shape {found.shape}")
    if not np.isfinite(found).all():
        raise DataError("the functional is not finite: ask where h is defined")
    return found


def _each(asked: Counterfactuals) -> Iterator[Array]:
    """Treatments (n, k) of all rows, for one treatment asked after the other."""
    if asked.same is None:
        yield from asked.own
        return
    rows = 1 if asked.covariates is None else asked.rows
    for treatment in asked.same:
        yield np.broadcast_to(treatment, (rows, *treatment.shape))
