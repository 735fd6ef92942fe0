"""The feature maps of one structural function, and what they make of a batch of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cfiv.runtime.draws import run

#: Types of images that float32 may not hold exactly.
WIDE = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)


class Rescaled(nn.Module):
    """A network on images as they are stored: ``x -> network((x - mean) / scale)``, converted a batch at a time.

    The mean is taken off in float64 where the images are stored in a type that float32 does not hold: with a large mean little
    would be left of them.

    Parameters
    ----------
    network : Module
    mean, scale : float
        One for all pixels.
    dtype : dtype
        That of the network: what it is given.
    """

    def __init__(self, network: nn.Module, *, mean: float, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.mean, self.scale, self.dtype = network, mean, scale, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Features of each row, (n, ...) -> (n, columns)."""
        wide = x.to(torch.float64 if x.dtype in WIDE else self.dtype)
        features: Tensor = self.network(((wide - self.mean) / self.scale).to(self.dtype))
        return features


@dataclass(frozen=True)
class Networks:
    """Feature maps of one function: ``treatment`` psi, ``instrument`` phi, ``covariate`` xi (None without covariates)."""

    treatment: nn.Module
    instrument: nn.Module
    covariate: nn.Module | None

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> Networks:
        """From those that exist, in the order of :meth:`modules`."""
        treatment, instrument, *covariate = modules
        return cls(treatment, instrument, covariate[0] if covariate else None)

    def modules(self) -> list[nn.Module]:
        """The networks that exist, in a fixed order."""
        return [module for module in (self.treatment, self.instrument, self.covariate) if module is not None]


def evaluate(network: nn.Module, inputs: Tensor) -> Tensor:
    """Features in evaluation mode and without gradients; the module's mode is left as it was."""
    mode = network.training
    network.eval()
    try:
        with torch.no_grad():
            return features_of(network, inputs)
    finally:
        network.train(mode)


def features_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network makes of its inputs (n, ...): features (n, m), in the mode that it is in.

    A network that squeezes loses the axis of the rows where there is one of them; here it gets it back.
    """
    features: Tensor = run(network, inputs)
    if not isinstance(features, Tensor):
        raise TypeError(f"it gives a {type(features).__name__} and not a tensor of features")
    return features[None] if features.ndim == 1 and len(inputs) == 1 else features
