"""Kernel instrumental variable regression, the nonparametric comparator in closed form."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfiv.data import Array, IVData, to_tensor
from cfiv.errors import DataError, ParameterError
from cfiv.estimators.components import KernelComponent
from cfiv.estimators.estimator import Estimate, StructuralEstimator
from cfiv.estimators.standardise import Standardiser
from cfiv.learning.samples import split_rows
from cfiv.numerics.kernel_two_stage import Moments, PenaltyChoice, kernel_two_stage, sample_moments
from cfiv.numerics.kernels import KernelExpansion, KernelFeatures, median_bandwidth
from cfiv.tables.columns import Missing

#: Values of either penalty that None stands for. The outcome has unit variance and the kernels are one at distance zero, so
#: they are shares; below the smallest, float64 has no digits left to tell one from another.
PENALTIES: tuple[float, ...] = tuple(float(value) for value in np.logspace(-10, 0, 50))

#: Matrices of landmarks x landmarks that a fit holds at its peak where no direction of them is rounding (measured). Median
#: bandwidths leave most directions out, and then it holds about 5; which it will be is not known before they are factored.
MATRICES = 18

Penalty = float | Sequence[float] | None
Bandwidths = Mapping[str, float | Sequence[float]]


class KernelIV(StructuralEstimator):
    """Kernel instrumental variable regression: ``h`` in the function space of a product of Gaussian kernels.

    With ``x`` the treatment and the covariates and ``z`` the instruments and the covariates, stage 1 learns the conditional
    mean of the kernel features ``psi(X)`` given ``Z`` on one half of the rows, stage 2 regresses the outcome on it on the
    other half:

        V = argmin  mean_1 |psi(X) - V' phi(Z)|^2 + stage1_ridge |V|^2
        h = argmin  mean_2 (Y - <h, V' phi(Z)>)^2 + stage2_ridge |h|^2.

    Both are closed forms, and their penalties are chosen on the loss of the stage at the rows that it was not fitted to.

    Parameters
    ----------
    formula, outcome, treatment, instruments, covariates, weights, missing
        Roles, as in :class:`cfiv.DFIV`. An IVData of images is taken as flat vectors. ``0 +`` in a formula leaves the outcome
        uncentred.
    bandwidths : mapping, optional
        Bandwidths in the user's units under the keys "treatment", "instruments" and "covariates": one number, or one a column
        of the role. Columns of roles that are not given have their median distance between two rows; an image is one input and
        has one bandwidth.
    stage1_ridge, stage2_ridge : float, sequence of float or None
        Penalties > 0 of V and of h, on the *mean* loss: the paper's lambda and xi. Of a sequence the best is chosen; None is
        50 values from 1e-10 to 1. However many, they cost one factorisation a stage. The outcome is standardised, so that
        neither depends on units.
    landmarks : int, optional
        Rows of sample 1 that functions are sums of kernels at (Nyström). None is all of them, exact: its matrices are as large
        as sample 1 squared.
    split : float
        The share of the rows in sample 1.
    swap : bool
        Fit again with the samples swapped and average, as DFIV does. False is the paper's algorithm.
    fits : int
        How many splits to fit and average (each swapped, with ``swap``).
    random_state : int, Generator or None
        Source of the split, the landmarks, and the rows that a median of very many is taken of; the same int gives the same
        numbers, bit for bit on one machine.

    Attributes
    ----------
    structural_function_ : StructuralFunction
    penalties_ : DataFrame
        ``fit, swapped, stage, penalty, loss, chosen``: each penalty tried and its loss on the other sample, in stage 2 in
        units of the outcome's variance.
    bandwidths_ : dict
        The bandwidths used, one list a role.

    Raises
    ------
    ParameterError
        For penalties, bandwidths, landmarks or a split out of range, and where kernel matrices would not fit in memory.
    DataError
        If all rows are equal in one input, which leaves it without a bandwidth, or there are too few rows to split.

    Notes
    -----
    A pass costs O(n r^2 + r^3) for r landmarks and holds 5 to 18 matrices of r x r float64 beside the data; there are ``fits``
    passes, twice that with ``swap``. Far from all training rows ``h`` goes to the mean outcome. Row weights enter the means of
    both stages, not the median distances. Stage 2's penalty is judged by the error of h at the treatments of sample 1, as the
    paper's authors compute it: under strong confounding that leans towards a regression of the outcome on the treatment.

    References
    ----------
    Singh, Sahani, Gretton, "Kernel Instrumental Variable Regression", NeurIPS 2019: Algorithm 1, with the validation of
    appendix A.5. See :mod:`cfiv.numerics.kernel_two_stage` for the equations.

    Examples
    --------
    >>> from cfiv.datasets import demand
    >>> train, truth = demand.simulate(n=300, rho=0.5, seed=0)
    >>> model = KernelIV("sales ~ time + emotion + [price ~ fuel]", random_state=0).fit(train.frame)
    >>> model.dose_response([15.0, 20.0, 25.0]).columns.tolist()
    ['price', 'estimate']
    """

    def __init__(
        self,
        formula: str | None = None,
        *,
        outcome: str | None = None,
        treatment: str | Sequence[str] | None = None,
        instruments: str | Sequence[str] | None = None,
        covariates: str | Sequence[str] | None = None,
        weights: str | None = None,
        missing: Missing = "drop",
        bandwidths: Bandwidths | None = None,
        stage1_ridge: Penalty = None,
        stage2_ridge: Penalty = None,
        landmarks: int | None = None,
        split: float = 0.5,
        swap: bool = True,
        fits: int = 1,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.formula = formula
        self.outcome = outcome
        self.treatment = treatment
        self.instruments = instruments
        self.covariates = covariates
        self.weights = weights
        self.missing = missing
        self.bandwidths = bandwidths
        self.stage1_ridge = stage1_ridge
        self.stage2_ridge = stage2_ridge
        self.landmarks = landmarks
        self.split = split
        self.swap = swap
        self.fits = fits
        self.random_state = random_state

    penalties_: pd.DataFrame
    bandwidths_: dict[str, list[float]]

    def _check_parameters(self) -> None:
        for name in ("stage1_ridge", "stage2_ridge"):
            _penalties(name, getattr(self, name))
        if not _is_number(self.split) or not 0.0 < float(self.split) < 1.0:
            raise ParameterError(f"split must be between 0 and 1, got {self.split!r}")
        if not isinstance(self.swap, (bool, np.bool_)):
            raise ParameterError(f"swap must be True or False, got {self.swap!r}")
        if not _is_whole(self.fits) or self.fits < 1:
            raise ParameterError(f"fits must be a whole number >= 1, got {self.fits!r}")
        if self.landmarks is not None and (not _is_whole(self.landmarks) or self.landmarks < 1):
            raise ParameterError(
                f"landmarks must be a whole number >= 1, or None for all rows of sample 1, got {self.landmarks!r}"
            )
        seed = self.random_state
        if not (seed is None or isinstance(seed, np.random.Generator) or (_is_whole(seed) and seed >= 0)):
            raise ParameterError(f"random_state must be a whole number >= 0, a numpy Generator or None, got {seed!r}")
        if self.bandwidths is not None:
            _check_bandwidths(self.bandwidths)

    def _estimate(self, data: IVData, *, intercept: bool) -> Estimate:
        median_generator, *generators = np.random.default_rng(self.random_state).spawn(1 + self.fits)
        inputs = _Inputs.of(data)
        bandwidths = self._bandwidths(data, inputs, median_generator)
        scale = _outcome_scale(inputs, centred=intercept)
        fits: list[_Fit] = []
        for number, generator in enumerate(generators):
            split_generator, *landmark_generators = generator.spawn(3)
            samples = split_rows(len(inputs.outcome), share=float(self.split), generator=split_generator)
            self._check_landmarks(samples)
            for swapped in (False, True) if self.swap else (False,):
                first, second = reversed(samples) if swapped else samples
                chosen = self._landmarks(first, landmark_generators[swapped])
                fits.append(self._fit_once(inputs, scale, bandwidths, (first, second, chosen), (number, swapped)))
        self.bandwidths_ = bandwidths
        self.penalties_ = pd.concat([_penalty_table(fit) for fit in fits], ignore_index=True)
        return Estimate(
            tuple(KernelComponent(fit.structural, scale) for fit in fits),
            _ReducedForm(tuple(fit.reduced_form for fit in fits), scale),
            self._facts(data, fits),
            pd.DataFrame(),
        )

    def _fit_once(
        self,
        inputs: _Inputs,
        scale: Standardiser,
        bandwidths: Mapping[str, Sequence[float]],
        rows: tuple[Tensor, Tensor, Tensor],
        label: tuple[int, bool],
    ) -> _Fit:
        """Both stages on the rows of sample 1 and sample 2, with landmarks among those of sample 1."""
        first, second, chosen = rows
        psi, phi = (
            KernelFeatures.of_landmarks(points[chosen], _columns(role, bandwidths, width=points.shape[1]))
            for role, points in (("treatment", inputs.treatments), ("instruments", inputs.instruments))
        )
        sample1, sample2 = (inputs.moments(part, scale, phi, psi) for part in (first, second))
        stages = kernel_two_stage(
            sample1=sample1,
            sample2=sample2,
            stage1_penalties=torch.tensor(_penalties("stage1_ridge", self.stage1_ridge), dtype=torch.float64),
            stage2_penalties=torch.tensor(_penalties("stage2_ridge", self.stage2_ridge), dtype=torch.float64),
        )
        reduced_form = phi.expansion(stages.first_stage @ stages.structural)
        return _Fit(*label, psi.expansion(stages.structural), reduced_form, stages.stage1, stages.stage2)

    def _facts(self, data: IVData, fits: Sequence[_Fit]) -> dict[str, Any]:
        def mean(values: Sequence[float]) -> str:
            return f"{float(np.mean(values)):.4g}"

        return {
            "Functions averaged": len(fits),
            "Landmarks": "all rows of sample 1" if self.landmarks is None else int(self.landmarks),
            "Stage-1 penalties": ", ".join(f"{fit.stage1.chosen:.3g}" for fit in fits),
            "Stage-2 penalties": ", ".join(f"{fit.stage2.chosen:.3g}" for fit in fits),
            "Out-of-sample stage-1 loss": mean([float(fit.stage1.losses.min()) for fit in fits]),
            "Out-of-sample stage-2 loss": mean([float(fit.stage2.losses.min()) for fit in fits]) + " of the outcome variance",
            "Bandwidths": _bandwidth_records(data, self.bandwidths_),
        }

    def _check_landmarks(self, samples: tuple[Tensor, Tensor]) -> None:
        """Refuse more landmarks than rows, and matrices that do not fit."""
        sizes = [len(sample) for sample in (samples if self.swap else samples[:1])]
        if self.landmarks is not None and self.landmarks > min(sizes):
            raise ParameterError(
                f"landmarks must be at most the {min(sizes)} rows of the sample they are drawn from, got {self.landmarks}: use "
                "fewer, or None for all of them"
            )
        size = max(sizes) if self.landmarks is None else int(self.landmarks)
        needed, free = MATRICES * 8 * size**2, available_memory()
        if free is not None and needed > free:
            fitting = min(2000, max(1, math.isqrt(free // (2 * MATRICES * 8))))
            raise ParameterError(
                f"kernel matrices of {size} x {size} need {needed / 2**30:.3g} GiB in all, but {free / 2**30:.3g} GiB are "
                f"free: use the Nyström version with fewer landmarks, such as landmarks={fitting}"
            )

    def _landmarks(self, first: Tensor, generator: np.random.Generator) -> Tensor:
        """Rows of sample 1, drawn without replacement; with None all of them."""
        if self.landmarks is None:
            return first
        return first[torch.from_numpy(generator.choice(len(first), int(self.landmarks), replace=False))]

    def _bandwidths(self, data: IVData, inputs: _Inputs, generator: np.random.Generator) -> dict[str, list[float]]:
        assert data.names is not None
        given = self.bandwidths or {}
        found: dict[str, list[float]] = {}
        for role, columns in inputs.by_role().items():
            if role in given:
                values = given[role]
                numbers = [float(v) for v in (values if isinstance(values, Sequence) else [values])]
                if len(numbers) not in (1, len(columns)):
                    raise ParameterError(
                        f"bandwidths[{role!r}] must be one number or one for each of the {len(columns)} inputs, got {values!r}"
                    )
                found[role] = numbers * (len(columns) // len(numbers))
                continue
            names = data.names[role]
            found[role] = [median_bandwidth(column, generator=generator) for column in columns]
            for name, value in zip(names, found[role], strict=True):
                if not value > 0:
                    raise DataError(
                        f"{role} {name!r} is the same in all {len(inputs.outcome)} rows, so that its median distance, the "
                        f"bandwidth, is zero: drop it, or give bandwidths={{{role!r}: ...}}"
                    )
        if "covariates" in given and "covariates" not in found:
            raise ParameterError("bandwidths are given for covariates, but there are none: leave them out")
        return found


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Rows with a positive weight, float64: outcome (n, 1), the inputs of both kernels, and where each role stands in them."""

    outcome: Tensor
    treatments: Tensor
    instruments: Tensor
    covariates: int
    image: bool
    weights: Tensor | None

    @classmethod
    def of(cls, data: IVData) -> _Inputs:
        used = slice(None) if data.weights is None else np.flatnonzero(data.weights > 0)
        return cls(
            outcome=to_tensor(data.outcome[used, None], dtype=torch.float64),
            treatments=_beside(data.treatment[used], None if data.covariates is None else data.covariates[used]),
            instruments=_beside(data.instruments[used], None if data.covariates is None else data.covariates[used]),
            covariates=0 if data.covariates is None else data.covariates.shape[1],
            image=data.treatment.ndim > 2,
            weights=None if data.weights is None else to_tensor(data.weights[used], dtype=torch.float64),
        )

    def by_role(self) -> dict[str, list[Tensor]]:
        """The inputs of each role, each with the columns that share a bandwidth."""
        treatment = self.treatments[:, : self.treatments.shape[1] - self.covariates]
        instruments = self.instruments[:, : self.instruments.shape[1] - self.covariates]
        roles = {"treatment": [treatment] if self.image else _each(treatment), "instruments": _each(instruments)}
        if self.covariates:
            roles["covariates"] = _each(self.instruments[:, instruments.shape[1] :])
        return roles

    def moments(
        self, rows: Tensor, scale: Standardiser, instrument_features: KernelFeatures, treatment_features: KernelFeatures
    ) -> Moments:
        """Means over one sample, the outcome in standard units."""
        return sample_moments(
            instruments=self.instruments[rows],
            treatments=self.treatments[rows],
            outcome=(self.outcome[rows] - float(scale.mean)) / float(scale.scale),
            instrument_features=instrument_features,
            treatment_features=treatment_features,
            weights=None if self.weights is None else self.weights[rows],
        )


@dataclass(frozen=True, eq=False)
class _Fit:
    """One pass of both stages: ``h`` and ``E[h | Z, X]`` in standard units, and the penalties tried."""

    number: int
    swapped: bool
    structural: KernelExpansion
    reduced_form: KernelExpansion
    stage1: PenaltyChoice
    stage2: PenaltyChoice


@dataclass(frozen=True, eq=False)
class _ReducedForm:
    """``E[h | Z, X]`` in the outcome's units: the stage-1 prediction of the structural function, averaged over the fits."""

    expansions: tuple[KernelExpansion, ...]
    outcome_scale: Standardiser

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        points = _beside(instruments, covariates)
        return self.outcome_scale.undo(np.mean([expansion(points).numpy() for expansion in self.expansions], axis=0))


def available_memory() -> int | None:
    """Bytes that the machine has free, or None where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _beside(values: Array, covariates: Array | None) -> Tensor:
    """One row each of flat values and covariates, float64."""
    flat = to_tensor(values, dtype=torch.float64).flatten(start_dim=1)
    return flat if covariates is None else torch.cat([flat, to_tensor(covariates, dtype=torch.float64)], dim=1)


def _each(columns: Tensor) -> list[Tensor]:
    return [columns[:, j : j + 1] for j in range(columns.shape[1])]


def _columns(role: str, bandwidths: Mapping[str, Sequence[float]], *, width: int) -> Tensor:
    """The bandwidth of each of the ``width`` columns of a role and the covariates; pixels share one."""
    covariates = list(bandwidths.get("covariates", ()))
    own = list(bandwidths[role])
    repeats = (width - len(covariates)) // len(own)
    return torch.tensor(own * repeats + covariates, dtype=torch.float64)


def _outcome_scale(inputs: _Inputs, *, centred: bool) -> Standardiser:
    weights = None if inputs.weights is None else inputs.weights.numpy()
    fitted = Standardiser.fit(inputs.outcome.numpy(), weights)
    if centred:
        return Standardiser(fitted.mean[0], fitted.scale[0])
    return Standardiser(np.zeros(()), np.sqrt(np.average(inputs.outcome.numpy()[:, 0] ** 2, weights=weights)))


def _penalty_table(fit: _Fit) -> pd.DataFrame:
    """One row a penalty tried."""
    stages = []
    for stage, choice in ((1, fit.stage1), (2, fit.stage2)):
        table = pd.DataFrame({"penalty": choice.penalties.numpy(), "loss": choice.losses.numpy()})
        stages.append(table.assign(chosen=table["penalty"] == choice.chosen, fit=fit.number, swapped=fit.swapped, stage=stage))
    return pd.concat(stages)[["fit", "swapped", "stage", "penalty", "loss", "chosen"]]


def _bandwidth_records(data: IVData, bandwidths: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    assert data.names is not None
    return [
        {"role": role, "column": name, "bandwidth": value}
        for role, values in bandwidths.items()
        for name, value in zip(data.names[role], values, strict=True)
    ]


def _penalties(name: str, given: Penalty) -> tuple[float, ...]:
    """The values to choose from."""
    if given is None:
        return PENALTIES
    values = tuple(given) if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) else (given,)
    if not values or not all(_is_number(value) and 0.0 < float(value) < math.inf for value in values):
        raise ParameterError(f"{name} must be a finite number > 0, several of them, or None for a grid, got {given!r}")
    return tuple(float(value) for value in values)


def _check_bandwidths(given: Any) -> None:
    if not isinstance(given, Mapping) or not set(given) <= {"treatment", "instruments", "covariates"}:
        raise ParameterError(
            f"bandwidths must be a mapping with keys among 'treatment', 'instruments' and 'covariates', got {given!r}"
        )
    for role, values in given.items():
        several = isinstance(values, Sequence) and not isinstance(values, str)
        for value in values if several else [values]:
            if not _is_number(value) or not 0.0 < float(value) < math.inf:
                raise ParameterError(f"bandwidths[{role!r}] must be finite and > 0, got {values!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
