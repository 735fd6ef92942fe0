"""Data in the units of training, on the training device, and the way back to the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cfiv.data import Array, IVData, stored_tensor, to_tensor
from cfiv.errors import DataError
from cfiv.estimators.components import NetworkComponent
from cfiv.estimators.units import Standardiser
from cfiv.learning.networks import Rescaled
from cfiv.learning.samples import Sample
from cfiv.numerics.two_stage import Structure


@dataclass(frozen=True, eq=False)
class StandardisedData:
    """Outcome, treatment, instruments with covariates, and covariates, each scaled.

    Parameters
    ----------
    sample : Sample
        The scaled rows, on the training device; images as they are stored, see :meth:`on_stored`.
    device : device
    distinct_instruments : int
        How many different values the instruments take, rows as wholes.
    clusters : array (n,) or None
        Labels of groups of rows that no split parts.
    outcome_scale, treatment_scale, instrument_scale, covariate_scale : Standardiser
        ``instrument_scale`` is that of instruments and covariates together.
    """

    sample: Sample
    device: torch.device
    distinct_instruments: int
    clusters: Array | None
    outcome_scale: Standardiser
    treatment_scale: Standardiser
    instrument_scale: Standardiser
    covariate_scale: Standardiser

    @classmethod
    def prepare(cls, data: IVData, *, device: torch.device, double: bool, standardise: bool) -> StandardisedData:
        """Learn the scales, and copy the arrays to the device."""
        dtype = torch.float64 if double else torch.float32
        weights = data.weights
        instruments = _stacked(data.instruments, data.covariates)

        def scale(values: Array | None) -> Standardiser:
            return Standardiser.fit(values, weights) if standardise and values is not None else Standardiser.identity()

        outcome_scale, treatment_scale = scale(data.outcome[:, None]), scale(data.treatment)
        instrument_scale, covariate_scale = scale(instruments), scale(data.covariates)
        sample = Sample(
            outcome=to_tensor(outcome_scale.apply(data.outcome[:, None]), dtype=dtype, device=device),
            # Images stay as they are stored: psi converts them, a batch at a time.
            treatment=stored_tensor(data.treatment, device=device)
            if data.treatment.ndim > 2
            else to_tensor(treatment_scale.apply(data.treatment), dtype=dtype, device=device),
            instruments=to_tensor(instrument_scale.apply(instruments), dtype=dtype, device=device),
            covariates=None
            if data.covariates is None
            else to_tensor(covariate_scale.apply(data.covariates), dtype=dtype, device=device),
            weights=None if weights is None else to_tensor(weights, dtype=torch.float64, device=device),
        )
        _check_cast(data, sample)
        distinct = len(np.unique(data.instruments, axis=0))
        scales = (outcome_scale, treatment_scale, instrument_scale, covariate_scale)
        return cls(sample, device, distinct, data.clusters, *scales)

    def distinct_treatments(self, most: int) -> int:
        """How many different values the treatments take, rows (images) as wholes, counted up to ``most``."""
        if self.sample.treatment.ndim == 2:
            return min(most, len(torch.unique(self.sample.treatment, dim=0)))
        values: set[bytes] = set()
        for image in self.sample.treatment:
            values.add((image.cpu() + 0).numpy().tobytes())  # minus zero is zero
            if len(values) == most:
                break
        return len(values)

    def on_stored(self, network: nn.Module) -> nn.Module:
        """``psi``, which takes standardised treatments, as a network of the treatments in ``sample``."""
        if self.sample.treatment.ndim == 2:
            return network
        mean, scale = float(self.treatment_scale.mean), float(self.treatment_scale.scale)
        return Rescaled(network, mean=mean, scale=scale, dtype=self.sample.outcome.dtype)

    def component(
        self, *, treatment: nn.Module, covariate: nn.Module | None, structural: Tensor, structure: Structure
    ) -> NetworkComponent:
        """The function ``u' f(psi, xi)`` in the user's units."""
        return NetworkComponent(
            treatment_network=treatment.network if isinstance(treatment, Rescaled) else treatment,
            covariate_network=covariate,
            structural=structural,
            structure=structure,
            outcome_scale=self.outcome_scale,
            treatment_scale=self.treatment_scale,
            covariate_scale=self.covariate_scale,
            double=self.double,
        )

    @property
    def double(self) -> bool:
        """Whether features are in float64."""
        return self.sample.outcome.dtype == torch.float64

    def reduced_form(self, fits: Sequence[ReducedFormFit]) -> ReducedForm:
        """``E[h | Z, X]`` in the user's units, averaged over fits."""
        return ReducedForm(tuple(fits), self.outcome_scale, self.instrument_scale, self.covariate_scale, self.double)


class ReducedFormFit(Protocol):
    """What a fit predicts from instruments and covariates."""

    def predicted_outcome(self, *, instruments: Tensor, covariates: Tensor | None) -> Tensor:
        """``E[h(T, X) | Z, X]`` in standard units, shape (n, 1); ``instruments`` includes the covariates."""
        ...


@dataclass(frozen=True, eq=False)
class ReducedForm:
    """``E[h | Z, X]`` in the outcome's units, averaged over the fits. It holds no rows, and can be pickled."""

    fits: tuple[ReducedFormFit, ...]
    outcome_scale: Standardiser
    instrument_scale: Standardiser
    covariate_scale: Standardiser
    double: bool

    def __call__(self, instruments: Array, covariates: Array | None) -> Array:
        """Shape (n,), at instruments (n, q) and covariates (n, p)."""
        dtype = torch.float64 if self.double else torch.float32
        z = to_tensor(self.instrument_scale.apply(_stacked(instruments, covariates)), dtype=dtype)
        x = None if covariates is None else to_tensor(self.covariate_scale.apply(covariates), dtype=dtype)
        predictions = [fit.predicted_outcome(instruments=z, covariates=x)[:, 0].numpy() for fit in self.fits]
        return self.outcome_scale.undo(np.mean(predictions, axis=0))


def _check_cast(data: IVData, sample: Sample) -> None:
    """Raise where float32 does not hold columns that are not standardised."""
    for role in ("outcome", "treatment", "instruments", "covariates"):
        values, cast = getattr(data, role), getattr(sample, role)
        if values is None or values.ndim > 2:
            continue
        columns = values.reshape(len(values), -1)
        cast = cast[:, : columns.shape[1]]
        lost = (cast.amin(dim=0) == cast.amax(dim=0)).cpu().numpy() & (columns.min(axis=0) != columns.max(axis=0))
        lost |= (~cast.isfinite().all(dim=0)).cpu().numpy()
        if lost.any():
            assert data.names is not None
            name = data.names[role][int(lost.argmax())]
            raise DataError(
                f"{role} {name!r} ranges from {columns[:, lost].min():.3g} to {columns[:, lost].max():.3g}, which "
                f"{str(cast.dtype).removeprefix('torch.')} does not hold: use standardise=True, or give it in another unit"
            )


def _stacked(instruments: Array, covariates: Array | None) -> Array:
    """The input of the instrument features: instruments and covariates."""
    stacked: Array = instruments if covariates is None else np.concatenate([instruments, covariates], axis=1)
    return stacked
