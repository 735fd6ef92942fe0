"""Feature networks: the defaults chosen from shapes, those of the original paper, and how a user's own become ours."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from cfiv.errors import ParameterError
from cfiv.runtime.draws import Draws, run
from cfiv.runtime.module_state import extra_of, real_dtype, tensors_of
from cfiv.tensor_file import UnsavableError, check_savable

#: None (chosen from the shapes), a factory from the input width (or image shape) to a module, or a module.
NetworkSpec = None | nn.Module | Callable[[Any], nn.Module]


class FeatureNetwork(nn.Module):
    """A multilayer perceptron whose features include its input: ``x -> [x, f(x)]``, ``f`` with SiLU between linear layers.

    Carrying the input makes the linear structural function, and so two-stage least squares with a learned first stage, the
    point that learning starts from. Inputs of more than one axis (images) are flattened and not carried along.

    Parameters
    ----------
    inputs : int
        Width of the flattened input.
    hidden : sequence of int
        Widths of the hidden layers.
    outputs : int
        Number of learned features.
    carry : bool
        Whether the input is among the features.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, *, carry: bool = True) -> None:
        super().__init__()
        self.inputs, self.hidden, self.outputs, self.carry = inputs, tuple(hidden), outputs, carry
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Features of each row, (n, ...) -> (n, columns)."""
        x = x.flatten(start_dim=1)
        features: Tensor = self.layers(x)
        return torch.cat([x, features], dim=1) if self.carry else features


def treatment_network(shape: Sequence[int]) -> nn.Module:
    """Default ``psi``: the treatment itself and one learned feature; of an image, :func:`image_network`.

    Few treatment features are a strong regulariser: the first stage has to predict each of them, and noise in any of them
    reaches the structural function.
    """
    return image_network(shape) if len(shape) > 1 else FeatureNetwork(shape[0], (32, 32), 1)


def image_network(shape: Sequence[int]) -> nn.Module:
    """Default ``psi`` of images (rows, columns) or (channels, rows, columns): eight features of a coarser image.

    Squares of ``side`` x ``side`` pixels are added up so that 16 to 31 are left on the shorter side, and divided by ``side``,
    which leaves the variance of independent noise as it was,

        x'_kl = sum_{i, j < side} x_{side k + i, side l + j} / side,        side = floor(min(rows, columns) / 16).

    Pixels beyond the last whole square, at most ``side - 1`` rows and columns, are left out. Then fully connected 512-128-8
    with SiLU. Images of fewer than 32 pixels on the shorter side, or of more than three axes, are taken pixel by pixel. A
    network that has to see detail is for the user to give.

    Parameters
    ----------
    shape : sequence of int
        Of one image.

    Returns
    -------
    Module
        (n, *shape) -> (n, 8).
    """
    side = max(1, min(shape[-2:]) // 16)
    if len(shape) > 3 or side == 1:
        return FeatureNetwork(math.prod(shape), (512, 128), 8, carry=False)
    pixels = (shape[-2] // side) * (shape[-1] // side) * math.prod(shape[:-2])
    pool = nn.AvgPool2d(side, divisor_override=side)
    return nn.Sequential(pool, nn.Flatten(), FeatureNetwork(pixels, (512, 128), 8, carry=False))


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


def instrument_network(shape: Sequence[int]) -> FeatureNetwork:
    """Default ``phi``, on instruments and covariates together: they and 32 learned features."""
    return FeatureNetwork(math.prod(shape), (128, 64), 32)


def covariate_network(shape: Sequence[int]) -> FeatureNetwork:
    """Default ``xi``: the covariates and 16 learned features."""
    return FeatureNetwork(math.prod(shape), (128, 32), 16)


def original_treatment_network(inputs: int) -> nn.Module:
    """``psi`` of Xu et al. 2021 on the demand design: 1-16-1, ReLU."""
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 1))


def original_instrument_network(inputs: int) -> nn.Module:
    """``phi`` of Xu et al. 2021 on the demand design: 3-128-64-32, ReLU, batch normalisation last."""
    hidden = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(64, 32), nn.BatchNorm1d(32))


def original_covariate_network(inputs: int) -> nn.Module:
    """``xi`` of Xu et al. 2021 on the demand design: 2-128-32-16, ReLU, batch normalisation after the second layer."""
    hidden = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(32, 16), nn.ReLU())


def original_image_treatment_network(shape: Sequence[int]) -> nn.Module:
    """``psi`` of Xu et al. 2021 on dSprites: 4096-1024-512-BN-128-32-BN-Tanh, ReLU, spectral normalisation of every layer."""
    first = (nn.Flatten(), _spectral(math.prod(shape), 1024), nn.ReLU(), _spectral(1024, 512), nn.ReLU(), nn.BatchNorm1d(512))
    return nn.Sequential(*first, _spectral(512, 128), nn.ReLU(), _spectral(128, 32), nn.BatchNorm1d(32), nn.Tanh())


def original_image_instrument_network(inputs: int) -> nn.Module:
    """``phi`` of Xu et al. 2021 on dSprites: 3-256-128-BN-128-BN-32-BN-ReLU, ReLU, spectral normalisation of every layer."""
    first = (_spectral(inputs, 256), nn.ReLU(), _spectral(256, 128), nn.ReLU(), nn.BatchNorm1d(128))
    second = (_spectral(128, 128), nn.ReLU(), nn.BatchNorm1d(128))
    return nn.Sequential(*first, *second, _spectral(128, 32), nn.BatchNorm1d(32), nn.ReLU())


def _spectral(inputs: int, outputs: int) -> nn.Module:
    """A linear layer whose weights are divided by their largest singular value."""
    return nn.utils.parametrizations.spectral_norm(nn.Linear(inputs, outputs))


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


def build(spec: NetworkSpec, *, shape: Sequence[int], default: Callable[[Sequence[int]], nn.Module], role: str) -> nn.Module:
    """A freshly initialised network for inputs of this shape; call inside :func:`seeded`.

    A module given by the user is copied and its layers re-initialised, so the original is never touched and no two fits share
    weights. Layers whose parameters cannot be re-initialised (no ``reset_parameters``, or parametrised such as spectral norm)
    keep the values given: give a factory for those. Frozen layers (``requires_grad=False``, a pretrained encoder) keep them
    too.

    Parameters
    ----------
    spec : None, callable or Module
    shape : sequence of int
        Shape of one input; factories get the width for flat inputs and the shape for images.
    default : callable
        Used where ``spec`` is None.
    role : str
        For messages.

    Raises
    ------
    ParameterError
        If the specification is of another type, or the network does not map (rows, *shape) to (rows, features).
    """
    if spec is None:
        network = default(shape)
    elif isinstance(spec, nn.Module):
        network = copied(spec, role)
        for module in network.modules():
            if can_be_drawn_anew(module):
                module.reset_parameters()  # type: ignore[operator]
    elif callable(spec):
        given = shape[0] if len(shape) == 1 else tuple(shape)
        try:
            made: object = spec(given)
        except TypeError as error:
            what = "width" if len(shape) == 1 else "shape"
            raise ParameterError(
                f"the {role}_network factory could not be called with {given}, the {what} of its input ({error}): give a "
                "function of that one argument, or a module"
            ) from error
        # A copy, in case the factory hands out one and the same module.
        if not isinstance(made, nn.Module):
            raise ParameterError(f"the {role}_network factory must return a torch module, got {type(made).__name__}")
        with suppress(RuntimeError, ValueError, TypeError):  # what is wrong with it is said below
            made_ready(made, shape)  # torch cannot copy all lazy layers
        network = copied(made, role)
    else:
        raise ParameterError(f"{role}_network must be None, a factory or a torch module, got {type(spec).__name__}")
    check_network(network, shape=shape, role=role)
    check_kept(network, f"{role}_network")
    return network


def copied(network: nn.Module, role: str) -> nn.Module:
    """A copy that shares nothing with a network of a user's.

    Raises
    ------
    ParameterError
        If it cannot be copied, or has no values.
    """
    if any(tensor.is_meta for tensor in tensors_of(network).values()):
        raise ParameterError(
            f"the {role}_network is on the meta device, where tensors have no values: make it on the cpu, or give a factory"
        )
    try:
        return copy.deepcopy(network)
    except (TypeError, RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ParameterError(
            f"the {role}_network cannot be copied ({str(error).splitlines()[0]}): two fits may not share one; keep what has no "
            "copy (locks, open files, results of computations) out of the module"
        ) from error


def made_ready(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """The network, with layers that are lazy given the widths that inputs of this shape give them."""
    if any(is_lazy(parameter) for parameter in network.parameters()):
        evaluate(network, torch.zeros(2, *shape, dtype=real_dtype(network)))
    return network


def check_kept(network: nn.Module, what: str) -> None:
    """Refuse networks that keep what no file of cfiv's could hold, before anything is trained.

    Raises
    ------
    ParameterError
        Which names the part.
    """
    for name, kept in extra_of(network).items():
        try:
            check_savable(kept)
        except UnsavableError as error:
            raise ParameterError(
                f"the {what} keeps an extra state in {name or type(network).__name__!r} that cannot be saved "
                f"(it has {error}): let its get_extra_state give tensors, numbers, text, None, and lists and dicts "
                "of them"
            ) from None


def can_be_drawn_anew(layer: nn.Module) -> bool:
    """Whether :func:`build` initialises a layer of a module that it is given: it can, and is not frozen."""
    frozen = any(not parameter.requires_grad for parameter in layer.parameters(recurse=False))
    return callable(getattr(layer, "reset_parameters", None)) and not frozen


def check_network(network: nn.Module, *, shape: Sequence[int], role: str) -> None:
    """Refuse networks that do not map (rows, *shape) to (rows, features).

    Parameters
    ----------
    network : Module
    shape : sequence of int
        Of one input.
    role : str
        For messages.

    Raises
    ------
    ParameterError
        Which names the layer that failed, with the shape it got and the one it takes.
    """
    dtype = real_dtype(network) or torch.float32
    # A convolution takes (rows, height, width) for one picture of so many channels: with the right number of rows it may work.
    # So may a network that swaps rows and features.
    for rows in (5, 2) if len(shape) == 2 else (2, 5):
        probe = torch.zeros(rows, *shape, dtype=dtype)
        try:
            features = evaluate(network, probe)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"{str(error).splitlines()[0]}{_failing_layer(network, probe)}"
            raise ParameterError(f"the {role}_network does not accept inputs of shape {('rows', *shape)}: {reason}") from error
        if features.ndim != 2 or features.shape[0] != rows:
            remedy = "give one row of features for each row of its input"
            if features.ndim != 2:
                remedy = "keep an axis for its features" if features.ndim < 2 else "flatten its output"
            raise ParameterError(
                f"the {role}_network must map (rows, {', '.join(map(str, shape))}) to (rows, features), got output shape "
                f"{tuple(features.shape)} for {rows} rows: {remedy}"
            )
        if not features.is_floating_point():
            remedy = "take .real, .imag or .abs()" if features.is_complex() else "convert it with .float()"
            raise ParameterError(f"the {role}_network must give real features, got {features.dtype}: {remedy} in its forward")


def _failing_layer(network: nn.Module, probe: Tensor) -> str:
    """The layer in which an evaluation fails, what it got and what it takes, for a message; nothing where it says nothing."""
    running: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    def done(*_: object) -> None:
        running.pop()

    def watched(name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(lambda _, given: running.append((name, module, given)))
        yield module.register_forward_hook(done)

    handles = [handle for name, module in network.named_modules() for handle in watched(name, module)]
    with suppress(RuntimeError, ValueError, TypeError):
        evaluate(network, probe)
    for handle in handles:
        handle.remove()
    if not running or not running[-1][2] or not isinstance(running[-1][2][0], Tensor):
        return ""
    name, layer, (given, *_) = running[-1]
    got = ("rows", *given.shape[1:])
    which = f"{f' {name!r}' if name else ''} got inputs of shape {got} and takes"
    width, channels = getattr(layer, "in_features", None), getattr(layer, "in_channels", None)
    if isinstance(width, int):
        flatten = "; put torch.nn.Flatten() before it" if given.ndim > 2 else ""
        return f" (its linear layer{which} ('rows', {width}){flatten})"
    if isinstance(channels, int):
        missing = given.ndim == 3 and type(layer) is nn.Conv2d
        unflatten = f"; put torch.nn.Unflatten(1, (1, {given.shape[1]})) before it" if missing and channels == 1 else ""
        axes = "height, width" if isinstance(layer, nn.Conv2d) else "..."
        return f" (its convolution{which} {channels} channels, ('rows', {channels}, {axes}){unflatten})"
    return ""


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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws of layers (initial weights, dropout) come from ``seed`` inside; see :class:`cfiv.runtime.draws.Draws`."""
    with Draws(seed, device).here(other_code=True):
        yield
