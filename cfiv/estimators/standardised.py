"""Data in the units of training, on the training device, and the way back to the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfiv.data import Array, IVData, stored_tensor, to_tensor
from cfiv.errors import DataError
from cfiv.estimators.components import NetworkComponent
from cfiv.estimators.units import Standardiser
from cfiv.learning.samples import Sample
from cfiv.mapped import BLOCK_ROWS, array_on_disk, is_mapped, release
from cfiv.networks.feature_maps import Rescaled
from cfiv.numerics.two_stage import Structure


@dataclass(frozen=True, eq=False)
class StandardisedData:
    """Outcome, treatment, instruments with covariates, and covariates, each scaled.

    Parameters
    ----------
    sample : Sample
        The scaled rows, on the training device; images as they are stored, see :meth:`on_stored`.
    device : device
    clusters : array (n,) or None
        Labels of groups of rows that no split parts.
    on_disk : tuple of array
        What the sample's tensors are of, where that lies on disk.
    outcome_scale, treatment_scale, instrument_scale, covariate_scale : Standardiser
        ``instrument_scale`` is that of instruments and covariates together.
    """

    sample: Sample
    device: torch.device
    clusters: Array | None
    on_disk: tuple[Array, ...]
    outcome_scale: Standardiser
    treatment_scale: Standardiser
    instrument_scale: Standardiser
    covariate_scale: Standardiser

    @classmethod
    def prepare(cls, data: IVData, *, device: torch.device, double: bool, standardise: bool) -> StandardisedData:
        """Learn the scales, and copy the arrays to the device; those on disk, where the processor is it, to disk again."""
        outcome, covariates, weights = data.outcome[:, None], data.covariates, data.weights
        given = (data.instruments,) if covariates is None else (data.instruments, covariates)

        def scale(*parts: Array) -> Standardiser:
            if not standardise:
                return Standardiser.identity()
            return reduce(Standardiser.beside, (Standardiser.fit(part, weights) for part in parts))

        on_disk = []

        def scaled(by: Standardiser, *parts: Array) -> Tensor:
            kept = device.type == "cpu" and any(map(is_mapped, parts))
            made = _scaled(by, parts, dtype=np.float64 if double else np.float32, on_disk=kept)
            on_disk.extend([made] * kept)
            return torch.from_numpy(made).to(device)

        outcome_scale, treatment_scale, instrument_scale = scale(outcome), scale(data.treatment), scale(*given)
        covariate_scale = Standardiser.identity() if covariates is None else scale(covariates)
        sample = Sample(
            outcome=scaled(outcome_scale, outcome),
            # Images stay as they are stored: psi converts them, a batch at a time.
            treatment=stored_tensor(data.treatment, device=device)
            if data.treatment.ndim > 2
            else scaled(treatment_scale, data.treatment),
            instruments=scaled(instrument_scale, *given),
            covariates=None if covariates is None else scaled(covariate_scale, covariates),
            weights=None if weights is None else to_tensor(weights, dtype=torch.float64, device=device),
        )
        _check_cast(data, sample)
        data.release()
        scales = (outcome_scale, treatment_scale, instrument_scale, covariate_scale)
        return cls(sample, device, data.clusters, tuple(on_disk), *scales)

    def release(self) -> None:
        """Give back the memory that reading rows on disk has taken."""
        release(*self.on_disk)

    @property
    def excluded(self) -> Tensor:
        """The instruments (n, q), without the covariates beside them."""
        covariates = self.sample.covariates
        return self.sample.instruments[:, : None if covariates is None else -covariates.shape[1]]

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
        """Shape (n,), at instruments (n, q) and covariates (n, p); a block of rows at a time."""
        starts = range(0, len(instruments), BLOCK_ROWS)
        blocks = (
            (each[start : start + BLOCK_ROWS] for each in (instruments, covariates) if each is not None) for start in starts
        )
        return np.concatenate([self._of_block(*block) for block in blocks])

    def _of_block(self, instruments: Array, covariates: Array | None = None) -> Array:
        dtype = torch.float64 if self.double else torch.float32
        z = to_tensor(self.instrument_scale.apply(_stacked(instruments, covariates)), dtype=dtype)
        x = None if covariates is None else to_tensor(self.covariate_scale.apply(covariates), dtype=dtype)
        predictions = [fit.predicted_outcome(instruments=z, covariates=x)[:, 0].numpy() for fit in self.fits]
        return self.outcome_scale.undo(np.mean(predictions, axis=0))


def _scaled(scale: Standardiser, parts: Sequence[Array], *, dtype: npt.DTypeLike, on_disk: bool) -> Array:
    """Columns side by side and scaled (n, k), a block of rows at a time; in a temporary file where they are to be on disk."""
    rows, columns = len(parts[0]), sum(part.shape[1] for part in parts)
    made = array_on_disk(rows, columns=columns, dtype=dtype) if on_disk else np.empty((rows, columns), dtype=dtype)
    for start in range(0, rows, BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        with np.errstate(over="ignore"):  # what float32 does not hold is refused once all is there
            made[block] = scale.apply(np.concatenate([part[block] for part in parts], axis=1))
        release(made, *parts)
    return made


def _check_cast(data: IVData, sample: Sample) -> None:
    """Raise where float32 does not hold columns that are not standardised."""
    for role in ("outcome", "treatment", "instruments", "covariates"):
        values, cast = getattr(data, role), getattr(sample, role)
        if values is None or values.ndim > 2:
            continue
        columns = values.reshape(len(values), -1)
        cast = cast[:, : columns.shape[1]]
        least, greatest = (end.cpu().numpy() for end in (cast.amin(dim=0), cast.amax(dim=0)))
        lost = (least == greatest) & (columns.min(axis=0) != columns.max(axis=0))
        lost |= ~(np.isfinite(least) & np.isfinite(greatest))
        release(values)
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
